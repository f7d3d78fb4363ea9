//! The extender's socket: TLS with client certificates, HTTP/2, limits.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// Most that the process grows by under a siege, its own strangers included: a few tens of KiB for each.
const MEMORY_MAX: u64 = 256 << 20;

/// Memory of this process, bytes.
fn resident() -> u64 {
    let said = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = said.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size() as u64
}

/// As many strangers as were wished for, or as the limit of open files leaves room for: each takes a file here, and some
/// at the door.
fn strangers_for(wished: usize) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let files = limit
        .current
        .map_or(usize::MAX, |files| files.try_into().unwrap());
    let count = wished.min(files.saturating_sub(4096));
    if count < wished {
        eprintln!("{count} of {wished} strangers: the limit is {files} open files");
    }
    assert!(count > 100, "{files} open files are too few for this test");
    count
}

/// Strangers who connect all at once, and ask nothing.
struct Siege {
    tasks: Vec<JoinHandle<()>>,
    tried: Arc<AtomicUsize>,
    connected: Arc<AtomicUsize>,
    memory_before: u64,
}

impl Siege {
    /// Some say nothing, or no more than a TLS handshake where the door has TLS; some begin and go no further.
    fn begin(address: SocketAddr, wished: usize, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        let memory_before = resident();
        let (tried, connected) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let tasks = (0..strangers_for(wished)).map(|n| {
            let (tried, connected) = (Arc::clone(&tried), Arc::clone(&connected));
            let tls = tls.clone().filter(|_| n % 2 == 0);
            tokio::spawn(async move {
                let stream = TcpStream::connect(address).await;
                tried.fetch_add(1, Ordering::Relaxed);
                let Ok(mut stream) = stream else { return };
                connected.fetch_add(1, Ordering::Relaxed);
                // How it ends is the door's business.
                let mut rest = Vec::new();
                if let Some(tls) = tls {
                    let name = ServerName::try_from("muster.test").unwrap();
                    let tls = tokio_rustls::TlsConnector::from(tls);
                    if let Ok(mut stream) = tls.connect(name, stream).await {
                        let _ = stream.read_to_end(&mut rest).await;
                    }
                    return;
                }
                let said: &[u8] = if n % 2 == 0 { b"" } else { b"POST /v1/short" };
                let _ = stream.write_all(said).await;
                let _ = stream.read_to_end(&mut rest).await;
            })
        });
        Self {
            tasks: tasks.collect(),
            tried,
            connected,
            memory_before,
        }
    }

    fn is_laid(&self) -> bool {
        self.tried.load(Ordering::Relaxed) == self.tasks.len()
    }

