//! Devices that agents report and nobody believes: who runs the cluster is told, once for each node and change.
//!
//! A GPU whose UUID another node reports too is given to nobody; of more GPUs than the kubelet offers the rest does not
//! count. Either may be a lie, a cloned disk, or a device plugin that is not there yet: so what has not lasted is not
//! told, a node is not spoken of again for a while whatever it says, and where many go wrong at once it is some each second.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::engine::Engine;
use muster_core::ids::NodeName;
use muster_core::ledger::Unbelieved;
use muster_core::time::{Millis, Timestamp};

use crate::announce::{Notice, Object};

/// How long it has to be so: a device plugin that starts again offers nothing for some seconds.
const LASTS: Millis = Millis::from_secs(30);
/// No second Event about a node sooner than this.
const PAUSE: Millis = Millis::from_secs(600);
/// Most Events at a time: what the queue of Events has room for is for gangs, too.
const AT_ONCE_MAX: usize = 8;

/// What was told of each node.
#[derive(Debug, Default)]
pub struct Unbelieving {
    nodes: BTreeMap<NodeName, Told>,
}

#[derive(Debug, Default)]
struct Told {
    /// What was said last; nothing before the first time.
    said: Unbelieved,
    said_at: Option<Timestamp>,
    /// Since when it is something else, if only now and then.
    differs_since: Option<Timestamp>,
    /// Since when it is that again.
    same_since: Option<Timestamp>,
    uid: Option<Arc<str>>,
}

impl Unbelieving {
    /// Looks at what is so now; called once a second. Returns what is to be told. Who does not lead tells nothing, and
    /// begins anew when it does.
    pub fn look(&mut self, engine: &Engine, leads: bool, now: Timestamp) -> Vec<Notice> {
        if !leads {
            self.nodes.clear();
            return Vec::new();
        }
        let found = engine.unbelieved();
        if found.is_empty() && self.nodes.is_empty() {
            return Vec::new();
        }
        let names: BTreeSet<NodeName> = found.keys().chain(self.nodes.keys()).cloned().collect();
        let mut notices = Vec::new();
        for name in names {
            let is = found.get(&name).copied().unwrap_or_default();
            let told = self.nodes.entry(name.clone()).or_default();
            if let Some(node) = engine.node(&name) {
                told.uid = Some(Arc::clone(&node.uid));
            }
            let has_room = notices.len() < AT_ONCE_MAX;
            if told.is_due(is, now) && has_room {
                told.said = is;
                told.said_at = Some(now);
                told.differs_since = None;
                notices.push(notice(&name, told, &engine.nodes_sharing(&name)));
            }
            if told.is_over(is, now) {
                self.nodes.remove(&name);
            }
        }
        notices
    }
}

impl Told {
    /// Whether it is to be said now.
    fn is_due(&mut self, is: Unbelieved, now: Timestamp) -> bool {
        if is == self.said {
            let since = *self.same_since.get_or_insert(now);
            if now.since(since) >= LASTS {
                self.differs_since = None;
            }
            return false;
        }
        self.same_since = None;
        let since = *self.differs_since.get_or_insert(now);
        now.since(since) >= LASTS && self.may_speak(now)
    }

    fn may_speak(&self, now: Timestamp) -> bool {
        self.said_at.is_none_or(|at| now.since(at) >= PAUSE)
    }

    /// Whether nothing is left to say of the node.
    fn is_over(&self, is: Unbelieved, now: Timestamp) -> bool {
        let nothing = Unbelieved::default();
        let is_calm = self.differs_since.is_none() && self.may_speak(now);
        is_calm && is == nothing && self.said == nothing
    }
}

fn notice(name: &NodeName, told: &Told, others: &[NodeName]) -> Notice {
    let Unbelieved {
        cloned,
        beyond_allocatable,
    } = told.said;
    let mut parts = Vec::new();
    if cloned > 0 {
        let more = match others.len() {
            0 | 1 => String::new(),
            count => format!(" and {} more", count.saturating_sub(1)),
        };
        let other = others.first().map_or("another node", NodeName::as_str);
        parts.push(format!(
            "{cloned} GPUs have UUIDs that come from {other}{more} as well: they are given to nobody"
        ));
    }
    if beyond_allocatable > 0 {
        parts.push(format!(
            "{beyond_allocatable} GPUs are more than the kubelet offers: they do not count"
        ));
    }
    let (warning, reason, message) = match parts.as_slice() {
        [] => (
            false,
            "DevicesBelieved",
            "what the agent reports of GPUs counts again".to_owned(),
        ),
        parts => (
            true,
            "DevicesNotBelieved",
            format!("of what the agent reports, {}", parts.join("; ")),
        ),
    };
    tracing::warn!(node = %name, cloned, beyond_allocatable, reason, "devices that an agent reports");
    Notice {
        gang: String::new(),
        plan: None,
        object: Object::node(name, told.uid.clone()),
        warning,
        reason,
        message: Arc::from(message),
    }
}

#[cfg(test)]
mod tests {
    use muster_core::config::Config;
    use muster_core::event::Event;
    use muster_core::inventory::{Device, DeviceHealth, NodeReport, ReportOrder};
    use muster_core::node::Node;
    use muster_core::resources::Resources;

    use super::*;

    const GPU: &str = "nvidia.com/gpu";

