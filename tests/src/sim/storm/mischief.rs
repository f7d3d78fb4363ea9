//! What is done to the cluster in a storm, one thing at a time; and what takes it back.

use std::sync::Arc;
use std::time::Duration;

use muster_agent::scenario::FaultEvent;
use muster_embedded::api::DeleteOptions;
use muster_embedded::api::informer::Local;
use muster_embedded::api::store::Stored;
use muster_embedded::standins::extender::{Extender, ExtenderConfig};
use muster_embedded::value;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::workload::{self, GPUS};
use super::{Storm, judge};
use crate::sim::{GANGS, JOBS, NODES, PODS};

/// Gangs about at the same time.
const GANGS_MAX: usize = 9;

/// What ends later, or with the storm.
#[derive(Clone, Debug)]
pub enum Undo {
    /// A cordoned node.
    Cordon(String),
    /// A tainted node.
    Taint(String),
    /// A node that is not ready.
    NotReady(String),
    /// A deleted node: the object to create.
    Node(Box<Value>),
    /// A job suspended by its user.
    Suspend(String),
    /// A silent or hanging agent, or one that invents devices.
    Agent(String),
    /// An agent that speaks for another node than its own.
    Impostor(String),
    /// A pod or a job that a policy keeps from being released.
    Forbidden(&'static str, String),
    /// A silent kubelet.
    Kubelet(String),
    /// Broken devices of a node.
    Devices(String),
    /// Bindings that a policy refuses.
    Bindings,
    /// Somebody else's pod.
    Stranger(String),
    /// Devices that are missing on a node, as after a change of its MIG layout.
    DeviceCount(String),
}

impl Storm {
    /// One thing goes wrong, or somebody wants something.
    pub(super) async fn mischief(&mut self) -> Result<(), String> {
        match self.rng.below(48) {
            0..9 => self.submit(),
            9 | 10 => self.stranger(),
            11 | 12 => self.delete_pod(),
            13 => self.delete_gang(),
            14 => self.suspend_job(),
            15 => self.resize_job(),
            16 => self.delete_record(),
            17 => self.cordon(),
            18 => self.taint(),
            19 => self.not_ready(),
            20 => self.delete_node(),
            21 | 22 => self.break_gpu(),
            23 => self.bother_agent(),
            24 => self.stop_kubelet(),
            25 => self.restart_kube_scheduler()?,
            26 => self.restart_operator()?,
            27 => self.api_away(),
            28 => self.refuse_bindings(),
            29 | 30 => self.stray_bind(),
            31 => self.fail_pod(),
            32..35 => self.kill_scheduler().await?,
            35 | 36 => self.stop_scheduler(),
            37 => self.cut_scheduler_off(),
            38 => self.change_devices(),
            39 => self.hostile_pod(),
            40 => self.rename_agent(),
            41 => self.forbid_release(),
            _ => {}
        }
        Ok(())
    }

    fn seconds(&mut self, from: u64, below: u64) -> Duration {
        let more = self
            .rng
            .below(below.saturating_sub(from).saturating_mul(1000));
        Duration::from_millis(from.saturating_mul(1000).saturating_add(more))
    }

    pub(super) fn later(&mut self, undo: Undo, below_s: u64) {
        let at = Instant::now() + self.seconds(1, below_s);
        self.undo.push((at, undo));
    }

    pub(super) fn did(&mut self, what: impl Into<String>) {
        self.done = self.done.saturating_add(1);
        self.log.note(what);
    }

    pub(super) fn next_name(&mut self, kind: &str) -> String {
        self.made = self.made.saturating_add(1);
        format!("{kind}{}", self.made)
    }

    pub(super) fn a_node(&mut self) -> String {
        let number = self.rng.below(u64::from(self.nodes));
        format!("gpu-{number:03}")
    }

    fn jobs(&self) -> Vec<Arc<Stored>> {
        let mut jobs = self.cluster.look(JOBS);
        jobs.retain(|job| !super::calm::has_ended(&job.value));
        jobs
    }

