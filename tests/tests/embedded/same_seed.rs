//! Equal seeds give equal event logs, within a process and between processes.

use std::time::Duration;

use muster_embedded::cluster::run_paused;
use muster_embedded::value;
use muster_tests::jobs::{Job, Role};
use muster_tests::sim::{NODES, PODS, Sim, SimOptions, bound};
use serde_json::json;

use super::{MINUTE, train};

/// Gangs that compete, a GPU that fails, a cordon, a crash of the scheduler. Returns writes, digest, log.
fn story(seed: u64) -> anyhow::Result<(u64, u64, Vec<String>)> {
    run_paused(async {
        let options = SimOptions {
            seed,
            ..SimOptions::nodes(6)
        };
        let mut sim = Sim::start(options).await?;
        sim.apply(&train("one").running_for(200).yaml())?;
        for at in 0..6 {
            let job = Job::new(&format!("batch-{at}"), vec![Role::new("Worker", 3, 4)]);
            sim.apply(&job.running_for(40 + at).yaml())?;
        }
        sim.apply(include_str!("../../../deploy/examples/labelled-pods.yaml"))?;
        sim.until_phase("one", "Running").await?;
        sim.pass(Duration::from_secs(5)).await;
        let node = bound(&sim.cluster, "one-worker-1");
        let node = node.values().next().cloned().unwrap_or_default();
        sim.fail_gpu(&node, 0)?;
        sim.pass(Duration::from_secs(20)).await;
        let cordon = json!({"spec": {"unschedulable": true}});
        sim.cluster.patch(NODES, "", "gpu-003", "", &cordon)?;
        sim.kill_scheduler().await;
        sim.start_scheduler();
        sim.wait_ready().await?;
        sim.pass(MINUTE * 3).await;
        let live = sim.cluster.list(PODS);
        let live = live
            .iter()
            .filter(|pod| value::text(pod, &["status", "phase"]) == "Running");
        assert!(live.count() > 0, "{}", sim.picture());
        sim.judge().await?;
        Ok(sim.stop().await)
    })?
}

const CHILD: &str = "MUSTER_SIM_DIGEST_CHILD";
const NAME: &str = "same_seed::equal_seeds_give_equal_logs_in_three_runs_and_three_processes";

/// The first line in which two logs differ, with what came before it.
fn difference(a: &[String], b: &[String]) -> String {
    let at = a.iter().zip(b).position(|(a, b)| a != b);
    let at = at.unwrap_or(a.len().min(b.len()));
    let show = |log: &[String]| {
        let lines = log.iter().skip(at.saturating_sub(4)).take(10);
        lines.cloned().collect::<Vec<_>>().join("\n")
    };
    format!("at line {at}:\n{}\n--\n{}", show(a), show(b))
}

#[test]
fn equal_seeds_give_equal_logs_in_three_runs_and_three_processes() -> anyhow::Result<()> {
    let (writes, digest, lines) = story(42)?;
    if let Some(file) = std::env::var_os(CHILD) {
        std::fs::write(file, lines.join("\n"))?;
        return Ok(());
    }
    assert!(writes > 200, "{writes}");
    for _ in 0..2 {
        let again = story(42)?;
        assert!(
            again.1 == digest,
            "another run in this process differs {}",
            difference(&lines, &again.2)
        );
    }
    let folder = tempfile::tempdir()?;
    for child in 0..2 {
        let file = folder.path().join(child.to_string());
        let output = std::process::Command::new(std::env::current_exe()?)
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, &file)
            .output()?;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = std::fs::read_to_string(&file)?;
        let there: Vec<String> = text.lines().map(str::to_owned).collect();
        assert!(
            there == lines,
            "another process differs {}",
            difference(&lines, &there)
        );
    }
    assert_ne!(story(43)?.1, digest, "another seed takes another course");
    Ok(())
}
