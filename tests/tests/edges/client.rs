//! The clients for the API server, against a server with TLS and HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use muster_scheduler::client::clients;
use muster_scheduler::server::Door;
use muster_scheduler::tls::{Callers, Certificates};
use tokio::sync::Barrier;
use tokio_util::sync::CancellationToken;

use crate::door::{ca, write_server};

#[tokio::test]
async fn writes_of_a_burst_share_a_few_connections_from_the_first_on() {
    const BURST: usize = 200;
    muster_scheduler::cli::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let (server_ca, client_ca) = (ca(), ca());
    write_server(directory.path(), &server_ca, &client_ca);
    // Whoever opens a fifth connection is turned away.
    let door = Door::open(
        "test",
        "127.0.0.1:0".parse().unwrap(),
        Some(Certificates::read(directory.path(), Callers::Anybody).unwrap()),
        4,
    )
    .unwrap();
    let address = door.address().unwrap();
    let stop = CancellationToken::new();
    // Nobody is answered before all are there: none of them waits behind another.
    let all = Arc::new(Barrier::new(BURST));
    let router = Router::new().fallback(any(move |request: axum::extract::Request| {
        let all = Arc::clone(&all);
        async move {
            assert_eq!(request.version(), http::Version::HTTP_2);
            all.wait().await;
            r#"{"gitVersion": "v1.37.2"}"#
        }
    }));
    let served = tokio::spawn(door.serve(router, stop.clone()));
    let mut config = kube::Config::new(format!("https://{address}").parse().unwrap());
    config.root_cert = Some(vec![server_ca.der().to_vec()]);
    config.tls_server_name = Some("muster.test".into());
    let client = clients(config, 256).await.unwrap().write;
    let burst = (0..BURST).map(|_| {
        let client = client.clone();
        async move {
            let request = http::Request::get("/version").body(kube::client::Body::empty());
            client.send(request.unwrap()).await.unwrap().status()
        }
    });
    let answers = tokio::time::timeout(Duration::from_secs(20), futures::future::join_all(burst));
    let answers = answers.await.expect("all are there at once");
    assert!(answers.iter().all(|status| status.is_success()));
    stop.cancel();
    drop(client);
    served.await.unwrap();
}
