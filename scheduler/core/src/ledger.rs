//! What is taken and what is promised, node by node.
//!
//! A pod that is bound is charged with what it asks for until it is gone. A slot of a plan is
//! reserved from the moment it is chosen until its pod is seen bound, so that between the two
//! nothing is ever free by mistake: first the charge of the pod comes, then the reservation goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::{Config, NodesWithoutAgent};
use crate::ids::{DeviceUuid, GangKey, Namespace, NodeName, PodUid, ResourceName, RoleName};
use crate::inventory::{Belief, Device, Inventory};
use crate::node::{HostPort, Node};
use crate::pod::{DEVICE_MILLI, Pod, PodShape};
use crate::resources::Resources;
use crate::snapshot::{Eligibility, NodeCapacity, SharedDevice};
use crate::time::Timestamp;
use crate::topology::path_of;

/// Whose reservation it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotKey {
    /// The gang.
    pub gang: GangKey,
    /// Role of the member.
    pub role: RoleName,
    /// Index within the role.
    pub index: u32,
}

/// Who holds room on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A pod that is bound there.
    Pod {
        /// `metadata.uid`.
        uid: PodUid,
        /// `metadata.namespace`.
        namespace: Namespace,
        /// `metadata.name`.
        name: Arc<str>,
    },
    /// A place of a plan, or what is left of one.
    Slot(SlotKey),
}

/// Room on a node that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Who.
    pub holder: Holder,
    /// What it asks for.
    pub shape: Arc<PodShape>,
    /// Devices that it was predicted to get.
    pub devices: Vec<DeviceUuid>,
}

#[derive(Clone, Debug)]
struct Charge {
    shape: Arc<PodShape>,
    /// Devices that kubelet gave, or those predicted.
    devices: Vec<DeviceUuid>,
    /// Kubelet gave them.
    given: bool,
    /// Namespace and name, to find the pod among the holders in a report.
    pod: Option<(Namespace, Arc<str>)>,
}

#[derive(Clone, Debug, Default)]
struct Account {
    node: Option<Arc<Node>>,
    pods: BTreeMap<PodUid, Charge>,
    reserved: BTreeMap<SlotKey, Charge>,
    used: Resources,
    promised: Resources,
    /// A sum of `used` has met its limit: taking one pod away from it would take all away.
    used_is_vague: bool,
}

impl Account {
    /// Adds `used` up afresh.
    fn recount(&mut self) {
        self.used = Resources::default();
        for charge in self.pods.values() {
            self.used.add(&charge.shape.requests);
        }
        self.used_is_vague = self.used.is_saturated();
    }

    fn is_empty(&self) -> bool {
        self.node.is_none() && self.pods.is_empty() && self.reserved.is_empty()
    }
}

/// Accounts of all nodes.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    accounts: BTreeMap<NodeName, Account>,
    places: BTreeMap<PodUid, NodeName>,
    slots: BTreeMap<SlotKey, NodeName>,
}

impl Ledger {
    /// Takes in a node. Returns whether anything about it changed.
    pub fn set_node(&mut self, node: Node) -> bool {
        let account = self.accounts.entry(node.name.clone()).or_default();
        if account.node.as_deref() == Some(&node) {
            return false;
        }
        account.node = Some(Arc::new(node));
        true
    }

    /// Forgets a node; what is charged to it stays until the pods are gone.
    pub fn remove_node(&mut self, name: &NodeName) {
        if let Some(account) = self.accounts.get_mut(name) {
            account.node = None;
        }
        self.drop_if_empty(name);
    }

    /// The node as last seen.
    pub fn node(&self, name: &NodeName) -> Option<&Arc<Node>> {
        self.accounts
            .get(name)
            .and_then(|account| account.node.as_ref())
    }

