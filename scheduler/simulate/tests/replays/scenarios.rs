//! The scenarios of deploy/examples do what their comments say.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use crate::common::{example, run, scenario, simulation, unkept};
use muster_simulate::{Input, PolicyKind, Simulation};

#[test]
fn every_example_runs_under_every_policy() {
    let folder = example("x").parent().unwrap().to_owned();
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into()
        })
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["broken-gpu", "large-among-small", "lost-node", "racks"]
    );
    for name in names {
        for policy in PolicyKind::ALL {
            let run = scenario(&name, policy);
            let summary = &run.summary;
            let ran = summary.gangs_completed + summary.gangs_impossible;
            assert_eq!(ran, summary.gangs, "{name} {policy:?}");
            assert_eq!(summary.invariant_violations, 0, "{name}");
            assert_eq!(run.column("gpus_used").last(), Some(&0.0), "{name}");
            for (used, gpus) in run.column("gpus_used").iter().zip(run.column("gpus")) {
                assert!(*used <= gpus, "{name} {policy:?}: {used} of {gpus}");
            }
        }
    }
}

fn wait_of(run: &crate::common::Run, size: &str) -> f64 {
    let sizes = &run.summary.gang_wait_seconds_by_size;
    sizes.iter().find(|(name, _)| name == size).unwrap().1.max
}

#[test]
fn small_gangs_pass_a_large_one_unless_nodes_are_kept_for_it_or_the_order_is_strict() {
    let muster = unkept("large-among-small", PolicyKind::Muster);
    let fifo = scenario("large-among-small", PolicyKind::Fifo);
    // The last small gang arrives at 3480 s and the large one starts after it has ended.
    assert!(wait_of(&muster, "17-32") >= 3480.0 + 1200.0 - 300.0);
    // Those that arrived before 300 s have ended at 240 s + 1200 s.
    assert_eq!(wait_of(&fifo, "17-32"), 1140.0);
    assert!(wait_of(&fifo, "3-4") > wait_of(&muster, "3-4"));
}

#[test]
fn que_1_f38_large_gang_among_small_ones_starts_once_nodes_are_kept_for_it() {
    let run = scenario("large-among-small", PolicyKind::Muster);
    assert_eq!(run.summary.reserve_after_ms, 600_000);
    assert_eq!(run.summary.gangs_completed, 31);
    assert_eq!(run.summary.invariant_violations, 0);
    // Those that run when it has waited for 600 s end within 1200 s.
    let wait = wait_of(&run, "17-32");
    assert!(wait <= 1_800.0, "{wait}");
    // The small ones pass it until then, and do not wait for as long as in strict order.
    let fifo = scenario("large-among-small", PolicyKind::Fifo);
    assert!(wait > wait_of(&fifo, "17-32"));
    assert!(run.summary.gang_wait_seconds_mean < fifo.summary.gang_wait_seconds_mean);
}

#[test]
fn lost_node_costs_the_rigid_gang_its_run_and_the_elastic_one_nothing() {
    let run = scenario("lost-node", PolicyKind::Muster);
    assert_eq!(run.summary.gangs_completed, 2);
    // The rigid one starts anew when the nodes are back, 1800 s; both end at 5400 s.
    assert_eq!(run.summary.makespan_seconds, 5400.0);
    assert_eq!(run.summary.gangs_halted, 1);
    let used = |at: f64| {
        let rows = run
            .column("time_seconds")
            .into_iter()
            .zip(run.column("gpus_used"));
        rows.rev().find(|(time, _)| *time <= at).unwrap().1
    };
    // Half of the elastic gang is lost; then a third of the rigid one, which is let go of 30 s later,
    // and the elastic one takes of its room.
    let steps = [500.0, 600.0, 900.0, 929.0, 930.0, 1800.0].map(used);
    assert_eq!(steps, [40.0, 32.0, 24.0, 24.0, 16.0, 40.0]);
    let gpus = run.column("gpus");
    assert!(gpus.contains(&24.0) && gpus.last() == Some(&40.0));
    // The baselines stop whole whoever loses a member: the elastic one, at 600 s, too.
    let greedy = scenario("lost-node", PolicyKind::Greedy);
    assert_eq!(greedy.summary.gangs_halted, 2);
    assert_eq!(greedy.summary.makespan_seconds, 6000.0);
}

#[test]
fn broken_and_cordoned_nodes_take_nothing_and_priority_goes_first() {
    let run = scenario("broken-gpu", PolicyKind::Muster);
    // `whole` waits from 60 s until the GPU is back at 1200 s.
    assert_eq!(wait_of(&run, "9-16"), 1140.0);
    // `urgent` goes at 900 s, `patient` after it at 1500 s, though it came first.
    assert_eq!(wait_of(&run, "3-4"), 1400.0);
    let [impossible] = &run.summary.impossible[..] else {
        panic!("{:?}", run.summary.impossible);
    };
    assert_eq!(impossible.gang, "too-big");
    assert!(
        impossible.reason.contains("largest node offers 8"),
        "{impossible:?}"
    );
}

