//! What members usually ask for, and what a node in some state is worth to them: the score by which of
//! several nodes with room one is taken.
//!
//! ```text
//!   stranded(node) =  idle devices that a typical member cannot use                (fragments)
//!                   + what stays free of devices in part when such shares fill them (slivers)
//!                   + idle devices that the CPU left does not feed                  (starved)
//!                   + CPU left that has no idle devices to feed, in devices / 16    (glut)
//!   cost of a place = stranded(after) - stranded(before) + idle devices after / 100
//! ```
//! All of it in thousandths of a device. Fragments are those of "Beware of Fragmentation" (Weng et al., USENIX
//! ATC 2023), with another weight: there a typical member counts as often as it comes, here also the more the
//! less room is left for it. So nodes are spared that few others can stand in for: those of a rare model, and
//! whole ones for members that need a whole node. What else was tried stands in ARCHITECTURE.md.
//!
//! Integers throughout but for the weights, which take sums, products and quotients only: the same on every
//! machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Eligibility;
use super::index::{Amounts, Ask, Index};
use super::kind::{Fit, Kind};
use crate::pod::{DEVICE_MILLI, PodShape};

/// Most typical shapes: one bit each.
const TYPICAL_MAX: usize = 64;
/// Of all members this share has a typical shape, unless there are too many shapes.
const COVERED_PERCENT: u64 = 95;
/// Weights and costs are multiples of 1 / 2^SCALE.
const SCALE: u32 = 20;
/// Costs are kept to 1 / 2^FINE of a thousandth of a device.
const FINE: u32 = 6;
const BYTES: usize = 8;
const BYTE: usize = 256;

/// Shapes with how many members have each.
pub type Counts = BTreeMap<Arc<PodShape>, u64>;

/// What many members ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usual {
    /// What each asks for.
    pub shape: Arc<PodShape>,
    /// How many ask for it.
    pub members: u64,
    /// What it counts for when a device is put to use, in 1 / 2^20; the sum over all that ask for the same
    /// resource is about one.
    pub weight: u32,
}

/// What members usually ask for.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// Those that ask for devices, the most frequent first.
    usual: Vec<Usual>,
    columns: Vec<Column>,
    /// Typical shapes that want no more CPU than this, thousandths of a core; in order.
    by_cpu: Vec<(u64, u64)>,
    /// The same by bytes of memory.
    by_memory: Vec<(u64, u64)>,
    /// Thousandths of a device that a thousandth of a core feeds, scaled.
    fed: i64,
}

/// What is asked for of the devices in one column.
#[derive(Clone, Debug)]
struct Column {
    column: usize,
    /// Typical shapes that ask for it.
    all: u64,
    /// Those that want no more whole devices than this; in order.
    by_whole: Vec<(u64, u64)>,
    /// Those that want no larger part of a device than this, in thousandths; in order.
    by_part: Vec<(u64, u64)>,
    /// Sums of weights, for each byte of a set.
    sums: Box<[[i64; BYTE]; BYTES]>,
    /// What is lost of a device of which so much is free, once shares have come as long as some fit: scaled.
    lost: Vec<i64>,
}

/// A typical shape, in columns.
struct Typical {
    ask: Ask,
    column: usize,
    whole: u64,
    /// What it must find of one device, in thousandths.
    part: u32,
    count: u64,
}

/// A node's state, as far as it counts.
#[derive(Clone, Copy)]
pub(super) struct State<'a> {
    free: &'a Amounts,
    /// Devices of which a part is left: column, thousandths.
    parts: &'a [(usize, u32)],
    /// Thousandths of a core.
    cpu: u64,
    /// Bytes.
    memory: u64,
    /// What is taken of the free devices, and how often.
    taken: Option<(&'a Ask, u64)>,
    /// Devices that were opened beside, in a column.
    opened: (usize, u64),
    /// Typical shapes that its labels and taints admit.
    admits: u64,
}

impl<'a> State<'a> {
    /// A node with these amounts free.
    pub fn of(free: &'a Amounts, admits: u64) -> Self {
        Self {
            free,
            parts: free.parts(),
            cpu: free.cpu(),
            memory: free.memory(),
            taken: None,
            opened: (0, 0),
            admits,
        }
    }

