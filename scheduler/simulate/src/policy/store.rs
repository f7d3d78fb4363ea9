//! The objects of the replay: jobs, pods and Gang objects, and what the API server and the job's
//! controller do with a write of Muster's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use muster_core::action::{JobChange, Write, WriteKind};
use muster_core::event::{Event, WriteOutcome};
use muster_core::ids::{GangKey, NodeName, PodUid, ResourceVersion};
use muster_core::interpod::Labels;
use muster_core::node::{Requirement, SelectorOperator, SelectorTerm};
use muster_core::pod::{BindRecord, Membership, MembershipSource, Pod, PodPhase, PodShape};
use muster_core::record::{GangRecord, GangStatus, Phase};
use muster_core::time::Timestamp;
use muster_core::workload::{Hold, MemberSource, Outcome, RoleSpec, Shown, Workload, WorkloadKind};

use crate::scene::{GangSpec, Scene};

/// Something that has changed.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // Most are events.
pub(super) enum Change {
    /// What a watch will bring.
    Told(Event),
    /// A pod was made.
    Born(PodUid),
    /// A pod of this gang was bound.
    Bound(PodUid, usize),
    /// A pod of this gang has ended or is gone, as it was before.
    Left(Box<Pod>, usize),
}

/// A gang's objects.
#[derive(Debug)]
struct Entry {
    job: Workload,
    record: Option<GangRecord>,
    reason: Option<String>,
    /// Its pods, by position of the role and index.
    pods: BTreeMap<(usize, u32), PodUid>,
    bound: u32,
    /// Pods that it has had, for their UIDs.
    births: u64,
}

/// The objects.
#[derive(Debug)]
pub(super) struct Store<'a> {
    scene: &'a Scene,
    entries: BTreeMap<usize, Entry>,
    positions: BTreeMap<GangKey, usize>,
    pods: BTreeMap<PodUid, (Pod, usize)>,
    ended: BTreeSet<usize>,
    changes: VecDeque<Change>,
    version: u64,
}

impl<'a> Store<'a> {
    pub(super) fn new(scene: &'a Scene) -> Self {
        Self {
            scene,
            entries: BTreeMap::new(),
            positions: BTreeMap::new(),
            pods: BTreeMap::new(),
            ended: BTreeSet::new(),
            changes: VecDeque::new(),
            version: 0,
        }
    }

