//! The clients for the API server. None of them retries by itself.
//!
//! Watches and the Lease have a kube client each, over HTTP/1.1. Writes go over HTTP/2: a gang of
//! hundreds of members is bound by as many requests at once, and over HTTP/1.1 each of them would
//! first open a connection of its own, whose TLS handshake costs the API server as much as the
//! binding itself. The API server takes 100 requests at a time on one connection, so there are as
//! many connections as the most writes at once need. Whether it speaks HTTP/2 is asked once, at the
//! start: then a burst after a quiet time waits for these connections instead of opening one each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::BodyExt as _;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

use crate::scheduler::Clients;

/// HTTP/2 as TLS names it.
const HTTP2: &[u8] = b"h2";
/// Longest time to connect.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How often a connection with requests on it is asked for a sign of life, and how long the sign may
/// take. A connection that gives none is closed: its requests end as unknown, the next ones open
/// another.
const PING_EVERY: Duration = Duration::from_secs(3);

/// Requests at a time that a connection is meant for. The API server's limit is 100.
const REQUESTS_EACH: usize = 64;

/// Clients for the API server that `config` names, for at most `writes_max` writes at once.
///
/// # Errors
/// What `config` says of certificates, keys or headers cannot be used.
pub async fn clients(mut config: kube::Config, writes_max: usize) -> anyhow::Result<Clients> {
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_MAX);
    // One connection pool each: a flood of writes must not hold up watches or the lease.
    let plain = || kube::Client::try_from(config.clone()).context("kubernetes client");
    let write = if config.proxy_url.is_some() {
        plain()?
    } else {
        let http2 = speaks_http2(&config).await.unwrap_or_else(|error| {
            tracing::warn!(
                error = format!("{error:#}"),
                "asking the API server for HTTP/2"
            );
            false
        });
        writing(&config, writes_max.div_ceil(REQUESTS_EACH).max(1), http2)?
    };
    Ok(Clients {
        watch: plain()?,
        write,
        lease: plain()?,
    })
}

/// Whether the server takes HTTP/2 in the TLS handshake.
async fn speaks_http2(config: &kube::Config) -> anyhow::Result<bool> {
    let url = &config.cluster_url;
    if url.scheme() != Some(&http::uri::Scheme::HTTPS) {
        return Ok(false);
    }
    let host = url.host().context("no host in the API server's URL")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = config.tls_server_name.as_deref().unwrap_or(host);
    let name =
        ServerName::try_from(name.to_owned()).with_context(|| format!("server name {name}"))?;
    let mut tls = config
        .rustls_client_config()
        .context("TLS to the API server")?;
    tls.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    let asked = async {
        let tcp = TcpStream::connect((host, url.port_u16().unwrap_or(443))).await?;
        let tls = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await?;
        std::io::Result::Ok(tls.get_ref().1.alpn_protocol() == Some(HTTP2))
    };
    let answer = tokio::time::timeout(CONNECT_MAX, asked).await;
    Ok(answer.context("no answer in time")??)
}

/// A client over `connections` pools in turn, each of one connection with `http2`; without it a pool
/// opens connections as it needs them.
fn writing(config: &kube::Config, connections: usize, http2: bool) -> anyhow::Result<kube::Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_MAX));
    let tls = config
        .rustls_client_config()
        .context("TLS to the API server")?;
    let mut connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name
            .clone()
            .try_into()
            .with_context(|| format!("tls-server-name {name}"))?;
        connector = connector.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let connector = connector.enable_all_versions().wrap_connector(tcp);
    let pools: Arc<[Http<_, Body>]> = (0..connections)
        .map(|_| {
            Http::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .http2_keep_alive_interval(PING_EVERY)
                .http2_keep_alive_timeout(PING_EVERY)
                .http2_only(http2)
                .build(connector.clone())
        })
        .collect();
    let turn = Arc::new(AtomicUsize::new(0));
    let in_turn = tower::service_fn(move |request: http::Request<Body>| {
        let turn = turn.fetch_add(1, Ordering::Relaxed);
        let pool = turn
            .checked_rem(pools.len())
            .and_then(|place| pools.get(place))
            .cloned();
        async move {
            let pool = pool.ok_or("no connection")?;
            pool.request(request).await.map_err(BoxError::from)
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().context("login")?)
        .layer(config.extra_headers_layer().context("extra headers")?)
        .service(in_turn)
        .map_response(|answer| answer.map(|body| body.map_err(BoxError::from)));
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}
