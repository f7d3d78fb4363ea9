//! kube-scheduler's side of the extender's door: one TLS connection with a client certificate, HTTP/2,
//! and callers that share it.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::world::{Scheduler, World};

/// As the certificate names the server.
const HOST: &str = "localhost";

/// An open connection. Dropping it closes it.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Reads and writes the connection; ends with it.
    _driver: JoinSet<()>,
}

impl Connection {
    /// Connects to a scheduler's extender as kube-scheduler does.
    ///
    /// # Errors
    /// The certificates cannot be used, or the server does not take them or speaks no HTTP/2.
    pub async fn open(world: &World, scheduler: &Scheduler) -> anyhow::Result<Self> {
        let tcp = TcpStream::connect(&scheduler.extender).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(tls(world)?));
        let tls = connector.connect(ServerName::try_from(HOST)?, tcp).await?;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            bail!("the extender speaks no HTTP/2");
        }
        let opened = handshake(TokioExecutor::new(), TokioIo::new(tls)).await;
        let (sender, connection) = opened.context("HTTP/2")?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // How a connection ends shows in the calls on it.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            _driver: driver,
        })
    }

    /// Asks and returns the answer's body.
    ///
    /// # Errors
    /// No answer, or another one than 200.
    pub async fn ask(&self, path: &str, body: Bytes) -> anyhow::Result<Bytes> {
        let request = Request::post(format!("https://{HOST}{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status != StatusCode::OK {
            bail!(
                "{path} answers {status}: {}",
                String::from_utf8_lossy(&body)
            );
        }
        Ok(body)
    }
}

fn tls(world: &World) -> anyhow::Result<ClientConfig> {
    let files = world.caller()?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(
        world.authority.ca_pem().as_bytes(),
    )?)?;
    let chain = CertificateDer::pem_file_iter(&files.cert)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&files.key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
