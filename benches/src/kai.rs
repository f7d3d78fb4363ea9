//! KAI-scheduler on a cluster: five programs, each under an account of its own.
//!
//! ```text
//!   pod -> podgrouper -> PodGroup -> scheduler -> BindRequest (one a pod) -> binder -> Binding
//!                                podgroupcontroller, queuecontroller: statuses of both
//! ```

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use muster_control_plane::{Cluster, Manifest, Program};

/// `spec.schedulerName` of its pods.
pub const SCHEDULER_NAME: &str = "kai-scheduler";
/// Label of jobs and pods: their queue.
pub const QUEUE_LABEL: &str = "kai.scheduler/queue";
/// The queue that its chart makes.
pub const QUEUE: &str = "default-queue";
/// Its processes, as their usages are named.
pub const PROGRAMS: [&str; 5] = [
    "kai-podgrouper",
    "kai-podgroupcontroller",
    "kai-queuecontroller",
    "kai-binder",
    "kai-scheduler",
];
/// Namespace of its accounts.
const NAMESPACE: &str = "kai-scheduler";
/// The limits of every scheduler's client here, in requests per second and at once.
const LIMITS: [&str; 2] = ["--qps=5000", "--burst=10000"];
/// Time in which a program that cannot start ends by itself.
const START: Duration = Duration::from_secs(2);

const fn crd(file: &'static str, name: &'static str) -> Manifest {
    Manifest {
        module: "github.com/NVIDIA/KAI-scheduler",
        file,
        name,
    }
}

/// Files of its module that it needs: the CRDs of its chart.
pub const MANIFESTS: [Manifest; 6] = [
    crd(
        "deployments/kai-scheduler/crds/kai.scheduler_configs.yaml",
        "configs.yaml",
    ),
    crd(
        "deployments/kai-scheduler/crds/kai.scheduler_schedulingshards.yaml",
        "schedulingshards.yaml",
    ),
    crd(
        "deployments/kai-scheduler/crds/kai.scheduler_topologies.yaml",
        "topologies.yaml",
    ),
    crd(
        "deployments/kai-scheduler/crds/scheduling.run.ai_bindrequests.yaml",
        "bindrequests.yaml",
    ),
    crd(
        "deployments/kai-scheduler/crds/scheduling.run.ai_podgroups.yaml",
        "podgroups.yaml",
    ),
    crd(
        "deployments/kai-scheduler/crds/scheduling.run.ai_queues.yaml",
        "queues.yaml",
    ),
];

/// Queues and priority classes as the chart makes them.
const OBJECTS: &str = r"apiVersion: scheduling.run.ai/v2
kind: Queue
metadata: {name: default-parent-queue}
spec:
  resources:
    cpu: {quota: 0, limit: -1, overQuotaWeight: 1}
    gpu: {quota: 0, limit: -1, overQuotaWeight: 1}
    memory: {quota: 0, limit: -1, overQuotaWeight: 1}
---
apiVersion: scheduling.run.ai/v2
kind: Queue
metadata: {name: default-queue}
spec:
  parentQueue: default-parent-queue
  resources:
    cpu: {quota: 0, limit: -1, overQuotaWeight: 1}
    gpu: {quota: 0, limit: -1, overQuotaWeight: 1}
    memory: {quota: 0, limit: -1, overQuotaWeight: 1}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: train}
value: 50
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: build-preemptible}
value: 75
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: build}
value: 100
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: inference}
value: 125
";

/// Installs CRDs, queues, priority classes and the programs' accounts. The accounts may do
/// everything: the roles of the chart are templates of Helm's.
pub async fn install(cluster: &Cluster, folder: &Path) -> anyhow::Result<()> {
    cluster.install_job_crds().await?;
    for manifest in MANIFESTS {
        let file = folder.join("manifests").join(manifest.name);
        cluster.apply_file(&file).await?;
    }
    cluster
        .wait_for_crds(&[
            "queues.scheduling.run.ai",
            "podgroups.scheduling.run.ai",
            "bindrequests.scheduling.run.ai",
            "topologies.kai.scheduler",
        ])
        .await?;
    for namespace in [NAMESPACE, "kai-resource-reservation", "kai-scale-adjust"] {
        cluster.create_namespace(namespace).await?;
    }
    cluster.apply_yaml(OBJECTS).await?;
    let accounts: String = PROGRAMS.map(account).concat();
    cluster.apply_yaml(&accounts).await?;
    Ok(())
}

fn account(program: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {program}, namespace: {NAMESPACE}}}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {program}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}\n\
         subjects:\n- {{kind: ServiceAccount, name: {program}, namespace: {NAMESPACE}}}\n---\n"
    )
}

/// Starts all five with the defaults of their command lines, but for the limits of their clients,
/// where they listen, and their webhooks, for which there would have to be certificates.
pub async fn start(cluster: &Cluster, folder: &Path) -> anyhow::Result<()> {
    for program in PROGRAMS {
        let name = program.trim_start_matches("kai-");
        let mut command = Command::new(folder.join(name));
        command.args(LIMITS).args(flags(name)?);
        let kubeconfig = cluster
            .service_account_kubeconfig(NAMESPACE, program)
            .await?;
        command.env("KUBECONFIG", kubeconfig);
        cluster.spawn(program, &command).await?;
    }
    // A program that finds its port taken or an object missing ends within a second.
    tokio::time::sleep(START).await;
    for program in PROGRAMS {
        cluster.check_running(&Program::Other(program.to_owned()))?;
    }
    Ok(())
}

fn flags(name: &str) -> anyhow::Result<Vec<String>> {
    Ok(match name {
        "scheduler" => {
            let (listen, plugins) = (free_port()?, free_port()?);
            vec![
                format!("--listen-address=127.0.0.1:{listen}"),
                format!("--plugin-server-port={plugins}"),
                format!("--namespace={NAMESPACE}"),
            ]
        }
        "binder" | "podgrouper" => vec![
            "--metrics-bind-address=0".into(),
            "--health-probe-bind-address=0".into(),
        ],
        // Its metrics always listen on port 8080.
        "podgroupcontroller" => vec![
            "--health-probe-bind-address=0".into(),
            "--enable-podgroup-webhook=false".into(),
        ],
        "queuecontroller" => vec![
            "--metrics-listen-address=0".into(),
            "--enable-webhook=false".into(),
        ],
        other => bail!("KAI has no program {other}"),
    })
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
    Ok(listener.local_addr().context("its address")?.port())
}
