//! The extender's socket: TLS with client certificates, HTTP/2, limits.

mod siege;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use axum::{Extension, Router};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use muster_core::event::Event;
use muster_scheduler::server::{Door, InvalidDoor, Peer};
use muster_scheduler::tls::{Callers, Certificates, InvalidTls};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::extender;

pub type Ca = CertifiedIssuer<'static, KeyPair>;

pub fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// What is certain to come has come by then.
const IN_TIME: Duration = Duration::from_secs(30);

/// A certificate and its key, as PEM.
fn leaf(ca: &Ca, name: &str) -> (String, String) {
    leaf_with(ca, name, |_| ())
}

/// One with something about it changed.
fn leaf_with(ca: &Ca, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    change(&mut params);
    let cert = params.signed_by(&key, ca).unwrap();
    (cert.pem(), key.serialize_pem())
}

pub fn write_server(directory: &Path, ca: &Ca, clients: &Ca) {
    let (cert, key) = leaf(ca, "muster.test");
    std::fs::write(directory.join("tls.crt"), cert).unwrap();
    std::fs::write(directory.join("tls.key"), key).unwrap();
    std::fs::write(directory.join("client-ca.crt"), clients.pem()).unwrap();
}

struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
    server_ca: Ca,
    client_ca: Ca,
    directory: tempfile::TempDir,
    certificates: Certificates,
    bench: extender::Bench,
}

fn serve() -> Served {
    serve_for("")
}

/// A door for whoever bears a name.
fn serve_for(name: &str) -> Served {
    muster_scheduler::cli::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let (server_ca, client_ca) = (ca(), ca());
    write_server(directory.path(), &server_ca, &client_ca);
    let certificates = Certificates::read(directory.path(), Callers::Named(name.into())).unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let door = Door::open("test", address, Some(certificates.clone()), 64).unwrap();
    let address = door.address().unwrap();
    let bench = extender::bench();
    let stop = CancellationToken::new();
    let task = tokio::spawn(door.serve(bench.router.clone(), stop.clone()));
    Served {
        address,
        stop,
        task,
        server_ca,
        client_ca,
        directory,
        certificates,
        bench,
    }
}

fn client_config(server_ca: &Ca, identity: Option<(String, String)>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server_ca.der().clone()).unwrap();
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

type Sender = SendRequest<Full<Bytes>>;

/// A connection over which one request has been answered; `Err` when it is refused on the way.
async fn connect(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
) -> Result<(Sender, JoinHandle<()>), String> {
    let tcp = TcpStream::connect(address)
        .await
        .map_err(|error| error.to_string())?;
    let name = ServerName::try_from("muster.test").unwrap();
    let tls = tokio_rustls::TlsConnector::from(config)
        .connect(name, tcp)
        .await
        .map_err(|error| error.to_string())?;
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(async move {
        // The end of the connection is seen by its requests.
        let _ = connection.await;
    });
    match post(&mut sender, "/v1/short/filter", "{}").await {
        Ok((200, _)) => Ok((sender, driver)),
        Ok((code, _)) => Err(format!("code {code}")),
        Err(error) => Err(error),
    }
}

/// An HTTP/2 connection over TLS.
async fn tls_connection(address: SocketAddr, config: Arc<rustls::ClientConfig>) -> Sender {
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("muster.test").unwrap();
    let tls = tokio_rustls::TlsConnector::from(config);
    let tls = tls.connect(name, tcp).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .unwrap();
    // Ends with its sender, or when the door closes it.
    tokio::spawn(connection);
    sender
}

