//! The stand-ins together, on the paused clock.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::{Json, Router, routing::post};
use muster_embedded::cluster::run_paused;
use muster_embedded::standins::extender::{Extender, ExtenderConfig, in_process};
use muster_embedded::standins::scheduler::SchedulerConfig;
use muster_embedded::{EmbeddedCluster, NodePool, value};
use serde_json::{Value, json};

const PODS: (&str, &str) = ("", "pods");
const JOBS: (&str, &str) = ("kubeflow.org", "pytorchjobs");
const MINUTE: Duration = Duration::from_secs(60);

fn job(name: &str, workers: u32, extra: Value) -> Value {
    let template = json!({"metadata": {"annotations": {"muster.dev/run-seconds": "30"}}, "spec": {"containers": [{"name": "pytorch", "image": "x",
        "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}});
    let mut job = json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name},
        "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": template}, "Worker": {"replicas": workers, "template": template}}}});
    muster_embedded::api::patch::merge(&mut job, &extra);
    job
}

fn pod(name: &str, gpus: u32, extra: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "x",
        "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}}}]}});
    muster_embedded::api::patch::merge(&mut pod, &extra);
    pod
}

fn phase(cluster: &EmbeddedCluster, name: &str) -> String {
    cluster
        .get(PODS, "default", name)
        .map(|p| value::text(&p, &["status", "phase"]).to_owned())
        .unwrap_or_default()
}

fn has_condition(object: &Value, kind: &str) -> bool {
    value::condition(object, kind).is_some_and(|c| value::text(c, &["status"]) == "True")
}

fn job_is(cluster: &EmbeddedCluster, name: &str, kind: &str) -> bool {
    cluster
        .get(JOBS, "default", name)
        .is_some_and(|j| has_condition(&j, kind))
}

fn plain(extenders: Vec<Extender>) -> SchedulerConfig {
    SchedulerConfig::new("default-scheduler", extenders)
}

/// An extender that answers from a closure and keeps the calls as (verb, body).
type Calls = Arc<Mutex<Vec<(String, Value)>>>;

fn extender(
    verbs: &[&str],
    answer: impl Fn(&str, &Value) -> Value + Clone + Send + Sync + 'static,
) -> (Vec<Extender>, Calls) {
    let calls: Calls = Arc::default();
    let mut router = Router::new();
    for verb in ["filter", "prioritize", "preempt", "bind"] {
        let (calls, answer) = (calls.clone(), answer.clone());
        router = router.route(
            &format!("/x/{verb}"),
            post(move |Json(body): Json<Value>| {
                calls.lock().unwrap().push((verb.to_owned(), body.clone()));
                let answer = answer(verb, &body);
                async move { Json(answer) }
            }),
        );
    }
    let mut config = ExtenderConfig::new("http://muster/x/");
    for verb in verbs {
        match *verb {
            "filter" => config.filter_verb = "filter".into(),
            "preempt" => config.preempt_verb = "preempt".into(),
            "prioritize" => config.prioritize_verb = "prioritize".into(),
            _ => config.bind_verb = "bind".into(),
        }
    }
    (vec![Extender::new(config, in_process(router))], calls)
}

fn count(calls: &Calls, verb: &str) -> usize {
    calls
        .lock()
        .unwrap()
        .iter()
        .filter(|(v, _)| v == verb)
        .count()
}