    fn node(name: &str, offered: u64) -> Node {
        Node {
            name: name.into(),
            uid: Arc::from(format!("uid-{name}")),
            boot_id: None,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            unschedulable: false,
            ready: true,
            terminating: false,
            allocatable: Resources {
                milli_cpu: 8000,
                memory_bytes: 1 << 30,
                pods: 10,
                extended: [(GPU.into(), offered)].into(),
                ..Resources::default()
            },
        }
    }

    /// A report of GPUs by their numbers.
    fn report(name: &str, generation: u64, gpus: std::ops::Range<u32>) -> Event {
        let device = |index: u32| Device {
            uuid: format!("GPU-{index}").into(),
            resource: GPU.into(),
            health: DeviceHealth::Healthy,
            leaked: false,
            holders: Vec::new(),
            model: None,
            index,
            numa: None,
            parent: None,
            memory_bytes: None,
        };
        Event::Report(NodeReport {
            node: name.into(),
            order: ReportOrder {
                boot: Arc::from("boot"),
                instance: 1,
                generation,
            },
            sampler_ok: true,
            holders_known: true,
            devices: gpus.map(device).collect(),
            fabric_clique: None,
            links: None,
        })
    }

    struct Bench {
        engine: Engine,
        unbelieving: Unbelieving,
        now: Timestamp,
        generation: u64,
    }

    impl Bench {
        fn new(nodes: usize) -> Self {
            let mut bench = Self {
                engine: Engine::new(Config::default()),
                unbelieving: Unbelieving::default(),
                now: Timestamp(1000),
                generation: 0,
            };
            for index in 0..nodes {
                let event = Event::NodeApplied(node(&format!("n{index}"), 8));
                bench.engine.handle(event, bench.now);
            }
            bench
        }

        fn report(&mut self, name: &str, gpus: std::ops::Range<u32>) {
            self.generation += 1;
            let event = report(name, self.generation, gpus);
            self.engine.handle(event, self.now);
        }

        /// What is told in so many seconds.
        fn told(&mut self, seconds: u64) -> Vec<String> {
            let mut told = Vec::new();
            for _ in 0..seconds {
                self.now = self.now + Millis::from_secs(1);
                self.engine.decide(self.now);
                let notices = self.unbelieving.look(&self.engine, true, self.now);
                told.extend(notices.into_iter().map(|notice| {
                    let kind = if notice.warning { "Warning" } else { "Normal" };
                    format!("{kind} {} {}", notice.reason, notice.message)
                }));
            }
            told
        }
    }

    #[test]
    fn a_node_that_claims_more_is_spoken_of_once_and_once_more_when_that_is_over() {
        let mut bench = Bench::new(1);
        bench.report("n0", 0..12);
        assert_eq!(bench.told(29), [""; 0], "a device plugin may be starting");
        let told = bench.told(600);
        let said = "Warning DevicesNotBelieved of what the agent reports, 4 GPUs are more than the kubelet offers: they do not count";
        assert_eq!(told, [said]);
        bench.report("n0", 0..8);
        let over = "Normal DevicesBelieved what the agent reports of GPUs counts again";
        assert_eq!(bench.told(600), [over]);
        assert_eq!(bench.told(1200), [""; 0]);
        assert!(bench.unbelieving.nodes.is_empty(), "nothing is kept of it");
    }

    #[test]
    fn two_nodes_with_the_same_gpus_are_both_spoken_of_and_a_third_too() {
        let mut bench = Bench::new(3);
        bench.report("n0", 0..8);
        bench.report("n1", 6..14);
        let told = bench.told(60);
        let of = |other: &str| {
            format!(
                "Warning DevicesNotBelieved of what the agent reports, 2 GPUs have UUIDs that come from {other} as well: they are given to nobody"
            )
        };
        assert_eq!(told, [of("n1"), of("n0")]);
        assert_eq!(bench.engine.devices_cloned(), 2);
        bench.report("n2", 6..8);
        assert_eq!(bench.told(60), [of("n0 and 1 more")]);
    }

    /// A change every second would be an Event every second.
    #[test]
    fn a_node_that_changes_its_mind_all_the_time_is_spoken_of_every_ten_minutes() {
        let mut bench = Bench::new(1);
        let mut told = Vec::new();
        for turn in 0..1800 {
            bench.report("n0", 0..8 + turn % 3);
            told.extend(bench.told(1));
        }
        assert_eq!(told.len(), 3, "{told:?}");
    }

    #[test]
    fn a_cluster_that_goes_wrong_at_once_is_told_some_nodes_a_second() {
        let mut bench = Bench::new(40);
        for index in 0..40 {
            bench.report(&format!("n{index}"), 0..8);
        }
        assert_eq!(bench.told(30).len(), 0);
        for _ in 0..5 {
            assert_eq!(bench.told(1).len(), AT_ONCE_MAX);
        }
        assert_eq!(bench.told(300).len(), 0);
    }

    #[test]
    fn a_replica_that_does_not_lead_tells_nothing() {
        let mut bench = Bench::new(1);
        bench.report("n0", 0..12);
        for _ in 0..60 {
            bench.now = bench.now + Millis::from_secs(1);
            bench.engine.decide(bench.now);
            let told = bench.unbelieving.look(&bench.engine, false, bench.now);
            assert!(told.is_empty());
        }
        assert_eq!(bench.told(31).len(), 1);
    }
}
