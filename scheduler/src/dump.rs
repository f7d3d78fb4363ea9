//! `muster-scheduler dump`: takes what the planner of a running scheduler sees, with or without the names in it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use muster_dump::FILE_MAX;
use ring::hmac;
use tokio::net::TcpStream;

/// Time for all of the answer. The scheduler gives up on its own cycle after ten seconds.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// Shortest key, bytes: with fewer somebody could try all of them.
const KEY_BYTES_MIN: usize = 16;
/// Longest key, bytes. More tells nothing.
const KEY_BYTES_MAX: u64 = 4096;
/// Bytes of a name's hash that are shown: enough to tell the names of a cluster apart.
const HASH_BYTES: usize = 8;

/// Take what the planner of a running scheduler sees, for `plan --dump`. A dump names the pods, nodes and namespaces
/// of every tenant, unless it is redacted.
#[derive(Debug, Args)]
pub struct Dump {
    /// Where the scheduler's pages are (its --http-listen). It gives a dump on loopback only: in its Pod, or through
    /// kubectl port-forward.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    from: SocketAddr,
    /// File to write, which only its owner may read; without it, standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Put keyed hashes in the place of names, UIDs, values of labels and taints, and messages. It is planned as before.
    #[arg(long)]
    redact: bool,
    /// File with a secret, 16 to 4096 bytes: dumps that are redacted with the same one have the same hashes. Without it
    /// the key is made for this dump, and kept nowhere.
    #[arg(long, value_name = "FILE", requires = "redact")]
    key_file: Option<PathBuf>,
}

/// What hashes are made with.
#[derive(Clone, Debug)]
pub struct Key(hmac::Key);

impl Key {
    /// From a secret.
    pub fn of(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// One that nobody knows.
    fn random() -> anyhow::Result<Self> {
        let random = ring::rand::SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random);
        let key = key.map_err(|_| anyhow::anyhow!("the system gives no random bytes for a key"))?;
        Ok(Self(key))
    }

    fn hash(&self, name: &str) -> String {
        let tag = hmac::sign(&self.0, name.as_bytes());
        let shown = tag.as_ref().iter().take(HASH_BYTES);
        shown.map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Dump {
    /// Asks for the dump, and writes it.
    pub async fn run(self) -> anyhow::Result<()> {
        let key = match self.redact {
            true => Some(self.key()?),
            false => None,
        };
        let asked = tokio::time::timeout(ANSWER_MAX, fetch(self.from)).await;
        let asked = asked.with_context(|| {
            let seconds = ANSWER_MAX.as_secs();
            format!("no dump from {} within {seconds} s", self.from)
        })?;
        let text = asked.with_context(|| format!("no dump from {}", self.from))?;
        let text = match key {
            Some(key) => redacted(&text, &key)?,
            None => text,
        };
        match &self.out {
            Some(file) => {
                write_private(file, &text).with_context(|| format!("--out {}", file.display()))
            }
            None => {
                let mut out = std::io::stdout();
                out.write_all(text.as_bytes()).context("standard output")
            }
        }
    }

    fn key(&self) -> anyhow::Result<Key> {
        let Some(file) = &self.key_file else {
            return Key::random();
        };
        let secret = read_secret(file).with_context(|| format!("--key-file {}", file.display()))?;
        Ok(Key::of(&secret))
    }
}

fn read_secret(file: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut secret = Vec::new();
    let opened = std::fs::File::open(file)?;
    opened
        .take(KEY_BYTES_MAX.saturating_add(1))
        .read_to_end(&mut secret)?;
    let bytes = u64::try_from(secret.len()).unwrap_or(u64::MAX);
    if secret.len() < KEY_BYTES_MIN || bytes > KEY_BYTES_MAX {
        let found = match bytes > KEY_BYTES_MAX {
            true => "more".to_owned(),
            false => secret.len().to_string(),
        };
        bail!("holds {found} bytes: must be {KEY_BYTES_MIN} to {KEY_BYTES_MAX}");
    }
    Ok(secret)
}

/// The answer of `/debug/dump`, byte for byte.
async fn fetch(from: SocketAddr) -> anyhow::Result<String> {
    if !from.ip().to_canonical().is_loopback() {
        bail!(
            "--from is {from}: must be a loopback address, for a dump is given on loopback only; \
             `kubectl port-forward` makes one"
        );
    }
    let stream = TcpStream::connect(from).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The connection ends with its sender; what went wrong with it the request tells.
    let (answer, _) = tokio::join!(ask(sender, from), connection);
    answer
}

async fn ask(mut sender: SendRequest<Empty<Bytes>>, from: SocketAddr) -> anyhow::Result<String> {
    let request = Request::get("/debug/dump")
        .header(header::HOST, from.to_string())
        .body(Empty::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let limit = usize::try_from(FILE_MAX).unwrap_or(usize::MAX);
    let body = Limited::new(response.into_body(), limit).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?;
    let text = String::from_utf8(body.to_bytes().into()).context("the answer is no text")?;
    if status != StatusCode::OK {
        let said = crate::api::shorten(&text);
        bail!("it said {}: {said}", status.as_u16());
    }
    Ok(text)
}

/// A dump without names.
pub fn redacted(text: &str, key: &Key) -> anyhow::Result<String> {
    let state = muster_dump::read(text).context("the scheduler's dump")?;
    let other = muster_dump::redact(&state, &|name| key.hash(name));
    Ok(muster_dump::write(&other)?)
}

fn write_private(file: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(file)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A page that gives one answer.
    async fn answering(answer: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4096];
            let read = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            asked.truncate(read);
            String::from_utf8(asked).unwrap()
        });
        (address, task)
    }

    #[tokio::test]
    async fn what_the_page_says_comes_whole_or_as_an_error() {
        let (address, asked) = answering("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{é}").await;
        assert_eq!(fetch(address).await.unwrap(), "{é}");
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("GET /debug/dump HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: {address}\r\n")), "{asked}");
        for (answer, why) in [
            (
                "HTTP/1.1 403 Forbidden\r\ncontent-length: 9\r\n\r\non\nloop\n!",
                "it said 403: onloop!",
            ),
            // Cut in the middle of an answer, or of its head.
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", "broke off"),
            ("HTTP/1.1 2", "connection closed"),
        ] {
            let (address, _task) = answering(answer).await;
            let error = format!("{:#}", fetch(address).await.unwrap_err());
            assert!(error.contains(why), "{error}");
        }
        let far = fetch("10.0.0.1:8080".parse().unwrap()).await.unwrap_err();
        assert!(
            far.to_string()
                .contains("--from is 10.0.0.1:8080: must be a loopback"),
            "{far}"
        );
    }

    #[test]
    fn a_key_is_long_enough_to_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        for (bytes, said) in [
            (15, Some("holds 15 bytes: must be 16 to 4096")),
            (16, None),
            (4096, None),
            (4097, Some("holds more bytes: must be 16 to 4096")),
        ] {
            std::fs::write(&file, vec![b'x'; bytes]).unwrap();
            let found = read_secret(&file).err().map(|error| error.to_string());
            assert_eq!(found.as_deref(), said, "{bytes}");
        }
    }

    #[test]
    fn a_dump_is_written_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dump.json");
        write_private(&file, "{ }").unwrap();
        write_private(&file, "{}").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "{}");
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
