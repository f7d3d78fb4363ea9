//! A gang as the engine holds it: its workload, its pods, its plan, and what of that is durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::failures::Failing;
use super::planning::Sought;
use super::refused::RefusedNodes;
use crate::event::{Ticket, WriteId};
use crate::ids::{DeviceUuid, Epoch, GangKey, NodeName, PlanId, PodUid, ResourceVersion, RoleName};
use crate::ledger::SlotKey;
use crate::pod::PodShape;
use crate::reason::Reason;
use crate::record::{GangStatus, PlanRecord, SlotRecord};
use crate::time::{Millis, Timestamp};
use crate::view::UNKNOWN_JOB;
use crate::workload::{Hold, MemberSource, Outcome, Workload, WorkloadKind};

/// One step of a conversation with the API server about one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Step {
    #[default]
    NotYet,
    InFlight(WriteId),
    Done,
}

/// A member's place in a plan.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// Where it is to go; `None` when it lost its place and no other has been found yet.
    pub node: Option<NodeName>,
    pub devices: Vec<DeviceUuid>,
    pub shape: Arc<PodShape>,
    /// The pod that has claimed it.
    pub pod: Option<PodUid>,
    /// The Bind of that pod that is being held.
    pub ticket: Option<Ticket>,
    /// The Binding that is on its way.
    pub binding: Option<WriteId>,
    /// The pod is bound.
    pub bound: bool,
    /// The pod has ended well: the member needs no place any more.
    pub done: bool,
    /// Taking our gate off the pod, or waking it.
    pub release: Step,
    /// Until when the release is left alone, after it failed.
    pub release_after: Timestamp,
    /// Our own refusal that the pod was last woken from.
    pub woken_from: Option<Arc<str>>,
    /// The pod that was deleted because its GPU had failed, and when.
    pub leaving: Option<(PodUid, Timestamp)>,
    /// The pod's predecessor, which still terminates and holds the room.
    pub predecessor: Option<PodUid>,
    /// Since when it has no pod, after it had one.
    pub lost_at: Option<Timestamp>,
    /// Since when kube-scheduler has been turning the pod down on its planned node.
    pub refused_since: Option<Timestamp>,
    /// What kube-scheduler had said of the pod before it had this place: says nothing about it.
    pub said_before: Option<Arc<str>>,
    /// Newest resourceVersion of the pod that a Binding has cited of which it is not known whether it
    /// applies. The one that is on its way is not counted in.
    pub doubtful: Option<ResourceVersion>,
}

impl Slot {
    pub fn new(node: Option<NodeName>, devices: Vec<DeviceUuid>, shape: Arc<PodShape>) -> Self {
        Self {
            node,
            devices,
            shape,
            pod: None,
            ticket: None,
            binding: None,
            bound: false,
            done: false,
            release: Step::NotYet,
            release_after: Timestamp(0),
            woken_from: None,
            leaving: None,
            predecessor: None,
            lost_at: None,
            refused_since: None,
            said_before: None,
            doubtful: None,
        }
    }

    /// Bound, or past needing it.
    pub fn is_settled(&self) -> bool {
        self.bound || self.done
    }

    /// When nobody is waited for any more, where a pod is missing that may not be made again.
    pub fn given_up_at(&self, limit: Millis) -> Option<Timestamp> {
        let waits = self.pod.is_none() && self.predecessor.is_none() && !self.is_settled();
        self.lost_at.filter(|_| waits).map(|since| since + limit)
    }

    /// Whether a Binding of its pod may still apply.
    pub fn is_in_doubt(&self) -> bool {
        self.binding.is_some() || self.doubtful.is_some()
    }
}

/// Place of a slot in its plan.
pub(crate) type Seat = (RoleName, u32);

/// A plan in the making, or a durable one.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub id: PlanId,
    pub epoch: Epoch,
    pub slots: BTreeMap<Seat, Slot>,
    /// Members that must be bound together, as of the commit.
    pub minimum: u32,
    /// The barrier has been passed: members bind as they come.
    pub open: bool,
    /// It was durable at the last look: what was refused meanwhile has been woken.
    pub was_durable: bool,
    /// The minimum was bound at some time.
    pub complete: bool,
    /// Last time that something moved: the plan became durable, the job was released, a pod
    /// appeared, a member arrived.
    pub progress_at: Timestamp,
    /// Arrival of the first Bind that is still held.
    pub first_held_at: Option<Timestamp>,
    /// Since when fewer than the minimum have been bound, with the barrier passed.
    pub partial_since: Option<Timestamp>,
    /// What was last said of a member that was turned down.
    pub said: Option<Said>,
    /// That has been taken back once, because the member came after all.
    pub took_back: bool,
}

