//! Judging health: readings and events in, one verdict per device out.
//!
//! ```text
//! Reading (levels: lost, recovery action, remap, fabric, SRAM) --+
//!                                                                +--> worst cause --> Verdict per device
//! DeviceEvent (XID) --> cause, until reset / driver / quiet -----+--> Note per change (HealthEvent on the wire)
//! Sampler (hung, crashed) --> every device, until read again and on probation
//! ```
//! The judge is pure: time comes in as an argument (a duration since any fixed moment), and
//! [`Judge::next_deadline`] says when to ask again although nothing new was read. What each XID or
//! state means is data: [`table`].

mod sampler;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_proto::inventory::{HealthSource, RecoveryAction, Sampler};

use crate::model::{
    DeviceEvent, DeviceEventKind, FabricHealth, FabricReading, GpuReading, Reading,
};
use sampler::SamplerMemory;
use table::{Clear, LevelRow, Scope, State, Table, action_word};

/// Repeats of one XID on one GPU within this time are counted, not told one by one. A guess: slow
/// enough that a storm of thousands per second stays a handful of messages.
const REPEAT_WINDOW: Duration = Duration::from_secs(10);

/// Different XIDs remembered per GPU. Reaching it would take a GPU that fails in every known way; the oldest is forgotten.
const CAUSES_MAX: usize = 64;

/// The verdict on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How it is.
    pub state: State,
    /// One stable word per cause, e.g. "xid-79"; empty when healthy.
    pub reason: String,
    /// For people; empty when healthy.
    pub detail: String,
}

impl Verdict {
    /// Nothing wrong.
    pub fn healthy() -> Self {
        Self {
            state: State::Healthy,
            reason: String::new(),
            detail: String::new(),
        }
    }

    fn worsen(&mut self, state: State, reason: impl FnOnce() -> String, detail: &str) {
        if state > self.state {
            *self = Self {
                state,
                reason: reason(),
                detail: detail.into(),
            };
        }
    }

    /// The worse of two; the first when they are equally bad.
    pub fn worse(self, other: &Self) -> Self {
        if other.state > self.state {
            other.clone()
        } else {
            self
        }
    }
}

/// Something to tell: an event, or a level that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Device it happened to; empty for the whole node.
    pub device_uuid: String,
    /// Where it was seen.
    pub source: HealthSource,
    /// XID number, recovery action, or 1 and 0 for a condition that began and ended.
    pub code: i64,
    /// Times since the last note of the same kind.
    pub count: u32,
    /// State it stands for.
    pub state: State,
    /// Kept until acknowledged.
    pub fatal: bool,
}

#[derive(Debug, Clone)]
struct Cause {
    last: Duration,
    noted: Duration,
    uncounted: u32,
}

/// XID (or condition told by an event) and what it is attributed to.
type CauseKey = (EventCause, Part);

/// What the driver attributes an event to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// The GPU.
    Gpu,
    /// A MIG slice: GPU instance and compute instance.
    Slice(u32, u32),
    /// Some GPU of the node that it did not name.
    Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum EventCause {
    Xid(u64),
    DoubleBitEcc,
    Unavailable,
}

#[derive(Debug, Clone, Default)]
struct GpuMemory {
    causes: BTreeMap<CauseKey, Cause>,
    lost: bool,
    action: i32,
    levels: BTreeSet<&'static str>,
    /// When a reset was last seen: back on the bus, or the demand withdrawn.
    recovered: Option<Duration>,
    /// Since when the GPU is present and the driver asks for nothing.
    well_since: Option<Duration>,
    /// Whether the driver has a verdict at all.
    has_action: bool,
}

/// Remembers what happened to each GPU, by UUID, and judges. (One whose UUID was never read has a name made of its
/// PCI address.) The index of a GPU is no name: it may be another one's once the driver is loaded anew.
#[derive(Debug, Clone)]
pub struct Judge {
    table: Table,
    gpus: BTreeMap<String, GpuMemory>,
    sampler: SamplerMemory,
}

impl Judge {
    /// A judge without memory.
    pub fn new(table: Table) -> Self {
        Self {
            table,
            gpus: BTreeMap::new(),
            sampler: SamplerMemory::default(),
        }
    }

    /// Takes in how the reader is doing. Returns what to tell of it.
    pub fn sampler(&mut self, now: Duration, sampler: Sampler) -> Option<Note> {
        self.sampler.take(now, sampler, &self.table)
    }

