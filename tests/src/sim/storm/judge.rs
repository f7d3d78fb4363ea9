//! What must hold after every write of the store, as far as it can be seen from outside.
//!
//! | id | after which write | what |
//! |---|---|---|
//! | DEV-1 (S1, S15) | Binding, plan | what pods hold on the node, and what is planned there, is within what it offers |
//! | GANG-1 (S3) | any, and time | no gang is bound in part for longer than its deadline while the API is well |
//! | GANG-2 (S3, S4) | first Binding | every member that is needed exists |
//! | GANG-2 (S4, S8) | Binding | a durable plan of this very gang names the node |
//! | GANG-2 (S4) | plan | it covers the minimum, unless members of the gang run already |
//! | INV-1, S2 | plan | no node is in it that has been silent for long, no device that has been broken for long |
//! | LEAD-1 (S9) | Binding, plan | its epoch is not older than that of any plan before |
//! | LEAD-1 (S9) | any that is sent | nobody else holds the Lease |
//! | PLACE-1 (S7) | Binding, plan | no node that has been closed or gone for long |
//!
//! For long: a scheduler's view lags behind by as much as its watches do. What a node was and offered, and which strangers
//! stood on it, is held against a scheduler that had been shown it when it made up its mind (`sight.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_embedded::EmbeddedCluster;
use muster_embedded::api::ApiError;
use muster_embedded::api::faults::RequestInfo;
use muster_embedded::api::informer::{Batch, Informer};
use muster_embedded::api::store::{Change, ChangeKind};
use muster_embedded::signal::Listener;
use muster_embedded::value;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::facts::{NodeFact, Place, PlanFact, PodFact, minimum_of, since};
use super::sight::{Grounds, Sight, Since};
use crate::sim::{CLIENT, GANGS, JOBS, LEASES, NODES, PODS};
use crate::stack::PARTIAL_MAX;

/// Time for another leader to come, and for its agents.
const TAKEOVER: Duration = Duration::from_secs(28);
/// How far a view of a gang's own pods and job may lag behind in a storm: some watches broken in a row, and the pauses between.
const LAG_STORM: Duration = Duration::from_secs(60);
/// How far a view may lag behind when it has been calm for [`CALM_AFTER`].
const LAG_CALM: Duration = Duration::from_secs(10);
/// Time after the last fault in which its effects end.
const CALM_AFTER: Duration = Duration::from_secs(55);

/// Something that must never be seen.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When, milliseconds since the start.
    pub at_ms: u64,
    /// Whether things went wrong on purpose then.
    pub stormy: bool,
    /// Invariant and what is wrong.
    pub text: String,
    /// Names that it is about.
    pub about: Vec<String>,
}

#[derive(Debug, Default)]
struct GangFact {
    name: String,
    /// What its workload asks for now.
    minimum: u32,
    /// When it was raised, and from what.
    raised: Vec<(Instant, u32)>,
    /// What it asked for when its first member was bound.
    minimum_at_bind: Option<u32>,
    partial_since: Option<Instant>,
    finished: bool,
    is_job: bool,
    /// The job is gone.
    is_gone: bool,
    /// Members that had ended well when they went away.
    ended_gone: u32,
    /// When members went away that had not ended.
    lost: Vec<Instant>,
}

impl GangFact {
    /// The least that it has asked for, as far as can be told from a view that lags behind.
    fn least(&self, lag: Duration, now: Instant) -> u32 {
        let raised = self.raised.iter().filter(|(at, _)| *at + lag > now);
        raised
            .map(|(_, before)| *before)
            .fold(self.minimum, u32::min)
    }
}

