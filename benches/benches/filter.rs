//! Time of one Filter call inside the extender: from the bytes that kube-scheduler sends to the bytes
//! it gets, by the number of nodes it offers, with 5,000 gangs in the published picture. Each case
//! asserts a real answer before it is timed. Connection and TLS are not in it.
//!
//! `cargo bench -p muster-benches --bench filter`

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use divan::Bencher;
use muster_core::ids::{Epoch, GangKey, NodeName, PodUid};
use muster_core::resources::Resources;
use muster_core::view::{GangView, View};
use muster_kubernetes::translate::PodRules;
use muster_scheduler::binds::Binds;
use muster_scheduler::config;
use muster_scheduler::extender::Extender;
use muster_scheduler::inbox::inbox;
use muster_scheduler::metrics::Metrics;
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// Gangs in the picture; half of them are planned, the others wait.
const GANGS: usize = 5_000;
/// Bytes of an answer that are read; one that is longer is an error.
const ANSWER_MAX: usize = 64 << 20;

fn main() {
    divan::main();
}

fn node(index: usize) -> String {
    format!("gpu-node-{index:05}.cluster.internal")
}

fn uid(gang: usize) -> String {
    format!("00000000-0000-4000-8000-{gang:012}")
}

/// A picture with so many nodes. The one member of a gang with an even number is planned on the node
/// in the middle.
fn view(nodes: usize) -> View {
    let room = Arc::new(Resources {
        milli_cpu: 64_000,
        memory_bytes: 1 << 39,
        pods: 100,
        ..Resources::default()
    });
    let gang = |number: usize| {
        let planned = number.is_multiple_of(2);
        let place = (PodUid::from(uid(number)), NodeName::from(node(nodes / 2)));
        let gang = GangView {
            plan: planned.then(|| "e1-1".into()),
            slots: BTreeMap::new(),
            nodes: planned.then_some(place).into_iter().collect(),
            refusal: "muster: gang waits (NotEnoughFree)".into(),
        };
        (
            GangKey::labelled("ml", &format!("g{number}")),
            Arc::new(gang),
        )
    };
    View {
        leading: true,
        synced: true,
        frozen: false,
        epoch: Epoch(1),
        gangs: (0..GANGS).map(gang).collect(),
        members: std::iter::empty().collect(),
        free: (0..nodes)
            .map(|index| (NodeName::from(node(index)), Arc::clone(&room)))
            .collect(),
        protected: std::iter::empty().collect(),
    }
}

/// A pod as the API server stores it, with what training pods commonly have.
fn pod(number: usize, gpus: bool) -> Value {
    let limits = if gpus {
        json!({"nvidia.com/gpu": "8", "cpu": "96", "memory": "900Gi"})
    } else {
        json!({"cpu": "4", "memory": "16Gi"})
    };
    let labels = if gpus {
        json!({"muster.dev/gang": format!("g{number}"), "app": "train"})
    } else {
        json!({"app": "plain"})
    };
    let environment: Vec<Value> = (0..24)
        .map(|at| json!({"name": format!("SETTING_{at}"), "value": format!("value of setting {at}")}))
        .collect();
    json!({
        "metadata": {"name": format!("g{number}-0"), "namespace": "ml", "uid": uid(number),
            "resourceVersion": "123456", "labels": labels, "annotations": {"muster.dev/gang-size": "1"}},
        "spec": {"schedulerName": "muster", "serviceAccountName": "default",
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "containers": [{"name": "pytorch", "image": "registry/train:1", "env": environment,
                "resources": {"limits": limits.clone(), "requests": limits}}]},
        "status": {"phase": "Pending", "qosClass": "Guaranteed"},
    })
}

/// The extender over a picture, as it answers in production.
fn door(view: View) -> Router {
    let settings = config::Config::default().extender;
    let (inbox, _outbox) = inbox();
    Extender::new(
        Arc::new(ArcSwap::from_pointee(view)),
        Arc::new(ArcSwap::from_pointee(PodRules::default())),
        inbox,
        Arc::new(Binds::new(settings.binds_held_max)),
        Arc::new(Metrics::default()),
        &settings,
    )
    .router(settings.body_bytes_max)
}

async fn ask(router: &Router, body: Vec<u8>) -> Vec<u8> {
    let request = Request::post("/v1/short/filter")
        .body(Body::from(body))
        .expect("a request");
    let response = router.clone().oneshot(request).await.expect("an answer");
    assert_eq!(response.status(), 200);
    to_bytes(response.into_body(), ANSWER_MAX)
        .await
        .expect("its bytes")
        .to_vec()
}

/// Times a call of Filter for a pod with so many nodes offered, of which so many pass.
fn filter(bencher: Bencher, nodes: usize, pod: &Value, passed: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let router = door(view(nodes));
    let names: Vec<String> = (0..nodes).map(node).collect();
    let body = json!({"Pod": pod, "NodeNames": names})
        .to_string()
        .into_bytes();
    let answer = runtime.block_on(ask(&router, body.clone()));
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    let names = answer["NodeNames"].as_array().map(Vec::len);
    assert_eq!(names, Some(passed), "{answer}");
    bencher
        .with_inputs(|| body.clone())
        .bench_values(|body| runtime.block_on(ask(&router, body)).len());
}

/// A member that has a place: one node passes.
#[divan::bench(args = [100, 1_000, 5_000])]
fn planned_member(bencher: Bencher, nodes: usize) {
    filter(bencher, nodes, &pod(0, true), 1);
}

/// A member whose gang waits: each node is refused, by name.
#[divan::bench(args = [100, 1_000, 5_000])]
fn waiting_member(bencher: Bencher, nodes: usize) {
    filter(bencher, nodes, &pod(1, true), 0);
}

/// A pod of no gang: it may go wherever the reservations leave room, here everywhere.
#[divan::bench(args = [100, 1_000, 5_000])]
fn pod_of_no_gang(bencher: Bencher, nodes: usize) {
    filter(bencher, nodes, &pod(2, false), nodes);
}
