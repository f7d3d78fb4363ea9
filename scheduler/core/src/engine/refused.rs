//! Nodes that a gang's plans keep away from, because a member was refused there or failed.

use std::collections::BTreeMap;

use crate::ids::NodeName;
use crate::time::{Millis, Timestamp};

/// A gang that finds no other nodes goes back to one after this part of the longest time.
const FIRST_PART: u64 = 16;

/// Nodes that a gang keeps away from, each for its time.
///
/// What kube-scheduler refuses counts for less where there are no other nodes: its view of the cluster may be behind for seconds after the
/// API server was away, and everything is refused then.
#[derive(Clone, Debug, Default)]
pub(super) struct RefusedNodes {
    by_node: BTreeMap<NodeName, Refusal>,
    /// No others were found: those count that are to be kept away from even then.
    pub no_others: bool,
}

#[derive(Clone, Copy, Debug)]
struct Refusal {
    /// Until when plans keep away from it.
    until: Timestamp,
    /// Until when they do even if there is no other.
    strictly: Timestamp,
    /// From its last refusal by kube-scheduler to `strictly`; zero where that said nothing of it.
    span: Millis,
    /// When it was last asked whether it will do again.
    told: Timestamp,
}

impl RefusedNodes {
    /// Keeps away from the node until then, or longer if it was to be longer.
    pub fn avoid(&mut self, node: &NodeName, until: Timestamp, now: Timestamp) {
        let it = self.entry(node, now);
        it.until = it.until.max(until);
        it.strictly = it.strictly.max(until);
    }

    /// Keeps away from a node where kube-scheduler has refused a member for `longest`; if there is no other for a sixteenth of that,
    /// and twice as long when it does so again after that time. Members that are refused together count once.
    pub fn refused(&mut self, node: &NodeName, now: Timestamp, longest: Millis) {
        let it = self.entry(node, now);
        if it.span == Millis(0) || it.strictly <= now {
            let first = Millis(longest.0 / FIRST_PART);
            it.span = Millis(it.span.0.saturating_mul(2)).max(first).min(longest);
        }
        it.until = it.until.max(now + longest);
        it.strictly = it.strictly.max(now + it.span);
    }

    fn entry(&mut self, node: &NodeName, now: Timestamp) -> &mut Refusal {
        let it = self.by_node.entry(node.clone()).or_insert(Refusal {
            until: now,
            strictly: now,
            span: Millis(0),
            told: now,
        });
        it.told = now;
        it
    }

    /// Whether a node may do again since the last time this was asked. What kube-scheduler said of a node is forgotten when it has
    /// said nothing more for `longest` after that.
    pub fn take_ended(&mut self, now: Timestamp, longest: Millis) -> bool {
        let mut ended = false;
        self.by_node.retain(|_, it| {
            let ends = [it.strictly, it.until];
            ended |= ends.iter().any(|end| it.told < *end && *end <= now);
            it.told = now;
            now < it.until || (it.span > Millis(0) && now < it.until + longest)
        });
        ended
    }

    /// Whether there are nodes that need not be kept away from where there are no others.
    pub fn has_second_choices(&self, now: Timestamp) -> bool {
        let mut refused = self.by_node.values();
        refused.any(|it| it.strictly <= now && now < it.until)
    }

    /// Nodes to keep away from.
    pub fn at(&self, now: Timestamp) -> impl Iterator<Item = &NodeName> {
        self.kept_from(self.no_others, now)
    }

    fn kept_from(&self, no_others: bool, now: Timestamp) -> impl Iterator<Item = &NodeName> {
        let refused = self.by_node.iter();
        refused
            .filter(move |(_, it)| match no_others {
                true => it.strictly > now,
                false => it.until > now,
            })
            .map(|(node, _)| node)
    }

    /// Nodes to keep away from even where there are no others.
    pub fn strictly_at(&self, now: Timestamp) -> impl Iterator<Item = &NodeName> {
        self.kept_from(true, now)
    }

    /// When nodes may do again.
    pub fn ends(&self) -> impl Iterator<Item = Timestamp> {
        let refused = self.by_node.values();
        refused.flat_map(|it| [it.strictly, it.until])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Millis = Millis::from_secs(320);

    fn avoided(refused: &mut RefusedNodes, no_others: bool, now: Timestamp) -> usize {
        refused.no_others = no_others;
        refused.at(now).count()
    }

    #[test]
    fn node_is_avoided_twice_as_long_each_time_where_there_is_no_other() {
        let mut refused = RefusedNodes::default();
        let node = NodeName::from("n0");
        let mut now = Timestamp(0);
        for span in [20, 40, 80, 160, 320, 320] {
            // Eight members of one plan.
            for _ in 0..8 {
                refused.refused(&node, now, LONGEST);
            }
            let end = now + Millis::from_secs(span);
            now = Timestamp(end.0 - 1);
            assert!(!refused.take_ended(now, LONGEST));
            assert!(!refused.has_second_choices(now));
            assert_eq!(avoided(&mut refused, true, now), 1);
            now = end;
            assert!(refused.take_ended(now, LONGEST));
            assert!(!refused.take_ended(now, LONGEST), "it is told once");
            assert_eq!(avoided(&mut refused, true, now), 0);
            // With other nodes it is avoided all the same.
            assert_eq!(avoided(&mut refused, false, now), usize::from(span < 320));
            assert_eq!(refused.has_second_choices(now), span < 320);
        }
        now = now + LONGEST;
        refused.take_ended(now, LONGEST);
        refused.refused(&node, now, LONGEST);
        assert_eq!(refused.ends().next(), Some(now + Millis::from_secs(20)));
    }

    #[test]
    fn node_whose_pod_failed_is_avoided_for_the_time_said_and_forgotten() {
        let mut refused = RefusedNodes::default();
        let node = NodeName::from("n0");
        refused.avoid(&node, Timestamp(500_000), Timestamp(0));
        let now = Timestamp(499_000);
        assert!(!refused.take_ended(now, LONGEST));
        assert!(!refused.has_second_choices(now));
        assert_eq!(avoided(&mut refused, true, now), 1);
        assert!(refused.take_ended(Timestamp(500_000), LONGEST));
        assert_eq!(refused.ends().count(), 0);
    }

    #[test]
    fn neither_a_refusal_nor_a_failure_makes_the_time_of_the_other_shorter() {
        let node = NodeName::from("n0");
        let mut refused = RefusedNodes::default();
        refused.avoid(&node, Timestamp(300_000), Timestamp(0));
        refused.refused(&node, Timestamp(3_000), LONGEST);
        let now = Timestamp(299_000);
        assert_eq!(avoided(&mut refused, true, now), 1);
        let mut refused = RefusedNodes::default();
        refused.refused(&node, Timestamp(0), LONGEST);
        refused.avoid(&node, Timestamp(5_000), Timestamp(0));
        let now = Timestamp(19_000);
        assert_eq!(avoided(&mut refused, true, now), 1);
        assert_eq!(avoided(&mut refused, false, Timestamp(319_000)), 1);
    }
}
