//! Why a gang is where it is: one typed reason with numbers, from which conditions, events, the
//! extender's texts and metrics are all printed.

mod remedy;

use std::fmt::{self, Write as _};
use std::sync::Arc;

use crate::ids::{DeviceUuid, Namespace, NodeName, ResourceName, RoleName};
use crate::interpod::InterPodKind;
use crate::node::Taint;
use crate::resources::Shortage;
use crate::workload::InvalidWorkload;
use remedy::Remedy;

/// A label that a role selects its nodes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Its key.
    pub key: Arc<str>,
    /// Its value.
    pub value: Arc<str>,
    /// Nodes that the role may use if it does not ask for that.
    pub without: u32,
}

/// How many nodes were turned down for one role, by the first cause that applies to each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeTally {
    /// Nodes looked at.
    pub nodes: u32,
    /// Cordoned, or being deleted.
    pub cordoned: u32,
    /// Not ready, or not available.
    pub not_ready: u32,
    /// Short of disk or process numbers.
    pub pressure: u32,
    /// A taint is not tolerated.
    pub taint: u32,
    /// The taint of most of them: the first that is not tolerated of each node.
    pub tainted_by: Option<Taint>,
    /// `nodeSelector` or required affinity does not match.
    pub selector: u32,
    /// No agent reports it, or its report is too old.
    pub no_report: u32,
    /// kube-scheduler or the kubelet refused the gang there a short while ago.
    pub refused: u32,
    /// Would have room if its unhealthy, lost, suspect or leaked devices were well.
    pub unhealthy: u32,
    /// Too few free devices, though the empty node would have enough.
    pub busy: u32,
    /// Too few devices even when empty.
    pub small: u32,
    /// Too little free CPU, memory, storage or pods, though devices are enough.
    pub other: u32,
    /// A port of the node that the role asks for is taken, though there is room.
    pub ports: u32,
    /// Has room for at least one member of the role.
    pub fits: u32,
}

impl fmt::Display for NodeTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nodes {}:", self.nodes)?;
        let parts = [
            ("taint", self.taint),
            ("selector", self.selector),
            ("cordoned", self.cordoned),
            ("not ready", self.not_ready),
            ("under pressure", self.pressure),
            ("no agent report", self.no_report),
            ("refused before", self.refused),
            ("unhealthy GPU", self.unhealthy),
            ("too small", self.small),
            ("too few free", self.busy),
            ("CPU or memory", self.other),
            ("host port", self.ports),
            ("with room", self.fits),
        ];
        let mut first = true;
        for (name, count) in parts.into_iter().filter(|(_, count)| *count > 0) {
            write!(f, "{} {name} {count}", if first { "" } else { "," })?;
            first = false;
            if let Some(taint) = self.tainted_by.as_ref().filter(|_| name == "taint") {
                write!(f, " ({taint})")?;
            }
        }
        if first {
            f.write_str(" none")?;
        }
        Ok(())
    }
}