async fn post(sender: &mut Sender, path: &str, body: &str) -> Result<(u16, String), String> {
    let request = Request::post(format!("https://muster.test{path}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    let code = response.status().as_u16();
    let bytes = response
        .into_body()
        .collect()
        .await
        .map_err(|error| error.to_string())?
        .to_bytes();
    Ok((code, String::from_utf8(bytes.to_vec()).unwrap()))
}

#[tokio::test]
async fn t10_caller_without_a_certificate_of_our_ca_is_refused() {
    let served = serve();
    let ours = leaf(&served.client_ca, "kube-scheduler");
    let strangers = leaf(&ca(), "kube-scheduler");
    let good = connect(served.address, client_config(&served.server_ca, Some(ours))).await;
    assert!(good.is_ok(), "{:?}", good.err());
    let none = connect(served.address, client_config(&served.server_ca, None)).await;
    assert!(none.is_err());
    let wrong = connect(
        served.address,
        client_config(&served.server_ca, Some(strangers)),
    )
    .await;
    assert!(wrong.is_err());
    served.stop.cancel();
    drop(good);
    served.task.await.unwrap();
}

/// Certificates of our own authority all the same.
#[tokio::test]
async fn t10_certificate_that_is_over_or_not_yet_or_for_servers_is_refused() {
    type Change = fn(&mut CertificateParams);
    let served = serve();
    let whose = |change: Change| leaf_with(&served.client_ca, "kube-scheduler", change);
    let cases: [(&str, Change); 4] = [
        ("good", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }),
        ("over", |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }),
        ("not yet", |params| {
            params.not_before = rcgen::date_time_ymd(4000, 1, 1);
        }),
        // As the server's own is, which lies beside the authority's.
        ("for servers", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
    ];
    for (what, change) in cases {
        let config = client_config(&served.server_ca, Some(whose(change)));
        let connected = connect(served.address, config).await;
        assert_eq!(connected.is_ok(), what == "good", "{what}");
    }
    served.stop.cancel();
    served.task.await.unwrap();
}

/// The authority of a cluster signs for every kubelet and every user, and may sign for the agents.
#[tokio::test]
async fn t10_certificate_of_our_authority_for_somebody_else_is_refused() {
    let served = serve_for("muster-kube-scheduler");
    for name in [
        "muster-kube-scheduler",
        "muster-agent",
        "muster-scheduler",
        "muster-kube-scheduler.example.com",
        "*.kube-scheduler",
    ] {
        let config = client_config(&served.server_ca, Some(leaf(&served.client_ca, name)));
        let connected = connect(served.address, config).await;
        assert_eq!(connected.is_ok(), name == "muster-kube-scheduler", "{name}");
    }
    let common_name = leaf_with(&served.client_ca, "agent", |params| {
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "muster-kube-scheduler");
    });
    let config = client_config(&served.server_ca, Some(common_name));
    assert!(connect(served.address, config).await.is_err());
    served.stop.cancel();
    served.task.await.unwrap();
}

