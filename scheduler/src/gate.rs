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

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
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
/// Silence after which a kube-scheduler counts as gone. It renews twice a second.
const SILENT: Duration = Duration::from_secs(5);
/// Time without any kube-scheduler after which this replica has no use as a leader. Starting one takes
/// seconds; the kubelet waits 10 s, 20 s and 40 s between its tries.
pub const DESERTED: Duration = Duration::from_secs(60);
/// How long a process that has just started leaves a kube-scheduler alone that leads: it may be about
/// to lead again itself, after a crash of its container.
const START: Duration = Duration::from_secs(10);
/// Time to close the gate at the end.
const GOODBYE_MAX: Duration = Duration::from_secs(1);

/// The Pod that the Lease belongs to, and goes with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Keeps the gate.
pub struct Gate {
    /// Client without retries of its own.
    pub client: Client,
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// The Pod that it goes with; without one it stays.
    pub pod: Option<Pod>,
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

    fn set(&self, text: Option<String>) {
        *locked(&self.0) = text;
    }
}

/// Why the gate is not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateEnd {
    /// It was asked to.
    Stopped,
    /// This replica leads, and no kube-scheduler has come.
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
    /// Keeps the gate until stopped, and closes it then.
    pub async fn run(mut self, stop: CancellationToken) -> GateEnd {
        let started = Instant::now();
        let mut beside = Beside::default();
        let mut has_led = false;
        self.problem
            .set(Some(format!("Lease {} was not looked at yet", self.name)));
        loop {
            let leads = *self.leads.borrow_and_update();
            has_led |= leads;
            let spare = !has_led && started.elapsed() < START;
            let looked = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                looked = tokio::time::timeout(LOOK_MAX, self.tend(leads, spare, &mut beside)) => looked,
            };
            match looked {
                Ok(Ok(())) => {
                    if let Some(end) = self.judge(leads, &beside) {
                        return end;
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = %self.name, "kube-scheduler's lease cannot be kept");
                }
                Err(_) => {
                    tracing::warn!(lease = %self.name, "no answer about kube-scheduler's lease in time");
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // A cycle that has ended is the scheduler's to notice.
                Ok(()) = self.leads.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        let close = self.tend(false, false, &mut beside);
        if !matches!(tokio::time::timeout(GOODBYE_MAX, close).await, Ok(Ok(()))) {
            tracing::warn!(lease = %self.name, "kube-scheduler was not told that its Muster has ended");
        }
        GateEnd::Stopped
    }

    fn judge(&self, leads: bool, beside: &Beside) -> Option<GateEnd> {
        let alone = beside.alive.map_or(Duration::ZERO, |at| at.elapsed());
        let problem = (leads && alone >= SILENT).then(|| {
            format!(
                "no kube-scheduler has held Lease {} for {} s",
                self.name,
                alone.as_secs()
            )
        });
        let deserted = leads && alone >= DESERTED;
        if deserted {
            tracing::error!(lease = %self.name, seconds = alone.as_secs(), "no kube-scheduler comes");
        }
        self.problem.set(problem);
        deserted.then_some(GateEnd::Deserted)
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Looks at the Lease once and does what is due. `spare`: a kube-scheduler that leads is left alone.
    async fn tend(&self, leads: bool, spare: bool, beside: &mut Beside) -> Result<(), kube::Error> {
        let (api, params) = (self.api(), PostParams::default());
        let Some(mut lease) = api.get_opt(&self.name).await? else {
            let wanted = if leads { Wanted::Open } else { Wanted::Closed };
            return harmless(api.create(&params, &self.fresh(wanted)).await);
        };
        let wanted = if leads {
            self.with_leader(&lease, beside)
        } else {
            *beside = Beside::default();
            let works = !holder(&lease).is_empty() && spare;
            (holder(&lease) != CLOSED && !works).then_some(Wanted::Closed)
        };
        let Some(wanted) = wanted else {
            return Ok(());
        };
        tracing::info!(lease = %self.name, gate = ?wanted, was = holder(&lease), "kube-scheduler's lease");
        write(&mut lease, wanted);
        harmless(api.replace(&self.name, &params, &lease).await)
    }

    /// Follows the kube-scheduler of a leader: lets it in, and the next one when it is silent.
    fn with_leader(&self, lease: &Lease, beside: &mut Beside) -> Option<Wanted> {
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

    fn fresh(&self, wanted: Wanted) -> Lease {
        let owner = self.pod.as_ref().map(|pod| OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            ..OwnerReference::default()
        });
        let mut lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            ..Lease::default()
        };
        write(&mut lease, wanted);
        lease
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

fn write(lease: &mut Lease, wanted: Wanted) {
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    let (holder, seconds) = match wanted {
        Wanted::Open => ("", OPEN_SECONDS),
        Wanted::Closed => (CLOSED, CLOSED_SECONDS),
    };
    spec.holder_identity = Some(holder.into());
    spec.lease_duration_seconds = Some(seconds);
}

fn holder(lease: &Lease) -> &str {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}
