//! Stand-in for the kubelets of all nodes.
//!
//! ```text
//! pod bound ─► admit (devices, cpu, memory, pods) ─► Failed: UnexpectedAdmissionError, OutOfcpu …
//!                    └► start delay ─► Running ─► after `muster.dev/run-seconds` ─► Succeeded (or Failed)
//! pod deleted ─► stop delay ─► removed, devices free again
//! ```
//! One task for all nodes. The device manager picks concrete device ids; who holds what goes to a callback, so that
//! fake agents can report it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fit;
use super::kinds::{NODES, PODS};
use crate::api::informer::{Batch, Informer, Local};
use crate::api::store::{ChangeKind, Stored};
use crate::api::{ApiError, ApiServer, DeleteOptions};
use crate::{quantity, value};

/// When a kubelet that stands still is asked again to do what is due.
const SILENT_AGAIN: Duration = Duration::from_secs(1);

/// Annotation: seconds that a pod runs; without it a pod runs for ever.
pub const RUN_SECONDS: &str = "muster.dev/run-seconds";
/// Annotation: the exit code at the end of the run; 0 without it.
pub const EXIT_CODE: &str = "muster.dev/exit-code";

/// Device ids that one container of a pod holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// The container.
    pub container: String,
    /// The ids, in order.
    pub devices: Vec<String>,
}

/// Is told who holds which devices of a node, each time that changes.
pub type OnHolders = Arc<dyn Fn(&str, &[Holder]) + Send + Sync>;

/// How the kubelets behave.
#[derive(Clone)]
pub struct KubeletConfig {
    /// Time from binding to Running.
    pub start_delay: Duration,
    /// Time from deletion to removal; never longer than the pod's grace period.
    pub stop_delay: Duration,
    /// The resource whose devices are managed.
    pub device_resource: String,
    /// Whether `status.allocatable` of the node is lowered by unhealthy devices.
    pub allocatable_follows_health: bool,
    /// Is told about holders.
    pub on_holders: Option<OnHolders>,
}

impl std::fmt::Debug for KubeletConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeletConfig")
            .field("start_delay", &self.start_delay)
            .field("stop_delay", &self.stop_delay)
            .finish_non_exhaustive()
    }
}

impl Default for KubeletConfig {
    fn default() -> Self {
        Self {
            start_delay: Duration::from_millis(500),
            stop_delay: Duration::from_millis(500),
            device_resource: "nvidia.com/gpu".into(),
            allocatable_follows_health: true,
            on_holders: None,
        }
    }
}

#[derive(Default)]
struct Wishes {
    on_holders: Option<OnHolders>,
    retell: bool,
    unhealthy: BTreeMap<String, BTreeSet<String>>,
    ids: BTreeMap<String, Vec<String>>,
    silent: BTreeSet<String>,
    changed: BTreeSet<String>,
}

impl std::fmt::Debug for Wishes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wishes")
            .field("unhealthy", &self.unhealthy)
            .field("silent", &self.silent)
            .finish_non_exhaustive()
    }
}

/// The handle by which tests break devices and nodes.
#[derive(Debug, Clone, Default)]
pub struct KubeletControl {
    wishes: Arc<Mutex<Wishes>>,
    wake: Arc<Notify>,
}

impl KubeletControl {
    fn with<T>(&self, node: &str, f: impl FnOnce(&mut Wishes) -> T) -> T {
        let mut wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        wishes.changed.insert(node.to_owned());
        let result = f(&mut wishes);
        drop(wishes);
        self.wake.notify_one();
        result
    }