/// The agents' door asks for no certificates: one that kube-scheduler may show is no proof of a node there.
#[tokio::test]
async fn certificate_of_kube_scheduler_opens_nothing_at_the_agents_door() {
    muster_scheduler::cli::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let (server_ca, client_ca) = (ca(), ca());
    write_server(directory.path(), &server_ca, &client_ca);
    let certificates = Certificates::read(directory.path(), Callers::Anybody).unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let door = Door::open("agents", address, Some(certificates), 8).unwrap();
    let address = door.address().unwrap();
    let stop = CancellationToken::new();
    let router = crate::agents::reviewed_router();
    let task = tokio::spawn(door.serve(router, stop.clone()));
    let config = client_config(&server_ca, Some(leaf(&client_ca, "kube-scheduler")));
    let mut sender = tls_connection(address, config).await;
    let path = "https://muster.test/muster.inventory.v1.Inventory/Report";
    for token in [None, Some("Bearer "), Some("Bearer kube-scheduler")] {
        let mut request = Request::post(path).header("content-type", "application/grpc");
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.headers().get("grpc-status").unwrap();
        let unauthenticated = (tonic::Code::Unauthenticated as i32).to_string();
        assert_eq!(status.to_str().unwrap(), unauthenticated, "{token:?}");
    }
    drop(sender);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn t09_a_thousand_binds_are_held_on_one_connection() {
    const BINDS: usize = 1000;
    let mut served = serve();
    let config = client_config(&served.server_ca, Some(leaf(&served.client_ca, "s")));
    let (sender, driver) = connect(served.address, config).await.unwrap();
    let calls: Vec<_> = (0..BINDS)
        .map(|n| {
            let mut sender = sender.clone();
            let body =
                format!(r#"{{"PodName":"p{n}","PodNamespace":"ns","PodUID":"u{n}","Node":"n2"}}"#);
            tokio::spawn(async move { post(&mut sender, "/v1/bind/bind", &body).await })
        })
        .collect();
    let mut tickets = Vec::new();
    while tickets.len() < BINDS {
        if let Some(Event::BindAsked(asked)) = served.bench.outbox.wait().await {
            tickets.push(asked.ticket);
        }
    }
    assert_eq!(served.bench.binds.len(), BINDS, "all are held at once");
    for ticket in tickets {
        assert!(served.bench.binds.answer(ticket, Ok(())));
    }
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok((200, r#"{"Error":""}"#.to_owned())));
    }
    served.stop.cancel();
    served.task.await.unwrap();
    driver.abort();
}

#[tokio::test]
async fn changed_certificates_are_taken_up() {
    let served = serve();
    let stop = served.stop.clone();
    let follow = tokio::spawn(served.certificates.clone().follow(stop.clone()));
    let fresh_ca = ca();
    let fresh = client_config(&fresh_ca, Some(leaf(&served.client_ca, "s")));
    assert!(connect(served.address, Arc::clone(&fresh)).await.is_err());
    write_server(served.directory.path(), &fresh_ca, &served.client_ca);
    let taken_up = async {
        while connect(served.address, Arc::clone(&fresh)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), taken_up).await;
    assert!(in_time.is_ok());
    stop.cancel();
    follow.await.unwrap();
    served.task.await.unwrap();
}

/// A gang that gathers holds its Binds for minutes. The server's certificate and the authority of its callers may
/// change meanwhile: what is held is answered, and the next connection shows the new ones.
#[tokio::test]
async fn certificates_change_under_a_held_bind_and_it_is_answered() {
    let mut served = serve();
    let stop = served.stop.clone();
    let follow = tokio::spawn(served.certificates.clone().follow(stop.clone()));
    let old = client_config(&served.server_ca, Some(leaf(&served.client_ca, "s")));
    let (sender, driver) = connect(served.address, Arc::clone(&old)).await.unwrap();
    let mut holding = sender.clone();
    let bind = tokio::spawn(async move {
        let body = r#"{"PodName":"p","PodNamespace":"ns","PodUID":"u","Node":"n2"}"#;
        post(&mut holding, "/v1/bind/bind", body).await
    });
    let ticket = loop {
        if let Some(Event::BindAsked(asked)) = served.bench.outbox.wait().await {
            break asked.ticket;
        }
    };
    let (fresh_server, fresh_clients) = (ca(), ca());
    write_server(served.directory.path(), &fresh_server, &fresh_clients);
    let fresh = client_config(&fresh_server, Some(leaf(&fresh_clients, "s")));
    let taken_up = async {
        while connect(served.address, Arc::clone(&fresh)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(IN_TIME, taken_up).await.unwrap();
    let former = leaf(&served.client_ca, "s");
    let former = client_config(&fresh_server, Some(former));
    assert!(
        connect(served.address, former).await.is_err(),
        "its authority is believed no more"
    );
    assert!(!bind.is_finished());
    assert!(served.bench.binds.answer(ticket, Ok(())));
    assert_eq!(bind.await.unwrap(), Ok((200, r#"{"Error":""}"#.to_owned())));
    stop.cancel();
    follow.await.unwrap();
    served.task.await.unwrap();
    driver.abort();
}

#[tokio::test]
async fn t10_slow_and_silent_connections_are_closed() {
    let address = "127.0.0.1:0".parse().unwrap();
    let door = Door::open("test", address, None, 64).unwrap();
    let address = door.address().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(door.serve(extender::bench().router, stop.clone()));
    let closed = |first: &'static [u8]| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(first).await.unwrap();
        let mut rest = Vec::new();
        let end = stream.read_to_end(&mut rest);
        tokio::time::timeout(Duration::from_secs(30), end)
            .await
            .is_ok()
    };
    let (silent, slow) = tokio::join!(closed(b""), closed(b"POST /v1/short/filter HTTP/1.1\r\nA"));
    assert!(silent && slow);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn plain_http_is_refused_off_loopback_and_bad_certificates_are_named() {
    let everywhere = "0.0.0.0:0".parse().unwrap();
    let refused = Door::open("extender door", everywhere, None, 1);
    assert!(matches!(refused, Err(InvalidDoor::NotLoopback { .. })));
    let directory = tempfile::tempdir().unwrap();
    let anyone = Callers::Named(String::new());
    let missing = Certificates::read(directory.path(), anyone.clone()).unwrap_err();
    assert!(missing.to_string().contains("tls.crt"), "{missing}");
    for name in ["tls.crt", "tls.key", "client-ca.crt"] {
        std::fs::write(directory.path().join(name), "nonsense").unwrap();
    }
    let nonsense = Certificates::read(directory.path(), anyone).unwrap_err();
    assert!(matches!(nonsense, InvalidTls::NoPem { .. }), "{nonsense}");
}

#[tokio::test]
async fn pages_are_told_who_asks() {
    let door = Door::open_pages("pages", "127.0.0.1:0".parse().unwrap(), 4).unwrap();
    let address = door.address().unwrap();
    let said = async |Extension(Peer(peer)): Extension<Peer>| peer.to_string();
    let stop = CancellationToken::new();
    let router = Router::new().route("/", get(said));
    let served = tokio::spawn(door.serve(router, stop.clone()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let own = stream.local_addr().unwrap().to_string();
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.ends_with(&own), "{text}");
    stop.cancel();
    served.await.unwrap();
}
