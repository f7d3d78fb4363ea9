//! When a gang that cannot run is told so, and in which words.

use std::collections::BTreeMap;

use anyhow::Context as _;
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::contender::Contender;
use crate::objects::{GANG, Gang, NAMESPACE};

/// What kube-scheduler says of a node without enough free GPUs.
const TOO_FEW: &str = "Insufficient nvidia.com/gpu";

/// What was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// When the watch brought it.
    pub at: Timestamp,
    /// Kind and name of the object that says so.
    pub by: String,
    /// Its text.
    pub text: String,
}

/// Listens to the objects in which a contender speaks. Dropping it ends that.
#[derive(Debug)]
pub struct Ear {
    heard: watch::Receiver<Option<Verdict>>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ear {
    /// Begins to listen for a verdict on a gang.
    pub fn open(client: Client, contender: Contender, gang: &Gang) -> Ear {
        let (sender, heard) = watch::channel(None);
        let task = tokio::spawn(listen(client, contender, gang.clone(), sender));
        Ear { heard, task }
    }

    /// The verdict, once there is one.
    ///
    /// # Errors
    /// When the watch has ended.
    pub async fn verdict(&mut self) -> anyhow::Result<Verdict> {
        let heard = self.heard.wait_for(Option::is_some).await;
        let heard = heard.context("the watch for a verdict has ended")?;
        heard.clone().context("a verdict")
    }
}

/// Where a contender says it: the gang's own object if it has one that speaks, else its pods.
fn speaker(contender: Contender) -> GroupVersionKind {
    match contender {
        Contender::Native => GroupVersionKind::gvk("scheduling.k8s.io", "v1beta1", "PodGroup"),
        Contender::Kai => GroupVersionKind::gvk("scheduling.run.ai", "v2alpha2", "PodGroup"),
        Contender::Raw | Contender::Plain | Contender::PlainJob | Contender::Coscheduling => {
            GroupVersionKind::gvk("", "v1", "Pod")
        }
        Contender::MusterJob | Contender::MusterGate | Contender::MusterUngated => {
            GroupVersionKind::gvk("muster.dev", "v1alpha1", "Gang")
        }
    }
}

async fn listen(
    client: Client,
    contender: Contender,
    gang: Gang,
    heard: watch::Sender<Option<Verdict>>,
) -> anyhow::Result<()> {
    let speaker = speaker(contender);
    let kind = ApiResource::from_gvk(&speaker);
    let api: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE, &kind);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    // Without gangs each pod is judged alone: the last of them tells.
    let speakers = if matches!(contender, Contender::Plain | Contender::PlainJob) {
        gang.pods
    } else {
        1
    };
    let mut said: BTreeMap<String, Verdict> = BTreeMap::new();
    while let Some(event) = events.next().await {
        let object = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => object,
            Ok(_) => continue,
            // A kind that is not served yet, or a watch that was cut: the watcher begins anew.
            Err(_) => continue,
        };
        let name = object.metadata.name.clone().unwrap_or_default();
        if !is_of(&object, &name, &gang) || said.contains_key(&name) {
            continue;
        }
        let Some(text) = verdict_in(contender, &object.data) else {
            continue;
        };
        let verdict = Verdict {
            at: Timestamp::now(),
            by: format!("{} {name}", speaker.kind),
            text,
        };
        said.insert(name, verdict.clone());
        if said.len() >= speakers {
            let _ = heard.send(Some(verdict));
            return Ok(());
        }
    }
    Ok(())
}

/// By the load's label, or by a name that has the gang's in it: Muster says from what it has it
/// (`label-g000`), KAI adds the job's uid (`pg-g000-...`).
fn is_of(object: &DynamicObject, name: &str, gang: &Gang) -> bool {
    let label = object.metadata.labels.as_ref();
    let label = label.and_then(|labels| labels.get(GANG));
    label.is_some_and(|label| *label == gang.name) || name.split('-').any(|part| part == gang.name)
}

/// The text of the condition that says that there are too few GPUs. A text that only says that
/// members are still missing is none.
fn verdict_in(contender: Contender, object: &Value) -> Option<String> {
    let list = if contender == Contender::Kai {
        "/status/schedulingConditions"
    } else {
        "/status/conditions"
    };
    let conditions = object.pointer(list)?.as_array()?;
    let field = |condition: &Value, name: &str| {
        let value = condition.get(name).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    conditions.iter().find_map(|condition| {
        let text = field(condition, "message");
        let no = field(condition, "status") == "False";
        let reason = field(condition, "reason");
        let holds = match contender {
            Contender::Plain | Contender::PlainJob | Contender::Coscheduling => {
                no && text.contains(TOO_FEW)
            }
            // Looked at only once all members are there; the text itself names no resource.
            Contender::Native => no && reason == "Unschedulable",
            Contender::Kai => reason == "Unschedulable",
            Contender::MusterJob | Contender::MusterGate | Contender::MusterUngated => {
                no && reason == "NotEnoughFree"
            }
            Contender::Raw => false,
        };
        holds.then_some(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(message: &str) -> Value {
        json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message},
        ]}})
    }

    #[test]
    fn the_gang_that_muster_names_after_a_label_is_listened_to() {
        let gang = Gang {
            name: "g000".into(),
            pods: 10,
            gpus: 8,
        };
        let object = DynamicObject::new("x", &ApiResource::from_gvk(&speaker(Contender::Kai)));
        for name in ["g000", "label-g000", "pg-g000-4f1c-88"] {
            assert!(is_of(&object, name, &gang), "{name}");
        }
        for name in ["warm", "label-warm", "g0001"] {
            assert!(!is_of(&object, name, &gang), "{name}");
        }
    }

    #[test]
    fn a_native_group_says_it_by_reason_alone() {
        let group = |status| {
            json!({"status": {"conditions": [
                {"type": "PodGroupInitiallyScheduled", "status": status, "reason": "Unschedulable",
                 "message": "no placement"},
            ]}})
        };
        let said = verdict_in(Contender::Native, &group("False"));
        assert_eq!(said.as_deref(), Some("no placement"));
        assert_eq!(verdict_in(Contender::Native, &group("True")), None);
    }

    #[test]
    fn a_text_that_only_says_that_siblings_are_missing_is_no_verdict() {
        let early = pod("pre-filter pod g000-worker-0 cannot find enough sibling pods");
        assert_eq!(verdict_in(Contender::Coscheduling, &early), None);
        let late = pod("0/500 nodes are available: 500 Insufficient nvidia.com/gpu.");
        assert!(verdict_in(Contender::Coscheduling, &late).is_some());
        let gang = |reason| {
            json!({"status": {"conditions": [
                {"type": "Placed", "status": "False", "reason": reason, "message": "needs room"},
            ]}})
        };
        assert_eq!(
            verdict_in(Contender::MusterGate, &gang("MembersMissing")),
            None
        );
        let said = verdict_in(Contender::MusterGate, &gang("NotEnoughFree"));
        assert_eq!(said.as_deref(), Some("needs room"));
    }
}
