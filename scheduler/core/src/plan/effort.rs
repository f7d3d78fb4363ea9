//! How much work one gang may cost. The engine decides for all gangs, one after the other: while it
//! plans one, everybody waits.

use super::GangRequest;
use super::rules::Rules;
use crate::snapshot::Snapshot;

/// Most steps of one search. A step is a look at one node, cell or member by one rule, some
/// nanoseconds. A gang with a handful of rules between its members stays below a hundredth of this.
pub const STEPS_MAX: u64 = 50_000_000;

/// What a look at a node costs beside the rules.
const NODE: usize = 8;

/// Why there is no place for the members of a role.
#[derive(Clone, Copy, Debug)]
pub(super) enum Miss {
    /// Only this many found one.
    Room(u32),
    /// The search gave up.
    Limit,
}

/// Steps that a search has taken.
#[derive(Default)]
pub(super) struct Effort {
    steps: u64,
}

impl Effort {
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether nothing is left to be spent.
    pub fn is_spent(&self) -> bool {
        self.steps > STEPS_MAX
    }

    pub fn spend(&mut self, steps: usize) -> Result<(), Miss> {
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        self.steps = self.steps.saturating_add(steps);
        if self.steps > STEPS_MAX {
            return Err(Miss::Limit);
        }
        Ok(())
    }

    /// What working out the rules of a gang takes.
    pub fn gather(
        &mut self,
        snapshot: &Snapshot,
        gang: &GangRequest,
        rules: &Rules,
    ) -> Result<(), Miss> {
        let looks = snapshot.nodes().len().saturating_add(gang.placed.len());
        self.spend(looks.saturating_mul(rules.len()))
    }

    /// Looks at this many nodes by so many rules.
    pub fn nodes(&mut self, nodes: usize, rules: usize) -> Result<(), Miss> {
        self.spend(nodes.saturating_mul(rules.saturating_add(NODE)))
    }
}
