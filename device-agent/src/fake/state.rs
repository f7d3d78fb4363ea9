//! A node made of a profile's shape and the faults applied to it so far.

use muster_proto::inventory::{
    Device, Fabric, Memory, MigSlice, NodeFacts, PcieAncestor, PeerLink, Platform, RecoveryAction,
};

use crate::hash::{format_uuid, hash64, uuid_bytes, uuid_text};
use crate::model::{
    DeviceEvent, DeviceEventKind, FabricHealth, FabricReading, GpuReading, Reading, SliceReading,
    architecture,
};
use crate::profile::{FabricStateName, MigProfile, Shape};
use crate::scenario::FaultEvent;

const MIB: u64 = 1 << 20;
/// Memory that a leaking process holds, bytes.
const LEAK_BYTES: u64 = 4 << 30;
/// Process id of the leaking process.
const LEAK_PID: u32 = 424_242;

/// XIDs after which the driver wants a GPU reset (NVIDIA's catalog, resolution RESET_GPU).
const RESET_XIDS: &[u64] = &[
    46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158,
];
/// "GPU has fallen off the bus".
const OFF_THE_BUS: u64 = 79;
/// Most GPUs that are told of and are not there.
const INVENTED_MAX: u32 = 64;

/// One schedulable device of a fake node, as a kubelet would offer it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FakeDevice {
    /// Kubernetes resource name.
    pub resource_name: String,
    /// GPU-... or MIG-...
    pub uuid: String,
    /// Index of the GPU on the node.
    pub gpu: u32,
}

/// The schedulable devices of a node of this shape and name, in the order of their index. They are the
/// ones every fake of that node reports, in any process.
pub fn devices(shape: &Shape, node_name: &str) -> Vec<FakeDevice> {
    let node = FakeNode::new(shape, node_name);
    let mut found = Vec::new();
    for (gpu, index) in node.gpus.iter().zip(0_u32..) {
        if gpu.slices.is_empty() {
            found.push(FakeDevice {
                resource_name: shape.resource_name.clone(),
                uuid: gpu.uuid.clone(),
                gpu: index,
            });
        }
        for slice in &gpu.slices {
            let resource_name = slice_resource(&slice.profile);
            found.push(FakeDevice {
                resource_name,
                uuid: slice.uuid.clone(),
                gpu: index,
            });
        }
    }
    found
}

/// Resource name of a MIG slice under the device plugin's "mixed" strategy.
pub(crate) fn slice_resource(profile: &str) -> String {
    format!("nvidia.com/mig-{}", profile.replace('+', "."))
}

/// A fake node: its shape, its devices and what is wrong with them.
#[derive(Debug, Clone)]
pub struct FakeNode {
    /// The shape it was made of.
    pub shape: Shape,
    /// Name of the node.
    pub name: String,
    /// Present driver version.
    pub driver_version: String,
    /// GPUs by index.
    pub gpus: Vec<FakeGpu>,
    /// Whether calls into the driver return.
    pub hung: bool,
    /// GPUs that are told of and are not there.
    pub invented: u32,
    /// Fabric identity: cluster UUID bytes (zero when the domain ends at the node), and the node's place in the domain.
    pub cluster: [u8; 16],
    /// Place of the node in its fabric domain, from 0.
    pub tray: u32,
    chassis: String,
}

/// State of one fake GPU.
#[derive(Debug, Clone, Default)]
pub struct FakeGpu {
    /// Present UUID.
    pub uuid: String,
    /// UUID when nothing is wrong.
    pub own_uuid: String,
    /// Serial number.
    pub serial: String,
    /// Off the bus.
    pub lost: bool,
    /// The driver does not count it; a reader says that it is lost.
    pub uncounted: bool,
    /// Row remap waits for a reset.
    pub remap_pending: bool,
    /// A row could not be remapped.
    pub remap_failure: bool,
    /// What the driver asks for.
    pub action: RecoveryAction,
    /// A process that no pod owns holds memory.
    pub leaking: bool,
    /// MIG slices.
    pub slices: Vec<FakeSlice>,
}

