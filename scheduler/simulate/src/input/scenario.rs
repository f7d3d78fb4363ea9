//! Scenarios: nodes, gangs and events written by hand, in strict YAML. An unknown key, a wrong type and a
//! value outside its limits are errors that name the key, the value and the limit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use muster_core::ids::RoleName;
use muster_core::time::Millis;
use muster_core::topology::{KEYS, LEVELS_MAX, Level, Source, TopologyRequest};
use muster_core::workload::MEMBERS_MAX;
use serde::Deserialize;

use crate::error::{Error, short};
use crate::replay::Until;
use crate::scene::{
    GANGS_MAX, GPUS_PER_NODE_MAX, GangSpec, Happening, NODES_MAX, NodeSpec, Occurrence, Role,
    Roles, Scene, Settings, TIME_MAX_MS, shape,
};

/// Longest time in a scenario, seconds.
const SECONDS_MAX: u64 = TIME_MAX_MS / 1000;

/// Most cores of a node or pod.
const CORES_MAX: u64 = 4096;

/// Most memory of a node or pod, GiB.
const GIB_MAX: u64 = 1 << 20;

/// Largest file that is read, bytes.
const FILE_MAX: u64 = 16 << 20;

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    #[serde(default)]
    topology: Network,
    /// How long a gang waits before nodes are kept for it, seconds; 0: none ever are. As long as by default where it
    /// is missing.
    reserve_after: Option<u64>,
    /// How long they are kept while nothing ends on them, seconds; 0: until it starts. As long as by default where it is
    /// missing.
    keep_for: Option<u64>,
    nodes: Vec<Nodes>,
    gangs: Vec<Gang>,
    #[serde(default)]
    events: Vec<Event>,
    /// End of the replay, seconds; by default when nothing runs and nothing more can start.
    until: Option<u64>,
}

/// The levels of the network, as in the scheduler's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Network {
    levels: Vec<LevelOf>,
    /// Name of the level in whose domains gangs are kept together that ask for none; the narrowest where it is
    /// missing.
    keep_together: Option<String>,
}

/// A level: its domains are the values of a label of the nodes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct LevelOf {
    name: String,
    label: String,
}

/// Nodes that are alike: `name` for one, `name-0` and so on for several.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Nodes {
    name: String,
    count: Option<u32>,
    gpus: u32,
    /// Cores of each.
    #[serde(default = "default_node_cpu")]
    cpu: u64,
    /// Memory of each, GiB.
    #[serde(default = "default_node_memory")]
    memory: u64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Not there until an event adds it.
    #[serde(default)]
    absent: bool,
}

/// A gang, or several that are alike: `name`, or `name-0` and so on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Gang {
    name: String,
    count: Option<u32>,
    /// When it arrives, seconds.
    arrival: u64,
    /// Time between two of them, seconds.
    #[serde(default)]
    every: u64,
    /// How long each runs, seconds.
    duration: u64,
    #[serde(default)]
    priority: i32,
    min_available: Option<u32>,
    /// Those of a job by which it asks something of the topology.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    roles: Vec<RoleOf>,
}

/// Pods of one kind.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RoleOf {
    name: String,
    count: u32,
    #[serde(default)]
    gpus: u32,
    /// Cores of each.
    #[serde(default = "default_pod_cpu")]
    cpu: u64,
    /// Memory of each, GiB.
    #[serde(default = "default_pod_memory")]
    memory: u64,
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
}

/// Something that happens to a node.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Event {
    /// When, seconds.
    at: u64,
    #[serde(rename = "do")]
    what: What,
    node: String,
    /// Index of the GPU.
    gpu: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum What {
    Cordon,
    Uncordon,
    Remove,
    Add,
    GpuUnhealthy,
    GpuBack,
}

fn default_node_cpu() -> u64 {
    96
}

fn default_node_memory() -> u64 {
    1024
}

fn default_pod_cpu() -> u64 {
    1
}

fn default_pod_memory() -> u64 {
    1
}

/// Reads a scenario, and when it says that it ends.
pub fn read(path: &Path) -> Result<(Scene, Until), Error> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if size > FILE_MAX {
        let limit = format!("must be at most {FILE_MAX} bytes");
        return Err(Error::flag("--file", format!("{size} bytes"), limit));
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    parse(&name, &text)
}

