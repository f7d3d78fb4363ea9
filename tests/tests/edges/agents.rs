//! The agents' door, in process, against a stand-in that reviews tokens.

use std::sync::Arc;
use std::time::Duration;

use muster_core::event::Event;
use muster_proto::inventory::agent_message::Kind;
use muster_proto::inventory::inventory_client::InventoryClient;
use muster_proto::inventory::{
    AgentMessage, Device, Health, Heartbeat, Hello, Reauth, Sampler, ServerMessage, Snapshot,
    server_message,
};
use muster_scheduler::agents::{Agents, Identities};
use muster_scheduler::clock::{Dice, Wall};
use muster_scheduler::config::Config;
use muster_scheduler::inbox::{self, Outbox};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::standin::{Reply, Standin, ok};

/// What a review says of a ServiceAccount's pod on a node.
fn user(account: &str, node: &str) -> serde_json::Value {
    let namespace = account.split(':').next().unwrap();
    json!({
        "username": format!("system:serviceaccount:{account}"),
        "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
        "extra": {"authentication.kubernetes.io/node-name": [node]},
    })
}

/// Tokens `token-of-NODE` are good for that node; `a-pods-token` is of a user's pod on n1 that asked
/// for our audience, and `look-alike` of a person to whom another authenticator gives the agent's name.
fn reviewer() -> Standin {
    Standin::new(|call| {
        assert_eq!(call.path, "/apis/authentication.k8s.io/v1/tokenreviews");
        assert_eq!(call.body["spec"]["audiences"], json!(["muster-scheduler"]));
        let token = call.body["spec"]["token"].as_str().unwrap();
        let status = match token.strip_prefix("token-of-") {
            Some(node) => json!({
                "authenticated": true,
                "audiences": ["muster-scheduler"],
                "user": user("muster-system:muster-agent", node),
            }),
            None if token == "no-node" => {
                let mut user = user("muster-system:muster-agent", "");
                user["extra"] = json!({});
                json!({"authenticated": true, "audiences": ["muster-scheduler"], "user": user})
            }
            None if token == "a-pods-token" => json!({
                "authenticated": true,
                "audiences": ["muster-scheduler"],
                "user": user("default:default", "n1"),
            }),
            None if token == "look-alike" => {
                let mut user = user("muster-system:muster-agent", "n1");
                user["groups"] = json!(["system:authenticated"]);
                json!({"authenticated": true, "audiences": ["muster-scheduler"], "user": user})
            }
            None if token == "elsewhere" => json!({"authenticated": true}),
            None => json!({"authenticated": false}),
        };
        ok(json!({"spec": {"token": token}, "status": status}))
    })
}

fn door(standin: &Standin, config: &Config) -> (Agents, Outbox) {
    let (inbox, outbox) = inbox::inbox();
    let identities = Identities::reviewed(
        standin.client(),
        &config.agents,
        Wall::following(jiff::Timestamp::UNIX_EPOCH),
        Arc::default(),
    );
    let agents = Agents::new(
        identities,
        inbox,
        Arc::default(),
        Arc::default(),
        Arc::new(Dice::new(1)),
        config,
        "server".into(),
    );
    (agents, outbox)
}

/// The door, as it is put on a socket.
pub fn reviewed_router() -> axum::Router {
    door(&reviewer(), &Config::default()).0.router()
}

struct Agent {
    say: mpsc::Sender<AgentMessage>,
    hear: Streaming<ServerMessage>,
}

impl Agent {
    async fn connect(agents: &Agents, token: &str) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(256);
        let mut request = Request::new(ReceiverStream::new(said));
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        let response = InventoryClient::new(agents.service())
            .report(request)
            .await?;
        Ok(Self {
            say,
            hear: response.into_inner(),
        })
    }

    async fn say(&self, kind: Kind) {
        self.say
            .send(AgentMessage { kind: Some(kind) })
            .await
            .unwrap();
    }

    async fn hear(&mut self) -> Result<server_message::Kind, Status> {
        let message = self.hear.message().await?;
        message
            .and_then(|message| message.kind)
            .ok_or_else(|| Status::ok("the end"))
    }

    async fn hello(&mut self, node: &str, instance: u64) -> Result<server_message::Kind, Status> {
        let hello = Hello {
            protocol: muster_proto::PROTOCOL,
            node_name: node.into(),
            boot_id: "boot".into(),
            instance,
            ..Hello::default()
        };
        self.say(Kind::Hello(hello)).await;
        self.hear().await
    }
}

