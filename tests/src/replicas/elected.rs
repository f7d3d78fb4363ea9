//! A stand-in for a kube-scheduler that works only while it holds a Lease, and ends itself when it loses
//! it, as the real one does. It is then started again, as the kubelet does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use muster_embedded::api::ApiServer;
use muster_embedded::standins::scheduler::{Scheduler, SchedulerConfig};
use muster_kubernetes::names;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// `leaseDuration`, seconds.
const DURATION_SECONDS: i32 = 15;
/// `renewDeadline`.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// `retryPeriod`, and while it waits, with the mean of kube-scheduler's jitter.
const RETRY: Duration = Duration::from_millis(500);
const WAIT: Duration = Duration::from_millis(800);
/// Until the kubelet has started it again.
const RESTART: Duration = Duration::from_secs(1);

/// The process, and those after it.
pub(super) struct Elected {
    stop: CancellationToken,
    works: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

struct Candidate {
    leases: Api<Lease>,
    lease: String,
    identity: String,
    /// The Lease of somebody else: at which version it was first seen, when, and for how long it holds.
    observed: Option<(String, Instant, Duration)>,
}

impl Elected {
    pub(super) fn start(
        api: ApiServer,
        client: Client,
        lease: String,
        name: &str,
        config: SchedulerConfig,
    ) -> Self {
        let (stop, works) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let (stopped, working) = (stop.clone(), Arc::clone(&works));
        let name = name.to_owned();
        let task = tokio::spawn(async move {
            let mut number = 0_u32;
            loop {
                number = number.saturating_add(1);
                let candidate = Candidate {
                    leases: Api::namespaced(client.clone(), names::NAMESPACE),
                    lease: lease.clone(),
                    identity: format!("{name}_{number}"),
                    observed: None,
                };
                let process = run(candidate, &api, &config, &stopped, &working);
                tokio::select! {
                    biased;
                    () = stopped.cancelled() => return,
                    () = process => {}
                }
                tokio::time::sleep(RESTART).await;
            }
        });
        Self { stop, works, task }
    }

    pub(super) fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// Ends it at once: its Lease stays as it is.
    pub(super) async fn kill(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// One process, until it loses its Lease.
async fn run(
    mut candidate: Candidate,
    api: &ApiServer,
    config: &SchedulerConfig,
    stop: &CancellationToken,
    works: &AtomicBool,
) {
    while !candidate.holds().await {
        tokio::time::sleep(WAIT).await;
    }
    let stop = stop.child_token();
    let Ok(scheduler) = Scheduler::new(api, config.clone()) else {
        return;
    };
    let work = tokio::spawn(scheduler.run(stop.clone()));
    // However this ends, the work ends with it.
    let _ended = stop.drop_guard();
    works.store(true, Ordering::Relaxed);
    let _idle = Idle(works);
    let mut renewed = Instant::now();
    while renewed.elapsed() < RENEW_DEADLINE && !work.is_finished() {
        tokio::time::sleep(RETRY).await;
        if candidate.holds().await {
            renewed = Instant::now();
        }
    }
}

struct Idle<'a>(&'a AtomicBool);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Candidate {
    /// Takes or renews the Lease, if that may be done; whether it is held now.
    async fn holds(&mut self) -> bool {
        let found = match self.leases.get_opt(&self.lease).await {
            Ok(found) => found,
            Err(_) => return false,
        };
        let Some(mut lease) = found else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.lease.clone());
            lease.spec = Some(self.held());
            let params = PostParams::default();
            return self.leases.create(&params, &lease).await.is_ok();
        };
        let spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let version = lease.resource_version().unwrap_or_default();
        let term = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        let since = match &self.observed {
            Some((seen, since, _)) if *seen == version => *since,
            _ => Instant::now(),
        };
        self.observed = Some((version, since, Duration::from_secs(term)));
        let valid = since.elapsed() < Duration::from_secs(term);
        if !holder.is_empty() && holder != self.identity && valid {
            return false;
        }
        lease.spec = Some(self.held());
        let params = PostParams::default();
        let put = self.leases.replace(&self.lease, &params, &lease);
        put.await.is_ok()
    }

    fn held(&self) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            ..LeaseSpec::default()
        }
    }
}
