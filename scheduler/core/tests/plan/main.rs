//! One door to the planner: nodes and a gang as lines of text, the answer as text.
//!
//! ```text
//! node NAME [gpu=N] [used=N] [sick=N] [cpu=N] [has=RESOURCE:N] [taint=KEY] [label=KEY:VALUE]
//!           [port=N] [numa=N,N..] [switch=N,N..] [shared=MILLI,MILLI..] [cordoned] [notready] [silent]
//! role NAME COUNTxGPUS [share=MILLI] [cpu=N] [has=RESOURCE:N] [tolerate=KEY] [select=KEY:VALUE] [port=N]
//!           [app=NAME] [apart=KEY[@APP]] [together=KEY[@APP]] [spread=KEY[@APP]:SKEW[:DOMAINS]]
//! usual NAME COUNTxGPUS [the same as of a role]
//! placed NODE [segment=N] [app=NAME] [apart=KEY[@APP]]
//! avoid NAME
//! levels KEY..
//! keep KEY
//! topology [required=KEY] [preferred=KEY] [segment=SIZE:KEY]
//! ```
//! `usual` are members that are about as well, so many of them: what the planner goes by where several
//! nodes have room. `levels` are labels of nodes, the widest first; in domains of the level `keep` gangs are kept
//! together that ask for none.
//! `apart`, `together` and `spread` are anti-affinity, affinity and topology spread among the pods with
//! the label `app` of the role, or of another; `app` is the role's name where nothing is said, and the
//! key `host` is the host name.
//!
//! `used` GPUs are held by somebody, `sick` ones are free and unhealthy; `numa` names the NUMA node
//! of each free GPU, `switch` the PCIe switch; of each `shared` GPU so much is left. Every GPU node has the taint `gpu`, which every role with GPUs tolerates.

mod between;
mod complete;
mod effort;
mod grouped;
mod mixed;
mod remedy;
mod review;
mod score;
mod shares;
mod together;
mod topology;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::config::Config;
use muster_core::ids::NodeName;
use muster_core::interpod::{HOSTNAME, InterPodKind, InterPodRule, Labels, Spread};
use muster_core::inventory::{Device, DeviceHealth};
use muster_core::links::Links;
use muster_core::node::{
    HostPort, Node, Requirement, SelectorOperator, Taint, TaintEffect, Toleration,
    TolerationOperator,
};
use muster_core::plan::{GangRequest, Placement, RoleRequest, Standing, plan};
use muster_core::pod::{PodShape, Share};
use muster_core::reason::Unplaceable;
use muster_core::resources::Resources;
use muster_core::snapshot::{Counts, Eligibility, NodeCapacity, SharedDevice, Snapshot};
use muster_core::topology::{Level, Segment, Source, TopologyRequest, path_of};

const GPU: &str = "nvidia.com/gpu";

fn pair(text: &str) -> (&str, &str) {
    text.split_once(':').unwrap_or((text, ""))
}

fn port(text: &str) -> HostPort {
    HostPort {
        protocol: Arc::from("TCP"),
        address: Arc::from("0.0.0.0"),
        port: text.parse().unwrap(),
    }
}

fn taint(key: &str) -> Taint {
    Taint {
        key: Arc::from(key),
        value: Arc::from(""),
        effect: TaintEffect::NoSchedule,
    }
}

