//! Looking at the cluster from outside, through its API objects: what to draw, what has changed, and
//! whether what must always hold does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::Duration;

use muster_embedded::value;
use muster_kubernetes::names;
use serde_json::Value;
use tokio::time::Instant;

use super::laptop::{Laptop, held_twice};

const GPU: &str = "nvidia.com/gpu";
/// Longest that a gang may be bound in part: the repair deadline and a little for the writes.
const PARTIAL_MAX: Duration = Duration::from_secs(35);
/// Lines of news that are kept.
const NEWS_MAX: usize = 200;

/// A gang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangRow {
    /// Name of the Gang object.
    pub name: String,
    /// Phase.
    pub phase: String,
    /// Members bound, and how many there are.
    pub members: String,
    /// Reason code.
    pub reason: String,
    /// The reason in words.
    pub message: String,
    /// Node of each member, by role and index.
    pub places: BTreeMap<String, String>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Free.
    Free,
    /// Held by a member of this gang.
    Held(String),
    /// Not usable.
    Sick,
}

/// What was seen last, and what is worth telling.
pub struct Look {
    started: Instant,
    /// Gangs by name.
    pub gangs: BTreeMap<String, GangRow>,
    /// GPUs by node.
    pub nodes: BTreeMap<String, Vec<Cell>>,
    /// What happened, with the second.
    pub news: Vec<String>,
    printed: usize,
    partial_since: BTreeMap<String, Instant>,
    broken: BTreeSet<String>,
    most_used: u64,
}

impl Look {
    /// A look at nothing yet.
    pub fn new(started: Instant) -> Self {
        Self {
            started,
            gangs: BTreeMap::new(),
            nodes: BTreeMap::new(),
            news: Vec::new(),
            printed: 0,
            partial_since: BTreeMap::new(),
            broken: BTreeSet::new(),
            most_used: 0,
        }
    }

    /// Takes lines of news.
    pub fn note(&mut self, lines: Vec<String>) {
        for line in lines {
            if self.news.len() >= NEWS_MAX {
                self.news.remove(0);
                self.printed = self.printed.saturating_sub(1);
            }
            self.news.push(format!(
                "{:>5.1} s  {line}",
                self.started.elapsed().as_secs_f32()
            ));
        }
    }

    /// Phase of a gang.
    pub fn phase(&self, name: &str) -> Option<&str> {
        self.gangs.get(name).map(|gang| gang.phase.as_str())
    }

    /// Looks at everything.
    pub fn take(&mut self, laptop: &Laptop) {
        let gangs: BTreeMap<String, GangRow> = laptop
            .cluster
            .list(("muster.dev", "gangs"))
            .iter()
            .map(|gang| (value::name(gang).to_owned(), row(gang)))
            .collect();
        let mut news = Vec::new();
        for (name, gang) in &gangs {
            let before = self.gangs.get(name);
            let changed = before.is_none_or(|before| {
                (&before.phase, &before.reason) != (&gang.phase, &gang.reason)
            });
            if changed && !gang.phase.is_empty() {
                news.push(format!(
                    "{name}: {} {} ({})",
                    gang.phase, gang.members, gang.message
                ));
            }
            for (member, node) in &gang.places {
                let was = before.and_then(|before| before.places.get(member));
                if let Some(was) = was.filter(|was| *was != node) {
                    news.push(format!("{name}: {member} moves from {was} to {node}"));
                }
            }
        }
        self.gangs = gangs;
        self.note(news);
        let pods = laptop.cluster.list(("", "pods"));
        self.take_nodes(laptop, &pods);
        self.check(laptop, &pods);
    }

