//! README's first command, as a user starts it, and kubectl against it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use muster_control_plane::Binaries;
use muster_tests::programs;
use rustix::process::{Pid, Signal, kill_process};

/// The line after which a held demo waits for its user.
const HELD: &str = "The cluster stays up until Ctrl-C";
/// Longest wait for a job of the user's to run.
const PATIENCE: Duration = Duration::from_secs(60);
/// The file that README names.
const PODS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/examples/labelled-pods.yaml"
);
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

/// Waits until the table of gangs says that all members of a gang run.
fn until_runs(config: &Path, gang: &str, members: &str) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let table = kubectl(config, &["get", "gangs"])?;
        let heads = table.lines().next().unwrap_or_default();
        let heads: Vec<&str> = heads.split_whitespace().collect();
        ensure!(
            heads == ["NAME", "PHASE", "MEMBERS", "REASON", "AGE"],
            "{table}"
        );
        let line = table
            .lines()
            .find(|line| line.split_whitespace().next() == Some(gang));
        if line.is_some_and(|line| line.contains("Running") && line.contains(members)) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{gang} should run: {table}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// What a user does with a demo that is held: submits what README says, takes a job of the story away, submits it again, and looks at
/// the gangs.
fn use_it(config: &Path) -> anyhow::Result<()> {
    kubectl(config, &["apply", "-f", PODS])?;
    until_runs(config, "label-sweep", "2/2")?;
    kubectl(config, &["delete", "-f", EXAMPLE, "--timeout=30s"])?;
    let said = kubectl(config, &["apply", "-f", EXAMPLE])?;
    ensure!(
        said.contains("pytorchjob.kubeflow.org/train-1-4 created"),
        "{said}"
    );
    until_runs(config, "train-1-4", "5/5")?;
    let said = kubectl(config, &["describe", "gang", "train-1-4"])?;
    ensure!(said.contains("AllBound"), "{said}");
    let pods = kubectl(config, &["get", "pods", "-o", "name"])?;
    ensure!(pods.contains("pod/train-1-4-worker-3"), "{pods}");
    Ok(())
}

/// Output lines of a demo, one by one.
type Lines = std::io::Lines<BufReader<ChildStdout>>;

fn start(args: &[&str]) -> anyhow::Result<(Demo, Lines)> {
    let child = Command::new(programs::scheduler()?)
        .args(["demo", "--plain"])
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut demo = Demo(child);
    let lines = BufReader::new(demo.0.stdout.take().context("its output")?).lines();
    Ok((demo, lines))
}

/// Reads up to a line that holds, and returns what was read.
fn read_until(lines: &mut Lines, holds: impl Fn(&str) -> bool) -> anyhow::Result<String> {
    let mut text = String::new();
    for line in lines.by_ref() {
        let line = line?;
        let is_it = holds(&line);
        text.push_str(&line);
        text.push('\n');
        if is_it {
            return Ok(text);
        }
    }
    anyhow::bail!("it ended before that: {text}")
}

/// What follows the words with which a line of it begins.
fn told<'a>(text: &'a str, words: &str) -> anyhow::Result<&'a str> {
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.trim().strip_prefix(words));
    found.with_context(|| format!("no line {words} in {text}"))
}

/// Presses Ctrl-C; the exit code, and all that was said after that.
fn interrupt(mut demo: Demo, lines: Lines) -> anyhow::Result<(Option<i32>, String, String)> {
    let pid = i32::try_from(demo.0.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.context("its process id")?, Signal::INT)?;
    let mut text = String::new();
    for line in lines {
        text.push_str(&line?);
        text.push('\n');
    }
    let mut errors = String::new();
    let stderr = demo.0.stderr.as_mut().context("its errors")?;
    stderr.read_to_string(&mut errors)?;
    Ok((demo.0.wait()?.code(), text, errors))
}

