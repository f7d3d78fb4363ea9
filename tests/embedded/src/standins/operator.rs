//! Stand-in for training-operator 1.9: PyTorchJobs to pods.
//!
//! ```text
//! job or pod changed ─► queue (job keys, each once) ─► one worker: PodGroup, then per role (random order) pods,
//!                                                      one by one at the client's rate, then services, then status
//! ```
//! One worker, as in the default install: a job of 256 pods keeps the others waiting for some 25 s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::kinds::{JOBS, PODGROUPS, PODS, SERVICES};
use super::operator_status::{self as status, Counts};
use crate::api::informer::{Batch, Informer, Local};
use crate::api::store::Stored;
use crate::api::{ApiError, ApiServer, DeleteOptions};
use crate::value;

/// How the operator is run.
#[derive(Debug, Clone)]
pub struct OperatorConfig {
    /// Pods created per second once the burst is used up; 0 means without a limit.
    pub pods_per_second: f64,
    /// Pods that may be created at once.
    pub burst: u32,
    /// `--gang-scheduler-name`; makes a PodGroup per job and labels the pods.
    pub gang_scheduler_name: Option<String>,
    /// Whether a headless Service is made per pod, as the real operator does.
    pub services: bool,
}

impl Default for OperatorConfig {
    fn default() -> Self {
        Self {
            pods_per_second: 10.0,
            burst: 30,
            gang_scheduler_name: None,
            services: true,
        }
    }
}

/// Namespace and name of a job.
type JobKey = (String, String);
const RETRY: Duration = Duration::from_secs(5);
const JOB_NAME: &str = "training.kubeflow.org/job-name";
const REPLICA_TYPE: &str = "training.kubeflow.org/replica-type";
const REPLICA_INDEX: &str = "training.kubeflow.org/replica-index";

/// The stand-in.
#[derive(Debug)]
pub struct Operator {
    api: Local,
    config: OperatorConfig,
    jobs: Informer,
    pods: Informer,
    pods_of: BTreeMap<String, BTreeSet<JobKey>>,
    queue: BTreeSet<JobKey>,
    order: std::collections::VecDeque<JobKey>,
    later: BTreeSet<(Instant, JobKey)>,
    tokens: f64,
    refilled: Instant,
}

impl Operator {
    /// A stand-in on this server.
    ///
    /// # Errors
    /// 404 when the server has no PyTorchJobs.
    pub fn new(server: &ApiServer, config: OperatorConfig) -> Result<Self, ApiError> {
        Ok(Self {
            api: Local::new(server, "training-operator"),
            jobs: Informer::new(server, JOBS.0, JOBS.1)?,
            pods: Informer::new(server, PODS.0, PODS.1)?,
            pods_of: BTreeMap::new(),
            queue: BTreeSet::new(),
            order: std::collections::VecDeque::new(),
            later: BTreeSet::new(),
            tokens: f64::from(config.burst),
            refilled: Instant::now(),
            config,
        })
    }

