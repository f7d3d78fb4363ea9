//! One agent on a node with 8 GPUs: `muster-agent run` over the fake NVML library, a PCI bus in files, a kubelet that
//! is played here, and a scheduler over TLS. The library runs in the agent's process, so its work counts too.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use muster_agent::podresources::{FakeKubelet, FakeKubeletState};
use muster_embedded::value;
use muster_proto::podresources::{ContainerDevices, ContainerResources, PodResources};
use serde_json::Value;

use super::figures::{Report, mib};
use super::objects::{self, GPUS};
use super::world::{Scheduler, World};
use super::{flood, process};
use crate::http::metric;
use crate::programs::Programs;

/// The node.
const NODE: &str = "gpu-0";
/// Resource of its devices.
const GPU: &str = "nvidia.com/gpu";
/// Pods on the node without devices, as the kubelet lists them too.
const OTHER_PODS: usize = 20;
/// Devices on the PCI bus that are no GPUs.
const OTHER_DEVICES: usize = 120;
/// Longest wait for the node's report.
const REPORTED_MAX: Duration = Duration::from_secs(60);
/// Rest after the first report.
const REST: Duration = Duration::from_secs(15);

/// Measures over so many seconds.
pub async fn measure(programs: &Programs, seconds: u64) -> anyhow::Result<Report> {
    let world = World::start(programs).await?;
    world.cluster.create(objects::node(NODE))?;
    let library = library(programs)?;
    let devices = devices(&world, &library)?;
    let sysfs = bus(&world, &devices)?;
    let socket = world.file("kubelet.sock");
    let kubelet = FakeKubelet::start(&socket, kubelet(&devices))?;
    let token = world.file("token");
    std::fs::write(&token, world.cluster.mint_node_token(NODE))?;
    let mut scheduler = world.scheduler("").await?;
    let (url, authority) = (flood::url(&scheduler), world.authority.ca());
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path");
    let (library, socket, sysfs) = (text(&library)?, text(&socket)?, text(&sysfs)?);
    let (token, authority) = (text(&token)?, text(&authority)?);
    let arguments = [
        "run",
        "--source",
        "nvml",
        "--node-name",
        NODE,
        "--scheduler",
        &url,
        "--ca-file",
        &authority,
        "--token-file",
        &token,
        "--nvml-library",
        &library,
        "--pod-resources-socket",
        &socket,
        "--sysfs",
        &sysfs,
    ];
    let mut agent = world.agent(&arguments, &[("MUSTER_FAKE_NVML_NODE", NODE)])?;
    let reported = |page: &str| metric(page, "muster_nodes_reported") >= 1.0;
    scheduler
        .until("the node's report", REPORTED_MAX, reported)
        .await?;
    tokio::time::sleep(REST).await;
    let said = metric(&scheduler.metrics().await?, "muster_agent_messages_total");
    let cost = process::watch(&mut agent, Duration::from_secs(seconds)).await?;
    let page = scheduler.metrics().await?;
    let messages = metric(&page, "muster_agent_messages_total") - said;
    ensure!(
        messages >= seconds as f64 / 20.0,
        "the agent said {messages} messages"
    );
    check(&scheduler).await?;
    let peak = agent.usage()?.rss_peak_bytes;
    drop(kubelet);
    let mut report = Report::new(&[("gpus", u64::from(GPUS)), ("seconds", seconds)]);
    report.hold(
        "processor time, thousandths of a core",
        cost.cores * 1e3,
        "m",
        20.0,
        5.0,
    );
    report.hold("memory", mib(cost.rss_bytes), "MiB", 32.0, 16.0);
    report.tell("memory at most", mib(peak), "MiB");
    world.stop().await;
    Ok(report)
}

