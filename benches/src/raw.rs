//! Bindings without a scheduler: what the API server takes at most.

use std::collections::BTreeMap;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use kube::Client;
use serde_json::json;
use tokio::sync::mpsc;

use crate::case::GPUS_PER_NODE;
use crate::load::{self, IN_FLIGHT};
use crate::objects::{Gang, NAMESPACE, Object, pods_path};

/// The node of each pod, chosen up front.
pub type Places = BTreeMap<String, String>;

/// Fills the nodes one after the other. Pods for which no node is left have no place.
pub fn places(gangs: &[Gang], nodes: impl Iterator<Item = String>) -> Places {
    let mut nodes = nodes;
    let mut node = nodes.next();
    let mut free = GPUS_PER_NODE;
    let mut places = Places::new();
    for gang in gangs {
        for index in 0..gang.pods {
            if free < gang.gpus {
                node = nodes.next();
                free = GPUS_PER_NODE;
            }
            let Some(node) = &node else {
                return places;
            };
            free = free.saturating_sub(gang.gpus);
            places.insert(gang.pod_name(index), node.clone());
        }
    }
    places
}

/// Binds the pods that come, by name, with as many requests in flight as pods are created with.
/// Runs until no more come.
pub async fn bind(
    client: Client,
    places: Places,
    pods: mpsc::Receiver<String>,
) -> anyhow::Result<()> {
    let pods = futures::stream::unfold(pods, |mut pods| async move {
        let pod = pods.recv().await?;
        Some((pod, pods))
    });
    pods.map(|pod| {
        let node = places.get(&pod);
        let (client, node) = (client.clone(), node.cloned());
        async move {
            let node = node.with_context(|| format!("no node was chosen for pod {pod}"))?;
            load::create(&client, binding(&pod, &node)?).await
        }
    })
    .buffer_unordered(IN_FLIGHT)
    .try_for_each(|()| async { Ok(()) })
    .await
}

fn binding(pod: &str, node: &str) -> anyhow::Result<Object> {
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod, "namespace": NAMESPACE},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    Object::new(format!("{}/{pod}/binding", pods_path()), &binding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_filled_in_turn_and_never_beyond_their_gpus() {
        let gang = |name: &str, pods, gpus| Gang {
            name: name.into(),
            pods,
            gpus,
        };
        let gangs = [gang("a", 3, 3), gang("b", 1, 8), gang("c", 1, 1)];
        let nodes = ["n0", "n1", "n2"].map(str::to_owned);
        let places = places(&gangs, nodes.into_iter());
        let shown: Vec<(&str, &str)> = places
            .iter()
            .map(|(pod, node)| (pod.as_str(), node.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("a-worker-0", "n0"),
                ("a-worker-1", "n0"),
                ("a-worker-2", "n1"),
                ("b-worker-0", "n2"),
            ]
        );
    }
}
