//! A TCP proxy between two programs that loses, delays and cuts what they say to each other.
//!
//! It knows nothing of TLS or HTTP/2, and needs not to: bytes that vanish are answers that never come, a
//! connection that is closed after some more bytes ends in the middle of a frame, and bytes that stand still
//! are a cable that was pulled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What becomes of the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// They pass.
    #[default]
    Pass,
    /// Each piece arrives later by this.
    Late(Duration),
    /// They stand still; nothing is closed. What was on its way arrives when they pass again.
    Stand,
    /// They are lost, and the sender is not told. A connection that has lost some is closed when they pass again.
    Vanish,
    /// So many bytes more pass on each connection, which is closed then: in the middle of something, as a rule.
    CutAfter(u64),
}

/// What becomes of the bytes of both directions. Connections that are asked for while requests stand or vanish are not
/// made before they pass again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    /// From the client to the server.
    pub requests: Flow,
    /// From the server to the client.
    pub answers: Flow,
}

impl Weather {
    /// Nothing goes either way, and nothing is closed.
    pub const APART: Self = Self {
        requests: Flow::Stand,
        answers: Flow::Stand,
    };
    /// What is asked arrives and is done, and no answer comes back.
    pub const ANSWERS_LOST: Self = Self {
        requests: Flow::Pass,
        answers: Flow::Vanish,
    };

    /// Both directions are slow.
    pub fn late(by: Duration) -> Self {
        Self {
            requests: Flow::Late(by),
            answers: Flow::Late(by),
        }
    }

    /// Every connection ends after some more bytes of answers.
    pub fn cut_after(bytes: u64) -> Self {
        Self {
            requests: Flow::Pass,
            answers: Flow::CutAfter(bytes),
        }
    }
}

/// A loopback address that leads to a server.
#[derive(Debug)]
pub struct Proxy {
    /// Where to connect to.
    pub address: SocketAddr,
    requests: watch::Sender<Flow>,
    answers: watch::Sender<Flow>,
    /// Counts the orders to close every connection.
    closed: watch::Sender<u64>,
    made: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// What each connection looks at.
#[derive(Clone)]
struct Told {
    target: String,
    requests: watch::Receiver<Flow>,
    answers: watch::Receiver<Flow>,
    closed: watch::Receiver<u64>,
    made: Arc<AtomicU64>,
}

impl Proxy {
    /// A proxy before `target`, `HOST:PORT`.
    pub async fn to(target: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a proxy")?;
        let address = listener.local_addr().context("its address")?;
        let (requests, requests_told) = watch::channel(Flow::Pass);
        let (answers, answers_told) = watch::channel(Flow::Pass);
        let (closed, closed_told) = watch::channel(0);
        let made = Arc::new(AtomicU64::new(0));
        let told = Told {
            target: target.to_owned(),
            requests: requests_told,
            answers: answers_told,
            closed: closed_told,
            made: Arc::clone(&made),
        };
        let task = tokio::spawn(serve(listener, told));
        Ok(Self {
            address,
            requests,
            answers,
            closed,
            made,
            task,
        })
    }

    /// From now on the weather is this.
    pub fn set(&self, weather: Weather) {
        self.requests.send_replace(weather.requests);
        self.answers.send_replace(weather.answers);
    }

    /// Cuts the cable, or mends it.
    pub fn cut(&self, cut: bool) {
        self.set(if cut {
            Weather::APART
        } else {
            Weather::default()
        });
    }

    /// Closes every connection there is.
    pub fn close_all(&self) {
        self.closed
            .send_modify(|orders| *orders = orders.wrapping_add(1));
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, told: Told) {
    let mut pipes = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = pipes.join_next() => {}
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { return };
                pipes.spawn(pipe(near, told.clone()));
            }
        }
    }
}

async fn pipe(near: TcpStream, mut told: Told) {
    let passes = |flow: &Flow| !matches!(flow, Flow::Stand | Flow::Vanish);
    if told.requests.wait_for(passes).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(&told.target).await else {
        return;
    };
    told.made.fetch_add(1, Ordering::Relaxed);
    told.closed.mark_unchanged();
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    // Either end closes both.
    tokio::select! {
        () = copy(near_in, far_out, told.requests) => {}
        () = copy(far_in, near_out, told.answers) => {}
        _ = told.closed.changed() => {}
    }
}