    fn whole(&self, column: usize) -> u64 {
        let taken = self
            .taken
            .map_or(0, |(ask, count)| ask.column(column).saturating_mul(count));
        let opened = match self.opened {
            (opened, count) if opened == column => count,
            _ => 0,
        };
        let free = self.free.column(column);
        free.saturating_sub(taken).saturating_sub(opened)
    }

    fn parts(&self, column: usize) -> impl Iterator<Item = u32> {
        let parts = self.parts.iter();
        parts
            .filter(move |(other, _)| *other == column)
            .map(|(_, left)| *left)
    }

    /// Free devices and parts of such, in thousandths.
    fn idle(&self, column: usize) -> i64 {
        let whole = self.whole(column).saturating_mul(u64::from(DEVICE_MILLI));
        let parts = self.parts(column).map(u64::from);
        let idle = parts.fold(whole, u64::saturating_add);
        i64::try_from(idle).unwrap_or(i64::MAX)
    }
}

impl Demand {
    /// The demand of members with these shapes, on the nodes of an index. No more of each count than `most`
    /// says that the nodes could hold if they were empty: what can never run is no demand, however often it is
    /// asked for.
    pub(super) fn of(
        counts: &Counts,
        index: &Index,
        most: impl Fn(&PodShape) -> u64,
        is_device: impl Fn(usize) -> bool,
    ) -> Self {
        let known = counts.iter().filter_map(|(shape, count)| {
            // Not looked up for what asks for no devices.
            let typical = typical(shape, *count, index, &is_device)?;
            let count = typical.count.min(most(shape));
            (count > 0).then_some((shape, Typical { count, ..typical }))
        });
        let mut members: Vec<(&Arc<PodShape>, Typical)> = known.collect();
        // Of equally frequent ones the larger.
        members.sort_by(|(a, left), (b, right)| (right.count, b).cmp(&(left.count, a)));
        let all = members
            .iter()
            .fold(0u64, |sum, (_, typical)| sum.saturating_add(typical.count));
        let enough = all.saturating_mul(COVERED_PERCENT).div_ceil(100);
        let mut covered = 0u64;
        members.truncate(TYPICAL_MAX);
        members.retain(|(_, typical)| {
            let wanted = covered < enough;
            covered = covered.saturating_add(typical.count);
            wanted
        });
        let (shapes, typical): (Vec<_>, Vec<_>) = members.into_iter().unzip();
        let weights = weights(&shapes, &typical, index);
        let usual = shapes.into_iter().zip(&typical).zip(weights);
        let usual = usual.map(|((shape, typical), weight)| Usual {
            shape: Arc::clone(shape),
            members: typical.count,
            weight,
        });
        Self::as_weighed(usual.collect(), index, is_device)
    }

