//! What is counted, in OpenMetrics text. Labels come from small fixed sets, never from user input.

mod labels;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use muster_core::breaker::BreakerState;
use muster_core::engine::{AUDITED, Frozen, KeptNodes, Predictions};
use muster_core::record::Phase;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use labels::count;

/// A label set: names and values from fixed lists.
type Labels = Vec<(&'static str, &'static str)>;

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    filter_seconds: Histogram,
    filter_answers: Family<Labels, Counter>,
    bind_seconds: Histogram,
    binds: Family<Labels, Counter>,
    binds_held: Gauge,
    preempts: Family<Labels, Counter>,
    writes: Family<Labels, Counter>,
    write_seconds: Histogram,
    write_retries: Counter,
    events_waiting: Gauge,
    events: Counter,
    decide_seconds: Histogram,
    writes_waiting: Gauge,
    gangs: Family<Labels, Gauge>,
    agents: Family<Labels, Gauge>,
    nodes_reported: Gauge,
    nodes_turned_bad: Gauge,
    nodes_held_back: Gauge,
    quarantine_stopped: Gauge,
    members_on_failed_gpus: Gauge,
    devices_cloned: Gauge,
    devices_beyond_allocatable: Gauge,
    nodes_kept: Gauge,
    gangs_kept_for: Gauge,
    agent_messages: Family<Labels, Counter>,
    health_events: Family<Labels, Counter>,
    agent_refusals: Family<Labels, Counter>,
    token_reviews: Family<Labels, Counter>,
    announcements: Family<Labels, Counter>,
    watch_errors: Family<Labels, Counter>,
    leading: Gauge,
    epoch: Gauge,
    view_age_seconds: Gauge<f64, AtomicU64>,
    invariants: Family<Labels, Counter>,
    frozen: Gauge,
    frozen_parts: Family<Labels, Gauge>,
    planned_node_not_offered: Counter,
    device_predictions: Family<Labels, Counter>,
}

/// For what takes less than a millisecond as a rule: 10 us to 5 s. 0.1, 1 and 5 ms, which Filter is held to, are bounds.
fn quick_seconds() -> Histogram {
    Histogram::new([
        0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
        0.1, 0.5, 5.0,
    ])
}

fn seconds() -> Histogram {
    // 0.1 ms to 105 s, each bucket 4 times the one before.
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(
        0.0001, 4.0, 11,
    ))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(std::time::SystemTime::now())
    }
}

