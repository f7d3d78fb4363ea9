//! README's first command, as a user starts it.

use std::process::Command;

use muster_tests::programs;

#[test]
fn the_demo_tells_its_story_to_the_end_and_breaks_no_invariant() -> anyhow::Result<()> {
    let output = Command::new(programs::scheduler()?)
        .args(["demo", "--plain"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
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
    let last = text.lines().last().unwrap_or_default();
    assert!(last.ends_with("invariants broken: 0"), "{text}");
    for wanted in [
        "submitted: an impossible one",
        "falls off the bus under train-cpu-master-worker-1",
        "is repaired",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in:\n{text}");
    }
    Ok(())
}
