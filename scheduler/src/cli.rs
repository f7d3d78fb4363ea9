//! The command line.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use futures::future::LocalBoxFuture;
use muster_kubernetes::manifests;

use crate::certificates::MakeCerts;
use crate::clock::Wall;
use crate::config::{Config, DOCUMENTED};
use crate::dump::Dump;
use crate::frozen;
use crate::gate::PairLease;
use crate::logs;
use crate::plan::Plan;
use crate::scheduler::{Clients, Ended, Options, Scheduler};
use crate::server::Door;
use crate::simulate::Simulate;
use crate::span::Span;
use crate::tls::{Callers, Certificates};

/// Places the pods of a training job together or not at all, as an extender of an unmodified
/// kube-scheduler.
#[derive(Debug, Parser)]
#[command(name = "muster-scheduler", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the scheduler against an API server.
    Serve(Serve),
    /// Keep the kube-scheduler of a Pod from leading before its Muster does, and exit: for an init container.
    CloseGate(CloseGate),
    /// Freeze the scheduler: nothing new is bound, nothing that runs is touched, until `unfreeze`.
    Freeze(Freeze),
    /// Let a frozen scheduler go on.
    Unfreeze(Unfreeze),
    /// Print what has to be installed, as YAML.
    Print(Print),
    /// Make the certificates that Muster, kube-scheduler and the agents need.
    MakeCerts(MakeCerts),
    /// Show gangs being placed on fake GPUs, in this process.
    #[cfg(feature = "demo")]
    Demo(crate::demo::Demo),
    /// Replay gangs in virtual time on nodes that do not exist; figures and pictures go to a folder.
    Simulate(Simulate),
    /// Take what the planner of a running scheduler sees: to a file or standard output, with or without names.
    Dump(Dump),
    /// Plan the gangs of a dump: where each of them goes, or why it goes nowhere.
    Plan(Plan),
    /// Check a configuration file and say what is wrong with it.
    CheckConfig {
        /// The file.
        file: PathBuf,
    },
}

/// Run the scheduler against an API server until SIGTERM or SIGINT.
#[derive(Debug, Args)]
pub struct Serve {
    /// kubeconfig file; without it, the Pod's own service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Configuration file; without it, the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address for kube-scheduler: HTTPS with client certificates.
    /// Without it, port 8443 of every address, or of loopback with --insecure-loopback.
    #[arg(long, value_name = "ADDR")]
    extender_listen: Option<SocketAddr>,
    /// Address for agents: gRPC over TLS, tokens reviewed by the API server.
    /// Without it, port 8444 of every address, or of loopback with --insecure-loopback.
    #[arg(long, value_name = "ADDR")]
    agent_listen: Option<SocketAddr>,
    /// Address for /metrics, /healthz, /readyz and, on loopback only, /debug/dump: plain HTTP.
    /// Without it, port 8080 of every address, or of loopback with --insecure-loopback.
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<SocketAddr>,
    /// Folder with tls.crt, tls.key and client-ca.crt (whose certificates kube-scheduler may show).
    /// Changed files are taken up within seconds.
    #[arg(long, value_name = "DIR", conflicts_with = "insecure_loopback")]
    tls_dir: Option<PathBuf>,
    /// Speak plain HTTP and believe agents without a token. All three addresses must be loopback.
    #[arg(long)]
    insecure_loopback: bool,
    /// Name of this replica in the Lease; by default made of host name, process id and start time.
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// One of several replicas, each with a kube-scheduler beside it: the name of this one, as a rule of its Pod.
    /// Only one process of a name may run at a time; the next one takes its Lease over at once. kube-scheduler is
    /// started with --leader-elect-resource-name=muster-kube-scheduler-NAME, and leads when this replica does.
    #[arg(long, value_name = "NAME", conflicts_with = "identity")]
    replica: Option<String>,
    /// UID of the Pod NAME: its kube-scheduler's Lease goes with it.
    #[arg(long, value_name = "UID", requires = "replica")]
    replica_uid: Option<String>,
}

/// Close the gate of a Pod before its kube-scheduler starts. Fails if the API server does not say that it is closed.
#[derive(Debug, Args)]
pub struct CloseGate {
    /// kubeconfig file; without it, the Pod's own service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Configuration file; without it, the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the replica, as for serve.
    #[arg(long, value_name = "NAME")]
    replica: String,
    /// UID of the Pod NAME: its kube-scheduler's Lease goes with it.
    #[arg(long, value_name = "UID")]
    replica_uid: Option<String>,
}