    /// Works until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.observe();
            let now = Instant::now();
            while let Some((at, key)) = self.later.first().cloned() {
                if at > now {
                    break;
                }
                self.later.pop_first();
                self.enqueue(key);
            }
            if let Some(key) = self.order.pop_front() {
                self.queue.remove(&key);
                let work = self.reconcile(&key);
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    done = work => if let Err(error) = done {
                        tracing::debug!(%error, job = %key.1, "reconcile failed");
                        self.later.insert((Instant::now() + RETRY, key));
                    },
                }
                continue;
            }
            let wake = self
                .later
                .first()
                .map_or(now + Duration::from_secs(3600), |(at, _)| *at);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.jobs.changed() => {}
                () = self.pods.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn enqueue(&mut self, key: JobKey) {
        if self.queue.insert(key.clone()) {
            self.order.push_back(key);
        }
    }

    /// Takes in what changed, and keeps for each job the names of its pods.
    fn observe(&mut self) {
        let mut keys = Vec::new();
        match self.jobs.poll() {
            Some(Batch::Resync(all)) => keys.extend(all.iter().map(|j| key_of(&j.value))),
            Some(Batch::Changes(changes)) => {
                keys.extend(changes.iter().map(|c| key_of(&c.object.value)))
            }
            None => {}
        }
        let mut touch =
            |pods_of: &mut BTreeMap<String, BTreeSet<JobKey>>, pod: &Value, there: bool| {
                let Some(owner) =
                    value::controller(pod).filter(|o| value::text(o, &["kind"]) == "PyTorchJob")
                else {
                    return;
                };
                let uid = value::text(owner, &["uid"]).to_owned();
                let set = pods_of.entry(uid.clone()).or_default();
                if there {
                    set.insert(key_of(pod));
                } else {
                    set.remove(&key_of(pod));
                    if set.is_empty() {
                        pods_of.remove(&uid);
                    }
                }
                keys.push((
                    value::namespace(pod).to_owned(),
                    value::text(owner, &["name"]).to_owned(),
                ));
            };
        match self.pods.poll() {
            Some(Batch::Resync(all)) => {
                self.pods_of.clear();
                all.iter()
                    .for_each(|p| touch(&mut self.pods_of, &p.value, true));
            }
            Some(Batch::Changes(changes)) => {
                for change in changes {
                    let there = change.kind != crate::api::store::ChangeKind::Deleted;
                    touch(&mut self.pods_of, &change.object.value, there);
                }
            }
            None => {}
        }
        keys.into_iter().for_each(|k| self.enqueue(k));
    }

    async fn reconcile(&mut self, key: &JobKey) -> Result<(), ApiError> {
        let Ok(stored) = self.api.get(JOBS, &key.0, &key.1) else {
            return Ok(());
        };
        let mut job = stored.value.clone();
        let managed = value::text(&job, &["spec", "runPolicy", "managedBy"]);
        let ours = managed.is_empty() || managed == "kubeflow.org/training-operator";
        if !ours || value::at(&job, &["metadata", "deletionTimestamp"]).is_some() {
            return Ok(());
        }
        let now = self.api.server().clock().stamp();
        if value::condition(&job, "Created").is_none() {
            let text = format!("PyTorchJob {} is created.", key.1);
            status::set(&mut job, "Created", true, "PyTorchJobCreated", &text, &now);
        }
        let pods = self.pods_of_job(&job);
        if status::is_finished(&job) {
            self.clean_up(&job, &pods)?;
        } else if value::flag(&job, &["spec", "runPolicy", "suspend"]) {
            self.suspend(&mut job, &pods, &now)?;
        } else {
            if status::is_true(&job, "Suspended") {
                let text = format!("PyTorchJob {} is resumed.", key.1);
                status::set(
                    &mut job,
                    "Suspended",
                    false,
                    "PyTorchJobResumed",
                    &text,
                    &now,
                );
            }
            value::set_default(&mut job, &["status", "startTime"], now.clone());
            self.run_job(&mut job, &stored.value, &pods).await?;
        }
        self.write_status(&stored.value, &job)
    }

    fn pods_of_job(&self, job: &Value) -> Vec<Arc<Stored>> {
        let names = self
            .pods_of
            .get(value::uid(job))
            .cloned()
            .unwrap_or_default();
        let read = names
            .iter()
            .filter_map(|(ns, name)| self.api.server().target("", "pods", ns, name).ok());
        read.filter_map(|t| self.api.server().get(&t).ok())
            .filter(|p| {
                value::controller(&p.value)
                    .is_some_and(|o| value::text(o, &["uid"]) == value::uid(job))
            })
            .collect()
    }

    /// Creates what is missing, deletes what is too much, and judges the phases. `stored`: the job as it was read.
    async fn run_job(
        &mut self,
        job: &mut Value,
        stored: &Value,
        pods: &[Arc<Stored>],
    ) -> Result<(), ApiError> {
        let now = self.api.server().clock().stamp();
        if self.is_past_deadline(job) {
            let text = format!(
                "PyTorchJob {} has failed because it was active longer than specified deadline",
                value::name(job)
            );
            status::set(job, "Failed", true, "PyTorchJobFailed", &text, &now);
            value::set(job, &["status", "completionTime"], now);
            return self.clean_up(job, pods);
        }
        self.ensure_podgroup(job)?;
        let specs = value::at(stored, &["spec", "pytorchReplicaSpecs"]).and_then(Value::as_object);
        let mut roles: Vec<(&String, &Value)> = specs.into_iter().flatten().collect();
        if roles.len() > 1 && self.api.server().chance().below(2) == 1 {
            roles.reverse();
        }
        for (role, spec) in roles {
            let wanted = replicas(spec);
            let mut counts = Counts::default();
            let mut restarted = false;
            for index in 0..wanted {
                let found = pods.iter().find(|p| is_member(&p.value, role, index));
                match found {
                    Some(pod) => {
                        restarted |= self.judge(job, role, spec, &pod.value, &mut counts, &now)?
                    }
                    None => self.create_pod(job, role, spec, index).await?,
                }
            }
            for pod in pods.iter().filter(|p| is_beyond(&p.value, role, wanted)) {
                self.delete_pod(&pod.value)?;
            }
            if self.config.services {
                self.ensure_services(job, role, wanted)?;
            }
            self.judge_role(job, role, wanted, counts, restarted, &now);
        }
        if status::is_finished(job) {
            value::set_default(job, &["status", "completionTime"], now);
        }
        Ok(())
    }

    fn is_past_deadline(&mut self, job: &Value) -> bool {
        let Some(seconds) = value::int(job, &["spec", "runPolicy", "activeDeadlineSeconds"]) else {
            return false;
        };
        let Ok(start) = value::text(job, &["status", "startTime"]).parse::<jiff::Timestamp>()
        else {
            return false;
        };
        let passed = self
            .api
            .server()
            .clock()
            .now()
            .as_second()
            .saturating_sub(start.as_second());
        let left = seconds.saturating_sub(passed);
        if left > 0 {
            let wait = Duration::from_secs(u64::try_from(left).unwrap_or(0));
            self.later.insert((Instant::now() + wait, key_of(job)));
        }
        left <= 0
    }

    /// Counts one pod; replaces a failed one by the restart policy. Returns whether it was replaced.
    fn judge(
        &self,
        job: &mut Value,
        role: &str,
        spec: &Value,
        pod: &Value,
        counts: &mut Counts,
        now: &str,
    ) -> Result<bool, ApiError> {
        let phase = value::text(pod, &["status", "phase"]);
        if phase != "Failed" {
            counts.add(phase);
            return Ok(false);
        }
        let code = exit_code(pod);
        let again = match value::text(spec, &["restartPolicy"]) {
            "Never" => false,
            "ExitCode" => code >= 128,
            _ => true,
        };
        counts.add(phase);
        if again {
            self.delete_pod(pod)?;
            return Ok(true);
        }
        let text = format!(
            "PyTorchJob {} is failed because 1 {role} replica(s) failed.",
            value::name(job)
        );
        status::set(job, "Failed", true, "PyTorchJobFailed", &text, now);
        Ok(false)
    }

    /// Conditions that follow from the counts of a role.
    fn judge_role(
        &self,
        job: &mut Value,
        role: &str,
        wanted: i64,
        counts: Counts,
        restarted: bool,
        now: &str,
    ) {
        let name = value::name(job).to_owned();
        status::set_counts(job, role, counts, &name);
        let has_master = value::at(job, &["spec", "pytorchReplicaSpecs", "Master"]).is_some();
        let decides = role == "Master" || !has_master;
        if restarted {
            let text =
                format!("PyTorchJob {name} is restarting because 1 {role} replica(s) failed.");
            status::set(job, "Restarting", true, "PyTorchJobRestarting", &text, now);
        } else if decides && counts.succeeded >= wanted && wanted > 0 {
            let text = format!("PyTorchJob {name} is successfully completed.");
            status::set(job, "Succeeded", true, "PyTorchJobSucceeded", &text, now);
        } else if decides && counts.running > 0 && !status::is_finished(job) {
            let text = format!("PyTorchJob {name} is running.");
            status::set(job, "Running", true, "PyTorchJobRunning", &text, now);
        }
    }

    async fn create_pod(
        &mut self,
        job: &Value,
        role: &str,
        spec: &Value,
        index: i64,
    ) -> Result<(), ApiError> {
        self.take_token().await;
        let pod = super::operator_pod::build(
            job,
            role,
            spec,
            index,
            self.config.gang_scheduler_name.as_deref(),
        );
        match self.api.create(PODS, pod) {
            Ok(_) => Ok(()),
            Err(error) if error.reason == "AlreadyExists" => Ok(()),
            Err(error) => {
                let name = format!("{}-{}-{index}", value::name(job), role.to_lowercase());
                self.api.event(
                    job,
                    "Warning",
                    "FailedCreatePod",
                    &format!("Error creating: {}", error.message),
                );
                tracing::debug!(%error, %name, "pod refused");
                Err(error)
            }
        }
    }

    /// Waits for the client's rate limit.
    async fn take_token(&mut self) {
        if self.config.pods_per_second <= 0.0 {
            return;
        }
        loop {
            let now = Instant::now();
            let gained =
                now.duration_since(self.refilled).as_secs_f64() * self.config.pods_per_second;
            self.tokens = (self.tokens + gained).min(f64::from(self.config.burst.max(1)));
            self.refilled = now;
            if self.tokens >= 0.999_999 {
                self.tokens -= 1.0;
                return;
            }
            let wait = (1.0 - self.tokens) / self.config.pods_per_second;
            tokio::time::sleep(Duration::from_secs_f64(wait)).await;
        }
    }

    fn delete_pod(&self, pod: &Value) -> Result<(), ApiError> {
        if value::at(pod, &["metadata", "deletionTimestamp"]).is_some() {
            return Ok(());
        }
        let options = DeleteOptions {
            uid: Some(value::uid(pod).into()),
            ..DeleteOptions::default()
        };
        ignore_missing(
            self.api
                .delete(PODS, value::namespace(pod), value::name(pod), &options),
        )
    }

    fn ensure_services(&self, job: &Value, role: &str, wanted: i64) -> Result<(), ApiError> {
        for index in 0..wanted {
            let service = super::operator_pod::service(job, role, index);
            let (namespace, name) = key_of(&service);
            if self
                .api
                .server()
                .target("", "services", &namespace, &name)
                .and_then(|t| self.api.server().get(&t))
                .is_err()
            {
                self.api.create(SERVICES, service)?;
            }
        }
        Ok(())
    }

    fn delete_services(&self, job: &Value) -> Result<(), ApiError> {
        let uid = value::uid(job);
        let (namespace, _) = key_of(job);
        let specs = value::at(job, &["spec", "pytorchReplicaSpecs"]).and_then(Value::as_object);
        for (role, spec) in specs.into_iter().flatten() {
            for index in 0..replicas(spec) {
                let name = value::name(&super::operator_pod::service(job, role, index)).to_owned();
                let Ok(found) = self
                    .api
                    .server()
                    .target("", "services", &namespace, &name)
                    .and_then(|t| self.api.server().get(&t))
                else {
                    continue;
                };
                if value::controller(&found.value).is_some_and(|o| value::text(o, &["uid"]) == uid)
                {
                    ignore_missing(self.api.delete(
                        SERVICES,
                        &namespace,
                        &name,
                        &DeleteOptions::default(),
                    ))?;
                }
            }
        }
        Ok(())
    }

    fn ensure_podgroup(&self, job: &Value) -> Result<(), ApiError> {
        if self.config.gang_scheduler_name.is_none() {
            return Ok(());
        }
        let group = super::operator_pod::podgroup(job);
        let (namespace, name) = key_of(job);
        if self.api.get(PODGROUPS, &namespace, &name).is_err() {
            self.api.create(PODGROUPS, group)?;
            return Ok(());
        }
        let spec = group.get("spec").cloned().unwrap_or_default();
        self.api
            .change(PODGROUPS, &namespace, &name, "", |g| {
                value::set(g, &["spec"], spec)
            })
            .map(|_| ())
    }

    fn suspend(&self, job: &mut Value, pods: &[Arc<Stored>], now: &str) -> Result<(), ApiError> {
        for pod in pods {
            self.delete_pod(&pod.value)?;
        }
        self.delete_services(job)?;
        self.delete_podgroup(job)?;
        let text = format!("PyTorchJob {} is suspended.", value::name(job));
        if status::is_true(job, "Running") {
            status::set(job, "Running", false, "PyTorchJobSuspended", &text, now);
        }
        status::set(job, "Suspended", true, "PyTorchJobSuspended", &text, now);
        value::remove(job, &["status", "startTime"]);
        value::set(
            job,
            &["status", "replicaStatuses"],
            json!({"Master": {}, "Worker": {}}),
        );
        Ok(())
    }

    fn delete_podgroup(&self, job: &Value) -> Result<(), ApiError> {
        if self.config.gang_scheduler_name.is_none() {
            return Ok(());
        }
        let (namespace, name) = key_of(job);
        ignore_missing(
            self.api
                .delete(PODGROUPS, &namespace, &name, &DeleteOptions::default()),
        )
    }

    fn clean_up(&mut self, job: &Value, pods: &[Arc<Stored>]) -> Result<(), ApiError> {
        let policy = value::text(job, &["spec", "runPolicy", "cleanPodPolicy"]);
        for pod in pods {
            let running = matches!(
                value::text(&pod.value, &["status", "phase"]),
                "Running" | "Pending"
            );
            if policy == "All" || (policy == "Running" && running) {
                self.delete_pod(&pod.value)?;
            }
        }
        self.delete_podgroup(job)?;
        let Some(ttl) = value::int(job, &["spec", "runPolicy", "ttlSecondsAfterFinished"]) else {
            return Ok(());
        };
        let Ok(end) = value::text(job, &["status", "completionTime"]).parse::<jiff::Timestamp>()
        else {
            return Ok(());
        };
        let left = end
            .as_second()
            .saturating_add(ttl)
            .saturating_sub(self.api.server().clock().now().as_second());
        let (namespace, name) = key_of(job);
        if left > 0 {
            let wait = Duration::from_secs(u64::try_from(left).unwrap_or(0));
            self.later
                .insert((Instant::now() + wait, (namespace, name)));
            return Ok(());
        }
        ignore_missing(
            self.api
                .delete(JOBS, &namespace, &name, &DeleteOptions::default()),
        )
    }

    fn write_status(&self, old: &Value, new: &Value) -> Result<(), ApiError> {
        if old.get("status") == new.get("status") {
            return Ok(());
        }
        let (namespace, name) = key_of(new);
        let status = new.get("status").cloned().unwrap_or_default();
        ignore_missing(
            self.api
                .change(JOBS, &namespace, &name, "status", |j| {
                    value::set(j, &["status"], status)
                })
                .map(|_| ()),
        )
    }
}

