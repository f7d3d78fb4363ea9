//! Serves an axum router on a socket: TLS with HTTP/2 and HTTP/1.1, or plain on loopback.
//!
//! Every connection belongs to the set of the accept loop and ends with it. Limits: connections at
//! once (for more, those that ask nothing give way; the rest wait in the kernel's queue), time for the
//! TLS handshake and for the first bytes, time for a request's headers, streams per connection, and a
//! ping that finds dead peers.

mod crowd;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::{Extension, Router};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::tls::Certificates;
use crowd::{Answered, Crowd, Guest};

/// Time for the TLS handshake, for the first bytes and for the headers of a request.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Time that open connections get to end after a stop, and one that is asked to leave.
const GOODBYE_MAX: Duration = Duration::from_secs(5);
/// The same of one that waits for no answer: a round trip, for the peer may never say goodbye itself.
const IDLE_GOODBYE_MAX: Duration = Duration::from_millis(200);
/// Longest head of an HTTP/1.1 request, bytes. It is held in memory until it is whole: hyper's own limit is six times as much, for
/// each of thousands of connections. One of HTTP/2 may have 16 KiB.
const HEAD_MAX: usize = 64 << 10;
/// Streams per HTTP/2 connection: kube-scheduler holds one Bind for each member of a gang, all on
/// one connection.
const STREAMS_MAX: u32 = 16_384;

/// A socket to serve on.
#[derive(Debug)]
pub struct Door {
    /// For logs.
    pub name: &'static str,
    /// The socket.
    pub listener: TcpListener,
    /// Certificates; `None` is plain HTTP.
    pub certificates: Option<Certificates>,
    /// Most connections at once.
    pub connections_max: usize,
    /// Each request carries the [`Peer`] that it came from.
    pub tells_peers: bool,
}

/// Address of a connection's other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Why a socket is not opened.
#[derive(Debug, thiserror::Error)]
pub enum InvalidDoor {
    /// Plain HTTP may only be spoken on loopback.
    #[error("{name} on {address}: plain HTTP is only allowed on a loopback address")]
    NotLoopback {
        /// Which door.
        name: &'static str,
        /// The address asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("{name} on {address}: {error}")]
    Unbound {
        /// Which door.
        name: &'static str,
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
}

impl Door {
    /// Listens on an address. Without certificates it must be a loopback address.
    pub fn open(
        name: &'static str,
        address: SocketAddr,
        certificates: Option<Certificates>,
        connections_max: usize,
    ) -> Result<Self, InvalidDoor> {
        if certificates.is_none() && !address.ip().is_loopback() {
            return Err(InvalidDoor::NotLoopback { name, address });
        }
        let listener = listen(address).map_err(|error| InvalidDoor::Unbound {
            name,
            address,
            error,
        })?;
        Ok(Self {
            name,
            listener,
            certificates,
            connections_max,
            tells_peers: false,
        })
    }

    /// Listens on an address for pages that hold no secrets: plain HTTP on any address.
    pub fn open_pages(
        name: &'static str,
        address: SocketAddr,
        connections_max: usize,
    ) -> Result<Self, InvalidDoor> {
        let listener = listen(address).map_err(|error| InvalidDoor::Unbound {
            name,
            address,
            error,
        })?;
        Ok(Self {
            name,
            listener,
            certificates: None,
            connections_max,
            tells_peers: true,
        })
    }

    /// The address listened on.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until stopped, then lets open connections end within a few seconds.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let crowd = Crowd::new(self.connections_max);
        let mut connections = JoinSet::new();
        loop {
            let (stream, peer) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file handles, usually: waiting is all that helps.
                        tracing::warn!(door = self.name, %error, "a connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let router = match self.tells_peers {
                true => router.clone().layer(Extension(Peer(peer))),
                false => router.clone(),
            };
            let certificates = self.certificates.clone();
            let Some(place) = crowd.enter(&stop).await else {
                break;
            };
            connections.spawn(async move {
                let guest = Arc::clone(&place.guest);
                tokio::select! {
                    biased;
                    () = connection(stream, certificates, router, guest) => {}
                    () = overdue(&place.guest) => {}
                }
            });
        }
        let all_ended = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(GOODBYE_MAX, all_ended).await.is_err() {
            connections.shutdown().await;
        }
    }
}

/// Returns when a connection that was asked to leave has asked nothing itself, so that there is nothing to
/// end well, or has not left in time and waits for no answer.
async fn overdue(guest: &Guest) {
    guest.leave.cancelled().await;
    while guest.has_asked() {
        let wait = match guest.is_asking() {
            true => GOODBYE_MAX,
            false => IDLE_GOODBYE_MAX,
        };
        tokio::time::sleep(wait).await;
        if !guest.is_asking() {
            return;
        }
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    // Thousands of agents connect at once after a restart; the default backlog overflows.
    socket.listen(8192)
}

async fn connection(
    stream: TcpStream,
    certificates: Option<Certificates>,
    router: Router,
    guest: Arc<Guest>,
) {
    // Answers are small; waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    match certificates {
        Some(certificates) => {
            let acceptor = TlsAcceptor::from(certificates.current());
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await
            else {
                return;
            };
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            // It is moved several times on its way into the connection's future, which has a place for each: with
            // the state of TLS in them they would be most of what an idle connection takes.
            speak(Box::new(stream), h2, router, guest).await;
        }
        None => {
            let Ok(Some(h2)) = tokio::time::timeout(HANDSHAKE_MAX, speaks_h2(&stream)).await else {
                return;
            };
            speak(stream, h2, router, guest).await;
        }
    }
}

/// Whether a plain connection begins with the preface of HTTP/2. `None`: it is closed.
async fn speaks_h2(stream: &TcpStream) -> Option<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2";
    let mut bytes = [0_u8; 12];
    loop {
        let read = stream.peek(&mut bytes).await.ok()?;
        let seen = bytes.get(..read)?;
        if read == 0 {
            return None;
        }
        if !PREFACE.starts_with(seen) {
            return Some(false);
        }
        if read == PREFACE.len() {
            return Some(true);
        }
        // The rest is on its way; peek returns at once while bytes are waiting.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn speak<S>(stream: S, h2: bool, router: Router, guest: Arc<Guest>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stop = guest.leave.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let visit = guest.visit();
        let answer = router.clone().oneshot(request.map(Body::new));
        async move {
            let answer: Response<Body> = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| Answered::wrap(body, visit)))
        }
    });
    let io = TokioIo::new(stream);
    // An error of a connection is the other side's going away or speaking nonsense.
    if h2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        let mut served = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            biased;
            _ = served.as_mut() => {}
            () = stop.cancelled() => {
                served.as_mut().graceful_shutdown();
                let _ = served.await;
            }
        }
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .max_buf_size(HEAD_MAX)
            .header_read_timeout(HANDSHAKE_MAX);
        let mut served = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            biased;
            _ = served.as_mut() => {}
            () = stop.cancelled() => {
                served.as_mut().graceful_shutdown();
                let _ = served.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// Thousands of agents hold a connection each. With the state of TLS moved from future to future each took 7.3 KB.
    #[test]
    fn a_connection_that_waits_holds_the_state_of_tls_once() {
        let bytes = size(connection);
        assert!(bytes < 4_500, "{bytes} bytes");
    }
}
