//! The whole scheduler in process, on a paused clock, against a stand-in that lists and watches.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use muster_scheduler::clock::Wall;
use muster_scheduler::config::Config;
use muster_scheduler::scheduler::{Clients, Ended, Options, Scheduler};
use muster_scheduler::server::Peer;
use serde_json::{Value, json};
use tower::ServiceExt;
use tracing_subscriber::EnvFilter;

use crate::standin::{Call, Reply, Standin, ok, status};

fn list(items: Value) -> Reply {
    ok(
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "5"}, "items": items}),
    )
}

fn cluster(mut special: impl FnMut(&Call) -> Option<Reply> + Send + 'static) -> Standin {
    let lease = Arc::new(Mutex::new(None::<Value>));
    Standin::new(move |call| {
        if let Some(reply) = special(call) {
            return reply;
        }
        if call.path.contains("/leases") {
            let mut lease = lease.lock().unwrap();
            return match (call.method.as_str(), lease.as_ref()) {
                ("GET", None) => status(404, "NotFound"),
                ("GET", Some(lease)) => ok(lease.clone()),
                _ => {
                    *lease = Some(call.body.clone());
                    ok(call.body.clone())
                }
            };
        }
        if call.path.contains("/pytorchjobs") || call.path.contains("/podgroups") {
            return status(404, "NotFound");
        }
        match (call.method.as_str(), call.is_watch()) {
            ("GET", true) => Reply::Lines(Vec::new()),
            ("GET", false) => list(json!([])),
            _ => ok(json!({})),
        }
    })
}

fn start(standin: &Standin) -> Scheduler {
    let options = Options {
        identity: "test".into(),
        seed: 1,
        wall: Wall::following(jiff::Timestamp::UNIX_EPOCH),
        agents_believed: true,
    };
    Scheduler::start(
        &Clients::from(standin.client()),
        &Config::default(),
        &options,
    )
}

async fn until(mut what: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("did not come true in time");
}

async fn page(scheduler: &Scheduler, path: &str) -> (u16, String) {
    answer(scheduler, Request::get(path).body(Body::empty()).unwrap()).await
}

async fn answer(scheduler: &Scheduler, request: Request<Body>) -> (u16, String) {
    let response = scheduler.pages().oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
        .await
        .unwrap();
    (code, String::from_utf8(bytes.to_vec()).unwrap())
}