fn ignore_missing(result: Result<(), ApiError>) -> Result<(), ApiError> {
    match result {
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        other => other,
    }
}

fn key_of(object: &Value) -> JobKey {
    (
        value::namespace(object).to_owned(),
        value::name(object).to_owned(),
    )
}

fn replicas(spec: &Value) -> i64 {
    value::int(spec, &["replicas"]).unwrap_or(1).max(0)
}

fn member(pod: &Value) -> Option<(&str, i64)> {
    let index = value::text(pod, &["metadata", "labels", REPLICA_INDEX])
        .parse()
        .ok()?;
    Some((
        value::text(pod, &["metadata", "labels", REPLICA_TYPE]),
        index,
    ))
}

fn is_member(pod: &Value, role: &str, index: i64) -> bool {
    member(pod).is_some_and(|(r, i)| r.eq_ignore_ascii_case(role) && i == index)
        && !value::text(pod, &["metadata", "labels", JOB_NAME]).is_empty()
}

fn is_beyond(pod: &Value, role: &str, wanted: i64) -> bool {
    member(pod).is_some_and(|(r, i)| r.eq_ignore_ascii_case(role) && i >= wanted)
}

fn exit_code(pod: &Value) -> i64 {
    let statuses = value::items(pod, &["status", "containerStatuses"]).iter();
    let main = statuses.filter(|s| value::text(s, &["name"]) == "pytorch");
    let mut codes = main.filter_map(|s| value::int(s, &["state", "terminated", "exitCode"]));
    codes.next_back().unwrap_or(-1)
}
