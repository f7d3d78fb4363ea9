//! A copy of what the planner sees.

use std::collections::BTreeSet;

use super::Engine;
use super::gang::{Gang, Plan};
use super::needs::Needs;
use crate::ids::NodeName;
use crate::plan::GangRequest;
use crate::reason::Reason;
use crate::state::{Ask, BeliefState, GangState, NodeState, PlanState, SlotState, State, Why};
use crate::time::Timestamp;

impl Engine {
    /// What the planner sees at `now`. Changes nothing. Costs by the size of the cluster: a walk over
    /// nodes, devices, pods and gangs.
    pub fn state(&self, now: Timestamp) -> State {
        State {
            at: now,
            config: self.config.clone(),
            epoch: self.epoch,
            leads: self.lead == super::Lead::Yes,
            synced: self.synced,
            demand: self.demand(now),
            nodes: self.node_states(),
            gangs: self
                .gangs
                .values()
                .map(|gang| self.gang_state(gang, now))
                .collect(),
        }
    }

    fn node_states(&self) -> Vec<NodeState> {
        let known = self
            .ledger
            .accounted()
            .chain(self.inventory.iter().map(|(name, _)| name));
        let names: BTreeSet<&NodeName> = known.collect();
        let state = |name: &NodeName| NodeState {
            name: name.clone(),
            node: self.ledger.node(name).cloned(),
            belief: self.inventory.get(name).map(|belief| BeliefState {
                report: belief.report.clone(),
                heard: belief.heard,
                node_uid: belief.node_uid().cloned(),
            }),
            holdings: self.ledger.holdings(name).collect(),
        };
        names.into_iter().map(state).collect()
    }

    fn gang_state(&self, gang: &Gang, now: Timestamp) -> GangState {
        let status = self.status(gang);
        let mut reason = status.reason;
        let asks = match &gang.plan {
            Some(plan) => self.asks_of_plan(gang, plan, now),
            None => match self.needs(gang, now) {
                Ok(needs) => needs
                    .map(|needs| self.ask(gang, needs, now))
                    .into_iter()
                    .collect(),
                Err(why) => {
                    reason = Some(why);
                    Vec::new()
                }
            },
        };
        let rank = self.rank(gang);
        GangState {
            key: gang.key.clone(),
            kind: gang.kind,
            name: gang.name.clone(),
            object: gang.object_name(),
            phase: status.phase,
            why: reason.as_ref().map(why),
            priority: rank.priority,
            created_seconds: rank.created_seconds.0,
            sequence: gang.sequence,
            rests_until: Some(gang.not_before).filter(|until| *until > now),
            plan: gang
                .plan
                .as_ref()
                .map(|plan| self.plan_state(gang, plan, now)),
            asks,
        }
    }

    fn plan_state(&self, gang: &Gang, plan: &Plan, now: Timestamp) -> PlanState {
        let slots = plan.slots.iter().map(|((role, index), slot)| SlotState {
            role: role.clone(),
            index: *index,
            node: slot.node.clone(),
            devices: slot.devices.clone(),
            pod: slot.pod.clone(),
            bound: slot.is_settled(),
        });
        // Nobody stands yet: it is asked for as it was when the plan was made.
        let is_whole = plan.slots.values().all(|slot| !slot.is_settled());
        let asked = || self.asked(gang, &[], now).ok().flatten();
        PlanState {
            id: plan.id.clone(),
            minimum: plan.minimum,
            durable: gang.is_durable(),
            slots: slots.collect(),
            asked: is_whole
                .then(asked)
                .flatten()
                .map(|needs| self.ask(gang, needs, now)),
        }
    }

    /// What the planner is asked for a whole gang.
    fn ask(&self, gang: &Gang, needs: Needs, now: Timestamp) -> Ask {
        let members = needs.roles.iter().map(|role| role.indices.len());
        let members = members.fold(needs.fixed.len(), usize::saturating_add);
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        let mut avoid = self.avoided_at_last(gang, now);
        if matches!(gang.reason, Some(Reason::KeptForAnother { .. })) {
            avoid.extend(self.kept_ahead_of(gang));
        }
        Ask {
            spare: members.saturating_sub(needs.minimum),
            request: GangRequest {
                placed: self.standing(gang, &needs.fixed, &needs.topology),
                roles: needs.roles,
                avoid,
                topology: needs.topology,
            },
        }
    }

    /// What it is asked for members that have lost their places, or came later than the plan.
    fn asks_of_plan(&self, gang: &Gang, plan: &Plan, now: Timestamp) -> Vec<Ask> {
        let topology = self.topology_of(gang).unwrap_or_default();
        let batches = self.batches(gang, plan, &topology).into_iter();
        let ask = |batch: super::planning::Batch| Ask {
            spare: batch.spare,
            request: GangRequest {
                roles: batch.roles,
                placed: self.standing(gang, &plan.slots, &topology),
                avoid: self.avoided_at_last(gang, now),
                topology: topology.clone(),
            },
        };
        batches.map(ask).collect()
    }
}

fn why(reason: &Reason) -> Why {
    Why {
        code: reason.code().into(),
        text: reason.to_string().into(),
    }
}
