//! Devices on the wire to devices of the core. What is not understood is never taken for good news.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_core::inventory::{Device, DeviceHealth};
use muster_core::links::{GPUS_MAX, Links};
use muster_core::sharing::Shared;
use muster_proto::inventory as wire;
use tonic::Status;

/// Most devices of one node: 16 GPUs with 7 slices each, several times over.
pub const DEVICES_MAX: usize = 1024;
/// Longest identity (UUID, resource, namespace, pod name), bytes.
const NAME_MAX: usize = 253;
/// Longest text for people, characters.
const TEXT_MAX: usize = 128;
/// Most holders of one device: time-slicing shares a GPU among some dozens of pods.
const HOLDERS_MAX: usize = 256;

fn invalid(text: String) -> Status {
    Status::invalid_argument(text)
}

/// Checks an identity: not empty, not too long.
pub fn name<'a>(what: &str, value: &'a str) -> Result<&'a str, Status> {
    if value.is_empty() || value.len() > NAME_MAX {
        return Err(invalid(format!(
            "{what} has {} bytes: must have 1 to {NAME_MAX}",
            value.len()
        )));
    }
    Ok(value)
}

fn words(text: &str) -> Arc<str> {
    let clean: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(TEXT_MAX)
        .collect();
    Arc::from(clean)
}

/// Checks the limits of devices as they arrive.
pub fn check(device: &wire::Device) -> Result<(), Status> {
    name("device.uuid", &device.uuid)?;
    if !device.partitioned {
        name("device.resource_name", &device.resource_name)?;
    }
    if device.holders.len() > HOLDERS_MAX {
        return Err(invalid(format!(
            "device {} has {} holders: at most {HOLDERS_MAX}",
            words(&device.uuid),
            device.holders.len()
        )));
    }
    for holder in &device.holders {
        name("holder.namespace", &holder.namespace)?;
        name("holder.pod", &holder.pod)?;
    }
    Ok(())
}

fn health(device: &wire::Device) -> DeviceHealth {
    let reason = if device.health_reason.is_empty() {
        Arc::from("unknown")
    } else {
        words(&device.health_reason)
    };
    match wire::Health::try_from(device.health) {
        Ok(wire::Health::Healthy) => DeviceHealth::Healthy,
        Ok(wire::Health::Suspect | wire::Health::Unspecified) | Err(_) => {
            DeviceHealth::Suspect(reason)
        }
        Ok(wire::Health::Unhealthy) => DeviceHealth::Unhealthy(reason),
        Ok(wire::Health::Lost) => DeviceHealth::Lost(reason),
    }
}

/// The schedulable devices of a node. What they have in common is held once.
pub fn devices<'a>(devices: impl Iterator<Item = &'a wire::Device>) -> Vec<Device> {
    let mut texts = Shared::default();
    let mut devices: Vec<Device> = devices.filter_map(device).collect();
    for device in &mut devices {
        device.resource.share(&mut texts);
        if let Some(model) = &mut device.model {
            texts.share_in(model);
        }
        if let Some(parent) = &mut device.parent {
            parent.share(&mut texts);
        }
        for (namespace, pod) in &mut device.holders {
            namespace.share(&mut texts);
            texts.share_in(pod);
        }
        device.holders.shrink_to_fit();
    }
    devices.shrink_to_fit();
    devices
}

/// A schedulable device. `None` for a GPU that is cut into slices: it is listed for its facts only.
fn device(device: &wire::Device) -> Option<Device> {
    if device.partitioned {
        return None;
    }
    Some(Device {
        uuid: device.uuid.as_str().into(),
        resource: device.resource_name.as_str().into(),
        health: health(device),
        leaked: device.leaked,
        holders: device
            .holders
            .iter()
            .map(|holder| {
                (
                    holder.namespace.as_str().into(),
                    Arc::from(holder.pod.as_str()),
                )
            })
            .collect(),
        model: device.name.as_deref().map(words),
        index: device.index.unwrap_or(u32::MAX),
        numa: device.numa_node,
        parent: (!device.parent_uuid.is_empty()).then(|| device.parent_uuid.as_str().into()),
        memory_bytes: device.memory_total_bytes,
    })
}

/// The clique of the NVLink fabric that every GPU of a node is registered in, written as the label
/// `nvidia.com/gpu.clique` has it. `None` where a GPU is not, or another one is in another clique.
pub fn fabric_clique<'a>(devices: impl Iterator<Item = &'a wire::Device>) -> Option<Arc<str>> {
    let mut gpus = devices
        .filter(|device| device.parent_uuid.is_empty())
        .peekable();
    gpus.peek()?;
    let mut found: Option<(&str, u32)> = None;
    for gpu in gpus {
        let fabric = gpu.fabric.as_ref().filter(|fabric| fabric.completed)?;
        let is_nowhere = |c: char| c == '0' || c == '-';
        if name("fabric.cluster_uuid", &fabric.cluster_uuid).is_err()
            || fabric.cluster_uuid.chars().all(is_nowhere)
        {
            return None;
        }
        let here = (fabric.cluster_uuid.as_str(), fabric.clique_id);
        if *found.get_or_insert(here) != here {
            return None;
        }
    }
    found.map(|(cluster, clique)| Arc::from(format!("{cluster}.{clique}")))
}

