//! One full reading through NVML. Each getter may fail for itself: it costs its field, never the GPU.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use muster_proto::inventory::{
    Device as Facts, Memory, MigSlice, NodeFacts, PcieAncestor, PeerLink,
};
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TopologyLevel};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::NvmlConfig;
use super::pci;
use super::raw::{self, LinkEnd};
use crate::fake::slice_resource;
use crate::model::{FabricReading, GpuReading, Reading, SliceReading, architecture};
use crate::profile::MigProfile;

/// NVML's present limit on links per GPU.
const LINKS_MAX: u32 = 36;
/// GPUs asked for, whatever the library counts.
const GPUS_MAX: u32 = 256;
/// MIG slices asked for per GPU.
const SLICES_MAX: u32 = 64;

/// Reads, and remembers each GPU's last good reading, so that one that falls off the bus is still named.
pub struct Reader {
    sysfs: PathBuf,
    expected: Option<u32>,
    known: BTreeMap<u32, GpuReading>,
    reachable: BTreeSet<u32>,
}

/// Collects getters of one GPU and notices that it is lost.
struct Getter {
    lost: bool,
}

impl Getter {
    fn get<T>(&mut self, result: Result<T, NvmlError>) -> Option<T> {
        self.lost |= matches!(result, Err(NvmlError::GpuLost));
        result.ok()
    }
}

impl Reader {
    /// A reader that has read nothing.
    pub fn new(config: &NvmlConfig) -> Self {
        let (sysfs, expected) = (config.sysfs.clone(), config.devices_expected);
        Self {
            sysfs,
            expected,
            known: BTreeMap::new(),
            reachable: BTreeSet::new(),
        }
    }

    /// Indexes of the GPUs that answered at the last reading.
    pub fn reachable(&self) -> &BTreeSet<u32> {
        &self.reachable
    }

    /// Reads everything. `alive` is called between GPUs. Fails only when the library as a whole cannot be used.
    pub fn read(&mut self, nvml: &Nvml, alive: &dyn Fn()) -> Result<Reading, NvmlError> {
        let count = nvml.device_count()?.min(GPUS_MAX);
        self.reachable.clear();
        let mut links = BTreeMap::new();
        for index in 0..count {
            match nvml.device_by_index(index) {
                Ok(device) => {
                    let reading = self.gpu(nvml, &device, index);
                    if !reading.lost {
                        self.reachable.insert(index);
                        links.insert(index, link_ends(nvml, &device));
                    }
                    self.known.insert(index, reading);
                }
                Err(error) => {
                    tracing::debug!(index, %error, "no handle");
                    self.lose(index);
                }
            }
            alive();
        }
        // A GPU that is not even counted any more was there before: it is lost, not absent.
        let missing: Vec<u32> = self
            .known
            .keys()
            .copied()
            .filter(|index| *index >= count)
            .collect();
        missing.into_iter().for_each(|index| self.lose(index));
        let on_bus = pci::gpus(&self.sysfs);
        let absent = self.absent(&on_bus);
        self.connect(nvml, &links);
        alive();
        let told = self.known.len().saturating_add(absent.len());
        let seen = u32::try_from(told).unwrap_or(u32::MAX);
        let on_bus = u32::try_from(on_bus.len()).unwrap_or(u32::MAX);
        let node = NodeFacts {
            driver_version: nvml.sys_driver_version().ok(),
            cuda_version: nvml
                .sys_cuda_driver_version()
                .ok()
                .and_then(|version| u32::try_from(version).ok()),
            nvml_version: nvml.sys_nvml_version().ok(),
            devices_expected: Some(self.expected.unwrap_or(on_bus).max(seen)),
        };
        Ok(Reading {
            node,
            gpus: self.known.values().cloned().chain(absent).collect(),
        })
    }

