//! Which NVIDIA GPUs the kernel sees on the PCI bus, so that one that NVML has never counted in the
//! life of this process is reported as lost and not as absent.
//!
//! A GPU that is handed to something else on purpose (vfio-pci for a virtual machine, nouveau for a
//! screen) is not expected, and neither is a virtual function.

use std::fs;
use std::path::Path;

/// NVIDIA's vendor id.
const VENDOR: &str = "0x10de";
/// Class codes of GPUs: 3D controller, and VGA controller.
const CLASSES: [&str; 2] = ["0x0302", "0x0300"];
/// Devices looked at; more than any node has.
const DEVICES_MAX: usize = 65_536;

/// PCI addresses (`0000:1b:00.0`) of the GPUs that the NVIDIA driver should have, in order.
pub fn gpus(sysfs: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(sysfs.join("bus/pci/devices")) else {
        return Vec::new();
    };
    let mut addresses: Vec<String> = entries
        .take(DEVICES_MAX)
        .filter_map(Result::ok)
        .filter(|entry| is_expected(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .map(|name| name.to_ascii_lowercase())
        .collect();
    addresses.sort();
    addresses
}

fn is_expected(device: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(device.join(name)).unwrap_or_default();
    if read("vendor").trim() != VENDOR {
        return false;
    }
    let class = read("class");
    if !CLASSES.iter().any(|wanted| class.starts_with(wanted)) {
        return false;
    }
    if device.join("physfn").exists() {
        return false;
    }
    // Without a driver it has fallen off, or could not be started: it is missed.
    fs::read_link(device.join("driver"))
        .ok()
        .and_then(|driver| Some(driver.file_name()? == "nvidia"))
        .unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::gpus;

    fn device(sysfs: &Path, address: &str, vendor: &str, class: &str, driver: Option<&str>) {
        let folder = sysfs.join("bus/pci/devices").join(address);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("vendor"), format!("{vendor}\n")).unwrap();
        fs::write(folder.join("class"), format!("{class}\n")).unwrap();
        if let Some(driver) = driver {
            let target = format!("../../../bus/pci/drivers/{driver}");
            symlink(target, folder.join("driver")).unwrap();
        }
    }

    #[test]
    fn only_gpus_that_the_nvidia_driver_should_have_are_expected() {
        let sysfs = tempfile::tempdir().unwrap();
        assert!(gpus(sysfs.path()).is_empty(), "no bus at all");
        let add = |address: &str, vendor: &str, class: &str, driver: Option<&str>| {
            device(sysfs.path(), address, vendor, class, driver);
        };
        add("0000:9c:00.0", "0x10de", "0x030200", Some("nvidia"));
        add("0000:1b:00.0", "0x10de", "0x030000", None);
        add("0000:1c:00.0", "0x10de", "0x030200", Some("vfio-pci"));
        add(
            "0000:1d:00.0",
            "0x10de",
            "0x068000",
            Some("nvidia-nvswitch"),
        );
        add("0000:1e:00.0", "0x10de", "0x040300", Some("snd_hda_intel"));
        add("0000:1f:00.0", "0x1002", "0x030200", Some("amdgpu"));
        add("0000:20:00.0", "0x10de", "0x030200", Some("nvidia"));
        fs::write(sysfs.path().join("bus/pci/devices/0000:20:00.0/physfn"), "").unwrap();
        assert_eq!(gpus(sysfs.path()), ["0000:1b:00.0", "0000:9c:00.0"]);
    }
}
