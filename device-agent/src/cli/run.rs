//! `muster-agent run`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use muster_agent::clock::WallClock;
use muster_agent::connector::{FileToken, resolve_forever};
use muster_agent::fake::{FakeDevice, FakeNode, devices};
use muster_agent::hash::hash64;
use muster_agent::health::table::Table;
use muster_agent::kubelet::KubeletState;
use muster_agent::node::{NodeAgent, NodeExit, NodeIdentity};
use muster_agent::podresources::{self, DEFAULT_SOCKET, FakeKubelet, FakeKubeletState};
use muster_agent::source::fake::FakeSource;
use muster_agent::source::nvml::NvmlConfig;
use muster_agent::source::reader::{ReaderConfig, ReaderProcess};
use muster_agent::stream::Uplink;
use muster_proto::podresources::ContainerDevices;
use tokio::sync::{Notify, watch};

use super::{
    EXIT_RESTART, FakeArgs, LogFormat, SchedulerArgs, SourceKind, boot_id, reader_arguments,
    stop_signal, tokens,
};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    scheduler: SchedulerArgs,
    /// Name of the Kubernetes node; the scheduler checks it against the token.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    /// UID of the Kubernetes node, when known.
    #[arg(long, value_name = "UID", env = "NODE_UID", default_value = "")]
    node_uid: String,
    /// Where devices come from.
    #[arg(long, value_enum, default_value_t = SourceKind::Nvml)]
    source: SourceKind,
    #[command(flatten)]
    fake: FakeArgs,
    /// Service account token to prove the node's identity with; read again when it changes.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The kubelet's PodResources socket. Default: the kubelet's own path with --source nvml, a played kubelet with --source fake.
    #[arg(long, value_name = "SOCKET")]
    pod_resources_socket: Option<PathBuf>,
    /// The driver's library, where the loader does not find libnvidia-ml.so.1 by itself.
    #[arg(long, value_name = "FILE")]
    nvml_library: Option<PathBuf>,
    /// GPUs this node should have, where that is another number than the PCI bus tells: no more than these are told as lost.
    #[arg(long, value_name = "N")]
    expected_gpus: Option<u32>,
    /// Where sysfs is mounted: it tells which GPUs are on the PCI bus, and near which CPUs.
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    sysfs: PathBuf,
    /// Time after which a call into the driver counts as hanging, seconds; 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = muster_agent::source::WATCHDOG.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3600))]
    watchdog: u64,
}

/// Reports until a signal comes or the source cannot go on.
pub async fn run(args: RunArgs, log_format: LogFormat) -> Result<ExitCode> {
    let tokens = tokens(args.token_file.clone().map(FileToken::File));
    let connector = args.scheduler.connector(&tokens)?;
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    let instance =
        u64::try_from(since_epoch.as_micros()).context("the clock is after the year 500000")?;
    let identity = NodeIdentity {
        name: args.node_name.clone(),
        uid: args.node_uid.clone(),
        boot_id: boot_id(Path::new(BOOT_ID))?,
        instance,
    };
    let (found, replicas) = watch::channel(Vec::new());
    let seed = hash64(instance, identity.name.as_bytes());
    let missed = Arc::new(Notify::new());
    let resolver = tokio::spawn(resolve_forever(
        Arc::clone(&connector),
        found,
        Arc::clone(&missed),
        seed,
    ));
    let uplink = Uplink {
        connector,
        replicas,
        missed,
        tokens: tokens.provider,
        seed,
        streams_up: Arc::default(),
    };
    let table = Table::embedded()?;
    let clock = WallClock::system();
    let (publish, kubelet) = watch::channel(KubeletState::default());

    let watchdog = Duration::from_secs(args.watchdog);
    let mut played = None;
    let agent = match args.source {
        SourceKind::Nvml => {
            let config = NvmlConfig {
                library: args.nvml_library.map(PathBuf::into_os_string),
                sysfs: args.sysfs,
                devices_expected: args.expected_gpus,
                ..NvmlConfig::default()
            };
            let reader = ReaderConfig::new(reader_arguments(log_format), config, watchdog);
            let source = ReaderProcess::new(reader);
            NodeAgent::spawn(
                identity,
                table,
                clock,
                source,
                kubelet,
                uplink,
                Duration::ZERO,
            )
        }
        SourceKind::Fake => {
            let (profile, scenario) = args.fake.load()?;
            let shape = profile.shape_for(&identity.name);
            if args.pod_resources_socket.is_none() {
                played = Some(PlayedKubelet::start(
                    instance,
                    &devices(shape, &identity.name),
                )?);
            }
            let timeline = scenario
                .map(|scenario| scenario.for_node(&identity.name))
                .unwrap_or_default();
            let source = FakeSource::new(FakeNode::new(shape, &identity.name), timeline, watchdog);
            NodeAgent::spawn(
                identity,
                table,
                clock,
                source,
                kubelet,
                uplink,
                Duration::ZERO,
            )
        }
    };
    let socket = played
        .as_ref()
        .map(|played| played.socket.clone())
        .or(args.pod_resources_socket);
    let socket = socket.unwrap_or_else(|| DEFAULT_SOCKET.into());
    let polling = tokio::spawn(podresources::poll(
        socket,
        podresources::POLL_INTERVAL,
        publish,
    ));
    tracing::info!(
        node = args.node_name,
        scheduler = args.scheduler.scheduler,
        "reporting"
    );
    let exit = until_done(agent).await;
    polling.abort();
    resolver.abort();
    exit
}

async fn until_done(mut agent: NodeAgent) -> Result<ExitCode> {
    let exit = tokio::select! {
        reason = stop_signal() => {
            let reason = reason?;
            tracing::info!(?reason, "stopping");
            agent.stop(reason).await
        }
        exit = agent.wait() => exit,
    };
    match exit {
        NodeExit::Stopped => Ok(ExitCode::SUCCESS),
        NodeExit::SourceEnded(reason) => {
            tracing::error!(reason, "the device source cannot go on in this process");
            Ok(ExitCode::from(EXIT_RESTART))
        }
    }
}

/// A kubelet on a socket of its own that can hand out every device and has no pods.
struct PlayedKubelet {
    socket: PathBuf,
    _server: FakeKubelet,
}

impl PlayedKubelet {
    fn start(instance: u64, devices: &[FakeDevice]) -> Result<Self> {
        let socket = std::env::temp_dir().join(format!(
            "muster-agent-{}-{instance}.sock",
            std::process::id()
        ));
        let mut state = FakeKubeletState::default();
        let mut listed: Vec<FakeDevice> = devices.to_vec();
        listed.sort();
        for group in listed.chunk_by(|left, right| left.resource_name == right.resource_name) {
            state.allocatable.devices.push(ContainerDevices {
                resource_name: group
                    .first()
                    .map(|device| device.resource_name.clone())
                    .unwrap_or_default(),
                device_ids: group.iter().map(|device| device.uuid.clone()).collect(),
                topology: None,
            });
        }
        let server = FakeKubelet::start(&socket, state)
            .with_context(|| format!("cannot play a kubelet at {}", socket.display()))?;
        Ok(Self {
            socket,
            _server: server,
        })
    }
}

impl Drop for PlayedKubelet {
    fn drop(&mut self) {
        // Nothing else has a reason to use this path.
        let _ = std::fs::remove_file(&self.socket);
    }
}
