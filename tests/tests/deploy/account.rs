//! What the account of Muster's pod may write on a real API server, beyond what RBAC can say: the
//! policies of `print account-policy`. Everything is a dry run, which admission does not tell from a
//! real write; the tests of `real` write under the same policies.

use std::time::{Duration, Instant};

use axum::http::{Method, Request};
use muster_control_plane::Cluster;
use serde_json::{Value, json};

/// Longest wait for a policy to act after it has come.
const PATIENCE: Duration = Duration::from_secs(60);
const ACCOUNT: &str = "system:serviceaccount:muster-system:muster-scheduler";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const JOBS: &str = "/apis/kubeflow.org/v1/namespaces/default/pytorchjobs";

/// A write, and what must be in the refusal; `None` for one that is let through. `kept` is what an answer must hold then: a field that
/// the API server drops says nothing.
struct Case {
    method: Method,
    path: String,
    body: Value,
    refusal: Option<&'static str>,
    kept: Option<&'static str>,
}

impl Case {
    fn keeping(mut self, pointer: &'static str) -> Self {
        self.kept = Some(pointer);
        self
    }
}

/// A merge patch of an object, or of its subresource.
fn patch(path: &str, change: &Value, refusal: Option<&'static str>) -> Case {
    Case {
        method: Method::PATCH,
        path: path.to_owned(),
        body: change.clone(),
        refusal,
        kept: None,
    }
}

fn patch_pod(name: &str, change: &Value, refusal: Option<&'static str>) -> Case {
    patch(&format!("{PODS}/{name}"), change, refusal)
}

fn patch_job(name: &str, change: &Value, refusal: Option<&'static str>) -> Case {
    patch(&format!("{JOBS}/{name}"), change, refusal)
}

fn delete(pod: &str, refusal: Option<&'static str>) -> Case {
    Case {
        method: Method::DELETE,
        path: format!("{PODS}/{pod}"),
        body: json!({}),
        refusal,
        kept: None,
    }
}

/// A Binding of `ours-free`; `metadata` is added to its name.
fn bind(mut metadata: Value, refusal: Option<&'static str>) -> Case {
    metadata["name"] = "ours-free".into();
    Case {
        method: Method::POST,
        path: format!("{PODS}/ours-free/binding"),
        body: json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata,
            "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}}),
        refusal,
        kept: None,
    }
}

/// The same by the resource `bindings`, which goes by the name in the Binding.
fn anew(case: Case) -> Case {
    Case {
        path: "/api/v1/namespaces/default/bindings".into(),
        ..case
    }
}

fn pod(name: &str, scheduler: &str, gates: Value, class: Option<&str>) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "a"}, "annotations": {"a": "b"}},
        "spec": {"schedulerName": scheduler, "schedulingGates": gates, "priorityClassName": class,
            "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "one", "env": [{"name": "A", "value": "b"}]}]}})
}

/// A pod with a claim of its own, and an extended resource for which kube-scheduler may make one.
fn claiming(name: &str, scheduler: &str) -> Value {
    let mut pod = pod(name, scheduler, Value::Null, None);
    pod["spec"]["resourceClaims"] = json!([{"name": "nic", "resourceClaimTemplateName": "nic"}]);
    pod["spec"]["containers"][0]["resources"] =
        json!({"limits": {"example.org/gpu": 1}, "claims": [{"name": "nic"}]});
    pod
}

fn job(name: &str, scheduler: Option<&str>, mark: Option<&str>) -> Value {
    let mut template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {
        "containers": [{"name": "pytorch", "image": "one", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}});
    if let Some(scheduler) = scheduler {
        template["spec"]["schedulerName"] = scheduler.into();
    }
    let mut job = json!({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"runPolicy": {"suspend": true, "cleanPodPolicy": "None"}, "pytorchReplicaSpecs": {
            "Master": {"replicas": 1, "restartPolicy": "OnFailure", "template": template},
            "Worker": {"replicas": 2, "restartPolicy": "OnFailure", "template": template}}}});
    if let Some(mark) = mark {
        job["metadata"]["annotations"] = json!({"muster.dev/hold": mark});
    }
    job
}

fn objects() -> Vec<Value> {
    let gate = json!([{"name": "muster.dev/gang"}]);
    vec![
        pod("ours", "muster", gate.clone(), None),
        pod("ours-free", "muster", Value::Null, None),
        pod("theirs", "other", gate, None),
        pod(
            "critical",
            "other",
            Value::Null,
            Some("system-cluster-critical"),
        ),
        claiming("ours-claiming", "muster"),
        claiming("theirs-claiming", "other"),
        job("ours", Some("muster"), None),
        job("nameless", None, None),
        job("theirs", Some("other"), None),
        job("left", Some("other"), Some("queued")),
    ]
}

