//! How streams get their connections: which replicas there are, a channel to one, a token for one node.
//!
//! [`NetConnector`] uses the network; [`IoConnector`] any byte stream, so that tests run over
//! in-memory pipes on a paused clock.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// Time between two looks at which replicas there are.
pub const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);
/// First upper limit of the random wait before the next look once a replica is missed; doubles with each.
const MISSED_BASE: Duration = Duration::from_secs(2);
/// Last upper limit of that wait.
const MISSED_CAP: Duration = Duration::from_secs(10);
/// Time for a connection to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// HTTP/2 pings find a peer that is gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Largest token, bytes. Service account tokens have about 1 KiB.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Replicas that get a stream; a scheduler has two or three.
const REPLICAS_MAX: usize = 16;

/// One scheduler replica: its address, or a name that the connector understands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica(pub String);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL cannot be used.
    #[error("scheduler url {url}: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The host name has no address.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// Host name.
        host: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The CA file cannot be used.
    #[error("cannot read ca file {path}: {source}")]
    Ca {
        /// Path.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The connection failed.
    #[error("cannot connect to {replica}: {source}")]
    Transport {
        /// Replica.
        replica: String,
        /// Cause.
        source: tonic::transport::Error,
    },
    /// No token.
    #[error("no token for node {node}: {reason}")]
    Token {
        /// Node.
        node: String,
        /// What is wrong.
        reason: String,
    },
}

/// Finds replicas and connects to them. Shared by all nodes of a process.
pub trait Connector: Send + Sync + 'static {
    /// The replicas there are now.
    fn resolve(&self) -> BoxFuture<'_, Result<Vec<Replica>, ConnectError>>;
    /// A new connection to one of them.
    fn connect<'a>(&'a self, replica: &'a Replica) -> BoxFuture<'a, Result<Channel, ConnectError>>;
}

/// Gives the token of a node. Called for each stream and every half minute, so it must be quick.
pub trait TokenProvider: Send + Sync + 'static {
    /// The token to present for this node; `None` to present none.
    fn token(&self, node_name: &str) -> Result<Option<String>, ConnectError>;
}

impl<F> TokenProvider for F
where
    F: Fn(&str) -> Result<Option<String>, ConnectError> + Send + Sync + 'static,
{
    fn token(&self, node_name: &str) -> Result<Option<String>, ConnectError> {
        self(node_name)
    }
}

/// Presents no token.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoToken;

impl TokenProvider for NoToken {
    fn token(&self, _: &str) -> Result<Option<String>, ConnectError> {
        Ok(None)
    }
}

/// Reads the token from a file each time, so that a rotated one is used.
#[derive(Debug, Clone)]
pub enum FileToken {
    /// One file for whatever node.
    File(PathBuf),
    /// A directory with one file per node, named as the node.
    Directory(PathBuf),
}

impl TokenProvider for FileToken {
    fn token(&self, node_name: &str) -> Result<Option<String>, ConnectError> {
        let fail = |reason: String| ConnectError::Token {
            node: node_name.into(),
            reason,
        };
        let path = match self {
            Self::File(path) => path.clone(),
            Self::Directory(_) if node_name.contains(['/', '\\']) || node_name.starts_with('.') => {
                return Err(fail("the node's name is no file name".into()));
            }
            Self::Directory(directory) => directory.join(node_name),
        };
        let text = std::fs::read_to_string(&path)
            .map_err(|error| fail(format!("{}: {error}", path.display())))?;
        let token = text.trim();
        if token.is_empty()
            || token.len() > TOKEN_BYTES_MAX
            || !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            let limit = format!("1 to {TOKEN_BYTES_MAX} printable bytes");
            return Err(fail(format!(
                "{} has {} bytes, must have {limit}",
                path.display(),
                token.len()
            )));
        }
        Ok(Some(token.to_owned()))
    }
}

/// Connects over the network. The host of the URL may have several addresses: each is a replica.
#[derive(Debug, Clone)]
pub struct NetConnector {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<ClientTlsConfig>,
}

