//! The agent's own NVML path, run as a process of its own over the fake library.
//!
//! The fake keeps its state per process and reads its environment, so each case starts
//! `muster-agent`. Events are watched by a report server on a real socket.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use crate::common::agent::{AGENT, NO_SYSFS, library, reporting, reporting_of};
use crate::common::{Server, until};
use muster_agent::podresources::{FakeKubelet, FakeKubeletState};
use muster_proto::inventory::Health;
use muster_proto::podresources::{ContainerDevices, ContainerResources, PodResources};
use serde_json::Value;

fn inspect(environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut agent = Command::new(AGENT);
    agent.arg("inspect");
    if !arguments.contains(&"--sysfs") {
        agent.args(["--sysfs", NO_SYSFS]);
    }
    agent.args(arguments).env("MUSTER_FAKE_NVML_NODE", "node-0");
    agent.envs(environment.iter().copied()).output().unwrap()
}

fn see(environment: &[(&str, &str)]) -> Value {
    see_on(NO_SYSFS, environment)
}

fn see_on(sysfs: &str, environment: &[(&str, &str)]) -> Value {
    let library = library().to_str().unwrap();
    let output = inspect(
        environment,
        &[
            "--output",
            "json",
            "--nvml-library",
            library,
            "--sysfs",
            sysfs,
        ],
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn devices(seen: &Value) -> &Vec<Value> {
    seen["devices"].as_array().unwrap()
}

/// NVML over the fake library and the in-process fake are two readers of one state: they see the same.
#[test]
fn nvml_reads_what_the_profile_says_field_by_field() {
    for profile in ["h100-8", "a100-8", "l40s-4", "gb200-4"] {
        let by_nvml = see(&[("MUSTER_FAKE_NVML_PROFILE", profile)]);
        let output = inspect(
            &[],
            &["--source", "fake", "--profile", profile, "--output", "json"],
        );
        let by_profile: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(by_nvml["driverVersion"], by_profile["driverVersion"]);
        for (seen, wanted) in devices(&by_nvml).iter().zip(devices(&by_profile)) {
            // With the NUMA node: the kernel tells none of such a PCI device here, and the driver does.
            assert_eq!(seen, wanted, "{profile}");
        }
        assert_eq!(devices(&by_nvml).len(), devices(&by_profile).len());
    }
}

#[test]
fn mig_slices_have_ids_profile_and_parent() {
    let seen = see(&[("MUSTER_FAKE_NVML_PROFILE", "a100-8-mig")]);
    let all = devices(&seen);
    assert_eq!(all.len(), 8 + 48);
    assert_eq!(all[0]["partitioned"], true);
    assert_eq!(all[1]["parentUuid"], all[0]["uuid"]);
    assert_eq!(
        all[1]["mig"],
        serde_json::json!({"gpuInstanceId": 1, "computeInstanceId": 0, "profile": "1g.5gb"})
    );
    assert_eq!(all[1]["resourceName"], "nvidia.com/mig-1g.5gb");
    assert_eq!(all[2]["mig"]["gpuInstanceId"], 2);
}

/// The functions that only cost their field when they fail.
const GETTERS: &str = "nvmlDeviceGetName,nvmlDeviceGetSerial,nvmlDeviceGetMinorNumber,nvmlDeviceGetPciInfo_v3,\
    nvmlDeviceGetMemoryInfo_v2,nvmlDeviceGetCudaComputeCapability,nvmlDeviceGetMigMode,nvmlDeviceGetEccMode,\
    nvmlDeviceGetTotalEccErrors,nvmlDeviceGetRemappedRows,nvmlDeviceGetSramEccErrorStatus,nvmlDeviceGetFieldValues,\
    nvmlDeviceGetNvLinkState,nvmlDeviceGetTopologyCommonAncestor,nvmlDeviceGetGpuFabricInfoV,nvmlDeviceGetGpuFabricInfo,\
    nvmlDeviceGetPlatformInfo,nvmlDeviceGetModuleId,nvmlDeviceGetComputeRunningProcesses_v3,nvmlSystemGetDriverVersion,\
    nvmlSystemGetNVMLVersion,nvmlSystemGetCudaDriverVersion_v2";

#[test]
fn no_failing_getter_loses_a_gpu() {
    for variable in ["MUSTER_FAKE_NVML_NOT_SUPPORTED", "MUSTER_FAKE_NVML_MISSING"] {
        let seen = see(&[(variable, GETTERS)]);
        assert_eq!(devices(&seen).len(), 8, "{variable}");
        for device in devices(&seen) {
            assert_eq!(
                (device["health"].as_str(), device["name"].as_str()),
                (Some("healthy"), None),
                "{variable}"
            );
            assert!(device["uuid"].as_str().unwrap().starts_with("GPU-"));
        }
    }
}

#[test]
fn an_older_library_tells_the_fabric_in_its_own_way() {
    let old = see(&[
        ("MUSTER_FAKE_NVML_PROFILE", "gb200-4"),
        ("MUSTER_FAKE_NVML_MISSING", "nvmlDeviceGetGpuFabricInfoV"),
    ]);
    let new = see(&[("MUSTER_FAKE_NVML_PROFILE", "gb200-4")]);
    assert_eq!(devices(&old)[0]["fabric"], devices(&new)[0]["fabric"]);
    assert_eq!(devices(&new)[0]["fabric"]["completed"], true);
}

#[test]
fn a_lost_gpu_is_listed_as_lost() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = directory.path().join("lost.toml");
    std::fs::write(
        &scenario,
        "name='lost'\n[[events]]\nat_s=0\nfault='lost'\ngpu=2",
    )
    .unwrap();
    let seen = see(&[("MUSTER_FAKE_NVML_SCENARIO", scenario.to_str().unwrap())]);
    let health: Vec<_> = devices(&seen)
        .iter()
        .map(|device| device["health"].as_str().unwrap())
        .collect();
    assert_eq!(health.iter().filter(|health| **health == "lost").count(), 1);
    assert_eq!((health.len(), health[2]), (8, "lost"));
}

/// A sysfs with NVIDIA GPUs at these PCI addresses.
fn sysfs(addresses: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for address in addresses {
        let folder = directory.path().join("bus/pci/devices").join(address);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("vendor"), "0x10de\n").unwrap();
        std::fs::write(folder.join("class"), "0x030200\n").unwrap();
        std::fs::write(folder.join("numa_node"), "1\n").unwrap();
    }
    directory
}

