//! A connection to the API server that can be cut: bytes stop, and nothing is closed, as when a cable is
//! pulled.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A loopback address that leads to the API server while it is not cut.
#[derive(Debug)]
pub struct Link {
    /// Where to connect to.
    pub address: SocketAddr,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Link {
    /// A link to `target`, `HOST:PORT`.
    pub async fn to(target: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a link")?;
        let address = listener.local_addr().context("its address")?;
        let (cut, seen) = watch::channel(false);
        let task = tokio::spawn(serve(listener, target.to_owned(), seen));
        Ok(Self { address, cut, task })
    }

    /// Cuts the link, or mends it. What was on its way then arrives.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: String, cut: watch::Receiver<bool>) {
    let mut pipes = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = pipes.join_next() => {}
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { return };
                pipes.spawn(pipe(near, target.clone(), cut.clone()));
            }
        }
    }
}

async fn pipe(near: TcpStream, target: String, mut cut: watch::Receiver<bool>) {
    // A connection that is asked for while the link is cut is not made.
    if cut.wait_for(|cut| !*cut).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(&target).await else {
        return;
    };
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let other = cut.clone();
    // Either end closes both.
    tokio::select! {
        () = copy(near_in, far_out, cut) => {}
        () = copy(far_in, near_out, other) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut bytes = vec![0_u8; 16 * 1024];
    loop {
        let read = match from.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        if cut.wait_for(|cut| !*cut).await.is_err() {
            return;
        }
        let read = bytes.get(..read).unwrap_or_default();
        if to.write_all(read).await.is_err() {
            return;
        }
    }
}
