//! Leader election by a Lease, with a fencing epoch.
//!
//! ```text
//!   synced? ──> try every retry period ──> held: epoch written on the Lease ──> LeadershipGained
//!                                            │ renew every retry period
//!                                            │ (at once when a higher epoch is seen)
//!                                            └ not renewed for the renew deadline, or taken by
//!                                              somebody else ──> LeadershipLost
//! ```
//!
//! The epoch is larger than `leaseTransitions`, than the epoch of every leader before (kept in an
//! annotation of the Lease) and than every epoch found on a Gang, and not smaller than the
//! resourceVersion of the Lease that is taken: it never goes back, not even when the cluster is restored
//! from an older backup, and two leaders never share one, not even when the Lease is deleted under a
//! leader that has written nothing yet. What pods show counts for nothing here: their users may annotate them.
//!
//! A replica that has a name (`NAME@...`) takes the Lease of an earlier process of the same name at
//! once: only one process of a name runs at a time, as the containers of one Pod.
//!
//! The Lease is also where an operator freezes the scheduler (`frozen.rs`); the leader reads it with each renewal.
//!
//! Versions never go back, and never leap, unless the API server's store was restored from a backup. A replica that finds the Lease at
//! an earlier version than it has seen, or at one that no number of writes leads to, says so on the Lease and ends: its watches would
//! wait for versions that the API server comes to again only later, and tell nothing meanwhile. What is started in its place reads everything afresh. A leader that
//! loses the Lease without an answer reads it once more when there is one (`lease/memory.rs`). Who remembers nothing, and finds Gangs of a
//! later epoch than the Lease's, says so, too: the Lease was not in the backup, or somebody has deleted it.
//!
//! A Lease is judged stale by the monotonic clock of this process since its resourceVersion was
//! first seen, never by the times written in it. The Lease is a hint for who should lead; what
//! keeps two leaders apart are the epoch and the resourceVersions of the writes.

mod memory;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use muster_core::event::Event;
use muster_core::ids::Epoch;
use muster_kubernetes::gang::Gang;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Wall;
use crate::config;
use crate::fence::{EPOCH_MAX, Fence};
use crate::frozen;
use crate::inbox::Inbox;
pub use memory::Memory;

/// Annotation of the Lease that holds the epoch of its last leader.
pub const EPOCH_ANNOTATION: &str = "muster.dev/epoch";
/// How long a new leader asks whether there are Gangs, before it takes it that there are.
const GANGS_MAX: Duration = Duration::from_secs(2);

/// Takes part in the election.
pub struct Elector {
    /// Client without retries of its own.
    pub client: Client,
    /// Names and times.
    pub settings: config::Lease,
    /// Who this replica is; unique among all replicas and restarts.
    pub identity: String,
    /// Where leadership is announced.
    pub inbox: Inbox,
    /// What writes look at.
    pub fence: Arc<Fence>,
    /// True once the first LIST of every kind is in: only then all epochs of ours have been seen.
    pub synced: watch::Receiver<bool>,
    /// What is written into the Lease.
    pub wall: Wall,
    /// Whether what is known was found complete and right, so that a restored cluster may go on.
    pub rebuilt: watch::Receiver<bool>,
    /// What this process has seen of the Lease.
    pub memory: Arc<Memory>,
}

/// How the election ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElectionEnd {
    /// It was asked to; the Lease is given back if it was held.
    Stopped,
    /// The leadership is lost.
    Lost,
    /// The Lease went back to an earlier version: the API server's store was restored.
    WentBack,
}

/// The Lease of somebody else, as it was seen last.
struct Observed {
    version: String,
    /// When it was first seen at this version.
    since: Instant,
    /// How long it holds from then on.
    term: Duration,
}

struct Held {
    lease: Lease,
    epoch: Epoch,
    /// Nobody has held it before, and nobody has written a Gang.
    first: bool,
    renewed: Instant,
    /// What the cycle was told last of whether all is frozen.
    told: Option<Arc<str>>,
}

enum Renewal {
    Done,
    Again,
    Taken,
    Gone,
    WentBack,
}

/// How a wait for the Lease ended.
#[allow(clippy::large_enum_variant)] // One is made at a time.
enum Acquired {
    Held(Held),
    WentBack,
    /// The watches have ended.
    Nothing,
}

/// How a try to take the Lease ended.
#[allow(clippy::large_enum_variant)] // One is made at a time.
enum Try {
    Held(Held),
    Later,
    WentBack,
}

