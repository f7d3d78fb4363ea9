//! The gRPC door for agents: one stream per node.
//!
//! ```text
//!   bearer token ──TokenReview──> node name ═══ Hello.node_name, or PERMISSION_DENIED
//!   Snapshot, Delta ──state of the stream, digest checked──> NodeReport ──> inbox (latest wins)
//!   Heartbeat ────────────────────────────────────────────> sign of life
//! ```
//!
//! A node can only speak for itself: its name comes from the token, never from the message. A newer
//! agent of the same node ends the older one's stream. Sizes, counts and rates are limited, and
//! what breaks a limit ends that stream only. A stream is a value that is polled by its connection:
//! there is no task to lose.

mod convert;
mod identity;
mod registry;
mod state;
mod stream;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures::{Stream, StreamExt as _};
use muster_proto::inventory::inventory_server::{Inventory, InventoryServer};
use muster_proto::inventory::{AgentMessage, Backoff, ServerMessage, Welcome, server_message};
use tonic::{Request, Response, Status, Streaming};

pub use identity::{Identities, Identity, Unknown};
pub use registry::Registry;
pub use stream::Limits;

use crate::clock::Dice;
use crate::config;
use crate::fence::Fence;
use crate::inbox::Inbox;
use crate::metrics::Metrics;

/// Largest message of an agent, bytes. A snapshot of 8 GPUs takes 1.6 KB.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// By how much at random an agent comes later than it was told to.
const COME_AGAIN_JITTER: Duration = Duration::from_millis(500);

/// How long an agent that is told to come again may take to leave.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// The service.
#[derive(Clone, Debug)]
pub struct Agents {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    identities: Identities,
    registry: Registry,
    inbox: Inbox,
    fence: Arc<Fence>,
    metrics: Arc<Metrics>,
    dice: Arc<Dice>,
    limits: Limits,
    server_id: String,
    heartbeat_every: Duration,
    stale_after: Duration,
    stream_age_max: Duration,
}

impl Agents {
    /// A service that knows no agent yet.
    pub fn new(
        identities: Identities,
        inbox: Inbox,
        fence: Arc<Fence>,
        metrics: Arc<Metrics>,
        dice: Arc<Dice>,
        settings: &config::Config,
        server_id: String,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                identities,
                registry: Registry::new(settings.agents.streams_max),
                inbox,
                fence,
                metrics,
                dice,
                limits: Limits::default(),
                server_id,
                heartbeat_every: settings.agents.heartbeat_every.0,
                stale_after: settings.inventory.report_age_max.0,
                stream_age_max: settings.agents.stream_age_max.0,
            }),
        }
    }

    /// The tonic service.
    pub fn service(&self) -> InventoryServer<Self> {
        InventoryServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The service as a router, to be served on a socket or called in process.
    pub fn router(&self) -> Router {
        tonic::service::Routes::new(self.service())
            .prepare()
            .into_axum_router()
    }
}

impl Inner {
    fn welcome(&self) -> Welcome {
        let ms = |span: Duration| u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
        Welcome {
            server_id: self.server_id.clone(),
            leader: self.fence.led().0 != 0,
            heartbeat_interval_ms: ms(self.heartbeat_every),
            stale_after_ms: ms(self.stale_after),
        }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

/// A stream that says when to come again. It stays for a moment, so that this is read before the connection goes.
fn come_again(wait: Duration, mut inbound: Streaming<AgentMessage>) -> Answers {
    let backoff = Backoff {
        min_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
        jitter_ms: u32::try_from(COME_AGAIN_JITTER.as_millis()).unwrap_or(u32::MAX),
    };
    let message = ServerMessage {
        kind: Some(server_message::Kind::Backoff(backoff)),
    };
    let until_gone = async move {
        let gone = async { while let Ok(Some(_)) = inbound.message().await {} };
        // Whoever stays for longer is left alone.
        let _ = tokio::time::timeout(GOODBYE_MAX, gone).await;
        None
    };
    let goodbye = futures::stream::once(until_gone).filter_map(futures::future::ready);
    Box::pin(futures::stream::iter([Ok(message)]).chain(goodbye))
}

#[tonic::async_trait]
impl Inventory for Agents {
    type ReportStream = Answers;

    async fn report(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let identity = self.inner.identities.of_call(request.metadata()).await;
        let identity = match identity {
            Ok(identity) => identity,
            Err(Unknown::Refused(status)) => {
                self.inner.metrics.agent_refused("identity");
                return Err(*status);
            }
            Err(Unknown::Later(wait)) => {
                self.inner.metrics.agent_refused("turn");
                return Ok(Response::new(come_again(wait, request.into_inner())));
            }
        };
        let inbound = request.into_inner();
        let stream = stream::answers(Arc::clone(&self.inner), inbound, identity);
        Ok(Response::new(Box::pin(stream)))
    }
}
