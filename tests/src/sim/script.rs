//! Faults by the number of the scheduler's write.
//!
//! Counted are its writes that carry decisions: of Gangs, jobs, pods and Bindings. Its Lease, its
//! Events and its TokenReviews are left alone and not counted.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_embedded::api::ApiError;
use muster_embedded::api::faults::{After, Before, Faults, RequestInfo};
use muster_embedded::signal::Signal;
use tokio::time::Instant;

use super::CLIENT;

/// What happens at a write, counted from 1 since the trap was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trap {
    /// Nothing.
    #[default]
    None,
    /// The write is applied; of what the scheduler sends after it, nothing is. The test then kills it.
    CrashAfter(u32),
    /// The write is answered with 500 and not applied.
    RefuseAt(u32),
    /// The write is applied, and its answer is lost.
    LoseAt(u32),
    /// From this write on the API server is away for so many seconds: for everybody connections break
    /// and nothing is applied.
    AwayAt(u32, u64),
}

#[derive(Debug, Default)]
struct State {
    trap: Trap,
    writes: u32,
    dead: bool,
    sprung: bool,
    /// Number of the request that was found to be the one, between before and after.
    chosen: Option<u64>,
    what: String,
    /// Until when the API server is away.
    away_until: Option<Instant>,
}

/// Bindings that an administrator's policy refuses.
#[derive(Debug)]
struct Refused {
    prefix: String,
    why: String,
}

/// The faults of a run.
#[derive(Debug, Default)]
pub struct Script {
    state: Mutex<State>,
    refused: Mutex<Option<Refused>>,
    signal: Signal,
}

impl Script {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a trap and begins to count.
    pub fn set(&self, trap: Trap) {
        *self.state() = State {
            trap,
            ..State::default()
        };
    }

    /// From now on Bindings of pods with this prefix are forbidden, with this text; or none are.
    pub fn refuse_bindings(&self, prefix_and_why: Option<(String, String)>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused = prefix_and_why.map(|(prefix, why)| Refused { prefix, why });
    }

    /// What an administrator's policy says to a request.
    fn forbidden(&self, request: &RequestInfo) -> Option<ApiError> {
        if (request.resource.as_str(), request.subresource.as_str()) != ("pods", "binding") {
            return None;
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = refused.as_ref()?;
        let name = &request.name;
        let said = format!("pods \"{name}\" is forbidden: {}", refused.why);
        name.starts_with(&refused.prefix)
            .then(|| ApiError::new(403, "Forbidden", said))
    }

    /// A new scheduler runs: its requests are let through.
    pub(super) fn allow(&self) {
        self.state().dead = false;
    }

    /// Whether the API server is away now.
    pub fn is_away(&self) -> bool {
        let until = self.state().away_until;
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Decision-carrying writes since the trap was set.
    pub fn writes(&self) -> u32 {
        self.state().writes
    }

    /// The write at which the trap sprang.
    pub fn what(&self) -> String {
        self.state().what.clone()
    }

    /// Whether the trap has sprung.
    pub fn has_sprung(&self) -> bool {
        self.state().sprung
    }

    /// Waits until the trap has sprung.
    pub async fn sprung(&self) {
        let mut listener = self.signal.subscribe();
        while !self.has_sprung() {
            listener.changed().await;
        }
    }

    fn spring(&self, mut state: std::sync::MutexGuard<'_, State>, request: &RequestInfo) {
        state.sprung = true;
        state.what = format!(
            "{} {}/{} {}",
            request.verb, request.resource, request.subresource, request.name
        );
        drop(state);
        self.signal.send();
    }
}

fn counts(request: &RequestInfo) -> bool {
    request.client == CLIENT
        && matches!(
            request.verb.as_str(),
            "create" | "update" | "patch" | "delete"
        )
        && !matches!(
            request.resource.as_str(),
            "leases" | "events" | "tokenreviews"
        )
}

impl Faults for Script {
    fn before(&self, request: &RequestInfo) -> Before {
        let mut state = self.state();
        if state.dead && request.client == CLIENT {
            return Before::Disconnect;
        }
        if state.away_until.is_some_and(|until| Instant::now() < until) {
            return Before::Disconnect;
        }
        if let Some(error) = self.forbidden(request) {
            return Before::Refuse(error);
        }
        if !counts(request) {
            return Before::Proceed;
        }
        state.writes = state.writes.saturating_add(1);
        let at = match state.trap {
            Trap::None => return Before::Proceed,
            Trap::CrashAfter(at) | Trap::RefuseAt(at) | Trap::LoseAt(at) | Trap::AwayAt(at, _) => {
                at
            }
        };
        if state.writes != at {
            return Before::Proceed;
        }
        if matches!(state.trap, Trap::RefuseAt(_)) {
            self.spring(state, request);
            return Before::Refuse(ApiError::new(
                500,
                "InternalError",
                "etcdserver: request timed out",
            ));
        }
        if let Trap::AwayAt(_, seconds) = state.trap {
            state.away_until = Some(Instant::now() + Duration::from_secs(seconds));
            self.spring(state, request);
            return Before::Disconnect;
        }
        state.chosen = Some(request.number);
        Before::Proceed
    }

    fn after(&self, request: &RequestInfo, _code: u16) -> After {
        let mut state = self.state();
        if state.chosen != Some(request.number) {
            return After::Deliver;
        }
        state.chosen = None;
        state.dead = matches!(state.trap, Trap::CrashAfter(_));
        self.spring(state, request);
        After::Lose
    }
}