    /// The verdict on every device because of the reader. Forgets what is over.
    pub fn sampler_verdict(&mut self, now: Duration) -> Verdict {
        self.sampler.verdict(now, &self.table)
    }

    /// Takes in a reading. Returns what changed against the one before.
    pub fn reading(&mut self, now: Duration, reading: &Reading) -> Vec<Note> {
        let mut notes = Vec::new();
        for gpu in &reading.gpus {
            let memory = self.gpus.entry(gpu.facts.uuid.clone()).or_default();
            memory.take(now, gpu, &self.table, &mut notes);
        }
        // A reading has every GPU that the node should have: the others have been replaced.
        let there: BTreeSet<&String> = reading.gpus.iter().map(|gpu| &gpu.facts.uuid).collect();
        self.gpus.retain(|uuid, _| there.contains(uuid));
        notes
    }

    /// Takes in an event. Returns what to tell of it; nothing for a repeat within a short time.
    pub fn event(&mut self, now: Duration, event: &DeviceEvent) -> Option<Note> {
        let device_uuid = event.gpu_uuid.clone().unwrap_or_default();
        let (cause, source, code, state, fatal) = match event.kind {
            DeviceEventKind::Xid(code) => {
                let row = self.table.xid(code);
                let number = i64::try_from(code).unwrap_or(i64::MAX);
                (
                    EventCause::Xid(code),
                    HealthSource::Xid,
                    number,
                    row.state,
                    row.fatal,
                )
            }
            DeviceEventKind::DoubleBitEcc => {
                let state = self.condition_state("double-bit-ecc");
                (EventCause::DoubleBitEcc, HealthSource::Ecc, 1, state, false)
            }
            DeviceEventKind::Unavailable => {
                let state = self.condition_state("unavailable");
                (
                    EventCause::Unavailable,
                    HealthSource::RecoveryAction,
                    1,
                    state,
                    true,
                )
            }
            // The reading that follows has the action itself.
            DeviceEventKind::RecoveryActionChanged => return None,
        };
        let note = Note {
            device_uuid,
            source,
            code,
            count: 1,
            state,
            fatal,
        };
        let part = match event.instance {
            Some((gpu, compute)) => Part::Slice(gpu, compute),
            None => Part::Gpu,
        };
        let named = event.gpu_uuid.as_ref();
        let named = named.filter(|uuid| self.gpus.contains_key(*uuid));
        // An event without a name may be of any of them.
        let counts: Vec<Option<u32>> = self
            .gpus
            .iter_mut()
            .filter(|(uuid, _)| named.is_none_or(|named| *uuid == named))
            .map(|(_, memory)| {
                let part = if named.is_some() { part } else { Part::Node };
                memory.note(now, (cause, part))
            })
            .collect();
        // Without any GPU it is told at least.
        let count = counts.into_iter().max().unwrap_or(Some(1));
        count.map(|count| Note { count, ..note })
    }

    fn condition_state(&self, name: &str) -> State {
        self.table
            .condition(name)
            .map_or(State::Suspect, |row| row.state)
    }

    /// The verdict on the GPU of this reading; `instance` narrows it to a MIG slice. Forgets causes that have ended.
    pub fn verdict(
        &mut self,
        now: Duration,
        gpu: &GpuReading,
        instance: Option<(u32, u32)>,
    ) -> Verdict {
        let mut verdict = Verdict::healthy();
        if gpu.lost {
            verdict.worsen(
                State::Lost,
                || "lost".into(),
                "the driver no longer reaches the GPU",
            );
        } else if gpu.unreadable {
            verdict.worsen(
                State::Suspect,
                || "unreadable".into(),
                "the driver does not let the GPU be read: its state is that of an earlier reading",
            );
        }
        let Self { table, gpus, .. } = self;
        let Some(memory) = gpus.get_mut(&gpu.facts.uuid) else {
            return verdict;
        };
        memory.forget(now, table);
        // The driver's own verdict comes before guesses from XIDs.
        if let Some(row) = table.action(memory.action) {
            let word = action_word(RecoveryAction::try_from(memory.action).unwrap_or_default());
            verdict.worsen(row.state, || format!("recovery-{word}"), &row.text);
        }
        for name in &memory.levels {
            if let Some(row) = table.condition(name) {
                verdict.worsen(row.state, || (*name).into(), &row.text);
            }
        }
        for (cause, part) in memory.causes.keys() {
            let Some((state, scope, text)) = describe(*cause, table) else {
                continue;
            };
            let word = match cause {
                EventCause::Xid(code) => format!("xid-{code}"),
                EventCause::DoubleBitEcc => "double-bit-ecc".into(),
                EventCause::Unavailable => "unavailable".into(),
            };
            if *part == Part::Node {
                // One of the node's GPUs has it, and the others have nothing.
                let detail = format!("{text}, on a GPU that the driver did not name");
                verdict.worsen(
                    state.min(State::Suspect),
                    || format!("node-{word}"),
                    &detail,
                );
                continue;
            }
            // A slice takes what concerns the GPU and what concerns itself; the GPU as a whole takes
            // what no slice was named for.
            let this = instance.map(|(gpu, compute)| Part::Slice(gpu, compute));
            let concerns = scope == Scope::Gpu || *part == Part::Gpu || Some(*part) == this;
            if concerns {
                let reason = || word;
                // A GPU that fell off the bus and is back is not lost any more, and not trusted yet either.
                let state = if state == State::Lost && !gpu.lost {
                    State::Unhealthy
                } else {
                    state
                };
                if state == State::Lost && verdict.reason == "lost" {
                    verdict = Verdict {
                        state,
                        reason: reason(),
                        detail: text.into(),
                    };
                } else {
                    verdict.worsen(state, reason, text);
                }
            }
        }
        verdict
    }

