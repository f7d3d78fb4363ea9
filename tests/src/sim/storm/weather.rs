//! What goes wrong between a scheduler and the API server, by a seed.
//!
//! ```text
//! request ─► api away? scheduler cut off? ─► latency ─► storm: one of the faults that this seed has, or none
//! watch event ─► storm: lag (of this kind alone), twice, cut, 410
//! ```
//! Now and then everything goes wrong together for some seconds, as at an API server that is about to fall over:
//! many writes are lost, late or refused, and what became of them is not seen either.
//!
//! Each seed has some of the faults, each as often as it likes: what hides behind a common fault shows
//! where that one is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use muster_embedded::api::ApiError;
use muster_embedded::api::faults::{After, Before, Faults, OnEvent, RequestInfo};
use muster_embedded::api::store::Change;
use muster_embedded::value;
use muster_scheduler::hold::Hold;
use tokio::time::Instant;

use super::ambush::{Ambush, Step};
use super::judge::{self, Shared};
use super::log::Log;
use crate::rng::Rng;
use crate::sim::steps::Steps;
use crate::sim::{CLIENT, JOBS, Script};

/// Longest time by which most writes come late, and by which a watch lags, milliseconds.
const LATE_MS: u64 = 10_000;
/// Longest time by which a write comes late, milliseconds: after another leader has come. An API server gives up a
/// request after 60 s.
const VERY_LATE_MS: u64 = 40_000;
/// Longest time in which everything goes wrong together, milliseconds.
const EPISODE_MS: u64 = 9_000;
/// Of a thousand writes so many begin such a time.
const EPISODES: u64 = 25;
/// What many writes meet in it.
const IN_EPISODE: [Fault; 4] = [Fault::Late, Fault::Lose, Fault::Deny, Fault::Error];

/// What may happen to a request or an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// 500, and nothing is done.
    Error,
    /// 503, and nothing is done.
    Unavailable,
    /// 429 with Retry-After.
    Throttle,
    /// 409, and nothing is done: somebody else was faster.
    Conflict,
    /// The connection breaks, and nothing is done.
    Reset,
    /// It is done later, beyond the time for an attempt or not.
    Slow,
    /// The connection breaks, and it is done later.
    Late,
    /// It is done, and the connection breaks.
    Lose,
    /// It is done, and the answer is 504.
    Deny,
    /// 410 to a watch, or to a further page of a list.
    Gone,
    /// Pages of one to three objects.
    Pages,
    /// A watch without bookmarks.
    NoBookmarks,
    /// A watch stands still for a while.
    Lag,
    /// An event comes twice.
    Twice,
    /// A watch ends.
    Cut,
    /// A watch ends with 410.
    Expire,
    /// 403 by a policy, to what releases one pod or job.
    Forbidden,
}

/// Every fault that comes by chance.
pub const ALL: [Fault; 16] = [
    Fault::Error,
    Fault::Unavailable,
    Fault::Throttle,
    Fault::Conflict,
    Fault::Reset,
    Fault::Slow,
    Fault::Late,
    Fault::Lose,
    Fault::Deny,
    Fault::Gone,
    Fault::Pages,
    Fault::NoBookmarks,
    Fault::Lag,
    Fault::Twice,
    Fault::Cut,
    Fault::Expire,
];

/// Before a write is applied.
const BEFORE_WRITE: [Fault; 7] = [
    Fault::Error,
    Fault::Unavailable,
    Fault::Throttle,
    Fault::Conflict,
    Fault::Reset,
    Fault::Slow,
    Fault::Late,
];
/// Before something is read.
const BEFORE_READ: [Fault; 5] = [
    Fault::Error,
    Fault::Unavailable,
    Fault::Throttle,
    Fault::Reset,
    Fault::Slow,
];
/// After a write was applied.
const AFTER_WRITE: [Fault; 2] = [Fault::Lose, Fault::Deny];
/// Before a watch is opened.
const ON_WATCH: [Fault; 4] = [Fault::Error, Fault::Throttle, Fault::Reset, Fault::Gone];
/// At an event of a watch.
const ON_EVENT: [Fault; 4] = [Fault::Lag, Fault::Twice, Fault::Cut, Fault::Expire];

