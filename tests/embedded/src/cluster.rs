//! A whole cluster behind one handle.
//!
//! ```text
//! builder ─► start ─► ApiServer + garbage collector + kubelet + operator (+ schedulers, which may come later)
//!                        │ every task is owned here: `stop` ends and joins them
//! ```

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::faults::Faults;
use crate::api::patch::PatchKind;
use crate::api::selectors::Filter;
use crate::api::store::Stored;
use crate::api::{ApiError, ApiServer, Caller, DeleteOptions, Limits, Target};
use crate::clock::Clock;
use crate::serve::{ServeError, Served};
use crate::standins::kubelet::{Kubelet, KubeletConfig, KubeletControl};
use crate::standins::operator::{Operator, OperatorConfig};
use crate::standins::scheduler::{Scheduler, SchedulerConfig};
use crate::{value, yaml};

/// Nodes that are alike.
#[derive(Debug, Clone)]
pub struct NodePool {
    /// Names are `<prefix>-<number>`, from 0, with at least three digits.
    pub prefix: String,
    /// How many.
    pub count: usize,
    /// `nvidia.com/gpu` of each.
    pub gpus: u32,
    /// CPUs of each.
    pub cpus: u32,
    /// Memory of each, in GiB.
    pub memory_gib: u32,
    /// Pods of each.
    pub pods: u32,
    /// Labels, besides `kubernetes.io/hostname`.
    pub labels: Vec<(String, String)>,
    /// Taints as (key, value, effect).
    pub taints: Vec<(String, String, String)>,
}

impl NodePool {
    /// `count` nodes with `gpus` GPUs, 96 CPUs, 1 TiB and room for 110 pods; no taints.
    #[must_use]
    pub fn new(prefix: &str, count: usize, gpus: u32) -> Self {
        Self {
            prefix: prefix.into(),
            count,
            gpus,
            cpus: 96,
            memory_gib: 1024,
            pods: 110,
            labels: Vec::new(),
            taints: Vec::new(),
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, text: &str) -> Self {
        self.labels.push((key.into(), text.into()));
        self
    }

    /// Adds a taint.
    #[must_use]
    pub fn taint(mut self, key: &str, text: &str, effect: &str) -> Self {
        self.taints.push((key.into(), text.into(), effect.into()));
        self
    }

    fn node(&self, number: usize) -> Value {
        let name = format!("{}-{number:03}", self.prefix);
        let mut amounts = json!({"cpu": self.cpus.to_string(), "memory": format!("{}Gi", self.memory_gib),
            "pods": self.pods.to_string(), "ephemeral-storage": "100Gi"});
        if self.gpus > 0 {
            value::set(&mut amounts, &["nvidia.com/gpu"], self.gpus.to_string());
        }
        let mut node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
            "spec": {},
            "status": {"capacity": amounts, "allocatable": amounts,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status"}],
                "nodeInfo": {"kubeletVersion": "v1.37.2", "osImage": "embedded", "architecture": "amd64", "operatingSystem": "linux"}},
        });
        for (key, text) in &self.labels {
            value::set(&mut node, &["metadata", "labels", key], text.as_str());
        }
        for (key, text, effect) in &self.taints {
            value::list(&mut node, &["spec", "taints"])
                .push(json!({"key": key, "value": text, "effect": effect}));
        }
        node
    }
}

/// What a cluster is made of.
#[derive(Debug)]
pub struct Builder {
    seed: u64,
    wall_clock: bool,
    limits: Limits,
    pools: Vec<NodePool>,
    operator: Option<OperatorConfig>,
    kubelet: Option<KubeletConfig>,
    policies: bool,
}

impl Builder {
    /// The seed of every uid, generated name and shuffle; 0 without it.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Dates follow the machine's clock instead of starting at 2026-01-01: for clusters that people look at.
    #[must_use]
    pub fn wall_clock(mut self) -> Self {
        self.wall_clock = true;
        self
    }

    /// Sizes of the API server's memory.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Adds nodes.
    #[must_use]
    pub fn nodes(mut self, pool: NodePool) -> Self {
        self.pools.push(pool);
        self
    }