    /// All nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.accounts
            .values()
            .filter_map(|account| account.node.as_ref())
    }

    /// Names of all nodes that exist.
    pub fn node_names(&self) -> impl Iterator<Item = &NodeName> {
        self.accounts
            .iter()
            .filter(|(_, account)| account.node.is_some())
            .map(|(name, _)| name)
    }

    /// Charges a pod to its node, or takes the charge away when it holds no room any more. Returns
    /// the nodes whose account changed.
    pub fn set_pod(&mut self, pod: &Pod) -> Vec<NodeName> {
        let wanted = if pod.holds_room() {
            pod.node.clone()
        } else if pod.node.is_none() && self.places.contains_key(&pod.uid) {
            // Older than what is known: a binding is never taken back.
            return Vec::new();
        } else {
            None
        };
        if let (Some(node), Some(place)) = (&wanted, self.places.get(&pod.uid))
            && node == place
            && let Some(charge) = self
                .accounts
                .get(node)
                .and_then(|account| account.pods.get(&pod.uid))
            && (Arc::ptr_eq(&charge.shape, &pod.shape)
                || (charge.shape.requests == pod.shape.requests
                    && charge.shape.share == pod.shape.share))
        {
            return Vec::new();
        }
        let given = self.given(&pod.uid).map(<[_]>::to_vec);
        let given = given.filter(|_| self.places.get(&pod.uid) == wanted.as_ref());
        let mut changed = self.remove_pod(&pod.uid);
        if let Some(node) = wanted {
            let record = pod.record.as_ref();
            let charge = Charge {
                shape: Arc::clone(&pod.shape),
                given: given.is_some(),
                devices: given
                    .or_else(|| record.map(|record| record.devices.clone()))
                    .unwrap_or_default(),
                pod: Some((pod.namespace.clone(), Arc::clone(&pod.name))),
            };
            self.charge(pod.uid.clone(), node.clone(), charge);
            changed.push(node);
        }
        changed
    }

    /// Takes a pod's charge away. Returns the node it was on.
    pub fn remove_pod(&mut self, uid: &PodUid) -> Vec<NodeName> {
        let Some(node) = self.places.remove(uid) else {
            return Vec::new();
        };
        if let Some(account) = self.accounts.get_mut(&node)
            && let Some(charge) = account.pods.remove(uid)
        {
            account.used.subtract(&charge.shape.requests);
            if account.used_is_vague {
                account.recount();
            }
        }
        self.drop_if_empty(&node);
        vec![node]
    }

    /// Pods charged to a node.
    pub fn pods_on(&self, node: &NodeName) -> impl Iterator<Item = &PodUid> {
        self.accounts
            .get(node)
            .into_iter()
            .flat_map(|account| account.pods.keys())
    }

    /// Devices that kubelet gave a pod, in order; `None` while only a prediction is known.
    pub fn given(&self, uid: &PodUid) -> Option<&[DeviceUuid]> {
        let account = self.accounts.get(self.places.get(uid)?)?;
        let charge = account.pods.get(uid).filter(|charge| charge.given)?;
        Some(&charge.devices)
    }

    /// Notes what kubelet gave a pod, in place of what was predicted. Returns its node.
    pub fn give(&mut self, uid: &PodUid, devices: Vec<DeviceUuid>) -> Option<NodeName> {
        let node = self.places.get(uid)?;
        let charge = self.accounts.get_mut(node)?.pods.get_mut(uid)?;
        (charge.devices, charge.given) = (devices, true);
        Some(node.clone())
    }

    /// Reserves a slot on a node. A reservation that the slot already has is replaced.
    pub fn reserve(
        &mut self,
        slot: SlotKey,
        node: NodeName,
        shape: Arc<PodShape>,
        devices: Vec<DeviceUuid>,
    ) {
        self.release(&slot);
        let account = self.accounts.entry(node.clone()).or_default();
        account.promised.add(&shape.requests);
        account.reserved.insert(
            slot.clone(),
            Charge {
                shape,
                devices,
                given: false,
                pod: None,
            },
        );
        self.slots.insert(slot, node);
    }

    /// Gives a reservation back. Returns the node it was on.
    pub fn release(&mut self, slot: &SlotKey) -> Option<NodeName> {
        let node = self.slots.remove(slot)?;
        if let Some(account) = self.accounts.get_mut(&node)
            && let Some(charge) = account.reserved.remove(slot)
        {
            account.promised.subtract(&charge.shape.requests);
        }
        self.drop_if_empty(&node);
        Some(node)
    }

    /// Nodes of which something is known, those too that do not exist any more.
    pub fn accounted(&self) -> impl Iterator<Item = &NodeName> {
        self.accounts.keys()
    }

    /// Who holds room on a node: pods, then slots, each in order.
    pub fn holdings(&self, node: &NodeName) -> impl Iterator<Item = Holding> {
        let account = self.accounts.get(node).into_iter();
        let pods = account.clone().flat_map(|account| &account.pods);
        let pods = pods.filter_map(|(uid, charge)| {
            let (namespace, name) = charge.pod.clone()?;
            let uid = uid.clone();
            Some((
                Holder::Pod {
                    uid,
                    namespace,
                    name,
                },
                charge,
            ))
        });
        let slots = account.flat_map(|account| &account.reserved);
        let slots = slots.map(|(slot, charge)| (Holder::Slot(slot.clone()), charge));
        pods.chain(slots).map(|(holder, charge)| Holding {
            holder,
            shape: Arc::clone(&charge.shape),
            devices: charge.devices.clone(),
        })
    }

    /// Takes up what [`Ledger::holdings`] has told.
    pub fn hold(&mut self, node: NodeName, holding: Holding) {
        let Holding {
            holder,
            shape,
            devices,
        } = holding;
        match holder {
            Holder::Slot(slot) => self.reserve(slot, node, shape, devices),
            Holder::Pod {
                uid,
                namespace,
                name,
            } => {
                self.remove_pod(&uid);
                let pod = Some((namespace, name));
                let charge = Charge {
                    shape,
                    devices,
                    given: false,
                    pod,
                };
                self.charge(uid, node, charge);
            }
        }
    }

    fn charge(&mut self, uid: PodUid, node: NodeName, charge: Charge) {
        let account = self.accounts.entry(node.clone()).or_default();
        account.used.add(&charge.shape.requests);
        account.used_is_vague |= account.used.is_saturated();
        account.pods.insert(uid.clone(), charge);
        self.places.insert(uid, node);
    }

    /// Slots reserved on a node.
    pub fn slots_on(&self, node: &NodeName) -> impl Iterator<Item = &SlotKey> {
        self.accounts
            .get(node)
            .into_iter()
            .flat_map(|account| account.reserved.keys())
    }

    /// Node on which a slot is reserved.
    pub fn reserved_on(&self, slot: &SlotKey) -> Option<&NodeName> {
        self.slots.get(slot)
    }

    /// Whether so much of a device of a node is promised to others than this slot that it has no part for
    /// a pod of this shape.
    pub fn is_promised(
        &self,
        node: &NodeName,
        device: &DeviceUuid,
        to: &SlotKey,
        shape: &PodShape,
    ) -> bool {
        let Some(account) = self.accounts.get(node) else {
            return false;
        };
        let others = account.reserved.iter();
        let others = others.filter(|(slot, charge)| *slot != to && charge.devices.contains(device));
        let promised = others.fold(part_of(shape), |sum, (_, charge)| {
            sum.saturating_add(part_of(&charge.shape))
        });
        promised > DEVICE_MILLI
    }

    /// Node and shape of a slot's reservation.
    pub fn reservation(&self, slot: &SlotKey) -> Option<(&NodeName, &Arc<PodShape>)> {
        let node = self.slots.get(slot)?;
        let charge = self.accounts.get(node)?.reserved.get(slot)?;
        Some((node, &charge.shape))
    }

    /// Every reservation, by slot.
    pub fn reservations(&self) -> impl Iterator<Item = (&SlotKey, &NodeName)> {
        self.slots.iter()
    }

    fn drop_if_empty(&mut self, name: &NodeName) {
        if self.accounts.get(name).is_some_and(Account::is_empty) {
            self.accounts.remove(name);
        }
    }

    /// What a node can take, as the planner sees it. `None` for a node that does not exist.
    pub fn capacity(
        &self,
        name: &NodeName,
        inventory: &Inventory,
        config: &Config,
        now: Timestamp,
    ) -> Option<NodeCapacity> {
        let account = self.accounts.get(name)?;
        let node = Arc::clone(account.node.as_ref()?);
        let fresh = inventory
            .trusted(name, now, config.report_age_max)
            .filter(|belief| belief.report.sampler_ok);
        let mut free = node.allocatable.clone();
        free.subtract(&account.used);
        let mut well = free.clone();
        well.subtract(&account.promised);
        let mut devices = Vec::new();
        let parts = account.parts();
        let mut shared = Vec::new();
        for (resource, parts) in &parts {
            take_away(&mut free, resource, parts.devices());
            take_away(&mut well, resource, parts.devices());
        }
        match fresh {
            Some(belief) => {
                for (resource, offered) in node
                    .allocatable
                    .extended
                    .iter()
                    .filter(|(resource, _)| config.is_device(resource))
                {
                    let counted = count_devices(account, belief, resource, inventory);
                    let used = account.used.extended(resource.as_str());
                    let parts = parts.get(resource);
                    let parted = parts.map_or(0, Parts::devices);
                    let parted_usable = parts.map_or(0, |parts| parts.usable(belief, inventory));
                    let room = offered.saturating_sub(used).saturating_sub(parted).min(
                        counted
                            .usable
                            .saturating_sub(used.saturating_sub(counted.held_unusable))
                            .saturating_sub(parted_usable),
                    );
                    set(&mut free, resource, room);
                }
                devices = free_devices(account, belief, inventory);
                shared = shared_devices(&parts, belief, inventory);
            }
            None if config.nodes_without_agent == NodesWithoutAgent::UseAllocatable
                && inventory.get(name).is_none() => {}
            None => free
                .extended
                .retain(|resource, _| !config.is_device(resource)),
        }
        free.subtract(&account.promised);
        let reported = fresh.is_some()
            || (config.nodes_without_agent == NodesWithoutAgent::UseAllocatable
                && inventory.get(name).is_none());
        Some(NodeCapacity {
            eligibility: eligibility(&node),
            path: (!config.topology.is_empty()).then(|| {
                // Where the fabric reaches does not change because an agent is silent.
                let belief = inventory.get(name);
                let clique = belief.and_then(|belief| belief.report.fabric_clique.as_ref());
                path_of(&node, clique, &config.topology)
            }),
            node,
            free,
            well,
            reported,
            ports: account.ports(),
            devices,
            shared,
        })
    }

    /// Whether what is used and promised on a node is more than it can carry, for any resource that
    /// `shape` asks for.
    pub fn is_overcommitted(
        &self,
        name: &NodeName,
        shape: &PodShape,
        inventory: &Inventory,
        config: &Config,
        now: Timestamp,
    ) -> bool {
        let Some(account) = self.accounts.get(name) else {
            return true;
        };
        let Some(node) = account.node.as_ref() else {
            return true;
        };
        let mut sum = account.used.clone();
        sum.add(&account.promised);
        if node.allocatable.milli_cpu < sum.milli_cpu && shape.requests.milli_cpu > 0
            || node.allocatable.memory_bytes < sum.memory_bytes && shape.requests.memory_bytes > 0
            || node.allocatable.ephemeral_bytes < sum.ephemeral_bytes
                && shape.requests.ephemeral_bytes > 0
            || node.allocatable.pods < sum.pods
        {
            return true;
        }
        let belief = inventory.trusted(name, now, config.report_age_max);
        let parts = account.parts();
        let share = shape.share.iter().map(|share| &share.resource);
        let mut asked = shape.requests.extended.keys().chain(share);
        asked.any(|resource| {
            let parted = parts.get(resource);
            if parted.is_some_and(|parts| parts.taken.values().any(|taken| *taken > DEVICE_MILLI)) {
                return true;
            }
            let parted = parted.map_or(0, Parts::devices);
            let wanted = sum.extended(resource.as_str()).saturating_add(parted);
            let offered = node.allocatable.extended(resource.as_str());
            let usable = match belief {
                Some(belief) if config.is_device(resource) => {
                    let counted = count_devices(account, belief, resource, inventory);
                    counted.usable.saturating_add(counted.held_unusable)
                }
                _ => offered,
            };
            wanted > offered.min(usable)
        })
    }
}