/// A scheduler that is to be stopped at a write.
struct Armed {
    client: String,
    writes: u64,
    applied: bool,
    hold: Hold,
}

struct State {
    rng: Rng,
    /// Of a thousand requests or events so many meet the fault.
    rates: BTreeMap<Fault, u64>,
    storming: bool,
    latency_ms: u64,
    away_until: Option<Instant>,
    /// What many writes meet, and until when.
    episode: Option<(Fault, Instant)>,
    cut_off: BTreeMap<String, Instant>,
    armed: Option<Armed>,
    ambush: Option<Ambush>,
    /// Number of the request whose answer an ambush loses.
    lost: Option<u64>,
    /// Schedulers whose lists of a kind take so long.
    slow_lists: BTreeMap<(String, String), Duration>,
    /// Schedulers whose watches of a kind stand still, and until when.
    blind: BTreeMap<(String, String), Instant>,
    /// Pods and jobs whose release a policy refuses, by kind and name.
    forbidden: BTreeSet<(String, String)>,
    happened: BTreeMap<Fault, u64>,
    /// A scheduler was content with a list of any age.
    old_list: Option<String>,
}

/// The faults of a run.
pub struct Weather {
    script: Arc<Script>,
    judge: Shared,
    log: Log,
    steps: Arc<Steps>,
    state: Mutex<State>,
}

