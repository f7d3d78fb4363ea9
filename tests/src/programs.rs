//! Muster's own programs, as files to start.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, bail};

/// Builds the binaries of the workspace in the profile that this test was built in. Of the whole
/// workspace, so that dependencies have the features that `cargo test --workspace` gave them and
/// are not built twice. Does little when all is fresh.
fn build() -> anyhow::Result<PathBuf> {
    let folder = folder()?;
    let mut command = Command::new(env!("CARGO"));
    // What cargo says about this package to its test would change the fingerprints of build scripts
    // that look at it (that of ring does), and half of all crates would be built again each time.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args([
            "build",
            "--locked",
            "--quiet",
            "--workspace",
            "--bin",
            "muster-scheduler",
            "--bin",
            "muster-agent",
            // Without a test, cargo leaves out what tests alone depend on, and the features that they ask for with it.
            "--test",
            "faults",
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
            "cargo build failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(folder)
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

fn program(name: &str) -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)?;
    let path = folder.join(name);
    if !path.is_file() {
        bail!("cargo built {name}, but {} is not there", path.display());
    }
    Ok(path)
}

/// Path of `muster-scheduler`.
pub fn scheduler() -> anyhow::Result<PathBuf> {
    program("muster-scheduler")
}

/// Path of `muster-agent`.
pub fn agent() -> anyhow::Result<PathBuf> {
    program("muster-agent")
}

/// Path of the fake `libnvidia-ml`, which is built with the tests of this package.
pub fn fake_nvml() -> anyhow::Result<PathBuf> {
    let folder = folder()?;
    let places = ["deps/libnvidia_ml.so", "libnvidia_ml.so"].map(|name| folder.join(name));
    places
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("libnvidia_ml.so is not in {}", folder.display()))
}