fn node(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "status": {
            "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// It was a ground for the next leader's epoch, which then was too large for anybody to notice.
#[tokio::test(start_paused = true)]
async fn epoch_that_a_user_wrote_on_a_pod_is_not_the_next_leaders() {
    let forged = json!({
        "metadata": {"name": "p", "namespace": "team", "uid": "u", "resourceVersion": "1",
            "annotations": {"muster.dev/epoch": ((1_u64 << 40) - 2).to_string()}},
        "spec": {"schedulerName": "muster", "containers": []},
    });
    let standin = cluster(move |call| {
        let listed = call.path == "/api/v1/pods" && !call.is_watch();
        listed.then(|| list(json!([forged.clone()])))
    });
    let mut scheduler = start(&standin);
    until(|| scheduler.view().leading).await;
    assert_eq!(scheduler.view().epoch, muster_core::ids::Epoch(1));
    scheduler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn f41_node_that_vanished_while_the_watch_was_cut_is_gone_from_the_view() {
    let lists = Arc::new(Mutex::new(0));
    let standin = cluster(move |call| {
        if call.path != "/api/v1/nodes" {
            return None;
        }
        if call.is_watch() {
            let expired = json!({"type": "ERROR", "object": {
                "kind": "Status", "apiVersion": "v1", "status": "Failure",
                "code": 410, "reason": "Expired", "message": "too old"}});
            let first = *lists.lock().unwrap() == 1;
            return Some(Reply::Lines(if first { vec![expired] } else { Vec::new() }));
        }
        let mut lists = lists.lock().unwrap();
        *lists += 1;
        Some(match *lists {
            1 => list(json!([node("a"), node("b")])),
            _ => list(json!([node("b"), {"metadata": {}}])),
        })
    });
    let mut scheduler = start(&standin);
    until(|| scheduler.view().leading && scheduler.view().synced).await;
    until(|| scheduler.view().free.size() == 1).await;
    assert!(scheduler.view().free.contains_key("b"));
    assert_eq!(page(&scheduler, "/readyz").await, (200, "ready\n".into()));
    scheduler.stop().await;
    assert!(!scheduler.leads());
}

#[tokio::test(start_paused = true)]
async fn f42_nothing_leads_before_every_kind_is_listed() {
    let kinds = [
        ("/gangs", "Gang", 404),
        ("/nodes", "Node", 500),
        ("/pods", "Pod", 500),
        ("/pytorchjobs", "PyTorchJob", 500),
        ("/priorityclasses", "PriorityClass", 500),
    ];
    for (path, kind, code) in kinds {
        let served = Arc::new(Mutex::new(false));
        let open = Arc::clone(&served);
        let standin = cluster(move |call| {
            (call.path.ends_with(path) && !*open.lock().unwrap()).then(|| status(code, "Away"))
        });
        let mut scheduler = start(&standin);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(!scheduler.leads(), "{kind}");
        let (code, text) = page(&scheduler, "/readyz").await;
        assert_eq!(code, 503, "{kind}");
        assert!(text.contains(kind), "{text}");
        *served.lock().unwrap() = true;
        until(|| scheduler.leads()).await;
        scheduler.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn f44_login_that_stays_refused_ends_the_process() {
    let standin =
        cluster(|call| (call.path == "/api/v1/pods").then(|| status(401, "Unauthorized")));
    let mut scheduler = start(&standin);
    let ended = scheduler.ended().await;
    assert!(matches!(ended, Ended::Watch(_)), "{ended}");
    assert!(ended.to_string().contains("401"), "{ended}");
}

#[tokio::test(start_paused = true)]
async fn what_the_planner_sees_is_given_on_loopback_only() {
    let standin = cluster(|call| {
        let is_list = call.path == "/api/v1/nodes" && !call.is_watch();
        is_list.then(|| list(json!([node("a"), node("b")])))
    });
    let scheduler = start(&standin);
    until(|| scheduler.leads()).await;
    until(|| scheduler.view().free.size() == 2).await;
    let ask = async |peer: Option<&str>, header: Option<(&str, &str)>| {
        let mut request = Request::get("/debug/dump");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        if let Some(peer) = peer {
            request = request.extension(Peer(peer.parse().unwrap()));
        }
        answer(&scheduler, request.body(Body::empty()).unwrap()).await
    };
    let near = Some("127.0.0.1:40000");
    let (code, text) = ask(near, Some(("host", "127.0.0.1:8080"))).await;
    assert_eq!(code, 200, "{text}");
    let state = muster_dump::read(&text).unwrap();
    let names: Vec<&str> = state.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!((names, state.leads), (vec!["a", "b"], true));
    assert_eq!(muster_dump::write(&state).unwrap(), text);
    for (peer, header) in [
        ("[::1]:40000", Some(("host", "[::1]:8080"))),
        ("[::ffff:127.0.0.1]:40000", Some(("host", "localhost:8080"))),
        ("127.0.0.1:40000", None),
    ] {
        assert_eq!(ask(Some(peer), header).await.0, 200, "{peer} {header:?}");
    }
    for (peer, header, why) in [
        (None, None, "the caller's address is not known"),
        (Some("10.0.0.7:40000"), None, "the caller is 10.0.0.7"),
        // What a page in a browser on this machine could do, and a proxy in this Pod.
        (
            near,
            Some(("host", "evil.example")),
            "it was sent to evil.example",
        ),
        (
            near,
            Some(("x-forwarded-proto", "https")),
            "a header x-forwarded-proto",
        ),
    ] {
        let (code, said) = ask(peer, header).await;
        assert_eq!(code, 403, "{said}");
        assert!(
            said.contains(why) && said.starts_with("a dump is given on loopback only"),
            "{said}"
        );
    }
}

/// It named the gang alone.
#[tokio::test(start_paused = true)]
async fn a_gang_that_is_not_understood_is_logged_with_its_plan() {
    let lines = Lines::default();
    let writer = lines.clone();
    let filter = EnvFilter::new("muster_scheduler=info");
    let logged = muster_scheduler::logs::lines(filter, move || writer.clone());
    let _guard = crate::standin::listen(logged);
    let standin = cluster(|call| {
        let odd = json!([{
            "metadata": {"name": "odd", "namespace": "team", "uid": "u", "resourceVersion": "1"},
            "spec": {"workload": {"kind": "Other", "name": "w", "uid": "wu"}},
            "status": {"recordVersion": 1, "planId": "e3-14"},
        }]);
        let is_list = call.path.ends_with("/gangs") && !call.is_watch();
        is_list.then(|| list(odd))
    });
    let mut scheduler = start(&standin);
    until(|| scheduler.leads()).await;
    scheduler.stop().await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let said: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["message"] == "a Gang object is not understood")
        .collect();
    assert!(!said.is_empty(), "{text}");
    for line in said {
        assert_eq!(
            (&line["gang"], &line["plan"]),
            (&json!("team/odd"), &json!("e3-14"))
        );
    }
}

/// What is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
