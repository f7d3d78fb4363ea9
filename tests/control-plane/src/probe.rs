//! Asking a program whether it is ready.

use std::net::Ipv4Addr;
use std::time::Duration;

use kube::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read; health pages are short.
const ANSWER_BYTES_MAX: u64 = 4_096;

/// How readiness shows.
#[derive(Clone)]
pub(crate) enum Probe {
    /// A GET without TLS on a loopback port answers 200.
    Http { port: u16, path: &'static str },
    /// A GET through a client that trusts the cluster's authority answers 200.
    Https { client: Client, path: &'static str },
    /// Running is all there is to see.
    Running,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Probe::Http { port, path } => write!(f, "http port {port} {path}"),
            Probe::Https { path, .. } => write!(f, "https {path}"),
            Probe::Running => write!(f, "running"),
        }
    }
}

impl Probe {
    /// One look; the error says what was seen.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let look = async {
            match self {
                Probe::Http { port, path } => http_get(*port, path).await,
                Probe::Https { client, path } => https_get(client, path).await.map(|_| ()),
                Probe::Running => Ok(()),
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, look)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {ANSWER_TIMEOUT:?}")))
    }
}

pub(crate) async fn https_get(client: &Client, path: &str) -> Result<String, String> {
    let request = http::Request::get(path)
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    client
        .request_text(request)
        .await
        .map_err(|error| error.to_string())
}

async fn http_get(port: u16, path: &str) -> Result<(), String> {
    let get = async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = get.await.map_err(|error| error.to_string())?;
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        Ok(())
    } else {
        Err(format!("{path} answers {status}"))
    }
}
