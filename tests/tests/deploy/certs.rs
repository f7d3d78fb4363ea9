//! The certificates of make-certs.sh are ones with which Muster, kube-scheduler and agents talk.

use std::io::ErrorKind;
use std::process::{Command, Output};
use std::sync::Arc;

use k8s_openapi::ByteString;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use serde_json::Value;

use crate::files::{deploy, documents, id, text};
use crate::strict::assert_strict;

fn make_certs(args: &[&str]) -> Output {
    let script = deploy().join("scripts/make-certs.sh");
    Command::new("sh").arg(script).args(args).output().unwrap()
}

/// Whether this machine has openssl.
fn has_openssl() -> bool {
    match Command::new("openssl").arg("version").output() {
        Ok(output) => output.status.success(),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => panic!("openssl: {error}"),
    }
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
fn the_certificates_that_the_script_makes_fit_together() {
    let output = make_certs(&["--namespace", "gpu"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        has_openssl(),
        "this test needs the openssl program, as the script does: install it"
    );
    assert!(output.status.success(), "{said}");
    let objects = documents(&String::from_utf8(output.stdout).unwrap());
    assert_strict(&objects, "make-certs.sh");
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
fn the_script_refuses_wrong_arguments_by_name() {
    for (args, named) in [
        (["--days", "0"], "--days is \"0\""),
        (["--days", "many"], "1 to 9999"),
        (["--namespace", "Not Valid"], "--namespace is \"Not Valid\""),
        (["--unknown", "1"], "usage:"),
    ] {
        let output = make_certs(&args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(named), "{args:?}: {said}");
    }
}