/// Reads the text of a scenario. `name` is the file's, for errors and results.
pub fn parse(name: &str, text: &str) -> Result<(Scene, Until), Error> {
    let mut malformed = None;
    let read = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(deserializer, &mut track);
        File::deserialize(tracked).inspect_err(|_| malformed = Some(track.path().to_string()))
    });
    let file = read.map_err(|error| {
        let path = malformed.unwrap_or_else(|| "scenario".into());
        let unit = unit_of(&path).map(|unit| format!("must be a whole number of {unit}: "));
        Error::Malformed {
            file: name.to_owned(),
            said: format!("{}{error}", unit.unwrap_or_default()),
            path,
        }
    })?;
    let reader = Reader { file: name };
    let mut scene = Scene {
        source: name.to_owned(),
        ..Scene::default()
    };
    reader.network(&file.topology, &mut scene)?;
    if let Some(seconds) = file.reserve_after {
        scene.reserve_after = Some(Millis(reader.time("reserveAfter", seconds)?));
    }
    if let Some(seconds) = file.keep_for {
        scene.keep_for = Some(Millis(reader.time("keepFor", seconds)?));
    }
    reader.nodes(&file.nodes, &mut scene)?;
    reader.gangs(&file.gangs, &mut scene)?;
    reader.events(&file.events, &mut scene)?;
    let until = match file.until {
        Some(seconds) => Until::Time(reader.time("until", seconds)?),
        None => Until::Drained,
    };
    Ok((scene, until))
}

/// What the number at this path counts.
fn unit_of(path: &str) -> Option<&'static str> {
    match path.rsplit('.').next()? {
        "arrival" | "every" | "duration" | "at" | "until" | "reserveAfter" | "keepFor" => {
            Some("seconds")
        }
        "gpus" => Some("GPUs"),
        "cpu" => Some("cores"),
        "memory" => Some("GiB"),
        "minAvailable" => Some("members"),
        _ => None,
    }
}

/// Checks values against their limits.
struct Reader<'a> {
    file: &'a str,
}