/// The judge.
pub struct Judge {
    start: Instant,
    pub(super) pods: BTreeMap<String, PodFact>,
    members: BTreeMap<String, BTreeSet<String>>,
    pub(super) nodes: BTreeMap<String, NodeFact>,
    nodes_gone: BTreeMap<String, Since>,
    gangs: BTreeMap<String, GangFact>,
    pub(super) plans: BTreeMap<String, PlanFact>,
    planned_epoch: u64,
    /// Who holds the Lease, and since when.
    leader: Option<(String, Instant)>,
    silent: BTreeMap<String, Instant>,
    sick: BTreeMap<String, Instant>,
    /// Nodes whose agents are told nothing of their devices, and when those went on that were.
    hung: BTreeSet<String>,
    unhung: BTreeMap<String, Instant>,
    /// How long an agent that is silent is believed: nothing is planned on older reports.
    report_age_max: Duration,
    /// Whether what an agent says of a device counts in any case.
    believes_verdicts: bool,
    sight: Sight,
    calm_since: Option<Instant>,
    completed: BTreeSet<String>,
    bindings: u64,
    violations: Vec<Violation>,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            pods: BTreeMap::new(),
            members: BTreeMap::new(),
            nodes: BTreeMap::new(),
            nodes_gone: BTreeMap::new(),
            gangs: BTreeMap::new(),
            plans: BTreeMap::new(),
            planned_epoch: 0,
            leader: None,
            silent: BTreeMap::new(),
            sick: BTreeMap::new(),
            hung: BTreeSet::new(),
            unhung: BTreeMap::new(),
            report_age_max: Duration::from_secs(30),
            believes_verdicts: true,
            sight: Sight::default(),
            calm_since: None,
            completed: BTreeSet::new(),
            bindings: 0,
            violations: Vec::new(),
        }
    }
}

/// A judge that follows a cluster.
pub type Shared = Arc<Mutex<Judge>>;

/// The judge, whatever happened while it was held.
pub fn locked(judge: &Shared) -> MutexGuard<'_, Judge> {
    judge.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The judge's eyes: what each write has changed, in order.
pub struct Eyes {
    informers: [(&'static str, Informer); 5],
    written: Listener,
}

impl Eyes {
    /// Looks at a cluster from now on.
    pub fn new(cluster: &EmbeddedCluster) -> Result<Self, ApiError> {
        let of = |(group, plural): (&'static str, &'static str)| {
            Informer::new(cluster.api(), group, plural).map(|informer| (plural, informer))
        };
        Ok(Self {
            informers: [of(NODES)?, of(JOBS)?, of(PODS)?, of(GANGS)?, of(LEASES)?],
            written: cluster.api().subscribe(),
        })
    }

    /// Shows the judge every write until told to stop.
    pub async fn follow(mut self, judge: Shared, stop: CancellationToken) {
        loop {
            self.written.mark_seen();
            self.look(&mut locked(&judge));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.written.changed() => {}
            }
        }
    }

    fn look(&mut self, judge: &mut Judge) {
        let now = Instant::now();
        let mut changes: Vec<(&str, Arc<Change>)> = Vec::new();
        for (kind, informer) in &mut self.informers {
            match informer.poll() {
                None => {}
                Some(Batch::Changes(more)) => {
                    changes.extend(more.into_iter().map(|change| (*kind, change)));
                }
                Some(Batch::Resync(all)) => {
                    for object in all {
                        judge.set(kind, value::uid(&object.value), &object.value, now);
                    }
                }
            }
        }
        changes.sort_by_key(|(_, change)| change.version);
        for (kind, change) in changes {
            let object = &change.object.value;
            match change.kind {
                ChangeKind::Deleted => judge.gone(kind, object, now),
                _ => judge.set(kind, value::uid(object), object, now),
            }
        }
    }
}

impl Judge {
    fn set(&mut self, kind: &str, uid: &str, object: &Value, now: Instant) {
        match kind {
            "pods" => self.see_pod(uid, object, now),
            "nodes" => {
                let name = value::name(object).to_owned();
                let before = self.nodes.remove(&name);
                self.nodes_gone.remove(&name);
                self.nodes.insert(name, NodeFact::of(object, before, now));
            }
            "pytorchjobs" => self.see_job(object, now),
            "leases" => self.see_lease(object, now),
            _ => self.see_gang(object, now),
        }
    }

    fn gone(&mut self, kind: &str, object: &Value, now: Instant) {
        match kind {
            "pods" => {
                let Some(pod) = self.pods.remove(value::uid(object)) else {
                    return;
                };
                if let Some(members) = self.members.get_mut(&pod.gang) {
                    members.remove(value::uid(object));
                }
                let gang = self.gangs.entry(pod.gang.clone()).or_default();
                if pod.phase == "Succeeded" && !gang.is_job {
                    gang.ended_gone = gang.ended_gone.saturating_add(1);
                } else {
                    gang.lost.push(now);
                }
                self.judge_whole(&pod.gang, now);
            }
            "nodes" => {
                let name = value::name(object);
                self.nodes.remove(name);
                self.nodes_gone.insert(name.to_owned(), since(object, now));
            }
            "pytorchjobs" => {
                let key = format!("{}/{}", value::namespace(object), value::uid(object));
                if let Some(gang) = self.gangs.get_mut(&key) {
                    gang.is_gone = true;
                }
            }
            _ => {}
        }
    }

