//! What is taken and what is promised, node by node.
//!
//! A pod that is bound is charged with what it asks for until it is gone. A slot of a plan is
//! reserved from the moment it is chosen until its pod is seen bound, so that between the two
//! nothing is ever free by mistake: first the charge of the pod comes, then the reservation goes.

mod capacity;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ids::{DeviceUuid, GangKey, Namespace, NodeName, PodUid, RoleName};
use crate::node::Node;
use crate::pod::{DEVICE_MILLI, Pod, PodShape};
use crate::resources::Resources;

pub use self::capacity::Unbelieved;
pub(crate) use self::capacity::{Ending, part_of};

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

    /// The same by namespace and name, as reports know them.
    pub(crate) fn pods_by_name_on(&self, node: &NodeName) -> BTreeSet<(Namespace, Arc<str>)> {
        let account = self.accounts.get(node).into_iter();
        let charges = account.flat_map(|account| account.pods.values());
        charges.filter_map(|charge| charge.pod.clone()).collect()
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

    /// Whether a pod is charged to this node with what this shape asks for.
    pub(crate) fn is_charged(&self, uid: &PodUid, node: &NodeName, shape: &PodShape) -> bool {
        let account = self.accounts.get(node);
        let charge = account.and_then(|account| account.pods.get(uid));
        self.places.get(uid) == Some(node)
            && charge.is_some_and(|charge| charge.shape.requests == shape.requests)
    }

    /// What of a node's account is not what it comes to when it is added up afresh.
    pub(crate) fn miscounted(&self, name: &NodeName) -> Option<&'static str> {
        let account = self.accounts.get(name)?;
        let is = |kept: &Resources, sum: &Resources| {
            let mut kept = kept.clone();
            kept.extended.retain(|_, amount| *amount > 0);
            kept == *sum
        };
        let mut slots = account.reserved.keys();
        if !is(&account.used, &sum(account.pods.values())) {
            Some("the sum of what pods hold")
        } else if !is(&account.promised, &sum(account.reserved.values())) {
            Some("the sum of what is promised")
        } else if slots.any(|slot| self.slots.get(slot) != Some(name)) {
            Some("the list of places")
        } else {
            None
        }
    }

    fn drop_if_empty(&mut self, name: &NodeName) {
        if self.accounts.get(name).is_some_and(Account::is_empty) {
            self.accounts.remove(name);
        }
    }
}

/// What these charges come to together; entries of zero are left out.
fn sum<'a>(charges: impl Iterator<Item = &'a Charge>) -> Resources {
    let mut sum = Resources::default();
    for charge in charges {
        sum.add(&charge.shape.requests);
    }
    sum.extended.retain(|_, amount| *amount > 0);
    sum
}