/// How near the GPUs of a node are to each other: by NVLinks, the more the nearer, else by where their ways meet
/// on PCIe. `None` where nothing is said, or nothing that makes a difference.
pub fn links<'a>(devices: impl Iterator<Item = &'a wire::Device>) -> Option<Links> {
    let mut gpus: BTreeMap<usize, &wire::Device> = BTreeMap::new();
    for gpu in devices.filter(|device| device.parent_uuid.is_empty()) {
        let index = usize::try_from(gpu.index?).ok()?;
        if index >= GPUS_MAX || gpus.insert(index, gpu).is_some() {
            return None;
        }
    }
    if gpus.values().all(|gpu| gpu.peers.is_empty()) {
        return None;
    }
    let indices: BTreeMap<&str, usize> = gpus
        .iter()
        .map(|(index, gpu)| (gpu.uuid.as_str(), *index))
        .collect();
    let count = gpus.keys().next_back()?.saturating_add(1);
    let mut rows = vec![vec![u8::MAX; count]; count];
    for (index, gpu) in &gpus {
        for peer in &gpu.peers {
            let other = indices.get(peer.uuid.as_str());
            let row = rows.get_mut(*index);
            let cell = row.zip(other).and_then(|(row, other)| row.get_mut(*other));
            if let Some(cell) = cell {
                *cell = far(peer);
            }
        }
    }
    Links::of(&rows)
}

/// How far a GPU is; only the order counts.
fn far(peer: &wire::PeerLink) -> u8 {
    use wire::PcieAncestor as Meet;
    if peer.nvlinks > 0 {
        let links = u8::try_from(peer.nvlinks.min(18)).unwrap_or(18);
        return 20u8.saturating_sub(links);
    }
    match peer.ancestor() {
        Meet::Internal => 20,
        Meet::SingleSwitch => 30,
        Meet::MultipleSwitches => 40,
        Meet::HostBridge => 50,
        Meet::NumaNode => 60,
        Meet::System => 70,
        Meet::Unspecified => 80,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_near_by_nvlink_then_by_pcie() {
        use wire::PcieAncestor as Meet;
        let gpu = |index: u32, peers: &[(u32, u32, Meet)]| wire::Device {
            uuid: format!("GPU-{index}"),
            index: Some(index),
            peers: peers
                .iter()
                .map(|(other, nvlinks, meet)| wire::PeerLink {
                    uuid: format!("GPU-{other}"),
                    nvlinks: *nvlinks,
                    ancestor: (*meet).into(),
                })
                .collect(),
            ..wire::Device::default()
        };
        let node = [
            gpu(0, &[(1, 0, Meet::SingleSwitch), (2, 4, Meet::System)]),
            gpu(1, &[(0, 0, Meet::SingleSwitch), (2, 0, Meet::System)]),
            gpu(2, &[(0, 4, Meet::System), (1, 0, Meet::System)]),
        ];
        let found = links(node.iter()).unwrap();
        assert_eq!(found.rows(), [[0, 30, 16], [30, 0, 70], [16, 70, 0]]);
        // Nothing said, or the same GPU twice.
        assert_eq!(links([gpu(0, &[]), gpu(1, &[])].iter()), None);
        assert_eq!(links([node[0].clone(), node[0].clone()].iter()), None);
    }

    #[test]
    fn clique_is_that_of_all_gpus_or_none() {
        let gpu = |cluster: &str, clique_id, completed| wire::Device {
            fabric: Some(wire::Fabric {
                cluster_uuid: cluster.into(),
                clique_id,
                completed,
            }),
            ..wire::Device::default()
        };
        let clique = |gpus: &[wire::Device]| fabric_clique(gpus.iter());
        let a = gpu("a1", 3, true);
        assert_eq!(clique(&[a.clone(), a.clone()]).as_deref(), Some("a1.3"));
        let slice = wire::Device {
            parent_uuid: "GPU-1".into(),
            ..wire::Device::default()
        };
        assert_eq!(clique(&[a.clone(), slice]).as_deref(), Some("a1.3"));
        for other in [
            gpu("a1", 4, true),
            gpu("a2", 3, true),
            gpu("a1", 3, false),
            gpu("00000000-0000", 3, true),
            gpu("", 3, true),
            wire::Device::default(),
        ] {
            assert_eq!(clique(&[a.clone(), other.clone()]), None, "{other:?}");
            assert_eq!(clique(&[other]).filter(|c| &**c == "a1.3"), None);
        }
        assert_eq!(clique(&[]), None);
    }

    #[test]
    fn unknown_health_is_suspect_and_a_partitioned_gpu_is_not_counted() {
        let mut gpu = wire::Device {
            uuid: "GPU-1".into(),
            resource_name: "nvidia.com/gpu".into(),
            health: 77,
            ..wire::Device::default()
        };
        assert_eq!(
            device(&gpu).map(|device| device.health),
            Some(DeviceHealth::Suspect("unknown".into()))
        );
        gpu.partitioned = true;
        assert_eq!(device(&gpu), None);
    }

    #[test]
    fn identities_have_limits() {
        let long = wire::Device {
            uuid: "x".repeat(300),
            ..wire::Device::default()
        };
        let status = check(&long).unwrap_err();
        assert_eq!(
            status.message(),
            "device.uuid has 300 bytes: must have 1 to 253"
        );
        assert!(check(&wire::Device::default()).is_err());
    }
}