fn node(words: &[&str]) -> NodeCapacity {
    let name = words[0];
    let mut offered = Resources {
        milli_cpu: 64_000,
        memory_bytes: 1 << 40,
        ephemeral_bytes: 1 << 40,
        pods: 110,
        ..Resources::default()
    };
    let (mut labels, mut taints, mut ports) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
    labels.insert(Arc::from(HOSTNAME), Arc::from(name));
    let (mut eligibility, mut reported) = (Eligibility::Eligible, true);
    let (mut used, mut sick, mut numa) = (0u64, 0u64, Vec::new());
    let mut switches: Vec<u32> = Vec::new();
    let mut parts: Vec<u32> = Vec::new();
    for word in &words[1..] {
        match word.split_once('=') {
            Some(("gpu", count)) => {
                offered.extended.insert(GPU.into(), count.parse().unwrap());
                taints.push(taint("gpu"));
            }
            Some(("used", count)) => used = count.parse().unwrap(),
            Some(("sick", count)) => sick = count.parse().unwrap(),
            Some(("cpu", count)) => offered.milli_cpu = 1000 * count.parse::<u64>().unwrap(),
            Some(("has", what)) => {
                let (resource, count) = pair(what);
                let count = count.parse().unwrap();
                offered.extended.insert(resource.into(), count);
            }
            Some(("taint", key)) => taints.push(taint(key)),
            Some(("label", label)) => {
                let (key, value) = pair(label);
                labels.insert(Arc::from(key), Arc::from(value));
            }
            Some(("port", number)) => {
                ports.insert(port(number));
            }
            Some(("shared", list)) => {
                parts = list.split(',').map(|left| left.parse().unwrap()).collect();
            }
            Some(("switch", list)) => {
                switches = list.split(',').map(|home| home.parse().unwrap()).collect();
            }
            Some(("numa", list)) => {
                numa = list.split(',').map(|home| home.parse().unwrap()).collect();
            }
            None if *word == "cordoned" => eligibility = Eligibility::Cordoned,
            None if *word == "notready" => eligibility = Eligibility::NotReady,
            None if *word == "silent" => reported = false,
            _ => panic!("unknown word {word}"),
        }
    }
    let gpus = offered.extended(GPU);
    used += parts.len() as u64;
    let mut well = offered.clone();
    set(&mut well, gpus - used);
    let mut free = well.clone();
    set(&mut free, if reported { gpus - used - sick } else { 0 });
    let shared = parts.iter().zip(free.extended(GPU)..);
    let shared = shared.map(|(left, index)| SharedDevice {
        device: device(name, index, None),
        left: *left,
    });
    let devices = (0..free.extended(GPU))
        .map(|index| device(name, index, numa.get(index as usize).copied()))
        .collect();
    NodeCapacity {
        node: Arc::new(Node {
            name: name.into(),
            uid: Arc::from(name),
            boot_id: None,
            labels,
            taints,
            unschedulable: eligibility == Eligibility::Cordoned,
            ready: eligibility != Eligibility::NotReady,
            terminating: false,
            allocatable: offered,
        }),
        eligibility,
        free,
        well,
        reported,
        ports,
        devices,
        links: links(&switches),
        shared: shared.collect(),
        path: None,
    }
}

/// GPUs behind one switch are near to each other.
fn links(switches: &[u32]) -> Option<Links> {
    let row = |own: &u32| {
        let others = switches.iter();
        others
            .map(|other| if own == other { 30 } else { 70 })
            .collect()
    };
    Links::of(&switches.iter().map(row).collect::<Vec<Vec<u8>>>())
}

fn set(resources: &mut Resources, gpus: u64) {
    if gpus == 0 {
        resources.extended.remove(GPU);
    } else {
        resources.extended.insert(GPU.into(), gpus);
    }
}

fn device(node: &str, index: u64, numa: Option<u32>) -> Device {
    Device {
        uuid: format!("{node}{index}").as_str().into(),
        resource: GPU.into(),
        health: DeviceHealth::Healthy,
        leaked: false,
        holders: Vec::new(),
        model: None,
        index: index as u32,
        numa,
        parent: None,
        memory_bytes: None,
    }
}

/// Labels and rules of a member, of which the words that say nothing about them are left over.
fn between<'a>(role: &'a str, words: &[&'a str]) -> (Labels, BTreeSet<InterPodRule>, Vec<&'a str>) {
    let (mut app, mut rules, mut rest) = (role, Vec::new(), Vec::new());
    for word in words {
        match word.split_once('=') {
            Some(("app", name)) => app = name,
            Some(("apart", what)) => rules.push((InterPodKind::AntiAffinity, what)),
            Some(("together", what)) => rules.push((InterPodKind::Affinity, what)),
            Some(("spread", what)) => {
                let mut parts = what.split(':');
                let key = parts.next().unwrap();
                let mut number = || parts.next().map_or(1, |number| number.parse().unwrap());
                let spread = Spread {
                    skew_max: number(),
                    domains_min: number(),
                    ignores_affinity: false,
                    honors_taints: false,
                };
                rules.push((InterPodKind::Spread(spread), key));
            }
            _ => rest.push(*word),
        }
    }
    let rule = |(kind, what): (InterPodKind, &str)| {
        let (key, of) = what.split_once('@').unwrap_or((what, app));
        let topology = if key == "host" { HOSTNAME } else { key };
        InterPodRule {
            kind,
            topology: topology.into(),
            selector: [Requirement {
                key: "app".into(),
                operator: SelectorOperator::In([Arc::from(of)].into()),
            }]
            .into(),
        }
    };
    let rules = rules.into_iter().map(rule).collect();
    ([("app".into(), app.into())].into(), rules, rest)
}