    /// GPUs on the PCI bus that the library has not counted since this process began: lost, by their
    /// address. One that is counted but never told its address takes the first that is left over.
    fn absent(&mut self, on_bus: &[String]) -> Vec<GpuReading> {
        let told: BTreeSet<String> = self
            .known
            .values()
            .filter_map(|reading| reading.facts.pci_address.clone())
            .collect();
        let mut left = on_bus.iter().filter(|address| !told.contains(*address));
        for reading in self.known.values_mut() {
            if reading.facts.pci_address.is_none() {
                let Some(address) = left.next() else { break };
                reading.facts.pci_address = reading.lost.then(|| address.clone());
            }
        }
        let room = self.expected.map_or(usize::MAX, |expected| {
            usize::try_from(expected)
                .unwrap_or(usize::MAX)
                .saturating_sub(self.known.len())
        });
        left.take(room)
            .map(|address| GpuReading {
                facts: Facts {
                    uuid: format!("GPU-unreadable-{address}"),
                    pci_address: Some(address.clone()),
                    numa_node: numa_node(&self.sysfs, address),
                    resource_name: "nvidia.com/gpu".into(),
                    ..Facts::default()
                },
                lost: true,
                ..GpuReading::default()
            })
            .collect()
    }

    fn lose(&mut self, index: u32) {
        let reading = self.known.entry(index).or_insert_with(|| {
            let facts = Facts {
                uuid: format!("GPU-unreadable-{index}"),
                index: Some(index),
                resource_name: "nvidia.com/gpu".into(),
                ..Facts::default()
            };
            GpuReading {
                facts,
                ..GpuReading::default()
            }
        });
        reading.lost = true;
    }

    fn gpu(&self, nvml: &Nvml, device: &Device<'_>, index: u32) -> GpuReading {
        let mut getter = Getter { lost: false };
        let uuid = getter.get(device.uuid());
        let previous = self.known.get(&index);
        let mut facts = self.facts(nvml, device, &mut getter);
        if getter.lost || uuid.is_none() {
            // What was known of it stays known.
            let mut kept = previous.cloned().unwrap_or_default();
            if kept.facts.uuid.is_empty() {
                facts.uuid = uuid.unwrap_or_else(|| format!("GPU-unreadable-{index}"));
                facts.index = Some(index);
                kept.facts = facts;
            }
            kept.lost = true;
            return kept;
        }
        facts.uuid = uuid.unwrap_or_default();
        facts.index = Some(index);
        let fabric = raw::fabric(nvml, device).unwrap_or_default();
        facts.fabric = match &fabric {
            FabricReading::None => None,
            FabricReading::Pending(fabric)
            | FabricReading::Failed { fabric, .. }
            | FabricReading::Completed { fabric, .. } => Some(fabric.clone()),
        };
        facts.platform = raw::platform(nvml, device).ok();
        if let Some(platform) = &mut facts.platform
            && platform.module_id == 0
            && let Ok(module) = raw::module_id(nvml, device)
        {
            platform.module_id = module;
        }
        let partitioned = device.mig_mode().is_ok_and(|mode| mode.current == 1);
        let processes = device.running_compute_processes().ok();
        let pids = processes
            .as_ref()
            .map(|list| list.iter().map(|process| process.pid).collect());
        let slices = if partitioned {
            slices(nvml, device, &facts, processes.as_deref())
        } else {
            Vec::new()
        };
        // MIG mode without slices: nothing to hand out, and the GPU itself cannot be handed out either.
        facts.partitioned = partitioned;
        GpuReading {
            facts,
            lost: false,
            fabric,
            sram_threshold_exceeded: raw::sram_threshold_exceeded(nvml, device).ok(),
            compute_pids: pids,
            slices,
        }
    }