/// Why no placement was found. Each carries the numbers that a person needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unplaceable {
    /// Not now: with what is free, only `placed` of `needed` members of the role find a node.
    NotEnoughFree {
        /// The role that did not fit.
        role: RoleName,
        /// Members of that role.
        needed: u32,
        /// Members of that role that found a node.
        placed: u32,
        /// What ran out first.
        what: Shortage,
        /// What one member asks of it.
        each: u64,
        /// Free, over all nodes that the role may use.
        free: u64,
        /// What became of the nodes.
        tally: NodeTally,
    },
    /// Never on this cluster as it is: even when it is empty, the gang does not fit.
    NeverFits {
        /// The role that did not fit.
        role: RoleName,
        /// Members of that role.
        needed: u32,
        /// Members that the empty cluster could take.
        possible: u32,
        /// What runs out first.
        what: Shortage,
        /// What one member asks of it.
        each: u64,
        /// The most that one node offers of it.
        largest: u64,
        /// What became of the nodes.
        tally: NodeTally,
    },
    /// No node offers the resource at all.
    NoSuchResource {
        /// The role that asks for it.
        role: RoleName,
        /// The resource.
        resource: ResourceName,
        /// A resource of similar name that is offered.
        similar: Option<ResourceName>,
    },
    /// There would be room, if a rule between the gang's own members did not forbid it.
    RuleBetweenMembers {
        /// The role that did not fit.
        role: RoleName,
        /// Members of that role.
        needed: u32,
        /// Members of that role that found a node.
        placed: u32,
        /// Members that the empty cluster could take by the rules, where that is too few.
        possible: Option<u32>,
        /// What the rule asks for.
        kind: InterPodKind,
        /// Label of nodes whose values are the rule's domains.
        topology: Arc<str>,
        /// What became of the nodes, the rule aside.
        tally: NodeTally,
    },
    /// There would be room, if it were not to be in one domain of the network.
    NotInOneDomain {
        /// The role that did not fit.
        role: RoleName,
        /// Members of that role.
        needed: u32,
        /// Members that found room in the best domain; with segments in all whole segments.
        placed: u32,
        /// Members that the empty cluster could take so, where that is too few.
        possible: Option<u32>,
        /// Name of the level.
        level: Arc<str>,
        /// Members of each segment, where it is segments that do not fit.
        segment: Option<u32>,
        /// Domains of the level.
        domains: u32,
        /// The domain with most room.
        best: Option<Arc<str>>,
        /// What became of the nodes, the topology aside.
        tally: NodeTally,
    },
    /// Not known: the search gave up, because of the work that it would be.
    TooComplex {
        /// Members that need a place.
        members: u32,
        /// Rules between members.
        rules: u32,
    },
    /// No node passes taints, selectors and readiness.
    NoNode {
        /// The role.
        role: RoleName,
        /// What became of the nodes.
        tally: NodeTally,
        /// Of the labels that it selects nodes by, the one without which it may use most.
        selector: Option<Selected>,
    },
}

impl Unplaceable {
    /// Stable word for conditions, metrics and the extender's text.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotEnoughFree { .. } => "NotEnoughFree",
            Self::NeverFits { .. } => "NeverFits",
            Self::NoSuchResource { .. } => "NoSuchResource",
            Self::RuleBetweenMembers { kind, .. } => match kind {
                InterPodKind::AntiAffinity => "AntiAffinityNotMet",
                InterPodKind::Affinity => "AffinityNotMet",
                InterPodKind::Spread(_) => "SpreadNotMet",
            },
            Self::NotInOneDomain { .. } => "TopologyNotMet",
            Self::TooComplex { .. } => "SearchLimit",
            Self::NoNode { .. } => "NoMatchingNode",
        }
    }

    /// Whether there may be room at another time, on the same nodes: when others have ended.
    pub fn is_for_now(&self) -> bool {
        matches!(
            self,
            Self::NotEnoughFree { .. }
                | Self::RuleBetweenMembers { possible: None, .. }
                | Self::NotInOneDomain { possible: None, .. }
                | Self::TooComplex { .. }
        )
    }
}

/// Name of what is short, in words.
fn short_of(what: &Shortage) -> &str {
    match what {
        Shortage::Cpu => "milli-CPU",
        Shortage::Memory => "bytes of memory",
        Shortage::EphemeralStorage => "bytes of ephemeral storage",
        Shortage::Pods => "pods",
        Shortage::Extended(name) => name.as_str(),
    }
}

/// A reason as it is put together, with names of resources, roles and labels as their users wrote them.
struct Raw<'a, T>(&'a T);

/// Writes what is told to people without control characters: it ends on terminals, in Events and logs.
fn printable(text: &impl fmt::Display, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = text.to_string();
    text.chars()
        .try_for_each(|c| f.write_char(if c.is_control() { ' ' } else { c }))
}

impl fmt::Display for Unplaceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        printable(&Raw(self), f)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        printable(&Raw(self), f)
    }
}