#[test]
fn a_pytorchjob_runs_from_yaml_to_succeeded() {
    run_paused(async {
        let cluster = EmbeddedCluster::builder()
            .seed(3)
            .nodes(NodePool::new("gpu", 2, 8))
            .start()
            .unwrap();
        cluster.start_scheduler(plain(Vec::new())).unwrap();
        cluster.create(job("j", 4, json!({}))).unwrap();
        cluster
            .wait_for("the job runs", MINUTE, |c| job_is(c, "j", "Running"))
            .await
            .unwrap();
        cluster
            .wait_for("all pods run", MINUTE, |c| {
                c.list(PODS)
                    .iter()
                    .filter(|p| value::text(p, &["status", "phase"]) == "Running")
                    .count()
                    == 5
            })
            .await
            .unwrap();
        let worker = cluster.get(PODS, "default", "j-worker-3").unwrap();
        for (key, wanted) in [
            ("job-name", "j"),
            ("operator-name", "pytorchjob-controller"),
            ("replica-type", "worker"),
            ("replica-index", "3"),
            ("job-role", ""),
        ] {
            assert_eq!(
                value::text(
                    &worker,
                    &[
                        "metadata",
                        "labels",
                        &format!("training.kubeflow.org/{key}")
                    ]
                ),
                wanted,
                "{key}"
            );
        }
        let owner = value::controller(&worker).unwrap();
        assert_eq!(
            (value::text(owner, &["kind"]), value::text(owner, &["name"])),
            ("PyTorchJob", "j")
        );
        let env = value::items(&worker, &["spec", "containers"])[0].clone();
        let variable = |name: &str| {
            value::items(&env, &["env"])
                .iter()
                .find(|e| value::text(e, &["name"]) == name)
                .map(|e| value::text(e, &["value"]).to_owned())
        };
        assert_eq!(
            (
                variable("RANK").as_deref(),
                variable("WORLD_SIZE").as_deref(),
                variable("MASTER_ADDR").as_deref()
            ),
            (Some("4"), Some("5"), Some("j-master-0"))
        );
        assert_eq!(
            value::text(
                &value::items(&worker, &["spec", "initContainers"])[0],
                &["name"]
            ),
            "init-pytorch"
        );
        let master = cluster.get(PODS, "default", "j-master-0").unwrap();
        assert_eq!(
            value::text(
                &master,
                &["metadata", "labels", "training.kubeflow.org/job-role"]
            ),
            "master"
        );
        assert!(value::items(&master, &["spec", "initContainers"]).is_empty());
        cluster
            .wait_for("the job ends", MINUTE, |c| job_is(c, "j", "Succeeded"))
            .await
            .unwrap();
        cluster.delete(JOBS, "default", "j").unwrap();
        cluster
            .wait_for("the pods go with it", MINUTE, |c| {
                c.list(PODS).is_empty() && c.list(("", "services")).len() == 1
            })
            .await
            .unwrap();
        cluster.stop().await;
    })
    .unwrap();
}

#[test]
fn members_trickle_in_at_the_rate_of_the_client() {
    run_paused(async {
        let cluster = EmbeddedCluster::builder()
            .nodes(NodePool::new("gpu", 8, 8))
            .start()
            .unwrap();
        let before = tokio::time::Instant::now();
        cluster.create(job("j", 63, json!({}))).unwrap();
        cluster
            .wait_for("30 pods", MINUTE, |c| c.list(PODS).len() >= 30)
            .await
            .unwrap();
        assert!(
            before.elapsed() < Duration::from_millis(100),
            "the burst comes at once"
        );
        cluster
            .wait_for("64 pods", MINUTE, |c| c.list(PODS).len() == 64)
            .await
            .unwrap();
        let seconds = before.elapsed().as_secs_f64();
        assert!((3.3..3.6).contains(&seconds), "{seconds}");
        cluster.stop().await;
    })
    .unwrap();
}