impl Weather {
    /// Weather that follows from the seed, at first calm.
    pub fn new(seed: u64, script: Arc<Script>, judge: Shared, log: Log, steps: Arc<Steps>) -> Self {
        let mut rng = Rng::new(seed ^ 0x5ea5_0bad);
        let enabled: BTreeSet<Fault> = ALL.into_iter().filter(|_| rng.chance(55)).collect();
        let rates = enabled
            .into_iter()
            .map(|fault| (fault, rng.of(&[5, 20, 50, 120])));
        let rates = rates.collect();
        let latency_ms = rng.of(&[0, 0, 3, 20, 80]);
        Self {
            script,
            judge,
            log,
            steps,
            state: Mutex::new(State {
                rng,
                rates,
                storming: false,
                latency_ms,
                away_until: None,
                episode: None,
                cut_off: BTreeMap::new(),
                armed: None,
                ambush: None,
                lost: None,
                slow_lists: BTreeMap::new(),
                blind: BTreeMap::new(),
                forbidden: BTreeSet::new(),
                happened: BTreeMap::new(),
                old_list: None,
            }),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins or ends the storm. With its end nothing is broken any more.
    pub fn storm(&self, on: bool) {
        let mut state = self.state();
        state.storming = on;
        if !on {
            state.away_until = None;
            state.episode = None;
            state.cut_off.clear();
            state.armed = None;
            state.ambush = None;
            state.lost = None;
            state.slow_lists.clear();
            state.blind.clear();
        }
    }

    /// Lies in wait for a write.
    pub fn ambush(&self, ambush: Ambush) {
        self.state().ambush = Some(ambush);
    }

    /// The object whose write has been met.
    pub fn victim(&self) -> Option<String> {
        self.state().ambush.as_ref()?.victim.clone()
    }

    /// A scheduler sees no changes of a kind for a time.
    pub fn blind(&self, client: &str, resource: &str, time: Duration) {
        let key = (client.to_owned(), resource.to_owned());
        self.state().blind.insert(key, Instant::now() + time);
    }

    /// A scheduler's lists of a kind take so long.
    pub fn slow_lists(&self, client: &str, resource: &str, time: Duration) {
        let key = (client.to_owned(), resource.to_owned());
        self.state().slow_lists.insert(key, time);
    }

    /// A policy refuses to have a pod or a job released, or does so no more.
    pub fn forbid(&self, resource: &str, name: &str, on: bool) {
        let key = (resource.to_owned(), name.to_owned());
        let mut state = self.state();
        match on {
            true => state.forbidden.insert(key),
            false => state.forbidden.remove(&key),
        };
    }

    /// The API server is away for everybody.
    pub fn away_for(&self, time: Duration) {
        self.state().away_until = Some(Instant::now() + time);
    }

    /// The API server is away for one scheduler.
    pub fn cut_off(&self, client: &str, time: Duration) {
        let until = Instant::now() + time;
        self.state().cut_off.insert(client.to_owned(), until);
    }

    /// Stops a scheduler for good before or after its `writes`-th write that carries a decision.
    pub fn stop_at_write(&self, client: &str, writes: u64, applied: bool, hold: Hold) {
        self.state().armed = Some(Armed {
            client: client.to_owned(),
            writes,
            applied,
            hold,
        });
    }

    /// How often each fault has happened.
    pub fn happened(&self) -> BTreeMap<Fault, u64> {
        self.state().happened.clone()
    }

    /// A list for which a scheduler did not ask for the newest state: an API server that lags behind
    /// may answer it, and the fence needs one that does not.
    pub fn old_list(&self) -> Option<String> {
        self.state().old_list.clone()
    }

    /// Whether this is the write at which the scheduler is to stop.
    fn stops(&self, request: &RequestInfo, applied: bool) -> bool {
        let mut state = self.state();
        let Some(armed) = &mut state.armed else {
            return false;
        };
        if armed.client != request.client || !carries_decision(request) || armed.applied != applied
        {
            return false;
        }
        armed.writes = armed.writes.saturating_sub(1);
        if armed.writes > 0 {
            return false;
        }
        armed.hold.set_after(0);
        state.armed = None;
        drop(state);
        let when = if applied { "after" } else { "before" };
        self.log
            .note(format!("it dies {when} {}", described(request)));
        true
    }
}

impl State {
    /// The fault of a time in which everything goes wrong together, if it is among these and hits. A write may
    /// begin such a time.
    fn in_episode(&mut self, faults: &[Fault]) -> Option<Fault> {
        let now = Instant::now();
        self.episode = self.episode.filter(|(_, until)| *until > now);
        if self.episode.is_none() && self.rng.below(1000) < EPISODES {
            let fault = self.rng.pick(&IN_EPISODE).copied()?;
            self.episode = Some((fault, now + self.millis(1000, EPISODE_MS)));
        }
        let (fault, _) = self.episode?;
        (faults.contains(&fault) && self.rng.chance(60)).then_some(fault)
    }

    /// Whether a policy refuses this: a patch of a job, or one that takes a pod's gate off. (A stamp is let through: without
    /// it nothing fences the pod.)
    fn forbids(&self, request: &RequestInfo) -> bool {
        let releases = match request.resource.as_str() {
            "pods" => has(&request.body, b"schedulingGates"),
            resource => resource == JOBS.1,
        };
        let of = |(resource, name): &(String, String)| {
            *resource == request.resource && *name == request.name
        };
        request.verb == "patch" && releases && self.forbidden.iter().any(of)
    }

    /// How long the watch of pods stands still in such a time.
    fn blind_for(&self) -> Option<Duration> {
        let now = Instant::now();
        let (_, until) = self.episode.filter(|(_, until)| *until > now)?;
        Some(until - now)
    }

    fn count(&mut self, fault: Fault) -> Fault {
        let count = self.happened.entry(fault).or_default();
        *count = count.saturating_add(1);
        fault
    }

    /// Picks one of these faults, or none.
    fn pick(&mut self, faults: &[Fault]) -> Option<Fault> {
        if !self.storming {
            return None;
        }
        let is_write = faults == BEFORE_WRITE || faults == AFTER_WRITE;
        if let Some(fault) = is_write.then(|| self.in_episode(faults)).flatten() {
            return Some(self.count(fault));
        }
        let mut roll = self.rng.below(1000);
        for fault in faults {
            let rate = self.rates.get(fault).copied().unwrap_or(0);
            if roll < rate {
                return Some(self.count(*fault));
            }
            roll = roll.saturating_sub(rate);
        }
        None
    }

    fn millis(&mut self, from: u64, below: u64) -> Duration {
        Duration::from_millis(from.saturating_add(self.rng.below(below.saturating_sub(from))))
    }
}

fn has(body: &[u8], word: &[u8]) -> bool {
    body.windows(word.len()).any(|part| part == word)
}

fn carries_decision(request: &RequestInfo) -> bool {
    is_write(request)
        && !matches!(
            request.resource.as_str(),
            "leases" | "events" | "tokenreviews"
        )
}

fn is_write(request: &RequestInfo) -> bool {
    matches!(
        request.verb.as_str(),
        "create" | "update" | "patch" | "delete"
    )
}

fn is_ours(request: &RequestInfo) -> bool {
    request.client.starts_with(CLIENT)
}

fn described(request: &RequestInfo) -> String {
    let sub = match request.subresource.as_str() {
        "" => String::new(),
        sub => format!("/{sub}"),
    };
    format!(
        "{} {} {}{sub} {}",
        request.client, request.verb, request.resource, request.name
    )
}

impl Faults for Weather {
    fn before(&self, request: &RequestInfo) -> Before {
        self.steps.take();
        if is_ours(request) {
            judge::locked(&self.judge).sent(request);
        }
        match self.script.before(request) {
            Before::Proceed => {}
            other => return other,
        }
        let mut state = self.state();
        let now = Instant::now();
        let is_past = |until: &Instant| *until <= now;
        let broken = !state.away_until.as_ref().is_none_or(is_past)
            || !state.cut_off.get(&request.client).is_none_or(is_past);
        if broken {
            return Before::Disconnect;
        }
        if !is_ours(request) {
            return Before::Proceed;
        }
        if request.verb == "list" && request.any_version {
            state.old_list = Some(described(request));
        }
        if request.verb == "list" {
            let key = (request.client.clone(), request.resource.clone());
            if let Some(time) = state.slow_lists.get(&key) {
                return Before::Delay(*time);
            }
        }
        let ambush = state.ambush.as_mut();
        if ambush.as_ref().is_some_and(|ambush| ambush.hides(request)) {
            return Before::Disconnect;
        }
        if let Some((step, before)) = ambush.and_then(|ambush| ambush.meets(request)) {
            if matches!(step, Step::Lose) {
                state.lost = Some(request.number);
            }
            drop(state);
            let line = format!("{}: {}", step.word(), described(request));
            self.log.note(line);
            return before;
        }
        drop(state);
        if carries_decision(request) {
            judge::locked(&self.judge).judge_sender(&request.client, &described(request));
        }
        if self.stops(request, false) {
            // Whoever sent it is polled no more.
            return Before::Delay(Duration::from_secs(3600));
        }
        state = self.state();
        if state.forbids(request) {
            state.count(Fault::Forbidden);
            self.log.note(format!("Forbidden: {}", described(request)));
            let why = format!("{} is forbidden: denied by policy", request.name);
            return Before::Refuse(ApiError::new(403, "Forbidden", why));
        }
        let faults: &[Fault] = match request.verb.as_str() {
            "watch" => &ON_WATCH,
            "list" if request.continued && state.pick(&[Fault::Gone]).is_some() => {
                self.log.note(format!("Gone: {}", described(request)));
                return Before::Refuse(ApiError::expired("the continue token is too old"));
            }
            "get" | "list" => &BEFORE_READ,
            _ => &BEFORE_WRITE,
        };
        let Some(fault) = state.pick(faults) else {
            let latency = state.latency_ms;
            return match state.rng.below(latency.saturating_add(1)) {
                0 => Before::Proceed,
                wait => Before::Delay(Duration::from_millis(wait)),
            };
        };
        if request.resource != "leases" {
            self.log.note(format!("{fault:?}: {}", described(request)));
        }
        match fault {
            Fault::Unavailable => Before::Refuse(ApiError::new(
                503,
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            )),
            Fault::Throttle => {
                let seconds = 1 + u32::try_from(state.rng.below(3)).unwrap_or(0);
                let why = "too many requests, please try again later";
                Before::Refuse(ApiError::too_many_requests(why, seconds))
            }
            Fault::Conflict => Before::Refuse(ApiError::new(
                409,
                "Conflict",
                "the object has been modified; please apply your changes to the latest version and try again",
            )),
            Fault::Reset => Before::Disconnect,
            Fault::Slow => Before::Slow(state.millis(100, 8_000)),
            Fault::Late if state.rng.chance(30) => {
                Before::Late(state.millis(LATE_MS, VERY_LATE_MS))
            }
            Fault::Late => Before::Late(state.millis(50, LATE_MS)),
            Fault::Gone => Before::Refuse(ApiError::expired("too old resource version")),
            _ => Before::Refuse(ApiError::internal("etcdserver: request timed out")),
        }
    }

    fn after(&self, request: &RequestInfo, code: u16) -> After {
        match self.script.after(request, code) {
            After::Deliver => {}
            other => return other,
        }
        if !is_ours(request) || !is_write(request) {
            return After::Deliver;
        }
        if self
            .state()
            .lost
            .take_if(|number| *number == request.number)
            .is_some()
        {
            return After::Lose;
        }
        if self.stops(request, true) {
            return After::Delay(Duration::from_secs(3600));
        }
        let picked = self.state().pick(&AFTER_WRITE);
        let Some(fault) = picked else {
            return After::Deliver;
        };
        if request.resource != "leases" {
            self.log.note(format!("{fault:?}: {}", described(request)));
        }
        match fault {
            Fault::Lose => After::Lose,
            _ => After::Replace(ApiError::new(
                504,
                "Timeout",
                "request did not complete within the allotted timeout",
            )),
        }
    }

    fn shown(&self, request: &RequestInfo, version: u64) {
        if is_ours(request) {
            judge::locked(&self.judge).shown(request, version);
        }
    }

    fn page_max(&self, request: &RequestInfo) -> Option<usize> {
        let mut state = self.state();
        if !is_ours(request) {
            return None;
        }
        state.pick(&[Fault::Pages])?;
        Some(state.rng.index(3).saturating_add(1))
    }

    fn bookmarks(&self, request: &RequestInfo) -> bool {
        !is_ours(request) || self.state().pick(&[Fault::NoBookmarks]).is_none()
    }

    fn watch_event(&self, request: &RequestInfo, change: &Change) -> OnEvent {
        self.steps.take();
        if !is_ours(request) {
            return OnEvent::Deliver;
        }
        let mut state = self.state();
        let now = Instant::now();
        let key = (request.client.clone(), request.resource.clone());
        if let Some(until) = state.blind.get(&key).filter(|until| **until > now) {
            return OnEvent::Lag(*until - now);
        }
        if state.storming
            && request.resource == "pods"
            && let Some(time) = state.blind_for()
        {
            state.count(Fault::Lag);
            return OnEvent::Lag(time);
        }
        let Some(fault) = state.pick(&ON_EVENT) else {
            return OnEvent::Deliver;
        };
        let lag = state.millis(10, LATE_MS);
        drop(state);
        self.log.note(format!(
            "{fault:?}: {}'s watch of {} at {} (version {}){}",
            request.client,
            request.resource,
            value::name(&change.object.value),
            change.version,
            if fault == Fault::Lag {
                format!(" for {} ms", lag.as_millis())
            } else {
                String::new()
            }
        ));
        match fault {
            Fault::Lag => OnEvent::Lag(lag),
            Fault::Twice => OnEvent::Duplicate,
            Fault::Cut => OnEvent::Cut,
            _ => OnEvent::Expire,
        }
    }
}
