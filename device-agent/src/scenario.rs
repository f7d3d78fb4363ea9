//! Scenario files: what goes wrong on fake nodes, and when.
//!
//! A scenario is a list of events, each with a time in seconds since the node's start and a fault.
//! The same events can be injected while a fleet runs ([`crate::fleet::Fleet::inject`]).
//! Parsing is strict: an unknown key, a missing one or one that the fault does not take is an error that names it.

use std::time::Duration;

use muster_proto::inventory::RecoveryAction;
use serde::Deserialize;

use crate::profile::{FileError, read};

const EMBEDDED: &[(&str, &str)] = &[
    (
        "xid79-and-back",
        include_str!("../scenarios/xid79-and-back.toml"),
    ),
    ("node-silent", include_str!("../scenarios/node-silent.toml")),
    ("replay", include_str!("../scenarios/replay.toml")),
    ("clone-uuid", include_str!("../scenarios/clone-uuid.toml")),
    ("remap", include_str!("../scenarios/remap.toml")),
    ("hang", include_str!("../scenarios/hang.toml")),
    ("crash", include_str!("../scenarios/crash.toml")),
    ("leak", include_str!("../scenarios/leak.toml")),
];

/// Latest time of an event, seconds (30 days).
const AT_S_MAX: f64 = 30.0 * 24.0 * 3600.0;

/// One thing that happens to a fake node. GPU numbers are indexes on the node, from 0; a number that
/// the node does not have changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultEvent {
    /// The driver reports an XID. 79 makes the GPU fall off the bus as well; codes that need a reset raise the recovery action.
    Xid {
        /// GPU index.
        gpu: u32,
        /// XID number.
        code: u64,
    },
    /// The GPU falls off the bus without an event.
    Lost {
        /// GPU index.
        gpu: u32,
    },
    /// The driver was loaded anew and does not count the GPU any more: those behind it move up by one index.
    Uncounted {
        /// GPU index, as it was at the beginning.
        gpu: u32,
    },
    /// The GPU (or all, when absent) is as new: after a reset or a repair.
    Back {
        /// GPU index, or all.
        gpu: Option<u32>,
    },
    /// The node stops reporting: streams stay open, nothing is sent.
    Silent,
    /// Ends `Silent` and `Hang`.
    Resume,
    /// The node's first report is sent once more, with its old generation.
    Replay,
    /// The GPU shows another node's UUID.
    CloneUuid {
        /// GPU index.
        gpu: u32,
        /// UUID to show.
        uuid: String,
    },
    /// The agent tells of so many GPUs that are not there, beside those that are.
    Invent {
        /// How many.
        gpus: u32,
    },
    /// A row remap waits for a reset.
    RemapPending {
        /// GPU index.
        gpu: u32,
    },
    /// A row could not be remapped: no spare row is left.
    RemapFailure {
        /// GPU index.
        gpu: u32,
    },
    /// The driver asks for something.
    Recovery {
        /// GPU index.
        gpu: u32,
        /// What it asks for.
        action: RecoveryAction,
    },
    /// A process that belongs to no pod holds memory of the GPU.
    Leak {
        /// GPU index.
        gpu: u32,
    },
    /// Calls into the driver do not return.
    Hang,
    /// The driver's library ends the process that calls it.
    Crash,
    /// The driver is replaced.
    DriverVersion {
        /// New version.
        version: String,
    },
}

/// An event of a scenario file.
#[derive(Debug, Clone, PartialEq)]
pub struct TimedFault {
    /// Time since the node's start.
    pub at: Duration,
    /// Nodes it happens on: names, or prefixes that end in `*`. Empty: all.
    pub nodes: Vec<String>,
    /// What happens.
    pub fault: FaultEvent,
}

/// A timeline of faults, sorted by time; events of the same time keep the order of the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scenario {
    /// Name, for people.
    pub name: String,
    /// Events in order of time.
    pub events: Vec<TimedFault>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    name: String,
    #[serde(default)]
    events: Vec<RawEvent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEvent {
    at_s: f64,
    fault: String,
    gpu: Option<u32>,
    gpus: Option<u32>,
    code: Option<u64>,
    uuid: Option<String>,
    action: Option<String>,
    version: Option<String>,
    #[serde(default)]
    nodes: Vec<String>,
}

