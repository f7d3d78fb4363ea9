//! Nodes that are alike are planned together: that may change which of them is taken, and nothing else.

use std::sync::Arc;

use muster_core::config::Config;
use muster_core::ids::NodeName;
use muster_core::node::{Requirement, SelectorOperator, SelectorTerm};
use muster_core::plan::plan;
use muster_core::pod::PodShape;
use muster_core::snapshot::Snapshot;

use super::{Rng, describe, read};

/// A cluster that differs node by node as well as by kind.
fn cluster(rng: &mut Rng) -> String {
    let mut text = String::new();
    for at in 0..1 + rng.below(20) {
        text += &format!(
            "node n{at:02} gpu=8 used={} cpu={} label=zone:z{} {}\n",
            rng.below(9),
            8 * (1 + rng.below(4)) + rng.below(2),
            rng.below(3),
            if rng.below(6) == 0 { "port=99" } else { "" },
        );
    }
    text
}

fn role(rng: &mut Rng) -> String {
    format!(
        "role worker {}x{} cpu={} {} {}\n",
        1 + rng.below(12),
        1 + rng.below(8),
        1 + rng.below(9),
        if rng.below(3) == 0 {
            "select=zone:z1"
        } else {
            ""
        },
        if rng.below(4) == 0 { "port=99" } else { "" },
    )
}

fn answer(snapshot: &Snapshot, text: &str) -> String {
    let (_, gang) = read(text);
    describe(&plan(snapshot, &gang, &Config::default()), true)
}

#[test]
fn snapshot_that_was_changed_node_by_node_plans_like_one_made_afresh() {
    let mut rng = Rng(3);
    for _ in 0..300 {
        let text = cluster(&mut rng);
        let role = role(&mut rng);
        let (target, gang) = read(&format!("{text}{role}"));
        let (mut changed, _) = read(&cluster(&mut rng));
        for role in &gang.roles {
            changed.learn(&role.shape);
        }
        let names: Vec<NodeName> = changed
            .nodes()
            .iter()
            .map(|n| n.node.name.clone())
            .collect();
        let mut nodes = target.nodes().to_vec();
        // In any order.
        for at in (1..nodes.len()).rev() {
            nodes.swap(at, rng.below(at as u64 + 1) as usize);
        }
        for node in nodes {
            changed.set(node);
        }
        for name in names.iter().filter(|name| target.get(name).is_none()) {
            assert!(changed.remove(name));
        }
        assert_eq!(
            answer(&changed, &role),
            answer(&target, &role),
            "{text}{role}"
        );
    }
}

#[test]
fn label_that_nobody_announced_is_looked_at_all_the_same() {
    let mut rng = Rng(4);
    for _ in 0..300 {
        let text = cluster(&mut rng);
        let role = role(&mut rng);
        let (knows, gang) = read(&format!("{text}{role}"));
        let knows_not = Snapshot::of(knows.nodes().iter().cloned());
        let config = Config::default();
        let (a, b) = (
            plan(&knows, &gang, &config),
            plan(&knows_not, &gang, &config),
        );
        assert_eq!(describe(&a, true), describe(&b, true), "{text}{role}");
    }
}

#[test]
fn pod_that_is_pinned_to_a_node_goes_there() {
    let (snapshot, mut gang) = read("node a gpu=8\nnode b gpu=8\nnode c gpu=8\nrole worker 1x1");
    let pinned = PodShape {
        required_affinity: Some(vec![SelectorTerm {
            expressions: Vec::new(),
            fields: vec![Requirement {
                key: Arc::from("metadata.name"),
                operator: SelectorOperator::In([Arc::from("b")].into()),
            }],
        }]),
        ..(*gang.roles[0].shape).clone()
    };
    gang.roles[0].shape = Arc::new(pinned);
    let answer = plan(&snapshot, &gang, &Config::default());
    assert_eq!(describe(&answer, false), "worker b");
}

#[test]
fn label_with_a_value_for_each_node_does_not_tell_kinds_apart_and_still_counts() {
    let nodes: String = (0..200)
        .map(|at| format!("node n{at:03} gpu=8 label=serial:s{at:03}\n"))
        .collect();
    let (snapshot, gang) = read(&format!("{nodes}role worker 1x1 select=serial:s123"));
    let answer = plan(&snapshot, &gang, &Config::default());
    assert_eq!(describe(&answer, false), "worker n123");
}