    fn a_job(&mut self) -> Option<String> {
        let jobs = self.jobs();
        let job = self.rng.pick(&jobs);
        job.map(|job| value::name(&job.value).to_owned())
    }

    /// A pod that has not ended, of ours.
    fn a_pod(&mut self) -> Option<Value> {
        let mut pods = self.cluster.look(PODS);
        pods.retain(|pod| {
            value::text(&pod.value, &["spec", "schedulerName"]) == "muster"
                && !matches!(
                    value::text(&pod.value, &["status", "phase"]),
                    "Succeeded" | "Failed"
                )
        });
        self.rng.pick(&pods).map(|pod| pod.value.clone())
    }

    pub(super) fn submit(&mut self) {
        if self.jobs().len() + self.live_sets() >= GANGS_MAX {
            return;
        }
        if self.rng.chance(60) {
            let name = self.next_name("job");
            let job = workload::any_job(&mut self.rng, &name, self.nodes);
            self.log.note(format!("{name} is submitted"));
            self.create(job);
        } else {
            let name = self.next_name("set");
            let set = workload::any_set(&mut self.rng, &name);
            self.submit_set(set);
        }
    }

    pub(super) fn submit_set(&mut self, set: workload::Set) {
        self.log
            .note(format!("{} of {} is submitted", set.name, set.count));
        if !set.key.is_empty() {
            judge::locked(&self.judge).minimum(&set.key, &set.name, set.count);
        }
        for object in &set.objects {
            self.create(object.clone());
        }
        self.sets.push(set);
    }

    fn live_sets(&self) -> usize {
        let judge = judge::locked(&self.judge);
        let lives = |name: &str| {
            judge.pods().any(|(_, pod)| {
                let set = pod.name.rsplit_once('-').map(|(set, _)| set);
                set == Some(name) && !pod.has_ended()
            })
        };
        self.sets.iter().filter(|set| lives(&set.name)).count()
    }

    /// Creates an object; one that is there already or has lost its namespace is no matter.
    pub(super) fn create(&self, object: Value) {
        if let Err(error) = self.cluster.create(object) {
            self.log.note(format!("refused: {error}"));
        }
    }

    fn stranger(&mut self) {
        let (node, gpus) = (
            self.a_node(),
            1 + u32::try_from(self.rng.below(3)).unwrap_or(0),
        );
        let held = judge::locked(&self.judge)
            .pods()
            .filter(|(_, pod)| pod.node == node && pod.holds())
            .filter_map(|(_, pod)| pod.requests.get("nvidia.com/gpu"))
            .fold(0_i128, |sum, held| sum.saturating_add(*held));
        if self.cluster.get(NODES, "", &node).is_none()
            || held / 1000 + i128::from(gpus) > i128::from(GPUS)
        {
            return;
        }
        let name = self.next_name("stranger");
        self.did(format!("{name} takes {gpus} GPUs of {node}"));
        self.create(workload::stranger(&name, &node, gpus));
        self.later(Undo::Stranger(name), 30);
    }

    pub(super) fn delete_pod(&mut self) {
        let Some(pod) = self.a_pod() else { return };
        let name = value::name(&pod).to_owned();
        self.did(format!("{name} is deleted"));
        // Gone meanwhile is as good.
        let _ = self.cluster.delete(PODS, "default", &name);
    }

    pub(super) fn delete_gang(&mut self) {
        if self.rng.chance(50) {
            let Some(job) = self.a_job() else { return };
            self.did(format!("{job} is deleted"));
            let _ = self.cluster.delete(JOBS, "default", &job);
            return;
        }
        let Some(set) = self.rng.pick(&self.sets).cloned() else {
            return;
        };
        self.did(format!("all pods of {} are deleted", set.name));
        for index in 0..set.count {
            let _ = self
                .cluster
                .delete(PODS, "default", &format!("{}-{index}", set.name));
        }
    }

