//! The command line: arguments, logs, and what the commands share.

mod fleet;
mod inspect;
mod run;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use muster_agent::connector::{Connector, FileToken, NetConnector, NoToken, TokenProvider};
use muster_agent::profile::Profile;
use muster_agent::scenario::Scenario;
use muster_agent::source::reader;
use muster_proto::inventory::ByeReason;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code when only a new process can go on, for example after a driver upgrade: let the kubelet start it again.
const EXIT_RESTART: u8 = 3;

/// Reports NVIDIA GPUs, their health and their holders to the Muster scheduler.
///
/// Try it without GPUs or a cluster: `muster-agent inspect --source fake --profile gb200-4`.
#[derive(Debug, Parser)]
#[command(name = "muster-agent", version)]
pub struct Cli {
    /// Form of log lines on standard error. RUST_LOG sets the level, e.g. RUST_LOG=muster_agent=debug.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Report this node's GPUs until told to stop (SIGTERM).
    ///
    /// Opens one stream to each address of the scheduler's URL. With --source fake the devices are those
    /// of a profile and the kubelet is played too, so it runs on any machine.
    Run(run::RunArgs),
    /// Print what the agent sees: devices, health, holders.
    Inspect(inspect::InspectArgs),
    /// Play many nodes of fake GPUs in this one process, each with its own stream.
    ///
    /// Nodes are either counted (--count, --prefix: names are PREFIX0, PREFIX1, ...) or those of a
    /// cluster that match a selector (--kubeconfig, --node-selector), as they come and go.
    Fleet(fleet::FleetArgs),
    /// Read through NVML for the agent that has started this; told over standard input and output.
    #[command(hide = true)]
    ReadNvml,
}

/// Where devices come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// The NVIDIA driver's library.
    Nvml,
    /// A profile, with a scenario of faults.
    Fake,
}

/// What a fake node has and what goes wrong on it.
#[derive(Debug, Args)]
pub struct FakeArgs {
    /// Profile of fake devices: h100-8, a100-8, a100-8-mig, l40s-4, gb200-4, mixed, or a TOML file.
    #[arg(long, value_name = "NAME|FILE", default_value = "h100-8")]
    pub profile: String,
    /// Faults over time: xid79-and-back, node-silent, replay, clone-uuid, remap, hang, crash, leak, or a TOML file.
    #[arg(long, value_name = "NAME|FILE")]
    pub scenario: Option<String>,
}

impl FakeArgs {
    fn load(&self) -> Result<(Arc<Profile>, Option<Arc<Scenario>>)> {
        let profile = Profile::load(&self.profile).context("--profile")?;
        let scenario = self
            .scenario
            .as_deref()
            .map(Scenario::load)
            .transpose()
            .context("--scenario")?;
        Ok((Arc::new(profile), scenario.map(Arc::new)))
    }
}

/// How to reach the scheduler.
#[derive(Debug, Args)]
pub struct SchedulerArgs {
    /// The scheduler's agent endpoint, https://HOST:PORT or http://HOST:PORT. Every address of HOST is a replica and gets a stream.
    #[arg(long, value_name = "URL", env = "MUSTER_SCHEDULER")]
    pub scheduler: String,
    /// CA certificates (PEM) that the scheduler's certificate is checked against; needed with https.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

impl SchedulerArgs {
    fn connector(&self, tokens: &Tokens) -> Result<Arc<dyn Connector>> {
        let pem = match &self.ca_file {
            Some(path) => Some(
                std::fs::read(path)
                    .with_context(|| format!("--ca-file: cannot read {}", path.display()))?,
            ),
            None => None,
        };
        let connector = NetConnector::new(&self.scheduler, pem.as_deref())?;
        if tokens.present && !connector.is_private() {
            bail!(
                "scheduler url {}: a token is sent over https, or to this machine, only",
                self.scheduler
            );
        }
        Ok(Arc::new(connector))
    }
}

struct Tokens {
    provider: Arc<dyn TokenProvider>,
    present: bool,
}

fn tokens(file: Option<FileToken>) -> Tokens {
    match file {
        Some(file) => Tokens {
            provider: Arc::new(file),
            present: true,
        },
        None => Tokens {
            provider: Arc::new(NoToken),
            present: false,
        },
    }
}

/// Sets up logs on standard error.
pub fn init_logs(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => logs.with_target(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}

/// Runs a command.
pub fn execute(command: Command, log_format: LogFormat) -> Result<ExitCode> {
    match command {
        // One node needs one thread: this one, which lives as long as the process. The reader dies with it.
        Command::Run(args) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(run::run(args, log_format)),
        Command::Inspect(args) => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(inspect::inspect(args)),
        Command::Fleet(args) => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(fleet::fleet(args)),
        Command::ReadNvml => {
            reader::child::read()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Arguments by which this program reads for an agent that logs in this form.
fn reader_arguments(log_format: LogFormat) -> Vec<OsString> {
    let form = match log_format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    ["--log-format", form, "read-nvml"]
        .map(OsString::from)
        .into()
}

/// Waits for SIGTERM (the pod is replaced, as a rule) or SIGINT (somebody ends it).
async fn stop_signal() -> Result<ByeReason> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => ByeReason::Upgrade,
        _ = interrupt.recv() => ByeReason::Shutdown,
    })
}

fn boot_id(path: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Cli;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    /// Other tools start these: the spellings stay.
    #[test]
    fn command_lines_that_others_use_are_taken() {
        for line in [
            "muster-agent run --scheduler https://a:1 --node-name n --source nvml --ca-file c \
             --token-file t --nvml-library l --pod-resources-socket s --expected-gpus 8 \
             --watchdog 45 --node-uid u",
            "muster-agent run --scheduler http://a:1 --node-name n --source fake --profile h100-8 \
             --scenario xid79-and-back",
            "muster-agent run --scheduler http://a:1 --node-name n",
            "muster-agent inspect",
            "muster-agent inspect --output json",
            "muster-agent inspect --output table --source fake --profile p --scenario s --at 30",
            "muster-agent fleet --scheduler http://a:1 --profile p --scenario s --kubeconfig k \
             --node-selector a=b,!c",
            "muster-agent fleet --scheduler http://a:1 --profile p --count 5000 --prefix gpu-",
            "muster-agent fleet --scheduler https://a:1 --profile p --count 5 --token-dir d \
             --ca-file c --spread 2.5 --seed 7 --kubelet unknown",
            "muster-agent --log-format json inspect",
            "muster-agent --log-format json read-nvml",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}\n{error}");
            }
        }
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for line in [
            "muster-agent",
            "muster-agent run --scheduler http://a:1 --node-name n --source magic",
            "muster-agent run --scheduler http://a:1 --node-name n --watchdog 0",
            "muster-agent fleet --scheduler http://a:1 --profile p",
            "muster-agent fleet --scheduler http://a:1 --count 5 --kubeconfig k",
            "muster-agent fleet --scheduler http://a:1 --count 5 --node-selector a=b",
            "muster-agent inspect --output xml",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