#[test]
fn suspend_removes_the_pods_resume_makes_new_ones_and_scale_follows() {
    run_paused(async {
        let cluster = EmbeddedCluster::builder()
            .seed(5)
            .nodes(NodePool::new("gpu", 2, 8))
            .start()
            .unwrap();
        cluster.start_scheduler(plain(Vec::new())).unwrap();
        cluster
            .create(job(
                "j",
                2,
                json!({"spec": {"runPolicy": {"suspend": true}}}),
            ))
            .unwrap();
        cluster
            .wait_for("suspended", MINUTE, |c| job_is(c, "j", "Suspended"))
            .await
            .unwrap();
        assert!(cluster.list(PODS).is_empty());
        let suspend = |on: bool| json!({"spec": {"runPolicy": {"suspend": on}}});
        cluster
            .patch(JOBS, "default", "j", "", &suspend(false))
            .unwrap();
        cluster
            .wait_for("running", MINUTE, |c| {
                job_is(c, "j", "Running") && c.list(PODS).len() == 3
            })
            .await
            .unwrap();
        let uids = |c: &EmbeddedCluster| {
            c.list(PODS)
                .iter()
                .map(|p| value::uid(p).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let first = uids(&cluster);
        cluster
            .patch(JOBS, "default", "j", "", &suspend(true))
            .unwrap();
        cluster
            .wait_for("no pods", MINUTE, |c| c.list(PODS).is_empty())
            .await
            .unwrap();
        cluster
            .patch(JOBS, "default", "j", "", &suspend(false))
            .unwrap();
        cluster
            .wait_for("running again", MINUTE, |c| c.list(PODS).len() == 3)
            .await
            .unwrap();
        assert!(uids(&cluster).is_disjoint(&first));
        let workers =
            |n: u32| json!({"spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": n}}}});
        cluster
            .patch(JOBS, "default", "j", "", &workers(4))
            .unwrap();
        cluster
            .wait_for("five pods", MINUTE, |c| c.list(PODS).len() == 5)
            .await
            .unwrap();
        cluster
            .patch(JOBS, "default", "j", "", &workers(1))
            .unwrap();
        cluster
            .wait_for("two pods", MINUTE, |c| c.list(PODS).len() == 2)
            .await
            .unwrap();
        assert!(cluster.get(PODS, "default", "j-worker-0").is_some());
        cluster.stop().await;
    })
    .unwrap();
}

#[test]
fn failed_pods_are_replaced_or_end_the_job_as_the_restart_policy_says() {
    run_paused(async {
        let cluster = EmbeddedCluster::builder()
            .seed(5)
            .nodes(NodePool::new("gpu", 2, 8))
            .start()
            .unwrap();
        cluster.start_scheduler(plain(Vec::new())).unwrap();
        for (name, policy, code) in [("never", "Never", "1"), ("exit", "ExitCode", "1")] {
            let mut bad = job(
                name,
                1,
                json!({"spec": {"pytorchReplicaSpecs": {"Worker": {"restartPolicy": policy}}}}),
            );
            value::set(
                &mut bad,
                &[
                    "spec",
                    "pytorchReplicaSpecs",
                    "Worker",
                    "template",
                    "metadata",
                    "annotations",
                    "muster.dev/exit-code",
                ],
                code,
            );
            value::set(
                &mut bad,
                &[
                    "spec",
                    "pytorchReplicaSpecs",
                    "Worker",
                    "template",
                    "metadata",
                    "annotations",
                    "muster.dev/run-seconds",
                ],
                "5",
            );
            cluster.create(bad).unwrap();
            cluster
                .wait_for("failed", MINUTE, |c| job_is(c, name, "Failed"))
                .await
                .unwrap();
            assert_eq!(
                phase(&cluster, &format!("{name}-master-0")),
                "Running",
                "cleanPodPolicy None leaves the others"
            );
            cluster.delete(JOBS, "default", name).unwrap();
        }
        cluster.create(job("j", 1, json!({}))).unwrap();
        cluster
            .wait_for("running", MINUTE, |c| phase(c, "j-worker-0") == "Running")
            .await
            .unwrap();
        let first = value::uid(&cluster.get(PODS, "default", "j-worker-0").unwrap()).to_owned();
        cluster
            .patch(
                PODS,
                "default",
                "j-worker-0",
                "status",
                &json!({"status": {"phase": "Failed", "reason": "Evicted"}}),
            )
            .unwrap();
        cluster
            .wait_for("replaced", MINUTE, |c| {
                c.get(PODS, "default", "j-worker-0")
                    .is_some_and(|p| value::uid(&p) != first)
            })
            .await
            .unwrap();
        assert!(!job_is(&cluster, "j", "Failed"));
        cluster.stop().await;
    })
    .unwrap();
}

