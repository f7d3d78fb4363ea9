//! One machine with real GPUs under the embedded cluster: the agent over the driver's own library, the production
//! scheduler, and a PyTorchJob that is given the GPU by name.
//!
//! ```text
//! cargo run --release -p muster-tests --bin gpu-node -- --busy 'python3 hold.py' --fault './fault'
//!
//! driver ─NVML─► muster-agent run ──gRPC, token──► scheduler ◄─► embedded API server, kube-scheduler, operator
//!                     ▲ PodResources                                   │ who holds what
//!                     └──────────── fake kubelet on a socket ◄─────────┘
//! ```
//!
//! No cluster has to be there, and nothing on the machine is changed. What is seen is printed with the time it took; what is
//! not as it must be is an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use muster_agent::podresources::{FakeKubelet, FakeKubeletState};
use muster_control_plane::{Usage, children};
use muster_embedded::standins::extender::{of_muster, tcp};
use muster_embedded::standins::kubelet::{Holder, KubeletConfig};
use muster_embedded::standins::scheduler::SchedulerConfig;
use muster_embedded::{EmbeddedCluster, NodePool};
use muster_kubernetes::manifests;
use muster_proto::podresources::{
    AllocatableResourcesResponse, ContainerDevices, ContainerResources, ListPodResourcesResponse,
    PodResources,
};
use muster_scheduler::clock::Wall;
use muster_scheduler::config::Config;
use muster_scheduler::scheduler::{Clients, Options, Scheduler};
use muster_scheduler::server::Door;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const NODE: &str = "gpu-000";
const RESOURCE: &str = "nvidia.com/gpu";
const JOBS: (&str, &str) = ("kubeflow.org", "pytorchjobs");
const GANGS: (&str, &str) = ("muster.dev", "gangs");
/// Longest wait for anything but a leak.
const SOON: Duration = Duration::from_secs(30);
/// A leak is told after it has lasted some 30 s; see `muster_agent::node`.
const LEAK: Duration = Duration::from_secs(60);

/// A reader that hangs is told within this time, the look of this program included.
const HANG: Duration = Duration::from_secs(46);
/// A node that is silent for longer is not planned on.
const SILENT: Duration = Duration::from_secs(15);
/// Its GPUs are on probation for 30 s afterwards.
const PROBATION: Duration = Duration::from_secs(45);

/// Runs the agent on this machine's GPUs and a job through the whole of Muster on them.
#[derive(Debug, Parser)]
#[command(name = "gpu-node")]
struct Arguments {
    /// The agent; default: `muster-agent` beside this program
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// The driver's library, where the loader does not find libnvidia-ml.so.1 by itself
    #[arg(long, value_name = "FILE")]
    nvml_library: Option<PathBuf>,
    /// Where sysfs is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    sysfs: PathBuf,
    /// A shell command that uses a GPU until it is killed: it must be told as leaked, for no pod holds it
    #[arg(long, value_name = "COMMAND")]
    busy: Option<String>,
    /// A shell command whose kernel faults (XID 13 or 31): the agent must log it, and the GPU stays usable
    #[arg(long, value_name = "COMMAND")]
    fault: Option<String>,
    /// Stop the process that reads the driver, as a call that never returns would: told within 45 s, replaced, and the GPUs
    /// count again after their probation
    #[arg(long)]
    hang: bool,
    /// Time over which the agent's CPU is measured while nothing happens, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    idle: u64,
    /// Where the agent's log goes
    #[arg(long, value_name = "FILE", default_value = "muster-agent.log")]
    log: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir()?;
    let seen = inspect(&arguments)?;
    let devices = devices(&seen)?;
    println!("{} GPUs: {}", devices.len(), devices.join(" "));
    let mut node = Node::start(&arguments, folder.path(), &devices).await?;
    let outcome = node.story(&arguments).await;
    node.stop().await;
    outcome
}

fn agent(arguments: &Arguments) -> anyhow::Result<PathBuf> {
    let beside = || -> std::io::Result<PathBuf> {
        Ok(std::env::current_exe()?.with_file_name("muster-agent"))
    };
    let path = match &arguments.agent {
        Some(path) => path.clone(),
        None => beside()?,
    };
    ensure!(
        path.is_file(),
        "--agent: {} is no file; build it with cargo build --release -p muster-agent",
        path.display()
    );
    Ok(path)
}

fn source(arguments: &Arguments) -> Vec<String> {
    let mut flags = vec![
        "--source".into(),
        "nvml".into(),
        "--sysfs".into(),
        arguments.sysfs.display().to_string(),
    ];
    if let Some(library) = &arguments.nvml_library {
        flags.extend(["--nvml-library".into(), library.display().to_string()]);
    }
    flags
}

