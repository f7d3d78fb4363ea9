//! A wake-up for many waiters, in the order in which they began to wait.
//!
//! `tokio::sync::watch` spreads its waiters over eight lists by chance, so the order in which it wakes them differs from
//! run to run. A cluster whose event log follows from its seed cannot have that; `Notify` wakes in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Shared {
    count: AtomicU64,
    notify: Notify,
}

/// The writing end.
#[derive(Debug, Default)]
pub struct Signal {
    shared: Arc<Shared>,
}

impl Signal {
    /// Wakes every listener.
    pub fn send(&self) {
        self.shared.count.fetch_add(1, Ordering::AcqRel);
        self.shared.notify.notify_waiters();
    }

    /// A reading end that has seen every signal so far.
    #[must_use]
    pub fn subscribe(&self) -> Listener {
        Listener {
            shared: self.shared.clone(),
            seen: self.shared.count.load(Ordering::Acquire),
        }
    }
}

/// The reading end.
#[derive(Debug, Clone)]
pub struct Listener {
    shared: Arc<Shared>,
    seen: u64,
}

impl Listener {
    /// Takes every signal so far as seen.
    pub fn mark_seen(&mut self) {
        self.seen = self.shared.count.load(Ordering::Acquire);
    }

    /// Whether there was a signal that was not seen.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.shared.count.load(Ordering::Acquire) != self.seen
    }

    /// Waits for a signal that was not seen, and takes it as seen. Nothing is lost when the wait is given up.
    pub async fn changed(&mut self) {
        let shared = self.shared.clone();
        loop {
            let mut notified = std::pin::pin!(shared.notify.notified());
            // Registered before the look at the count, so a change in between is not missed.
            notified.as_mut().enable();
            if self.has_changed() {
                self.mark_seen();
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiters_wake_in_order_and_changes_before_the_wait_count() {
        let signal = Signal::default();
        let mut early = signal.subscribe();
        signal.send();
        early.changed().await;
        assert!(!early.has_changed());
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..20 {
            let (mut listener, order) = (signal.subscribe(), order.clone());
            tasks.push(tokio::spawn(async move {
                listener.changed().await;
                order.lock().unwrap().push(number);
            }));
            tokio::task::yield_now().await;
        }
        signal.send();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }
}
