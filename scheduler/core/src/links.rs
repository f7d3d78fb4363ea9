//! How near the GPUs of a node are to each other, and which of the free ones go together best.

use std::cmp::Reverse;
use std::sync::Arc;

/// Most GPUs of a node of which it is looked at.
pub const GPUS_MAX: usize = 64;

/// How far apart the GPUs of a node are, by their index; a smaller number is nearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    gpus: usize,
    /// Row by row.
    apart: Arc<[u8]>,
}

impl Links {
    /// Of a row for each GPU, in order of index, each with how far every GPU is. What two GPUs say of each other
    /// differently counts as the farther; a GPU is nearest to itself. `None` where all are equally near, where a row has
    /// another length than there are rows, and for more than [`GPUS_MAX`].
    pub fn of(rows: &[Vec<u8>]) -> Option<Self> {
        let gpus = rows.len();
        if gpus > GPUS_MAX || rows.iter().any(|row| row.len() != gpus) {
            return None;
        }
        let mut apart = Vec::with_capacity(gpus.saturating_mul(gpus));
        for (at, row) in rows.iter().enumerate() {
            for (other, far) in row.iter().enumerate() {
                let back = rows.get(other).and_then(|row| row.get(at));
                let far = (*far).max(back.copied().unwrap_or(u8::MAX));
                apart.push(if at == other { 0 } else { far });
            }
        }
        let links = Self {
            gpus,
            apart: apart.into(),
        };
        let first = links.pairs().next()?;
        let is_even = links.pairs().all(|far| far == first);
        (!is_even).then_some(links)
    }

    /// The rows of which it was made.
    pub fn rows(&self) -> Vec<Vec<u8>> {
        let rows = self.apart.chunks(self.gpus.max(1));
        rows.map(<[u8]>::to_vec).collect()
    }

    /// Every two different GPUs.
    fn pairs(&self) -> impl Iterator<Item = u8> {
        let gpus = self.gpus.max(1);
        let cells = self.apart.iter().enumerate();
        cells
            .filter(move |(at, _)| at.checked_div(gpus) != at.checked_rem(gpus))
            .map(|(_, far)| *far)
    }

    /// How far apart the GPUs with these indices are; as far as can be where that is not known.
    fn apart(&self, a: u32, b: u32) -> u32 {
        let (Ok(a), Ok(b)) = (usize::try_from(a), usize::try_from(b)) else {
            return u32::from(u8::MAX);
        };
        let is_known = a < self.gpus && b < self.gpus;
        let at = a.saturating_mul(self.gpus).saturating_add(b);
        let far = self.apart.get(at).filter(|_| is_known);
        far.map_or(u32::from(u8::MAX), |far| u32::from(*far))
    }

    /// `amount` of the free GPUs, as positions in `free`, in order: those that are nearest to each other; of several
    /// such sets that one which is farthest from what is left, so that what is left is near to each other, too; then the
    /// first. All of them where there are no more.
    pub fn nearest(&self, free: &[u32], amount: usize) -> Vec<usize> {
        if amount >= free.len() {
            return (0..free.len()).collect();
        }
        if amount == 0 {
            return Vec::new();
        }
        let sets = (0..free.len()).map(|seed| self.grow(free, seed, amount));
        let best = sets.min_by_key(|set| (set.within, Reverse(set.outside)));
        best.map(|set| set.positions()).unwrap_or_default()
    }

    /// A set that begins with one GPU and takes the nearest to all of its own each time.
    fn grow(&self, free: &[u32], seed: usize, amount: usize) -> Set {
        let mut set = Set {
            taken: vec![false; free.len()],
            far: vec![0; free.len()],
            within: 0,
            outside: 0,
        };
        let mut next = Some(seed);
        for _ in 0..amount {
            let Some(at) = next else { break };
            let gpu = free.get(at).copied().unwrap_or(u32::MAX);
            set.take(at, free.iter().map(|other| self.apart(gpu, *other)));
            next = set.nearest();
        }
        set.outside = set
            .left()
            .fold(0, |sum: u32, (_, far)| sum.saturating_add(far));
        set
    }
}

/// Some of the free GPUs.
struct Set {
    /// Whether each is in it.
    taken: Vec<bool>,
    /// Distance of each from all that are in it.
    far: Vec<u32>,
    /// Distances among those that are in it.
    within: u32,
    /// Distances from these to the others.
    outside: u32,
}

