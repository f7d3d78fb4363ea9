//! Traces: the engine and the baselines on the same arrivals.

use crate::common::{FILES, Run, muri, run_muri, run_muri_keeping, simulation, trace};
use muster_simulate::input::trace::{TraceFormat, TraceOptions};
use muster_simulate::{Error, Input, PolicyKind, Simulation, Until};

#[test]
fn same_input_gives_the_same_bytes() {
    let text = muri(120);
    for policy in PolicyKind::ALL {
        let [first, second] =
            [(); 2].map(|()| run_muri(&text, trace(6, Some(0.9)), policy, None).unwrap());
        for file in FILES {
            assert!(!first.text(file).is_empty());
            assert_eq!(first.text(file), second.text(file), "{policy:?} {file}");
        }
    }
}

/// The engine where it keeps no nodes for anybody.
fn unkept(text: &str, options: TraceOptions) -> Run {
    run_muri_keeping(text, options, PolicyKind::Muster, None, Some(0)).unwrap()
}

#[test]
fn que_1_with_nodes_kept_gangs_of_several_nodes_wait_less_and_none_is_lost() {
    let mut waits = [0.0, 0.0];
    for seed in 0..4 {
        let mut options = trace(6, Some(1.1));
        (options.seed, options.limit_jobs) = (seed, Some(150));
        let text = muri(400);
        for (limit, waits) in [0, 60_000].into_iter().zip(&mut waits) {
            let (options, policy) = (options.clone(), PolicyKind::Muster);
            let run = run_muri_keeping(&text, options, policy, None, Some(limit)).unwrap();
            assert_eq!(run.summary.gangs_completed, 150);
            assert_eq!(run.summary.invariant_violations, 0);
            *waits += run.summary.multi_pod_gang_wait_seconds.max;
        }
    }
    println!("longest waits of gangs of several pods, off and on: {waits:?}");
    assert!(waits[1] < waits[0], "{waits:?}");
}

/// The engine tries waiting gangs in order of arrival and lets whoever fits go: so does `greedy`, without
/// the engine. On nodes of one GPU it makes no difference which is taken: nothing may differ, to the
/// millisecond.
#[test]
fn engine_starts_whom_the_greedy_baseline_starts_and_when() {
    for seed in 0..4 {
        let mut options = trace(48, Some(1.1));
        (options.seed, options.limit_jobs) = (seed, Some(150));
        options.gpus_per_node = 1;
        let text = muri(400);
        let muster = unkept(&text, options.clone());
        let greedy = run_muri(&text, options, PolicyKind::Greedy, None).unwrap();
        assert_eq!(muster.text("timeline.csv"), greedy.text("timeline.csv"));
        assert_eq!(muster.summary.invariant_violations, 0);
        assert_eq!(muster.summary.gangs_completed, 150);
        assert!(muster.summary.gang_wait_seconds_mean > 0.0);
    }
}

/// On nodes of several GPUs the two look at the demand at other times, and may take other nodes: that is no
/// reason to wait longer.
#[test]
fn engine_packs_like_the_greedy_baseline() {
    let (mut waited, mut allowed) = (0.0, 0.0);
    for seed in 0..4 {
        let mut options = trace(6, Some(1.1));
        (options.seed, options.limit_jobs) = (seed, Some(150));
        let text = muri(400);
        let muster = unkept(&text, options.clone());
        let greedy = run_muri(&text, options, PolicyKind::Greedy, None).unwrap();
        assert_eq!(muster.summary.invariant_violations, 0);
        assert_eq!(muster.summary.gangs_completed, 150);
        waited += muster.summary.gang_wait_seconds_mean;
        allowed += greedy.summary.gang_wait_seconds_mean;
    }
    println!("{waited} s, greedy {allowed} s");
    assert!(waited <= 1.05 * allowed, "{waited} s, greedy {allowed} s");
}

#[test]
fn gangs_start_in_order_under_fifo_and_waits_are_those_worked_out_by_hand() {
    // One node of 8: b cannot start beside a, c could.
    let text = "num_gpu,submit_time,duration\n6,0,100000\n4,1000,50000\n2,2000,10000\n";
    let wait = |policy| {
        let run = run_muri(text, trace(1, None), policy, None).unwrap();
        let sizes = run.summary.gang_wait_seconds_by_size.clone();
        sizes
            .iter()
            .map(|(size, waits)| (size.clone(), waits.max))
            .collect::<Vec<_>>()
    };
    let is = |waits: [(&str, f64); 3]| waits.map(|(size, wait)| (size.to_owned(), wait)).to_vec();
    let passed = is([("2", 0.0), ("3-4", 99.0), ("5-8", 0.0)]);
    assert_eq!(
        wait(PolicyKind::Fifo),
        is([("2", 98.0), ("3-4", 99.0), ("5-8", 0.0)])
    );
    assert_eq!(wait(PolicyKind::Greedy), passed);
    assert_eq!(wait(PolicyKind::Muster), passed);
}