/// What kube-scheduler, or the API server, said of a member that it turned down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// The member's place.
    pub of: Seat,
    /// What it said.
    pub text: Arc<str>,
}

impl Plan {
    pub fn bound(&self) -> u32 {
        count(self.slots.values().filter(|slot| slot.is_settled()))
    }

    /// Places of members that have ended well.
    pub fn ended(&self) -> BTreeMap<Seat, Slot> {
        let ended = self.slots.iter().filter(|(_, slot)| slot.done);
        ended
            .map(|(seat, slot)| (seat.clone(), slot.clone()))
            .collect()
    }

    /// Whether a member is bound and has not ended.
    pub fn holds_any(&self) -> bool {
        self.slots.values().any(|slot| slot.bound && !slot.done)
    }

    pub fn said_text(&self) -> Option<Arc<str>> {
        self.said.as_ref().map(|said| Arc::clone(&said.text))
    }

    /// Forgets what was said of a member that has come since. It is taken back once in the life of a plan:
    /// each saying, and each taking back, is a write.
    pub fn take_back(&mut self) {
        if let Some(said) = &self.said
            && !self.took_back
            && self
                .slots
                .get(&said.of)
                .is_none_or(|slot| slot.is_settled() || slot.ticket.is_some())
        {
            self.said = None;
            self.took_back = true;
        }
    }

    pub fn arrived(&self) -> u32 {
        count(
            self.slots
                .values()
                .filter(|slot| slot.is_settled() || slot.ticket.is_some()),
        )
    }

    pub fn planned(&self) -> u32 {
        count(self.slots.values())
    }

