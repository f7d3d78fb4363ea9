//! What the agents say: devices, their health, who holds them, and how old each belief is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ids::{DeviceUuid, Namespace, NodeName, ResourceName};
use crate::links::Links;
use crate::node::Node;
use crate::planted::{self, Bug};
use crate::time::{Millis, Timestamp};

/// Health of a device, as the agent's table judges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceHealth {
    /// May be given to new pods.
    Healthy,
    /// Not for new pods until it is clear what is wrong; running ones stay.
    Suspect(Arc<str>),
    /// Broken, with the cause as one stable word.
    Unhealthy(Arc<str>),
    /// The driver no longer reaches it.
    Lost(Arc<str>),
}

/// One schedulable device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// GPU-... or MIG-...
    pub uuid: DeviceUuid,
    /// Resource under which the kubelet offers it.
    pub resource: ResourceName,
    /// Health.
    pub health: DeviceHealth,
    /// Memory in use or a process running, and no pod holds it.
    pub leaked: bool,
    /// Pods that hold it, by the kubelet: namespace and name.
    pub holders: Vec<(Namespace, Arc<str>)>,
    /// Product name, for example `NVIDIA H100 80GB HBM3`.
    pub model: Option<Arc<str>>,
    /// Index on the node, for order.
    pub index: u32,
    /// NUMA node of the device.
    pub numa: Option<u32>,
    /// GPU a MIG slice is part of.
    pub parent: Option<DeviceUuid>,
    /// Total memory, bytes.
    pub memory_bytes: Option<u64>,
}

impl Device {
    /// Whether it may be promised to a new pod, if nobody holds it.
    pub fn is_usable(&self) -> bool {
        self.is_well() && !self.leaked
    }

    /// Whether nothing is wrong with it.
    pub fn is_well(&self) -> bool {
        self.health == DeviceHealth::Healthy
    }
}

/// Order of reports of one node: a later instance replaces an earlier one, and an earlier one
/// replaces a later one that has fallen silent; within one instance the generation decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportOrder {
    /// Kernel boot id.
    pub boot: Arc<str>,
    /// Start of the agent's process, microseconds since the Unix epoch by the node's clock.
    pub instance: u64,
    /// Number of the state within the instance.
    pub generation: u64,
}

/// The full state of a node, as its agent says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// The node, as proven by the caller.
    pub node: NodeName,
    /// Place in the order.
    pub order: ReportOrder,
    /// The part of the agent that talks to NVML answers.
    pub sampler_ok: bool,
    /// The kubelet could be asked: `holders` and `leaked` are to be believed. Else they are what the
    /// agent remembers, which is nothing after its start.
    pub holders_known: bool,
    /// Every device.
    pub devices: Vec<Device>,
    /// Clique of the NVLink fabric that all its GPUs are in; `None` where there is none, or more than one.
    pub fabric_clique: Option<Arc<str>>,
    /// How near its GPUs are to each other; `None` where that makes no difference or is not known.
    pub links: Option<Links>,
}

/// Why a report is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportRefused {
    /// Not newer than what is held.
    Old,
    /// From an agent instance that has been replaced.
    Replaced,
}

/// What is believed about one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Belief {
    /// The last report taken, as it counts. While the kubelet cannot be asked, its devices are held and leaked as
    /// the kubelet said last; where a verdict is held back, they are as well as they were.
    pub report: NodeReport,
    /// The same as the agent says it, where a verdict of it is held back.
    told: Option<Box<NodeReport>>,
    /// When anything was last heard, a heartbeat included.
    pub heard: Timestamp,
    /// Devices that were held or leaked when the kubelet was last asked, while it cannot be. A device
    /// may leave the reports meanwhile and come back.
    remembered: BTreeMap<DeviceUuid, InUse>,
    /// `metadata.uid` of the Node that stood behind the name when it was last heard; `None` when none has yet.
    node_uid: Option<Arc<str>>,
}

/// What a Node object says of who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NodeIdentity {
    uid: Arc<str>,
    boot_id: Option<Arc<str>>,
}

/// How a device is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct InUse {
    leaked: bool,
    holders: Vec<(Namespace, Arc<str>)>,
}

impl Belief {
    /// `metadata.uid` of the Node that its agent spoke for; `None` when there was none.
    pub fn node_uid(&self) -> Option<&Arc<str>> {
        self.node_uid.as_ref()
    }

    /// The last report, as its agent says it.
    pub fn told(&self) -> &NodeReport {
        self.told.as_deref().unwrap_or(&self.report)
    }

    /// Its agent is there, and speaks for the Node that stands behind the name now.
    fn hear(&mut self, node: Option<&NodeIdentity>, now: Timestamp) {
        self.heard = self.heard.max(now);
        if let Some(node) = node {
            self.node_uid = Some(Arc::clone(&node.uid));
        }
    }