    /// The same with weights that were found before; what is asked of resources that no node offers is left
    /// out.
    pub(super) fn as_weighed(
        usual: Vec<Usual>,
        index: &Index,
        is_device: impl Fn(usize) -> bool,
    ) -> Self {
        let typical = usual.into_iter().take(TYPICAL_MAX).filter_map(|usual| {
            let typical = typical(&usual.shape, usual.members, index, &is_device)?;
            Some((usual, typical))
        });
        let (usual, typical): (Vec<Usual>, Vec<Typical>) = typical.unzip();
        let mut columns: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, typical) in typical.iter().enumerate() {
            columns.entry(typical.column).or_default().push(at);
        }
        let weights: Vec<u32> = usual.iter().map(|usual| usual.weight).collect();
        let column = |(column, members)| Column::of(column, members, &typical, &weights);
        Self {
            columns: columns.into_iter().map(column).collect(),
            by_cpu: steps(
                typical
                    .iter()
                    .map(|typical| typical.ask.cpu())
                    .zip(0..)
                    .collect(),
            ),
            by_memory: steps(
                typical
                    .iter()
                    .map(|typical| typical.ask.memory())
                    .zip(0..)
                    .collect(),
            ),
            fed: fed(&typical),
            usual,
        }
    }

    /// What it goes by.
    pub(super) fn usual(&self) -> &[Usual] {
        &self.usual
    }

    /// Nobody asks for devices: nothing is known.
    pub fn is_empty(&self) -> bool {
        self.usual.is_empty()
    }

    /// The typical shapes for which this holds.
    pub(super) fn which(&self, holds: impl Fn(&PodShape) -> bool) -> u64 {
        let usual = self.usual.iter().enumerate();
        usual
            .filter(|(_, usual)| holds(&usual.shape))
            .fold(0, |set, (at, _)| set | bit(at))
    }

    /// What it costs to place `count` members that ask for this on a node in this state: see the head of the
    /// file. The less the better.
    pub(super) fn cost(&self, state: State<'_>, ask: &Ask, count: u64) -> i64 {
        let parted = ask.part().map(|(column, milli)| {
            let (parts, opened) = state.free.parted(column, milli, count);
            (parts, (column, opened))
        });
        let after = State {
            parts: parted.as_ref().map_or(state.parts, |(parts, _)| parts),
            cpu: state.cpu.saturating_sub(ask.cpu().saturating_mul(count)),
            memory: (state.memory).saturating_sub(ask.memory().saturating_mul(count)),
            taken: Some((ask, count)),
            opened: parted.as_ref().map_or((0, 0), |(_, opened)| *opened),
            ..state
        };
        let columns = self.columns.iter();
        let idle = columns.fold(0i64, |sum, column| {
            sum.saturating_add(after.idle(column.column))
        });
        let kept = idle.saturating_mul(1 << FINE).checked_div(100).unwrap_or(0);
        self.stranded(after)
            .saturating_sub(self.stranded(state))
            .saturating_add(kept)
    }

    fn stranded(&self, state: State<'_>) -> i64 {
        let content =
            state.admits & up_to(&self.by_cpu, state.cpu) & up_to(&self.by_memory, state.memory);
        let (mut sum, mut all_idle) = (0i64, 0i64);
        for column in &self.columns {
            let idle = state.idle(column.column);
            all_idle = all_idle.saturating_add(idle);
            sum = sum.saturating_add(column.stranded(state, content, idle));
        }
        let cpu = i64::try_from(state.cpu).unwrap_or(i64::MAX);
        let fed = cpu.saturating_mul(self.fed) >> SCALE;
        let starved = all_idle.saturating_sub(fed).max(0);
        let glut = fed.saturating_sub(all_idle).max(0) >> 4;
        let rest = starved.saturating_add(glut).saturating_mul(1 << FINE);
        sum.saturating_add(rest)
    }
}

impl Column {
    fn of(column: usize, members: Vec<usize>, typical: &[Typical], weights: &[u32]) -> Self {
        let here = |at: &usize| typical.get(*at).map(|typical| (*at, typical));
        let of_column: Vec<(usize, &Typical)> = members.iter().filter_map(here).collect();
        let scaled = |at: usize| weights.get(at).copied().map_or(0, i64::from);
        let mut sums = Box::new([[0i64; BYTE]; BYTES]);
        for (byte, sums) in sums.iter_mut().enumerate() {
            for (set, sum) in sums.iter_mut().enumerate() {
                let bits = (0..8usize).filter(|bit| (set >> bit) & 1 == 1);
                let members = bits.map(|bit| byte.saturating_mul(8).saturating_add(bit));
                *sum = members
                    .filter(|at| members_contains(&of_column, *at))
                    .fold(0, |sum, at| sum.saturating_add(scaled(at)));
            }
        }
        let by = |wants: &dyn Fn(&Typical) -> u64| {
            let wants = of_column.iter().map(|(at, typical)| (wants(typical), *at));
            steps(wants.collect())
        };
        Self {
            column,
            all: of_column.iter().fold(0, |set, (at, _)| set | bit(*at)),
            by_whole: by(&|typical| typical.whole),
            by_part: by(&|typical| u64::from(typical.part)),
            sums,
            lost: lost(&of_column),
        }
    }

