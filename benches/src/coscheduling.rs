//! The coscheduling plugin of scheduler-plugins on a cluster: kube-scheduler with the plugin compiled in.

use std::path::Path;

use anyhow::Context as _;
use muster_control_plane::{Cluster, Identity, Manifest};

/// Its process, as its usage is named.
pub const PROGRAM: &str = "coscheduling";
/// Files of its modules that it needs.
pub const MANIFESTS: [Manifest; 1] = [Manifest {
    module: "sigs.k8s.io/scheduler-plugins",
    file: "config/crd/bases/scheduling.x-k8s.io_podgroups.yaml",
    name: "podgroups.yaml",
}];

/// What kube-scheduler's built-in role lacks. The plugin's own chart grants the same.
const RIGHTS: &str = r"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coscheduling}
rules:
- apiGroups: [scheduling.x-k8s.io]
  resources: [podgroups, podgroups/status]
  verbs: [get, list, watch, create, delete, update, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coscheduling}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coscheduling}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: 'system:kube-scheduler'}
";

/// Installs PodGroups and the rights to them. `folder` holds the programs and their manifests.
pub async fn install(cluster: &Cluster, folder: &Path) -> anyhow::Result<()> {
    for manifest in MANIFESTS {
        let file = folder.join("manifests").join(manifest.name);
        cluster.apply_file(&file).await?;
    }
    cluster
        .wait_for_crds(&["podgroups.scheduling.x-k8s.io"])
        .await?;
    cluster.apply_yaml(RIGHTS).await?;
    Ok(())
}

/// Starts the scheduler with the plugin's own example configuration, but for the client's limits and
/// the time that a member waits for the others: 60 s, the plugin's default, instead of the example's 10 s.
pub async fn start(cluster: &Cluster, folder: &Path) -> anyhow::Result<()> {
    let kubeconfig = cluster.kubeconfig(&Identity::KubeScheduler)?;
    let config = cluster.folder().join("coscheduling.yaml");
    std::fs::write(&config, configuration(&kubeconfig.display().to_string()))
        .with_context(|| format!("write {}", config.display()))?;
    let program = folder.join("scheduler");
    cluster.start_scheduler(PROGRAM, &program, &config).await?;
    Ok(())
}

fn configuration(kubeconfig: &str) -> String {
    format!(
        r#"apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection: {{leaderElect: false}}
clientConnection: {{kubeconfig: {kubeconfig}, qps: 5000, burst: 10000}}
profiles:
- schedulerName: default-scheduler
  plugins:
    multiPoint:
      enabled: [{{name: Coscheduling}}]
    queueSort:
      enabled: [{{name: Coscheduling}}]
      disabled: [{{name: "*"}}]
"#
    )
}
