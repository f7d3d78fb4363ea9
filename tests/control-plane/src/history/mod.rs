//! What really happened, from the API server's own watch.
//!
//! ```text
//!   watch pods  --+
//!   watch nodes --+--> events in order of resource version --> World (the state after each) --> gangs bound in part?
//!   watch jobs  --+                                                                        \-> node over-committed?
//! ```
//! The API server gives every write one number out of one sequence, so the events of all three watches fall into the order in which
//! they took effect, and "at any instant" means: after each event. Times are those at which this process saw the event, a few
//! milliseconds late.

mod capacity;
mod gangs;
mod quantity;
mod record;
mod state;

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use gangs::{GangRule, GangTimeline, Minimum};
pub use record::{Now, Recorder};
pub use state::{Amounts, JobState, NodeState, PodState};

/// One write, as a watch told it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The write's place in the order of all writes.
    pub resource_version: u64,
    /// When this process saw it.
    pub at: Timestamp,
    /// What it did.
    pub change: Change,
}

/// What a write did.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A pod was created or changed.
    Pod(PodState),
    /// A pod went away.
    PodGone(PodState),
    /// A node was created or changed.
    Node(NodeState),
    /// A node went away.
    NodeGone(NodeState),
    /// A PyTorchJob was created or changed.
    Job(JobState),
    /// A PyTorchJob went away.
    JobGone(JobState),
}

/// All that was recorded, in order of resource version.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub(crate) events: Vec<Event>,
    /// The moment up to which it reaches: something that is still so then has lasted until then.
    pub(crate) until: Option<Timestamp>,
    /// Times in which a watch had broken and had to start afresh because the server no longer had the events after its last one, found objects
    /// changed, and could not ask for what had been so in between: what happened to them is known by its result only.
    pub gaps: Vec<Gap>,
}

/// A time of which the record does not know everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// When the watch broke.
    pub from: Timestamp,
    /// When it was found that it cannot be told any more: what had come of it until then is recorded as of now.
    pub until: Timestamp,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.from, self.until)
    }
}

/// The cluster after some event: all objects by UID.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Pods by UID.
    pub pods: BTreeMap<String, PodState>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeState>,
    /// PyTorchJobs by UID.
    pub jobs: BTreeMap<String, JobState>,
}

impl World {
    /// Takes in one change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Pod(pod) => {
                self.pods.insert(pod.uid.clone(), pod.clone());
            }
            Change::PodGone(pod) => {
                self.pods.remove(&pod.uid);
            }
            Change::Node(node) => {
                self.nodes.insert(node.name.clone(), node.clone());
            }
            Change::NodeGone(node) => {
                self.nodes.remove(&node.name);
            }
            Change::Job(job) => {
                self.jobs.insert(job.uid.clone(), job.clone());
            }
            Change::JobGone(job) => {
                self.jobs.remove(&job.uid);
            }
        }
    }

    /// The pods whose controller has this name, such as a job's.
    pub fn pods_of<'a>(&'a self, controller: &'a str) -> impl Iterator<Item = &'a PodState> {
        self.pods.values().filter(move |pod| {
            pod.controller
                .as_ref()
                .is_some_and(|(_, name, _)| name == controller)
        })
    }

    /// How many of these pods are bound, not finished and not being deleted.
    pub fn bound_of(&self, controller: &str) -> usize {
        self.pods_of(controller)
            .filter(|pod| pod.is_bound_and_live())
            .count()
    }

    /// Whole units of a resource that bound, unfinished pods hold on all nodes.
    pub fn held(&self, resource: &str) -> i128 {
        let milli = self
            .pods
            .values()
            .filter(|pod| pod.holds_resources())
            .filter_map(|pod| pod.requests.get(resource))
            .fold(0_i128, |sum, amount| sum.saturating_add(*amount));
        milli / 1_000
    }
}

/// Something that must never be seen in a history.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Violation {
    /// A gang had some, but fewer than its minimum, of its members bound for longer than the deadline.
    #[error(
        "gang {gang} was bound in part for {lasted_ms} ms from {from} (deadline {deadline_ms} ms): {bound} of {minimum} members on {nodes:?}"
    )]
    PartialGang {
        /// The gang's name.
        gang: String,
        /// When it became partial.
        from: Timestamp,
        /// How long it stayed so, or had by the end of the history, without the API server's outages, milliseconds.
        lasted_ms: i128,
        /// The deadline, milliseconds.
        deadline_ms: i128,
        /// The most members bound in that time.
        bound: u32,
        /// The gang's minimum.
        minimum: u32,
        /// The nodes of the members bound.
        nodes: Vec<String>,
    },
    /// A pod was bound to a node that had no room for it.
    #[error(
        "node {node} was over-committed by pod {pod} at {at}: {resource} {used} of {allocatable} (thousandths), pods {pods:?}"
    )]
    OverCommitted {
        /// The node.
        node: String,
        /// The pod whose binding went too far.
        pod: String,
        /// When.
        at: Timestamp,
        /// The resource.
        resource: String,
        /// What was held after the binding, thousandths.
        used: i128,
        /// What the node offered, thousandths.
        allocatable: i128,
        /// All pods that held some of it.
        pods: Vec<String>,
    },
    /// The record has a gap: what else was broken in it, nobody saw.
    #[error("{gaps} gaps in the record, the first at {at}: what happened in it was not seen")]
    Unseen {
        /// When the first was found.
        at: Timestamp,
        /// How many there are.
        gaps: usize,
    },
}

impl History {
    /// A history of given events, put in order, that reaches up to its last one.
    pub fn new(mut events: Vec<Event>) -> History {
        events.sort_by_key(|event| event.resource_version);
        let until = events.last().map(|event| event.at);
        History {
            events,
            until,
            gaps: Vec::new(),
        }
    }

    /// Whether a moment lies in a gap: the order of what happened then is not known.
    pub fn is_unseen_at(&self, at: Timestamp) -> bool {
        let mut gaps = self.gaps.iter();
        gaps.any(|gap| (gap.from..=gap.until).contains(&at))
    }

    /// The gaps of the record: a gang may have been bound in part in one of them. `None` when all was seen.
    pub fn unseen(&self) -> Option<Violation> {
        self.gaps.first().map(|gap| Violation::Unseen {
            at: gap.until,
            gaps: self.gaps.len(),
        })
    }

    /// The events, in order of resource version.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The state at the end.
    pub fn world(&self) -> World {
        let mut world = World::default();
        for event in &self.events {
            world.apply(&event.change);
        }
        world
    }

    /// Pods that went from unbound to bound, in order: when, and the pod as it was then.
    pub fn binds(&self) -> Vec<(Timestamp, &PodState)> {
        let mut bound = std::collections::BTreeSet::new();
        self.events
            .iter()
            .filter_map(|event| match &event.change {
                Change::Pod(pod) if pod.node.is_some() && bound.insert(pod.uid.as_str()) => {
                    Some((event.at, pod))
                }
                _ => None,
            })
            .collect()
    }
}
