use std::time::Duration;

use muster_proto::inventory::{HealthSource, RecoveryAction};

use super::table::{State, Table};
use super::{Judge, Note};
use crate::fake::FakeNode;
use crate::model::{DeviceEvent, DeviceEventKind};
use crate::profile::Profile;
use crate::scenario::FaultEvent;

/// A fake node with a judge: faults are applied and read at once, at the given second.
struct Bench {
    node: FakeNode,
    judge: Judge,
    has_action: bool,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            node: FakeNode::new(Profile::load("h100-8").unwrap().shape_for("n"), "n"),
            judge: Judge::new(Table::embedded().unwrap()),
            has_action: true,
        };
        bench.read(0);
        bench
    }

    fn read(&mut self, at_s: u64) -> Vec<Note> {
        let mut reading = self.node.reading();
        if !self.has_action {
            reading
                .gpus
                .iter_mut()
                .for_each(|gpu| gpu.facts.recovery_action = None);
        }
        self.judge.reading(Duration::from_secs(at_s), &reading)
    }

    fn fault(&mut self, at_s: u64, fault: &FaultEvent) -> Vec<Note> {
        let event = self.node.apply(fault);
        let first = event.and_then(|event| self.judge.event(Duration::from_secs(at_s), &event));
        first.into_iter().chain(self.read(at_s)).collect()
    }

    fn xid(&mut self, at_s: u64, code: u64) -> Vec<Note> {
        self.fault(at_s, &FaultEvent::Xid { gpu: 3, code })
    }

    fn state(&mut self, at_s: u64) -> (State, String) {
        let mut reading = self.node.reading();
        let gpu = reading.gpus.remove(3);
        let verdict = self.judge.verdict(Duration::from_secs(at_s), &gpu, None);
        (verdict.state, verdict.reason)
    }
}

fn is(state: State, reason: &str) -> (State, String) {
    (state, reason.into())
}

#[test]
fn a_gpu_off_the_bus_is_lost_and_comes_back_after_settling() {
    let mut bench = Bench::new();
    let notes = bench.xid(30, 79);
    assert!(
        notes
            .iter()
            .any(|note| note.code == 79 && note.fatal && note.state == State::Lost)
    );
    assert_eq!(bench.state(30), is(State::Lost, "xid-79"));
    assert_eq!(bench.state(4000), is(State::Lost, "xid-79"));
    bench.fault(4001, &FaultEvent::Back { gpu: Some(3) });
    assert_eq!(bench.state(4001), is(State::Unhealthy, "xid-79"));
    assert_eq!(bench.judge.next_deadline(), Some(Duration::from_secs(4006)));
    assert_eq!(bench.state(4006), is(State::Healthy, ""));
    assert_eq!(bench.judge.next_deadline(), None);
}

#[test]
fn the_drivers_demand_holds_until_it_is_withdrawn() {
    let mut bench = Bench::new();
    bench.xid(10, 95);
    assert_eq!(bench.state(10), is(State::Unhealthy, "recovery-gpu-reset"));
    assert_eq!(
        bench.state(100_000),
        is(State::Unhealthy, "recovery-gpu-reset")
    );
    bench.fault(100_000, &FaultEvent::Back { gpu: Some(3) });
    assert_eq!(bench.state(100_001), is(State::Unhealthy, "xid-95"));
    assert_eq!(bench.state(100_005), is(State::Healthy, ""));
}

#[test]
fn xid_109_is_unhealthy_until_the_driver_has_asked_for_nothing_for_a_minute() {
    let mut bench = Bench::new();
    // Told by the driver without a demand for a reset.
    let uuid = bench.node.gpus[3].uuid.clone();
    let event = DeviceEvent {
        gpu_uuid: Some(uuid),
        instance: None,
        kind: DeviceEventKind::Xid(109),
    };
    assert!(bench.judge.event(Duration::from_secs(10), &event).is_some());
    bench.read(11);
    assert_eq!(bench.state(69), is(State::Unhealthy, "xid-109"));
    assert_eq!(bench.state(70), is(State::Healthy, ""));
}

#[test]
fn contained_errors_are_suspect_and_application_errors_change_nothing() {
    let mut bench = Bench::new();
    let note = bench.xid(5, 94).remove(0);
    assert_eq!((note.source, note.fatal), (HealthSource::Xid, false));
    assert_eq!(bench.state(6), is(State::Suspect, "xid-94"));
    assert_eq!(bench.state(65), is(State::Healthy, ""));
    for code in [13, 31, 43, 63] {
        assert_eq!(bench.xid(100, code).len(), 1);
        assert_eq!(bench.state(100), is(State::Healthy, ""), "{code}");
    }
}