    /// Whether it is about this Node, and about its present boot.
    fn is_of(&self, node: &NodeIdentity) -> bool {
        let boot = &self.report.order.boot;
        self.node_uid.as_ref().is_none_or(|uid| *uid == node.uid)
            && node.boot_id.as_ref().is_none_or(|now| now == boot)
    }

    /// What is known of devices in use.
    fn in_use(&self) -> BTreeMap<DeviceUuid, InUse> {
        let mut found = self.remembered.clone();
        for device in &self.report.devices {
            if device.leaked || !device.holders.is_empty() {
                let in_use = InUse {
                    leaked: device.leaked,
                    holders: device.holders.clone(),
                };
                found.insert(device.uuid.clone(), in_use);
            }
        }
        found
    }
}

impl ReportOrder {
    /// Whether both are of one run of one agent.
    fn is_of_the_same(&self, other: &Self) -> bool {
        self.instance == other.instance && self.boot == other.boot
    }
}

impl NodeReport {
    /// This report with devices as well as they were `before`. One without any devices says nothing of them.
    fn counted_as(&self, before: &Self) -> Self {
        let mut counts = self.clone();
        counts.sampler_ok = before.sampler_ok;
        if self.devices.is_empty() {
            counts.devices.clone_from(&before.devices);
            counts.fabric_clique.clone_from(&before.fabric_clique);
            counts.links.clone_from(&before.links);
            return counts;
        }
        let well = before.devices.iter().filter(|device| device.is_well());
        let well: BTreeSet<&DeviceUuid> = well.map(|device| &device.uuid).collect();
        for device in &mut counts.devices {
            if well.contains(&device.uuid) {
                device.health = DeviceHealth::Healthy;
            }
        }
        counts
    }

    /// Keeps what was known to be in use so. That nobody says it now is no sign that it is free.
    fn remember(&mut self, known: &BTreeMap<DeviceUuid, InUse>) {
        for device in &mut self.devices {
            let Some(before) = known.get(&device.uuid) else {
                continue;
            };
            device.leaked |= before.leaked;
            if device.holders.is_empty() {
                device.holders.clone_from(&before.holders);
            }
        }
    }
}

/// Silence after which a report is taken although its instance is lower: the node's clock was set
/// back, or the one that spoke before had no right to. Who is alive is then believed.
const REPLACED_AFTER: Millis = Millis::from_secs(30);

/// All beliefs, by node.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    beliefs: BTreeMap<NodeName, Belief>,
    /// Nodes that exist.
    nodes: BTreeMap<NodeName, NodeIdentity>,
    /// The node that reports a UUID, as long as it is the only one.
    owners: BTreeMap<DeviceUuid, NodeName>,
    /// All nodes that report a UUID, once they are two or more; it is then not among the owners.
    cloned: BTreeMap<DeviceUuid, BTreeSet<NodeName>>,
}

impl Inventory {
    /// Whether a report is newer than what is held, or the same.
    pub fn admit(&self, report: &NodeReport, now: Timestamp) -> Result<(), ReportRefused> {
        let Some(belief) = self.beliefs.get(&report.node) else {
            return Ok(());
        };
        let held = &belief.report.order;
        let silent = now.since(belief.heard) > REPLACED_AFTER;
        if report.order.instance < held.instance && !silent {
            return Err(ReportRefused::Replaced);
        }
        let old = report.order.is_of_the_same(held) && report.order.generation < held.generation;
        if old && !planted::is(Bug::OldReportsCount) {
            return Err(ReportRefused::Old);
        }
        Ok(())
    }

    /// Takes a report if it is newer than what is held. The same generation again counts as heard
    /// and changes nothing. While the node's kubelet cannot be asked, devices stay held and leaked as
    /// they were.
    pub fn apply(&mut self, report: NodeReport, now: Timestamp) -> Result<bool, ReportRefused> {
        self.take(report, false, now)
    }

    /// The same, but devices that count as well go on to do so, whatever the report says of them.
    pub fn apply_held_back(
        &mut self,
        report: NodeReport,
        now: Timestamp,
    ) -> Result<bool, ReportRefused> {
        self.take(report, true, now)
    }