    pub(super) fn suspend_job(&mut self) {
        let Some(job) = self.a_job() else { return };
        self.did(format!("{job} is suspended by its user"));
        let patch = json!({"spec": {"runPolicy": {"suspend": true}}});
        let _ = self.cluster.patch(JOBS, "default", &job, "", &patch);
        self.later(Undo::Suspend(job), 20);
    }

    pub(super) fn resize_job(&mut self) {
        let Some(job) = self.a_job() else { return };
        let most = self.cluster.get(JOBS, "default", &job);
        let most = most.map_or(1, |job| workload::workers_max(&job, self.nodes));
        let workers = 1 + self.rng.below(most.min(4));
        self.did(format!("{job} is resized to {workers} workers"));
        let patch = json!({"spec": {"runPolicy": {"schedulingPolicy": null},
            "pytorchReplicaSpecs": {"Worker": {"replicas": workers}}}});
        let _ = self.cluster.patch(JOBS, "default", &job, "", &patch);
    }

    pub(super) fn delete_record(&mut self) {
        let gangs = self.cluster.look(GANGS);
        let Some(gang) = self.rng.pick(&gangs) else {
            return;
        };
        let name = value::name(&gang.value).to_owned();
        self.did(format!("Gang {name} is deleted by hand"));
        let _ = self.cluster.delete(GANGS, "default", &name);
    }

    pub(super) fn cordon(&mut self) {
        let node = self.a_node();
        self.did(format!("{node} is cordoned"));
        let patch = json!({"spec": {"unschedulable": true}});
        let _ = self.cluster.patch(NODES, "", &node, "", &patch);
        self.later(Undo::Cordon(node), 30);
    }

    fn taint(&mut self) {
        let node = self.a_node();
        self.did(format!("{node} is tainted"));
        self.set_taint(&node, true);
        self.later(Undo::Taint(node), 30);
    }

