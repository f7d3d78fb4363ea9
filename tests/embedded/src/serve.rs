//! The API server on a loopback port, for kubectl and for programs in other processes.
//!
//! HTTP/1 and HTTP/2, plain or over TLS with a certificate authority made for this server. Every connection is a task
//! of one tracker: `Served::stop` ends them and waits for them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::ApiServer;
use crate::api::http::ApiService;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the server could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port could not be taken.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The certificates could not be made.
    #[error("cannot make the certificates of the api server: {0}")]
    Certificate(String),
    /// The kubeconfig could not be written.
    #[error("cannot write the kubeconfig {path}")]
    Kubeconfig {
        /// The path.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// A server on a port.
#[derive(Debug)]
pub struct Served {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificate authority in PEM, when it speaks TLS.
    pub authority: Option<String>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Served {
    /// `http://127.0.0.1:1234` or `https://…`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address)
    }

    /// The text of a kubeconfig for this server.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let authority = match &self.authority {
            Some(pem) => format!(
                "    certificate-authority-data: {}\n",
                crate::api::base64(pem.as_bytes())
            ),
            None => String::new(),
        };
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: embedded\nclusters:\n- name: embedded\n  cluster:\n    server: {}\n{authority}contexts:\n- name: embedded\n  context:\n    cluster: embedded\n    user: admin\n    namespace: default\nusers:\n- name: admin\n  user:\n    token: admin\n",
            self.url()
        )
    }

    /// Writes the kubeconfig.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<(), ServeError> {
        std::fs::write(path, self.kubeconfig()).map_err(|source| ServeError::Kubeconfig {
            path: path.display().to_string(),
            source,
        })
    }

    /// Ends all connections and waits for them.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl ApiServer {
    /// Serves on `127.0.0.1:port` (0 takes a free one), with TLS or without.
    ///
    /// # Errors
    /// When the port is taken or the certificates cannot be made.
    pub async fn serve(&self, port: u16, tls: bool) -> Result<Served, ServeError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (acceptor, authority) = if tls {
            let (config, authority) = certificates().map_err(ServeError::Certificate)?;
            (Some(TlsAcceptor::from(Arc::new(config))), Some(authority))
        } else {
            (None, None)
        };
        let stop = self.stopped().child_token();
        let tasks = TaskTracker::new();
        let connections = Connections {
            service: self.service(None),
            acceptor,
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(connections.accept(listener));
        Ok(Served {
            address,
            authority,
            stop,
            tasks,
        })
    }
}

#[derive(Clone)]
struct Connections {
    service: ApiService,
    acceptor: Option<TlsAcceptor>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Connections {
    async fn accept(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    self.tasks.spawn(self.clone().connection(stream));
                }
                // Out of file descriptors, most likely: wait for connections to end instead of spinning.
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self, stream: TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set nodelay");
        }
        match self.acceptor.clone() {
            None => self.speak(TokioIo::new(stream)).await,
            Some(acceptor) => {
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => self.speak(TokioIo::new(stream)).await,
                    other => tracing::debug!(failed = ?other.err(), "no tls handshake"),
                }
            }
        }
    }

    async fn speak<I>(self, io: I)
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let builder = Builder::new(TokioExecutor::new());
        let service = TowerToHyperService::new(self.service.clone());
        let connection = builder.serve_connection(io, service);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            done = connection => if let Err(error) = done {
                tracing::debug!(%error, "connection ended");
            },
        }
    }
}

/// A server configuration for localhost and the PEM of the authority that signed it.
fn certificates() -> Result<(rustls::ServerConfig, String), String> {
    let text = |e: rcgen::Error| e.to_string();
    let mut authority = CertificateParams::new(Vec::new()).map_err(text)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, "embedded cluster");
    let authority_key = KeyPair::generate().map_err(text)?;
    let authority_cert = authority.self_signed(&authority_key).map_err(text)?;
    let issuer = Issuer::new(authority, authority_key);
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).map_err(text)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(text)?;
    let cert = params.signed_by(&key, &issuer).map_err(text)?;
    let chain: Vec<CertificateDer<'static>> = vec![cert.der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| e.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((config, authority_cert.pem()))
}
