//! What readers see: an unchanging picture, published after each batch of events. Filter and
//! Preempt are answered from it alone, without waiting for planning.

use std::collections::BTreeMap;
use std::sync::Arc;

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::ids::{Epoch, GangKey, NodeName, PlanId, PodUid, RoleName};
use crate::planted::{self, Bug};
use crate::pod::Membership;
use crate::resources::Resources;

/// Text for a pod whose gang is not known yet. Constant.
pub const UNKNOWN_GANG: &str = "muster: this pod's gang is not known yet";
/// Text for a pod whose controlling job is not there, or is not one that we may act on.
pub const UNKNOWN_JOB: &str = "muster: this pod's PyTorchJob is not known: it is gone, is being \
                               deleted, or its spec.runPolicy.managedBy names another controller";
/// Text when this replica must not answer. kube-scheduler treats it as an error and tries again.
pub const NOT_LEADING: &str = "muster: this replica is not the leader";
/// Text while the first LIST is not complete. kube-scheduler treats it as an error and tries again.
pub const NOT_SYNCED: &str = "muster: starting, the cluster is not read yet";
/// Text when the planned node is not among those offered. Constant.
pub const NOT_OFFERED: &str =
    "muster: the planned node was turned down by kube-scheduler's own checks";
/// Text for a node that has no room beside what is reserved for gangs. Constant.
pub const NO_ROOM: &str = "muster: the room left is reserved for gangs";

/// Text for a pod of no gang while all is frozen. kube-scheduler treats it as an error: it tries again by itself, and
/// looks for nobody to preempt meanwhile. Constant.
pub const FROZEN: &str = "muster: frozen, nothing is bound for now";

/// A place in a published plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// Planned node.
    pub node: NodeName,
    /// The pod that has claimed it.
    pub pod: Option<PodUid>,
}

/// A gang as readers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangView {
    /// The plan, when it is durable.
    pub plan: Option<PlanId>,
    /// Places by role and index; empty without a durable plan.
    pub slots: BTreeMap<(RoleName, u32), SlotView>,
    /// Node by pod, for members that have claimed a place.
    pub nodes: BTreeMap<PodUid, NodeName>,
    /// Text of every refusal; the same bytes for the same state.
    pub refusal: Arc<str>,
}

/// What Filter answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FilterAnswer {
    /// This node and no other.
    Only(NodeName),
    /// No node, with this text for each.
    Nowhere(Arc<str>),
    /// Every offered node where `View::has_room` holds.
    WhereRoom,
    /// An error: try again later.
    Later(&'static str),
}

/// The published picture. Its collections share what has not changed with the picture before, so
/// that publishing costs by what changed and not by the size of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// This replica leads.
    pub leading: bool,
    /// The first LIST is complete.
    pub synced: bool,
    /// All of it stands still.
    pub frozen: bool,
    /// Epoch of the leadership.
    pub epoch: Epoch,
    /// Every gang.
    pub gangs: RedBlackTreeMapSync<GangKey, Arc<GangView>>,
    /// Gang of each pod that has a planned node.
    pub members: RedBlackTreeMapSync<PodUid, GangKey>,
    /// Free on each node after pods and reservations.
    pub free: RedBlackTreeMapSync<NodeName, Arc<Resources>>,
    /// Pods that belong to gangs and are bound: never victims of a preemption by kube-scheduler.
    pub protected: RedBlackTreeSetSync<PodUid>,
}

impl View {
    /// Where a pod may go. A pure read: asking twice, or never binding, changes nothing.
    pub fn filter(&self, pod: &PodUid, membership: Option<&Membership>) -> FilterAnswer {
        if !self.leading {
            return FilterAnswer::Later(NOT_LEADING);
        }
        if !self.synced {
            return FilterAnswer::Later(NOT_SYNCED);
        }
        let Some(membership) = membership else {
            return match self.frozen {
                true => FilterAnswer::Later(FROZEN),
                false => FilterAnswer::WhereRoom,
            };
        };
        let Some(gang) = self.gangs.get(&membership.gang) else {
            return FilterAnswer::Nowhere(Arc::from(UNKNOWN_GANG));
        };
        if let Some(node) = gang.nodes.get(pod) {
            return FilterAnswer::Only(node.clone());
        }
        let slot = membership
            .role
            .as_ref()
            .zip(membership.index)
            .and_then(|(role, index)| {
                gang.slots
                    .get(&(role.clone(), index))
                    .filter(|slot| slot.pod.is_none())
            });
        match slot {
            Some(slot) => FilterAnswer::Only(slot.node.clone()),
            None => FilterAnswer::Nowhere(planted::told(gang.refusal.clone())),
        }
    }

    /// The plan of the gang that a pod says it belongs to.
    pub fn plan_of(&self, membership: Option<&Membership>) -> Option<&PlanId> {
        let gang = self.gangs.get(&membership?.gang)?;
        gang.plan.as_ref()
    }

    /// Gang and plan of a pod that has a planned node.
    pub fn promised(&self, pod: &PodUid) -> Option<(&GangKey, Option<&PlanId>)> {
        let key = self.members.get(pod)?;
        let gang = self.gangs.get(key)?;
        Some((key, gang.plan.as_ref()))
    }

    /// Whether a pod of no gang with these requests has room on `node` beside what is reserved.
    pub fn has_room(&self, node: &str, requests: &Resources) -> bool {
        self.free
            .get(node)
            .is_some_and(|free| free.shortage(requests).is_none())
    }

    /// Whether kube-scheduler may preempt for a pod at all: never for a member of a gang, and for nobody while all is
    /// frozen: the victims would go, and their place stay empty.
    pub fn may_preempt(&self, membership: Option<&Membership>) -> bool {
        self.leading && self.synced && !self.frozen && membership.is_none()
    }

    /// Whether a pod may be a victim of kube-scheduler's preemption.
    pub fn may_be_victim(&self, pod: &PodUid) -> bool {
        !self.protected.contains(pod) || planted::is(Bug::VetoForgotten)
    }
}