impl fmt::Display for Raw<'_, Unplaceable> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unplaceable::NotEnoughFree {
                role,
                needed,
                placed,
                what,
                each,
                free,
                tally,
            } => write!(
                f,
                "needs room for {needed} {role} with {each} {} each; found room for {placed}, {free} free in all. {tally}{}",
                short_of(what),
                Remedy(self.0)
            ),
            Unplaceable::NeverFits {
                role,
                needed,
                possible,
                what,
                each,
                largest,
                tally,
            } => write!(
                f,
                "needs {needed} {role} with {each} {} each; even when empty the cluster has room for {possible}, \
                 the largest node offers {largest}. {tally}{}",
                short_of(what),
                Remedy(self.0)
            ),
            Unplaceable::NoSuchResource {
                role,
                resource,
                similar,
            } => {
                write!(f, "{role} asks for {resource}, which no node offers")?;
                match similar {
                    Some(similar) => write!(f, "; did you mean {similar}"),
                    None => Ok(()),
                }
            }
            Unplaceable::RuleBetweenMembers {
                role,
                needed,
                placed,
                possible,
                kind,
                topology,
                tally,
            } => {
                write!(f, "needs room for {needed} {role} ")?;
                match kind {
                    InterPodKind::AntiAffinity => {
                        write!(f, "kept apart by anti-affinity on {topology}")?;
                    }
                    InterPodKind::Affinity => {
                        write!(f, "kept together by affinity on {topology}")?;
                    }
                    InterPodKind::Spread(spread) => {
                        write!(f, "spread over {topology} with maxSkew {}", spread.skew_max)?;
                    }
                }
                write!(f, "; found room for {placed}")?;
                if let Some(possible) = possible {
                    write!(f, ", and when the cluster is empty for {possible}")?;
                }
                write!(f, ". {tally}{}", Remedy(self.0))
            }
            Unplaceable::NotInOneDomain {
                role,
                needed,
                placed,
                possible,
                level,
                segment,
                domains,
                best,
                tally,
            } => {
                write!(f, "needs room for {needed} {role} ")?;
                match segment {
                    Some(size) => write!(f, "in segments of {size}, each in one {level}")?,
                    None => write!(f, "in one {level}")?,
                }
                match (segment, best) {
                    (None, Some(best)) => {
                        write!(f, "; of {domains} the best, {best}, has room for {placed}")?;
                    }
                    _ => write!(f, "; found room for {placed} in {domains} of them")?,
                }
                if let Some(possible) = possible {
                    write!(f, ", and when the cluster is empty for {possible}")?;
                }
                write!(f, ". {tally}{}", Remedy(self.0))
            }
            Unplaceable::TooComplex { members, rules: 0 } => write!(
                f,
                "too complex to plan: the search for {members} members of several roles was given up; \
                 there may be a place, and it is looked for again when more is free"
            ),
            Unplaceable::TooComplex { members, rules } => write!(
                f,
                "too complex to plan: the search for {members} members with {rules} rules between them was \
                 given up; there may be a place, and it is looked for again; fewer members or rules can be planned"
            ),
            Unplaceable::NoNode { role, tally, .. } => {
                write!(f, "no node may take {role}. {tally}{}", Remedy(self.0))
            }
        }
    }
}

