//! Certificates: read from a directory, and read again when the files change.
//!
//! `tls.crt` and `tls.key` are what the server shows; `client-ca.crt` is whom it believes. A
//! directory that cannot be read is an error at the start; later, the last good files stay in use
//! and the error is logged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// Why certificates are not taken.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTls {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file holds no usable PEM.
    #[error("{path}: no usable {what}")]
    NoPem {
        /// The file.
        path: String,
        /// `certificate` or `private key`.
        what: &'static str,
    },
    /// The parts do not fit together.
    #[error("certificates in {path}: {error}")]
    Unusable {
        /// The directory.
        path: String,
        /// What the library says.
        error: String,
    },
}

#[derive(Clone, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// A server's certificates, the current ones at any time.
#[derive(Clone)]
pub struct Certificates {
    directory: PathBuf,
    clients: bool,
    current: Arc<ArcSwap<ServerConfig>>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads a directory. With `clients`, callers must show a certificate of `client-ca.crt`.
    pub fn read(directory: &Path, clients: bool) -> Result<Self, InvalidTls> {
        let files = files(directory, clients)?;
        let config = build(directory, &files)?;
        Ok(Self {
            directory: directory.to_owned(),
            clients,
            current: Arc::new(ArcSwap::from_pointee(config)),
        })
    }

    /// The configuration for a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again when they changed, until stopped.
    pub async fn follow(self, stop: CancellationToken) {
        let mut held = files(&self.directory, self.clients).ok();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RELOAD_EVERY) => {}
            }
            match files(&self.directory, self.clients) {
                Ok(found) if held.as_ref() == Some(&found) => {}
                Ok(found) => match build(&self.directory, &found) {
                    Ok(config) => {
                        tracing::info!(directory = %self.directory.display(), "certificates reloaded");
                        self.current.store(Arc::new(config));
                        held = Some(found);
                    }
                    Err(error) => tracing::error!(%error, "changed certificates are not taken"),
                },
                Err(error) => tracing::error!(%error, "certificates cannot be read again"),
            }
        }
    }
}

fn files(directory: &Path, clients: bool) -> Result<Files, InvalidTls> {
    let read = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|error| InvalidTls::Unreadable {
            path: path.display().to_string(),
            error,
        })
    };
    Ok(Files {
        cert: read("tls.crt")?,
        key: read("tls.key")?,
        client_ca: clients.then(|| read("client-ca.crt")).transpose()?,
    })
}

fn certificates(
    directory: &Path,
    name: &str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, InvalidTls> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(InvalidTls::NoPem {
            path: directory.join(name).display().to_string(),
            what: "certificate",
        }),
    }
}

fn build(directory: &Path, files: &Files) -> Result<ServerConfig, InvalidTls> {
    let unusable = |error: &dyn std::fmt::Display| InvalidTls::Unusable {
        path: directory.display().to_string(),
        error: error.to_string(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(directory, "tls.crt", &files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|_| InvalidTls::NoPem {
        path: directory.join("tls.key").display().to_string(),
        what: "private key",
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for ca in certificates(directory, "client-ca.crt", pem)? {
                roots.add(ca).map_err(|error| unusable(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| unusable(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| unusable(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
