//! Which epoch this replica may write under, and whether anybody has been seen to use a later one.
//!
//! The lease task opens and closes the fence, and every write passes it right before it is sent.
//! The watches note every epoch found on an object. A higher one than the leader's own stops all
//! writes until the lease task has renewed the Lease: a renewal proves that nobody else has led
//! since, so the epoch was written by somebody who may annotate a pod but not lead.
//!
//! Whoever may annotate a pod may write any number there. So what a pod shows is never the ground for the
//! next leader's epoch, and a renewal settles what was found before it was sent and nothing more: the same
//! number, or a smaller one, that is found later is doubted anew. Gang objects are written by Muster's account
//! alone; above them the next epoch is.
//!
//! A renewal holds for the renew deadline and no longer. A process that stood still for longer than its
//! Lease wakes with all its tasks at once: whichever is first, no write passes before the lease task
//! has found out whether somebody else leads.

use std::sync::{Mutex, MutexGuard};

use muster_core::ids::Epoch;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::locked;

/// Epochs are below this: a Gang's `status.epoch` holds no larger one.
pub const EPOCH_MAX: u64 = i64::MAX.unsigned_abs();

#[derive(Clone, Copy, Debug, Default)]
struct State {
    led: u64,
    /// The highest that was led here or found on an object of ours.
    ours: u64,
    /// The highest found since the lease task last asked; 0: none.
    found: u64,
    /// The highest found on any object ever, whoever wrote it; 0: none.
    ever: u64,
    /// The highest found before that, while the answer is awaited; 0: none.
    asked: u64,
    /// Until when the last renewal holds; `None` where nobody has said.
    until: Option<Instant>,
}

impl State {
    fn doubted(&self) -> bool {
        self.found.max(self.asked) > self.led
    }

    /// Only a later epoch than this is news.
    fn newest(&self) -> u64 {
        self.led.max(self.found)
    }

    fn expired(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// The fence. Epoch 0 means: not leading.
#[derive(Debug, Default)]
pub struct Fence {
    state: Mutex<State>,
    /// Wakes in the order of waiting, so that a simulation repeats itself; `tokio::sync::watch` would
    /// wake in any order.
    changed: Notify,
}

impl Fence {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) -> State {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Registered before the look, so that no change in between is missed.
            changed.as_mut().enable();
            let state = *self.state();
            if holds(&state) {
                return state;
            }
            changed.await;
        }
    }

    /// Opens it for an epoch.
    pub fn open(&self, epoch: Epoch) {
        self.change(|state| {
            state.led = epoch.0;
            state.ours = state.ours.max(epoch.0);
        });
    }

    /// Closes it: nothing may be written from now on.
    pub fn close(&self) {
        self.change(|state| {
            state.led = 0;
            state.until = None;
        });
    }

    /// The Lease is held until `until` at least: writes pass until then, and after that wait for the
    /// next renewal.
    pub fn hold_until(&self, until: Instant) {
        self.change(|state| state.until = Some(until));
    }

    /// Whether a write of this epoch may be sent now; waits while the leadership is doubted, or its
    /// last renewal is too long ago.
    pub async fn pass(&self, epoch: Epoch) -> bool {
        let settled = self
            .until(|state| state.led != epoch.0 || !(state.doubted() || state.expired()))
            .await;
        epoch.0 != 0 && settled.led == epoch.0
    }

    /// The epoch led now; 0 when not leading.
    pub fn led(&self) -> Epoch {
        Epoch(self.state().led)
    }

    /// Notes an epoch found on an object that others may write to as well.
    pub fn see(&self, epoch: Epoch) {
        {
            let mut state = self.state();
            state.ever = state.ever.max(epoch.0);
        }
        if epoch.0 > self.state().newest() {
            self.change(|state| state.found = state.found.max(epoch.0));
        }
    }

    /// Notes an epoch found on an object that only Muster's account writes.
    pub fn see_ours(&self, epoch: Epoch) {
        self.see(epoch);
        let mut state = self.state();
        state.ours = state.ours.max(epoch.0);
    }

    /// The highest epoch that was led here or found on an object of ours. The next one is above it.
    pub fn ours(&self) -> Epoch {
        Epoch(self.state().ours)
    }

    /// Whether an object was found that shows an epoch: somebody has led before, or somebody says so.
    pub fn has_seen_any(&self) -> bool {
        self.state().ever > 0
    }

    /// The API server is about to be asked who leads. For the one task that keeps the Lease.
    pub fn ask(&self) {
        self.change(|state| {
            state.asked = state.asked.max(state.found);
            state.found = 0;
        });
    }

    /// The answer: the Lease was ours after [`Fence::ask`]. What was found before was written by nobody who
    /// leads now.
    pub fn confirm(&self) {
        self.change(|state| state.asked = 0);
    }

    /// Waits until the leadership is doubted.
    pub async fn doubted(&self) {
        self.until(|state| state.led != 0 && state.doubted()).await;
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
        fence.ask();
        assert!(futures::poll!(&mut pass).is_pending());
        fence.confirm();
        assert!(pass.await);
        fence.see(Epoch(10));
        fence.close();
        assert!(!fence.pass(Epoch(3)).await);
    }

    /// A pod showed 2^40 - 1, which was found to be harmless: every real epoch is below it.
    #[tokio::test]
    async fn no_number_on_a_pod_hides_the_epoch_of_a_later_leader() {
        let fence = Fence::default();
        fence.open(Epoch(3));
        for forged in [4, (1 << 40) - 1, 1 << 40, u64::MAX] {
            fence.see(Epoch(forged));
            fence.ask();
            fence.confirm();
            assert!(fence.pass(Epoch(3)).await, "{forged} is harmless");
            fence.see(Epoch(4));
            let mut pass = std::pin::pin!(fence.pass(Epoch(3)));
            assert!(futures::poll!(&mut pass).is_pending(), "after {forged}");
            fence.ask();
            fence.confirm();
        }
        assert_eq!(fence.ours(), Epoch(3));
    }

    /// The renewal was on its way already: it says nothing about a leader that came after it.
    #[tokio::test]
    async fn what_is_found_after_the_question_is_not_settled_by_its_answer() {
        let fence = Fence::default();
        fence.open(Epoch(3));
        fence.see(Epoch(9));
        fence.ask();
        fence.see(Epoch(4));
        fence.confirm();
        let mut pass = std::pin::pin!(fence.pass(Epoch(3)));
        assert!(futures::poll!(&mut pass).is_pending());
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