    /// Looks at or changes the wishes without waking the kubelets.
    fn with_quietly<T>(&self, f: impl FnOnce(&mut Wishes) -> T) -> T {
        f(&mut self.wishes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Is told who holds what from now on, besides the callback of the configuration; starts with every node.
    pub fn set_on_holders(&self, callback: OnHolders) {
        let mut wishes = self.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        wishes.on_holders = Some(callback);
        wishes.retell = true;
        drop(wishes);
        self.wake.notify_one();
    }

    /// Names the devices of a node; without it they are called `GPU-<node>-<index>`.
    pub fn set_device_ids(&self, node: &str, ids: Vec<String>) {
        self.with(node, |w| w.ids.insert(node.into(), ids));
    }

    /// Marks a device unhealthy or healthy; pods that hold it go on running.
    pub fn set_device_health(&self, node: &str, id: &str, healthy: bool) {
        self.with(node, |w| {
            let set = w.unhealthy.entry(node.into()).or_default();
            if healthy {
                set.remove(id)
            } else {
                set.insert(id.into())
            };
        });
    }

    /// Stops or starts a node's kubelet: a stopped one starts and stops no pods.
    pub fn set_silent(&self, node: &str, silent: bool) {
        self.with(node, |w| {
            if silent {
                w.silent.insert(node.into())
            } else {
                w.silent.remove(node)
            }
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Start,
    Finish,
    Remove,
}

#[derive(Debug, Default)]
struct NodeState {
    object: Value,
    /// Pods that were admitted, by uid, with what they use.
    admitted: BTreeMap<String, Admitted>,
}

#[derive(Debug, Clone)]
struct Admitted {
    uses: fit::Resources,
    holders: Vec<Holder>,
}

/// The stand-in.
pub struct Kubelet {
    api: Local,
    config: KubeletConfig,
    control: KubeletControl,
    pods: Informer,
    nodes_informer: Informer,
    nodes: BTreeMap<String, NodeState>,
    /// Bound pods by uid, with their node.
    known: BTreeMap<String, (String, Arc<Stored>)>,
    steps: BTreeSet<(Instant, String, Step)>,
}

impl std::fmt::Debug for Kubelet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubelet")
            .field("pods", &self.known.len())
            .finish_non_exhaustive()
    }
}

impl Kubelet {
    /// A stand-in on this server.
    ///
    /// # Errors
    /// 404 when the server serves no pods.
    pub fn new(
        server: &ApiServer,
        config: KubeletConfig,
        control: KubeletControl,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            api: Local::new(server, "kubelet"),
            config,
            control,
            pods: Informer::new(server, PODS.0, PODS.1)?,
            nodes_informer: Informer::new(server, NODES.0, NODES.1)?,
            nodes: BTreeMap::new(),
            known: BTreeMap::new(),
            steps: BTreeSet::new(),
        })
    }

    /// Works until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let wake = self.control.wake.clone();
        loop {
            self.observe();
            let now = Instant::now();
            while let Some((at, uid, step)) = self.steps.first().cloned() {
                if at > now {
                    break;
                }
                self.steps.pop_first();
                self.step(&uid, step);
            }
            let next = self
                .steps
                .first()
                .map_or(now + Duration::from_secs(3600), |(at, _, _)| *at);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.nodes_informer.changed() => {}
                () = self.pods.changed() => {}
                () = wake.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn observe(&mut self) {
        match self.nodes_informer.poll() {
            Some(Batch::Resync(all)) => all.iter().for_each(|n| self.see_node(&n.value)),
            Some(Batch::Changes(changes)) => {
                for change in changes {
                    if change.kind == ChangeKind::Deleted {
                        self.nodes.remove(&change.key.name);
                    } else {
                        self.see_node(&change.object.value);
                    }
                }
            }
            None => {}
        }
        let changed = std::mem::take(
            &mut self
                .control
                .wishes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .changed,
        );
        for node in changed {
            self.apply_health(&node);
            self.retry(&node);
        }
        if self.control.with_quietly(|w| std::mem::take(&mut w.retell)) {
            self.nodes.keys().for_each(|node| self.tell(node));
        }
        match self.pods.poll() {
            Some(Batch::Resync(all)) => {
                let live: BTreeSet<&str> = all.iter().map(|p| value::uid(&p.value)).collect();
                let gone: Vec<String> = self
                    .known
                    .keys()
                    .filter(|u| !live.contains(u.as_str()))
                    .cloned()
                    .collect();
                gone.iter().for_each(|uid| self.forget(uid));
                all.iter().for_each(|p| self.see_pod(p));
            }
            Some(Batch::Changes(changes)) => {
                for change in changes {
                    if change.kind == ChangeKind::Deleted {
                        self.forget(value::uid(&change.object.value));
                    } else {
                        self.see_pod(&change.object);
                    }
                }
            }
            None => {}
        }
    }

    fn see_node(&mut self, node: &Value) {
        let name = value::name(node).to_owned();
        self.nodes.entry(name.clone()).or_default().object = node.clone();
        self.apply_health(&name);
        self.retry(&name);
    }

    /// Looks again at the bound pods of a node that could not be served before.
    fn retry(&mut self, node: &str) {
        let waiting: Vec<Arc<Stored>> = self
            .known
            .values()
            .filter(|(n, _)| n == node)
            .map(|(_, p)| p.clone())
            .collect();
        waiting.iter().for_each(|p| self.see_pod(p));
    }

    fn is_silent(&self, node: &str) -> bool {
        self.control
            .wishes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .silent
            .contains(node)
    }

    fn see_pod(&mut self, stored: &Arc<Stored>) {
        let pod = &stored.value;
        let node = value::text(pod, &["spec", "nodeName"]).to_owned();
        if node.is_empty() {
            return;
        }
        let uid = value::uid(pod).to_owned();
        self.known
            .insert(uid.clone(), (node.clone(), Arc::clone(stored)));
        if !self.nodes.contains_key(&node) || self.is_silent(&node) {
            return;
        }
        let phase = value::text(pod, &["status", "phase"]).to_owned();
        if matches!(phase.as_str(), "Succeeded" | "Failed") {
            self.release(&uid, &node);
        }
        if value::at(pod, &["metadata", "deletionTimestamp"]).is_some() {
            let grace = value::int(pod, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
            let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
            self.plan(&uid, Step::Remove, self.config.stop_delay.min(grace));
            return;
        }
        let admitted = self
            .nodes
            .get(&node)
            .is_some_and(|n| n.admitted.contains_key(&uid));
        match phase.as_str() {
            "Pending" if !admitted => self.admit(&node, pod),
            "Running" if !admitted => {
                // A restarted kubelet takes the pods over that run already.
                let holders = self.pick(&node, pod).unwrap_or_default();
                self.keep(&node, pod, holders);
                self.plan_finish(pod);
            }
            _ => {}
        }
    }

    fn plan(&mut self, uid: &str, step: Step, after: Duration) {
        if !self.steps.iter().any(|(_, u, s)| u == uid && *s == step) {
            self.steps
                .insert((Instant::now() + after, uid.to_owned(), step));
        }
    }

    fn admit(&mut self, node: &str, pod: &Value) {
        let uid = value::uid(pod).to_owned();
        let holders = match self.pick(node, pod) {
            Ok(holders) => holders,
            Err((wanted, there)) => {
                let resource = &self.config.device_resource;
                let text = format!(
                    "Pod was rejected: Allocate failed due to requested number of devices unavailable for {resource}. Requested: {wanted}, Available: {there}, which is unexpected"
                );
                return self.reject(pod, "UnexpectedAdmissionError", &text);
            }
        };
        if let Some(resource) = self.short_of(node, pod) {
            let text = format!("Pod was rejected: Node didn't have enough resource: {resource}");
            return self.reject(pod, &format!("OutOf{resource}"), &text);
        }
        self.keep(node, pod, holders);
        self.plan(&uid, Step::Start, self.config.start_delay);
    }

    /// The resource that the node has too little of for the pod, devices aside.
    fn short_of(&self, node: &str, pod: &Value) -> Option<String> {
        let state = self.nodes.get(node)?;
        let allocatable = fit::allocatable(&state.object);
        let mut used = fit::requests(pod);
        state
            .admitted
            .values()
            .for_each(|a| fit::add(&mut used, &a.uses));
        used.into_iter()
            .filter(|(resource, _)| *resource != self.config.device_resource)
            .find(|(resource, amount)| allocatable.get(resource).is_some_and(|have| amount > have))
            .map(|(resource, _)| resource)
    }

    fn ids(&self, node: &str) -> Vec<String> {
        let named = self
            .control
            .wishes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ids
            .get(node)
            .cloned();
        named.unwrap_or_else(|| {
            let count = self.nodes.get(node).and_then(|n| {
                value::at(
                    &n.object,
                    &["status", "capacity", &self.config.device_resource],
                )
                .and_then(quantity::of_value)
            });
            let count = count.map_or(0, |c| c / 1000).clamp(0, 1024);
            (0..count).map(|i| format!("GPU-{node}-{i}")).collect()
        })
    }

    /// Device ids for each container, or how many are wanted and how many there are.
    fn pick(&self, node: &str, pod: &Value) -> Result<Vec<Holder>, (usize, usize)> {
        let Some(state) = self.nodes.get(node) else {
            return Ok(Vec::new());
        };
        let resource = &self.config.device_resource;
        let unhealthy = self
            .control
            .wishes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .unhealthy
            .get(node)
            .cloned()
            .unwrap_or_default();
        let held: BTreeSet<&String> = state
            .admitted
            .values()
            .flat_map(|a| &a.holders)
            .flat_map(|h| &h.devices)
            .collect();
        let mut free: Vec<String> = self
            .ids(node)
            .into_iter()
            .filter(|id| !unhealthy.contains(id) && !held.contains(id))
            .collect();
        free.reverse();
        let mut holders = Vec::new();
        for container in value::items(pod, &["spec", "containers"]) {
            let wanted = value::at(container, &["resources", "limits", resource])
                .and_then(quantity::of_value);
            let wanted = usize::try_from(wanted.unwrap_or(0) / 1000).unwrap_or(0);
            if wanted == 0 {
                continue;
            }
            if wanted > free.len() {
                return Err((wanted, free.len()));
            }
            let devices = (0..wanted).filter_map(|_| free.pop()).collect();
            holders.push(Holder {
                namespace: value::namespace(pod).into(),
                name: value::name(pod).into(),
                uid: value::uid(pod).into(),
                container: value::text(container, &["name"]).into(),
                devices,
            });
        }
        Ok(holders)
    }

    fn keep(&mut self, node: &str, pod: &Value, holders: Vec<Holder>) {
        let admitted = Admitted {
            uses: fit::requests(pod),
            holders,
        };
        if let Some(state) = self.nodes.get_mut(node) {
            state.admitted.insert(value::uid(pod).to_owned(), admitted);
        }
        self.tell(node);
    }

    fn release(&mut self, uid: &str, node: &str) {
        let gone = self
            .nodes
            .get_mut(node)
            .and_then(|n| n.admitted.remove(uid));
        if gone.is_some_and(|g| !g.holders.is_empty()) {
            self.tell(node);
        }
    }

    fn tell(&self, node: &str) {
        let Some(state) = self.nodes.get(node) else {
            return;
        };
        let later = self.control.with_quietly(|w| w.on_holders.clone());
        let mut callbacks = self.config.on_holders.iter().chain(&later).peekable();
        if callbacks.peek().is_some() {
            let admitted = state.admitted.values();
            let holders: Vec<Holder> = admitted.flat_map(|a| a.holders.clone()).collect();
            callbacks.for_each(|callback| callback(node, &holders));
        }
    }

    fn forget(&mut self, uid: &str) {
        if let Some((node, _)) = self.known.remove(uid) {
            self.release(uid, &node);
        }
        self.steps.retain(|(_, u, _)| u != uid);
    }

    /// Lowers the node's allocatable by the unhealthy devices.
    fn apply_health(&self, node: &str) {
        let Some(state) = self
            .nodes
            .get(node)
            .filter(|_| self.config.allocatable_follows_health)
        else {
            return;
        };
        let resource = self.config.device_resource.clone();
        let unhealthy = self
            .control
            .wishes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .unhealthy
            .get(node)
            .cloned();
        let Some(unhealthy) = unhealthy else { return };
        let ids = self.ids(node);
        let healthy = ids
            .iter()
            .filter(|id| !unhealthy.contains(*id))
            .count()
            .to_string();
        if value::text(&state.object, &["status", "allocatable", &resource]) == healthy {
            return;
        }
        let done = self.api.change(NODES, "", node, "status", |n| {
            value::set(n, &["status", "allocatable", &resource], healthy)
        });
        if let Err(error) = done {
            tracing::debug!(%error, node, "allocatable not written");
        }
    }

    fn reject(&self, pod: &Value, reason: &str, message: &str) {
        let now = self.api.server().clock().stamp();
        self.write_status(pod, |p| {
            value::set(p, &["status", "phase"], "Failed");
            value::set(p, &["status", "reason"], reason);
            value::set(p, &["status", "message"], message);
            value::set_default(p, &["status", "startTime"], now);
        });
        self.api.event(pod, "Warning", reason, message);
    }

    fn write_status(&self, pod: &Value, change: impl FnOnce(&mut Value)) {
        let uid = value::uid(pod).to_owned();
        let done = self.api.change(
            PODS,
            value::namespace(pod),
            value::name(pod),
            "status",
            |p| {
                if value::uid(p) == uid {
                    change(p);
                }
            },
        );
        if let Err(error) = done {
            tracing::debug!(%error, pod = value::name(pod), "status not written");
        }
    }

    fn step(&mut self, uid: &str, step: Step) {
        let Some((node, stored)) = self.known.get(uid).cloned() else {
            return;
        };
        let pod = &stored.value;
        if self.is_silent(&node) {
            // What was due while it stood still is done once it goes on.
            return self.plan(uid, step, SILENT_AGAIN);
        }
        let now = self.api.server().clock().stamp();
        match step {
            Step::Start => {
                self.write_status(pod, |p| set_running(p, &now));
                self.plan_finish(pod);
            }
            Step::Finish => {
                let code = value::text(pod, &["metadata", "annotations", EXIT_CODE])
                    .parse()
                    .unwrap_or(0);
                self.write_status(pod, |p| set_finished(p, code, &now));
                self.release(uid, &node);
            }
            Step::Remove => {
                self.release(uid, &node);
                let options = DeleteOptions {
                    grace_seconds: Some(0),
                    uid: Some(uid.to_owned()),
                    ..DeleteOptions::default()
                };
                if let Err(error) =
                    self.api
                        .delete(PODS, value::namespace(pod), value::name(pod), &options)
                {
                    tracing::debug!(%error, pod = value::name(pod), "pod not removed");
                }
            }
        }
    }

    fn plan_finish(&mut self, pod: &Value) {
        let seconds = value::text(pod, &["metadata", "annotations", RUN_SECONDS]).parse::<f64>();
        let time = seconds
            .ok()
            .and_then(|s| Duration::try_from_secs_f64(s).ok());
        if let Some(time) = time {
            self.plan(value::uid(pod), Step::Finish, time);
        }
    }
}

fn container_statuses(pod: &Value, ready: bool, state: &Value) -> Value {
    let list = value::items(pod, &["spec", "containers"]).iter();
    list.map(|c| {
        json!({"name": c.get("name"), "image": c.get("image"), "imageID": "", "ready": ready, "started": ready,
            "restartCount": 0, "state": state})
    })
    .collect()
}

fn set_running(pod: &mut Value, now: &str) {
    if value::text(pod, &["status", "phase"]) != "Pending" {
        return;
    }
    value::set(pod, &["status", "phase"], "Running");
    value::set(pod, &["status", "startTime"], now);
    value::set(pod, &["status", "podIP"], "10.1.0.1");
    let statuses = container_statuses(pod, true, &json!({"running": {"startedAt": now}}));
    value::set(pod, &["status", "containerStatuses"], statuses);
    for kind in ["Initialized", "ContainersReady", "Ready"] {
        value::set_condition(pod, json!({"type": kind, "status": "True"}), now);
    }
}

fn set_finished(pod: &mut Value, code: i64, now: &str) {
    if value::text(pod, &["status", "phase"]) != "Running" {
        return;
    }
    value::set(
        pod,
        &["status", "phase"],
        if code == 0 { "Succeeded" } else { "Failed" },
    );
    let reason = if code == 0 { "Completed" } else { "Error" };
    let state = json!({"terminated": {"exitCode": code, "reason": reason, "finishedAt": now}});
    let statuses = container_statuses(pod, false, &state);
    value::set(pod, &["status", "containerStatuses"], statuses);
    for kind in ["ContainersReady", "Ready"] {
        value::set_condition(
            pod,
            json!({"type": kind, "status": "False", "reason": "PodCompleted"}),
            now,
        );
    }
}
