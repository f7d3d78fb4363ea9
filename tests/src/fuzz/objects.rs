//! Objects as the API server gives them, and as far as a plan is made of them: each is read alone, by an engine that
//! has nothing but a node beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_core::action::{Action, JobChange, WriteKind};
use muster_core::config::{Config, NodesWithoutAgent};
use muster_core::engine::Engine;
use muster_core::event::{Event, Listing, WriteOutcome};
use muster_core::ids::{Epoch, NodeName};
use muster_core::time::{Millis, Timestamp};
use muster_core::workload::{MEMBERS_MAX, Workload};
use muster_kubernetes::gang::Gang;
use muster_kubernetes::lite::{LiteNode, LitePod, LitePodGroup, LitePyTorchJob};
use muster_kubernetes::translate::{self, PodRules};
use muster_kubernetes::write;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Target, corpus};

/// Longest text that Muster says about an object, characters.
const SAID_MAX: usize = 4096;
/// Rounds in which an engine comes to rest.
const ROUNDS_MAX: u32 = 64;

/// Which objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pod,
    Job,
    PodGroup,
    Node,
    Gang,
}

impl Kind {
    pub(super) const ALL: [Self; 5] =
        [Self::Pod, Self::Job, Self::PodGroup, Self::Node, Self::Gang];
}

/// One kind of objects.
pub(super) struct Object {
    kind: Kind,
    rules: PodRules,
    config: Config,
    node: Option<Event>,
}

impl Object {
    pub(super) fn new(kind: Kind) -> Self {
        let config = Config {
            nodes_without_agent: NodesWithoutAgent::UseAllocatable,
            ..Config::default()
        };
        let node = corpus::NODES
            .first()
            .and_then(|text| read::<LiteNode>(text.as_bytes()).ok());
        Self {
            kind,
            rules: PodRules::new("muster", &config),
            config,
            node: node.map(|node| Event::NodeApplied(translate::node(&node))),
        }
    }

    /// What an object says to an engine; `None` where it is nothing to Muster.
    fn event(&self, input: &[u8]) -> Result<Option<Event>, Read> {
        Ok(match self.kind {
            Kind::Pod => {
                let lite: LitePod = read(input)?;
                let node = NodeName::from("n1");
                let _ = write::release_pod_patch(&lite, Some(&node));
                let pod = translate::pod(&lite, &self.rules);
                if pod.shape.requests.pods != 1 {
                    return Err(Read::Wrong(format!(
                        "a pod counts as {:?}",
                        pod.shape.requests
                    )));
                }
                Some(Event::PodApplied(pod))
            }
            Kind::Job => {
                let lite: LitePyTorchJob = read(input)?;
                if let Ok(value) = serde_json::from_slice::<Value>(input) {
                    patches(&value)?;
                }
                let job = translate::pytorchjob(&lite, &self.rules);
                job.map(checked).transpose()?.map(Event::WorkloadApplied)
            }
            Kind::PodGroup => {
                let lite: LitePodGroup = read(input)?;
                let group = translate::pod_group(&lite);
                group.map(checked).transpose()?.map(Event::WorkloadApplied)
            }
            Kind::Node => {
                let lite: LiteNode = read(input)?;
                Some(Event::NodeApplied(translate::node(&lite)))
            }
            Kind::Gang => {
                let gang: Gang = read(input)?;
                match translate::record(&gang) {
                    Ok(record) => Some(Event::RecordApplied(record)),
                    Err(why) => return Err(Read::Refused(why)),
                }
            }
        })
    }