impl Elector {
    /// Runs until stopped or until a leadership is lost.
    pub async fn run(mut self, stop: CancellationToken) -> ElectionEnd {
        let acquired = tokio::select! {
            biased;
            () = stop.cancelled() => return ElectionEnd::Stopped,
            acquired = self.acquire() => acquired,
        };
        let mut held = match acquired {
            Acquired::Held(held) => held,
            Acquired::Nothing => return ElectionEnd::Stopped,
            Acquired::WentBack => return self.went_back().await,
        };
        tracing::info!(epoch = held.epoch.0, identity = %self.identity, "leading");
        self.fence.open(held.epoch);
        self.fence
            .hold_until(held.renewed + self.settings.renew_deadline.0);
        self.inbox.answered();
        // What is frozen is so from the first moment on.
        self.tell_frozen(&mut held).await;
        if self
            .inbox
            .send(Event::LeadershipGained {
                epoch: held.epoch,
                first: held.first,
            })
            .await
            .is_err()
        {
            return ElectionEnd::Stopped;
        }
        self.keep(held, stop).await
    }

    /// Tells the cycle whether all is frozen, if that has changed.
    async fn tell_frozen(&self, held: &mut Held) {
        let why = frozen::why(&held.lease);
        if held.told == why {
            return;
        }
        match &why {
            Some(why) => tracing::warn!(%why, "nothing new is bound from now on"),
            None => tracing::warn!("it goes on"),
        }
        held.told.clone_from(&why);
        // A closed cycle has ended already, and binds nothing.
        let _ = self.inbox.send(Event::Frozen(why)).await;
    }

    /// Ends, and says on the Lease why.
    async fn went_back(&self) -> ElectionEnd {
        self.fence.close();
        self.memory.mark().await;
        ElectionEnd::WentBack
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// Tries until the Lease is held.
    async fn acquire(&mut self) -> Acquired {
        if self.synced.wait_for(|synced| *synced).await.is_err() {
            return Acquired::Nothing;
        }
        let mut observed: Option<Observed> = None;
        loop {
            match tokio::time::timeout(
                self.settings.renew_deadline.0,
                self.try_acquire(&mut observed),
            )
            .await
            {
                Ok(Ok(Try::Held(held))) => return Acquired::Held(held),
                Ok(Ok(Try::WentBack)) => return Acquired::WentBack,
                Ok(Ok(Try::Later)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = %self.settings.name, "the lease cannot be acquired");
                }
                Err(_) => {
                    tracing::warn!(lease = %self.settings.name, "no answer about the lease in time")
                }
            }
            // Twice as often as it is renewed, and when it expires: what is seen late is waited for
            // twice.
            let look = self.settings.retry_period.0 / 2;
            let expires = observed
                .as_ref()
                .map(|observed| {
                    let since = Instant::now().saturating_duration_since(observed.since);
                    observed.term.saturating_sub(since)
                })
                .filter(|left| !left.is_zero());
            tokio::time::sleep(expires.map_or(look, |left| left.min(look))).await;
        }
    }