    /// How training-operator is run; `None` leaves it out.
    #[must_use]
    pub fn operator(mut self, config: Option<OperatorConfig>) -> Self {
        self.operator = config;
        self
    }

    /// How the kubelets behave; `None` leaves them out.
    #[must_use]
    pub fn kubelet(mut self, config: Option<KubeletConfig>) -> Self {
        self.kubelet = config;
        self
    }

    /// Installs the two admission policies of Muster: PyTorchJobs are suspended and other pods gated at creation.
    #[must_use]
    pub fn admission_policies(mut self) -> Self {
        self.policies = true;
        self
    }

    /// Starts the cluster; needs a tokio runtime around it.
    ///
    /// # Errors
    /// When the API server refuses what the cluster is made of, such as two pools with one prefix.
    pub fn start(self) -> Result<EmbeddedCluster, ApiError> {
        let clock = if self.wall_clock {
            Clock::wall()
        } else {
            Clock::fixed()
        };
        let api = ApiServer::new(clock, self.seed, self.limits);
        let cluster = EmbeddedCluster {
            kubelet: KubeletControl::default(),
            tasks: Mutex::new(Vec::new()),
            api,
        };
        if self.policies {
            cluster.install_policies()?;
        }
        for pool in &self.pools {
            cluster.add_nodes(pool)?;
        }
        let api = cluster.api.clone();
        cluster.own(|stop| async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = api.collect_garbage() => {}
            }
        });
        if let Some(config) = self.kubelet {
            let kubelet = Kubelet::new(&cluster.api, config, cluster.kubelet.clone())?;
            cluster.own(|stop| kubelet.run(stop));
        }
        if let Some(config) = self.operator {
            cluster.start_operator(config)?;
        }
        Ok(cluster)
    }
}

/// A stand-in that runs; it can be ended on its own, as by a crash.
#[derive(Debug, Clone)]
pub struct Running {
    stop: CancellationToken,
}

impl Running {
    /// Ends it; what it had in memory is lost.
    pub fn kill(&self) {
        self.stop.cancel();
    }
}

/// A wait that took too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} did not come true within {timeout:?}")]
pub struct NotInTime {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub timeout: Duration,
}

/// A running cluster.
#[derive(Debug)]
pub struct EmbeddedCluster {
    api: ApiServer,
    kubelet: KubeletControl,
    tasks: Mutex<Vec<(CancellationToken, JoinHandle<()>)>>,
}

