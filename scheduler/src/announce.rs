//! Kubernetes Events about gangs, for `kubectl describe`. Best effort: bounded, never awaited by
//! the cycle, and a repetition within ten minutes raises the count of the Event that is there.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use muster_core::action::{Announcement, Subject};
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
/// Longest message, characters; the API takes 1,024 bytes.
const MESSAGE_MAX: usize = 1000;

/// Publishes announcements.
#[derive(Debug)]
pub struct Announcer {
    /// How the API is called.
    pub caller: Caller,
    /// What is waiting.
    pub queue: mpsc::Receiver<Announcement>,
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

impl Announcer {
    /// Publishes until stopped or the cycle has ended.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut published: BTreeMap<String, Published> = BTreeMap::new();
        let mut number: u64 = 0;
        loop {
            let announcement = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                announcement = self.queue.recv() => announcement,
            };
            let Some(announcement) = announcement else {
                return;
            };
            number = number.saturating_add(1);
            let outcome = self.publish(&announcement, number, &mut published).await;
            self.metrics.announced(outcome);
        }
    }

    async fn publish(
        &self,
        announcement: &Announcement,
        number: u64,
        published: &mut BTreeMap<String, Published>,
    ) -> &'static str {
        let now = Instant::now();
        let key = format!(
            "{} {} {} {}",
            announcement.gang,
            named(&announcement.subject),
            announcement.reason,
            announcement.message
        );
        let deadline = now + Duration::from_secs(10);
        let events = format!("/api/v1/namespaces/{}/events", announcement.gang.namespace);
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
            published.retain(|_, old| now.saturating_duration_since(old.last) < REPEATS_FOR);
            if published.len() >= REMEMBERED_MAX {
                published.clear();
            }
        }
        let event = self.event(announcement, number);
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
                tracing::warn!(gang = %announcement.gang, said, "an event was refused");
                "failed"
            }
            other => {
                tracing::debug!(gang = %announcement.gang, ?other, "an event was not published");
                "failed"
            }
        }
    }

    fn event(&self, announcement: &Announcement, number: u64) -> Value {
        let now = self.wall.now();
        let (api_version, kind) = match &announcement.subject {
            Subject::Gang { .. } => ("muster.dev/v1alpha1", "Gang"),
            Subject::Workload { kind, .. } => match kind {
                WorkloadKind::PyTorchJob => ("kubeflow.org/v1", "PyTorchJob"),
                WorkloadKind::PodGroup => ("scheduling.x-k8s.io/v1alpha1", "PodGroup"),
                WorkloadKind::Pod => ("v1", "Pod"),
                WorkloadKind::Label => ("muster.dev/v1alpha1", "Gang"),
            },
        };
        let name = named(&announcement.subject);
        let uid = match &announcement.subject {
            Subject::Workload { uid, .. } => Some(uid),
            Subject::Gang { uid, .. } => uid.as_ref(),
        };
        let message: String = shorten_to(&announcement.message);
        let stem: String = name.chars().take(200).collect();
        let stem = stem.trim_end_matches(['-', '.']);
        let time = now.to_string();
        let stamp = now.as_nanosecond();
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": format!("{stem}.{stamp:x}{number:x}"),
                "namespace": announcement.gang.namespace.as_str(),
            },
            "involvedObject": {
                "apiVersion": api_version,
                "kind": kind,
                "namespace": announcement.gang.namespace.as_str(),
                "name": name,
                "uid": uid.map(|uid| uid.as_ref()),
            },
            "type": if announcement.warning { "Warning" } else { "Normal" },
            "reason": announcement.reason,
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

/// Name of the object that an Event is about.
fn named(subject: &Subject) -> &str {
    match subject {
        Subject::Workload { name, .. } | Subject::Gang { name, .. } => name,
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
