//! Which nodes are filled first.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use super::effort::Miss;

/// Nodes that are as good as each other for members of a role.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Members that each of them has room for; at least one.
    pub room: u32,
    /// How many nodes.
    pub count: u32,
    /// What others miss when it is taken: see [`crate::snapshot::Snapshot::set_demand`].
    pub cost: i64,
    /// Free devices of every kind on each.
    pub spare: u64,
    /// They offer devices at all, free or not.
    pub has_devices: bool,
}

impl Run {
    pub fn room_of_all(&self) -> u64 {
        u64::from(self.room).saturating_mul(u64::from(self.count))
    }
}

/// Runs, and which of two is taken where nothing else decides: the one whose order is the smaller. It is asked for only then.
struct Ranked<'r, F> {
    runs: &'r [Run],
    order: F,
}

impl<O: Ord, F: Fn(usize) -> O> Ranked<'_, F> {
    fn get(&self, position: usize) -> Option<(usize, &Run)> {
        self.runs.get(position).map(|run| (position, run))
    }

    /// Of two runs with as much room the smaller goes first.
    fn compare(&self, a: usize, b: usize) -> Ordering {
        let rank = |at: usize| self.runs.get(at).map(|run| (run.cost, run.spare));
        let order = |at: usize| (self.order)(at);
        rank(a).cmp(&rank(b)).then_with(|| order(a).cmp(&order(b)))
    }
}

/// Some nodes of a run, each with so many members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Take {
    /// Position of the run.
    pub run: usize,
    /// How many of its nodes, those that come next.
    pub nodes: u32,
    /// Members on each.
    pub each: u32,
}

/// Where each of `total` members goes, on as few nodes as it needs; the number that there is room for,
/// when that is too small.
///
/// While some node can be filled by what is still needed, the one that takes most; then, for the
/// rest, the one that others miss least, of those the one with the fewest spare devices. A role without
/// devices looks for nodes that offer none first. Where nothing of that decides, the run of which `order` is smaller
/// goes first.
pub(super) fn fill<O: Ord>(
    runs: &[Run],
    order: impl Fn(usize) -> O,
    total: usize,
    wants_devices: bool,
) -> Result<Vec<Take>, Miss> {
    let sum = runs
        .iter()
        .fold(0u64, |sum, run| sum.saturating_add(run.room_of_all()));
    let mut left = u64::try_from(total).unwrap_or(u64::MAX);
    if sum < left {
        return Err(Miss::Room(u32::try_from(sum).unwrap_or(u32::MAX)));
    }
    let mut takes = Vec::new();
    let ranked = Ranked { runs, order };
    if wants_devices {
        fill_class(&ranked, (0..runs.len()).collect(), left, &mut takes);
        return Ok(takes);
    }
    // Those of one class are as good as each other but for their room.
    let mut classes: BTreeMap<(bool, i64, u64), Vec<usize>> = BTreeMap::new();
    for (position, run) in runs.iter().enumerate() {
        let class = (run.has_devices, run.cost, run.spare);
        let class = classes.entry(class).or_default();
        class.push(position);
    }
    for class in classes.into_values() {
        left = fill_class(&ranked, class, left, &mut takes);
        if left == 0 {
            break;
        }
    }
    Ok(takes)
}

/// The same with the runs at these positions. The number of members left over.
fn fill_class<O: Ord>(
    runs: &Ranked<impl Fn(usize) -> O>,
    class: Vec<usize>,
    mut left: u64,
    takes: &mut Vec<Take>,
) -> u64 {
    let found = |position: usize| runs.get(position);
    let mut by_room: BTreeMap<Reverse<u32>, Vec<usize>> = BTreeMap::new();
    let mut last: Option<usize> = None;
    for (position, run) in class.into_iter().filter_map(found) {
        if u64::from(run.room) < left {
            by_room.entry(Reverse(run.room)).or_default().push(position);
        } else if last.is_none_or(|best| runs.compare(position, best).is_lt()) {
            last = Some(position);
        }
    }
    if let Some(position) = last {
        takes.push(one(position, left));
        return 0;
    }
    while let Some((Reverse(room), mut positions)) = by_room.pop_first() {
        let each = u64::from(room);
        // As many nodes as are filled; one that would not be is looked for among all.
        let full = left.saturating_sub(1).checked_div(each).unwrap_or(0);
        positions.sort_unstable_by(|a, b| runs.compare(*a, *b));
        let mut wanted = full;
        let mut rest: Option<usize> = None;
        for (position, run) in positions.into_iter().filter_map(found) {
            let nodes = u64::from(run.count).min(wanted);
            if nodes > 0 {
                takes.push(Take {
                    run: position,
                    nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
                    each: room,
                });
                wanted = wanted.saturating_sub(nodes);
                left = left.saturating_sub(nodes.saturating_mul(each));
            }
            if wanted == 0 && nodes < u64::from(run.count) {
                rest = Some(position);
                break;
            }
        }
        if left <= each
            && let Some(rest) = rest
        {
            let smaller = by_room
                .values()
                .flatten()
                .copied()
                .filter_map(found)
                .filter(|(_, run)| u64::from(run.room) >= left)
                .chain(found(rest))
                .min_by(|(a, _), (b, _)| runs.compare(*a, *b));
            takes.extend(smaller.map(|(position, _)| one(position, left)));
            return 0;
        }
    }
    left
}

fn one(run: usize, members: u64) -> Take {
    Take {
        run,
        nodes: 1,
        each: u32::try_from(members).unwrap_or(u32::MAX),
    }
}

/// A node that has room for members of a role.
pub(super) struct Candidate {
    /// Its place in the snapshot.
    pub at: usize,
    /// Members that it has room for.
    pub room: u32,
    /// As of a run.
    pub cost: i64,
    /// Free devices of every kind.
    pub spare: u64,
    /// It offers devices at all, free or not.
    pub has_devices: bool,
}

/// Members that the candidates have room for.
pub(super) fn room_of(rooms: &[Candidate]) -> u64 {
    rooms.iter().fold(0u64, |sum, candidate| {
        sum.saturating_add(u64::from(candidate.room))
    })
}

/// Of two groups of candidates the one with the smaller rank is filled first.
pub(super) fn rank(rooms: &[Candidate], wants_devices: bool) -> (bool, u64, usize) {
    rooms
        .iter()
        .map(|a| (a.has_devices && !wants_devices, a.spare, a.at))
        .min()
        .unwrap_or((true, u64::MAX, usize::MAX))
}

/// The node of each of `total` members; see [`fill`].
pub(super) fn fill_nodes(
    rooms: &[Candidate],
    total: usize,
    wants_devices: bool,
) -> Result<Vec<usize>, Miss> {
    let runs: Vec<Run> = rooms
        .iter()
        .map(|candidate| Run {
            room: candidate.room,
            count: 1,
            cost: candidate.cost,
            spare: candidate.spare,
            has_devices: candidate.has_devices,
        })
        .collect();
    let at = |run: usize| rooms.get(run).map(|candidate| candidate.at);
    let takes = fill(&runs, at, total, wants_devices)?;
    let node = |take: &Take| Some((at(take.run)?, take.each));
    Ok(takes
        .iter()
        .filter_map(node)
        .flat_map(|(at, each)| std::iter::repeat_n(at, usize::try_from(each).unwrap_or(0)))
        .collect())
}
