//! A scheduler replica's report service, good enough to judge an agent by: it applies snapshots and
//! deltas as the protocol says, checks digests, and answers.
#![allow(dead_code, missing_docs)]

pub mod agent;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use muster_agent::connector::{Connector, IoConnector, Replica};
use muster_proto::inventory::inventory_server::{Inventory, InventoryServer};
use muster_proto::inventory::{
    Ack, AgentMessage, Device, Health, HealthEvent, KubeletView, NodeFacts, Resync, Sampler,
    ServerMessage, Welcome, agent_message::Kind, server_message,
};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Waits for a condition, polling in tokio time; panics after two minutes of it.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Debug, Clone)]
pub struct Node {
    pub order: usize,
    pub token: Option<String>,
    pub reauths: Vec<String>,
    pub generation: u64,
    pub digest: u64,
    pub facts: Option<NodeFacts>,
    pub kubelet: Option<KubeletView>,
    pub devices: BTreeMap<String, Device>,
    pub events: Vec<HealthEvent>,
    pub sampler: Sampler,
    pub heartbeats: usize,
    pub snapshots: usize,
    pub deltas: usize,
    pub stale: usize,
    pub byes: usize,
    pub last_seen: Instant,
}

impl Node {
    pub fn consistent(&self) -> bool {
        self.digest
            == muster_proto::digest(
                self.facts.as_ref(),
                self.kubelet.as_ref(),
                self.devices.values(),
            )
    }

    pub fn lost(&self) -> usize {
        self.devices
            .values()
            .filter(|device| device.health() == Health::Lost)
            .count()
    }

    pub fn by_index(&self, index: u32) -> &Device {
        self.devices
            .values()
            .find(|device| device.index == Some(index) && device.mig.is_none())
            .expect("no such device")
    }
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<(String, String), Node>,
    senders: BTreeMap<(String, String), mpsc::Sender<Result<ServerMessage, Status>>>,
    down: BTreeMap<String, bool>,
}

/// Several replicas in one process.
#[derive(Clone)]
pub struct Server {
    state: Arc<Mutex<State>>,
    replicas: Vec<String>,
    epoch: Arc<watch::Sender<u64>>,
}

impl Server {
    pub fn start(replicas: &[&str]) -> Self {
        let replicas = replicas.iter().map(|name| (*name).to_owned()).collect();
        Self {
            state: Arc::default(),
            replicas,
            epoch: Arc::new(watch::channel(0).0),
        }
    }

    /// Connects agents over in-memory pipes.
    pub fn connector(&self) -> Arc<dyn Connector> {
        let server = self.clone();
        Arc::new(IoConnector::new(
            self.replicas.clone(),
            move |replica: Replica| {
                let server = server.clone();
                async move { server.accept(&replica.0) }
            },
        ))
    }

