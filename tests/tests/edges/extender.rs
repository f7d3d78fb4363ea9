//! The extender's verbs, in process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use muster_core::event::Event;
use muster_core::ids::{Epoch, GangKey};
use muster_core::resources::Resources;
use muster_core::view::{GangView, View};
use muster_kubernetes::manifests::{KubeSchedulerConfigOptions, kube_scheduler_config};
use muster_kubernetes::translate::PodRules;
use muster_scheduler::binds::{BUSY, Binds, STOPPING};
use muster_scheduler::config;
use muster_scheduler::extender::Extender;
use muster_scheduler::inbox::{self, Outbox};
use muster_scheduler::logs;
use muster_scheduler::metrics::Metrics;
use serde_json::{Value, json};
use tower::ServiceExt;

/// An extender whose view holds one gang, with member `m` planned on node `n2`.
pub struct Bench {
    pub router: Router,
    pub outbox: Outbox,
    pub binds: Arc<Binds>,
    pub view: Arc<ArcSwap<View>>,
    pub metrics: Arc<Metrics>,
}

pub fn view() -> View {
    let gang = GangView {
        plan: Some("e1-1".into()),
        slots: BTreeMap::new(),
        nodes: BTreeMap::from([("m".into(), "n2".into())]),
        refusal: "muster: needs 4 nodes".into(),
    };
    let room = Resources {
        milli_cpu: 8000,
        memory_bytes: 1 << 33,
        pods: 10,
        ..Resources::default()
    };
    View {
        leading: true,
        synced: true,
        frozen: false,
        epoch: Epoch(1),
        gangs: [(GangKey::labelled("ns", "g"), Arc::new(gang))]
            .into_iter()
            .collect(),
        members: [("m".into(), GangKey::labelled("ns", "g"))]
            .into_iter()
            .collect(),
        free: [("n1".into(), Arc::new(room))].into_iter().collect(),
        protected: ["held".into()].into_iter().collect(),
    }
}

pub fn bench() -> Bench {
    let view = Arc::new(ArcSwap::from_pointee(view()));
    let (inbox, outbox) = inbox::inbox();
    let settings = config::Config::default().extender;
    let binds = Arc::new(Binds::new(settings.binds_held_max));
    let metrics = Arc::new(Metrics::default());
    let extender = Extender::new(
        Arc::clone(&view),
        Arc::new(ArcSwap::from_pointee(PodRules::default())),
        inbox,
        Arc::clone(&binds),
        Arc::clone(&metrics),
        &settings,
    );
    Bench {
        router: extender.router(settings.body_bytes_max),
        outbox,
        binds,
        view,
        metrics,
    }
}

fn member(uid: &str) -> Value {
    json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": uid,
            "labels": {"muster.dev/gang": "g"}, "annotations": {"muster.dev/gang-size": "2"}},
        "spec": {"schedulerName": "muster", "containers": [{"name": "c",
            "resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
    })
}

fn plain(uid: &str) -> Value {
    json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": uid},
        "spec": {"schedulerName": "muster", "containers": [{"name": "c"}]},
    })
}

async fn raw(router: &Router, path: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
    let request = Request::post(path).body(Body::from(body)).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), 64 << 20)
        .await
        .unwrap();
    (code, bytes.to_vec())
}

async fn ask(router: &Router, path: &str, body: Value) -> Value {
    let (code, bytes) = raw(router, path, body.to_string().into_bytes()).await;
    assert_eq!(code, 200, "{}", String::from_utf8_lossy(&bytes));
    serde_json::from_slice(&bytes).unwrap()
}

const FILTER: &str = "/v1/short/filter";
const BIND: &str = "/v1/bind/bind";

fn binding(uid: &str) -> Value {
    json!({"PodName": "p", "PodNamespace": "ns", "PodUID": uid, "Node": "n2"})
}

#[tokio::test]
async fn t01_any_case_in_pascal_case_out() {
    let bench = bench();
    for (pod, names) in [("Pod", "NodeNames"), ("pod", "nodeNames")] {
        let answer = ask(
            &bench.router,
            FILTER,
            json!({pod: member("m"), names: ["n1", "n2"]}),
        )
        .await;
        assert_eq!(answer["NodeNames"], json!(["n2"]));
        assert_eq!(answer["Nodes"], Value::Null);
        assert_eq!(answer["Error"], "");
        assert_eq!(answer["FailedAndUnresolvableNodes"], json!({}));
    }
}

