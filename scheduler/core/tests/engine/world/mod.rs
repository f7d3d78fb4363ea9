//! A small world around the engine: it carries actions out at once, plays the job's controller and
//! kube-scheduler, and checks the engine's own audit after every step.

// Each test file uses its own part of the world.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use muster_core::action::{Action, JobChange, Subject, Write, WriteKind};
use muster_core::config::Config;
use muster_core::engine::Engine;
use muster_core::event::{BindAsked, Event, Listing, Ticket, WriteOutcome};
use muster_core::ids::{Epoch, GangKey, NodeName, PodUid, ResourceVersion};
use muster_core::inventory::{Device, DeviceHealth, NodeReport, ReportOrder};
use muster_core::node::{
    Node, Requirement, SelectorOperator, SelectorTerm, Taint, TaintEffect, Toleration,
    TolerationOperator,
};
use muster_core::pod::{BindRecord, Membership, MembershipSource, Pod, PodPhase, PodShape};
use muster_core::record::{GangRecord, GangStatus};
use muster_core::resources::Resources;
use muster_core::time::{Millis, Timestamp};
use muster_core::view::FilterAnswer;
use muster_core::workload::{Hold, MemberSource, RoleSpec, Shown, Workload, WorkloadKind};

pub const GPU: &str = "nvidia.com/gpu";

#[derive(Clone)]
pub struct StoredGang {
    pub record: GangRecord,
    pub status: Option<GangStatus>,
}

pub struct World {
    pub engine: Engine,
    pub now: Timestamp,
    pub config: Config,
    pub nodes: BTreeMap<String, Node>,
    pub unhealthy: BTreeSet<String>,
    /// UUIDs that are shown in place of a device's own.
    pub clones: BTreeMap<String, String>,
    /// Clique of the NVLink fabric by node, where there is one.
    pub cliques: BTreeMap<String, Arc<str>>,
    /// Agents report.
    pub reports: bool,
    pub pods: BTreeMap<PodUid, Pod>,
    /// Pods that have ended well, those that are gone since too.
    pub ended: BTreeSet<PodUid>,
    /// Marks of pods that were woken.
    pub woken: BTreeMap<PodUid, String>,
    pub jobs: BTreeMap<GangKey, Workload>,
    pub gangs: BTreeMap<GangKey, StoredGang>,
    pub answers: BTreeMap<Ticket, Result<(), Arc<str>>>,
    pub held: BTreeMap<Ticket, PodUid>,
    pub announced: Vec<String>,
    /// What each of them is about.
    pub subjects: Vec<Subject>,
    pub writes: Vec<Write>,
    /// Returns the outcome with which to fail a write instead of doing it.
    pub fail: Option<Box<dyn FnMut(&Write) -> Option<WriteOutcome>>>,
    /// Whether a write is done, and its answer lost.
    pub lose: Option<Box<dyn FnMut(&Write) -> bool>>,
    /// Events that the watch will bring.
    pub watch: VecDeque<Event>,
    /// Nothing is told at once: jobs, nodes and reports come by the watch too, Relist included.
    pub queued: bool,
    /// Deleted pods terminate until somebody takes them away.
    pub graceful: bool,
    next: u64,
    /// When the last object was made, seconds: no two in the same.
    created_seconds: i64,
    generation: u64,
    pub operator: bool,
    pub scheduler: bool,
    /// Templates of jobs name our scheduler; otherwise training-operator puts the name into pods.
    pub named: bool,
    /// Agents say nothing.
    pub silent: bool,
    /// Pods by the device that the kubelet says they hold.
    pub holders: BTreeMap<String, String>,
    /// Devices that are in use although no pod holds them.
    pub leaked: BTreeSet<String>,
    /// Nodes whose agents have no driver to ask, and so no devices to tell of.
    pub driverless: BTreeSet<String>,
    /// Agents that have just begun cannot ask their kubelets: nobody knows who holds what.
    pub kubelets_away: bool,
    /// A test has broken an invariant on purpose.
    pub broken: bool,
}

pub fn gpus(count: u64) -> Arc<PodShape> {
    Arc::new(shape(count))
}

