//! One report stream to each scheduler replica, kept up for as long as the node reports.
//!
//! ```text
//! watch<Vec<Replica>> --> streams() --one task per replica--> keep_up(): connect, talk, wait with jitter, again
//! watch<Arc<NodeView>> -----------------------------------------> talk(): Session <--> gRPC
//! ```
//! A slow or absent replica holds up nobody: the session sends the latest state when there is room.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use muster_proto::inventory::inventory_client::InventoryClient;
use muster_proto::inventory::{AgentMessage, ByeReason, Hello, agent_message};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status, Streaming};

use crate::clock::WallClock;
use crate::connector::{ConnectError, Connector, Replica, TokenProvider};
use crate::hash::hash64;
use crate::report::{Acked, Effect, NodeView, Session, bye};

/// First upper limit of the random wait before a reconnect; doubles with each failure.
pub const RECONNECT_BASE: Duration = Duration::from_millis(200);
/// Last upper limit of that wait while the replica has answered not long ago: it most likely starts again.
pub const RECONNECT_CAP_RECENT: Duration = Duration::from_secs(5);
/// Last upper limit of that wait for a replica that has been away for longer. An attempt that finds nobody
/// costs next to nothing.
pub const RECONNECT_CAP: Duration = Duration::from_secs(10);
/// The same where an attempt costs the scheduler something: it refuses this node, or has no time for it.
pub const RECONNECT_CAP_COSTLY: Duration = Duration::from_secs(30);
/// For how long after its last answer a replica counts as having answered not long ago.
const RECENT: Duration = Duration::from_secs(60);
/// A stream that lived this long was a good one: the next failure starts at the base again.
const GOOD_STREAM: Duration = Duration::from_secs(30);
/// Time for the server to accept a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the last message to leave.
const BYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time between two looks at the token.
const TOKEN_INTERVAL: Duration = Duration::from_secs(30);
/// Messages between session and socket. The session stops making more when it is full, so that what
/// waits is the latest state and not a backlog.
const OUTGOING: usize = 4;
/// Longest wait a server may ask for.
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// What all streams of one node share.
#[derive(Clone)]
pub struct Uplink {
    /// Makes connections.
    pub connector: Arc<dyn Connector>,
    /// Replicas there are.
    pub replicas: watch::Receiver<Vec<Replica>>,
    /// Told when a replica cannot be reached, so that it is looked for.
    pub missed: Arc<Notify>,
    /// Gives tokens.
    pub tokens: Arc<dyn TokenProvider>,
    /// Seed of the jitter; the node's name and the replica are mixed in.
    pub seed: u64,
    /// Streams that a server has answered on, at this moment, over all nodes that share the counter.
    pub streams_up: Arc<AtomicUsize>,
}

/// Counts a stream for as long as it is up.
struct Up(Arc<AtomicUsize>);

