//! What the planner sees, taken out of an engine: a copy that can be written down, looked at, and
//! planned on again elsewhere. [`crate::engine::Engine::state`] makes it.

use std::sync::Arc;

use crate::config::Config;
use crate::ids::{DeviceUuid, Epoch, GangKey, NodeName, PlanId, PodUid, RoleName};
use crate::inventory::{Inventory, NodeReport};
use crate::ledger::{Holding, Ledger};
use crate::node::Node;
use crate::plan::GangRequest;
use crate::record::Phase;
use crate::snapshot::Usual;
use crate::time::Timestamp;
use crate::workload::WorkloadKind;

/// What the planner sees at one moment.
#[derive(Clone, Debug)]
pub struct State {
    /// The moment, on the engine's clock.
    pub at: Timestamp,
    /// Limits and choices.
    pub config: Config,
    /// The leadership.
    pub epoch: Epoch,
    /// Whether the engine leads and plans.
    pub leads: bool,
    /// Whether the first LIST of every kind was in.
    pub synced: bool,
    /// What members usually ask for, as planning goes by it.
    pub demand: Vec<Usual>,
    /// Nodes, in order of name. Those that do not exist any more are here while something is known of them.
    pub nodes: Vec<NodeState>,
    /// Gangs, in order of their keys.
    pub gangs: Vec<GangState>,
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// Its name.
    pub name: NodeName,
    /// The Node object; `None` where there is none.
    pub node: Option<Arc<Node>>,
    /// What its agent said; `None` where none was heard.
    pub belief: Option<BeliefState>,
    /// Who holds room on it, pods first.
    pub holdings: Vec<Holding>,
}

/// What is believed of a node's devices.
#[derive(Clone, Debug)]
pub struct BeliefState {
    /// The report.
    pub report: NodeReport,
    /// When its agent was last heard.
    pub heard: Timestamp,
    /// `metadata.uid` of the Node that it spoke for; `None` when there was none.
    pub node_uid: Option<Arc<str>>,
}

/// One gang.
#[derive(Clone, Debug)]
pub struct GangState {
    /// Who it is.
    pub key: GangKey,
    /// Kind of its workload.
    pub kind: WorkloadKind,
    /// Name of its workload.
    pub name: Arc<str>,
    /// Name of its Gang object.
    pub object: Arc<str>,
    /// Phase.
    pub phase: Phase,
    /// Why it is in that phase.
    pub why: Option<Why>,
    /// Place in the queue: the larger priority first.
    pub priority: i32,
    /// Then the older, seconds since the Unix epoch.
    pub created_seconds: i64,
    /// Then the one that was seen first.
    pub sequence: u64,
    /// It rests until then, after a plan of it failed.
    pub rests_until: Option<Timestamp>,
    /// The plan that it has.
    pub plan: Option<PlanState>,
    /// What it waits for: a place for all of it, or, where it has a plan, for members without one.
    pub asks: Vec<Ask>,
}

/// A reason as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// Its stable word.
    pub code: Arc<str>,
    /// Its text.
    pub text: Arc<str>,
}

/// What the planner is asked in one call.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The members, and what they ask for.
    pub request: GangRequest,
    /// How many of them may stay without a place.
    pub spare: u32,
}

/// A plan.
#[derive(Clone, Debug)]
pub struct PlanState {
    /// Its id.
    pub id: PlanId,
    /// Members that must run together.
    pub minimum: u32,
    /// The Gang object is known to say it.
    pub durable: bool,
    /// Its places, in order of role and index.
    pub slots: Vec<SlotState>,
    /// What was asked for it; `None` once a member is bound.
    pub asked: Option<Ask>,
}

/// A place in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// Role of the member.
    pub role: RoleName,
    /// Index within the role.
    pub index: u32,
    /// Its node; `None` while it has lost its place.
    pub node: Option<NodeName>,
    /// Devices that it is predicted to get.
    pub devices: Vec<DeviceUuid>,
    /// The pod that has claimed it.
    pub pod: Option<PodUid>,
    /// Its pod is bound, or has ended well.
    pub bound: bool,
}

impl State {
    /// The ledger: what pods hold and what is reserved.
    pub fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        for state in &self.nodes {
            if let Some(node) = &state.node {
                ledger.set_node((**node).clone());
            }
            for holding in &state.holdings {
                ledger.hold(state.name.clone(), holding.clone());
            }
        }
        ledger
    }

    /// The inventory: what is believed of devices.
    pub fn inventory(&self) -> Inventory {
        let mut inventory = Inventory::default();
        for state in &self.nodes {
            if let Some(belief) = &state.belief {
                let uid = belief.node_uid.clone();
                inventory.believe(belief.report.clone(), belief.heard, uid);
            }
            if let Some(node) = &state.node {
                inventory.set_node(node);
            }
        }
        inventory
    }
}
