//! Watches: one task per kind of object, each turning what it sees into events.
//!
//! ```text
//!   PriorityClass ──rules──┐ (names to numbers; a change makes jobs be read again)
//!   Node, Pod, Gang        ├──> Kind: Init/Apply/Delete ──diff──> Applied / Removed ──> inbox
//!   PyTorchJob, PodGroup ──┘ (when their CRD is served; looked for again every 30 s)
//!
//!   all kinds listed ──> Synced, once
//! ```
//!
//! A LIST after a broken watch is a diff against what is known: an object that is not in it any
//! more is Removed, although nobody saw its deletion. A malformed object harms only itself. Pauses
//! after failures come from the process's own seeded dice, so that a simulation repeats itself.

mod health;
mod kind;
mod kinds;

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use kube::Client;
use muster_kubernetes::translate::PodRules;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use health::Health;
pub use kinds::Kinds;

use crate::clock::{Clock, Dice};
use crate::config;
use crate::fence::Fence;
use crate::hold::Hold;
use crate::inbox::Inbox;
use crate::metrics::Metrics;

/// Texts, each kept once.
pub type Texts = muster_core::sharing::Shared<str>;

/// What every watch works with.
#[derive(Clone)]
pub struct Shared {
    /// Client for lists and watches.
    pub client: Client,
    /// Pauses and limits.
    pub settings: config::Watch,
    /// Where events go.
    pub inbox: Inbox,
    /// Raised by every epoch found on an object.
    pub fence: Arc<Fence>,
    /// Counts the fresh LISTs of pods that were asked for; each ends with `Relisted`.
    pub relist_pods: watch::Receiver<u64>,
    /// The same of Gang objects.
    pub relist_gangs: watch::Receiver<u64>,
    /// How pods and jobs are read.
    pub rules: Arc<ArcSwap<PodRules>>,
    /// Texts that objects of all kinds have in common.
    pub texts: Arc<Mutex<Texts>>,
    /// State of every watch.
    pub health: Arc<Health>,
    /// The clock of health and pauses.
    pub clock: Clock,
    /// Jitter.
    pub dice: Arc<Dice>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Holds the tasks of single watches too.
    pub hold: Hold,
}

/// Why the watches ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// They were asked to, or the cycle has ended.
    #[error("stopped")]
    Stopped,
    /// The API server has refused the login for too long: this process is blind.
    #[error("the API server refuses the login for {kind} since {seconds} s (401)")]
    LoginRefused {
        /// Kind of object.
        kind: &'static str,
        /// For how long, seconds.
        seconds: u64,
    },
    /// A watch panicked.
    #[error("the watch of {kind} failed: {error}")]
    Failed {
        /// Kind of object, as far as it is known.
        kind: &'static str,
        /// What happened.
        error: String,
    },
}

/// Runs every watch until stopped; one that ends ends all. `synced` becomes true with the Synced
/// event.
pub async fn run(shared: Shared, synced: watch::Sender<bool>, stop: CancellationToken) -> WatchEnd {
    let stop = stop.child_token();
    let mut tasks = JoinSet::new();
    Kinds::spawn(&shared, &mut tasks, &stop);
    let announce = {
        let shared = shared.clone();
        let stop = stop.clone();
        async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => return WatchEnd::Stopped,
                () = shared.health.all_listed() => {}
            }
            if shared
                .inbox
                .send(muster_core::event::Event::Synced)
                .await
                .is_err()
            {
                return WatchEnd::Stopped;
            }
            synced.send_replace(true);
            tracing::info!("every kind is listed");
            stop.cancelled().await;
            WatchEnd::Stopped
        }
    };
    tasks.spawn(shared.hold.wrap(announce));
    let first = match tasks.join_next().await {
        None => WatchEnd::Stopped,
        Some(Ok(end)) => end,
        Some(Err(error)) => WatchEnd::Failed {
            kind: "objects",
            error: error.to_string(),
        },
    };
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    first
}
