//! What the engine itself costs to start one gang: from the job's event to the last confirmed
//! binding, when pods, Binds and answers come one by one, or in small bursts as the cycle takes them.
//! The whole start is asserted before and in each run.
//!
//! `cargo bench -p muster-benches --bench gather`

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use divan::Bencher;
use muster_core::action::{Action, JobChange, WriteKind};
use muster_core::config::{Config, NodesWithoutAgent};
use muster_core::engine::Engine;
use muster_core::event::{BindAsked, Event, Ticket, WriteOutcome};
use muster_core::ids::{Epoch, GangKey, NodeName, PodUid};
use muster_core::node::Node;
use muster_core::pod::{BindRecord, Membership, MembershipSource, Pod, PodPhase, PodShape};
use muster_core::record::{GangRecord, Phase};
use muster_core::resources::Resources;
use muster_core::time::Timestamp;
use muster_core::workload::{Hold, MemberSource, RoleSpec, Shown, Workload, WorkloadKind};

const GPU: &str = "nvidia.com/gpu";
const NODES: usize = 500;
const NOW: Timestamp = Timestamp(1000);

fn main() {
    divan::main();
}

fn resources(gpus: u64, pods: u64) -> Resources {
    let mut resources = Resources {
        milli_cpu: 4_000 * gpus,
        memory_bytes: (8 << 30) * gpus,
        pods,
        ..Resources::default()
    };
    resources.extended.insert(GPU.into(), gpus);
    resources
}

fn node(index: usize) -> Node {
    let name = format!("node-{index:05}");
    Node {
        name: name.as_str().into(),
        uid: Arc::from(name.as_str()),
        boot_id: None,
        labels: BTreeMap::from([(
            Arc::from("kubernetes.io/hostname"),
            Arc::from(name.as_str()),
        )]),
        taints: Vec::new(),
        unschedulable: false,
        ready: true,
        terminating: false,
        allocatable: resources(8, 110),
    }
}

fn job(key: &GangKey, members: u32, shape: &Arc<PodShape>, hold: Hold, version: &str) -> Workload {
    Workload {
        key: key.clone(),
        kind: WorkloadKind::PyTorchJob,
        name: Arc::from("train"),
        uid: Arc::clone(&key.uid),
        resource_version: version.into(),
        generation: 1,
        created_seconds: 0,
        priority: 0,
        ours: true,
        members: MemberSource::Roles(vec![RoleSpec {
            name: "Worker".into(),
            count: members,
            shape: Arc::clone(shape),
            labels: Arc::default(),
            pinned: None,
        }]),
        minimum: None,
        hold,
        shown: Shown::Nothing,
        finished: None,
        invalid: None,
        settings: BTreeMap::new(),
    }
}

fn pod(key: &GangKey, index: u32, shape: &Arc<PodShape>) -> Pod {
    let name = format!("train-worker-{index}");
    Pod {
        uid: PodUid::from(format!("uid-{name}")),
        namespace: "default".into(),
        name: Arc::from(name),
        resource_version: "10".into(),
        created_seconds: 1,
        node: None,
        phase: PodPhase::Pending,
        terminating: false,
        shape: Arc::clone(shape),
        labels: Arc::default(),
        priority: 0,
        ours: true,
        membership: Some(Membership {
            gang: key.clone(),
            source: MembershipSource::Job,
            role: Some("Worker".into()),
            index: Some(index),
        }),
        gated: false,
        gated_by_others: false,
        controlled: true,
        record: None,
        stamp: None,
        unschedulable: None,
        settings: std::collections::BTreeMap::new(),
        status_reason: None,
    }
}

/// A cluster that answers at once, and remembers what was decided.
struct Start {
    engine: Engine,
    key: GangKey,
    members: u32,
    shape: Arc<PodShape>,
    pods: BTreeMap<PodUid, Pod>,
    /// What the cluster will tell, in order.
    events: VecDeque<Event>,
    record: Option<GangRecord>,
    bound: u32,
    confirmed: u32,
    version: u64,
}

impl Start {
    fn new(members: u32) -> Self {
        let mut engine = Engine::new(Config {
            nodes_without_agent: NodesWithoutAgent::UseAllocatable,
            ..Config::default()
        });
        for index in 0..NODES {
            engine.handle(Event::NodeApplied(node(index)), NOW);
        }
        engine.handle(
            Event::LeadershipGained {
                epoch: Epoch(1),
                first: true,
            },
            NOW,
        );
        engine.handle(Event::Synced, NOW);
        engine.decide(NOW);
        let key = GangKey::new("default", "job-uid");
        let shape = Arc::new(PodShape {
            requests: resources(8, 1),
            ..PodShape::default()
        });
        let held = job(&key, members, &shape, Hold::Held, "1");
        Self {
            engine,
            key,
            members,
            shape,
            pods: BTreeMap::new(),
            events: VecDeque::from([Event::WorkloadApplied(held)]),
            record: None,
            bound: 0,
            confirmed: 0,
            version: 1,
        }
    }