    pub fn record(&self, names: impl Fn(&PodUid) -> Option<Arc<str>>) -> PlanRecord {
        let slots = self
            .slots
            .iter()
            .filter_map(|((role, index), slot)| {
                Some(SlotRecord {
                    role: role.clone(),
                    index: *index,
                    node: slot.node.clone()?,
                    devices: slot.devices.clone(),
                    pod: slot.pod.clone(),
                    pod_name: slot.pod.as_ref().and_then(&names),
                    bound: slot.is_settled(),
                    ended: slot.done,
                })
            })
            .collect();
        PlanRecord {
            id: self.id.clone(),
            epoch: self.epoch,
            minimum: self.minimum,
            slots,
        }
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

impl Said {
    pub fn of(seat: &Seat, text: &Arc<str>) -> Self {
        Self {
            of: seat.clone(),
            text: Arc::clone(text),
        }
    }
}

/// What is known of the gang's Gang object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Record {
    #[default]
    Missing,
    Creating(WriteId),
    Known {
        object: Arc<str>,
        uid: Arc<str>,
        version: ResourceVersion,
    },
    /// It cannot be read: nothing of this gang is touched.
    Unreadable(Arc<str>),
}

/// A gang.
#[derive(Clone, Debug)]
pub(crate) struct Gang {
    pub key: GangKey,
    pub kind: WorkloadKind,
    pub name: Arc<str>,
    /// Order of arrival among gangs created in the same second.
    pub sequence: u64,
    pub workload: Option<Workload>,
    /// The job does not say that it is ours: a pod of it did.
    pub claimed: bool,
    pub pods: BTreeSet<PodUid>,
    pub plan: Option<Plan>,
    pub reason: Option<Reason>,
    pub record: Record,
    /// A plan found in the Gang object at start, not yet taken up.
    pub recovered: Option<PlanRecord>,
    /// The status that the Gang object is known to have.
    pub acked: Option<GangStatus>,
    pub status_write: Option<(WriteId, GangStatus)>,
    pub job_write: Option<WriteId>,
    /// resourceVersion of the job that the last change was made from: until another is seen, the
    /// change is not repeated.
    pub job_changed_at: Option<ResourceVersion>,
    /// When that is done again although no other has been seen.
    pub job_again_at: Timestamp,
    /// resourceVersion of the job at which its status was last told who holds it.
    pub job_shown_at: Option<ResourceVersion>,
    pub refused_nodes: RefusedNodes,
    /// Its job is gone: until then its Gang object and its pods are about to go too, and nothing more is written of them.
    pub goes_until: Timestamp,
    /// Since when it is held although it has pods: its controller is about to take them.
    pub leaving_since: Option<Timestamp>,
    /// How it ended, for a gang without a job: every pod of it has ended.
    pub ended: Option<Outcome>,
    pub failures: u32,
    pub not_before: Timestamp,
    /// Revision of the capacity at the last attempt to plan.
    pub tried_at: Option<u64>,
    /// What that attempt has looked for in vain.
    pub sought: Option<Sought>,
    /// The same at the last attempt to keep nodes for it.
    pub sought_kept_at: Option<u64>,
    /// Last time a pod of it appeared.
    pub last_pod_at: Timestamp,
    /// Phase and reason last announced.
    pub announced: Option<(crate::record::Phase, &'static str)>,
    /// Members that run on failed GPUs.
    pub failing: Option<Failing>,
    /// What an Event has said of them.
    pub told_failing: Option<Arc<str>>,
    /// Ignored keys of which an Event has been sent.
    pub warned: Option<Arc<str>>,
    /// This scheduler has made the Gang object and written nothing into it yet.
    pub unsaid: bool,
    /// Something was to be announced before the Gang object, which it is about, was made.
    pub unannounced: bool,
    pub deadline: Option<Timestamp>,
    /// Until when the job and its pods are not written to, after a write failed.
    pub blocked_until: Timestamp,
    /// Until when the Gang object is not written, after a write of it failed.
    pub status_after: Timestamp,
    /// Writes of the Gang object that failed in a row.
    pub status_failures: u32,
    /// When the Gang object was last deleted by somebody, and how often in a row.
    pub record_lost: (Timestamp, u32),
    /// Versions that the Gang object had before the one it is known at, latest last. The watch
    /// brings them late; they are no news.
    pub past_versions: VecDeque<ResourceVersion>,
    /// Places of members that had ended well when the gang was released as a whole: nobody makes them
    /// again, and the others need not wait for them.
    pub ended_slots: BTreeMap<Seat, Slot>,
    /// Released as a whole: what is still bound of it is to go before anything is planned.
    pub releasing: bool,
    /// Since when.
    pub releasing_since: Timestamp,
    /// Minimum of the plan by which it ran when its job went.
    pub minimum_kept: Option<u32>,
    /// Pods that an earlier plan may have confined to a node: of no use without it, and to be deleted.
    pub confined: BTreeSet<PodUid>,
    /// Without a plan: since when fewer than the minimum have been bound.
    pub partial_since: Option<Timestamp>,
    /// The last attempt to plan ended before a placement was looked for. Only the gang's own change
    /// makes another attempt worth while.
    pub unready: bool,
}

/// Most versions of a Gang object that are remembered. Two writes of one gang are never on their
/// way at once, so that a watch that is later than this costs a Conflict and nothing else.
const PAST_VERSIONS: usize = 8;

impl Gang {
    pub fn new(
        key: GangKey,
        kind: WorkloadKind,
        name: Arc<str>,
        sequence: u64,
        now: Timestamp,
    ) -> Self {
        Self {
            key,
            kind,
            name,
            sequence,
            workload: None,
            claimed: false,
            pods: BTreeSet::new(),
            plan: None,
            reason: None,
            record: Record::Missing,
            recovered: None,
            acked: None,
            status_write: None,
            job_write: None,
            job_changed_at: None,
            job_again_at: Timestamp(0),
            job_shown_at: None,
            refused_nodes: RefusedNodes::default(),
            goes_until: Timestamp(0),
            leaving_since: None,
            ended: None,
            failures: 0,
            not_before: Timestamp(0),
            tried_at: None,
            sought: None,
            sought_kept_at: None,
            last_pod_at: now,
            announced: None,
            failing: None,
            told_failing: None,
            warned: None,
            unsaid: false,
            unannounced: false,
            deadline: None,
            blocked_until: Timestamp(0),
            status_after: Timestamp(0),
            status_failures: 0,
            record_lost: (Timestamp(0), 0),
            past_versions: VecDeque::new(),
            ended_slots: BTreeMap::new(),
            releasing: false,
            releasing_since: Timestamp(0),
            minimum_kept: None,
            confined: BTreeSet::new(),
            partial_since: None,
            unready: false,
        }
    }

    /// Notes what the Gang object is and which version it is at.
    pub fn know_object(&mut self, object: Arc<str>, uid: Arc<str>, version: ResourceVersion) {
        if let Record::Known { version: past, .. } = &self.record
            && *past != version
        {
            self.past_versions.push_back(past.clone());
            if self.past_versions.len() > PAST_VERSIONS {
                self.past_versions.pop_front();
            }
        }
        self.record = Record::Known {
            object,
            uid,
            version,
        };
    }