/// One MIG slice of a fake GPU.
#[derive(Debug, Clone)]
pub struct FakeSlice {
    /// UUID.
    pub uuid: String,
    /// For example "1g.10gb".
    pub profile: String,
    /// GPU instance id.
    pub gpu_instance: u32,
    /// Compute instance id.
    pub compute_instance: u32,
    /// Size.
    pub size: MigProfile,
}

impl FakeNode {
    /// A node with nothing wrong. UUIDs follow from the name and the index.
    pub fn new(shape: &Shape, name: &str) -> Self {
        let gpus = (0..shape.count)
            .map(|index| FakeGpu::new(shape, name, index))
            .collect();
        let ordinal = ordinal(name);
        let per_domain = shape
            .fabric
            .as_ref()
            .map_or(0, |fabric| fabric.nodes_per_domain);
        let domain = ordinal.checked_div(per_domain);
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let domain_key = domain.map(|domain| format!("fabric/{}/{prefix}{domain}", shape.name));
        Self {
            shape: shape.clone(),
            name: name.into(),
            driver_version: shape.driver_version.clone(),
            gpus,
            hung: false,
            invented: 0,
            cluster: domain_key.as_deref().map_or([0; 16], uuid_bytes),
            tray: ordinal.checked_rem(per_domain).unwrap_or(0),
            chassis: format!(
                "{:012}",
                hash64(4, domain_key.as_deref().unwrap_or(name).as_bytes()) % 1_000_000_000_000
            ),
        }
    }

    /// Applies a fault. Returns what the driver would tell about it. Faults of the agent change nothing here.
    pub fn apply(&mut self, fault: &FaultEvent) -> Option<DeviceEvent> {
        match fault {
            FaultEvent::Xid { gpu, code } => return self.xid(*gpu, *code),
            FaultEvent::Lost { gpu } => self.with(*gpu, |gpu| gpu.lost = true),
            FaultEvent::Uncounted { gpu } => self.with(*gpu, |gpu| gpu.uncounted = true),
            FaultEvent::Back { gpu: Some(gpu) } => self.with(*gpu, FakeGpu::repair),
            FaultEvent::Back { gpu: None } => {
                self.invented = 0;
                self.gpus.iter_mut().for_each(FakeGpu::repair);
            }
            FaultEvent::Invent { gpus } => self.invented = (*gpus).min(INVENTED_MAX),
            FaultEvent::CloneUuid { gpu, uuid } => self.with(*gpu, |gpu| gpu.uuid.clone_from(uuid)),
            FaultEvent::RemapPending { gpu } => self.with(*gpu, |gpu| gpu.remap_pending = true),
            FaultEvent::RemapFailure { gpu } => self.with(*gpu, |gpu| gpu.remap_failure = true),
            FaultEvent::Recovery { gpu, action } => {
                self.with(*gpu, |gpu| gpu.action = *action);
                let gpu = self.gpus.get(*gpu as usize)?;
                let kind = DeviceEventKind::RecoveryActionChanged;
                return Some(DeviceEvent {
                    gpu_uuid: Some(gpu.uuid.clone()),
                    instance: None,
                    kind,
                });
            }
            FaultEvent::Leak { gpu } => self.with(*gpu, |gpu| gpu.leaking = true),
            FaultEvent::Hang => self.hung = true,
            FaultEvent::Resume => self.hung = false,
            FaultEvent::DriverVersion { version } => self.driver_version.clone_from(version),
            FaultEvent::Silent | FaultEvent::Replay | FaultEvent::Crash => {}
        }
        None
    }

    fn with(&mut self, index: u32, change: impl FnOnce(&mut FakeGpu)) {
        if let Some(gpu) = self.gpus.get_mut(index as usize) {
            change(gpu);
        }
    }