impl Reader<'_> {
    fn wrong(&self, path: &str, value: impl ToString, limit: impl Into<String>) -> Error {
        Error::Field {
            file: self.file.to_owned(),
            path: path.to_owned(),
            value: short(&value.to_string()),
            limit: limit.into(),
        }
    }

    /// A number of `unit`.
    fn within(&self, path: &str, value: u64, range: (u64, u64), unit: &str) -> Result<u64, Error> {
        let (least, most) = range;
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        let limit = format!("must be {least} to {most} {unit}");
        Err(self.wrong(path, value, limit))
    }

    /// A time in seconds, as milliseconds.
    fn time(&self, path: &str, seconds: u64) -> Result<u64, Error> {
        let seconds = self.within(path, seconds, (0, SECONDS_MAX), "seconds")?;
        Ok(seconds.saturating_mul(1000))
    }

    fn name(&self, path: &str, name: &str) -> Result<(), Error> {
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let is_name = name.len() <= 50
            && name.chars().all(is_part)
            && is_end(name.chars().next())
            && is_end(name.chars().next_back());
        if is_name {
            return Ok(());
        }
        let limit = "must be 1 to 50 of a-z, 0-9, - and ., beginning and ending with a-z or 0-9";
        Err(self.wrong(path, name, limit))
    }

    fn labels(&self, path: &str, labels: &BTreeMap<String, String>) -> Result<(), Error> {
        for (key, value) in labels {
            if key.is_empty() || key.len() > 253 || value.len() > 63 {
                let path = format!("{path}.{}", short(key));
                let limit = "must have a key of 1 to 253 characters and a value of at most 63";
                return Err(self.wrong(&path, value, limit));
            }
        }
        Ok(())
    }

    fn network(&self, network: &Network, scene: &mut Scene) -> Result<(), Error> {
        let most = u64::try_from(LEVELS_MAX).unwrap_or(u64::MAX);
        let count = u64::try_from(network.levels.len()).unwrap_or(u64::MAX);
        self.within("topology.levels (entries)", count, (0, most), "levels")?;
        let mut words = BTreeSet::new();
        for (position, level) in network.levels.iter().enumerate() {
            for (field, word) in [("name", &level.name), ("label", &level.label)] {
                let path = format!("topology.levels[{position}].{field}");
                if word.is_empty() || word.len() > 253 {
                    return Err(self.wrong(&path, word, "must have 1 to 253 characters"));
                }
                let is_own = field == "label" && *word == level.name;
                if !words.insert(word.as_str()) && !is_own {
                    return Err(self.wrong(&path, word, "is a word of another level too"));
                }
            }
            scene.levels.push(Level {
                name: Arc::from(level.name.as_str()),
                source: Source::Label(Arc::from(level.label.as_str())),
            });
        }
        let mut levels = scene.levels.iter();
        scene.together = match network.keep_together.as_deref() {
            None | Some("narrowest") => scene.levels.len().checked_sub(1),
            Some("none") => None,
            Some(name) => match levels.position(|level| &*level.name == name) {
                Some(position) => Some(position),
                None => {
                    let limit = "must be narrowest, none or the name of a level";
                    return Err(self.wrong("topology.keepTogether", name, limit));
                }
            },
        };
        Ok(())
    }

    /// What annotations ask of the topology.
    fn topology(
        &self,
        path: &str,
        annotations: &BTreeMap<String, String>,
        levels: &[Level],
    ) -> Result<(Settings, TopologyRequest), Error> {
        let mut settings = Settings::new();
        for (key, value) in annotations {
            if !KEYS.contains(&key.as_str()) {
                let limit = format!("must be one of {}", KEYS.join(", "));
                return Err(self.wrong(&format!("{path}.annotations"), key, limit));
            }
            settings.insert(Arc::from(key.as_str()), Arc::from(value.as_str()));
        }
        let request = TopologyRequest::of(&settings, levels).map_err(|wrong| {
            let key = wrong.field.trim_start_matches("metadata.");
            self.wrong(&format!("{path}.{key}"), &wrong.value, &*wrong.limit)
        })?;
        Ok((settings, request))
    }

    fn nodes(&self, groups: &[Nodes], scene: &mut Scene) -> Result<(), Error> {
        let mut names = BTreeSet::new();
        for (position, group) in groups.iter().enumerate() {
            let at = |field: &str| format!("nodes[{position}].{field}");
            self.name(&at("name"), &group.name)?;
            let most = u64::try_from(NODES_MAX).unwrap_or(u64::MAX);
            self.within(
                &at("count"),
                u64::from(group.count.unwrap_or(1)),
                (1, most),
                "nodes",
            )?;
            let gpus = u64::from(group.gpus);
            self.within(&at("gpus"), gpus, (0, u64::from(GPUS_PER_NODE_MAX)), "GPUs")?;
            self.within(&at("cpu"), group.cpu, (1, CORES_MAX), "cores")?;
            self.within(&at("memory"), group.memory, (1, GIB_MAX), "GiB")?;
            self.labels(&at("labels"), &group.labels)?;
            for name in numbered(&group.name, group.count) {
                if !names.insert(name.clone()) {
                    return Err(self.wrong(&at("name"), name, "is the name of another node too"));
                }
                scene.nodes.push(NodeSpec {
                    name,
                    gpus: group.gpus,
                    milli_cpu: group.cpu.saturating_mul(1000),
                    memory_bytes: group.memory.saturating_mul(1 << 30),
                    labels: group.labels.clone(),
                    absent: group.absent,
                });
            }
            if scene.nodes.len() > NODES_MAX {
                let limit = format!("must be at most {NODES_MAX} in all");
                return Err(self.wrong("nodes", scene.nodes.len(), limit));
            }
        }
        if scene.nodes.is_empty() {
            return Err(self.wrong("nodes", "empty", "must be at least one"));
        }
        Ok(())
    }

    fn gangs(&self, gangs: &[Gang], scene: &mut Scene) -> Result<(), Error> {
        let (mut roles, mut names) = (Roles::default(), BTreeSet::new());
        for (position, gang) in gangs.iter().enumerate() {
            let path = format!("gangs[{position}]");
            self.gang(&path, gang, &mut roles, &mut names, scene)?;
        }
        if scene.gangs.is_empty() {
            return Err(self.wrong("gangs", "empty", "must be at least one"));
        }
        // Stable: gangs that arrive together stay in order of the file.
        scene.gangs.sort_by_key(|gang| gang.arrival_ms);
        Ok(())
    }

    fn gang(
        &self,
        path: &str,
        gang: &Gang,
        roles: &mut Roles,
        names: &mut BTreeSet<String>,
        scene: &mut Scene,
    ) -> Result<(), Error> {
        let at = |field: &str| format!("{path}.{field}");
        self.name(&at("name"), &gang.name)?;
        let count = u64::from(gang.count.unwrap_or(1));
        let room = GANGS_MAX.saturating_sub(scene.gangs.len());
        let room = u64::try_from(room).unwrap_or(u64::MAX);
        self.within(&at("count"), count, (1, room), "gangs")?;
        let arrival = self.time(&at("arrival"), gang.arrival)?;
        let every = self.time(&at("every"), gang.every)?;
        let duration = self.time(&at("duration"), gang.duration)?;
        let (settings, topology) = self.topology(path, &gang.annotations, &scene.levels)?;
        let (class, shared) = roles.share(self.roles(path, &gang.roles)?, &topology);
        let mut spec = GangSpec {
            name: Arc::from(""),
            arrival_ms: arrival,
            duration_ms: duration,
            priority: gang.priority,
            minimum: None,
            roles: shared,
            settings: Arc::new(settings),
            topology,
            class,
        };
        if let Some(minimum) = gang.min_available {
            let most = u64::from(spec.members());
            self.within(
                &at("minAvailable"),
                u64::from(minimum),
                (1, most),
                "members",
            )?;
            spec.minimum = Some(minimum);
        }
        for name in numbered(&gang.name, gang.count) {
            if !names.insert(name.clone()) {
                return Err(self.wrong(&at("name"), name, "is the name of another gang too"));
            }
            spec.name = Arc::from(name);
            if spec.arrival_ms > TIME_MAX_MS {
                let limit = "lets the last one arrive after more than 100 years";
                return Err(self.wrong(&at("every"), gang.every, limit));
            }
            scene.gangs.push(spec.clone());
            spec.arrival_ms = spec.arrival_ms.saturating_add(every);
        }
        Ok(())
    }

    fn roles(&self, path: &str, roles: &[RoleOf]) -> Result<Vec<Role>, Error> {
        let mut found: Vec<Role> = Vec::new();
        let mut members = 0u32;
        for (position, role) in roles.iter().enumerate() {
            let at = |field: &str| format!("{path}.roles[{position}].{field}");
            self.name(&at("name"), &role.name.to_ascii_lowercase())?;
            let members_max = u64::from(MEMBERS_MAX);
            self.within(
                &at("count"),
                u64::from(role.count),
                (1, members_max),
                "members",
            )?;
            let most = u64::from(GPUS_PER_NODE_MAX);
            self.within(&at("gpus"), u64::from(role.gpus), (0, most), "GPUs")?;
            self.within(&at("cpu"), role.cpu, (0, CORES_MAX), "cores")?;
            self.within(&at("memory"), role.memory, (0, GIB_MAX), "GiB")?;
            self.labels(&at("nodeSelector"), &role.node_selector)?;
            if found.iter().any(|other| other.name.as_str() == role.name) {
                return Err(self.wrong(&at("name"), &role.name, "is the name of another role too"));
            }
            members = members.saturating_add(role.count);
            found.push(Role {
                name: RoleName::from(role.name.as_str()),
                count: role.count,
                shape: shape(
                    role.gpus,
                    role.cpu.saturating_mul(1000),
                    role.memory.saturating_mul(1 << 30),
                    &role.node_selector,
                ),
            });
        }
        let all = format!("{path}.roles (members)");
        self.within(
            &all,
            u64::from(members),
            (1, u64::from(MEMBERS_MAX)),
            "members",
        )?;
        Ok(found)
    }

    fn events(&self, events: &[Event], scene: &mut Scene) -> Result<(), Error> {
        let positions: BTreeMap<&str, usize> = scene
            .nodes
            .iter()
            .enumerate()
            .map(|(position, node)| (node.name.as_str(), position))
            .collect();
        let mut found = Vec::new();
        for (position, event) in events.iter().enumerate() {
            let at = |field: &str| format!("events[{position}].{field}");
            let at_ms = self.time(&at("at"), event.at)?;
            let Some(node) = positions.get(event.node.as_str()).copied() else {
                return Err(self.wrong(&at("node"), &event.node, "must be the name of a node"));
            };
            let what = self.happening(&at("gpu"), event, scene.nodes.get(node))?;
            found.push(Occurrence { at_ms, node, what });
        }
        found.sort_by_key(|occurrence| occurrence.at_ms);
        scene.occurrences = found;
        Ok(())
    }

    fn happening(
        &self,
        path: &str,
        event: &Event,
        node: Option<&NodeSpec>,
    ) -> Result<Happening, Error> {
        let simple = match event.what {
            What::Cordon => Happening::Cordon,
            What::Uncordon => Happening::Uncordon,
            What::Remove => Happening::Remove,
            What::Add => Happening::Add,
            What::GpuUnhealthy | What::GpuBack => {
                let gpus = node.map_or(0, |node| node.gpus);
                let Some(gpu) = event.gpu.filter(|gpu| *gpu < gpus) else {
                    let value = event.gpu.map_or("missing".into(), |gpu| gpu.to_string());
                    let limit = format!("must be the index of a GPU of {gpus}, from 0");
                    return Err(self.wrong(path, value, limit));
                };
                return Ok(match event.what {
                    What::GpuUnhealthy => Happening::GpuUnhealthy(gpu),
                    _ => Happening::GpuBack(gpu),
                });
            }
        };
        match event.gpu {
            Some(gpu) => Err(self.wrong(path, gpu, "belongs to gpuUnhealthy and gpuBack only")),
            None => Ok(simple),
        }
    }
}

