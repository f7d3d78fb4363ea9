//! The experiment of FGD on small tables: its results are those worked out by hand, and the same for the same
//! seed. That the published figures come out is shown by `benches`, which has the data.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

use muster_simulate::Error;
use muster_simulate::openb::{
    Allocation, Experiment, PolicyKind, Run, Setting, Summary, Trace, play,
};

const FILES: [&str; 4] = [
    "allocation.csv",
    "summary.json",
    "timeline.csv",
    "report.html",
];

/// Policies that place shares of GPUs.
const WITH_SHARES: [PolicyKind; 4] = [
    PolicyKind::Fgd,
    PolicyKind::BestFit,
    PolicyKind::Random,
    PolicyKind::FirstFit,
];

/// Writes both tables, without their heads.
fn write(folder: &Path, nodes: &str, pods: &str) {
    let nodes = format!("sn,cpu_milli,memory_mib,gpu,model\n{nodes}");
    let pods = format!("name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n{pods}");
    std::fs::write(folder.join("nodes.csv"), nodes).unwrap();
    std::fs::write(folder.join("small.csv"), pods).unwrap();
}

fn trace(nodes: &str, pods: &str) -> Trace {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), nodes, pods);
    let path = |name| folder.path().join(name);
    Trace::read(&path("nodes.csv"), &path("small.csv")).unwrap()
}

fn setting(policy: PolicyKind, inflate: f64, seed: u64) -> Setting {
    Setting {
        policy,
        inflate,
        seed,
    }
}

fn run(trace: &Trace, setting: Setting) -> Run {
    play(trace, &setting, &mut |_, _| ()).unwrap()
}

fn experiment(
    nodes: &str,
    pods: &str,
    setting: Setting,
) -> Result<(Summary, tempfile::TempDir), Error> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), nodes, pods);
    let experiment = Experiment {
        nodes: folder.path().join("nodes.csv"),
        pods: folder.path().join("small.csv"),
        setting,
        out: folder.path().join("out"),
        force: false,
    };
    let summary = experiment.run(&mut |_, _| ())?;
    Ok((summary, folder))
}

/// Rows of a mixed cluster and of pods that do not all fit.
fn mixed(shares: bool) -> (String, String) {
    let nodes = (0..24).map(|i| match i % 3 {
        0 => format!("n{i:02},96000,393216,8,G2\n"),
        1 => format!("n{i:02},104000,524288,2,T4\n"),
        _ => format!("n{i:02},32000,131072,4,V100M16\n"),
    });
    let pods = (0..120).map(|i| match i % 6 {
        0 => format!("p{i:03},12000,16384,1,1000,\n"),
        1 if shares => format!("p{i:03},6000,12288,1,{},\n", 100 + 7 * i),
        1 => format!("p{i:03},6000,12288,1,1000,T4\n"),
        2 => format!("p{i:03},16000,32768,0,0,\n"),
        3 => format!("p{i:03},8000,30517,1,1000,V100M16|T4\n"),
        4 if shares => format!("p{i:03},4000,8192,1,500,\n"),
        4 => format!("p{i:03},4000,8192,2,1000,\n"),
        _ => format!("p{i:03},44000,131072,4,1000,G2\n"),
    });
    (nodes.collect(), pods.collect())
}

#[test]
fn same_seed_gives_the_same_bytes_and_another_seed_others() {
    let cases = WITH_SHARES.map(|policy| (policy, true));
    for (policy, shares) in cases.into_iter().chain([(PolicyKind::Muster, false)]) {
        let (nodes, pods) = mixed(shares);
        let [first, second, other] = [42, 42, 43].map(|seed| {
            let (_, folder) = experiment(&nodes, &pods, setting(policy, 1.3, seed)).unwrap();
            FILES.map(|file| std::fs::read_to_string(folder.path().join("out").join(file)).unwrap())
        });
        assert_eq!(first, second, "{policy:?}");
        assert!(first.iter().zip(&other).all(|(a, b)| a != b), "{policy:?}");
    }
}

