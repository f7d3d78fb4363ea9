//! Binds that are being held: each waits for one answer of the engine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use muster_core::event::Ticket;
use muster_core::ids::PodUid;
use tokio::sync::oneshot;

use crate::locked;

/// Answer to a Bind: `Err` carries the text for kube-scheduler.
pub type BindAnswer = Result<(), Arc<str>>;

#[derive(Debug, Default)]
struct Held {
    next: u64,
    waiting: BTreeMap<Ticket, Waiting>,
    /// How many wait for each pod.
    pods: BTreeMap<PodUid, usize>,
    closed: Option<Arc<str>>,
}

#[derive(Debug)]
struct Waiting {
    pod: PodUid,
    sender: oneshot::Sender<BindAnswer>,
}

impl Held {
    fn take(&mut self, ticket: Ticket) -> Option<oneshot::Sender<BindAnswer>> {
        let Waiting { pod, sender } = self.waiting.remove(&ticket)?;
        if let Some(count) = self.pods.get_mut(&pod) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.pods.remove(&pod);
            }
        }
        Some(sender)
    }
}

/// The register of held Binds.
#[derive(Debug)]
pub struct Binds {
    held: Mutex<Held>,
    limit: usize,
}

impl Binds {
    /// A register of at most `limit` held Binds.
    pub fn new(limit: usize) -> Self {
        Self {
            held: Mutex::default(),
            limit,
        }
    }

    /// Takes a ticket for a pod. `Err` carries the text to answer at once with: too many are held, or no
    /// more are taken.
    pub fn hold(&self, pod: PodUid) -> Result<(Ticket, oneshot::Receiver<BindAnswer>), Arc<str>> {
        let mut held = locked(&self.held);
        if let Some(text) = &held.closed {
            return Err(Arc::clone(text));
        }
        if held.waiting.len() >= self.limit {
            return Err(Arc::from(BUSY));
        }
        held.next = held.next.saturating_add(1);
        let ticket = Ticket(held.next);
        let (sender, receiver) = oneshot::channel();
        let count = held.pods.entry(pod.clone()).or_default();
        *count = count.saturating_add(1);
        held.waiting.insert(ticket, Waiting { pod, sender });
        Ok((ticket, receiver))
    }

    /// Whether somebody still waits for the answer.
    pub fn is_held(&self, ticket: Ticket) -> bool {
        locked(&self.held).waiting.contains_key(&ticket)
    }

    /// Whether a Bind of this pod is held. One that is not may have been given up: kube-scheduler then no
    /// longer counts on the node, and nothing is bound for it.
    pub fn awaits(&self, pod: &PodUid) -> bool {
        locked(&self.held).pods.contains_key(pod)
    }

    /// Answers a Bind. Returns whether anybody waited for it.
    pub fn answer(&self, ticket: Ticket, answer: BindAnswer) -> bool {
        let sender = locked(&self.held).take(ticket);
        sender.is_some_and(|sender| sender.send(answer).is_ok())
    }

    /// Gives a ticket back unanswered. Returns whether it was still held.
    pub fn forget(&self, ticket: Ticket) -> bool {
        locked(&self.held).take(ticket).is_some()
    }

    /// Answers every held Bind with this error, and all that come later.
    pub fn close(&self, text: &str) {
        let text: Arc<str> = Arc::from(text);
        let mut held = locked(&self.held);
        held.closed = Some(Arc::clone(&text));
        let waiting = std::mem::take(&mut held.waiting);
        held.pods.clear();
        drop(held);
        for waiting in waiting.into_values() {
            // A receiver that is gone has given up waiting.
            let _ = waiting.sender.send(Err(Arc::clone(&text)));
        }
    }

    /// Binds held now.
    pub fn len(&self) -> usize {
        locked(&self.held).waiting.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Text for a Bind that cannot be taken in now. Constant.
pub const BUSY: &str = "muster: too busy, try again";
/// Text for a Bind while the process ends. Constant.
pub const STOPPING: &str = "muster: this replica is stopping, try again";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closing_answers_all_and_refuses_later_ones() {
        let binds = Binds::new(2);
        let hold = |pod: &str| binds.hold(pod.into());
        let (first, answer) = hold("a").unwrap();
        let (second, other) = hold("a").unwrap();
        assert_eq!(hold("b").unwrap_err().as_ref(), BUSY);
        assert!(binds.answer(second, Ok(())));
        assert!(binds.awaits(&"a".into()), "the other one still waits");
        assert_eq!(other.await.unwrap(), Ok(()));
        binds.close(STOPPING);
        assert_eq!(answer.await.unwrap().unwrap_err().as_ref(), STOPPING);
        assert!(!binds.is_held(first));
        assert!(!binds.awaits(&"a".into()));
        assert_eq!(hold("b").unwrap_err().as_ref(), STOPPING);
    }
}
