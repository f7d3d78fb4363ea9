//! The recorder finds what was planted: an over-committed node and a gang bound in part.

#![allow(clippy::unwrap_used)] // helper functions of tests panic as tests do

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use muster_control_plane::history::{Change, GangRule, Minimum, Recorder, Violation};
use muster_control_plane::{Cluster, NodeTemplate};
use serde_json::json;

const WAIT: Duration = Duration::from_secs(30);

async fn pod(cluster: &Cluster, name: &str, gang: &str, gpus: u32) {
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), "default");
    let pod = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "gang": gang } },
        "spec": { "containers": [{ "name": "c", "image": "i", "resources": { "limits": { "nvidia.com/gpu": gpus } } }] },
    }))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
}

async fn bind(cluster: &Cluster, name: &str, node: &str) {
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), "default");
    let binding =
        json!({ "metadata": { "name": name }, "target": { "kind": "Node", "name": node } });
    let status: kube::core::Status = pods
        .create_subresource("binding", name, &PostParams::default(), &binding)
        .await
        .unwrap();
    assert_eq!(status.code, 201, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn planted_over_commitment_and_planted_partial_gang_are_found() {
    let cluster = Cluster::builder()
        .with_controller_manager(false)
        .nodes(NodeTemplate::gpu_pool("gpu", 2))
        .start()
        .await
        .unwrap();
    let recorder = Recorder::start(cluster.admin()).await.unwrap();
    let deadline = Duration::from_secs(1);
    let minimums: BTreeMap<String, u32> = [
        ("default/whole".to_owned(), 2),
        ("default/half".to_owned(), 2),
    ]
    .into();
    let rule = GangRule::new(deadline)
        .group_by_label("gang")
        .minimum(Minimum::Fixed(minimums));

    pod(&cluster, "w0", "whole", 4).await;
    pod(&cluster, "w1", "whole", 4).await;
    bind(&cluster, "w0", "gpu-0").await;
    bind(&cluster, "w1", "gpu-0").await;
    recorder
        .wait_for(WAIT, "both pods running", |world| {
            world
                .pods
                .values()
                .filter(|pod| pod.phase == "Running")
                .count()
                == 2
        })
        .await
        .unwrap();
    let clean = recorder.caught_up(WAIT).await.unwrap();
    assert_eq!(clean.over_commitments(), []);
    assert_eq!(clean.partial_gangs(&rule), []);
    assert_eq!(clean.gangs(&rule)[0].minimum, 2);
    assert_eq!(recorder.look(|world| world.held("nvidia.com/gpu")), 8);

    // Bound by hand: the API server checks no room. The watch outlives a killed API server in between.
    pod(&cluster, "h0", "half", 1).await;
    pod(&cluster, "h1", "half", 1).await;
    cluster
        .stop_api_server_for(Duration::from_millis(500))
        .await
        .unwrap();
    bind(&cluster, "h0", "gpu-0").await;
    tokio::time::sleep(deadline + Duration::from_millis(500)).await;

    let planted = recorder.caught_up(WAIT).await.unwrap();
    assert_eq!(planted.gaps, []);
    let over = planted.over_commitments();
    assert!(
        matches!(over.as_slice(), [Violation::OverCommitted { pod, used: 9_000, allocatable: 8_000, .. }] if pod == "default/h0"),
        "{over:?}"
    );
    let partial = planted.partial_gangs(&rule.outages(cluster.outages()));
    assert!(
        matches!(
            partial.as_slice(),
            [Violation::PartialGang {
                bound: 1,
                minimum: 2,
                lasted_ms: 1_000..,
                ..
            }]
        ),
        "{partial:?}"
    );
}

/// A restarted API server no longer tells what was written before it: a recorder that had not heard of it by then asks the
/// store. CI once failed because a pod had been made a moment before the server was killed.
#[test]
fn what_was_not_told_before_the_api_server_died_is_recorded_version_by_version() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = Cluster::builder()
        .with_controller_manager(false)
        .nodes(NodeTemplate::gpu_pool("gpu", 1));
    let cluster = runtime.block_on(cluster.start()).unwrap();
    // This one works only while it is driven: it hears of nothing that happens in between.
    let deaf = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let recorder = deaf.block_on(Recorder::start(cluster.admin())).unwrap();
    runtime.block_on(async {
        let down = Duration::from_millis(100);
        cluster.stop_api_server_for(down).await.unwrap();
        pod(&cluster, "stays", "a", 1).await;
        pod(&cluster, "passes", "b", 1).await;
        bind(&cluster, "stays", "gpu-0").await;
        let pods: Api<Pod> = Api::namespaced(cluster.admin(), "default");
        let at_once = DeleteParams::default().grace_period(0);
        pods.delete("passes", &at_once).await.unwrap();
    });
    let history = deaf.block_on(recorder.caught_up(WAIT)).unwrap();
    assert_eq!(history.gaps, []);
    let told = |event: &muster_control_plane::history::Event| match &event.change {
        Change::Pod(pod) if pod.phase == "Pending" => {
            Some(format!("{} on {:?}", pod.name, pod.node))
        }
        Change::PodGone(pod) => Some(format!("{} gone", pod.name)),
        _ => None,
    };
    let mut told: Vec<String> = history.events().iter().filter_map(told).collect();
    told.dedup();
    let expected = [
        "stays on None",
        "passes on None",
        "stays on Some(\"gpu-0\")",
        "passes on None", // marked as being deleted
        "passes gone",
    ];
    assert_eq!(told, expected);
}
