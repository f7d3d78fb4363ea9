//! The loop: the next thing that happens, what is decided on it, and what is written down.
//!
//! At one moment gangs end first, then things happen to nodes, then gangs arrive; then the policy
//! decides once on all of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use muster_core::inventory::Inventory;
use muster_core::ledger::Ledger;
use muster_core::plan::plan_part;
use muster_core::snapshot::Snapshot;
use muster_core::state::State;
use muster_core::time::{Millis, Timestamp};

use crate::cluster::{Cluster, Holders};
use crate::error::Error;
use crate::policy::{Baseline, Fact, Order, Policy, PolicyKind, Production, config};
use crate::record::Record;
use crate::scene::{Happening, Scene, TIME_MAX_MS};

/// How long the policy's own deadlines are followed after the last thing that happened from outside.
const QUIET_MAX_MS: u64 = 3_600_000;

/// Moments between two audits of the engine.
const AUDIT_EVERY: u64 = 1_000;

/// When a replay ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When nothing runs any more and nothing more can start.
    Drained,
    /// When the last gang has arrived.
    LastArrival,
    /// At this time, milliseconds.
    Time(u64),
}

impl std::str::FromStr for Until {
    type Err = String;

    /// `drained`, `last-arrival`, or a time like `90s`, `12h` or `30d`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "drained" => return Ok(Self::Drained),
            "last-arrival" => return Ok(Self::LastArrival),
            _ => {}
        }
        time_ms(text).map(Self::Time).ok_or_else(|| {
            "must be drained, last-arrival, or a number with s, m, h or d, up to 36500d".into()
        })
    }
}

/// A time like `90s`, `12h` or `30d`, milliseconds.
fn time_ms(text: &str) -> Option<u64> {
    let units = [
        ("s", 1_000),
        ("m", 60_000),
        ("h", 3_600_000),
        ("d", 86_400_000),
    ];
    units.iter().find_map(|(unit, ms)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*ms).filter(|ms| *ms <= TIME_MAX_MS)
    })
}

/// A time in a replay, milliseconds from its beginning; `90s`, `12h` or `30d` on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At(pub u64);

impl std::str::FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let limit = || "must be a number with s, m, h or d, up to 36500d".into();
        time_ms(text).map(Self).ok_or_else(limit)
    }
}

/// How a replay is run.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Who decides.
    pub policy: PolicyKind,
    /// How long a write takes, milliseconds; only for [`PolicyKind::Muster`].
    pub write_delay_ms: u64,
    /// When it ends.
    pub until: Until,
    /// When what the planner sees is kept, milliseconds: after everything of that time has been decided, and at
    /// the end of the replay at the latest.
    pub state_at_ms: Option<u64>,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Gangs that have ended.
    pub ended: usize,
    /// Gangs in all.
    pub gangs: usize,
    /// Time in the replay, milliseconds.
    pub now_ms: u64,
}

/// What a replay has found.
#[derive(Debug)]
pub struct Outcome {
    /// What was written down.
    pub record: Record,
    /// Why gangs wait at the end, by position.
    pub reasons: BTreeMap<usize, String>,
    /// Invariants of the engine that did not hold.
    pub violations: u64,
    /// What the planner saw at the time that was asked for, under the production engine.
    pub state: Option<State>,
}

struct Replay<'a> {
    scene: &'a Scene,
    cluster: Cluster,
    policy: Box<dyn Policy + 'a>,
    record: Record,
    facts: Vec<Fact>,
    /// When runs end: time, gang, number of the run.
    ends: BinaryHeap<Reverse<(u64, usize, u32)>>,
    /// Number of each gang's present run.
    runs: Vec<u32>,
    next_arrival: usize,
    next_occurrence: usize,
    ended: usize,
}

/// Replays a scene.
pub fn replay(
    scene: &Scene,
    setting: &Setting,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, Error> {
    let policy: Box<dyn Policy + '_> = match setting.policy {
        PolicyKind::Muster => Box::new(Production::new(scene, Millis(setting.write_delay_ms))),
        PolicyKind::Fifo => Box::new(Baseline::new(scene, Order::Fifo)),
        PolicyKind::Greedy => Box::new(Baseline::new(scene, Order::Greedy)),
    };
    let mut replay = Replay {
        scene,
        cluster: Cluster::new(&scene.nodes),
        policy,
        record: Record::new(scene),
        facts: Vec::new(),
        ends: BinaryHeap::new(),
        runs: vec![0; scene.gangs.len()],
        next_arrival: 0,
        next_occurrence: 0,
        ended: 0,
    };
    for (gang, why) in impossible(scene) {
        replay.record.impossible(gang, why);
    }
    replay.run(setting, progress)
}