#[test]
fn a_podgroup_is_made_with_a_gang_scheduler_name() {
    run_paused(async {
        let operator = muster_embedded::standins::operator::OperatorConfig {
            gang_scheduler_name: Some("muster".into()),
            ..Default::default()
        };
        let cluster = EmbeddedCluster::builder()
            .operator(Some(operator))
            .start()
            .unwrap();
        cluster
            .create(job(
                "j",
                3,
                json!({"spec": {"runPolicy": {"schedulingPolicy": {"scheduleTimeoutSeconds": 9}}}}),
            ))
            .unwrap();
        cluster
            .wait_for("pods", MINUTE, |c| c.list(PODS).len() == 4)
            .await
            .unwrap();
        let group = cluster
            .get(("scheduling.x-k8s.io", "podgroups"), "default", "j")
            .unwrap();
        assert_eq!(
            group["spec"],
            json!({"minMember": 4, "scheduleTimeoutSeconds": 9})
        );
        let pod = cluster.get(PODS, "default", "j-worker-0").unwrap();
        assert_eq!(
            value::text(
                &pod,
                &["metadata", "labels", "scheduling.x-k8s.io/pod-group"]
            ),
            "j"
        );
        assert_eq!(value::text(&pod, &["spec", "schedulerName"]), "muster");
        cluster.stop().await;
    })
    .unwrap();
}

#[test]
fn the_device_manager_refuses_what_is_not_there_and_names_what_is_held() {
    run_paused(async {
        let holders: Arc<Mutex<Vec<(String, usize)>>> = Arc::default();
        let seen = holders.clone();
        let kubelet = muster_embedded::standins::kubelet::KubeletConfig {
            allocatable_follows_health: false,
            on_holders: Some(Arc::new(move |node, list| {
                let devices = list.iter().map(|h| h.devices.len()).sum();
                seen.lock().unwrap().push((node.to_owned(), devices));
            })),
            ..Default::default()
        };
        let cluster = EmbeddedCluster::builder()
            .kubelet(Some(kubelet))
            .nodes(NodePool::new("gpu", 1, 2))
            .start()
            .unwrap();
        let on_node = json!({"spec": {"nodeName": "gpu-000"}});
        cluster
            .kubelet()
            .set_device_health("gpu-000", "GPU-gpu-000-0", false);
        cluster.create(pod("one", 1, on_node.clone())).unwrap();
        cluster
            .wait_for("runs", MINUTE, |c| phase(c, "one") == "Running")
            .await
            .unwrap();
        cluster.create(pod("two", 1, on_node)).unwrap();
        cluster
            .wait_for("refused", MINUTE, |c| phase(c, "two") == "Failed")
            .await
            .unwrap();
        let refused = cluster.get(PODS, "default", "two").unwrap();
        assert_eq!(
            value::text(&refused, &["status", "reason"]),
            "UnexpectedAdmissionError"
        );
        assert_eq!(
            holders.lock().unwrap().last(),
            Some(&("gpu-000".to_owned(), 1))
        );
        cluster.delete(PODS, "default", "one").unwrap();
        assert!(
            cluster.get(PODS, "default", "one").is_some(),
            "a bound pod waits for its kubelet"
        );
        cluster
            .wait_for("gone", MINUTE, |c| c.get(PODS, "default", "one").is_none())
            .await
            .unwrap();
        cluster
            .wait_for("free", MINUTE, |_| {
                holders.lock().unwrap().last().is_some_and(|h| h.1 == 0)
            })
            .await
            .unwrap();
        cluster.stop().await;
    })
    .unwrap();
}

