//! The API server in memory, and `muster-scheduler serve` against it.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use muster_control_plane::{Authority, CertFiles, Child, free_port};
use muster_embedded::EmbeddedCluster;
use muster_embedded::api::Limits;
use muster_embedded::serve::Served;
use muster_kubernetes::manifests;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, metric};
use crate::programs::Programs;

/// Group and plural of pods.
pub const PODS: (&str, &str) = ("", "pods");
/// Group and plural of Gangs.
pub const GANGS: (&str, &str) = ("muster.dev", "gangs");
/// Changes and writes that the API server remembers. Watches are never that far behind here, and each
/// change holds two versions of an object.
const REMEMBERED: usize = 8_192;
/// Longest wait for a scheduler to lead. A Lease that a killed one left expires after 15 s.
const LEADS_MAX: Duration = Duration::from_secs(120);
/// Pause between two looks at a page.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// An API server without objects, and the certificates of everybody.
pub struct World {
    /// The API server. No kubelets, no controllers, no kube-scheduler.
    pub cluster: EmbeddedCluster,
    /// Whom everybody believes.
    pub authority: Authority,
    /// Muster's programs.
    pub programs: Programs,
    folder: TempDir,
    served: Served,
}

impl World {
    /// Starts the API server, with what `muster-scheduler print` prints installed. No admission policies:
    /// pods are free from the beginning.
    ///
    /// # Errors
    /// No port, no certificates, no folder.
    pub async fn start(programs: &Programs) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("a folder")?;
        let cluster = EmbeddedCluster::builder()
            .wall_clock()
            .operator(None)
            .kubelet(None)
            .limits(Limits {
                changes: REMEMBERED,
                log: REMEMBERED,
                ..Limits::default()
            })
            .start()?;
        cluster.apply_yaml(&manifests::crds())?;
        cluster.apply_yaml(&manifests::rbac())?;
        let served = cluster.serve(0, true).await?;
        served.write_kubeconfig(&folder.path().join("kubeconfig"))?;
        let authority = Authority::new(&folder.path().join("ca"), "muster-ca", &[])?;
        Ok(Self {
            cluster,
            authority,
            programs: programs.clone(),
            folder,
            served,
        })
    }

    /// A path in the folder of this world, which goes with it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The certificate that kube-scheduler shows.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn caller(&self) -> anyhow::Result<CertFiles> {
        Ok(self
            .authority
            .client("kube-scheduler", "muster-kube-scheduler", &[])?)
    }

    /// Starts Muster with a configuration and waits until it leads.
    ///
    /// # Errors
    /// It does not start, or does not lead in time.
    pub async fn scheduler(&self, config: &str) -> anyhow::Result<Scheduler> {
        let tls = self.file("tls");
        std::fs::create_dir_all(&tls)?;
        let server = self
            .authority
            .server("muster-scheduler", &["localhost", "127.0.0.1"])?;
        std::fs::copy(&server.cert, tls.join("tls.crt"))?;
        std::fs::copy(&server.key, tls.join("tls.key"))?;
        for name in ["ca.crt", "client-ca.crt"] {
            std::fs::write(tls.join(name), self.authority.ca_pem())?;
        }
        let file = self.file("config.yaml");
        std::fs::write(&file, config)?;
        let address = || anyhow::Ok(format!("127.0.0.1:{}", free_port()?));
        let (extender, agents, pages) = (address()?, address()?, address()?);
        let mut command = Command::new(&self.programs.scheduler);
        command.arg("serve");
        command.arg("--kubeconfig").arg(self.file("kubeconfig"));
        command.arg("--config").arg(file);
        command.args(["--extender-listen", &extender]);
        command.args(["--agent-listen", &agents]);
        command.args(["--http-listen", &pages]);
        command.arg("--tls-dir").arg(tls);
        command.env("RUST_LOG", "info").env("RUST_BACKTRACE", "0");
        let log = self.file("muster-scheduler.log");
        let child = Child::start("muster-scheduler", &command, &log)?;
        let mut scheduler = Scheduler {
            child,
            extender,
            agents,
            pages,
        };
        scheduler.leads().await?;
        Ok(scheduler)
    }

    /// Starts `muster-agent` with these arguments and changed environment variables.
    ///
    /// # Errors
    /// It does not start.
    pub fn agent(&self, arguments: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.programs.agent);
        command.args(arguments);
        command.env("RUST_LOG", "warn").env("RUST_BACKTRACE", "0");
        command.envs(environment.iter().copied());
        let log = self.file("muster-agent.log");
        Ok(Child::start("muster-agent", &command, &log)?)
    }

    /// The status of a Gang in namespace `default`, as far as it has one.
    pub fn gang(&self, name: &str) -> Option<Value> {
        let mut gang = self.cluster.get(GANGS, "default", name)?;
        gang.get_mut("status").map(Value::take)
    }

    /// Node by pod name of a gang that has a durable plan in which every member has a pod.
    pub fn places(&self, gang: &str, members: usize) -> Option<Vec<(String, String)>> {
        let status = self.gang(gang)?;
        status.get("planId")?;
        let members_of = status.get("members")?.as_array()?;
        let text = |member: &Value, key: &str| Some(member.get(key)?.as_str()?.to_owned());
        let places: Vec<_> = members_of
            .iter()
            .filter_map(|member| Some((text(member, "pod")?, text(member, "node")?)))
            .collect();
        (places.len() == members).then_some(places)
    }

    /// Ends the API server.
    pub async fn stop(self) {
        self.served.stop().await;
        self.cluster.stop().await;
    }
}

/// A running `muster-scheduler serve`.
pub struct Scheduler {
    /// Its process.
    pub child: Child,
    /// Where it takes kube-scheduler's calls.
    pub extender: String,
    /// Where it takes agents' streams.
    pub agents: String,
    pages: String,
}

impl Scheduler {
    /// Its metrics page.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        http::get(&self.pages, "/metrics").await
    }

    /// What the planner sees, as a dump.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn dump(&self) -> anyhow::Result<Value> {
        let text = http::get(&self.pages, "/debug/dump").await?;
        serde_json::from_str(&text).context("a dump")
    }

    /// Waits until its metrics page is as wanted.
    ///
    /// # Errors
    /// Not in time, or it has ended.
    pub async fn until(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<String> {
        let since = Instant::now();
        loop {
            // Right after the start there is nobody to ask.
            let page = self.metrics().await.unwrap_or_default();
            if wanted(&page) {
                return Ok(page);
            }
            self.child.check_running()?;
            if since.elapsed() > limit {
                bail!(
                    "waited {limit:?} for {what}; its last lines:\n{}",
                    self.child.log_tail()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until it leads.
    ///
    /// # Errors
    /// Not in time, or it has ended.
    pub async fn leads(&mut self) -> anyhow::Result<()> {
        self.until("muster-scheduler to lead", LEADS_MAX, |page| {
            metric(page, "muster_leading") > 0.0
        })
        .await?;
        Ok(())
    }
}

/// Waits until something holds.
///
/// # Errors
/// Not in time.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if since.elapsed() > limit {
            bail!("waited {limit:?} for {what}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
