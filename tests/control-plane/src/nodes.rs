//! Fake nodes: Node objects with a finished status, kept alive by KWOK.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{
    Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::cluster::Cluster;
use crate::error::{Error, Result};

/// The resource name of NVIDIA GPUs.
pub const NVIDIA_GPU: &str = "nvidia.com/gpu";
/// Label on every node that a template made; its value is the template's prefix.
pub const NODE_SET_LABEL: &str = "muster.dev/node-set";
/// Most nodes one template makes: far above what one machine carries.
const COUNT_MAX: u32 = 100_000;
/// Node requests in flight.
const PARALLEL: usize = 32;
/// Longest wait for all nodes of a template, on top of 20 ms per node.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A number of equal nodes, named `<prefix>-0`, `<prefix>-1` and so on.
#[derive(Clone, Debug)]
pub struct NodeTemplate {
    /// How many nodes; at most 100,000.
    pub count: u32,
    /// Start of the names.
    pub prefix: String,
    /// Number in the first name, so that a pool can grow later.
    pub first: u32,
    /// Labels besides `kubernetes.io/hostname` and [`NODE_SET_LABEL`].
    pub labels: BTreeMap<String, String>,
    /// Taints as `(key, value, effect)`.
    pub taints: Vec<(String, String, String)>,
    /// GPUs per node; 0 leaves the resource out.
    pub gpus: u32,
    /// The extended resource that counts the GPUs.
    pub gpu_resource: String,
    /// Further extended resources, such as `vpc.amazonaws.com/efa`.
    pub extra_resources: BTreeMap<String, String>,
    /// Cores as a Kubernetes quantity.
    pub cpu: String,
    /// Memory as a Kubernetes quantity.
    pub memory: String,
    /// Most pods.
    pub pods: u32,
}

impl NodeTemplate {
    /// A pool of GPU nodes: 8 `nvidia.com/gpu`, 96 cores, 1 TiB, tainted `nvidia.com/gpu=present:NoSchedule` and labelled
    /// `nvidia.com/gpu.present=true`, as GPU pools usually are.
    pub fn gpu_pool(prefix: &str, count: u32) -> Self {
        NodeTemplate {
            labels: [("nvidia.com/gpu.present".to_owned(), "true".to_owned())].into(),
            taints: vec![(NVIDIA_GPU.into(), "present".into(), "NoSchedule".into())],
            gpus: 8,
            cpu: "96".into(),
            memory: "1Ti".into(),
            ..NodeTemplate::cpu_pool(prefix, count)
        }
    }

    /// A pool of nodes without GPUs and taints: 32 cores, 128 GiB, 110 pods.
    pub fn cpu_pool(prefix: &str, count: u32) -> Self {
        NodeTemplate {
            count,
            prefix: prefix.to_owned(),
            first: 0,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            gpus: 0,
            gpu_resource: NVIDIA_GPU.into(),
            extra_resources: BTreeMap::new(),
            cpu: "32".into(),
            memory: "128Gi".into(),
            pods: 110,
        }
    }

    /// The nodes' names, in order.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (self.first..self.first.saturating_add(self.count))
            .map(|index| format!("{}-{index}", self.prefix))
    }

    fn capacity(&self) -> BTreeMap<String, Quantity> {
        let mut capacity: BTreeMap<String, Quantity> = [
            ("cpu", self.cpu.clone()),
            ("memory", self.memory.clone()),
            ("pods", self.pods.to_string()),
            ("ephemeral-storage", "1Ti".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Quantity(value)))
        .collect();
        if self.gpus > 0 {
            capacity.insert(self.gpu_resource.clone(), Quantity(self.gpus.to_string()));
        }
        for (name, value) in &self.extra_resources {
            capacity.insert(name.clone(), Quantity(value.clone()));
        }
        capacity
    }

    fn taints(&self) -> Vec<Taint> {
        self.taints
            .iter()
            .map(|(key, value, effect)| Taint {
                key: key.clone(),
                value: Some(value.clone()),
                effect: effect.clone(),
                time_added: None,
            })
            .collect()
    }

    /// The Node as a kubelet registers it: with its whole status, Ready already.
    fn node(&self, name: &str) -> Node {
        let mut labels = self.labels.clone();
        labels.insert("kubernetes.io/hostname".into(), name.to_owned());
        labels.insert("kubernetes.io/os".into(), "linux".into());
        labels.insert("kubernetes.io/arch".into(), "amd64".into());
        labels.insert(NODE_SET_LABEL.into(), self.prefix.clone());
        Node {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: Some(self.taints()),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                allocatable: Some(self.capacity()),
                capacity: Some(self.capacity()),
                conditions: Some(vec![ready_condition(true)]),
                addresses: Some(vec![NodeAddress {
                    type_: "Hostname".into(),
                    address: name.to_owned(),
                }]),
                node_info: Some(NodeSystemInfo {
                    architecture: "amd64".into(),
                    operating_system: "linux".into(),
                    kubelet_version: "v1.37.2".into(),
                    // Not told: the fake agents' depend on the Node's UID, which is not known yet.
                    boot_id: String::new(),
                    ..NodeSystemInfo::default()
                }),
                ..NodeStatus::default()
            }),
        }
    }
}