    async fn try_acquire(&self, observed: &mut Option<Observed>) -> Result<Try, kube::Error> {
        let api = self.api();
        let started = Instant::now();
        // Its version is needed for the epoch: where there is none it is made first and taken then.
        let Some(current) = self.memory.lease().await? else {
            return Ok(Try::Later);
        };
        if self.memory.went_back(&current) {
            return Ok(Try::WentBack);
        }
        let version = current.resource_version().unwrap_or_default();
        let holder = holder(&current);
        let term = current
            .spec
            .as_ref()
            .and_then(|spec| spec.lease_duration_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.settings.duration.0, Duration::from_secs)
            .max(self.settings.duration.0);
        let since = match observed {
            Some(seen) if seen.version == version => seen.since,
            // Not from the question on: it may have been renewed while the answer was awaited.
            _ => Instant::now(),
        };
        *observed = Some(Observed {
            version,
            since,
            term,
        });
        let free = holder.is_empty() || holder == self.identity || self.was(holder);
        if !free && started.saturating_duration_since(since) < term {
            return Ok(Try::Later);
        }
        let is_new = self.is_new(&current);
        let (lease, epoch) = self.claim(current);
        self.fence.ask();
        match api
            .replace(&self.settings.name, &PostParams::default(), &lease)
            .await
        {
            Ok(lease) => {
                if self.memory.went_back(&lease) {
                    return Ok(Try::WentBack);
                }
                self.fence.confirm();
                if let Some(why) = frozen::restored(&lease) {
                    tracing::error!(why, "the cluster was restored from a backup");
                }
                let first = is_new && self.is_without_gangs().await;
                Ok(Try::Held(Held {
                    lease,
                    epoch,
                    first,
                    renewed: started,
                    told: None,
                }))
            }
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Try::Later),
            Err(error) => Err(error),
        }
    }

    /// Whether nothing says that anybody has ever held this Lease, or another of its name: not the Lease, not what this
    /// process has seen of it, and no object that shows an epoch, as pods do that were bound, those of no gang among them.
    fn is_new(&self, lease: &Lease) -> bool {
        epoch_of(lease) == 0
            && transitions(lease) == 0
            && !frozen::is_restored(lease)
            && !self.memory.has_seen_a_leader()
            && !self.fence.has_seen_any()
    }

    /// Whether there is no Gang in the cluster, as the API server has it now: whoever led before has written one for every
    /// gang that it planned. Where that cannot be said somebody may have.
    async fn is_without_gangs(&self) -> bool {
        let gangs: Api<Gang> = Api::all(self.client.clone());
        let one = ListParams::default().limit(1);
        match tokio::time::timeout(GANGS_MAX, gangs.list_metadata(&one)).await {
            Ok(Ok(found)) => found.items.is_empty(),
            Ok(Err(error)) => {
                tracing::warn!(%error, "it is not known whether there are Gangs already");
                false
            }
            Err(_) => {
                tracing::warn!("it is not known in time whether there are Gangs already");
                false
            }
        }
    }

    /// Whether the holder was an earlier process of this replica.
    fn was(&self, holder: &str) -> bool {
        let replica = |identity: &str| identity.split_once('@').map(|(name, _)| name.to_owned());
        replica(holder).is_some_and(|name| Some(name) == replica(&self.identity))
    }

    /// The Lease as this replica would hold it, and the epoch it would lead with.
    fn claim(&self, mut lease: Lease) -> (Lease, Epoch) {
        let (version, before) = (version(&lease), epoch_of(&lease));
        let transitions = transitions(&lease).saturating_add(1);
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        let epoch = u64::from(transitions.unsigned_abs())
            .max(version)
            .max(self.fence.ours().0.saturating_add(1))
            .max(before.saturating_add(1));
        let now = MicroTime(self.wall.now());
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(seconds(self.settings.duration.0));
        spec.acquire_time = Some(now.clone());
        spec.renew_time = Some(now);
        spec.lease_transitions = Some(transitions);
        lease
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(EPOCH_ANNOTATION.into(), epoch.to_string());
        self.note_later_gangs(&mut lease, before);
        (lease, Epoch(epoch))
    }

    /// A Gang of a later epoch than the last that the Lease knows of was written under another Lease, which knew more.
    fn note_later_gangs(&self, lease: &mut Lease, before: u64) {
        let ours = self.fence.ours().0;
        if ours > before && !frozen::is_restored(lease) {
            let text = format!("the lease knew of epoch {before}, and a Gang of {ours}");
            let annotations = lease.metadata.annotations.get_or_insert_default();
            annotations.insert(frozen::RESTORED_ANNOTATION.into(), text);
        }
    }

    async fn keep(&self, mut held: Held, stop: CancellationToken) -> ElectionEnd {
        // After a failure the next try waits its turn, whatever is doubted.
        let mut failed = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => {
                    self.fence.close();
                    self.give_back(held.lease).await;
                    return ElectionEnd::Stopped;
                }
                () = self.fence.doubted(), if !failed => {}
                () = tokio::time::sleep(self.settings.retry_period.0) => {}
            }
            let end = held.renewed + self.settings.renew_deadline.0;
            self.fence.ask();
            let sent = Instant::now();
            let renewal = tokio::time::timeout_at(end, self.renew(&mut held)).await;
            self.tell_frozen(&mut held).await;
            failed = !matches!(renewal, Ok(Renewal::Done));
            match renewal {
                Ok(Renewal::Done | Renewal::Taken | Renewal::Gone | Renewal::WentBack) => {
                    self.inbox.answered()
                }
                Ok(Renewal::Again) | Err(_) => self.inbox.unanswered(sent),
            }
            let lost = match renewal {
                Ok(Renewal::Done) => {
                    self.fence.confirm();
                    self.fence
                        .hold_until(held.renewed + self.settings.renew_deadline.0);
                    None
                }
                Ok(Renewal::Again) if Instant::now() < end => None,
                Ok(Renewal::Again) | Err(_) => {
                    self.memory.lost_unread();
                    Some("the lease could not be renewed in time")
                }
                Ok(Renewal::Gone) => {
                    self.memory.lost_unread();
                    Some("the lease is gone")
                }
                Ok(Renewal::Taken) => Some("the lease is held by another replica"),
                Ok(Renewal::WentBack) => return self.went_back().await,
            };
            if let Some(why) = lost {
                return self.lose(held.epoch, why).await;
            }
        }
    }

    async fn lose(&self, epoch: Epoch, why: &str) -> ElectionEnd {
        tracing::error!(epoch = epoch.0, why, "leadership lost");
        self.fence.close();
        // A closed cycle has ended already, which is what this event is for.
        let _ = self.inbox.send(Event::LeadershipLost).await;
        ElectionEnd::Lost
    }

    async fn renew(&self, held: &mut Held) -> Renewal {
        let started = Instant::now();
        let mut lease = held.lease.clone();
        if frozen::is_restored(&lease) && *self.rebuilt.borrow() {
            let annotations = lease.metadata.annotations.get_or_insert_default();
            annotations.remove(frozen::RESTORED_ANNOTATION);
        }
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(MicroTime(self.wall.now()));
        }
        let api = self.api();
        match api
            .replace(&self.settings.name, &PostParams::default(), &lease)
            .await
        {
            Ok(lease) => {
                if self.memory.went_back(&lease) {
                    return Renewal::WentBack;
                }
                held.lease = lease;
                held.renewed = started;
                Renewal::Done
            }
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                // Our own renewal whose answer was lost, a touch by a person, or another leader.
                match api.get(&self.settings.name).await {
                    Ok(current) if self.memory.went_back(&current) => Renewal::WentBack,
                    Ok(current) if holder(&current) == self.identity => {
                        self.inbox.answered();
                        held.lease = current;
                        Renewal::Again
                    }
                    Ok(_) => Renewal::Taken,
                    Err(error) => {
                        tracing::warn!(%error, "the lease cannot be read");
                        Renewal::Again
                    }
                }
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Renewal::Gone,
            Err(error) => {
                tracing::warn!(%error, "the lease cannot be renewed");
                if matches!(&error, kube::Error::Api(status) if status.code < 500) {
                    self.inbox.answered();
                }
                Renewal::Again
            }
        }
    }

    /// Clears the holder so that the next replica need not wait. Best effort.
    async fn give_back(&self, mut lease: Lease) {
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        let api = self.api();
        let params = PostParams::default();
        let put = api.replace(&self.settings.name, &params, &lease);
        if !matches!(
            tokio::time::timeout(self.settings.retry_period.0, put).await,
            Ok(Ok(_))
        ) {
            tracing::warn!("the lease was not given back; the next leader waits until it expires");
        }
    }
}