#[tokio::test]
async fn t02_request_with_whole_nodes_is_answered_with_nodes() {
    let bench = bench();
    let nodes = json!({"items": [{"metadata": {"name": "n1"}}, {"metadata": {"name": "n2"}}]});
    let answer = ask(
        &bench.router,
        FILTER,
        json!({"Pod": member("m"), "Nodes": nodes}),
    )
    .await;
    assert_eq!(
        answer["Nodes"]["items"],
        json!([{"metadata": {"name": "n2"}}])
    );
    assert_eq!(answer["NodeNames"], Value::Null);
}

#[tokio::test]
async fn t03_what_is_understood_is_200_and_what_is_not_is_400() {
    let bench = bench();
    for path in [FILTER, BIND, "/v1/short/preempt"] {
        let (code, text) = raw(&bench.router, path, b"{\"Pod\": ".to_vec()).await;
        assert_eq!(code, 400);
        assert!(String::from_utf8(text).unwrap().contains("muster"));
    }
    bench.view.store(Arc::new(View::default()));
    let answer = ask(
        &bench.router,
        FILTER,
        json!({"Pod": member("m"), "NodeNames": ["n2"]}),
    )
    .await;
    assert!(
        answer["Error"].as_str().unwrap().contains("not the leader"),
        "{answer}"
    );
    let answer = ask(&bench.router, BIND, binding("m")).await;
    assert!(
        answer["Error"].as_str().unwrap().contains("not the leader"),
        "{answer}"
    );
}

#[tokio::test]
async fn t04_null_and_empty_bind_bodies_are_never_success() {
    let bench = bench();
    for body in ["null", "{}", "{\"PodName\":\"p\"}"] {
        let (code, bytes) = raw(&bench.router, BIND, body.as_bytes().to_vec()).await;
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(code, 200);
        assert!(!answer["Error"].as_str().unwrap().is_empty(), "{body}");
    }
    let answer = ask(&bench.router, FILTER, Value::Null).await;
    assert!(!answer["Error"].as_str().unwrap().is_empty());
    assert!(bench.binds.is_empty());
}

#[tokio::test(start_paused = true)]
async fn t05_planned_node_that_is_not_offered_is_never_answered_and_told_once_in_a_while() {
    let mut bench = bench();
    let told = Event::PlannedNodeNotOffered {
        pod: "m".into(),
        node: "n2".into(),
    };
    for _ in 0..3 {
        let answer = ask(
            &bench.router,
            FILTER,
            json!({"Pod": member("m"), "NodeNames": ["n1"]}),
        )
        .await;
        assert_eq!(answer["NodeNames"], json!([]));
        assert!(answer["FailedAndUnresolvableNodes"]["n1"].is_string());
    }
    assert_eq!(bench.outbox.take(), Some(told.clone()));
    assert_eq!(bench.outbox.take(), None);
    // The engine may have had another plan then, and come back to this one.
    tokio::time::advance(Duration::from_secs(3)).await;
    let body = json!({"Pod": member("m"), "NodeNames": ["n1"]});
    ask(&bench.router, FILTER, body).await;
    assert_eq!(bench.outbox.take(), Some(told));
}

#[tokio::test]
async fn t06_five_thousand_names_are_answered_quickly() {
    let bench = bench();
    let names: Vec<String> = (0..5000).map(|n| format!("gpu-node-{n:05}")).collect();
    let body = json!({"Pod": member("unplanned"), "NodeNames": names})
        .to_string()
        .into_bytes();
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let started = std::time::Instant::now();
        let (code, bytes) = raw(&bench.router, FILTER, body.clone()).await;
        best = best.min(started.elapsed());
        assert_eq!(code, 200);
        assert!(bytes.len() > 5000 * 20);
    }
    // Unoptimised, on a machine that may be busy: this notices another order of growth, no more.
    assert!(best < Duration::from_millis(30), "{best:?}");
    println!("5,000 names in {best:?}");
}

