//! The cluster as a machine: it starts, serves, loses programs, gets them back, and leaves nothing behind.

#![allow(clippy::unwrap_used)] // helper functions of tests panic as tests do

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use muster_control_plane::{Cluster, Error, Identity, NodeTemplate, Program};

#[test]
fn without_go_and_without_ready_programs_it_says_what_is_missing() {
    let nowhere = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bare-cluster"))
        .env("PATH", nowhere.path())
        .env_remove(muster_control_plane::BIN_ENV)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "bare-cluster: no Go toolchain: `go` is not in PATH",
        "install Go 1.26 or newer",
        "set MUSTER_CONTROL_PLANE_BIN to a folder of ready binaries",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_starts_serves_survives_a_killed_api_server_and_leaves_nothing() {
    let cluster = Cluster::builder()
        .nodes(NodeTemplate::gpu_pool("gpu", 20))
        .audit(true)
        .start()
        .await
        .unwrap();
    let folder: PathBuf = cluster.folder().to_path_buf();

    let version = cluster.get_text("/version").await.unwrap();
    assert!(version.contains(r#""gitVersion": "v1.37"#), "{version}");
    let output = cluster
        .kubectl(&["get", "nodes", "--no-headers"])
        .await
        .unwrap();
    assert_eq!(
        output.stdout.matches(" Ready ").count(),
        20,
        "{}{}",
        output.stdout,
        output.stderr
    );

    // RBAC holds: the scheduler's identity may read nodes and may not delete them.
    let scheduler: Api<Node> = Api::all(cluster.client(&Identity::KubeScheduler).await.unwrap());
    assert_eq!(
        scheduler
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        20
    );
    let refused = scheduler
        .delete("gpu-0", &Default::default())
        .await
        .unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.is_forbidden()));

    // Counted in both ways: 20 POSTs and 20 PATCHes of nodes.
    let by_metrics = cluster.api_writes().await.unwrap();
    let by_audit = cluster.audit_writes(Default::default()).unwrap();
    for writes in [&by_metrics, &by_audit] {
        assert_eq!(
            writes.count(|kind| kind.resource == "nodes" && kind.verb == "create"),
            20
        );
        assert!(writes.count(|kind| kind.resource == "nodes" && kind.verb == "patch") >= 20);
    }
    assert!(by_audit.count(|kind| kind.user_agent == "muster-control-plane") >= 40);

    let usage = cluster.usage(&Program::KubeApiserver).unwrap();
    assert!(
        usage.rss_bytes > 50 << 20 && usage.cpu > Duration::from_millis(100),
        "{usage:?}"
    );

    let pids: Vec<u32> = [
        Program::Etcd,
        Program::KubeApiserver,
        Program::KubeControllerManager,
        Program::Kwok,
    ]
    .iter()
    .filter_map(|program| cluster.pid(program))
    .collect();
    assert_eq!(pids.len(), 4);

    cluster.kill(&Program::KubeApiserver).unwrap();
    assert!(!cluster.is_running(&Program::KubeApiserver));
    assert!(cluster.get_text("/version").await.is_err());
    cluster.start(&Program::KubeApiserver).await.unwrap();
    let nodes: Api<Node> = Api::all(cluster.admin());
    assert_eq!(
        nodes
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        20
    );
    assert!(
        cluster
            .outages()
            .iter()
            .all(|outage| outage.until.is_some_and(|until| until > outage.from))
    );
    assert_eq!(cluster.outages().len(), 1);
    cluster.check_all_running().unwrap();

    let restarted = cluster.pid(&Program::KubeApiserver).unwrap();
    drop(cluster);
    assert!(!folder.exists());
    for pid in pids.into_iter().chain([restarted]) {
        assert!(
            !PathBuf::from(format!("/proc/{pid}")).exists(),
            "pid {pid} is still there"
        );
    }
}

/// Processes whose command line or environment names the folder.
fn processes_of(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', " ");
        let command = text(read("cmdline"));
        if command.contains(folder) || text(read("environ")).contains(folder) {
            found.push(command);
        }
    }
    found
}

#[test]
fn a_killed_parent_leaves_no_process_behind() {
    let mut parent = Command::new(env!("CARGO_BIN_EXE_bare-cluster"))
        .args([
            "--nodes",
            "1",
            "--no-training-operator",
            "--run",
            "guest=sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let kubeconfig = line.trim().strip_prefix("export KUBECONFIG=").unwrap();
    let folder = PathBuf::from(kubeconfig.strip_suffix("/kubeconfig/admin").unwrap());
    let name = folder.to_str().unwrap();
    // etcd, API server, controller manager, scheduler, KWOK and the guest (by its KUBECONFIG).
    assert_eq!(processes_of(name).len(), 6, "{:?}", processes_of(name));
    parent.kill().unwrap();
    parent.wait().unwrap();
    let since = Instant::now();
    while !processes_of(name).is_empty() {
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "{:?}",
            processes_of(name)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // Nobody was left to remove the folder; the next cluster's start does.
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_scheduler_goes_on_and_a_dead_guest_is_reported_with_its_last_words() {
    let cluster = Cluster::builder()
        .with_controller_manager(false)
        .with_kwok(false)
        .start()
        .await
        .unwrap();
    let config = cluster.default_kube_scheduler_config().unwrap();
    cluster.start_kube_scheduler(&config).await.unwrap();
    cluster.pause(&Program::KubeScheduler).unwrap();
    assert!(cluster.is_running(&Program::KubeScheduler));
    cluster.resume(&Program::KubeScheduler).await.unwrap();
    let twice = cluster.start_kube_scheduler(&config).await.unwrap_err();
    assert!(matches!(twice, Error::AlreadyRunning { .. }), "{twice}");
    cluster.stop(&Program::KubeScheduler).await.unwrap();
    assert!(!cluster.is_running(&Program::KubeScheduler));

    let mut guest = Command::new("sh");
    guest
        .args(["-c", "echo last words of $NAME; exit 3"])
        .env("NAME", "guest");
    // The guest may end before or after the first look at it.
    let started = cluster.spawn("guest", &guest).await;
    let since = Instant::now();
    let error = loop {
        if let Err(error) = started
            .as_ref()
            .map_err(ToString::to_string)
            .and(cluster.check_all_running().map_err(|e| e.to_string()))
        {
            break error;
        }
        assert!(since.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(
        error.contains("guest exited with exit status: 3") && error.contains("last words of guest"),
        "{error}"
    );

    let never = cluster
        .kill(&Program::TrainingOperator)
        .unwrap_err()
        .to_string();
    assert_eq!(
        never,
        "program training-operator was never started in this cluster"
    );
    let nobody = Identity::User {
        name: "nobody".into(),
        groups: vec!["team".into()],
    };
    let shown = cluster
        .kubectl_as(&nobody, &["auth", "whoami"], "")
        .await
        .unwrap();
    assert!(
        shown.stdout.contains("nobody") && shown.stdout.contains("team"),
        "{}{}",
        shown.stdout,
        shown.stderr
    );
}