/// What `muster-agent inspect` sees.
fn inspect(arguments: &Arguments) -> anyhow::Result<Value> {
    let started = Instant::now();
    let output = Command::new(agent(arguments)?)
        .arg("inspect")
        .args(source(arguments))
        .args(["--output", "json"])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "inspect ends with {}",
        output.status
    );
    println!(
        "inspect: {} ms, the loading of the library included",
        started.elapsed().as_millis()
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn devices(seen: &Value) -> anyhow::Result<Vec<String>> {
    let all = seen.get("devices").and_then(Value::as_array);
    let mut uuids = Vec::new();
    for device in all.into_iter().flatten() {
        let text = |key: &str| device.get(key).and_then(Value::as_str).unwrap_or_default();
        ensure!(
            text("resourceName") == RESOURCE || device.get("mig").is_some_and(|mig| !mig.is_null()),
            "{} is offered as {:?}",
            text("uuid"),
            text("resourceName")
        );
        if text("resourceName") == RESOURCE {
            uuids.push(text("uuid").to_owned());
        }
    }
    ensure!(!uuids.is_empty(), "no whole GPU is here: {seen}");
    Ok(uuids)
}

/// The node and all that is around it.
struct Node {
    cluster: EmbeddedCluster,
    scheduler: Scheduler,
    agent: Child,
    pages: String,
    log: PathBuf,
    gpus: usize,
}

impl Node {
    async fn start(
        arguments: &Arguments,
        folder: &Path,
        devices: &[String],
    ) -> anyhow::Result<Self> {
        muster_scheduler::cli::install_provider();
        let gpus = devices.len();
        let socket = folder.join("kubelet.sock");
        let kubelet = Arc::new(FakeKubelet::start(&socket, offers(devices))?);
        let cluster = EmbeddedCluster::builder()
            .wall_clock()
            .seed(1)
            .nodes(NodePool::new("gpu", 1, u32::try_from(gpus)?).taint(
                RESOURCE,
                "present",
                "NoSchedule",
            ))
            .kubelet(Some(KubeletConfig {
                on_holders: Some(Arc::new(move |node, holders| {
                    if node == NODE {
                        kubelet.change(|state| state.pods = held(holders));
                    }
                })),
                ..KubeletConfig::default()
            }))
            .admission_policies()
            .start()?;
        cluster.kubelet().set_device_ids(NODE, devices.to_vec());
        cluster.apply_yaml(&manifests::crds())?;
        cluster.apply_yaml(&manifests::rbac())?;
        let options = Options {
            identity: "gpu-node".into(),
            seed: 1,
            wall: Wall::System,
            agents_believed: false,
        };
        let clients = Clients::from(cluster.client("muster-scheduler"));
        let mut scheduler = Scheduler::start(&clients, &Config::default(), &options);
        let loopback = ([127, 0, 0, 1], 0).into();
        let extender = Door::open("extender door", loopback, None, 64)?;
        let agents = Door::open("agent door", loopback, None, 64)?;
        let pages = Door::open_pages("http door", loopback, 64)?;
        let extender_url = format!("http://{}", extender.address()?);
        let agents_url = format!("http://{}", agents.address()?);
        let page = pages.address()?.to_string();
        let (verbs, reports, all) = (
            scheduler.extender(),
            scheduler.agents().router(),
            scheduler.pages(),
        );
        scheduler.serve(extender, verbs);
        scheduler.serve(agents, reports);
        scheduler.serve(pages, all);
        cluster.start_scheduler(SchedulerConfig::new(
            "muster",
            of_muster(&extender_url, &tcp()),
        ))?;
        let token = folder.join("token");
        std::fs::write(&token, cluster.mint_node_token(NODE))?;
        let log = std::fs::File::create(&arguments.log)
            .with_context(|| format!("--log {}", arguments.log.display()))?;
        let agent = Command::new(agent(arguments)?)
            .arg("run")
            .args(source(arguments))
            .args(["--node-name", NODE, "--scheduler", &agents_url])
            .arg("--token-file")
            .arg(&token)
            .arg("--pod-resources-socket")
            .arg(&socket)
            .stderr(log)
            .spawn()?;
        Ok(Self {
            cluster,
            scheduler,
            agent,
            pages: page,
            log: arguments.log.clone(),
            gpus,
        })
    }

    async fn story(&mut self, arguments: &Arguments) -> anyhow::Result<()> {
        let gpus = self.gpus;
        self.until("the scheduler knows the GPUs", SOON, |node| {
            let devices = node.pointer("/agent/devices").and_then(Value::as_array);
            devices.is_some_and(|devices| devices.len() >= gpus)
        })
        .await?;
        self.job_runs().await?;
        self.idle(Duration::from_secs(arguments.idle)).await?;
        if arguments.hang {
            self.hang().await?;
            self.job_runs().await?;
        }
        if let Some(command) = &arguments.busy {
            self.leak(command).await?;
        }
        if let Some(command) = &arguments.fault {
            self.fault(command).await?;
            self.job_runs().await?;
        }
        Ok(())
    }

    /// A PyTorchJob of one worker with all GPUs: it is bound here, and what Muster says of its devices is what the
    /// kubelet gave.
    async fn job_runs(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        self.cluster.create(job(self.gpus))?;
        let running = self.cluster.wait_for("the job runs", SOON, |cluster| {
            gang(cluster)
                .is_some_and(|gang| gang.pointer("/status/phase") == Some(&json!("Running")))
        });
        if let Err(error) = running.await {
            bail!(
                "{error}; the gang: {}",
                gang(&self.cluster).unwrap_or_default()
            );
        }
        println!(
            "a job with {} GPUs runs after {} ms",
            self.gpus,
            started.elapsed().as_millis()
        );
        self.until(
            "the agent names the pod that holds each GPU",
            SOON,
            |node| devices_of(node).all(|device| device.get("holders").is_some()),
        )
        .await?;
        let gang = gang(&self.cluster).context("its Gang is gone")?;
        println!(
            "the Gang's members: {}",
            gang.pointer("/status/members").unwrap_or(&Value::Null)
        );
        self.cluster.delete(JOBS, "default", "train")?;
        self.until("nobody holds a GPU any more", SOON, |node| {
            devices_of(node).all(|device| device.get("holders").is_none())
        })
        .await
    }

    /// What the agent costs while nothing happens.
    async fn idle(&self, time: Duration) -> anyhow::Result<()> {
        let usage = || Usage::with_children(self.agent.id()).context("the agent has ended");
        let before = usage()?;
        tokio::time::sleep(time).await;
        let after = usage()?;
        let used = after.cpu.saturating_sub(before.cpu);
        println!(
            "the agent, idle for {} s: {:.1} milli-cores, {:.1} MiB resident",
            time.as_secs(),
            1000.0 * used.as_secs_f64() / time.as_secs_f64().max(0.001),
            after.rss_bytes as f64 / f64::from(1 << 20),
        );
        Ok(())
    }

    /// The driver hangs, as far as the agent can see; its heartbeats do not.
    async fn hang(&self) -> anyhow::Result<()> {
        let readers = children(self.agent.id());
        ensure!(readers.len() == 1, "readers of the driver: {readers:?}");
        for reader in &readers {
            let pid = i32::try_from(*reader).ok().and_then(Pid::from_raw);
            kill_process(pid.context("no process id")?, Signal::STOP)?;
        }
        let stopped = Instant::now();
        let heard = |node: &Value| node.pointer("/agent/heard_ms").and_then(Value::as_u64);
        let mut last = heard(&self.node().await?);
        let (mut since, mut silent) = (Instant::now(), Duration::ZERO);
        while self.is_well(&self.node().await?) {
            ensure!(
                stopped.elapsed() < HANG,
                "a driver that hangs is not told within {HANG:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = heard(&self.node().await?);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            silent = silent.max(since.elapsed());
        }
        println!(
            "a driver that hangs is told after {:.1} s; meanwhile no two heartbeats were further apart than {:.1} s",
            stopped.elapsed().as_secs_f64(),
            silent.as_secs_f64()
        );
        ensure!(
            silent < SILENT,
            "the agent was silent for {silent:?} while the driver hung"
        );
        self.until("the GPUs count again", PROBATION, |node| self.is_well(node))
            .await?;
        let now = children(self.agent.id());
        ensure!(
            now.len() == 1 && now != readers,
            "the reader {readers:?} was not replaced: {now:?}"
        );
        Ok(())
    }

    /// Whether every GPU is healthy, and the driver answers.
    fn is_well(&self, node: &Value) -> bool {
        let healthy = devices_of(node)
            .filter(|device| device.get("health") == Some(&json!("healthy")))
            .count();
        healthy >= self.gpus && node.pointer("/agent/sampler_ok") == Some(&json!(true))
    }

    /// A process uses a GPU that no pod holds.
    async fn leak(&self, command: &str) -> anyhow::Result<()> {
        let mut process = shell(command)?;
        let leaked = |node: &Value| {
            devices_of(node).any(|device| device.get("leaked") == Some(&json!(true)))
        };
        let told = self
            .until("a GPU is told as used by nobody's pod", LEAK, leaked)
            .await;
        process.kill()?;
        process.wait()?;
        told?;
        self.until("and as free again once the process is gone", LEAK, |node| {
            !leaked(node)
        })
        .await
    }

    /// A kernel faults.
    async fn fault(&self, command: &str) -> anyhow::Result<()> {
        let mut process = shell(command)?;
        let started = Instant::now();
        loop {
            let log = std::fs::read_to_string(&self.log)?;
            let told = log.lines().find(|line| line.contains("reports a fault"));
            if let Some(line) = told {
                println!(
                    "{line}\nlogged {} ms after the program was started",
                    started.elapsed().as_millis()
                );
                break;
            }
            ensure!(
                started.elapsed() < SOON,
                "no fault was logged within {SOON:?} of {command:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Waits until the scheduler's dump shows the node so; prints how long it took.
    async fn until(
        &self,
        what: &str,
        longest: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let node = self.node().await?;
            if holds(&node) {
                println!("{what}: after {} ms", started.elapsed().as_millis());
                return Ok(());
            }
            ensure!(
                started.elapsed() < longest,
                "{what}: not within {longest:?}; {node}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The node as the scheduler believes it to be; null before it is known.
    async fn node(&self) -> anyhow::Result<Value> {
        let page = muster_tests::stack::http_get(&self.pages, "/debug/dump").await?;
        let Some((_, body)) = page.split_once("\r\n\r\n") else {
            bail!("the dump is no answer: {page}");
        };
        // Before it leads, a scheduler has nothing to dump and says so.
        let dump: Value = serde_json::from_str(body).unwrap_or_default();
        let nodes = dump.get("nodes").and_then(Value::as_array);
        let node = nodes
            .into_iter()
            .flatten()
            .find(|node| node.get("name") == Some(&json!(NODE)));
        Ok(node.cloned().unwrap_or_default())
    }

    async fn stop(mut self) {
        // It may have ended by itself, which the story has noticed.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        self.scheduler.stop().await;
        self.cluster.stop().await;
    }
}

fn shell(command: &str) -> anyhow::Result<Child> {
    let exec = format!("exec {command}");
    Command::new("sh")
        .args(["-c", &exec])
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))
}

fn devices_of(node: &Value) -> impl Iterator<Item = &Value> {
    let devices = node.pointer("/agent/devices").and_then(Value::as_array);
    devices.into_iter().flatten()
}

fn gang(cluster: &EmbeddedCluster) -> Option<Value> {
    cluster.get(GANGS, "default", "train")
}

fn job(gpus: usize) -> Value {
    let toleration = json!({"key": RESOURCE, "operator": "Exists", "effect": "NoSchedule"});
    let container = json!({"name": "pytorch", "image": "example.com/train",
        "resources": {"limits": {RESOURCE: gpus}}});
    let spec =
        json!({"schedulerName": "muster", "tolerations": [toleration], "containers": [container]});
    let replicas = json!({"Worker": {"replicas": 1, "template": {"spec": spec}}});
    json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {"name": "train", "namespace": "default"},
        "spec": {"pytorchReplicaSpecs": replicas}})
}

fn offers(devices: &[String]) -> FakeKubeletState {
    let all = ContainerDevices {
        resource_name: RESOURCE.into(),
        device_ids: devices.to_vec(),
        topology: None,
    };
    FakeKubeletState {
        allocatable: AllocatableResourcesResponse {
            devices: vec![all],
            ..AllocatableResourcesResponse::default()
        },
        ..FakeKubeletState::default()
    }
}

fn held(holders: &[Holder]) -> ListPodResourcesResponse {
    let mut pods: BTreeMap<(&str, &str), PodResources> = BTreeMap::new();
    for holder in holders {
        let pod = pods
            .entry((&holder.namespace, &holder.name))
            .or_insert_with(|| PodResources {
                namespace: holder.namespace.clone(),
                name: holder.name.clone(),
                ..PodResources::default()
            });
        pod.containers.push(ContainerResources {
            name: holder.container.clone(),
            devices: vec![ContainerDevices {
                resource_name: RESOURCE.into(),
                device_ids: holder.devices.clone(),
                topology: None,
            }],
            ..ContainerResources::default()
        });
    }
    ListPodResourcesResponse {
        pod_resources: pods.into_values().collect(),
    }
}