/// kube-scheduler takes scores as they come, above 10 or below 0. None is ever sent: it is told of
/// no verb to ask for one, and there is none.
#[tokio::test]
async fn t07_no_score_is_ever_sent() {
    let bench = bench();
    let config = kube_scheduler_config(&KubeSchedulerConfigOptions::default());
    assert!(config.contains("filterVerb"), "{config}");
    for word in ["prioritizeVerb", "weight"] {
        assert!(!config.contains(word), "{word}");
    }
    let body = json!({"Pod": member("m"), "NodeNames": ["n1", "n2"]}).to_string();
    for path in ["/v1/short/prioritize", "/v1/bind/prioritize"] {
        let (code, _) = raw(&bench.router, path, body.clone().into_bytes()).await;
        assert_eq!(code, 404, "{path}");
    }
}

#[tokio::test]
async fn t08_preempt_answers_by_uid_and_vetoes_for_gangs() {
    let bench = bench();
    let meta = json!({
        "a": {"Pods": [{"UID": "x"}], "NumPDBViolations": 1},
        "b": {"Pods": [{"UID": "x"}, {"UID": "held"}]},
        "c": {"Pods": []},
    });
    let path = "/v1/short/preempt";
    let ask_for = |pod: Value| json!({"Pod": pod, "NodeNameToMetaVictims": meta});
    let answer = ask(&bench.router, path, ask_for(plain("q"))).await;
    let victims = answer["NodeNameToMetaVictims"].as_object().unwrap();
    assert_eq!(victims.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(victims["a"]["Pods"], json!([{"UID": "x"}]));
    let veto = json!({"NodeNameToMetaVictims": {}});
    assert_eq!(ask(&bench.router, path, ask_for(member("m"))).await, veto);
    assert_eq!(ask(&bench.router, path, json!({})).await, veto);
    let full = json!({"Pod": plain("q"), "NodeNameToVictims": {"a": {"Pods": [plain("x")]}}});
    let answer = ask(&bench.router, path, full).await;
    assert_eq!(
        answer["NodeNameToMetaVictims"]["a"]["Pods"],
        json!([{"UID": "x"}])
    );
}

/// Its victims would be gone, and nothing bound in their place.
#[tokio::test]
async fn nobody_is_preempted_while_all_is_frozen_and_a_pod_of_no_gang_is_told_to_come_again() {
    let bench = bench();
    let meta = json!({"a": {"Pods": [{"UID": "x"}]}});
    let asked = json!({"Pod": plain("q"), "NodeNameToMetaVictims": meta});
    let filter = json!({"Pod": plain("q"), "NodeNames": ["n1"]});
    let path = "/v1/short/preempt";
    let answer = ask(&bench.router, path, asked.clone()).await;
    assert_eq!(
        answer["NodeNameToMetaVictims"]["a"]["Pods"],
        meta["a"]["Pods"]
    );
    let offered = ask(&bench.router, "/v1/short/filter", filter.clone()).await;
    assert_eq!(offered["Error"], "");
    bench.view.store(Arc::new(View {
        frozen: true,
        ..view()
    }));
    let veto = json!({"NodeNameToMetaVictims": {}});
    assert_eq!(ask(&bench.router, path, asked).await, veto);
    let refused = ask(&bench.router, "/v1/short/filter", filter).await;
    assert_eq!(refused["Error"], "muster: frozen, nothing is bound for now");
}

#[tokio::test]
async fn t10_body_over_the_limit_is_413() {
    let bench = bench();
    let big = vec![b' '; config::Config::default().extender.body_bytes_max + 1];
    assert_eq!(raw(&bench.router, FILTER, big).await.0, 413);
    let large = json!({"Pod": member("m"), "NodeNames": ["n2"], "Filler": "x".repeat(3 << 20)});
    assert_eq!(
        ask(&bench.router, FILTER, large).await["NodeNames"],
        json!(["n2"])
    );
}

#[tokio::test(start_paused = true)]
async fn t10_body_that_comes_byte_by_byte_is_not_waited_for() {
    let bench = bench();
    for path in [FILTER, BIND, "/v1/short/preempt"] {
        let bytes = futures::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((
                Ok::<_, std::io::Error>(axum::body::Bytes::from_static(b" ")),
                (),
            ))
        });
        let started = tokio::time::Instant::now();
        let request = Request::post(path).body(Body::from_stream(bytes)).unwrap();
        let response = bench.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 408, "{path}");
        assert!(started.elapsed() <= Duration::from_secs(11), "{path}");
    }
    assert!(bench.binds.is_empty());
}

