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
//! A Lease is judged stale by the monotonic clock of this process since its resourceVersion was
//! first seen, never by the times written in it. The Lease is a hint for who should lead; what
//! keeps two leaders apart are the epoch and the resourceVersions of the writes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use muster_core::event::Event;
use muster_core::ids::Epoch;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Wall;
use crate::config;
use crate::fence::{EPOCH_MAX, Fence};
use crate::inbox::Inbox;

/// Annotation of the Lease that holds the epoch of its last leader.
pub const EPOCH_ANNOTATION: &str = "muster.dev/epoch";

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
}

/// How the election ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElectionEnd {
    /// It was asked to; the Lease is given back if it was held.
    Stopped,
    /// The leadership is lost.
    Lost,
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
    renewed: Instant,
}

enum Renewal {
    Done,
    Again,
    Taken,
}

impl Elector {
    /// Runs until stopped or until a leadership is lost.
    pub async fn run(mut self, stop: CancellationToken) -> ElectionEnd {
        let held = tokio::select! {
            biased;
            () = stop.cancelled() => return ElectionEnd::Stopped,
            held = self.acquire() => held,
        };
        let Some(held) = held else {
            return ElectionEnd::Stopped;
        };
        tracing::info!(epoch = held.epoch.0, identity = %self.identity, "leading");
        self.fence.open(held.epoch);
        self.fence
            .hold_until(held.renewed + self.settings.renew_deadline.0);
        self.inbox.answered();
        if self
            .inbox
            .send(Event::LeadershipGained(held.epoch))
            .await
            .is_err()
        {
            return ElectionEnd::Stopped;
        }
        self.keep(held, stop).await
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// Tries until the Lease is held. `None`: the watches have ended.
    async fn acquire(&mut self) -> Option<Held> {
        self.synced.wait_for(|synced| *synced).await.ok()?;
        let mut observed: Option<Observed> = None;
        loop {
            match tokio::time::timeout(
                self.settings.renew_deadline.0,
                self.try_acquire(&mut observed),
            )
            .await
            {
                Ok(Ok(Some(held))) => return Some(held),
                Ok(Ok(None)) => {}
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

    async fn try_acquire(
        &self,
        observed: &mut Option<Observed>,
    ) -> Result<Option<Held>, kube::Error> {
        let api = self.api();
        let started = Instant::now();
        let current = match api.get_opt(&self.settings.name).await? {
            Some(current) => current,
            // Its version is needed for the epoch: it is made first and taken then.
            None => match api.create(&PostParams::default(), &self.unheld()).await {
                Ok(lease) => lease,
                Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(None),
                Err(error) => return Err(error),
            },
        };
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
            return Ok(None);
        }
        let (lease, epoch) = self.claim(current);
        self.fence.ask();
        match api
            .replace(&self.settings.name, &PostParams::default(), &lease)
            .await
        {
            Ok(lease) => {
                self.fence.confirm();
                Ok(Some(Held {
                    lease,
                    epoch,
                    renewed: started,
                }))
            }
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the holder was an earlier process of this replica.
    fn was(&self, holder: &str) -> bool {
        let replica = |identity: &str| identity.split_once('@').map(|(name, _)| name.to_owned());
        replica(holder).is_some_and(|name| Some(name) == replica(&self.identity))
    }

    /// A Lease that nobody holds.
    fn unheld(&self) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        }
    }

    /// The Lease as this replica would hold it, and the epoch it would lead with.
    fn claim(&self, mut lease: Lease) -> (Lease, Epoch) {
        // Versions grow over the whole cluster. One that is no number, or cannot be one, counts as none.
        let version = lease
            .resource_version()
            .and_then(|version| version.parse::<u64>().ok())
            .filter(|version| *version < EPOCH_MAX)
            .unwrap_or(0);
        let before = lease
            .annotations()
            .get(EPOCH_ANNOTATION)
            .and_then(|text| text.parse::<u64>().ok())
            .filter(|epoch| *epoch < EPOCH_MAX)
            .unwrap_or(0);
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        let transitions = spec.lease_transitions.unwrap_or(0).max(0).saturating_add(1);
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
        (lease, Epoch(epoch))
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
            failed = !matches!(renewal, Ok(Renewal::Done));
            match renewal {
                Ok(Renewal::Done | Renewal::Taken) => self.inbox.answered(),
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
                Ok(Renewal::Again) | Err(_) => Some("the lease could not be renewed in time"),
                Ok(Renewal::Taken) => Some("the lease is held by another replica"),
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
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(MicroTime(self.wall.now()));
        }
        let api = self.api();
        match api
            .replace(&self.settings.name, &PostParams::default(), &lease)
            .await
        {
            Ok(lease) => {
                held.lease = lease;
                held.renewed = started;
                Renewal::Done
            }
            Err(kube::Error::Api(status)) if status.is_conflict() => {
                // Our own renewal whose answer was lost, a touch by a person, or another leader.
                match api.get(&self.settings.name).await {
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
            Err(kube::Error::Api(status)) if status.is_not_found() => Renewal::Taken,
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