/// Why a gang is in its phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The definition cannot be taken up.
    Invalid(InvalidWorkload),
    /// The minimum is larger than the number of members.
    MinimumTooLarge {
        /// Stated minimum.
        minimum: u32,
        /// Members that there are.
        total: u32,
    },
    /// Members are missing that must exist before the gang can be planned.
    MembersMissing {
        /// Members that exist.
        present: u32,
        /// Members that must exist.
        needed: u32,
    },
    /// The PodGroup that the members name does not exist.
    PodGroupMissing {
        /// Its name.
        name: Arc<str>,
    },
    /// No placement.
    Unplaceable(Unplaceable),
    /// It has waited for long, and nodes are kept for it until it fits.
    NodesKept {
        /// How many.
        nodes: u32,
        /// Why there is no placement now.
        why: Box<Reason>,
    },
    /// It would fit, on nodes that are kept for a gang before it in the queue.
    KeptForAnother {
        /// Namespace of that gang.
        namespace: Namespace,
        /// Its name.
        name: Arc<str>,
    },
    /// A member carries a scheduling gate of somebody else.
    GatedByOthers {
        /// Name of one such pod.
        pod: Arc<str>,
    },
    /// The scheduler has just begun, and does not plan on half of the agents.
    AgentsAwaited,
    /// It could go on, and stands still on purpose: why, in words.
    Frozen(Arc<str>),
    /// A durable plan exists; members are on their way to the barrier.
    Gathering {
        /// Members of the plan.
        planned: u32,
        /// What kube-scheduler, or the API server, last said of a member that it turned down.
        said: Option<Arc<str>>,
    },
    /// The plan was given back because not all members came to the barrier in time.
    BarrierTimeout {
        /// Members that came.
        arrived: u32,
        /// Members of the plan.
        planned: u32,
        /// What kube-scheduler said of one that did not come.
        said: Option<Arc<str>>,
    },
    /// The plan was given back because a planned node no longer qualifies.
    NodeChanged {
        /// The node.
        node: NodeName,
        /// What is wrong with it, as one constant text.
        what: Arc<str>,
    },
    /// Every planned member is bound.
    AllBound,
    /// At least the minimum is bound.
    MinimumBound {
        /// Members that are not bound.
        missing: u32,
    },
    /// Members were lost after binding.
    MembersLost {
        /// Members bound now.
        bound: u32,
        /// Members that must run together.
        minimum: u32,
    },
    /// The gang stayed partial past its repair deadline and was released as a whole.
    ReleasedWhole {
        /// Members that were bound then.
        bound: u32,
        /// Members that must run together.
        minimum: u32,
    },
    /// A member ran on a GPU that had failed, and the gang was released as a whole by its policy.
    GpuFailed {
        /// The member's role.
        role: RoleName,
        /// Its index.
        index: u32,
        /// The GPU.
        device: DeviceUuid,
        /// Its node.
        node: NodeName,
        /// The agent's word for the cause.
        what: Arc<str>,
    },
    /// Suspended by its user.
    SuspendedByUser,
    /// The job has ended.
    Finished {
        /// Pods of it that still run.
        leftover_pods: u32,
        /// Devices that they hold.
        leftover_devices: u64,
    },
    /// A Gang object of this name cannot be read; the gang is left alone.
    UnreadableRecord(Arc<str>),
    /// A write that the gang needs was refused.
    WriteRefused {
        /// What was to be written.
        what: Arc<str>,
        /// What the API server said.
        said: Arc<str>,
    },
}

impl Reason {
    /// Stable word for conditions, metrics and events: a CamelCase word as conditions ask for.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "InvalidWorkload",
            Self::MinimumTooLarge { .. } => "MinimumTooLarge",
            Self::MembersMissing { .. } => "MembersMissing",
            Self::PodGroupMissing { .. } => "PodGroupMissing",
            Self::Unplaceable(why) => why.code(),
            Self::NodesKept { .. } => "NodesKept",
            Self::KeptForAnother { .. } => "NodesKeptForAnother",
            Self::GatedByOthers { .. } => "GatedByOthers",
            Self::AgentsAwaited => "AgentsAwaited",
            Self::Frozen(_) => "Frozen",
            Self::Gathering { .. } => "Gathering",
            Self::BarrierTimeout { .. } => "BarrierTimeout",
            Self::NodeChanged { .. } => "PlannedNodeChanged",
            Self::AllBound => "AllBound",
            Self::MinimumBound { .. } => "MinimumBound",
            Self::MembersLost { .. } => "MembersLost",
            Self::ReleasedWhole { .. } => "ReleasedWhole",
            Self::GpuFailed { .. } => "GpuFailed",
            Self::SuspendedByUser => "SuspendedByUser",
            Self::Finished {
                leftover_pods: 0, ..
            } => "Finished",
            Self::Finished { .. } => "PodsLeftBehind",
            Self::UnreadableRecord(_) => "UnreadableRecord",
            Self::WriteRefused { .. } => "WriteRefused",
        }
    }
}

