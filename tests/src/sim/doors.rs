//! The scheduler's doors without sockets. Closing them is what a killed process's peers see: calls
//! on their way break, new ones are refused.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use muster_embedded::standins::extender::{Transport, in_process};
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

/// Bytes that a pipe holds.
const PIPE_BYTES: usize = 64 * 1024;

/// The way to the scheduler that runs now, if one does.
#[derive(Default)]
pub(crate) struct Doors {
    open: Mutex<Option<Open>>,
}

#[derive(Clone)]
struct Open {
    extender: Transport,
    agents: Router,
    gone: CancellationToken,
}

impl Doors {
    /// Lets calls through to a scheduler.
    pub(crate) fn open(&self, extender: Router, agents: Router) {
        let open = Open {
            extender: in_process(extender),
            agents,
            gone: CancellationToken::new(),
        };
        self.set(Some(open));
    }

    /// Breaks every connection and refuses new ones.
    pub(crate) fn close(&self) {
        self.set(None);
    }

    fn set(&self, open: Option<Open>) {
        let mut slot = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *slot, open);
        drop(slot);
        if let Some(before) = before {
            before.gone.cancel();
        }
    }

    fn now(&self) -> Option<Open> {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How kube-scheduler calls the extender.
    pub(crate) fn transport(self: &Arc<Self>) -> Transport {
        let doors = Arc::clone(self);
        Arc::new(move |request| {
            let open = doors.now();
            Box::pin(async move {
                let Some(open) = open else {
                    return Err("connection refused".to_owned());
                };
                tokio::select! {
                    biased;
                    () = open.gone.cancelled() => Err("connection reset by peer".to_owned()),
                    answer = (open.extender)(request) => answer,
                }
            })
        })
    }

    /// A connection to the agents' door: one end of a pipe whose other end the scheduler reads.
    pub(crate) fn connect(&self) -> std::io::Result<DuplexStream> {
        let open = self.now().ok_or(std::io::ErrorKind::ConnectionRefused)?;
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        // It ends when either end of the pipe is dropped, or with the scheduler.
        tokio::spawn(async move {
            let service = TowerToHyperService::new(open.agents);
            let connection = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(far), service);
            tokio::select! {
                biased;
                () = open.gone.cancelled() => {}
                _ = connection => {}
            }
        });
        Ok(near)
    }
}
