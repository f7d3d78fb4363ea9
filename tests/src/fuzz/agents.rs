//! The agents' door: streams of messages, by the fields of protobuf. The input is a message whose fields 1 are what an
//! agent says; where that can be read, digests are made right, for most of what lies behind them would not be reached.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use jiff::Timestamp as WallTime;
use muster_core::event::Event;
use muster_core::ids::NodeName;
use muster_core::inventory::Inventory;
use muster_core::time::{Millis, Timestamp};
use muster_proto::inventory::agent_message::Kind;
use muster_proto::inventory::{AgentMessage, Delta, Device, KubeletView, NodeFacts, Snapshot};
use muster_scheduler::agents::{Agents, Identities};
use muster_scheduler::clock::Dice;
use muster_scheduler::config::Config;
use muster_scheduler::inbox::{self, Outbox};
use prost::Message as _;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

use super::wire::{self, Content};
use super::{Target, corpus, runtime, too_large};

/// Most devices that are believed of a node.
const DEVICES_MAX: usize = 1024;
/// Most nodes that are looked at together: then all are forgotten.
const NODES_MAX: usize = 64;
/// Most bytes of an answer that are read.
const ANSWER_MAX: usize = 16 << 20;

/// The door, and the inventory behind it.
pub(super) struct Door {
    runtime: Runtime,
    router: Router,
    outbox: Outbox,
    inventory: Inventory,
    now: Timestamp,
}

impl Door {
    pub(super) fn new() -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let (inbox, outbox) = inbox::inbox();
        let _guard = runtime.enter();
        let agents = Agents::new(
            Identities::believed(),
            inbox,
            Arc::default(),
            Arc::default(),
            Arc::new(Dice::new(1)),
            &Config::default(),
            "fuzz".into(),
        );
        let router = agents.router();
        drop(_guard);
        Ok(Self {
            runtime,
            router,
            outbox,
            inventory: Inventory::default(),
            now: Timestamp(1_000_000),
        })
    }

    fn say(&self, body: Vec<u8>) -> anyhow::Result<(u16, String, Vec<u8>)> {
        let request = Request::post("/muster.inventory.v1.Inventory/Report")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::from(body))?;
        let router = self.router.clone();
        self.runtime.block_on(async {
            let response = router.oneshot(request).await?;
            let code = response.status().as_u16();
            let said = response.headers().get("grpc-status");
            let said = said
                .and_then(|status| status.to_str().ok())
                .unwrap_or("")
                .to_owned();
            let bytes = axum::body::to_bytes(response.into_body(), ANSWER_MAX).await?;
            Ok((code, said, bytes.to_vec()))
        })
    }

    /// Believes what came through, as the engine does.
    fn believe(&mut self) -> Result<u32, String> {
        let mut reports = 0;
        let queued: Vec<Event> = std::iter::from_fn(|| self.outbox.take()).collect();
        for event in queued.into_iter().chain(self.outbox.collect()) {
            match event {
                Event::Report(report) => {
                    reports += 1;
                    if report.devices.len() > DEVICES_MAX {
                        return Err(format!("{} devices are reported", report.devices.len()));
                    }
                    let texts = report.devices.iter().flat_map(|device| {
                        let holders = device.holders.iter();
                        let holders = holders.flat_map(|(space, pod)| [space.as_str(), &**pod]);
                        holders.chain([device.uuid.as_str(), device.resource.as_str()])
                    });
                    for text in texts.chain([report.node.as_str()]) {
                        if text.is_empty() || text.len() > 253 {
                            return Err(format!("a name of {} bytes is taken", text.len()));
                        }
                    }
                    // Whether it is taken or refused: it may be old.
                    let _ = self.inventory.apply(report, self.now);
                }
                Event::Heartbeat {
                    node,
                    order,
                    sampler_ok,
                } => {
                    let _ = self.inventory.hear(&node, &order, sampler_ok, self.now);
                }
                Event::Tick => {}
                other => return Err(format!("the engine was told {other:?}")),
            }
        }
        self.now = self.now + Millis(10);
        let nodes: Vec<NodeName> = self
            .inventory
            .iter()
            .map(|(node, _)| node.clone())
            .collect();
        for node in &nodes {
            let limit = Millis::from_secs(30);
            let _ = self.inventory.trusted(node, self.now, limit);
        }
        if nodes.len() > NODES_MAX {
            nodes.iter().for_each(|node| self.inventory.remove(node));
            if let Some((left, _)) = self.inventory.iter().next() {
                return Err(format!("{left} is removed and known"));
            }
        }
        Ok(reports)
    }
}

