//! What the outside tells the engine. Each event may come late, twice, or not at all; a later one
//! of the same object replaces an earlier one.

use std::sync::Arc;

use crate::ids::{Epoch, GangKey, Namespace, NodeName, PodUid, ResourceVersion};
use crate::inventory::{NodeReport, ReportOrder};
use crate::node::Node;
use crate::pod::Pod;
use crate::record::GangRecord;
use crate::time::Millis;
use crate::workload::Workload;

/// Number of a Bind that is being held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Number of a write that the engine asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId(pub u64);

/// kube-scheduler asks to bind a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindAsked {
    /// Number under which the answer is awaited.
    pub ticket: Ticket,
    /// The pod's namespace.
    pub namespace: Namespace,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's UID.
    pub pod: PodUid,
    /// The node that kube-scheduler chose.
    pub node: NodeName,
}

/// How a write ended. The edge resolves doubt by reading before it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It was done; for a Gang, what the object now says.
    Done(Option<GangRecord>),
    /// The object has another resourceVersion than expected: nothing was written. For a Gang, what
    /// the object says now (`None`: it is gone).
    Conflict(Option<GangRecord>),
    /// The object is gone, or is another one under the same name. Nothing was written.
    Gone,
    /// The API server refused it for good; its words. Nothing was written.
    Refused(Arc<str>),
    /// Not known: neither the write nor the reading after it got an answer in time.
    Unknown(Arc<str>),
    /// The same of a Binding, with the newest resourceVersion of the pod that an attempt has cited:
    /// it may apply until the pod has moved on from there.
    BindingUnknown {
        /// The resourceVersion.
        cited: ResourceVersion,
        /// What was said last.
        said: Arc<str>,
    },
}

impl WriteOutcome {
    /// Version of the pod from which on a Binding that ended like this is void; `None` when nothing
    /// is in doubt. `sent` is the version that the Binding was sent with.
    pub fn doubtful_version(&self, sent: &ResourceVersion) -> Option<ResourceVersion> {
        match self {
            Self::BindingUnknown { cited, .. } => Some(cited.clone()),
            Self::Unknown(_) => Some(sent.clone()),
            _ => None,
        }
    }
}

/// What a new leader lists afresh, after its stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listing {
    /// Pods.
    Pods,
    /// Gang objects.
    Gangs,
}

/// What the outside tells the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A node was listed, added or changed.
    NodeApplied(Node),
    /// A node is gone.
    NodeRemoved(NodeName),
    /// A pod was listed, added or changed. Pods of every scheduler count.
    PodApplied(Pod),
    /// A pod is gone.
    PodRemoved(PodUid),
    /// A job or PodGroup was listed, added or changed.
    WorkloadApplied(Workload),
    /// A job or PodGroup is gone.
    WorkloadRemoved(GangKey),
    /// A Gang object was listed, added or changed.
    RecordApplied(GangRecord),
    /// A Gang object is gone.
    RecordRemoved(GangKey),
    /// The first LIST of every kind is in: from now on what was not mentioned does not exist.
    Synced,
    /// The fresh LIST of a kind that `Action::Relist` asked for is in.
    Relisted(Listing),
    /// Full state of a node's devices.
    Report(NodeReport),
    /// An agent is there and still at this state.
    Heartbeat {
        /// The node, as proven by the caller.
        node: NodeName,
        /// State it is at.
        order: ReportOrder,
        /// The part that talks to NVML answers.
        sampler_ok: bool,
    },
    /// This replica leads from now on.
    LeadershipGained {
        /// Higher than any in the cluster.
        epoch: Epoch,
        /// Nobody has led in this cluster before: there is nobody to fence off.
        first: bool,
    },
    /// This replica must not write any more.
    LeadershipLost,
    /// Nothing that was asked of the API server has been answered for this long. Deadlines that wait
    /// for something to happen there stand still.
    ApiAway(Millis),
    /// The API server answers again.
    ApiBack,
    /// From now on all stands still, for this reason, in words for people; or it goes on.
    Frozen(Option<Arc<str>>),
    /// kube-scheduler asks to bind.
    BindAsked(BindAsked),
    /// The connection that held this Bind is gone. The pod may come again.
    BindDropped(Ticket),
    /// Filter was called for a pod with a plan, and its node was not among those offered.
    PlannedNodeNotOffered {
        /// The pod.
        pod: PodUid,
        /// Its planned node.
        node: NodeName,
    },
    /// A write ended.
    WriteDone {
        /// The write.
        id: WriteId,
        /// How it ended.
        outcome: WriteOutcome,
    },
    /// Time has passed; nothing else happened.
    Tick,
}
