//! Small histories by hand, written one event a second.

use super::*;
use crate::history::record::judged;
use crate::history::{Gap, JobState, NodeState};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

/// A history built line by line.
#[derive(Default)]
struct Script {
    events: Vec<Event>,
}

impl Script {
    fn then(mut self, change: Change) -> Self {
        let step = self.events.len() as u64 + 1;
        let at = Timestamp::from_second(step as i64).unwrap();
        self.events.push(Event {
            resource_version: step,
            at,
            change,
        });
        self
    }

    fn node(self, gpus: i128) -> Self {
        self.then(Change::Node(NodeState {
            name: "n".into(),
            uid: "n-uid".into(),
            allocatable: [
                ("nvidia.com/gpu".to_owned(), gpus * 1_000),
                ("pods".to_owned(), 110_000),
            ]
            .into(),
            unschedulable: false,
            ready: true,
            taints: vec![],
        }))
    }

    fn pod(self, name: &str, node: Option<&str>, phase: &str) -> Self {
        self.then(Change::Pod(pod(name, node, phase)))
    }

    fn gone(self, name: &str) -> Self {
        self.then(Change::PodGone(pod(name, Some("n"), "Running")))
    }

    fn job(self, minimum: u32, finished: bool) -> Self {
        self.then(Change::Job(JobState {
            uid: "job-uid".into(),
            namespace: "ns".into(),
            name: "job".into(),
            minimum,
            suspended: false,
            finished,
            created: None,
        }))
    }

    fn partial(self, deadline_s: u64) -> Vec<Violation> {
        History::new(self.events).partial_gangs(&GangRule::new(Duration::from_secs(deadline_s)))
    }

    fn over(self) -> Vec<Violation> {
        History::new(self.events).over_commitments()
    }
}

fn pod(name: &str, node: Option<&str>, phase: &str) -> PodState {
    PodState {
        uid: name.into(),
        namespace: "ns".into(),
        name: name.into(),
        node: node.map(str::to_owned),
        phase: phase.into(),
        terminating: false,
        gates: vec![],
        scheduler: "muster".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        controller: Some(("PyTorchJob".into(), "job".into(), "job-uid".into())),
        requests: [("nvidia.com/gpu".to_owned(), 4_000)].into(),
        created: None,
    }
}

#[test]
fn a_gang_partial_for_longer_than_its_deadline_is_found_with_its_numbers() {
    let script = || {
        Script::default()
            .job(2, false)
            .pod("a", Some("n"), "Pending")
            .pod("b", None, "Pending")
            .pod("c", None, "Pending")
            .pod("b", Some("n"), "Pending")
    };
    assert_eq!(script().partial(3), []);
    let found = script().partial(2);
    let [
        Violation::PartialGang {
            gang,
            lasted_ms,
            bound,
            minimum,
            nodes,
            ..
        },
    ] = found.as_slice()
    else {
        panic!("{found:?}");
    };
    assert_eq!(
        (gang.as_str(), *lasted_ms, *bound, *minimum),
        ("ns/job", 3_000, 1, 2)
    );
    assert_eq!(nodes.as_slice(), ["n"]);
}

#[test]
fn a_record_with_a_gap_is_no_proof_of_anything() {
    let mut history = History::new(Script::default().job(2, false).events);
    assert_eq!(history.unseen(), None);
    let at = Timestamp::from_second(7).unwrap();
    let gap = |second: i64| Gap {
        from: Timestamp::from_second(second - 1).unwrap(),
        until: Timestamp::from_second(second).unwrap(),
    };
    history.gaps = vec![gap(7), gap(9)];
    assert!(history.is_unseen_at(at) && !history.is_unseen_at(gap(5).until));
    assert_eq!(history.unseen(), Some(Violation::Unseen { at, gaps: 2 }));
}

