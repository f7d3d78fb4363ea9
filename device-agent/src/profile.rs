//! Profile files: what the devices of a fake node look like.
//!
//! ```text
//! profiles/h100-8.toml --parse--> Profile { shapes: [Shape] } --shape_for(node name)--> Shape
//!                                                                  |
//!                                     fake::FakeNode (state) <-----+
//! ```
//! A profile has one or more node shapes; a node gets its shape by its name, so that a pool of mixed
//! nodes is the same in every run. Parsing is strict: an unknown key or a value out of its limits is
//! an error that names the key. The profiles of the `profiles/` folder are part of the binary and are found by name.

use std::path::Path;

use serde::Deserialize;

use crate::hash::hash64;

/// Profiles that are part of the binary, by name.
const EMBEDDED: &[(&str, &str)] = &[
    ("h100-8", include_str!("../profiles/h100-8.toml")),
    ("a100-8", include_str!("../profiles/a100-8.toml")),
    ("a100-8-mig", include_str!("../profiles/a100-8-mig.toml")),
    ("l40s-4", include_str!("../profiles/l40s-4.toml")),
    ("gb200-4", include_str!("../profiles/gb200-4.toml")),
    ("mixed", include_str!("../profiles/mixed.toml")),
];

/// Most GPUs a fake node may have; the same limit as NVML's on real hardware leaves room.
pub const GPUS_PER_NODE_MAX: u32 = 64;

/// Why a profile or scenario cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path as given.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Not the wanted TOML: syntax, unknown key, wrong type.
    #[error("{name}: {message}")]
    Parse {
        /// Name or path of the file.
        name: String,
        /// What the parser says; names the key and the line.
        message: String,
    },
    /// A value is outside its limits.
    #[error("{name}: {field} is {value}, must be {limit}")]
    Value {
        /// Name or path of the file.
        name: String,
        /// Key, with its place in the file.
        field: String,
        /// Value as written.
        value: String,
        /// What is allowed.
        limit: String,
    },
}

impl FileError {
    pub(crate) fn value(
        name: &str,
        field: impl Into<String>,
        value: impl ToString,
        limit: impl Into<String>,
    ) -> Self {
        Self::Value {
            name: name.into(),
            field: field.into(),
            value: value.to_string(),
            limit: limit.into(),
        }
    }
}

/// One or more node shapes under one name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name of the profile.
    pub name: String,
    /// Shapes; at least one.
    pub shapes: Vec<Shape>,
}

/// What one kind of node has.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Name of the shape.
    pub name: String,
    /// Share of a mixed pool; 1 to 1000.
    #[serde(default = "one")]
    pub weight: u32,
    /// GPUs of the node; 0 to [`GPUS_PER_NODE_MAX`].
    pub count: u32,
    /// For example "580.95.05".
    pub driver_version: String,
    /// For example "13.580.95.05".
    pub nvml_version: String,
    /// 13000 for CUDA 13.0.
    pub cuda_version: u32,
    /// Domain:bus:device.function of each GPU, as many as `count`.
    pub pci_addresses: Vec<String>,
    /// NUMA node of each GPU, as many as `count`; -1 when the kernel does not know.
    pub numa_nodes: Vec<i32>,
    /// The GPU model.
    pub gpu: GpuModel,
    /// NVLink through switches; absent for PCIe only.
    pub nvlink: Option<NvLink>,
    /// Fabric registration; absent where the platform has none.
    pub fabric: Option<FabricShape>,
    /// MIG slices of each GPU, for example "1g.10gb"; layouts are used in turn. Empty: MIG is off.
    #[serde(default)]
    pub mig_layouts: Vec<Vec<String>>,
    /// Kubernetes resource name of whole GPUs.
    #[serde(default = "gpu_resource")]
    pub resource_name: String,
}

