//! Nodes, what their agents say, and who holds room on them, as the file has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::ids::{GangKey, NodeName};
use muster_core::inventory as devices;
use muster_core::ledger::{Holder, Holding, SlotKey};
use muster_core::links::Links;
use muster_core::node as core;
use muster_core::state::{BeliefState, NodeState, State};
use muster_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::shape::{Resources, Shapes, Taint};
use super::{Words, is_default, text, texts, word, words};
use crate::error::Error;

/// A node. Without `object` it does not exist any more.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    object: Option<Object>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent: Option<Agent>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pods: Vec<Pod>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reserved: Vec<Reserved>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Object {
    uid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
    ready: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    unschedulable: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    terminating: bool,
    allocatable: Resources,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    taints: Vec<Taint>,
    labels: Words,
}

/// What the node's agent said last.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Agent {
    heard_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node_uid: Option<String>,
    boot: String,
    instance: u64,
    generation: u64,
    sampler_ok: bool,
    holders_known: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fabric_clique: Option<String>,
    /// How far apart its GPUs are, a row for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    links: Vec<Vec<u8>>,
    devices: Vec<Device>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Device {
    uuid: String,
    resource: String,
    index: u32,
    health: Health,
    #[serde(default, skip_serializing_if = "is_default")]
    leaked: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    holders: Vec<PodName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    numa: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

/// Health; what is not healthy has a cause.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Health {
    Healthy,
    Suspect(String),
    Unhealthy(String),
    Lost(String),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PodName {
    namespace: String,
    name: String,
}

/// A pod that is bound to the node.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
    shape: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    devices: Vec<String>,
}

/// A place of a plan, or what is left of one.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Reserved {
    namespace: String,
    gang_uid: String,
    role: String,
    index: u32,
    shape: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    devices: Vec<String>,
}

impl Node {
    pub fn of(state: &NodeState, shapes: &Shapes) -> Self {
        let NodeState {
            name,
            node,
            belief,
            holdings,
        } = state;
        let (mut pods, mut reserved) = (Vec::new(), Vec::new());
        for holding in holdings {
            let Holding {
                holder,
                shape,
                devices,
            } = holding;
            let devices = devices
                .iter()
                .map(|uuid| uuid.as_str().to_owned())
                .collect();
            let shape = shapes.position(shape);
            match holder {
                Holder::Pod {
                    uid,
                    namespace,
                    name,
                } => pods.push(Pod {
                    namespace: namespace.as_str().to_owned(),
                    name: word(name),
                    uid: uid.as_str().to_owned(),
                    shape,
                    devices,
                }),
                Holder::Slot(SlotKey { gang, role, index }) => reserved.push(Reserved {
                    namespace: gang.namespace.as_str().to_owned(),
                    gang_uid: word(&gang.uid),
                    role: role.as_str().to_owned(),
                    index: *index,
                    shape,
                    devices,
                }),
            }
        }
        Self {
            name: name.as_str().to_owned(),
            object: node.as_ref().map(|node| Object::of(node)),
            agent: belief.as_ref().map(Agent::of),
            pods,
            reserved,
        }
    }

    pub fn read(self, path: &str, shapes: &Shapes) -> Result<NodeState, Error> {
        let name = NodeName::from(self.name);
        let object = self.object.map(|object| object.read(path, &name));
        let agent = self.agent.map(|agent| agent.read(path, &name));
        let mut holdings = Vec::new();
        for (at, pod) in self.pods.into_iter().enumerate() {
            holdings.push(Holding {
                shape: shapes.get(&format!("{path}.pods[{at}].shape"), pod.shape)?,
                devices: ids(pod.devices),
                holder: Holder::Pod {
                    uid: pod.uid.into(),
                    namespace: pod.namespace.into(),
                    name: text(pod.name),
                },
            });
        }
        for (at, slot) in self.reserved.into_iter().enumerate() {
            holdings.push(Holding {
                shape: shapes.get(&format!("{path}.reserved[{at}].shape"), slot.shape)?,
                devices: ids(slot.devices),
                holder: Holder::Slot(SlotKey {
                    gang: GangKey::new(&slot.namespace, &slot.gang_uid),
                    role: slot.role.into(),
                    index: slot.index,
                }),
            });
        }
        Ok(NodeState {
            node: object.transpose()?.map(Arc::new),
            belief: agent.transpose()?,
            holdings,
            name,
        })
    }
}

fn ids<T: From<String>>(words: Vec<String>) -> Vec<T> {
    words.into_iter().map(T::from).collect()
}

impl Object {
    fn of(node: &core::Node) -> Self {
        let core::Node {
            name: _,
            uid,
            boot_id,
            labels,
            taints,
            unschedulable,
            ready,
            terminating,
            allocatable,
        } = node;
        Self {
            uid: word(uid),
            boot_id: boot_id.as_ref().map(word),
            ready: *ready,
            unschedulable: *unschedulable,
            terminating: *terminating,
            allocatable: Resources::of(allocatable),
            taints: taints.iter().map(Taint::of).collect(),
            labels: words(labels),
        }
    }

    fn read(self, path: &str, name: &NodeName) -> Result<core::Node, Error> {
        Ok(core::Node {
            name: name.clone(),
            uid: text(self.uid),
            boot_id: self.boot_id.map(text),
            labels: texts(self.labels),
            taints: self.taints.into_iter().map(Taint::read).collect(),
            unschedulable: self.unschedulable,
            ready: self.ready,
            terminating: self.terminating,
            allocatable: self
                .allocatable
                .read(&format!("{path}.object.allocatable"))?,
        })
    }
}