fn pods() -> Vec<Case> {
    let pin =
        json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [pin]}}});
    let release = json!({"spec": {"schedulingGates": [], "affinity": affinity}});
    let stamp = json!({"metadata": {"annotations": {"muster.dev/epoch": "7"}}});
    let annotation = json!({"metadata": {"annotations": {"a": "c"}}});
    let dropped = json!({"metadata": {"annotations": {"a": null}}});
    let label = json!({"metadata": {"labels": {"app": "b"}}});
    let image = json!({"spec": {"containers": [
        {"name": "c", "image": "two", "env": [{"name": "A", "value": "b"}]}]}});
    let deadline = json!({"spec": {"activeDeadlineSeconds": 5}});
    let condition = json!({"status": {"nominatedNodeName": "n1",
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}});
    let address = json!({"status": {"podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]}});
    // kube-scheduler makes a claim for an extended resource, and says so; the claims that a pod names are made by another controller.
    let claimed = json!({"status": {"extendedResourceClaimStatus": {"resourceClaimName": "made",
        "requestMappings": [{"containerName": "c", "resourceName": "example.org/gpu",
            "requestName": "container-0-request-0"}]}}});
    let claims = json!({"status": {"resourceClaimStatuses": [{"name": "nic", "resourceClaimName": "other"}]}});
    let own = "Muster patches pods of its own schedulerName only";
    let notes = "of a pod's annotations Muster changes those under muster.dev/ only";
    let spec = "of a pod's spec Muster changes gates and affinity only";
    let critical = "no system-critical pod of another scheduler";
    let conditions = "of a pod's status kube-scheduler changes conditions";
    vec![
        patch_pod("ours", &release, None),
        patch_pod("ours", &stamp, None),
        patch_pod("theirs", &release, Some(own)),
        patch_pod("theirs", &stamp, Some(own)),
        patch_pod("ours", &annotation, Some(notes)),
        patch_pod("ours", &dropped, Some(notes)),
        patch_pod("ours", &label, Some("of a pod's metadata")),
        patch_pod("ours", &image, Some(spec)),
        patch_pod("ours-free", &deadline, Some(spec)),
        patch_pod("ours-free/status", &condition, None),
        patch_pod("theirs/status", &condition, None),
        patch_pod("critical/status", &condition, Some(critical)),
        patch_pod("ours-free/status", &address, Some(conditions)),
        patch_pod("ours-claiming/status", &claimed, None)
            .keeping("/status/extendedResourceClaimStatus/requestMappings/0"),
        patch_pod("theirs-claiming/status", &claimed, None)
            .keeping("/status/extendedResourceClaimStatus/requestMappings/0"),
        patch_pod("ours-claiming/status", &claims, Some(conditions)),
        delete("ours", None),
        delete("theirs", None),
        delete("critical", Some(critical)),
    ]
}

fn bindings(uid: &str, version: &str) -> Vec<Case> {
    let record = json!({"muster.dev/plan": "e7-1"});
    let with = |annotations: &Value, labels: Value| {
        json!({"uid": uid, "resourceVersion": version,
        "annotations": annotations, "labels": labels})
    };
    let exact = "Muster binds a pod by its UID and resourceVersion only";
    let brings = "brings annotations under muster.dev/ and no labels of its own";
    vec![
        bind(with(&record, Value::Null), None),
        // As the API server puts it there itself where nodes have a zone.
        bind(
            with(&record, json!({"topology.kubernetes.io/zone": "a"})),
            None,
        ),
        bind(json!({"uid": uid, "annotations": record}), Some(exact)),
        bind(json!({"resourceVersion": version}), Some(exact)),
        // The other way to bind, which nobody of ours uses: the API server drops the version there.
        anew(bind(json!({}), Some(exact))),
        anew(bind(with(&record, Value::Null), Some(exact))),
        bind(with(&json!({"a": "c"}), Value::Null), Some(brings)),
        bind(with(&record, json!({"app": "b"})), Some(brings)),
    ]
}

fn jobs() -> Vec<Case> {
    // A merge patch replaces a list as a whole, so the containers stay where they are not named.
    let template = |spec: Value| json!({"spec": {"pytorchReplicaSpecs": {"Worker": {"template": {"spec": spec}}}}});
    let mut release = template(json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": ["n1", "n2"]}]}]}}}}));
    release["spec"]["runPolicy"] = json!({"suspend": false});
    release["metadata"] =
        json!({"annotations": {"muster.dev/hold": "released", "muster.dev/plan": "e7-1"}});
    let strip = json!({"metadata": {"annotations": {"muster.dev/hold": null}}});
    let image = template(json!({"containers": [{"name": "pytorch", "image": "two"}]}));
    let account = template(json!({"serviceAccountName": "mighty"}));
    let labels = json!({"spec": {"pytorchReplicaSpecs": {"Worker": {"template": {"metadata":
        {"labels": {"app": "b"}}}}}}});
    let replicas = json!({"spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": 9}}}});
    let gone = json!({"spec": {"pytorchReplicaSpecs": {"Worker": null}}});
    let clean = json!({"spec": {"runPolicy": {"cleanPodPolicy": "All"}}});
    let queued = json!({"status": {"conditions": [{"type": "Queued", "status": "True", "reason": "MusterQueued"}]}});
    let started = json!({"status": {"startTime": "2026-01-01T00:00:00Z"}});
    let own = "Muster changes jobs of its own schedulerName only";
    let templates = "of a job's templates Muster changes the affinity only";
    let roles = "of a job's roles Muster changes templates only";
    let policy = "of a job's runPolicy Muster changes suspend only";
    let conditions = "of a job's status Muster changes conditions only";
    vec![
        patch_job("ours", &release, None),
        patch_job("nameless", &release, None),
        patch_job("left", &strip, None),
        patch_job("theirs", &release, Some(own)),
        patch_job("ours", &image, Some(templates)),
        patch_job("left", &image, Some(templates)),
        patch_job("ours", &account, Some(templates)),
        patch_job("ours", &labels, Some(templates)),
        patch_job("ours", &replicas, Some(roles)),
        patch_job("ours", &gone, Some(roles)),
        patch_job("ours", &clean, Some(policy)),
        patch_job("ours/status", &queued, None),
        patch_job("theirs/status", &queued, Some(own)),
        patch_job("ours/status", &started, Some(conditions)),
    ]
}