    pub(super) fn set_taint(&self, node: &str, on: bool) {
        let own = json!({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"});
        let mut taints = vec![own];
        if on {
            taints.push(json!({"key": "broken", "effect": "NoSchedule"}));
        }
        let patch = json!({"spec": {"taints": taints}});
        let _ = self.cluster.patch(NODES, "", node, "", &patch);
    }

    fn not_ready(&mut self) {
        let node = self.a_node();
        self.did(format!("{node} is not ready"));
        let _ = self.cluster.set_node_ready(&node, false);
        self.later(Undo::NotReady(node), 30);
    }

    fn delete_node(&mut self) {
        let name = self.a_node();
        if let Some(undo) = self.take_node(&name) {
            self.later(undo, 25);
        }
    }

    /// Deletes a node; gives back what makes it again.
    pub(super) fn take_node(&mut self, name: &str) -> Option<Undo> {
        let mut node = self.cluster.get(NODES, "", name)?;
        self.did(format!("{name} is deleted, and its pods with it"));
        let _ = self.cluster.delete(NODES, "", name);
        let gc = Local::new(self.cluster.api(), "pod-gc");
        for pod in self.cluster.list(PODS) {
            if value::text(&pod, &["spec", "nodeName"]) == name {
                let at_once = DeleteOptions {
                    grace_seconds: Some(0),
                    ..DeleteOptions::default()
                };
                let _ = gc.delete(PODS, "default", value::name(&pod), &at_once);
            }
        }
        for field in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "managedFields",
        ] {
            value::remove(&mut node, &["metadata", field]);
        }
        super::calm::heal(&mut node);
        Some(Undo::Node(Box::new(node)))
    }

    /// The device plugin offers fewer whole GPUs, as after a change of the MIG layout.
    pub(super) fn change_devices(&mut self) {
        let node = self.a_node();
        let count = 4 + self.rng.index(4);
        self.did(format!("{node} offers {count} devices"));
        self.set_devices(&node, count);
        self.later(Undo::DeviceCount(node), 40);
    }

    /// Has a node's device plugin offer so many of its GPUs.
    pub(super) fn set_devices(&self, node: &str, count: usize) {
        let devices = self.agents.with(|fleet| {
            let devices = fleet.devices(node).ok()?;
            Some(
                devices
                    .iter()
                    .map(|device| device.uuid.clone())
                    .collect::<Vec<_>>(),
            )
        });
        let mut devices = devices.flatten().unwrap_or_default();
        let whole = devices.len();
        devices.truncate(count);
        let slices = whole.saturating_sub(devices.len()).saturating_mul(7);
        let slices = (slices > 0).then(|| slices.to_string());
        let mig = json!({"status": {"allocatable": {"nvidia.com/mig-1g.10gb": slices},
            "capacity": {"nvidia.com/mig-1g.10gb": slices}}});
        self.cluster.kubelet().set_device_ids(node, devices);
        // The kubelet writes what it offers once something was said of the health of a device.
        self.cluster.kubelet().set_device_health(node, "", true);
        let _ = self.cluster.patch(NODES, "", node, "status", &mig);
    }

    /// A pod that nobody can read, or that asks for more than can be counted.
    fn hostile_pod(&mut self) {
        let name = self.next_name("hostile");
        self.did(format!("{name} is submitted"));
        let pod = match self.rng.chance(50) {
            true => workload::unreadable(&name),
            false => workload::beyond_all_numbers(&name),
        };
        self.create(pod);
        self.later(Undo::Stranger(name), 20);
    }

    fn break_gpu(&mut self) {
        let node = self.a_node();
        let gpu = u32::try_from(self.rng.below(u64::from(GPUS))).unwrap_or(0);
        let fault = match self.rng.below(5) {
            0 | 1 => FaultEvent::Xid { gpu, code: 79 },
            2 => FaultEvent::Lost { gpu },
            3 => FaultEvent::RemapFailure { gpu },
            _ => FaultEvent::Xid { gpu, code: 48 },
        };
        let gone = !matches!(fault, FaultEvent::RemapFailure { .. });
        self.did(format!("{fault:?} on {node}"));
        if self.agents.inject(&node, fault).is_err() {
            return;
        }
        let Some(uuid) = self.device(&node, gpu) else {
            return;
        };
        judge::locked(&self.judge).sick(&uuid, true);
        if let Some(pod) = gone.then(|| self.holder(&node, &uuid)).flatten() {
            self.fail(
                &pod,
                "the training process died: GPU has fallen off the bus",
            );
        }
        self.later(Undo::Devices(node), 60);
    }

    pub(super) fn device(&self, node: &str, gpu: u32) -> Option<String> {
        let devices = self.agents.with(|fleet| {
            let devices = fleet.devices(node).ok()?;
            let found = devices.iter().find(|device| device.gpu == gpu);
            found.map(|device| device.uuid.clone())
        });
        devices.flatten()
    }

    fn fail(&mut self, pod: &str, why: &str) {
        self.log.note(format!("{pod} fails"));
        let status = json!({"status": {"phase": "Failed", "reason": "Error", "message": why}});
        let _ = self.cluster.patch(PODS, "default", pod, "status", &status);
    }

    fn fail_pod(&mut self) {
        let Some(pod) = self.a_pod() else { return };
        if value::text(&pod, &["status", "phase"]) == "Running" {
            self.done = self.done.saturating_add(1);
            self.fail(value::name(&pod), "out of memory");
        }
    }

    fn bother_agent(&mut self) {
        let node = self.a_node();
        let gpu = u32::try_from(self.rng.below(u64::from(GPUS))).unwrap_or(0);
        let fault = match self.rng.below(9) {
            0..3 => FaultEvent::Silent,
            3 => FaultEvent::Replay,
            4 => FaultEvent::Hang,
            5 => FaultEvent::Leak { gpu },
            6 => FaultEvent::Invent { gpus: 1 + gpu },
            7 => {
                let other = self.a_node();
                match self.device(&other, gpu) {
                    Some(uuid) if other != node => FaultEvent::CloneUuid { gpu, uuid },
                    _ => return,
                }
            }
            _ => FaultEvent::DriverVersion {
                version: "590.1".into(),
            },
        };
        self.did(format!("{fault:?} on {node}"));
        let (silent, hung) = (fault == FaultEvent::Silent, fault == FaultEvent::Hang);
        if self.agents.inject(&node, fault).is_ok() {
            let mut judge = judge::locked(&self.judge);
            if silent {
                judge.silent(&node, true);
            }
            if hung {
                judge.hung(&node, true);
            }
            drop(judge);
            self.later(Undo::Agent(node), 60);
        }
    }

    fn stop_kubelet(&mut self) {
        let node = self.a_node();
        self.did(format!("the kubelet of {node} stands still"));
        self.cluster.kubelet().set_silent(&node, true);
        self.later(Undo::Kubelet(node), 20);
    }

    pub(super) fn restart_kube_scheduler(&mut self) -> Result<(), String> {
        self.did("kube-scheduler is restarted");
        self.start_kube_scheduler()
    }

    fn restart_operator(&mut self) -> Result<(), String> {
        self.did("training-operator is restarted");
        self.start_operator()
    }

    fn api_away(&mut self) {
        let time = self.seconds(1, 14);
        self.did(format!(
            "the API server is away for {} ms",
            time.as_millis()
        ));
        self.weather.away_for(time);
    }

    fn cut_scheduler_off(&mut self) {
        let time = self.seconds(2, 25);
        let Some(client) = self.a_replica().map(|replica| replica.client) else {
            return;
        };
        self.did(format!("{client} is cut off for {} ms", time.as_millis()));
        self.weather.cut_off(client, time);
    }

    fn refuse_bindings(&mut self) {
        let Some(pod) = self.a_pod() else { return };
        let name = value::name(&pod).to_owned();
        self.did(format!("a policy forbids to bind {name}"));
        let why = "denied by policy".to_owned();
        self.script.refuse_bindings(Some((name, why)));
        self.later(Undo::Bindings, 15);
    }

    /// A policy forbids for good to release one pod or one job of many.
    fn forbid_release(&mut self) {
        let (kind, name) = if self.rng.chance(50) {
            let pod = self.a_pod().map(|pod| value::name(&pod).to_owned());
            (PODS.1, pod)
        } else {
            (JOBS.1, self.a_job())
        };
        let Some(name) = name else { return };
        self.did(format!("a policy forbids to release {name}"));
        self.weather.forbid(kind, &name, true);
        self.later(Undo::Forbidden(kind, name), 60);
    }

    /// A Bind that kube-scheduler never sends: repeated, late, or to another node.
    fn stray_bind(&mut self) {
        let Some(pod) = self.a_pod() else { return };
        let bound = value::text(&pod, &["spec", "nodeName"]).to_owned();
        let node = if !bound.is_empty() && self.rng.chance(50) {
            bound
        } else {
            self.a_node()
        };
        let name = value::name(&pod).to_owned();
        self.did(format!("a stray Bind of {name} to {node}"));
        let mut config = ExtenderConfig::new("http://muster/v1/bind");
        config.bind_verb = "bind".into();
        config.http_timeout = Duration::from_secs(300);
        let extender = Extender::new(config, self.doors.transport());
        let api = self.cluster.api().clone();
        let judge = self.judge.clone();
        self.strays.spawn(async move {
            if extender.bind(&pod, &node).await.is_err() {
                return;
            }
            let reader = Local::new(&api, "stray");
            let found = reader.get(PODS, "default", &name);
            let same = found.as_ref().is_ok_and(|found| {
                value::uid(&found.value) == value::uid(&pod)
                    && value::text(&found.value, &["spec", "nodeName"]) == node
            });
            // One that was bound and is gone since is as good.
            if !same && found.is_ok_and(|found| value::uid(&found.value) == value::uid(&pod)) {
                let text =
                    format!("S10: a Bind of {name} to {node} was answered OK, and it is not");
                judge::locked(&judge).violated(text, &[&name]);
            }
        });
    }

    async fn kill_scheduler(&mut self) -> Result<(), String> {
        let rest = self.seconds(1, 8);
        let at = self.rng.index(self.replicas.len());
        let how = self.rng.below(4);
        let (polls, writes) = (self.rng.below(300), 1 + self.rng.below(6));
        let applied = self.rng.chance(60);
        let around = super::around!(self);
        let Some(replica) = self.replicas.get_mut(at) else {
            return Ok(());
        };
        if !replica.is_up() {
            return Ok(());
        }
        let client = replica.client;
        let what = match (how, replica.hold()) {
            (0, _) => {
                replica.kill(rest, &around).await?;
                format!("{client} is killed at once")
            }
            (1 | 2, Some(hold)) => {
                self.weather.stop_at_write(client, writes, applied, hold);
                format!("{client} is to die at write {writes}")
            }
            _ => {
                replica.kill_after(polls, rest);
                format!("{client} is to die in {polls} polls")
            }
        };
        self.did(what);
        Ok(())
    }

    fn stop_scheduler(&mut self) {
        let time = self.seconds(1, 40);
        let Some(replica) = self.a_replica().filter(|replica| replica.is_up()) else {
            return;
        };
        replica.stop_for(time);
        let client = replica.client;
        self.did(format!("{client} is stopped for {} ms", time.as_millis()));
    }

    /// Takes back what is due; all of it with the storm's end.
    pub(super) fn take_back(&mut self, all: bool) {
        let now = Instant::now();
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.undo)
            .into_iter()
            .partition(|(at, _)| all || *at <= now);
        self.undo = rest;
        for (_, undo) in due {
            self.log.note(format!("it ends: {}", undo.line()));
            self.undone(undo);
        }
    }