/// Takes dumps of a held demo, with names and without, and plans on them.
fn dump(pages: &str) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let run = |args: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(programs::scheduler()?).args(args).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{args:?}: {errors}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let (plain, hidden, key) = (file("plain.json"), file("hidden.json"), file("key"));
    std::fs::write(&key, "a secret of sixteen bytes or more")?;
    run(&["dump", "--from", pages, "--out", &plain])?;
    let redact = ["dump", "--from", pages, "--redact", "--key-file", &key];
    std::fs::write(&hidden, run(&redact)?)?;
    let (said, also) = (
        run(&["plan", "--dump", &plain])?,
        run(&["plan", "--dump", &hidden])?,
    );
    let first = said.lines().next().unwrap_or_default();
    ensure!(
        first.starts_with("Nodes 34, gangs 7: ") && also.starts_with(first),
        "{said}{also}"
    );
    for (gang, found) in [
        ("train-1-4", "stands"),
        ("train-impossible", "does not fit"),
    ] {
        let is_it =
            |line: &str| line.starts_with(&format!("default/{gang} (")) && line.ends_with(found);
        ensure!(said.lines().any(is_it), "{gang}: {said}");
    }
    let file = std::fs::read_to_string(&hidden)?;
    ensure!(!also.contains("train-") && !file.contains("train-") && file.contains("-Worker"));
    Ok(())
}

#[test]
fn the_demo_that_its_user_ends_in_mid_story_says_so_and_its_exit_code_is_130() -> anyhow::Result<()>
{
    let (demo, mut lines) = start(&[])?;
    read_until(&mut lines, |line| line.contains("submitted: "))?;
    let (code, text, errors) = interrupt(demo, lines)?;
    assert_eq!(code, Some(130), "{text}\n{errors}");
    let last = text.trim_end().lines().last().unwrap_or_default();
    assert!(last.starts_with("Ended by Ctrl-C after "), "{text}");
    Ok(())
}

/// A pod that was put onto a node past every scheduler, and asks for more than a node has.
const TOO_MUCH: &str = "{apiVersion: v1, kind: Pod, metadata: {name: bully}, spec: {nodeName: nowhere, containers: [\
    {name: c, image: i, resources: {limits: {nvidia.com/gpu: 9}}}]}}";

#[test]
fn the_demo_in_which_an_invariant_broke_fails_whoever_ends_it() -> anyhow::Result<()> {
    let (demo, mut lines) = start(&[])?;
    let mut text = read_until(&mut lines, |line| line.contains("submitted: "))?;
    let folder = tempfile::tempdir()?;
    let pod = folder.path().join("pod.yaml");
    std::fs::write(&pod, TOO_MUCH)?;
    let config = told(&text, "export KUBECONFIG=")?.to_owned();
    kubectl(
        Path::new(&config),
        &["apply", "-f", &pod.display().to_string()],
    )?;
    // The next line but one was printed after a look that saw it.
    for _ in 0..2 {
        text.push_str(&read_until(&mut lines, |line| {
            line.contains("submitted: ")
        })?);
    }
    let (code, rest, errors) = interrupt(demo, lines)?;
    assert_eq!(code, Some(1), "{text}{rest}\n{errors}");
    let why = "1 invariants broke, the first: DEV-1: pods on nowhere ask for 9 of 8 GPUs";
    assert!(errors.contains(why), "{text}{rest}\n{errors}");
    Ok(())
}

#[test]
fn the_demo_tells_its_story_to_the_end_and_then_takes_the_jobs_of_its_user() -> anyhow::Result<()> {
    let (demo, mut lines) = start(&["--hold"])?;
    let text = read_until(&mut lines, |line| line.starts_with(HELD))?;
    check_story(&text);
    use_it(Path::new(told(&text, "export KUBECONFIG=")?))?;
    let pages = told(&text, "muster-scheduler dump --from ")?;
    dump(pages.split(' ').next().unwrap_or_default())?;
    let (code, rest, errors) = interrupt(demo, lines)?;
    assert_eq!(code, Some(0), "{text}{rest}\n{errors}");
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
    let mut summary = text
        .lines()
        .filter(|line| line.contains("invariants broken: "));
    let said = summary.next_back().unwrap_or_default();
    assert!(said.ends_with("invariants broken: 0"), "{text}");
    for wanted in [
        "submitted: an impossible one",
        "falls off the bus under train-cpu-master-worker-1",
        "is repaired",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
}