pub fn shape(count: u64) -> PodShape {
    let mut requests = Resources {
        milli_cpu: 1000,
        memory_bytes: 1 << 30,
        pods: 1,
        ..Resources::default()
    };
    if count > 0 {
        requests.extended.insert(GPU.into(), count);
    }
    PodShape {
        requests,
        tolerations: vec![Toleration {
            key: Some(Arc::from(GPU)),
            operator: TolerationOperator::Exists,
            effect: Some(TaintEffect::NoSchedule),
        }],
        ..PodShape::default()
    }
}

impl World {
    pub fn new(nodes: usize, gpus_each: u64) -> Self {
        let config = Config::default();
        let mut world = Self {
            engine: Engine::new(config.clone()),
            now: Timestamp(1_000_000),
            config,
            nodes: BTreeMap::new(),
            unhealthy: BTreeSet::new(),
            clones: BTreeMap::new(),
            cliques: BTreeMap::new(),
            reports: true,
            pods: BTreeMap::new(),
            ended: BTreeSet::new(),
            woken: BTreeMap::new(),
            jobs: BTreeMap::new(),
            gangs: BTreeMap::new(),
            answers: BTreeMap::new(),
            held: BTreeMap::new(),
            announced: Vec::new(),
            subjects: Vec::new(),
            writes: Vec::new(),
            fail: None,
            lose: None,
            watch: VecDeque::new(),
            queued: false,
            graceful: false,
            next: 1,
            created_seconds: 0,
            generation: 1,
            operator: true,
            scheduler: true,
            named: true,
            silent: false,
            holders: BTreeMap::new(),
            leaked: BTreeSet::new(),
            kubelets_away: false,
            broken: false,
            driverless: BTreeSet::new(),
        };
        for index in 0..nodes {
            world.add_node(&format!("n{index}"), gpus_each);
        }
        world.start(1);
        world
    }

    pub fn start(&mut self, epoch: u64) {
        for node in self.nodes.values().cloned().collect::<Vec<_>>() {
            self.engine.handle(Event::NodeApplied(node), self.now);
        }
        self.report_all();
        for event in self
            .pods
            .values()
            .cloned()
            .map(Event::PodApplied)
            .chain(self.jobs.values().cloned().map(Event::WorkloadApplied))
            .chain(
                self.gangs
                    .values()
                    .map(|gang| Event::RecordApplied(gang.record.clone())),
            )
            .collect::<Vec<_>>()
        {
            self.engine.handle(event, self.now);
        }
        self.engine.handle(
            Event::LeadershipGained {
                epoch: Epoch(epoch),
                first: epoch == 1,
            },
            self.now,
        );
        self.engine.handle(Event::Synced, self.now);
        self.settle();
    }

    /// Kills the scheduler and starts another one from what the API holds.
    pub fn restart(&mut self, epoch: u64) {
        self.engine = Engine::new(self.config.clone());
        self.held.clear();
        self.watch.clear();
        self.start(epoch);
    }

    pub fn add_node(&mut self, name: &str, gpus: u64) {
        let mut allocatable = Resources {
            milli_cpu: 64_000,
            memory_bytes: 256 << 30,
            ephemeral_bytes: 1 << 40,
            pods: 110,
            ..Resources::default()
        };
        if gpus > 0 {
            allocatable.extended.insert(GPU.into(), gpus);
        }
        self.nodes.insert(
            name.into(),
            Node {
                name: name.into(),
                uid: Arc::from(format!("uid-{name}")),
                boot_id: Some(Arc::from("boot")),
                labels: BTreeMap::from([(Arc::from("kubernetes.io/hostname"), Arc::from(name))]),
                taints: if gpus > 0 {
                    vec![Taint {
                        key: Arc::from(GPU),
                        value: Arc::from(""),
                        effect: TaintEffect::NoSchedule,
                    }]
                } else {
                    Vec::new()
                },
                unschedulable: false,
                ready: true,
                terminating: false,
                allocatable,
            },
        );
    }

    pub fn change_node(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let node = self.nodes.get_mut(name).unwrap();
        change(node);
        let event = Event::NodeApplied(node.clone());
        self.tell(event);
    }