    fn see_job(&mut self, job: &Value, now: Instant) {
        let key = format!("{}/{}", value::namespace(job), value::uid(job));
        let is = |kind: &str| {
            value::condition(job, kind).is_some_and(|c| value::text(c, &["status"]) == "True")
        };
        let gang = self.gangs.entry(key.clone()).or_default();
        gang.is_job = true;
        value::name(job).clone_into(&mut gang.name);
        let minimum = minimum_of(job);
        if gang.minimum > 0 && minimum > gang.minimum {
            gang.raised.push((now, gang.minimum));
        }
        gang.minimum = minimum;
        gang.finished = is("Succeeded") || is("Failed");
        if is("Succeeded") {
            self.completed.insert(key.clone());
        }
        self.judge_whole(&key, now);
    }

    fn see_lease(&mut self, lease: &Value, now: Instant) {
        let holder = value::text(lease, &["spec", "holderIdentity"]);
        if value::name(lease) != CLIENT {
            return;
        }
        if self
            .leader
            .as_ref()
            .is_none_or(|(leader, _)| leader != holder)
        {
            self.leader = Some((holder.to_owned(), now));
        }
    }

    /// LEAD-1: nobody sends a decision while somebody else holds the Lease.
    pub fn judge_sender(&mut self, client: &str, what: &str) {
        let Some((leader, since)) = &self.leader else {
            return;
        };
        // Who has just taken it may write before the judge has seen it.
        let is_new = *since >= Instant::now();
        let of = leader.rsplit_once('-').map_or("", |(of, _)| of);
        if !is_new && !of.is_empty() && of != client {
            let text = format!("LEAD-1: {what} is sent while {leader} holds the Lease");
            self.violated(text, &[client]);
        }
    }

    /// Epoch of the newest plan.
    pub fn planned_epoch(&self) -> u64 {
        self.planned_epoch
    }

    fn see_pod(&mut self, uid: &str, object: &Value, now: Instant) {
        let before = self.pods.get(uid);
        let was_bound = before.is_some_and(|pod| !pod.node.is_empty());
        let pod = PodFact::of(object, before, now);
        let newly_bound = !was_bound && !pod.node.is_empty();
        if before.is_none() {
            let members = self.members.entry(pod.gang.clone()).or_default();
            members.insert(uid.to_owned());
            let gang = self.gangs.entry(pod.gang.clone()).or_default();
            if gang.name.is_empty() {
                gang.name.clone_from(&pod.name);
            }
            gang.minimum = gang.minimum.max(pod.stated).max(1);
        }
        let key = pod.gang.clone();
        self.pods.insert(uid.to_owned(), pod.clone());
        if newly_bound && pod.is_ours() {
            self.bindings = self.bindings.saturating_add(1);
            let shown = self.sight.of_binding(&pod.plan, pod.epoch, uid);
            let grounds = shown.map_or_else(|| self.older(now), Grounds::Shown);
            self.judge_binding(&pod, &grounds, now);
        }
        self.judge_whole(&key, now);
    }

    fn see_gang(&mut self, object: &Value, now: Instant) {
        let id = value::text(object, &["status", "planId"]);
        if id.is_empty() {
            return;
        }
        let workload = value::text(object, &["spec", "workload", "uid"]);
        let key = format!("{}/{workload}", value::namespace(object));
        let epoch = value::int(object, &["status", "epoch"]).unwrap_or(0);
        let epoch = u64::try_from(epoch).unwrap_or(0);
        let members = value::items(object, &["status", "members"]);
        let is_known = self.plans.contains_key(id);
        if !is_known {
            let shown = self.sight.of_plan(id);
            let grounds = shown.map_or_else(|| self.older(now), Grounds::Shown);
            self.judge_plan(object, epoch, members, &grounds);
        }
        let plan = self.plans.entry(id.to_owned()).or_insert_with(|| PlanFact {
            epoch,
            gang: key,
            places: BTreeMap::new(),
        });
        for member in members {
            let role = value::text(member, &["role"]).to_owned();
            let seat = (role, value::int(member, &["index"]).unwrap_or(0));
            let place = Place {
                node: value::text(member, &["node"]).to_owned(),
                pod_uid: value::text(member, &["podUid"]).to_owned(),
                since: now,
            };
            let places = plan.places.entry(seat).or_default();
            if is_known && places.is_empty() {
                // It has joined a plan that was there already, and was nowhere before that.
                places.push(Place {
                    node: String::new(),
                    pod_uid: String::new(),
                    since: now,
                });
            }
            if !places.last().is_some_and(|last| last.is_same(&place)) {
                places.push(place);
            }
        }
    }