/// A pod's condition or annotation that a list shows for the first time hides nothing that is judged; a
/// binding does.
#[test]
fn a_change_that_is_not_judged_is_no_gap() {
    let pod = |value: serde_json::Value| {
        let pod: Pod = serde_json::from_value(value).unwrap();
        judged(Change::PodGone(PodState::of(&pod)))
    };
    let bare =
        json!({"metadata": {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": "1"}});
    let mut said = bare.clone();
    said["metadata"]["resourceVersion"] = json!("2");
    said["metadata"]["annotations"] = json!({"muster.dev/wake": "e1-1/2-3"});
    said["status"] = json!({"conditions": [{"type": "PodScheduled", "status": "False"}]});
    let mut bound = said.clone();
    bound["spec"] = json!({"nodeName": "n", "containers": []});
    assert_eq!(pod(bare), pod(said.clone()));
    assert_ne!(pod(said), pod(bound));
}

/// A leader and its worker, each of a Job of its own, that a label makes one gang.
#[test]
fn a_gang_of_several_controllers_needs_what_its_pods_state() {
    let member = |name: &str, node: Option<&str>| {
        let mut pod = pod(name, node, "Pending");
        let job = format!("set-{name}");
        pod.controller = Some(("Job".into(), job.clone(), job));
        pod.labels.insert("gang".into(), "set".into());
        pod.annotations.insert("size".into(), "2".into());
        Change::Pod(pod)
    };
    let rule = GangRule::new(Duration::from_secs(2))
        .group_by_label("gang")
        .minimum(Minimum::Stated("size".into()));
    let leader = || Script::default().then(member("leader", Some("n")));
    let alone = leader().node(8).node(8).node(8);
    let found = History::new(alone.events).partial_gangs(&rule);
    let [Violation::PartialGang { bound, minimum, .. }] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!((*bound, *minimum), (1, 2));
    let both = leader().then(member("worker", Some("n")));
    let both = both.node(8).node(8).node(8);
    assert_eq!(History::new(both.events).partial_gangs(&rule), []);
}

#[test]
fn a_gang_still_partial_at_the_end_is_found() {
    let found = Script::default()
        .job(2, false)
        .pod("a", Some("n"), "Pending")
        .node(8)
        .node(8)
        .node(8)
        .partial(2);
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn an_outage_of_the_api_server_does_not_count() {
    let script = Script::default()
        .job(2, false)
        .pod("a", Some("n"), "Pending")
        .node(8)
        .node(8)
        .node(8);
    let second = |s| Timestamp::from_second(s).unwrap();
    let rule = GangRule::new(Duration::from_secs(2)).outages(vec![Outage {
        from: second(1),
        until: Some(second(4)),
    }]);
    assert_eq!(History::new(script.events).partial_gangs(&rule), []);
}

#[test]
fn members_that_succeed_one_by_one_or_outlive_a_finished_job_are_no_partial_gang() {
    let running = Script::default()
        .job(2, false)
        .pod("a", Some("n"), "Running")
        .pod("b", Some("n"), "Running");
    let ended = running
        .pod("a", Some("n"), "Succeeded")
        .node(8)
        .node(8)
        .node(8)
        .job(2, true)
        .node(8)
        .node(8);
    assert_eq!(ended.partial(1), []);
    let failed = Script::default()
        .pod("a", Some("n"), "Running")
        .pod("b", Some("n"), "Running")
        .job(2, true);
    assert_eq!(
        failed
            .pod("a", Some("n"), "Failed")
            .node(8)
            .node(8)
            .node(8)
            .partial(1),
        []
    );
}

#[test]
fn a_timeline_has_first_whole_and_last() {
    let history = History::new(
        Script::default()
            .job(2, false)
            .pod("a", None, "Pending")
            .pod("a", Some("n"), "Pending")
            .pod("b", Some("n"), "Pending")
            .pod("c", Some("n"), "Pending")
            .events,
    );
    let gangs = history.gangs(&GangRule::new(Duration::ZERO));
    assert_eq!(gangs.len(), 1);
    assert_eq!(gangs[0].latency(), Some(Duration::from_secs(3)));
    assert_eq!(gangs[0].pods, 3);
    assert_eq!(
        gangs[0].last_bound,
        Some(Timestamp::from_second(5).unwrap())
    );
    assert_eq!(gangs[0].partial_longest, Duration::from_secs(1));
    assert_eq!(history.binds().len(), 3);
}

#[test]
fn over_commitment_counts_terminating_pods_and_forgets_finished_ones() {
    let full = || {
        Script::default()
            .node(8)
            .pod("a", Some("n"), "Running")
            .pod("b", Some("n"), "Running")
    };
    assert_eq!(full().over(), []);
    let third = full().pod("c", Some("n"), "Pending").over();
    let [
        Violation::OverCommitted {
            pod,
            resource,
            used,
            allocatable,
            pods,
            ..
        },
    ] = third.as_slice()
    else {
        panic!("{third:?}");
    };
    assert_eq!(
        (pod.as_str(), resource.as_str(), *used, *allocatable),
        ("ns/c", "nvidia.com/gpu", 12_000, 8_000)
    );
    assert_eq!(pods.len(), 3);
    let mut terminating = super::tests::pod("a", Some("n"), "Running");
    terminating.terminating = true;
    assert_eq!(
        full()
            .then(Change::Pod(terminating))
            .pod("c", Some("n"), "Pending")
            .over()
            .len(),
        1
    );
    assert_eq!(
        full()
            .pod("a", Some("n"), "Succeeded")
            .pod("c", Some("n"), "Pending")
            .over(),
        []
    );
    assert_eq!(full().gone("a").pod("c", Some("n"), "Pending").over(), []);
    // A node that shrinks under its pods is no violation; what is bound to it afterwards is one.
    assert_eq!(full().node(4).pod("a", Some("n"), "Running").over(), []);
    assert_eq!(
        full()
            .node(4)
            .gone("b")
            .pod("c", Some("n"), "Pending")
            .over()
            .len(),
        1
    );
}