impl NetConnector {
    /// A connector to `http://host:port` or `https://host:port`; the certificate is checked against
    /// the CA in `ca_pem` (needed with https, refused with http) and the URL's host.
    pub fn new(url: &str, ca_pem: Option<&[u8]>) -> Result<Self, ConnectError> {
        let fail = |reason: &str| ConnectError::Url {
            url: url.into(),
            reason: reason.into(),
        };
        let uri: Uri = url
            .parse()
            .map_err(|_| fail("must be of the form https://host:port"))?;
        let host = uri
            .host()
            .ok_or_else(|| fail("has no host"))?
            .trim_matches(['[', ']'])
            .to_owned();
        let tls = match (uri.scheme_str(), ca_pem) {
            (Some("https"), Some(pem)) => Some(
                ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(pem))
                    .domain_name(host.clone()),
            ),
            (Some("https"), None) => return Err(fail("needs a ca file for https")),
            (Some("http"), None) => None,
            (Some("http"), Some(_)) => return Err(fail("takes no ca file without https")),
            _ => return Err(fail("scheme must be http or https")),
        };
        let port = uri
            .port_u16()
            .unwrap_or(if tls.is_some() { 443 } else { 80 });
        Ok(Self {
            uri,
            host,
            port,
            tls,
        })
    }

    /// True when what is sent cannot be read on the way: TLS, or the machine itself.
    pub fn is_private(&self) -> bool {
        let loopback = self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        self.tls.is_some() || loopback
    }
}

impl Connector for NetConnector {
    fn resolve(&self) -> BoxFuture<'_, Result<Vec<Replica>, ConnectError>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((self.host.as_str(), self.port))
                .await
                .map_err(|source| ConnectError::Resolve {
                    host: self.host.clone(),
                    source,
                })?;
            let mut addresses: BTreeSet<_> = found.collect();
            // "localhost" has two addresses and one listener.
            if addresses.len() > 1 && addresses.iter().all(|address| address.ip().is_loopback()) {
                addresses.retain(|address| address.is_ipv4());
            }
            Ok(addresses
                .into_iter()
                .take(REPLICAS_MAX)
                .map(|address| Replica(address.to_string()))
                .collect())
        })
    }

    fn connect<'a>(&'a self, replica: &'a Replica) -> BoxFuture<'a, Result<Channel, ConnectError>> {
        Box::pin(async move {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            let fail = |source| ConnectError::Transport {
                replica: replica.0.clone(),
                source,
            };
            let endpoint =
                Endpoint::from_shared(format!("{scheme}://{}", replica.0)).map_err(fail)?;
            let mut endpoint = tuned(endpoint).origin(self.uri.clone());
            if let Some(tls) = &self.tls {
                endpoint = endpoint.tls_config(tls.clone()).map_err(fail)?;
            }
            endpoint.connect().await.map_err(fail)
        })
    }
}

/// Connects over byte streams that a closure makes; for tests and for everything in one process.
pub struct IoConnector<F> {
    replicas: Vec<Replica>,
    open: Arc<F>,
}

impl<F, Fut, Io> IoConnector<F>
where
    F: Fn(Replica) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = std::io::Result<Io>> + Send + 'static,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// `open` makes one end of a byte stream whose other end a server of that replica reads.
    pub fn new(replicas: impl IntoIterator<Item = String>, open: F) -> Self {
        Self {
            replicas: replicas.into_iter().map(Replica).collect(),
            open: Arc::new(open),
        }
    }
}

impl<F, Fut, Io> Connector for IoConnector<F>
where
    F: Fn(Replica) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = std::io::Result<Io>> + Send + 'static,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn resolve(&self) -> BoxFuture<'_, Result<Vec<Replica>, ConnectError>> {
        Box::pin(async move { Ok(self.replicas.clone()) })
    }

    fn connect<'a>(&'a self, replica: &'a Replica) -> BoxFuture<'a, Result<Channel, ConnectError>> {
        Box::pin(async move {
            let (open, name) = (Arc::clone(&self.open), replica.clone());
            let service = tower::service_fn(move |_: Uri| {
                let stream = open(name.clone());
                async move { stream.await.map(TokioIo::new) }
            });
            tuned(Endpoint::from_static("http://scheduler.in-process"))
                .connect_with_connector(service)
                .await
                .map_err(|source| ConnectError::Transport {
                    replica: replica.0.clone(),
                    source,
                })
        })
    }
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
}

