//! What is watched, and how each kind is read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::ResourceExt;
use muster_core::event::{Event, Listing};
use muster_core::pod::PodParts;
use muster_core::workload::Workload;
use muster_kubernetes::gang::Gang;
use muster_kubernetes::lite::{LiteNode, LitePod, LitePodGroup, LitePyTorchJob};
use muster_kubernetes::translate::{self, PodRules};
use tokio::sync::watch as signal;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::kind::{Identity, Meaning, Reading, Watcher};
use super::{Shared, Texts, WatchEnd};
use crate::fence::Fence;
use crate::locked;

/// The kinds that are watched.
#[derive(Debug)]
pub struct Kinds;

impl Kinds {
    /// Kinds that must be listed before anything is decided.
    pub const ALL: [&'static str; 6] = [
        "Node",
        "Pod",
        "Gang",
        "PriorityClass",
        "PyTorchJob",
        "PodGroup",
    ];

    /// Starts one task per kind.
    pub(super) fn spawn(shared: &Shared, tasks: &mut JoinSet<WatchEnd>, stop: &CancellationToken) {
        let (version, changed) = signal::channel(0);
        let rules = &shared.rules;
        let classes = Classes {
            rules: Arc::clone(rules),
            version,
            classes: BTreeMap::new(),
            listed: false,
        };
        let jobs = Jobs {
            rules: Arc::clone(rules),
        };
        let pods = Pods {
            rules: Arc::clone(rules),
            fence: Arc::clone(&shared.fence),
            texts: Arc::clone(&shared.texts),
            known: PodParts::default(),
        };
        let gangs = Gangs {
            fence: Arc::clone(&shared.fence),
            texts: Arc::clone(&shared.texts),
        };
        let nodes = Nodes {
            texts: Arc::clone(&shared.texts),
        };
        let hold = &shared.hold;
        let on = |optional, restart| (optional, restart, stop.clone());
        let (optional, restart, token) = on(false, None);
        tasks.spawn(hold.wrap(Watcher::new(shared.clone(), nodes).run(optional, restart, token)));
        let (optional, restart, token) = on(false, Some(shared.relist_pods.clone()));
        tasks.spawn(hold.wrap(Watcher::new(shared.clone(), pods).run(optional, restart, token)));
        let (optional, restart, token) = on(false, Some(shared.relist_gangs.clone()));
        tasks.spawn(hold.wrap(Watcher::new(shared.clone(), gangs).run(optional, restart, token)));
        let (optional, restart, token) = on(false, None);
        tasks.spawn(hold.wrap(Watcher::new(shared.clone(), classes).run(optional, restart, token)));
        let (optional, restart, token) = on(true, Some(changed));
        tasks.spawn(hold.wrap(Watcher::new(shared.clone(), jobs).run(optional, restart, token)));
        let (optional, restart, token) = on(true, None);
        tasks.spawn(hold.wrap(Watcher::new(shared.clone(), Groups).run(optional, restart, token)));
    }
}

struct Nodes {
    texts: Arc<Mutex<Texts>>,
}

impl Reading for Nodes {
    type Object = LiteNode;
    const KIND: &'static str = "Node";

    fn read(&mut self, object: &LiteNode) -> Meaning {
        let mut node = translate::node(object);
        node.share(&mut locked(&self.texts));
        Some((
            Identity::Node(node.name.clone()),
            Some(Event::NodeApplied(node)),
        ))
    }
}

struct Pods {
    rules: Arc<ArcSwap<PodRules>>,
    fence: Arc<Fence>,
    texts: Arc<Mutex<Texts>>,
    known: PodParts,
}

impl Reading for Pods {
    type Object = LitePod;
    const KIND: &'static str = "Pod";

    fn read(&mut self, object: &LitePod) -> Meaning {
        let mut pod = translate::pod(object, &self.rules.load());
        pod.share(&mut self.known, &mut locked(&self.texts));
        // Only what Muster can have written counts, and only as a doubt: anybody may annotate a pod of his own.
        if pod.ours {
            if let Some(record) = &pod.record {
                self.fence.see(record.epoch);
            }
            if let Some(stamp) = pod.stamp {
                self.fence.see(stamp);
            }
        }
        Some((Identity::Pod(pod.uid.clone()), Some(Event::PodApplied(pod))))
    }

