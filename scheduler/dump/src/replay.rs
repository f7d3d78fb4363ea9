//! Planning again what a state shows: the production planner, in order of the queue.
//!
//! Gangs that wait are planned one after the other on what is free, as the engine's next pass would do
//! if it looked at each of them; one that finds room holds it before the next is looked at. Gangs that have a plan
//! of which no member is bound are planned again, too: with the room of all of these plans given back, in the order
//! in which they were made. That gives the same plan for as long as nothing else has changed since.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use muster_core::config::Config;
use muster_core::inventory::Inventory;
use muster_core::ledger::{Ledger, SlotKey};
use muster_core::plan::{Placed, Standing, plan_part};
use muster_core::reason::Unplaceable;
use muster_core::record::Phase;
use muster_core::snapshot::Snapshot;
use muster_core::state::{Ask, GangState, PlanState, SlotState, State};
use muster_core::time::Timestamp;

/// What came of planning a state again.
#[derive(Debug)]
pub struct Replay<'a> {
    /// The gangs with something to plan, those that wait first: in order of the queue, then in order of their plans.
    pub gangs: Vec<Replayed<'a>>,
    /// The others.
    pub others: Vec<&'a GangState>,
}

/// What came of one gang.
#[derive(Debug)]
pub struct Replayed<'a> {
    /// The gang.
    pub gang: &'a GangState,
    /// What was found.
    pub found: Found,
}

/// What was found for a gang.
#[derive(Debug)]
pub enum Found {
    /// A place for all of it but for members that may stay behind: role by role, index by index.
    Places(Vec<Placed>),
    /// No place.
    None(Unplaceable),
    /// It is not planned now; the gang's own reason says why.
    NotAsked,
    /// For a gang with a plan, of which members have lost their places: what each search has found.
    Missing(Vec<Result<Vec<Placed>, Unplaceable>>),
    /// For a gang with a plan, planned again.
    Again {
        /// What was found.
        found: Result<Vec<Placed>, Unplaceable>,
        /// Whether that is the plan that it has, node by node and device by device.
        same: bool,
    },
}

/// Plans a state again.
pub fn replay(state: &State) -> Replay<'_> {
    let is_over = |gang: &GangState| matches!(gang.phase, Phase::Succeeded | Phase::Failed);
    let is_waiting = |gang: &&GangState| !is_over(gang) && (!gang.asks.is_empty() || is_idle(gang));
    let mut waiting: Vec<&GangState> = state.gangs.iter().filter(is_waiting).collect();
    waiting.sort_by_key(|gang| {
        let created = gang.created_seconds;
        (Reverse(gang.priority), created, gang.sequence, &gang.key)
    });
    let mut desk = Desk::new(state);
    let mut gangs: Vec<Replayed<'_>> = waiting
        .into_iter()
        .map(|gang| Replayed {
            found: desk.look_at(gang),
            gang,
        })
        .collect();
    gangs.extend(again(state));
    let looked_at: BTreeSet<_> = gangs.iter().map(|replayed| &replayed.gang.key).collect();
    let rest = |gang: &&GangState| !looked_at.contains(&gang.key);
    Replay {
        others: state.gangs.iter().filter(rest).collect(),
        gangs,
    }
}

/// Whether it waits without being asked for.
fn is_idle(gang: &GangState) -> bool {
    gang.plan.is_none() && gang.phase == Phase::Waiting
}

/// Gangs with a plan of which nobody is bound, planned again.
fn again(state: &State) -> Vec<Replayed<'_>> {
    let mut planned: Vec<(&GangState, &PlanState, &Ask)> = state
        .gangs
        .iter()
        .filter(|gang| gang.asks.is_empty())
        .filter_map(|gang| {
            let plan = gang.plan.as_ref()?;
            Some((gang, plan, plan.asked.as_ref()?))
        })
        .collect();
    planned.sort_by_key(|(gang, plan, _)| (number(plan.id.as_str()), &gang.key));
    let mut desk = Desk::new(state);
    for (gang, plan, _) in &planned {
        for slot in &plan.slots {
            desk.give_back(&key_of(gang, slot));
        }
    }
    planned
        .into_iter()
        .map(|(gang, plan, ask)| {
            let found = desk.plan(ask, Vec::new());
            let same = found
                .as_ref()
                .is_ok_and(|found| is_same(found, &plan.slots));
            // The next one was planned beside the plan that there is.
            desk.take_slots(gang, plan, ask);
            let found = Found::Again { found, same };
            Replayed { gang, found }
        })
        .collect()
}

/// Epoch and number of a plan: the order in which plans are made.
fn number(id: &str) -> (u64, u64) {
    let parts = id.strip_prefix('e').and_then(|id| id.split_once('-'));
    let parse = |(epoch, number): (&str, &str)| epoch.parse().ok().zip(number.parse().ok());
    parts.and_then(parse).unwrap_or((u64::MAX, u64::MAX))
}

fn key_of(gang: &GangState, slot: &SlotState) -> SlotKey {
    SlotKey {
        gang: gang.key.clone(),
        role: slot.role.clone(),
        index: slot.index,
    }
}

