//! The kubelet's view as a value: which pod holds which device, and what can be handed out.

use std::collections::BTreeMap;

use muster_proto::inventory::{Device, Holder, KubeletView, ResourceDevices};
use muster_proto::podresources::{
    AllocatableResourcesResponse, ClaimResource, ListPodResourcesResponse,
};

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

    /// The GPU of a dynamic resource claim: NVIDIA's driver names devices by minor number (`gpu-3`), and
    /// some write the UUID into the CDI name. `None` when it cannot be told which it is, as for a slice
    /// (`gpu-3-mig-9-4-4`).
    fn of_claim(claim: &ClaimResource) -> Option<Self> {
        let by_uuid = claim.cdi_devices.iter().find_map(|device| {
            let (_, name) = device.name.split_once('=')?;
            Self::parse(name).filter(|id| matches!(id, Self::Uuid(_)))
        });
        by_uuid.or_else(|| {
            let minor = claim.device_name.strip_prefix("gpu-")?.parse().ok()?;
            Some(Self::Minor(minor, None))
        })
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

/// What the kubelet said when it last answered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KubeletState {
    /// False while the kubelet cannot be asked; the rest is then its last answer, or empty.
    pub known: bool,
    /// Device ids that can be handed out, as the plugin spells them, by resource name.
    pub allocatable: BTreeMap<String, Vec<String>>,
    /// Holders by device, by device plugin or by dynamic resource claim.
    pub holders: BTreeMap<DeviceId, Vec<Holder>>,
    /// Some pod has a GPU by a claim that does not tell which: a GPU in use without a holder may be that one.
    pub claims_unmatched: bool,
}

/// Whether a claim's device may be a GPU. Another driver's (network, storage) says nothing about GPUs,
/// and NVIDIA's compute domains hand out channels.
fn may_be_gpu(claim: &ClaimResource) -> bool {
    let driver = claim.driver_name.to_ascii_lowercase();
    (driver.contains("nvidia") || driver.contains("gpu")) && !driver.starts_with("compute-domain.")
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
                let plugin = ours
                    .flat_map(|devices| devices.device_ids)
                    .filter_map(|id| DeviceId::parse(&id));
                let claims = container
                    .dynamic_resources
                    .into_iter()
                    .flat_map(|claim| claim.claim_resources)
                    .filter(may_be_gpu)
                    .map(|claim| DeviceId::of_claim(&claim));
                for device in plugin.map(Some).chain(claims) {
                    let Some(device) = device else {
                        state.claims_unmatched = true;
                        continue;
                    };
                    if left == 0 {
                        continue;
                    }
                    left = left.saturating_sub(1);
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
        AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerDevices,
        ContainerResources, DynamicResource, ListPodResourcesResponse, PodResources,
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

    fn claim(driver: &str, device: &str, cdi: &str) -> DynamicResource {
        DynamicResource {
            claim_name: "c".into(),
            claim_namespace: "team".into(),
            claim_resources: vec![ClaimResource {
                cdi_devices: vec![CdiDevice { name: cdi.into() }],
                driver_name: driver.into(),
                pool_name: "node".into(),
                device_name: device.into(),
                share_id: None,
            }],
        }
    }

    fn claimed(claims: Vec<DynamicResource>) -> KubeletState {
        let mut pod = pod("a", Vec::new());
        pod.containers[0].dynamic_resources = claims;
        let pods = ListPodResourcesResponse {
            pod_resources: vec![pod],
        };
        KubeletState::from_answers(pods, AllocatableResourcesResponse::default())
    }

    #[test]
    fn gpus_of_claims_are_held_by_minor_number_or_uuid() {
        let state = claimed(vec![
            claim(
                "gpu.nvidia.com",
                "gpu-3",
                "k8s.gpu.nvidia.com/claim=c1-gpu-3",
            ),
            claim("gpu.example.org", "some", "nvidia.com/gpu=GPU-77"),
            claim("compute-domain.nvidia.com", "channel-0", "x/y=z"),
            claim("dra.net", "gpu-5", "x/y=z"),
        ]);
        let held = |uuid: &str, minor: u32| {
            let device = Device {
                uuid: uuid.into(),
                minor_number: Some(minor),
                ..Device::default()
            };
            !state.holders_of(&device).is_empty()
        };
        assert!(held("GPU-a", 3) && held("GPU-77", 7));
        assert!(!held("GPU-b", 0) && !held("GPU-c", 5));
        assert!(!state.claims_unmatched);
    }

    #[test]
    fn claim_that_does_not_tell_its_gpu_is_remembered_as_such() {
        let slice = claim(
            "gpu.nvidia.com",
            "gpu-0-mig-9-4-4",
            "k8s.gpu.nvidia.com/claim=x",
        );
        let state = claimed(vec![slice]);
        assert!(state.claims_unmatched && state.holders.is_empty());
        assert!(!claimed(Vec::new()).claims_unmatched);
    }
}
