//! The doors through which the outside reaches the cycle, each bounded, each with a rule for being
//! full.
//!
//! ```text
//!   watches, writer, lease ──send (waits)──────────┐
//!   extender: BindAsked, PlannedNodeNotOffered ────┤ try_send ("try again" / dropped)
//!                                                  ├──> Receiver ──> cycle
//!   agents: latest report and heartbeat by node ───┤ mail, latest wins; heartbeats alone wait a little
//!   whether the API server answers ────────────────┤ mail, latest wins
//!   extender: dropped Binds ───────────────────────┘ mail, at most one per held Bind
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_core::event::{Event, Ticket};
use muster_core::ids::NodeName;
use muster_core::inventory::{NodeReport, ReportOrder};
use muster_core::time::Millis;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::locked;

/// How long signs of life may wait until the cycle looks at them together. 15,000 agents give 1,500 a second, and
/// a decision after each would be as many for nothing. What they decide, the age of reports, is seconds.
const BEATS_WAIT: Duration = Duration::from_millis(200);

/// Events that may wait. Beyond that, senders wait too: a burst is slowed down, never lost.
pub const EVENTS_MAX: usize = 8192;

/// What an agent has said since the cycle last looked.
#[derive(Debug, Default)]
struct Mailed {
    report: Option<NodeReport>,
    heartbeat: Option<(ReportOrder, bool)>,
}

/// Whether the API server answers.
#[derive(Debug, Default)]
struct Reach {
    /// The last answer to anything.
    answered: Option<Instant>,
    /// When the first of the requests was sent of which none has been answered.
    away_since: Option<Instant>,
    /// What the cycle was told.
    told_away: bool,
}

impl Reach {
    fn news(&mut self) -> Option<Event> {
        let is_away = self.away_since.is_some();
        if is_away == self.told_away {
            return None;
        }
        self.told_away = is_away;
        let Some(since) = self.away_since else {
            return Some(Event::ApiBack);
        };
        let span = since.elapsed().as_millis();
        Some(Event::ApiAway(Millis(
            u64::try_from(span).unwrap_or(u64::MAX),
        )))
    }
}

#[derive(Debug, Default)]
struct Mail {
    reach: Mutex<Reach>,
    agents: Mutex<BTreeMap<NodeName, Mailed>>,
    dropped: Mutex<Vec<Ticket>>,
    notify: Notify,
    /// There are signs of life, and nothing else that is urgent.
    beats: Notify,
}

/// The sending side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    events: mpsc::Sender<Event>,
    mail: Arc<Mail>,
}

/// The receiving side, owned by the cycle.
#[derive(Debug)]
pub struct Outbox {
    events: mpsc::Receiver<Event>,
    mail: Arc<Mail>,
    /// When signs of life that have come are looked at.
    beats_at: Option<Instant>,
}

/// The cycle has ended: nothing is taken any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the scheduling cycle has ended")]
pub struct Closed;

/// Both sides.
pub fn inbox() -> (Inbox, Outbox) {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    let mail = Arc::new(Mail::default());
    (
        Inbox {
            events: sender,
            mail: Arc::clone(&mail),
        },
        Outbox {
            events: receiver,
            mail,
            beats_at: None,
        },
    )
}

