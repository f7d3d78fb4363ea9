//! The health table: `health.toml`, parsed strictly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::Duration;

use muster_proto::inventory::{Health, RecoveryAction};
use serde::Deserialize;

use crate::profile::FileError;

/// The table that is part of the binary.
pub const EMBEDDED_TABLE: &str = include_str!("../../health.toml");

/// Longest quiet time a table may ask for, seconds (30 days).
const QUIET_S_MAX: u64 = 30 * 24 * 3600;

/// Conditions the judge can find in a reading or an event, by the name the table uses.
pub const CONDITIONS: &[&str] = &[
    "remap-pending",
    "remap-failure",
    "sram-threshold",
    "fabric-pending",
    "fabric-failed",
    "fabric-unhealthy",
    "fabric-limited",
    "double-bit-ecc",
    "unavailable",
];

/// States in which no device can be read, by the name the table uses.
pub const SAMPLERS: &[&str] = &["sampler-hung", "sampler-crashed", "no-driver"];

/// How a device is doing; a later variant is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Usable.
    Healthy,
    /// Usable for what runs, not for new pods.
    Suspect,
    /// Not usable.
    Unhealthy,
    /// The driver does not reach it.
    Lost,
}

impl From<State> for Health {
    fn from(state: State) -> Self {
        match state {
            State::Healthy => Self::Healthy,
            State::Suspect => Self::Suspect,
            State::Unhealthy => Self::Unhealthy,
            State::Lost => Self::Lost,
        }
    }
}

/// What ends the effect of an XID. See `health.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clear {
    /// A reset that was seen.
    Reset,
    /// A reset, or the driver's verdict.
    Driver,
    /// Time without a repeat.
    Quiet,
}

/// What an XID concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The GPU and all its slices.
    Gpu,
    /// The MIG slice named by the driver, else the GPU.
    Instance,
}

/// Verdict on an XID.
#[derive(Debug, Clone, PartialEq)]
pub struct XidRow {
    /// State while it holds.
    pub state: State,
    /// What ends it.
    pub clear: Clear,
    /// What it concerns.
    pub scope: Scope,
    /// Kept until acknowledged.
    pub fatal: bool,
    /// Quiet time for `Clear::Quiet` and for drivers without a verdict.
    pub quiet: Duration,
    /// For people.
    pub text: String,
    /// Where the row comes from.
    pub source: String,
}

/// Verdict on state that is read.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelRow {
    /// State while it is read.
    pub state: State,
    /// For people.
    pub text: String,
    /// Where the row comes from.
    pub source: String,
}

/// Verdict on the devices of a node that cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerRow {
    /// State while it holds, and on probation after it.
    pub state: State,
    /// Time for which they have to be read again first.
    pub probation: Duration,
    /// For people.
    pub text: String,
    /// Where the row comes from.
    pub source: String,
}

