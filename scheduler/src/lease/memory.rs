//! What a process remembers of the Lease, to tell that the API server's store was restored from a backup.
//!
//! Restoring a store takes longer than a Lease lasts: whoever leads loses the leadership before it can see what the store says then.
//! So a process that has lost it without an answer ends in all but this: it looks at the Lease once more, when the API server is back.

use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use super::{EPOCH_ANNOTATION, epoch_of, holder, version};
use crate::config;
use crate::frozen;
use crate::locked;

/// Longest wait for the API server to come back after a leadership was lost: the time to restore a store by hand. A process that
/// was started meanwhile could do nothing either, and would remember nothing.
const LOOK_BACK_MAX: Duration = Duration::from_secs(3600);
/// Versions that follow on each other are not so far apart: at 10,000 writes a second that takes half a day. A restored store was told to
/// begin there (`etcdutl snapshot restore --bump-revision 1000000000`), so that no version comes twice.
const LEAP_MIN: u64 = 500_000_000;
/// Versions above this count no writes: some API servers take the time for them, in millionths of a second.
const COUNT_MAX: u64 = 10_000_000_000_000;
/// How long a login may be refused meanwhile: another process may have a better one.
const REFUSED_MAX: Duration = Duration::from_secs(60);
/// Longest wait for one answer of it.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The latest that was seen of the Lease.
#[derive(Clone, Debug, Default)]
struct Latest {
    uid: Option<String>,
    version: u64,
    epoch: u64,
    holder: String,
    /// The highest epoch that any Lease of this name has shown, those that were deleted too.
    led: u64,
    /// The leadership was lost, and nobody knows what the Lease says.
    unread: bool,
}

/// What was seen of the Lease, and the Lease.
pub struct Memory {
    client: Client,
    settings: config::Lease,
    latest: Mutex<Latest>,
}