impl Metrics {
    /// All metrics, at zero. `started` is shown as the start of the process.
    pub fn new(started: std::time::SystemTime) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            filter_seconds: quick_seconds(),
            filter_answers: Family::default(),
            bind_seconds: seconds(),
            binds: Family::default(),
            binds_held: Gauge::default(),
            preempts: Family::default(),
            writes: Family::default(),
            write_seconds: seconds(),
            write_retries: Counter::default(),
            events_waiting: Gauge::default(),
            events: Counter::default(),
            decide_seconds: seconds(),
            writes_waiting: Gauge::default(),
            gangs: Family::default(),
            agents: Family::default(),
            nodes_reported: Gauge::default(),
            nodes_turned_bad: Gauge::default(),
            nodes_held_back: Gauge::default(),
            quarantine_stopped: Gauge::default(),
            members_on_failed_gpus: Gauge::default(),
            devices_cloned: Gauge::default(),
            devices_beyond_allocatable: Gauge::default(),
            nodes_kept: Gauge::default(),
            gangs_kept_for: Gauge::default(),
            agent_messages: Family::default(),
            health_events: Family::default(),
            agent_refusals: Family::default(),
            token_reviews: Family::default(),
            announcements: Family::default(),
            watch_errors: Family::default(),
            leading: Gauge::default(),
            epoch: Gauge::default(),
            view_age_seconds: Gauge::default(),
            invariants: Family::default(),
            frozen: Gauge::default(),
            frozen_parts: Family::default(),
            planned_node_not_offered: Counter::default(),
            device_predictions: Family::default(),
        };
        metrics.register();
        metrics.frozen(Frozen::default());
        let start = started
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0.0, |since| since.as_secs_f64());
        let start_gauge: Gauge<f64, AtomicU64> = Gauge::default();
        start_gauge.set(start);
        metrics.registry.register_with_unit(
            "process_start_time",
            "Start of the process since the Unix epoch",
            Unit::Seconds,
            start_gauge,
        );
        // Only what is really checked: a counter that nothing can move would look like a proof.
        for id in AUDITED {
            drop(metrics.invariants.get_or_create(&vec![("invariant", id)]));
        }
        metrics.list();
        metrics
    }

    fn register(&mut self) {
        let root = &mut self.registry;
        let muster = root.sub_registry_with_prefix("muster");
        let seconds = Unit::Seconds;
        muster.register_with_unit(
            "filter_duration",
            "Time to answer Filter",
            seconds.clone(),
            self.filter_seconds.clone(),
        );
        muster.register(
            "filter_answers",
            "Filter answers by kind",
            self.filter_answers.clone(),
        );
        muster.register_with_unit(
            "bind_duration",
            "Time a Bind was held",
            seconds.clone(),
            self.bind_seconds.clone(),
        );
        muster.register("binds", "Bind answers by outcome", self.binds.clone());
        muster.register("binds_held", "Binds held now", self.binds_held.clone());
        muster.register(
            "preempt_answers",
            "Preempt answers by kind",
            self.preempts.clone(),
        );
        muster.register(
            "writes",
            "Writes to the API by kind and outcome",
            self.writes.clone(),
        );
        muster.register_with_unit(
            "write_duration",
            "Time of a write with its retries",
            seconds.clone(),
            self.write_seconds.clone(),
        );
        muster.register(
            "write_retries",
            "Attempts after the first one",
            self.write_retries.clone(),
        );
        muster.register(
            "writes_waiting",
            "Writes that wait for the writer",
            self.writes_waiting.clone(),
        );
        muster.register(
            "events_waiting",
            "Events that wait for the cycle",
            self.events_waiting.clone(),
        );
        muster.register("events", "Events taken in", self.events.clone());
        muster.register_with_unit(
            "decide_duration",
            "Time of one decision with its actions",
            seconds.clone(),
            self.decide_seconds.clone(),
        );
        muster.register("gangs", "Gangs by phase and reason", self.gangs.clone());
        muster.register("agents", "Agent streams by state", self.agents.clone());
        muster.register(
            "nodes_reported",
            "Nodes whose agent was heard no longer ago than a report counts",
            self.nodes_reported.clone(),
        );
        muster.register(
            "nodes_turned_bad",
            "Nodes on which GPUs have turned bad lately, or since quarantine was stopped",
            self.nodes_turned_bad.clone(),
        );
        muster.register(
            "nodes_held_back",
            "Nodes with GPUs that their agents call bad and that are planned all the same",
            self.nodes_held_back.clone(),
        );
        muster.register(
            "quarantine_stopped",
            "1 while too many nodes have turned bad at once for further ones to be believed",
            self.quarantine_stopped.clone(),
        );
        muster.register(
            "members_on_failed_gpus",
            "Members of gangs that run on GPUs which their agents call unhealthy or lost",
            self.members_on_failed_gpus.clone(),
        );
        muster.register(
            "devices_cloned",
            "UUIDs of devices that more than one node reports: nobody gets these devices",
            self.devices_cloned.clone(),
        );
        muster.register(
            "devices_beyond_allocatable",
            "Devices that agents report and call well beyond what kubelets offer: they do not count",
            self.devices_beyond_allocatable.clone(),
        );
        muster.register(
            "nodes_kept",
            "Nodes kept for gangs that have waited for longer than queue.reserveAfter",
            self.nodes_kept.clone(),
        );
        muster.register(
            "gangs_kept_for",
            "Gangs that these nodes are kept for",
            self.gangs_kept_for.clone(),
        );
        muster.register(
            "agent_messages",
            "Messages of agents by kind",
            self.agent_messages.clone(),
        );
        muster.register(
            "health_events",
            "What agents have told of GPUs and of reading them, by where it was seen",
            self.health_events.clone(),
        );
        muster.register(
            "agent_refusals",
            "Agent streams refused or closed by cause",
            self.agent_refusals.clone(),
        );
        muster.register(
            "token_reviews",
            "TokenReviews by outcome",
            self.token_reviews.clone(),
        );
        muster.register(
            "announcements",
            "Kubernetes Events by outcome",
            self.announcements.clone(),
        );
        muster.register(
            "watch_errors",
            "Failures of watches by kind",
            self.watch_errors.clone(),
        );
        muster.register(
            "leading",
            "1 while this replica leads",
            self.leading.clone(),
        );
        muster.register("epoch", "Epoch led; 0 when not leading", self.epoch.clone());
        muster.register_with_unit(
            "view_age",
            "Age of the published view",
            seconds,
            self.view_age_seconds.clone(),
        );
        muster.register(
            "invariant_violations",
            "Violations of the invariants that the engine checks on itself",
            self.invariants.clone(),
        );
        muster.register(
            "frozen",
            "1 while nothing new is bound: by an operator, or after the cluster was restored",
            self.frozen.clone(),
        );
        muster.register(
            "frozen_parts",
            "Gangs and nodes frozen because an invariant was found broken",
            self.frozen_parts.clone(),
        );
        muster.register(
            "planned_node_not_offered",
            "Filter calls in which the planned node was not offered",
            self.planned_node_not_offered.clone(),
        );
        muster.register(
            "device_predictions",
            "Bound pods that got the devices predicted for them, or others",
            self.device_predictions.clone(),
        );
    }

    /// The whole text for a scrape.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// A Filter was answered.
    pub fn filtered(&self, took: Duration, answer: &'static str) {
        self.filter_seconds.observe(took.as_secs_f64());
        count(&self.filter_answers, vec![("answer", answer)]);
    }

    /// A Bind left the extender.
    pub fn bind_left(&self, took: Duration) {
        self.bind_seconds.observe(took.as_secs_f64());
    }

    /// A Bind is held from now on, or no longer: so many are.
    pub fn binds_held(&self, held: usize) {
        self.binds_held.set(i64::try_from(held).unwrap_or(i64::MAX));
    }

    /// The engine answered a Bind.
    pub fn bind_answered(&self, ok: bool) {
        let outcome = if ok { "bound" } else { "refused" };
        count(&self.binds, vec![("outcome", outcome)]);
    }

    /// A Bind was answered, and nobody waited for it any more.
    pub fn bind_unheard(&self) {
        count(&self.binds, vec![("outcome", "unheard")]);
    }

    /// A Bind ended in the extender without the engine's answer.
    pub fn bind_not_asked(&self, why: &'static str) {
        count(&self.binds, vec![("outcome", why)]);
    }

    /// A Preempt was answered.
    pub fn preempted(&self, answer: &'static str) {
        count(&self.preempts, vec![("answer", answer)]);
    }

    /// A write ended.
    pub fn written(&self, kind: &'static str, outcome: &'static str, took: Duration) {
        count(&self.writes, vec![("kind", kind), ("outcome", outcome)]);
        self.write_seconds.observe(took.as_secs_f64());
    }

    /// A write is tried once more.
    pub fn write_retried(&self) {
        self.write_retries.inc();
    }

    /// A batch of events was taken in.
    pub fn batch(&self, events: usize) {
        self.events
            .inc_by(u64::try_from(events).unwrap_or(u64::MAX));
    }

    /// The engine has decided.
    pub fn decided(&self, took: Duration, writes_waiting: usize) {
        self.decide_seconds.observe(took.as_secs_f64());
        self.writes_waiting
            .set(i64::try_from(writes_waiting).unwrap_or(i64::MAX));
    }

    /// Gauges that are read when somebody asks.
    pub fn refresh(&self, events_waiting: usize, view_age: Duration, epoch: u64) {
        self.events_waiting
            .set(i64::try_from(events_waiting).unwrap_or(i64::MAX));
        self.view_age_seconds.set(view_age.as_secs_f64());
        self.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
        self.leading.set(i64::from(epoch != 0));
    }

    /// The number of gangs in a state changed.
    pub fn gangs(&self, phase: Phase, reason: &'static str, by: i64) {
        let labels = vec![("phase", phase.as_str()), ("reason", reason)];
        self.gangs.get_or_create(&labels).inc_by(by);
    }

    /// The number of agent streams in a state changed.
    pub fn agents(&self, state: &'static str, by: i64) {
        self.agents
            .get_or_create(&vec![("state", state)])
            .inc_by(by);
    }

    /// So many nodes are reported.
    pub fn nodes_reported(&self, count: usize) {
        self.nodes_reported
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How the breaker against mass quarantine stands.
    pub fn breaker(&self, state: BreakerState) {
        let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.nodes_turned_bad.set(count(state.turned));
        self.nodes_held_back.set(count(state.held_back));
        self.quarantine_stopped.set(i64::from(state.open));
    }

    /// What is kept, and for how many.
    pub fn kept(&self, kept: KeptNodes) {
        let count = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.nodes_kept.set(count(kept.nodes));
        self.gangs_kept_for.set(count(kept.gangs));
    }

    /// So many members run on GPUs that have failed.
    pub fn members_on_failed_gpus(&self, count: usize) {
        self.members_on_failed_gpus
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many UUIDs are reported by several nodes, and so many devices beyond what kubelets offer.
    pub fn unbelieved(&self, cloned: usize, beyond_allocatable: u64) {
        self.devices_cloned
            .set(i64::try_from(cloned).unwrap_or(i64::MAX));
        self.devices_beyond_allocatable
            .set(i64::try_from(beyond_allocatable).unwrap_or(i64::MAX));
    }

    /// A message of an agent came.
    pub fn agent_message(&self, kind: &'static str) {
        count(&self.agent_messages, vec![("kind", kind)]);
    }

    /// An agent has told that something happened to a GPU, or to the reading of them.
    pub fn health_event(&self, source: &'static str) {
        count(&self.health_events, vec![("source", source)]);
    }

    /// An agent's stream was refused or closed.
    pub fn agent_refused(&self, cause: &'static str) {
        count(&self.agent_refusals, vec![("cause", cause)]);
    }

    /// A TokenReview ended.
    pub fn token_reviewed(&self, outcome: &'static str) {
        count(&self.token_reviews, vec![("outcome", outcome)]);
    }

    /// A Kubernetes Event was published, or not.
    pub fn announced(&self, outcome: &'static str) {
        count(&self.announcements, vec![("outcome", outcome)]);
    }

    /// A Kubernetes Event found no room.
    pub fn announcement_dropped(&self) {
        self.announced("dropped");
    }

    /// A watch failed.
    pub fn watch_failed(&self, kind: &'static str) {
        count(&self.watch_errors, vec![("kind", kind)]);
    }

    /// An invariant does not hold.
    pub fn invariant_violated(&self, id: &'static str) {
        self.invariants
            .get_or_create(&vec![("invariant", id)])
            .inc();
    }

    /// What stands still.
    pub fn frozen(&self, frozen: Frozen) {
        self.frozen.set(i64::from(frozen.all));
        for (kind, count) in [("gang", frozen.gangs), ("node", frozen.nodes)] {
            let gauge = self.frozen_parts.get_or_create(&vec![("kind", kind)]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// An invariant that was found broken, and how often. Costs less than the text of all that is counted.
    pub fn broken_invariant(&self) -> Option<(&'static str, u64)> {
        let count = |id| {
            self.invariants
                .get_or_create(&vec![("invariant", id)])
                .get()
        };
        let mut counts = AUDITED.into_iter().map(|id| (id, count(id)));
        counts.find(|(_, count)| *count > 0)
    }

    /// How predictions of devices have turned out so far; counts only what was not counted before.
    pub fn devices_predicted(&self, so_far: Predictions) {
        for (outcome, count) in labels::PREDICTED
            .into_iter()
            .zip([so_far.matched, so_far.differed])
        {
            let counter = self
                .device_predictions
                .get_or_create(&vec![("outcome", outcome)]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    /// Filter did not offer the planned node.
    pub fn planned_node_not_offered(&self) {
        self.planned_node_not_offered.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_holds_every_invariant_and_what_was_counted() {
        let metrics = Metrics::default();
        metrics.gangs(Phase::Waiting, "NotEnoughFree", 1);
        metrics.written("Bind", "Done", Duration::from_millis(3));
        metrics.filtered(Duration::from_micros(80), "Only");
        for matched in [2, 2, 3] {
            let differed = 1;
            metrics.devices_predicted(Predictions { matched, differed });
        }
        let text = metrics.text();
        for (outcome, count) in [("match", 3), ("differ", 1)] {
            let line = format!("muster_device_predictions_total{{outcome=\"{outcome}\"}} {count}");
            assert!(text.contains(&line), "{text}");
        }
        for id in AUDITED {
            let line = format!("muster_invariant_violations_total{{invariant=\"{id}\"}} 0");
            assert!(text.contains(&line), "{line}");
        }
        assert_eq!(metrics.broken_invariant(), None);
        metrics.invariant_violated("DEV-1");
        assert_eq!(metrics.broken_invariant(), Some(("DEV-1", 1)));
        assert!(
            text.contains("muster_gangs{phase=\"Waiting\",reason=\"NotEnoughFree\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("muster_writes_total{kind=\"Bind\",outcome=\"Done\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("muster_filter_duration_seconds_count 1"),
            "{text}"
        );
        assert!(text.contains("process_start_time_seconds"), "{text}");
    }

    /// After an hour of a soak the first agent's token had expired, and what had never been counted was a series more.
    #[test]
    fn nothing_that_is_counted_for_the_first_time_is_a_series_more() {
        let metrics = Metrics::default();
        let series = || {
            let text = metrics.text();
            let lines = text.lines().filter(|line| line.starts_with("muster_"));
            lines.count()
        };
        let before = series();
        metrics.agent_refused("expired");
        metrics.written("StampPod", "Unknown", Duration::ZERO);
        metrics.bind_not_asked("busy");
        metrics.announcement_dropped();
        metrics.watch_failed("Pod");
        metrics.agents("connected", 1);
        assert_eq!(series(), before);
    }
}