    fn take(
        &mut self,
        mut report: NodeReport,
        hold_back: bool,
        now: Timestamp,
    ) -> Result<bool, ReportRefused> {
        self.admit(&report, now)?;
        let mut remembered = BTreeMap::new();
        let mut told = None;
        if let Some(belief) = self.beliefs.get_mut(&report.node) {
            if !report.holders_known {
                remembered = belief.in_use();
                report.remember(&remembered);
            }
            let counts = hold_back.then(|| report.counted_as(&belief.report));
            if report.order.is_of_the_same(&belief.report.order)
                && *belief.told() == report
                && belief.report == *counts.as_ref().unwrap_or(&report)
            {
                belief.hear(self.nodes.get(&report.node), now);
                return Ok(false);
            }
            if let Some(counts) = counts {
                told = Some(Box::new(std::mem::replace(&mut report, counts)));
            }
        }
        self.forget_devices(&report.node);
        for device in &report.devices {
            self.claim(&device.uuid, &report.node);
        }
        let before = self.beliefs.get(&report.node);
        let mut belief = Belief {
            heard: now,
            remembered,
            // Between two Nodes of a name an agent speaks for the one that was.
            node_uid: before.and_then(|belief| belief.node_uid.clone()),
            report,
            told,
        };
        belief.hear(self.nodes.get(&belief.report.node), now);
        self.beliefs.insert(belief.report.node.clone(), belief);
        Ok(true)
    }

    /// Believes a report as it was believed before, for the Node with this uid. For a copy that is
    /// planned on: what the kubelet said of devices that the report lacks is not in it.
    pub fn believe(&mut self, report: NodeReport, heard: Timestamp, node_uid: Option<Arc<str>>) {
        self.forget_devices(&report.node);
        for device in &report.devices {
            self.claim(&device.uuid, &report.node);
        }
        let belief = Belief {
            heard,
            remembered: BTreeMap::new(),
            node_uid,
            report,
            told: None,
        };
        self.beliefs.insert(belief.report.node.clone(), belief);
    }

    /// Notes that `node` reports `uuid`.
    fn claim(&mut self, uuid: &DeviceUuid, node: &NodeName) {
        if let Some(nodes) = self.cloned.get_mut(uuid) {
            nodes.insert(node.clone());
            return;
        }
        match self.owners.get(uuid) {
            Some(owner) if owner != node => {
                let nodes = BTreeSet::from([owner.clone(), node.clone()]);
                self.owners.remove(uuid);
                self.cloned.insert(uuid.clone(), nodes);
            }
            Some(_) => {}
            None => {
                self.owners.insert(uuid.clone(), node.clone());
            }
        }
    }

    fn forget_devices(&mut self, node: &NodeName) {
        let Some(belief) = self.beliefs.get(node) else {
            return;
        };
        for device in &belief.report.devices {
            if self.owners.get(&device.uuid) == Some(node) {
                self.owners.remove(&device.uuid);
            }
            let Some(nodes) = self.cloned.get_mut(&device.uuid) else {
                continue;
            };
            nodes.remove(node);
            if nodes.len() > 1 {
                continue;
            }
            // One is left: it is believed again.
            let last = nodes.pop_first();
            self.cloned.remove(&device.uuid);
            if let Some(last) = last {
                self.owners.insert(device.uuid.clone(), last);
            }
        }
    }

    /// Notes that the agent of `node` is there and still at `order`. Returns whether that is so.
    pub fn hear(
        &mut self,
        node: &NodeName,
        order: &ReportOrder,
        sampler_ok: bool,
        now: Timestamp,
    ) -> bool {
        match self.beliefs.get_mut(node) {
            Some(belief) if belief.report.order == *order => {
                belief.hear(self.nodes.get(node), now);
                match &mut belief.told {
                    Some(told) => told.sampler_ok = sampler_ok,
                    None => belief.report.sampler_ok = sampler_ok,
                }
                true
            }
            _ => false,
        }
    }

    /// The same, but devices count as they do, whatever follows for them from the sampler's state.
    pub fn hear_held_back(
        &mut self,
        node: &NodeName,
        order: &ReportOrder,
        sampler_ok: bool,
        now: Timestamp,
    ) -> bool {
        match self.beliefs.get_mut(node) {
            Some(belief) if belief.report.order == *order => {
                belief.hear(self.nodes.get(node), now);
                let mut told = belief.told().clone();
                told.sampler_ok = sampler_ok;
                belief.told = Some(Box::new(told));
                true
            }
            _ => false,
        }
    }

    /// Devices that count as well, and that this report says something else of. None of a node that nothing is known
    /// of yet.
    pub fn turned_bad(&self, report: &NodeReport) -> BTreeSet<DeviceUuid> {
        let Some(belief) = self.beliefs.get(&report.node) else {
            return BTreeSet::new();
        };
        if !belief.report.sampler_ok {
            return BTreeSet::new();
        }
        let well = belief
            .report
            .devices
            .iter()
            .filter(|device| device.is_well());
        if !report.sampler_ok || report.devices.is_empty() {
            return well.map(|device| device.uuid.clone()).collect();
        }
        let well: BTreeSet<&DeviceUuid> = well.map(|device| &device.uuid).collect();
        let bad = report.devices.iter().filter(|device| !device.is_well());
        bad.map(|device| &device.uuid)
            .filter(|uuid| well.contains(uuid))
            .cloned()
            .collect()
    }