    /// Plays an engine that leads until it rests. Every write is refused.
    fn play(&self, event: &Event) -> Result<Engine, String> {
        let mut engine = Engine::new(self.config.clone());
        let mut now = Timestamp(1_000_000);
        if let Some(node) = &self.node {
            engine.handle(node.clone(), now);
        }
        for event in [
            event.clone(),
            Event::LeadershipGained {
                epoch: Epoch(1),
                first: true,
            },
            Event::Synced,
        ] {
            engine.handle(event, now);
        }
        for _ in 0..ROUNDS_MAX {
            engine.decide(now);
            let broken = engine.audit();
            if !broken.is_empty() {
                return Err(format!("{broken:?}"));
            }
            let mut is_busy = false;
            while let Some(action) = engine.poll_action() {
                is_busy = true;
                match action {
                    Action::Relist => {
                        engine.handle(event.clone(), now);
                        for listing in [Listing::Pods, Listing::Gangs] {
                            engine.handle(Event::Relisted(listing), now);
                        }
                    }
                    Action::Write(write) => {
                        if let WriteKind::PutStatus { status, .. } = &write.what
                            && let Some(reason) = &status.reason
                        {
                            clean(&reason.to_string())?;
                        }
                        let outcome = WriteOutcome::Refused(Arc::from("fuzz"));
                        engine.handle(
                            Event::WriteDone {
                                id: write.id,
                                outcome,
                            },
                            now,
                        );
                    }
                    Action::Announce(said) => clean(&said.message)?,
                    Action::AnswerBind { .. } => {}
                }
            }
            if !is_busy {
                break;
            }
            now = now + Millis(1);
        }
        for gang in engine.view().gangs.values() {
            clean(&gang.refusal)?;
        }
        let state = engine.state(now);
        let text = muster_dump::write(&state).map_err(|error| format!("no dump: {error}"))?;
        muster_dump::read(&text).map_err(|error| format!("its dump is not read: {error}"))?;
        Ok(engine)
    }
}

/// Why there is no event.
enum Read {
    /// The object is refused, with this text.
    Refused(String),
    /// Something is wrong.
    Wrong(String),
}

impl From<String> for Read {
    fn from(wrong: String) -> Self {
        Self::Wrong(wrong)
    }
}

fn read<T: DeserializeOwned>(input: &[u8]) -> Result<T, Read> {
    serde_json::from_slice(input).map_err(|error| Read::Refused(error.to_string()))
}

/// What is said to people has an end, and does nothing to their terminals.
fn clean(text: &str) -> Result<(), String> {
    if text.chars().count() > SAID_MAX {
        return Err(format!("{} bytes are said", text.len()));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(control) => Err(format!("{control:?} is said in {text:?}")),
        None => Ok(()),
    }
}

/// A workload that is a gang, or says why not.
fn checked(workload: Workload) -> Result<Workload, Read> {
    if let Some(invalid) = &workload.invalid {
        clean(&invalid.to_string())?;
        return Ok(workload);
    }
    let total = workload.total().unwrap_or(1);
    let minimum = workload.minimum.unwrap_or(1);
    if total == 0 || total > MEMBERS_MAX || minimum > 2 * MEMBERS_MAX {
        return Err(Read::Wrong(format!("{total} members, {minimum} at least")));
    }
    Ok(workload)
}

/// Every change of a job, made of the job as it is: what comes out is another job, and once is enough.
fn patches(job: &Value) -> Result<(), Read> {
    let nodes = vec![NodeName::from("n1")];
    let pins = BTreeMap::from([("Worker".into(), nodes)]);
    let release = JobChange::Release {
        plan: "e1-1".into(),
        pins,
    };
    for change in [release, JobChange::Hold, JobChange::Strip, JobChange::Show] {
        let Some(patch) = write::job_patch(job, &change, "u", "1") else {
            continue;
        };
        if !patch.is_object() {
            return Err(Read::Wrong(format!("{change:?} is patched by {patch}")));
        }
    }
    Ok(())
}

impl Target for Object {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Pod => "pod",
            Kind::Job => "job",
            Kind::PodGroup => "podgroup",
            Kind::Node => "node",
            Kind::Gang => "gang",
        }
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let texts: &[&str] = match self.kind {
            Kind::Pod => &corpus::PODS,
            Kind::Job => &corpus::JOBS,
            Kind::PodGroup => &corpus::POD_GROUPS,
            Kind::Node => &corpus::NODES,
            Kind::Gang => &corpus::GANGS,
        };
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let event = match self.event(input) {
            Ok(Some(event)) => event,
            Ok(None) => return Ok("nothing to us".into()),
            Err(Read::Refused(why)) => return Ok(format!("refused: {why}")),
            Err(Read::Wrong(why)) => return Err(why),
        };
        let engine = self.play(&event)?;
        let view = engine.view();
        let refusals: Vec<&str> = view.gangs.values().map(|gang| &*gang.refusal).collect();
        Ok(format!("read: {}", refusals.join("; ")))
    }
}
