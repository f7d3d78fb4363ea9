//! Objects as the judge sees them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use muster_embedded::standins::fit::{self, Resources};
use muster_embedded::value;
use muster_kubernetes::names;
use serde_json::Value;
use tokio::time::Instant;

use super::sight::{Grounds, Since};

/// A pod.
#[derive(Clone, Debug)]
pub struct PodFact {
    /// UID.
    pub uid: String,
    /// Name.
    pub name: String,
    /// Node that it is bound to, or nothing.
    pub node: String,
    /// What it asks for.
    pub requests: Arc<Resources>,
    /// Key of its gang: namespace and UID of the workload.
    pub gang: String,
    /// Id of the plan that has bound it, by its annotation.
    pub plan: String,
    /// Epoch on it.
    pub epoch: u64,
    /// `status.phase`.
    pub phase: String,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Members of its gang, as its annotation states.
    pub stated: u32,
    /// Whether it names Muster as its scheduler.
    pub for_us: bool,
    /// When it was bound.
    pub bound: Option<Since>,
}

impl PodFact {
    /// Reads a pod. `now`: when it came to be so.
    pub fn of(pod: &Value, before: Option<&Self>, now: Instant) -> Self {
        let annotation = |key: &str| value::text(pod, &["metadata", "annotations", key]);
        let node = value::text(pod, &["spec", "nodeName"]).to_owned();
        let bound = before.and_then(|before| before.bound);
        let bound = (!node.is_empty()).then(|| bound.unwrap_or_else(|| since(pod, now)));
        // The containers of a pod never change.
        let requests = before.map_or_else(
            || Arc::new(fit::requests(pod)),
            |before| Arc::clone(&before.requests),
        );
        Self {
            uid: value::uid(pod).to_owned(),
            name: value::name(pod).to_owned(),
            requests,
            gang: gang_of(pod),
            plan: annotation(names::PLAN).to_owned(),
            epoch: annotation(names::EPOCH).parse().unwrap_or(0),
            phase: value::text(pod, &["status", "phase"]).to_owned(),
            terminating: value::at(pod, &["metadata", "deletionTimestamp"]).is_some(),
            for_us: value::text(pod, &["spec", "schedulerName"]) == names::SCHEDULER_NAME,
            stated: annotation(names::GANG_SIZE).parse().unwrap_or(0),
            node,
            bound,
        }
    }

    /// Whether it has ended, well or badly.
    pub fn has_ended(&self) -> bool {
        self.phase == "Succeeded" || self.phase == "Failed"
    }

    /// Bound, not ended, not being deleted.
    pub fn runs(&self) -> bool {
        !self.node.is_empty() && !self.has_ended() && !self.terminating
    }

    /// Whether it has its node's room: until it is gone.
    pub fn holds(&self) -> bool {
        !self.node.is_empty() && !self.has_ended()
    }

    /// Whether Muster has bound it.
    pub fn is_ours(&self) -> bool {
        !self.plan.is_empty()
    }
}

/// This version of an object.
pub fn since(object: &Value, at: Instant) -> Since {
    let version = value::text(object, &["metadata", "resourceVersion"]);
    Since {
        at,
        version: version.parse().unwrap_or(0),
    }
}

/// Key of a pod's gang.
pub fn gang_of(pod: &Value) -> String {
    let label = |key: &str| value::text(pod, &["metadata", "labels", key]);
    let namespace = value::namespace(pod);
    let job = value::controller(pod).filter(|owner| value::text(owner, &["kind"]) == "PyTorchJob");
    if let Some(job) = job {
        return format!("{namespace}/{}", value::text(job, &["uid"]));
    }
    match (label(names::GANG_LABEL), label(names::POD_GROUP_LABEL)) {
        ("", "") => format!("{namespace}/{}", value::uid(pod)),
        ("", group) => format!("{namespace}/podgroup/{group}"),
        (gang, _) => format!("{namespace}/label/{gang}"),
    }
}