impl Account {
    /// Whether a device is with a pod that is not charged with its resource: one that has it by a
    /// dynamic resource claim. A holder without a charge has ended, and the kubelet still names it.
    fn is_claimed(&self, device: &Device) -> bool {
        let name = device.resource.as_str();
        if device.holders.is_empty() {
            return false;
        }
        let mut claimed = false;
        for charge in self.pods.values() {
            let holds = |pod| device.holders.contains(pod);
            if charge.pod.as_ref().is_some_and(holds) {
                let share = charge.shape.share.as_ref();
                if charge.shape.requests.extended(name) > 0
                    || share.is_some_and(|share| share.resource == device.resource)
                {
                    return false;
                }
                claimed = true;
            }
        }
        claimed
    }

    /// What is taken of devices in part, by resource.
    fn parts(&self) -> BTreeMap<ResourceName, Parts> {
        let mut parts: BTreeMap<ResourceName, Parts> = BTreeMap::new();
        for charge in self.pods.values().chain(self.reserved.values()) {
            let Some(share) = &charge.shape.share else {
                continue;
            };
            let parts = parts.entry(share.resource.clone()).or_default();
            match charge.devices.last() {
                Some(device) => {
                    let taken = parts.taken.entry(device.clone()).or_default();
                    *taken = taken.saturating_add(share.milli());
                }
                None => parts.unknown = parts.unknown.saturating_add(1),
            }
        }
        parts
    }

