//! One agent's stream, as a value: polling the answers reads the messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use muster_core::ids::NodeName;
use muster_proto::PROTOCOL;
use muster_proto::inventory::agent_message::Kind;
use muster_proto::inventory::{
    Ack, AgentMessage, Backoff, HealthEvent, HealthSource, Hello, Resync, ServerMessage,
    server_message,
};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::identity::Identity;
use super::registry::Place;
use super::state::{NodeState, Taken};
use super::{Inner, convert};

/// Limits of one stream.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for the Hello.
    pub hello_max: Duration,
    /// Messages at once.
    pub burst: u32,
    /// Messages a second in the long run.
    pub per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello_max: Duration::from_secs(10),
            burst: 100,
            per_second: 10,
        }
    }
}

/// A stream that is being served.
struct Served {
    inner: Arc<Inner>,
    inbound: Streaming<AgentMessage>,
    identity: Identity,
    speaker: Option<Speaker>,
    answers: VecDeque<Result<ServerMessage, Status>>,
    ends_at: Instant,
    hello_by: Instant,
    tokens: f64,
    filled_at: Instant,
    over: bool,
}

/// Who speaks on the stream, after its Hello.
struct Speaker {
    place: Place,
    node: NodeName,
    state: NodeState,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(speaker) = &self.speaker {
            self.inner.registry.leave(&speaker.place);
            self.inner.metrics.agents("connected", -1);
        }
    }
}

/// The answers to an agent's messages; ends with the stream.
pub fn answers(
    inner: Arc<Inner>,
    inbound: Streaming<AgentMessage>,
    identity: Identity,
) -> impl Stream<Item = Result<ServerMessage, Status>> + Send {
    let now = Instant::now();
    let ends_at = now + inner.dice.shortened(inner.stream_age_max);
    let served = Served {
        hello_by: now + inner.limits.hello_max,
        tokens: f64::from(inner.limits.burst),
        filled_at: now,
        inner,
        inbound,
        identity,
        speaker: None,
        answers: VecDeque::new(),
        ends_at,
        over: false,
    };
    futures::stream::unfold(served, |mut served| async move {
        let next = served.next().await?;
        Some((next, served))
    })
}

fn message(kind: server_message::Kind) -> ServerMessage {
    ServerMessage { kind: Some(kind) }
}