    fn facts(&self, nvml: &Nvml, device: &Device<'_>, getter: &mut Getter) -> Facts {
        let pci = getter.get(device.pci_info());
        let address =
            pci.map(|pci| format!("{:04x}:{:02x}:{:02x}.0", pci.domain, pci.bus, pci.device));
        let compute = getter.get(device.cuda_compute_capability());
        let (major, minor) = compute
            .map(|compute| {
                (
                    u32::try_from(compute.major).ok(),
                    u32::try_from(compute.minor).ok(),
                )
            })
            .unwrap_or_default();
        let memory = getter.get(device.memory_info());
        let rows = getter.get(raw::remapped_rows(nvml, device));
        let ecc = Memory {
            ecc_enabled: getter
                .get(device.is_ecc_enabled())
                .map(|state| state.currently_enabled),
            uncorrectable_volatile: getter
                .get(device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)),
            remap_pending: rows.map(|rows| rows.2),
            remap_failure: rows.map(|rows| rows.3),
            remapped_correctable: rows.map(|rows| rows.0),
            remapped_uncorrectable: rows.map(|rows| rows.1),
        };
        Facts {
            minor_number: getter.get(device.minor_number()),
            numa_node: address
                .as_deref()
                .and_then(|address| numa_node(&self.sysfs, address)),
            pci_address: address,
            name: getter.get(device.name()),
            architecture: major
                .zip(minor)
                .and_then(|(major, minor)| architecture(major, minor))
                .map(str::to_owned),
            compute_major: major,
            compute_minor: minor,
            memory_total_bytes: memory.as_ref().map(|memory| memory.total),
            memory_reserved_bytes: memory.as_ref().map(|memory| memory.reserved),
            memory_used_bytes: memory.as_ref().map(|memory| memory.used),
            ecc: (ecc != Memory::default()).then_some(ecc),
            recovery_action: getter.get(raw::recovery_action(nvml, device)),
            serial: getter
                .get(device.serial())
                .filter(|serial| !serial.is_empty()),
            resource_name: "nvidia.com/gpu".into(),
            ..Facts::default()
        }
    }

    /// Fills in the links between the GPUs that answered.
    fn connect(&mut self, nvml: &Nvml, links: &BTreeMap<u32, Vec<LinkEnd>>) {
        let reachable: Vec<u32> = self.reachable.iter().copied().collect();
        for index in &reachable {
            let peers = reachable
                .iter()
                .filter(|other| *other != index)
                .filter_map(|other| {
                    let facts = &self.known.get(other)?.facts;
                    Some(PeerLink {
                        uuid: facts.uuid.clone(),
                        nvlinks: nvlinks(
                            links.get(index)?,
                            links.get(other)?,
                            facts.pci_address.as_deref(),
                        ),
                        ancestor: ancestor(nvml, *index, *other).into(),
                    })
                });
            let peers: Vec<PeerLink> = peers.collect();
            if let Some(reading) = self.known.get_mut(index) {
                reading.facts.peers = peers;
            }
        }
    }
}

fn link_ends(nvml: &Nvml, device: &Device<'_>) -> Vec<LinkEnd> {
    let mut ends = Vec::new();
    for link in 0..LINKS_MAX {
        match raw::link(nvml, device, link) {
            Ok(end) => ends.push(end),
            // There is no such link.
            Err(
                NvmlError::InvalidArg | NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_),
            ) => break,
            Err(_) => ends.push(LinkEnd::Down),
        }
    }
    ends
}