    fn xid(&mut self, index: u32, code: u64) -> Option<DeviceEvent> {
        let gpu = self.gpus.get_mut(index as usize)?;
        if code == OFF_THE_BUS {
            gpu.lost = true;
            gpu.action = RecoveryAction::NodeReboot;
        } else if RESET_XIDS.contains(&code) {
            gpu.action = RecoveryAction::GpuReset;
        }
        Some(DeviceEvent {
            gpu_uuid: Some(gpu.uuid.clone()),
            instance: None,
            kind: DeviceEventKind::Xid(code),
        })
    }

    /// Chassis serial number, shared by the nodes of one fabric domain.
    pub fn chassis_serial(&self) -> &str {
        &self.chassis
    }

    /// What a reader sees now.
    pub fn reading(&self) -> Reading {
        let node = NodeFacts {
            driver_version: Some(self.driver_version.clone()),
            cuda_version: Some(self.shape.cuda_version),
            nvml_version: Some(self.shape.nvml_version.clone()),
            devices_expected: Some(self.shape.count),
        };
        Reading {
            node,
            gpus: (0..self.shape.count)
                .filter_map(|index| self.gpu_reading(index))
                .chain(self.invented())
                .collect(),
        }
    }

    /// GPUs as the first one, under UUIDs that no device has.
    fn invented(&self) -> impl Iterator<Item = GpuReading> {
        (0..self.invented).filter_map(move |number| {
            let mut gpu = self.gpu_reading(0)?;
            let key = format!("{}/invented/{number}", self.name);
            gpu.facts.uuid = format!("GPU-{}", uuid_text(&key));
            gpu.facts.index = Some(self.shape.count.saturating_add(number));
            Some(gpu)
        })
    }

    fn gpu_reading(&self, index: u32) -> Option<GpuReading> {
        let gpu = self.gpus.get(index as usize)?;
        let leak = if gpu.leaking { LEAK_BYTES } else { 0 };
        let model = &self.shape.gpu;
        let fabric = self.fabric();
        let facts = Device {
            uuid: gpu.uuid.clone(),
            partitioned: !gpu.slices.is_empty(),
            memory_used_bytes: Some(leak),
            ecc: Some(Memory {
                ecc_enabled: Some(model.ecc),
                uncorrectable_volatile: Some(0),
                remap_pending: model.row_remapper_banks.map(|_| gpu.remap_pending),
                remap_failure: model.row_remapper_banks.map(|_| gpu.remap_failure),
                remapped_correctable: model.row_remapper_banks.map(|_| 0),
                remapped_uncorrectable: model
                    .row_remapper_banks
                    .map(|_| u32::from(gpu.remap_pending)),
            }),
            recovery_action: Some(gpu.action.into()),
            fabric: fabric.clone(),
            platform: self.platform(index),
            peers: self.peers(index),
            serial: Some(gpu.serial.clone()),
            resource_name: self.shape.resource_name.clone(),
            ..self.model_facts(index)
        };
        let fabric = match (fabric, self.shape.fabric.as_ref().map(|shape| shape.state)) {
            (Some(fabric), Some(FabricStateName::Completed)) => FabricReading::Completed {
                fabric,
                health: FabricHealth::Healthy,
            },
            (Some(fabric), _) => FabricReading::Pending(fabric),
            (None, _) => FabricReading::None,
        };
        Some(GpuReading {
            lost: gpu.lost || gpu.uncounted,
            unreadable: false,
            fabric,
            sram_threshold_exceeded: Some(false),
            compute_pids: Some(if gpu.leaking {
                vec![LEAK_PID]
            } else {
                Vec::new()
            }),
            slices: self.slices(gpu, index, leak),
            facts,
        })
    }

    fn model_facts(&self, index: u32) -> Device {
        let model = &self.shape.gpu;
        let (major, minor) = model.compute;
        let at = index as usize;
        Device {
            index: Some(index),
            minor_number: Some(index),
            pci_address: self.shape.pci_addresses.get(at).cloned(),
            numa_node: self
                .shape
                .numa_nodes
                .get(at)
                .and_then(|node| u32::try_from(*node).ok()),
            name: Some(model.product.clone()),
            architecture: architecture(major, minor).map(str::to_owned),
            compute_major: Some(major),
            compute_minor: Some(minor),
            memory_total_bytes: Some(model.memory_total_mib.saturating_mul(MIB)),
            memory_reserved_bytes: Some(model.memory_reserved_mib.saturating_mul(MIB)),
            ..Device::default()
        }
    }

