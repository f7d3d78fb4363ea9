//! A dump without names is planned like the one with them, name by name.

use std::sync::Arc;

use muster_core::node::{Requirement, SelectorOperator, SelectorTerm};
use muster_core::pod::PodShape;
use muster_core::state::State;
use muster_core::workload::Hold;
use muster_dump::report::Report;
use muster_dump::{read, redact, replay, write};
use serde_json::Value;

use crate::again::{busy, wave};
use crate::chaos::Storm;
use crate::world::{World, shape};

/// Can be turned back, to compare.
fn hex(name: &str) -> String {
    name.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// The name that stands behind a text of a redacted dump; a text that is none stays.
fn back(text: &str) -> String {
    let parts = text.strip_prefix('r').and_then(|text| text.split_once('-'));
    let Some((rank, hash)) = parts else {
        return text.to_owned();
    };
    if rank.is_empty() || !rank.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.to_owned();
    }
    let bytes: Option<Vec<u8>> = (0..hash.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(hash.get(at..at + 2)?, 16).ok())
        .collect();
    let name = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    name.unwrap_or_else(|| hash.to_owned())
}

/// Reasons name racks: word by word.
fn all_back(value: &mut Value) {
    match value {
        Value::String(text) => {
            let words = text.split(' ').map(back);
            *text = words.collect::<Vec<_>>().join(" ");
        }
        Value::Array(values) => values.iter_mut().for_each(all_back),
        Value::Object(fields) => fields.values_mut().for_each(all_back),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn planned(state: &State) -> Value {
    json(&Report::of(state, &replay(state), None).json().unwrap())
}

/// Redacts a state by way of a file, and looks whether it is another, with the same plans.
fn check(state: &State) -> String {
    let text = write(&redact(state, &hex)).unwrap();
    let redacted = read(&text).unwrap();
    assert_eq!(write(&redacted).unwrap(), text);
    let mut named = json(&text);
    all_back(&mut named);
    assert_eq!(named, json(&write(state).unwrap()));
    let mut again = planned(&redacted);
    all_back(&mut again);
    assert_eq!(again, planned(state));
    text
}

#[test]
fn every_state_of_a_storm_is_planned_alike_without_its_names() {
    let mut planned = 0;
    for seed in 1..=12 {
        let mut storm = Storm::new(seed);
        for turn in 0..60 {
            storm.turn();
            if turn % 6 == 0 {
                let state = storm.world.engine.state(storm.world.now);
                check(&state);
                planned += state
                    .gangs
                    .iter()
                    .filter(|gang| gang.plan.is_some())
                    .count();
            }
        }
    }
    assert!(planned > 50, "{planned}");
}

#[test]
fn a_redacted_dump_of_racks_and_rules_has_no_name_in_it_and_is_planned_alike() {
    for settled in [false, true] {
        let mut world = busy();
        wave(&mut world);
        world.scheduler = false;
        if settled {
            world.settle();
        } else {
            while let Some(event) = world.watch.pop_front() {
                world.engine.handle(event, world.now);
            }
        }
        let text = check(&world.engine.state(world.now));
        for name in [
            "n07",
            "early-1",
            "one-rack",
            "labelled",
            "\"r3\"",
            "GPU-n03-2",
        ] {
            assert!(!text.contains(name), "{name}");
        }
        // What planning goes by and what is to be looked at stays.
        for word in [
            "net/rack",
            "nvidia.com/gpu",
            "-Worker\"",
            "-Master\"",
            "kubernetes.io/hostname",
        ] {
            assert!(text.contains(word), "{word}");
        }
    }
}

/// The planner reads it as a number: a hash would be none.
#[test]
fn a_label_that_is_compared_as_a_number_stays_one() {
    let mut world = World::new(4, 8);
    for index in 0..4 {
        let node = world.nodes.get_mut(&format!("n{index}")).unwrap();
        let value = Arc::from((index * 10).to_string());
        node.labels.insert(Arc::from("disk-gib"), value);
        node.labels.insert(Arc::from("owner"), Arc::from("acme"));
    }
    world.restart(1);
    let large = Requirement {
        key: Arc::from("disk-gib"),
        operator: SelectorOperator::Gt(15),
    };
    let term = SelectorTerm {
        expressions: vec![large],
        fields: Vec::new(),
    };
    let wish = Arc::new(PodShape {
        required_affinity: Some(vec![term]),
        ..shape(8)
    });
    world.submit("job", &[("Worker", 2, wish)], Hold::Held);
    while let Some(event) = world.watch.pop_front() {
        world.engine.handle(event, world.now);
    }
    let state = world.engine.state(world.now);
    let text = check(&state);
    assert!(
        text.contains("\"disk-gib\":\"20\"") && !text.contains("acme"),
        "{text}"
    );
    let report = Report::of(&state, &replay(&state), None);
    assert_eq!(report.gangs[0].members.len(), 2, "{report:?}");
}
