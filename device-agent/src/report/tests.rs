use std::sync::Arc;
use std::time::Duration;

use muster_proto::inventory::{
    Ack, Backoff, Device, HealthSource, Hello, KubeletView, NodeFacts, Resync, Sampler,
    ServerMessage, Welcome, agent_message::Kind, server_message,
};
use tokio::time::Instant;

use super::{ACK_TIMEOUT, Acked, EVENTS_MAX, Effect, Publisher, SPACING, Session};
use crate::health::Note;
use crate::health::table::State;

/// A publisher and one stream to a replica that answers when told to.
struct Bench {
    start: Instant,
    publisher: Publisher,
    session: Session,
    acked: Acked,
}

impl Bench {
    fn new() -> Self {
        let start = Instant::now();
        let session = Session::new(start, Hello::default());
        let mut bench = Self {
            start,
            publisher: Publisher::default(),
            session,
            acked: Acked::default(),
        };
        bench.devices(&["healthy", "healthy"]);
        bench
    }

    fn devices(&mut self, reasons: &[&str]) -> bool {
        let device = |(position, reason): (usize, &&str)| Device {
            uuid: format!("GPU-{position}"),
            health_reason: (*reason).to_owned(),
            ..Device::default()
        };
        let devices = reasons.iter().enumerate().map(device).collect();
        self.publisher
            .update(0, NodeFacts::default(), devices, KubeletView::default())
    }

    fn note(&mut self, code: i64, fatal: bool) {
        let source = HealthSource::Xid;
        self.publisher.event(
            0,
            Note {
                device_uuid: "GPU-0".into(),
                source,
                code,
                count: 1,
                state: State::Lost,
                fatal,
            },
        );
    }

    /// Everything that is sent at this time, in short words.
    fn sent(&mut self, at_ms: u64) -> Vec<String> {
        let now = self.start + Duration::from_millis(at_ms);
        let view = Arc::new(self.publisher.view().clone());
        let mut words = Vec::new();
        while let Some(message) = self.session.poll(now, &view, &mut self.acked) {
            words.push(match message.kind.unwrap() {
                Kind::Hello(_) => "hello".into(),
                Kind::Snapshot(snapshot) => format!(
                    "snapshot {} of {}",
                    snapshot.generation,
                    snapshot.devices.len()
                ),
                Kind::Delta(delta) => format!(
                    "delta {}-{} +{} -{}",
                    delta.base_generation,
                    delta.generation,
                    delta.upserts.len(),
                    delta.removed.len()
                ),
                Kind::Heartbeat(heartbeat) => format!(
                    "heartbeat {} {:?}",
                    heartbeat.generation,
                    heartbeat.sampler()
                ),
                Kind::HealthEvent(event) => format!("event {}", event.code),
                Kind::Reauth(reauth) => format!("reauth {}", reauth.token),
                Kind::Bye(_) => "bye".into(),
            });
        }
        let next = self.session.next_deadline(now, &view);
        assert!(next > now, "the owner of the session would spin");
        words
    }

    fn receive(&mut self, kind: server_message::Kind) -> Effect {
        self.session
            .receive(ServerMessage { kind: Some(kind) }, &mut self.acked)
    }

    fn ack(&mut self, generation: u64, event_ids: &[u64]) {
        let ack = Ack {
            generation,
            event_ids: event_ids.to_vec(),
        };
        assert_eq!(self.receive(server_message::Kind::Ack(ack)), Effect::None);
    }

    fn reconnect(&mut self, at_ms: u64) {
        self.session = Session::new(self.start + Duration::from_millis(at_ms), Hello::default());
    }
}

#[test]
fn a_stream_begins_with_hello_and_everything_then_sends_differences() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.sent(0),
        ["hello", "snapshot 1 of 2", "heartbeat 1 Unspecified"][..2]
    );
    bench.ack(1, &[]);
    assert!(!bench.devices(&["healthy", "healthy"]));
    assert_eq!(bench.sent(1000), [""; 0]);
    assert!(bench.devices(&["healthy", "xid-79"]));
    assert_eq!(bench.sent(1001), ["delta 1-2 +1 -0"]);
    bench.ack(2, &[]);
    bench.devices(&["healthy"]);
    assert_eq!(bench.sent(2000), ["delta 2-3 +0 -1"]);
}