fn until_ms(scene: &Scene, until: Until) -> u64 {
    match until {
        Until::Drained => u64::MAX,
        Until::LastArrival => scene.gangs.last().map_or(0, |gang| gang.arrival_ms),
        Until::Time(at) => at,
    }
}

/// Gangs that could not run if they had the cluster to themselves, every node that there ever is
/// included, and why.
fn impossible(scene: &Scene) -> BTreeMap<usize, String> {
    let mut cluster = Cluster::new(&scene.nodes);
    let config = config(scene);
    let (mut ledger, mut inventory) = (Ledger::default(), Inventory::default());
    let mut snapshot = Snapshot::default();
    for node in 0..cluster.len() {
        cluster.happen(node, Happening::Add);
        let (Some(object), Some(name)) = (cluster.object(node), cluster.name(node).cloned()) else {
            continue;
        };
        ledger.set_node(object);
        if let Some(report) = cluster.report(node, &Holders::new()) {
            let _ = inventory.apply(report, Timestamp(0));
        }
        if let Some(capacity) = ledger.capacity(&name, &inventory, &config, Timestamp(0)) {
            snapshot.set(Arc::new(capacity));
        }
    }
    let mut known: BTreeMap<(usize, u32), Option<String>> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for (position, gang) in scene.gangs.iter().enumerate() {
        let why = known
            .entry((gang.class, gang.minimum()))
            .or_insert_with(|| {
                for role in gang.roles.iter() {
                    snapshot.learn(&role.shape);
                }
                let spare = gang.members().saturating_sub(gang.minimum());
                let answer = plan_part(&snapshot, &gang.request(&config), spare, &config);
                answer.placement.err().map(|why| why.to_string())
            });
        if let Some(why) = why {
            found.insert(position, why.clone());
        }
    }
    found
}