    /// Nodes on which a verdict is held back.
    pub fn held_back(&self) -> impl Iterator<Item = &NodeName> {
        let held_back = self.beliefs.iter();
        held_back
            .filter(|(_, belief)| belief.told.is_some())
            .map(|(name, _)| name)
    }

    /// Takes a node's agent at its word from now on. Returns whether that was held back.
    pub fn believe_told(&mut self, node: &NodeName) -> bool {
        let Some(told) = self
            .beliefs
            .get_mut(node)
            .and_then(|belief| belief.told.take())
        else {
            return false;
        };
        self.forget_devices(node);
        for device in &told.devices {
            self.claim(&device.uuid, node);
        }
        if let Some(belief) = self.beliefs.get_mut(node) {
            belief.report = *told;
        }
        true
    }

    /// How many nodes something is believed about.
    pub fn len(&self) -> usize {
        self.beliefs.len()
    }

    /// Whether nothing is believed about any.
    pub fn is_empty(&self) -> bool {
        self.beliefs.is_empty()
    }

    /// Takes in which Node stands behind a name. What the agent of an earlier Node of that name said
    /// counts again only once an agent has spoken for this one: a report, or a sign of life at the
    /// same state, which says the same. A report of another boot does not count until they agree.
    pub fn set_node(&mut self, node: &Node) {
        let identity = NodeIdentity {
            uid: Arc::clone(&node.uid),
            boot_id: node.boot_id.clone(),
        };
        if let Some(belief) = self.beliefs.get_mut(&node.name) {
            // An agent may have been heard before its Node was seen.
            belief
                .node_uid
                .get_or_insert_with(|| Arc::clone(&identity.uid));
        }
        self.nodes.insert(node.name.clone(), identity);
    }

    /// A Node is gone. What is believed stays, for the Node that it was.
    pub fn remove_node(&mut self, name: &NodeName) {
        self.nodes.remove(name);
    }

    /// Forgets what is believed about a node.
    pub fn remove(&mut self, node: &NodeName) {
        self.forget_devices(node);
        self.beliefs.remove(node);
    }

    /// What is believed about `node`.
    pub fn get(&self, node: &NodeName) -> Option<&Belief> {
        self.beliefs.get(node)
    }

    /// Nodes that report a UUID that `node` reports as well.
    pub fn sharing(&self, node: &NodeName) -> Vec<NodeName> {
        self.cloned
            .values()
            .filter(|nodes| nodes.contains(node))
            .flatten()
            .cloned()
            .collect()
    }

    /// Every belief, by node name.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, &Belief)> {
        self.beliefs.iter()
    }

    /// UUIDs that more than one node reports.
    pub fn cloned(&self) -> usize {
        self.cloned.len()
    }

    /// Whether the UUID is reported by more than one node: none of them may be given to anybody.
    pub fn is_cloned(&self, uuid: &DeviceUuid) -> bool {
        self.cloned.contains_key(uuid)
    }

    /// What is believed about `node`, if it was heard within `limit` before `now` and speaks for the
    /// Node that is there now.
    pub fn trusted(&self, node: &NodeName, now: Timestamp, limit: Millis) -> Option<&Belief> {
        let belief = self.beliefs.get(node)?;
        let is_of_it = self.nodes.get(node).is_none_or(|node| belief.is_of(node));
        let is_fresh = now.since(belief.heard) <= limit || planted::is(Bug::SilenceOverlooked);
        (is_fresh && is_of_it).then_some(belief)
    }

    /// Every node that something is believed about, in order, and whether that is to be trusted. Both maps are walked
    /// side by side: to look each of 15,000 nodes up once a second is a percent of a core.
    pub fn each_fresh(
        &self,
        now: Timestamp,
        limit: Millis,
    ) -> impl Iterator<Item = (&NodeName, bool)> {
        let mut nodes = self.nodes.iter().peekable();
        self.beliefs.iter().map(move |(name, belief)| {
            while nodes.next_if(|(node, _)| *node < name).is_some() {}
            let node = nodes.peek().filter(|(node, _)| *node == name);
            let is_of_it = node.is_none_or(|(_, node)| belief.is_of(node));
            let is_fresh = now.since(belief.heard) <= limit || planted::is(Bug::SilenceOverlooked);
            (name, is_fresh && is_of_it)
        })
    }

    /// Whether there is something to trust about `node`.
    pub fn is_fresh(&self, node: &NodeName, now: Timestamp, limit: Millis) -> bool {
        self.trusted(node, now, limit).is_some()
    }
}

#[cfg(test)]
mod tests;
