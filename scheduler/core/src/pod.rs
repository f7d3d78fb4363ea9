//! A pod as the API server describes it, reduced to what placement looks at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::Config;
use crate::ids::{
    DeviceUuid, Epoch, GangKey, Namespace, NodeName, PlanId, PodUid, ResourceName, ResourceVersion,
    RoleName,
};
use crate::interpod::{InterPodRule, Labels};
use crate::node::{HostPort, Node, SelectorTerm, Taint, Toleration, untolerated};
use crate::resources::Resources;
use crate::sharing::Shared;
use crate::view::NOT_OFFERED;

/// Thousandths of one device.
pub const DEVICE_MILLI: u32 = 1000;

/// A part of one device, which others may have parts of too. How users ask for one is not settled: nothing
/// that is read from the API has one yet, replays have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// Resource under which the kubelet offers the device.
    pub resource: ResourceName,
    /// How much of it, in thousandths: 1 to 999.
    milli: u16,
}

impl Share {
    /// So many thousandths of a device; `None` for none of it, and for all of it or more.
    pub fn new(resource: ResourceName, milli: u32) -> Option<Self> {
        let milli = u16::try_from(milli).ok()?;
        let is_part = milli > 0 && u32::from(milli) < DEVICE_MILLI;
        is_part.then_some(Self { resource, milli })
    }

    /// How much of the device, in thousandths.
    pub fn milli(&self) -> u32 {
        u32::from(self.milli)
    }
}

/// What of a pod decides where it may stand. Pods of one role usually share one shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodShape {
    /// What it asks for: the larger of its init and its running phase, sidecars and overhead
    /// included, `pods` 1.
    pub requests: Resources,
    /// A part of one device, beside what it asks for whole.
    pub share: Option<Share>,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Required node affinity: one of the terms matches. `None` when there is none; an empty list
    /// matches nothing.
    pub required_affinity: Option<Vec<SelectorTerm>>,
    /// `spec.tolerations`.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node that it takes.
    pub host_ports: BTreeSet<HostPort>,
    /// Required anti-affinity and affinity between pods, and topology spread that must hold.
    pub between_pods: BTreeSet<InterPodRule>,
}

/// Why a pod of some shape may not stand on a node, whatever else stands there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mismatch {
    /// A taint is not tolerated.
    Taint(Taint),
    /// `nodeSelector` or required node affinity does not match.
    Selector,
}

impl PodShape {
    /// Whether labels and taints let a pod of this shape onto `node`. Says nothing about readiness,
    /// cordons or room.
    pub fn mismatch(&self, node: &Node) -> Option<Mismatch> {
        if !self.selects(node) {
            return Some(Mismatch::Selector);
        }
        untolerated(node.own_taints(), &self.tolerations)
            .map(|taint| Mismatch::Taint(taint.clone()))
    }

    /// Devices that it gets, one of them perhaps in part.
    pub fn devices(&self, config: &Config) -> u64 {
        let whole = self.requests.extended.iter();
        whole
            .filter(|(name, _)| config.is_device(name))
            .fold(u64::from(self.share.is_some()), |sum, (_, amount)| {
                sum.saturating_add(*amount)
            })
    }

    /// Whether `nodeSelector` and required node affinity match the node.
    pub fn selects(&self, node: &Node) -> bool {
        let selected = self
            .node_selector
            .iter()
            .all(|(key, value)| node.labels.get(key) == Some(value));
        selected
            && self.required_affinity.as_ref().is_none_or(|terms| {
                terms
                    .iter()
                    .any(|term| term.matches(node.name.as_str(), &node.labels))
            })
    }
}

/// `status.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodPhase {
    /// Not running yet.
    Pending,
    /// At least one container runs.
    Running,
    /// Every container ended well.
    Succeeded,
    /// Ended, and not well.
    Failed,
}

/// Which gang a pod belongs to, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The gang.
    pub gang: GangKey,
    /// How the gang is known.
    pub source: MembershipSource,
    /// Role, for example `Worker`; `None` when nothing names one.
    pub role: Option<RoleName>,
    /// Index within the role; `None` when the pods of a role are alike.
    pub index: Option<u32>,
}

/// How a pod's gang is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipSource {
    /// By controller owner reference to a job that the scheduler reads.
    Job,
    /// By a PodGroup in the pod's namespace.
    PodGroup {
        /// `metadata.name` of the PodGroup.
        name: Arc<str>,
    },
    /// By label, with the size stated on the pod.
    Label {
        /// Value of the label.
        name: Arc<str>,
        /// Stated size; the error text when it cannot be read.
        size: Result<u32, Arc<str>>,
    },
    /// A pod with GPUs and no gang: a gang of one.
    Alone,
}

/// What Muster wrote on a pod in the write that bound it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindRecord {
    /// The plan that was carried out.
    pub plan: PlanId,
    /// The leadership that carried it out.
    pub epoch: Epoch,
    /// Devices it was predicted to get.
    pub devices: Vec<DeviceUuid>,
}