#[test]
fn the_scheduler_counts_waits_and_says_why() {
    run_paused(async {
        let pool = NodePool::new("gpu", 2, 8).taint("nvidia.com/gpu", "", "NoSchedule");
        let cluster = EmbeddedCluster::builder().nodes(pool).nodes(NodePool::new("cpu", 1, 0)).start().unwrap();
        cluster.start_scheduler(plain(Vec::new())).unwrap();
        let tolerant = json!({"spec": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}});
        for name in ["a", "b", "c"] {
            cluster.create(pod(name, 8, tolerant.clone())).unwrap();
        }
        cluster.create(pod("intolerant", 1, json!({}))).unwrap();
        let node = |c: &EmbeddedCluster, name: &str| c.get(PODS, "default", name).map(|p| value::text(&p, &["spec", "nodeName"]).to_owned()).unwrap_or_default();
        cluster.wait_for("two are bound", MINUTE, |c| ["a", "b"].iter().all(|n| node(c, n).starts_with("gpu-"))).await.unwrap();
        let message = |c: &EmbeddedCluster, name: &str| c.get(PODS, "default", name).and_then(|p| value::condition(&p, "PodScheduled").map(|x| value::text(x, &["message"]).to_owned())).unwrap_or_default();
        cluster.wait_for("a reason", MINUTE, |c| message(c, "c") == "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.").await.unwrap();
        cluster.wait_for("a reason", MINUTE, |c| message(c, "intolerant") == "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint {nvidia.com/gpu: }.").await.unwrap();
        cluster.delete(PODS, "default", "a").unwrap();
        cluster.wait_for("room is used", MINUTE, |c| !node(c, "c").is_empty()).await.unwrap();
        cluster.stop().await;
    })
    .unwrap();
}

#[test]
fn an_extender_narrows_binds_and_its_constant_refusal_is_no_hot_loop() {
    run_paused(async {
        let cluster = EmbeddedCluster::builder().nodes(NodePool::new("gpu", 3, 8)).start().unwrap();
        let api = cluster.api().clone();
        let (extenders, calls) = extender(&["filter", "bind"], move |verb, body| match verb {
            // Answers in camel case are understood too.
            "filter" if value::name(&body["Pod"]) == "wait" => json!({"nodeNames": [], "failedAndUnresolvableNodes": {"gpu-000": "waits for its gang"}}),
            "filter" => json!({"NodeNames": ["gpu-001"]}),
            _ => {
                let pod = api.target("", "pods", body["PodNamespace"].as_str().unwrap(), body["PodName"].as_str().unwrap()).unwrap();
                let binding = json!({"metadata": {"uid": body["PodUID"]}, "target": {"name": body["Node"]}});
                api.bind(&muster_embedded::api::Caller::new("muster"), &pod, &binding).unwrap();
                json!({})
            }
        });
        cluster.start_scheduler(plain(extenders)).unwrap();
        cluster.create(pod("wait", 1, json!({}))).unwrap();
        cluster.wait_for("refused", MINUTE, |c| c.get(PODS, "default", "wait").is_some_and(|p| value::condition(&p, "PodScheduled").is_some())).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(count(&calls, "filter"), 2, "the second call is caused by the scheduler's own status write");
        let first = calls.lock().unwrap()[0].1.clone();
        assert_eq!((&first["NodeNames"], &first["Nodes"]), (&json!(["gpu-000", "gpu-001", "gpu-002"]), &Value::Null));
        cluster.create(pod("go", 1, json!({}))).unwrap();
        cluster.wait_for("bound", MINUTE, |c| phase(c, "go") == "Running").await.unwrap();
        assert_eq!(cluster.get(PODS, "default", "go").unwrap()["spec"]["nodeName"], "gpu-001");
        assert!(count(&calls, "filter") > 3, "every pod event wakes what an extender refused");
        cluster.stop().await;
    })
    .unwrap();
}

