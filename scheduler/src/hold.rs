//! Makes the tasks of one scheduler stand still, as SIGSTOP does to a process: timers pass, messages
//! come, and nobody looks. For simulations; a scheduler that is started without one is never held.
//!
//! Several schedulers of a simulation share one thread and one clock, and no signal reaches only one
//! of them. So each task asks here before it is polled. That makes every `await` a place at which a
//! scheduler can be stopped, and killed while it stands.

use std::future::{Future, poll_fn};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use tokio::sync::Notify;

use crate::locked;

#[derive(Debug, Default)]
struct State {
    held: bool,
    /// Polls so far.
    polls: u64,
    /// Number of the poll that is not made any more.
    hold_at: Option<u64>,
    /// Tasks that wanted to be polled while they were held, in order.
    wakers: Vec<Waker>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    stopped: Notify,
}

impl Shared {
    /// Counts a poll; whether it may be made. A task that may not is woken on release.
    fn may_poll(&self, waker: &Waker) -> bool {
        let mut state = locked(&self.state);
        if !state.held {
            state.polls = state.polls.saturating_add(1);
            if state.hold_at.is_none_or(|at| state.polls < at) {
                return true;
            }
            state.hold_at = None;
            state.held = true;
            self.stopped.notify_one();
        }
        if !state.wakers.iter().any(|known| known.will_wake(waker)) {
            state.wakers.push(waker.clone());
        }
        false
    }
}

/// Holds the tasks that were wrapped by it or by a clone. By default it never does.
#[derive(Clone, Debug, Default)]
pub struct Hold(Option<Arc<Shared>>);

impl Hold {
    /// One that can hold.
    pub fn able() -> Self {
        Self(Some(Arc::default()))
    }

    /// Lets no task go on from now on.
    pub fn set(&self) {
        if let Some(shared) = &self.0 {
            locked(&shared.state).held = true;
        }
    }

    /// Lets so many more polls be made, and then no task go on; [`Hold::stopped`] tells when.
    pub fn set_after(&self, polls: u64) {
        if let Some(shared) = &self.0 {
            let mut state = locked(&shared.state);
            state.hold_at = Some(state.polls.saturating_add(polls).saturating_add(1));
        }
    }

    /// Waits until the hold of [`Hold::set_after`] has begun.
    pub async fn stopped(&self) {
        match &self.0 {
            Some(shared) => shared.stopped.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Takes back what [`Hold::set_after`] has planned.
    pub fn spare(&self) {
        if let Some(shared) = &self.0 {
            locked(&shared.state).hold_at = None;
        }
    }

    /// Lets all tasks go on, in the order in which they were stopped. What [`Hold::set_after`] has planned stays planned.
    pub fn release(&self) {
        let Some(shared) = &self.0 else { return };
        let wakers = {
            let mut state = locked(&shared.state);
            state.held = false;
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The task that is held with the others.
    pub fn wrap<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        let shared = self.0.clone();
        async move {
            let mut task = std::pin::pin!(task);
            poll_fn(|context| match &shared {
                Some(shared) if !shared.may_poll(context.waker()) => Poll::Pending,
                _ => task.as_mut().poll(context),
            })
            .await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn held_task_sees_nothing_until_it_is_released() {
        let hold = Hold::able();
        let task = tokio::spawn(hold.wrap(async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Instant::now()
        }));
        let start = Instant::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        hold.set();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!task.is_finished());
        hold.release();
        assert_eq!(task.await.unwrap() - start, Duration::from_secs(61));
    }

    #[tokio::test(start_paused = true)]
    async fn hold_begins_after_a_number_of_polls() {
        let hold = Hold::able();
        hold.set_after(3);
        let task = tokio::spawn(hold.wrap(async {
            let mut turns = 0;
            while turns < 9 {
                turns += 1;
                tokio::task::yield_now().await;
            }
            turns
        }));
        hold.stopped().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!task.is_finished());
        hold.release();
        assert_eq!(task.await.unwrap(), 9);
    }

    async fn turns(count: u32) -> u32 {
        for _ in 0..count {
            tokio::task::yield_now().await;
        }
        count
    }

    /// A simulated process that was stopped for a time lost the kill that was planned for it before.
    #[tokio::test(start_paused = true)]
    async fn planned_hold_outlives_a_standstill() {
        let hold = Hold::able();
        hold.set_after(3);
        hold.set();
        let task = tokio::spawn(hold.wrap(turns(9)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        hold.release();
        hold.stopped().await;
        assert!(!task.is_finished());
        hold.release();
        assert_eq!(task.await.unwrap(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn planned_hold_can_be_taken_back() {
        let hold = Hold::able();
        hold.set_after(3);
        hold.spare();
        assert_eq!(hold.wrap(turns(9)).await, 9);
    }

    #[tokio::test(start_paused = true)]
    async fn by_default_nothing_is_held() {
        let hold = Hold::default();
        hold.set();
        hold.set_after(0);
        assert_eq!(hold.wrap(async { 7 }).await, 7);
    }
}
