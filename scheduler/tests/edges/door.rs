//! The extender's socket: TLS with client certificates, HTTP/2, limits.

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
use muster_scheduler::tls::{Certificates, InvalidTls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
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

/// A certificate and its key, as PEM.
fn leaf(ca: &Ca, name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
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
    muster_scheduler::cli::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let (server_ca, client_ca) = (ca(), ca());
    write_server(directory.path(), &server_ca, &client_ca);
    let certificates = Certificates::read(directory.path(), true).unwrap();
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
    let missing = Certificates::read(directory.path(), true).unwrap_err();
    assert!(missing.to_string().contains("tls.crt"), "{missing}");
    for name in ["tls.crt", "tls.key", "client-ca.crt"] {
        std::fs::write(directory.path().join(name), "nonsense").unwrap();
    }
    let nonsense = Certificates::read(directory.path(), true).unwrap_err();
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

/// A plain door of the extender with so many places.
fn plain(
    places: usize,
) -> (
    SocketAddr,
    extender::Bench,
    CancellationToken,
    JoinHandle<()>,
) {
    let door = Door::open("test", "127.0.0.1:0".parse().unwrap(), None, places).unwrap();
    let address = door.address().unwrap();
    let bench = extender::bench();
    let stop = CancellationToken::new();
    let task = tokio::spawn(door.serve(bench.router.clone(), stop.clone()));
    (address, bench, stop, task)
}

/// A plain HTTP/2 connection; it answers pings.
async fn plain_connection(address: SocketAddr) -> Sender {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
            .await
            .unwrap();
    // Ends with its sender, or when the door closes it.
    tokio::spawn(connection);
    sender
}

const FILTER: &str = "/v1/short/filter";
const IN_TIME: Duration = Duration::from_secs(30);

/// Pings keep an idle HTTP/2 connection for as long as its client likes.
#[tokio::test]
async fn idle_connections_give_way_to_one_that_asks_and_a_held_bind_does_not() {
    let (address, mut bench, stop, task) = plain(3);
    let mut holding = plain_connection(address).await;
    let bind = tokio::spawn(async move {
        let body = r#"{"PodName":"p","PodNamespace":"ns","PodUID":"u","Node":"n2"}"#;
        post(&mut holding, "/v1/bind/bind", body).await
    });
    let ticket = loop {
        if let Some(Event::BindAsked(asked)) = bench.outbox.wait().await {
            break asked.ticket;
        }
    };
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut sender = plain_connection(address).await;
        post(&mut sender, FILTER, "{}").await.unwrap();
        idle.push(sender);
    }
    for _ in 0..3 {
        let asked = async {
            let mut sender = plain_connection(address).await;
            let answer = post(&mut sender, FILTER, "{}").await;
            (sender, answer)
        };
        let (sender, answer) = tokio::time::timeout(IN_TIME, asked).await.unwrap();
        assert_eq!(answer.unwrap().0, 200);
        idle.push(sender);
    }
    assert!(bench.binds.answer(ticket, Ok(())));
    assert_eq!(bind.await.unwrap(), Ok((200, r#"{"Error":""}"#.to_owned())));
    stop.cancel();
    task.await.unwrap();
}

/// They would be closed after ten seconds, and others come in their place.
#[tokio::test]
async fn connections_that_say_nothing_give_way_at_once() {
    let (address, _bench, stop, task) = plain(2);
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let asked = async {
        let mut sender = plain_connection(address).await;
        post(&mut sender, FILTER, "{}").await
    };
    let answer = tokio::time::timeout(Duration::from_secs(7), asked).await;
    assert_eq!(answer.unwrap().unwrap().0, 200);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn ten_thousand_connections_that_ask_nothing_keep_nobody_out() {
    const STRANGERS: usize = 10_000;
    let (address, _bench, stop, task) = plain(2048);
    let mut known = plain_connection(address).await;
    post(&mut known, FILTER, "{}").await.unwrap();
    let strangers: Vec<_> = (0..STRANGERS)
        .map(|n| {
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.ok()?;
                // Some say nothing, some begin and go no further.
                let said: &[u8] = if n % 2 == 0 { b"" } else { b"POST /v1/short" };
                stream.write_all(said).await.ok()?;
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.ok()
            })
        })
        .collect();
    let newcomer = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = async {
            let mut sender = plain_connection(address).await;
            post(&mut sender, FILTER, "{}").await
        };
        tokio::time::timeout(IN_TIME, asked).await
    });
    let mut asked = 0_u32;
    while !newcomer.is_finished() {
        let answer = tokio::time::timeout(IN_TIME, post(&mut known, FILTER, "{}")).await;
        assert_eq!(answer.unwrap().unwrap().0, 200, "after {asked} answers");
        asked += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(newcomer.await.unwrap().unwrap().unwrap().0, 200);
    assert!(asked > 10, "only {asked} were asked meanwhile");
    strangers.iter().for_each(JoinHandle::abort);
    stop.cancel();
    task.await.unwrap();
}
