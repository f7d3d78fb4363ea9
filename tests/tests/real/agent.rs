//! The agent as a DaemonSet runs it: `muster-agent run` over NVML (a fake C library), with a token bound
//! to its pod and TLS, against the real control plane. A pod of another account gets nowhere.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use muster_agent::fake::devices;
use muster_agent::podresources::{FakeKubelet, FakeKubeletState};
use muster_agent::profile::Profile;
use muster_control_plane::{NodeTemplate, Program};
use muster_tests::acts::PATIENCE;
use muster_tests::jobs::{Job, Role};
use muster_tests::programs;
use muster_tests::stack::{Stack, StackOptions};

const NODE: &str = "nvml-0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_over_nvml_proves_its_node_and_gets_it_used() -> anyhow::Result<()> {
    let options = StackOptions {
        pools: vec![NodeTemplate::cpu_pool("cpu", 1)],
        ..StackOptions::default()
    };
    let stack = Stack::start(options).await?;
    stack
        .cluster
        .add_nodes(&NodeTemplate::gpu_pool("nvml", 1))
        .await?;
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("kubelet.sock");
    let _kubelet = FakeKubelet::start(&socket, FakeKubeletState::default())?;
    stack
        .submit(&Job::new("train", vec![Role::new("Worker", 2, 4)]))
        .await?;
    stack
        .step(
            "a user's pod is not believed",
            stranger(&stack, folder.path()),
        )
        .await?;
    stack
        .step("the agent is", believed(&stack, folder.path()))
        .await?;
    stack.judge().await?;
    Ok(())
}

/// A user's pod on the node, with a token for the scheduler's audience: it names the node, and yet.
async fn stranger(stack: &Stack, folder: &Path) -> anyhow::Result<()> {
    let token = stack
        .pod_token("default", "default", "stranger", NODE)
        .await?;
    start_agent(stack, folder, "stranger", &token).await?;
    let log = stack.cluster.log(&Program::Other("stranger".into()));
    let wanted = "not one of system:serviceaccount:muster-system:muster-agent";
    stack
        .wait_until(Duration::from_secs(30), "the refusal", async || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains(wanted))
        })
        .await?;
    stack
        .cluster
        .stop(&Program::Other("stranger".into()))
        .await?;
    let says = stack
        .wait_gang("default", "train", PATIENCE, |says| says.phase == "Waiting")
        .await?;
    anyhow::ensure!(stack.nodes_of("train").is_empty(), "{says:?}");
    Ok(())
}

async fn believed(stack: &Stack, folder: &Path) -> anyhow::Result<()> {
    let token = stack
        .pod_token("muster-system", "muster-agent", "muster-agent-nvml", NODE)
        .await?;
    start_agent(stack, folder, "muster-agent", &token).await?;
    let says = stack.wait_running("train", 2).await?;
    assert_eq!(stack.nodes_of("train"), [NODE, NODE]);
    let profile = Profile::load("h100-8")?;
    let shape = profile.shape_for(NODE);
    let mut read: Vec<String> = devices(shape, NODE)
        .into_iter()
        .map(|device| device.uuid)
        .collect();
    let members = says
        .status
        .get("members")
        .and_then(|members| members.as_array());
    let mut planned: Vec<String> = members
        .context("members")?
        .iter()
        .filter_map(|member| member["devices"].as_array())
        .flatten()
        .filter_map(|uuid| uuid.as_str().map(str::to_owned))
        .collect();
    read.sort();
    planned.sort();
    assert_eq!(planned.len(), 8);
    assert_eq!(planned, read, "the GPUs that were read through NVML");
    stack.end_job("train").await
}

async fn start_agent(stack: &Stack, folder: &Path, name: &str, token: &str) -> anyhow::Result<()> {
    let file = folder.join(format!("{name}.token"));
    std::fs::write(&file, token)?;
    let address = stack.agents.replace("127.0.0.1", "localhost");
    let mut command = Command::new(programs::agent()?);
    command
        .args(["run", "--source", "nvml", "--node-name", NODE])
        .args(["--scheduler", &format!("https://{address}")])
        .arg("--ca-file")
        .arg(stack.cluster.authority().ca())
        .arg("--token-file")
        .arg(&file)
        .arg("--nvml-library")
        .arg(programs::fake_nvml()?)
        .arg("--pod-resources-socket")
        .arg(folder.join("kubelet.sock"))
        // The machine's own GPUs are none of the fake library's.
        .args(["--sysfs", "/dev/null"])
        .env("MUSTER_FAKE_NVML_PROFILE", "h100-8")
        .env("MUSTER_FAKE_NVML_NODE", NODE);
    stack.cluster.spawn(name, &command).await?;
    Ok(())
}