/// A Pod object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`: the identity. A pod recreated under its name is another pod.
    pub uid: PodUid,
    /// `metadata.namespace`.
    pub namespace: Namespace,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.resourceVersion`.
    pub resource_version: ResourceVersion,
    /// `metadata.creationTimestamp`, seconds since the Unix epoch.
    pub created_seconds: i64,
    /// `spec.nodeName`.
    pub node: Option<NodeName>,
    /// `status.phase`.
    pub phase: PodPhase,
    /// `metadata.deletionTimestamp` is set: it still counts until it is gone.
    pub terminating: bool,
    /// What decides where it may stand.
    pub shape: Arc<PodShape>,
    /// `spec.priority`.
    pub priority: i32,
    /// `spec.schedulerName` is ours.
    pub ours: bool,
    /// Its gang; `None` for a pod of another scheduler, and for one of ours without GPUs and gang.
    pub membership: Option<Membership>,
    /// Our scheduling gate is on it.
    pub gated: bool,
    /// Its labels, where the gang is known by its pods; empty otherwise.
    pub labels: Arc<Labels>,
    /// A scheduling gate of somebody else is on it.
    pub gated_by_others: bool,
    /// It has a controller, which replaces it when it is deleted.
    pub controlled: bool,
    /// What the write that bound it says.
    pub record: Option<BindRecord>,
    /// Epoch that a new leader stamped on it.
    pub stamp: Option<Epoch>,
    /// Message of condition `PodScheduled=False` with reason `Unschedulable`, written by
    /// kube-scheduler.
    pub unschedulable: Option<Arc<str>>,
    /// `status.reason`, for example `UnexpectedAdmissionError`.
    pub status_reason: Option<Arc<str>>,
    /// Its annotations that speak of the topology, see [`crate::topology::KEYS`], and keys under `muster.dev/` that
    /// nobody reads.
    pub settings: BTreeMap<Arc<str>, Arc<str>>,
}

/// What pods have in common, besides texts.
#[derive(Debug, Default)]
pub struct PodParts {
    shapes: Shared<PodShape>,
    labels: Shared<Labels>,
}

impl Pod {
    /// Takes from `known` and `texts` what others have as well: a cluster has tens of thousands of pods, most of them
    /// like many others of their job and node. The texts of Gang objects and nodes are there too.
    pub fn share(&mut self, known: &mut PodParts, texts: &mut Shared<str>) {
        known.shapes.share_in(&mut self.shape);
        known.labels.share_in(&mut self.labels);
        self.namespace.share(texts);
        if let Some(node) = &mut self.node {
            node.share(texts);
        }
        if let Some(membership) = &mut self.membership {
            // A Gang object names its members.
            self.uid.share(texts);
            texts.share_in(&mut self.name);
            membership.gang.share(texts);
            if let Some(role) = &mut membership.role {
                role.share(texts);
            }
            match &mut membership.source {
                MembershipSource::PodGroup { name } | MembershipSource::Label { name, .. } => {
                    texts.share_in(name);
                }
                MembershipSource::Job | MembershipSource::Alone => {}
            }
        }
        if let Some(record) = &mut self.record {
            record.plan.share(texts);
        }
    }
}

/// What kube-scheduler counts by nodes though it holds on every one of them, of
/// `plugins/volumerestrictions` and `plugins/volumebinding`: a claim of which another pod has the only
/// use, and one whose volume does not exist.
const ON_EVERY_NODE: [&str; 2] = [
    "PersistentVolumeClaim with ReadWriteOncePod access mode already in-use",
    "pvc(s) bound to non-existent pv(s)",
];

/// Who turned a pod down, and where, as the message of its condition tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedDown {
    /// Muster, in Filter.
    ByMuster,
    /// kube-scheduler, on the nodes it looked at.
    OnNodes,
    /// kube-scheduler, whatever the node: a volume claim is missing, for example.
    Everywhere,
}

impl TurnedDown {
    /// Filter says itself where kube-scheduler had turned down the planned node before it asked.
    /// Otherwise reads `0/5 nodes are available: `, after which kube-scheduler counts nodes by reason, or says
    /// the one reason for which it looked at none. That reason is about nodes where two of its
    /// plugins leave it none: a pod that is confined to its planned node and has a local volume on
    /// another one.
    pub fn of(said: &str) -> Self {
        if said.contains(NOT_OFFERED) {
            return Self::OnNodes;
        }
        if said.contains("muster:") {
            return Self::ByMuster;
        }
        if ON_EVERY_NODE.iter().any(|reason| said.contains(reason)) {
            return Self::Everywhere;
        }
        let after = said
            .split_once("nodes are available: ")
            .map(|(_, after)| after);
        match after {
            Some(after)
                if !after.is_empty()
                    && !after.starts_with(|first: char| first.is_ascii_digit())
                    && !after.starts_with("node(s)")
                    && !after.starts_with("preemption:") =>
            {
                Self::Everywhere
            }
            _ => Self::OnNodes,
        }
    }
}

impl Pod {
    /// What was last said of the pod when it was turned down.
    pub fn turned_down(&self) -> Option<(TurnedDown, &Arc<str>)> {
        let said = self.unschedulable.as_ref()?;
        Some((TurnedDown::of(said), said))
    }

    /// Whether it takes room on its node: bound, and not ended. A terminating pod takes room until
    /// it is gone.
    pub fn holds_room(&self) -> bool {
        self.node.is_some() && !matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }

    /// Whether it can still be a running member of its gang.
    pub fn is_alive(&self) -> bool {
        !self.terminating && !matches!(self.phase, PodPhase::Succeeded | PodPhase::Failed)
    }
}

impl PodShape {
    /// Whether required affinity confines it to nodes by name.
    pub fn is_pinned(&self) -> bool {
        self.required_affinity.as_ref().is_some_and(|terms| {
            !terms.is_empty()
                && terms.iter().all(|term| {
                    term.fields
                        .iter()
                        .any(|requirement| &*requirement.key == "metadata.name")
                })
        })
    }
}
