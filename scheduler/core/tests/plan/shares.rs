//! Parts of devices: planned beside whole ones, by hand and against trying everything.

use std::collections::BTreeMap;

use muster_core::config::Config;
use muster_core::plan::{GangRequest, Placement, plan};
use muster_core::pod::{DEVICE_MILLI, Share};
use muster_core::reason::Unplaceable;

use super::{Rng, check_devices, check_plan, read};

#[test]
fn a_share_goes_to_the_device_that_has_least_left_of_those_with_enough() {
    check_devices(
        "node a gpu=4 used=1 shared=300,600
         role w 1x0 share=300
         role x 1x0 share=301",
        "w a1; x a2",
    );
}

#[test]
fn shares_break_whole_devices_only_when_no_part_is_left() {
    check_devices(
        "node a gpu=2
         role w 3x0 share=400",
        "w a0 a0 a1",
    );
}

#[test]
fn a_whole_device_is_not_made_of_parts() {
    check_plan(
        "node a gpu=2 shared=999,999
         role w 1x1",
        "NotEnoughFree: needs room for 1 w with 1 nvidia.com/gpu each; found room for 0, 0 free in all. Nodes 1: too few free 1",
    );
}

#[test]
fn shares_that_are_nowhere_left_are_told_as_gpus() {
    check_plan(
        "node a gpu=2 shared=400,100
         role w 1x0 share=500",
        "NotEnoughFree: needs room for 1 w with 1 nvidia.com/gpu each; found room for 0, 0 free in all. Nodes 1: too few free 1",
    );
}

#[derive(Clone, Debug)]
struct SmallNode {
    /// What is left of each device, in thousandths.
    devices: Vec<u32>,
    cores: u64,
}

/// Members of a role, each with so many whole devices or so many thousandths of one.
#[derive(Clone, Debug)]
struct SmallRole {
    count: u32,
    whole: usize,
    milli: u32,
    cores: u64,
}

fn fits(nodes: &mut [SmallNode], members: &[&SmallRole]) -> bool {
    let Some((member, rest)) = members.split_first() else {
        return true;
    };
    for at in 0..nodes.len() {
        if nodes[at].cores < member.cores {
            continue;
        }
        let before = nodes[at].clone();
        let choices: Vec<Vec<usize>> = if member.milli > 0 {
            (0..before.devices.len())
                .filter(|device| before.devices[*device] >= member.milli)
                .map(|device| vec![device])
                .collect()
        } else {
            let whole =
                (0..before.devices.len()).filter(|device| before.devices[*device] == DEVICE_MILLI);
            let whole: Vec<usize> = whole.take(member.whole).collect();
            (whole.len() == member.whole)
                .then_some(whole)
                .into_iter()
                .collect()
        };
        for choice in choices {
            for device in choice {
                nodes[at].devices[device] -= if member.milli > 0 {
                    member.milli
                } else {
                    DEVICE_MILLI
                };
            }
            nodes[at].cores -= member.cores;
            if fits(nodes, rest) {
                return true;
            }
            nodes[at] = before.clone();
        }
    }
    false
}

fn case(rng: &mut Rng) -> (Vec<SmallNode>, Vec<SmallRole>) {
    let nodes = (0..1 + rng.below(3)).map(|_| SmallNode {
        devices: (0..rng.below(4))
            .map(|_| match rng.below(2) {
                0 => DEVICE_MILLI,
                _ => 100 * (1 + rng.below(9)) as u32,
            })
            .collect(),
        cores: 1 + rng.below(8),
    });
    let nodes = nodes.collect();
    let mut left = 5;
    let mut roles = Vec::new();
    for _ in 0..1 + rng.below(3) {
        let count = (1 + rng.below(3) as u32).min(left);
        left -= count;
        if count == 0 {
            break;
        }
        let shares = rng.below(3) > 0;
        roles.push(SmallRole {
            count,
            whole: if shares { 0 } else { 1 + rng.below(2) as usize },
            milli: if shares {
                50 * (1 + rng.below(19)) as u32
            } else {
                0
            },
            cores: 1 + rng.below(3),
        });
    }
    (nodes, roles)
}

