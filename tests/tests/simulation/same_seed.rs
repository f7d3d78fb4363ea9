//! Equal seeds give equal stories, in one process and in others.

use muster_tests::sim::storm::{Outcome, Telling, run};

/// Seeds that are told three times.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=6;
const CHILD: &str = "MUSTER_STORM_CHILD";
const NAME: &str = "same_seed::equal_seeds_give_equal_stories_in_three_processes";

fn stories() -> Vec<String> {
    let tell = |seed| {
        let outcome: Outcome = run(seed, Telling::All);
        let digest = format!("digest {:016x}", outcome.digest);
        outcome.story.into_iter().chain([digest])
    };
    SEEDS.flat_map(tell).collect()
}

/// The first line in which two stories differ, with what came before it.
fn difference(a: &[String], b: &[String]) -> String {
    let at = a.iter().zip(b).position(|(a, b)| a != b);
    let at = at.unwrap_or(a.len().min(b.len()));
    let show = |story: &[String]| {
        let lines = story.iter().skip(at.saturating_sub(4)).take(10);
        lines.cloned().collect::<Vec<_>>().join("\n")
    };
    format!("at line {at}:\n{}\n--\n{}", show(a), show(b))
}

#[test]
fn equal_seeds_give_equal_stories_in_three_processes() -> anyhow::Result<()> {
    let here = stories();
    if let Some(file) = std::env::var_os(CHILD) {
        std::fs::write(file, here.join("\n"))?;
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut children = Vec::new();
    for child in 0..2 {
        let file = folder.path().join(child.to_string());
        let process = std::process::Command::new(std::env::current_exe()?)
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, &file)
            .stdout(std::process::Stdio::null())
            .spawn()?;
        children.push((process, file));
    }
    for (mut process, file) in children {
        anyhow::ensure!(process.wait()?.success(), "another process failed");
        let text = std::fs::read_to_string(&file)?;
        let there: Vec<String> = text.lines().map(str::to_owned).collect();
        let equal: Vec<String> = here
            .iter()
            .flat_map(|line| line.lines())
            .map(str::to_owned)
            .collect();
        anyhow::ensure!(
            there == equal,
            "another process differs {}",
            difference(&equal, &there)
        );
    }
    Ok(())
}
