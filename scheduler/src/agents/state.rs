//! What one stream has told about its node: a snapshot, changed by deltas, checked by digests.
//!
//! It is held as the bytes that came: a delta is rare, and of thousands of streams most of the memory would be
//! devices that nobody looks at.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_core::ids::NodeName;
use muster_core::inventory::{NodeReport, ReportOrder};
use muster_proto::inventory as wire;
use prost::Message as _;
use tonic::Status;

use super::convert::{self, DEVICES_MAX};

/// The state of a stream after its Hello.
#[derive(Debug)]
pub struct NodeState {
    node: NodeName,
    boot: Arc<str>,
    instance: u64,
    held: Option<Held>,
    sampler_ok: bool,
}

#[derive(Debug)]
struct Held {
    generation: u64,
    digest: u64,
    /// A `Snapshot` of facts, devices and kubelet, encoded.
    state: Box<[u8]>,
}

/// The same, to be looked at and changed.
#[derive(Debug)]
struct Opened {
    generation: u64,
    digest: u64,
    facts: Option<wire::NodeFacts>,
    kubelet: Option<wire::KubeletView>,
    devices: BTreeMap<String, wire::Device>,
}

impl Held {
    /// Nothing that was encoded here fails to be decoded; should it do so, the agent is asked for everything again.
    fn open(&self) -> Option<Opened> {
        let state = wire::Snapshot::decode(&*self.state).ok()?;
        let devices = state.devices.into_iter();
        Some(Opened {
            generation: self.generation,
            digest: self.digest,
            facts: state.node,
            kubelet: state.kubelet,
            devices: devices
                .map(|device| (device.uuid.clone(), device))
                .collect(),
        })
    }
}

impl Opened {
    fn close(self) -> Held {
        let state = wire::Snapshot {
            node: self.facts,
            kubelet: self.kubelet,
            devices: self.devices.into_values().collect(),
            ..wire::Snapshot::default()
        };
        Held {
            generation: self.generation,
            digest: self.digest,
            state: state.encode_to_vec().into_boxed_slice(),
        }
    }
}

/// What to do after a message was taken in.
#[derive(Debug, PartialEq)]
pub enum Taken {
    /// The state changed: report it, and acknowledge this generation.
    Report(Box<NodeReport>, u64),
    /// A sign of life at the held state: note it, and acknowledge.
    Alive(ReportOrder, bool, u64),
    /// The two sides differ: ask for a snapshot.
    Resync(&'static str),
}

impl NodeState {
    /// A stream that has only said Hello.
    pub fn new(node: &str, boot: &str, instance: u64) -> Self {
        Self {
            node: node.into(),
            boot: Arc::from(boot),
            instance,
            held: None,
            sampler_ok: true,
        }
    }

    fn order(&self, generation: u64) -> ReportOrder {
        ReportOrder {
            boot: Arc::clone(&self.boot),
            instance: self.instance,
            generation,
        }
    }

    /// Takes everything anew.
    pub fn snapshot(&mut self, snapshot: wire::Snapshot) -> Result<Taken, Status> {
        let mut devices = BTreeMap::new();
        count(snapshot.devices.len())?;
        for device in snapshot.devices {
            convert::check(&device)?;
            devices.insert(device.uuid.clone(), device);
        }
        let held = Opened {
            generation: snapshot.generation,
            digest: snapshot.digest,
            facts: snapshot.node,
            kubelet: snapshot.kubelet,
            devices,
        };
        Ok(self.keep(held))
    }

    /// Applies a change to the held state.
    pub fn delta(&mut self, delta: wire::Delta) -> Result<Taken, Status> {
        let Some(mut held) = self.held.take().and_then(|held| held.open()) else {
            return Ok(Taken::Resync("no snapshot is held"));
        };
        if held.generation != delta.base_generation {
            return Ok(Taken::Resync("the delta is based on another generation"));
        }
        count(delta.upserts.len())?;
        for uuid in delta.removed {
            held.devices.remove(&uuid);
        }
        for device in delta.upserts {
            convert::check(&device)?;
            held.devices.insert(device.uuid.clone(), device);
        }
        count(held.devices.len())?;
        held.generation = delta.generation;
        held.digest = delta.digest_after;
        held.kubelet = delta.kubelet.or(held.kubelet);
        held.facts = delta.node.or(held.facts);
        Ok(self.keep(held))
    }