#[tokio::test]
async fn t12_text_1_same_state_same_bytes() {
    let bench = bench();
    let body = json!({"Pod": member("unplanned"), "NodeNames": ["n1", "n2", "n3"]}).to_string();
    let first = raw(&bench.router, FILTER, body.clone().into_bytes()).await;
    for _ in 0..10 {
        assert_eq!(
            raw(&bench.router, FILTER, body.clone().into_bytes()).await,
            first
        );
    }
    assert!(
        String::from_utf8(first.1)
            .unwrap()
            .contains("muster: needs 4 nodes")
    );
}

/// A pod with a nominated node is filtered twice in one attempt: on that node alone, and where that
/// is refused on all of them.
#[tokio::test]
async fn t15_nominated_node_alone_is_refused_and_the_planned_one_named_right_after() {
    let mut bench = bench();
    for _ in 0..3 {
        let alone = json!({"Pod": member("m"), "NodeNames": ["n9"]});
        let answer = ask(&bench.router, FILTER, alone).await;
        assert_eq!(answer["NodeNames"], json!([]));
        assert_eq!(answer["Error"], "", "an error would end the attempt");
        let all = json!({"Pod": member("m"), "NodeNames": ["n1", "n2", "n9"]});
        assert_eq!(
            ask(&bench.router, FILTER, all).await["NodeNames"],
            json!(["n2"])
        );
    }
    let planned = json!({"Pod": member("m"), "NodeNames": ["n2"]});
    assert_eq!(
        ask(&bench.router, FILTER, planned).await["NodeNames"],
        json!(["n2"])
    );
    // The engine hears of the node that was missing once for each attempt: it was offered in between,
    // and the engine forgets it when the Bind comes.
    let told = Event::PlannedNodeNotOffered {
        pod: "m".into(),
        node: "n2".into(),
    };
    let heard: Vec<Event> = std::iter::from_fn(|| bench.outbox.take()).collect();
    assert_eq!(heard, [told.clone(), told.clone(), told]);
    assert_eq!(bench.outbox.collect(), []);
}

/// In preemption kube-scheduler asks Filter once for each node that it tries, with nothing of that
/// to be seen here.
#[tokio::test]
async fn t16_filter_asked_a_thousand_times_changes_nothing() {
    let mut bench = bench();
    let before = bench.view.load_full();
    for pod in [member("m"), member("unplanned"), plain("q")] {
        let body = json!({"Pod": pod, "NodeNames": ["n1", "n2"]}).to_string();
        let first = raw(&bench.router, FILTER, body.clone().into_bytes()).await;
        for _ in 0..1000 {
            let again = raw(&bench.router, FILTER, body.clone().into_bytes()).await;
            assert_eq!(again, first);
        }
    }
    assert_eq!(bench.outbox.take(), None, "the engine is told nothing");
    assert_eq!(bench.outbox.collect(), [], "and left nothing");
    assert!(bench.binds.is_empty(), "nothing is held");
    assert!(Arc::ptr_eq(&before, &bench.view.load_full()));
}

#[tokio::test]
async fn pod_of_no_gang_gets_the_nodes_with_room_beside_reservations() {
    let bench = bench();
    let answer = ask(
        &bench.router,
        FILTER,
        json!({"Pod": plain("q"), "NodeNames": ["n1", "n2"]}),
    )
    .await;
    assert_eq!(answer["NodeNames"], json!(["n1"]));
}

#[tokio::test(start_paused = true)]
async fn t11_watchdog_answers_a_bind_before_the_caller_gives_up() {
    let mut bench = bench();
    let started = tokio::time::Instant::now();
    let answer = ask(&bench.router, BIND, binding("m")).await;
    assert!(
        answer["Error"]
            .as_str()
            .unwrap()
            .contains("not decided in time")
    );
    assert!(started.elapsed() < config::Config::default().extender.bind_timeout.0);
    let Some(Event::BindAsked(asked)) = bench.outbox.take() else {
        panic!("the engine was asked");
    };
    assert_eq!(bench.outbox.collect(), [Event::BindDropped(asked.ticket)]);
}

