//! What became of each gang, read from the recorded history.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use muster_control_plane::history::{Change, Event, PodState};
use serde::Serialize;

use crate::objects::{GANG, Gang};

/// Everything that happened to the load.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Gangs that had all members bound at the end.
    pub whole: usize,
    /// Gangs that had some and not all members bound at the end.
    pub partial: usize,
    /// Most gangs that were bound in part at one instant.
    pub partial_most: usize,
    /// Longest time in which any gang was bound in part.
    pub partial_longest: Duration,
    /// Most GPUs that gangs which never became whole held at one instant.
    pub waiting_gpus_most: u64,
    /// GPUs that such gangs held at the end.
    pub waiting_gpus: u64,
    /// Pods bound at the end.
    pub bound: usize,
    /// When the first member of any gang was bound.
    pub first_bound: Option<Timestamp>,
    /// When the last member of any gang was bound.
    pub last_bound: Option<Timestamp>,
    /// For each whole gang, from its submission to its last binding.
    pub latencies: Vec<Duration>,
    /// For each whole gang, from its first pod to its last binding.
    pub pod_latencies: Vec<Duration>,
    /// Second by second.
    pub timeline: Vec<Tick>,
}

/// How far things were at the end of a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tick {
    /// Pods created.
    pub created: usize,
    /// Pods without a gate.
    pub free: usize,
    /// Pods bound.
    pub bound: usize,
    /// Pods running.
    pub running: usize,
}

/// One gang while the history is walked.
#[derive(Debug, Default)]
struct Walk {
    bound: BTreeSet<String>,
    first_pod: Option<Timestamp>,
    first_bound: Option<Timestamp>,
    last_bound: Option<Timestamp>,
    partial_since: Option<Timestamp>,
    partial_longest: Duration,
    whole_ever: bool,
}

fn between(from: Timestamp, until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(from)).unwrap_or(Duration::ZERO)
}

impl Walk {
    /// Takes in a pod. Returns the number of members bound.
    fn take(&mut self, pod: &PodState, gone: bool, at: Timestamp, size: usize) -> usize {
        self.first_pod.get_or_insert(at);
        if !gone && pod.is_bound_and_live() {
            if self.bound.insert(pod.uid.clone()) {
                self.first_bound.get_or_insert(at);
                self.last_bound = Some(at);
            }
        } else {
            self.bound.remove(&pod.uid);
        }
        let bound = self.bound.len();
        self.whole_ever |= bound >= size;
        if bound > 0 && bound < size {
            self.partial_since.get_or_insert(at);
        } else {
            self.end_partial(at);
        }
        bound
    }

    fn end_partial(&mut self, at: Timestamp) {
        if let Some(since) = self.partial_since.take() {
            self.partial_longest = self.partial_longest.max(between(since, at));
        }
    }
}

/// Reads the events of the load's pods. `submitted` says when each gang was; `until` is now.
pub fn outcome(
    events: &[Event],
    gangs: &[Gang],
    submitted: &BTreeMap<String, Timestamp>,
    until: Timestamp,
) -> Outcome {
    let sizes: BTreeMap<&str, &Gang> = gangs
        .iter()
        .map(|gang| (gang.name.as_str(), gang))
        .collect();
    let mut walks: BTreeMap<&str, Walk> = BTreeMap::new();
    let mut steps: Vec<(&str, usize)> = Vec::new();
    let mut partial_most = 0;
    let mut partial_now = BTreeSet::new();
    for event in events {
        let (pod, gone) = match &event.change {
            Change::Pod(pod) => (pod, false),
            Change::PodGone(pod) => (pod, true),
            _ => continue,
        };
        let Some((name, gang)) = pod
            .labels
            .get(GANG)
            .and_then(|name| sizes.get_key_value(name.as_str()))
        else {
            continue;
        };
        let bound = walks
            .entry(name)
            .or_default()
            .take(pod, gone, event.at, gang.pods);
        if bound > 0 && bound < gang.pods {
            partial_now.insert(*name);
        } else {
            partial_now.remove(name);
        }
        partial_most = partial_most.max(partial_now.len());
        steps.push((name, bound));
    }
    let mut outcome = Outcome {
        partial_most,
        partial: partial_now.len(),
        waiting_gpus_most: waiting_gpus_most(&steps, &walks, &sizes),
        timeline: timeline(events, &sizes, submitted.values().min().copied()),
        ..Outcome::default()
    };
    for (name, walk) in &mut walks {
        walk.end_partial(until);
        let Some(gang) = sizes.get(name) else {
            continue;
        };
        outcome.add(gang, walk, submitted.get(*name).copied());
    }
    outcome
}

impl Outcome {
    fn add(&mut self, gang: &Gang, walk: &Walk, submitted: Option<Timestamp>) {
        self.partial_longest = self.partial_longest.max(walk.partial_longest);
        self.bound = self.bound.saturating_add(walk.bound.len());
        let firsts = [self.first_bound, walk.first_bound];
        self.first_bound = firsts.into_iter().flatten().min();
        self.last_bound = self.last_bound.max(walk.last_bound);
        if walk.bound.len() >= gang.pods {
            self.whole = self.whole.saturating_add(1);
            if let Some(last) = walk.last_bound {
                self.latencies
                    .extend(submitted.map(|submitted| between(submitted, last)));
                self.pod_latencies
                    .extend(walk.first_pod.map(|first| between(first, last)));
            }
        } else if !walk.whole_ever {
            let held = (walk.bound.len() as u64).saturating_mul(u64::from(gang.gpus));
            self.waiting_gpus = self.waiting_gpus.saturating_add(held);
        }
    }
}

