//! The kubelet's view as a value: which pod holds which device, and what can be handed out.

use std::collections::BTreeMap;

use muster_proto::inventory::{Device, Holder, KubeletView, ResourceDevices};
use muster_proto::podresources::{AllocatableResourcesResponse, ListPodResourcesResponse};

/// Prefix of resource names this agent looks at.
const RESOURCE_PREFIX: &str = "nvidia.com/";

/// Devices taken from one answer; more than any node has, time slices included. What is beyond is left out.
pub const DEVICES_MAX: usize = 16_384;

/// A device id as a device plugin names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceId {
    /// `GPU-...` or `MIG-...`, the replica of time slicing (`::n`) cut off.
    Uuid(String),
    /// `nvidia0`, `nvidia0/gi1`, `nvidia0/vgpu1` (GKE): minor number, and GPU instance of a slice.
    Minor(u32, Option<u32>),
}

impl DeviceId {
    /// Reads a device id; `None` for a form that is not known.
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with("GPU-") || text.starts_with("MIG-") {
            let uuid = text.split_once("::").map_or(text, |(uuid, _)| uuid);
            return Some(Self::Uuid(uuid.to_owned()));
        }
        let rest = text.strip_prefix("nvidia")?;
        match rest.split_once('/') {
            None => Some(Self::Minor(rest.parse().ok()?, None)),
            Some((minor, part)) => {
                let minor = minor.parse().ok()?;
                match part.strip_prefix("gi") {
                    Some(instance) => Some(Self::Minor(minor, Some(instance.parse().ok()?))),
                    None => part.starts_with("vgpu").then_some(Self::Minor(minor, None)),
                }
            }
        }
    }

    /// The ids under which a plugin may offer this device.
    fn of(device: &Device) -> impl Iterator<Item = Self> {
        let instance = device.mig.as_ref().map(|mig| mig.gpu_instance_id);
        let minor = device
            .minor_number
            .map(|minor| Self::Minor(minor, instance));
        [Self::Uuid(device.uuid.clone())].into_iter().chain(minor)
    }
}

/// What the kubelet says at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KubeletState {
    /// False when the kubelet could not be asked; the rest is then empty.
    pub known: bool,
    /// Device ids that can be handed out, as the plugin spells them, by resource name.
    pub allocatable: BTreeMap<String, Vec<String>>,
    /// Holders by device.
    pub holders: BTreeMap<DeviceId, Vec<Holder>>,
}

impl KubeletState {
    /// Builds the state from the kubelet's two answers. Pods without devices and resources of others are left out.
    pub fn from_answers(
        pods: ListPodResourcesResponse,
        allocatable: AllocatableResourcesResponse,
    ) -> Self {
        let mut state = Self {
            known: true,
            ..Self::default()
        };
        let mut left = DEVICES_MAX;
        for devices in allocatable.devices {
            if !devices.resource_name.starts_with(RESOURCE_PREFIX) {
                continue;
            }
            let ids = state.allocatable.entry(devices.resource_name).or_default();
            for id in devices.device_ids.into_iter().take(left) {
                left = left.saturating_sub(1);
                ids.push(id);
            }
        }
        state.allocatable.values_mut().for_each(|ids| ids.sort());
        let mut left = DEVICES_MAX;
        for pod in pods.pod_resources {
            for container in pod.containers {
                let ours = container
                    .devices
                    .into_iter()
                    .filter(|devices| devices.resource_name.starts_with(RESOURCE_PREFIX));
                for id in ours.flat_map(|devices| devices.device_ids) {
                    let Some(device) = DeviceId::parse(&id) else {
                        continue;
                    };
                    if left == 0 {
                        continue;
                    }
                    left -= 1;
                    let holder = Holder {
                        namespace: pod.namespace.clone(),
                        pod: pod.name.clone(),
                        container: container.name.clone(),
                    };
                    let holders = state.holders.entry(device).or_default();
                    if !holders.contains(&holder) {
                        holders.push(holder);
                    }
                }
            }
        }
        state.holders.values_mut().for_each(|holders| {
            holders.sort_by(|a, b| {
                (&a.namespace, &a.pod, &a.container).cmp(&(&b.namespace, &b.pod, &b.container))
            });
        });
        state
    }

    /// Who holds this device.
    pub fn holders_of(&self, device: &Device) -> Vec<Holder> {
        DeviceId::of(device)
            .filter_map(|id| self.holders.get(&id))
            .flatten()
            .cloned()
            .collect()
    }