    fn take_nodes(&mut self, laptop: &Laptop, pods: &[Value]) {
        let gang_of: BTreeMap<&str, String> = pods
            .iter()
            .map(|pod| (value::name(pod), gang_name(pod)))
            .collect();
        self.nodes = laptop
            .fleet
            .nodes()
            .map(|node| {
                let holders = laptop
                    .held
                    .lock()
                    .map(|held| held.get(node).cloned().unwrap_or_default())
                    .unwrap_or_default();
                let sick = laptop
                    .fleet
                    .view(node)
                    .map(|view| sick_devices(&view.borrow()))
                    .unwrap_or_default();
                let cells = laptop
                    .fleet
                    .devices(node)
                    .unwrap_or_default()
                    .iter()
                    .map(|device| {
                        let holder = holders
                            .iter()
                            .find(|holder| holder.devices.contains(&device.uuid));
                        match holder {
                            _ if sick.contains(&device.uuid) => Cell::Sick,
                            Some(holder) => Cell::Held(
                                gang_of
                                    .get(holder.name.as_str())
                                    .cloned()
                                    .unwrap_or_else(|| holder.name.clone()),
                            ),
                            None => Cell::Free,
                        }
                    })
                    .collect();
                (node.to_owned(), cells)
            })
            .collect();
        let used = self
            .nodes
            .values()
            .flatten()
            .filter(|cell| matches!(cell, Cell::Held(_)))
            .count();
        self.most_used = self.most_used.max(u64::try_from(used).unwrap_or(u64::MAX));
    }

    /// What must always hold, from the API's objects alone.
    fn check(&mut self, laptop: &Laptop, pods: &[Value]) {
        let mut used: BTreeMap<&str, u64> = BTreeMap::new();
        let mut bound: BTreeMap<String, u64> = BTreeMap::new();
        for pod in pods {
            let node = value::text(pod, &["spec", "nodeName"]);
            let phase = value::text(pod, &["status", "phase"]);
            if node.is_empty() || matches!(phase, "Succeeded" | "Failed") {
                continue;
            }
            let sum = used.entry(node).or_insert(0);
            *sum = sum.saturating_add(gpus(pod));
            let members = bound.entry(gang_name(pod)).or_insert(0);
            *members = members.saturating_add(1);
        }
        for (node, sum) in used {
            if sum > 8 {
                self.broken
                    .insert(format!("DEV-1: pods on {node} ask for {sum} of 8 GPUs"));
            }
        }
        for device in held_twice(&laptop.held) {
            self.broken.insert(format!("DEV-1: {device} is held twice"));
        }
        for job in laptop.cluster.list(("kubeflow.org", "pytorchjobs")) {
            self.check_gang(&job, &bound);
        }
    }

    fn check_gang(&mut self, job: &Value, bound: &BTreeMap<String, u64>) {
        let name = value::name(job).to_owned();
        let roles = value::at(job, &["spec", "pytorchReplicaSpecs"]).and_then(Value::as_object);
        let size = roles.into_iter().flatten().fold(0u64, |sum, (_, role)| {
            let replicas = role.get("replicas").and_then(Value::as_u64).unwrap_or(1);
            sum.saturating_add(replicas)
        });
        // As the job itself says, not as Muster does.
        let policy = ["spec", "runPolicy", "schedulingPolicy", "minAvailable"];
        let said = value::int(job, &policy).or_else(|| elastic_minimum(job, size));
        let said = said.and_then(|said| u64::try_from(said).ok());
        let enough = said.map_or(size, |said| said.clamp(1, size.max(1)));
        let ended = ["Succeeded", "Failed"].iter().any(|kind| {
            value::condition(job, kind)
                .is_some_and(|condition| value::text(condition, &["status"]) == "True")
        });
        let now = bound.get(&name).copied().unwrap_or(0);
        if ended || now == 0 || now >= enough {
            self.partial_since.remove(&name);
            return;
        }
        let since = *self
            .partial_since
            .entry(name.clone())
            .or_insert_with(Instant::now);
        if since.elapsed() > PARTIAL_MAX {
            self.broken.insert(format!(
                "GANG-1: {name} is bound in part, {now} of at least {enough}"
            ));
        }
    }

