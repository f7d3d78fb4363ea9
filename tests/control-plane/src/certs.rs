//! A certificate authority for one cluster: serving and client certificates as PEM files.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::error::{Error, Result};

/// A certificate and its private key on disk, both PEM.
#[derive(Clone, Debug)]
pub struct CertFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key (PKCS #8).
    pub key: PathBuf,
}

/// An authority that signs certificates valid from 1975 to 4096 (the generator's defaults), ECDSA P-256.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("folder", &self.folder)
            .finish()
    }
}

impl Authority {
    /// Makes a new authority whose certificate lies at `folder/ca.crt`. `dns_names` go into the CA certificate itself: the
    /// certificate rotator of the training operator looks for its name there.
    pub fn new(folder: &Path, name: &str, dns_names: &[&str]) -> Result<Self> {
        let fail = certificate(name);
        std::fs::create_dir_all(folder)
            .map_err(Error::io(format!("create {}", folder.display())))?;
        let mut params = params(name, dns_names).map_err(&fail)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate().map_err(&fail)?;
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(&fail)?;
        let authority = Authority {
            issuer,
            folder: folder.to_path_buf(),
        };
        write(&authority.ca(), &authority.issuer.pem())?;
        Ok(authority)
    }

    /// The CA certificate's file.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The CA certificate as PEM text.
    pub fn ca_pem(&self) -> String {
        self.issuer.pem()
    }

    /// The CA's private key as PEM text.
    pub fn ca_key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A serving certificate for these DNS names and IP addresses, in the files `<name>.crt` and `<name>.key`.
    pub fn server(&self, name: &str, dns_and_ips: &[&str]) -> Result<CertFiles> {
        let mut params = params(name, dns_and_ips).map_err(certificate(name))?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.issue(name, params)
    }

    /// A client certificate for this user and these groups (Kubernetes reads the common name and the organizations; Muster a DNS
    /// name, which a user without colons is as well), in the files `<file>.crt` and `<file>.key`.
    pub fn client(&self, file: &str, user: &str, groups: &[&str]) -> Result<CertFiles> {
        let named = [user];
        let names = if user.contains(':') { &[][..] } else { &named };
        let mut params = params(user, names).map_err(certificate(user))?;
        for group in groups {
            params
                .distinguished_name
                .push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, params)
    }

    fn issue(&self, file: &str, params: CertificateParams) -> Result<CertFiles> {
        let fail = certificate(file);
        let key = KeyPair::generate().map_err(&fail)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(&fail)?;
        let files = CertFiles {
            cert: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
        };
        write(&files.cert, &cert.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }
}

/// A fresh key pair for signing service account tokens, in `service-account.key` and `service-account.pub`: the API server takes a
/// public key out of a file of its own only (it can't derive it from PKCS #8).
pub(crate) fn write_signing_key(folder: &Path) -> Result<()> {
    let key = KeyPair::generate().map_err(certificate("service account signing key"))?;
    write(&folder.join("service-account.key"), &key.serialize_pem())?;
    write(&folder.join("service-account.pub"), &key.public_key_pem())
}

fn params(
    common_name: &str,
    sans: &[&str],
) -> std::result::Result<CertificateParams, rcgen::Error> {
    let names: Vec<String> = sans.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn certificate(subject: &str) -> impl Fn(rcgen::Error) -> Error {
    let subject = subject.to_owned();
    move |source| Error::Certificate {
        subject: subject.clone(),
        source,
    }
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(Error::io(format!("write {}", path.display())))
}
