//! The schedulers' doors without sockets. Closing one is what a killed process's peers see: calls on
//! their way break, new ones are refused. Calls to one that is held hang, as at a stopped process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use hyper::server::conn::http2;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use muster_embedded::standins::extender::{Transport, in_process};
use muster_scheduler::fence::Fence;
use muster_scheduler::hold::Hold;
use muster_scheduler::scheduler::Scheduler;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

use super::steps::Steps;

/// Bytes that a pipe holds.
const PIPE_BYTES: usize = 64 * 1024;

/// The ways to the schedulers that run now, by the name of their place.
#[derive(Default)]
pub(crate) struct Doors {
    open: Mutex<BTreeMap<String, Open>>,
    /// Counts kube-scheduler's calls.
    steps: Arc<Steps>,
}

#[derive(Clone)]
struct Open {
    extender: Transport,
    agents: Router,
    gone: CancellationToken,
    hold: Hold,
    fence: Arc<Fence>,
}

impl Doors {
    /// Doors at which calls are counted.
    pub(crate) fn counting(steps: Arc<Steps>) -> Self {
        Self {
            open: Mutex::default(),
            steps,
        }
    }

    /// Lets calls through to a scheduler, under the name that the agents know.
    pub(crate) fn open(&self, name: &str, scheduler: &Scheduler, hold: Hold) {
        let open = Open {
            extender: in_process(scheduler.extender()),
            agents: scheduler.agents().router(),
            gone: CancellationToken::new(),
            hold,
            fence: Arc::clone(scheduler.fence()),
        };
        let before = self.all().insert(name.to_owned(), open);
        if let Some(before) = before {
            before.gone.cancel();
        }
    }

    /// Breaks every connection and refuses new ones.
    pub(crate) fn close(&self, name: &str) {
        let before = self.all().remove(name);
        if let Some(before) = before {
            before.gone.cancel();
        }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to the scheduler that leads; to any while none does.
    fn leader(&self) -> Option<Open> {
        let all = self.all();
        let first = all.values().rev();
        first.max_by_key(|open| open.fence.led()).cloned()
    }

    /// How kube-scheduler calls the extender.
    pub(crate) fn transport(self: &Arc<Self>) -> Transport {
        let doors = Arc::clone(self);
        Arc::new(move |request| {
            doors.steps.take();
            let open = doors.leader();
            Box::pin(async move {
                let Some(open) = open else {
                    return Err("connection refused".to_owned());
                };
                tokio::select! {
                    biased;
                    () = open.gone.cancelled() => Err("connection reset by peer".to_owned()),
                    answer = open.hold.wrap((open.extender)(request)) => answer,
                }
            })
        })
    }

    /// A connection to the agents' door: one end of a pipe whose other end the scheduler reads.
    pub(crate) fn connect(&self, name: &str) -> std::io::Result<DuplexStream> {
        let open = self.all().get(name).cloned();
        let open = open.ok_or(std::io::ErrorKind::ConnectionRefused)?;
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        // It ends when either end of the pipe is dropped, or with the scheduler.
        tokio::spawn(async move {
            let service = TowerToHyperService::new(open.agents);
            let connection = http2::Builder::new(Held(open.hold.clone()))
                .serve_connection(TokioIo::new(far), service);
            tokio::select! {
                biased;
                () = open.gone.cancelled() => {}
                _ = open.hold.wrap(connection) => {}
            }
        });
        Ok(near)
    }
}

/// Runs the streams of a connection, and holds them with their scheduler.
#[derive(Clone)]
struct Held(Hold);

impl<F> hyper::rt::Executor<F> for Held
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(self.0.wrap(task));
    }
}