    /// Everything that did not hold at some time.
    pub fn broken(&self, laptop: &Laptop) -> Vec<String> {
        let counted = laptop
            .scheduler
            .metrics()
            .text()
            .lines()
            .filter_map(|line| {
                let (name, count) = line.rsplit_once(' ')?;
                (name.starts_with("muster_invariant_violations_total") && count != "0")
                    .then(|| line.to_owned())
            })
            .collect::<Vec<_>>();
        self.broken.iter().cloned().chain(counted).collect()
    }

    /// Prints news that were not printed before.
    pub fn print_changes(&mut self, out: &mut impl Write) -> io::Result<()> {
        for line in self.news.iter().skip(self.printed) {
            writeln!(out, "{line}")?;
        }
        self.printed = self.news.len();
        out.flush()
    }

    /// The end of the story in a few lines.
    pub fn summary(&self, laptop: &Laptop, out: &mut impl Write) -> io::Result<()> {
        let broken = self.broken(laptop);
        let total: usize = self.nodes.values().map(Vec::len).sum();
        writeln!(out, "\nGangs at the end:")?;
        for gang in self.gangs.values() {
            writeln!(
                out,
                "  {:<24} {:<10} {:>6}  {}",
                gang.name, gang.phase, gang.members, gang.message
            )?;
        }
        writeln!(
            out,
            "At most {} of {total} GPUs were in use at once; invariants broken: {}",
            self.most_used,
            broken.len()
        )?;
        for line in &broken {
            writeln!(out, "  {line}")?;
        }
        out.flush()
    }
}

fn row(gang: &Value) -> GangRow {
    let text = |path: &[&str]| value::text(gang, path).to_owned();
    GangRow {
        name: value::name(gang).to_owned(),
        phase: text(&["status", "phase"]),
        members: text(&["status", "membersBound"]),
        reason: text(&["status", "reason"]),
        message: text(&["status", "message"]),
        places: value::items(gang, &["status", "members"])
            .iter()
            .map(|member| {
                let index = value::int(member, &["index"]).unwrap_or(0);
                let name = format!("{} {index}", value::text(member, &["role"]));
                (name, value::text(member, &["node"]).to_owned())
            })
            .collect(),
    }
}

/// Name of the gang that a pod belongs to: its job's, or its own.
fn gang_name(pod: &Value) -> String {
    match value::controller(pod) {
        Some(owner) => value::text(owner, &["name"]).to_owned(),
        None => format!("pod-{}", value::name(pod)),
    }
}

fn gpus(pod: &Value) -> u64 {
    value::items(pod, &["spec", "containers"])
        .iter()
        .fold(0u64, |sum, container| {
            let asked = value::at(container, &["resources", "limits", GPU]);
            let count = asked
                .and_then(|asked| asked.as_u64().or_else(|| asked.as_str()?.parse().ok()))
                .unwrap_or(0);
            sum.saturating_add(count)
        })
}

fn sick_devices(view: &muster_agent::report::NodeView) -> BTreeSet<String> {
    view.devices
        .values()
        .filter(|device| device.health != i32::from(muster_proto::inventory::Health::Healthy))
        .map(|device| device.uuid.clone())
        .collect()
}

/// What an elastic job that says so can start with: its fewest workers, and the other replicas.
fn elastic_minimum(job: &Value, size: u64) -> Option<i64> {
    let says_so = value::text(job, &["metadata", "annotations", names::ELASTIC_MINIMUM]) == "true";
    let fewest = value::int(job, &["spec", "elasticPolicy", "minReplicas"]).filter(|_| says_so)?;
    let workers = ["spec", "pytorchReplicaSpecs", "Worker", "replicas"];
    let workers = value::int(job, &workers).unwrap_or(0);
    let others = i64::try_from(size)
        .unwrap_or(i64::MAX)
        .saturating_sub(workers);
    Some(others.saturating_add(fewest))
}
