//! Fake agents: one process that speaks for many nodes.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use muster_control_plane::{Cluster, Identity, NodeTemplate, TokenOptions};
use serde_json::json;

use crate::programs;
use crate::stack::Stack;

/// Pods and tokens of agents that are made at the same time.
const TOKENS_AT_ONCE: usize = 32;

/// One process of fake agents.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Name of the process.
    pub name: String,
    /// Selector of its nodes.
    pub selector: String,
    /// Names of its nodes.
    pub nodes: Vec<String>,
    /// Scenario file.
    pub scenario: Option<PathBuf>,
}

impl Fleet {
    /// The fleet of all GPU nodes of these pools.
    pub fn of(pools: &[NodeTemplate]) -> Self {
        let gpu_pools = pools.iter().filter(|pool| pool.gpus > 0);
        Self {
            name: "muster-fleet".into(),
            selector: "nvidia.com/gpu.present=true".into(),
            nodes: gpu_pools.flat_map(NodeTemplate::names).collect(),
            scenario: None,
        }
    }
}

impl Stack {
    /// Starts one process with a fake agent for each node. Each proves its node by a token that is
    /// bound to a pod of the agent's ServiceAccount on that node, as a DaemonSet's token is.
    pub async fn start_fleet(&self, fleet: &Fleet) -> anyhow::Result<()> {
        start_fleet(&self.cluster, &self.agents, fleet).await
    }

    /// A token for the scheduler's audience, bound to a pod of this ServiceAccount on the node. The pod
    /// is made where it is not there.
    pub async fn pod_token(
        &self,
        namespace: &str,
        account: &str,
        name: &str,
        node: &str,
    ) -> anyhow::Result<String> {
        pod_token(&self.cluster, namespace, account, name, node).await
    }
}

/// Starts a fleet that reports to the Muster whose agents' door is at `address`.
pub async fn start_fleet(cluster: &Cluster, address: &str, fleet: &Fleet) -> anyhow::Result<()> {
    let tokens = cluster.folder().join(format!("{}-tokens", fleet.name));
    std::fs::create_dir_all(&tokens)?;
    let prove = async |node: &String| {
        let pod = format!("muster-agent-{node}");
        let token = pod_token(cluster, "muster-system", "muster-agent", &pod, node)
            .await
            .with_context(|| format!("token of the agent on {node}"))?;
        anyhow::Ok(std::fs::write(tokens.join(node), token)?)
    };
    futures::stream::iter(&fleet.nodes)
        .map(prove)
        .buffer_unordered(TOKENS_AT_ONCE)
        .try_collect::<()>()
        .await?;
    let mut command = Command::new(programs::agent()?);
    let address = address.replace("127.0.0.1", "localhost");
    command
        .args(["fleet", "--scheduler", &format!("https://{address}")])
        .args(["--profile", "h100-8", "--node-selector", &fleet.selector])
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig(&Identity::Admin)?)
        .arg("--token-dir")
        .arg(&tokens)
        .arg("--ca-file")
        .arg(cluster.authority().ca());
    if let Some(scenario) = &fleet.scenario {
        command.arg("--scenario").arg(scenario);
    }
    cluster.spawn(&fleet.name, &command).await?;
    Ok(())
}

async fn pod_token(
    cluster: &Cluster,
    namespace: &str,
    account: &str,
    name: &str,
    node: &str,
) -> anyhow::Result<String> {
    let pods: Api<Pod> = Api::namespaced(cluster.admin(), namespace);
    if pods.get_opt(name).await?.is_none() {
        let pod = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "nodeName": node, "serviceAccountName": account,
                      "containers": [{ "name": "agent", "image": "agent" }],
                      "tolerations": [{ "operator": "Exists" }] },
        }))?;
        pods.create(&PostParams::default(), &pod).await?;
    }
    let options = TokenOptions {
        audiences: vec!["muster-scheduler".into()],
        pod: Some(name.to_owned()),
        // Longer than a person keeps a local cluster up: nobody renews it.
        expiration_seconds: 7 * 24 * 3600,
    };
    let token = cluster
        .service_account_token(namespace, account, &options)
        .await?;
    Ok(token)
}
