//! What a node can take: offered, lowered by what is not well, held and promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Account, Ledger, SlotKey};
use crate::config::{Config, NodesWithoutAgent};
use crate::ids::{DeviceUuid, NodeName, PodUid, ResourceName};
use crate::inventory::{Belief, Device, Inventory};
use crate::node::{HostPort, Node};
use crate::pod::{DEVICE_MILLI, PodShape};
use crate::resources::Resources;
use crate::snapshot::{Eligibility, NodeCapacity, SharedDevice};
use crate::time::Timestamp;
use crate::topology::path_of;

/// Who may have ended later.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending<'a> {
    Pod(&'a PodUid),
    Slot(&'a SlotKey),
}

/// Devices that an agent reports and that do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unbelieved {
    /// Another node reports the same UUID.
    pub cloned: u64,
    /// Nothing is wrong with them, and the kubelet offers fewer.
    pub beyond_allocatable: u64,
}

impl Ledger {
    /// What a node's agent reports and does not count. Nothing of a node that does not exist.
    pub fn unbelieved(
        &self,
        name: &NodeName,
        inventory: &Inventory,
        config: &Config,
    ) -> Unbelieved {
        let account = self.accounts.get(name);
        let node = account.and_then(|account| account.node.as_ref());
        let (Some(account), Some(node), Some(belief)) = (account, node, inventory.get(name)) else {
            return Unbelieved::default();
        };
        let devices = &belief.report.devices;
        let is_cloned = |device: &&Device| inventory.is_cloned(&device.uuid);
        let cloned = devices.iter().filter(is_cloned).count();
        let resources: BTreeSet<&ResourceName> =
            devices.iter().map(|device| &device.resource).collect();
        let mut beyond: u64 = 0;
        for resource in resources {
            if !config.is_device(resource) {
                continue;
            }
            let offered = node.allocatable.extended(resource.as_str());
            let reported = devices.iter().filter(|device| device.resource == *resource);
            if u64::try_from(reported.count()).is_ok_and(|reported| reported <= offered) {
                continue;
            }
            let usable = count_devices(account, belief, resource, inventory).usable;
            beyond = beyond.saturating_add(usable.saturating_sub(offered));
        }
        Unbelieved {
            cloned: u64::try_from(cloned).unwrap_or(u64::MAX),
            beyond_allocatable: beyond,
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
        capacity_of(self.accounts.get(name)?, name, inventory, config, now)
    }

    /// The same once what ends by itself has ended: pods and places that are told by `ends`.
    pub(crate) fn capacity_later(
        &self,
        name: &NodeName,
        inventory: &Inventory,
        config: &Config,
        now: Timestamp,
        ends: impl Fn(Ending<'_>) -> bool,
    ) -> Option<NodeCapacity> {
        let mut later = self.accounts.get(name)?.clone();
        later.pods.retain(|uid, _| !ends(Ending::Pod(uid)));
        later.reserved.retain(|slot, _| !ends(Ending::Slot(slot)));
        later.recount();
        later.promised = Resources::default();
        for charge in later.reserved.values() {
            later.promised.add(&charge.shape.requests);
        }
        capacity_of(&later, name, inventory, config, now)
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

/// What a node with this account can take.
fn capacity_of(
    account: &Account,
    name: &NodeName,
    inventory: &Inventory,
    config: &Config,
    now: Timestamp,
) -> Option<NodeCapacity> {
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
        links: fresh.and_then(|belief| belief.report.links.clone()),
        shared,
    })
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