    pub fn clone_uuid(&mut self, device: &str, shown: &str) {
        self.clones.insert(device.into(), shown.into());
    }

    pub fn report_all(&mut self) {
        if !self.reports || self.silent {
            return;
        }
        self.generation += 1;
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            if let Some(report) = self.report_of(&name) {
                self.engine.handle(Event::Report(report), self.now);
            }
        }
    }

    /// What a node's agent says now; `None` for a node without GPUs.
    pub fn report_of(&self, name: &str) -> Option<NodeReport> {
        let node = self.nodes.get(name)?;
        let count = node.allocatable.extended(GPU);
        (count > 0).then(|| {
            let has_driver = !self.driverless.contains(name);
            let devices = (0..if has_driver { count } else { 0 })
                .map(|index| {
                    let uuid = format!("GPU-{name}-{index}");
                    let sick = self.unhealthy.contains(&uuid);
                    Device {
                        uuid: self.clones.get(&uuid).unwrap_or(&uuid).as_str().into(),
                        resource: GPU.into(),
                        health: if sick {
                            DeviceHealth::Unhealthy(Arc::from("xid-79"))
                        } else {
                            DeviceHealth::Healthy
                        },
                        leaked: self.leaked.contains(&uuid) && !self.kubelets_away,
                        holders: self
                            .holders
                            .get(&uuid)
                            .filter(|_| !self.kubelets_away)
                            .map(|pod| ("default".into(), Arc::from(pod.as_str())))
                            .into_iter()
                            .collect(),
                        model: None,
                        index: u32::try_from(index).unwrap(),
                        numa: Some(u32::try_from(index / 4).unwrap()),
                        parent: None,
                        memory_bytes: None,
                    }
                })
                .collect();
            NodeReport {
                node: name.into(),
                order: ReportOrder {
                    boot: Arc::from("boot"),
                    instance: 1,
                    generation: self.generation,
                },
                sampler_ok: has_driver,
                holders_known: !self.kubelets_away,
                fabric_clique: self.cliques.get(name).cloned(),
                links: None,
                devices,
            }
        })
    }

    /// Counts the state of every agent on by one.
    pub fn next_generation(&mut self) {
        self.generation += 1;
    }

    /// Tells the engine now, or by the watch.
    pub fn tell(&mut self, event: Event) {
        if self.queued {
            self.watch.push_back(event);
        } else {
            self.engine.handle(event, self.now);
        }
    }

    pub fn version(&mut self) -> ResourceVersion {
        self.next += 1;
        ResourceVersion::from(self.next.to_string())
    }

    /// What the API server's clock says of an object that is made now.
    fn creation(&mut self) -> i64 {
        let now = i64::try_from(self.now.0 / 1000).unwrap();
        self.created_seconds = now.max(self.created_seconds + 1);
        self.created_seconds
    }

    pub fn submit(
        &mut self,
        name: &str,
        roles: &[(&str, u32, Arc<PodShape>)],
        hold: Hold,
    ) -> GangKey {
        let key = GangKey::new("default", &format!("uid-{name}"));
        let version = self.version();
        let created_seconds = self.creation();
        let job = Workload {
            key: key.clone(),
            kind: WorkloadKind::PyTorchJob,
            name: Arc::from(name),
            uid: Arc::clone(&key.uid),
            resource_version: version,
            generation: 1,
            created_seconds,
            priority: 0,
            ours: self.named,
            members: MemberSource::Roles(
                roles
                    .iter()
                    .map(|(role, count, shape)| RoleSpec {
                        name: (*role).into(),
                        count: *count,
                        shape: Arc::clone(shape),
                        labels: Arc::new([("app".into(), "gang".into())].into()),
                        pinned: None,
                    })
                    .collect(),
            ),
            minimum: None,
            hold,
            shown: Shown::Nothing,
            finished: None,
            invalid: None,
            settings: BTreeMap::new(),
        };
        self.jobs.insert(key.clone(), job.clone());
        self.tell(Event::WorkloadApplied(job));
        key
    }

    pub fn edit(&mut self, key: &GangKey, change: impl FnOnce(&mut Workload)) {
        let version = self.version();
        let job = self.jobs.get_mut(key).unwrap();
        change(job);
        job.resource_version = version;
        job.generation += 1;
        let event = Event::WorkloadApplied(job.clone());
        self.tell(event);
    }

    pub fn pod(
        &mut self,
        name: &str,
        membership: Option<Membership>,
        shape: Arc<PodShape>,
    ) -> PodUid {
        let version = self.version();
        let created_seconds = self.creation();
        let uid = PodUid::from(format!("pod-{name}-{}", self.next));
        let pod = Pod {
            uid: uid.clone(),
            namespace: "default".into(),
            name: Arc::from(name),
            resource_version: version,
            created_seconds,
            node: None,
            phase: PodPhase::Pending,
            terminating: false,
            shape,
            priority: 0,
            ours: true,
            membership,
            labels: Arc::new([("app".into(), "gang".into())].into()),
            gated: false,
            gated_by_others: false,
            controlled: true,
            record: None,
            stamp: None,
            unschedulable: None,
            settings: BTreeMap::new(),
            status_reason: None,
        };
        self.pods.insert(uid.clone(), pod.clone());
        self.watch.push_back(Event::PodApplied(pod));
        uid
    }

    /// A pod of somebody else, which runs on this node from the start: no watch has seen it elsewhere, or as ours.
    pub fn stranger(
        &mut self,
        name: &str,
        shape: Arc<PodShape>,
        node: impl Into<NodeName>,
    ) -> PodUid {
        let uid = self.pod(name, None, shape);
        self.watch.pop_back();
        self.change_pod(&uid, |pod| {
            pod.ours = false;
            pod.node = Some(node.into());
            pod.phase = PodPhase::Running;
        });
        uid
    }

    pub fn labelled(
        &mut self,
        name: &str,
        group: &str,
        size: u32,
        gpus_each: u64,
        gated: bool,
    ) -> PodUid {
        let membership = Membership {
            gang: GangKey::labelled("default", group),
            source: MembershipSource::Label {
                name: Arc::from(group),
                size: Ok(size),
            },
            role: None,
            index: None,
        };
        let uid = self.pod(name, Some(membership), gpus(gpus_each));
        self.change_pod(&uid, |pod| {
            pod.gated = gated;
            pod.controlled = false;
        });
        uid
    }

    pub fn change_pod(&mut self, uid: &PodUid, change: impl FnOnce(&mut Pod)) {
        let version = self.version();
        let pod = self.pods.get_mut(uid).unwrap();
        change(pod);
        pod.resource_version = version;
        if pod.phase == PodPhase::Succeeded {
            self.ended.insert(uid.clone());
        }
        self.watch.push_back(Event::PodApplied(pod.clone()));
    }

    pub fn delete_pod(&mut self, uid: &PodUid) {
        if self.pods.remove(uid).is_some() {
            self.watch.push_back(Event::PodRemoved(uid.clone()));
        }
    }

    /// Takes jobs away at once, with their pods and Gangs, and lets what follows happen.
    pub fn remove<'a>(&mut self, keys: impl IntoIterator<Item = &'a GangKey>) {
        for key in keys {
            self.jobs.remove(key);
            self.tell(Event::WorkloadRemoved(key.clone()));
            let of_it = self.pods.values();
            let of_it = of_it.filter(|pod| pod.membership.as_ref().is_some_and(|m| m.gang == *key));
            for uid in of_it.map(|pod| pod.uid.clone()).collect::<Vec<_>>() {
                self.delete_pod(&uid);
            }
            if self.gangs.remove(key).is_some() {
                self.tell(Event::RecordRemoved(key.clone()));
            }
        }
        self.settle();
    }

    /// Deletes a pod as the API server does: at once, or after it has terminated.
    pub fn end_pod(&mut self, uid: &PodUid) {
        if !self.graceful || self.pods.get(uid).is_some_and(|pod| pod.node.is_none()) {
            self.delete_pod(uid);
        } else if self.pods.get(uid).is_some_and(|pod| !pod.terminating) {
            self.change_pod(uid, |pod| pod.terminating = true);
        }
    }

    /// Lets everything happen that can happen without time passing.
    pub fn settle(&mut self) {
        for _ in 0..400 {
            if !self.step() {
                return;
            }
        }
        panic!(
            "the world does not come to rest; last writes: {:#?}",
            self.writes.iter().rev().take(4).collect::<Vec<_>>()
        );
    }

    pub fn step(&mut self) -> bool {
        let mut moved = false;
        while let Some(event) = self.watch.pop_front() {
            self.engine.handle(event, self.now);
            moved = true;
        }
        self.engine.decide(self.now);
        let mut violations = self.engine.audit();
        violations.extend(self.engine.audit_nodes());
        assert!(violations.is_empty() || self.broken, "{violations:?}");
        let view = self.engine.view();
        let placed = view
            .gangs
            .iter()
            .flat_map(|(key, gang)| gang.nodes.keys().map(move |pod| (pod, key)));
        let members: BTreeMap<_, _> = view.members.iter().collect();
        assert_eq!(members, placed.collect(), "gangs of pods in the view");
        while let Some(action) = self.engine.poll_action() {
            moved = true;
            self.carry_out(action);
        }
        if self.operator {
            moved |= self.play_operator();
        }
        if self.scheduler {
            moved |= self.play_scheduler();
        }
        moved
    }

    pub fn pass(&mut self, span: Millis) {
        let end = self.now + span;
        loop {
            self.report_heartbeats();
            self.settle();
            let next = self
                .engine
                .next_deadline()
                .unwrap_or(end)
                .max(self.now + Millis(1));
            if next >= end {
                break;
            }
            self.now = next;
        }
        self.now = end;
        self.report_heartbeats();
        self.settle();
    }

    fn report_heartbeats(&mut self) {
        self.report_all();
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::AnswerBind { ticket, answer } => {
                self.held.remove(&ticket);
                self.answers.insert(ticket, answer);
            }
            Action::Announce(said) => {
                self.announced
                    .push(format!("{} {}", said.reason, said.message));
                self.subjects.push(said.subject);
            }
            Action::Relist => {
                self.relist();
            }
            Action::Write(write) => {
                self.writes.push(write.clone());
                let failed = self.fail.as_mut().and_then(|fail| fail(&write));
                let is_lost = self.lose.as_mut().is_some_and(|lose| lose(&write));
                let id = write.id;
                let mut outcome = failed.unwrap_or_else(|| self.perform(write));
                if is_lost {
                    outcome = WriteOutcome::Unknown(Arc::from("no answer"));
                }
                self.engine
                    .handle(Event::WriteDone { id, outcome }, self.now);
            }
        }
    }

    /// Tells afresh what there is, as after the stamps of a new leader.
    pub fn relist(&mut self) {
        for pod in self.pods.values().cloned().collect::<Vec<_>>() {
            self.engine.handle(Event::PodApplied(pod), self.now);
        }
        self.engine.handle(Event::Relisted(Listing::Pods), self.now);
        for stored in self.gangs.values() {
            let record = stored.record.clone();
            self.engine.handle(Event::RecordApplied(record), self.now);
        }
        self.engine
            .handle(Event::Relisted(Listing::Gangs), self.now);
    }

    pub fn perform(&mut self, write: Write) -> WriteOutcome {
        let version = self.version();
        let mark = match &write.what {
            WriteKind::WakePod { plan, .. } => write.wake_mark(plan),
            _ => String::new(),
        };
        match write.what {
            WriteKind::CreateRecord { object, kind, name } => {
                let record = GangRecord {
                    key: write.gang.clone(),
                    object_uid: Arc::from(format!("gang-{object}")),
                    object,
                    resource_version: version,
                    kind,
                    name,
                    phase: muster_core::record::Phase::Waiting,
                    plan: Ok(None),
                };
                let stored = self.gangs.entry(write.gang).or_insert(StoredGang {
                    record,
                    status: None,
                });
                WriteOutcome::Done(Some(stored.record.clone()))
            }
            WriteKind::PutStatus {
                resource_version,
                status,
                ..
            } => {
                let Some(stored) = self.gangs.get_mut(&write.gang) else {
                    return WriteOutcome::Gone;
                };
                if stored.record.resource_version != resource_version {
                    return WriteOutcome::Conflict(Some(stored.record.clone()));
                }
                stored.record.resource_version = version;
                stored.record.phase = status.phase;
                stored.record.plan = Ok(status.plan.clone());
                stored.status = Some(status);
                let record = stored.record.clone();
                self.watch.push_back(Event::RecordApplied(record.clone()));
                WriteOutcome::Done(Some(record))
            }
            WriteKind::DeleteRecord { .. } => {
                self.gangs.remove(&write.gang);
                WriteOutcome::Done(None)
            }
            WriteKind::ChangeJob { job, change } => {
                self.change_job(&write.gang, &job.resource_version, change, version)
            }
            WriteKind::ReleasePod { pod, pin, .. } => self.on_pod(&pod.uid, |pod| {
                pod.gated = false;
                if let Some(pin) = pin {
                    let mut shape = (*pod.shape).clone();
                    shape.required_affinity = Some(vec![name_term(&pin)]);
                    pod.shape = Arc::new(shape);
                }
            }),
            // A patch that changes nothing is no event: nobody wakes.
            WriteKind::WakePod { pod, .. } if self.woken.get(&pod.uid) == Some(&mark) => {
                WriteOutcome::Done(None)
            }
            WriteKind::WakePod { pod, .. } => {
                self.woken.insert(pod.uid.clone(), mark);
                // Its condition says what it said until kube-scheduler has tried it again.
                self.on_pod(&pod.uid, |_| ())
            }
            WriteKind::StampPod { pod } => {
                let epoch = write.epoch;
                self.on_pod(&pod.uid, |pod| pod.stamp = Some(epoch))
            }
            WriteKind::StampRecord { uid, .. } => {
                let stored = self.gangs.get_mut(&write.gang);
                let Some(stored) = stored.filter(|stored| stored.record.object_uid == uid) else {
                    return WriteOutcome::Gone;
                };
                stored.record.resource_version = version;
                let record = stored.record.clone();
                self.watch.push_back(Event::RecordApplied(record.clone()));
                WriteOutcome::Done(Some(record))
            }
            WriteKind::DeletePod { pod } => {
                if !self.pods.contains_key(&pod.uid) {
                    return WriteOutcome::Gone;
                }
                self.end_pod(&pod.uid);
                WriteOutcome::Done(None)
            }
            WriteKind::Bind {
                pod,
                node,
                plan,
                devices,
            } => {
                let epoch = write.epoch;
                match self.pods.get(&pod.uid) {
                    None => return WriteOutcome::Gone,
                    Some(stored)
                        if stored.node.is_some() && stored.node.as_ref() != Some(&node) =>
                    {
                        return WriteOutcome::Refused(Arc::from("bound elsewhere"));
                    }
                    Some(stored) if stored.node.is_some() => return WriteOutcome::Done(None),
                    Some(stored) if stored.gated => {
                        return WriteOutcome::Refused(Arc::from("gated"));
                    }
                    Some(stored) if stored.resource_version != pod.resource_version => {
                        return WriteOutcome::Conflict(None);
                    }
                    Some(stored) if stored.terminating => {
                        return WriteOutcome::Refused(Arc::from("being deleted"));
                    }
                    Some(_) => {}
                }
                self.on_pod(&pod.uid, |pod| {
                    pod.node = Some(node);
                    pod.phase = PodPhase::Running;
                    pod.record = Some(BindRecord {
                        plan,
                        epoch,
                        devices,
                    });
                })
            }
        }
    }

    fn on_pod(&mut self, uid: &PodUid, change: impl FnOnce(&mut Pod)) -> WriteOutcome {
        if !self.pods.contains_key(uid) {
            return WriteOutcome::Gone;
        }
        self.change_pod(uid, change);
        WriteOutcome::Done(None)
    }

    /// Changes a job as the API server does.
    fn change_job(
        &mut self,
        key: &GangKey,
        seen: &ResourceVersion,
        change: JobChange,
        version: ResourceVersion,
    ) -> WriteOutcome {
        let Some(job) = self.jobs.get_mut(key) else {
            return WriteOutcome::Gone;
        };
        if job.resource_version != *seen {
            return WriteOutcome::Conflict(None);
        }
        let MemberSource::Roles(roles) = &mut job.members else {
            return WriteOutcome::Refused(Arc::from("no roles"));
        };
        if change != JobChange::Show {
            job.generation += 1;
        }
        match change {
            JobChange::Release { plan, pins } | JobChange::Repin { plan, pins } => {
                for role in roles.iter_mut() {
                    role.pinned = pins
                        .get(&role.name)
                        .cloned()
                        .filter(|nodes| !nodes.is_empty());
                }
                job.hold = Hold::Released(plan);
                job.shown = Shown::Nothing;
            }
            JobChange::Hold => {
                roles.iter_mut().for_each(|role| role.pinned = None);
                job.hold = Hold::Held;
                job.shown = Shown::Queued;
            }
            JobChange::Strip => {
                roles.iter_mut().for_each(|role| role.pinned = None);
                if matches!(job.hold, Hold::Released(_)) {
                    job.hold = Hold::Free;
                }
            }
            JobChange::Show => {
                job.shown = match job.hold {
                    Hold::Held => Shown::Queued,
                    _ => Shown::Suspended,
                };
            }
        }
        job.resource_version = version;
        self.watch.push_back(Event::WorkloadApplied(job.clone()));
        WriteOutcome::Done(None)
    }

    /// Makes the pods that are missing from jobs that run, and deletes those of jobs that do not.
    pub fn play_operator(&mut self) -> bool {
        let mut wanted: Vec<(String, Membership, Arc<PodShape>)> = Vec::new();
        let mut unwanted: Vec<PodUid> = Vec::new();
        for job in self.jobs.values() {
            let runs = matches!(job.hold, Hold::Free | Hold::Released(_)) && job.finished.is_none();
            let MemberSource::Roles(roles) = &job.members else {
                continue;
            };
            for role in roles {
                for index in 0..role.count {
                    let name = format!("{}-{}-{index}", job.name, role.name);
                    let exists = self.pods.values().any(|pod| *pod.name == *name);
                    if runs && !exists {
                        let membership = Membership {
                            gang: job.key.clone(),
                            source: MembershipSource::Job,
                            role: Some(role.name.clone()),
                            index: Some(index),
                        };
                        wanted.push((name, membership, born(role)));
                    }
                }
            }
            let surplus =
                |pod: &Pod| {
                    pod.membership.as_ref().is_some_and(|member| {
                        member.gang == job.key
                            && member.role.as_ref().zip(member.index).is_some_and(
                                |(role, index)| {
                                    job.role(role).is_none_or(|role| index >= role.count)
                                },
                            )
                    })
                };
            let failed = |pod: &Pod| {
                pod.phase == PodPhase::Failed
                    && self.graceful
                    && pod
                        .membership
                        .as_ref()
                        .is_some_and(|member| member.gang == job.key)
            };
            if runs {
                unwanted.extend(
                    self.pods
                        .values()
                        .filter(|pod| !pod.terminating && (surplus(pod) || failed(pod)))
                        .map(|pod| pod.uid.clone()),
                );
            }
            if !runs {
                unwanted.extend(
                    self.pods
                        .values()
                        .filter(|pod| {
                            !pod.terminating
                                && pod
                                    .membership
                                    .as_ref()
                                    .is_some_and(|member| member.gang == job.key)
                        })
                        .map(|pod| pod.uid.clone()),
                );
            }
        }
        let moved = !wanted.is_empty() || !unwanted.is_empty();
        for (name, membership, shape) in wanted {
            self.pod(&name, Some(membership), shape);
        }
        for uid in unwanted {
            self.end_pod(&uid);
        }
        moved
    }

    /// Filters and binds every pod that is not gated, bound or held already.
    fn play_scheduler(&mut self) -> bool {
        let view = self.engine.view();
        let waiting: Vec<Pod> = self
            .pods
            .values()
            .filter(|pod| {
                pod.node.is_none() && !pod.gated && !pod.gated_by_others && pod.is_alive()
            })
            .filter(|pod| !self.held.values().any(|held| *held == pod.uid))
            .cloned()
            .collect();
        let mut moved = false;
        for pod in waiting {
            let node = match view.filter(&pod.uid, pod.membership.as_ref()) {
                FilterAnswer::Only(node) => node,
                FilterAnswer::WhereRoom => {
                    let found = self.nodes.values().find(|node| {
                        view.has_room(node.name.as_str(), &pod.shape.requests)
                            && pod.shape.mismatch(node).is_none()
                    });
                    match found {
                        Some(node) => node.name.clone(),
                        None => continue,
                    }
                }
                FilterAnswer::Nowhere(_) | FilterAnswer::Later(_) => continue,
            };
            let fits = self
                .nodes
                .get(node.as_str())
                .is_some_and(|found| pod.shape.mismatch(found).is_none());
            if !fits {
                continue;
            }
            self.bind(&pod.uid, &node);
            moved = true;
        }
        moved
    }

    pub fn bind(&mut self, uid: &PodUid, node: &NodeName) -> Ticket {
        self.next += 1;
        let ticket = Ticket(self.next);
        self.held.insert(ticket, uid.clone());
        let pod = &self.pods[uid];
        let asked = BindAsked {
            ticket,
            namespace: pod.namespace.clone(),
            name: Arc::clone(&pod.name),
            pod: uid.clone(),
            node: node.clone(),
        };
        self.engine.handle(Event::BindAsked(asked), self.now);
        ticket
    }

    pub fn bound(&self, key: &GangKey) -> usize {
        self.pods
            .values()
            .filter(|pod| {
                pod.node.is_some()
                    && pod
                        .membership
                        .as_ref()
                        .is_some_and(|member| member.gang == *key)
            })
            .count()
    }

    pub fn phase(&self, key: &GangKey) -> String {
        self.gangs
            .get(key)
            .and_then(|gang| gang.status.as_ref())
            .map(|status| {
                let code = status.reason.as_ref().map_or("", |reason| reason.code());
                format!(
                    "{} {code} {}/{}",
                    status.phase.as_str(),
                    status.bound,
                    status.total
                )
            })
            .unwrap_or_default()
    }

    pub fn reason(&self, key: &GangKey) -> String {
        self.gangs
            .get(key)
            .and_then(|gang| gang.status.as_ref())
            .and_then(|status| status.reason.as_ref())
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    pub fn member(&self, name: &str) -> PodUid {
        self.pods
            .values()
            .find(|pod| &*pod.name == name)
            .map(|pod| pod.uid.clone())
            .unwrap()
    }

    /// No node carries more GPUs than it has.
    pub fn assert_not_overcommitted(&self) {
        let mut used: BTreeMap<&NodeName, u64> = BTreeMap::new();
        for pod in self.pods.values().filter(|pod| pod.holds_room()) {
            if let Some(node) = &pod.node {
                *used.entry(node).or_default() += pod.shape.requests.extended(GPU);
            }
        }
        for (node, used) in used {
            let offered = self
                .nodes
                .get(node.as_str())
                .map_or(0, |node| node.allocatable.extended(GPU));
            assert!(used <= offered, "{node} carries {used} of {offered}");
        }
    }
}

fn born(role: &RoleSpec) -> Arc<PodShape> {
    match &role.pinned {
        None => Arc::clone(&role.shape),
        Some(nodes) => {
            let mut shape = (*role.shape).clone();
            shape.required_affinity = Some(nodes.iter().map(name_term).collect());
            Arc::new(shape)
        }
    }
}

pub fn name_term(node: &NodeName) -> SelectorTerm {
    SelectorTerm {
        expressions: Vec::new(),
        fields: vec![Requirement {
            key: Arc::from("metadata.name"),
            operator: SelectorOperator::In(BTreeSet::from([Arc::from(node.as_str())])),
        }],
    }
}