#[test]
fn no_policy_drops_a_pod_that_has_room_and_all_see_the_same_arrivals() {
    for shares in [true, false] {
        let (nodes, pods) = mixed(shares);
        let trace = trace(&nodes, &pods);
        let mut arrived = Vec::new();
        for policy in PolicyKind::ALL {
            if shares && policy == PolicyKind::Muster {
                continue;
            }
            let run = run(&trace, setting(policy, 1.3, 7));
            let last = run.last();
            assert_eq!(run.dropped_with_room, 0, "{policy:?}");
            assert!(last.dropped > 0 && last.placed > 50, "{policy:?} {last:?}");
            assert_eq!(last.placed + last.dropped, run.samples.len());
            let capacity = run.gpus() * 1000;
            for sample in &run.samples {
                assert_eq!(sample.allocated_milli + sample.idle.all(), capacity);
            }
            arrived.push(
                run.samples
                    .iter()
                    .map(|s| s.arrived_milli)
                    .collect::<Vec<_>>(),
            );
        }
        assert!(arrived.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

/// One node of two GPUs, pods of 600 and 400 thousandths: whoever keeps the second GPU whole has room for
/// a pod that wants one.
#[test]
fn shares_are_packed_onto_one_gpu_by_all_but_chance() {
    let pods = "a,1000,1,1,600,\nb,1000,1,1,400,\nc,1000,1,1,1000,\n";
    let trace = trace("n,8000,1024,2,T4\n", pods);
    for policy in [PolicyKind::Fgd, PolicyKind::BestFit] {
        for seed in 0..20 {
            let last = run(&trace, setting(policy, 1.0, seed)).last();
            assert_eq!((last.placed, last.allocated_milli), (3, 2000), "{policy:?}");
        }
    }
    let by_chance = (0..20).map(|seed| run(&trace, setting(PolicyKind::Random, 1.0, seed)).last());
    let dropped = by_chance.filter(|last| last.dropped > 0).count();
    assert!((1..20).contains(&dropped), "{dropped} of 20");
}

/// Where a whole GPU goes among a node with 8 cores and one with 4. Half of the pods want 1 GPU and 3 cores, half
/// 1 GPU and 4 cores.
///
/// On the large node of two GPUs, a pod of 3 cores leaves 5: its idle GPU is of use for both kinds, and
/// fragments stay 0. On the small one of one GPU nothing idle is left: 0 too. Both score 50, and the first by
/// name is taken. BestFit prefers what leaves least: the small node.
#[test]
fn fgd_takes_the_first_of_equals_and_bestfit_the_fullest() {
    let pods = "a,3000,1,1,1000,\nb,4000,1,1,1000,\n";
    let trace = trace("big,8000,1024,2,T4\nsmall,4000,1024,1,T4\n", pods);
    let mut firsts = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let found = run(&trace, setting(PolicyKind::Fgd, 0.7, seed));
        firsts.insert(found.nodes[0].name[5..].to_owned());
        assert_eq!(found.changes[0].node, 0);
        let found = run(&trace, setting(PolicyKind::BestFit, 0.7, seed));
        let taken = &found.nodes[found.changes[0].node];
        assert!(taken.name.ends_with("-small"), "{}", taken.name);
    }
    assert_eq!(firsts.len(), 2, "the seed decides the order of nodes");
}

/// A pod of 5 cores on the large node would leave 3 for its other GPU: too few for all other pods. On the
/// middle node of one GPU it leaves nothing idle. FGD goes there whatever the names.
#[test]
fn fgd_keeps_off_a_node_whose_other_gpu_it_would_strand() {
    let pods = "a,5000,1,1,1000,\n";
    let trace = trace("big,8000,1024,2,T4\nmiddle,8000,1024,1,T4\n", pods);
    for seed in 0..20 {
        let found = run(&trace, setting(PolicyKind::Fgd, 0.34, seed));
        let taken = &found.nodes[found.changes[0].node];
        assert!(taken.name.ends_with("-middle"), "{}", taken.name);
    }
}

#[test]
fn a_pod_goes_only_where_its_model_cpu_memory_and_gpus_are() {
    let nodes = "cpu,1000,9000,8,G2\nmemory,9000,10,8,G2\nmodel,9000,9000,8,T4\nfew,9000,9000,1,G2\n\
                 right,9000,9000,2,G2\n";
    let pods = "a,2000,100,2,1000,G2\n";
    let trace = trace(nodes, pods);
    for policy in PolicyKind::ALL {
        for seed in 0..10 {
            let run = run(&trace, setting(policy, 0.2, seed));
            let last = run.last();
            // 27 GPUs: three pods of two come, and all but the first find no room.
            assert_eq!((last.placed, last.dropped), (1, 2), "{policy:?}");
            let node = &run.nodes[run.changes[0].node];
            assert!(node.name.ends_with("-right"), "{policy:?} {}", node.name);
        }
    }
}

#[test]
fn a_node_takes_1001_pods_and_no_more() {
    let mut pods = String::from("gpu,0,0,1,1000,\n");
    for i in 0..1100 {
        pods += &format!("p{i:04},0,0,0,0,\n");
    }
    let trace = trace("n,8000,1024,8,T4\n", &pods);
    for policy in PolicyKind::ALL {
        let run = run(&trace, setting(policy, 0.125, 1));
        let last = run.last();
        assert_eq!((last.placed, last.dropped), (1001, 100), "{policy:?}");
        assert_eq!(run.dropped_with_room, 0, "{policy:?}");
    }
}

/// Two nodes of 2 GPUs; pods of one GPU and 2 cores; the nodes have 3 cores and 8. Five arrive, three fit.
#[test]
fn results_are_those_worked_out_by_hand() {
    let pods: String = (0..5).map(|i| format!("p{i},2000,1,1,1000,\n")).collect();
    let nodes = "n,3000,1024,2,T4\nm,8000,1024,2,T4\n";
    let (summary, folder) =
        experiment(nodes, &pods, setting(PolicyKind::FirstFit, 1.25, 3)).unwrap();
    let read = |file: &str| std::fs::read_to_string(folder.path().join("out").join(file)).unwrap();
    assert_eq!(
        (summary.pods, summary.pods_placed, summary.pods_dropped),
        (5, 3, 2)
    );
    assert_eq!(
        (summary.gpus, summary.gpus_arrived, summary.gpus_allocated),
        (4, 5.0, 3.0)
    );
    assert_eq!(summary.allocation_percent_at_100, Some(75.0));
    assert_eq!(summary.allocation_percent_at_end, Some(75.0));
    let idle = summary.idle_gpus;
    assert_eq!(
        (idle.whole, idle.in_part, idle.on_nodes_without_a_core),
        (1.0, 0.0, 0.0)
    );
    assert!(
        summary
            .in_words()
            .contains("idle at the end: 1 GPUs whole, 0 in parts")
    );
    let rows: Vec<String> = read("timeline.csv").lines().map(str::to_owned).collect();
    assert_eq!(
        rows[0],
        "arrival,arrived_gpus,allocated_gpus,pods_placed,pods_dropped,idle_gpus_whole,\
         idle_gpus_in_part,idle_gpus_on_nodes_without_a_core"
    );
    assert_eq!(rows.len(), 6);
    assert_eq!(rows[5], "5,5.000,3.000,3,2,1.000,0.000,0.000");
    let row = read("allocation.csv");
    let cells: Vec<&str> = row.lines().nth(1).unwrap().split(',').collect();
    assert_eq!(cells[..5], ["small", "07-FirstFit", "1.25", "3", "4"]);
    let at = |x: usize| cells[5 + x];
    assert_eq!(
        (at(0), at(24), at(25), at(26)),
        ("", "25.0", "25.0", "25.0")
    );
    assert_eq!(
        (at(100), at(125), at(126), at(127)),
        ("75.0", "75.0", "75.0", "")
    );
    let page = read("report.html");
    for wanted in [
        "small under first-fit",
        "Allocation by arrived load",
        "Idle GPUs by arrived load",
        "Nodes by arrivals",
        "T4 x2",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
    assert!(page.matches("</svg>").count() >= 3 && !page.contains("NaN"));
    assert!(!page.contains("<script") && !page.contains("http"));
}

/// The first three fill one GPU; who asks for a model waits for it even when others are free.
#[test]
fn muster_plans_shares_and_models() {
    let run = run(
        &trace(
            "n,8000,1024,2,T4\nm,8000,1024,1,P100\n",
            "a,1000,1,1,460,P100\nb,1000,1,1,300,P100\nc,1000,1,1,240,P100\nd,1000,1,2,1000,T4\n",
        ),
        setting(PolicyKind::Muster, 1.0, 0),
    );
    let allocation = Allocation::of(&run);
    assert_eq!(allocation.at(100), Some(100.0));
}

#[test]
fn settings_outside_their_limits_are_refused() {
    let trace = trace("n,8000,1024,2,T4\n", "a,1000,1,1,460,\n");
    for inflate in [0.0, 0.009, 10.01, -1.0, f64::NAN, f64::INFINITY] {
        let error = play(
            &trace,
            &setting(PolicyKind::Fgd, inflate, 0),
            &mut |_, _| (),
        );
        let said = error.unwrap_err().to_string();
        assert_eq!(said, format!("--inflate is {inflate}: must be 0.01 to 10"));
    }
}

/// A table that is not published: a name keeps its number, so that rows of both kinds sort by policy.
#[test]
fn rows_of_all_policies_can_stand_in_one_table() {
    let names = PolicyKind::ALL.map(PolicyKind::published);
    assert_eq!(
        names,
        [
            "00-Muster",
            "06-FGD",
            "05-BestFit",
            "01-Random",
            "07-FirstFit"
        ]
    );
    let trace = trace("n,8000,1024,2,T4\n", "a,1000,1,1,500,\n");
    let run = run(&trace, setting(PolicyKind::Fgd, 1.3, 0));
    let allocation = Allocation::of(&run);
    // 2.6 GPUs would come: 5 halves do, of which 4 find room.
    assert_eq!(
        (allocation.at(100), allocation.at(125)),
        (Some(100.0), Some(100.0))
    );
    assert_eq!((allocation.at(50), allocation.at(0)), (Some(50.0), None));
}
