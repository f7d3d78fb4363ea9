//! `muster-agent inspect`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use muster_agent::clock::WallClock;
use muster_agent::fake::FakeNode;
use muster_agent::health::table::{Table, action_word};
use muster_agent::kubelet::KubeletState;
use muster_agent::node::NodeState;
use muster_agent::podresources;
use muster_agent::report::NodeView;
use muster_agent::source::Update;
use muster_agent::source::nvml::{NvmlConfig, read_once};
use muster_proto::inventory::Device;
use serde_json::{Value, json};

use super::{FakeArgs, SourceKind};

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Where devices come from.
    #[arg(long, value_enum, default_value_t = SourceKind::Nvml)]
    source: SourceKind,
    #[command(flatten)]
    fake: FakeArgs,
    /// Name of the node; decides the UUIDs of fake devices.
    #[arg(long, value_name = "NAME", env = "NODE_NAME", default_value = "node-0")]
    node_name: String,
    /// With --scenario: show the devices as they are at this time of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    at: f64,
    /// The kubelet's PodResources socket; without it nobody is asked who holds what.
    #[arg(long, value_name = "SOCKET")]
    pod_resources_socket: Option<PathBuf>,
    /// The driver's library, where the loader does not find libnvidia-ml.so.1 by itself.
    #[arg(long, value_name = "FILE")]
    nvml_library: Option<PathBuf>,
    /// Where sysfs is mounted: it tells which GPUs are on the PCI bus, and near which CPUs.
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    sysfs: PathBuf,
    /// What to print.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// What to print.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// One line per device.
    Table,
    /// Everything.
    Json,
}

