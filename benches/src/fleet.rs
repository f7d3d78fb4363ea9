//! Fake agents for every GPU node, in one process, each with its own token and stream.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::PostParams;
use kube::core::Request;
use muster_control_plane::{Cluster, Identity, NodeTemplate, TokenOptions};
use serde_json::json;

use crate::http;
use crate::muster::{self, Muster};
use crate::programs::Programs;

/// Requests in flight while tokens are made.
const IN_FLIGHT: usize = 32;
/// Longest wait until all agents report: 60 s, and as long as their TokenReviews take at Muster's
/// default of 500 a second, ten times over.
fn joined_max(nodes: usize) -> Duration {
    Duration::from_secs(60).saturating_add(
        Duration::from_millis(20).saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX)),
    )
}

/// Starts the fleet and waits until Muster has a stream of every node.
///
/// Each agent proves its node by a token that is bound to a pod of the agent's account on that
/// node, as a DaemonSet's token is.
pub async fn start(
    cluster: &Cluster,
    muster: &Muster,
    programs: &Programs,
    pool: &NodeTemplate,
) -> anyhow::Result<()> {
    let tokens = tokens(cluster, pool).await?;
    let url = format!(
        "https://{}",
        muster.agents.replace("127.0.0.1", "localhost")
    );
    let mut command = Command::new(&programs.agent);
    command.args(["fleet", "--scheduler", &url, "--profile", "h100-8"]);
    command.args(["--node-selector", "nvidia.com/gpu.present=true"]);
    command
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig(&Identity::Admin)?);
    command.arg("--token-dir").arg(&tokens);
    command.arg("--ca-file").arg(cluster.authority().ca());
    cluster.spawn("muster-fleet", &command).await?;
    wait_joined(cluster, muster, pool.count as usize).await
}

async fn wait_joined(cluster: &Cluster, muster: &Muster, nodes: usize) -> anyhow::Result<()> {
    let (since, limit) = (Instant::now(), joined_max(nodes));
    loop {
        let page = muster.metrics().await?;
        let joined = http::metric(&page, "muster_agents");
        if joined >= nodes as f64 {
            return Ok(());
        }
        cluster.check_all_running()?;
        if since.elapsed() > limit {
            bail!(
                "{joined} of {nodes} agents report after {limit:?}; Muster's last lines:\n{}",
                muster::log_tail(cluster)
            );
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A folder with a token for each node, in a file of the node's name.
async fn tokens(cluster: &Cluster, pool: &NodeTemplate) -> anyhow::Result<PathBuf> {
    let folder = cluster.folder().join("tokens");
    std::fs::create_dir_all(&folder)?;
    futures::stream::iter(pool.names())
        .map(|node| {
            let file = folder.join(&node);
            async move {
                let token = token(cluster, &node)
                    .await
                    .with_context(|| format!("a token for node {node}"))?;
                std::fs::write(&file, token).with_context(|| format!("write {}", file.display()))
            }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    Ok(folder)
}

async fn token(cluster: &Cluster, node: &str) -> anyhow::Result<String> {
    let name = format!("muster-agent-{node}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "muster-system"},
        "spec": {
            "nodeName": node, "serviceAccountName": "muster-agent",
            "containers": [{"name": "agent", "image": "agent"}],
            "tolerations": [{"operator": "Exists"}],
        },
    });
    let request = Request::new("/api/v1/namespaces/muster-system/pods")
        .create(&PostParams::default(), serde_json::to_vec(&pod)?)?;
    cluster.admin().request_text(request).await?;
    let options = TokenOptions {
        audiences: vec!["muster-scheduler".into()],
        pod: Some(name),
        ..TokenOptions::default()
    };
    Ok(cluster
        .service_account_token("muster-system", "muster-agent", &options)
        .await?)
}