impl Scenario {
    /// Names of the scenarios that are part of the binary.
    pub fn embedded_names() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    /// Loads a scenario by embedded name, or from a file when no embedded scenario has that name.
    pub fn load(name_or_path: &str) -> Result<Self, FileError> {
        if let Some((name, text)) = EMBEDDED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text);
        }
        let text = read(name_or_path, "scenario", || {
            Self::embedded_names().collect::<Vec<_>>().join(", ")
        })?;
        Self::parse(name_or_path, &text)
    }

    /// Parses the text of a scenario file; `name` is used in errors.
    pub fn parse(name: &str, text: &str) -> Result<Self, FileError> {
        let raw: RawScenario = toml::from_str(text).map_err(|error| FileError::Parse {
            name: name.into(),
            message: error.to_string().trim().into(),
        })?;
        let mut events = Vec::with_capacity(raw.events.len());
        for (position, event) in raw.events.into_iter().enumerate() {
            events.push(event.check(name, position)?);
        }
        events.sort_by_key(|event| event.at);
        Ok(Self {
            name: raw.name,
            events,
        })
    }

    /// The events that happen on `node_name`, in order of time.
    pub fn for_node(&self, node_name: &str) -> Vec<(Duration, FaultEvent)> {
        let on = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => node_name.starts_with(prefix),
            None => node_name == pattern,
        };
        let mine = self
            .events
            .iter()
            .filter(|event| event.nodes.is_empty() || event.nodes.iter().any(on));
        mine.map(|event| (event.at, event.fault.clone())).collect()
    }
}

impl RawEvent {
    fn check(mut self, file: &str, position: usize) -> Result<TimedFault, FileError> {
        let at = |key: &str| format!("events[{position}].{key}");
        if !(0.0..=AT_S_MAX).contains(&self.at_s) {
            return Err(FileError::value(
                file,
                at("at_s"),
                self.at_s,
                format!("0 to {AT_S_MAX} seconds"),
            ));
        }
        let kind = std::mem::take(&mut self.fault);
        let missing = |key: &str| {
            FileError::value(
                file,
                at(key),
                "absent",
                format!("given for fault \"{kind}\""),
            )
        };
        let gpu = self.gpu.take();
        let fault = match kind.as_str() {
            "xid" => FaultEvent::Xid {
                gpu: gpu.ok_or_else(|| missing("gpu"))?,
                code: self.code.take().ok_or_else(|| missing("code"))?,
            },
            "lost" => FaultEvent::Lost {
                gpu: gpu.ok_or_else(|| missing("gpu"))?,
            },
            "uncounted" => FaultEvent::Uncounted {
                gpu: gpu.ok_or_else(|| missing("gpu"))?,
            },
            "back" => FaultEvent::Back { gpu },
            "silent" => FaultEvent::Silent,
            "resume" => FaultEvent::Resume,
            "replay" => FaultEvent::Replay,
            "hang" => FaultEvent::Hang,
            "crash" => FaultEvent::Crash,
            "clone_uuid" => FaultEvent::CloneUuid {
                gpu: gpu.ok_or_else(|| missing("gpu"))?,
                uuid: self.uuid.take().ok_or_else(|| missing("uuid"))?,
            },
            "invent" => FaultEvent::Invent {
                gpus: self.gpus.take().ok_or_else(|| missing("gpus"))?,
            },
            "remap_pending" => FaultEvent::RemapPending {
                gpu: gpu.ok_or_else(|| missing("gpu"))?,
            },
            "remap_failure" => FaultEvent::RemapFailure {
                gpu: gpu.ok_or_else(|| missing("gpu"))?,
            },
            "recovery" => {
                let name = self.action.take().ok_or_else(|| missing("action"))?;
                let action = recovery_action(&name)
                    .ok_or_else(|| FileError::value(file, at("action"), &name, RECOVERY_NAMES))?;
                FaultEvent::Recovery {
                    gpu: gpu.ok_or_else(|| missing("gpu"))?,
                    action,
                }
            }
            "leak" => FaultEvent::Leak {
                gpu: gpu.ok_or_else(|| missing("gpu"))?,
            },
            "driver_version" => FaultEvent::DriverVersion {
                version: self.version.take().ok_or_else(|| missing("version"))?,
            },
            other => return Err(FileError::value(file, at("fault"), other, FAULT_NAMES)),
        };
        let takes_gpu = !matches!(
            fault,
            FaultEvent::Silent
                | FaultEvent::Resume
                | FaultEvent::Replay
                | FaultEvent::Hang
                | FaultEvent::Crash
                | FaultEvent::Invent { .. }
                | FaultEvent::DriverVersion { .. }
        );
        let unwanted = [
            ("gpu", gpu.is_some() && !takes_gpu),
            ("gpus", self.gpus.is_some()),
            ("code", self.code.is_some()),
            ("uuid", self.uuid.is_some()),
            ("action", self.action.is_some()),
            ("version", self.version.is_some()),
        ];
        if let Some((key, _)) = unwanted.iter().find(|(_, unwanted)| *unwanted) {
            return Err(FileError::value(
                file,
                at(key),
                "given",
                format!("absent for fault \"{kind}\""),
            ));
        }
        Ok(TimedFault {
            at: Duration::from_secs_f64(self.at_s),
            nodes: self.nodes,
            fault,
        })
    }
}