/// Links from one GPU to another: direct ones, and those into the switches that both are connected to.
fn nvlinks(mine: &[LinkEnd], theirs: &[LinkEnd], their_address: Option<&str>) -> u32 {
    let switched = |ends: &[LinkEnd]| ends.iter().filter(|end| **end == LinkEnd::Switch).count();
    let direct = mine.iter().filter(|end| match end {
        LinkEnd::Device(domain, bus, device) => {
            their_address == Some(format!("{domain:04x}:{bus:02x}:{device:02x}.0").as_str())
        }
        LinkEnd::Down | LinkEnd::Switch => false,
    });
    let count = direct
        .count()
        .saturating_add(switched(mine).min(switched(theirs)));
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn ancestor(nvml: &Nvml, left: u32, right: u32) -> PcieAncestor {
    let level = nvml
        .device_by_index(left)
        .and_then(|left| left.topology_common_ancestor(nvml.device_by_index(right)?));
    match level {
        Ok(TopologyLevel::Internal) => PcieAncestor::Internal,
        Ok(TopologyLevel::Single) => PcieAncestor::SingleSwitch,
        Ok(TopologyLevel::Multiple) => PcieAncestor::MultipleSwitches,
        Ok(TopologyLevel::HostBridge) => PcieAncestor::HostBridge,
        Ok(TopologyLevel::Node) => PcieAncestor::NumaNode,
        Ok(TopologyLevel::System) => PcieAncestor::System,
        Err(_) => PcieAncestor::Unspecified,
    }
}

fn slices(
    nvml: &Nvml,
    device: &Device<'_>,
    parent: &Facts,
    processes: Option<&[nvml_wrapper::struct_wrappers::device::ProcessInfo]>,
) -> Vec<SliceReading> {
    // The count is the most there can be; holes are normal.
    let most = device.mig_device_count().unwrap_or(0).min(SLICES_MAX);
    let handles = (0..most).filter_map(|position| device.mig_device_by_index(position).ok());
    handles
        .filter_map(|slice| read_slice(nvml, &slice, parent, processes))
        .collect()
}

fn read_slice(
    nvml: &Nvml,
    slice: &Device<'_>,
    parent: &Facts,
    processes: Option<&[nvml_wrapper::struct_wrappers::device::ProcessInfo]>,
) -> Option<SliceReading> {
    // Without a UUID nobody could ask for the slice.
    let uuid = slice.uuid().ok()?;
    let (gpu_instance_id, compute_instance_id) = raw::instance_ids(nvml, slice).ok()?;
    let memory = slice.memory_info().ok();
    // The name ends in the profile: "NVIDIA A100-SXM4-40GB MIG 1g.5gb".
    let name = slice.name().unwrap_or_default();
    let profile = name
        .rsplit_once("MIG ")
        .map(|(_, profile)| profile.trim().to_owned());
    let profile = profile
        .filter(|profile| MigProfile::parse(profile).is_some())
        .or_else(|| {
            let attributes = slice.attributes().ok()?;
            let gigabytes = attributes.memory_size_mb.div_ceil(1024);
            Some(format!(
                "{}g.{gigabytes}gb",
                attributes.gpu_instance_slice_count
            ))
        })?;
    let pids = processes.map(|list| {
        let mine = list.iter().filter(|process| {
            process.gpu_instance_id == Some(gpu_instance_id)
                && process.compute_instance_id == Some(compute_instance_id)
        });
        mine.map(|process| process.pid).collect()
    });
    let facts = Facts {
        uuid,
        parent_uuid: parent.uuid.clone(),
        index: parent.index,
        minor_number: parent.minor_number,
        pci_address: parent.pci_address.clone(),
        numa_node: parent.numa_node,
        name: parent.name.clone(),
        architecture: parent.architecture.clone(),
        compute_major: parent.compute_major,
        compute_minor: parent.compute_minor,
        memory_total_bytes: memory.as_ref().map(|memory| memory.total),
        memory_reserved_bytes: memory.as_ref().map(|memory| memory.reserved),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        resource_name: slice_resource(&profile),
        mig: Some(MigSlice {
            gpu_instance_id,
            compute_instance_id,
            profile,
        }),
        ..Facts::default()
    };
    Some(SliceReading {
        facts,
        compute_pids: pids,
    })
}

/// NUMA node of a PCI device by sysfs; `None` for -1.
fn numa_node(sysfs: &Path, address: &str) -> Option<u32> {
    let path = sysfs
        .join("bus/pci/devices")
        .join(address)
        .join("numa_node");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