    fn ports(&self) -> BTreeSet<HostPort> {
        self.pods
            .values()
            .chain(self.reserved.values())
            .flat_map(|charge| charge.shape.host_ports.iter().cloned())
            .collect()
    }
}

/// Devices of one resource of which parts are taken.
#[derive(Default)]
struct Parts {
    /// Taken of each, in thousandths.
    taken: BTreeMap<DeviceUuid, u32>,
    /// Shares of devices that nobody has named: each may be all that is taken of one.
    unknown: u64,
}

impl Parts {
    fn devices(&self) -> u64 {
        let named = u64::try_from(self.taken.len()).unwrap_or(u64::MAX);
        named.saturating_add(self.unknown)
    }

    /// Those of them that count among the usable ones.
    fn usable(&self, belief: &Belief, inventory: &Inventory) -> u64 {
        let devices = belief.report.devices.iter();
        let usable = devices
            .filter(|device| is_usable(device, inventory) && self.taken.contains_key(&device.uuid));
        u64::try_from(usable.count())
            .unwrap_or(u64::MAX)
            .saturating_add(self.unknown)
    }
}

/// The most that a pod takes of a device that it was given, in thousandths. Where it has whole ones too, its
/// share is of the last.
pub(crate) fn part_of(shape: &PodShape) -> u32 {
    match &shape.share {
        Some(share) if shape.requests.extended(share.resource.as_str()) == 0 => share.milli(),
        _ => DEVICE_MILLI,
    }
}

