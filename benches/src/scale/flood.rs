//! Agents that say too much, and one that says what it should and notes how long it waits for its answers.
//!
//! Half of the loud ones report 100 times as often as agents send heartbeats, which is as much as a stream may say in
//! the long run; the others as fast as their connection takes it, and come again a second after they were cut off,
//! whatever they were told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use muster_agent::connector::{Connector as _, NetConnector};
use muster_proto::PROTOCOL;
use muster_proto::inventory::inventory_client::InventoryClient;
use muster_proto::inventory::{
    AgentMessage, Device, Health, Heartbeat, Hello, KubeletView, ResourceDevices, Sampler,
    ServerMessage, Snapshot, agent_message::Kind, server_message,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::objects::GPUS;
use super::world::{Scheduler, World};

/// Time between two reports of those that keep a pace: a hundredth of the time between two heartbeats.
const PACE: Duration = Duration::from_millis(100);
/// Time after which one that was cut off comes again.
const AGAIN: Duration = Duration::from_secs(1);
/// Time between two heartbeats of the one that keeps quiet.
const BEAT: Duration = Duration::from_millis(250);
/// Longest wait for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Resource of the devices.
const GPU: &str = "nvidia.com/gpu";

/// Where agents connect, and as whom.
#[derive(Clone)]
pub struct Way {
    connector: Arc<NetConnector>,
    address: String,
}

impl Way {
    /// The way to a scheduler.
    ///
    /// # Errors
    /// The authority's certificate cannot be used.
    pub fn to(world: &World, scheduler: &Scheduler) -> anyhow::Result<Self> {
        let url = url(scheduler);
        let connector = NetConnector::new(&url, Some(world.authority.ca_pem().as_bytes()))?;
        Ok(Self {
            connector: Arc::new(connector),
            address: scheduler.agents.clone(),
        })
    }

    async fn open(&self, node: &str, token: &str) -> anyhow::Result<Stream> {
        let replica = muster_agent::connector::Replica(self.address.clone());
        let channel = self.connector.connect(&replica).await?;
        let (out, outgoing) = mpsc::channel(4);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        let bearer = format!("Bearer {token}").parse().context("a token")?;
        request.metadata_mut().insert("authorization", bearer);
        // The server answers the call once it has read the Hello.
        let now = u64::try_from(jiff::Timestamp::now().as_microsecond())?;
        out.send(message(Kind::Hello(Hello {
            protocol: PROTOCOL,
            agent_version: "bench".into(),
            node_name: node.to_owned(),
            boot_id: format!("boot-{node}"),
            instance: now,
            ..Hello::default()
        })))
        .await?;
        let answers = InventoryClient::new(channel).report(request).await?;
        Ok(Stream {
            node: node.to_owned(),
            out,
            answers: answers.into_inner(),
            generation: 0,
        })
    }
}

/// As agents are told where the scheduler is.
pub fn url(scheduler: &Scheduler) -> String {
    format!(
        "https://{}",
        scheduler.agents.replace("127.0.0.1", "localhost")
    )
}

fn message(kind: Kind) -> AgentMessage {
    AgentMessage { kind: Some(kind) }
}

struct Stream {
    node: String,
    out: mpsc::Sender<AgentMessage>,
    answers: Streaming<ServerMessage>,
    generation: u64,
}

impl Stream {
    /// A report that differs from the one before.
    fn report(&mut self) -> AgentMessage {
        self.generation += 1;
        let devices: Vec<Device> = (0..GPUS).map(|index| self.device(index)).collect();
        let kubelet = KubeletView {
            known: true,
            allocatable: vec![ResourceDevices {
                resource_name: GPU.into(),
                device_ids: devices.iter().map(|device| device.uuid.clone()).collect(),
            }],
        };
        message(Kind::Snapshot(Snapshot {
            generation: self.generation,
            digest: muster_proto::digest(None, Some(&kubelet), &devices),
            devices,
            kubelet: Some(kubelet),
            ..Snapshot::default()
        }))
    }

    fn device(&self, index: u32) -> Device {
        Device {
            uuid: format!("GPU-{}-{index}", self.node),
            health: Health::Healthy.into(),
            resource_name: GPU.into(),
            index: Some(index),
            minor_number: Some(index),
            name: Some("NVIDIA H100 80GB HBM3".into()),
            architecture: Some("hopper".into()),
            memory_total_bytes: Some(80 << 30),
            // What changes from one report to the next.
            memory_used_bytes: Some(self.generation),
            ..Device::default()
        }
    }
}

/// An agent that says too much, until it is dropped. `said` counts its reports.
async fn loud(way: Way, node: String, token: String, pace: Option<Duration>, said: Arc<AtomicU64>) {
    loop {
        // It is cut off, or not let in: both are what it is here for.
        let _ = talk(&way, &node, &token, pace, &said).await;
        tokio::time::sleep(AGAIN).await;
    }
}

async fn talk(
    way: &Way,
    node: &str,
    token: &str,
    pace: Option<Duration>,
    said: &AtomicU64,
) -> anyhow::Result<()> {
    let mut stream = way.open(node, token).await?;
    loop {
        let report = stream.report();
        tokio::select! {
            biased;
            answer = stream.answers.message() => {
                // The report is not said: its number is the next one's.
                stream.generation -= 1;
                if answer?.is_none() {
                    return Ok(());
                }
            }
            sent = stream.out.send(report) => {
                sent?;
                said.fetch_add(1, Ordering::Relaxed);
                if let Some(pace) = pace {
                    tokio::time::sleep(pace).await;
                }
            }
        }
    }
}

/// The loud ones. Dropping it ends them.
pub struct Flood {
    _agents: JoinSet<()>,
    said: Arc<AtomicU64>,
}

impl Flood {
    /// One for each node, with its token.
    pub fn start(way: &Way, nodes: Vec<(String, String)>) -> Self {
        let said = Arc::new(AtomicU64::new(0));
        let mut agents = JoinSet::new();
        for (at, (node, token)) in nodes.into_iter().enumerate() {
            let pace = at.is_multiple_of(2).then_some(PACE);
            agents.spawn(loud(way.clone(), node, token, pace, Arc::clone(&said)));
        }
        Self {
            _agents: agents,
            said,
        }
    }

    /// Reports that they have handed to their connections.
    pub fn said(&self) -> u64 {
        self.said.load(Ordering::Relaxed)
    }
}

/// Sends heartbeats for a while and returns how long the answer to each took, sorted.
pub async fn witness(
    way: Way,
    node: String,
    token: String,
    span: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let end = Instant::now() + span;
    let mut stream = way.open(&node, &token).await?;
    let report = stream.report();
    let Some(Kind::Snapshot(held)) = &report.kind else {
        bail!("a report is a snapshot");
    };
    let heartbeat = Heartbeat {
        generation: held.generation,
        digest: held.digest,
        sampler: Sampler::Ok.into(),
        ..Heartbeat::default()
    };
    stream.out.send(report).await?;
    acked(&mut stream).await?;
    let mut took = Vec::new();
    while Instant::now() < end {
        let sent = Instant::now();
        stream.out.send(message(Kind::Heartbeat(heartbeat))).await?;
        acked(&mut stream).await?;
        took.push(sent.elapsed());
        tokio::time::sleep(BEAT).await;
    }
    took.sort_unstable();
    Ok(took)
}

/// Waits for an acknowledgement.
async fn acked(stream: &mut Stream) -> anyhow::Result<()> {
    let acked = async {
        loop {
            let answer = stream
                .answers
                .message()
                .await?
                .context("the stream ended")?;
            match answer.kind {
                Some(server_message::Kind::Ack(_)) => return Ok(()),
                Some(server_message::Kind::Welcome(_)) => {}
                other => bail!("the quiet agent is answered {other:?}"),
            }
        }
    };
    tokio::time::timeout(ANSWER_MAX, acked)
        .await
        .with_context(|| format!("no answer within {ANSWER_MAX:?}"))?
}
