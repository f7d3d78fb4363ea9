//! Which epoch this replica may write under, and the highest epoch anybody has been seen to use.
//!
//! The lease task opens and closes the fence, and every write passes it right before it is sent.
//! The watches note every epoch found on an object. A higher one than the leader's own stops all
//! writes until the lease task has renewed the Lease: a renewal proves that nobody else has led
//! since, so the epoch was written by somebody who may annotate a pod but not lead.
//!
//! A renewal holds for the renew deadline and no longer. A process that stood still for longer than its
//! Lease wakes with all its tasks at once: whichever is first, no write passes before the lease task
//! has found out whether somebody else leads.

use muster_core::ids::Epoch;
use tokio::sync::watch;
use tokio::time::Instant;

/// Epochs are below this: a user who annotates a pod with 2^64 must not end every leadership.
pub const EPOCH_MAX: u64 = 1 << 40;

#[derive(Clone, Copy, Debug, Default)]
struct State {
    led: u64,
    seen: u64,
    harmless: u64,
    /// Until when the last renewal holds; `None` where nobody has said.
    until: Option<Instant>,
}

impl State {
    fn doubted(&self) -> bool {
        self.seen > self.led.max(self.harmless)
    }

    fn expired(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// The fence. Epoch 0 means: not leading.
#[derive(Debug)]
pub struct Fence {
    state: watch::Sender<State>,
}

impl Default for Fence {
    fn default() -> Self {
        Self {
            state: watch::Sender::new(State::default()),
        }
    }
}

impl Fence {
    /// Opens it for an epoch.
    pub fn open(&self, epoch: Epoch) {
        self.state.send_modify(|state| {
            state.led = epoch.0;
            state.seen = state.seen.max(epoch.0);
        });
    }

    /// Closes it: nothing may be written from now on.
    pub fn close(&self) {
        self.state.send_modify(|state| {
            state.led = 0;
            state.until = None;
        });
    }

    /// The Lease is held until `until` at least: writes pass until then, and after that wait for the
    /// next renewal.
    pub fn hold_until(&self, until: Instant) {
        self.state.send_modify(|state| state.until = Some(until));
    }

    /// Whether a write of this epoch may be sent now; waits while the leadership is doubted, or its
    /// last renewal is too long ago.
    pub async fn pass(&self, epoch: Epoch) -> bool {
        let mut receiver = self.state.subscribe();
        let settled = receiver
            .wait_for(|state| state.led != epoch.0 || !(state.doubted() || state.expired()))
            .await;
        settled.is_ok_and(|state| epoch.0 != 0 && state.led == epoch.0)
    }

    /// The epoch led now; 0 when not leading.
    pub fn led(&self) -> Epoch {
        Epoch(self.state.borrow().led)
    }

    /// Notes an epoch found on an object. One that cannot be real counts for nothing.
    pub fn see(&self, epoch: Epoch) {
        if epoch.0 >= EPOCH_MAX {
            return;
        }
        self.state.send_if_modified(|state| {
            let news = epoch.0 > state.seen;
            state.seen = state.seen.max(epoch.0);
            news
        });
    }

    /// The highest epoch found on any object.
    pub fn seen(&self) -> Epoch {
        Epoch(self.state.borrow().seen)
    }

    /// The Lease was renewed after `seen` was read: epochs up to it were written by no leader.
    pub fn confirm(&self, seen: Epoch) {
        self.state
            .send_modify(|state| state.harmless = state.harmless.max(seen.0));
    }

    /// Waits until the leadership is doubted.
    pub async fn doubted(&self) {
        let mut receiver = self.state.subscribe();
        // The sender lives as long as self: there is no error to meet.
        let _ = receiver
            .wait_for(|state| state.led != 0 && state.doubted())
            .await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn higher_epoch_stops_writes_until_the_lease_is_renewed() {
        let fence = Fence::default();
        assert!(!fence.pass(Epoch(3)).await);
        fence.open(Epoch(3));
        assert!(fence.pass(Epoch(3)).await);
        assert!(!fence.pass(Epoch(2)).await);
        fence.see(Epoch(9));
        fence.doubted().await;
        let mut pass = std::pin::pin!(fence.pass(Epoch(3)));
        assert!(futures::poll!(&mut pass).is_pending());
        fence.confirm(Epoch(9));
        assert!(pass.await);
        fence.see(Epoch(10));
        fence.close();
        assert!(!fence.pass(Epoch(3)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_standstill_no_write_passes_before_the_lease_is_renewed() {
        let fence = Fence::default();
        fence.open(Epoch(3));
        fence.hold_until(Instant::now() + Duration::from_secs(10));
        assert!(fence.pass(Epoch(3)).await);
        tokio::time::advance(Duration::from_secs(10)).await;
        let mut late = std::pin::pin!(fence.pass(Epoch(3)));
        assert!(futures::poll!(&mut late).is_pending());
        fence.hold_until(Instant::now() + Duration::from_secs(10));
        assert!(late.await, "it was renewed after all");
        tokio::time::advance(Duration::from_secs(11)).await;
        let mut lost = std::pin::pin!(fence.pass(Epoch(3)));
        assert!(futures::poll!(&mut lost).is_pending());
        fence.close();
        assert!(!lost.await);
    }
}
