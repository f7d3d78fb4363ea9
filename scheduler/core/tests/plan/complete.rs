//! The planner against trying everything, on small random clusters; every placement is checked by
//! rules of its own.

use std::collections::{BTreeMap, BTreeSet};

use muster_core::config::Config;
use muster_core::ids::NodeName;
use muster_core::plan::{GangRequest, Placement, plan};
use muster_core::reason::Unplaceable;
use muster_core::snapshot::{Counts, Snapshot};

use super::{Rng, read};

/// What is to be had, by number: GPUs, cores, network cards.
const KINDS: usize = 3;

#[derive(Clone, Debug)]
struct SmallNode {
    free: [u64; KINDS],
    zone: u64,
    cordoned: bool,
    infra: bool,
    port: bool,
}

#[derive(Clone, Debug)]
struct SmallRole {
    count: u64,
    each: [u64; KINDS],
    zone: Option<u64>,
    infra: bool,
    port: bool,
}

impl SmallRole {
    fn may_stand(&self, node: &SmallNode) -> bool {
        !node.cordoned
            && (self.infra || !node.infra)
            && self.zone.is_none_or(|zone| zone == node.zone)
    }
}

/// Whether so many members of each role find room, by trying every share of every node.
fn fits(nodes: &[SmallNode], roles: &[SmallRole], left: &[u64]) -> bool {
    let Some((node, rest)) = nodes.split_first() else {
        return left.iter().all(|left| *left == 0);
    };
    shares(node, roles, left).into_iter().any(|here| {
        let left: Vec<u64> = left
            .iter()
            .zip(here)
            .map(|(left, here)| left - here)
            .collect();
        fits(rest, roles, &left)
    })
}

/// Every number of members of each role that the node carries together.
fn shares(node: &SmallNode, roles: &[SmallRole], left: &[u64]) -> Vec<Vec<u64>> {
    let mut shares = vec![Vec::new()];
    for (role, left) in roles.iter().zip(left) {
        let most = if role.may_stand(node) { *left } else { 0 };
        shares = shares
            .into_iter()
            .flat_map(|share: Vec<u64>| {
                (0..=most).map(move |count| [share.clone(), vec![count]].concat())
            })
            .filter(|share| {
                let used = |kind: usize| -> u64 {
                    let each = roles.iter().zip(share);
                    each.map(|(role, count)| role.each[kind] * count).sum()
                };
                let ports: u64 = roles
                    .iter()
                    .zip(share)
                    .filter(|(role, _)| role.port)
                    .map(|(_, count)| *count)
                    .sum();
                (0..KINDS).all(|kind| used(kind) <= node.free[kind])
                    && ports <= u64::from(!node.port)
            })
            .collect();
    }
    shares
}

/// Every member has one place, each place is allowed, and no node carries more than it has.
fn assert_valid(nodes: &[SmallNode], roles: &[SmallRole], gang: &GangRequest, found: &Placement) {
    let wanted: BTreeSet<(&str, u32)> = gang
        .roles
        .iter()
        .flat_map(|role| {
            role.indices
                .iter()
                .map(|index| (role.role.as_str(), *index))
        })
        .collect();
    let placed: BTreeSet<(&str, u32)> = found
        .members
        .iter()
        .map(|member| (member.role.as_str(), member.index))
        .collect();
    assert_eq!(placed, wanted);
    assert_eq!(found.members.len(), wanted.len());
    let mut used: BTreeMap<&NodeName, ([u64; KINDS], u64)> = BTreeMap::new();
    let mut devices = BTreeSet::new();
    for member in &found.members {
        let at: usize = member.node.as_str()[1..].parse().unwrap();
        let role = &roles[member.role.as_str()[1..].parse::<usize>().unwrap()];
        assert!(
            role.may_stand(&nodes[at]),
            "{} may not be on {}",
            member.role,
            member.node
        );
        let (sum, ports) = used.entry(&member.node).or_default();
        for kind in 0..KINDS {
            sum[kind] += role.each[kind];
            assert!(
                sum[kind] <= nodes[at].free[kind],
                "{} carries too much",
                member.node
            );
        }
        *ports += u64::from(role.port);
        assert!(*ports <= u64::from(!nodes[at].port) || !role.port);
        assert_eq!(member.devices.len() as u64, role.each[0]);
        for device in &member.devices {
            assert!(device.as_str().starts_with(member.node.as_str()));
            assert!(devices.insert(device), "{device} is predicted twice");
        }
    }
}

