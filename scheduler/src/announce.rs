//! Kubernetes Events about gangs and nodes, for `kubectl describe`. Best effort: bounded, never awaited by
//! the cycle, and a repetition within ten minutes raises the count of the Event that is there.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use muster_core::action::{Announcement, Subject};
use muster_core::ids::{NodeName, PlanId};
use muster_core::workload::WorkloadKind;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{Answer, Caller, Content, shorten};
use crate::clock::Wall;
use crate::metrics::Metrics;
use std::sync::Arc;

/// Announcements that may wait; further ones are dropped and counted.
pub const QUEUE_MAX: usize = 1024;
/// Events that are remembered for counting repetitions.
const REMEMBERED_MAX: usize = 4096;
/// How long a repetition counts up.
const REPEATS_FOR: Duration = Duration::from_secs(600);
/// How often those are forgotten that nothing can repeat any more.
const TIDY_EVERY: Duration = Duration::from_secs(60);
/// Longest message, characters; the API takes 1,024 bytes.
const MESSAGE_MAX: usize = 1000;

/// Where Events about objects without a namespace are.
const CLUSTER_NAMESPACE: &str = "default";

/// An Event to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Gang that it is about, for logs; empty where it is about none.
    pub gang: String,
    /// Plan that the gang has, for logs.
    pub plan: Option<PlanId>,
    /// The object that the Event is about.
    pub object: Object,
    /// Something the user should look at.
    pub warning: bool,
    /// CamelCase word.
    pub reason: &'static str,
    /// Text for people.
    pub message: Arc<str>,
}

/// An object that an Event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    api_version: &'static str,
    kind: &'static str,
    /// `None` where its kind has none.
    namespace: Option<String>,
    name: Arc<str>,
    uid: Option<Arc<str>>,
}

impl Object {
    /// A Node.
    pub fn node(name: &NodeName, uid: Option<Arc<str>>) -> Self {
        Self {
            api_version: "v1",
            kind: "Node",
            namespace: None,
            name: Arc::from(name.as_str()),
            uid,
        }
    }

    /// Namespace of its Events.
    fn events_in(&self) -> &str {
        self.namespace.as_deref().unwrap_or(CLUSTER_NAMESPACE)
    }
}

impl Notice {
    /// One about a gang that has this plan.
    pub fn of_gang(announcement: Announcement, plan: Option<PlanId>) -> Self {
        let Announcement {
            gang,
            subject,
            warning,
            reason,
            message,
        } = announcement;
        let (api_version, kind) = match &subject {
            Subject::Gang { .. } => ("muster.dev/v1alpha1", "Gang"),
            Subject::Workload { kind, .. } => match kind {
                WorkloadKind::PyTorchJob => ("kubeflow.org/v1", "PyTorchJob"),
                WorkloadKind::PodGroup => ("scheduling.x-k8s.io/v1alpha1", "PodGroup"),
                WorkloadKind::Pod => ("v1", "Pod"),
                WorkloadKind::Label => ("muster.dev/v1alpha1", "Gang"),
            },
        };
        let (name, uid) = match subject {
            Subject::Workload { name, uid, .. } => (name, Some(uid)),
            Subject::Gang { name, uid } => (name, uid),
        };
        Self {
            gang: gang.to_string(),
            plan,
            object: Object {
                api_version,
                kind,
                namespace: Some(gang.namespace.as_str().to_owned()),
                name,
                uid,
            },
            warning,
            reason,
            message,
        }
    }

    fn plan(&self) -> &str {
        self.plan.as_ref().map_or("", PlanId::as_str)
    }

    /// What tells it from all that are no repetition of it.
    fn key(&self) -> String {
        let Object { kind, name, .. } = &self.object;
        let namespace = self.object.events_in();
        // A job of the same name is another one once it was made again.
        format!(
            "{} {kind} {namespace}/{name} {} {}",
            self.gang, self.reason, self.message
        )
    }
}