    /// Fragments and slivers of the devices in this column, of a node that has CPU and memory for the
    /// typical shapes `content`.
    fn stranded(&self, state: State<'_>, content: u64, idle: i64) -> i64 {
        let whole = state.whole(self.column);
        let largest = match whole {
            0 => state.parts(self.column).max().unwrap_or(0),
            _ => DEVICE_MILLI,
        };
        let parts = up_to(&self.by_part, u64::from(largest));
        let able = self.all & content & up_to(&self.by_whole, whole) & parts;
        let mut fragments = self.weight(self.all & !able).saturating_mul(idle);
        let lost = |left: u32| {
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            self.lost.get(left).copied().unwrap_or(0)
        };
        let count = i64::try_from(whole).unwrap_or(i64::MAX);
        let mut slivers = lost(DEVICE_MILLI).saturating_mul(count);
        for left in state.parts(self.column) {
            let larger = able & !up_to(&self.by_part, u64::from(left));
            let part = self.weight(larger).saturating_mul(i64::from(left));
            fragments = fragments.saturating_add(part);
            slivers = slivers.saturating_add(lost(left));
        }
        (fragments >> (SCALE - FINE)).saturating_add(slivers)
    }

    /// Sum of the weights of a set.
    fn weight(&self, set: u64) -> i64 {
        let bytes = set.to_le_bytes();
        let sums = self.sums.iter().zip(bytes);
        sums.fold(0, |sum, (sums, byte)| {
            sum.saturating_add(sums.get(usize::from(byte)).copied().unwrap_or(0))
        })
    }
}

fn members_contains(members: &[(usize, &Typical)], at: usize) -> bool {
    members.iter().any(|(other, _)| *other == at)
}

/// The shape in columns; nothing for one that asks for no device that is known.
fn typical(
    shape: &PodShape,
    count: u64,
    index: &Index,
    is_device: impl Fn(usize) -> bool,
) -> Option<Typical> {
    let ask = index.ask(shape);
    if ask.is_unknown() || count == 0 {
        return None;
    }
    if let Some((column, part)) = ask.part() {
        return Some(Typical {
            ask,
            column,
            whole: 0,
            part,
            count,
        });
    }
    let (column, whole) = ask.most(is_device)?;
    Some(Typical {
        ask,
        column,
        whole,
        part: DEVICE_MILLI,
        count,
    })
}

/// Weight of each: how often it comes for each device on which it finds room now, as a share of those that
/// ask for the same; scaled.
fn weights(shapes: &[&Arc<PodShape>], typical: &[Typical], index: &Index) -> Vec<u32> {
    let mut rooms = vec![0u64; typical.len()];
    let mut idle_in_all: BTreeMap<usize, u64> = BTreeMap::new();
    let mut last: Option<(u32, Vec<bool>)> = None;
    for (key, group) in index.groups() {
        let is_eligible = |kind: &Kind| kind.eligibility == Eligibility::Eligible && kind.reported;
        if !index.kind(key).is_some_and(is_eligible) {
            continue;
        }
        let nodes = u64::try_from(group.nodes.len()).unwrap_or(u64::MAX);
        let admits = match &last {
            Some((kind, admits)) if *kind == key.kind => admits.clone(),
            _ => {
                let fit = |shape: &&Arc<PodShape>| index.fit(key, shape);
                let admits = shapes.iter().map(fit);
                admits
                    .map(|fit| matches!(fit, Fit::All | Fit::Each))
                    .collect()
            }
        };
        for (at, typical) in typical.iter().enumerate() {
            if !admits.get(at).copied().unwrap_or(false) || key.free.times(&typical.ask, 1).0 == 0 {
                continue;
            }
            let state = State::of(&key.free, 0);
            let whole = state.whole(typical.column);
            let parts = state.parts(typical.column);
            let parts = parts.filter(|left| *left >= typical.part).map(u64::from);
            let each = whole
                .saturating_mul(u64::from(DEVICE_MILLI))
                .saturating_add(parts.fold(0, u64::saturating_add));
            if let Some(room) = rooms.get_mut(at) {
                *room = room.saturating_add(each.saturating_mul(nodes));
            }
        }
        for typical in typical {
            idle_in_all.entry(typical.column).or_default();
        }
        for (column, sum) in &mut idle_in_all {
            let idle = u64::try_from(State::of(&key.free, 0).idle(*column)).unwrap_or(0);
            *sum = sum.saturating_add(idle.saturating_mul(nodes));
        }
        last = Some((key.kind, admits));
    }
    let of = |(typical, room): (&Typical, &u64)| {
        // Where next to none is left, one more or less is no reason to turn everything round.
        let idle = idle_in_all.get(&typical.column).copied().unwrap_or(0);
        let least = idle.div_ceil(100).saturating_add(u64::from(DEVICE_MILLI));
        amount(typical.count) / amount(room.saturating_add(least))
    };
    let weights: Vec<f64> = typical.iter().zip(&rooms).map(of).collect();
    let mut sums: BTreeMap<usize, f64> = BTreeMap::new();
    for (typical, weight) in typical.iter().zip(&weights) {
        *sums.entry(typical.column).or_default() += weight;
    }
    let weights = typical.iter().zip(weights);
    weights
        .map(|(typical, weight)| {
            let sum = sums.get(&typical.column).copied().unwrap_or(1.0);
            let share = whole(weight / sum * f64::from(1 << SCALE));
            u32::try_from(share).unwrap_or(0)
        })
        .collect()
}