/// `name`, or `name-0`, `name-1` and so on where a count is stated.
fn numbered(name: &str, count: Option<u32>) -> impl Iterator<Item = String> {
    (0..count.unwrap_or(1)).map(move |index| match count {
        None => name.to_owned(),
        Some(_) => format!("{name}-{index}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
nodes:
  - {name: a, count: 2, gpus: 8}
gangs:
  - name: g
    arrival: 1
    duration: 60
    minAvailable: 2
    roles: [{name: Worker, count: 3, gpus: 4}]
events:
  - {at: 5, do: gpuUnhealthy, node: a-1, gpu: 7}
";

    fn said(text: &str) -> String {
        parse("s.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn scenario_is_read() {
        let (scene, until) = parse("s.yaml", GOOD).unwrap();
        assert_eq!(until, Until::Drained);
        assert_eq!((scene.nodes.len(), scene.gpus()), (2, 16));
        assert_eq!((scene.reserve_after, scene.keep_for), (None, None));
        let (day, _) = parse("s.yaml", &format!("keepFor: 86400\n{GOOD}")).unwrap();
        assert_eq!(day.keep_for, Some(Millis(86_400_000)));
        let (never, _) = parse("s.yaml", &format!("reserveAfter: 0\n{GOOD}")).unwrap();
        assert_eq!(never.reserve_after, Some(Millis(0)));
        let gang = &scene.gangs[0];
        assert_eq!((gang.gpus(), gang.minimum(), gang.members()), (12, 2, 3));
        assert_eq!(
            scene.occurrences,
            [Occurrence {
                at_ms: 5000,
                node: 1,
                what: Happening::GpuUnhealthy(7)
            }]
        );
    }

    #[test]
    fn errors_name_file_path_value_and_limit() {
        let changed = |from: &str, to: &str| said(&GOOD.replace(from, to));
        assert_eq!(
            changed("gpu: 7", "gpu: 8"),
            "s.yaml: events[0].gpu is 8: must be the index of a GPU of 8, from 0"
        );
        assert_eq!(
            changed("minAvailable: 2", "minAvailable: 4"),
            "s.yaml: gangs[0].minAvailable is 4: must be 1 to 3 members"
        );
        assert_eq!(
            changed("node: a-1", "node: b"),
            "s.yaml: events[0].node is b: must be the name of a node"
        );
        assert_eq!(
            changed("gpus: 8", "gpus: 65"),
            "s.yaml: nodes[0].gpus is 65: must be 0 to 64 GPUs"
        );
        assert_eq!(
            changed("count: 2, gpus", "count: 0, gpus"),
            "s.yaml: nodes[0].count is 0: must be 1 to 20000 nodes"
        );
        assert_eq!(
            changed("arrival: 1", "arrival: 3153600001"),
            "s.yaml: gangs[0].arrival is 3153600001: must be 0 to 3153600000 seconds"
        );
        assert_eq!(
            said(&format!("reserveAfter: 3153600001\n{GOOD}")),
            "s.yaml: reserveAfter is 3153600001: must be 0 to 3153600000 seconds"
        );
        for (from, to, wanted) in [
            (
                "duration: 60",
                "duration: soon",
                "gangs[0].duration: must be a whole number of seconds: ",
            ),
            (
                "gpus: 4",
                "gpus: 4Gi",
                "roles[0].gpus: must be a whole number of GPUs: ",
            ),
            ("duration: 60", "length: 60", "length"),
            ("do: gpuUnhealthy", "do: explode", "events[0].do"),
            ("gangs:", "gang:", "gang"),
            ("name: a", "name: '<a>'", "nodes[0].name is <a>"),
        ] {
            let said = changed(from, to);
            assert!(
                said.starts_with("s.yaml: ") && said.contains(wanted),
                "{said}"
            );
        }
        assert!(said("").starts_with("s.yaml: "));
    }
}