    pub fn slot_key(&self, seat: &Seat) -> SlotKey {
        SlotKey {
            gang: self.key.clone(),
            role: seat.0.clone(),
            index: seat.1,
        }
    }

    /// Whether the pods of this gang are made from the templates of a job that we can hold.
    pub fn is_job(&self) -> bool {
        self.kind == WorkloadKind::PyTorchJob
    }

    pub fn hold(&self) -> Option<&Hold> {
        self.workload.as_ref().map(|workload| &workload.hold)
    }

    /// Name of the Gang object. A job gives its own name; the others a name that tells the kind, so
    /// that a job and a pod of one name do not meet.
    pub fn object_name(&self) -> Arc<str> {
        if let Record::Known { object, .. } = &self.record {
            return Arc::clone(object);
        }
        let prefix = match self.kind {
            WorkloadKind::PyTorchJob => "",
            WorkloadKind::PodGroup => "podgroup-",
            WorkloadKind::Label => "label-",
            WorkloadKind::Pod => "pod-",
        };
        Arc::from(dns_name(&format!("{prefix}{}", self.name), &self.key))
    }

    /// Whether the plan, node for node, is what the Gang object is known to say.
    pub fn is_durable(&self) -> bool {
        let Some(plan) = &self.plan else { return false };
        let Some(acked) = self.acked.as_ref().and_then(|status| status.plan.as_ref()) else {
            return false;
        };
        let by_pod = matches!(
            self.workload.as_ref().map(|workload| &workload.members),
            Some(MemberSource::Pods) | None
        );
        // A slot that waits for a place is no part of the promise; the others need not wait for it.
        let mut placed = plan.slots.iter().filter(|(_, slot)| slot.node.is_some());
        // Both are in order of role and index. A record in another order was changed by somebody,
        // and is written again.
        acked.id == plan.id
            && acked.epoch == plan.epoch
            && acked.slots.iter().all(|slot| {
                placed.next().is_some_and(|((role, index), mine)| {
                    (role, *index) == (&slot.role, slot.index)
                        && mine.node.as_ref() == Some(&slot.node)
                        && (!by_pod || mine.pod == slot.pod)
                })
            })
            && placed.next().is_none()
    }

    /// Members that the gang has when whole.
    pub fn total(&self) -> u32 {
        self.workload
            .as_ref()
            .and_then(Workload::total)
            .or_else(|| {
                // Places that were lost before a restart are known by the minimum only.
                let plan = self.plan.as_ref()?;
                Some(plan.planned().max(plan.minimum))
            })
            .unwrap_or_else(|| u32::try_from(self.pods.len()).unwrap_or(u32::MAX))
    }

    /// Text of every refusal in this state.
    pub fn refusal(&self) -> Arc<str> {
        if self.is_job() && self.workload.is_none() {
            return Arc::from(UNKNOWN_JOB);
        }
        let code = self.reason.as_ref().map_or("Waiting", Reason::code);
        // It ends on terminals: whatever a label holds, nothing that steers them is repeated.
        let name = self.name.chars();
        let name: String = name.map(|c| if c.is_control() { ' ' } else { c }).collect();
        Arc::from(format!(
            "muster: gang {name} waits ({code}); see: kubectl describe gang {}",
            self.object_name()
        ))
    }
}

/// A name that the API server takes for an object. Label values and long pod names are not: what
/// they have that a name must not is replaced, and a hash of the gang's key keeps two of them apart.
fn dns_name(wanted: &str, key: &GangKey) -> String {
    const LONGEST: usize = 240;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if wanted.len() <= LONGEST
        && wanted.chars().all(allowed)
        && wanted.chars().next().is_some_and(ends)
        && wanted.chars().next_back().is_some_and(ends)
    {
        return wanted.to_owned();
    }
    let hash = key.to_string().bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let safe: String = wanted
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if allowed(c) { c } else { '-' })
        .take(LONGEST)
        .collect();
    format!("{}-{hash:08x}", safe.trim_matches(|c| !ends(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_api_server_would_refuse_are_made_fit_and_kept_apart() {
        let name = |wanted: &str, uid: &str| dns_name(wanted, &GangKey::new("default", uid));
        assert_eq!(name("train-1.a", "x"), "train-1.a");
        let (upper, lower) = (
            name("label-Train_A", "label/Train_A"),
            name("label-train_a", "label/train_a"),
        );
        assert!(upper.starts_with("label-train-a-") && lower.starts_with("label-train-a-"));
        assert_ne!(upper, lower);
        let long = name(&"a.".repeat(200), "x");
        assert!(long.len() <= 253 && !long.contains(".-"), "{long}");
    }
}
