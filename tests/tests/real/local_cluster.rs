//! The local cluster that a person starts, from its first line to Ctrl-C.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use muster_control_plane::Child;
use muster_tests::acts::PATIENCE;
use muster_tests::programs;
use rustix::process::{Pid, Signal, kill_process};

/// Longest time from Ctrl-C to the end of all programs.
const END_MAX: Duration = Duration::from_secs(30);

#[test]
fn local_cluster_comes_up_and_leaves_nothing_after_ctrl_c() -> anyhow::Result<()> {
    // Built here, or it is waited for there.
    programs::scheduler()?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_local-cluster"));
    command.args(["--nodes", "1", "--cpu-nodes", "0"]);
    let mut child = Child::start("local-cluster", &command, &log)?;
    let kubeconfig = until(&mut child, PATIENCE, "export KUBECONFIG=", &log)?;
    let kubeconfig = Path::new(&kubeconfig);
    let kubectl = until(
        &mut child,
        PATIENCE,
        "# kubectl of the same version: ",
        &log,
    )?;
    let shown = Command::new(kubectl)
        .args(["get", "nodes", "-o", "name", "--kubeconfig"])
        .arg(kubeconfig)
        .output()?;
    let nodes = String::from_utf8_lossy(&shown.stdout).into_owned();
    anyhow::ensure!(nodes.trim() == "node/gpu-0", "{shown:?}");
    let pid = i32::try_from(child.pid())?;
    let pid = Pid::from_raw(pid).context("a process id")?;
    kill_process(pid, Signal::INT)?;
    let since = Instant::now();
    let ended = loop {
        if let Err(ended) = child.check_running() {
            break ended.to_string();
        }
        anyhow::ensure!(since.elapsed() < END_MAX, "{}", child.log_tail());
        std::thread::sleep(Duration::from_millis(50));
    };
    anyhow::ensure!(ended.contains("exited with exit status: 0"), "{ended}");
    anyhow::ensure!(ended.contains("local-cluster: stopping"), "{ended}");
    anyhow::ensure!(!kubeconfig.exists(), "{} is left", kubeconfig.display());
    Ok(())
}

/// Waits for a line that begins so; the rest of it.
fn until(child: &mut Child, longest: Duration, start: &str, log: &Path) -> anyhow::Result<String> {
    let since = Instant::now();
    loop {
        let said = std::fs::read_to_string(log)?;
        let found = said.lines().find_map(|line| line.strip_prefix(start));
        if let Some(found) = found {
            return Ok(found.to_owned());
        }
        child.check_running()?;
        anyhow::ensure!(since.elapsed() < longest, "no {start} in\n{said}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