/// Tries a write as Muster; the answer, or as `Err` what the API server says to it.
async fn tried(cluster: &Cluster, case: &Case) -> Result<Value, String> {
    let kind = match case.method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder()
        .method(case.method.clone())
        .uri(format!("{}?dryRun=All", case.path))
        .header("impersonate-user", ACCOUNT)
        .header("content-type", kind)
        .body(case.body.to_string().into_bytes())
        .unwrap();
    let answer = cluster.admin().request::<Value>(request).await;
    answer.map_err(|error| error.to_string())
}

fn as_wanted(case: &Case, answer: &Result<Value, String>) -> bool {
    match (case.refusal, answer) {
        (None, Ok(object)) => case.kept.is_none_or(|kept| object.pointer(kept).is_some()),
        (Some(text), Err(said)) => said.contains(text),
        _ => false,
    }
}

/// Tries every case; a policy that has just come acts after some seconds only.
async fn check(cluster: &Cluster, cases: &[Case]) {
    let end = Instant::now() + PATIENCE;
    let mut wrong = Vec::new();
    for case in cases {
        let mut answer = tried(cluster, case).await;
        while case.refusal.is_some() && answer.is_ok() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(500)).await;
            answer = tried(cluster, case).await;
        }
        if !as_wanted(case, &answer) {
            let (method, path, body) = (&case.method, &case.path, &case.body);
            wrong.push(format!(
                "{method} {path} {body}\n  wanted {:?}\n  {answer:?}",
                case.refusal
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The API server says of each policy that its expressions have types that fit.
async fn check_types(cluster: &Cluster) {
    let args = [
        "get",
        "validatingadmissionpolicies",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name}{.status.typeChecking.expressionWarnings}{\"\\n\"}{end}",
    ];
    let output = cluster.kubectl(&args).await.unwrap();
    let said: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(
        said,
        [
            "muster-limit-bindings",
            "muster-limit-jobs",
            "muster-limit-pods"
        ]
    );
}

/// Our writes pass, and what a stolen token or an error could do to what others run is refused. Needs
/// the rights of the account and the CRD of PyTorchJobs in the cluster.
pub async fn check_account(cluster: &Cluster) {
    cluster
        .apply_yaml(&muster_kubernetes::manifests::account_policy())
        .await
        .unwrap();
    let end = Instant::now() + PATIENCE;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects()}).to_string();
    // The namespace's default account comes a moment after the namespace.
    while let Err(error) = cluster.apply_yaml(&list).await {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let path = "-o=jsonpath={.metadata.uid} {.metadata.resourceVersion}";
    let found = cluster
        .kubectl(&["get", "pod", "ours-free", path])
        .await
        .unwrap();
    let (uid, version) = found.stdout.split_once(' ').unwrap();
    // Refusals first: once each policy has refused something, what passes has been looked at.
    let mut cases = pods();
    cases.extend(bindings(uid, version));
    cases.extend(jobs());
    cases.sort_by_key(|case| case.refusal.is_none());
    check(cluster, &cases).await;
    check_types(cluster).await;
}
