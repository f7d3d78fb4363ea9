//! One full reading through NVML. Each getter may fail for itself: it costs its field, never the GPU.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use muster_proto::inventory::{Device as Facts, Memory, NodeFacts, PeerLink};
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::PciInfo;
use nvml_wrapper::{Device, Nvml};

use super::NvmlConfig;
use super::links::{ancestor, link_ends, nvlinks};
use super::raw::{self, LinkEnd};
use super::slices::slices;
use super::{numa, pci};
use crate::model::{FabricReading, GpuReading, Reading, architecture};

/// GPUs asked for, whatever the library counts.
const GPUS_MAX: u32 = 256;

/// NVML's code for a GPU that is not there; the wrapper does not know it.
const GPU_NOT_FOUND: u32 = 28;
/// Begins the name of a GPU whose UUID was never read; its PCI address follows, or its index.
const UNREADABLE: &str = "GPU-unreadable-";

/// Reads, and remembers each GPU's last good reading, so that one that falls off the bus is still named.
pub struct Reader {
    sysfs: PathBuf,
    expected: Option<u32>,
    /// Last readings by UUID. An index is no name: once the driver is loaded anew it may stand for another GPU.
    known: BTreeMap<String, GpuReading>,
    reachable: BTreeMap<u32, String>,
}

/// What the library has at one index.
struct Seen<'nvml> {
    index: u32,
    device: Result<Device<'nvml>, NvmlError>,
    /// Its UUID, as far as it tells it. Not asked for without a handle.
    uuid: Option<Result<String, NvmlError>>,
}

impl Seen<'_> {
    /// Where it is on the PCI bus, as far as it tells it.
    fn address(&self) -> Option<String> {
        let pci = self.device.as_ref().ok()?.pci_info().ok()?;
        Some(address(&pci))
    }

    fn uuid(&self) -> Option<&String> {
        self.uuid.as_ref()?.as_ref().ok()
    }
}

/// Collects getters of one GPU and notices that it is lost.
pub(super) struct Getter<'a> {
    lost: bool,
    /// Called with each answer: a driver that answers slowly is no driver that hangs.
    alive: &'a dyn Fn(),
}

impl Getter<'_> {
    pub(super) fn get<T>(&mut self, result: Result<T, NvmlError>) -> Option<T> {
        (self.alive)();
        result.inspect_err(|error| self.failed(error)).ok()
    }

    pub(super) fn failed(&mut self, error: &NvmlError) {
        self.lost |= is_loss(error);
    }
}

/// Whether an error says that the GPU cannot be used until it is reset. Every other one says only that
/// this question was not answered.
fn is_loss(error: &NvmlError) -> bool {
    matches!(error, NvmlError::GpuLost | NvmlError::ResetRequired)
}

/// Whether an error to the question for a GPU itself (its handle, its UUID) says that the driver does not have it.
fn is_gone(error: &NvmlError) -> bool {
    is_loss(error)
        || matches!(
            error,
            NvmlError::NotFound | NvmlError::UnexpectedVariant(GPU_NOT_FOUND)
        )
}

/// Whether an error says that there is no such question, so that waiting for an answer is in vain.
fn is_unknown_here(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_)
    )
}

impl Reader {
    /// A reader that has read nothing itself, and knows what an earlier one has read last.
    pub fn new(config: &NvmlConfig, known: Option<Reading>) -> Self {
        let (sysfs, expected) = (config.sysfs.clone(), config.devices_expected);
        // GPUs that are known by their place on the bus alone are found there again.
        let known = known.into_iter().flat_map(|reading| reading.gpus);
        let known = known.filter(|gpu| !gpu.facts.uuid.starts_with(UNREADABLE));
        Self {
            sysfs,
            expected,
            known: known.map(|gpu| (gpu.facts.uuid.clone(), gpu)).collect(),
            reachable: BTreeMap::new(),
        }
    }

    /// The GPUs that answered at the last reading: UUIDs by index.
    pub fn reachable(&self) -> &BTreeMap<u32, String> {
        &self.reachable
    }

