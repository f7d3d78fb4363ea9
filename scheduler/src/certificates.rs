//! `make-certs`: the certificates with which Muster, kube-scheduler and the agents talk, as the objects
//! that deploy/ mounts.
//!
//! ```text
//!   authority (ca.key, ca.crt in --out) ──signs──> muster-scheduler       server  ──> Secret muster-tls
//!                                            └───> muster-kube-scheduler  client  ──> Secret muster-kube-scheduler-tls
//!                                                  its certificate                ──> ConfigMap muster-ca
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// For how long the authority is good, days.
const AUTHORITY_DAYS: u16 = 3_650;

/// Make the certificates that Muster needs, and print them as Kubernetes objects: Secret muster-tls
/// (what Muster's server shows, and whom it believes), Secret muster-kube-scheduler-tls (what
/// kube-scheduler shows to the extender), ConfigMap muster-ca (whom the agents believe).
#[derive(Debug, Args)]
pub struct MakeCerts {
    /// Namespace of the objects.
    #[arg(long, value_name = "NAME", default_value = "muster-system", value_parser = namespace)]
    namespace: String,
    /// For how long the certificates are good, days: 1 to 9999.
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u16).range(1..=9_999))]
    days: u16,
    /// Folder for the authority's ca.key and ca.crt. One that is there is used again, so that certificates
    /// can be renewed one by one; without a folder the authority's key is forgotten.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn namespace(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 63 || !text.chars().all(good) {
        return Err("must be 1 to 63 small letters, digits and dashes".into());
    }
    Ok(text.to_owned())
}

/// Who signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pem: String,
}

/// A certificate with its key, PEM.
struct Certificate {
    pem: String,
    key: String,
}

impl MakeCerts {
    /// The objects, as YAML.
    ///
    /// # Errors
    /// A folder that cannot be read or written, and an authority in it that is none.
    pub fn text(&self) -> anyhow::Result<String> {
        let authority = match &self.out {
            Some(folder) => Authority::kept_in(folder)?,
            None => Authority::new()?.0,
        };
        let agents = format!("muster-agents.{}.svc", self.namespace);
        let names = [
            "localhost",
            "127.0.0.1",
            &agents,
            &format!("{agents}.cluster.local"),
        ];
        let server = authority.sign(
            "muster-scheduler",
            &names,
            ExtendedKeyUsagePurpose::ServerAuth,
            self.days,
        )?;
        let client = authority.sign(
            "muster-kube-scheduler",
            &["muster-kube-scheduler"],
            ExtendedKeyUsagePurpose::ClientAuth,
            self.days,
        )?;
        let mut text = String::new();
        self.secret(&mut text, "muster-tls", &authority, &server)?;
        self.secret(&mut text, "muster-kube-scheduler-tls", &authority, &client)?;
        self.head(&mut text, "ConfigMap", "muster-ca")?;
        writeln!(text, "data:\n  ca.crt: |")?;
        for line in authority.pem.lines() {
            writeln!(text, "    {line}")?;
        }
        Ok(text)
    }

    fn head(&self, text: &mut String, kind: &str, name: &str) -> std::fmt::Result {
        writeln!(
            text,
            "apiVersion: v1\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {}\n  labels:\n    \
             app.kubernetes.io/name: muster",
            self.namespace
        )
    }

    fn secret(
        &self,
        text: &mut String,
        name: &str,
        authority: &Authority,
        certificate: &Certificate,
    ) -> anyhow::Result<()> {
        self.head(text, "Secret", name)?;
        writeln!(text, "type: kubernetes.io/tls\ndata:")?;
        for (key, pem) in [
            ("ca.crt", &authority.pem),
            ("tls.crt", &certificate.pem),
            ("tls.key", &certificate.key),
        ] {
            let encoded = serde_json::to_value(ByteString(pem.clone().into_bytes()))?;
            writeln!(text, "  {key}: {}", encoded.as_str().unwrap_or_default())?;
        }
        writeln!(text, "---")?;
        Ok(())
    }
}

impl Authority {
    /// A new one, and its key as PEM.
    fn new() -> anyhow::Result<(Self, String)> {
        let key = KeyPair::generate()?;
        let params = Self::params()?;
        let pem = params.self_signed(&key)?.pem();
        let key_pem = key.serialize_pem();
        let issuer = Issuer::new(params, key);
        Ok((Self { issuer, pem }, key_pem))
    }

    fn params() -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "muster-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        good_for(&mut params, AUTHORITY_DAYS)?;
        Ok(params)
    }

    /// The one that is kept in the folder; a new one that is kept there from now on, when there is none.
    fn kept_in(folder: &Path) -> anyhow::Result<Self> {
        let (key_file, certificate_file) = (folder.join("ca.key"), folder.join("ca.crt"));
        if !key_file.exists() && !certificate_file.exists() {
            let (authority, key) = Self::new()?;
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            write_private(&key_file, &key)?;
            std::fs::write(&certificate_file, &authority.pem)
                .with_context(|| certificate_file.display().to_string())?;
            return Ok(authority);
        }
        let read =
            |file: &Path| std::fs::read_to_string(file).with_context(|| file.display().to_string());
        let (key, pem) = (read(&key_file)?, read(&certificate_file)?);
        let key = KeyPair::from_pem(&key)
            .with_context(|| format!("{}: not a private key in PKCS#8", key_file.display()))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .with_context(|| format!("{}: no certificate", certificate_file.display()))?;
        let public = key.public_key_raw();
        let of_key = |part: &[u8]| part == public;
        if !certificate.windows(public.len().max(1)).any(of_key) {
            bail!(
                "{}: not the certificate of the key in ca.key",
                certificate_file.display()
            );
        }
        let issuer = Issuer::new(Self::params()?, key);
        Ok(Self { issuer, pem })
    }

    fn sign(
        &self,
        name: &str,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        days: u16,
    ) -> anyhow::Result<Certificate> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        good_for(&mut params, days)?;
        let key = KeyPair::generate()?;
        let pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certificate {
            pem,
            key: key.serialize_pem(),
        })
    }
}

/// From the day before today on, because clocks differ, for so many days from today.
fn good_for(params: &mut CertificateParams, days: u16) -> anyhow::Result<()> {
    let today = jiff::Timestamp::now()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    let at = |date: jiff::civil::Date| {
        let part = |part: i8| u8::try_from(part).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(date.year()), part(date.month()), part(date.day()))
    };
    let until =
        today.checked_add(jiff::Span::new().try_days(i64::from(days).saturating_add(1))?)?;
    params.not_before = at(today.yesterday()?);
    params.not_after = at(until);
    Ok(())
}

/// Writes a file that only its owner can read.
fn write_private(file: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut opened = options
        .open(file)
        .with_context(|| file.display().to_string())?;
    opened
        .write_all(text.as_bytes())
        .with_context(|| file.display().to_string())
}
