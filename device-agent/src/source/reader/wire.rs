//! What the agent and its reader say to each other over a pipe: messages of protobuf, each after its length.
//!
//! Both ends are one binary, so nothing here has to be understood by another version.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use muster_proto::inventory::{Device, Fabric, NodeFacts, Sampler};
use prost::Message as _;

use crate::model::{
    self, DeviceEvent, DeviceEventKind, FabricHealth, FabricReading, GpuReading, SliceReading,
};
use crate::source::Update;
use crate::source::nvml::NvmlConfig;

/// Largest message, bytes. A reading of 256 GPUs that all know of each other's links has 7 MiB.
pub const MESSAGE_MAX: usize = 16 << 20;

/// Why what a reader says is not understood.
#[derive(Debug, thiserror::Error)]
pub enum Garbled {
    /// Longer than anything it has to say.
    #[error("a message of {0} bytes: at most {MESSAGE_MAX}")]
    TooLong(u64),
    /// No message.
    #[error(transparent)]
    NoMessage(#[from] prost::DecodeError),
    /// A message without anything in it.
    #[error("an empty message")]
    Empty,
}

/// What a reader is started with.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// How to read.
    pub config: NvmlConfig,
    /// The process that starts it: without that one it ends.
    pub parent: i32,
    /// Time between two signs of life.
    pub sign_interval: Duration,
    /// What an earlier reader knew of each GPU.
    pub known: Option<model::Reading>,
}

/// A word of a reader.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// A call into the driver has returned.
    Alive,
    /// Something to tell.
    Update(Update),
}

impl Start {
    /// As it goes over the pipe; nothing follows it.
    pub fn encode(&self) -> Vec<u8> {
        let config = &self.config;
        let start = StartMessage {
            library: config.library.as_ref().map(|path| path.as_bytes().to_vec()),
            sysfs: config.sysfs.as_os_str().as_bytes().to_vec(),
            interval_ms: millis(config.interval),
            devices_expected: config.devices_expected,
            parent: self.parent,
            sign_ms: millis(self.sign_interval),
            known: self.known.as_ref().map(ReadingMessage::from),
        };
        start.encode_to_vec()
    }

    /// Understands what [`Start::encode`] has written.
    pub fn decode(bytes: &[u8]) -> Result<Self, Garbled> {
        let start = StartMessage::decode(bytes)?;
        Ok(Self {
            config: NvmlConfig {
                library: start.library.map(OsString::from_vec),
                sysfs: OsString::from_vec(start.sysfs).into(),
                interval: Duration::from_millis(start.interval_ms),
                devices_expected: start.devices_expected,
            },
            parent: start.parent,
            sign_interval: Duration::from_millis(start.sign_ms),
            known: start.known.map(model::Reading::from),
        })
    }
}

impl Word {
    /// As it goes over the pipe. A fault of the agent is none of the reader's words.
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self {
            Self::Alive | Self::Update(Update::AgentFault(_)) => Kind::Alive(()),
            Self::Update(Update::Reading(reading)) => {
                Kind::Reading(ReadingMessage::from(reading.as_ref()))
            }
            Self::Update(Update::Event(event)) => Kind::Event(EventMessage::from(event)),
            Self::Update(Update::Sampler(sampler)) => Kind::Sampler((*sampler).into()),
            Self::Update(Update::Ended(why)) => Kind::Ended(why.clone()),
        };
        WordMessage { kind: Some(kind) }.encode_length_delimited_to_vec()
    }

    /// Takes the first word off `buffer`, if all of it is there.
    pub fn take(buffer: &mut bytes::BytesMut) -> Result<Option<Self>, Garbled> {
        let mut rest: &[u8] = buffer;
        let length = match prost::encoding::decode_varint(&mut rest) {
            Ok(length) => length,
            // A length has ten bytes at most.
            Err(_) if buffer.len() < 10 => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let there = rest.len();
        let head = buffer.len().saturating_sub(there);
        let Some(length) = usize::try_from(length)
            .ok()
            .filter(|length| *length <= MESSAGE_MAX)
        else {
            return Err(Garbled::TooLong(length));
        };
        if there < length {
            buffer.reserve(length.saturating_sub(there));
            return Ok(None);
        }
        let _ = buffer.split_to(head);
        let message = WordMessage::decode(buffer.split_to(length))?;
        let update = match message.kind.ok_or(Garbled::Empty)? {
            Kind::Alive(()) => return Ok(Some(Self::Alive)),
            Kind::Reading(reading) => Update::Reading(std::sync::Arc::new(reading.into())),
            Kind::Event(event) => Update::Event(event.into()),
            // One that is not known is no good news.
            Kind::Sampler(sampler) => {
                Update::Sampler(Sampler::try_from(sampler).unwrap_or(Sampler::NoDriver))
            }
            Kind::Ended(why) => Update::Ended(why),
        };
        Ok(Some(Self::Update(update)))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Clone, PartialEq, prost::Message)]
