//! Gangs, their plans and what they ask for, as the file has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::ids::{GangKey, NodeName};
use muster_core::plan;
use muster_core::record::Phase;
use muster_core::state::{self, GangState, PlanState, SlotState};
use muster_core::time::Timestamp;
use muster_core::topology::{self, TopologyRequest};
use muster_core::workload::{MEMBERS_MAX, WorkloadKind};
use serde::{Deserialize, Serialize};

use super::shape::Shapes;
use super::{Words, is_default, text, texts, word, words};
use crate::error::Error;

/// A gang.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gang {
    namespace: String,
    name: String,
    uid: String,
    kind: Kind,
    object: String,
    phase: Stage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<Why>,
    priority: i32,
    created_seconds: i64,
    sequence: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rests_until_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    asks: Vec<Ask>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum Kind {
    PyTorchJob,
    PodGroup,
    Label,
    Pod,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum Stage {
    Waiting,
    Starting,
    Running,
    Repairing,
    Suspended,
    Succeeded,
    Failed,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Why {
    code: String,
    text: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    id: String,
    minimum: u32,
    durable: bool,
    slots: Vec<Slot>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asked: Option<Ask>,
}

/// A place in a plan. Without a node it has lost it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Slot {
    role: String,
    index: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    devices: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    bound: bool,
}

/// What the planner is asked in one call.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    roles: Vec<Role>,
    #[serde(default, skip_serializing_if = "is_default")]
    spare: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    placed: Vec<Standing>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    avoid: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Topology::is_empty")]
    topology: Topology,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Role {
    role: String,
    indices: Vec<u32>,
    shape: usize,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: Words,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    segments: Vec<u32>,
}

/// A member that has its place already.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Standing {
    node: String,
    shape: usize,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    labels: Words,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segment: Option<u32>,
}

/// Levels by their position in `config.topology`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Topology {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    required: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    preferred: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segment: Option<Segment>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Segment {
    size: u32,
    level: usize,
}

/// What a gang is read against.
pub(super) struct Known<'a> {
    pub shapes: &'a Shapes,
    /// Levels of the topology.
    pub levels: usize,
}

impl Gang {
    pub fn of(state: &GangState, shapes: &Shapes) -> Self {
        let GangState {
            key,
            kind,
            name,
            object,
            phase,
            why,
            priority,
            created_seconds,
            sequence,
            rests_until,
            plan,
            asks,
        } = state;
        Self {
            namespace: key.namespace.as_str().to_owned(),
            name: word(name),
            uid: word(&key.uid),
            kind: Kind::of(*kind),
            object: word(object),
            phase: Stage::of(*phase),
            why: why.as_ref().map(|why| Why {
                code: word(&why.code),
                text: word(&why.text),
            }),
            priority: *priority,
            created_seconds: *created_seconds,
            sequence: *sequence,
            rests_until_ms: rests_until.map(|until| until.0),
            plan: plan.as_ref().map(|plan| Plan::of(plan, shapes)),
            asks: asks.iter().map(|ask| Ask::of(ask, shapes)).collect(),
        }
    }

    pub fn read(self, path: &str, known: &Known<'_>) -> Result<GangState, Error> {
        let asks = self.asks.into_iter().enumerate();
        let asks = asks.map(|(at, ask)| ask.read(&format!("{path}.asks[{at}]"), known));
        let plan = self
            .plan
            .map(|plan| plan.read(&format!("{path}.plan"), known));
        Ok(GangState {
            key: GangKey::new(&self.namespace, &self.uid),
            kind: self.kind.read(),
            name: text(self.name),
            object: text(self.object),
            phase: self.phase.read(),
            why: self.why.map(|why| state::Why {
                code: text(why.code),
                text: text(why.text),
            }),
            priority: self.priority,
            created_seconds: self.created_seconds,
            sequence: self.sequence,
            rests_until: self.rests_until_ms.map(Timestamp),
            plan: plan.transpose()?,
            asks: asks.collect::<Result<_, _>>()?,
        })
    }
}

impl Kind {
    fn of(kind: WorkloadKind) -> Self {
        match kind {
            WorkloadKind::PyTorchJob => Self::PyTorchJob,
            WorkloadKind::PodGroup => Self::PodGroup,
            WorkloadKind::Label => Self::Label,
            WorkloadKind::Pod => Self::Pod,
        }
    }