impl Replay<'_> {
    fn run(
        mut self,
        setting: &Setting,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Outcome, Error> {
        let until_ms = until_ms(self.scene, setting.until);
        let mut state_at_ms = setting.state_at_ms;
        let mut state = None;
        for node in 0..self.cluster.len() {
            self.policy.node_changed(&mut self.cluster, node, 0);
            self.record.node(&self.cluster, node, 0);
        }
        let (mut now_ms, mut moments, mut violations) = (0, 0u64, 0u64);
        // The last time at which something happened from outside.
        let mut stirred_ms = 0;
        loop {
            if self.take_in(now_ms) {
                stirred_ms = now_ms;
            }
            self.decide(now_ms)?;
            moments = moments.saturating_add(1);
            if moments.checked_rem(AUDIT_EVERY) == Some(0) {
                violations = violations.saturating_add(self.policy.audit());
            }
            progress(Progress {
                ended: self.ended,
                gangs: self.scene.gangs.len(),
                now_ms,
            });
            let quiet = stirred_ms.saturating_add(QUIET_MAX_MS);
            let next = self.next_ms(quiet);
            if let Some(at) = state_at_ms.take_if(|at| next.is_none_or(|next| next > *at)) {
                // Without anything to come this is the end.
                let at = next.map_or(now_ms, |_| at.min(until_ms).max(now_ms));
                state = self.policy.state(at);
            }
            let Some(next) = next else {
                break;
            };
            if next > until_ms {
                now_ms = until_ms.max(now_ms);
                break;
            }
            now_ms = next.max(now_ms.saturating_add(1));
        }
        self.record.sample(self.cluster.totals(), now_ms);
        violations = violations.saturating_add(self.policy.audit());
        if state_at_ms.is_some() {
            state = self.policy.state(now_ms);
        }
        let reasons = self.reasons();
        Ok(Outcome {
            record: self.record,
            reasons,
            violations,
            state,
        })
    }

    /// When the next thing happens. A deadline of the policy alone counts up to `quiet`, unless
    /// something else is still to come.
    fn next_ms(&self, quiet: u64) -> Option<u64> {
        let arrival = self.scene.gangs.get(self.next_arrival);
        let occurrence = self.scene.occurrences.get(self.next_occurrence);
        let outside = [
            self.ends.peek().map(|Reverse((at, _, _))| *at),
            arrival.map(|gang| gang.arrival_ms),
            occurrence.map(|occurrence| occurrence.at_ms),
        ]
        .into_iter()
        .flatten()
        .min();
        let own = self
            .policy
            .deadline_ms()
            .filter(|at| outside.is_some() || *at <= quiet);
        [outside, own].into_iter().flatten().min()
    }

    /// Everything that happens at this moment. Whether anything does.
    fn take_in(&mut self, now_ms: u64) -> bool {
        let mut any = false;
        while let Some(Reverse((at, gang, run))) = self.ends.peek().copied() {
            if at > now_ms {
                break;
            }
            self.ends.pop();
            if self.runs.get(gang) == Some(&run)
                && self.record.life(gang).is_some_and(|life| life.running)
            {
                self.record.ended(gang, now_ms);
                self.policy.ended(gang, now_ms);
                self.ended = self.ended.saturating_add(1);
                any = true;
            }
        }
        while let Some(occurrence) = self.scene.occurrences.get(self.next_occurrence)
            && occurrence.at_ms <= now_ms
        {
            self.next_occurrence = self.next_occurrence.saturating_add(1);
            self.cluster.happen(occurrence.node, occurrence.what);
            self.policy
                .node_changed(&mut self.cluster, occurrence.node, now_ms);
            self.record.node(&self.cluster, occurrence.node, now_ms);
            any = true;
        }
        while let Some(spec) = self.scene.gangs.get(self.next_arrival)
            && spec.arrival_ms <= now_ms
        {
            let gang = self.next_arrival;
            self.next_arrival = self.next_arrival.saturating_add(1);
            if self
                .record
                .life(gang)
                .is_some_and(|life| life.impossible.is_some())
            {
                continue;
            }
            self.record.arrived(gang, spec);
            self.policy.arrived(gang, now_ms);
            any = true;
        }
        any
    }

    fn decide(&mut self, now_ms: u64) -> Result<(), Error> {
        let mut facts = std::mem::take(&mut self.facts);
        self.policy.decide(&mut self.cluster, now_ms, &mut facts)?;
        for fact in facts.drain(..) {
            match fact {
                Fact::Runs { gang } => self.begin(gang, now_ms),
                Fact::Halts { gang } => {
                    if let Some(spec) = self.scene.gangs.get(gang) {
                        self.record.halts(gang, spec);
                    }
                    if let Some(run) = self.runs.get_mut(gang) {
                        *run = run.saturating_add(1);
                    }
                }
                fact => self.record.pod(&mut self.cluster, &fact, now_ms),
            }
        }
        self.facts = facts;
        self.record.sample(self.cluster.totals(), now_ms);
        Ok(())
    }

    fn begin(&mut self, gang: usize, now_ms: u64) {
        let (Some(spec), Some(run)) = (self.scene.gangs.get(gang), self.runs.get_mut(gang)) else {
            return;
        };
        *run = run.saturating_add(1);
        // A run takes some time, so that the replay goes on.
        let end = now_ms.saturating_add(spec.duration_ms.max(1));
        self.ends.push(Reverse((end, gang, *run)));
        self.record.runs(gang, spec, now_ms);
    }

    fn reasons(&self) -> BTreeMap<usize, String> {
        let waits = |gang: &usize| {
            self.record
                .life(*gang)
                .is_some_and(|life| life.arrived && !life.running && life.ended_ms.is_none())
        };
        (0..self.scene.gangs.len())
            .filter(waits)
            .filter_map(|gang| Some((gang, self.policy.reason(gang)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_words_or_times() {
        let read = |text: &str| text.parse::<Until>().ok();
        assert_eq!(read("drained"), Some(Until::Drained));
        assert_eq!(read("last-arrival"), Some(Until::LastArrival));
        assert_eq!(read("90s"), Some(Until::Time(90_000)));
        assert_eq!(read("36500d"), Some(Until::Time(TIME_MAX_MS)));
        for wrong in [
            "",
            "5",
            "s",
            "-1s",
            "36501d",
            "18446744073709551615h",
            "1.5h",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