    /// How far a view may lag behind now.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        match self.calm_since {
            Some(since) if since + CALM_AFTER < now => LAG_CALM,
            _ => LAG_STORM,
        }
    }

    /// What can be held against whoever decided something that nobody saw being sent.
    fn older(&self, now: Instant) -> Grounds {
        Grounds::Older(self.lag(now), now)
    }

    /// Time until what scheduler must have seen is as fresh as it gets.
    pub fn settles_in(&self, now: Instant) -> Duration {
        let from = self.calm_since.unwrap_or(now);
        (from + CALM_AFTER).saturating_duration_since(now) + Duration::from_millis(1)
    }

    /// What has been wrong with a node for so long that a scheduler must know.
    fn closed(&self, node: &str, grounds: &Grounds) -> Option<&'static str> {
        let known = |since: &Since| grounds.know_node(*since);
        match self.nodes.get(node) {
            Some(fact) => fact
                .closed_since
                .as_ref()
                .is_some_and(known)
                .then_some(fact.closed),
            None => self
                .nodes_gone
                .get(node)
                .is_none_or(known)
                .then_some("is gone"),
        }
    }

    /// Whether this member of a plan runs where the plan says.
    fn is_there(&self, member: &Value) -> bool {
        let pod = self.pods.get(value::text(member, &["podUid"]));
        value::flag(member, &["bound"])
            && pod.is_some_and(|pod| pod.runs() && pod.node == value::text(member, &["node"]))
    }

    fn judge_plan(&mut self, gang: &Value, epoch: u64, members: &[Value], grounds: &Grounds) {
        let name = value::name(gang).to_owned();
        let id = value::text(gang, &["status", "planId"]).to_owned();
        let minimum = value::int(gang, &["status", "minimum"]).unwrap_or(0);
        let what = format!("plan {id} of gang {name}");
        if epoch < self.planned_epoch {
            let newest = self.planned_epoch;
            self.violated(
                format!("LEAD-1: {what} is of epoch {epoch}, after one of epoch {newest}"),
                &[&name],
            );
        }
        self.planned_epoch = self.planned_epoch.max(epoch);
        // One that says what runs and nothing more starts nobody: that of a gang that has lost a member, and whose Gang object
        // was deleted before another leader came.
        let is_over =
            |member: &&Value| value::flag(member, &["ended"]) || value::flag(member, &["bound"]);
        let starts_any = !members.iter().all(|member| is_over(&member));
        // What runs is made whole one by one, or released by its deadline (GANG-1); a place that was lost before such a plan
        // was first written is not in it.
        let repairs = members.iter().any(|member| self.is_there(member));
        if starts_any && !repairs && i64::try_from(members.len()).unwrap_or(i64::MAX) < minimum {
            let count = members.len();
            self.violated(
                format!("GANG-2: {what} has {count} of {minimum} members"),
                &[&name],
            );
        }
        self.judge_plan_room(gang, members, grounds);
        for member in members.iter().filter(|member| !is_over(member)) {
            let node = value::text(member, &["node"]);
            if let Some(why) = self.closed(node, grounds) {
                self.violated(
                    format!("PLACE-1: {what} has {node}, which {why}"),
                    &[&name, node],
                );
            }
            self.judge_devices(&name, &what, node, member, grounds);
        }
    }

    /// INV-1 and S2 of a planned member.
    fn judge_devices(
        &mut self,
        gang: &str,
        what: &str,
        node: &str,
        member: &Value,
        grounds: &Grounds,
    ) {
        let devices = value::items(member, &["devices"]);
        let silent = self.silent.get(node);
        if !devices.is_empty()
            && silent.is_some_and(|since| grounds.know_agent(*since, self.report_age_max))
        {
            let text = format!("INV-1: {what} has {node}, whose agent is silent");
            self.violated(text, &[gang, node]);
        }
        if !self.believes_verdicts || self.hung.contains(node) {
            return;
        }
        let told = self.unhung.get(node).copied();
        for device in devices.iter().filter_map(Value::as_str) {
            let sick = self.sick.get(device).copied();
            let sick = sick.map(|since| told.map_or(since, |told| since.max(told)));
            // What was heard before it broke is believed for as long.
            if sick.is_some_and(|since| grounds.know_agent(since, self.report_age_max)) {
                let text = format!("S2: {what} has {device} on {node}, which is broken");
                self.violated(text, &[gang, node]);
            }
        }
    }

    fn judge_binding(&mut self, pod: &PodFact, grounds: &Grounds, now: Instant) {
        let (name, node) = (pod.name.clone(), pod.node.clone());
        let about = [name.as_str(), node.as_str()];
        if pod.epoch < self.planned_epoch {
            let (epoch, newest) = (pod.epoch, self.planned_epoch);
            self.violated(
                format!("LEAD-1: {name} is bound by epoch {epoch}, after a plan of epoch {newest}"),
                &about,
            );
        }
        let named = match self.plans.get(&pod.plan) {
            None => Some("which no Gang has ever had".to_owned()),
            Some(plan) if plan.gang != pod.gang => {
                Some(format!("which is of gang {}, not {}", plan.gang, pod.gang))
            }
            Some(plan) => {
                let mut places = plan.places.values().flatten();
                let there = places.any(|place| place.node == node);
                (!there).then(|| "which has never named the node".to_owned())
            }
        };
        if let Some(why) = named {
            let plan = &pod.plan;
            self.violated(
                format!("GANG-2: {name} is bound to {node} by plan {plan}, {why}"),
                &about,
            );
        }
        if let Some(why) = self.closed(&node, grounds) {
            self.violated(
                format!("PLACE-1: {name} is bound to {node}, which {why}"),
                &about,
            );
        }
        self.judge_room(pod, grounds);
        self.judge_gathered(pod, now);
    }

    /// GANG-2: at the first Binding of a gang all that are needed exist.
    fn judge_gathered(&mut self, pod: &PodFact, now: Instant) {
        let lag = self.lag(now);
        let none = BTreeSet::new();
        let members = self.members.get(&pod.gang).unwrap_or(&none);
        let members: Vec<&PodFact> = members
            .iter()
            .filter_map(|uid| self.pods.get(uid))
            .collect();
        let begun = |other: &&&PodFact| !other.node.is_empty() && other.name != pod.name;
        if members.iter().filter(begun).count() > 0 {
            return;
        }
        let Some(gang) = self.gangs.get(&pod.gang) else {
            return;
        };
        let lost = gang.lost.iter().filter(|at| **at + lag > now).count();
        let there = members.len().saturating_add(lost);
        let there = u32::try_from(there)
            .unwrap_or(u32::MAX)
            .saturating_add(gang.ended_gone);
        let minimum = gang.least(lag, now);
        if there < minimum && !gang.finished {
            let text = format!(
                "GANG-2: {} is bound when {there} of {minimum} members exist",
                pod.name
            );
            self.violated(text, &[&pod.name]);
        }
    }

    fn counted(&self, key: &str) -> (u32, u32) {
        let mut runs: u32 = 0;
        let mut ended: u32 = 0;
        for pod in self
            .members
            .get(key)
            .into_iter()
            .flatten()
            .filter_map(|uid| self.pods.get(uid))
        {
            if pod.runs() {
                runs = runs.saturating_add(1);
            } else if pod.phase == "Succeeded" {
                ended = ended.saturating_add(1);
            }
        }
        (runs, ended)
    }

    /// Notes whether a gang is bound in part.
    fn judge_whole(&mut self, key: &str, now: Instant) {
        let (runs, ended) = self.counted(key);
        let Some(gang) = self.gangs.get_mut(key) else {
            return;
        };
        let ended = ended.saturating_add(gang.ended_gone);
        if runs == 0 {
            gang.minimum_at_bind = None;
            gang.partial_since = None;
            if !gang.is_job && ended >= gang.minimum && ended > 0 {
                self.completed.insert(key.to_owned());
            }
            return;
        }
        let at_bind = *gang.minimum_at_bind.get_or_insert(gang.minimum);
        let minimum = at_bind.min(gang.minimum);
        if gang.finished || runs.saturating_add(ended) >= minimum {
            gang.partial_since = None;
        } else {
            gang.partial_since.get_or_insert(now);
        }
    }

    /// GANG-1: looks at the gangs that are bound in part. Time counts while it is calm only.
    pub fn judge_time(&mut self, now: Instant) {
        let Some(calm) = self.calm_since else { return };
        let mut late = Vec::new();
        for gang in self.gangs.values_mut() {
            let Some(since) = gang.partial_since else {
                continue;
            };
            let since = since.max(calm);
            if now.saturating_duration_since(since) > PARTIAL_MAX + TAKEOVER {
                gang.partial_since = None;
                late.push(gang.name.clone());
            }
        }
        for name in late {
            let limit = (PARTIAL_MAX + TAKEOVER).as_secs();
            self.violated(
                format!("GANG-1: gang {name} is bound in part for more than {limit} s of calm"),
                &[&name],
            );
        }
    }

    /// Whether a gang is bound in part now.
    pub fn is_any_partial(&self) -> bool {
        self.gangs.values().any(|gang| gang.partial_since.is_some())
    }

    /// Nothing goes wrong from now on, or it does again.
    pub fn calm(&mut self, on: bool) {
        let now = Instant::now();
        self.calm_since = on.then(|| self.calm_since.unwrap_or(now));
    }

    /// How many members a gang without a job needs.
    pub fn minimum(&mut self, key: &str, name: &str, minimum: u32) {
        let gang = self.gangs.entry(key.to_owned()).or_default();
        name.clone_into(&mut gang.name);
        gang.minimum = minimum;
    }

    /// An agent falls silent, or speaks again.
    pub fn silent(&mut self, node: &str, on: bool) {
        set(&mut self.silent, node, on);
    }

    /// A driver hangs: the agent is told nothing any more. Or it goes on.
    pub fn hung(&mut self, node: &str, on: bool) {
        if on {
            self.hung.insert(node.to_owned());
        } else if self.hung.remove(node) {
            self.unhung.insert(node.to_owned(), Instant::now());
        }
    }

    /// How long an agent that is silent is believed.
    pub fn report_age_max(&mut self, age: Duration) {
        self.report_age_max = age;
    }

    /// A client is shown its resource up to a version.
    pub fn shown(&mut self, request: &RequestInfo, version: u64) {
        let now = Instant::now();
        self.sight
            .show(&request.client, &request.resource, version, now);
    }

    /// A scheduler's request has arrived.
    pub fn sent(&mut self, request: &RequestInfo) {
        self.sight.send(request, Instant::now());
    }

    /// A scheduler's process begins.
    pub fn begins(&mut self, client: &str) {
        self.sight.begin(client, Instant::now());
    }

    /// A scheduler that stood still goes on.
    pub fn wakes(&mut self, client: &str) {
        self.sight.wake(client, Instant::now());
    }

    /// A device breaks, or is as new.
    pub fn sick(&mut self, device: &str, on: bool) {
        set(&mut self.sick, device, on);
    }

    /// Whether no more devices may be taken for well than agents say are: not where the breaker is in use.
    pub fn believes_verdicts(&mut self, on: bool) {
        self.believes_verdicts = on;
    }

    /// Notes that something must not be.
    pub fn violated(&mut self, text: String, about: &[&str]) {
        let at_ms = self.start.elapsed().as_millis();
        self.violations.push(Violation {
            at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX),
            stormy: self.calm_since.is_none(),
            text,
            about: about.iter().map(|word| (*word).to_owned()).collect(),
        });
    }

    /// The first thing that must not have been.
    pub fn first(&self) -> Option<Violation> {
        self.violations.first().cloned()
    }

    /// Gangs that ran to their end.
    pub fn completed(&self) -> u64 {
        u64::try_from(self.completed.len()).unwrap_or(u64::MAX)
    }

    /// Bindings that Muster made.
    pub fn bindings(&self) -> u64 {
        self.bindings
    }

    /// Whether anything is to run or to end yet: a job, or a pod for Muster. A pod that was never
    /// bound of a job that has ended is not.
    pub fn is_busy(&self) -> bool {
        let jobs = self.gangs.values().filter(|gang| gang.is_job);
        let left_over = |pod: &PodFact| {
            let gang = self.gangs.get(&pod.gang);
            pod.node.is_empty() && gang.is_some_and(|gang| gang.is_job && gang.finished)
        };
        let mut pods = self.pods.values();
        jobs.into_iter().any(|job| !job.finished && !job.is_gone)
            || pods.any(|pod| pod.for_us && !pod.has_ended() && !left_over(pod))
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = (&String, &PodFact)> {
        self.pods.iter()
    }
}

fn set(to: &mut BTreeMap<String, Instant>, key: &str, on: bool) {
    if on {
        to.entry(key.to_owned()).or_insert_with(Instant::now);
    } else {
        to.remove(key);
    }
}

#[cfg(test)]
mod tests;