fn ready_condition(ready: bool) -> NodeCondition {
    let now = Some(Time(jiff::Timestamp::now()));
    NodeCondition {
        type_: "Ready".into(),
        status: if ready { "True" } else { "False" }.into(),
        reason: Some(
            if ready {
                "KubeletReady"
            } else {
                "KubeletNotReady"
            }
            .into(),
        ),
        message: Some("set by the test cluster".into()),
        last_heartbeat_time: now.clone(),
        last_transition_time: now,
    }
}

impl Cluster {
    /// Creates nodes, 32 requests at a time, and waits until each is Ready and free of the taint that the API server puts on new ones.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a template with more than 100,000 nodes, [`Error::Api`] when the server refuses one (a name that exists,
    /// a quantity it can't read), [`Error::Timeout`] when they don't become Ready within 60 s and 20 ms per node.
    pub async fn add_nodes(&self, template: &NodeTemplate) -> Result<()> {
        if template.count > COUNT_MAX {
            return Err(Error::Invalid {
                field: "count of nodes".into(),
                value: template.count.to_string(),
                limit: format!("0 to {COUNT_MAX}"),
            });
        }
        let nodes: Api<Node> = Api::all(self.admin());
        // The server marks every new node not-ready; only a later write can take that off. A controller does it one by one, so the
        // template's own taints are written here at once.
        let taints = json!({ "spec": { "taints": template.taints() } });
        futures::stream::iter(template.names())
            .map(|name| {
                let nodes = nodes.clone();
                let taints = &taints;
                async move {
                    let node = template.node(&name);
                    nodes
                        .create(&PostParams::default(), &node)
                        .await
                        .map_err(Error::api(format!("create node {name}")))?;
                    nodes
                        .patch(&name, &PatchParams::default(), &Patch::Merge(taints))
                        .await
                        .map_err(Error::api(format!("set the taints of node {name}")))
                }
            })
            .buffer_unordered(PARALLEL)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        self.wait_for_nodes(template).await
    }

    async fn wait_for_nodes(&self, template: &NodeTemplate) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.admin());
        let selector = format!("{NODE_SET_LABEL}={}", template.prefix);
        let count = usize::try_from(template.count).unwrap_or(usize::MAX);
        let timeout = READY_TIMEOUT + Duration::from_millis(20).saturating_mul(template.count);
        let since = Instant::now();
        loop {
            let list = nodes
                .list(&ListParams::default().labels(&selector))
                .await
                .map_err(Error::api(format!("list nodes {selector}")))?;
            let usable = list.items.iter().filter(|node| is_usable(node)).count();
            if usable >= count {
                return Ok(());
            }
            if since.elapsed() > timeout {
                return Err(Error::Timeout {
                    what: format!("{count} nodes {} Ready", template.prefix),
                    waited: timeout,
                    detail: format!("{usable} are"),
                });
            }
            // A list costs the server about a millisecond per ten nodes: look less often at more nodes.
            tokio::time::sleep(
                Duration::from_millis(50)
                    .saturating_add(Duration::from_millis(1).saturating_mul(template.count / 4)),
            )
            .await;
        }
    }

    /// Sets a node's Ready condition, as kubelet or the node controller does; it stays so until set again.
    pub async fn set_node_ready(&self, name: &str, ready: bool) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.admin());
        let patch = json!({ "status": { "conditions": [ready_condition(ready)] } });
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .map_err(Error::api(format!(
                "set the Ready condition of node {name}"
            )))?;
        Ok(())
    }

    /// Sets how much of a resource a node offers (capacity and allocatable), as a device plugin does when a GPU fails.
    pub async fn set_node_resource(&self, name: &str, resource: &str, amount: &str) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.admin());
        let patch = json!({ "status": { "capacity": { resource: amount }, "allocatable": { resource: amount } } });
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(Error::api(format!(
                "set {resource} of node {name} to {amount}"
            )))?;
        Ok(())
    }
}

fn is_usable(node: &Node) -> bool {
    let ready = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True")
        });
    let marked = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_ref())
        .is_some_and(|taints| {
            taints
                .iter()
                .any(|taint| taint.key == "node.kubernetes.io/not-ready")
        });
    ready && !marked
}
