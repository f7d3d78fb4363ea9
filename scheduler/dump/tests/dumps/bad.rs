//! Dumps that no scheduler has written are refused, and it is said why.

use muster_core::workload::Hold;

use crate::world::{World, gpus};

fn good() -> String {
    let mut world = World::new(2, 4);
    world.restart(1);
    world.submit("one", &[("Worker", 2, gpus(2))], Hold::Held);
    world.settle();
    world.submit("two", &[("Worker", 3, gpus(4))], Hold::Held);
    world.settle();
    muster_dump::write(&world.engine.state(world.now)).unwrap()
}

fn said(text: &str) -> String {
    muster_dump::read(text).unwrap_err().to_string()
}

#[test]
fn errors_name_the_field_its_value_and_what_is_allowed() {
    let good = good();
    let cases = [
        ("\"format\":1", "\"format\":2", "format is 2: must be 1, "),
        ("\"format\":1,\n", "", "format is missing: must be 1, "),
        ("\"epoch\"", "\"epoche\"", "unknown field `epoche`"),
        (
            "\"leads\":true",
            "\"leads\":1",
            "leads: invalid type: integer `1`, expected a boolean",
        ),
        (
            "\"milli_cpu\":64000",
            "\"milli_cpu\":-1",
            "nodes[0].object.allocatable.milli_cpu: invalid value",
        ),
        (
            "\"milli_cpu\":64000",
            "\"milli_cpu\":1e99",
            "nodes[0].object.allocatable.milli_cpu: invalid type",
        ),
        (
            "\"nvidia.com/gpu\":4",
            "\"nvidia.com/gpu\":0",
            "[nvidia.com/gpu] is 0: must be left out or at least 1",
        ),
        (
            "GPU-n0-1",
            "GPU-n0-0",
            "nodes[0].agent.devices[1].uuid is GPU-n0-0: is the UUID of another device",
        ),
        (
            "\"name\":\"n1\"",
            "\"name\":\"n0\"",
            "nodes[1].name is n0: is the name of nodes[0] too",
        ),
        (
            "\"heard_ms\":",
            "\"heard_ms\":9",
            "nodes[0].agent.heard_ms is 9",
        ),
        (
            "\"shape\":0",
            "\"shape\":7",
            ".shape is 7: must be the position of a shape, of 3 from 0",
        ),
        ("\"weight\":", "\"weight\":9", ": must be at most 1048576"),
        (
            "\"shapes\":[\n{",
            "\"shapes\":[\n{\"share\":{\"resource\":\"nvidia.com/gpu\",\"milli\":1000},",
            "shapes[0].share.milli is 1000: must be 1 to 999",
        ),
        (
            "\"phase\":\"Waiting\"",
            "\"phase\":\"Idle\"",
            "gangs[1].phase: unknown variant `Idle`",
        ),
        (
            "\"indices\":[0,1,2]",
            "\"indices\":[0,1,1]",
            "gangs[1].asks[0].roles[0].indices is 1: is asked for twice",
        ),
        (
            "\"indices\":[0,1,2]",
            "\"indices\":[0,1,2],\"segments\":[0]",
            "segments (entries) is 1: must be none or one for each",
        ),
        (
            "\"uid\":\"uid-two\"",
            "\"uid\":\"uid-one\"",
            "gangs[1].uid is uid-one: is the uid of gangs[0]",
        ),
        (
            "\"labels\":{\"app\":\"gang\"}}]",
            "\"labels\":{\"app\":\"gang\"}}],\"topology\":{\"required\":0}",
            "topology.required is 0: must be the position of a level, of 0 from 0",
        ),
    ];
    for (from, to, wanted) in cases {
        assert!(good.contains(from), "{from} is not in\n{good}");
        let said = said(&good.replacen(from, to, 1));
        assert!(said.contains(wanted), "{from} -> {to}: {said}");
    }
}

#[test]
fn a_pod_that_holds_room_on_two_nodes_is_refused() {
    let good = good();
    let begin = good.find("\"pods\":[{").unwrap();
    let end = begin + good[begin..].find("}]").unwrap() + 2;
    // The second node gets the pods of the first, too.
    let pods = format!("{{\"name\":\"n1\",{},", &good[begin..end]);
    let spoiled = good.replacen("{\"name\":\"n1\",", &pods, 1);
    let said = said(&spoiled);
    assert!(
        said.contains("holds room on node n0 too"),
        "{said}\n{spoiled}"
    );
}

#[test]
fn what_is_no_dump_at_all_is_refused() {
    for (text, wanted) in [
        ("", "dump: EOF"),
        ("[]", "dump: "),
        ("{", "dump: EOF"),
        ("{}", "format is missing"),
        ("kind: Gang", "dump: expected value"),
    ] {
        let said = said(text);
        assert!(said.starts_with(wanted), "{text}: {said}");
    }
    let twice = good() + "{}";
    assert!(
        said(&twice).contains("trailing characters"),
        "{}",
        said(&twice)
    );
}