/// Versions grow over the whole cluster. One that is no number, or cannot be one, counts as none.
fn version(lease: &Lease) -> u64 {
    let version = lease.resource_version();
    let version = version.and_then(|version| version.parse::<u64>().ok());
    version.filter(|version| *version < EPOCH_MAX).unwrap_or(0)
}

/// How often the Lease was taken, as it says itself.
fn transitions(lease: &Lease) -> i32 {
    let spec = lease.spec.as_ref();
    let transitions = spec.and_then(|spec| spec.lease_transitions);
    transitions.unwrap_or(0).max(0)
}

/// Epoch of the last leader, as the Lease says it.
fn epoch_of(lease: &Lease) -> u64 {
    let epoch = lease.annotations().get(EPOCH_ANNOTATION);
    let epoch = epoch.and_then(|text| text.parse::<u64>().ok());
    epoch.filter(|epoch| *epoch < EPOCH_MAX).unwrap_or(0)
}

fn holder(lease: &Lease) -> &str {
    lease
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}

fn seconds(span: Duration) -> i32 {
    // Rounded up: a Lease says whole seconds, at least one.
    let whole = span
        .as_secs()
        .saturating_add(u64::from(span.subsec_nanos() > 0));
    i32::try_from(whole.max(1)).unwrap_or(i32::MAX)
}
