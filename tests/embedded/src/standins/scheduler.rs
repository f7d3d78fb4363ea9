//! Stand-in for an unmodified kube-scheduler with one profile and extenders.
//!
//! ```text
//! queue ─► one cycle at a time: default filters ─► extenders' Filter ─► scores ─► assume
//!                                   │ none left: preemption, then unschedulable      └─► bind (a task per pod)
//!                                   └ extender error: error backoff                        error: forget, backoff
//! ```
//! The cycle waits for the extender: a hung Filter stops all pods for `httpTimeout`, as in the real one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::extender::Extender;
use super::fit::{self, Misfit, Resources, Taken};
use super::fit_between::Between;
use super::kinds::{NODES, PODS};
use super::scheduler_cache::{Cache, priority};
use super::scheduler_queue::{Cause, Queue};
use crate::api::informer::{Batch, Informer, Local};
use crate::api::store::{Change, ChangeKind, Stored};
use crate::api::{ApiError, ApiServer};
use crate::value;

/// How the scheduler is run.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// The pods with this `schedulerName` are its own.
    pub scheduler_name: String,
    /// The extenders, in the order of the configuration.
    pub extenders: Vec<Extender>,
    /// `podInitialBackoffSeconds`.
    pub backoff_first: Duration,
    /// `podMaxBackoffSeconds`.
    pub backoff_max: Duration,
    /// `percentageOfNodesToScore`; 0 is the adaptive default of kube-scheduler.
    pub percentage_of_nodes: u32,
}

impl SchedulerConfig {
    /// A scheduler for pods of this name, that looks at every node.
    #[must_use]
    pub fn new(scheduler_name: &str, extenders: Vec<Extender>) -> Self {
        Self {
            scheduler_name: scheduler_name.into(),
            extenders,
            backoff_first: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
            percentage_of_nodes: 100,
        }
    }
}

/// Why a cycle did not choose a node.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something broke.
    Error(String),
    /// No node takes the pod.
    Refused {
        text: String,
        cause: Cause,
        misfits: BTreeMap<String, Misfit>,
    },
}

struct Bound {
    uid: String,
    pod: Arc<Stored>,
    node: String,
    result: Result<(), String>,
}

/// The stand-in.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) api: Local,
    pub(crate) config: SchedulerConfig,
    pods: Informer,
    nodes: Informer,
    pub(crate) cache: Cache,
    queue: Queue,
    /// Pods of ours that are not bound, by uid.
    pending: BTreeMap<String, Arc<Stored>>,
    next_start: usize,
}

impl Scheduler {
    /// A stand-in on this server.
    ///
    /// # Errors
    /// 404 when the server serves no pods.
    pub fn new(server: &ApiServer, config: SchedulerConfig) -> Result<Self, ApiError> {
        Ok(Self {
            api: Local::new(server, "kube-scheduler"),
            pods: Informer::new(server, PODS.0, PODS.1)?,
            nodes: Informer::new(server, NODES.0, NODES.1)?,
            cache: Cache::default(),
            queue: Queue::new(config.backoff_first, config.backoff_max),
            pending: BTreeMap::new(),
            next_start: 0,
            config,
        })
    }

