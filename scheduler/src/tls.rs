//! Certificates: read from a directory, and read again when the files change.
//!
//! `tls.crt` and `tls.key` are what the server shows; `client-ca.crt` is whom it believes. An authority may sign for
//! others, too: a cluster's own signs for every kubelet. So the name that a caller must bear is asked for as well. A
//! directory that cannot be read is an error at the start; later, the last good files stay in use
//! and the error is logged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
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

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Anybody: no certificate is asked for.
    Anybody,
    /// Who shows a certificate of `client-ca.crt` with this DNS name; with any name where it is empty.
    Named(String),
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
    callers: Callers,
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
    /// Reads a directory.
    pub fn read(directory: &Path, callers: Callers) -> Result<Self, InvalidTls> {
        let files = files(directory, &callers)?;
        let config = build(directory, &files, &callers)?;
        Ok(Self {
            directory: directory.to_owned(),
            callers,
            current: Arc::new(ArcSwap::from_pointee(config)),
        })
    }

    /// The configuration for a new connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again when they changed, until stopped.
    pub async fn follow(self, stop: CancellationToken) {
        let mut held = files(&self.directory, &self.callers).ok();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RELOAD_EVERY) => {}
            }
            match files(&self.directory, &self.callers) {
                Ok(found) if held.as_ref() == Some(&found) => {}
                Ok(found) => match build(&self.directory, &found, &self.callers) {
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

fn files(directory: &Path, callers: &Callers) -> Result<Files, InvalidTls> {
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
        client_ca: match callers {
            Callers::Anybody => None,
            Callers::Named(_) => Some(read("client-ca.crt")?),
        },
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

/// Believes an authority's certificates if they bear a name.
#[derive(Debug)]
struct Named {
    authority: Arc<dyn ClientCertVerifier>,
    name: String,
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.authority.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .authority
            .verify_client_cert(end_entity, intermediates, now)?;
        let certificate = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| CertificateError::BadEncoding)?;
        if self.name.is_empty() || certificate.valid_dns_names().any(|name| name == self.name) {
            return Ok(verified);
        }
        let names = certificate.valid_dns_names().take(4).collect::<Vec<_>>();
        tracing::warn!(?names, wanted = self.name, "a caller bears another name");
        Err(CertificateError::NotValidForName.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authority.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authority.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authority.supported_verify_schemes()
    }
}

fn build(directory: &Path, files: &Files, callers: &Callers) -> Result<ServerConfig, InvalidTls> {
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
    let builder = match (&files.client_ca, callers) {
        (None, _) | (_, Callers::Anybody) => builder.with_no_client_auth(),
        (Some(pem), Callers::Named(name)) => {
            let mut roots = RootCertStore::empty();
            for ca in certificates(directory, "client-ca.crt", pem)? {
                roots.add(ca).map_err(|error| unusable(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| unusable(&error))?;
            builder.with_client_cert_verifier(Arc::new(Named {
                authority: verifier,
                name: name.clone(),
            }))
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| unusable(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
