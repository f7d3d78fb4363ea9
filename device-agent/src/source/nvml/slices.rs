//! The MIG slices of a GPU.

use muster_proto::inventory::{Device as Facts, MigSlice};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};

use super::raw;
use super::read::Getter;
use crate::fake::slice_resource;
use crate::model::SliceReading;
use crate::profile::MigProfile;

/// MIG slices asked for per GPU.
const SLICES_MAX: u32 = 64;

/// The slices of a GPU. One that was there before stays while not everything that tells that it is gone could be read.
pub(super) fn slices(
    nvml: &Nvml,
    device: &Device<'_>,
    parent: &Facts,
    processes: Option<&[ProcessInfo]>,
    before: &[SliceReading],
    getter: &mut Getter<'_>,
) -> Vec<SliceReading> {
    let mut unsure = false;
    // The count is the most there can be; holes are normal.
    let most = getter.get(device.mig_device_count());
    unsure |= most.is_none();
    let mut found: Vec<SliceReading> = Vec::new();
    for position in 0..most.unwrap_or(0).min(SLICES_MAX) {
        match device.mig_device_by_index(position) {
            Ok(slice) => match read_slice(nvml, &slice, parent, processes, before, getter) {
                Some(reading) => found.push(reading),
                None => unsure = true,
            },
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
            Err(error) => {
                getter.failed(&error);
                unsure = true;
            }
        }
    }
    if unsure {
        for slice in before {
            let is_it = |other: &SliceReading| {
                other.facts.uuid == slice.facts.uuid || ids(other) == ids(slice)
            };
            if !found.iter().any(is_it) {
                found.push(slice.clone());
            }
        }
        found.sort_by_key(ids);
    }
    found
}

/// GPU instance and compute instance of a slice.
fn ids(slice: &SliceReading) -> Option<(u32, u32)> {
    let mig = slice.facts.mig.as_ref()?;
    Some((mig.gpu_instance_id, mig.compute_instance_id))
}

fn read_slice(
    nvml: &Nvml,
    slice: &Device<'_>,
    parent: &Facts,
    processes: Option<&[ProcessInfo]>,
    before: &[SliceReading],
    getter: &mut Getter<'_>,
) -> Option<SliceReading> {
    let uuid = getter.get(slice.uuid());
    let instance = getter.get(raw::instance_ids(nvml, slice));
    // Either name finds what was known of it.
    let known = before.iter().find(|known| match &uuid {
        Some(uuid) => known.facts.uuid == *uuid,
        None => instance.is_some() && ids(known) == instance,
    });
    // Without a UUID nobody could ask for the slice.
    let uuid = uuid.or_else(|| Some(known?.facts.uuid.clone()))?;
    let (gpu_instance_id, compute_instance_id) = instance.or_else(|| ids(known?))?;
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
        })
        .or_else(|| Some(known?.facts.mig.as_ref()?.profile.clone()))?;
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