    /// Reads everything. `alive` is called with each answer, or nearly. Fails only when the library as a whole cannot be used.
    pub fn read(&mut self, nvml: &Nvml, alive: &dyn Fn()) -> Result<Reading, NvmlError> {
        let count = nvml.device_count()?.min(GPUS_MAX);
        // Who is where comes first: whoever does not tell its name must not get that of another one.
        let mut seen = Vec::new();
        for index in 0..count {
            let device = nvml.device_by_index(index);
            let uuid = device.as_ref().ok().map(Device::uuid);
            seen.push(Seen {
                index,
                device,
                uuid,
            });
            alive();
        }
        let mut taken: BTreeSet<String> = seen.iter().filter_map(Seen::uuid).cloned().collect();
        self.reachable.clear();
        let mut links = BTreeMap::new();
        let mut now = BTreeMap::new();
        for seen in &seen {
            let name = match seen.uuid() {
                Some(uuid) => uuid.clone(),
                None => self.name(seen, &taken),
            };
            taken.insert(name.clone());
            let reading = self.gpu(nvml, seen, &name, alive);
            if let Ok(device) = &seen.device
                && !reading.lost
            {
                self.reachable.insert(seen.index, name.clone());
                links.insert(seen.index, link_ends(nvml, device, alive));
            }
            now.insert(name, reading);
            alive();
        }
        self.keep_missing(&mut now);
        self.known = now;
        let on_bus = pci::gpus(&self.sysfs);
        let absent = self.absent(&on_bus);
        self.connect(nvml, &links, alive);
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
        let mut gpus: Vec<GpuReading> = self.known.values().cloned().collect();
        gpus.sort_by_key(|reading| reading.facts.index.unwrap_or(u32::MAX));
        gpus.extend(absent);
        Ok(Reading { node, gpus })
    }

    /// The name of a GPU that does not tell its UUID: that of the one that was at its place, unless that one is
    /// among `taken`; else a made-up one.
    fn name(&self, seen: &Seen<'_>, taken: &BTreeSet<String>) -> String {
        let address = seen.address();
        let free = || {
            let known = self.known.values();
            known.filter(|reading| !taken.contains(&reading.facts.uuid))
        };
        let at_address = address.as_ref().and_then(|address| {
            free().find(|reading| reading.facts.pci_address.as_ref() == Some(address))
        });
        let at_index = || {
            free().find(|reading| {
                let facts = &reading.facts;
                facts.index == Some(seen.index)
                    && (address.is_none() || facts.pci_address.is_none())
            })
        };
        match at_address.or_else(at_index) {
            Some(reading) => reading.facts.uuid.clone(),
            None => match address {
                Some(address) => format!("{UNREADABLE}{address}"),
                None => format!("{UNREADABLE}{}", seen.index),
            },
        }
    }