fn standing(words: &[&str]) -> Standing {
    let (labels, between_pods, rest) = between("", &words[1..]);
    let mut segment = None;
    for word in rest {
        match word.split_once('=') {
            Some(("segment", number)) => segment = Some(number.parse().unwrap()),
            _ => panic!("unknown word {word}"),
        }
    }
    Standing {
        node: words[0].into(),
        shape: Arc::new(PodShape {
            between_pods,
            ..PodShape::default()
        }),
        labels: Arc::new(labels),
        segment,
    }
}

/// Levels by their labels, which are their names too.
fn levels(text: &str) -> Vec<Level> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("levels "));
    let level = |word: &str| Level {
        name: Arc::from(word),
        source: Source::Label(Arc::from(word)),
    };
    line.unwrap_or_default()
        .split_whitespace()
        .map(level)
        .collect()
}

fn config(text: &str) -> Config {
    let levels = levels(text);
    let keep = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("keep "));
    Config {
        together: keep.and_then(|keep| levels.iter().position(|level| *level.name == *keep)),
        topology: levels,
        ..Config::default()
    }
}

fn topology(words: &[&str], levels: &[Level]) -> TopologyRequest {
    let position = |key: &str| levels.iter().position(|level| *level.name == *key).unwrap();
    let mut topology = TopologyRequest::default();
    for word in words {
        match word.split_once('=') {
            Some(("required", key)) => topology.required = Some(position(key)),
            Some(("preferred", key)) => topology.preferred = Some(position(key)),
            Some(("segment", what)) => {
                let (size, key) = pair(what);
                topology.segment = Some(Segment {
                    size: size.parse().unwrap(),
                    level: position(key),
                });
            }
            _ => panic!("unknown word {word}"),
        }
    }
    topology
}

/// Members with GPUs are in segments, counted through those of one shape as they come.
fn number_segments(gang: &mut GangRequest) {
    let Some(segment) = gang.topology.segment else {
        return;
    };
    let mut classes: Vec<(Arc<PodShape>, u32)> = Vec::new();
    for role in &mut gang.roles {
        if role.shape.requests.extended(GPU) == 0 {
            continue;
        }
        let class = classes.iter().position(|(shape, _)| *shape == role.shape);
        let class = class.unwrap_or_else(|| {
            classes.push((Arc::clone(&role.shape), 0));
            classes.len() - 1
        });
        for _ in &role.indices {
            let rank = classes[class].1;
            role.segments
                .push(class as u32 * 100_000 + rank / segment.size);
            classes[class].1 += 1;
        }
    }
}

fn role(words: &[&str]) -> RoleRequest {
    let (labels, between_pods, rest) = between(words[0], &words[2..]);
    let (count, gpus) = words[1].split_once('x').unwrap();
    let (count, gpus): (u32, u64) = (count.parse().unwrap(), gpus.parse().unwrap());
    let mut shape = PodShape::default();
    shape.requests.milli_cpu = 1000;
    shape.requests.pods = 1;
    set(&mut shape.requests, gpus);
    let mut tolerated = if gpus > 0 { vec!["gpu"] } else { Vec::new() };
    shape.between_pods = between_pods;
    for word in rest {
        match word.split_once('=') {
            Some(("share", milli)) => {
                shape.share = Share::new(GPU.into(), milli.parse().unwrap());
                tolerated.push("gpu");
            }
            Some(("cpu", count)) => shape.requests.milli_cpu = 1000 * count.parse::<u64>().unwrap(),
            Some(("has", what)) => {
                let (resource, count) = pair(what);
                let count = count.parse().unwrap();
                shape.requests.extended.insert(resource.into(), count);
            }
            Some(("tolerate", key)) => tolerated.push(key),
            Some(("select", label)) => {
                let (key, value) = pair(label);
                shape.node_selector.insert(Arc::from(key), Arc::from(value));
            }
            Some(("port", number)) => {
                shape.host_ports.insert(port(number));
            }
            _ => panic!("unknown word {word}"),
        }
    }
    shape.tolerations = tolerated
        .into_iter()
        .map(|key| Toleration {
            key: Some(Arc::from(key)),
            operator: TolerationOperator::Exists,
            effect: None,
        })
        .collect();
    RoleRequest {
        role: words[0].into(),
        indices: (0..count).collect(),
        shape: Arc::new(shape),
        labels: Arc::new(labels),
        segments: Vec::new(),
    }
}