impl Reason {
    /// Whether it waits for nothing but room that others have now.
    pub fn is_short_of_room(&self) -> bool {
        match self {
            Self::Unplaceable(why) => why.is_for_now(),
            Self::NodesKept { .. } | Self::KeptForAnother { .. } => true,
            _ => false,
        }
    }
}

impl fmt::Display for Raw<'_, Reason> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Reason::Invalid(what) => write!(f, "{what}"),
            Reason::MinimumTooLarge { minimum, total } => {
                write!(
                    f,
                    "minAvailable {minimum} exceeds the {total} members of this gang"
                )
            }
            Reason::MembersMissing { present, needed } => {
                write!(f, "{present} of {needed} members exist")
            }
            Reason::PodGroupMissing { name } => {
                write!(f, "PodGroup {name} does not exist in this namespace")
            }
            Reason::Unplaceable(why) => write!(f, "{why}"),
            Reason::NodesKept { nodes, why } => {
                let (nodes, them) = match nodes {
                    1 => ("1 node is".to_owned(), "it"),
                    _ => (format!("{nodes} nodes are"), "them"),
                };
                write!(
                    f,
                    "{nodes} kept for it, and gangs behind it in the queue are not placed on {them}: it starts \
                     once enough of what runs there has ended, or as soon as it fits elsewhere. Now: {why}"
                )
            }
            Reason::KeptForAnother { namespace, name } => write!(
                f,
                "would fit on nodes that are kept for gang {name} in namespace {namespace}, which is before it \
                 in the queue and has waited for long"
            ),
            Reason::GatedByOthers { pod } => {
                write!(
                    f,
                    "pod {pod} carries a scheduling gate of another controller"
                )
            }
            Reason::AgentsAwaited => f.write_str(
                "the scheduler has just begun and waits for the nodes' agents, 30 s at most by default",
            ),
            Reason::Frozen(why) => write!(f, "nothing new is bound for now: {why}"),
            Reason::Gathering { planned, said } => {
                write!(
                    f,
                    "waits until kube-scheduler has accepted all {planned} members on their planned nodes"
                )?;
                match said {
                    Some(said) => write!(f, "; of one of them it was said: {said}"),
                    None => Ok(()),
                }
            }
            Reason::BarrierTimeout {
                arrived,
                planned,
                said,
            } => {
                write!(
                    f,
                    "only {arrived} of {planned} members were accepted by kube-scheduler in time; the plan was given back"
                )?;
                match said {
                    Some(said) => write!(f, ": {said}"),
                    None => Ok(()),
                }
            }
            Reason::NodeChanged { node, what } => {
                write!(f, "planned node {node} {what}; the plan was given back")
            }
            Reason::AllBound => f.write_str("every member is bound"),
            Reason::MinimumBound { missing } => {
                write!(f, "the minimum is bound; {missing} more members can join")
            }
            Reason::MembersLost { bound, minimum } => {
                write!(
                    f,
                    "{bound} of at least {minimum} members are bound; replacements are being placed"
                )
            }
            Reason::ReleasedWhole { bound, minimum } => write!(
                f,
                "stayed at {bound} of at least {minimum} members for too long and was released as a whole"
            ),
            Reason::GpuFailed {
                role,
                index,
                device,
                node,
                what,
            } => write!(
                f,
                "member {role}-{index} ran on {device} of node {node}, which has failed ({what}): released as a whole"
            ),
            Reason::SuspendedByUser => f.write_str("suspended by its user"),
            Reason::Finished {
                leftover_pods: 0, ..
            } => f.write_str("the job has ended"),
            Reason::Finished {
                leftover_pods,
                leftover_devices,
            } => write!(
                f,
                "the job has ended; {leftover_pods} of its pods still run and hold {leftover_devices} devices"
            ),
            Reason::UnreadableRecord(why) => write!(f, "the Gang's plan cannot be read: {why}"),
            Reason::WriteRefused { what, said } => write!(f, "{what} was refused: {said}"),
        }
    }
}
