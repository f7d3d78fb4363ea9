//! Tenants who want what is not theirs: whatever they write on their own objects, it gives them
//! nothing of another's, and costs the others nothing.
//!
//! Absurd numbers are in `real/bad_input.rs` and in the tests of `scheduler/kubernetes/src/translate`.

use std::time::Duration;

use anyhow::Context as _;
use muster_embedded::{EmbeddedCluster, value};
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::{By, PodGang};
use muster_tests::sim::{GANGS, PODS, SOON, Sim, SimOptions, bound, gang_field, phase_of};
use serde_json::{Value, json};

use super::{MINUTE, gathering, paused, train};

const THIEF: &str = "thief";
const EVENTS: (&str, &str) = ("", "events");

fn status_of(cluster: &EmbeddedCluster, gang: &str) -> Option<Value> {
    let gang = cluster.get(GANGS, "default", gang)?;
    value::at(&gang, &["status"]).cloned()
}

fn node_of(cluster: &EmbeddedCluster, namespace: &str, pod: &str) -> String {
    let pod = cluster.get(PODS, namespace, pod).unwrap_or_default();
    value::text(&pod, &["spec", "nodeName"]).to_owned()
}

/// A pod of another namespace with all that `original` says of itself: labels, annotations, owner.
fn copied(original: &Value, name: &str, node: Option<&str>) -> Value {
    let meta = |field: &str| value::at(original, &["metadata", field]).cloned();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": THIEF, "labels": meta("labels"),
            "annotations": meta("annotations"), "ownerReferences": meta("ownerReferences")},
        "spec": {"schedulerName": "muster", "nodeName": node,
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "containers": [{"name": "pytorch", "image": "i",
                "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}})
}

fn namespace(sim: &Sim) -> anyhow::Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": THIEF}});
    sim.cluster.create(object)?;
    Ok(())
}

/// The reservation of a gang that gathers is for its own pods by UID.
#[test]
fn abuse_s13_labels_owner_and_annotations_of_another_namespace_win_no_reservation()
-> anyhow::Result<()> {
    paused(async {
        let sim = gathering().await?;
        namespace(&sim)?;
        let plan = gang_field(&sim.cluster, "train", "planId");
        let member = sim.cluster.list(PODS).first().cloned().context("a pod")?;
        sim.cluster.create(copied(&member, "copy", None))?;
        sim.until("the gang is bound", MINUTE * 5, |c| {
            bound(c, "train-").len() == 4
        })
        .await?;
        sim.pass(MINUTE * 2).await;
        let copy = sim.cluster.get(PODS, THIEF, "copy");
        assert!(copy.is_some(), "it is still there");
        assert_eq!(node_of(&sim.cluster, THIEF, "copy"), "");
        assert_eq!(gang_field(&sim.cluster, "train", "planId"), plan);
        assert_eq!(phase_of(&sim.cluster, "train"), "Running");
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

/// A labelled gang and a PodGroup are those of their namespace.
#[test]
fn abuse_pods_of_another_namespace_complete_no_gang_by_its_label() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(2)).await?;
        namespace(&sim)?;
        for by in [By::Label, By::PodGroup] {
            let name = format!("sweep-{by:?}").to_lowercase();
            let gang = PodGang::new(&name, by, 3, 1);
            sim.apply(&gang.head())?;
            for index in 0..2 {
                sim.apply(&gang.pod(index))?;
            }
            let theirs = gang
                .pod(2)
                .replace("namespace: default", &format!("namespace: {THIEF}"));
            sim.apply(&theirs)?;
        }
        sim.pass(MINUTE * 3).await;
        assert_eq!(bound(&sim.cluster, "sweep-").len(), 0);
        for name in ["sweep-label-2", "sweep-podgroup-2"] {
            assert_eq!(node_of(&sim.cluster, THIEF, name), "", "{name}");
        }
        for gang in ["label-sweep-label", "podgroup-sweep-podgroup"] {
            assert_eq!(phase_of(&sim.cluster, gang), "Waiting", "{gang}");
            assert_eq!(gang_field(&sim.cluster, gang, "planId"), "", "{gang}");
        }
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

/// A pod that its maker puts on a node goes past every scheduler: it counts as there, and what it says
/// about plan, epoch and devices takes nothing from whom it was copied.
#[test]
fn abuse_pod_that_its_maker_binds_with_a_copied_record_counts_and_takes_no_device()
-> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(1)).await?;
        namespace(&sim)?;
        sim.apply(&train("train").yaml())?;
        sim.until_phase("train", "Running").await?;
        sim.pass(Duration::from_secs(10)).await;
        let before = status_of(&sim.cluster, "train").context("a status")?;
        let member = sim
            .cluster
            .get(PODS, "default", "train-worker-0")
            .context("a member")?;
        let mut copy = copied(&member, "copy", Some("gpu-000"));
        // As of a leader far in the future.
        value::set(
            &mut copy,
            &["metadata", "annotations", "muster.dev/epoch"],
            "18446744073709551615",
        );
        sim.cluster.create(copy)?;
        sim.pass(MINUTE).await;
        assert_eq!(status_of(&sim.cluster, "train"), Some(before));
        // Eight GPUs, five of the gang and one of the copy: two are left, and no third.
        let pair = |name: &str| Job::new(name, vec![Role::new("Worker", 2, 1)]);
        sim.apply(&pair("fits").yaml())?;
        sim.until_phase("fits", "Running").await?;
        sim.apply(&Job::new("late", vec![Role::new("Worker", 1, 1)]).yaml())?;
        sim.pass(MINUTE).await;
        assert_eq!(phase_of(&sim.cluster, "late"), "Waiting");
        assert_eq!(phase_of(&sim.cluster, "train"), "Running");
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

/// What a tenant writes is quoted in one line without control characters, in the Gang and in Events.
#[test]
fn abuse_control_characters_of_a_tenant_reach_nobodys_terminal() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(1)).await?;
        let evil = "\u{1b}[31m2\nlevel=error msg=forged\r\u{7}";
        let mut pod = copied(&Value::Null, "evil", None);
        pod["metadata"] = json!({"name": "evil", "namespace": "default",
            "labels": {"muster.dev/gang": "evil"},
            "annotations": {"muster.dev/gang-size": evil, format!("muster.dev/topology-level"): evil}});
        sim.cluster.create(pod)?;
        sim.until("it is said", SOON, |c| {
            gang_field(c, "label-evil", "reason") == "InvalidWorkload"
        })
        .await?;
        sim.pass(MINUTE).await;
        let gang = sim
            .cluster
            .get(GANGS, "default", "label-evil")
            .context("a gang")?;
        let mut texts = vec![value::text(&gang, &["status", "message"]).to_owned()];
        for condition in value::items(&gang, &["status", "conditions"]) {
            texts.push(value::text(condition, &["message"]).to_owned());
        }
        let events = sim.cluster.list(EVENTS);
        texts.extend(
            events
                .iter()
                .map(|event| value::text(event, &["message"]).to_owned()),
        );
        assert!(
            texts.iter().any(|text| text.contains("forged")),
            "{texts:?}"
        );
        for text in &texts {
            assert!(!text.contains(char::is_control), "{text:?}");
        }
        sim.stop().await;
        Ok(())
    })
}