#[test]
fn a_gpu_that_a_new_process_never_saw_counted_is_lost_by_its_pci_address() {
    let counted = see(&[("MUSTER_FAKE_NVML_PROFILE", "l40s-4")]);
    let mut addresses: Vec<String> = devices(&counted)
        .iter()
        .map(|device| device["pciAddress"].as_str().unwrap().to_owned())
        .collect();
    addresses.push("0000:fe:00.0".into());
    let on_bus = sysfs(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
    let seen = see_on(
        on_bus.path().to_str().unwrap(),
        &[("MUSTER_FAKE_NVML_PROFILE", "l40s-4")],
    );
    assert_eq!(seen["devicesExpected"], 5);
    assert_eq!(devices(&seen).len(), 5);
    let (healthy, lost): (Vec<&Value>, Vec<&Value>) = devices(&seen)
        .iter()
        .partition(|device| device["health"] == "healthy");
    assert_eq!((healthy.len(), lost.len()), (4, 1));
    let lost = lost[0];
    assert_eq!(
        (&lost["health"], &lost["pciAddress"], &lost["numaNode"]),
        (&"lost".into(), &"0000:fe:00.0".into(), &1.into())
    );
    assert_eq!(lost["resourceName"], "nvidia.com/gpu");
}

#[test]
fn without_a_usable_driver_the_error_names_the_cause() {
    let library = library().to_str().unwrap();
    for (code, text) in [("9", "driver is not loaded"), ("18", "version mismatch")] {
        let output = inspect(
            &[("MUSTER_FAKE_NVML_INIT_ERROR", code)],
            &["--nvml-library", library],
        );
        let told = String::from_utf8_lossy(&output.stderr).to_lowercase();
        assert!(!output.status.success() && told.contains(text), "{told}");
    }
    let output = inspect(&[], &["--nvml-library", "/does/not/exist.so"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--source fake"));
}

#[test]
fn the_library_is_also_found_by_its_usual_name() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(library(), directory.path().join("libnvidia-ml.so.1")).unwrap();
    let output = inspect(
        &[("LD_LIBRARY_PATH", directory.path().to_str().unwrap())],
        &[],
    );
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && told.contains("NVIDIA H100 80GB HBM3"),
        "{told}"
    );
}

#[tokio::test]
async fn an_xid_is_reported_within_a_second_and_the_way_back_too() {
    let scenario = "name='x'\n[[events]]\nat_s=2\nfault='xid'\ngpu=3\ncode=79\n[[events]]\nat_s=4\nfault='back'\ngpu=3";
    let (server, _agent, directory) = reporting(scenario, &[]).await;
    let started = std::fs::read_to_string(directory.path().join("started")).unwrap();
    let happened = Duration::from_millis(started.parse::<u64>().unwrap() + 2000);
    let since_event = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().checked_sub(happened)
    };
    until("the event and the loss", || {
        let node = server.node("a", "node-0");
        node.events.iter().any(|event| event.code == 79)
            && node.by_index(3).health() == Health::Lost
    })
    .await;
    let took = since_event().expect("nothing is reported before it happens");
    assert!(took < Duration::from_secs(1), "{took:?} after the XID");
    let node = server.node("a", "node-0");
    assert_eq!(node.by_index(3).health_reason, "xid-79");
    assert!(node.events.iter().any(|event| event.code == 79
        && event.fatal
        && event.device_uuid == node.by_index(3).uuid));
    until("the repair", || {
        server.node("a", "node-0").by_index(3).health() == Health::Healthy
    })
    .await;
    assert!(server.node("a", "node-0").consistent());
}

