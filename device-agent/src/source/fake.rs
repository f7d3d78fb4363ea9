//! The in-process fake: a profile's node, a scenario's timeline, and faults injected at run time.
//!
//! Time is tokio's, so a paused clock works. A reading is made when something changes and not
//! otherwise: an idle node costs one timer. While the node "hangs" no reading is made, and after the
//! watchdog's time the sampler is reported as hung, as the NVML reader does.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use muster_proto::inventory::Sampler;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{AgentFault, DeviceSource, Update};
use crate::fake::FakeNode;
use crate::scenario::FaultEvent;

/// Injected faults that may wait for the node's loop; more are refused.
pub const INJECT_QUEUE: usize = 64;

/// A fake node as a source.
#[derive(Debug)]
pub struct FakeSource {
    node: FakeNode,
    start: Instant,
    timeline: VecDeque<(Duration, FaultEvent)>,
    injected: Option<mpsc::Receiver<FaultEvent>>,
    ready: VecDeque<Update>,
    watchdog: Duration,
    /// When the hang becomes visible.
    hung_at: Option<Instant>,
}

impl FakeSource {
    /// A source for `node` whose timeline starts now. `watchdog` is how long calls may hang before it is reported.
    pub fn new(node: FakeNode, timeline: Vec<(Duration, FaultEvent)>, watchdog: Duration) -> Self {
        let first = Update::Reading(Arc::new(node.reading()));
        Self {
            node,
            start: Instant::now(),
            timeline: timeline.into(),
            injected: None,
            ready: VecDeque::from([first]),
            watchdog,
            hung_at: None,
        }
    }

    /// Also takes faults from the returned sender.
    pub fn with_injection(mut self) -> (Self, mpsc::Sender<FaultEvent>) {
        let (sender, receiver) = mpsc::channel(INJECT_QUEUE);
        self.injected = Some(receiver);
        (self, sender)
    }

    fn apply(&mut self, fault: &FaultEvent) {
        match fault {
            FaultEvent::Silent => self.ready.push_back(Update::AgentFault(AgentFault::Silent)),
            FaultEvent::Replay => self.ready.push_back(Update::AgentFault(AgentFault::Replay)),
            // The next reader reads at once; that is the reading below.
            FaultEvent::Crash => self.ready.push_back(Update::Sampler(Sampler::Crashed)),
            FaultEvent::Hang if self.hung_at.is_none() => {
                self.hung_at = Some(Instant::now() + self.watchdog)
            }
            FaultEvent::Resume => {
                self.ready.push_back(Update::AgentFault(AgentFault::Resume));
                self.hung_at = None;
            }
            _ => {}
        }
        let event = self.node.apply(fault);
        if self.node.hung {
            // A hung driver tells nothing; the state is seen when it answers again.
            return;
        }
        if let Some(event) = event {
            self.ready.push_back(Update::Event(event));
        }
        self.ready
            .push_back(Update::Reading(Arc::new(self.node.reading())));
    }
}

impl DeviceSource for FakeSource {
    async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return update;
            }
            let planned = self.timeline.front().map(|(at, _)| self.start + *at);
            tokio::select! {
                biased;
                fault = receive(&mut self.injected) => self.apply(&fault),
                () = until(planned) => {
                    if let Some((_, fault)) = self.timeline.pop_front() {
                        self.apply(&fault);
                    }
                }
                () = until(self.hung_at) => {
                    self.hung_at = None;
                    return Update::Sampler(Sampler::Hung);
                }
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn receive(queue: &mut Option<mpsc::Receiver<FaultEvent>>) -> FaultEvent {
    if let Some(receiver) = queue {
        if let Some(fault) = receiver.recv().await {
            return fault;
        }
        *queue = None;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_proto::inventory::Sampler;
    use tokio::time::Instant;

    use super::FakeSource;
    use crate::fake::FakeNode;
    use crate::model::DeviceEventKind;
    use crate::profile::Profile;
    use crate::scenario::{FaultEvent, Scenario};
    use crate::source::{DeviceSource, Update};

    fn source(scenario: &str) -> FakeSource {
        let node = FakeNode::new(Profile::load("h100-8").unwrap().shape_for("a"), "a");
        FakeSource::new(
            node,
            Scenario::load(scenario).unwrap().for_node("a"),
            Duration::from_secs(45),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_timeline_plays_at_its_times() {
        let start = Instant::now();
        let mut source = source("xid79-and-back");
        let Update::Reading(first) = source.next().await else {
            panic!("no reading")
        };
        assert_eq!(first.gpus.len(), 8);
        let Update::Event(event) = source.next().await else {
            panic!("no event")
        };
        assert_eq!(
            (event.kind, start.elapsed().as_secs()),
            (DeviceEventKind::Xid(79), 30)
        );
        let Update::Reading(lost) = source.next().await else {
            panic!("no reading")
        };
        assert!(lost.gpus[3].lost);
        let Update::Reading(back) = source.next().await else {
            panic!("no reading")
        };
        assert_eq!((back, start.elapsed().as_secs()), (first, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hang_shows_after_the_watchdog_and_ends() {
        let start = Instant::now();
        let mut source = source("hang");
        source.next().await;
        assert_eq!(source.next().await, Update::Sampler(Sampler::Hung));
        assert_eq!(start.elapsed().as_secs(), 65);
        source.next().await;
        assert!(matches!(source.next().await, Update::Reading(_)));
        assert_eq!(start.elapsed().as_secs(), 140);
    }

    #[tokio::test(start_paused = true)]
    async fn injected_faults_come_at_once() {
        let (mut source, faults) = source("hang").with_injection();
        source.next().await;
        faults.try_send(FaultEvent::Lost { gpu: 0 }).unwrap();
        let Update::Reading(reading) = source.next().await else {
            panic!("no reading")
        };
        assert!(reading.gpus[0].lost);
    }
}
