//! Settings of a cluster, and its start.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use kube::Client;
use tempfile::TempDir;

use crate::binaries::Binaries;
use crate::certs::{self, Authority};
use crate::error::{Error, Result};
use crate::nodes::NodeTemplate;
use crate::ports::free_port;
use crate::probe::Probe;
use crate::{kwok, writes};

use super::access::{self, Identity};
use super::flags::Layout;
use super::{Cluster, Program, Slot};

/// Prefix of a cluster's folder; the process id follows.
const FOLDER_PREFIX: &str = "muster-control-plane-";
/// Starts tried when somebody else takes a chosen port.
const START_ATTEMPTS: u32 = 3;
/// Longest wait for the `default` service account.
const DEFAULT_ACCOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings of a cluster; see [`Cluster::builder`].
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    nodes: Vec<NodeTemplate>,
    feature_gates: BTreeMap<String, bool>,
    runtime_config: Vec<String>,
    controller_manager: bool,
    kwok: bool,
    start: Duration,
    audit: bool,
    api_server_args: Vec<String>,
    controller_manager_args: Vec<String>,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        ClusterBuilder {
            nodes: Vec::new(),
            feature_gates: BTreeMap::new(),
            runtime_config: Vec::new(),
            controller_manager: true,
            kwok: true,
            start: Duration::ZERO,
            audit: false,
            api_server_args: Vec::new(),
            controller_manager_args: Vec::new(),
        }
    }
}

impl ClusterBuilder {
    /// Adds nodes that exist and are Ready when [`ClusterBuilder::start`] returns. May be called several times.
    #[must_use]
    pub fn nodes(mut self, template: NodeTemplate) -> Self {
        self.nodes.push(template);
        self
    }

    /// Sets a feature gate on kube-apiserver, kube-controller-manager and kube-scheduler.
    #[must_use]
    pub fn feature_gate(mut self, name: &str, enabled: bool) -> Self {
        self.feature_gates.insert(name.to_owned(), enabled);
        self
    }

    /// Serves an API version that is off by default, such as `scheduling.k8s.io/v1beta1=true`.
    #[must_use]
    pub fn runtime_config(mut self, entry: &str) -> Self {
        self.runtime_config.push(entry.to_owned());
        self
    }

    /// Whether kube-controller-manager runs (default: yes). Without it nothing is garbage collected and no Job runs.
    #[must_use]
    pub fn with_controller_manager(mut self, yes: bool) -> Self {
        self.controller_manager = yes;
        self
    }

    /// Whether KWOK runs (default: yes). Without it bound pods stay Pending and deleted ones stay until forced.
    #[must_use]
    pub fn with_kwok(mut self, yes: bool) -> Self {
        self.kwok = yes;
        self
    }

    /// How long a bound pod takes until it runs (default: no time at all). A kubelet takes a second or more.
    #[must_use]
    pub fn pods_start_after(mut self, time: Duration) -> Self {
        self.start = time;
        self
    }

    /// Whether the API server writes an audit log of all writes (default: no); see [`Cluster::audit_writes`].
    #[must_use]
    pub fn audit(mut self, yes: bool) -> Self {
        self.audit = yes;
        self
    }

    /// Adds a flag to kube-apiserver's command line.
    #[must_use]
    pub fn api_server_arg(mut self, arg: &str) -> Self {
        self.api_server_args.push(arg.to_owned());
        self
    }

    /// Adds a flag to kube-controller-manager's command line.
    #[must_use]
    pub fn controller_manager_arg(mut self, arg: &str) -> Self {
        self.controller_manager_args.push(arg.to_owned());
        self
    }