/// One GPU product.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuModel {
    /// Name as the driver reports it.
    pub product: String,
    /// PCI device id, four hex digits; the vendor is 10de.
    pub pci_device_id: String,
    /// Compute capability, major and minor.
    pub compute: (u32, u32),
    /// Device memory, MiB.
    pub memory_total_mib: u64,
    /// Part of it that the driver keeps, MiB.
    pub memory_reserved_mib: u64,
    /// Default power limit, watts.
    pub power_limit_w: u32,
    /// PCIe generation.
    pub pcie_generation: u32,
    /// Banks with spare rows; absent where rows cannot be remapped.
    pub row_remapper_banks: Option<u32>,
    /// Whether ECC is on.
    pub ecc: bool,
    /// Whether the product can be cut into MIG slices.
    pub mig_capable: bool,
}

/// NVLink of each GPU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NvLink {
    /// Active links per GPU; 1 to 36.
    pub links: u32,
    /// NVML's version code: 5 is NVLink 3.1, 6 is 4.0, 7 is 5.0.
    pub version_code: u32,
}

/// Fabric registration of the node's GPUs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FabricShape {
    /// "completed", "in-progress" or "not-started".
    pub state: FabricStateName,
    /// NVLink clique.
    #[serde(default)]
    pub clique_id: u32,
    /// Nodes that share one cluster UUID; 0 when the domain ends at the node (the UUID is then all zero).
    #[serde(default)]
    pub nodes_per_domain: u32,
    /// Whether the platform reports rack positions.
    #[serde(default)]
    pub platform: bool,
}

/// How far the registration with the fabric has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FabricStateName {
    /// The GPU can use the fabric.
    Completed,
    /// Not yet.
    InProgress,
    /// The fabric manager has not begun.
    NotStarted,
}

fn one() -> u32 {
    1
}

fn gpu_resource() -> String {
    "nvidia.com/gpu".into()
}

impl Profile {
    /// Names of the profiles that are part of the binary.
    pub fn embedded_names() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    /// Loads a profile by embedded name, or from a file when no embedded profile has that name.
    pub fn load(name_or_path: &str) -> Result<Self, FileError> {
        if let Some((name, text)) = EMBEDDED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::parse(name, text);
        }
        let text = read(name_or_path, "profile", || {
            Self::embedded_names().collect::<Vec<_>>().join(", ")
        })?;
        Self::parse(name_or_path, &text)
    }

    /// Parses the text of a profile file; `name` is used in errors.
    pub fn parse(name: &str, text: &str) -> Result<Self, FileError> {
        let profile: Self = toml::from_str(text).map_err(|error| FileError::Parse {
            name: name.into(),
            message: error.to_string().trim().into(),
        })?;
        if profile.shapes.is_empty() {
            return Err(FileError::value(name, "shapes", "empty", "at least one"));
        }
        for shape in &profile.shapes {
            shape.check(name)?;
        }
        Ok(profile)
    }

    /// The shape of a node: by weight, decided by the name alone.
    pub fn shape_for(&self, node_name: &str) -> &Shape {
        let total: u64 = self
            .shapes
            .iter()
            .map(|shape| u64::from(shape.weight))
            .sum();
        let mut left = hash64(3, node_name.as_bytes()) % total.max(1);
        let mut chosen = self.shapes.first();
        for shape in &self.shapes {
            chosen = Some(shape);
            let weight = u64::from(shape.weight);
            if left < weight {
                break;
            }
            left -= weight;
        }
        // `parse` refuses a profile without shapes; a hand-made one gets an empty node.
        chosen.unwrap_or(&EMPTY_SHAPE)
    }
}