    /// When a verdict may change although nothing new is read.
    pub fn next_deadline(&self) -> Option<Duration> {
        let of_gpus = self.gpus.values().flat_map(|memory| {
            memory
                .causes
                .iter()
                .filter_map(|(key, at)| memory.ends(*key, at, &self.table))
        });
        of_gpus.chain(self.sampler.ends(&self.table)).min()
    }
}

fn describe(cause: EventCause, table: &Table) -> Option<(State, Scope, &str)> {
    let condition = |name| {
        table
            .condition(name)
            .map(|row: &LevelRow| (row.state, Scope::Gpu, row.text.as_str()))
    };
    match cause {
        EventCause::Xid(code) => {
            let row = table.xid(code);
            Some((row.state, row.scope, row.text.as_str()))
        }
        EventCause::DoubleBitEcc => condition("double-bit-ecc"),
        EventCause::Unavailable => condition("unavailable"),
    }
}

impl GpuMemory {
    fn take(&mut self, now: Duration, gpu: &GpuReading, table: &Table, notes: &mut Vec<Note>) {
        let uuid = &gpu.facts.uuid;
        let mut tell = |source, code, state, fatal| {
            notes.push(Note {
                device_uuid: uuid.clone(),
                source,
                code,
                count: 1,
                state,
                fatal,
            });
        };
        if gpu.unreadable && !gpu.lost {
            // Nothing was read: it is no sign of a loss, and none of a repair.
            self.well_since = None;
            return;
        }
        let back = self.lost && !gpu.lost;
        if gpu.lost != self.lost {
            self.lost = gpu.lost;
            let state = if gpu.lost {
                State::Lost
            } else {
                State::Healthy
            };
            tell(HealthSource::Lost, i64::from(gpu.lost), state, gpu.lost);
            if !gpu.lost {
                self.recovered = Some(now);
            }
        }
        if gpu.lost {
            // Nothing else that was read of it is fresh.
            self.well_since = None;
            return;
        }
        // What is not told is as it was before, unless there was a reset: a getter that fails repairs nothing.
        let (kept_action, kept_levels) = if back {
            (i32::default(), BTreeSet::new())
        } else {
            (self.action, self.levels.clone())
        };
        let action = gpu.facts.recovery_action.unwrap_or(kept_action);
        self.has_action = gpu.facts.recovery_action.is_some();
        if action != self.action {
            let row = table.action(action);
            if row.is_some() || table.action(self.action).is_some() {
                let state = row.map_or(State::Healthy, |row| row.state);
                tell(
                    HealthSource::RecoveryAction,
                    i64::from(action),
                    state,
                    state >= State::Unhealthy,
                );
            }
            if row.is_none() && table.action(self.action).is_some() {
                self.recovered = Some(now);
            }
            self.action = action;
        }
        let levels = levels(gpu, &kept_levels);
        for name in levels.difference(&self.levels) {
            let state = table
                .condition(name)
                .map_or(State::Suspect, |row| row.state);
            tell(condition_source(name), 1, state, state >= State::Unhealthy);
        }
        for name in self.levels.difference(&levels) {
            tell(condition_source(name), 0, State::Healthy, false);
        }
        self.levels = levels;
        if table.action(self.action).is_some() {
            self.well_since = None;
        } else if self.well_since.is_none() {
            self.well_since = Some(now);
        }
    }