struct StartMessage {
    #[prost(bytes = "vec", optional, tag = "1")]
    library: Option<Vec<u8>>,
    #[prost(bytes = "vec", tag = "2")]
    sysfs: Vec<u8>,
    #[prost(uint64, tag = "3")]
    interval_ms: u64,
    #[prost(uint32, optional, tag = "4")]
    devices_expected: Option<u32>,
    #[prost(int32, tag = "5")]
    parent: i32,
    #[prost(uint64, tag = "6")]
    sign_ms: u64,
    #[prost(message, optional, tag = "7")]
    known: Option<ReadingMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WordMessage {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Alive(()),
    #[prost(message, tag = "2")]
    Reading(ReadingMessage),
    #[prost(message, tag = "3")]
    Event(EventMessage),
    #[prost(int32, tag = "4")]
    Sampler(i32),
    #[prost(string, tag = "5")]
    Ended(String),
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReadingMessage {
    #[prost(message, optional, tag = "1")]
    node: Option<NodeFacts>,
    #[prost(message, repeated, tag = "2")]
    gpus: Vec<GpuMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GpuMessage {
    #[prost(message, optional, tag = "1")]
    facts: Option<Device>,
    #[prost(bool, tag = "2")]
    lost: bool,
    #[prost(bool, tag = "3")]
    unreadable: bool,
    #[prost(message, optional, tag = "4")]
    fabric: Option<FabricMessage>,
    #[prost(bool, optional, tag = "5")]
    sram_threshold_exceeded: Option<bool>,
    #[prost(message, optional, tag = "6")]
    pids: Option<PidsMessage>,
    #[prost(message, repeated, tag = "7")]
    slices: Vec<SliceMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SliceMessage {
    #[prost(message, optional, tag = "1")]
    facts: Option<Device>,
    #[prost(message, optional, tag = "2")]
    pids: Option<PidsMessage>,
}

/// Apart from "no list".
#[derive(Clone, PartialEq, prost::Message)]
struct PidsMessage {
    #[prost(uint32, repeated, tag = "1")]
    pids: Vec<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct FabricMessage {
    #[prost(message, optional, tag = "1")]
    fabric: Option<Fabric>,
    #[prost(oneof = "FabricState", tags = "2, 3, 4")]
    state: Option<FabricState>,
}

#[derive(Clone, Copy, PartialEq, prost::Oneof)]
enum FabricState {
    #[prost(message, tag = "2")]
    Pending(()),
    /// The driver's word: 0 unknown, 1 healthy, 2 unhealthy, 3 limited.
    #[prost(uint32, tag = "3")]
    Completed(u32),
    /// An NVML return code.
    #[prost(uint32, tag = "4")]
    Failed(u32),
}

#[derive(Clone, PartialEq, prost::Message)]
struct EventMessage {
    #[prost(string, optional, tag = "1")]
    gpu_uuid: Option<String>,
    #[prost(message, optional, tag = "2")]
    instance: Option<InstanceMessage>,
    #[prost(oneof = "EventKind", tags = "3, 4, 5, 6")]
    kind: Option<EventKind>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct InstanceMessage {
    #[prost(uint32, tag = "1")]
    gpu: u32,
    #[prost(uint32, tag = "2")]
    compute: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Oneof)]
enum EventKind {
    #[prost(uint64, tag = "3")]
    Xid(u64),
    #[prost(message, tag = "4")]
    DoubleBitEcc(()),
    #[prost(message, tag = "5")]
    Unavailable(()),
    #[prost(message, tag = "6")]
    RecoveryActionChanged(()),
}

impl From<&model::Reading> for ReadingMessage {
    fn from(reading: &model::Reading) -> Self {
        Self {
            node: Some(reading.node.clone()),
            gpus: reading.gpus.iter().map(GpuMessage::from).collect(),
        }
    }
}

impl From<ReadingMessage> for model::Reading {
    fn from(reading: ReadingMessage) -> Self {
        Self {
            node: reading.node.unwrap_or_default(),
            gpus: reading.gpus.into_iter().map(GpuReading::from).collect(),
        }
    }
}

impl From<&GpuReading> for GpuMessage {
    fn from(gpu: &GpuReading) -> Self {
        Self {
            facts: Some(gpu.facts.clone()),
            lost: gpu.lost,
            unreadable: gpu.unreadable,
            fabric: fabric_message(&gpu.fabric),
            sram_threshold_exceeded: gpu.sram_threshold_exceeded,
            pids: pids_message(gpu.compute_pids.as_ref()),
            slices: gpu.slices.iter().map(SliceMessage::from).collect(),
        }
    }
}

impl From<GpuMessage> for GpuReading {
    fn from(gpu: GpuMessage) -> Self {
        Self {
            facts: gpu.facts.unwrap_or_default(),
            lost: gpu.lost,
            unreadable: gpu.unreadable,
            fabric: fabric_reading(gpu.fabric),
            sram_threshold_exceeded: gpu.sram_threshold_exceeded,
            compute_pids: gpu.pids.map(|list| list.pids),
            slices: gpu.slices.into_iter().map(SliceReading::from).collect(),
        }
    }
}

impl From<&SliceReading> for SliceMessage {
    fn from(slice: &SliceReading) -> Self {
        Self {
            facts: Some(slice.facts.clone()),
            pids: pids_message(slice.compute_pids.as_ref()),
        }
    }
}

impl From<SliceMessage> for SliceReading {
    fn from(slice: SliceMessage) -> Self {
        Self {
            facts: slice.facts.unwrap_or_default(),
            compute_pids: slice.pids.map(|list| list.pids),
        }
    }
}

fn pids_message(pids: Option<&Vec<u32>>) -> Option<PidsMessage> {
    pids.map(|pids| PidsMessage { pids: pids.clone() })
}

fn fabric_message(reading: &FabricReading) -> Option<FabricMessage> {
    let (fabric, state) = match reading {
        FabricReading::None => return None,
        FabricReading::Pending(fabric) => (fabric, FabricState::Pending(())),
        FabricReading::Completed { fabric, health } => {
            let word = match health {
                FabricHealth::Unknown => 0,
                FabricHealth::Healthy => 1,
                FabricHealth::Unhealthy => 2,
                FabricHealth::LimitedCapacity => 3,
            };
            (fabric, FabricState::Completed(word))
        }
        FabricReading::Failed { fabric, status } => (fabric, FabricState::Failed(*status)),
    };
    Some(FabricMessage {
        fabric: Some(fabric.clone()),
        state: Some(state),
    })
}

fn fabric_reading(message: Option<FabricMessage>) -> FabricReading {
    let Some(message) = message else {
        return FabricReading::None;
    };
    let fabric = message.fabric.unwrap_or_default();
    match message.state {
        Some(FabricState::Completed(word)) => FabricReading::Completed {
            fabric,
            health: match word {
                1 => FabricHealth::Healthy,
                2 => FabricHealth::Unhealthy,
                3 => FabricHealth::LimitedCapacity,
                _ => FabricHealth::Unknown,
            },
        },
        Some(FabricState::Failed(status)) => FabricReading::Failed { fabric, status },
        Some(FabricState::Pending(())) | None => FabricReading::Pending(fabric),
    }
}

impl From<&DeviceEvent> for EventMessage {
    fn from(event: &DeviceEvent) -> Self {
        let kind = match event.kind {
            DeviceEventKind::Xid(code) => EventKind::Xid(code),
            DeviceEventKind::DoubleBitEcc => EventKind::DoubleBitEcc(()),
            DeviceEventKind::Unavailable => EventKind::Unavailable(()),
            DeviceEventKind::RecoveryActionChanged => EventKind::RecoveryActionChanged(()),
        };
        Self {
            gpu_uuid: event.gpu_uuid.clone(),
            instance: event
                .instance
                .map(|(gpu, compute)| InstanceMessage { gpu, compute }),
            kind: Some(kind),
        }
    }
}

impl From<EventMessage> for DeviceEvent {
    fn from(event: EventMessage) -> Self {
        let kind = match event.kind {
            Some(EventKind::Xid(code)) => DeviceEventKind::Xid(code),
            Some(EventKind::DoubleBitEcc(())) => DeviceEventKind::DoubleBitEcc,
            Some(EventKind::RecoveryActionChanged(())) => DeviceEventKind::RecoveryActionChanged,
            // One that is not known is no good news.
            Some(EventKind::Unavailable(())) | None => DeviceEventKind::Unavailable,
        };
        Self {
            gpu_uuid: event.gpu_uuid,
            instance: event
                .instance
                .map(|instance| (instance.gpu, instance.compute)),
            kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::BytesMut;

    use super::*;
    use crate::fake::FakeNode;
    use crate::profile::Profile;
    use crate::scenario::FaultEvent;

    fn reading(profile: &str) -> model::Reading {
        let mut node = FakeNode::new(Profile::load(profile).unwrap().shape_for("n"), "n");
        for fault in [
            FaultEvent::Lost { gpu: 0 },
            FaultEvent::Leak { gpu: 1 },
            FaultEvent::RemapPending { gpu: 2 },
        ] {
            node.apply(&fault);
        }
        let mut reading = node.reading();
        let gpu = &mut reading.gpus[3];
        (gpu.unreadable, gpu.compute_pids) = (true, None);
        reading
    }

    /// All that a word says, in pieces of seven bytes.
    fn over_the_pipe(words: &[Word]) -> Vec<Word> {
        let bytes: Vec<u8> = words.iter().flat_map(Word::encode).collect();
        let (mut buffer, mut heard) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(7) {
            buffer.extend_from_slice(piece);
            while let Some(word) = Word::take(&mut buffer).unwrap() {
                heard.push(word);
            }
        }
        assert!(buffer.is_empty());
        heard
    }

    #[test]
    fn every_word_arrives_as_it_was_said() {
        let mut words = vec![
            Word::Alive,
            Word::Update(Update::Sampler(Sampler::NoDriver)),
            Word::Update(Update::Ended("driver/library version mismatch".into())),
        ];
        for profile in ["h100-8", "a100-8-mig", "gb200-4"] {
            words.push(Word::Update(Update::Reading(Arc::new(reading(profile)))));
        }
        let fabric = || Fabric {
            cluster_uuid: "c".into(),
            ..Fabric::default()
        };
        let health = FabricHealth::LimitedCapacity;
        for state in [
            FabricReading::Pending(fabric()),
            FabricReading::Completed {
                fabric: fabric(),
                health,
            },
            FabricReading::Failed {
                fabric: fabric(),
                status: 7,
            },
        ] {
            let mut reading = reading("l40s-4");
            reading.gpus[0].fabric = state;
            words.push(Word::Update(Update::Reading(Arc::new(reading))));
        }
        for kind in [
            DeviceEventKind::Xid(79),
            DeviceEventKind::DoubleBitEcc,
            DeviceEventKind::Unavailable,
            DeviceEventKind::RecoveryActionChanged,
        ] {
            words.push(Word::Update(Update::Event(DeviceEvent {
                gpu_uuid: Some("GPU-1".into()),
                instance: Some((1, 0)),
                kind,
            })));
        }
        assert_eq!(over_the_pipe(&words), words);
    }

    #[test]
    fn a_reader_is_started_with_all_that_the_one_before_knew() {
        let start = Start {
            config: NvmlConfig {
                library: Some("/opt/nvidia/libnvidia-ml.so.1".into()),
                sysfs: "/host/sys".into(),
                interval: Duration::from_secs(5),
                devices_expected: Some(8),
            },
            parent: 4711,
            sign_interval: Duration::from_millis(2500),
            known: Some(reading("a100-8-mig")),
        };
        assert_eq!(Start::decode(&start.encode()).unwrap(), start);
    }

    #[test]
    fn what_is_no_word_is_refused() {
        let mut endless = BytesMut::from(&[0xff; 10][..]);
        assert!(Word::take(&mut endless).is_err());
        let mut long = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 0x7f][..]);
        let error = Word::take(&mut long).unwrap_err().to_string();
        assert!(error.contains("at most 16777216"), "{error}");
        let mut empty = BytesMut::from(&[0][..]);
        assert!(Word::take(&mut empty).is_err());
        let mut torn = BytesMut::from(&[3, 0x12, 0x7f, 0][..]);
        assert!(Word::take(&mut torn).is_err());
    }
}