fn text(nodes: &[SmallNode], roles: &[SmallRole]) -> String {
    let mut text = String::new();
    for (at, node) in nodes.iter().enumerate() {
        let parts = node.devices.iter().filter(|left| **left < DEVICE_MILLI);
        let parts: Vec<String> = parts.map(u32::to_string).collect();
        let shared = match parts.is_empty() {
            true => String::new(),
            false => format!("shared={}", parts.join(",")),
        };
        // One more than there are: a GPU is offered even where all are taken.
        let gpus = node.devices.len() + 1;
        text += &format!("node n{at} gpu={gpus} used=1 cpu={} {shared}\n", node.cores);
    }
    for (at, role) in roles.iter().enumerate() {
        let share = match role.milli {
            0 => String::new(),
            milli => format!("share={milli}"),
        };
        text += &format!(
            "role r{at} {}x{} cpu={} {share}\n",
            role.count, role.whole, role.cores
        );
    }
    text
}

/// No device gives more than it has, and no node more cores.
fn assert_valid(nodes: &[SmallNode], gang: &GangRequest, found: &Placement, written: &str) {
    let members: usize = gang.roles.iter().map(|role| role.indices.len()).sum();
    assert_eq!(found.members.len(), members);
    let (mut taken, mut cores) = (BTreeMap::new(), BTreeMap::new());
    for member in &found.members {
        let whole = member.shape.requests.extended("nvidia.com/gpu") as usize;
        let share = member.shape.share.as_ref().map(Share::milli);
        assert_eq!(member.devices.len(), whole + share.iter().count());
        for device in &member.devices {
            assert!(device.as_str().starts_with(member.node.as_str()));
            *taken.entry(device.clone()).or_insert(0) += share.unwrap_or(DEVICE_MILLI);
        }
        *cores.entry(member.node.clone()).or_insert(0) += member.shape.requests.milli_cpu / 1000;
    }
    for (at, node) in nodes.iter().enumerate() {
        let name = format!("n{at}");
        let used = cores.get(name.as_str()).copied().unwrap_or(0);
        assert!(used <= node.cores, "{written}");
        // Whole ones come first in the test's numbers, then those in part.
        let whole = node.devices.iter().filter(|left| **left == DEVICE_MILLI);
        let parts = node.devices.iter().filter(|left| **left < DEVICE_MILLI);
        for (index, left) in whole.chain(parts).enumerate() {
            let device = format!("{name}{index}");
            let taken = taken.remove(device.as_str()).unwrap_or(0);
            assert!(
                taken <= *left,
                "{device} gives {taken} of {left}: {written}"
            );
        }
    }
    assert!(taken.is_empty(), "{taken:?}: {written}");
}

#[test]
fn gangs_with_shares_are_placed_as_trying_everything_says() {
    let mut rng = Rng(7);
    let (mut agreed, mut gave_up) = (0, 0);
    for _ in 0..CASES {
        let (nodes, roles) = case(&mut rng);
        let written = text(&nodes, &roles);
        let (snapshot, gang) = read(&written);
        let members: Vec<&SmallRole> = roles
            .iter()
            .flat_map(|role| std::iter::repeat_n(role, role.count as usize))
            .collect();
        let possible = fits(&mut nodes.clone(), &members);
        let answer = plan(&snapshot, &gang, &Config::default());
        match &answer {
            Ok(placement) => {
                assert!(possible, "{written} cannot fit and is placed");
                assert_valid(&nodes, &gang, placement, &written);
            }
            Err(Unplaceable::TooComplex { .. }) => gave_up += 1,
            Err(why) => assert!(!possible, "{written} fits, and the answer is: {why}"),
        }
        agreed += u32::from(answer.is_ok() == possible);
    }
    println!("{agreed} of {CASES} answers agree with trying everything, {gave_up} gave up");
    assert!(
        f64::from(agreed) >= 0.999 * f64::from(CASES),
        "{agreed} of {CASES}"
    );
}

const CASES: u32 = 20_000;