impl Set {
    /// Adds one; `apart` says how far it is from each.
    fn take(&mut self, at: usize, apart: impl Iterator<Item = u32>) {
        let own = self.far.get(at).copied().unwrap_or(0);
        self.within = self.within.saturating_add(own);
        if let Some(taken) = self.taken.get_mut(at) {
            *taken = true;
        }
        for (far, apart) in self.far.iter_mut().zip(apart) {
            *far = far.saturating_add(apart);
        }
    }

    /// Those that are not in it, with their distance from it.
    fn left(&self) -> impl Iterator<Item = (usize, u32)> {
        let all = self.taken.iter().zip(&self.far).enumerate();
        all.filter(|(_, (taken, _))| !**taken)
            .map(|(at, (_, far))| (at, *far))
    }

    fn nearest(&self) -> Option<usize> {
        let nearest = self.left().min_by_key(|(at, far)| (*far, *at));
        nearest.map(|(at, _)| at)
    }

    fn positions(&self) -> Vec<usize> {
        let all = self.taken.iter().enumerate();
        all.filter(|(_, taken)| **taken).map(|(at, _)| at).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Two NUMA nodes of two switches with two GPUs each.
    fn pcie() -> Links {
        let far = |a: u32, b: u32| match (a / 2 == b / 2, a / 4 == b / 4) {
            (true, _) => 30,
            (_, true) => 60,
            _ => 70,
        };
        let rows: Vec<Vec<u8>> = (0..8)
            .map(|a| (0..8).map(|b| far(a, b)).collect())
            .collect();
        Links::of(&rows).unwrap()
    }

    fn taken(free: &[u32], amount: usize) -> Vec<u32> {
        let at = pcie().nearest(free, amount);
        at.into_iter().map(|at| free[at]).collect()
    }

    #[test]
    fn two_come_from_one_switch_and_four_from_one_numa_node() {
        assert_eq!(taken(&[0, 1, 2, 3, 4, 5, 6, 7], 2), [0, 1]);
        assert_eq!(taken(&[1, 2, 3, 4, 5, 6, 7], 2), [2, 3]);
        assert_eq!(taken(&[1, 2, 3, 4, 5, 6, 7], 4), [4, 5, 6, 7]);
        assert_eq!(taken(&[1, 3, 4, 6], 2), [1, 3]);
        assert_eq!(taken(&[1, 4, 6], 2), [4, 6]);
        assert_eq!(taken(&[1, 4], 3), [1, 4]);
        assert!(taken(&[], 1).is_empty() && taken(&[0, 1], 0).is_empty());
    }

    #[test]
    fn what_is_left_stays_together() {
        // One of a pair is not taken while a GPU is alone already, and a pair alone on its NUMA node goes first.
        assert_eq!(taken(&[0, 1, 3], 1), [3]);
        assert_eq!(taken(&[0, 1, 2, 3, 6, 7], 2), [6, 7]);
    }

    #[test]
    fn nvlink_pairs_beat_switches() {
        // GPUs 0 and 3 are linked, and 1 and 2.
        let far = |a: usize, b: usize| if a + b == 3 { 8 } else { 30 };
        let rows: Vec<Vec<u8>> = (0..4)
            .map(|a| (0..4).map(|b| far(a, b)).collect())
            .collect();
        let links = Links::of(&rows).unwrap();
        assert_eq!(links.nearest(&[0, 1, 2, 3], 2), [0, 3]);
        assert_eq!(links.nearest(&[0, 1, 2], 2), [1, 2]);
        assert_eq!(Links::of(&links.rows()), Some(links));
    }

    #[test]
    fn equal_distances_and_odd_tables_say_nothing() {
        assert_eq!(Links::of(&vec![vec![5; 8]; 8]), None);
        assert_eq!(Links::of(&[vec![0]]), None);
        assert_eq!(Links::of(&[vec![0, 1], vec![1]]), None);
        assert_eq!(Links::of(&vec![vec![0; 65]; 65]), None);
        // A GPU that was not spoken of is far.
        let links = pcie();
        assert_eq!(links.nearest(&[0, 99, 1], 2), [0, 2]);
    }
}