impl Inbox {
    /// Sends an event, waiting while the queue is full.
    pub async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }

    /// Sends an event if there is room; returns whether it was taken.
    pub fn try_send(&self, event: Event) -> bool {
        self.events.try_send(event).is_ok()
    }

    /// Leaves a node's full state; a state of the same node that was not fetched yet is replaced.
    pub fn report(&self, report: NodeReport) {
        let mut agents = locked(&self.mail.agents);
        let mailed = agents.entry(report.node.clone()).or_default();
        mailed.heartbeat = None;
        mailed.report = Some(report);
        drop(agents);
        self.mail.notify.notify_one();
    }

    /// Leaves a sign of life of a node's agent. One that tells of trouble is looked at at once.
    pub fn heartbeat(&self, node: &NodeName, order: ReportOrder, sampler_ok: bool) {
        let mut agents = locked(&self.mail.agents);
        agents.entry(node.clone()).or_default().heartbeat = Some((order, sampler_ok));
        drop(agents);
        if sampler_ok {
            self.mail.beats.notify_one();
        } else {
            self.mail.notify.notify_one();
        }
    }

    /// The API server has answered a request, whatever it said.
    pub fn answered(&self) {
        let mut reach = locked(&self.mail.reach);
        reach.answered = Some(Instant::now());
        if reach.away_since.take().is_some() {
            drop(reach);
            self.mail.notify.notify_one();
        }
    }

    /// A request that was sent at `sent` has had no answer. The API server is away when nothing else
    /// has had one since.
    pub fn unanswered(&self, sent: Instant) {
        let mut reach = locked(&self.mail.reach);
        if reach.away_since.is_none() && reach.answered.is_none_or(|at| at < sent) {
            reach.away_since = Some(sent);
            drop(reach);
            self.mail.notify.notify_one();
        }
    }

    /// Says that nobody waits for the answer of this Bind any more.
    pub fn dropped(&self, ticket: Ticket) {
        locked(&self.mail.dropped).push(ticket);
        self.mail.notify.notify_one();
    }

    /// Events that wait.
    pub fn waiting(&self) -> usize {
        self.events
            .max_capacity()
            .saturating_sub(self.events.capacity())
    }
}

impl Outbox {
    /// Waits until there is something. `None`: no sender is left.
    pub async fn wait(&mut self) -> Option<Event> {
        let event = loop {
            let beats_at = self.beats_at;
            tokio::select! {
                biased;
                event = self.events.recv() => break event,
                () = self.mail.notify.notified() => break Some(Event::Tick),
                () = until(beats_at) => {
                    self.beats_at = None;
                    break Some(Event::Tick);
                }
                () = self.mail.beats.notified(), if beats_at.is_none() => {
                    // Kept here: whoever waits may stop waiting and begin again.
                    self.beats_at = Some(Instant::now() + BEATS_WAIT);
                }
            }
        };
        self.passing(event)
    }

    /// An event that is already there.
    pub fn take(&mut self) -> Option<Event> {
        let event = self.events.try_recv().ok();
        self.passing(event)
    }

    /// A new leadership begins with an API server that answers. Whether that still holds is told
    /// after it, whatever was told before.
    fn passing(&self, event: Option<Event>) -> Option<Event> {
        if matches!(event, Some(Event::LeadershipGained { .. })) {
            locked(&self.mail.reach).told_away = false;
        }
        event
    }