static EMPTY_SHAPE: std::sync::LazyLock<Shape> = std::sync::LazyLock::new(|| Shape {
    name: "empty".into(),
    weight: 1,
    count: 0,
    driver_version: String::new(),
    nvml_version: String::new(),
    cuda_version: 0,
    pci_addresses: Vec::new(),
    numa_nodes: Vec::new(),
    gpu: GpuModel {
        product: String::new(),
        pci_device_id: "0000".into(),
        compute: (0, 0),
        memory_total_mib: 0,
        memory_reserved_mib: 0,
        power_limit_w: 0,
        pcie_generation: 0,
        row_remapper_banks: None,
        ecc: false,
        mig_capable: false,
    },
    nvlink: None,
    fabric: None,
    mig_layouts: Vec::new(),
    resource_name: gpu_resource(),
});

impl Shape {
    fn check(&self, file: &str) -> Result<(), FileError> {
        let at = |key: &str| format!("shapes.{}.{key}", self.name);
        if self.count > GPUS_PER_NODE_MAX {
            return Err(FileError::value(
                file,
                at("count"),
                self.count,
                format!("at most {GPUS_PER_NODE_MAX}"),
            ));
        }
        if !(1..=1000).contains(&self.weight) {
            return Err(FileError::value(
                file,
                at("weight"),
                self.weight,
                "1 to 1000",
            ));
        }
        let count = self.count as usize;
        if self.pci_addresses.len() != count {
            return Err(FileError::value(
                file,
                at("pci_addresses"),
                self.pci_addresses.len(),
                format!("{count} entries, one per GPU"),
            ));
        }
        if self.numa_nodes.len() != count {
            return Err(FileError::value(
                file,
                at("numa_nodes"),
                self.numa_nodes.len(),
                format!("{count} entries, one per GPU"),
            ));
        }
        for address in &self.pci_addresses {
            if parse_pci(address).is_none() {
                return Err(FileError::value(
                    file,
                    at("pci_addresses"),
                    address,
                    "of the form 0000:18:00.0, hex",
                ));
            }
        }
        if u16::from_str_radix(&self.gpu.pci_device_id, 16).is_err() {
            return Err(FileError::value(
                file,
                at("gpu.pci_device_id"),
                &self.gpu.pci_device_id,
                "four hex digits",
            ));
        }
        if self.gpu.memory_total_mib > 1 << 24 {
            return Err(FileError::value(
                file,
                at("gpu.memory_total_mib"),
                self.gpu.memory_total_mib,
                "at most 16777216 (16 TiB)",
            ));
        }
        if self.gpu.memory_reserved_mib > self.gpu.memory_total_mib {
            return Err(FileError::value(
                file,
                at("gpu.memory_reserved_mib"),
                self.gpu.memory_reserved_mib,
                "at most memory_total_mib",
            ));
        }
        if let Some(nvlink) = &self.nvlink
            && !(1..=36).contains(&nvlink.links)
        {
            return Err(FileError::value(
                file,
                at("nvlink.links"),
                nvlink.links,
                "1 to 36",
            ));
        }
        if !self.mig_layouts.is_empty() && !self.gpu.mig_capable {
            return Err(FileError::value(
                file,
                at("mig_layouts"),
                self.mig_layouts.len(),
                "empty when gpu.mig_capable is false",
            ));
        }
        for slice in self.mig_layouts.iter().flatten() {
            if MigProfile::parse(slice).is_none() {
                return Err(FileError::value(
                    file,
                    at("mig_layouts"),
                    slice,
                    "of the form 1g.10gb",
                ));
            }
        }
        for layout in &self.mig_layouts {
            let slices: u32 = layout
                .iter()
                .filter_map(|text| MigProfile::parse(text))
                .map(|slice| slice.slices)
                .sum();
            if slices > 7 {
                return Err(FileError::value(
                    file,
                    at("mig_layouts"),
                    slices,
                    "at most 7 slices per GPU",
                ));
            }
        }
        Ok(())
    }
}

/// A MIG profile name taken apart: "3g.20gb" has 3 slices and 20 GB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigProfile {
    /// Compute slices, 1 to 7.
    pub slices: u32,
    /// Memory, decimal GB as in the name.
    pub memory_gb: u32,
}