fn read(text: &str) -> (Snapshot, GangRequest) {
    let (mut nodes, mut gang) = (Vec::new(), GangRequest::default());
    let mut usual = Counts::new();
    let levels = levels(text);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first() {
            None => {}
            Some(&"node") => {
                let mut node = node(&words[1..]);
                node.path = (!levels.is_empty()).then(|| path_of(&node.node, None, &levels));
                nodes.push(Arc::new(node));
            }
            Some(&"levels" | &"keep") => {}
            Some(&"topology") => gang.topology = topology(&words[1..], &levels),
            Some(&"role") => gang.roles.push(role(&words[1..])),
            Some(&"usual") => {
                let role = role(&words[1..]);
                *usual.entry(role.shape).or_default() += role.indices.len() as u64;
            }
            Some(&"placed") => gang.placed.push(standing(&words[1..])),
            Some(&"avoid") => {
                gang.avoid.insert(NodeName::from(words[1]));
            }
            Some(word) => panic!("unknown line {word}"),
        }
    }
    number_segments(&mut gang);
    let mut snapshot = Snapshot::of(nodes);
    for shape in usual.keys() {
        snapshot.learn(shape);
    }
    snapshot.set_demand(&usual, &Config::default());
    for role in &gang.roles {
        snapshot.learn(&role.shape);
    }
    (snapshot, gang)
}

/// `worker a a b`: the nodes of each role in order of index.
fn describe(answer: &Result<Placement, Unplaceable>, devices: bool) -> String {
    match answer {
        Err(why) => format!("{}: {why}", why.code()),
        Ok(placement) => {
            let mut roles: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for member in &placement.members {
                let mut place = member.node.to_string();
                if devices {
                    let uuids: Vec<&str> = member.devices.iter().map(|d| d.as_str()).collect();
                    place = uuids.join("+");
                }
                roles
                    .entry(member.role.to_string())
                    .or_default()
                    .push(place);
            }
            let lines = roles
                .into_iter()
                .map(|(role, places)| format!("{role} {}", places.join(" ")));
            lines.collect::<Vec<_>>().join("; ")
        }
    }
}

#[track_caller]
fn check_plan(text: &str, expected: &str) {
    let (snapshot, gang) = read(text);
    let answer = plan(&snapshot, &gang, &config(text));
    let mut said = describe(&answer, false);
    // What would make it fit is looked at in `remedy`.
    if answer.is_err() && said.starts_with(&format!("{expected}. ")) {
        said.truncate(expected.len());
    }
    assert_eq!(said, expected);
}

#[track_caller]
fn check_devices(text: &str, expected: &str) {
    let (snapshot, gang) = read(text);
    let answer = plan(&snapshot, &gang, &Config::default());
    assert_eq!(describe(&answer, true), expected);
}

#[test]
fn fullest_node_that_takes_all_is_preferred() {
    check_plan(
        "node a gpu=8
         node b gpu=8 used=4
         role worker 2x2",
        "worker b b",
    );
}

#[test]
fn role_goes_on_as_few_nodes_as_it_needs() {
    check_plan(
        "node a gpu=8 used=6
         node b gpu=8
         node c gpu=8 used=6
         role worker 5x2",
        "worker b b b b a",
    );
}

#[test]
fn cpu_only_master_keeps_off_gpu_nodes_while_others_have_room() {
    let nodes = "node a gpu=8\nnode z\n";
    check_plan(
        &format!("{nodes} role master 1x0 tolerate=gpu\n role worker 1x8"),
        "master z; worker a",
    );
}

#[test]
fn cpu_only_master_goes_to_a_gpu_node_when_it_tolerates_and_nothing_else_has_room() {
    check_plan(
        "node a gpu=8
         node z cpu=1
         role master 1x0 cpu=4 tolerate=gpu
         role worker 1x8",
        "master a; worker a",
    );
}

#[test]
fn taint_that_is_not_tolerated_keeps_every_member_away() {
    check_plan(
        "node a gpu=8 taint=infra
         node b gpu=8
         role worker 2x8",
        "NeverFits: needs 2 worker with 8 nvidia.com/gpu each; even when empty the cluster has room \
         for 1, the largest node offers 8. Nodes 2: taint 1 (infra:NoSchedule), with room 1",
    );
}