/// Walks the numbers of members bound once more, for gangs that never became whole.
fn waiting_gpus_most(
    steps: &[(&str, usize)],
    walks: &BTreeMap<&str, Walk>,
    sizes: &BTreeMap<&str, &Gang>,
) -> u64 {
    let mut held: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut sum, mut most) = (0_u64, 0_u64);
    for (name, bound) in steps {
        if walks.get(name).is_none_or(|walk| walk.whole_ever) {
            continue;
        }
        let gpus = sizes.get(name).map_or(0, |gang| u64::from(gang.gpus));
        let now = (*bound as u64).saturating_mul(gpus);
        let before = held.insert(name, now).unwrap_or(0);
        sum = sum.saturating_sub(before).saturating_add(now);
        most = most.max(sum);
    }
    most
}

/// Ticks of one second each, from the first submission on.
fn timeline(
    events: &[Event],
    gangs: &BTreeMap<&str, &Gang>,
    start: Option<Timestamp>,
) -> Vec<Tick> {
    let Some(start) = start else {
        return Vec::new();
    };
    let mut seen: [BTreeSet<&str>; 4] = Default::default();
    let mut ticks: Vec<Tick> = Vec::new();
    for event in events {
        let Change::Pod(pod) = &event.change else {
            continue;
        };
        if !pod
            .labels
            .get(GANG)
            .is_some_and(|name| gangs.contains_key(name.as_str()))
        {
            continue;
        }
        let second = usize::try_from(between(start, event.at).as_secs()).unwrap_or(usize::MAX);
        let now = |seen: &[BTreeSet<&str>; 4]| {
            let [created, free, bound, running] = seen;
            Tick {
                created: created.len(),
                free: free.len(),
                bound: bound.len(),
                running: running.len(),
            }
        };
        while ticks.len() < second.min(SECONDS_MAX) {
            ticks.push(now(&seen));
        }
        let states = [
            true,
            pod.gates.is_empty(),
            pod.node.is_some(),
            pod.phase == "Running",
        ];
        for (set, is) in seen.iter_mut().zip(states) {
            if is {
                set.insert(&pod.uid);
            }
        }
        if std::ptr::eq(event, events.last().unwrap_or(event)) {
            ticks.push(now(&seen));
        }
    }
    ticks
}

/// Most ticks kept.
const SECONDS_MAX: usize = 3_600;

/// The value below or at which this share of the values lies (nearest rank); nothing of nothing.
pub fn percentile(values: &[Duration], share: f64) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1)?;
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(last)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + ms).unwrap()
    }

    fn event(ms: i64, gang: &str, uid: &str, node: bool) -> Event {
        let pod = PodState {
            uid: uid.into(),
            namespace: "default".into(),
            name: uid.into(),
            node: node.then(|| "n".into()),
            phase: "Pending".into(),
            terminating: false,
            gates: Vec::new(),
            scheduler: String::new(),
            labels: [(GANG.to_owned(), gang.to_owned())].into(),
            annotations: BTreeMap::new(),
            controller: None,
            requests: BTreeMap::new(),
            created: None,
        };
        Event {
            resource_version: u64::try_from(ms).unwrap(),
            at: at(ms),
            change: Change::Pod(pod),
        }
    }

    fn gang(name: &str) -> Gang {
        Gang {
            name: name.into(),
            pods: 2,
            gpus: 4,
        }
    }

    #[test]
    fn whole_and_partial_gangs_are_told_apart_with_what_they_held() {
        let gangs = [gang("a"), gang("b")];
        let events = [
            event(0, "a", "a0", false),
            event(1, "a", "a1", false),
            event(2, "b", "b0", false),
            event(10, "a", "a0", true),
            event(20, "b", "b0", true),
            event(40, "a", "a1", true),
            event(41, "warm", "w", true),
        ];
        let submitted = [("a".to_owned(), at(0)), ("b".to_owned(), at(0))].into();
        let outcome = outcome(&events, &gangs, &submitted, at(100));
        assert_eq!((outcome.whole, outcome.partial, outcome.bound), (1, 1, 3));
        assert_eq!(outcome.partial_most, 2);
        assert_eq!(outcome.partial_longest, Duration::from_millis(80));
        assert_eq!((outcome.waiting_gpus, outcome.waiting_gpus_most), (4, 4));
        assert_eq!(outcome.latencies, [Duration::from_millis(40)]);
        assert_eq!(outcome.first_bound, Some(at(10)));
        assert_eq!(outcome.last_bound, Some(at(40)));
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let values: Vec<Duration> = (1..=20).map(Duration::from_secs).collect();
        assert_eq!(percentile(&values, 0.5), Some(Duration::from_secs(10)));
        assert_eq!(percentile(&values, 0.95), Some(Duration::from_secs(19)));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
