//! kubectl and an HTTP client against the served API server. The kubectl is the one that is built with
//! the real control plane.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use kube::api::{Api, ListParams};
use muster_control_plane::Binaries;
use muster_embedded::api::{ApiServer, Limits};
use muster_embedded::clock::Clock;
use serde_json::json;

/// Runs kubectl off the runtime's threads; returns success, stdout and stderr.
async fn kubectl(config: &Path, args: &[&str], input: &str) -> (bool, String, String) {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| Binaries::locate_or_build().unwrap().kubectl);
    let mut command = Command::new(program);
    command
        .arg("--kubeconfig")
        .arg(config)
        .arg("--cache-dir")
        .arg(config.with_file_name("cache"))
        .args(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let input = input.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    })
    .await
    .unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

async fn must(config: &Path, args: &[&str], input: &str) -> String {
    let (good, out, err) = kubectl(config, args, input).await;
    assert!(good, "kubectl {args:?}: {out}{err}");
    out
}

const CONTENT: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {node-role.kubernetes.io/gpu: ""}}
status:
  capacity: {cpu: "8", nvidia.com/gpu: "8", pods: "110"}
  conditions: [{type: Ready, status: "True", reason: KubeletReady}]
  nodeInfo: {kubeletVersion: v1.37.2}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: x}}
spec:
  containers: [{name: main, image: busybox, env: [{name: A, value: "1"}]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {a: "1", b: "2"}
---
apiVersion: kubeflow.org/v1
kind: PyTorchJob
metadata: {name: j}
spec:
  pytorchReplicaSpecs:
    Worker: {replicas: 2, template: {spec: {containers: [{name: pytorch, image: x}]}}}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_gets_describes_applies_and_deletes() {
    for tls in [false, true] {
        let server = ApiServer::new(Clock::wall(), 1, Limits::default());
        let served = server.serve(0, tls).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("kubeconfig");
        served.write_kubeconfig(&config).unwrap();
        let out = must(&config, &["apply", "-f", "-"], CONTENT).await;
        assert!(
            out.contains("pod/p created") && out.contains("pytorchjob.kubeflow.org/j created"),
            "{out}"
        );
        let out = must(
            &config,
            &["apply", "-f", "-"],
            &CONTENT.replace("\"2\"}", "\"3\"}"),
        )
        .await;
        assert!(
            out.contains("pod/p unchanged") && out.contains("configmap/c configured"),
            "{out}"
        );
        let out = must(&config, &["get", "pods,nodes,pytorchjobs"], "").await;
        for text in [
            "pod/p",
            "0/1",
            "Pending",
            "node/n1",
            "Ready",
            "gpu",
            "v1.37.2",
            "pytorchjob.kubeflow.org/j",
            "STATE",
        ] {
            assert!(out.contains(text), "{text}: {out}");
        }
        let out = must(&config, &["get", "po", "-A", "-o", "wide"], "").await;
        assert!(
            out.contains("NOMINATED NODE") && out.contains("default"),
            "{out}"
        );
        let out = must(
            &config,
            &["get", "po", "p", "-o", "jsonpath={.spec.schedulerName}"],
            "",
        )
        .await;
        assert_eq!(out, "default-scheduler");
        let out = must(&config, &["get", "crd,events,ns"], "").await;
        assert!(
            out.contains("pytorchjobs.kubeflow.org") && out.contains("kube-system"),
            "{out}"
        );
        let out = must(&config, &["describe", "pod", "p"], "").await;
        assert!(out.contains("busybox") && out.contains("Pending"), "{out}");
        let out = must(&config, &["describe", "node", "n1"], "").await;
        assert!(
            out.contains("nvidia.com/gpu") && out.contains("KubeletReady"),
            "{out}"
        );
        let out = must(&config, &["describe", "pytorchjob", "j"], "").await;
        assert!(out.contains("Pytorch Replica Specs"), "{out}");
        let out = must(
            &config,
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            CONTENT,
        )
        .await;
        assert!(out.contains("configmap/c serverside-applied"), "{out}");
        must(&config, &["label", "pod", "p", "more=1"], "").await;
        must(&config, &["cordon", "n1"], "").await;
        must(&config, &["taint", "node", "n1", "gpu=true:NoSchedule"], "").await;
        assert!(
            must(&config, &["get", "nodes"], "")
                .await
                .contains("SchedulingDisabled")
        );
        must(&config, &["scale", "--replicas=3", "pytorchjob/j"], "").await;
        let out = must(
            &config,
            &[
                "get",
                "pytorchjob",
                "j",
                "-o",
                "jsonpath={.spec.pytorchReplicaSpecs.Worker.replicas}",
            ],
            "",
        )
        .await;
        assert_eq!(out, "3");
        let out = must(&config, &["api-resources", "--api-group=kubeflow.org"], "").await;
        assert!(out.contains("pytorchjobs"), "{out}");
        assert!(must(&config, &["version"], "").await.contains("v1.37.2"));
        let (good, _, err) = kubectl(&config, &["get", "pod", "gone"], "").await;
        assert!(!good && err.contains("pods \"gone\" not found"), "{err}");
        let bad = "apiVersion: kubeflow.org/v1\nkind: PyTorchJob\nmetadata: {name: bad}\nspec: {pytorchReplicaSpecs: {}, odd: 1}\n";
        let (good, _, err) = kubectl(&config, &["apply", "-f", "-"], bad).await;
        assert!(!good && err.contains("unknown field \"spec.odd\""), "{err}");
        let out = must(
            &config,
            &["delete", "pod/p", "pytorchjob/j", "--timeout=20s"],
            "",
        )
        .await;
        assert!(out.contains("deleted"), "{out}");
        let out = must(
            &config,
            &["wait", "--for=delete", "pod/p", "--timeout=20s"],
            "",
        )
        .await;
        assert!(!out.contains("timed out"), "{out}");
        served.stop().await;
        server.shutdown();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kube_client_reads_the_kubeconfig_and_speaks_tls() {
    let server = ApiServer::new(Clock::wall(), 1, Limits::default());
    let served = server.serve(0, true).await.unwrap();
    let target = server.target("", "nodes", "", "").unwrap();
    server
        .create(
            &muster_embedded::api::Caller::new("test"),
            &target,
            json!({"metadata": {"name": "n1"}}),
        )
        .unwrap();
    let config = kube::config::Kubeconfig::from_yaml(&served.kubeconfig()).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default())
            .await
            .unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
    assert_eq!(
        nodes
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    assert_eq!(
        client.apiserver_version().await.unwrap().git_version,
        "v1.37.2"
    );
    served.stop().await;
}