fn snapshot(generation: u64) -> Snapshot {
    let devices = vec![Device {
        uuid: "GPU-1".into(),
        resource_name: "nvidia.com/gpu".into(),
        health: Health::Healthy.into(),
        ..Device::default()
    }];
    Snapshot {
        generation,
        digest: muster_proto::digest(None, None, &devices),
        devices,
        ..Snapshot::default()
    }
}

fn heartbeat(of: &Snapshot) -> Heartbeat {
    Heartbeat {
        generation: of.generation,
        digest: of.digest,
        sampler: Sampler::Ok.into(),
        ..Heartbeat::default()
    }
}

async fn refusal(agents: &Agents, token: &str, node: &str) -> Code {
    match Agent::connect(agents, token).await {
        Err(status) => status.code(),
        Ok(mut agent) => agent.hello(node, 1).await.unwrap_err().code(),
    }
}

#[tokio::test]
async fn report_reaches_the_cycle_under_the_proven_name() {
    let standin = reviewer();
    let (agents, mut outbox) = door(&standin, &Config::default());
    let mut agent = Agent::connect(&agents, "token-of-n1").await.unwrap();
    let Ok(server_message::Kind::Welcome(welcome)) = agent.hello("n1", 1).await else {
        panic!("welcome");
    };
    assert_eq!((welcome.leader, welcome.stale_after_ms), (false, 30_000));
    agent.say(Kind::Snapshot(snapshot(3))).await;
    assert!(
        matches!(agent.hear().await, Ok(server_message::Kind::Ack(ack)) if ack.generation == 3)
    );
    assert_eq!(outbox.wait().await, Some(Event::Tick));
    let events = outbox.collect();
    let [Event::Report(report)] = events.as_slice() else {
        panic!("one report: {events:?}");
    };
    assert_eq!(report.node.as_str(), "n1");
    assert_eq!((report.order.generation, report.devices.len()), (3, 1));
    agent.say(Kind::Heartbeat(heartbeat(&snapshot(3)))).await;
    assert!(matches!(
        agent.hear().await,
        Ok(server_message::Kind::Ack(_))
    ));
    assert!(matches!(
        outbox.collect().as_slice(),
        [Event::Heartbeat {
            sampler_ok: true,
            ..
        }]
    ));
    agent.say(Kind::Heartbeat(heartbeat(&snapshot(4)))).await;
    assert!(matches!(
        agent.hear().await,
        Ok(server_message::Kind::Resync(_))
    ));
    assert!(outbox.collect().is_empty());
}