    pub(super) fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(|(pod, _)| pod)
    }

    pub(super) fn pod(&self, uid: &PodUid) -> Option<&Pod> {
        self.pods.get(uid).map(|(pod, _)| pod)
    }

    /// Members that are bound and run.
    pub(super) fn bound(&self, gang: usize) -> u32 {
        self.entries.get(&gang).map_or(0, |entry| entry.bound)
    }

    pub(super) fn reason(&self, gang: usize) -> Option<String> {
        self.entries.get(&gang)?.reason.clone()
    }

    fn version(&mut self) -> ResourceVersion {
        self.version = self.version.saturating_add(1);
        ResourceVersion::from(self.version.to_string())
    }

    /// Makes the job of a gang, held.
    pub(super) fn submit(&mut self, gang: usize, now: Timestamp) {
        let Some(spec) = self.scene.gangs.get(gang) else {
            return;
        };
        let version = self.version();
        let job = job_of(gang, spec, version, now);
        self.positions.insert(job.key.clone(), gang);
        self.changes
            .push_back(Change::Told(Event::WorkloadApplied(job.clone())));
        let entry = Entry {
            job,
            record: None,
            reason: None,
            pods: BTreeMap::new(),
            bound: 0,
            births: 0,
        };
        self.entries.insert(gang, entry);
    }

    /// The gang's pods end well, and so does its job.
    pub(super) fn end(&mut self, gang: usize) {
        let uids: Vec<PodUid> = match self.entries.get(&gang) {
            Some(entry) => entry.pods.values().cloned().collect(),
            None => return,
        };
        for uid in uids {
            let version = self.version();
            let Some((pod, _)) = self.pods.get_mut(&uid) else {
                continue;
            };
            let before = pod.clone();
            pod.phase = PodPhase::Succeeded;
            pod.resource_version = version;
            let event = Event::PodApplied(pod.clone());
            self.changes.push_back(Change::Told(event));
            self.changes.push_back(Change::Left(Box::new(before), gang));
        }
        let version = self.version();
        if let Some(entry) = self.entries.get_mut(&gang) {
            entry.bound = 0;
            entry.job.finished = Some(Outcome::Succeeded);
            entry.job.resource_version = version;
            let event = Event::WorkloadApplied(entry.job.clone());
            self.changes.push_back(Change::Told(event));
        }
        self.ended.insert(gang);
    }

    /// Takes away the jobs that have ended, and everything that they own. Whether there were any.
    pub(super) fn clear_ended(&mut self) -> bool {
        let ended = std::mem::take(&mut self.ended);
        for gang in &ended {
            let Some(entry) = self.entries.remove(gang) else {
                continue;
            };
            self.positions.remove(&entry.job.key);
            for uid in entry.pods.values() {
                self.pods.remove(uid);
                let event = Event::PodRemoved(uid.clone());
                self.changes.push_back(Change::Told(event));
            }
            let key = entry.job.key.clone();
            let events = [
                Event::WorkloadRemoved(key.clone()),
                Event::RecordRemoved(key),
            ];
            self.changes.extend(events.map(Change::Told));
        }
        !ended.is_empty()
    }

    /// A node is gone: its pods are, too, and their controllers make others.
    pub(super) fn lose_pods(&mut self, node: &NodeName) {
        let lost: Vec<(PodUid, usize)> = self
            .pods
            .values()
            .filter(|(pod, _)| pod.node.as_ref() == Some(node) && pod.is_alive())
            .map(|(pod, gang)| (pod.uid.clone(), *gang))
            .collect();
        for (uid, _) in &lost {
            self.delete_pod(uid);
        }
        let gangs: BTreeSet<usize> = lost.into_iter().map(|(_, gang)| gang).collect();
        for gang in gangs {
            self.make_pods(gang);
        }
    }

    fn delete_pod(&mut self, uid: &PodUid) {
        let Some((pod, gang)) = self.pods.remove(uid) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&gang) {
            entry.pods.retain(|_, other| other != uid);
            if pod.node.is_some() {
                entry.bound = entry.bound.saturating_sub(1);
            }
        }
        let event = Event::PodRemoved(uid.clone());
        self.changes.push_back(Change::Told(event));
        self.changes.push_back(Change::Left(Box::new(pod), gang));
    }

    /// The job's controller: makes the pods that are missing from a job that runs.
    fn make_pods(&mut self, gang: usize) {
        let Some(entry) = self.entries.get_mut(&gang) else {
            return;
        };
        let job = &entry.job;
        let MemberSource::Roles(roles) = &job.members else {
            return;
        };
        if !matches!(job.hold, Hold::Released(_)) || job.finished.is_some() {
            return;
        }
        for (position, role) in roles.iter().enumerate() {
            let shape = born(role);
            for index in 0..role.count {
                if entry.pods.contains_key(&(position, index)) {
                    continue;
                }
                entry.births = entry.births.saturating_add(1);
                self.version = self.version.saturating_add(1);
                let pod = Pod {
                    uid: PodUid::from(format!("{}-{}", job.key.uid, entry.births)),
                    namespace: job.key.namespace.clone(),
                    name: Arc::from(format!("{}-{}-{index}", job.key.uid, role.name)),
                    resource_version: ResourceVersion::from(self.version.to_string()),
                    created_seconds: job.created_seconds,
                    node: None,
                    phase: PodPhase::Pending,
                    terminating: false,
                    shape: Arc::clone(&shape),
                    priority: job.priority,
                    ours: true,
                    membership: Some(Membership {
                        gang: job.key.clone(),
                        source: MembershipSource::Job,
                        role: Some(role.name.clone()),
                        index: Some(index),
                    }),
                    gated: false,
                    labels: Arc::new(Labels::new()),
                    gated_by_others: false,
                    controlled: true,
                    record: None,
                    stamp: None,
                    unschedulable: None,
                    status_reason: None,
                    settings: BTreeMap::new(),
                };
                entry.pods.insert((position, index), pod.uid.clone());
                self.changes
                    .push_back(Change::Told(Event::PodApplied(pod.clone())));
                self.changes.push_back(Change::Born(pod.uid.clone()));
                self.pods.insert(pod.uid.clone(), (pod, gang));
            }
        }
    }

    /// Carries a write out, as the API server and the controllers would.
    pub(super) fn perform(&mut self, write: Write) -> WriteOutcome {
        let Some(gang) = self.positions.get(&write.gang).copied() else {
            return WriteOutcome::Gone;
        };
        let version = self.version();
        match write.what {
            WriteKind::CreateRecord { object, kind, name } => {
                let made = GangRecord {
                    key: write.gang,
                    object_uid: Arc::from(format!("gang-{object}")),
                    object,
                    resource_version: version,
                    kind,
                    name,
                    phase: Phase::Waiting,
                    plan: Ok(None),
                };
                match self.entries.get_mut(&gang) {
                    Some(entry) => {
                        WriteOutcome::Done(Some(entry.record.get_or_insert(made).clone()))
                    }
                    None => WriteOutcome::Gone,
                }
            }
            WriteKind::PutStatus {
                resource_version,
                status,
                ..
            } => self.put_status(gang, &resource_version, status, version),
            WriteKind::DeleteRecord { .. } => {
                if let Some(entry) = self.entries.get_mut(&gang) {
                    entry.record = None;
                }
                WriteOutcome::Done(None)
            }
            WriteKind::ChangeJob { job, change } => {
                self.change_job(gang, &job.resource_version, change, version)
            }
            WriteKind::DeletePod { pod } => {
                if !self.pods.contains_key(&pod.uid) {
                    return WriteOutcome::Gone;
                }
                self.delete_pod(&pod.uid);
                self.make_pods(gang);
                WriteOutcome::Done(None)
            }
            WriteKind::Bind {
                pod,
                node,
                plan,
                devices,
            } => {
                let record = BindRecord {
                    plan,
                    epoch: write.epoch,
                    devices,
                };
                self.bind(&pod.uid, &pod.resource_version, node, record, version)
            }
            // Pods of held jobs carry no gate, are never refused before their plan, and no leader
            // came before this one.
            WriteKind::ReleasePod { .. }
            | WriteKind::WakePod { .. }
            | WriteKind::StampPod { .. }
            | WriteKind::StampRecord { .. } => WriteOutcome::Done(None),
        }
    }

    fn put_status(
        &mut self,
        gang: usize,
        seen: &ResourceVersion,
        status: GangStatus,
        version: ResourceVersion,
    ) -> WriteOutcome {
        let Some(entry) = self.entries.get_mut(&gang) else {
            return WriteOutcome::Gone;
        };
        let Some(record) = &mut entry.record else {
            return WriteOutcome::Gone;
        };
        if record.resource_version != *seen {
            return WriteOutcome::Conflict(Some(record.clone()));
        }
        record.resource_version = version;
        record.phase = status.phase;
        record.plan = Ok(status.plan);
        entry.reason = status.reason.map(|reason| reason.to_string());
        let event = Event::RecordApplied(record.clone());
        self.changes.push_back(Change::Told(event));
        WriteOutcome::Done(Some(record.clone()))
    }

    fn bind(
        &mut self,
        uid: &PodUid,
        seen: &ResourceVersion,
        node: NodeName,
        record: BindRecord,
        version: ResourceVersion,
    ) -> WriteOutcome {
        let Some((pod, gang)) = self.pods.get_mut(uid) else {
            return WriteOutcome::Gone;
        };
        match &pod.node {
            Some(bound) if *bound == node => return WriteOutcome::Done(None),
            Some(_) => return WriteOutcome::Refused(Arc::from("bound elsewhere")),
            None if pod.resource_version != *seen => return WriteOutcome::Conflict(None),
            None => {}
        }
        pod.node = Some(node);
        pod.phase = PodPhase::Running;
        pod.record = Some(record);
        pod.resource_version = version;
        let event = Event::PodApplied(pod.clone());
        if let Some(entry) = self.entries.get_mut(gang) {
            entry.bound = entry.bound.saturating_add(1);
        }
        self.changes.push_back(Change::Told(event));
        self.changes.push_back(Change::Bound(uid.clone(), *gang));
        WriteOutcome::Done(None)
    }

    /// Changes a job as the API server does, and plays its controller.
    fn change_job(
        &mut self,
        gang: usize,
        seen: &ResourceVersion,
        change: JobChange,
        version: ResourceVersion,
    ) -> WriteOutcome {
        let Some(entry) = self.entries.get_mut(&gang) else {
            return WriteOutcome::Gone;
        };
        let job = &mut entry.job;
        if job.resource_version != *seen {
            return WriteOutcome::Conflict(None);
        }
        change_job(job, change);
        job.resource_version = version;
        let event = Event::WorkloadApplied(job.clone());
        let held = job.hold == Hold::Held;
        let doomed: Vec<PodUid> = match held {
            true => entry.pods.values().cloned().collect(),
            false => Vec::new(),
        };
        self.changes.push_back(Change::Told(event));
        for uid in doomed {
            self.delete_pod(&uid);
        }
        self.make_pods(gang);
        WriteOutcome::Done(None)
    }
}