    /// Remembers that something happened. Returns how often, if that is to be told now.
    fn note(&mut self, now: Duration, key: CauseKey) -> Option<u32> {
        self.well_since = self.well_since.map(|_| now);
        if self.causes.len() >= CAUSES_MAX
            && !self.causes.contains_key(&key)
            && let Some(oldest) = self
                .causes
                .iter()
                .min_by_key(|(_, cause)| cause.last)
                .map(|(key, _)| *key)
        {
            self.causes.remove(&oldest);
        }
        match self.causes.get_mut(&key) {
            Some(cause) => {
                cause.last = now;
                cause.uncounted = cause.uncounted.saturating_add(1);
                if now.saturating_sub(cause.noted) < REPEAT_WINDOW {
                    return None;
                }
                cause.noted = now;
                Some(std::mem::take(&mut cause.uncounted))
            }
            None => {
                let cause = Cause {
                    last: now,
                    noted: now,
                    uncounted: 0,
                };
                self.causes.insert(key, cause);
                Some(1)
            }
        }
    }

    fn forget(&mut self, now: Duration, table: &Table) {
        let ended: Vec<CauseKey> = self
            .causes
            .iter()
            .filter(|(key, at)| self.ends(**key, at, table).is_some_and(|end| end <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in ended {
            self.causes.remove(&key);
        }
    }

    /// When the cause ends if nothing further happens; `None` when only a reading can end it.
    fn ends(&self, key: CauseKey, at: &Cause, table: &Table) -> Option<Duration> {
        let (cause, part) = key;
        if part == Part::Node {
            // Who has it shows by then in what the driver asks for. Nobody else will ever be reset for it.
            let well = self.well_since?.max(at.last);
            return well.checked_add(table.driver_quiet);
        }
        let (clear, quiet) = match cause {
            EventCause::Xid(code) => (table.xid(code).clear, table.xid(code).quiet),
            EventCause::DoubleBitEcc | EventCause::Unavailable => {
                (Clear::Driver, Duration::from_secs(3600))
            }
        };
        let after_quiet = at.last.checked_add(quiet);
        if clear == Clear::Quiet {
            return after_quiet;
        }
        let well_since = self.well_since?;
        let after_reset = self
            .recovered
            .filter(|recovered| *recovered >= at.last)
            .and_then(|recovered| recovered.max(well_since).checked_add(table.settle));
        let after_driver = match (clear, self.has_action) {
            (Clear::Driver, true) => well_since
                .max(at.last)
                .checked_add(table.driver_quiet.min(quiet)),
            (Clear::Driver, false) => after_quiet,
            _ => None,
        };
        after_reset.into_iter().chain(after_driver).min()
    }
}

/// The conditions of a GPU. One that cannot be read is as it was `before`.
fn levels(gpu: &GpuReading, before: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    let ecc = gpu.facts.ecc.as_ref();
    let told = [
        ("remap-pending", ecc.and_then(|ecc| ecc.remap_pending)),
        ("remap-failure", ecc.and_then(|ecc| ecc.remap_failure)),
        ("sram-threshold", gpu.sram_threshold_exceeded),
    ];
    for (name, holds) in told {
        if holds.unwrap_or_else(|| before.contains(name)) {
            found.insert(name);
        }
    }
    match &gpu.fabric {
        FabricReading::None => {}
        FabricReading::Pending(_) => {
            found.insert("fabric-pending");
        }
        FabricReading::Failed { .. } => {
            found.insert("fabric-failed");
        }
        FabricReading::Completed {
            health: FabricHealth::Unhealthy,
            ..
        } => {
            found.insert("fabric-unhealthy");
        }
        FabricReading::Completed {
            health: FabricHealth::LimitedCapacity,
            ..
        } => {
            found.insert("fabric-limited");
        }
        FabricReading::Completed { .. } => {}
    }
    found
}

fn condition_source(name: &str) -> HealthSource {
    match name {
        "remap-pending" | "remap-failure" => HealthSource::RowRemap,
        "sram-threshold" => HealthSource::Ecc,
        _ => HealthSource::Fabric,
    }
}

#[cfg(test)]
mod tests;