/// The fake library beside the agent, or beside this program, whose build makes it.
fn library(programs: &Programs) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("path of this program")?;
    let folders = [programs.agent.parent(), own.parent()];
    let places = folders.into_iter().flatten().flat_map(|folder| {
        ["libnvidia_ml.so", "deps/libnvidia_ml.so"].map(|name| folder.join(name))
    });
    let mut found = places.filter(|place| place.is_file());
    found.next().context(
        "no libnvidia_ml.so beside muster-agent or this program: cargo build --release -p muster-fake-nvml",
    )
}

/// UUID and PCI address of each device, as the agent itself sees them through the library.
fn devices(world: &World, library: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let seen = Command::new(&world.programs.agent)
        .args([
            "inspect",
            "--output",
            "json",
            "--sysfs",
            "/dev/null",
            "--nvml-library",
        ])
        .arg(library)
        .env("MUSTER_FAKE_NVML_NODE", NODE)
        .output()?;
    if !seen.status.success() {
        bail!(
            "muster-agent inspect: {}",
            String::from_utf8_lossy(&seen.stderr)
        );
    }
    let seen: Value = serde_json::from_slice(&seen.stdout)?;
    let of = |device: &Value| {
        let text = |key: &str| Some(device.get(key)?.as_str()?.to_owned());
        Some((text("uuid")?, text("pciAddress")?))
    };
    let listed = value::items(&seen, &["devices"]).iter();
    let devices: Vec<_> = listed.filter_map(of).collect();
    ensure!(
        devices.len() == GPUS as usize,
        "the library has {} GPUs",
        devices.len()
    );
    Ok(devices)
}

/// A sysfs with these GPUs and other devices on the PCI bus.
fn bus(world: &World, devices: &[(String, String)]) -> anyhow::Result<PathBuf> {
    let sysfs = world.file("sys");
    let gpus = devices
        .iter()
        .map(|(_, address)| (address.clone(), "0x10de", "0x030200"));
    let others =
        (0..OTHER_DEVICES).map(|number| (format!("0001:{number:02x}:00.0"), "0x8086", "0x060400"));
    for (address, vendor, class) in gpus.chain(others) {
        let folder = sysfs.join("bus/pci/devices").join(address);
        std::fs::create_dir_all(&folder)?;
        for (file, text) in [("vendor", vendor), ("class", class), ("numa_node", "0")] {
            std::fs::write(folder.join(file), format!("{text}\n"))?;
        }
    }
    Ok(sysfs)
}

/// A kubelet that offers all devices; four pods hold two each.
fn kubelet(devices: &[(String, String)]) -> FakeKubeletState {
    let ids: Vec<String> = devices.iter().map(|(uuid, _)| uuid.clone()).collect();
    let resource = |device_ids: Vec<String>| ContainerDevices {
        resource_name: GPU.into(),
        device_ids,
        topology: None,
    };
    let pod = |name: String, devices: Vec<ContainerDevices>| PodResources {
        name,
        namespace: "default".into(),
        containers: vec![ContainerResources {
            name: "main".into(),
            devices,
            ..ContainerResources::default()
        }],
    };
    let mut state = FakeKubeletState::default();
    let holders = ids.chunks(2).enumerate();
    let holders =
        holders.map(|(at, held)| pod(format!("train-{at}"), vec![resource(held.to_vec())]));
    let others = (0..OTHER_PODS).map(|at| pod(format!("other-{at}"), Vec::new()));
    state.pods.pod_resources = holders.chain(others).collect();
    state.allocatable.devices = vec![resource(ids)];
    state
}

/// The scheduler must believe all devices to be well, and know who holds them.
async fn check(scheduler: &Scheduler) -> anyhow::Result<()> {
    let dump = scheduler.dump().await?;
    let nodes = value::items(&dump, &["nodes"]).iter();
    let devices = nodes.flat_map(|node| value::items(node, &["agent", "devices"]));
    let is_well = |device: &&Value| {
        value::text(device, &["health"]) == "healthy"
            && !value::items(device, &["holders"]).is_empty()
    };
    let well = devices.filter(is_well).count();
    ensure!(
        well == GPUS as usize,
        "{well} of {GPUS} devices are known as well and held"
    );
    Ok(())
}
