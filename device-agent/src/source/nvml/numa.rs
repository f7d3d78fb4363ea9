//! The NUMA node that a GPU is at: by the kernel, else by the driver.

use std::ffi::c_ulong;
use std::path::Path;

use nvml_wrapper_sys::bindings as sys;

/// Words of a set of NUMA nodes: 512 nodes.
pub const NODE_WORDS: usize = 8;
/// Nearness by NUMA nodes, not by sockets.
pub const WHOLE_NODE: sys::nvmlAffinityScope_t = sys::NVML_AFFINITY_SCOPE_NODE;

/// The NUMA node that is all of a set of them, as the driver says it: in virtual machines sysfs often has -1.
pub fn near_memory(set: &[c_ulong]) -> Option<u32> {
    let mut words = set.iter().zip(0u32..).filter(|(word, _)| **word != 0);
    let (word, at) = words.next()?;
    (word.is_power_of_two() && words.next().is_none()).then(|| {
        at.saturating_mul(c_ulong::BITS)
            .saturating_add(word.trailing_zeros())
    })
}

/// NUMA node of a PCI device by sysfs; `None` for -1.
pub fn by_sysfs(sysfs: &Path, address: &str) -> Option<u32> {
    let path = sysfs
        .join("bus/pci/devices")
        .join(address)
        .join("numa_node");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_set_of_one_node_names_it() {
        assert_eq!(near_memory(&[1, 0]), Some(0));
        assert_eq!(near_memory(&[0, 1 << 3]), Some(c_ulong::BITS + 3));
        for unclear in [&[][..], &[0, 0], &[3, 0], &[1, 1]] {
            assert_eq!(near_memory(unclear), None);
        }
    }

    #[test]
    fn sysfs_without_a_node_names_none() {
        let sysfs = tempfile::tempdir().unwrap();
        let device = sysfs.path().join("bus/pci/devices/0000:1b:00.0");
        std::fs::create_dir_all(&device).unwrap();
        assert_eq!(by_sysfs(sysfs.path(), "0000:1b:00.0"), None);
        for (text, node) in [("1\n", Some(1)), ("-1\n", None)] {
            std::fs::write(device.join("numa_node"), text).unwrap();
            assert_eq!(by_sysfs(sysfs.path(), "0000:1b:00.0"), node);
        }
    }
}