#[test]
fn taint_of_most_nodes_is_the_one_that_is_named() {
    check_plan(
        "node a gpu=8 taint=zoo
         node b gpu=8 taint=infra
         node c gpu=8 taint=zoo
         role worker 1x8",
        "NoMatchingNode: no node may take worker. Nodes 3: taint 3 (zoo:NoSchedule)",
    );
    // Of two that are as frequent the first by name; a taint that is tolerated is not the cause.
    check_plan(
        "node a gpu=8 taint=zoo taint=infra
         node b gpu=8 taint=ada
         node c gpu=8 taint=infra
         node d gpu=8 taint=zoo taint=ada
         role worker 1x8 tolerate=zoo",
        "NoMatchingNode: no node may take worker. Nodes 4: taint 4 (ada:NoSchedule)",
    );
}

#[test]
fn taint_that_is_tolerated_does_not() {
    check_plan(
        "node a gpu=8 taint=infra
         node b gpu=8
         role worker 2x8 tolerate=infra",
        "worker a b",
    );
}

#[test]
fn selector_confines() {
    check_plan(
        "node a gpu=8 label=zone:x
         node b gpu=8 label=zone:y
         role worker 1x1 select=zone:y",
        "worker b",
    );
}

#[test]
fn selector_that_no_node_has() {
    check_plan(
        "node a gpu=8
         node b gpu=8 taint=infra
         role worker 1x1 select=zone:y",
        "NoMatchingNode: no node may take worker. Nodes 2: selector 2",
    );
}

#[test]
fn host_port_puts_members_on_nodes_of_their_own() {
    check_plan(
        "node a gpu=8
         node b gpu=8
         node c gpu=8 port=23456
         role worker 2x1 port=23456",
        "worker a b",
    );
}

#[test]
fn host_port_that_is_taken_everywhere_but_once() {
    check_plan(
        "node a gpu=8
         node b gpu=8 port=23456
         role worker 2x1 port=23456",
        "NotEnoughFree: needs room for 2 worker with 1 nvidia.com/gpu each; found room for 1, 16 \
         free in all. Nodes 2: host port 1, with room 1",
    );
}

/// What pods ask for was told apart by a hash that kept eight bits of a port.
#[test]
fn f29_ports_that_agree_in_their_lower_bits_are_different_ports() {
    check_plan(
        "node a gpu=8 port=80
         role worker 1x1 port=336",
        "worker a",
    );
    check_plan(
        "node a gpu=8
         role x 1x1 port=80
         role y 1x1 port=336
         role z 1x1 port=65360",
        "x a; y a; z a",
    );
}

#[test]
fn more_members_with_a_host_port_than_nodes_never_fit() {
    check_plan(
        "node a gpu=8
         node b gpu=8
         role worker 3x1 port=23456",
        "NeverFits: needs 3 worker with 1 nvidia.com/gpu each; even when empty the cluster has room \
         for 2, the largest node offers 8. Nodes 2: with room 2",
    );
}

#[test]
fn busy_now_is_not_never() {
    check_plan(
        "node a gpu=8 used=6
         node b gpu=8 used=8
         role worker 2x8",
        "NotEnoughFree: needs room for 2 worker with 8 nvidia.com/gpu each; found room for 0, 2 \
         free in all. Nodes 2: too few free 2",
    );
}

#[test]
fn larger_than_any_node_is_never() {
    check_plan(
        "node a gpu=8
         node b gpu=4
         role worker 1x16",
        "NeverFits: needs 1 worker with 16 nvidia.com/gpu each; even when empty the cluster has \
         room for 0, the largest node offers 8. Nodes 2: too small 2",
    );
}

#[test]
fn resource_that_nobody_offers() {
    check_plan(
        "node a gpu=8
         role worker 1x0 has=amd.com/gpu:1",
        "NoSuchResource: worker asks for amd.com/gpu, which no node offers",
    );
}

#[test]
fn resource_of_a_slightly_wrong_name() {
    check_plan(
        "node a has=nvidia.com/mig-1g.10gb:7
         role worker 1x0 has=nvidia.com/mig-1g.5gb:1",
        "NoSuchResource: worker asks for nvidia.com/mig-1g.5gb, which no node offers; did you mean \
         nvidia.com/mig-1g.10gb",
    );
}

#[test]
fn mig_slices_are_devices_of_their_own() {
    check_plan(
        "node a has=nvidia.com/mig-1g.10gb:7
         node b has=nvidia.com/mig-3g.40gb:2
         role worker 3x0 has=nvidia.com/mig-3g.40gb:1",
        "NeverFits: needs 3 worker with 1 nvidia.com/mig-3g.40gb each; even when empty the cluster \
         has room for 2, the largest node offers 2. Nodes 2: too small 1, with room 1",
    );
}

