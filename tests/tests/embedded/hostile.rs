//! Callers who say anything at all to the extender, and tenants who make their objects as large, as many and as important
//! as they can: nothing of it changes what others have, and nothing of it is handed on.

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use muster_embedded::value;
use muster_tests::fuzz::mutated;
use muster_tests::jobs::{Job, Role};
use muster_tests::rng::Rng;
use muster_tests::sim::{GANGS, PODS, Sim, SimOptions, bound, gang_field, phase_of};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::{MINUTE, gathering, paused, train};

/// Calls of each verb.
const CALLS: usize = 400;
/// Most bytes of a Gang, whatever its tenant has written.
const GANG_BYTES_MAX: usize = 16 << 10;

async fn call(router: Router, verb: &'static str, body: Vec<u8>) -> anyhow::Result<(u16, Value)> {
    let request = Request::post(format!("/v1/bind/{verb}")).body(Body::from(body))?;
    let response = router.oneshot(request).await?;
    let code = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), 16 << 20).await?;
    Ok((code, serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// Bodies about a member, its copies and pods that nobody has seen. None of them is a Bind of the member to the node
/// where it is planned: that would be kube-scheduler's own.
fn bodies(member: &Value) -> [(&'static str, Vec<Value>); 3] {
    let name = value::name(member);
    let uid = value::uid(member);
    let mut copy = member.clone();
    value::set(&mut copy, &["metadata", "uid"], "of-the-thief");
    let mut elsewhere = copy.clone();
    value::set(&mut elsewhere, &["metadata", "namespace"], "thief");
    let nodes = json!(["gpu-000", "gpu-001", "cpu-000"]);
    let pods = [member, &copy, &elsewhere];
    let filter = pods
        .map(|pod| json!({"Pod": pod, "NodeNames": nodes}))
        .to_vec();
    let victims = json!({"gpu-000": {"Pods": [{"UID": uid}], "NumPDBViolations": 0}});
    let preempt = pods
        .map(|pod| json!({"Pod": pod, "NodeNameToMetaVictims": victims}))
        .to_vec();
    let bind = |uid: &str, space: &str, node: &str| json!({"PodName": name, "PodNamespace": space, "PodUID": uid, "Node": node});
    let bind = vec![
        bind(uid, "default", "cpu-000"),
        bind(uid, "default", "no-node"),
        bind("of-the-thief", "default", "gpu-000"),
        bind("of-the-thief", "thief", "gpu-001"),
    ];
    [("filter", filter), ("preempt", preempt), ("bind", bind)]
}

/// Whoever reaches the extender as kube-scheduler does can make it bind nothing but what is planned, and can take no
/// reservation away.
#[test]
fn abuse_calls_with_anything_in_them_create_and_free_nothing() -> anyhow::Result<()> {
    paused(async {
        let sim = gathering().await?;
        let plan = gang_field(&sim.cluster, "train", "planId");
        let member = sim.cluster.list(PODS).first().cloned().context("a pod")?;
        let router = sim.extender().context("an extender")?;
        let (mut rng, mut calls) = (Rng::new(1), JoinSet::new());
        for (verb, bodies) in bodies(&member) {
            for at in 0..CALLS {
                let body = |at: usize| bodies.get(at % bodies.len()).map(Value::to_string);
                let (one, other) = (
                    body(at).unwrap_or_default(),
                    body(rng.index(8)).unwrap_or_default(),
                );
                let body = match at < bodies.len() {
                    true => one.into_bytes(),
                    false => mutated(&mut rng, one.as_bytes(), other.as_bytes()),
                };
                let router = router.clone();
                calls.spawn(async move { (verb, call(router, verb, body).await) });
            }
        }
        let mut answered = 0;
        sim.until("the gang is bound", MINUTE * 5, |c| {
            bound(c, "train-").len() == 4
        })
        .await?;
        while let Some(done) = calls.join_next().await {
            let (verb, answer) = done?;
            let (code, answer) = answer?;
            anyhow::ensure!(matches!(code, 200 | 400), "{verb}: {code}");
            let error = answer["Error"].as_str().unwrap_or_default();
            anyhow::ensure!(
                verb != "bind" || code != 200 || !error.is_empty(),
                "{verb}: {answer}"
            );
            answered += 1;
        }
        assert_eq!(answered, 3 * CALLS);
        assert_eq!(gang_field(&sim.cluster, "train", "planId"), plan);
        assert_eq!(phase_of(&sim.cluster, "train"), "Running");
        let bindings = sim.cluster.api().writes_since(0);
        let bindings = bindings
            .iter()
            .filter(|write| write.verb == "create/binding");
        assert_eq!(bindings.count(), 4, "each member once, and nobody else");
        // Nothing is held for anybody else: what the gang leaves is all there is.
        sim.cluster
            .delete(muster_tests::sim::JOBS, "default", "train")?;
        sim.apply(&Job::new("all", vec![Role::new("Worker", 2, 8)]).yaml())?;
        sim.until("a gang on everything runs", MINUTE * 5, |c| {
            phase_of(c, "all") == "Running"
        })
        .await?;
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

/// kube-scheduler would evict a member of a gang for a pod of a higher priority, and with it the whole gang stands.
#[test]
fn abuse_pod_of_the_highest_priority_evicts_no_member_of_a_gang() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(1)).await?;
        sim.apply(&train("train").yaml())?;
        sim.until_phase("train", "Running").await?;
        let before = bound(&sim.cluster, "train-");
        let node = sim.cluster.get(muster_tests::sim::NODES, "", "gpu-000");
        let node = node.context("a node")?;
        let cpu = value::text(&node, &["status", "allocatable", "cpu"]).to_owned();
        sim.cluster.create(
            json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": "mine-first"}, "value": 1_000_000_000}),
        )?;
        sim.cluster.create(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "weapon", "namespace": "default"},
            "spec": {"schedulerName": "muster", "priorityClassName": "mine-first",
                "preemptionPolicy": "PreemptLowerPriority", "nodeSelector": {"kubernetes.io/hostname": "gpu-000"},
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}}))?;
        sim.pass(MINUTE * 10).await;
        assert_eq!(bound(&sim.cluster, "train-"), before);
        assert_eq!(bound(&sim.cluster, "weapon").len(), 0);
        assert_eq!(phase_of(&sim.cluster, "train"), "Running");
        let asked = sim.metrics().lines().any(|line| {
            line.starts_with("muster_preempt") && !line.ends_with(" 0") && !line.starts_with('#')
        });
        assert!(asked, "kube-scheduler wanted to evict:\n{}", sim.metrics());
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}

/// Objects as large as an API server takes: what Muster writes about them stays small.
#[test]
fn abuse_objects_of_the_largest_size_make_small_gangs() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(1)).await?;
        let long = "x".repeat(200 << 10);
        for (name, key) in [
            ("size", "muster.dev/gang-size"),
            ("level", "muster.dev/required-topology"),
            ("typo", "muster.dev/gang-sizes"),
            ("other", "example.com/notes"),
        ] {
            let mut annotations = json!({"muster.dev/gang-size": "2"});
            annotations[key] = long.clone().into();
            sim.cluster.create(json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "labels": {"muster.dev/gang": name},
                    "annotations": annotations},
                "spec": {"schedulerName": "muster", "containers": [{"name": "c", "image": "i",
                    "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}))?;
        }
        let mut job = train("vast").yaml();
        job = job.replace(
            "schedulerName: muster",
            &format!("schedulerName: muster\n          nodeSelector: {{pool: {long}}}"),
        );
        anyhow::ensure!(job.len() > long.len(), "the selector is in it");
        sim.apply(&job)?;
        sim.pass(MINUTE * 2).await;
        let gangs = sim.cluster.list(GANGS);
        anyhow::ensure!(gangs.len() >= 4, "{} gangs", gangs.len());
        for gang in &gangs {
            let bytes = gang.to_string().len();
            assert!(
                bytes < GANG_BYTES_MAX,
                "{} takes {bytes} bytes",
                value::name(gang)
            );
        }
        for event in sim.cluster.list(("", "events")) {
            let message = value::text(&event, &["message"]);
            assert!(message.len() <= 1024, "an Event of {} bytes", message.len());
        }
        sim.apply(&train("good").yaml())?;
        sim.until_phase("good", "Running").await?;
        sim.stop().await;
        Ok(())
    })
}