impl Memory {
    /// Nothing was seen yet.
    pub fn new(client: Client, settings: config::Lease) -> Self {
        Self {
            client,
            settings,
            latest: Mutex::default(),
        }
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// Notes what was read or written; returns whether the store was restored since what was seen before: the Lease is older, or its version
    /// has leapt. Every read is of the latest that the API server has, and every version a number of its store. (Where a version is no
    /// number nothing is noticed.)
    ///
    /// A version leaps with the first write of the Lease, whoever makes it: also between what a process has read and what it writes itself.
    pub(super) fn went_back(&self, lease: &Lease) -> bool {
        let mut latest = locked(&self.latest);
        let (uid, version, epoch) = (lease.uid(), version(lease), epoch_of(lease));
        let holder = holder(lease);
        let older = version > 0 && version < latest.version;
        let leapt = latest.version > 0
            && version < COUNT_MAX
            && version.saturating_sub(latest.version) > LEAP_MIN;
        // Another leader may have written it since the store was restored. It may even lead with the epoch that the one before
        // led with: an epoch comes of the Lease's version, and nobody writes the Lease while it expires.
        let same = uid.is_some() && uid == latest.uid;
        let another = !holder.is_empty() && !latest.holder.is_empty() && holder != latest.holder;
        let earlier = epoch < latest.epoch || epoch > 0 && epoch == latest.epoch && another;
        if older || leapt || same && earlier {
            return true;
        }
        latest.uid = uid;
        (latest.version, latest.epoch) = (version, epoch);
        latest.led = latest.led.max(epoch);
        holder.clone_into(&mut latest.holder);
        false
    }

    /// Whether this process has seen that somebody led, be it by a Lease that is gone.
    pub(super) fn has_seen_a_leader(&self) -> bool {
        locked(&self.latest).led > 0
    }

    /// The Lease, made where there is none: its version says when. `None` where somebody else is making it.
    pub(super) async fn lease(&self) -> Result<Option<Lease>, kube::Error> {
        let api = self.api();
        if let Some(lease) = api.get_opt(&self.settings.name).await? {
            return Ok(Some(lease));
        }
        // Whoever takes it is told that another was taken before. Not with which epoch: a Gang of a later one than the Lease
        // tells of a restore.
        let taken = self.has_seen_a_leader().then(|| LeaseSpec {
            lease_transitions: Some(1),
            ..LeaseSpec::default()
        });
        let unheld = Lease {
            metadata: ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: taken,
        };
        match api.create(&PostParams::default(), &unheld).await {
            Ok(lease) => Ok(Some(lease)),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The leadership is lost, and what the Lease says now is not known.
    pub(super) fn lost_unread(&self) {
        locked(&self.latest).unread = true;
    }

    /// After a leadership that was lost without an answer: waits until the API server says what the Lease is now, and marks it
    /// if it went back; whether it did. Nothing else of the process has to be alive, and nobody is kept waiting who could
    /// lead: whoever cannot be answered cannot either. `alive` is called again and again meanwhile.
    pub async fn look_back(&self, alive: impl Fn()) -> bool {
        if !locked(&self.latest).unread {
            return false;
        }
        let end = Instant::now() + LOOK_BACK_MAX;
        let (mut said, mut refused_since) = (false, None);
        while Instant::now() < end {
            alive();
            let mut is_refused = false;
            let why = match tokio::time::timeout(ANSWER_MAX, self.lease()).await {
                Ok(Ok(Some(lease))) => {
                    let went_back = self.went_back(&lease);
                    if went_back {
                        self.mark().await;
                    }
                    return went_back;
                }
                Ok(Ok(None)) => "somebody else is making it".to_owned(),
                Ok(Err(error)) => {
                    is_refused = matches!(&error, kube::Error::Api(status) if status.code == 401);
                    error.to_string()
                }
                Err(_) => "no answer".to_owned(),
            };
            match refused_since {
                Some(since) if is_refused && since + REFUSED_MAX < Instant::now() => break,
                _ if !is_refused => refused_since = None,
                _ => refused_since = refused_since.or_else(|| Some(Instant::now())),
            }
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(
                    %why,
                    "the lease cannot be read; it is waited for, to see whether the cluster was restored meanwhile"
                );
            }
            tokio::time::sleep(self.settings.retry_period.0 / 2).await;
        }
        tracing::error!(
            "the lease was not read any more: if the cluster was restored, freeze it by hand"
        );
        false
    }

    /// Says on the Lease that the cluster's state went back, so that whoever leads next begins frozen.
    pub(super) async fn mark(&self) {
        let seen = locked(&self.latest).version;
        tracing::error!(
            seen,
            "the Lease is not of the version that it was, or that follows: the cluster was restored from a backup"
        );
        let end = Instant::now() + self.settings.renew_deadline.0;
        while Instant::now() < end {
            match tokio::time::timeout_at(end, self.try_mark()).await {
                Ok(Ok(true)) => return,
                // Somebody else was faster; it is looked at once more.
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the lease cannot be written");
                    tokio::time::sleep(self.settings.retry_period.0 / 2).await;
                }
                Err(_) => break,
            }
        }
        tracing::error!("nobody could be told that the cluster was restored: freeze it by hand");
    }

    /// Whether the Lease says it.
    async fn try_mark(&self) -> Result<bool, kube::Error> {
        let api = self.api();
        let Some(mut lease) = api.get_opt(&self.settings.name).await? else {
            return Ok(true);
        };
        if frozen::is_restored(&lease) {
            return Ok(true);
        }
        let (seen, epoch) = {
            let latest = locked(&self.latest);
            (latest.version, latest.epoch)
        };
        let text = format!("version {seen} was seen, and then {}", version(&lease));
        // No epoch that was used before is used again.
        let epoch = epoch.max(epoch_of(&lease));
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(frozen::RESTORED_ANNOTATION.into(), text);
        annotations.insert(EPOCH_ANNOTATION.into(), epoch.to_string());
        match api
            .replace(&self.settings.name, &PostParams::default(), &lease)
            .await
        {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