    fn keep(&mut self, held: Opened) -> Taken {
        let digest = muster_proto::digest(
            held.facts.as_ref(),
            held.kubelet.as_ref(),
            held.devices.values(),
        );
        if digest != held.digest {
            self.held = None;
            return Taken::Resync("the digest differs");
        }
        let generation = held.generation;
        let report = NodeReport {
            node: self.node.clone(),
            order: self.order(generation),
            sampler_ok: self.sampler_ok,
            holders_known: held.kubelet.as_ref().is_some_and(|view| view.known),
            devices: convert::devices(held.devices.values()),
            fabric_clique: convert::fabric_clique(held.devices.values()),
            links: convert::links(held.devices.values()),
        };
        self.held = Some(held.close());
        Taken::Report(Box::new(report), generation)
    }

    /// Takes a sign of life.
    pub fn heartbeat(&mut self, heartbeat: &wire::Heartbeat) -> Taken {
        self.sampler_ok = wire::Sampler::try_from(heartbeat.sampler) == Ok(wire::Sampler::Ok);
        match &self.held {
            Some(held)
                if held.generation == heartbeat.generation && held.digest == heartbeat.digest =>
            {
                Taken::Alive(
                    self.order(held.generation),
                    self.sampler_ok,
                    held.generation,
                )
            }
            Some(_) => Taken::Resync("the heartbeat is about another state"),
            None => Taken::Resync("no snapshot is held"),
        }
    }
}

fn count(devices: usize) -> Result<(), Status> {
    if devices > DEVICES_MAX {
        return Err(Status::resource_exhausted(format!(
            "the node has {devices} devices: at most {DEVICES_MAX}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(uuid: &str, leaked: bool) -> wire::Device {
        wire::Device {
            uuid: uuid.into(),
            resource_name: "nvidia.com/gpu".into(),
            health: wire::Health::Healthy.into(),
            leaked,
            ..wire::Device::default()
        }
    }

    fn snapshot(devices: Vec<wire::Device>) -> wire::Snapshot {
        wire::Snapshot {
            generation: 1,
            digest: muster_proto::digest(None, None, &devices),
            devices,
            ..wire::Snapshot::default()
        }
    }

    #[test]
    fn delta_changes_the_snapshot_and_a_wrong_digest_asks_for_a_new_one() {
        let mut state = NodeState::new("n", "boot", 1);
        let Ok(Taken::Report(report, 1)) =
            state.snapshot(snapshot(vec![gpu("a", false), gpu("b", false)]))
        else {
            panic!("a snapshot is reported");
        };
        assert_eq!(report.devices.len(), 2);
        let after = [gpu("b", true)];
        let delta = wire::Delta {
            base_generation: 1,
            generation: 2,
            digest_after: muster_proto::digest(None, None, &after),
            upserts: vec![gpu("b", true)],
            removed: vec!["a".into()],
            ..wire::Delta::default()
        };
        let Ok(Taken::Report(report, 2)) = state.delta(delta.clone()) else {
            panic!("a delta is reported");
        };
        assert_eq!(report.devices.len(), 1);
        assert!(report.devices[0].leaked);
        assert_eq!(
            state.delta(delta).unwrap(),
            Taken::Resync("the delta is based on another generation")
        );
        let mut wrong = snapshot(vec![gpu("a", false)]);
        wrong.digest ^= 1;
        assert_eq!(
            state.snapshot(wrong).unwrap(),
            Taken::Resync("the digest differs")
        );
        let heartbeat = wire::Heartbeat::default();
        assert_eq!(
            state.heartbeat(&heartbeat),
            Taken::Resync("no snapshot is held")
        );
    }

    #[test]
    fn too_many_devices_are_refused() {
        let mut state = NodeState::new("n", "boot", 1);
        let many = (0..=DEVICES_MAX)
            .map(|n| gpu(&format!("g{n}"), false))
            .collect();
        let status = state.snapshot(snapshot(many)).unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }
}