    /// Everything that was left by agents and dropped Binds, by node and then in order of dropping;
    /// then whether the API server answers, if that has changed.
    pub fn collect(&self) -> Vec<Event> {
        let agents = std::mem::take(&mut *locked(&self.mail.agents));
        let dropped = std::mem::take(&mut *locked(&self.mail.dropped));
        let mut events = Vec::with_capacity(agents.len().saturating_add(dropped.len()));
        for (node, mailed) in agents {
            events.extend(mailed.report.map(Event::Report));
            events.extend(
                mailed
                    .heartbeat
                    .map(|(order, sampler_ok)| Event::Heartbeat {
                        node,
                        order,
                        sampler_ok,
                    }),
            );
        }
        events.extend(dropped.into_iter().map(Event::BindDropped));
        events.extend(locked(&self.mail.reach).news());
        events
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use muster_core::ids::Epoch;

    use super::*;

    fn report(node: &str, generation: u64) -> NodeReport {
        NodeReport {
            node: node.into(),
            order: ReportOrder {
                boot: "b".into(),
                instance: 1,
                generation,
            },
            sampler_ok: true,
            holders_known: true,
            fabric_clique: None,
            links: None,
            devices: Vec::new(),
        }
    }

    #[tokio::test]
    async fn latest_report_of_a_node_replaces_the_one_before() {
        let (inbox, mut outbox) = inbox();
        inbox.report(report("n", 1));
        inbox.heartbeat(&"n".into(), report("n", 1).order, true);
        inbox.report(report("n", 2));
        inbox.dropped(Ticket(9));
        assert_eq!(outbox.wait().await, Some(Event::Tick));
        assert_eq!(
            outbox.collect(),
            [Event::Report(report("n", 2)), Event::BindDropped(Ticket(9))]
        );
        assert!(outbox.collect().is_empty());
    }

    /// 15,000 agents give 1,500 signs of life a second: the cycle decided as often, for nothing.
    #[tokio::test(start_paused = true)]
    async fn signs_of_life_wake_the_cycle_together_and_trouble_at_once() {
        let (inbox, mut outbox) = inbox();
        let (begun, order) = (Instant::now(), report("n", 1).order);
        for node in 0..100 {
            inbox.heartbeat(&format!("n{node}").as_str().into(), order.clone(), true);
            // Whoever waits may be called away in between.
            assert!(futures::poll!(std::pin::pin!(outbox.wait())).is_pending());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(outbox.wait().await, Some(Event::Tick));
        assert_eq!(begun.elapsed(), BEATS_WAIT);
        assert_eq!(outbox.collect().len(), 100);
        let idle = tokio::time::timeout(Duration::from_secs(9), async {
            // What has been collected may wake it once more.
            outbox.wait().await;
            outbox.wait().await;
        });
        assert!(idle.await.is_err(), "nothing else has come");
        let now = Instant::now();
        inbox.heartbeat(&"n".into(), order, false);
        assert_eq!(outbox.wait().await, Some(Event::Tick));
        assert_eq!(now.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn api_server_is_away_when_nothing_is_answered_after_a_request_that_was_not() {
        let (inbox, outbox) = inbox();
        let second = std::time::Duration::from_secs(1);
        let first = Instant::now();
        tokio::time::advance(second).await;
        inbox.answered();
        inbox.unanswered(first);
        assert!(outbox.collect().is_empty(), "another one was answered");
        tokio::time::advance(second).await;
        let second_try = Instant::now();
        tokio::time::advance(second).await;
        inbox.unanswered(second_try);
        assert_eq!(outbox.collect(), [Event::ApiAway(Millis(1000))]);
        inbox.unanswered(Instant::now());
        assert!(outbox.collect().is_empty(), "told once");
        inbox.answered();
        assert_eq!(outbox.collect(), [Event::ApiBack]);
        inbox.answered();
        assert!(outbox.collect().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn outage_that_begins_with_a_leadership_is_told_although_one_was_told_before_it() {
        let (inbox, mut outbox) = inbox();
        let second = std::time::Duration::from_secs(1);
        inbox.unanswered(Instant::now());
        assert_eq!(outbox.collect(), [Event::ApiAway(Millis(0))]);
        // The Lease is given, and nothing is answered after it.
        tokio::time::advance(second).await;
        inbox.answered();
        assert!(inbox.try_send(Event::LeadershipGained {
            epoch: Epoch(2),
            first: false
        }));
        tokio::time::advance(second).await;
        inbox.unanswered(Instant::now());
        assert_eq!(
            outbox.take(),
            Some(Event::LeadershipGained {
                epoch: Epoch(2),
                first: false
            })
        );
        assert_eq!(outbox.collect(), [Event::ApiAway(Millis(0))]);
        inbox.answered();
        assert_eq!(outbox.collect(), [Event::ApiBack]);
        // The same when the cycle has heard of the new outage before it takes the leadership.
        tokio::time::advance(second).await;
        inbox.unanswered(Instant::now());
        assert_eq!(outbox.collect(), [Event::ApiAway(Millis(0))]);
        assert!(inbox.try_send(Event::LeadershipGained {
            epoch: Epoch(3),
            first: false
        }));
        assert_eq!(
            outbox.wait().await,
            Some(Event::LeadershipGained {
                epoch: Epoch(3),
                first: false
            }),
            "what waits comes before a Tick"
        );
        tokio::time::advance(second).await;
        assert_eq!(outbox.collect(), [Event::ApiAway(Millis(1000))]);
        assert!(outbox.collect().is_empty(), "told once");
    }

    #[tokio::test]
    async fn full_queue_refuses_try_send_and_delays_send() {
        let (inbox, mut outbox) = inbox();
        while inbox.try_send(Event::Tick) {}
        assert_eq!(inbox.waiting(), EVENTS_MAX);
        let mut send = std::pin::pin!(inbox.send(Event::Synced));
        assert!(futures::poll!(&mut send).is_pending());
        assert_eq!(outbox.take(), Some(Event::Tick));
        assert_eq!(send.await, Ok(()));
    }
}