fn is_same(found: &[Placed], slots: &[SlotState]) -> bool {
    let mut found: Vec<&Placed> = found.iter().collect();
    found.sort_by_key(|member| (&member.role, member.index));
    let mut slots = slots.iter();
    found.len() == slots.len()
        && found.into_iter().zip(&mut slots).all(|(member, slot)| {
            (&member.role, member.index) == (&slot.role, slot.index)
                && slot.node.as_ref() == Some(&member.node)
                && slot.devices == member.devices
        })
}

/// What planning needs: who holds what, and what is free.
struct Desk<'a> {
    config: &'a Config,
    at: Timestamp,
    ledger: Ledger,
    inventory: Inventory,
    snapshot: Snapshot,
}

impl<'a> Desk<'a> {
    fn new(state: &'a State) -> Self {
        let mut desk = Self {
            config: &state.config,
            at: state.at,
            ledger: state.ledger(),
            inventory: state.inventory(),
            snapshot: Snapshot::default(),
        };
        for node in &state.nodes {
            desk.refresh(&node.name);
        }
        for usual in &state.demand {
            desk.snapshot.learn(&usual.shape);
        }
        desk.snapshot
            .restore_demand(state.demand.clone(), desk.config);
        desk
    }

    fn refresh(&mut self, node: &muster_core::ids::NodeName) {
        let capacity = self
            .ledger
            .capacity(node, &self.inventory, self.config, self.at);
        if let Some(capacity) = capacity {
            self.snapshot.set(Arc::new(capacity));
        }
    }

    fn give_back(&mut self, slot: &SlotKey) {
        if let Some(node) = self.ledger.release(slot) {
            self.refresh(&node);
        }
    }

    fn take(&mut self, gang: &GangState, member: &Placed) {
        let slot = SlotKey {
            gang: gang.key.clone(),
            role: member.role.clone(),
            index: member.index,
        };
        let (node, shape) = (member.node.clone(), Arc::clone(&member.shape));
        self.ledger
            .reserve(slot, node, shape, member.devices.clone());
        self.refresh(&member.node);
    }

    /// Holds the room of a plan as it is.
    fn take_slots(&mut self, gang: &GangState, plan: &PlanState, ask: &Ask) {
        for slot in &plan.slots {
            let mut roles = ask.request.roles.iter();
            let role =
                roles.find(|role| role.role == slot.role && role.indices.contains(&slot.index));
            if let (Some(role), Some(node)) = (role, &slot.node) {
                let member = Placed {
                    role: slot.role.clone(),
                    index: slot.index,
                    node: node.clone(),
                    devices: slot.devices.clone(),
                    shape: Arc::clone(&role.shape),
                };
                self.take(gang, &member);
            }
        }
    }

    /// One call of the planner. `joined` have found their places beside those that the request names.
    fn plan(&mut self, ask: &Ask, joined: Vec<Standing>) -> Result<Vec<Placed>, Unplaceable> {
        for role in &ask.request.roles {
            self.snapshot.learn(&role.shape);
        }
        let mut request = ask.request.clone();
        request.placed.extend(joined);
        let answer = plan_part(&self.snapshot, &request, ask.spare, self.config);
        let mut members = answer.placement?.members;
        let position = |member: &Placed| {
            let mut roles = request.roles.iter();
            roles.position(|role| role.role == member.role)
        };
        members.sort_by_key(|member| (position(member), member.index));
        Ok(members)
    }

    /// Plans what a gang waits for, and holds what is found.
    fn look_at(&mut self, gang: &GangState) -> Found {
        let mut found = Vec::new();
        let mut joined = Vec::new();
        for ask in &gang.asks {
            let answer = self.plan(ask, joined.clone());
            for member in answer.iter().flatten() {
                self.take(gang, member);
                joined.extend(standing(ask, member));
            }
            found.push(answer);
        }
        if gang.plan.is_some() {
            return Found::Missing(found);
        }
        match found.pop() {
            None => Found::NotAsked,
            Some(Ok(members)) => Found::Places(members),
            Some(Err(why)) => Found::None(why),
        }
    }
}

/// A member as the next search sees it, where it matters who stands where.
fn standing(ask: &Ask, member: &Placed) -> Option<Standing> {
    let request = &ask.request;
    let is_ruled = |shape: &muster_core::pod::PodShape| !shape.between_pods.is_empty();
    if request.topology.is_empty() && !request.roles.iter().any(|role| is_ruled(&role.shape)) {
        return None;
    }
    let has = |role: &&muster_core::plan::RoleRequest| {
        role.role == member.role && role.indices.contains(&member.index)
    };
    let role = request.roles.iter().find(has)?;
    let at = role
        .indices
        .iter()
        .position(|index| *index == member.index)?;
    Some(Standing {
        node: member.node.clone(),
        shape: Arc::clone(&member.shape),
        labels: Arc::clone(&role.labels),
        segment: role.segments.get(at).copied(),
    })
}