#[test]
fn figures_are_those_worked_out_by_hand() {
    // 16 GPUs: 8 for 100 s, then nothing for 100 s, then 16 for 100 s.
    let text = "num_gpu,submit_time,duration\n8,0,100000\n16,200000,100000\n24,0,1\n";
    for policy in PolicyKind::ALL {
        let run = run_muri(text, trace(2, None), policy, None).unwrap();
        let summary = &run.summary;
        assert_eq!(summary.makespan_seconds, 300.0);
        assert_eq!(summary.gpu_use_ratio, 0.5);
        assert_eq!(summary.gpu_use_ratio_to_last_arrival, 0.25);
        assert_eq!(summary.gangs_impossible, 1);
        assert!(
            summary.notes[0].starts_with("1 of 3 jobs are wider"),
            "{:?}",
            summary.notes
        );
        assert_eq!(summary.gangs_completed, 2);
        assert_eq!(run.column("time_seconds"), [0.0, 100.0, 200.0, 300.0]);
        assert_eq!(run.column("gpus_used"), [8.0, 0.0, 16.0, 0.0]);
        assert_eq!(run.column("free_nodes_whole"), [1.0, 2.0, 0.0, 2.0]);
        assert_eq!(
            summary.fragmentation.free_gpus_on_used_nodes_ratio_mean,
            0.0
        );
    }
}

#[test]
fn writes_that_take_time_delay_starts_and_break_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.csv");
    std::fs::write(&file, muri(80)).unwrap();
    let input = Input::Trace(TraceFormat::Muri, trace(6, Some(0.8)));
    let delayed = crate::common::run(&Simulation {
        write_delay_ms: 250,
        ..simulation(&file, input, PolicyKind::Muster)
    })
    .unwrap();
    assert_eq!(delayed.summary.gangs_completed, 80);
    assert_eq!(delayed.summary.invariant_violations, 0);
    // Gang object, plan, release and bindings: four writes, one after the other.
    for (size, waits) in &delayed.summary.gang_wait_seconds_by_size {
        assert!(waits.mean >= 1.0, "{size}: {waits:?}");
    }
}

#[test]
fn replay_that_ends_early_counts_who_has_not_started() {
    let text = "num_gpu,submit_time,duration\n8,0,100000\n8,1000,50000\n8,2000,10000\n";
    let until = Some(Until::LastArrival);
    for policy in PolicyKind::ALL {
        let run = run_muri(text, trace(1, None), policy, until).unwrap();
        let summary = &run.summary;
        assert_eq!((summary.gangs_completed, summary.gangs_running), (0, 1));
        assert_eq!(summary.gangs_starved, 2, "{policy:?}");
        assert_eq!(summary.waiting_at_end.len(), 2, "{policy:?}");
        assert_eq!(summary.makespan_seconds, 2.0);
        assert_eq!(summary.gpu_use_ratio, 1.0);
    }
}

#[test]
fn folder_with_something_in_it_is_refused_unless_forced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.csv");
    std::fs::write(&file, muri(5)).unwrap();
    let mut simulation = Simulation {
        out: folder.path().to_owned(),
        ..simulation(
            &file,
            Input::Trace(TraceFormat::Muri, trace(4, None)),
            PolicyKind::Greedy,
        )
    };
    let said = simulation.run(&mut |_| ()).unwrap_err().to_string();
    assert!(
        said.starts_with("--out is ") && said.contains("must be empty"),
        "{said}"
    );
    assert!(!folder.path().join("summary.json").exists());
    simulation.force = true;
    simulation.run(&mut |_| ()).unwrap();
    assert!(folder.path().join("summary.json").exists());
    simulation.out = folder.path().join("new/folder");
    simulation.force = false;
    simulation.run(&mut |_| ()).unwrap();
}

#[test]
fn values_outside_their_limits_name_flag_value_and_limit() {
    let said = |change: &dyn Fn(&mut muster_simulate::input::trace::TraceOptions)| {
        let mut options = trace(4, None);
        change(&mut options);
        match run_muri(&muri(5), options, PolicyKind::Greedy, None) {
            Err(error @ Error::Flag { .. }) => error.to_string(),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("is taken"),
        }
    };
    assert_eq!(said(&|o| o.nodes = 0), "--nodes is 0: must be 1 to 20000");
    assert_eq!(
        said(&|o| o.gpus_per_node = 65),
        "--gpus-per-node is 65: must be 1 to 64"
    );
    assert_eq!(
        said(&|o| o.load = Some(0.0)),
        "--load is 0: must be 0.01 to 10"
    );
    assert_eq!(
        said(&|o| o.load = Some(f64::NAN)),
        "--load is NaN: must be 0.01 to 10"
    );
    assert_eq!(
        said(&|o| o.limit_jobs = Some(0)),
        "--limit-jobs is 0: must be at least 1"
    );
}