impl Up {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Context {
    uplink: Uplink,
    hello: Hello,
    view: watch::Receiver<Arc<NodeView>>,
    stop: watch::Receiver<Option<ByeReason>>,
    clock: WallClock,
}

/// Keeps one stream to each replica until told to stop, then says Bye on each and returns.
pub async fn streams(
    uplink: Uplink,
    hello: Hello,
    view: watch::Receiver<Arc<NodeView>>,
    stop: watch::Receiver<Option<ByeReason>>,
    clock: WallClock,
) {
    let mut replicas = uplink.replicas.clone();
    let context = Context {
        uplink,
        hello,
        view,
        stop: stop.clone(),
        clock,
    };
    let mut tasks: JoinSet<()> = JoinSet::new();
    let mut running: BTreeMap<Replica, watch::Sender<Option<ByeReason>>> = BTreeMap::new();
    let mut stopping = stop;
    loop {
        let wanted = replicas.borrow_and_update().clone();
        running.retain(|replica, gone| {
            let keep = wanted.contains(replica);
            if !keep {
                gone.send_replace(Some(ByeReason::Shutdown));
            }
            keep
        });
        for replica in wanted {
            running.entry(replica).or_insert_with_key(|replica| {
                let (gone, is_gone) = watch::channel(None);
                tasks.spawn(keep_up(context.clone(), replica.clone(), is_gone));
                gone
            });
        }
        tokio::select! {
            biased;
            _ = stopped(&mut stopping) => break,
            changed = replicas.changed() => {
                if changed.is_err() {
                    // Nobody looks for replicas any more; the streams there are go on.
                    stopped(&mut stopping).await;
                    break;
                }
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn stopped(stop: &mut watch::Receiver<Option<ByeReason>>) -> ByeReason {
    match stop.wait_for(Option::is_some).await {
        Ok(reason) => reason.unwrap_or(ByeReason::Shutdown),
        // The owner is gone without a word.
        Err(_) => ByeReason::Shutdown,
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("stream: {0}")]
    Status(Box<Status>),
    #[error("the server closed the stream")]
    Closed,
    #[error("the server has not acknowledged a report for {}s", crate::report::ACK_TIMEOUT.as_secs())]
    Stuck,
    #[error("the server did not accept the stream within {}s", OPEN_TIMEOUT.as_secs())]
    Timeout,
    #[error("the server asks to come back later")]
    Backoff { min: Duration, jitter: Duration },
    #[error("stopped")]
    Stopped,
}

async fn keep_up(
    mut context: Context,
    replica: Replica,
    mut gone: watch::Receiver<Option<ByeReason>>,
) {
    let name_hash = hash64(context.uplink.seed, context.hello.node_name.as_bytes());
    let mut rng = StdRng::seed_from_u64(hash64(name_hash, replica.0.as_bytes()));
    let mut acked = Acked::default();
    let mut failures = 0_u32;
    let mut answered = None;
    loop {
        let opened = Instant::now();
        let end = talk(&mut context, &replica, &mut gone, &mut acked, &mut answered).await;
        if opened.elapsed() >= GOOD_STREAM {
            failures = 0;
        }
        let wait = match &end {
            End::Stopped => return,
            End::Backoff { min, jitter } => {
                (*min).min(BACKOFF_MAX) + share(&mut rng, (*jitter).min(BACKOFF_MAX))
            }
            end => share(&mut rng, backoff_limit(failures, cap(end, answered))),
        };
        failures = failures.saturating_add(1);
        if matches!(
            end,
            End::Connect(ConnectError::Transport { .. }) | End::Timeout
        ) {
            context.uplink.missed.notify_one();
        }
        let node = &context.hello.node_name;
        if refused(&end) {
            tracing::error!(node, replica = replica.0, error = %end, "the scheduler refuses this node's reports");
        } else {
            tracing::info!(node, replica = replica.0, error = %end, wait_ms = wait.as_millis(), "report stream ended");
        }
        tokio::select! {
            biased;
            _ = stopped(&mut context.stop) => return,
            _ = stopped(&mut gone) => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Last upper limit of the wait after a stream has ended so, with the last answer of the replica at
/// `answered`.
fn cap(end: &End, answered: Option<Instant>) -> Duration {
    if refused(end) || matches!(end, End::Timeout) {
        RECONNECT_CAP_COSTLY
    } else if answered.is_some_and(|at| at.elapsed() < RECENT) {
        RECONNECT_CAP_RECENT
    } else {
        RECONNECT_CAP
    }
}

/// Upper limit of the wait after so many failures in a row.
fn backoff_limit(failures: u32, cap: Duration) -> Duration {
    RECONNECT_BASE
        .saturating_mul(2_u32.saturating_pow(failures.min(16)))
        .min(cap)
}

/// A random part of `limit` (full jitter).
fn share(rng: &mut StdRng, limit: Duration) -> Duration {
    limit.mul_f64(rng.random::<f64>())
}

fn refused(end: &End) -> bool {
    matches!(end, End::Status(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied))
}

fn status(status: Status) -> End {
    End::Status(Box::new(status))
}

fn bearer(token: &str, node: &str) -> Result<MetadataValue<Ascii>, End> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
        let reason = "it holds bytes that a header cannot".into();
        End::Connect(ConnectError::Token {
            node: node.into(),
            reason,
        })
    })?;
    value.set_sensitive(true);
    Ok(value)
}

async fn open(
    context: &Context,
    replica: &Replica,
    token: Option<&str>,
    outgoing: mpsc::Receiver<AgentMessage>,
) -> Result<Streaming<muster_proto::inventory::ServerMessage>, End> {
    let channel = context.uplink.connector.connect(replica).await?;
    let mut request = Request::new(ReceiverStream::new(outgoing));
    if let Some(token) = token {
        let value = bearer(token, &context.hello.node_name)?;
        request.metadata_mut().insert("authorization", value);
    }
    let mut client = InventoryClient::new(channel);
    Ok(client.report(request).await.map_err(status)?.into_inner())
}

/// One stream from Hello to its end. Leaves the time of each message of the replica in `answered`.
async fn talk(
    context: &mut Context,
    replica: &Replica,
    gone: &mut watch::Receiver<Option<ByeReason>>,
    acked: &mut Acked,
    answered: &mut Option<Instant>,
) -> End {
    let node = context.hello.node_name.clone();
    let mut token = match context.uplink.tokens.token(&node) {
        Ok(token) => token,
        Err(error) => return error.into(),
    };
    let (out, outgoing) = mpsc::channel(OUTGOING);
    let mut session = Session::new(Instant::now(), context.hello.clone());
    // Hello goes first: the server may answer only after it has read it.
    let view = context.view.borrow_and_update().clone();
    if let Some(hello) = session.poll(Instant::now(), &view, acked)
        && out.try_send(hello).is_err()
    {
        return End::Closed;
    }
    let mut stop = context.stop.clone();
    let mut incoming = tokio::select! {
        biased;
        _ = stopped(&mut stop) => return End::Stopped,
        _ = stopped(gone) => return End::Stopped,
        opened = tokio::time::timeout(OPEN_TIMEOUT, open(context, replica, token.as_deref(), outgoing)) => match opened {
            Ok(Ok(incoming)) => incoming,
            Ok(Err(end)) => return end,
            Err(_) => return End::Timeout,
        },
    };
    let mut token_check = Instant::now() + TOKEN_INTERVAL;
    let mut up = None;
    loop {
        let view = context.view.borrow_and_update().clone();
        let full = send_due(&mut session, &view, acked, &out, context.clock);
        let now = Instant::now();
        if session.stuck(now) {
            return End::Stuck;
        }
        // With a full channel only room in it, or the limit on acknowledgements, matters.
        let wake = if full {
            now + Duration::from_secs(1)
        } else {
            session.next_deadline(now, &view)
        };
        tokio::select! {
            biased;
            reason = stopped(&mut stop) => return say_bye(reason, out, incoming).await,
            reason = stopped(gone) => return say_bye(reason, out, incoming).await,
            message = incoming.message() => match message {
                Ok(Some(message)) => {
                    up.get_or_insert_with(|| Up::new(&context.uplink.streams_up));
                    *answered = Some(Instant::now());
                    if let Effect::Reconnect { min, jitter } = session.receive(message, acked) {
                        return End::Backoff { min, jitter };
                    }
                }
                Ok(None) => return End::Closed,
                Err(error) => return status(error),
            },
            changed = context.view.changed() => {
                if changed.is_err() {
                    return say_bye(ByeReason::Shutdown, out, incoming).await;
                }
            }
            _ = async { out.reserve().await.is_ok() }, if full => {}
            () = tokio::time::sleep_until(wake.min(token_check)) => {
                if Instant::now() >= token_check {
                    token_check = Instant::now() + TOKEN_INTERVAL;
                    renew(&mut session, context.uplink.tokens.as_ref(), &node, &mut token);
                }
            }
        }
    }
}

/// Hands over everything that is due. Returns true when the channel is full.
fn send_due(
    session: &mut Session,
    view: &Arc<NodeView>,
    acked: &mut Acked,
    out: &mpsc::Sender<AgentMessage>,
    clock: WallClock,
) -> bool {
    loop {
        let Ok(permit) = out.try_reserve() else {
            return true;
        };
        let Some(mut message) = session.poll(Instant::now(), view, acked) else {
            return false;
        };
        if let Some(agent_message::Kind::Heartbeat(heartbeat)) = &mut message.kind {
            heartbeat.observed_at_ms = clock.now_ms();
        }
        permit.send(message);
    }
}

fn renew(session: &mut Session, tokens: &dyn TokenProvider, node: &str, held: &mut Option<String>) {
    match tokens.token(node) {
        Ok(Some(fresh)) => {
            if held.as_ref() != Some(&fresh) {
                session.reauth(fresh.clone());
                *held = Some(fresh);
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(node, %error, "cannot renew the token"),
    }
}

async fn say_bye(
    reason: ByeReason,
    out: mpsc::Sender<AgentMessage>,
    mut incoming: Streaming<muster_proto::inventory::ServerMessage>,
) -> End {
    let farewell = async {
        if out.send(bye(reason)).await.is_ok() {
            drop(out);
            // The server ends the stream once it has read to the end.
            while let Ok(Some(_)) = incoming.message().await {}
        }
    };
    if tokio::time::timeout(BYE_TIMEOUT, farewell).await.is_err() {
        tracing::debug!("the server did not end the stream after bye");
    }
    End::Stopped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, advance};
    use tonic::Status;

    use super::{
        End, RECENT, RECONNECT_BASE, RECONNECT_CAP, RECONNECT_CAP_COSTLY, RECONNECT_CAP_RECENT,
        backoff_limit, cap, status,
    };

    #[test]
    fn waits_grow_to_the_cap() {
        assert_eq!(backoff_limit(0, RECONNECT_CAP), RECONNECT_BASE);
        assert_eq!(backoff_limit(3, RECONNECT_CAP), Duration::from_millis(1600));
        assert_eq!(backoff_limit(u32::MAX, RECONNECT_CAP), RECONNECT_CAP);
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_was_there_a_minute_ago_is_looked_for_more_often() {
        let answered = Some(Instant::now());
        assert_eq!(cap(&End::Closed, None), RECONNECT_CAP);
        assert_eq!(cap(&End::Closed, answered), RECONNECT_CAP_RECENT);
        let refusal = status(Status::unauthenticated("no"));
        assert_eq!(cap(&refusal, answered), RECONNECT_CAP_COSTLY);
        assert_eq!(cap(&End::Timeout, answered), RECONNECT_CAP_COSTLY);
        advance(RECENT).await;
        assert_eq!(cap(&End::Closed, answered), RECONNECT_CAP);
    }
}
