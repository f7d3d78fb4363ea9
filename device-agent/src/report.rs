//! What is told to a scheduler replica, and when.
//!
//! ```text
//! node loop --update--> Publisher --Arc<NodeView>--> Session (one per stream) --AgentMessage--> replica
//!                       generation, digest, events          ^------------------ServerMessage---+
//! ```
//! [`Publisher`] owns the truth: each change is one generation. A [`Session`] knows what its replica
//! has and sends the difference: latest state wins, at most one unacknowledged state message, some
//! time between two of them. Both are pure, with the time as an argument; sockets are in [`crate::stream`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use muster_proto::inventory::{
    AgentMessage, Bye, ByeReason, Delta, Device, HealthEvent, Heartbeat, Hello, KubeletView,
    NodeFacts, Reauth, Sampler, ServerMessage, Snapshot, agent_message, server_message,
};
use tokio::time::Instant;

use crate::health::Note;

/// Least time between two state messages of one stream.
pub const SPACING: Duration = Duration::from_millis(250);
/// Time between heartbeats, unless the server asks for another.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Events kept for streams that are behind. Full: the oldest non-fatal one goes first, then the oldest.
pub const EVENTS_MAX: usize = 128;
/// A state message that is not acknowledged for this long is given up: the stream is opened anew.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Limits of the heartbeat interval a server may ask for.
const HEARTBEAT_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Everything that is told of a node, at one generation. Cheap to clone in parts: devices are shared.
#[derive(Debug, Clone, Default)]
pub struct NodeView {
    /// Grows by one with each change of the state below; 0 before the first reading.
    pub generation: u64,
    /// Digest of the state.
    pub digest: u64,
    /// Milliseconds since the Unix epoch of the last change.
    pub observed_at_ms: i64,
    /// Facts of the node.
    pub node: Arc<NodeFacts>,
    /// Devices by UUID.
    pub devices: BTreeMap<String, Arc<Device>>,
    /// The kubelet's view.
    pub kubelet: Arc<KubeletView>,
    /// State of the sampler; not part of the generation.
    pub sampler: Sampler,
    /// Recent events, oldest first.
    pub events: VecDeque<Arc<HealthEvent>>,
    /// Fakes only: nothing is sent.
    pub silent: bool,
    /// Fakes only: how often the first report is to be sent again.
    pub replays: u32,
}

/// Owner of the node's state.
#[derive(Debug, Clone, Default)]
pub struct Publisher {
    view: NodeView,
    next_event_id: u64,
}

impl Publisher {
    /// The state as of now.
    pub fn view(&self) -> &NodeView {
        &self.view
    }

    /// Replaces the state. Returns whether anything differs; then the generation has grown.
    pub fn update(
        &mut self,
        now_ms: i64,
        node: NodeFacts,
        devices: Vec<Device>,
        kubelet: KubeletView,
    ) -> bool {
        let mut changed =
            self.view.generation == 0 || *self.view.node != node || *self.view.kubelet != kubelet;
        let mut next = BTreeMap::new();
        for device in devices {
            let kept = self
                .view
                .devices
                .get(&device.uuid)
                .filter(|held| ***held == device)
                .cloned();
            changed |= kept.is_none();
            next.insert(
                device.uuid.clone(),
                kept.unwrap_or_else(|| Arc::new(device)),
            );
        }
        changed |= next.len() != self.view.devices.len();
        if !changed {
            return false;
        }
        self.view.generation = self.view.generation.saturating_add(1);
        self.view.observed_at_ms = now_ms;
        self.view.digest = muster_proto::digest(
            Some(&node),
            Some(&kubelet),
            next.values().map(AsRef::as_ref),
        );
        self.view.node = Arc::new(node);
        self.view.kubelet = Arc::new(kubelet);
        self.view.devices = next;
        true
    }

    /// Appends an event.
    pub fn event(&mut self, now_ms: i64, note: Note) {
        self.next_event_id = self.next_event_id.saturating_add(1);
        if self.view.events.len() >= EVENTS_MAX {
            let victim = self
                .view
                .events
                .iter()
                .position(|event| !event.fatal)
                .unwrap_or(0);
            self.view.events.remove(victim);
        }
        self.view.events.push_back(Arc::new(HealthEvent {
            id: self.next_event_id,
            device_uuid: note.device_uuid,
            source: note.source.into(),
            code: note.code,
            observed_at_ms: now_ms,
            count: note.count,
            verdict: muster_proto::inventory::Health::from(note.state).into(),
            fatal: note.fatal,
        }));
    }

    /// Sets the state of the sampler. Returns whether it differs.
    pub fn sampler(&mut self, sampler: Sampler) -> bool {
        std::mem::replace(&mut self.view.sampler, sampler) != sampler
    }

    /// Fakes only: stops or resumes sending.
    pub fn silent(&mut self, silent: bool) {
        self.view.silent = silent;
    }

