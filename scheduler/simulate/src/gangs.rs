//! `gangs.csv`: a row for each gang of the input, in order of arrival.

use std::fmt::Write as _;

use crate::record::{Life, Record};
use crate::scene::{GangSpec, Scene};

/// First line of the file. Times are from the beginning of the replay; a field is empty where there is nothing to
/// say: a gang that has not started has no time of it.
const HEADER: &str = "gang,state,members,gpus,submitted_seconds,started_seconds,waited_seconds,\
                      finished_seconds,passed_by,runs_lost,nodes\n";

/// The text of `gangs.csv`.
pub fn text(scene: &Scene, record: &Record) -> String {
    let mut text = String::from(HEADER);
    let passed = passed(&record.lives);
    for ((gang, life), passed) in scene.gangs.iter().zip(&record.lives).zip(passed) {
        row(&mut text, gang, life, passed);
    }
    text
}

fn row(text: &mut String, gang: &GangSpec, life: &Life, passed: u32) {
    let waited = life.started_ms.map(|at| at.saturating_sub(gang.arrival_ms));
    let submitted = Some(gang.arrival_ms).filter(|_| life.arrived);
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "{},{},{},{},{},{},{},{},{passed},{},{}",
        gang.name,
        state(life),
        gang.members(),
        gang.gpus(),
        seconds(submitted),
        seconds(life.started_ms),
        seconds(waited),
        seconds(life.ended_ms),
        life.halts,
        life.started_ms
            .map_or(String::new(), |_| life.nodes.to_string()),
    );
}

/// What had become of a gang when the replay ended.
fn state(life: &Life) -> &'static str {
    match life {
        Life {
            impossible: Some(_),
            ..
        } => "impossible",
        Life { arrived: false, .. } => "not-submitted",
        Life {
            ended_ms: Some(_), ..
        } => "completed",
        Life { running: true, .. } => "running",
        _ => "waiting",
    }
}

fn seconds(ms: Option<u64>) -> String {
    let in_words = |ms: u64| format!("{}.{:03}", ms.div_euclid(1000), ms.rem_euclid(1000));
    ms.map_or(String::new(), in_words)
}

/// Of each gang, how many that came later first started while it waited for its own first start, or until the end.
fn passed(lives: &[Life]) -> Vec<u32> {
    let mut started: Vec<(u64, usize)> = lives
        .iter()
        .enumerate()
        .filter(|(_, life)| life.arrived)
        .map(|(at, life)| (life.started_ms.unwrap_or(u64::MAX), at))
        .collect();
    started.sort_unstable();
    let mut passed = vec![0; lives.len()];
    let mut later = Later::new(lives.len());
    // Those that start together pass nobody of one another.
    for together in started.chunk_by(|(a, _), (b, _)| a == b) {
        for (_, gang) in together {
            if let Some(passed) = passed.get_mut(*gang) {
                *passed = later.than(*gang);
            }
        }
        for (_, gang) in together {
            later.note(*gang);
        }
    }
    passed
}

/// Counts positions that are larger than one (a binary indexed tree, from the end).
struct Later {
    sums: Vec<u32>,
}

impl Later {
    fn new(positions: usize) -> Self {
        Self {
            sums: vec![0; positions.saturating_add(1)],
        }
    }

    /// Place in the tree, from 1: the last position first.
    fn place(&self, position: usize) -> usize {
        self.sums.len().saturating_sub(position).saturating_sub(1)
    }

    fn note(&mut self, position: usize) {
        let mut place = self.place(position);
        while let Some(sum) = self.sums.get_mut(place).filter(|_| place > 0) {
            *sum = sum.saturating_add(1);
            place = place.saturating_add(place & place.wrapping_neg());
        }
    }

    /// How many of those noted are larger.
    fn than(&self, position: usize) -> u32 {
        let mut place = self.place(position).saturating_sub(1);
        let mut count = 0u32;
        while place > 0 {
            count = count.saturating_add(self.sums.get(place).copied().unwrap_or(0));
            place = place.saturating_sub(place & place.wrapping_neg());
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(started: &[Option<u64>]) -> Vec<Life> {
        let life = |started_ms: &Option<u64>| Life {
            arrived: true,
            started_ms: *started_ms,
            ..Life::default()
        };
        started.iter().map(life).collect()
    }

    #[test]
    fn later_ones_that_start_first_pass_and_those_that_start_together_do_not() {
        let started = [Some(9), Some(1), Some(5), None, Some(9), Some(5), Some(7)];
        let of = |all: &[Life]| -> Vec<u32> {
            // The same, by its definition.
            let start = |life: &Life| life.started_ms.unwrap_or(u64::MAX);
            let lives = all.iter().enumerate();
            let count = |(at, life): (usize, &Life)| {
                let later = all.iter().skip(at + 1);
                u32::try_from(later.filter(|other| start(other) < start(life)).count()).unwrap()
            };
            lives.map(count).collect()
        };
        let all = lives(&started);
        assert_eq!(passed(&all), [4, 0, 0, 3, 2, 0, 0]);
        assert_eq!(passed(&all), of(&all));
        let many: Vec<Option<u64>> = (0..300u64).map(|n| Some(n * 7919 % 83)).collect();
        let all = lives(&many);
        assert_eq!(passed(&all), of(&all));
        assert_eq!(passed(&lives(&[])), [0; 0]);
    }
}