    /// Runs the start to its end, `burst` events to a decision. Returns the decisions made.
    fn run(&mut self, burst: usize) -> u32 {
        let mut decisions: u32 = 0;
        while !self.events.is_empty() {
            for _ in 0..burst {
                if let Some(event) = self.events.pop_front() {
                    self.engine.handle(event, NOW);
                }
            }
            self.engine.decide(NOW);
            decisions = decisions.saturating_add(1);
            while let Some(action) = self.engine.poll_action() {
                self.carry_out(action);
            }
        }
        assert_eq!((self.bound, self.confirmed), (self.members, self.members));
        let phase = self.record.as_ref().map(|record| record.phase);
        assert_eq!(phase, Some(Phase::Running));
        decisions
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::AnswerBind { answer, .. } => {
                answer.expect("a Bind is confirmed");
                self.confirmed = self.confirmed.saturating_add(1);
            }
            Action::Write(write) => {
                let outcome = self.perform(write.what);
                let id = write.id;
                self.events.push_back(Event::WriteDone { id, outcome });
            }
            Action::Announce(_) | Action::Relist => {}
        }
    }

    fn perform(&mut self, what: WriteKind) -> WriteOutcome {
        self.version = self.version.saturating_add(1);
        match what {
            WriteKind::CreateRecord { object, kind, name } => {
                self.record = Some(GangRecord {
                    key: self.key.clone(),
                    object,
                    object_uid: Arc::from("gang-uid"),
                    resource_version: self.version.to_string().into(),
                    kind,
                    name,
                    phase: Phase::Waiting,
                    plan: Ok(None),
                });
                WriteOutcome::Done(self.record.clone())
            }
            WriteKind::PutStatus { status, .. } => {
                if let Some(record) = &mut self.record {
                    record.resource_version = self.version.to_string().into();
                    record.phase = status.phase;
                    record.plan = Ok(status.plan);
                }
                WriteOutcome::Done(self.record.clone())
            }
            WriteKind::ChangeJob { change, .. } => {
                let JobChange::Release { plan, pins } = change else {
                    panic!("only a release is expected, got {change:?}");
                };
                let mut released = job(
                    &self.key,
                    self.members,
                    &self.shape,
                    Hold::Released(plan),
                    "2",
                );
                if let MemberSource::Roles(roles) = &mut released.members {
                    for role in roles {
                        role.pinned = pins.get(&role.name).cloned();
                    }
                }
                self.events.push_back(Event::WorkloadApplied(released));
                let plan = self.record.as_ref().and_then(|r| r.plan.clone().ok()?);
                let slots = plan.map(|plan| plan.slots).unwrap_or_default();
                // The pod is seen, and a little later kube-scheduler comes with its Bind.
                let (mut born, mut asked) = (Vec::new(), Vec::new());
                for slot in slots {
                    let pod = pod(&self.key, slot.index, &self.shape);
                    asked.push(Event::BindAsked(BindAsked {
                        ticket: Ticket(u64::from(slot.index)),
                        namespace: pod.namespace.clone(),
                        name: Arc::clone(&pod.name),
                        pod: pod.uid.clone(),
                        node: slot.node,
                    }));
                    self.pods.insert(pod.uid.clone(), pod.clone());
                    born.push(Event::PodApplied(pod));
                }
                self.events.extend(born);
                self.events.extend(asked);
                WriteOutcome::Done(None)
            }
            WriteKind::Bind {
                pod,
                node,
                plan,
                devices,
            } => {
                self.bound = self.bound.saturating_add(1);
                self.seen_bound(&pod.uid, node, plan, devices);
                WriteOutcome::Done(None)
            }
            other => panic!("unexpected write {other:?}"),
        }
    }

    fn seen_bound(
        &mut self,
        uid: &PodUid,
        node: NodeName,
        plan: muster_core::ids::PlanId,
        devices: Vec<muster_core::ids::DeviceUuid>,
    ) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.node = Some(node);
            pod.resource_version = "11".into();
            pod.record = Some(BindRecord {
                plan,
                epoch: Epoch(1),
                devices,
            });
            self.events.push_back(Event::PodApplied(pod.clone()));
        }
    }
}

fn start(bencher: Bencher, members: u32, burst: usize) {
    let decisions = Start::new(members).run(burst);
    assert!(decisions > 3);
    bencher
        .with_inputs(|| Start::new(members))
        .bench_local_values(|mut start| {
            start.run(burst);
            start
        });
}

/// A decision for every event.
#[divan::bench(args = [8, 64, 256], sample_count = 20)]
fn start_one_by_one(bencher: Bencher, members: u32) {
    start(bencher, members, 1);
}

/// A decision for eight events.
#[divan::bench(args = [8, 64, 256], sample_count = 20)]
fn start_in_bursts_of_8(bencher: Bencher, members: u32) {
    start(bencher, members, 8);
}