#[test]
fn changes_coalesce_while_an_ack_is_awaited_and_keep_their_distance() {
    let mut bench = Bench::new();
    bench.sent(0);
    for n in 0..100 {
        bench.devices(&[&format!("reason-{n}"), "healthy"]);
        assert_eq!(bench.sent(300 + n), [""; 0]);
    }
    bench.ack(1, &[]);
    assert_eq!(bench.sent(500), ["delta 1-101 +1 -0"]);
    bench.ack(101, &[]);
    bench.devices(&["again", "healthy"]);
    assert_eq!(bench.sent(501), [""; 0]);
    let view = bench.publisher.view().clone();
    let now = bench.start + Duration::from_millis(501);
    assert_eq!(
        bench.session.next_deadline(now, &view),
        bench.start + Duration::from_millis(500) + SPACING
    );
    assert_eq!(bench.sent(750), ["delta 101-102 +1 -0"]);
}

#[test]
fn resync_brings_a_snapshot_and_a_missing_ack_ends_the_stream() {
    let mut bench = Bench::new();
    bench.sent(0);
    bench.ack(1, &[]);
    bench.receive(server_message::Kind::Resync(Resync {
        reason: "digest".into(),
    }));
    assert_eq!(bench.sent(10), [""; 0], "spacing holds for snapshots too");
    assert_eq!(bench.sent(260), ["snapshot 1 of 2"]);
    let late = bench.start + Duration::from_millis(260) + ACK_TIMEOUT;
    assert!(!bench.session.stuck(late - Duration::from_millis(1)));
    assert!(bench.session.stuck(late));
}

#[test]
fn heartbeats_follow_the_servers_wish_and_tell_a_hung_sampler_at_once() {
    let mut bench = Bench::new();
    bench.sent(0);
    bench.ack(1, &[]);
    assert_eq!(bench.sent(9_999), [""; 0]);
    assert_eq!(bench.sent(10_000), ["heartbeat 1 Unspecified"]);
    bench.receive(server_message::Kind::Welcome(Welcome {
        heartbeat_interval_ms: 2_000,
        ..Welcome::default()
    }));
    assert_eq!(bench.sent(12_000), ["heartbeat 1 Unspecified"]);
    bench.publisher.sampler(Sampler::Hung);
    assert_eq!(bench.sent(12_001), ["heartbeat 1 Hung"]);
    bench.receive(server_message::Kind::Welcome(Welcome {
        heartbeat_interval_ms: 1,
        ..Welcome::default()
    }));
    assert_eq!(bench.sent(12_500), [""; 0], "a second is the least");
}

#[test]
fn fatal_events_are_repeated_until_acknowledged_and_others_told_once() {
    let mut bench = Bench::new();
    bench.note(79, true);
    bench.note(31, false);
    bench.note(48, true);
    assert_eq!(
        bench.sent(0),
        [
            "hello",
            "snapshot 1 of 2",
            "event 79",
            "event 31",
            "event 48"
        ]
    );
    bench.ack(1, &[1]);
    bench.reconnect(100);
    assert_eq!(bench.sent(100), ["hello", "snapshot 1 of 2", "event 48"]);
    bench.ack(1, &[3]);
    bench.reconnect(200);
    assert_eq!(bench.sent(200), ["hello", "snapshot 1 of 2"]);
}

#[test]
fn the_event_log_is_bounded_and_keeps_what_is_fatal() {
    let mut bench = Bench::new();
    bench.note(79, true);
    for _ in 0..10 * EVENTS_MAX {
        bench.note(31, false);
    }
    let events = &bench.publisher.view().events;
    assert_eq!((events.len(), events[0].code), (EVENTS_MAX, 79));
}

#[test]
fn a_silent_node_sends_nothing_and_a_replayed_report_keeps_its_generation() {
    let mut bench = Bench::new();
    bench.sent(0);
    bench.ack(1, &[]);
    bench.publisher.silent(true);
    bench.devices(&["xid-95", "healthy"]);
    assert_eq!(bench.sent(60_000), [""; 0]);
    bench.publisher.silent(false);
    assert_eq!(bench.sent(60_001), ["delta 1-2 +1 -0"]);
    bench.ack(2, &[]);
    bench.publisher.replay();
    assert_eq!(bench.sent(61_000), ["snapshot 1 of 2"]);
    assert_eq!(bench.sent(62_000), [""; 0]);
}

#[test]
fn tokens_are_renewed_and_backoff_is_passed_on() {
    let mut bench = Bench::new();
    bench.sent(0);
    bench.session.reauth("fresh".into());
    assert_eq!(bench.sent(1), ["reauth fresh"]);
    let effect = bench.receive(server_message::Kind::Backoff(Backoff {
        min_ms: 100,
        jitter_ms: 50,
    }));
    let expected = Effect::Reconnect {
        min: Duration::from_millis(100),
        jitter: Duration::from_millis(50),
    };
    assert_eq!(effect, expected);
}