impl Served {
    async fn next(&mut self) -> Option<Result<ServerMessage, Status>> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(answer);
            }
            if self.over {
                return None;
            }
            if let Err(status) = self.step().await {
                self.inner.metrics.agent_refused(cause(&status));
                self.answers.push_back(Err(status));
                self.over = true;
            }
        }
    }

    /// Waits for the next thing that happens on the stream.
    async fn step(&mut self) -> Result<(), Status> {
        let proof_until = match &self.identity {
            Identity::Node { until, .. } => Some(*until),
            Identity::Believed => None,
        };
        let by = if self.speaker.is_some() {
            proof_until.map_or(self.ends_at, |until| until.min(self.ends_at))
        } else {
            self.hello_by
        };
        let abort = self
            .speaker
            .as_ref()
            .map(|speaker| speaker.place.abort.clone());
        let received = tokio::select! {
            biased;
            () = aborted(abort.as_ref()) => {
                return Err(Status::aborted("a newer agent of this node has connected"));
            }
            received = self.inbound.message() => received,
            () = tokio::time::sleep_until(by) => {
                return Err(self.expired(proof_until));
            }
        };
        match received? {
            None => {
                self.over = true;
                Ok(())
            }
            Some(message) => {
                self.meter()?;
                match message.kind {
                    None => Err(Status::invalid_argument("a message of unknown kind")),
                    Some(kind) => self.take(kind).await,
                }
            }
        }
    }

    fn expired(&self, proof_until: Option<Instant>) -> Status {
        if self.speaker.is_none() {
            Status::deadline_exceeded("no hello in time")
        } else if proof_until.is_some_and(|until| until <= Instant::now()) {
            Status::unauthenticated("the token has expired")
        } else {
            Status::unavailable("the stream has reached its age: connect again")
        }
    }

    /// A token bucket: a stream that says too much is closed, with the wish to come back later.
    fn meter(&mut self) -> Result<(), Status> {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        let limits = self.inner.limits;
        self.tokens =
            (self.tokens + passed * f64::from(limits.per_second)).min(f64::from(limits.burst));
        self.filled_at = now;
        if self.tokens < 1.0 {
            let backoff = Backoff {
                min_ms: 5_000,
                jitter_ms: 10_000,
            };
            self.answers
                .push_back(Ok(message(server_message::Kind::Backoff(backoff))));
            return Err(Status::resource_exhausted(format!(
                "more than {} messages a second",
                limits.per_second
            )));
        }
        self.tokens -= 1.0;
        Ok(())
    }

    async fn take(&mut self, kind: Kind) -> Result<(), Status> {
        let metrics = Arc::clone(&self.inner.metrics);
        if let Kind::Hello(hello) = kind {
            metrics.agent_message("hello");
            return self.hello(&hello);
        }
        if let Kind::Reauth(reauth) = kind {
            metrics.agent_message("reauth");
            // Rare, and larger than all else that a stream waits for: not a part of every stream.
            return Box::pin(self.reauth(&reauth.token)).await;
        }
        let Some(speaker) = &mut self.speaker else {
            return Err(Status::failed_precondition(
                "the first message must be a hello",
            ));
        };
        let taken = match kind {
            Kind::Snapshot(snapshot) => {
                metrics.agent_message("snapshot");
                speaker.state.snapshot(snapshot)?
            }
            Kind::Delta(delta) => {
                metrics.agent_message("delta");
                speaker.state.delta(delta)?
            }
            Kind::Heartbeat(heartbeat) => {
                metrics.agent_message("heartbeat");
                speaker.state.heartbeat(&heartbeat)
            }
            Kind::HealthEvent(event) => {
                metrics.agent_message("health event");
                let source = source(&event);
                metrics.health_event(source);
                let detail = event
                    .device_uuid
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(64);
                tracing::info!(
                    node = %speaker.node,
                    device = %detail.collect::<String>(),
                    source,
                    code = event.code,
                    fatal = event.fatal,
                    "health event"
                );
                let ack = Ack {
                    generation: 0,
                    event_ids: vec![event.id],
                };
                self.answers
                    .push_back(Ok(message(server_message::Kind::Ack(ack))));
                return Ok(());
            }
            Kind::Bye(_) => {
                metrics.agent_message("bye");
                self.over = true;
                return Ok(());
            }
            Kind::Hello(_) | Kind::Reauth(_) => return Ok(()),
        };
        self.answer(taken);
        Ok(())
    }

    fn answer(&mut self, taken: Taken) {
        let Some(speaker) = &self.speaker else {
            return;
        };
        let acked = match taken {
            Taken::Report(report, generation) => {
                self.inner.inbox.report(*report);
                generation
            }
            Taken::Alive(order, sampler_ok, generation) => {
                self.inner.inbox.heartbeat(&speaker.node, order, sampler_ok);
                generation
            }
            Taken::Resync(reason) => {
                let resync = Resync {
                    reason: reason.to_owned(),
                };
                self.answers
                    .push_back(Ok(message(server_message::Kind::Resync(resync))));
                return;
            }
        };
        let ack = Ack {
            generation: acked,
            event_ids: Vec::new(),
        };
        self.answers
            .push_back(Ok(message(server_message::Kind::Ack(ack))));
    }

    fn hello(&mut self, hello: &Hello) -> Result<(), Status> {
        if self.speaker.is_some() {
            return Err(Status::failed_precondition("a second hello"));
        }
        let oldest = PROTOCOL.saturating_sub(1).max(1);
        if !(oldest..=PROTOCOL).contains(&hello.protocol) {
            return Err(Status::failed_precondition(format!(
                "protocol {} is not spoken here: {oldest} to {PROTOCOL} are",
                hello.protocol
            )));
        }
        convert::name("hello.node_name", &hello.node_name)?;
        convert::name("hello.boot_id", &hello.boot_id)?;
        if let Identity::Node { name, .. } = &self.identity
            && **name != *hello.node_name
        {
            return Err(Status::permission_denied(
                "the token speaks for another node than the hello",
            ));
        }
        let instance_max = self.inner.identities.instance_max();
        if instance_max.is_some_and(|max| hello.instance > max) {
            return Err(Status::invalid_argument(
                "hello.instance is a time more than a day ahead: set the node's clock, then restart the agent",
            ));
        }
        let place = self
            .inner
            .registry
            .enter(&hello.node_name, hello.instance)?;
        self.inner.metrics.agents("connected", 1);
        self.speaker = Some(Speaker {
            place,
            node: hello.node_name.as_str().into(),
            state: NodeState::new(&hello.node_name, &hello.boot_id, hello.instance),
        });
        let welcome = self.inner.welcome();
        self.answers
            .push_back(Ok(message(server_message::Kind::Welcome(welcome))));
        Ok(())
    }

    async fn reauth(&mut self, token: &str) -> Result<(), Status> {
        let fresh = self.inner.identities.of_token(token).await;
        let fresh = fresh.map_err(Status::from)?;
        match (&self.identity, &fresh) {
            (Identity::Node { name: held, .. }, Identity::Node { name, .. }) if held != name => {
                Err(Status::permission_denied(
                    "the new token speaks for another node",
                ))
            }
            _ => {
                self.identity = fresh;
                Ok(())
            }
        }
    }
}

async fn aborted(token: Option<&tokio_util::sync::CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Where an agent has seen what it tells of, in one word.
fn source(event: &HealthEvent) -> &'static str {
    use HealthSource as Source;
    match event.source() {
        Source::Xid => "xid",
        Source::RowRemap => "row remap",
        Source::RecoveryAction => "recovery action",
        Source::Fabric => "fabric",
        Source::Ecc => "ecc",
        Source::Lost => "lost",
        Source::Leak => "leak",
        Source::Sampler => "sampler",
        Source::Unspecified => "unknown",
    }
}

fn cause(status: &Status) -> &'static str {
    match status.code() {
        tonic::Code::Aborted => "replaced",
        tonic::Code::Unauthenticated => "expired",
        tonic::Code::PermissionDenied => "another node",
        tonic::Code::ResourceExhausted => "limit",
        tonic::Code::InvalidArgument => "invalid",
        tonic::Code::FailedPrecondition => "protocol",
        tonic::Code::DeadlineExceeded => "silent",
        tonic::Code::Unavailable => "age",
        _ => "connection",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// Thousands of agents have a stream each. With the review of a fresh token in it each took 4.2 KB.
    #[test]
    fn a_stream_that_waits_does_not_hold_what_a_review_of_its_token_needs() {
        let bytes = size(answers);
        assert!(bytes < 2_500, "{bytes} bytes");
    }
}
