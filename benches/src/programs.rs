//! Muster's own programs, as files to start.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

/// Muster's programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `muster-scheduler`.
    pub scheduler: PathBuf,
    /// `muster-agent`.
    pub agent: PathBuf,
}

impl Programs {
    /// Takes ready programs from a folder, or builds them in the profile in which this program was
    /// built, which does little when they are fresh.
    ///
    /// # Errors
    /// A program that is not in the given folder, or that cargo cannot build.
    pub fn find(folder: Option<&Path>, agents: bool) -> anyhow::Result<Self> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => built()?,
        };
        let program = |name: &str| folder.join(name);
        let programs = Self {
            scheduler: program("muster-scheduler"),
            agent: program("muster-agent"),
        };
        for (program, needed) in [(&programs.scheduler, true), (&programs.agent, agents)] {
            if needed && !program.is_file() {
                bail!("{} is not there", program.display());
            }
        }
        Ok(programs)
    }
}

/// Builds both of the whole workspace, so that dependencies have the features that every other
/// build of the workspace gives them and are not built twice.
fn built() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("path of this program")?;
    let folder = own.parent().context("folder of this program")?.to_owned();
    eprintln!("cargo build of muster-scheduler and muster-agent (minutes when they are not fresh)");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["build", "--locked", "--quiet", "--workspace"])
        .args(["--bin", "muster-scheduler", "--bin", "muster-agent"]);
    if folder.ends_with("release") {
        command.arg("--release");
    }
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    let output = command.output().context("start cargo build")?;
    if !output.status.success() {
        bail!(
            "cargo build failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(folder)
}