    fn read(self) -> WorkloadKind {
        match self {
            Self::PyTorchJob => WorkloadKind::PyTorchJob,
            Self::PodGroup => WorkloadKind::PodGroup,
            Self::Label => WorkloadKind::Label,
            Self::Pod => WorkloadKind::Pod,
        }
    }
}

impl Stage {
    fn of(phase: Phase) -> Self {
        match phase {
            Phase::Waiting => Self::Waiting,
            Phase::Starting => Self::Starting,
            Phase::Running => Self::Running,
            Phase::Repairing => Self::Repairing,
            Phase::Suspended => Self::Suspended,
            Phase::Succeeded => Self::Succeeded,
            Phase::Failed => Self::Failed,
        }
    }

    fn read(self) -> Phase {
        match self {
            Self::Waiting => Phase::Waiting,
            Self::Starting => Phase::Starting,
            Self::Running => Phase::Running,
            Self::Repairing => Phase::Repairing,
            Self::Suspended => Phase::Suspended,
            Self::Succeeded => Phase::Succeeded,
            Self::Failed => Phase::Failed,
        }
    }
}

impl Plan {
    fn of(plan: &PlanState, shapes: &Shapes) -> Self {
        let PlanState {
            id,
            minimum,
            durable,
            slots,
            asked,
        } = plan;
        Self {
            id: id.as_str().to_owned(),
            minimum: *minimum,
            durable: *durable,
            slots: slots.iter().map(Slot::of).collect(),
            asked: asked.as_ref().map(|ask| Ask::of(ask, shapes)),
        }
    }

    fn read(self, path: &str, known: &Known<'_>) -> Result<PlanState, Error> {
        let mut seats = BTreeSet::new();
        for (at, slot) in self.slots.iter().enumerate() {
            if !seats.insert((slot.role.as_str(), slot.index)) {
                let path = format!("{path}.slots[{at}]");
                let value = format!("{} {}", slot.role, slot.index);
                return Err(Error::field(
                    path,
                    value,
                    "is another place of the plan too",
                ));
            }
        }
        let asked = self
            .asked
            .map(|ask| ask.read(&format!("{path}.asked"), known));
        Ok(PlanState {
            id: self.id.into(),
            minimum: self.minimum,
            durable: self.durable,
            slots: self.slots.into_iter().map(Slot::read).collect(),
            asked: asked.transpose()?,
        })
    }
}

impl Slot {
    fn of(slot: &SlotState) -> Self {
        let SlotState {
            role,
            index,
            node,
            devices,
            pod,
            bound,
        } = slot;
        Self {
            role: role.as_str().to_owned(),
            index: *index,
            node: node.as_ref().map(|node| node.as_str().to_owned()),
            devices: devices
                .iter()
                .map(|uuid| uuid.as_str().to_owned())
                .collect(),
            pod: pod.as_ref().map(|pod| pod.as_str().to_owned()),
            bound: *bound,
        }
    }

    fn read(self) -> SlotState {
        SlotState {
            role: self.role.into(),
            index: self.index,
            node: self.node.map(Into::into),
            devices: self.devices.into_iter().map(Into::into).collect(),
            pod: self.pod.map(Into::into),
            bound: self.bound,
        }
    }
}

impl Ask {
    fn of(ask: &state::Ask, shapes: &Shapes) -> Self {
        let state::Ask { request, spare } = ask;
        let plan::GangRequest {
            roles,
            placed,
            avoid,
            topology,
        } = request;
        Self {
            roles: roles.iter().map(|role| Role::of(role, shapes)).collect(),
            spare: *spare,
            placed: placed
                .iter()
                .map(|member| Standing::of(member, shapes))
                .collect(),
            avoid: avoid.iter().map(|node| node.as_str().to_owned()).collect(),
            topology: Topology::of(topology),
        }
    }

    fn read(self, path: &str, known: &Known<'_>) -> Result<state::Ask, Error> {
        let mut seats = BTreeSet::new();
        for (at, role) in self.roles.iter().enumerate() {
            let mut indices = role.indices.iter();
            if let Some(index) = indices.find(|index| !seats.insert((role.role.as_str(), **index)))
            {
                let limit = format!("is asked for twice in role {}", role.role);
                return Err(Error::field(
                    format!("{path}.roles[{at}].indices"),
                    index,
                    limit,
                ));
            }
        }
        let roles = self.roles.into_iter().enumerate();
        let roles = roles.map(|(at, role)| role.read(&format!("{path}.roles[{at}]"), known));
        let placed = self.placed.into_iter().enumerate();
        let placed = placed.map(|(at, member)| member.read(&format!("{path}.placed[{at}]"), known));
        Ok(state::Ask {
            spare: self.spare,
            request: plan::GangRequest {
                roles: roles.collect::<Result<_, _>>()?,
                placed: placed.collect::<Result<_, _>>()?,
                avoid: self.avoid.into_iter().map(NodeName::from).collect(),
                topology: self.topology.read(&format!("{path}.topology"), known)?,
            },
        })
    }
}