#[test]
fn every_gang_has_its_row() {
    let run = scenario("broken-gpu", PolicyKind::Muster);
    assert_eq!(
        run.text("gangs.csv"),
        "gang,state,members,gpus,submitted_seconds,started_seconds,waited_seconds,finished_seconds,passed_by,\
         runs_lost,nodes\n\
         busy,completed,1,4,0.000,0.000,0.000,900.000,0,0,1\n\
         whole,completed,2,16,60.000,1200.000,1140.000,3000.000,1,0,2\n\
         patient,completed,1,4,100.000,1500.000,1400.000,2100.000,1,0,1\n\
         urgent,completed,1,4,120.000,900.000,780.000,1500.000,0,0,1\n\
         too-big,impossible,1,16,,,,,0,0,\n"
    );
    // What the summary says of all of them is what their rows add up to.
    for policy in PolicyKind::ALL {
        let run = unkept("large-among-small", policy);
        let rows = run.text("gangs.csv");
        let rows: Vec<Vec<&str>> = rows
            .lines()
            .skip(1)
            .map(|row| row.split(',').collect())
            .collect();
        assert_eq!(rows.len(), run.summary.gangs);
        let waited = rows.iter().map(|row| row[6].parse::<f64>().unwrap());
        let longest = waited.clone().fold(0.0, f64::max);
        let mean = waited.sum::<f64>() / 31.0;
        assert_eq!(longest, run.summary.gang_wait_seconds_max);
        assert!(
            (mean - run.summary.gang_wait_seconds_mean).abs() < 0.001,
            "{policy:?}"
        );
        let large = rows.iter().find(|row| row[0] == "large").unwrap();
        let passed = match policy {
            PolicyKind::Fifo => "0",
            // All that come after it.
            _ => "27",
        };
        // A master without GPUs stands beside a worker, or on its own.
        assert_eq!((large[8], large[10]), (passed, "4"), "{policy:?}");
    }
    let lost = scenario("lost-node", PolicyKind::Muster).text("gangs.csv");
    let runs: Vec<&str> = lost
        .lines()
        .skip(1)
        .map(|row| row.split(',').nth(9).unwrap())
        .collect();
    assert_eq!(runs, ["0", "1"], "{lost}");
}

#[test]
fn end_of_a_scenario_shows_who_starves_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cut.yaml");
    let text = std::fs::read_to_string(example("large-among-small")).unwrap();
    let text = format!("{text}until: 3600\nreserveAfter: 0\n");
    std::fs::write(&file, text).unwrap();
    for policy in PolicyKind::ALL {
        let run = run(&simulation(&file, Input::Scenario, policy)).unwrap();
        let names: Vec<&str> = run
            .summary
            .waiting_at_end
            .iter()
            .map(|gang| &*gang.gang)
            .collect();
        let starves = policy != PolicyKind::Fifo;
        assert_eq!(names.contains(&"large"), starves, "{policy:?}: {names:?}");
        assert_eq!(run.summary.gangs_starved, names.len(), "{policy:?}");
        if policy == PolicyKind::Muster {
            let mut waiting = run.summary.waiting_at_end.iter();
            let large = waiting.find(|gang| gang.gang == "large").unwrap();
            assert!(
                large.reason.contains("needs room for 4 Worker"),
                "{large:?}"
            );
        }
    }
}

#[test]
fn names_from_outside_stay_text_in_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a<script>&.yaml");
    std::fs::copy(example("broken-gpu"), &file).unwrap();
    let run = run(&Simulation {
        seed: 7,
        ..simulation(&file, Input::Scenario, PolicyKind::Muster)
    })
    .unwrap();
    let page = run.text("report.html");
    assert!(page.contains("a&lt;script&gt;&amp;.yaml"));
    for forbidden in ["<script", "http://", "https://", "@import", "url("] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn gangs_that_ask_nothing_of_the_network_leave_a_block_whole() {
    let text = std::fs::read_to_string(example("racks")).unwrap();
    // `wide` wants a block, and `tight` a rack: after 1260 s the block of `wide` is empty.
    let waits = |text: &str, policy| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("racks.yaml");
        std::fs::write(&file, text).unwrap();
        let run = run(&simulation(&file, Input::Scenario, policy)).unwrap();
        ["wide", "groups", "tight"].map(|gang| waited(&run, gang))
    };
    for policy in PolicyKind::ALL {
        assert_eq!(waits(&text, policy), [0.0, 0.0, 1080.0], "{policy:?}");
    }
    let apart = text.replace("topology:\n", "topology:\n  keepTogether: none\n");
    assert_eq!(waits(&apart, PolicyKind::Greedy)[0], 1740.0);
}

/// Seconds that a gang waited for its first start, by gangs.csv.
fn waited(run: &crate::common::Run, gang: &str) -> f64 {
    let text = run.text("gangs.csv");
    let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let names = lines.next().unwrap();
    let at = |name: &str| names.iter().position(|other| *other == name).unwrap();
    let row = lines.find(|row| row[at("gang")] == gang).unwrap();
    row[at("waited_seconds")].parse().unwrap()
}

#[test]
fn mistakes_about_the_network_are_named() {
    let text = std::fs::read_to_string(example("racks")).unwrap();
    for (old, new, said) in [
        (
            "required-topology: rack",
            "required-topology: row",
            "gangs[3].annotations[muster.dev/required-topology] is row:",
        ),
        (
            "muster.dev/segment-size",
            "muster.dev/segment-sise",
            "gangs[2].annotations is muster.dev/segment-sise:",
        ),
        (
            "topology:\n  levels",
            "topology:\n  keepTogether: row\n  levels",
            "topology.keepTogether is row:",
        ),
        (
            "name: rack, label: example.com/rack",
            "name: block, label: x",
            "topology.levels[1].name is block:",
        ),
    ] {
        let wrong = text.replace(old, new);
        assert_ne!(wrong, text);
        let error = muster_simulate::input::scenario::parse("racks.yaml", &wrong).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}