    /// Works until `stop`; binds under way are given up then.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut binds: JoinSet<Bound> = JoinSet::new();
        loop {
            self.observe();
            while let Some(done) = binds.try_join_next() {
                if let Ok(done) = done {
                    self.bound(done);
                }
            }
            if let Some(uid) = self.queue.pop() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = self.cycle(&uid, &mut binds) => {}
                }
                // Lets the other tasks of a single thread see each bind as it happens.
                tokio::task::yield_now().await;
                continue;
            }
            let wake = self
                .queue
                .next_due()
                .unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.nodes.changed() => {}
                () = self.pods.changed() => {}
                Some(done) = binds.join_next() => if let Ok(done) = done { self.bound(done) },
                () = tokio::time::sleep_until(wake) => {}
            }
        }
        binds.shutdown().await;
    }

    fn observe(&mut self) {
        match self.nodes.poll() {
            Some(Batch::Resync(all)) => {
                let gone: Vec<String> = self.cache.nodes.keys().cloned().collect();
                gone.iter().for_each(|n| self.cache.remove_node(n));
                all.iter().for_each(|n| self.cache.set_node(n));
                self.queue.event(true);
            }
            Some(Batch::Changes(changes)) => {
                for change in changes {
                    match change.kind {
                        ChangeKind::Deleted => self.cache.remove_node(&change.key.name),
                        _ => self.cache.set_node(&change.object),
                    }
                }
                self.queue.event(true);
            }
            None => {}
        }
        match self.pods.poll() {
            Some(Batch::Resync(all)) => {
                self.cache.clear_pods();
                let gone: Vec<String> = std::mem::take(&mut self.pending).into_keys().collect();
                let live: std::collections::BTreeSet<&str> =
                    all.iter().map(|p| value::uid(&p.value)).collect();
                gone.iter()
                    .filter(|u| !live.contains(u.as_str()))
                    .for_each(|u| self.queue.remove(u));
                all.iter().for_each(|p| self.see_pod(p));
            }
            Some(Batch::Changes(changes)) => changes.iter().for_each(|c| self.see_change(c)),
            None => {}
        }
    }

    fn see_change(&mut self, change: &Change) {
        if change.kind == ChangeKind::Deleted {
            let uid = value::uid(&change.object.value);
            self.queue.remove(uid);
            self.pending.remove(uid);
            let assigned = self.cache.forget(uid);
            self.queue.event(assigned);
            return;
        }
        let uid = value::uid(&change.object.value);
        let before = change.before.as_ref();
        let was_bound =
            before.is_some_and(|b| !value::text(&b.value, &["spec", "nodeName"]).is_empty());
        let own = self.queue.contains(uid);
        self.see_pod(&change.object);
        let over = matches!(
            value::text(&change.object.value, &["status", "phase"]),
            "Succeeded" | "Failed"
        );
        // Every pod event wakes those that an extender refused; room helps the others.
        self.queue.event(over && was_bound);
        if own && let Some(before) = before {
            let differs = |key: &str| before.value.get(key) != change.object.value.get(key);
            let ungated =
                value::items(&change.object.value, &["spec", "schedulingGates"]).is_empty();
            if differs("spec")
                || value::at(&before.value, &["metadata", "labels"])
                    != value::at(&change.object.value, &["metadata", "labels"])
            {
                self.queue.pod_changed(uid, ungated);
            }
        }
    }

    fn see_pod(&mut self, pod: &Arc<Stored>) {
        let uid = value::uid(&pod.value).to_owned();
        let node = value::text(&pod.value, &["spec", "nodeName"]).to_owned();
        let over = matches!(
            value::text(&pod.value, &["status", "phase"]),
            "Succeeded" | "Failed"
        );
        if !node.is_empty() || over {
            self.queue.remove(&uid);
            self.pending.remove(&uid);
            if over {
                self.cache.forget(&uid);
            } else {
                self.cache.place(pod, &node, false);
            }
            return;
        }
        if value::text(&pod.value, &["spec", "schedulerName"]) != self.config.scheduler_name {
            return;
        }
        self.pending.insert(uid.clone(), pod.clone());
        if !self.queue.contains(&uid) && !self.cache.is_assumed(&uid) {
            let gated = !value::items(&pod.value, &["spec", "schedulingGates"]).is_empty();
            self.queue.add(&uid, priority(&pod.value), gated);
        }
    }

    /// One attempt at one pod.
    async fn cycle(&mut self, uid: &str, binds: &mut JoinSet<Bound>) {
        let Some(pod) = self.pending.get(uid).cloned() else {
            return self.queue.remove(uid);
        };
        if value::at(&pod.value, &["metadata", "deletionTimestamp"]).is_some()
            || self.cache.is_assumed(uid)
        {
            return self.queue.remove(uid);
        }
        match self.choose(&pod.value).await {
            Ok(node) => {
                self.cache.place(&pod, &node, true);
                // The attempts are kept while the bind is under way, so that a failure backs off further.
                binds.spawn(bind(
                    self.api.clone(),
                    self.config.extenders.clone(),
                    uid.to_owned(),
                    pod,
                    node,
                ));
            }
            Err(Failure::Error(text)) => {
                self.queue.failed(uid);
                self.report(&pod.value, "SchedulerError", &text, None);
            }
            Err(Failure::Refused {
                text,
                cause,
                misfits,
            }) => {
                let nominated = self.preempt(&pod.value, &misfits).await;
                self.queue.refused(uid, cause);
                self.report(&pod.value, "Unschedulable", &text, nominated.as_deref());
            }
        }
    }

    async fn choose(&mut self, pod: &Value) -> Result<String, Failure> {
        let all: Vec<String> = self
            .cache
            .nodes
            .iter()
            .filter(|(_, n)| n.object.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        let between = self.cache.between(pod);
        let nominated = value::text(pod, &["status", "nominatedNodeName"]).to_owned();
        if !nominated.is_empty() && all.contains(&nominated) {
            let mut misfits = BTreeMap::new();
            let one = std::slice::from_ref(&nominated);
            let needs = fit::requests(pod);
            let one = self.run_filters(pod, &needs, between.as_ref(), one, &mut misfits);
            if !one.is_empty()
                && self
                    .run_extenders(pod, one, &mut misfits)
                    .await
                    .is_ok_and(|left| !left.is_empty())
            {
                return Ok(nominated);
            }
        }
        let total = all.len();
        let offered = match fit::named_nodes(pod) {
            Some(named) => all.into_iter().filter(|n| named.contains(n)).collect(),
            None => all,
        };
        let mut misfits = BTreeMap::new();
        let feasible = self.sample(pod, between.as_ref(), &offered, &mut misfits);
        let cause = if feasible.is_empty() {
            Cause::Filters
        } else {
            Cause::Extender
        };
        let left = if feasible.is_empty() {
            feasible
        } else {
            self.run_extenders(pod, feasible, &mut misfits)
                .await
                .map_err(Failure::Error)?
        };
        if left.is_empty() {
            let text = explain(total, &misfits);
            return Err(Failure::Refused {
                text,
                cause,
                misfits,
            });
        }
        Ok(self.best(pod, left).await)
    }

    /// The nodes that pass the default filters, as many as kube-scheduler looks for.
    fn sample(
        &mut self,
        pod: &Value,
        between: Option<&Between>,
        offered: &[String],
        misfits: &mut BTreeMap<String, Misfit>,
    ) -> Vec<String> {
        let wanted = nodes_to_find(offered.len(), self.config.percentage_of_nodes);
        let needs = fit::requests(pod);
        let mut found = Vec::new();
        let mut looked: usize = 0;
        let start = self
            .next_start
            .checked_rem(offered.len().max(1))
            .unwrap_or(0);
        for name in offered.iter().cycle().skip(start).take(offered.len()) {
            looked += 1;
            let one = std::slice::from_ref(name);
            found.extend(self.run_filters(pod, &needs, between, one, misfits));
            if found.len() >= wanted {
                break;
            }
        }
        self.next_start = start.saturating_add(looked);
        found.sort();
        found
    }

    fn run_filters(
        &self,
        pod: &Value,
        needs: &Resources,
        between: Option<&Between>,
        names: &[String],
        misfits: &mut BTreeMap<String, Misfit>,
    ) -> Vec<String> {
        let mut left = Vec::new();
        for name in names {
            let Some(entry) = self.cache.nodes.get(name) else {
                continue;
            };
            let Some(node) = &entry.object else { continue };
            let taken = self.with_nominated(pod, name, &entry.taken);
            let taken = taken.as_ref().unwrap_or(&entry.taken);
            let fits = fit::check_with(pod, needs, &node.value, &entry.gives, taken)
                .and_then(|()| between.map_or(Ok(()), |between| between.check(&node.value)));
            match fits {
                Ok(()) => left.push(name.clone()),
                Err(misfit) => {
                    misfits.insert(name.clone(), misfit);
                }
            }
        }
        left
    }

    /// Pods of equal or higher priority that are nominated to the node count as if they were there.
    fn with_nominated(&self, pod: &Value, node: &str, taken: &Taken) -> Option<Taken> {
        let others: Vec<&Arc<Stored>> = self
            .pending
            .values()
            .filter(|p| value::text(&p.value, &["status", "nominatedNodeName"]) == node)
            .filter(|p| {
                value::uid(&p.value) != value::uid(pod) && priority(&p.value) >= priority(pod)
            })
            .filter(|p| !self.cache.is_assumed(value::uid(&p.value)))
            .collect();
        if others.is_empty() {
            return None;
        }
        let mut sum = taken.clone();
        for other in others {
            fit::add(&mut sum.resources, &fit::requests(&other.value));
            sum.ports.extend(fit::host_ports(&other.value));
        }
        Some(sum)
    }

    /// Asks the extenders one after the other; those that are not ignorable first.
    async fn run_extenders(
        &self,
        pod: &Value,
        nodes: Vec<String>,
        misfits: &mut BTreeMap<String, Misfit>,
    ) -> Result<Vec<String>, String> {
        let mut left = nodes;
        let mut order: Vec<&Extender> = self.config.extenders.iter().collect();
        order.sort_by_key(|e| e.config.ignorable);
        for extender in order {
            if left.is_empty()
                || extender.config.filter_verb.is_empty()
                || !extender.is_interested(pod)
            {
                continue;
            }
            let objects = self.objects(&left, extender);
            let objects: Vec<&Value> = objects.iter().map(|o| &o.value).collect();
            match extender.filter(pod, &left, &objects).await {
                Ok(answer) => {
                    for name in left.iter().filter(|n| !answer.nodes.contains(n)) {
                        let never = answer.unresolvable.get(name);
                        let maybe = answer.failed.get(name);
                        let text = never.or(maybe).cloned().unwrap_or_default();
                        let resolvable = never.is_none() && maybe.is_some();
                        misfits.insert(name.clone(), Misfit { text, resolvable });
                    }
                    left = answer.nodes;
                }
                Err(error) if extender.config.ignorable => {
                    tracing::debug!(%error, "ignorable extender passed over")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }

    fn objects(&self, names: &[String], extender: &Extender) -> Vec<Arc<Stored>> {
        if extender.config.node_cache_capable {
            return Vec::new();
        }
        names
            .iter()
            .filter_map(|n| self.cache.nodes.get(n)?.object.clone())
            .collect()
    }

    /// The node with the highest score; one of the best by chance.
    async fn best(&self, pod: &Value, nodes: Vec<String>) -> String {
        if let [one] = nodes.as_slice() {
            return one.clone();
        }
        let needs = fit::requests(pod);
        let mut scores: BTreeMap<&String, i128> = BTreeMap::new();
        for name in &nodes {
            if let Some(entry) = self.cache.nodes.get(name) {
                scores.insert(name, fit::score(&needs, &entry.gives, &entry.taken));
            }
        }
        for extender in self
            .config
            .extenders
            .iter()
            .filter(|e| !e.config.prioritize_verb.is_empty() && e.is_interested(pod))
        {
            let objects = self.objects(&nodes, extender);
            let objects: Vec<&Value> = objects.iter().map(|o| &o.value).collect();
            // An error of Prioritize is passed over, as kube-scheduler does.
            for (host, more) in extender
                .prioritize(pod, &nodes, &objects)
                .await
                .unwrap_or_default()
            {
                if let Some(score) = nodes
                    .iter()
                    .find(|n| **n == host)
                    .and_then(|n| scores.get_mut(n))
                {
                    *score = score.saturating_add(i128::from(more));
                }
            }
        }
        let top = scores.values().max().copied().unwrap_or(0);
        let best: Vec<&String> = scores
            .iter()
            .filter(|(_, s)| **s == top)
            .map(|(n, _)| *n)
            .collect();
        let at = self
            .api
            .server()
            .chance()
            .below(u64::try_from(best.len()).unwrap_or(0));
        let chosen = usize::try_from(at)
            .ok()
            .and_then(|at| best.get(at).copied());
        chosen.cloned().unwrap_or_default()
    }

    /// The end of a bind task.
    fn bound(&mut self, done: Bound) {
        let pod = &done.pod.value;
        match done.result {
            Ok(()) => {
                self.queue.remove(&done.uid);
                let text = format!(
                    "Successfully assigned {}/{} to {}",
                    value::namespace(pod),
                    value::name(pod),
                    done.node
                );
                self.api.event(pod, "Normal", "Scheduled", &text);
            }
            Err(text) => {
                self.observe();
                if !self.cache.is_assumed(&done.uid) {
                    // Bound after all, or gone: the informer knows better than the failed call.
                    return;
                }
                self.cache.forget(&done.uid);
                self.queue.event(true);
                if self.pending.contains_key(&done.uid) {
                    self.queue.failed(&done.uid);
                    self.report(pod, "SchedulerError", &text, None);
                }
            }
        }
    }

    /// Writes the condition and, when it says something new, an event.
    fn report(&self, pod: &Value, reason: &str, text: &str, nominated: Option<&str>) {
        let now = self.api.server().clock().stamp();
        let uid = value::uid(pod).to_owned();
        let mut changed = false;
        let done = self.api.change(PODS, value::namespace(pod), value::name(pod), "status", |p| {
            if value::uid(p) != uid || !value::text(p, &["spec", "nodeName"]).is_empty() {
                return;
            }
            let generation = value::int(p, &["metadata", "generation"]).unwrap_or(1);
            let condition = json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": text, "observedGeneration": generation});
            changed = value::set_condition(p, condition, &now);
            match nominated {
                Some(node) => value::set(p, &["status", "nominatedNodeName"], node),
                // A failed attempt clears what somebody else nominated.
                None => {
                    value::remove(p, &["status", "nominatedNodeName"]);
                }
            }
        });
        if let Err(error) = done {
            tracing::debug!(%error, pod = value::name(pod), "condition not written");
        } else if changed {
            self.api.event(pod, "Warning", "FailedScheduling", text);
        }
    }
}

async fn bind(
    api: Local,
    extenders: Vec<Extender>,
    uid: String,
    pod: Arc<Stored>,
    node: String,
) -> Bound {
    let binder = extenders
        .iter()
        .find(|e| !e.config.bind_verb.is_empty() && e.is_interested(&pod.value));
    let own = || {
        let binding = json!({"metadata": {"name": value::name(&pod.value), "uid": uid}, "target": {"kind": "Node", "name": node}});
        let (namespace, name) = (value::namespace(&pod.value), value::name(&pod.value));
        api.bind(namespace, name, &binding).map_err(|e| e.message)
    };
    let result = match binder {
        None => own(),
        Some(extender) => match extender.bind(&pod.value, &node).await {
            Err(_) if extender.config.ignorable => own(),
            other => other.map_err(|e| format!("binding rejected: {e}")),
        },
    };
    Bound {
        uid,
        pod,
        node,
        result,
    }
}

/// How many feasible nodes kube-scheduler looks for.
fn nodes_to_find(all: usize, percentage: u32) -> usize {
    const AT_LEAST: usize = 100;
    if all < AT_LEAST || percentage >= 100 {
        return all;
    }
    let share = match percentage {
        0 => 50_usize.saturating_sub(all / 125).max(5),
        given => usize::try_from(given).unwrap_or(100),
    };
    (all.saturating_mul(share) / 100).max(AT_LEAST)
}

/// kube-scheduler's text: how many nodes for which reason.
fn explain(total: usize, misfits: &BTreeMap<String, Misfit>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for misfit in misfits.values().filter(|m| !m.text.is_empty()) {
        *counts.entry(&misfit.text).or_default() += 1;
    }
    let named = misfits.len();
    let mut parts: Vec<String> = counts
        .iter()
        .map(|(text, n)| format!("{n} {text}"))
        .collect();
    if named < total {
        let rest = total.saturating_sub(named);
        parts.push(format!(
            "{rest} node(s) didn't satisfy plugin(s) [NodeAffinity]"
        ));
    }
    parts.sort();
    format!("0/{total} nodes are available: {}.", parts.join(", "))
}
