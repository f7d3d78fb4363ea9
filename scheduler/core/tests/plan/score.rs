//! Of several nodes with room, the one that others miss least is taken.

use std::sync::Arc;

use muster_core::config::Config;
use muster_core::ids::NodeName;
use muster_core::plan::plan;
use muster_core::resources::Resources;
use muster_core::snapshot::{Counts, NodeCapacity, Snapshot};

use super::{GPU, Rng, check_devices, check_plan, role, set};

#[test]
fn node_of_a_rare_model_is_spared_for_those_who_ask_for_it() {
    let nodes = "node a gpu=8 used=2 label=model:old
         node b gpu=8 label=model:new
         role w 1x1";
    check_plan(nodes, "w a");
    // The fuller one, if nobody asks for anything.
    let nodes = "node a gpu=8 label=model:old
         node b gpu=8 used=2 label=model:new
         role w 1x1";
    check_plan(nodes, "w b");
    check_plan(
        &format!("{nodes}\n usual x 40x1 select=model:new\n usual y 40x1"),
        "w a",
    );
}

#[test]
fn whole_node_stays_whole_for_those_who_need_one() {
    let nodes = "node a gpu=8 cpu=64
         node b gpu=8 used=3 cpu=40
         role w 1x5 cpu=5
         usual x 10x8 cpu=8
         usual y 10x1 cpu=1";
    check_plan(nodes, "w b");
}

/// Fewest free devices would say `b`: it has the CPU for those who ask for much.
#[test]
fn member_that_needs_little_cpu_goes_to_gpus_that_have_little() {
    let nodes = "node a gpu=4 cpu=8
         node b gpu=4 used=1 cpu=64
         role w 1x1 cpu=1
         usual x 20x1 cpu=2
         usual y 20x1 cpu=16";
    check_plan(nodes, "w a");
}

#[test]
fn share_leaves_what_other_shares_can_use() {
    // 300 of 500 leaves 200, which is of no use, and 500 are what somebody asks for; 300 of 600 leave 300.
    check_devices(
        "node a gpu=1 shared=500
         node b gpu=1 shared=600
         role w 1x0 share=300
         usual x 50x0 share=300
         usual y 50x0 share=500",
        "w b0",
    );
    check_devices(
        "node a gpu=1 shared=300
         node b gpu=1 shared=700
         role w 1x0 share=300
         usual x 50x0 share=300
         usual y 50x0 share=400",
        "w a0",
    );
}

#[test]
fn pods_without_gpus_take_the_cpu_that_no_gpu_needs() {
    check_plan(
        "node a gpu=8 cpu=64
         node b gpu=2 cpu=64
         role w 1x0 cpu=16 tolerate=gpu
         usual x 20x1 cpu=8",
        "w b",
    );
}

fn random_role(rng: &mut Rng, name: &str, count: u64) -> String {
    let share = match rng.below(3) {
        0 => format!("share={}", 100 * (1 + rng.below(9))),
        _ => String::new(),
    };
    let gpus = if share.is_empty() { rng.below(4) } else { 0 };
    let select = match rng.below(4) {
        0 => format!("select=model:{}", rng.below(3)),
        _ => String::new(),
    };
    let cpu = 1 + rng.below(12);
    format!("{name} {count}x{gpus} cpu={cpu} tolerate=gpu {share} {select}")
}

fn take(rng: &mut Rng, node: &NodeCapacity) -> NodeCapacity {
    let mut node = node.clone();
    let gpus = node.free.extended(GPU);
    let left = gpus - rng.below(gpus + 1);
    set(&mut node.free, left);
    set(&mut node.well, left);
    node.devices.truncate(left as usize);
    let mut cpu = Resources::default();
    cpu.milli_cpu = 1000 * rng.below(6);
    node.free.subtract(&cpu);
    node
}

/// A cost that is kept is the one that would be worked out now: whoever was planned before.
#[test]
fn f35_plans_by_demand_do_not_depend_on_what_was_planned_before() {
    let mut rng = Rng(11);
    for _ in 0..300 {
        let nodes: Vec<Arc<NodeCapacity>> = (0..12)
            .map(|at| {
                let gpus = 1 + rng.below(8);
                let (name, gpus) = (format!("n{at:02}"), format!("gpu={gpus}"));
                let label = format!("label=model:{}", rng.below(3));
                let cpu = format!("cpu={}", 8 + rng.below(60));
                Arc::new(super::node(&[&name, &gpus, &label, &cpu]))
            })
            .collect();
        let shape = |text: String| role(&text.split_whitespace().collect::<Vec<_>>());
        let mut counts = Counts::new();
        for _ in 0..5 {
            let usual = shape(random_role(&mut rng, "usual", 1));
            counts.insert(usual.shape, 1 + rng.below(50));
        }
        let mut kept = Snapshot::of(nodes.iter().cloned());
        for usual in counts.keys() {
            kept.learn(usual);
        }
        kept.set_demand(&counts, &Config::default());
        // The weights stay as they were found.
        let fresh = kept.clone();
        let mut changed: Vec<Arc<NodeCapacity>> = Vec::new();
        for _ in 0..12 {
            let count = 1 + rng.below(3);
            let gang = muster_core::plan::GangRequest {
                roles: vec![shape(random_role(&mut rng, "w", count))],
                ..Default::default()
            };
            let mut other = fresh.clone();
            for node in &changed {
                other.set(Arc::clone(node));
            }
            other.learn(&gang.roles[0].shape);
            kept.learn(&gang.roles[0].shape);
            let asked = plan(&kept, &gang, &Config::default());
            assert_eq!(asked, plan(&other, &gang, &Config::default()));
            assert_eq!(asked, plan(&kept, &gang, &Config::default()));
            let name = NodeName::from(format!("n{:02}", rng.below(12)).as_str());
            let node = Arc::new(take(&mut rng, kept.get(&name).unwrap()));
            kept.set(Arc::clone(&node));
            changed.push(node);
        }
    }
}

/// Whoever may make a job may ask for any number: it must not size anything.
#[test]
fn absurd_numbers_of_gpus_are_no_demand() {
    for count in ["1000000000000", "18446744073709551615"] {
        check_plan(
            &format!(
                "node a gpu=8 label=model:old
                 node b gpu=8 used=2 label=model:new
                 role w 1x1
                 usual x 40x1 select=model:new
                 usual y 40x1
                 usual absurd 16000x{count}"
            ),
            "w a",
        );
    }
}

#[test]
fn work_that_can_never_run_does_not_hide_what_others_ask_for() {
    check_plan(
        "node a gpu=8 label=model:old
         node b gpu=8 used=2 label=model:new
         role w 1x1
         usual x 40x1 select=model:new
         usual y 40x1
         usual nowhere 100000x1 select=model:none
         usual large 100000x9",
        "w a",
    );
}