    /// Takes over into `now` what was known and is not there any more, as lost: a GPU that is not even counted was
    /// there before. It is dropped where another one has come to its place.
    fn keep_missing(&self, now: &mut BTreeMap<String, GpuReading>) {
        let missing: Vec<&GpuReading> = self
            .known
            .values()
            .filter(|reading| !now.contains_key(&reading.facts.uuid))
            .filter(|reading| {
                let mut new = now
                    .values()
                    .filter(|new| !self.known.contains_key(&new.facts.uuid));
                !new.any(|new| is_same_place(&reading.facts, &new.facts))
            })
            .collect();
        let mut lost: Vec<GpuReading> = missing.into_iter().cloned().collect();
        for reading in &mut lost {
            reading.lost = true;
            // Its numbers may have gone to another one.
            let facts = &mut reading.facts;
            if now.values().any(|other| other.facts.index == facts.index) {
                facts.index = None;
            }
            if now
                .values()
                .any(|other| other.facts.minor_number == facts.minor_number)
            {
                facts.minor_number = None;
            }
        }
        now.extend(
            lost.into_iter()
                .map(|reading| (reading.facts.uuid.clone(), reading)),
        );
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
        let mut known: Vec<&mut GpuReading> = self.known.values_mut().collect();
        known.sort_by_key(|reading| reading.facts.index);
        for reading in known {
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
                    uuid: format!("{UNREADABLE}{address}"),
                    pci_address: Some(address.clone()),
                    numa_node: numa::by_sysfs(&self.sysfs, address),
                    resource_name: "nvidia.com/gpu".into(),
                    ..Facts::default()
                },
                lost: true,
                ..GpuReading::default()
            })
            .collect()
    }

    /// One GPU, by the name that was found for it.
    fn gpu(&self, nvml: &Nvml, seen: &Seen<'_>, name: &str, alive: &dyn Fn()) -> GpuReading {
        let index = seen.index;
        let previous = self.known.get(name);
        // What was known of a lost one stays known.
        let lost = |facts: Facts| {
            let mut kept = previous.cloned().unwrap_or_else(|| GpuReading {
                facts: Facts {
                    uuid: name.to_owned(),
                    resource_name: "nvidia.com/gpu".into(),
                    ..facts
                },
                ..GpuReading::default()
            });
            kept.facts.index = Some(index);
            kept.lost = true;
            kept
        };
        let named = previous.filter(|reading| !reading.facts.uuid.starts_with(UNREADABLE));
        let device = match (&seen.device, named) {
            (Ok(device), _) => device,
            (Err(error), Some(named)) if !is_gone(error) && !named.lost => {
                tracing::debug!(index, %error, "no handle for now");
                let mut kept = named.clone();
                kept.facts.index = Some(index);
                kept.unreadable = true;
                return kept;
            }
            (Err(error), _) => {
                tracing::debug!(index, %error, "no handle");
                return lost(Facts::default());
            }
        };
        let mut getter = Getter { lost: false, alive };
        let mut facts = self.facts(nvml, device, previous, &mut getter);
        match &seen.uuid {
            Some(Err(error)) if is_gone(error) || named.is_none() => return lost(facts),
            _ => {}
        }
        facts.uuid = name.to_owned();
        facts.index = Some(index);
        let fabric = raw::fabric(nvml, device).unwrap_or_else(|error| {
            getter.failed(&error);
            if is_unknown_here(&error) {
                FabricReading::None
            } else {
                named.map(|named| named.fabric.clone()).unwrap_or_default()
            }
        });
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
        let (partitioned, unreadable) = match device.mig_mode() {
            Ok(mode) => (mode.current == 1, false),
            Err(error) => {
                getter.failed(&error);
                match named {
                    // A GPU that has no such mode is whole, whatever could not be read before.
                    Some(named) => {
                        let unreadable = named.unreadable && !is_unknown_here(&error);
                        (named.facts.partitioned, unreadable)
                    }
                    // Is it whole? It is not offered as such before that is known.
                    None => (false, !is_unknown_here(&error)),
                }
            }
        };
        let processes = getter.get(device.running_compute_processes());
        let pids = processes
            .as_ref()
            .map(|list| list.iter().map(|process| process.pid).collect());
        let slices = if partitioned {
            let before = named.map_or(&[][..], |named| &named.slices);
            slices(
                nvml,
                device,
                &facts,
                processes.as_deref(),
                before,
                &mut getter,
            )
        } else {
            Vec::new()
        };
        let sram_threshold_exceeded = getter.get(raw::sram_threshold_exceeded(nvml, device));
        if getter.lost {
            return lost(facts);
        }
        // MIG mode without slices: nothing to hand out, and the GPU itself cannot be handed out either.
        facts.partitioned = partitioned;
        GpuReading {
            facts,
            lost: false,
            unreadable,
            fabric,
            sram_threshold_exceeded,
            compute_pids: pids,
            slices,
        }
    }

    /// The facts of a GPU. Those by which others find it are as before where they cannot be read.
    fn facts(
        &self,
        nvml: &Nvml,
        device: &Device<'_>,
        previous: Option<&GpuReading>,
        getter: &mut Getter<'_>,
    ) -> Facts {
        let before = previous.map(|previous| &previous.facts);
        let address = getter
            .get(device.pci_info())
            .map(|pci| address(&pci))
            .or_else(|| before?.pci_address.clone());
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
            minor_number: getter
                .get(device.minor_number())
                .or_else(|| before?.minor_number),
            numa_node: address
                .as_deref()
                .and_then(|address| numa::by_sysfs(&self.sysfs, address))
                .or_else(|| {
                    let set = device.memory_affinity(numa::NODE_WORDS, numa::WHOLE_NODE);
                    numa::near_memory(&getter.get(set)?)
                }),
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
    fn connect(&mut self, nvml: &Nvml, links: &BTreeMap<u32, Vec<LinkEnd>>, alive: &dyn Fn()) {
        for (index, name) in &self.reachable {
            let others = self.reachable.iter().filter(|(other, _)| *other != index);
            let peers = others.filter_map(|(other, name)| {
                let facts = &self.known.get(name)?.facts;
                alive();
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
            if let Some(reading) = self.known.get_mut(name) {
                reading.facts.peers = peers;
            }
        }
    }
}

/// Whether a GPU that has just come is where another one was.
fn is_same_place(old: &Facts, new: &Facts) -> bool {
    let same_index = old.index.is_some() && old.index == new.index;
    match (&old.pci_address, &new.pci_address) {
        (Some(old), Some(new)) if old == new => true,
        // The address of one that was never named is a guess.
        (Some(_), Some(_)) => old.uuid.starts_with(UNREADABLE) && same_index,
        _ => same_index,
    }
}

fn address(pci: &PciInfo) -> String {
    format!("{:04x}:{:02x}:{:02x}.0", pci.domain, pci.bus, pci.device)
}
