//! The fault seam, the event log's determinism, and size.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, PostParams, WatchParams};
use kube::core::WatchEvent;
use kube::runtime::watcher;
use muster_embedded::api::faults::{After, Before, Faults, OnEvent, RequestInfo};
use muster_embedded::api::store::Change;
use muster_embedded::api::{ApiError, ApiServer, Limits};
use muster_embedded::clock::Clock;
use muster_embedded::cluster::run_paused;
use muster_embedded::standins::scheduler::SchedulerConfig;
use muster_embedded::{EmbeddedCluster, NodePool, value};
use serde_json::json;

fn pod(name: &str) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "x"}]}}),
    )
    .unwrap()
}

fn setup(faults: impl Faults + 'static) -> (ApiServer, Api<Pod>) {
    let server = ApiServer::new(Clock::fixed(), 1, Limits::default());
    server.set_faults(Arc::new(faults));
    let api = Api::namespaced(server.client("test"), "default");
    (server, api)
}

/// Does to each create what its name says.
struct ByName;

impl Faults for ByName {
    fn before(&self, request: &RequestInfo) -> Before {
        if request.verb != "get" || request.resource != "pods" {
            return Before::Proceed;
        }
        match request.name.as_str() {
            "busy" => Before::Refuse(ApiError::too_many_requests(
                "too many requests, please try again later",
                3,
            )),
            "slow" => Before::Delay(Duration::from_secs(7)),
            "gone" => Before::Disconnect,
            _ => Before::Proceed,
        }
    }

    fn after(&self, request: &RequestInfo, code: u16) -> After {
        match (request.verb.as_str(), code) {
            ("create", 201) => After::Lose,
            ("delete", 200) => {
                After::Replace(ApiError::new(504, "Timeout", "request did not complete"))
            }
            _ => After::Deliver,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_are_refused_delayed_cut_lost_and_lied_about() {
    let (_server, api) = setup(ByName);
    let lost = api
        .create(&PostParams::default(), &pod("a"))
        .await
        .unwrap_err();
    assert!(
        !matches!(lost, kube::Error::Api(_)),
        "the answer is lost: {lost}"
    );
    assert!(api.get("a").await.is_ok(), "and the write was applied");
    let refused = api.get("busy").await.unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(s) if s.code == 429 && s.details.as_ref().is_some_and(|d| d.retry_after_seconds == 3)),
        "{refused}"
    );
    let start = tokio::time::Instant::now();
    assert!(api.get("slow").await.is_err());
    assert_eq!(start.elapsed().as_secs(), 7);
    assert!(!matches!(
        api.get("gone").await.unwrap_err(),
        kube::Error::Api(_)
    ));
    let lied = api.delete("a", &Default::default()).await.unwrap_err();
    assert!(
        matches!(&lied, kube::Error::Api(s) if s.code == 504),
        "{lied}"
    );
    assert!(api.get("a").await.is_err(), "it is deleted all the same");
}

/// Requests that take effect after their callers have gone.
struct Afterwards;

impl Faults for Afterwards {
    fn before(&self, request: &RequestInfo) -> Before {
        match (request.verb.as_str(), request.name.as_str()) {
            ("create", _) => Before::Slow(Duration::from_secs(6)),
            ("delete", _) => Before::Late(Duration::from_secs(6)),
            _ => Before::Proceed,
        }
    }