    fn relisted(&self) -> Option<Event> {
        Some(Event::Relisted(Listing::Pods))
    }
}

struct Gangs {
    fence: Arc<Fence>,
    texts: Arc<Mutex<Texts>>,
}

impl Reading for Gangs {
    type Object = Gang;
    const KIND: &'static str = "Gang";

    fn read(&mut self, object: &Gang) -> Meaning {
        if let Some(stamp) = translate::stamp(&object.metadata) {
            self.fence.see(stamp);
        }
        match translate::record(object) {
            Ok(mut record) => {
                record.share(&mut locked(&self.texts));
                if let Ok(Some(plan)) = &record.plan {
                    self.fence.see_ours(plan.epoch);
                }
                let key = record.key.clone();
                Some((Identity::Record(key), Some(Event::RecordApplied(record))))
            }
            Err(error) => {
                let gang = format!(
                    "{}/{}",
                    object.namespace().unwrap_or_default(),
                    object.name_any()
                );
                let status = object.status.as_ref();
                let plan = status.and_then(|status| status.plan_id.as_deref());
                let plan = plan.unwrap_or_default();
                tracing::warn!(gang, plan, %error, "a Gang object is not understood");
                None
            }
        }
    }

    fn relisted(&self) -> Option<Event> {
        Some(Event::Relisted(Listing::Gangs))
    }
}

fn workload(workload: Option<Workload>) -> Meaning {
    workload.map(|workload| {
        let key = workload.key.clone();
        (
            Identity::Workload(key),
            Some(Event::WorkloadApplied(workload)),
        )
    })
}

struct Jobs {
    rules: Arc<ArcSwap<PodRules>>,
}

impl Reading for Jobs {
    type Object = LitePyTorchJob;
    const KIND: &'static str = "PyTorchJob";

    fn read(&mut self, object: &LitePyTorchJob) -> Meaning {
        workload(translate::pytorchjob(object, &self.rules.load()))
    }
}

struct Groups;

impl Reading for Groups {
    type Object = LitePodGroup;
    const KIND: &'static str = "PodGroup";

    fn read(&mut self, object: &LitePodGroup) -> Meaning {
        workload(translate::pod_group(object))
    }
}

/// PriorityClasses become part of the rules by which jobs are read.
struct Classes {
    rules: Arc<ArcSwap<PodRules>>,
    version: signal::Sender<u64>,
    classes: BTreeMap<String, (i32, bool)>,
    listed: bool,
}

impl Classes {
    fn publish(&self) {
        if !self.listed {
            return;
        }
        let mut values: BTreeMap<String, i32> = self
            .classes
            .iter()
            .map(|(name, (value, _))| (name.clone(), *value))
            .collect();
        let default = self.classes.values().find(|(_, default)| *default);
        if let Some((value, _)) = default {
            values.insert(String::new(), *value);
        }
        let current = self.rules.load();
        if current.priority_classes == values {
            return;
        }
        self.rules.store(Arc::new(PodRules {
            priority_classes: values,
            ..PodRules::clone(&current)
        }));
        self.version
            .send_modify(|version| *version = version.wrapping_add(1));
    }
}

impl Reading for Classes {
    type Object = PriorityClass;
    const KIND: &'static str = "PriorityClass";

    fn read(&mut self, object: &PriorityClass) -> Meaning {
        let default = object.global_default.unwrap_or(false);
        let value = object.value.unwrap_or_default();
        self.classes.insert(object.name_any(), (value, default));
        self.publish();
        Some((Identity::Other, None))
    }

    fn gone(&mut self, name: &str) {
        self.classes.remove(name);
        self.publish();
    }

    fn listed(&mut self) {
        self.listed = true;
        self.publish();
    }
}