#[test]
fn without_field_230_an_unhealthy_gpu_stays_so_for_the_quiet_time() {
    let mut bench = Bench::new();
    bench.has_action = false;
    bench.xid(10, 119);
    assert_eq!(bench.state(3609), is(State::Unhealthy, "xid-119"));
    assert_eq!(bench.state(3610), is(State::Healthy, ""));
}

#[test]
fn only_a_seen_reset_clears_a_failed_remap() {
    let mut bench = Bench::new();
    bench.fault(10, &FaultEvent::RemapFailure { gpu: 3 });
    assert_eq!(bench.state(10), is(State::Unhealthy, "remap-failure"));
    bench.xid(11, 64);
    bench.fault(20, &FaultEvent::Back { gpu: Some(3) });
    assert_eq!(bench.state(26), is(State::Healthy, ""));
    bench.fault(30, &FaultEvent::RemapPending { gpu: 3 });
    assert_eq!(bench.state(30), is(State::Suspect, "remap-pending"));
}

#[test]
fn a_storm_of_one_xid_is_counted_not_repeated() {
    let mut bench = Bench::new();
    let told: Vec<Note> = (0..1000).flat_map(|n| bench.xid(n / 100, 31)).collect();
    assert_eq!(told.len(), 1);
    let later = bench.xid(60, 31);
    assert_eq!(later[0].count, 1000);
}

#[test]
fn an_event_of_one_slice_leaves_its_siblings_alone() {
    let mut bench = Bench::new();
    let uuid = bench.node.gpus[3].uuid.clone();
    let event = DeviceEvent {
        gpu_uuid: Some(uuid),
        instance: Some((2, 0)),
        kind: DeviceEventKind::Xid(94),
    };
    bench.judge.event(Duration::from_secs(1), &event);
    let gpu = bench.node.reading().gpus.remove(3);
    let mut of = |instance| {
        bench
            .judge
            .verdict(Duration::from_secs(2), &gpu, instance)
            .state
    };
    assert_eq!(
        (of(Some((2, 0))), of(Some((1, 0))), of(None)),
        (State::Suspect, State::Healthy, State::Healthy)
    );
}

#[test]
fn an_unknown_demand_of_a_newer_driver_is_never_good_news() {
    let mut bench = Bench::new();
    let mut reading = bench.node.reading();
    reading.gpus[3].facts.recovery_action = Some(77);
    bench.judge.reading(Duration::from_secs(1), &reading);
    assert_eq!(bench.state(2).0, State::Unhealthy);
    assert_eq!(RecoveryAction::try_from(77).ok(), None);
}

#[test]
fn an_xid_of_an_unnamed_gpu_makes_all_suspect_until_each_is_found_well() {
    let unnamed = |code| DeviceEvent {
        gpu_uuid: None,
        instance: None,
        kind: DeviceEventKind::Xid(code),
    };
    let mut bench = Bench::new();
    let second = Duration::from_secs;
    // The failure of an application changes nothing, whoever had it.
    assert!(bench.judge.event(second(1), &unnamed(31)).is_some());
    assert_eq!(bench.state(1), is(State::Healthy, ""));
    let note = bench.judge.event(second(2), &unnamed(79)).unwrap();
    assert_eq!((note.device_uuid.as_str(), note.fatal), ("", true));
    assert_eq!(bench.judge.event(second(3), &unnamed(79)), None, "a storm");
    assert_eq!(bench.state(3), is(State::Suspect, "node-xid-79"));
    // It was GPU 1; the others are found well again and again.
    bench.node.apply(&FaultEvent::Lost { gpu: 1 });
    bench.read(4);
    assert_eq!(bench.state(62), is(State::Suspect, "node-xid-79"));
    assert_eq!(bench.judge.next_deadline(), Some(second(63)));
    assert_eq!(bench.state(63), is(State::Healthy, ""));
    let lost = bench.node.reading().gpus.remove(1);
    let verdict = bench.judge.verdict(second(63), &lost, None);
    assert_eq!(verdict.state, State::Lost);
}

