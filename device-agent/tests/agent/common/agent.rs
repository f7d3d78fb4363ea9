//! The real agent over the fake library, as a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use muster_proto::inventory::inventory_server::InventoryServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

use super::{Server, until};

pub const AGENT: &str = env!("CARGO_BIN_EXE_muster-agent");

/// The fake library near the agent's binary, as `cargo test --workspace` or `cargo build` leave it; built
/// here when it is missing or older than its sources.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let directory = Path::new(AGENT).parent().unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let sources =
            ["src", "fake-nvml/src", "profiles", "scenarios"].map(|name| newest(&here.join(name)));
        if let Some(fresh) =
            freshest(directory).filter(|(built, _)| sources.iter().all(|source| source <= built))
        {
            return fresh.1;
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args([
                "build",
                "--offline",
                "-p",
                "muster-fake-nvml",
                "--target-dir",
            ])
            .arg(directory.parent().unwrap());
        if directory.ends_with("release") {
            cargo.arg("--release");
        }
        let built = cargo.current_dir(here).status().unwrap();
        assert!(built.success(), "cannot build the fake library");
        freshest(directory)
            .expect("the library is not there after the build")
            .1
    })
}

fn freshest(directory: &Path) -> Option<(SystemTime, PathBuf)> {
    let places = ["libnvidia_ml.so", "deps/libnvidia_ml.so"].map(|name| directory.join(name));
    let found = places
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)));
    found.max()
}

fn newest(directory: &Path) -> SystemTime {
    let entries = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap());
    let time = |entry: std::fs::DirEntry| {
        let path = entry.path();
        if path.is_dir() {
            newest(&path)
        } else {
            entry.metadata().unwrap().modified().unwrap()
        }
    };
    entries.map(time).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A sysfs without any device: that of the machine may have GPUs, which the fake library does not count.
pub const NO_SYSFS: &str = "/dev/null";

/// A process that ends with this.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server on a real socket, and an agent that reports to it through NVML with this scenario.
pub async fn reporting(scenario: &str, extra: &[&str]) -> (Server, Running, tempfile::TempDir) {
    reporting_of(None, scenario, extra).await
}

/// The same for a node of another profile than the default.
pub async fn reporting_of(
    profile: Option<&str>,
    scenario: &str,
    extra: &[&str],
) -> (Server, Running, tempfile::TempDir) {
    let library = tokio::task::spawn_blocking(library).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("scenario.toml");
    std::fs::write(&path, scenario).unwrap();
    let server = Server::start(&["a"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = InventoryServer::new(server.service("a"));
    tokio::spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming)
            .await
    });
    let mut agent = Command::new(AGENT);
    agent
        .args([
            "run",
            "--scheduler",
            &url,
            "--node-name",
            "node-0",
            "--nvml-library",
        ])
        .arg(library)
        .args(extra);
    if !extra.contains(&"--sysfs") {
        agent.args(["--sysfs", NO_SYSFS]);
    }
    agent
        .env(
            "MUSTER_FAKE_NVML_STARTED_FILE",
            directory.path().join("started"),
        )
        .env(
            "MUSTER_FAKE_NVML_FAILING_FILE",
            directory.path().join("failing"),
        )
        .env("MUSTER_FAKE_NVML_SCENARIO", path)
        .env("MUSTER_FAKE_NVML_NODE", "node-0");
    if let Some(profile) = profile {
        agent.env("MUSTER_FAKE_NVML_PROFILE", profile);
    }
    agent.stdin(Stdio::null()).stdout(Stdio::null());
    let agent = Running(agent.spawn().unwrap());
    until("the first report", || !server.nodes("a").is_empty()).await;
    (server, agent, directory)
}
