//! Sharing members out over parts of the cluster, one after the other, each to where the fewest are.
//!
//! What the next member needs to know is kept up to date and not counted anew: the fewest of each
//! rule, and the parts in order of how many members they have. With one part for each node, placing
//! a member costs its rules and a look into an ordered set, not a look at every node.

use std::collections::{BTreeMap, BTreeSet};

use super::effort::{Effort, Miss};
use super::rules::{Rule, count_in, raise};

/// A part of the cluster within which, for some rules, one node is as good as another.
pub(super) struct Cell {
    /// Domain by each of those rules.
    pub domains: Vec<Option<u32>>,
    /// Members that its nodes have room for.
    pub room: u64,
    /// Which of two cells is taken where the rules do not care: the smaller.
    pub rank: Rank,
    /// Members that it was given.
    pub taken: u64,
}

/// Order of cells where the rules do not care.
pub(super) type Rank = (bool, u64, usize);

/// A rule, with its members counted.
struct Count<'a> {
    rule: &'a Rule,
    matched: Vec<u32>,
    /// Members in the domain that has the fewest, and how many such domains there are: none where
    /// the fewest is never more than 0.
    fewest: u32,
    with_fewest: usize,
    /// Cells in each domain.
    cells: Vec<u32>,
    /// Cells that wait until the fewest is this many.
    waiting: BTreeMap<u32, Vec<usize>>,
}

/// Cells that share their domains, but for domains of which a cell is the only one.
struct Group {
    /// Positions of rules, with the domain that is shared.
    shared: Vec<(usize, Option<u32>)>,
    /// Those that may take one more as far as the domains of their own go: members in these, members
    /// of the cell, its rank, its position.
    ready: BTreeSet<(u64, u64, Rank, usize)>,
}

/// The state of sharing out.
struct Allotment<'a> {
    counts: Vec<Count<'a>>,
    groups: Vec<Group>,
    /// By position of the cell.
    group_of: Vec<usize>,
}

/// The cell of each of `count` members, one after the other. Each goes where the fewest are, so that
/// the next finds the rules met after the ones before it. The number that found a cell, when not all
/// do: no other shares would take more.
pub(super) fn allot(
    rules: &[&Rule],
    cells: &mut [Cell],
    count: usize,
    effort: &mut Effort,
) -> Result<Vec<usize>, Miss> {
    let each = rules.len().saturating_add(1);
    effort.spend(cells.len().saturating_mul(each).saturating_mul(2))?;
    let mut allotment = Allotment::of(rules, cells);
    let looks = allotment.groups.iter().fold(each, |sum, group| {
        sum.saturating_add(group.shared.len()).saturating_add(1)
    });
    let mut chosen = Vec::with_capacity(count.min(cells.len().saturating_mul(2)));
    while chosen.len() < count {
        effort.spend(looks)?;
        let Some(position) = allotment.next() else {
            return Err(Miss::Room(u32::try_from(chosen.len()).unwrap_or(u32::MAX)));
        };
        let moved = allotment.give(cells, position);
        effort.spend(moved.saturating_mul(each))?;
        chosen.push(position);
    }
    Ok(chosen)
}