    /// Fakes only: has every stream send the first report again.
    pub fn replay(&mut self) {
        self.view.replays = self.view.replays.saturating_add(1);
    }
}

/// What a server's message asks of the stream's owner, beyond what the session does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Close the stream and come back after `min` plus a random part of `jitter`.
    Reconnect {
        /// Least time to wait.
        min: Duration,
        /// Upper limit of the random part.
        jitter: Duration,
    },
}

/// A state message that has been sent and not acknowledged.
#[derive(Debug, Clone)]
struct InFlight {
    generation: u64,
    at: Instant,
}

/// The conversation with one replica over one stream. Made anew for each stream; what outlives a stream is [`Acked`].
#[derive(Debug)]
pub struct Session {
    hello: Option<Hello>,
    /// What the replica has, or will have when it has read everything that was sent.
    base: Option<Arc<NodeView>>,
    in_flight: Option<InFlight>,
    last_state: Option<Instant>,
    last_heartbeat: Instant,
    told_sampler: Sampler,
    heartbeat: Duration,
    events_sent: u64,
    first: Option<Snapshot>,
    replays: u32,
    reauth: Option<String>,
}

/// Which fatal events a replica has acknowledged; kept over reconnects.
#[derive(Debug, Clone, Default)]
pub struct Acked {
    /// Ids of acknowledged events that are still in the log.
    ids: BTreeSet<u64>,
    /// Highest id that was ever sent to the replica; lower non-fatal ones are not repeated.
    sent: u64,
}

impl Session {
    /// A new stream: Hello and a Snapshot come first.
    pub fn new(now: Instant, hello: Hello) -> Self {
        Self {
            hello: Some(hello),
            base: None,
            in_flight: None,
            last_state: None,
            last_heartbeat: now,
            told_sampler: Sampler::Unspecified,
            heartbeat: HEARTBEAT,
            events_sent: 0,
            first: None,
            replays: 0,
            reauth: None,
        }
    }

    /// Has a fresh token sent.
    pub fn reauth(&mut self, token: String) {
        self.reauth = Some(token);
    }

    /// The next message to send now, if any. Call again until there is none.
    pub fn poll(
        &mut self,
        now: Instant,
        view: &Arc<NodeView>,
        acked: &mut Acked,
    ) -> Option<AgentMessage> {
        if let Some(hello) = self.hello.take() {
            return Some(message(agent_message::Kind::Hello(hello)));
        }
        if view.silent {
            return None;
        }
        if let Some(token) = self.reauth.take() {
            return Some(message(agent_message::Kind::Reauth(Reauth { token })));
        }
        if view.replays > self.replays {
            self.replays = view.replays;
            if let Some(first) = self.first.clone() {
                return Some(message(agent_message::Kind::Snapshot(first)));
            }
        }
        if self.state_due(now, view) {
            return Some(self.state(now, view));
        }
        // Events follow the state that shows their effect, never the other way round.
        if self.base.is_some()
            && let Some(event) = self.next_event(view, acked)
        {
            return Some(message(agent_message::Kind::HealthEvent(event)));
        }
        let heartbeat_due = now.saturating_duration_since(self.last_heartbeat) >= self.heartbeat;
        if self.base.is_some() && (heartbeat_due || view.sampler != self.told_sampler) {
            return Some(self.heartbeat(now, view));
        }
        None
    }

    /// When to call [`Session::poll`] again although nothing came in; always later than `now` once poll has nothing left.
    pub fn next_deadline(&self, now: Instant, view: &NodeView) -> Instant {
        let ack = self.in_flight.as_ref().map(|sent| sent.at + ACK_TIMEOUT);
        let changed = self
            .base
            .as_ref()
            .is_none_or(|base| base.generation != view.generation);
        let pending = changed && view.generation > 0 && self.in_flight.is_none();
        let state = self
            .last_state
            .filter(|_| pending)
            .map(|last| last + SPACING);
        // Without a base no heartbeat is sent: a change of the view wakes the owner.
        let heartbeat = self
            .base
            .as_ref()
            .map(|_| self.last_heartbeat + self.heartbeat);
        let active = [state, heartbeat]
            .into_iter()
            .flatten()
            .filter(|_| !view.silent);
        active
            .chain(ack)
            .fold(now + HEARTBEAT_RANGE.1, Instant::min)
    }

    /// True when the replica has not acknowledged a state message in time: open a new stream.
    pub fn stuck(&self, now: Instant) -> bool {
        self.in_flight
            .as_ref()
            .is_some_and(|sent| now.saturating_duration_since(sent.at) >= ACK_TIMEOUT)
    }