    fn slices(&self, gpu: &FakeGpu, index: u32, leak: u64) -> Vec<SliceReading> {
        let slice_reading = |(slice, position): (&FakeSlice, usize)| {
            let leaking = gpu.leaking && position == 0;
            let facts = Device {
                uuid: slice.uuid.clone(),
                parent_uuid: gpu.uuid.clone(),
                memory_total_bytes: Some(
                    u64::from(slice.size.memory_gb).saturating_mul(1_000_000_000),
                ),
                memory_reserved_bytes: Some(0),
                memory_used_bytes: Some(if leaking { leak } else { 0 }),
                mig: Some(MigSlice {
                    gpu_instance_id: slice.gpu_instance,
                    compute_instance_id: slice.compute_instance,
                    profile: slice.profile.clone(),
                }),
                resource_name: slice_resource(&slice.profile),
                ..self.model_facts(index)
            };
            SliceReading {
                facts,
                compute_pids: Some(if leaking { vec![LEAK_PID] } else { Vec::new() }),
            }
        };
        gpu.slices.iter().zip(0..).map(slice_reading).collect()
    }

    fn fabric(&self) -> Option<Fabric> {
        let shape = self.shape.fabric.as_ref()?;
        Some(Fabric {
            cluster_uuid: format_uuid(&self.cluster),
            clique_id: shape.clique_id,
            completed: shape.state == FabricStateName::Completed,
        })
    }

    fn platform(&self, index: u32) -> Option<Platform> {
        self.shape
            .fabric
            .as_ref()
            .filter(|fabric| fabric.platform)?;
        Some(Platform {
            chassis_serial: self.chassis.clone(),
            slot: self.slot(),
            tray: self.tray,
            host_id: 1,
            module_id: index.saturating_add(1),
        })
    }

    /// Chassis slot of the tray. Switch trays sit in the middle of the rack, compute trays around them.
    pub fn slot(&self) -> u32 {
        if self.tray < 10 {
            self.tray.saturating_add(1)
        } else {
            self.tray.saturating_add(10)
        }
    }

    fn peers(&self, index: u32) -> Vec<PeerLink> {
        let links = self.shape.nvlink.as_ref().map_or(0, |nvlink| nvlink.links);
        let peer = |(gpu, other): (&FakeGpu, u32)| {
            (other != index).then(|| PeerLink {
                uuid: gpu.uuid.clone(),
                nvlinks: if gpu.lost { 0 } else { links },
                ancestor: self.ancestor(index, other).into(),
            })
        };
        self.gpus.iter().zip(0_u32..).filter_map(peer).collect()
    }

    /// Nearest common PCIe point of two GPUs: the socket when they share one, else the link between sockets.
    pub fn ancestor(&self, left: u32, right: u32) -> PcieAncestor {
        let node = |index: u32| self.shape.numa_nodes.get(index as usize);
        if left == right {
            PcieAncestor::Internal
        } else if node(left) == node(right) {
            PcieAncestor::NumaNode
        } else {
            PcieAncestor::System
        }
    }
}

impl FakeGpu {
    fn new(shape: &Shape, node: &str, index: u32) -> Self {
        let uuid = format!("GPU-{}", uuid_text(&format!("{node}/{index}")));
        let layout = shape
            .mig_layouts
            .get(index as usize % shape.mig_layouts.len().max(1));
        let slice = |(profile, position): (&String, u32)| {
            Some(FakeSlice {
                uuid: format!("MIG-{}", uuid_text(&format!("{node}/{index}/{position}"))),
                profile: profile.clone(),
                // On hardware, ids 7 and up are the 1-slice instances; small ones are used for larger slices.
                gpu_instance: position.saturating_add(1),
                compute_instance: 0,
                size: MigProfile::parse(profile)?,
            })
        };
        Self {
            own_uuid: uuid.clone(),
            uuid,
            serial: format!(
                "{:013}",
                hash64(5, format!("{node}/{index}").as_bytes()) % 10_000_000_000_000
            ),
            action: RecoveryAction::None,
            slices: layout
                .into_iter()
                .flatten()
                .zip(0_u32..)
                .filter_map(slice)
                .collect(),
            ..Self::default()
        }
    }

