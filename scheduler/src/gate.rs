//! The kube-scheduler beside this Muster leads when Muster does.
//!
//! ```text
//!   Muster follows    Lease of the pair held by "closed" for 31 years ──> kube-scheduler waits
//!   Muster leads      Lease free, or held by kube-scheduler           ──> kube-scheduler works
//!   kube-scheduler is silent                Lease set free: the next one need not wait
//!   there is none for as long as a minute   the leadership is given back: another pair leads
//! ```
//!
//! Each pair of Muster and kube-scheduler in one Pod has a Lease of its own for kube-scheduler's leader
//! election, and Muster is the other party to it. So one decision, who holds Muster's Lease, is all
//! there is: an unmodified kube-scheduler follows, and asks nobody but the Muster beside it. What it
//! does after its Muster has lost the leadership, until it notices that the gate is closed, is
//! answered with an error; nothing is bound by it.
//!
//! A kube-scheduler that starts before anybody has closed its gate makes the Lease itself, and leads. So an init
//! container of the Pod closes the gate first (`muster-scheduler close-gate`); where there is none, it is closed as
//! soon as Muster looks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use muster_kubernetes::manifests::RENEW_DEADLINE;
use muster_kubernetes::names;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::locked;

/// Who holds the Lease while kube-scheduler is not to lead.
pub const CLOSED: &str = "closed-while-its-muster-follows";
/// For how long, seconds. kube-scheduler goes by what the Lease says, not by its own configuration.
const CLOSED_SECONDS: i32 = 1_000_000_000;
/// What stands in a free Lease, seconds; whoever takes it writes its own.
const OPEN_SECONDS: i32 = 15;
/// How often the Lease is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time for one look and what follows from it.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Silence after which a kube-scheduler counts as gone. It renews twice a second, and goes on working for as long
/// as its renew deadline while it has no answer.
const SILENT: Duration = Duration::from_secs(12);
const _: () = assert!(SILENT.as_secs() > RENEW_DEADLINE.as_secs());
/// Time without any kube-scheduler after which this replica has no use as a leader. Starting one takes
/// seconds; the kubelet waits 10 s, 20 s and 40 s between its tries.
pub const DESERTED: Duration = Duration::from_secs(60);
/// How long a process that has just started leaves a kube-scheduler alone that leads, while Muster's own Lease still
/// names this replica: it is about to lead again, after a crash of its container.
const START: Duration = Duration::from_secs(10);
/// Time between two tries to close the gate before anybody leads.
const CLOSE_AGAIN: Duration = Duration::from_millis(200);
/// Time for all of them.
const CLOSE_MAX: Duration = Duration::from_secs(20);
/// Time to close the gate at the end.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// The Lease by which the kube-scheduler of one Pod leads.
#[derive(Clone)]
pub struct PairLease {
    /// Client without retries of its own.
    pub client: Client,
    /// Its namespace, which is that of Muster's own Lease.
    pub namespace: String,
    /// Name of the replica, and of its Pod.
    pub replica: String,
    /// UID of that Pod: the Lease goes with it. Without one it stays.
    pub uid: Option<String>,
}

/// Keeps the gate.
pub struct Gate {
    /// What it is kept by.
    pub lease: PairLease,
    /// Name of Muster's own Lease.
    pub muster: String,
    /// Whether Filter is answered here.
    pub leads: watch::Receiver<bool>,
    /// What keeps the pair from being ready.
    pub problem: Problem,
}

/// What keeps a pair from being ready, for `/readyz`. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Problem(Arc<Mutex<Option<String>>>);

impl Problem {
    /// The text, if there is a problem.
    pub fn text(&self) -> Option<String> {
        locked(&self.0).clone()
    }

    pub(crate) fn set(&self, text: Option<String>) {
        *locked(&self.0) = text;
    }
}

/// Why the gate is not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateEnd {
    /// It was asked to.
    Stopped,
    /// This replica leads, and no kube-scheduler has come, or none could be seen.
    Deserted,
}

/// What is known of the kube-scheduler while this replica leads.
#[derive(Debug, Default)]
struct Beside {
    /// Version of the Lease at which it was last seen to be alive, and when; with none, since when one is
    /// awaited.
    version: String,
    alive: Option<Instant>,
}