    /// Takes in a message of the replica.
    pub fn receive(&mut self, server: ServerMessage, acked: &mut Acked) -> Effect {
        match server.kind {
            Some(server_message::Kind::Welcome(welcome)) if welcome.heartbeat_interval_ms > 0 => {
                let wanted = Duration::from_millis(u64::from(welcome.heartbeat_interval_ms));
                self.heartbeat = wanted.clamp(HEARTBEAT_RANGE.0, HEARTBEAT_RANGE.1);
            }
            Some(server_message::Kind::Ack(ack)) => {
                if self
                    .in_flight
                    .as_ref()
                    .is_some_and(|sent| ack.generation >= sent.generation)
                {
                    self.in_flight = None;
                }
                acked.ids.extend(ack.event_ids);
            }
            Some(server_message::Kind::Resync(_)) => {
                self.base = None;
                self.in_flight = None;
            }
            Some(server_message::Kind::Backoff(backoff)) => {
                return Effect::Reconnect {
                    min: Duration::from_millis(u64::from(backoff.min_ms)),
                    jitter: Duration::from_millis(u64::from(backoff.jitter_ms)),
                };
            }
            // No wish for the heartbeat, or a newer server's message that is not for us.
            Some(server_message::Kind::Welcome(_)) | None => {}
        }
        Effect::None
    }

    fn state_due(&self, now: Instant, view: &NodeView) -> bool {
        let changed = self
            .base
            .as_ref()
            .is_none_or(|base| base.generation != view.generation);
        let spaced = self
            .last_state
            .is_none_or(|last| now.saturating_duration_since(last) >= SPACING);
        // Before the first reading there is nothing to tell.
        view.generation > 0 && changed && spaced && self.in_flight.is_none()
    }

    fn state(&mut self, now: Instant, view: &Arc<NodeView>) -> AgentMessage {
        self.last_state = Some(now);
        self.in_flight = Some(InFlight {
            generation: view.generation,
            at: now,
        });
        let base = self.base.replace(Arc::clone(view));
        // A state message is a sign of life, but it does not carry the sampler's state.
        if view.sampler == self.told_sampler {
            self.last_heartbeat = now;
        }
        let kind = match base {
            Some(base) => agent_message::Kind::Delta(delta(&base, view)),
            None => {
                let snapshot = snapshot(view);
                self.first.get_or_insert_with(|| snapshot.clone());
                agent_message::Kind::Snapshot(snapshot)
            }
        };
        message(kind)
    }

    fn heartbeat(&mut self, now: Instant, view: &NodeView) -> AgentMessage {
        self.last_heartbeat = now;
        self.told_sampler = view.sampler;
        // The generation and digest of what the replica was told, so that a lost message shows.
        let told = self.base.as_deref().unwrap_or(view);
        message(agent_message::Kind::Heartbeat(Heartbeat {
            generation: told.generation,
            digest: told.digest,
            observed_at_ms: view.observed_at_ms,
            sampler: view.sampler.into(),
        }))
    }

    fn next_event(&mut self, view: &NodeView, acked: &mut Acked) -> Option<HealthEvent> {
        let oldest = view.events.front().map_or(u64::MAX, |event| event.id);
        acked.ids = acked.ids.split_off(&oldest);
        let wanted = |event: &&Arc<HealthEvent>| {
            event.id > self.events_sent
                && if event.fatal {
                    !acked.ids.contains(&event.id)
                } else {
                    event.id > acked.sent
                }
        };
        let event = view.events.iter().find(wanted)?;
        self.events_sent = event.id;
        acked.sent = acked.sent.max(event.id);
        Some(event.as_ref().clone())
    }
}

/// The message that ends a stream.
pub fn bye(reason: ByeReason) -> AgentMessage {
    message(agent_message::Kind::Bye(Bye {
        reason: reason.into(),
    }))
}

fn message(kind: agent_message::Kind) -> AgentMessage {
    AgentMessage { kind: Some(kind) }
}

fn snapshot(view: &NodeView) -> Snapshot {
    Snapshot {
        generation: view.generation,
        digest: view.digest,
        observed_at_ms: view.observed_at_ms,
        node: Some(view.node.as_ref().clone()),
        devices: view
            .devices
            .values()
            .map(|device| device.as_ref().clone())
            .collect(),
        kubelet: Some(view.kubelet.as_ref().clone()),
    }
}

fn delta(base: &NodeView, view: &NodeView) -> Delta {
    let differs = |(uuid, device): &(&String, &Arc<Device>)| {
        base.devices
            .get(*uuid)
            .is_none_or(|held| !Arc::ptr_eq(held, device) && held != *device)
    };
    Delta {
        base_generation: base.generation,
        generation: view.generation,
        digest_after: view.digest,
        observed_at_ms: view.observed_at_ms,
        upserts: view
            .devices
            .iter()
            .filter(differs)
            .map(|(_, device)| device.as_ref().clone())
            .collect(),
        removed: base
            .devices
            .keys()
            .filter(|uuid| !view.devices.contains_key(*uuid))
            .cloned()
            .collect(),
        kubelet: (base.kubelet != view.kubelet).then(|| view.kubelet.as_ref().clone()),
        node: (base.node != view.node).then(|| view.node.as_ref().clone()),
    }
}

#[cfg(test)]
mod tests;
