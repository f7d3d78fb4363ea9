//! README's first command, as a user starts it, and kubectl against it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_control_plane::Binaries;
use muster_tests::programs;
use rustix::process::{Pid, Signal, kill_process};

/// The line after which a held demo waits for its user.
const HELD: &str = "The cluster stays up until Ctrl-C";
/// Longest wait for a job of the user's to run.
const PATIENCE: Duration = Duration::from_secs(60);
const EXAMPLE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/examples/pytorchjob-1-4.yaml"
);

/// The demo's process; it ends with the test.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn kubectl(config: &Path, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(Binaries::locate_or_build()?.kubectl);
    let cache = config.with_file_name("kubectl-cache");
    command.arg("--kubeconfig").arg(config);
    command.arg("--cache-dir").arg(cache).args(args);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output()?;
    let (out, err) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    ensure!(status.success(), "kubectl {args:?}: {out}{err}");
    Ok(out.into_owned())
}

/// What a user does with a demo that is held: takes a job of the story away, submits it again from
/// the file that README names, and looks at the gangs.
fn use_it(config: &Path) -> anyhow::Result<()> {
    kubectl(config, &["delete", "-f", EXAMPLE, "--timeout=30s"])?;
    let said = kubectl(config, &["apply", "-f", EXAMPLE])?;
    ensure!(
        said.contains("pytorchjob.kubeflow.org/train-1-4 created"),
        "{said}"
    );
    let end = Instant::now() + PATIENCE;
    loop {
        let table = kubectl(config, &["get", "gangs"])?;
        let heads = table.lines().next().unwrap_or_default();
        let heads: Vec<&str> = heads.split_whitespace().collect();
        ensure!(
            heads == ["NAME", "PHASE", "MEMBERS", "REASON", "AGE"],
            "{table}"
        );
        let line = table.lines().find(|line| line.starts_with("train-1-4 "));
        if line.is_some_and(|line| line.contains("Running") && line.contains("5/5")) {
            break;
        }
        ensure!(Instant::now() < end, "train-1-4 should run: {table}");
        std::thread::sleep(Duration::from_millis(300));
    }
    let said = kubectl(config, &["describe", "gang", "train-1-4"])?;
    ensure!(said.contains("AllBound"), "{said}");
    let pods = kubectl(config, &["get", "pods", "-o", "name"])?;
    ensure!(pods.contains("pod/train-1-4-worker-3"), "{pods}");
    Ok(())
}

#[test]
fn the_demo_tells_its_story_to_the_end_and_then_takes_the_jobs_of_its_user() -> anyhow::Result<()> {
    let child = Command::new(programs::scheduler()?)
        .args(["demo", "--plain", "--hold"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut demo = Demo(child);
    let mut lines = BufReader::new(demo.0.stdout.take().context("its output")?).lines();
    let mut text = String::new();
    for line in lines.by_ref() {
        let line = line?;
        if line.starts_with(HELD) {
            break;
        }
        text.push_str(&line);
        text.push('\n');
    }
    check_story(&text);
    let config = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("export KUBECONFIG="))
        .context("the first lines say how to point kubectl at it")?;
    use_it(Path::new(config))?;
    let pid = i32::try_from(demo.0.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.context("its process id")?, Signal::INT)?;
    for line in lines {
        text.push_str(&line?);
        text.push('\n');
    }
    let mut errors = String::new();
    let stderr = demo.0.stderr.as_mut().context("its errors")?;
    stderr.read_to_string(&mut errors)?;
    assert_eq!(demo.0.wait()?.code(), Some(0), "{text}\n{errors}");
    Ok(())
}

fn check_story(text: &str) {
    let end = text.split("Gangs at the end:").nth(1).unwrap_or_default();
    for (gang, phase) in [
        ("train-1-4", "Running"),
        ("train-cpu-master", "Running"),
        ("pod-notebook", "Running"),
        ("train-batch", "Succeeded"),
        ("train-too-big-for-now", "Running"),
        ("train-impossible", "Waiting"),
    ] {
        let line = end.lines().find(|line| line.contains(gang));
        assert!(
            line.is_some_and(|line| line.contains(phase)),
            "{gang} should be {phase}:\n{text}"
        );
    }
    let last = text.trim_end().lines().last().unwrap_or_default();
    assert!(last.ends_with("invariants broken: 0"), "{text}");
    for wanted in [
        "submitted: an impossible one",
        "falls off the bus under train-cpu-master-worker-1",
        "is repaired",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
}