impl CloseGate {
    async fn run(self) -> anyhow::Result<()> {
        logs::start();
        install_provider();
        let config = read_config(self.config.as_deref())?;
        let clients = clients(self.kubeconfig.as_deref(), config.writes.in_flight_max).await?;
        let lease = PairLease {
            client: clients.lease,
            namespace: config.lease.namespace,
            replica: self.replica,
            uid: self.replica_uid,
        };
        lease.close().await
    }
}

/// Where the Lease is that the switch is on.
#[derive(Debug, Args)]
struct Switch {
    /// kubeconfig file; without it what kubectl would use, or the Pod's own service account.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Configuration file, for the name of the Lease; without it, the defaults.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Freeze the scheduler: no plan is made or released, no pod is bound or deleted, no job changed; what waits is told
/// why. A gang of which some members are bound is completed. The same as an annotation muster.dev/frozen on
/// Muster's Lease.
#[derive(Debug, Args)]
pub struct Freeze {
    /// Why, for those who see it: shown by `kubectl get gangs` and `kubectl describe gang`.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    switch: Switch,
}

/// Let a frozen scheduler go on.
#[derive(Debug, Args)]
pub struct Unfreeze {
    #[command(flatten)]
    switch: Switch,
}

impl Switch {
    async fn throw(self, why: Option<&str>) -> anyhow::Result<()> {
        install_provider();
        let config = read_config(self.config.as_deref())?;
        let client = match &self.kubeconfig {
            Some(file) => clients(Some(file), 1).await?.lease,
            None => {
                let found = kube::Config::infer().await;
                let found = found.context("no kubeconfig and no service account")?;
                crate::client::clients(found, 1).await?.lease
            }
        };
        writeln(&frozen::switch(client, &config.lease, why).await?)
    }
}

fn read_config(file: Option<&Path>) -> anyhow::Result<Config> {
    Ok(match file {
        Some(file) => Config::read(file)?,
        None => Config::default(),
    })
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// The Gang custom resource definition.
    Crds,
    /// Namespace, service accounts and the least rights.
    Rbac,
    /// The policies that hold jobs and pods back at creation (Kubernetes 1.36 and later).
    AdmissionPolicy,
    /// The policies that limit what the scheduler's account may write (Kubernetes 1.30 and later).
    AccountPolicy,
    /// The configuration of the kube-scheduler that calls Muster.
    KubeSchedulerConfig,
    /// Muster's own configuration file: every key with its default, unit and limits.
    Config,
}

/// Print what has to be installed, as YAML.
#[derive(Debug, Args)]
pub struct Print {
    #[arg(value_enum)]
    what: What,
    /// Where kube-scheduler reaches the extender, for example https://muster-scheduler:8443.
    #[arg(
        long,
        value_name = "URL",
        required_if_eq("what", "kube-scheduler-config")
    )]
    extender_url: Option<String>,
    /// Folder, as kube-scheduler sees it, with ca.crt, tls.crt and tls.key for the extender.
    #[arg(long, value_name = "DIR")]
    tls_dir: Option<String>,
    /// kubeconfig file, as kube-scheduler sees it.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<String>,
    /// One of several replicas, each with a Muster beside it that is started with --replica.
    #[arg(long)]
    leader_elect: bool,
    /// Timeout of filter and preempt.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    filter_timeout: Span,
    /// Timeout of bind: how long a gang may gather at the barrier, twice over.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    bind_timeout: Span,
}

/// Runs the command line; the result becomes the exit code.
///
/// Boxed, so that the program is compiled with this library and not once more with each of its users.
pub fn run(cli: Cli) -> LocalBoxFuture<'static, anyhow::Result<ExitCode>> {
    Box::pin(carry_out(cli))
}