/// What is left of devices of which a part is taken, in order of NUMA node and index.
fn shared_devices(
    parts: &BTreeMap<ResourceName, Parts>,
    belief: &Belief,
    inventory: &Inventory,
) -> Vec<SharedDevice> {
    let left = |device: &Device| {
        let taken = parts.get(&device.resource)?.taken.get(&device.uuid)?;
        let left = DEVICE_MILLI.saturating_sub(*taken);
        (left > 0 && is_usable(device, inventory)).then_some(left)
    };
    let devices = belief.report.devices.iter();
    let mut shared: Vec<SharedDevice> = devices
        .filter_map(|device| {
            let left = left(device)?;
            let device = device.clone();
            Some(SharedDevice { device, left })
        })
        .collect();
    shared.sort_by(|a, b| {
        let (a, b) = (&a.device, &b.device);
        (a.numa, a.index, &a.uuid).cmp(&(b.numa, b.index, &b.uuid))
    });
    shared
}

fn take_away(resources: &mut Resources, name: &ResourceName, amount: u64) {
    let left = resources.extended(name.as_str()).saturating_sub(amount);
    set(resources, name, left);
}

fn set(resources: &mut Resources, name: &ResourceName, amount: u64) {
    if amount == 0 {
        resources.extended.remove(name);
    } else {
        resources.extended.insert(name.clone(), amount);
    }
}

fn eligibility(node: &Node) -> Eligibility {
    if node.unschedulable || node.terminating {
        Eligibility::Cordoned
    } else if !node.is_available() {
        Eligibility::NotReady
    } else if node.is_under_pressure() {
        Eligibility::UnderPressure
    } else {
        Eligibility::Eligible
    }
}

/// Devices of one resource, those left out that a pod has without being charged with them.
struct Counted {
    usable: u64,
    held_unusable: u64,
}

fn is_usable(device: &Device, inventory: &Inventory) -> bool {
    device.is_usable() && !inventory.is_cloned(&device.uuid)
}

fn count_devices(
    account: &Account,
    belief: &Belief,
    resource: &ResourceName,
    inventory: &Inventory,
) -> Counted {
    let mut counted = Counted {
        usable: 0,
        held_unusable: 0,
    };
    for device in belief
        .report
        .devices
        .iter()
        .filter(|device| device.resource == *resource && !account.is_claimed(device))
    {
        if is_usable(device, inventory) {
            counted.usable = counted.usable.saturating_add(1);
        } else if !device.holders.is_empty() {
            counted.held_unusable = counted.held_unusable.saturating_add(1);
        }
    }
    counted
}

/// Usable devices that nobody holds and nobody is predicted to get, in order of NUMA node and index.
fn free_devices(account: &Account, belief: &Belief, inventory: &Inventory) -> Vec<Device> {
    let mut taken: BTreeSet<&DeviceUuid> = account
        .reserved
        .values()
        .flat_map(|charge| charge.devices.iter())
        .collect();
    for charge in account.pods.values() {
        // What the kubelet says of a pod counts more than what was predicted for it.
        let seen = charge.pod.as_ref().is_some_and(|pod| {
            belief
                .report
                .devices
                .iter()
                .any(|device| device.holders.contains(pod))
        });
        if !seen {
            taken.extend(charge.devices.iter());
        }
    }
    let mut devices: Vec<Device> = belief
        .report
        .devices
        .iter()
        .filter(|device| {
            device.holders.is_empty()
                && is_usable(device, inventory)
                && !taken.contains(&device.uuid)
        })
        .cloned()
        .collect();
    devices.sort_by(|a, b| (a.numa, a.index, &a.uuid).cmp(&(b.numa, b.index, &b.uuid)));
    devices
}