impl Agent {
    fn of(belief: &BeliefState) -> Self {
        let BeliefState {
            report,
            heard,
            node_uid,
        } = belief;
        let devices::NodeReport {
            node: _,
            order,
            sampler_ok,
            holders_known,
            devices,
            fabric_clique,
            links,
        } = report;
        let devices::ReportOrder {
            boot,
            instance,
            generation,
        } = order;
        Self {
            heard_ms: heard.0,
            node_uid: node_uid.as_ref().map(word),
            boot: word(boot),
            instance: *instance,
            generation: *generation,
            sampler_ok: *sampler_ok,
            holders_known: *holders_known,
            fabric_clique: fabric_clique.as_ref().map(word),
            links: links.as_ref().map(Links::rows).unwrap_or_default(),
            devices: devices.iter().map(Device::of).collect(),
        }
    }

    fn read(self, path: &str, node: &NodeName) -> Result<BeliefState, Error> {
        let mut seen = BTreeSet::new();
        for (at, device) in self.devices.iter().enumerate() {
            if !seen.insert(device.uuid.as_str()) {
                let path = format!("{path}.agent.devices[{at}].uuid");
                let limit = "is the UUID of another device of the node too";
                return Err(Error::field(path, &device.uuid, limit));
            }
        }
        Ok(BeliefState {
            heard: Timestamp(self.heard_ms),
            node_uid: self.node_uid.map(text),
            report: devices::NodeReport {
                node: node.clone(),
                order: devices::ReportOrder {
                    boot: text(self.boot),
                    instance: self.instance,
                    generation: self.generation,
                },
                sampler_ok: self.sampler_ok,
                holders_known: self.holders_known,
                devices: self.devices.into_iter().map(Device::read).collect(),
                fabric_clique: self.fabric_clique.map(text),
                links: Links::of(&self.links),
            },
        })
    }
}

impl Device {
    fn of(device: &devices::Device) -> Self {
        let devices::Device {
            uuid,
            resource,
            health,
            leaked,
            holders,
            model,
            index,
            numa,
            parent,
            memory_bytes,
        } = device;
        let name = |(namespace, name): &(muster_core::ids::Namespace, _)| PodName {
            namespace: namespace.as_str().to_owned(),
            name: word(name),
        };
        Self {
            uuid: uuid.as_str().to_owned(),
            resource: resource.as_str().to_owned(),
            index: *index,
            health: match health {
                devices::DeviceHealth::Healthy => Health::Healthy,
                devices::DeviceHealth::Suspect(cause) => Health::Suspect(word(cause)),
                devices::DeviceHealth::Unhealthy(cause) => Health::Unhealthy(word(cause)),
                devices::DeviceHealth::Lost(cause) => Health::Lost(word(cause)),
            },
            leaked: *leaked,
            holders: holders.iter().map(name).collect(),
            numa: *numa,
            parent: parent.as_ref().map(|uuid| uuid.as_str().to_owned()),
            memory_bytes: *memory_bytes,
            model: model.as_ref().map(word),
        }
    }

    fn read(self) -> devices::Device {
        let holders = self.holders.into_iter();
        devices::Device {
            uuid: self.uuid.into(),
            resource: self.resource.into(),
            health: match self.health {
                Health::Healthy => devices::DeviceHealth::Healthy,
                Health::Suspect(cause) => devices::DeviceHealth::Suspect(text(cause)),
                Health::Unhealthy(cause) => devices::DeviceHealth::Unhealthy(text(cause)),
                Health::Lost(cause) => devices::DeviceHealth::Lost(text(cause)),
            },
            leaked: self.leaked,
            holders: holders
                .map(|pod| (pod.namespace.into(), text(pod.name)))
                .collect(),
            model: self.model.map(text),
            index: self.index,
            numa: self.numa,
            parent: self.parent.map(Into::into),
            memory_bytes: self.memory_bytes,
        }
    }
}

/// Refuses what two nodes cannot have at the same time.
pub(super) fn check(state: &State) -> Result<(), Error> {
    let mut names = BTreeMap::new();
    let mut holders = BTreeMap::new();
    let now = state.at;
    for (at, state) in state.nodes.iter().enumerate() {
        let heard = state.belief.as_ref().map(|belief| belief.heard);
        if let Some(heard) = heard.filter(|heard| *heard > now) {
            let limit = format!("must be at most at_ms, {}", now.0);
            let path = format!("nodes[{at}].agent.heard_ms");
            return Err(Error::field(path, heard.0, limit));
        }
        if let Some(other) = names.insert(&state.name, at) {
            let limit = format!("is the name of nodes[{other}] too");
            return Err(Error::field(
                format!("nodes[{at}].name"),
                &state.name,
                limit,
            ));
        }
        for holding in &state.holdings {
            if let Some(other) = holders.insert(one(&holding.holder), &state.name) {
                let (what, who) = named(&holding.holder);
                let limit = format!("holds room on node {other} too");
                return Err(Error::field(format!("nodes[{at}].{what}"), who, limit));
            }
        }
    }
    Ok(())
}

/// What tells a holder from all others.
fn one(holder: &Holder) -> (Option<&str>, Option<&SlotKey>) {
    match holder {
        Holder::Pod { uid, .. } => (Some(uid.as_str()), None),
        Holder::Slot(slot) => (None, Some(slot)),
    }
}

fn named(holder: &Holder) -> (&'static str, String) {
    match holder {
        Holder::Pod {
            namespace, name, ..
        } => ("pods", format!("{namespace}/{name}")),
        Holder::Slot(SlotKey { gang, role, index }) => {
            ("reserved", format!("{gang} {role} {index}"))
        }
    }
}