/// Looks for replicas again and again and publishes them until nobody listens. A failure keeps the ones known before.
///
/// Whoever misses a replica says so by `missed`: one that starts again most likely has another address.
/// Then the next look comes sooner, at a random time, lest all nodes ask at once.
pub async fn resolve_forever(
    connector: Arc<dyn Connector>,
    replicas: watch::Sender<Vec<Replica>>,
    missed: Arc<Notify>,
    seed: u64,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut limit = MISSED_BASE;
    loop {
        let found = connector.resolve().await;
        let wait = match found {
            Ok(found) => {
                replicas.send_if_modified(|known| {
                    let differs = *known != found;
                    *known = found;
                    if differs {
                        limit = MISSED_BASE;
                    }
                    differs
                });
                RESOLVE_INTERVAL
            }
            Err(error) => {
                tracing::warn!(%error, "cannot find the scheduler's replicas");
                if replicas.borrow().is_empty() {
                    CONNECT_TIMEOUT
                } else {
                    RESOLVE_INTERVAL
                }
            }
        };
        tokio::select! {
            biased;
            () = replicas.closed() => return,
            () = tokio::time::sleep(wait) => limit = MISSED_BASE,
            () = async {
                missed.notified().await;
                tokio::time::sleep(limit.mul_f64(rng.random::<f64>())).await;
            } => limit = limit.saturating_mul(2).min(MISSED_CAP),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use futures::future::BoxFuture;
    use tokio::sync::{Notify, watch};
    use tonic::transport::Channel;

    use super::{
        ConnectError, Connector, FileToken, NetConnector, Replica, TokenProvider, resolve_forever,
    };

    /// Replicas that move, and how often they were looked for.
    #[derive(Default)]
    struct Moving {
        now: Mutex<Vec<Replica>>,
        looks: AtomicUsize,
    }

    impl Connector for Moving {
        fn resolve(&self) -> BoxFuture<'_, Result<Vec<Replica>, ConnectError>> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(self.now.lock().unwrap().clone()) })
        }

        fn connect<'a>(&'a self, _: &'a Replica) -> BoxFuture<'a, Result<Channel, ConnectError>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn missed_replica_is_looked_for_sooner_but_not_all_the_time() {
        let moving = Arc::new(Moving::default());
        let (found, mut replicas) = watch::channel(Vec::new());
        let missed = Arc::new(Notify::new());
        let connector: Arc<dyn Connector> = Arc::<Moving>::clone(&moving);
        tokio::spawn(resolve_forever(connector, found, Arc::clone(&missed), 7));
        tokio::time::sleep(Duration::from_secs(301)).await;
        assert_eq!(moving.looks.load(Ordering::Relaxed), 11, "every 30 s");
        // One that has moved is found at once by those who miss it.
        *moving.now.lock().unwrap() = vec![Replica("new".into())];
        let asked = tokio::time::Instant::now();
        missed.notify_one();
        replicas.changed().await.unwrap();
        assert!(asked.elapsed() <= Duration::from_secs(2));
        // One that stays away is not asked for at the pace of those who miss it.
        let before = moving.looks.load(Ordering::Relaxed);
        for _ in 0..3000 {
            missed.notify_one();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let looks = moving.looks.load(Ordering::Relaxed) - before;
        assert!((30..120).contains(&looks), "{looks} looks in 300 s");
    }

    #[test]
    fn urls_that_would_surprise_are_refused() {
        for (url, ca, reason) in [
            ("https://muster:7443", None, "ca file"),
            ("http://muster:7443", Some(&b"x"[..]), "no ca file"),
            ("ftp://muster", None, "scheme"),
            ("muster", None, "scheme"),
            ("http://", None, "form"),
        ] {
            let error = NetConnector::new(url, ca).unwrap_err().to_string();
            assert!(error.contains(reason), "{url}: {error}");
        }
        assert!(
            NetConnector::new("http://127.0.0.1:1", None)
                .unwrap()
                .is_private()
        );
        assert!(
            !NetConnector::new("http://muster:1", None)
                .unwrap()
                .is_private()
        );
    }

    #[tokio::test]
    async fn localhost_is_one_replica() {
        let found = NetConnector::new("http://localhost:7070", None)
            .unwrap()
            .resolve()
            .await
            .unwrap();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn tokens_are_read_fresh_and_checked() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = FileToken::Directory(directory.path().into());
        assert!(tokens.token("a").is_err());
        std::fs::write(directory.path().join("a"), "abc\n").unwrap();
        assert_eq!(tokens.token("a").unwrap().as_deref(), Some("abc"));
        std::fs::write(directory.path().join("a"), "ab c").unwrap();
        assert!(
            tokens
                .token("a")
                .unwrap_err()
                .to_string()
                .contains("printable")
        );
        assert!(
            tokens
                .token("../a")
                .unwrap_err()
                .to_string()
                .contains("file name")
        );
    }
}