#[tokio::test]
async fn nobody_speaks_for_another_node() {
    let standin = reviewer();
    let (agents, _outbox) = door(&standin, &Config::default());
    assert_eq!(
        refusal(&agents, "token-of-n1", "n2").await,
        Code::PermissionDenied
    );
    assert_eq!(
        refusal(&agents, "no-node", "n1").await,
        Code::Unauthenticated
    );
    assert_eq!(
        refusal(&agents, "forged", "n1").await,
        Code::Unauthenticated
    );
    assert_eq!(
        refusal(&agents, "elsewhere", "n1").await,
        Code::Unauthenticated
    );
    let (say, said) = mpsc::channel(1);
    drop::<mpsc::Sender<AgentMessage>>(say);
    let bare = InventoryClient::new(agents.service())
        .report(ReceiverStream::new(said))
        .await;
    assert_eq!(bare.unwrap_err().code(), Code::Unauthenticated);
    let mut agent = Agent::connect(&agents, "token-of-n1").await.unwrap();
    agent.hello("n1", 1).await.unwrap();
    agent
        .say(Kind::Reauth(Reauth {
            token: "token-of-n2".into(),
        }))
        .await;
    assert_eq!(
        agent.hear().await.unwrap_err().code(),
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn pod_of_another_account_does_not_speak_for_the_node_it_runs_on() {
    let standin = reviewer();
    let (agents, _outbox) = door(&standin, &Config::default());
    for token in ["a-pods-token", "look-alike"] {
        assert_eq!(
            refusal(&agents, token, "n1").await,
            Code::PermissionDenied,
            "{token}"
        );
    }
    let mut config = Config::default();
    config.agents.service_account = "system:serviceaccount:default:default".into();
    let (agents, _outbox) = door(&standin, &config);
    assert!(Agent::connect(&agents, "a-pods-token").await.is_ok());
    assert_eq!(
        refusal(&agents, "token-of-n1", "n1").await,
        Code::PermissionDenied
    );
}

#[tokio::test]
async fn instance_from_the_far_future_does_not_lock_the_node_out() {
    let standin = reviewer();
    let (agents, _outbox) = door(&standin, &Config::default());
    let day_us = 24 * 3600 * 1_000_000;
    for instance in [u64::MAX, 2 * day_us] {
        let mut liar = Agent::connect(&agents, "token-of-n1").await.unwrap();
        let refused = liar.hello("n1", instance).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let mut ahead = Agent::connect(&agents, "token-of-n1").await.unwrap();
    assert!(ahead.hello("n1", day_us / 2).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn token_is_reviewed_once_and_reviews_are_limited() {
    let standin = reviewer();
    let mut config = Config::default();
    config.agents.token_reviews_per_second = 2;
    let (agents, _outbox) = door(&standin, &config);
    let started = Instant::now();
    for instance in 1..5 {
        let mut agent = Agent::connect(&agents, "token-of-n1").await.unwrap();
        agent.hello("n1", instance).await.unwrap();
    }
    assert_eq!(standin.lines().len(), 1);
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert!(Agent::connect(&agents, "token-of-n2").await.is_ok());
    assert_eq!(started.elapsed(), Duration::from_millis(500));
    assert!(Agent::connect(&agents, "token-of-n3").await.is_ok());
    assert_eq!(started.elapsed(), Duration::from_secs(1));
}

/// They were refused at once, came again at random with a TLS handshake each, and kept a core busy with being
/// refused: 15,000 of them for minutes.
#[tokio::test(start_paused = true)]
async fn agents_that_all_come_back_at_once_wait_their_turn_or_are_told_when_to_come() {
    let standin = reviewer();
    let mut config = Config::default();
    config.agents.token_reviews_per_second = 2;
    let (agents, _outbox) = door(&standin, &config);
    let started = Instant::now();
    let coming = (0..20).map(|number| {
        let agents = agents.clone();
        tokio::spawn(async move {
            let token = format!("token-of-n{number}");
            let mut agent = Agent::connect(&agents, &token).await.unwrap();
            let first = agent.hello(&format!("n{number}"), 1).await.unwrap();
            (first, started.elapsed())
        })
    });
    let coming: Vec<_> = coming.collect();
    let (mut waited, mut told) = (Vec::new(), Vec::new());
    for one in coming {
        match one.await.unwrap() {
            (server_message::Kind::Welcome(_), after) => waited.push(after.as_millis()),
            (server_message::Kind::Backoff(later), after) => {
                assert_eq!(after, Duration::ZERO, "who is turned away is told at once");
                told.push(later.min_ms);
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    waited.sort_unstable();
    told.sort_unstable();
    let every_half_second: Vec<u128> = (0..9).map(|turn| turn * 500).collect();
    assert_eq!(
        waited, every_half_second,
        "as long as an agent gives a call"
    );
    let in_turn: Vec<u32> = (10..21).map(|turn| turn * 500).collect();
    assert_eq!(told, in_turn, "one after the other, not all at once");
    assert_eq!(standin.lines().len(), 9);
    // Who comes when it was told to has no longer to wait than anybody.
    tokio::time::advance(Duration::from_secs(1)).await;
    let asked = Instant::now();
    let mut late = Agent::connect(&agents, "token-of-n19").await.unwrap();
    assert!(matches!(
        late.hello("n19", 1).await.unwrap(),
        server_message::Kind::Welcome(_)
    ));
    assert!(asked.elapsed() <= Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn api_server_that_does_not_answer_is_not_asked_about_every_agent() {
    let standin = Standin::new(|_| Reply::Hang);
    let mut config = Config::default();
    config.agents.token_reviews_per_second = 10_000;
    let (agents, _outbox) = door(&standin, &config);
    let coming: Vec<_> = (0..500)
        .map(|number| {
            let agents = agents.clone();
            tokio::spawn(async move {
                let token = format!("token-of-n{number}");
                let refused = Agent::connect(&agents, &token).await.err();
                refused.map(|status| status.code())
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(standin.lines().len(), 64);
    let mut asked = 0;
    for one in coming {
        match one.await.unwrap() {
            Some(Code::Unavailable) => asked += 1,
            // Told when to come again.
            None => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, 64);
}

/// Turns were given out faster than reviews came back; each waited in a line for longer than it was given, and
/// was cancelled when it was nearly done: after some seconds nobody came in any more.
#[tokio::test(start_paused = true)]
async fn agents_come_back_although_the_api_server_needs_long_for_each() {
    let standin = Standin::new(|call| {
        let token = call.body["spec"]["token"].as_str().unwrap();
        let node = token.strip_prefix("token-of-").unwrap();
        let status = json!({
            "authenticated": true,
            "audiences": ["muster-scheduler"],
            "user": user("muster-system:muster-agent", node),
        });
        Reply::Slow(Duration::from_millis(200), json!({ "status": status }))
    });
    let (agents, _outbox) = door(&standin, &Config::default());
    let started = Instant::now();
    let coming = (0..8000).map(|number| {
        let agents = agents.clone();
        tokio::spawn(async move {
            let token = format!("token-of-n{number}");
            loop {
                let mut agent = Agent::connect(&agents, &token).await.unwrap();
                match agent.hello(&format!("n{number}"), 1).await.unwrap() {
                    server_message::Kind::Welcome(_) => return started.elapsed(),
                    server_message::Kind::Backoff(later) => {
                        let wait = Duration::from_millis(u64::from(later.min_ms));
                        tokio::time::sleep(wait).await;
                    }
                    other => panic!("{other:?}"),
                }
            }
        })
    });
    let coming: Vec<_> = coming.collect();
    let mut last = Duration::ZERO;
    for one in coming {
        last = last.max(one.await.unwrap());
    }
    // 64 at once, five times a second, are 320 in each.
    assert!(last < Duration::from_secs(40), "{last:?}");
}

#[tokio::test]
async fn newer_agent_ends_the_older_ones_stream() {
    let standin = reviewer();
    let (agents, _outbox) = door(&standin, &Config::default());
    let mut old = Agent::connect(&agents, "token-of-n1").await.unwrap();
    old.hello("n1", 5).await.unwrap();
    let mut new = Agent::connect(&agents, "token-of-n1").await.unwrap();
    new.hello("n1", 6).await.unwrap();
    assert_eq!(old.hear().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(refusal(&agents, "token-of-n1", "n1").await, Code::Aborted);
    new.say(Kind::Snapshot(snapshot(1))).await;
    assert!(new.hear().await.is_ok());
}

#[tokio::test]
async fn what_is_said_before_hello_in_another_protocol_or_too_often_ends_the_stream() {
    let standin = reviewer();
    let (agents, _outbox) = door(&standin, &Config::default());
    let mut early = Agent::connect(&agents, "token-of-n1").await.unwrap();
    early.say(Kind::Snapshot(snapshot(1))).await;
    assert_eq!(
        early.hear().await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let mut foreign = Agent::connect(&agents, "token-of-n1").await.unwrap();
    foreign
        .say(Kind::Hello(Hello {
            protocol: 99,
            ..Hello::default()
        }))
        .await;
    assert_eq!(
        foreign.hear().await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let mut chatty = Agent::connect(&agents, "token-of-n1").await.unwrap();
    chatty.hello("n1", 1).await.unwrap();
    for _ in 0..150 {
        chatty.say(Kind::Heartbeat(Heartbeat::default())).await;
    }
    let mut backoff = false;
    let end = loop {
        match chatty.hear().await {
            Ok(server_message::Kind::Backoff(_)) => backoff = true,
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert!(backoff);
    assert_eq!(end.code(), Code::ResourceExhausted);
}

#[tokio::test(start_paused = true)]
async fn silent_stream_is_closed_and_every_stream_has_an_age() {
    let standin = reviewer();
    let (agents, _outbox) = door(&standin, &Config::default());
    let mut mute = Agent::connect(&agents, "token-of-n1").await.unwrap();
    assert_eq!(
        mute.hear().await.unwrap_err().code(),
        Code::DeadlineExceeded
    );
    let (inbox, _outbox) = inbox::inbox();
    let config = Config::default();
    let believing = Agents::new(
        Identities::believed(),
        inbox,
        Arc::default(),
        Arc::default(),
        Arc::new(Dice::new(1)),
        &config,
        "server".into(),
    );
    let started = tokio::time::Instant::now();
    let mut agent = Agent::connect(&believing, "none").await.unwrap();
    agent.hello("n1", 1).await.unwrap();
    assert_eq!(agent.hear().await.unwrap_err().code(), Code::Unavailable);
    let age = started.elapsed();
    assert!(
        age <= config.agents.stream_age_max.0 && age > Duration::from_secs(2000),
        "{age:?}"
    );
}