#[test]
fn errors_of_an_extender_back_off_and_an_empty_yes_loses_the_pod() {
    run_paused(async {
        let cluster = EmbeddedCluster::builder()
            .nodes(NodePool::new("gpu", 1, 8))
            .start()
            .unwrap();
        let started = tokio::time::Instant::now();
        let times: Arc<Mutex<Vec<u64>>> = Arc::default();
        let seen = times.clone();
        let (extenders, calls) = extender(&["filter", "bind"], move |verb, body| {
            match (verb, value::name(&body["Pod"])) {
                ("filter", "broken") => {
                    seen.lock().unwrap().push(started.elapsed().as_secs());
                    json!({"Error": "no plan yet"})
                }
                ("filter", "foreign") => json!({"NodeNames": ["elsewhere"]}),
                ("filter", _) => json!({"NodeNames": body["NodeNames"]}),
                _ if body["PodName"] == "refused" => json!({"Error": "not now"}),
                _ => json!({}),
            }
        });
        cluster.start_scheduler(plain(extenders)).unwrap();
        cluster.create(pod("broken", 1, json!({}))).unwrap();
        tokio::time::sleep(Duration::from_secs(36)).await;
        assert_eq!(*times.lock().unwrap(), [0, 1, 3, 7, 15, 25, 35]);
        let why = |c: &EmbeddedCluster, name: &str| {
            c.get(PODS, "default", name)
                .and_then(|p| value::condition(&p, "PodScheduled").cloned())
                .unwrap_or_default()
        };
        assert_eq!(
            value::text(&why(&cluster, "broken"), &["reason"]),
            "SchedulerError"
        );
        assert_eq!(
            value::text(&why(&cluster, "broken"), &["message"]),
            "no plan yet"
        );
        cluster.create(pod("foreign", 1, json!({}))).unwrap();
        cluster
            .wait_for("an error", MINUTE, |c| {
                value::text(&why(c, "foreign"), &["reason"]) == "SchedulerError"
            })
            .await
            .unwrap();
        cluster.create(pod("refused", 8, json!({}))).unwrap();
        cluster
            .wait_for("an error", MINUTE, |c| {
                value::text(&why(c, "refused"), &["message"]).contains("not now")
            })
            .await
            .unwrap();
        cluster.delete(PODS, "default", "refused").unwrap();
        // An extender that says yes and binds nothing: the pod stays assumed, and its room stays taken.
        cluster.create(pod("lost", 8, json!({}))).unwrap();
        tokio::time::sleep(MINUTE).await;
        assert_eq!(
            cluster.get(PODS, "default", "lost").unwrap()["spec"].get("nodeName"),
            None
        );
        let lost = calls
            .lock()
            .unwrap()
            .iter()
            .filter(|(v, b)| v == "bind" && b["PodName"] == "lost")
            .count();
        assert_eq!(lost, 1);
        cluster.stop().await;
    })
    .unwrap();
}

#[test]
fn preemption_takes_the_cheapest_and_the_extender_can_veto_it() {
    run_paused(async {
        for veto in [false, true] {
            let cluster = EmbeddedCluster::builder().nodes(NodePool::new("gpu", 2, 8)).start().unwrap();
            let (extenders, calls) = extender(&["preempt"], move |_, body| {
                if veto { json!({"NodeNameToMetaVictims": {}}) } else { json!({"nodeNameToMetaVictims": body["NodeNameToMetaVictims"]}) }
            });
            cluster.create(json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 100})).unwrap();
            cluster.create(json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "low"}, "value": 10})).unwrap();
            cluster.start_scheduler(plain(extenders)).unwrap();
            cluster.create(pod("cheap", 8, json!({}))).unwrap();
            cluster.create(pod("dear", 8, json!({"spec": {"priorityClassName": "low"}}))).unwrap();
            cluster.wait_for("both run", MINUTE, |c| phase(c, "cheap") == "Running" && phase(c, "dear") == "Running").await.unwrap();
            cluster.create(pod("high", 8, json!({"spec": {"priorityClassName": "high"}}))).unwrap();
            if veto {
                cluster.wait_for("asked", MINUTE, |_| count(&calls, "preempt") > 0).await.unwrap();
                tokio::time::sleep(MINUTE).await;
                assert_eq!((phase(&cluster, "cheap"), phase(&cluster, "high")), ("Running".into(), "Pending".into()));
            } else {
                cluster.wait_for("high runs", MINUTE, |c| phase(c, "high") == "Running").await.unwrap();
                assert_eq!((phase(&cluster, "cheap"), phase(&cluster, "dear")), (String::new(), "Running".into()));
            }
            cluster.stop().await;
        }
    })
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_extender_protocol_goes_over_tcp_on_real_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/muster", listener.local_addr().unwrap());
    let cluster = Arc::new(
        EmbeddedCluster::builder()
            .wall_clock()
            .nodes(NodePool::new("gpu", 2, 8))
            .start()
            .unwrap(),
    );
    let api = cluster.api().clone();
    let router = Router::new()
        .route("/muster/filter", post(|Json(body): Json<Value>| async move { Json(json!({"NodeNames": body["NodeNames"]})) }))
        .route(
            "/muster/bind",
            post(move |Json(body): Json<Value>| async move {
                let pod = api.target("", "pods", body["PodNamespace"].as_str().unwrap(), body["PodName"].as_str().unwrap()).unwrap();
                let binding = json!({"metadata": {"uid": body["PodUID"]}, "target": {"name": body["Node"]}});
                let bound = api.bind(&muster_embedded::api::Caller::new("muster"), &pod, &binding);
                Json(json!({"Error": bound.err().map(|e| e.message).unwrap_or_default()}))
            }),
        );
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let entries = ExtenderConfig::muster(&url, Duration::from_secs(3), MINUTE);
    let transport = muster_embedded::standins::extender::tcp();
    let extenders = entries
        .into_iter()
        .map(|e| Extender::new(e, transport.clone()))
        .collect();
    cluster.start_scheduler(plain(extenders)).unwrap();
    for at in 0..16 {
        cluster
            .create(pod(&format!("p{at}"), 1, json!({})))
            .unwrap();
    }
    let all = |c: &EmbeddedCluster| {
        c.list(PODS)
            .iter()
            .all(|p| value::text(p, &["status", "phase"]) == "Running")
    };
    cluster.wait_for("all run", MINUTE, all).await.unwrap();
    serving.abort();
    Arc::into_inner(cluster).unwrap().stop().await;
}

