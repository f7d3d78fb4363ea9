//! The cluster as a machine: it starts, serves, loses programs, gets them back, and leaves nothing behind.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use muster_control_plane::{Cluster, Identity, NodeTemplate, Program};

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
