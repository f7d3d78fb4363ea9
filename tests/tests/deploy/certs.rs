//! The certificates of `muster-scheduler make-certs` are ones with which Muster, kube-scheduler and agents talk.

use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use k8s_openapi::ByteString;
use muster_scheduler::certificates::MakeCerts;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use serde_json::Value;

use crate::files::{documents, id, text};
use crate::strict::assert_strict;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    certificates: MakeCerts,
}

/// The objects that are made with these arguments, or what is said instead.
fn make_certs(args: &[&str]) -> Result<Vec<Value>, String> {
    let command = Command::try_parse_from([&["make-certs"], args].concat());
    let command = command.map_err(|error| error.to_string())?;
    let made = command.certificates.text();
    made.map(|text| documents(&text))
        .map_err(|error| format!("{error:#}"))
}

fn kept_in(folder: &Path) -> Result<Vec<Value>, String> {
    make_certs(&["--out", folder.to_str().unwrap()])
}

fn pem(object: &Value, key: &str) -> Vec<u8> {
    let encoded: ByteString = serde_json::from_value(object["data"][key].clone()).unwrap();
    encoded.0
}

fn chain(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem)
        .map(Result::unwrap)
        .collect()
}

fn roots(pem: &[u8]) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in chain(pem) {
        store.add(certificate).unwrap();
    }
    Arc::new(store)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server with the certificate of one Secret that asks clients for theirs.
fn server(secret: &Value) -> Arc<ServerConfig> {
    let clients =
        WebPkiClientVerifier::builder_with_provider(roots(&pem(secret, "ca.crt")), provider())
            .build()
            .unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(
            chain(&pem(secret, "tls.crt")),
            PrivateKeyDer::from_pem_slice(&pem(secret, "tls.key")).unwrap(),
        );
    Arc::new(config.unwrap())
}

/// Whether a client with this Secret's certificate and a server come together under a name.
fn shake_hands(server: &Arc<ServerConfig>, client: &Value, name: &str) -> Result<(), String> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(&pem(client, "ca.crt")))
        .with_client_auth_cert(
            chain(&pem(client, "tls.crt")),
            PrivateKeyDer::from_pem_slice(&pem(client, "tls.key")).unwrap(),
        )
        .unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server
            .process_new_packets()
            .map_err(|error| error.to_string())?;
        wire.clear();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client
            .process_new_packets()
            .map_err(|error| error.to_string())?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

#[test]
fn the_certificates_that_are_made_fit_together() {
    let objects = make_certs(&["--namespace", "gpu"]).unwrap();
    assert_strict(&objects, "make-certs");
    let names: Vec<String> = objects.iter().map(id).collect();
    let wanted = [
        "Secret gpu/muster-tls",
        "Secret gpu/muster-kube-scheduler-tls",
        "ConfigMap gpu/muster-ca",
    ];
    assert_eq!(names, wanted);
    let (of_server, of_client) = (&objects[0], &objects[1]);
    assert_eq!(
        text(&objects[2], "/data/ca.crt").trim().as_bytes(),
        pem(of_server, "ca.crt").trim_ascii()
    );

    let listening = server(of_server);
    for name in [
        "127.0.0.1",
        "muster-agents.gpu.svc",
        "muster-agents.gpu.svc.cluster.local",
    ] {
        assert_eq!(shake_hands(&listening, of_client, name), Ok(()), "{name}");
    }
    assert!(shake_hands(&listening, of_client, "muster-agents.other.svc").is_err());
    // The server's own certificate is none for a client, so its key opens no extender.
    assert!(shake_hands(&listening, of_server, "127.0.0.1").is_err());
}

#[test]
fn authority_that_is_kept_signs_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = kept_in(folder.path()).unwrap();
    let again = kept_in(folder.path()).unwrap();
    assert_eq!(first[2], again[2], "the authority is the same");
    assert_ne!(first[0], again[0], "the certificates are new");
    let old_server = server(&first[0]);
    assert_eq!(shake_hands(&old_server, &again[1], "localhost"), Ok(()));
    let other = make_certs(&[]).unwrap();
    assert!(shake_hands(&old_server, &other[1], "localhost").is_err());
    let key = std::fs::metadata(folder.path().join("ca.key")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777,
        0o600
    );
}

#[test]
fn folder_in_which_key_and_certificate_do_not_belong_together_is_refused() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    kept_in(one.path()).unwrap();
    kept_in(other.path()).unwrap();
    std::fs::copy(other.path().join("ca.crt"), one.path().join("ca.crt")).unwrap();
    let said = kept_in(one.path()).unwrap_err();
    assert!(
        said.contains("not the certificate of the key in ca.key"),
        "{said}"
    );
    std::fs::write(one.path().join("ca.key"), "nonsense").unwrap();
    let said = kept_in(one.path()).unwrap_err();
    assert!(
        said.contains("ca.key: not a private key in PKCS#8"),
        "{said}"
    );
    std::fs::remove_file(one.path().join("ca.key")).unwrap();
    let said = kept_in(one.path()).unwrap_err();
    assert!(said.contains("ca.key"), "{said}");
}

#[test]
fn wrong_arguments_are_refused_by_name() {
    for (args, named) in [
        (["--days", "0"], "--days"),
        (["--days", "10000"], "1..=9999"),
        (["--namespace", "Not Valid"], "--namespace"),
    ] {
        let said = make_certs(&args).unwrap_err();
        assert!(said.contains(named), "{args:?}: {said}");
    }
}