    fn repair(&mut self) {
        self.lost = false;
        self.uncounted = false;
        self.remap_pending = false;
        self.remap_failure = false;
        self.action = RecoveryAction::None;
        self.leaking = false;
        self.uuid.clone_from(&self.own_uuid);
    }
}

/// The number at the end of a node's name; 0 when there is none or it is too large.
fn ordinal(name: &str) -> u32 {
    let digits = name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name.get(digits..)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{FakeNode, devices};
    use crate::model::DeviceEventKind;
    use crate::profile::Profile;
    use crate::scenario::FaultEvent;

    fn node(profile: &str, name: &str) -> FakeNode {
        FakeNode::new(Profile::load(profile).unwrap().shape_for(name), name)
    }

    #[test]
    fn every_profile_gives_unique_devices_under_its_resource_names() {
        for (name, count, resource) in [
            ("h100-8", 8, "nvidia.com/gpu"),
            ("a100-8-mig", 48, "nvidia.com/mig-1g.5gb"),
            ("l40s-4", 4, "nvidia.com/gpu"),
            ("gb200-4", 4, "nvidia.com/gpu"),
        ] {
            let found = devices(Profile::load(name).unwrap().shape_for("n-1"), "n-1");
            let mut uuids: Vec<_> = found.iter().map(|device| &device.uuid).collect();
            uuids.sort();
            uuids.dedup();
            assert_eq!(
                (uuids.len(), found[0].resource_name.as_str()),
                (count, resource),
                "{name}"
            );
        }
    }

    #[test]
    fn trays_of_one_rack_share_a_fabric_and_neighbouring_racks_do_not() {
        let cluster = |name: &str| {
            node("gb200-4", name).reading().gpus[0]
                .facts
                .fabric
                .clone()
                .unwrap()
                .cluster_uuid
        };
        assert_eq!(cluster("tray-0"), cluster("tray-17"));
        assert_ne!(cluster("tray-0"), cluster("tray-18"));
        let h100 = node("h100-8", "a").reading().gpus[0]
            .facts
            .fabric
            .clone()
            .unwrap();
        assert_eq!(h100.cluster_uuid, "00000000-0000-0000-0000-000000000000");
    }

    #[test]
    fn faults_change_the_reading_and_back_undoes_them() {
        let mut node = node("h100-8", "a");
        let before = node.reading();
        let event = node.apply(&FaultEvent::Xid { gpu: 3, code: 79 }).unwrap();
        assert_eq!(event.kind, DeviceEventKind::Xid(79));
        assert!(node.reading().gpus[3].lost);
        node.apply(&FaultEvent::Leak { gpu: 1 });
        node.apply(&FaultEvent::CloneUuid {
            gpu: 2,
            uuid: "GPU-x".into(),
        });
        node.apply(&FaultEvent::Lost { gpu: 99 });
        node.apply(&FaultEvent::Invent { gpus: 2 });
        assert_eq!(node.reading().gpus.len(), 10);
        assert_ne!(node.reading(), before);
        node.apply(&FaultEvent::Back { gpu: None });
        assert_eq!(node.reading(), before);
    }

    #[test]
    fn peers_carry_links_and_distance() {
        let reading = node("h100-8", "a").reading();
        let peers = &reading.gpus[0].facts.peers;
        assert_eq!((peers.len(), peers[0].nvlinks), (7, 18));
        assert_ne!(peers[0].ancestor, peers[6].ancestor);
    }
}