impl Role {
    fn of(role: &plan::RoleRequest, shapes: &Shapes) -> Self {
        let plan::RoleRequest {
            role,
            indices,
            shape,
            labels,
            segments,
        } = role;
        Self {
            role: role.as_str().to_owned(),
            indices: indices.clone(),
            shape: shapes.position(shape),
            labels: words(labels),
            segments: segments.clone(),
        }
    }

    fn read(self, path: &str, known: &Known<'_>) -> Result<plan::RoleRequest, Error> {
        let segments = self.segments.len();
        if segments != 0 && segments != self.indices.len() {
            let limit = format!(
                "must be none or one for each of {} indices",
                self.indices.len()
            );
            let path = format!("{path}.segments (entries)");
            return Err(Error::field(path, segments, limit));
        }
        Ok(plan::RoleRequest {
            role: self.role.into(),
            indices: self.indices,
            shape: known.shapes.get(&format!("{path}.shape"), self.shape)?,
            labels: Arc::new(texts(self.labels)),
            segments: self.segments,
        })
    }
}

impl Standing {
    fn of(member: &plan::Standing, shapes: &Shapes) -> Self {
        let plan::Standing {
            node,
            shape,
            labels,
            segment,
        } = member;
        Self {
            node: node.as_str().to_owned(),
            shape: shapes.position(shape),
            labels: words(labels),
            segment: *segment,
        }
    }

    fn read(self, path: &str, known: &Known<'_>) -> Result<plan::Standing, Error> {
        Ok(plan::Standing {
            node: self.node.into(),
            shape: known.shapes.get(&format!("{path}.shape"), self.shape)?,
            labels: Arc::new(texts(self.labels)),
            segment: self.segment,
        })
    }
}

impl Topology {
    fn is_empty(&self) -> bool {
        self.required.is_none() && self.preferred.is_none() && self.segment.is_none()
    }

    fn of(request: &TopologyRequest) -> Self {
        let TopologyRequest {
            required,
            preferred,
            segment,
        } = request;
        Self {
            required: *required,
            preferred: *preferred,
            segment: segment.map(|topology::Segment { size, level }| Segment { size, level }),
        }
    }

    fn read(self, path: &str, known: &Known<'_>) -> Result<TopologyRequest, Error> {
        let segment_level = self.segment.as_ref().map(|segment| segment.level);
        let levels = [
            ("required", self.required),
            ("preferred", self.preferred),
            ("segment.level", segment_level),
        ];
        for (field, level) in levels {
            if let Some(level) = level.filter(|level| *level >= known.levels) {
                let levels = known.levels;
                let limit = format!("must be the position of a level, of {levels} from 0");
                return Err(Error::field(format!("{path}.{field}"), level, limit));
            }
        }
        let size = self.segment.as_ref().map(|segment| segment.size);
        if let Some(size) = size.filter(|size| !(1..=MEMBERS_MAX).contains(size)) {
            let limit = format!("must be 1 to {MEMBERS_MAX}");
            return Err(Error::field(format!("{path}.segment.size"), size, limit));
        }
        Ok(TopologyRequest {
            required: self.required,
            preferred: self.preferred,
            segment: self.segment.map(|segment| topology::Segment {
                size: segment.size,
                level: segment.level,
            }),
        })
    }
}

/// Refuses what two gangs cannot have at the same time.
pub(super) fn check(gangs: &[GangState]) -> Result<(), Error> {
    let mut keys = BTreeMap::new();
    for (at, gang) in gangs.iter().enumerate() {
        if let Some(other) = keys.insert(&gang.key, at) {
            let limit = format!("is the uid of gangs[{other}] in the same namespace too");
            return Err(Error::field(
                format!("gangs[{at}].uid"),
                &gang.key.uid,
                limit,
            ));
        }
    }
    Ok(())
}
