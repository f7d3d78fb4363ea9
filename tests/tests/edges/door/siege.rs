//! Connections that ask nothing, few and thousands.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::Request;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use muster_core::event::Event;
use muster_scheduler::server::Door;
use muster_scheduler::tls::{Callers, Certificates};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{IN_TIME, Sender, ca, client_config, post, tls_connection, write_server};
use crate::extender;

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

/// Answers during a siege. How long they take together is up to what else the machine does.
const ANSWERS_MIN: u32 = 10;

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
    let answers = async {
        while !newcomer.is_finished() || !siege.is_laid() || asked < ANSWERS_MIN {
            known = ask(known).await;
            asked += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(IN_TIME, answers).await.is_err() {
        panic!("only {asked} answers in {IN_TIME:?}");
    }
    newcomer.await.unwrap().unwrap();
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
