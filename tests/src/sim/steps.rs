//! The end of a run that finds none: so many steps, and it is over. Time does not pass while somebody always has
//! something to do, so that no limit in time would ever be reached.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

/// Steps of one run: requests to the API server, events of its watches, calls of kube-scheduler.
#[derive(Debug)]
pub struct Steps {
    taken: AtomicU64,
    limit: u64,
    over: CancellationToken,
}

impl Steps {
    /// At most so many.
    pub fn new(limit: u64) -> Self {
        Self {
            taken: AtomicU64::new(0),
            limit,
            over: CancellationToken::new(),
        }
    }

    /// One more.
    pub fn take(&self) {
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.over.cancel();
        }
    }

    /// How many there were.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Ends once there were too many.
    pub async fn over(&self) {
        self.over.cancelled().await;
    }
}

impl Default for Steps {
    /// As many as it takes.
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::Steps;

    /// A text of Filter that was another one each time had kube-scheduler ask without end, at one moment.
    #[tokio::test(start_paused = true)]
    async fn a_run_in_which_no_time_passes_comes_to_an_end() {
        let steps = Steps::new(100);
        let busy = async {
            loop {
                steps.take();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            () = steps.over() => {}
            () = busy => {}
        }
        assert_eq!(steps.taken(), 101);
    }
}