/// Thousandths of a device that a thousandth of a core feeds, scaled: as members ask for both on average.
fn fed(typical: &[Typical]) -> i64 {
    let (mut cpu, mut devices) = (0u64, 0u64);
    for typical in typical {
        let each = match typical.whole {
            0 => u64::from(typical.part),
            whole => whole.saturating_mul(u64::from(DEVICE_MILLI)),
        };
        cpu = cpu.saturating_add(typical.ask.cpu().saturating_mul(typical.count));
        devices = devices.saturating_add(each.saturating_mul(typical.count));
    }
    if cpu == 0 {
        // No CPU is asked for: it feeds whatever there is.
        return i64::from(u32::MAX);
    }
    whole(amount(devices) / amount(cpu) * f64::from(1 << SCALE)).min(i64::from(u32::MAX))
}

/// What is lost of a device of which so much is free, by what is free: shares come in turn as often as they
/// are asked for, and each that fits is taken, until none does.
fn lost(members: &[(usize, &Typical)]) -> Vec<i64> {
    let mut sizes: BTreeMap<u32, f64> = BTreeMap::new();
    for (_, typical) in members {
        let devices = amount(typical.whole.max(1));
        *sizes.entry(typical.part).or_default() += amount(typical.count) * devices;
    }
    let mut filled = vec![0.0f64];
    for free in 1..=DEVICE_MILLI {
        let (mut often, mut sum) = (0.0, 0.0);
        for (size, weight) in sizes.range(..=free) {
            let rest = usize::try_from(free.saturating_sub(*size)).unwrap_or(0);
            often += weight;
            sum += weight * (f64::from(*size) + filled.get(rest).copied().unwrap_or(0.0));
        }
        filled.push(if often > 0.0 { sum / often } else { 0.0 });
    }
    let lost = (0..=DEVICE_MILLI).zip(filled);
    lost.map(|(free, filled)| whole((f64::from(free) - filled) * f64::from(1 << FINE)))
        .collect()
}

/// Typical shapes by what they want at most, in order.
fn steps(mut wanted: Vec<(u64, usize)>) -> Vec<(u64, u64)> {
    wanted.sort_unstable();
    let mut set = 0;
    let step = |(wants, at)| {
        set |= bit(at);
        (wants, set)
    };
    wanted.into_iter().map(step).collect()
}

/// Those that want no more than there is.
fn up_to(steps: &[(u64, u64)], there: u64) -> u64 {
    let content = steps.partition_point(|(wants, _)| *wants <= there);
    let last = content.checked_sub(1).and_then(|at| steps.get(at));
    last.map_or(0, |(_, set)| *set)
}

fn bit(at: usize) -> u64 {
    u32::try_from(at)
        .ok()
        .and_then(|at| 1u64.checked_shl(at))
        .unwrap_or(0)
}

/// A count as a fraction: exact up to 2^53, and beyond that all the same.
#[allow(clippy::cast_precision_loss)]
fn amount(count: u64) -> f64 {
    count as f64
}

/// The whole part of a fraction; nothing for one that is not a number, the limit for one beyond it.
#[allow(clippy::cast_possible_truncation)]
fn whole(fraction: f64) -> i64 {
    fraction as i64
}
