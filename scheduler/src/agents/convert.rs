//! Devices on the wire to devices of the core. What is not understood is never taken for good news.

use std::sync::Arc;

use muster_core::inventory::{Device, DeviceHealth};
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

/// A schedulable device. `None` for a GPU that is cut into slices: it is listed for its facts only.
pub fn device(device: &wire::Device) -> Option<Device> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