    /// The resource name under which this device is offered; `None` when it is not.
    pub fn resource_of(&self, device: &Device) -> Option<&str> {
        let ids: Vec<DeviceId> = DeviceId::of(device).collect();
        let offers = |listed: &&String| DeviceId::parse(listed).is_some_and(|id| ids.contains(&id));
        self.allocatable
            .iter()
            .find(|(_, listed)| listed.iter().find(offers).is_some())
            .map(|(name, _)| name.as_str())
    }

    /// The wire form.
    pub fn to_view(&self) -> KubeletView {
        let devices = |(name, ids): (&String, &Vec<String>)| ResourceDevices {
            resource_name: name.clone(),
            device_ids: ids.clone(),
        };
        KubeletView {
            known: self.known,
            allocatable: self.allocatable.iter().map(devices).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::inventory::{Device, MigSlice};
    use muster_proto::podresources::{
        AllocatableResourcesResponse, ContainerDevices, ContainerResources,
        ListPodResourcesResponse, PodResources,
    };

    use super::{DeviceId, KubeletState};

    fn devices(resource: &str, ids: &[&str]) -> ContainerDevices {
        ContainerDevices {
            resource_name: resource.into(),
            device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            topology: None,
        }
    }

    fn pod(name: &str, held: Vec<ContainerDevices>) -> PodResources {
        let container = ContainerResources {
            name: "main".into(),
            devices: held,
            ..ContainerResources::default()
        };
        PodResources {
            name: name.into(),
            namespace: "team".into(),
            containers: vec![container],
        }
    }

    #[test]
    fn ids_of_every_plugin_are_read() {
        let uuid = |text: &str| Some(DeviceId::Uuid(text.into()));
        assert_eq!(DeviceId::parse("GPU-aa"), uuid("GPU-aa"));
        assert_eq!(DeviceId::parse("GPU-aa::3"), uuid("GPU-aa"));
        assert_eq!(DeviceId::parse("MIG-bb"), uuid("MIG-bb"));
        assert_eq!(DeviceId::parse("nvidia7"), Some(DeviceId::Minor(7, None)));
        assert_eq!(
            DeviceId::parse("nvidia7/gi2"),
            Some(DeviceId::Minor(7, Some(2)))
        );
        assert_eq!(
            DeviceId::parse("nvidia7/vgpu1"),
            Some(DeviceId::Minor(7, None))
        );
        for odd in [
            "",
            "nvidia",
            "nvidia-1",
            "nvidia99999999999",
            "nvidia0/xx",
            "mlx5_0",
        ] {
            assert_eq!(DeviceId::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn holders_and_resources_are_joined_by_uuid_minor_and_slice() {
        let pods = ListPodResourcesResponse {
            pod_resources: vec![
                pod(
                    "a",
                    vec![
                        devices("nvidia.com/gpu", &["GPU-1::0", "GPU-1::1"]),
                        devices("rdma/hca", &["GPU-2"]),
                    ],
                ),
                pod(
                    "b",
                    vec![devices(
                        "nvidia.com/gpu",
                        &["GPU-1::2", "nvidia5/gi3", "what"],
                    )],
                ),
            ],
        };
        let allocatable = AllocatableResourcesResponse {
            devices: vec![
                devices("nvidia.com/gpu.shared", &["GPU-1::0", "GPU-1::1"]),
                devices("rdma/hca", &["x"]),
            ],
            ..AllocatableResourcesResponse::default()
        };
        let state = KubeletState::from_answers(pods, allocatable);
        let gpu = |uuid: &str| Device {
            uuid: uuid.into(),
            ..Device::default()
        };
        let names: Vec<_> = state
            .holders_of(&gpu("GPU-1"))
            .into_iter()
            .map(|holder| holder.pod)
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(state.holders_of(&gpu("GPU-2")), []);
        let slice = Device {
            minor_number: Some(5),
            mig: Some(MigSlice {
                gpu_instance_id: 3,
                ..MigSlice::default()
            }),
            ..gpu("MIG-x")
        };
        assert_eq!(state.holders_of(&slice).len(), 1);
        assert_eq!(
            state.resource_of(&gpu("GPU-1")),
            Some("nvidia.com/gpu.shared")
        );
        assert_eq!(state.resource_of(&gpu("GPU-2")), None);
        assert_eq!(state.to_view().allocatable.len(), 1);
    }
}