/// A random cluster of at most six nodes and a gang of at most eight members.
fn case(rng: &mut Rng, only_gpus: bool) -> (Vec<SmallNode>, Vec<SmallRole>) {
    let nodes = (0..1 + rng.below(6))
        .map(|_| SmallNode {
            free: [
                rng.below(9),
                if only_gpus { 64 } else { 1 + rng.below(16) },
                rng.below(3),
            ],
            zone: rng.below(2),
            cordoned: !only_gpus && rng.below(8) == 0,
            infra: !only_gpus && rng.below(5) == 0,
            port: !only_gpus && rng.below(5) == 0,
        })
        .collect();
    let mut left = 8;
    let mut roles = Vec::new();
    for _ in 0..1 + rng.below(3) {
        let count = 1 + rng.below(4);
        if count > left {
            break;
        }
        left -= count;
        let may = |rng: &mut Rng, one_in: u64| !only_gpus && rng.below(one_in) == 0;
        roles.push(SmallRole {
            count,
            each: [
                rng.below(6).max(u64::from(only_gpus)),
                if only_gpus { 1 } else { 1 + rng.below(6) },
                u64::from(may(rng, 4)),
            ],
            zone: may(rng, 4).then(|| rng.below(2)),
            infra: may(rng, 3),
            port: may(rng, 5),
        });
    }
    (nodes, roles)
}

fn text(nodes: &[SmallNode], roles: &[SmallRole]) -> String {
    let mut text = String::new();
    let word = |yes: bool, word: &'static str| if yes { word } else { "" };
    for (at, node) in nodes.iter().enumerate() {
        let [gpus, cores, cards] = node.free;
        text += &format!(
            "node n{at} gpu=8 used={} cpu={cores} has=rdma/hca:{cards} label=zone:z{} {} {} {}\n",
            8 - gpus,
            node.zone,
            word(node.cordoned, "cordoned"),
            word(node.infra, "taint=infra"),
            word(node.port, "port=99"),
        );
    }
    for (at, role) in roles.iter().enumerate() {
        let [gpus, cores, cards] = role.each;
        let zone = role
            .zone
            .map_or(String::new(), |zone| format!("select=zone:z{zone}"));
        let cards = if cards > 0 {
            format!("has=rdma/hca:{cards}")
        } else {
            String::new()
        };
        text += &format!(
            "role r{at} {}x{gpus} cpu={cores} tolerate=gpu {cards} {zone} {} {}\n",
            role.count,
            word(role.infra, "tolerate=infra"),
            word(role.port, "port=99"),
        );
    }
    text
}

/// Cases in which the planner says the same as trying everything.
fn agreement(seed: u64, cases: u32, only_gpus: bool) -> u32 {
    let mut rng = Rng(seed);
    let mut agreed = 0;
    for _ in 0..cases {
        let (nodes, roles) = case(&mut rng, only_gpus);
        let written = text(&nodes, &roles);
        let (mut snapshot, gang) = read(&written);
        if rng.below(2) == 0 {
            // With a demand other nodes are taken first, and no fewer gangs fit.
            let mut counts = Counts::new();
            for role in &gang.roles {
                counts.insert(role.shape.clone(), 1 + rng.below(9));
            }
            snapshot.set_demand(&counts, &Config::default());
        }
        let answer = ask(&snapshot, &gang);
        let left: Vec<u64> = roles.iter().map(|role| role.count).collect();
        let possible = fits(&nodes, &roles, &left);
        match &answer {
            Ok(placement) => {
                assert_valid(&nodes, &roles, &gang, placement);
                assert!(possible, "{written} cannot fit and is placed");
            }
            Err(Unplaceable::TooComplex { .. }) => {}
            // Whoever says that there is no place is right.
            Err(why) => assert!(!possible, "{written} fits, and the answer is: {why}"),
        }
        agreed += u32::from(answer.is_ok() == possible);
    }
    agreed
}

fn ask(snapshot: &Snapshot, gang: &GangRequest) -> Result<Placement, Unplaceable> {
    plan(snapshot, gang, &Config::default())
}

#[test]
fn gangs_that_ask_for_gpus_only_are_placed_exactly_when_they_can_be() {
    assert_eq!(agreement(1, CASES, true), CASES);
}

#[test]
fn gangs_that_ask_for_all_sorts_of_things_are_placed_exactly_when_they_can_be() {
    let agreed = agreement(2, CASES, false);
    println!("{agreed} of {CASES} answers agree with trying everything");
    assert_eq!(agreed, CASES);
}

const CASES: u32 = 50_000;