impl<'a> Allotment<'a> {
    fn of(rules: &[&'a Rule], cells: &[Cell]) -> Self {
        let mut counts: Vec<Count> = rules.iter().map(|rule| Count::of(rule)).collect();
        for cell in cells {
            for (count, domain) in counts.iter_mut().zip(&cell.domains) {
                raise(&mut count.cells, *domain);
            }
        }
        let mut groups: Vec<Group> = Vec::new();
        let mut known: BTreeMap<Vec<(usize, Option<u32>)>, usize> = BTreeMap::new();
        let group_of = cells
            .iter()
            .map(|cell| {
                let all = counts.iter().zip(&cell.domains).enumerate();
                let shared: Vec<(usize, Option<u32>)> = all
                    .filter(|(_, (count, domain))| count.shares(**domain))
                    .map(|(position, (_, domain))| (position, *domain))
                    .collect();
                *known.entry(shared).or_insert_with_key(|shared| {
                    groups.push(Group {
                        shared: shared.clone(),
                        ready: BTreeSet::new(),
                    });
                    groups.len().saturating_sub(1)
                })
            })
            .collect();
        let mut allotment = Self {
            counts,
            groups,
            group_of,
        };
        for position in 0..cells.len() {
            allotment.offer(cells, position);
        }
        allotment
    }

    /// Puts the cell among those that may take one more, or among those that wait for a rule, or
    /// nowhere, when it takes none any more.
    fn offer(&mut self, cells: &[Cell], position: usize) {
        let Some(cell) = cells.get(position) else {
            return;
        };
        if cell.taken >= cell.room {
            return;
        }
        let mut level = 0u64;
        for (count, domain) in self.counts.iter_mut().zip(&cell.domains) {
            if count.shares(*domain) {
                continue;
            }
            let here = count_in(&count.matched, *domain);
            if !count.takes_one_more(*domain, here) {
                count.park(position, *domain, here);
                return;
            }
            level = level.saturating_add(u64::from(here));
        }
        let group = self.group_of.get(position).copied();
        if let Some(group) = group.and_then(|group| self.groups.get_mut(group)) {
            group.ready.insert((level, cell.taken, cell.rank, position));
        }
    }

    /// The cell with the fewest members that may take one more.
    fn next(&mut self) -> Option<usize> {
        let best = self
            .groups
            .iter()
            .enumerate()
            .filter_map(|(at, group)| {
                let (mut level, taken, rank, position) = *group.ready.first()?;
                for (rule, domain) in &group.shared {
                    let count = self.counts.get(*rule)?;
                    let here = count_in(&count.matched, *domain);
                    if !count.takes_one_more(*domain, here) {
                        return None;
                    }
                    level = level.saturating_add(u64::from(here));
                }
                Some((level, taken, rank, position, at))
            })
            .min();
        let (_, _, _, position, at) = best?;
        self.groups.get_mut(at)?.ready.pop_first();
        Some(position)
    }

    /// Gives the cell, which is the one that was chosen last, a member. The number of cells that were
    /// looked at because of it.
    fn give(&mut self, cells: &mut [Cell], position: usize) -> usize {
        let Some(cell) = cells.get_mut(position) else {
            return 0;
        };
        cell.taken = cell.taken.saturating_add(1);
        let mut again = vec![position];
        for (count, domain) in self.counts.iter_mut().zip(&cell.domains) {
            count.raise(*domain);
            again.append(&mut count.released());
        }
        for position in &again {
            self.offer(cells, *position);
        }
        again.len()
    }
}

impl<'a> Count<'a> {
    fn of(rule: &'a Rule) -> Self {
        let matched = rule.matched().to_vec();
        let mut count = Self {
            rule,
            cells: vec![0; matched.len()],
            matched,
            fewest: 0,
            with_fewest: 0,
            waiting: BTreeMap::new(),
        };
        count.find_fewest();
        count
    }

    /// Done anew only when the last domain with the fewest has got one more.
    fn find_fewest(&mut self) {
        let live = self.rule.live();
        let domains = u32::try_from(live.len()).unwrap_or(u32::MAX);
        let enough = |min: u32| domains >= min;
        if !self.rule.spread().is_some_and(|s| enough(s.domains_min)) {
            return;
        }
        let counts = || {
            live.iter()
                .map(|domain| count_in(&self.matched, Some(*domain)))
        };
        let fewest = counts().min().unwrap_or(0);
        self.with_fewest = counts().filter(|count| *count == fewest).count();
        self.fewest = fewest;
    }

    /// Whether other cells lie in the domain.
    fn shares(&self, domain: Option<u32>) -> bool {
        count_in(&self.cells, domain) > 1
    }

    /// Whether a member that carries the rule and is spoken of may join `here` others in the domain.
    fn takes_one_more(&self, domain: Option<u32>, here: u32) -> bool {
        match self.rule.spread() {
            Some(spread) => domain.is_some() && here.saturating_sub(self.fewest) < spread.skew_max,
            None => here == 0,
        }
    }

    /// Keeps a cell that takes no member now until it would; not at all, when that never comes.
    fn park(&mut self, position: usize, domain: Option<u32>, here: u32) {
        if let (Some(spread), Some(_)) = (self.rule.spread(), domain) {
            let until = here.saturating_add(1).saturating_sub(spread.skew_max);
            self.waiting.entry(until).or_default().push(position);
        }
    }

    /// Cells whose wait is over.
    fn released(&mut self) -> Vec<usize> {
        let mut released = Vec::new();
        while let Some(first) = self.waiting.first_entry()
            && *first.key() <= self.fewest
        {
            released.append(&mut first.remove());
        }
        released
    }

    fn raise(&mut self, domain: Option<u32>) {
        let before = count_in(&self.matched, domain);
        raise(&mut self.matched, domain);
        let among = domain.is_some_and(|domain| self.rule.live().binary_search(&domain).is_ok());
        if self.with_fewest > 0 && before == self.fewest && among {
            self.with_fewest = self.with_fewest.saturating_sub(1);
            if self.with_fewest == 0 {
                self.find_fewest();
            }
        }
    }
}