#[test]
fn f32_every_extended_resource_counts() {
    check_plan(
        "node a gpu=8 has=rdma/hca:1
         node b gpu=8 has=rdma/hca:4
         role worker 3x2 has=rdma/hca:1",
        "worker b b b",
    );
}

#[test]
fn second_extended_resource_may_be_the_scarce_one() {
    check_plan(
        "node a gpu=8 has=rdma/hca:1
         node b gpu=8 has=rdma/hca:1
         role worker 3x2 has=rdma/hca:1",
        "NeverFits: needs 3 worker with 1 rdma/hca each; even when empty the cluster has room for 2, \
         the largest node offers 1. Nodes 2: with room 2",
    );
}

#[test]
fn cpu_may_be_the_scarce_one() {
    check_plan(
        "node a gpu=8 cpu=4
         node b gpu=8 cpu=4
         role worker 2x1 cpu=8",
        "NeverFits: needs 2 worker with 8000 milli-CPU each; even when empty the cluster has room \
         for 0, the largest node offers 4000. Nodes 2: too small 2",
    );
}

#[test]
fn unhealthy_devices_are_named_as_the_cause() {
    check_plan(
        "node a gpu=8 sick=1
         node b gpu=8 used=1
         role worker 1x8",
        "NotEnoughFree: needs room for 1 worker with 8 nvidia.com/gpu each; found room for 0, 14 \
         free in all. Nodes 2: unhealthy GPU 1, too few free 1",
    );
}

#[test]
fn silent_agents_cordons_and_readiness_are_counted_apart() {
    check_plan(
        "node a gpu=8 silent
         node b gpu=8 cordoned
         node c gpu=8 notready
         node d gpu=8 used=8
         role worker 1x8",
        "NotEnoughFree: needs room for 1 worker with 8 nvidia.com/gpu each; found room for 0, 0 \
         free in all. Nodes 4: cordoned 1, not ready 1, no agent report 1, too few free 1",
    );
}

#[test]
fn silent_agent_does_not_keep_a_role_without_devices_away() {
    check_plan(
        "node a gpu=8 silent
         role master 1x0 tolerate=gpu",
        "master a",
    );
}

#[test]
fn node_that_refused_is_avoided_and_said_so() {
    check_plan(
        "node a gpu=8
         node b gpu=8 used=8
         avoid a
         role worker 1x8",
        "NotEnoughFree: needs room for 1 worker with 8 nvidia.com/gpu each; found room for 0, 8 \
         free in all. Nodes 2: refused before 1, too few free 1",
    );
}

#[test]
fn small_role_does_not_take_what_the_large_one_needs() {
    check_plan(
        "node a gpu=8
         node b gpu=8 used=6
         role master 1x2
         role worker 1x8",
        "master b; worker a",
    );
}

#[test]
fn roles_that_fit_alone_and_not_together_never_fit() {
    check_plan(
        "node a gpu=8
         node b gpu=8
         role master 1x2
         role worker 2x8",
        "NeverFits: needs 1 master with 2 nvidia.com/gpu each; even when empty the cluster has room \
         for 0, the largest node offers 8. Nodes 2: with room 2",
    );
}

#[test]
fn no_nodes_at_all() {
    check_plan(
        "role worker 1x0",
        "NoMatchingNode: no node may take worker. Nodes 0: none",
    );
}

#[test]
fn devices_of_one_numa_node_are_predicted_together() {
    check_devices(
        "node a gpu=6 numa=0,0,0,0,1,1
         role worker 1x2",
        "worker a4+a5",
    );
    check_devices(
        "node a gpu=6 numa=0,0,0,0,1,1
         role worker 2x3",
        "worker a0+a1+a2 a3+a4+a5",
    );
}

#[test]
fn devices_behind_one_switch_are_predicted_together_and_what_is_left_stays_whole() {
    check_devices(
        "node a gpu=6 switch=0,1,1,0,0,0
         role worker 1x2",
        "worker a1+a2",
    );
    check_devices(
        "node a gpu=6 switch=0,1,1,0,1,0
         role worker 2x3",
        "worker a0+a3+a5 a1+a2+a4",
    );
    // The one that is alone already.
    check_devices(
        "node a gpu=5 switch=0,0,1,2,2
         role worker 1x1",
        "worker a2",
    );
}

#[test]
fn devices_are_never_predicted_twice() {
    check_devices(
        "node a gpu=4
         role master 1x1
         role worker 3x1",
        "master a0; worker a1 a2 a3",
    );
}

/// A small generator (splitmix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