#[test]
fn agents_and_kubelets_speak_of_the_same_devices() {
    use muster_agent::scenario::FaultEvent;
    use muster_embedded::standins::agents::{Agents, AgentsConfig};
    run_paused(async {
        let cluster = EmbeddedCluster::builder()
            .nodes(NodePool::new("gpu", 2, 8))
            .nodes(NodePool::new("cpu", 1, 0))
            .start()
            .unwrap();
        let agents = Agents::start(
            &cluster,
            AgentsConfig {
                // Nobody listens there: this is about the nodes' side.
                connector: Arc::new(
                    muster_agent::connector::NetConnector::new("http://127.0.0.1:1", None).unwrap(),
                ),
                profile: Arc::new(muster_agent::profile::Profile::load("h100-8").unwrap()),
                start_spread: Duration::ZERO,
                seed: 1,
            },
        )
        .unwrap();
        let first = agents
            .with(|f| f.devices("gpu-000").unwrap()[0].uuid.clone())
            .unwrap();
        assert_eq!(
            agents.with(|f| f.nodes().count()),
            Some(2),
            "a node without GPUs has no agent"
        );
        cluster
            .create(pod("p", 1, json!({"spec": {"nodeName": "gpu-000"}})))
            .unwrap();
        cluster
            .wait_for("runs", MINUTE, |c| phase(c, "p") == "Running")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let view = agents
            .with(|f| f.view("gpu-000").unwrap().borrow().clone())
            .unwrap();
        let text = format!("{view:?}");
        assert!(text.contains(&first), "the report names the device: {text}");
        assert!(text.contains("pod: \"p\""), "and its holder: {text}");
        agents
            .inject("gpu-000", FaultEvent::Xid { gpu: 3, code: 79 })
            .unwrap();
        let allocatable = |c: &EmbeddedCluster| {
            c.get(("", "nodes"), "", "gpu-000")
                .map(|n| value::text(&n, &["status", "allocatable", "nvidia.com/gpu"]).to_owned())
        };
        cluster
            .wait_for("one less", MINUTE, |c| {
                allocatable(c).as_deref() == Some("7")
            })
            .await
            .unwrap();
        agents
            .inject("gpu-000", FaultEvent::Back { gpu: Some(3) })
            .unwrap();
        cluster
            .wait_for("all back", MINUTE, |c| {
                allocatable(c).as_deref() == Some("8")
            })
            .await
            .unwrap();
        agents.stop().await;
        cluster.stop().await;
    })
    .unwrap();
}
