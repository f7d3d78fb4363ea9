//! Muster on a cluster: its objects, the scheduler under its own account, and its kube-scheduler.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use muster_control_plane::{Cluster, Identity, Program};
use muster_kubernetes::manifests;

use crate::http;
use crate::programs::Programs;

/// Longest wait until Muster is ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A loaded machine may stand still for longer than a leader of production may. The Lease is renewed
/// as often as there.
const LEASE: &str = "lease: {duration: 60s, renewDeadline: 45s, retryPeriod: 2s}\n";
/// Lines of Muster's log in an error.
const LOG_LINES: usize = 30;

/// How Muster is to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its programs.
    pub programs: Programs,
    /// Install the admission policies.
    pub policies: bool,
    /// Nodes count only when an agent reports them.
    pub agents: bool,
    /// `RUST_LOG`.
    pub log: String,
}

/// Muster, running.
#[derive(Clone, Debug)]
pub struct Muster {
    /// Address of `/metrics`.
    pub http: String,
    /// Address for agents.
    pub agents: String,
    extender: String,
}

/// Muster's process.
pub fn program() -> Program {
    Program::Other("muster-scheduler".into())
}

fn free_address() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
    Ok(listener.local_addr().context("its address")?.to_string())
}

impl Muster {
    /// Installs what `muster-scheduler print` prints.
    pub async fn install(cluster: &Cluster, settings: &Settings) -> anyhow::Result<()> {
        cluster.install_job_crds().await?;
        cluster.apply_yaml(&manifests::crds()).await?;
        cluster.wait_for_crds(&["gangs.muster.dev"]).await?;
        cluster.apply_yaml(&manifests::rbac()).await?;
        if settings.policies {
            cluster.apply_yaml(&manifests::admission_policy()).await?;
        }
        Ok(())
    }

    /// Starts Muster, which is installed, with mutual TLS and waits until it leads and is ready.
    pub async fn start(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Muster> {
        let muster = Muster {
            http: free_address()?,
            agents: free_address()?,
            extender: free_address()?,
        };
        let folder = cluster.folder().join("muster");
        let tls = folder.join("tls");
        write_certificates(cluster, &tls)?;
        let config = folder.join("config.yaml");
        let policy = if settings.agents {
            "refuse"
        } else {
            "useAllocatable"
        };
        std::fs::write(
            &config,
            format!("inventory:\n  nodesWithoutAgent: {policy}\n{LEASE}"),
        )?;
        let kubeconfig = cluster
            .service_account_kubeconfig("muster-system", "muster-scheduler")
            .await?;
        let mut command = Command::new(&settings.programs.scheduler);
        command.arg("serve").arg("--kubeconfig").arg(&kubeconfig);
        command.arg("--config").arg(&config);
        command.args(["--extender-listen", &muster.extender]);
        command.args(["--agent-listen", &muster.agents]);
        command.args(["--http-listen", &muster.http]);
        command.arg("--tls-dir").arg(&tls);
        command.env("RUST_LOG", &settings.log);
        // A backtrace would fill the last lines of the log, which are what an error shows.
        command.env("RUST_BACKTRACE", "0");
        cluster.spawn("muster-scheduler", &command).await?;
        muster.wait_ready(cluster).await?;
        Ok(muster)
    }

    /// Starts the unmodified kube-scheduler that asks Muster.
    pub async fn start_kube_scheduler(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let folder = cluster.folder().join("muster");
        let tls = folder.join("client-tls");
        std::fs::create_dir_all(&tls)?;
        let client = cluster
            .authority()
            .client("extender-client", "muster-kube-scheduler", &[])?;
        std::fs::copy(&client.cert, tls.join("tls.crt"))?;
        std::fs::copy(&client.key, tls.join("tls.key"))?;
        std::fs::write(tls.join("ca.crt"), cluster.authority().ca_pem())?;
        let kubeconfig = cluster.kubeconfig(&Identity::KubeScheduler)?;
        let options = manifests::KubeSchedulerConfigOptions {
            extender_url: format!("https://{}", self.extender),
            tls_dir: Some(tls.display().to_string()),
            kubeconfig: Some(kubeconfig.display().to_string()),
            ..manifests::KubeSchedulerConfigOptions::default()
        };
        let config = folder.join("kube-scheduler.yaml");
        std::fs::write(&config, manifests::kube_scheduler_config(&options))?;
        cluster.start_kube_scheduler(&config).await?;
        Ok(())
    }

    async fn wait_ready(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let Err(said) = http::get(&self.http, "/readyz").await else {
                return Ok(());
            };
            cluster.check_all_running()?;
            if since.elapsed() > READY_MAX {
                bail!(
                    "Muster is not ready after {READY_MAX:?}: {said:#}; its last lines:\n{}",
                    log_tail(cluster)
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Muster's metrics page.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        http::get(&self.http, "/metrics").await
    }
}

/// The last lines of Muster's log.
pub fn log_tail(cluster: &Cluster) -> String {
    let log = std::fs::read_to_string(cluster.log(&program())).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}

fn write_certificates(cluster: &Cluster, tls: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(tls)?;
    let server = cluster
        .authority()
        .server("muster-scheduler", &["localhost", "127.0.0.1"])?;
    std::fs::copy(&server.cert, tls.join("tls.crt"))?;
    std::fs::copy(&server.key, tls.join("tls.key"))?;
    for name in ["ca.crt", "client-ca.crt"] {
        std::fs::write(tls.join(name), cluster.authority().ca_pem())?;
    }
    Ok(())
}