/// The name may be that of a GPU that no reading has had.
#[test]
fn an_xid_of_an_unknown_gpu_concerns_all_until_they_can_be_read_again() {
    let mut bench = Bench::new();
    let event = DeviceEvent {
        gpu_uuid: Some("GPU-of-nobody".into()),
        instance: None,
        kind: DeviceEventKind::Xid(119),
    };
    bench.judge.event(Duration::from_secs(1), &event);
    let mut reading = bench.node.reading();
    reading.gpus[3].unreadable = true;
    bench.judge.reading(Duration::from_secs(2), &reading);
    assert_eq!(bench.state(500), is(State::Suspect, "node-xid-119"));
    bench.read(600);
    assert_eq!(bench.state(659), is(State::Suspect, "node-xid-119"));
    assert_eq!(bench.state(660), is(State::Healthy, ""));
}

/// A driver that is loaded anew and does not count the first GPU: those behind it move up.
#[test]
fn causes_stay_with_their_gpu_when_indexes_shift() {
    let mut bench = Bench::new();
    let uuid = bench.node.gpus[3].uuid.clone();
    let event = DeviceEvent {
        gpu_uuid: Some(uuid.clone()),
        instance: None,
        kind: DeviceEventKind::Xid(64),
    };
    assert!(bench.judge.event(Duration::from_secs(1), &event).is_some());
    let mut reading = bench.node.reading();
    let mut lost = reading.gpus.remove(0);
    (lost.lost, lost.facts.index) = (true, None);
    for (gpu, index) in reading.gpus.iter_mut().zip(0..) {
        gpu.facts.index = Some(index);
    }
    reading.gpus.push(lost);
    let notes = bench.judge.reading(Duration::from_secs(2), &reading);
    assert_eq!(notes.len(), 1, "one GPU is lost, and nothing else happened");
    for gpu in &reading.gpus {
        let verdict = bench.judge.verdict(Duration::from_secs(100), gpu, None);
        let expected = match (gpu.lost, gpu.facts.uuid == uuid) {
            (true, _) => (State::Lost, "lost"),
            (false, true) => (State::Unhealthy, "xid-64"),
            (false, false) => (State::Healthy, ""),
        };
        assert_eq!((verdict.state, verdict.reason.as_str()), expected);
    }
}

#[test]
fn a_gpu_that_could_not_be_read_for_a_while_has_not_been_reset() {
    let mut bench = Bench::new();
    bench.has_action = false;
    let uuid = bench.node.gpus[3].uuid.clone();
    let event = DeviceEvent {
        gpu_uuid: Some(uuid),
        instance: None,
        kind: DeviceEventKind::Xid(64),
    };
    bench.judge.event(Duration::from_secs(1), &event);
    let mut reading = bench.node.reading();
    for gpu in [3, 4] {
        reading.gpus[gpu].unreadable = true;
    }
    assert_eq!(bench.judge.reading(Duration::from_secs(2), &reading), []);
    let other = bench
        .judge
        .verdict(Duration::from_secs(2), &reading.gpus[4], None);
    assert_eq!(
        (other.state, other.reason.as_str()),
        (State::Suspect, "unreadable")
    );
    bench.read(3);
    assert_eq!(bench.state(100), is(State::Unhealthy, "xid-64"));
    // A loss is another thing.
    bench.fault(200, &FaultEvent::Lost { gpu: 3 });
    bench.fault(210, &FaultEvent::Back { gpu: Some(3) });
    assert_eq!(bench.state(215), is(State::Healthy, ""));
}

#[test]
fn a_demand_or_condition_that_cannot_be_read_is_not_over() {
    let mut bench = Bench::new();
    bench.fault(10, &FaultEvent::RemapFailure { gpu: 3 });
    bench.xid(11, 95);
    let mut reading = bench.node.reading();
    reading.gpus[3].facts.recovery_action = None;
    reading.gpus[3].facts.ecc = None;
    reading.gpus[3].sram_threshold_exceeded = None;
    assert_eq!(bench.judge.reading(Duration::from_secs(20), &reading), []);
    let verdict = bench
        .judge
        .verdict(Duration::from_secs(90), &reading.gpus[3], None);
    assert_eq!(
        (verdict.state, verdict.reason.as_str()),
        (State::Unhealthy, "recovery-gpu-reset")
    );
    bench.fault(100, &FaultEvent::Back { gpu: Some(3) });
    assert_eq!(bench.state(105), is(State::Healthy, ""));
}