const FAULT_NAMES: &str = "one of xid, lost, uncounted, back, silent, resume, replay, clone_uuid, invent, remap_pending, remap_failure, recovery, leak, hang, crash, driver_version";
const RECOVERY_NAMES: &str =
    "one of none, gpu-reset, node-reboot, drain-p2p, drain-and-reset, recover-imex";

fn recovery_action(name: &str) -> Option<RecoveryAction> {
    Some(match name {
        "none" => RecoveryAction::None,
        "gpu-reset" => RecoveryAction::GpuReset,
        "node-reboot" => RecoveryAction::NodeReboot,
        "drain-p2p" => RecoveryAction::DrainP2p,
        "drain-and-reset" => RecoveryAction::DrainAndReset,
        "recover-imex" => RecoveryAction::RecoverImex,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{FaultEvent, Scenario};

    #[test]
    fn embedded_scenarios_parse_and_are_sorted() {
        for name in Scenario::embedded_names() {
            let scenario = Scenario::load(name).expect(name);
            assert_eq!(scenario.name, name);
            assert!(!scenario.events.is_empty(), "{name}");
            assert!(scenario.events.is_sorted_by_key(|event| event.at));
        }
    }

    #[test]
    fn events_reach_the_nodes_they_name() {
        let text = "name='x'\n[[events]]\nat_s=30\nfault='xid'\ngpu=3\ncode=79\nnodes=['a-1', 'b-*']\n[[events]]\nat_s=1.5\nfault='silent'";
        let scenario = Scenario::parse("x", text).unwrap();
        assert_eq!(scenario.for_node("a-1").len(), 2);
        assert_eq!(
            scenario.for_node("b-77").last(),
            Some(&(
                Duration::from_secs(30),
                FaultEvent::Xid { gpu: 3, code: 79 }
            ))
        );
        assert_eq!(
            scenario.for_node("a-11"),
            vec![(Duration::from_millis(1500), FaultEvent::Silent)]
        );
    }

    #[test]
    fn bad_events_name_the_key() {
        for (event, key) in [
            ("at_s=1\nfault='xid'\ngpu=0", "events[0].code"),
            ("at_s=1\nfault='silent'\ngpu=0", "events[0].gpu"),
            ("at_s=-1\nfault='silent'", "events[0].at_s"),
            ("at_s=nan\nfault='silent'", "events[0].at_s"),
            ("at_s=1\nfault='explode'", "explode"),
            ("at_s=1\nfault='recovery'\ngpu=0\naction='pray'", "pray"),
            ("at_s=1\nfault='invent'", "events[0].gpus"),
            ("at_s=1\nfault='lost'\ngpu=0\ngpus=2", "events[0].gpus"),
            ("at_s=1\nfault='lost'\ngpu=0\nsince=2", "since"),
        ] {
            let error = Scenario::parse("s", &format!("name='s'\n[[events]]\n{event}"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(key), "{event}: {error}");
        }
    }
}