/// A soak grew by some 1.4 KB with each job: the status of a gang was remembered after its Gang object had gone with the
/// job that owned it.
#[test]
fn nothing_is_remembered_of_gangs_that_are_gone() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(2)).await?;
        let names: Vec<String> = (0..6).map(|index| format!("train-{index}")).collect();
        for name in &names {
            sim.apply(&train(name).yaml())?;
        }
        // Of one that waits for ever too.
        let vast = Job::new("vast", vec![Role::new("Worker", 1, 64)]);
        sim.apply(&vast.yaml())?;
        sim.pass(MINUTE).await;
        assert_eq!(sim.remembered(), names.len() + 1);
        for name in names.iter().map(String::as_str).chain(["vast"]) {
            sim.cluster
                .delete(("kubeflow.org", "pytorchjobs"), "default", name)?;
        }
        sim.pass(MINUTE).await;
        assert_eq!(sim.remembered(), 0);
        sim.stop().await;
        Ok(())
    })
}

/// A series for each pod, job or text of a tenant would grow without end, and tell others of it.
#[test]
fn abuse_f48_metrics_name_no_tenant_and_stay_as_many() -> anyhow::Result<()> {
    paused(async {
        let sim = Sim::start(SimOptions::nodes(2)).await?;
        sim.apply(&train("warm-up").yaml())?;
        sim.until_phase("warm-up", "Running").await?;
        sim.pass(MINUTE).await;
        let count = || sim.metrics().lines().count();
        let before = count();
        for round in 0..40 {
            let job = train(&format!("zebra-{round}"));
            sim.apply(&job.running_for(5).yaml())?;
            let vast = Job::new(&format!("yak-{round}"), vec![Role::new("Worker", 1, 64)]);
            sim.apply(&vast.yaml())?;
            sim.pass(MINUTE).await;
        }
        let text = sim.metrics();
        for word in ["zebra", "yak", "warm-up", "default", "gpu-00"] {
            assert!(!text.contains(word), "{word} in\n{text}");
        }
        // Whatever can happen to a gang has its series; a few of these were not seen at first.
        let after = count();
        assert!(after <= before + 40, "{before} lines became {after}");
        let settled = count();
        for round in 40..60 {
            sim.apply(&train(&format!("zebra-{round}")).running_for(5).yaml())?;
            sim.pass(MINUTE).await;
        }
        // A series for each of twenty jobs would be twenty lines.
        let last = count();
        assert!(last < settled + 10, "{settled} lines became {last}");
        sim.stop().await;
        Ok(())
    })
}