/// The whole table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Time a repaired GPU has to stay well.
    pub settle: Duration,
    /// Time the driver has to say "none".
    pub driver_quiet: Duration,
    xids: BTreeMap<u64, XidRow>,
    unknown: XidRow,
    actions: BTreeMap<i32, LevelRow>,
    conditions: BTreeMap<String, LevelRow>,
    samplers: BTreeMap<String, SamplerRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTable {
    settle_s: u64,
    driver_quiet_s: u64,
    xid: Vec<RawXid>,
    unknown_xid: RawUnknown,
    recovery_action: Vec<RawAction>,
    condition: Vec<RawCondition>,
    sampler: Vec<RawSampler>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawXid {
    codes: Vec<u64>,
    state: State,
    clear: Clear,
    scope: Scope,
    fatal: bool,
    #[serde(default = "quiet_s")]
    quiet_s: u64,
    text: String,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUnknown {
    state: State,
    clear: Clear,
    quiet_s: u64,
    text: String,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAction {
    action: String,
    state: State,
    text: String,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCondition {
    name: String,
    state: State,
    text: String,
    source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSampler {
    name: String,
    state: State,
    probation_s: u64,
    text: String,
    source: String,
}

/// An hour: drivers without field 230 have no better sign than silence.
fn quiet_s() -> u64 {
    3600
}

/// The word the table uses for a recovery action.
pub fn action_word(action: RecoveryAction) -> &'static str {
    match action {
        RecoveryAction::Unspecified => "unknown",
        RecoveryAction::None => "none",
        RecoveryAction::GpuReset => "gpu-reset",
        RecoveryAction::NodeReboot => "node-reboot",
        RecoveryAction::DrainP2p => "drain-p2p",
        RecoveryAction::DrainAndReset => "drain-and-reset",
        RecoveryAction::RecoverImex => "recover-imex",
    }
}

const DEMANDS: [RecoveryAction; 5] = [
    RecoveryAction::GpuReset,
    RecoveryAction::NodeReboot,
    RecoveryAction::DrainP2p,
    RecoveryAction::DrainAndReset,
    RecoveryAction::RecoverImex,
];

impl Table {
    /// The table that is part of the binary.
    pub fn embedded() -> Result<Self, FileError> {
        // Read once: a fleet of agents in one process has one for each.
        static READ: OnceLock<Table> = OnceLock::new();
        if let Some(read) = READ.get() {
            return Ok(read.clone());
        }
        let read = Self::parse("health.toml", EMBEDDED_TABLE)?;
        Ok(READ.get_or_init(|| read).clone())
    }

    /// Parses a table; `name` is used in errors. Every demand of the driver and every condition must have exactly one row, and an XID at most one.
    pub fn parse(name: &str, text: &str) -> Result<Self, FileError> {
        let raw: RawTable = toml::from_str(text).map_err(|error| FileError::Parse {
            name: name.into(),
            message: error.to_string().trim().into(),
        })?;
        let seconds = |field: &str, value: u64| {
            if value > QUIET_S_MAX {
                return Err(FileError::value(
                    name,
                    field,
                    value,
                    format!("at most {QUIET_S_MAX}"),
                ));
            }
            Ok(Duration::from_secs(value))
        };
        let mut xids = BTreeMap::new();
        for row in raw.xid {
            let quiet = seconds("xid.quiet_s", row.quiet_s)?;
            for code in row.codes {
                let (text, source) = (row.text.clone(), row.source.clone());
                let row = XidRow {
                    state: row.state,
                    clear: row.clear,
                    scope: row.scope,
                    fatal: row.fatal,
                    quiet,
                    text,
                    source,
                };
                if xids.insert(code, row).is_some() {
                    return Err(FileError::value(name, "xid.codes", code, "in one row only"));
                }
            }
        }
        let mut actions = BTreeMap::new();
        for row in raw.recovery_action {
            let Some(action) = DEMANDS
                .into_iter()
                .find(|action| action_word(*action) == row.action)
            else {
                return Err(FileError::value(
                    name,
                    "recovery_action.action",
                    row.action,
                    "one of gpu-reset, node-reboot, drain-p2p, drain-and-reset, recover-imex",
                ));
            };
            actions.insert(
                action.into(),
                LevelRow {
                    state: row.state,
                    text: row.text,
                    source: row.source,
                },
            );
        }
        if actions.len() != DEMANDS.len() {
            return Err(FileError::value(
                name,
                "recovery_action",
                actions.len(),
                "one row per demand of the driver (5)",
            ));
        }
        let mut conditions = BTreeMap::new();
        for row in raw.condition {
            conditions.insert(
                row.name,
                LevelRow {
                    state: row.state,
                    text: row.text,
                    source: row.source,
                },
            );
        }
        one_row_each(name, "condition.name", &conditions, CONDITIONS)?;
        let mut samplers = BTreeMap::new();
        for row in raw.sampler {
            let probation = seconds("sampler.probation_s", row.probation_s)?;
            let sampler = SamplerRow {
                state: row.state,
                probation,
                text: row.text,
                source: row.source,
            };
            samplers.insert(row.name, sampler);
        }
        one_row_each(name, "sampler.name", &samplers, SAMPLERS)?;
        let unknown = XidRow {
            state: raw.unknown_xid.state,
            clear: raw.unknown_xid.clear,
            scope: Scope::Gpu,
            fatal: false,
            quiet: seconds("unknown_xid.quiet_s", raw.unknown_xid.quiet_s)?,
            text: raw.unknown_xid.text,
            source: raw.unknown_xid.source,
        };
        let settle = seconds("settle_s", raw.settle_s)?;
        let driver_quiet = seconds("driver_quiet_s", raw.driver_quiet_s)?;
        Ok(Self {
            settle,
            driver_quiet,
            xids,
            unknown,
            actions,
            conditions,
            samplers,
        })
    }

    /// Verdict on an XID; the row for unknown ones when no row names it.
    pub fn xid(&self, code: u64) -> &XidRow {
        self.xids.get(&code).unwrap_or(&self.unknown)
    }

    /// Verdict on what the driver asks for; `None` for "none" and for "not told". An action that this version
    /// does not know is judged as the demand for a reset.
    pub fn action(&self, action: i32) -> Option<&LevelRow> {
        if action == i32::from(RecoveryAction::None)
            || action == i32::from(RecoveryAction::Unspecified)
        {
            return None;
        }
        self.actions
            .get(&action)
            .or_else(|| self.actions.get(&RecoveryAction::GpuReset.into()))
    }

    /// Verdict on a condition of [`CONDITIONS`].
    pub fn condition(&self, name: &str) -> Option<&LevelRow> {
        self.conditions.get(name)
    }

    /// Verdict on a state of [`SAMPLERS`].
    pub fn sampler(&self, name: &str) -> Option<&SamplerRow> {
        self.samplers.get(name)
    }
}

/// Checks that the rows are named as `wanted`, each once.
fn one_row_each<T>(
    file: &str,
    field: &str,
    rows: &BTreeMap<String, T>,
    wanted: &[&str],
) -> Result<(), FileError> {
    let have: BTreeSet<&str> = rows.keys().map(String::as_str).collect();
    let want: BTreeSet<&str> = wanted.iter().copied().collect();
    match have.symmetric_difference(&want).next() {
        Some(odd) => Err(FileError::value(
            file,
            field,
            odd,
            format!("one row for each of {}", wanted.join(", ")),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Clear, EMBEDDED_TABLE, State, Table};

    #[test]
    fn the_embedded_table_is_complete_and_every_row_has_a_source() {
        let table = Table::embedded().unwrap();
        assert!(
            table
                .xids
                .values()
                .all(|row| !row.source.is_empty() && !row.text.is_empty())
        );
        assert!(
            table
                .conditions
                .values()
                .chain(table.actions.values())
                .all(|row| !row.source.is_empty())
        );
        assert!(table.samplers.values().all(|row| !row.source.is_empty()));
    }

    #[test]
    fn contradictions_of_the_peers_are_decided() {
        let table = Table::embedded().unwrap();
        let row = |code| (table.xid(code).state, table.xid(code).clear);
        assert_eq!(row(109), (State::Unhealthy, Clear::Driver));
        assert_eq!(row(94), (State::Suspect, Clear::Driver));
        assert_eq!(row(63).0, State::Healthy);
        assert_eq!(row(31).0, State::Healthy);
        assert_eq!(row(79), (State::Lost, Clear::Reset));
        assert_eq!(row(98_765).0, State::Suspect);
        for ignored in [13, 31, 43, 45, 68] {
            assert_eq!(row(ignored).0, State::Healthy, "{ignored}");
        }
    }

    #[test]
    fn doubled_missing_and_unknown_rows_are_refused() {
        for (from, to, named) in [
            ("codes = [63]", "codes = [63, 79]", "79"),
            (
                "name = \"remap-pending\"",
                "name = \"remap-pendin\"",
                "remap-pendin",
            ),
            (
                "action = \"gpu-reset\"",
                "action = \"gpu-rest\"",
                "gpu-rest",
            ),
            (
                "name = \"sampler-hung\"",
                "name = \"sampler-hangs\"",
                "sampler-h",
            ),
            (
                "probation_s = 30",
                "probation_s = 30000000",
                "sampler.probation_s",
            ),
            ("settle_s = 5", "settle_s = 5\nmood = 1", "mood"),
            ("settle_s = 5", "settle_s = 50000000", "settle_s"),
        ] {
            let error = Table::parse("t", &EMBEDDED_TABLE.replacen(from, to, 1))
                .unwrap_err()
                .to_string();
            assert!(error.contains(named), "{to}: {error}");
        }
    }
}