#[tokio::test]
async fn binds_that_are_held_are_counted_while_they_are_held() {
    let mut bench = bench();
    let held = |bench: &Bench, count: u32| {
        let text = bench.metrics.text();
        let line = format!("muster_binds_held {count}\n");
        assert!(text.contains(&line), "{line}: {text}");
    };
    held(&bench, 0);
    let router = bench.router.clone();
    let call = tokio::spawn(async move { ask(&router, BIND, binding("m")).await });
    let Some(Event::BindAsked(_)) = bench.outbox.wait().await else {
        panic!("the engine was asked");
    };
    held(&bench, 1);
    call.abort();
    assert!(call.await.is_err());
    held(&bench, 0);
}

#[tokio::test]
async fn t20_ok_only_after_the_engine_says_so_and_a_caller_that_leaves_is_told() {
    let mut bench = bench();
    let router = bench.router.clone();
    let call = tokio::spawn(async move { ask(&router, BIND, binding("m")).await });
    let Some(Event::BindAsked(asked)) = bench.outbox.wait().await else {
        panic!("the engine was asked");
    };
    assert_eq!((asked.pod.as_str(), asked.node.as_str()), ("m", "n2"));
    assert!(bench.binds.answer(asked.ticket, Ok(())));
    assert_eq!(call.await.unwrap(), json!({"Error": ""}));

    let router = bench.router.clone();
    let call = tokio::spawn(async move { ask(&router, BIND, binding("m")).await });
    let Some(Event::BindAsked(asked)) = bench.outbox.wait().await else {
        panic!("the engine was asked");
    };
    call.abort();
    assert!(call.await.is_err());
    assert_eq!(bench.outbox.collect(), [Event::BindDropped(asked.ticket)]);
    assert!(!bench.binds.is_held(asked.ticket));
}

/// What is logged, in memory.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn lines_about_a_members_bind_and_node_name_its_gang_and_plan() {
    let paper = Paper::default();
    let writer = paper.clone();
    let filter = tracing_subscriber::EnvFilter::new("info");
    let _logging = crate::standin::listen(logs::lines(filter, move || writer.clone()));
    let mut bench = bench();
    let elsewhere = json!({"Pod": member("m"), "NodeNames": ["n1"]});
    ask(&bench.router, FILTER, elsewhere).await;
    assert!(matches!(
        bench.outbox.wait().await,
        Some(Event::PlannedNodeNotOffered { .. })
    ));
    let engine = async {
        let Some(Event::BindAsked(asked)) = bench.outbox.wait().await else {
            panic!("a Bind is asked");
        };
        // The plan ends with the refusal.
        bench.view.store(Arc::new(View::default()));
        bench.binds.answer(asked.ticket, Err("no".into()));
    };
    tokio::join!(ask(&bench.router, BIND, binding("m")), engine);
    let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for message in [
        "kube-scheduler does not offer the planned node",
        "not bound",
    ] {
        let of = |line: &&Value| line["message"] == message;
        let line = lines.iter().find(of).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(line["gang"], GangKey::labelled("ns", "g").to_string());
        assert_eq!(line["plan"], "e1-1", "{line}");
    }
}

#[tokio::test]
async fn full_queue_and_a_stopping_process_answer_binds_at_once() {
    let bench = bench();
    let view = Arc::new(ArcSwap::from_pointee(view()));
    let (inbox, _outbox) = inbox::inbox();
    while inbox.try_send(Event::Tick) {}
    let settings = config::Config::default().extender;
    let binds = Arc::new(Binds::new(8));
    let rules = Arc::new(ArcSwap::from_pointee(PodRules::default()));
    let full = Extender::new(
        view,
        rules,
        inbox,
        Arc::clone(&binds),
        Arc::default(),
        &settings,
    )
    .router(settings.body_bytes_max);
    assert_eq!(ask(&full, BIND, binding("m")).await["Error"], BUSY);
    assert!(binds.is_empty());
    bench.binds.close(STOPPING);
    assert_eq!(
        ask(&bench.router, BIND, binding("m")).await["Error"],
        STOPPING
    );
}