/// What the other side holds, to know the digest of it.
#[derive(Default)]
struct Held {
    facts: Option<NodeFacts>,
    kubelet: Option<KubeletView>,
    devices: BTreeMap<String, Device>,
    generation: u64,
}

impl Held {
    fn digest(&self) -> u64 {
        muster_proto::digest(
            self.facts.as_ref(),
            self.kubelet.as_ref(),
            self.devices.values(),
        )
    }

    fn snapshot(&mut self, snapshot: &mut Snapshot) {
        let devices = snapshot.devices.iter();
        *self = Self {
            facts: snapshot.node.clone(),
            kubelet: snapshot.kubelet.clone(),
            devices: devices
                .map(|device| (device.uuid.clone(), device.clone()))
                .collect(),
            generation: snapshot.generation,
        };
        snapshot.digest = self.digest();
    }

    fn delta(&mut self, delta: &mut Delta) {
        delta.base_generation = self.generation;
        for uuid in &delta.removed {
            self.devices.remove(uuid);
        }
        for device in &delta.upserts {
            self.devices.insert(device.uuid.clone(), device.clone());
        }
        self.kubelet = delta.kubelet.clone().or(self.kubelet.take());
        self.facts = delta.node.clone().or(self.facts.take());
        self.generation = delta.generation;
        delta.digest_after = self.digest();
    }
}

/// The bytes of a gRPC body for an input, and how many messages could be read.
fn body(input: &[u8]) -> (Vec<u8>, u32) {
    let Some(fields) = wire::read(input) else {
        return (input.to_vec(), 0);
    };
    let mut held = Held::default();
    let (mut body, mut understood) = (Vec::new(), 0);
    // An even field 2 leaves the digests as they are.
    let honest = !fields.iter().any(|field| {
        field.number == 2 && matches!(field.content, Content::Number(number) if number % 2 == 0)
    });
    for field in &fields {
        let mut bytes = match (&field.number, &field.content) {
            (1, Content::Message(fields)) => wire::write(fields),
            (1, Content::Bytes(bytes)) => bytes.clone(),
            _ => continue,
        };
        if let Ok(mut message) = AgentMessage::decode(&*bytes) {
            understood += 1;
            match &mut message.kind {
                Some(Kind::Snapshot(snapshot)) if honest => held.snapshot(snapshot),
                Some(Kind::Delta(delta)) if honest => held.delta(delta),
                Some(Kind::Heartbeat(heartbeat)) if honest => {
                    heartbeat.generation = held.generation;
                    heartbeat.digest = held.digest();
                }
                _ => {}
            }
            bytes = message.encode_to_vec();
        }
        body.push(0);
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend(bytes);
    }
    (body, understood)
}

impl Target for Door {
    fn name(&self) -> &'static str {
        "agents"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        corpus::agents(WallTime::UNIX_EPOCH)
    }

    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let (body, understood) = body(input);
        let length = body.len();
        let (code, status, answer) = self.say(body).map_err(|error| format!("{error:#}"))?;
        too_large(length, answer.len())?;
        let reports = self.believe()?;
        if code != 200 {
            return Err(format!("code {code}"));
        }
        let answers = answer.len() / 16;
        Ok(format!(
            "status {status}, reports {}, {}, answers {}",
            "r".repeat(usize::try_from(reports).unwrap_or(0).min(8)),
            "m".repeat(usize::try_from(understood).unwrap_or(0).min(8)),
            "a".repeat(answers.min(16))
        ))
    }
}
