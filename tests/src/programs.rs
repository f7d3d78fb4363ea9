//! Muster's own programs, as files to start.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, bail};

/// Builds a binary of the workspace in the profile that this test was built in, and returns its
/// path. Does little when it is fresh.
fn build(package: &str, binary: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let mut command = Command::new(env!("CARGO"));
    command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args([
            "build",
            "--locked",
            "--quiet",
            "--package",
            package,
            "--bin",
            binary,
        ]);
    if folder.ends_with("release") {
        command.arg("--release");
    }
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    let output = command.output().context("cargo build starts")?;
    if !output.status.success() {
        bail!(
            "cargo build of {binary} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let path = folder.join(binary);
    if !path.is_file() {
        bail!("cargo built {binary}, but {} is not there", path.display());
    }
    Ok(path)
}

/// Folder of this profile's binaries: the test executable lies in `deps` below it.
fn folder() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("path of the running test")?;
    let deps = test.parent().context("folder of the running test")?;
    Ok(if deps.ends_with("deps") {
        deps.parent().context("folder above deps")?.to_owned()
    } else {
        deps.to_owned()
    })
}

fn once(
    cell: &OnceLock<Result<PathBuf, String>>,
    package: &str,
    binary: &str,
) -> anyhow::Result<PathBuf> {
    cell.get_or_init(|| {
        folder()
            .and_then(|folder| build(package, binary, &folder))
            .map_err(|error| format!("{error:#}"))
    })
    .clone()
    .map_err(anyhow::Error::msg)
}

/// Path of `muster-scheduler`.
pub fn scheduler() -> anyhow::Result<PathBuf> {
    static CELL: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&CELL, "muster-scheduler", "muster-scheduler")
}

/// Path of `muster-agent`.
pub fn agent() -> anyhow::Result<PathBuf> {
    static CELL: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&CELL, "muster-agent", "muster-agent")
}