fn job_of(gang: usize, spec: &GangSpec, version: ResourceVersion, now: Timestamp) -> Workload {
    Workload {
        key: GangKey::new("default", &format!("{gang:07}")),
        kind: WorkloadKind::PyTorchJob,
        name: Arc::clone(&spec.name),
        uid: Arc::from(format!("{gang:07}")),
        resource_version: version,
        generation: 1,
        created_seconds: i64::try_from(now.0.checked_div(1000).unwrap_or(0)).unwrap_or(i64::MAX),
        priority: spec.priority,
        ours: true,
        members: MemberSource::Roles(
            spec.roles
                .iter()
                .map(|role| RoleSpec {
                    name: role.name.clone(),
                    count: role.count,
                    shape: Arc::clone(&role.shape),
                    labels: Arc::new(Labels::new()),
                    pinned: None,
                })
                .collect(),
        ),
        minimum: spec.minimum,
        hold: Hold::Held,
        shown: Shown::Queued,
        finished: None,
        invalid: None,
        settings: (*spec.settings).clone(),
    }
}

fn change_job(job: &mut Workload, change: JobChange) {
    let MemberSource::Roles(roles) = &mut job.members else {
        return;
    };
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
        JobChange::Show => job.shown = Shown::Queued,
    }
}

/// What a pod that is born now asks for: its template, confined to the nodes that we put in.
fn born(role: &RoleSpec) -> Arc<PodShape> {
    let Some(nodes) = &role.pinned else {
        return Arc::clone(&role.shape);
    };
    let mut shape = (*role.shape).clone();
    let terms = nodes.iter().map(|node| SelectorTerm {
        expressions: Vec::new(),
        fields: vec![Requirement {
            key: Arc::from("metadata.name"),
            operator: SelectorOperator::In(BTreeSet::from([Arc::from(node.as_str())])),
        }],
    });
    shape.required_affinity = Some(terms.collect());
    Arc::new(shape)
}