    /// Whether it was one: nearly all were let in or wait at the door, and what they cost is bounded.
    async fn end(self) {
        let (connected, wanted) = (self.connected.load(Ordering::Relaxed), self.tasks.len());
        let memory = resident().saturating_sub(self.memory_before);
        eprintln!("{connected} of {wanted} connected, {} MiB", memory >> 20);
        assert!(
            connected * 10 >= wanted * 9,
            "{connected} of {wanted} connected"
        );
        assert!(
            memory < MEMORY_MAX,
            "{memory} bytes for {connected} connections"
        );
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Lays siege to a door. Meanwhile somebody who was there before is answered again and again, and somebody new once.
async fn besiege<C, A>(
    siege: impl FnOnce() -> Siege,
    connect: impl Fn() -> C + Send + Sync + 'static,
    ask: impl Fn(Sender) -> A + Send + Sync + Clone + 'static,
) where
    C: Future<Output = Sender> + Send,
    A: Future<Output = Sender> + Send,
{
    let mut known = ask(connect().await).await;
    let siege = siege();
    let asking = ask.clone();
    let newcomer = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = async {
            let sender = connect().await;
            asking(sender).await
        };
        tokio::time::timeout(IN_TIME, asked).await.map(drop)
    });
    let mut asked = 0_u32;
    while !newcomer.is_finished() || !siege.is_laid() {
        known = tokio::time::timeout(IN_TIME, ask(known))
            .await
            .unwrap_or_else(|_| panic!("no answer after {asked} answers"));
        asked += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    newcomer.await.unwrap().unwrap();
    assert!(asked > 10, "only {asked} were asked meanwhile");
    siege.end().await;
}

#[tokio::test]
async fn ten_thousand_connections_that_ask_nothing_keep_nobody_out_of_the_extender() {
    let (address, _bench, stop, task) = plain(2048);
    besiege(
        || Siege::begin(address, 10_000, None),
        move || plain_connection(address),
        |mut sender| async move {
            let answer = post(&mut sender, FILTER, "{}").await;
            assert_eq!(answer.unwrap().0, 200);
            sender
        },
    )
    .await;
    stop.cancel();
    task.await.unwrap();
}

/// Its places are few, so that this many take a few seconds to come and go.
#[tokio::test]
async fn a_thousand_connections_that_ask_nothing_keep_nobody_from_the_pages() {
    let door = Door::open_pages("pages", "127.0.0.1:0".parse().unwrap(), 256).unwrap();
    let address = door.address().unwrap();
    let stop = CancellationToken::new();
    let router = Router::new().route("/healthz", get(async || "ok\n"));
    let task = tokio::spawn(door.serve(router, stop.clone()));
    besiege(
        || Siege::begin(address, 1000, None),
        move || plain_connection(address),
        move |mut sender| async move {
            let request = Request::get(format!("http://{address}/healthz"));
            let request = request.body(Full::new(Bytes::new())).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            sender
        },
    )
    .await;
    stop.cancel();
    task.await.unwrap();
}

/// Half of them make the door shake hands, which costs it more than them.
#[tokio::test]
async fn hundreds_of_tls_connections_that_ask_nothing_keep_no_agent_out() {
    muster_scheduler::cli::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let (server_ca, client_ca) = (ca(), ca());
    write_server(directory.path(), &server_ca, &client_ca);
    let certificates = Certificates::read(directory.path(), Callers::Anybody).unwrap();
    let door = Door::open(
        "agents",
        "127.0.0.1:0".parse().unwrap(),
        Some(certificates),
        256,
    );
    let door = door.unwrap();
    let address = door.address().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(door.serve(crate::agents::reviewed_router(), stop.clone()));
    let config = client_config(&server_ca, None);
    let theirs = Arc::clone(&config);
    besiege(
        || Siege::begin(address, 800, Some(theirs)),
        move || tls_connection(address, Arc::clone(&config)),
        |mut sender| async move {
            let path = "https://muster.test/muster.inventory.v1.Inventory/Report";
            let request = Request::post(path)
                .header("content-type", "application/grpc")
                .header("authorization", "Bearer token-of-n1")
                .body(Full::new(Bytes::new()))
                .unwrap();
            let answer = sender.send_request(request).await.unwrap();
            let refused = answer.headers().get("grpc-status");
            assert!(answer.status() == 200 && refused.is_none(), "{answer:?}");
            sender
        },
    )
    .await;
    stop.cancel();
    task.await.unwrap();
}

/// What it says before it asks is kept in memory: ten thousand heads that never end would be gigabytes.
#[tokio::test]
async fn a_head_without_end_is_refused_long_before_it_is_large() {
    const HEAD_MAX: usize = 64 << 10;
    let (address, _bench, stop, task) = plain(4);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut said = b"POST /v1/short/filter HTTP/1.1\r\nhost: a\r\nx: ".to_vec();
    said.resize(HEAD_MAX, b'x');
    stream.write_all(&said).await.unwrap();
    let mut answer = String::new();
    let told = stream.read_to_string(&mut answer);
    let told = tokio::time::timeout(Duration::from_secs(5), told).await;
    assert!(
        told.is_ok() && answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );
    let mut large = b"POST /v1/short/filter HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\nx: ".to_vec();
    large.resize(HEAD_MAX / 2, b'x');
    large.extend(b"\r\n\r\n{}");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&large).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    stop.cancel();
    task.await.unwrap();
}