/// Copies until one end closes, or the weather does.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut bytes = vec![0_u8; 16 * 1024];
    // Some bytes were lost: what comes after them makes no sense.
    let mut lossy = false;
    // Bytes that passed since they were counted.
    let mut passed = 0_u64;
    loop {
        let read = tokio::select! {
            biased;
            changed = flow.changed() => {
                passed = 0;
                let still = matches!(*flow.borrow(), Flow::Vanish);
                if changed.is_err() || (lossy && !still) {
                    return;
                }
                continue;
            }
            read = from.read(&mut bytes) => match read {
                Ok(0) | Err(_) => return,
                Ok(read) => read,
            },
        };
        let Some(mut piece) = bytes.get(..read) else {
            return;
        };
        loop {
            let now = *flow.borrow_and_update();
            match now {
                Flow::Pass => {}
                Flow::Late(by) => tokio::time::sleep(by).await,
                Flow::Stand => {
                    passed = 0;
                    if flow.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Flow::Vanish => {
                    lossy = true;
                    piece = &[];
                }
                Flow::CutAfter(most) => {
                    let left = usize::try_from(most.saturating_sub(passed)).unwrap_or(usize::MAX);
                    piece = piece.get(..left).unwrap_or(piece);
                }
            }
            if lossy && now != Flow::Vanish {
                return;
            }
            break;
        }
        if to.write_all(piece).await.is_err() {
            return;
        }
        passed = passed.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        let most = match *flow.borrow() {
            Flow::CutAfter(most) => most,
            _ => continue,
        };
        if passed >= most {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says everything twice.
    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut bytes = [0_u8; 64];
                    while let Ok(read) = stream.read(&mut bytes).await {
                        let said = bytes[..read].repeat(2);
                        if read == 0 || stream.write_all(&said).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    async fn heard(stream: &mut TcpStream) -> Option<String> {
        let mut bytes = [0_u8; 64];
        let read = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut bytes));
        let read = read.await.ok()?.unwrap_or(0);
        Some(String::from_utf8_lossy(&bytes[..read]).into_owned())
    }

    async fn says(stream: &mut TcpStream, text: &str) -> Option<String> {
        stream.write_all(text.as_bytes()).await.unwrap();
        heard(stream).await
    }

    #[tokio::test]
    async fn bytes_stand_vanish_and_end_in_the_middle_as_they_are_told() {
        let proxy = Proxy::to(&echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(says(&mut stream, "a").await.as_deref(), Some("aa"));
        proxy.cut(true);
        assert_eq!(
            says(&mut stream, "b").await,
            None,
            "nothing comes, nothing is closed"
        );
        proxy.cut(false);
        assert_eq!(
            heard(&mut stream).await.as_deref(),
            Some("bb"),
            "it was on its way"
        );
        proxy.set(Weather::ANSWERS_LOST);
        assert_eq!(says(&mut stream, "c").await, None);
        proxy.set(Weather::default());
        assert_eq!(
            heard(&mut stream).await.as_deref(),
            Some(""),
            "it is closed"
        );
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(says(&mut stream, "d").await.as_deref(), Some("dd"));
        proxy.set(Weather::cut_after(3));
        assert_eq!(
            says(&mut stream, "ef").await.as_deref(),
            Some("efe"),
            "cut in the middle"
        );
        assert_eq!(heard(&mut stream).await.as_deref(), Some(""));
        proxy.set(Weather::late(Duration::from_millis(50)));
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        let asked = std::time::Instant::now();
        assert_eq!(says(&mut stream, "g").await.as_deref(), Some("gg"));
        assert!(asked.elapsed() >= Duration::from_millis(100));
        proxy.close_all();
        assert_eq!(heard(&mut stream).await.as_deref(), Some(""));
        assert_eq!(proxy.connections(), 3);
    }
}