    fn page_max(&self, _: &RequestInfo) -> Option<usize> {
        Some(1)
    }
}

#[tokio::test(start_paused = true)]
async fn requests_take_effect_after_their_caller_has_gone_and_pages_are_small() {
    let (_server, api) = setup(Afterwards);
    let second = Duration::from_secs(1);
    let a = pod("a");
    let created = tokio::time::timeout(second, api.create(&PostParams::default(), &a)).await;
    assert!(created.is_err(), "the caller has given up");
    assert!(api.get("a").await.is_err(), "nothing is done yet");
    tokio::time::sleep(second * 6).await;
    assert!(api.get("a").await.is_ok(), "it is done all the same");
    assert!(api.create(&PostParams::default(), &pod("b")).await.is_ok());
    let page = api.list(&ListParams::default().limit(50)).await.unwrap();
    assert_eq!(page.items.len(), 1, "a page of one");
    let all = api.list(&ListParams::default()).await.unwrap();
    assert_eq!(all.items.len(), 2, "no pages were asked for");
    let broken = api.delete("a", &Default::default()).await.unwrap_err();
    assert!(!matches!(broken, kube::Error::Api(_)), "{broken}");
    assert!(api.get("a").await.is_ok(), "not yet");
    tokio::time::sleep(second * 7).await;
    assert!(
        api.get("a").await.is_err(),
        "gone after the caller was told that it broke"
    );
}

/// Lags, doubles and cuts by the name of the pod.
struct Watching;

impl Faults for Watching {
    fn watch_event(&self, _: &RequestInfo, change: &Change) -> OnEvent {
        match value::name(&change.object.value) {
            "late" => OnEvent::Lag(Duration::from_secs(4)),
            "twice" => OnEvent::Duplicate,
            "cut" => OnEvent::Cut,
            _ => OnEvent::Deliver,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn watch_events_lag_double_and_end() {
    let (_server, api) = setup(Watching);
    let start = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let mut stream = api
        .watch(&WatchParams::default(), &start)
        .await
        .unwrap()
        .boxed();
    for name in ["late", "twice", "cut"] {
        api.create(&PostParams::default(), &pod(name))
            .await
            .unwrap();
    }
    let before = tokio::time::Instant::now();
    let mut seen = Vec::new();
    while let Some(event) = stream.try_next().await.unwrap() {
        if let WatchEvent::Added(p) = event {
            seen.push((p.metadata.name.unwrap(), before.elapsed().as_secs()));
        }
    }
    assert_eq!(
        seen,
        [("late".into(), 4), ("twice".into(), 4), ("twice".into(), 4)]
    );
}

/// Cuts the first watch at its first event.
#[derive(Default)]
struct CutOnce(Mutex<bool>);

impl Faults for CutOnce {
    fn watch_event(&self, _: &RequestInfo, _: &Change) -> OnEvent {
        let mut cut = self.0.lock().unwrap();
        if *cut {
            OnEvent::Deliver
        } else {
            *cut = true;
            OnEvent::Cut
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_watcher_comes_back_after_a_cut_and_misses_nothing() {
    let (server, api) = setup(CutOnce::default());
    let mut events = watcher::watcher(api.clone(), watcher::Config::default()).boxed();
    let mut names = Vec::new();
    let writer = tokio::spawn({
        let api = api.clone();
        async move {
            for name in ["a", "b", "c"] {
                tokio::time::sleep(Duration::from_secs(1)).await;
                api.create(&PostParams::default(), &pod(name))
                    .await
                    .unwrap();
            }
        }
    });
    while names.len() < 3 {
        if let Ok(Some(watcher::Event::Apply(p) | watcher::Event::InitApply(p))) =
            events.try_next().await
        {
            names.push(p.metadata.name.unwrap());
        }
    }
    assert_eq!(names, ["a", "b", "c"]);
    writer.await.unwrap();
    server.shutdown();
}

/// A few jobs that compete, with a suspension and a node failure on the way. Returns writes, digest and the log.
fn scenario(seed: u64) -> (u64, u64, Vec<String>) {
    run_paused(async {
        let cluster = EmbeddedCluster::builder().seed(seed).nodes(NodePool::new("gpu", 3, 8)).admission_policies().start().unwrap();
        cluster.start_scheduler(SchedulerConfig::new("default-scheduler", Vec::new())).unwrap();
        let api: Api<Pod> = Api::namespaced(cluster.client("test"), "default");
        let mut events = watcher::watcher(api, watcher::Config::default()).boxed();
        for at in 0..4 {
            let template = json!({"metadata": {"annotations": {"muster.dev/run-seconds": (20 + at).to_string()}},
                "spec": {"containers": [{"name": "pytorch", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "2"}}}]}});
            cluster.create(json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"generateName": "job-"},
                "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": template}, "Worker": {"replicas": 4, "template": template}}}})).unwrap();
        }
        let mut seen = 0;
        while seen < 20 {
            if let Ok(Some(watcher::Event::Apply(_) | watcher::Event::InitApply(_))) = events.try_next().await {
                seen += 1;
            }
        }
        cluster.set_node_ready("gpu-001", false).unwrap();
        tokio::time::sleep(Duration::from_secs(40)).await;
        cluster.set_node_ready("gpu-001", true).unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (writes, digest) = cluster.api().digest();
        let lines = cluster.api().writes_since(0).iter().map(muster_embedded::api::history::Write::line).collect();
        cluster.stop().await;
        (writes, digest, lines)
    })
    .unwrap()
}

const CHILD: &str = "MUSTER_EMBEDDED_DIGEST_CHILD";

#[test]
fn equal_seeds_give_equal_logs_in_three_processes() {
    let (writes, digest, lines) = scenario(42);
    let text = format!("digest {writes} {digest:016x}");
    if std::env::var_os(CHILD).is_some() {
        println!("\n{text}");
        return;
    }
    assert!(writes > 150, "{writes}");
    for _ in 0..2 {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "faults::equal_seeds_give_equal_logs_in_three_processes",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            out.lines().any(|l| l == text),
            "{text} is not in:\n{out}\nfirst lines here:\n{}",
            lines[..20.min(lines.len())].join("\n")
        );
    }
    assert_ne!(scenario(43).1, digest, "another seed takes another course");
}

#[test]
fn five_thousand_nodes_and_pods_are_workable() {
    let started = std::time::Instant::now();
    run_paused(async {
        let cluster = EmbeddedCluster::builder().operator(None).nodes(NodePool::new("gpu", 5000, 8)).start().unwrap();
        let api: Api<Pod> = Api::all(cluster.client("test"));
        let mut events = watcher::watcher(api, watcher::Config::default()).boxed();
        for at in 0..5000 {
            cluster.create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{at}")},
                "spec": {"nodeName": format!("gpu-{at:03}"), "containers": [{"name": "c", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}})).unwrap();
        }
        let mut running = 0;
        while running < 5000 {
            if let Ok(Some(watcher::Event::Apply(p) | watcher::Event::InitApply(p))) = events.try_next().await {
                running += u32::from(p.status.is_some_and(|s| s.phase.as_deref() == Some("Running")));
            }
        }
        cluster.stop().await;
    })
    .unwrap();
    let seconds = started.elapsed().as_secs_f64();
    println!("5,000 nodes, 5,000 pods created, run and watched in {seconds:.1} s");
    assert!(seconds < 120.0, "{seconds}");
}