    fn undone(&mut self, undo: Undo) {
        match undo {
            Undo::Cordon(node) => {
                let patch = json!({"spec": {"unschedulable": null}});
                let _ = self.cluster.patch(NODES, "", &node, "", &patch);
            }
            Undo::Taint(node) => self.set_taint(&node, false),
            Undo::NotReady(node) => {
                let _ = self.cluster.set_node_ready(&node, true);
            }
            Undo::Node(node) => self.create(*node),
            Undo::Suspend(job) => {
                let patch = json!({"spec": {"runPolicy": {"suspend": false}}});
                let _ = self.cluster.patch(JOBS, "default", &job, "", &patch);
            }
            Undo::Agent(node) => {
                let _ = self.agents.inject(&node, FaultEvent::Resume);
                let _ = self.agents.inject(&node, FaultEvent::Back { gpu: None });
                let mut judge = judge::locked(&self.judge);
                judge.silent(&node, false);
                judge.hung(&node, false);
                drop(judge);
                self.devices_are_well(&node);
            }
            Undo::Impostor(node) => {
                // Ends it without a word.
                self.impostors.remove(&node);
            }
            Undo::Forbidden(kind, name) => self.weather.forbid(kind, &name, false),
            Undo::Kubelet(node) => self.cluster.kubelet().set_silent(&node, false),
            Undo::Devices(node) => {
                let _ = self.agents.inject(&node, FaultEvent::Back { gpu: None });
                self.devices_are_well(&node);
            }
            Undo::Bindings => self.script.refuse_bindings(None),
            Undo::Stranger(name) => {
                let _ = self.cluster.delete(PODS, "default", &name);
            }
            Undo::DeviceCount(node) => self.set_devices(&node, usize::MAX),
        }
    }

    fn devices_are_well(&self, node: &str) {
        for gpu in 0..GPUS {
            if let Some(uuid) = self.device(node, gpu) {
                judge::locked(&self.judge).sick(&uuid, false);
            }
        }
    }
}

impl Undo {
    fn line(&self) -> String {
        match self {
            Self::Node(node) => format!("Node {}", value::name(node)),
            other => format!("{other:?}"),
        }
    }
}
