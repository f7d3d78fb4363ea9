//! Tokens, Leases, and who wrote what.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::{Api, PostParams};
use serde_json::json;

use super::{pod, pods, server, status_of};

#[tokio::test(start_paused = true)]
async fn tokens_prove_the_node_of_their_pod() {
    let server = server();
    let client = server.client("test");
    let nodes: Api<Node> = Api::all(client.clone());
    nodes
        .create(
            &PostParams::default(),
            &serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap(),
        )
        .await
        .unwrap();
    let api = pods(&server);
    api.create(
        &PostParams::default(),
        &pod("agent", json!({"spec": {"nodeName": "n1"}})),
    )
    .await
    .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let request: k8s_openapi::api::authentication::v1::TokenRequest = serde_json::from_value(json!({"metadata": {},
        "spec": {"audiences": ["muster"], "expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "agent"}}})).unwrap();
    let token = accounts
        .create_token_request("default", &PostParams::default(), &request)
        .await
        .unwrap()
        .status
        .unwrap()
        .token
        .unwrap();
    let review = |token: String, audience: &'static str| {
        let reviews: Api<k8s_openapi::api::authentication::v1::TokenReview> =
            Api::all(client.clone());
        async move {
            let body = serde_json::from_value(
                json!({"metadata": {}, "spec": {"token": token, "audiences": [audience]}}),
            )
            .unwrap();
            reviews
                .create(&PostParams::default(), &body)
                .await
                .unwrap()
                .status
                .unwrap()
        }
    };
    let good = review(token.clone(), "muster").await;
    assert_eq!(good.authenticated, Some(true));
    assert_eq!(
        good.user.unwrap().extra.unwrap()["authentication.kubernetes.io/node-name"],
        ["n1"]
    );
    assert_eq!(
        review(token.clone(), "other").await.authenticated,
        Some(false)
    );
    assert_eq!(
        review("forged".into(), "muster").await.authenticated,
        Some(false)
    );
    let minted = review(server.mint_node_token("n1"), "muster").await;
    assert_eq!(
        minted.user.unwrap().extra.unwrap()["authentication.kubernetes.io/node-name"],
        ["n1"]
    );
    tokio::time::advance(Duration::from_secs(601)).await;
    assert_eq!(review(token, "muster").await.authenticated, Some(false));
}

#[tokio::test(start_paused = true)]
async fn leases_are_created_by_update_and_fenced_by_version() {
    let server = server();
    let api: Api<Lease> = Api::namespaced(server.client("test"), "kube-system");
    let lease = |holder: &str| -> Lease {
        serde_json::from_value(
            json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": holder}}),
        )
        .unwrap()
    };
    let first = api
        .create(&PostParams::default(), &lease("a"))
        .await
        .unwrap();
    let mut mine = first.clone();
    mine.spec.as_mut().unwrap().holder_identity = Some("b".into());
    api.replace("l", &PostParams::default(), &mine)
        .await
        .unwrap();
    assert_eq!(
        status_of(
            api.replace("l", &PostParams::default(), &mine)
                .await
                .unwrap_err()
        )
        .code,
        409
    );
    assert_eq!(
        status_of(
            api.replace("l", &PostParams::default(), &lease("c"))
                .await
                .unwrap_err()
        )
        .code,
        422
    );
}

#[tokio::test(start_paused = true)]
async fn the_log_and_the_counts_name_every_write_and_its_client() {
    let server = server();
    let (before, digest) = server.digest();
    pods(&server)
        .create(&PostParams::default(), &pod("a", json!({})))
        .await
        .unwrap();
    let writes = server.writes_since(before);
    assert_eq!(writes.len(), 1);
    let write = &writes[0];
    assert_eq!(
        (
            write.client.as_str(),
            write.verb.as_str(),
            write.resource.as_str(),
            write.name.as_str()
        ),
        ("test", "create", "pods", "a")
    );
    assert_ne!(server.digest().1, digest);
    let key = ("test".to_owned(), "create".to_owned(), "pods".to_owned());
    assert_eq!(server.request_counts().get(&key), Some(&1));
}