    fn accept(&self, replica: &str) -> std::io::Result<DuplexStream> {
        if self.state.lock().unwrap().down.get(replica) == Some(&true) {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        let (near, mut front) = tokio::io::duplex(64 * 1024);
        let (mut back, far) = tokio::io::duplex(64 * 1024);
        let service = InventoryServer::new(self.service(replica));
        tokio::spawn(async move {
            let incoming = tokio_stream::once(Ok::<_, std::io::Error>(far));
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
        });
        // A relay in between, so that a killed replica's connections break at once.
        let (server, replica) = (self.clone(), replica.to_owned());
        let mut epoch = self.epoch.subscribe();
        tokio::spawn(async move {
            let is_down = || server.state.lock().unwrap().down.get(&replica) == Some(&true);
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut front, &mut back) => {}
                _ = epoch.wait_for(|_| is_down()) => {}
            }
        });
        Ok(near)
    }

    pub fn service(&self, replica: &str) -> Service {
        Service {
            server: self.clone(),
            replica: replica.to_owned(),
        }
    }

    pub fn nodes(&self, replica: &str) -> BTreeMap<String, Node> {
        let state = self.state.lock().unwrap();
        let of = state
            .nodes
            .iter()
            .filter(|((at, _), node)| at == replica && node.snapshots > 0);
        of.map(|((_, name), node)| (name.clone(), node.clone()))
            .collect()
    }

    pub fn node(&self, replica: &str, name: &str) -> Node {
        self.state.lock().unwrap().nodes[&(replica.to_owned(), name.to_owned())].clone()
    }

    /// Breaks the replica's connections; it takes no new ones.
    pub fn kill(&self, replica: &str) {
        self.state.lock().unwrap().down.insert(replica.into(), true);
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    pub fn revive(&self, replica: &str) {
        self.state
            .lock()
            .unwrap()
            .down
            .insert(replica.into(), false);
    }

    pub fn resync(&self, replica: &str, node: &str) {
        let kind = server_message::Kind::Resync(Resync {
            reason: "test".into(),
        });
        self.send(replica, node, kind);
    }

    pub fn send(&self, replica: &str, node: &str, kind: server_message::Kind) {
        let sender =
            self.state.lock().unwrap().senders[&(replica.to_owned(), node.to_owned())].clone();
        sender
            .try_send(Ok(ServerMessage { kind: Some(kind) }))
            .unwrap();
    }

    fn apply(&self, key: &(String, String), message: Kind) -> Option<server_message::Kind> {
        let mut state = self.state.lock().unwrap();
        let node = state.nodes.get_mut(key)?;
        node.last_seen = Instant::now();
        let mut ack = Ack::default();
        match message {
            Kind::Hello(_) => return None,
            Kind::Snapshot(snapshot) if node.generation > snapshot.generation => {
                node.stale += 1;
                return None;
            }
            Kind::Snapshot(snapshot) => {
                node.snapshots += 1;
                (node.generation, node.digest) = (snapshot.generation, snapshot.digest);
                (node.facts, node.kubelet) = (snapshot.node, snapshot.kubelet);
                node.devices = snapshot
                    .devices
                    .into_iter()
                    .map(|device| (device.uuid.clone(), device))
                    .collect();
            }
            Kind::Delta(delta) if delta.base_generation != node.generation => {
                return Some(server_message::Kind::Resync(Resync {
                    reason: "gap".into(),
                }));
            }
            Kind::Delta(delta) => {
                node.deltas += 1;
                (node.generation, node.digest) = (delta.generation, delta.digest_after);
                node.facts = delta.node.or(node.facts.take());
                node.kubelet = delta.kubelet.or(node.kubelet.take());
                for uuid in delta.removed {
                    node.devices.remove(&uuid);
                }
                node.devices.extend(
                    delta
                        .upserts
                        .into_iter()
                        .map(|device| (device.uuid.clone(), device)),
                );
            }
            Kind::Heartbeat(heartbeat) => {
                node.heartbeats += 1;
                node.sampler = heartbeat.sampler();
            }
            Kind::HealthEvent(event) => {
                ack.event_ids.push(event.id);
                node.events.push(event);
            }
            Kind::Reauth(reauth) => node.reauths.push(reauth.token),
            Kind::Bye(_) => node.byes += 1,
        }
        ack.generation = node.generation;
        Some(server_message::Kind::Ack(ack))
    }
}

pub struct Service {
    server: Server,
    replica: String,
}

#[tonic::async_trait]
impl Inventory for Service {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn report(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let header = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        let token = header
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(str::to_owned);
        if token.as_deref() == Some("wrong") {
            return Err(Status::unauthenticated("no"));
        }
        let mut messages = request.into_inner();
        // Hello is read before the answer begins, as a careful server does.
        let Some(AgentMessage {
            kind: Some(Kind::Hello(hello)),
        }) = messages.message().await?
        else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (out, answers) = mpsc::channel(64);
        let key = (self.replica.clone(), hello.node_name);
        {
            let mut state = self.server.state.lock().unwrap();
            let order = state.nodes.len();
            let node = state.nodes.entry(key.clone()).or_insert_with(|| Node {
                order,
                token: None,
                reauths: Vec::new(),
                generation: 0,
                digest: 0,
                facts: None,
                kubelet: None,
                devices: BTreeMap::new(),
                events: Vec::new(),
                sampler: Sampler::Unspecified,
                heartbeats: 0,
                snapshots: 0,
                deltas: 0,
                stale: 0,
                byes: 0,
                last_seen: Instant::now(),
            });
            node.token = token;
            state.senders.insert(key.clone(), out.clone());
        }
        let server = self.server.clone();
        tokio::spawn(async move {
            let welcome = server_message::Kind::Welcome(Welcome {
                server_id: key.0.clone(),
                leader: true,
                ..Welcome::default()
            });
            let _ = out
                .send(Ok(ServerMessage {
                    kind: Some(welcome),
                }))
                .await;
            while let Ok(Some(AgentMessage { kind: Some(kind) })) = messages.message().await {
                if let Some(kind) = server.apply(&key, kind)
                    && out
                        .send(Ok(ServerMessage { kind: Some(kind) }))
                        .await
                        .is_err()
                {
                    break;
                }
            }
            server.state.lock().unwrap().senders.remove(&key);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