#[tokio::test]
async fn a_gpu_that_is_not_counted_any_more_is_lost_and_those_behind_it_are_not() {
    let scenario =
        "name='x'\n[[events]]\nat_s=2\nfault='uncounted'\ngpu=1\n[[events]]\nat_s=12\nfault='back'";
    let (server, _agent, _directory) = reporting(scenario, &[]).await;
    let before = server.node("a", "node-0").devices;
    let missed = server.node("a", "node-0").by_index(1).uuid.clone();
    until("the loss", || server.node("a", "node-0").lost() > 0).await;
    let node = server.node("a", "node-0");
    assert!(node.devices.keys().eq(before.keys()), "one lost, none gone");
    for (uuid, device) in &node.devices {
        let expected = if *uuid == missed {
            Health::Lost
        } else {
            Health::Healthy
        };
        assert_eq!(device.health(), expected, "{uuid}");
        let place = &before[uuid].pci_address;
        assert_eq!(device.pci_address, *place, "{uuid} is where it was");
    }
    let second = before.values().find(|device| device.index == Some(2));
    assert_eq!(node.by_index(1).uuid, second.unwrap().uuid);
    assert_eq!(node.devices[&missed].index, None, "its index is another's");
    until("all again", || {
        let node = server.node("a", "node-0");
        node.lost() == 0 && node.devices.len() == 8
    })
    .await;
    assert_eq!(server.node("a", "node-0").by_index(1).uuid, missed);
}

/// Waits until a whole reading was made while these functions failed with these codes.
async fn failing(server: &Server, directory: &Path, functions: &[(&str, u32)]) {
    let file = directory.join("failing");
    // The versions are read last: the first that is missing ends a reading, the second the one after it.
    for marker in ["nvmlSystemGetDriverVersion", "nvmlSystemGetNVMLVersion"] {
        let lines = functions.iter().copied().chain([(marker, 999)]);
        let text: Vec<String> = lines.map(|(name, code)| format!("{name} {code}")).collect();
        let new = directory.join("failing.new");
        std::fs::write(&new, text.join("\n")).unwrap();
        std::fs::rename(&new, &file).unwrap();
        until("a reading", || {
            let facts = server.node("a", "node-0").facts.unwrap();
            match marker {
                "nvmlSystemGetDriverVersion" => facts.driver_version.is_none(),
                _ => facts.nvml_version.is_none(),
            }
        })
        .await;
    }
}

/// Questions by whose answers a GPU, its slices and its state are known.
const NAMES: &[(&str, u32)] = &[
    ("nvmlDeviceGetUUID", 999),
    ("nvmlDeviceGetPciInfo_v3", 999),
    ("nvmlDeviceGetMinorNumber", 999),
    ("nvmlDeviceGetMigMode", 999),
    ("nvmlDeviceGetGpuInstanceId", 999),
    ("nvmlDeviceGetComputeInstanceId", 999),
    ("nvmlDeviceGetFieldValues", 999),
    ("nvmlDeviceGetRemappedRows", 999),
];