/// Members that a job needs to run.
pub fn minimum_of(job: &Value) -> u32 {
    let stated = value::int(
        job,
        &["spec", "runPolicy", "schedulingPolicy", "minAvailable"],
    );
    let roles = value::at(job, &["spec", "pytorchReplicaSpecs"]).and_then(Value::as_object);
    let all = roles
        .into_iter()
        .flat_map(|roles| roles.values())
        .map(|role| value::int(role, &["replicas"]).unwrap_or(1))
        .fold(0, i64::saturating_add);
    u32::try_from(stated.unwrap_or(all)).unwrap_or(0)
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeFact {
    /// What it offered in the last while, newest last, each with its beginning.
    offers: VecDeque<(Since, Resources)>,
    /// Since when nothing new may be placed on it.
    pub closed_since: Option<Since>,
    /// Why.
    pub closed: &'static str,
}

impl NodeFact {
    /// Reads a node.
    pub fn of(node: &Value, before: Option<Self>, now: Instant) -> Self {
        let offer = fit::allocatable(node);
        let mut offers = VecDeque::new();
        let mut closed_since = None;
        if let Some(before) = before {
            offers = before.offers;
            closed_since = before.closed_since;
        }
        if offers.back().is_none_or(|(_, last)| *last != offer) {
            offers.push_back((since(node, now), offer));
        }
        let ready = value::condition(node, "Ready")
            .is_some_and(|ready| value::text(ready, &["status"]) == "True");
        let is_foreign = |taint: &Value| {
            value::text(taint, &["key"]) != "nvidia.com/gpu"
                && value::text(taint, &["effect"]) != "PreferNoSchedule"
        };
        let closed = if value::flag(node, &["spec", "unschedulable"]) {
            "is cordoned"
        } else if !ready {
            "is not ready"
        } else if value::items(node, &["spec", "taints"])
            .iter()
            .any(is_foreign)
        {
            "has a taint that nobody tolerates"
        } else {
            ""
        };
        Self {
            offers,
            closed_since: (!closed.is_empty())
                .then(|| closed_since.unwrap_or_else(|| since(node, now))),
            closed,
        }
    }

    /// The most that it offers of a resource, or has offered as far as somebody knows.
    pub fn offered(&self, resource: &str, grounds: &Grounds) -> i128 {
        let mut most = 0;
        for (since, offer) in self.offers.iter().rev() {
            most = most.max(offer.get(resource).copied().unwrap_or(0));
            if grounds.know_node(*since) {
                // It is known that those before it are no more.
                break;
            }
        }
        most
    }
}

/// A durable plan, as any version of its Gang has told it.
#[derive(Clone, Debug)]
pub struct PlanFact {
    /// Leadership that made it.
    pub epoch: u64,
    /// Key of its gang.
    pub gang: String,
    /// Nodes planned for a pod's UID, or for a name while it has none.
    pub places: BTreeMap<(String, i64), Vec<Place>>,
}

impl PlanFact {
    /// When a pod's seat was moved to this node. `None` when it has been there from the first.
    pub fn moved(&self, pod_uid: &str, node: &str) -> Option<Instant> {
        let is_its = |place: &Place| place.pod_uid == pod_uid && place.node == node;
        let seat = self
            .places
            .values()
            .find(|places| places.iter().any(is_its))?;
        let from = seat.iter().rposition(|place| place.node != node)?;
        seat.get(from.saturating_add(1)).map(|place| place.since)
    }
}

/// A member's place in one version of a plan.
#[derive(Clone, Debug)]
pub struct Place {
    /// Node.
    pub node: String,
    /// UID of the pod that has it, where it is known.
    pub pod_uid: String,
    /// When it was first seen in the store.
    pub since: Instant,
}

impl Place {
    /// Whether it is the same place, whenever it was seen.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.node, &self.pod_uid) == (&other.node, &other.pod_uid)
    }
}
