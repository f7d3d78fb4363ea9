//! How the GPUs of a node are connected: by NVLinks, and over PCIe.

use muster_proto::inventory::PcieAncestor;
use nvml_wrapper::enum_wrappers::device::TopologyLevel;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::raw::{self, LinkEnd};

/// NVML's present limit on links per GPU.
const LINKS_MAX: u32 = 36;

/// Where the links of a GPU lead to.
pub(super) fn link_ends(nvml: &Nvml, device: &Device<'_>, alive: &dyn Fn()) -> Vec<LinkEnd> {
    let mut ends = Vec::new();
    for link in 0..LINKS_MAX {
        alive();
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
pub(super) fn nvlinks(mine: &[LinkEnd], theirs: &[LinkEnd], their_address: Option<&str>) -> u32 {
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

pub(super) fn ancestor(nvml: &Nvml, left: u32, right: u32) -> PcieAncestor {
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