/// Reads once and prints.
pub async fn inspect(args: InspectArgs) -> Result<ExitCode> {
    let reading = match args.source {
        SourceKind::Fake => {
            let (profile, scenario) = args.fake.load()?;
            let mut node = FakeNode::new(profile.shape_for(&args.node_name), &args.node_name);
            let timeline = scenario
                .map(|scenario| scenario.for_node(&args.node_name))
                .unwrap_or_default();
            for (_, fault) in timeline
                .iter()
                .filter(|(at, _)| at.as_secs_f64() <= args.at)
            {
                node.apply(fault);
            }
            node.reading()
        }
        SourceKind::Nvml => {
            let library = args.nvml_library.map(PathBuf::into_os_string);
            read_once(&NvmlConfig {
                library,
                sysfs: args.sysfs,
                ..NvmlConfig::default()
            })
            .context("cannot read GPUs through NVML (no NVIDIA driver here? try --source fake)")?
        }
    };
    let kubelet = match &args.pod_resources_socket {
        Some(socket) => podresources::ask(socket).await?,
        None => KubeletState::default(),
    };
    let mut state = NodeState::new(Table::embedded()?, WallClock::system());
    state.update(Update::Reading(Arc::new(reading)));
    let view = state.publish(&kubelet);
    let text = match args.output {
        Output::Table => table(&view),
        Output::Json => format!("{:#}\n", to_json(&view)),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn in_order(view: &NodeView) -> Vec<&Device> {
    let mut devices: Vec<&Device> = view.devices.values().map(AsRef::as_ref).collect();
    devices.sort_by_key(|device| {
        let slice = device
            .mig
            .as_ref()
            .map(|mig| (mig.gpu_instance_id, mig.compute_instance_id));
        (device.index, slice, device.uuid.clone())
    });
    devices
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

fn table(view: &NodeView) -> String {
    let mut rows = vec![
        [
            "GPU",
            "UUID",
            "NAME",
            "MEMORY MiB",
            "PCI",
            "NUMA",
            "NVLINK",
            "HEALTH",
            "RESOURCE",
            "HELD BY",
        ]
        .map(str::to_owned),
    ];
    for device in in_order(view) {
        let links = device
            .peers
            .iter()
            .map(|peer| peer.nvlinks)
            .max()
            .filter(|links| *links > 0);
        let health = device
            .health()
            .as_str_name()
            .trim_start_matches("HEALTH_")
            .to_lowercase();
        let health = if device.health_reason.is_empty() {
            health
        } else {
            format!("{health} ({})", device.health_reason)
        };
        let mut held: Vec<String> = device
            .holders
            .iter()
            .map(|holder| format!("{}/{}", holder.namespace, holder.pod))
            .collect();
        held.dedup();
        let resource = if device.partitioned {
            "(in slices)"
        } else {
            &device.resource_name
        };
        let name = match &device.mig {
            Some(mig) => format!(
                "  MIG {} gi {} ci {}",
                mig.profile, mig.gpu_instance_id, mig.compute_instance_id
            ),
            None => text(device.name.as_ref()),
        };
        rows.push([
            text(device.index),
            device.uuid.clone(),
            name,
            text(device.memory_total_bytes.map(|bytes| bytes >> 20)),
            text(device.pci_address.as_ref()),
            text(device.numa_node),
            text(links),
            health,
            resource.to_owned(),
            if held.is_empty() {
                "-".into()
            } else {
                held.join(",")
            },
        ]);
    }
    let widths: Vec<usize> = (0..10)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(String::len)
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut out = format!(
        "driver {}  CUDA {}  NVML {}  devices {}\n",
        text(view.node.driver_version.as_ref()),
        text(view.node.cuda_version),
        text(view.node.nvml_version.as_ref()),
        text(view.node.devices_expected),
    );
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

fn to_json(view: &NodeView) -> Value {
    json!({
        "driverVersion": view.node.driver_version,
        "cudaVersion": view.node.cuda_version,
        "nvmlVersion": view.node.nvml_version,
        "devicesExpected": view.node.devices_expected,
        "kubeletKnown": view.kubelet.known,
        "devices": in_order(view).into_iter().map(device_json).collect::<Vec<_>>(),
    })
}

fn device_json(device: &Device) -> Value {
    let facts = json!({
        "uuid": device.uuid,
        "health": device.health().as_str_name().trim_start_matches("HEALTH_").to_lowercase(),
        "healthReason": device.health_reason,
        "healthDetail": device.health_detail,
        "parentUuid": device.parent_uuid,
        "partitioned": device.partitioned,
        "index": device.index,
        "minorNumber": device.minor_number,
        "pciAddress": device.pci_address,
        "numaNode": device.numa_node,
        "name": device.name,
        "serial": device.serial,
        "architecture": device.architecture,
        "computeCapability": device.compute_major.zip(device.compute_minor).map(|(major, minor)| format!("{major}.{minor}")),
        "memoryTotalBytes": device.memory_total_bytes,
        "memoryReservedBytes": device.memory_reserved_bytes,
        "memoryUsedBytes": device.memory_used_bytes,
        "recoveryAction": device.recovery_action.map(|_| action_word(device.recovery_action())),
        "resourceName": device.resource_name,
        "leaked": device.leaked,
    });
    let nested = json!({
        "mig": device.mig.as_ref().map(|mig| json!({
            "gpuInstanceId": mig.gpu_instance_id, "computeInstanceId": mig.compute_instance_id, "profile": mig.profile,
        })),
        "memoryErrors": device.ecc.as_ref().map(|ecc| json!({
            "eccEnabled": ecc.ecc_enabled, "uncorrectableVolatile": ecc.uncorrectable_volatile,
            "remapPending": ecc.remap_pending, "remapFailure": ecc.remap_failure,
            "remappedCorrectable": ecc.remapped_correctable, "remappedUncorrectable": ecc.remapped_uncorrectable,
        })),
        "fabric": device.fabric.as_ref().map(|fabric| json!({
            "clusterUuid": fabric.cluster_uuid, "cliqueId": fabric.clique_id, "completed": fabric.completed,
        })),
        "platform": device.platform.as_ref().map(|platform| json!({
            "chassisSerial": platform.chassis_serial, "slot": platform.slot, "tray": platform.tray,
            "hostId": platform.host_id, "moduleId": platform.module_id,
        })),
        "peers": device.peers.iter().map(|peer| json!({
            "uuid": peer.uuid, "nvlinks": peer.nvlinks,
            "ancestor": peer.ancestor().as_str_name().trim_start_matches("PCIE_ANCESTOR_").to_lowercase(),
        })).collect::<Vec<_>>(),
        "holders": device.holders.iter().map(|holder| json!({
            "namespace": holder.namespace, "pod": holder.pod, "container": holder.container,
        })).collect::<Vec<_>>(),
    });
    match (facts, nested) {
        (Value::Object(mut facts), Value::Object(nested)) => {
            facts.extend(nested);
            Value::Object(facts)
        }
        (facts, _) => facts,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use muster_agent::clock::WallClock;
    use muster_agent::fake::FakeNode;
    use muster_agent::health::table::Table;
    use muster_agent::kubelet::KubeletState;
    use muster_agent::node::NodeState;
    use muster_agent::profile::Profile;
    use muster_agent::source::Update;

    #[tokio::test]
    async fn slices_are_shown_under_their_gpu() {
        let profile = Profile::load("a100-8-mig").unwrap();
        let node = FakeNode::new(profile.shape_for("n"), "n");
        let mut state = NodeState::new(Table::embedded().unwrap(), WallClock::starting_at(0));
        state.update(Update::Reading(Arc::new(node.reading())));
        let view = state.publish(&KubeletState::default());
        let lines: Vec<String> = super::table(&view).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 2 + 8 + 48);
        assert!(
            lines[2].contains("(in slices)") && lines[3].contains("MIG 1g.5gb gi 1"),
            "{lines:#?}"
        );
        let json = super::to_json(&view);
        assert_eq!(json["devices"][1]["parentUuid"], json["devices"][0]["uuid"]);
    }
}