    /// Starts the programs and waits until they are ready; a few seconds once the programs are built, minutes before that.
    /// Boxed, so that it is compiled here and not once more with each program that starts a cluster.
    ///
    /// # Errors
    /// A program that can't be built, or that ends or is not ready in time: the error holds the last 30 lines of its log.
    pub fn start(self) -> BoxFuture<'static, Result<Cluster>> {
        Box::pin(self.start_with_retries())
    }

    async fn start_with_retries(self) -> Result<Cluster> {
        // Fails only when a provider is installed already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let binaries = tokio::task::spawn_blocking(Binaries::locate_or_build)
            .await
            .map_err(|error| Error::Io {
                what: "look for the programs".into(),
                source: std::io::Error::other(error),
            })??;
        let mut attempt = 1;
        loop {
            match self.try_start(&binaries).await {
                Err(error) if error.is_port_clash() && attempt < START_ATTEMPTS => attempt += 1,
                other => return other,
            }
        }
    }

    async fn try_start(&self, binaries: &Binaries) -> Result<Cluster> {
        let folder = create_folder()?;
        let (etcd_port, etcd_peer_port, api_port) = (free_port()?, free_port()?, free_port()?);
        let gates: Vec<String> = self
            .feature_gates
            .iter()
            .map(|(name, on)| format!("{name}={on}"))
            .collect();
        let feature_gates = gates.join(",");
        let layout = Layout {
            folder: folder.path(),
            feature_gates: &feature_gates,
            etcd_port,
            etcd_peer_port,
            api_port,
        };
        let authority = write_pki(folder.path())?;
        let api_url = format!("https://127.0.0.1:{api_port}");
        for identity in [
            Identity::Admin,
            Identity::KubeScheduler,
            Identity::KubeControllerManager,
            Identity::Kwok,
        ] {
            access::write_kubeconfig(folder.path(), &authority, &api_url, &identity)?;
        }
        certs::write(
            &folder.path().join("kwok.yaml"),
            &kwok::configuration(self.start),
        )?;
        certs::write(
            &folder.path().join("audit-policy.yaml"),
            writes::AUDIT_POLICY,
        )?;
        let admin =
            access::client_from(&access::kubeconfig_file(folder.path(), &Identity::Admin)).await?;
        let slots = self.core_slots(binaries, &layout, &admin);
        let scheduler_cert = access::cert_files(folder.path(), &Identity::KubeScheduler);
        let cluster = Cluster {
            programs: Mutex::new(slots),
            outages: Mutex::new(Vec::new()),
            etcd_port,
            etcd_peer_port,
            api_port,
            binaries: binaries.clone(),
            authority,
            scheduler_cert,
            admin,
            feature_gates: feature_gates.clone(),
            audit: self.audit,
            failed: AtomicBool::new(false),
            folder: Arc::new(folder),
        };
        match self.bring_up(&cluster).await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                super::kill_all(&mut cluster.programs());
                let kept = super::keep_logs_if_asked(cluster.folder(), !error.is_port_clash());
                Err(error.with_logs_in(kept.as_deref()))
            }
        }
    }

    fn core_slots(
        &self,
        binaries: &Binaries,
        layout: &Layout<'_>,
        admin: &Client,
    ) -> BTreeMap<Program, Slot> {
        let slot = |program: &Program, path: &Path, args: Vec<String>, probe: Probe| Slot {
            spec: layout.spec(program, path, args),
            probe,
            running: None,
        };
        let mut slots = BTreeMap::new();
        let etcd_probe = Probe::Http {
            port: layout.etcd_port,
            path: "/health",
        };
        slots.insert(
            Program::Etcd,
            slot(&Program::Etcd, &binaries.etcd, layout.etcd(), etcd_probe),
        );
        let args = layout.kube_apiserver(self.audit, &self.runtime_config, &self.api_server_args);
        let api_probe = Probe::Https {
            client: admin.clone(),
            path: "/readyz",
        };
        slots.insert(
            Program::KubeApiserver,
            slot(
                &Program::KubeApiserver,
                &binaries.kube_apiserver,
                args,
                api_probe,
            ),
        );
        slots
    }

    async fn bring_up(&self, cluster: &Cluster) -> Result<()> {
        cluster.start(&Program::Etcd).await?;
        cluster.start(&Program::KubeApiserver).await?;
        if self.controller_manager {
            cluster.add_controller_manager(&self.controller_manager_args)?;
        }
        if self.kwok {
            cluster.add_kwok()?;
        }
        let (manager, kwok) = tokio::join!(
            cluster.start_if(self.controller_manager, &Program::KubeControllerManager),
            cluster.start_if(self.kwok, &Program::Kwok),
        );
        manager.and(kwok)?;
        if self.controller_manager {
            cluster
                .wait_for_default_account("default", DEFAULT_ACCOUNT_TIMEOUT)
                .await?;
        } else {
            cluster.create_default_account("default").await?;
        }
        for template in &self.nodes {
            cluster.add_nodes(template).await?;
        }
        Ok(())
    }
}

/// A folder in memory where there is one. Folders of processes that were killed before they could remove theirs are removed here.
fn create_folder() -> Result<TempDir> {
    let shm = Path::new("/dev/shm");
    let parent = if shm.is_dir() {
        shm.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    sweep(&parent);
    let folder = tempfile::Builder::new()
        .prefix(&format!("{FOLDER_PREFIX}{}-", std::process::id()))
        .tempdir_in(&parent)
        .map_err(Error::io(format!(
            "create a folder in {}",
            parent.display()
        )))?;
    for name in ["logs", "pki", "kubeconfig"] {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).map_err(Error::io(format!("create {}", path.display())))?;
    }
    Ok(folder)
}

fn sweep(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(FOLDER_PREFIX))
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn write_pki(folder: &Path) -> Result<Authority> {
    let pki = folder.join("pki");
    let authority = Authority::new(&pki, "muster-control-plane", &[])?;
    authority.server(
        "kube-apiserver",
        &[
            "127.0.0.1",
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "10.96.0.1",
        ],
    )?;
    authority.server("loopback", &["127.0.0.1", "localhost"])?;
    certs::write_signing_key(&pki)?;
    Ok(authority)
}
