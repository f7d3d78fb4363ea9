//! How much work one gang may cost. The engine decides for all gangs, one after the other: while it
//! plans one, everybody waits.

use super::GangRequest;
use super::rules::Rules;
use crate::snapshot::Snapshot;

/// Most steps of one search. A step is a look at one node, cell or member by one rule, some
/// nanoseconds. A gang with a handful of rules between its members stays below a hundredth of this.
pub const STEPS_MAX: u64 = 50_000_000;

/// Most partial placements that are looked at for one gang with rules between its members, where it
/// takes a search: some tens of milliseconds.
const STATES_MAX: usize = 20_000;

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
pub(super) struct Effort {
    steps: u64,
    /// Partial placements that may still be looked at.
    states_left: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            steps: 0,
            states_left: STATES_MAX,
        }
    }
}

impl Effort {
    /// For what need not be certain: a search by partial placements is given up at once.
    pub fn brief() -> Self {
        Self {
            steps: 0,
            states_left: 0,
        }
    }

    /// The same as of `self`, for more work that has limits in common with it.
    pub fn more(&self) -> Self {
        Self {
            steps: 0,
            states_left: self.states_left,
        }
    }

    /// Does something that need not be certain.
    pub fn briefly<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let states_left = std::mem::take(&mut self.states_left);
        let done = work(self);
        self.states_left = states_left;
        done
    }

    /// One more partial placement is looked at, with so many steps.
    pub fn state(&mut self, steps: usize) -> Result<(), Miss> {
        self.states_left = self.states_left.checked_sub(1).ok_or(Miss::Limit)?;
        self.spend(steps)
    }

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