impl MigProfile {
    /// Reads "1g.10gb" (also "1g.10gb+me").
    pub fn parse(text: &str) -> Option<Self> {
        let (slices, rest) = text.split_once("g.")?;
        let (memory, _) = rest.split_once("gb")?;
        let slices = slices
            .parse()
            .ok()
            .filter(|slices| (1..=7).contains(slices))?;
        let memory_gb = memory
            .parse()
            .ok()
            .filter(|memory| (1..=1024).contains(memory))?;
        Some(Self { slices, memory_gb })
    }
}

/// Domain, bus, device, function of "0000:18:00.0".
pub fn parse_pci(text: &str) -> Option<(u32, u32, u32, u32)> {
    let mut parts = text.split([':', '.']);
    let mut next = |width: usize| {
        parts
            .next()
            .filter(|part| !part.is_empty() && part.len() <= width)
            .and_then(|part| u32::from_str_radix(part, 16).ok())
    };
    let address = (next(8)?, next(2)?, next(2)?, next(1)?);
    parts.next().is_none().then_some(address)
}

pub(crate) fn read(
    path: &str,
    kind: &str,
    known: impl Fn() -> String,
) -> Result<String, FileError> {
    std::fs::read_to_string(Path::new(path)).map_err(|source| {
        let path = if path.contains(['/', '.']) {
            path.to_owned()
        } else {
            format!("{kind} \"{path}\" (embedded ones: {})", known())
        };
        FileError::Read { path, source }
    })
}

#[cfg(test)]
mod tests {
    use super::{MigProfile, Profile, parse_pci};

    #[test]
    fn embedded_profiles_parse_under_their_names() {
        for name in Profile::embedded_names() {
            let profile = Profile::load(name).expect(name);
            assert_eq!(profile.name, name);
        }
        assert_eq!(Profile::load("mixed").unwrap().shapes.len(), 5);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let text = include_str!("../profiles/l40s-4.toml")
            .replace("count = 4", "count = 4\ncolour = \"red\"");
        let error = Profile::parse("x.toml", &text).unwrap_err().to_string();
        assert!(
            error.contains("x.toml") && error.contains("colour"),
            "{error}"
        );
    }

    #[test]
    fn values_out_of_limits_are_named() {
        let base = include_str!("../profiles/l40s-4.toml");
        for (from, to, field) in [
            ("count = 4", "count = 400", "count"),
            ("count = 4", "count = 3", "pci_addresses"),
            ("\"26b9\"", "\"zz\"", "pci_device_id"),
            (
                "reserved_mib = 609",
                "reserved_mib = 60900",
                "memory_reserved_mib",
            ),
            ("0000:26:00.0", "26:00", "pci_addresses"),
        ] {
            let error = Profile::parse("p", &base.replace(from, to))
                .unwrap_err()
                .to_string();
            assert!(error.contains(field), "{to}: {error}");
        }
    }

    #[test]
    fn a_missing_file_names_the_embedded_ones() {
        let error = Profile::load("h100-9").unwrap_err().to_string();
        assert!(
            error.contains("h100-9") && error.contains("gb200-4"),
            "{error}"
        );
    }

    #[test]
    fn a_mixed_pool_uses_every_shape_in_about_its_share() {
        let profile = Profile::load("mixed").unwrap();
        let h100 = (0..1000)
            .filter(|n| profile.shape_for(&format!("node-{n}")).name == "h100-8")
            .count();
        assert!((300..500).contains(&h100), "{h100}");
    }

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(
            MigProfile::parse("3g.20gb"),
            Some(MigProfile {
                slices: 3,
                memory_gb: 20
            })
        );
        assert_eq!(MigProfile::parse("9g.20gb"), None);
        assert_eq!(parse_pci("0008:01:00.0"), Some((8, 1, 0, 0)));
        assert_eq!(parse_pci("18:00.0"), None);
    }
}