/// Publishes announcements.
#[derive(Debug)]
pub struct Announcer {
    /// How the API is called.
    pub caller: Caller,
    /// What is waiting.
    pub queue: mpsc::Receiver<Notice>,
    /// What is written into Events.
    pub wall: Wall,
    /// `source.component` of the Events: the scheduler's name.
    pub component: String,
    /// Name of this replica.
    pub identity: String,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

struct Published {
    name: String,
    count: u32,
    last: Instant,
}

fn forget_old(published: &mut BTreeMap<String, Published>, now: Instant) {
    published.retain(|_, old| now.saturating_duration_since(old.last) < REPEATS_FOR);
}

impl Announcer {
    /// Publishes until stopped or the cycle has ended.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut published: BTreeMap<String, Published> = BTreeMap::new();
        let mut tidied = Instant::now();
        let mut number: u64 = 0;
        loop {
            let notice = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                notice = self.queue.recv() => notice,
            };
            let Some(notice) = notice else {
                return;
            };
            number = number.saturating_add(1);
            if tidied.elapsed() >= TIDY_EVERY {
                tidied = Instant::now();
                forget_old(&mut published, tidied);
            }
            let outcome = self.publish(&notice, number, &mut published).await;
            self.metrics.announced(outcome);
        }
    }

    async fn publish(
        &self,
        notice: &Notice,
        number: u64,
        published: &mut BTreeMap<String, Published>,
    ) -> &'static str {
        let now = Instant::now();
        let key = notice.key();
        let deadline = now + Duration::from_secs(10);
        let events = format!("/api/v1/namespaces/{}/events", notice.object.events_in());
        if let Some(before) = published.get_mut(&key)
            && now.saturating_duration_since(before.last) < REPEATS_FOR
        {
            before.count = before.count.saturating_add(1);
            before.last = now;
            let patch =
                json!({"count": before.count, "lastTimestamp": self.wall.now().to_string()});
            let path = format!("{events}/{}", before.name);
            let answer = self
                .caller
                .call(
                    Method::PATCH,
                    &path,
                    Content::MergePatch,
                    Some(&patch),
                    deadline,
                )
                .await;
            if matches!(answer, Answer::Ok(_)) {
                return "repeated";
            }
        }
        if published.len() >= REMEMBERED_MAX {
            forget_old(published, now);
            if published.len() >= REMEMBERED_MAX {
                published.clear();
            }
        }
        let event = self.event(notice, number);
        let name = event
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let answer = self
            .caller
            .call(Method::POST, &events, Content::Json, Some(&event), deadline)
            .await;
        match answer {
            Answer::Ok(_) => {
                published.insert(
                    key,
                    Published {
                        name,
                        count: 1,
                        last: now,
                    },
                );
                "published"
            }
            Answer::Refused(said) => {
                let (gang, plan, object) = (&notice.gang, notice.plan(), &notice.object.name);
                tracing::warn!(gang, plan, %object, said, "an event was refused");
                "failed"
            }
            other => {
                let (gang, plan, object) = (&notice.gang, notice.plan(), &notice.object.name);
                tracing::debug!(gang, plan, %object, ?other, "an event was not published");
                "failed"
            }
        }
    }

    fn event(&self, notice: &Notice, number: u64) -> Value {
        let now = self.wall.now();
        let Object {
            api_version,
            kind,
            namespace,
            name,
            uid,
        } = &notice.object;
        let message: String = shorten_to(&notice.message);
        let stem: String = name.chars().take(200).collect();
        let stem = stem.trim_end_matches(['-', '.']);
        let time = now.to_string();
        let stamp = now.as_nanosecond();
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": format!("{stem}.{stamp:x}{number:x}"),
                "namespace": notice.object.events_in(),
            },
            "involvedObject": {
                "apiVersion": api_version,
                "kind": kind,
                "namespace": namespace,
                "name": &**name,
                "uid": uid.as_deref(),
            },
            "type": if notice.warning { "Warning" } else { "Normal" },
            "reason": notice.reason,
            "message": message,
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "source": {"component": self.component},
            "reportingComponent": self.component,
            "reportingInstance": self.identity,
        })
    }
}

fn shorten_to(text: &str) -> String {
    if text.len() <= MESSAGE_MAX {
        return text.to_owned();
    }
    let mut short: String = shorten(text);
    short.push('…');
    short
}