impl EmbeddedCluster {
    /// A cluster with training-operator and kubelets, no nodes, and no scheduler yet.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            seed: 0,
            wall_clock: false,
            limits: Limits::default(),
            pools: Vec::new(),
            operator: Some(OperatorConfig::default()),
            kubelet: Some(KubeletConfig::default()),
            policies: false,
        }
    }

    /// The API server.
    #[must_use]
    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// A kube client in process, under the identity `client`.
    #[must_use]
    pub fn client(&self, client: &str) -> kube::Client {
        self.api.client(client)
    }

    /// The handle by which devices and kubelets are broken.
    #[must_use]
    pub fn kubelet(&self) -> &KubeletControl {
        &self.kubelet
    }

    /// Puts faults in place.
    pub fn set_faults(&self, faults: std::sync::Arc<dyn Faults>) {
        self.api.set_faults(faults);
    }

    /// A token that proves to be the agent's pod on this node.
    #[must_use]
    pub fn mint_node_token(&self, node: &str) -> String {
        self.api.mint_node_token(node)
    }

    /// Serves the API on a loopback port (0: a free one).
    ///
    /// # Errors
    /// When the port is taken or the certificates cannot be made.
    pub async fn serve(&self, port: u16, tls: bool) -> Result<Served, ServeError> {
        self.api.serve(port, tls).await
    }

    fn own<F, T>(&self, start: F) -> Running
    where
        F: FnOnce(CancellationToken) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(start(stop.clone()));
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((stop.clone(), task));
        Running { stop }
    }

    /// Starts a kube-scheduler.
    ///
    /// # Errors
    /// When the API server serves no pods.
    pub fn start_scheduler(&self, config: SchedulerConfig) -> Result<Running, ApiError> {
        let scheduler = Scheduler::new(&self.api, config)?;
        Ok(self.own(|stop| scheduler.run(stop)))
    }

    /// Starts a training-operator: a second one after `Running::kill`, or the first one later.
    ///
    /// # Errors
    /// When the API server serves no PyTorchJobs.
    pub fn start_operator(&self, config: OperatorConfig) -> Result<Running, ApiError> {
        let operator = Operator::new(&self.api, config)?;
        Ok(self.own(|stop| operator.run(stop)))
    }

    /// Ends every task and waits for all of them.
    pub async fn stop(self) {
        self.api.shutdown();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for (stop, _) in &tasks {
            stop.cancel();
        }
        self.api.join_late().await;
        for (_, task) in tasks {
            if let Err(error) = task.await {
                tracing::warn!(%error, "a task of the cluster failed");
            }
        }
    }

    /// Adds the nodes of a pool.
    ///
    /// # Errors
    /// 409 when a name is taken.
    pub fn add_nodes(&self, pool: &NodePool) -> Result<(), ApiError> {
        for number in 0..pool.count {
            self.create(pool.node(number))?;
        }
        Ok(())
    }

    fn install_policies(&self) -> Result<(), ApiError> {
        for (name, mutator) in [
            ("muster-hold-pytorchjobs", "suspend-pytorchjobs"),
            ("muster-show-queued", "show-queued"),
            ("muster-gate-pods", "gate-pods"),
        ] {
            let label = crate::api::admission::EMULATE_LABEL;
            self.create(json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicy",
                "metadata": {"name": name, "labels": {label: mutator}}, "spec": {}}))?;
            self.create(json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingAdmissionPolicyBinding",
                "metadata": {"name": name}, "spec": {"policyName": name}}))?;
        }
        Ok(())
    }

    /// The target of an object by its apiVersion and kind.
    fn target_of(&self, object: &Value) -> Result<Target, ApiError> {
        let api_version = value::text(object, &["apiVersion"]);
        let kind = value::text(object, &["kind"]);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let found = {
            let store = self.api.store();
            let mut types = store.tables.iter().filter(|t| t.served).map(|t| &t.ty);
            types
                .find(|t| t.group == group && t.kind == kind)
                .map(|t| (t.plural.clone(), t.namespaced))
        };
        let (plural, namespaced) = found.ok_or_else(|| {
            ApiError::new(
                404,
                "NotFound",
                format!("no matches for kind {kind:?} in version {api_version:?}"),
            )
        })?;
        let namespace = match (namespaced, value::namespace(object)) {
            (false, _) => "",
            (true, "") => "default",
            (true, given) => given,
        };
        let mut target = self
            .api
            .target(group, &plural, namespace, value::name(object))?;
        target.version = version.into();
        Ok(target)
    }

    /// Creates an object given with apiVersion and kind; without a namespace it goes into `default`.
    ///
    /// # Errors
    /// What the API server refuses.
    pub fn create(&self, object: Value) -> Result<Value, ApiError> {
        let mut target = self.target_of(&object)?;
        target.name.clear();
        let stored = self.api.create(&Caller::new("user"), &target, object)?;
        Ok(stored.value.clone())
    }

    /// Applies every document of a YAML text, as `kubectl apply --server-side` does.
    ///
    /// # Errors
    /// 400 for text that is no YAML, and what the API server refuses.
    pub fn apply_yaml(&self, text: &str) -> Result<Vec<Value>, ApiError> {
        let documents =
            yaml::all(text).map_err(|e| ApiError::bad_request(format!("not YAML: {e}")))?;
        let mut caller = Caller::new("user");
        caller.manager = "user".into();
        let mut applied = Vec::new();
        for document in documents {
            let target = self.target_of(&document)?;
            let (stored, _) = self
                .api
                .patch(&caller, &target, PatchKind::Apply, &document)?;
            applied.push(stored.value.clone());
        }
        Ok(applied)
    }

    /// Applies a merge patch to an object, or to its `subresource`.
    ///
    /// # Errors
    /// What the API server refuses.
    pub fn patch(
        &self,
        kind: (&str, &str),
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Value,
    ) -> Result<Value, ApiError> {
        let mut target = self.api.target(kind.0, kind.1, namespace, name)?;
        target.subresource = subresource.into();
        let (stored, _) = self
            .api
            .patch(&Caller::new("user"), &target, PatchKind::Merge, patch)?;
        Ok(stored.value.clone())
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// What the API server refuses.
    pub fn delete(&self, kind: (&str, &str), namespace: &str, name: &str) -> Result<(), ApiError> {
        let target = self.api.target(kind.0, kind.1, namespace, name)?;
        self.api
            .delete(&Caller::new("user"), &target, &DeleteOptions::default())
            .map(|_| ())
    }

    /// One object; `kind` is group and plural.
    #[must_use]
    pub fn get(&self, kind: (&str, &str), namespace: &str, name: &str) -> Option<Value> {
        let target = self.api.target(kind.0, kind.1, namespace, name).ok()?;
        self.api.get(&target).ok().map(|o| o.value.clone())
    }

    /// All objects of a kind.
    #[must_use]
    pub fn list(&self, kind: (&str, &str)) -> Vec<Value> {
        let found = self.look(kind);
        found.iter().map(|o| o.value.clone()).collect()
    }

    /// All objects of a kind as the store has them: nothing is copied.
    #[must_use]
    pub fn look(&self, kind: (&str, &str)) -> Vec<Arc<Stored>> {
        let found = self
            .api
            .target(kind.0, kind.1, "", "")
            .and_then(|t| self.api.list(&t, &Filter::default()));
        found.map(|(objects, _)| objects).unwrap_or_default()
    }

    /// Sets a node ready or not, with the taint that the node controller would put on it.
    ///
    /// # Errors
    /// 404 when there is no such node.
    pub fn set_node_ready(&self, name: &str, ready: bool) -> Result<(), ApiError> {
        const KEY: &str = "node.kubernetes.io/not-ready";
        let caller = Caller::new("node-controller");
        let mut target = self.api.target("", "nodes", "", name)?;
        let now = self.api.clock().stamp();
        target.subresource = "status".into();
        self.api.modify(&caller, &target, "patch", |old| {
            let mut new = old.clone();
            let (status, reason) = if ready {
                ("True", "KubeletReady")
            } else {
                ("Unknown", "NodeStatusUnknown")
            };
            value::set_condition(
                &mut new,
                json!({"type": "Ready", "status": status, "reason": reason}),
                &now,
            );
            Ok(new)
        })?;
        target.subresource.clear();
        self.api.modify(&caller, &target, "patch", |old| {
            let mut new = old.clone();
            let taints = value::list(&mut new, &["spec", "taints"]);
            taints.retain(|t| value::text(t, &["key"]) != KEY);
            if !ready {
                taints.push(json!({"key": KEY, "effect": "NoSchedule"}));
                taints.push(json!({"key": KEY, "effect": "NoExecute"}));
            }
            Ok(new)
        })?;
        Ok(())
    }

    /// Waits until `holds` is true; it is asked after every write.
    ///
    /// # Errors
    /// `NotInTime` after `timeout`.
    pub async fn wait_for(
        &self,
        what: &str,
        timeout: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Result<(), NotInTime> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut signal = self.api.store().subscribe();
        loop {
            signal.mark_seen();
            if holds(self) {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = signal.changed() => {}
                () = tokio::time::sleep_until(deadline) => {
                    return Err(NotInTime { what: what.to_owned(), timeout });
                }
            }
        }
    }
}

/// Runs `scenario` on the paused clock in one thread: timers pass at once, and equal seeds give equal logs.
///
/// # Errors
/// When the runtime cannot be made.
pub fn run_paused<T>(scenario: impl Future<Output = T>) -> std::io::Result<T> {
    // Without sockets: asking the kernel for them at each turn costs a tenth of the time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    Ok(runtime.block_on(scenario))
}
