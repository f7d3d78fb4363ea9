//! A running control plane.

mod access;
mod apply;
mod builder;
mod flags;
mod lifecycle;
mod store;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::Client;
use tempfile::TempDir;

pub use access::{Identity, KubectlOutput, TokenOptions};
pub use builder::ClusterBuilder;
pub use lifecycle::Outage;

use crate::binaries::Binaries;
use crate::certs::{Authority, CertFiles};
use crate::probe::Probe;
use crate::process::{ProgramSpec, Running};

/// Set to 1, the log folder is kept whatever happens.
const KEEP_LOGS_ENV: &str = "MUSTER_KEEP_LOGS";

/// A program of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// The store.
    Etcd,
    /// The API server.
    KubeApiserver,
    /// Controllers: garbage collection, node lifecycle, service accounts, Jobs.
    KubeControllerManager,
    /// The scheduler started with [`Cluster::start_kube_scheduler`].
    KubeScheduler,
    /// The stand-in for kubelets.
    Kwok,
    /// The controller of PyTorchJobs.
    TrainingOperator,
    /// Anything started with [`Cluster::spawn`] or [`Cluster::start_extra_kube_scheduler`], by its name.
    Other(String),
}

impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Program::Etcd => "etcd",
            Program::KubeApiserver => "kube-apiserver",
            Program::KubeControllerManager => "kube-controller-manager",
            Program::KubeScheduler => "kube-scheduler",
            Program::Kwok => "kwok",
            Program::TrainingOperator => "training-operator",
            Program::Other(name) => name,
        })
    }
}

/// A real Kubernetes control plane on loopback, as child processes of this one.
///
/// Dropping it kills every program and removes its folder. After a panic or [`Cluster::keep_logs`], or with `MUSTER_KEEP_LOGS=1`, the
/// logs are kept and their place is printed.
pub struct Cluster {
    /// Declared first, so that the programs are dead before their folder goes.
    programs: Mutex<BTreeMap<Program, Slot>>,
    outages: Mutex<Vec<Outage>>,
    etcd_port: u16,
    etcd_peer_port: u16,
    api_port: u16,
    binaries: Binaries,
    authority: Authority,
    scheduler_cert: CertFiles,
    admin: Client,
    feature_gates: String,
    audit: bool,
    failed: AtomicBool,
    folder: Arc<TempDir>,
}

/// One program: what to run, how to see that it is ready, and the process while there is one.
#[derive(Debug)]
struct Slot {
    spec: ProgramSpec,
    probe: Probe,
    running: Option<Running>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("api_url", &self.api_url())
            .field("folder", &self.folder.path())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// The settings of a new cluster.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// The cluster's folder: `pki/`, `kubeconfig/`, `logs/` and one folder per program. It goes with the cluster; a file of your own
    /// may lie in it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The log file of a program.
    pub fn log(&self, program: &Program) -> PathBuf {
        log_file(self.folder.path(), program)
    }

    /// Something went wrong: the logs are to be kept when the cluster goes.
    pub fn keep_logs(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// The API server's address, `https://127.0.0.1:PORT`.
    pub fn api_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    /// The programs' paths.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The cluster's certificate authority, for serving and client certificates of further programs.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The certificate with which kube-scheduler shows itself to an extender (and to the API server).
    pub fn kube_scheduler_cert(&self) -> &CertFiles {
        &self.scheduler_cert
    }

    fn programs(&self) -> MutexGuard<'_, BTreeMap<Program, Slot>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log_file(folder: &Path, program: &Program) -> PathBuf {
    folder.join("logs").join(format!("{program}.log"))
}

/// Kills in the order that leaves nobody retrying for long: etcd last.
fn kill_all(programs: &mut BTreeMap<Program, Slot>) {
    for slot in programs.values_mut().rev() {
        slot.running = None;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        kill_all(
            self.programs
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        let failed = self.failed.load(Ordering::Relaxed);
        keep_logs_if_asked(self.folder.path(), failed || std::thread::panicking());
    }
}

/// Copies the logs out of the folder that is about to go, after a failure or when the environment says so.
fn keep_logs_if_asked(folder: &Path, failed: bool) -> Option<PathBuf> {
    let asked = std::env::var_os(KEEP_LOGS_ENV).is_some_and(|value| value == "1");
    if !(failed || asked) {
        return None;
    }
    let name = folder.file_name()?;
    let to = std::env::temp_dir().join(name).with_extension("logs");
    std::fs::create_dir_all(&to).ok()?;
    for entry in std::fs::read_dir(folder.join("logs")).ok()?.flatten() {
        let _ = std::fs::copy(entry.path(), to.join(entry.file_name()));
    }
    eprintln!("control plane: logs kept in {}", to.display());
    Some(to)
}