async fn carry_out(cli: Cli) -> anyhow::Result<ExitCode> {
    let done = match cli.command {
        Command::Serve(serve) => serve.run().await,
        Command::CloseGate(close) => close.run().await,
        Command::Freeze(freeze) => freeze.switch.throw(Some(&freeze.reason)).await,
        Command::Unfreeze(unfreeze) => unfreeze.switch.throw(None).await,
        #[cfg(feature = "demo")]
        Command::Demo(demo) => return demo.run().await,
        Command::Simulate(simulate) => simulate.run(),
        Command::Dump(dump) => dump.run().await,
        Command::Plan(plan) => plan.run(),
        Command::Print(print) => {
            std::io::Write::write_all(&mut std::io::stdout(), print.text()?.as_bytes())?;
            Ok(())
        }
        Command::MakeCerts(certificates) => {
            let text = certificates.text().context("make-certs")?;
            std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
            Ok(())
        }
        Command::CheckConfig { file } => {
            Config::read(&file)?;
            writeln(&format!("{}: ok", file.display()))
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn writeln(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

impl Print {
    fn text(&self) -> anyhow::Result<String> {
        Ok(match self.what {
            What::Crds => manifests::crds(),
            What::Rbac => manifests::rbac(),
            What::AdmissionPolicy => manifests::admission_policy(),
            What::AccountPolicy => manifests::account_policy(),
            What::Config => DOCUMENTED.to_owned(),
            What::KubeSchedulerConfig => {
                let Some(url) = self.extender_url.clone() else {
                    bail!("--extender-url is missing");
                };
                check_url(&url, self.tls_dir.is_some())?;
                manifests::kube_scheduler_config(&manifests::KubeSchedulerConfigOptions {
                    extender_url: url,
                    tls_dir: self.tls_dir.clone(),
                    kubeconfig: self.kubeconfig.clone(),
                    leader_elect: self.leader_elect,
                    filter_timeout: self.filter_timeout.0,
                    bind_timeout: self.bind_timeout.0,
                })
            }
        })
    }
}

fn check_url(url: &str, tls: bool) -> anyhow::Result<()> {
    let wanted = if tls { "https://" } else { "http://" };
    if !url.starts_with("https://") && !url.starts_with("http://") {
        bail!("--extender-url is {url}: must begin with http:// or https://");
    }
    if !url.starts_with(wanted) {
        bail!(
            "--extender-url is {url}: must begin with {wanted} {} --tls-dir \
             (kube-scheduler checks no certificate when it is given no CA)",
            if tls { "with" } else { "without" }
        );
    }
    Ok(())
}

impl Serve {
    async fn run(self) -> anyhow::Result<()> {
        logs::start();
        install_provider();
        let config = read_config(self.config.as_deref())?;
        let doors = self.doors(&config)?;
        let clients = clients(self.kubeconfig.as_deref(), config.writes.in_flight_max).await?;
        let identity = self.identity.clone().unwrap_or_else(|| {
            let replica = self.replica.as_deref();
            replica.map_or_else(identity, |name| format!("{name}@{}", identity()))
        });
        let seed = identity
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            });
        let options = Options {
            identity,
            seed,
            wall: Wall::System,
            agents_believed: self.insecure_loopback,
        };
        let [extender, agents, pages] = doors;
        tracing::info!(
            identity = %options.identity,
            extender = %extender.address()?,
            agents = %agents.address()?,
            http = %pages.address()?,
            "starting"
        );
        let mut scheduler = Scheduler::start(&clients, &config, &options);
        if let Some(replica) = &self.replica {
            let lease = PairLease {
                client: clients.lease.clone(),
                namespace: config.lease.namespace.clone(),
                replica: replica.clone(),
                uid: self.replica_uid.clone(),
            };
            scheduler.keep_gate(lease, &config.lease.name);
        }
        let routers = (scheduler.extender(), scheduler.agents().router());
        scheduler.serve(extender, routers.0);
        scheduler.serve(agents, routers.1);
        scheduler.serve_pages(pages);
        let ended = tokio::select! {
            biased;
            signal = asked_to_stop() => {
                tracing::info!(signal = signal?, "stopping");
                scheduler.stop().await;
                Ended::Stopped
            }
            ended = scheduler.ended() => ended,
        };
        match ended {
            Ended::Stopped => Ok(()),
            ended => {
                tracing::error!(why = %ended, "ended");
                Err(ended.into())
            }
        }
    }

    /// Where the doors for kube-scheduler, agents and pages listen.
    fn addresses(&self) -> anyhow::Result<[SocketAddr; 3]> {
        let host = if self.insecure_loopback {
            Ipv4Addr::LOCALHOST
        } else {
            Ipv4Addr::UNSPECIFIED
        };
        let address = |flag: &str, asked: Option<SocketAddr>, port: u16| {
            let address = asked.unwrap_or_else(|| SocketAddr::from((host, port)));
            if self.insecure_loopback && !address.ip().is_loopback() {
                bail!("{flag} is {address}: must be a loopback address with --insecure-loopback");
            }
            Ok(address)
        };
        Ok([
            address("--extender-listen", self.extender_listen, 8443)?,
            address("--agent-listen", self.agent_listen, 8444)?,
            address("--http-listen", self.http_listen, 8080)?,
        ])
    }

    fn doors(&self, config: &Config) -> anyhow::Result<[Door; 3]> {
        if self.tls_dir.is_none() && !self.insecure_loopback {
            bail!("neither --tls-dir nor --insecure-loopback is given");
        }
        let [extender, agents, pages] = self.addresses()?;
        let certificates = |callers| {
            self.tls_dir
                .as_deref()
                .map(|directory| Certificates::read(directory, callers))
                .transpose()
        };
        let kube_scheduler = Callers::Named(config.extender.client_name.clone());
        let connections = config.extender.connections_max;
        Ok([
            Door::open(
                "extender door",
                extender,
                certificates(kube_scheduler)?,
                connections,
            )?,
            Door::open(
                "agent door",
                agents,
                certificates(Callers::Anybody)?,
                config.agents.streams_max,
            )?,
            Door::open_pages("http door", pages, 256)?,
        ])
    }
}

/// Chooses ring for every TLS connection of the process. A second call does nothing.
pub fn install_provider() {
    // Fails only when one has been installed before.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Clients from a kubeconfig file or the Pod's account.
async fn clients(kubeconfig: Option<&Path>, writes_max: usize) -> anyhow::Result<Clients> {
    let config = match kubeconfig {
        Some(file) => {
            let read = kube::config::Kubeconfig::read_from(file)
                .with_context(|| format!("kubeconfig {}", file.display()))?;
            let options = kube::config::KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(read, &options)
                .await
                .with_context(|| format!("kubeconfig {}", file.display()))?
        }
        None => kube::Config::incluster().context("no --kubeconfig and no service account")?,
    };
    crate::client::clients(config, writes_max).await
}

fn identity() -> String {
    let host = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "muster-scheduler".into());
    let start = jiff::Timestamp::now().as_nanosecond();
    format!("{host}_{}_{start:x}", std::process::id())
}

async fn asked_to_stop() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        biased;
        _ = term.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    /// Other tools start these: the spellings stay.
    #[test]
    fn command_lines_that_others_use_are_taken() {
        let lines = [
            "muster-scheduler serve --kubeconfig k --config c --extender-listen 0.0.0.0:1 \
             --agent-listen 0.0.0.0:2 --http-listen [::]:3 --tls-dir d",
            "muster-scheduler serve --kubeconfig k --config c --extender-listen 127.0.0.1:1 \
             --agent-listen 127.0.0.1:2 --http-listen 127.0.0.1:3 --insecure-loopback",
            "muster-scheduler serve --tls-dir d --replica a --replica-uid u",
            "muster-scheduler close-gate --config c --replica a --replica-uid u",
            "muster-scheduler freeze --reason maintenance --kubeconfig k --config c",
            "muster-scheduler unfreeze --kubeconfig k",
            "muster-scheduler print crds",
            "muster-scheduler print rbac",
            "muster-scheduler print admission-policy",
            "muster-scheduler print config",
            "muster-scheduler print kube-scheduler-config --extender-url https://a:1 --tls-dir d \
             --kubeconfig k --filter-timeout 5s --bind-timeout 5m",
            "muster-scheduler print kube-scheduler-config --extender-url http://127.0.0.1:1",
            "muster-scheduler print kube-scheduler-config --extender-url http://127.0.0.1:1 --leader-elect",
            "muster-scheduler check-config file",
            "muster-scheduler simulate --format philly --jobs j --nodes 64 --gpus-per-node 8 --load 0.85 \
             --limit-jobs 9 --seed 42 --policy fifo --write-delay 50ms --until last-arrival --out o --force",
            "muster-scheduler simulate --format muri --jobs j --nodes 8 --policy greedy --out o",
            "muster-scheduler simulate --format scenario --file f --out o",
            "muster-scheduler simulate --format scenario --file f --out o --dump d --dump-at 90s",
            "muster-scheduler dump",
            "muster-scheduler dump --from [::1]:8081 --out d",
            "muster-scheduler dump --out d --redact --key-file k",
            "muster-scheduler plan --dump d",
            "muster-scheduler plan --dump - --gang team/job --json",
        ];
        for line in lines {
            if let Err(error) = parse(line) {
                panic!("{line}\n{error}");
            }
        }
        #[cfg(feature = "demo")]
        for line in [
            "muster-scheduler demo",
            "muster-scheduler demo --hold",
            "muster-scheduler demo --plain --nodes 40",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn values_of_a_command_line_arrive() {
        let cli = parse(
            "muster-scheduler print kube-scheduler-config --extender-url https://a:1 --tls-dir d \
             --kubeconfig k --filter-timeout 7s --bind-timeout 3m",
        );
        let Command::Print(print) = cli.unwrap().command else {
            panic!("print");
        };
        let text = print.text().unwrap();
        for wanted in ["https://a:1", "d/ca.crt", "kubeconfig: k", "7s", "180s"] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
        let cli = parse("muster-scheduler serve --agent-listen 127.0.0.1:7 --insecure-loopback");
        let Command::Serve(serve) = cli.unwrap().command else {
            panic!("serve");
        };
        assert_eq!(
            serve.agent_listen.map(|at| at.to_string()).as_deref(),
            Some("127.0.0.1:7")
        );
        assert!(serve.insecure_loopback && serve.config.is_none());
    }

    fn addresses(line: &str) -> Result<[String; 3], String> {
        let Command::Serve(serve) = parse(line).unwrap().command else {
            panic!("serve");
        };
        let found = serve.addresses().map_err(|error| error.to_string())?;
        Ok(found.map(|address| address.to_string()))
    }

    #[test]
    fn the_insecure_flag_keeps_every_door_on_loopback() {
        assert_eq!(
            addresses("muster-scheduler serve --insecure-loopback"),
            Ok(["127.0.0.1:8443", "127.0.0.1:8444", "127.0.0.1:8080"].map(str::to_owned))
        );
        assert_eq!(
            addresses("muster-scheduler serve --tls-dir d --http-listen 10.0.0.1:1"),
            Ok(["0.0.0.0:8443", "0.0.0.0:8444", "10.0.0.1:1"].map(str::to_owned))
        );
        assert!(
            addresses("muster-scheduler serve --insecure-loopback --http-listen [::1]:1").is_ok()
        );
        for flag in ["--extender-listen", "--agent-listen", "--http-listen"] {
            for open in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1"] {
                let line = format!("muster-scheduler serve --insecure-loopback {flag} {open}");
                let refused = addresses(&line).unwrap_err();
                let named = refused.contains(flag) && refused.contains(open);
                assert!(named && refused.contains("loopback"), "{line}: {refused}");
            }
        }
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for line in [
            "muster-scheduler",
            "muster-scheduler serve --colour red",
            "muster-scheduler serve --tls-dir d --insecure-loopback",
            "muster-scheduler serve --tls-dir d --replica a --identity b",
            "muster-scheduler serve --tls-dir d --replica-uid u",
            "muster-scheduler close-gate --replica-uid u",
            "muster-scheduler freeze",
            "muster-scheduler serve --agent-listen nowhere",
            "muster-scheduler print",
            "muster-scheduler print everything",
            "muster-scheduler print kube-scheduler-config",
            "muster-scheduler check-config",
            "muster-scheduler dump --from localhost",
            "muster-scheduler dump --key-file k",
            "muster-scheduler simulate --format muri --jobs j --out o",
            "muster-scheduler simulate --format scenario --out o",
            "muster-scheduler simulate --format helios --jobs j --nodes 8 --out o",
            "muster-scheduler simulate --format openb --jobs j --out o",
            "muster-scheduler simulate --format muri --jobs j --nodes 8",
            "muster-scheduler simulate --format scenario --file f --nodes 8 --out o",
            "muster-scheduler simulate --format scenario --file f --until soon --out o",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