/// What is to be done with the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Open,
    Closed,
}

impl Gate {
    /// Keeps the gate until stopped, or until no kube-scheduler comes, and closes it then. From the call on the
    /// pair is not ready until the Lease has been looked at.
    pub fn run(self, stop: CancellationToken) -> impl Future<Output = GateEnd> + Send {
        let name = self.lease.name();
        self.problem
            .set(Some(format!("Lease {name} was not looked at yet")));
        self.keep(name, stop)
    }

    async fn keep(mut self, name: String, stop: CancellationToken) -> GateEnd {
        let started = Instant::now();
        let mut beside = Beside::default();
        let mut has_led = false;
        let end = loop {
            let leads = *self.leads.borrow_and_update();
            has_led |= leads;
            if leads {
                beside.alive.get_or_insert_with(Instant::now);
            } else {
                beside = Beside::default();
            }
            let spare = !has_led && started.elapsed() < START;
            let looked = tokio::select! {
                biased;
                () = stop.cancelled() => break GateEnd::Stopped,
                looked = tokio::time::timeout(LOOK_MAX, self.tend(leads, spare, &mut beside)) => looked,
            };
            let failed = match looked {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer in time".to_owned()),
            };
            if let Some(why) = &failed {
                tracing::warn!(why, lease = %name, "kube-scheduler's lease cannot be kept");
            }
            if let Some(end) = self.judge(leads, &beside, failed) {
                break end;
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break GateEnd::Stopped,
                // A cycle that has ended is the scheduler's to notice.
                Ok(()) = self.leads.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        };
        let close = self.tend(false, false, &mut beside);
        if !matches!(tokio::time::timeout(GOODBYE_MAX, close).await, Ok(Ok(()))) {
            tracing::warn!(lease = %name, "kube-scheduler was not told that its Muster has ended");
        }
        end
    }

    /// What follows from a look, or from one that failed: time in which no kube-scheduler could be seen
    /// counts as time without one.
    fn judge(&self, leads: bool, beside: &Beside, failed: Option<String>) -> Option<GateEnd> {
        let name = self.lease.name();
        let alone = beside.alive.map_or(Duration::ZERO, |at| at.elapsed());
        let silent = (leads && alone >= SILENT).then(|| {
            format!(
                "no kube-scheduler has held Lease {name} for {} s",
                alone.as_secs()
            )
        });
        let problem = failed
            .map(|why| format!("Lease {name} cannot be kept: {why}"))
            .or(silent);
        let deserted = leads && alone >= DESERTED;
        if deserted {
            tracing::error!(lease = %name, seconds = alone.as_secs(), "no kube-scheduler comes");
        }
        self.problem.set(problem);
        deserted.then_some(GateEnd::Deserted)
    }

    /// Looks at the Lease once and does what is due. `spare`: a kube-scheduler that leads is left alone, if
    /// its Muster led before.
    async fn tend(&self, leads: bool, spare: bool, beside: &mut Beside) -> Result<(), kube::Error> {
        let Some(lease) = self.lease.get().await? else {
            let wanted = if leads { Wanted::Open } else { Wanted::Closed };
            return self.lease.make(wanted).await;
        };
        let wanted = match holder(&lease) {
            _ if leads => with_leader(&lease, beside),
            CLOSED => None,
            "" => Some(Wanted::Closed),
            _ if spare && self.led_before().await? => None,
            _ => Some(Wanted::Closed),
        };
        match wanted {
            None => Ok(()),
            Some(wanted) => self.lease.put(lease, wanted).await,
        }
    }

    /// Whether Muster's own Lease is held by a process of this replica.
    async fn led_before(&self) -> Result<bool, kube::Error> {
        let lease = self.lease.api().get_opt(&self.muster).await?;
        let led = lease
            .as_ref()
            .and_then(|lease| holder(lease).split_once('@'));
        Ok(led.is_some_and(|(name, _)| name == self.lease.replica))
    }
}

/// Follows the kube-scheduler of a leader: lets it in, and the next one when it is silent.
fn with_leader(lease: &Lease, beside: &mut Beside) -> Option<Wanted> {
    let now = Instant::now();
    let version = lease.resource_version().unwrap_or_default();
    let since = *beside.alive.get_or_insert(now);
    match holder(lease) {
        CLOSED => Some(Wanted::Open),
        "" => None,
        _ if beside.version != version => {
            beside.version = version;
            beside.alive = Some(now);
            None
        }
        _ => (now.saturating_duration_since(since) >= SILENT).then_some(Wanted::Open),
    }
}

impl PairLease {
    /// Closes the gate before the kube-scheduler of the Pod starts. An error: it is not known to be closed.
    pub async fn close(&self) -> anyhow::Result<()> {
        let name = self.name();
        let mut trouble = None;
        let closing = async {
            // After a write it is looked at once more: somebody else may have been faster. An API server that is
            // not reached or has much to do is asked again.
            loop {
                match self.close_once().await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(lease = %name, %error, "kube-scheduler's lease is not closed yet");
                        trouble = Some(error);
                    }
                }
                tokio::time::sleep(CLOSE_AGAIN).await;
            }
        };
        if tokio::time::timeout(CLOSE_MAX, closing).await.is_ok() {
            return Ok(());
        }
        let late = format!("Lease {name} was not closed within {CLOSE_MAX:?}");
        Err(match trouble {
            Some(error) => anyhow::Error::new(error).context(late),
            None => anyhow::Error::msg(late),
        })
    }

    /// Whether it was closed already; if not it may be from now on.
    async fn close_once(&self) -> Result<bool, kube::Error> {
        match self.get().await? {
            None => self.make(Wanted::Closed).await?,
            Some(lease) if holder(&lease) == CLOSED => return Ok(true),
            Some(lease) => self.put(lease, Wanted::Closed).await?,
        }
        Ok(false)
    }

    fn name(&self) -> String {
        names::kube_scheduler_lease(&self.replica)
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn get(&self) -> Result<Option<Lease>, kube::Error> {
        self.api().get_opt(&self.name()).await
    }

    async fn make(&self, wanted: Wanted) -> Result<(), kube::Error> {
        let mut lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        };
        self.set(&mut lease, wanted);
        harmless(self.api().create(&PostParams::default(), &lease).await)
    }

    async fn put(&self, mut lease: Lease, wanted: Wanted) -> Result<(), kube::Error> {
        let name = self.name();
        tracing::info!(lease = %name, gate = ?wanted, was = holder(&lease), "kube-scheduler's lease");
        let owners = lease.metadata.owner_references.clone();
        self.set(&mut lease, wanted);
        let (api, params) = (self.api(), PostParams::default());
        let written = api.replace(&name, &params, &lease).await;
        // Some clusters let only those change owners who may delete (OwnerReferencesPermissionEnforcement). An
        // owner less leaves a Lease behind; a gate that cannot be moved stops the pair.
        match written {
            Err(kube::Error::Api(status))
                if status.code == 403 && lease.metadata.owner_references != owners =>
            {
                lease.metadata.owner_references = owners;
                harmless(api.replace(&name, &params, &lease).await)
            }
            written => harmless(written),
        }
    }

    /// One that kube-scheduler has made belongs to no Pod until now.
    fn set(&self, lease: &mut Lease, wanted: Wanted) {
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        let (holder, seconds) = match wanted {
            Wanted::Open => ("", OPEN_SECONDS),
            Wanted::Closed => (CLOSED, CLOSED_SECONDS),
        };
        spec.holder_identity = Some(holder.into());
        spec.lease_duration_seconds = Some(seconds);
        let Some(uid) = &self.uid else {
            return;
        };
        let owners = lease.metadata.owner_references.get_or_insert_default();
        if !owners.iter().any(|owner| owner.uid == *uid) {
            owners.push(OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: self.replica.clone(),
                uid: uid.clone(),
                ..OwnerReference::default()
            });
        }
    }
}

/// Somebody else was faster: the next look sees what is so.
fn harmless(written: Result<Lease, kube::Error>) -> Result<(), kube::Error> {
    match written {
        Err(kube::Error::Api(status)) if status.code != 409 && status.code != 404 => {
            Err(kube::Error::Api(status))
        }
        Ok(_) | Err(kube::Error::Api(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn holder(lease: &Lease) -> &str {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}