#[tokio::test]
async fn a_getter_that_begins_to_fail_loses_no_gpu_no_slice_and_no_name() {
    let quiet = "name='x'";
    let (server, _agent, directory) = reporting_of(Some("a100-8-mig"), quiet, &[]).await;
    let before = server.node("a", "node-0").devices;
    assert_eq!(before.len(), 8 + 48);
    let no_slices = [
        ("nvmlDeviceGetMaxMigDeviceCount", 999),
        ("nvmlDeviceGetMigMode", 3),
    ];
    let no_handles = [("nvmlDeviceGetMigDeviceHandleByIndex", 999)];
    for functions in [NAMES, &no_slices, &no_handles] {
        failing(&server, directory.path(), functions).await;
        let node = server.node("a", "node-0");
        assert!(node.devices.keys().eq(before.keys()), "{functions:?}");
        for (uuid, device) in &node.devices {
            let was = &before[uuid];
            assert_eq!(device.health(), Health::Healthy, "{functions:?}");
            assert_eq!(
                (device.partitioned, &device.mig, &device.pci_address),
                (was.partitioned, &was.mig, &was.pci_address),
                "{functions:?}"
            );
            assert_eq!(device.minor_number, was.minor_number, "{functions:?}");
        }
    }
}

#[tokio::test]
async fn a_gpu_is_lost_by_the_errors_that_say_so_and_suspect_by_others() {
    let (server, _agent, directory) = reporting("name='x'", &[]).await;
    let before = server.node("a", "node-0").devices;
    let handle = "nvmlDeviceGetHandleByIndex_v2";
    for (function, code, health) in [
        ("nvmlDeviceGetUUID", 2, Health::Healthy),
        (handle, 999, Health::Suspect),
        // GPU not found.
        (handle, 28, Health::Lost),
        ("nvmlDeviceGetUUID", 10, Health::Healthy),
        // Reset required.
        ("nvmlDeviceGetMemoryInfo_v2", 16, Health::Lost),
    ] {
        failing(&server, directory.path(), &[(function, code)]).await;
        let node = server.node("a", "node-0");
        assert!(node.devices.keys().eq(before.keys()), "{function} {code}");
        for device in node.devices.values() {
            assert_eq!(device.health(), health, "{function} {code}");
        }
    }
}

/// A GPU that cannot be cut into slices says so when it is asked whether it is: that is an answer, also
/// after a reading in which nothing could be read.
#[tokio::test]
async fn a_gpu_without_mig_is_well_again_after_a_reading_that_failed() {
    let (server, _agent, directory) = reporting_of(Some("l40s-4"), "name='x'", &[]).await;
    let handle = "nvmlDeviceGetHandleByIndex_v2";
    failing(&server, directory.path(), &[(handle, 999)]).await;
    let healths = || {
        let devices = server.node("a", "node-0").devices;
        let healths = devices.values().map(|device| device.health());
        healths.collect::<Vec<_>>()
    };
    assert_eq!(healths(), [Health::Suspect; 4]);
    failing(&server, directory.path(), &[]).await;
    until("four that are well", || healths() == [Health::Healthy; 4]).await;
}

#[tokio::test]
async fn holders_come_from_the_kubelet_and_a_used_gpu_without_one_is_leaked() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("kubelet.sock");
    let kubelet = FakeKubelet::start(&socket, FakeKubeletState::default()).unwrap();
    let scenario = "name='x'\n[[events]]\nat_s=0\nfault='leak'\ngpu=5";
    let (server, mut agent, _scenario) = reporting(
        scenario,
        &["--pod-resources-socket", socket.to_str().unwrap()],
    )
    .await;
    let uuid = server.node("a", "node-0").by_index(1).uuid.clone();
    kubelet.change(|state| {
        let devices = vec![ContainerDevices {
            resource_name: "nvidia.com/gpu".into(),
            device_ids: vec![format!("{uuid}::1")],
            topology: None,
        }];
        let containers = vec![ContainerResources {
            name: "main".into(),
            devices,
            ..ContainerResources::default()
        }];
        state.pods.pod_resources = vec![PodResources {
            name: "train-0".into(),
            namespace: "ml".into(),
            containers,
        }];
    });
    until("the holder", || {
        !server.node("a", "node-0").by_index(1).holders.is_empty()
    })
    .await;
    assert_eq!(
        server.node("a", "node-0").by_index(1).holders[0].pod,
        "train-0"
    );
    until("the leak", || server.node("a", "node-0").by_index(5).leaked).await;
    assert_eq!(
        server
            .node("a", "node-0")
            .devices
            .values()
            .filter(|device| device.leaked)
            .count(),
        1
    );

    let process = rustix::process::Pid::from_child(&agent.0);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    until("bye", || server.node("a", "node-0").byes == 1).await;
    let ended = tokio::task::spawn_blocking(move || agent.0.wait().unwrap())
        .await
        .unwrap();
    assert!(ended.success());
}
