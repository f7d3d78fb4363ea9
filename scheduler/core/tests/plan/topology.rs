//! Domains of the network: required, preferred, segments, and what is said when they are too small.

use std::collections::{BTreeMap, BTreeSet};

use muster_core::plan::{Placed, Placement, plan, plan_part};
use muster_core::reason::Unplaceable;

use super::{GPU, Rng, check_plan, config, read};

/// Two blocks of two racks of two nodes, with so many of 8 GPUs used on each.
fn cluster(used: [u32; 8], rest: &str) -> String {
    let mut text = String::from("levels block rack\n");
    for (at, used) in used.into_iter().enumerate() {
        let (block, rack) = (at / 4, at / 2 % 2);
        text += &format!("node n{at} gpu=8 used={used} label=block:b{block} label=rack:r{rack}\n");
    }
    text + rest
}

#[track_caller]
fn check(used: [u32; 8], rest: &str, expected: &str) {
    check_plan(&cluster(used, rest), expected);
}

#[test]
fn required_rack_takes_the_fullest_that_has_room_for_all() {
    check(
        [0, 0, 4, 0, 0, 0, 4, 4],
        "role worker 3x4
         topology required=rack",
        "worker n3 n3 n2",
    );
}

#[test]
fn racks_of_one_name_in_two_blocks_are_two() {
    check(
        [8, 8, 8, 0, 8, 8, 0, 8],
        "role worker 2x8
         topology required=rack",
        "TopologyNotMet: needs room for 2 worker in one rack; of 4 the best, b0/r1, has room for 1. \
         Nodes 8: too few free 6, with room 2",
    );
}

#[test]
fn what_no_domain_has_even_when_empty_is_said() {
    check(
        [0; 8],
        "role worker 3x8
         topology required=rack",
        "TopologyNotMet: needs room for 3 worker in one rack; of 4 the best, b0/r0, has room for 2, and \
         when the cluster is empty for 2. Nodes 8: with room 8",
    );
}

/// Three whole nodes are in no rack, so nodes that become free are no help.
#[test]
fn what_no_domain_has_even_when_empty_is_said_of_a_full_cluster_too() {
    check(
        [8, 8, 8, 8, 8, 8, 8, 0],
        "role worker 3x8
         topology required=rack",
        "TopologyNotMet: needs room for 3 worker in one rack; of 4 the best, b1/r1, has room for 1, and \
         when the cluster is empty for 2. Nodes 8: too few free 7, with room 1",
    );
}

/// An empty block takes four, so it is the segments that no rack takes.
#[test]
fn segments_that_no_rack_takes_are_said_of_a_full_cluster_too() {
    check(
        [8; 8],
        "role worker 3x8
         topology required=block segment=3:rack",
        "TopologyNotMet: needs room for 3 worker in segments of 3, each in one rack; found room for 0 in 4 of them, and \
         when the cluster is empty for 0. Nodes 8: too few free 8",
    );
}

/// Its minimum fits an empty rack: it waits for room, and nodes may be kept for it.
#[test]
fn elastic_gang_whose_minimum_fits_a_rack_waits_for_room() {
    let text = cluster([8; 8], "role worker 4x8\ntopology required=rack");
    let (snapshot, gang) = read(&text);
    let answer = |spare| plan_part(&snapshot, &gang, spare, &config(&text)).placement;
    let is_never = |spare| matches!(answer(spare), Err(Unplaceable::NotInOneDomain { .. }));
    assert!(is_never(0) && !is_never(2), "{:?}", answer(2));
}

#[test]
fn what_would_not_fit_anywhere_is_said_as_without_topology() {
    check(
        [8, 8, 8, 8, 8, 8, 8, 0],
        "role worker 2x8
         topology required=rack",
        "NotEnoughFree: needs room for 2 worker with 8 nvidia.com/gpu each; found room for 1, 8 free in \
         all. Nodes 8: too few free 7, with room 1",
    );
}

#[test]
fn node_without_the_label_is_in_no_domain() {
    check_plan(
        "levels block rack
         node a gpu=8 label=block:b0
         node b gpu=8 label=block:b0
         node c gpu=8 label=block:b0 label=rack:r0
         role worker 2x8
         topology required=rack",
        "TopologyNotMet: needs room for 2 worker in one rack; of 1 the best, b0/r0, has room for 1, and when \
         the cluster is empty for 1. Nodes 3: with room 3",
    );
    check_plan(
        "levels block rack
         node a gpu=8 label=block:b0
         node b gpu=8 label=block:b0
         node c gpu=8 label=block:b0 label=rack:r0
         role worker 3x8
         topology required=block preferred=rack",
        "worker a b c",
    );
}

#[test]
fn preferred_rack_is_one_where_one_has_room() {
    check(
        [0, 0, 0, 8, 0, 0, 0, 0],
        "role worker 2x8
         topology preferred=rack",
        "worker n0 n1",
    );
}

#[test]
fn preferred_rack_makes_do_with_one_block() {
    check(
        [0, 8, 0, 8, 0, 0, 8, 0],
        "role worker 3x8
         topology preferred=rack",
        "worker n4 n5 n7",
    );
}

#[test]
fn preferred_rack_makes_do_with_as_few_as_can_be() {
    check(
        [0, 0, 0, 8, 0, 8, 0, 8],
        "role worker 4x8
         topology preferred=rack",
        "worker n0 n1 n2 n4",
    );
}

#[test]
fn required_block_and_preferred_rack() {
    check(
        [0, 8, 0, 8, 0, 0, 8, 8],
        "role worker 2x8
         topology required=block preferred=rack",
        "worker n4 n5",
    );
    check(
        [0, 8, 0, 8, 0, 8, 8, 8],
        "role worker 2x8
         topology required=block preferred=rack",
        "worker n0 n2",
    );
}

#[test]
fn ranks_go_through_rack_by_rack() {
    check(
        [0, 4, 4, 4, 8, 8, 8, 8],
        "role worker 5x4
         topology required=block preferred=rack",
        "worker n0 n0 n1 n2 n3",
    );
}

#[test]
fn master_and_workers_of_one_shape_are_ranked_together() {
    check(
        [4, 4, 0, 0, 8, 8, 8, 4],
        "role master 1x4
         role worker 3x4
         topology preferred=rack",
        "master n2; worker n2 n3 n3",
    );
}

#[test]
fn cpu_only_master_stays_with_its_workers() {
    check(
        [0, 0, 0, 0, 8, 8, 0, 0],
        "role master 1x0 tolerate=gpu
         role worker 2x8
         topology required=rack",
        "master n0; worker n0 n1",
    );
}

#[test]
fn segments_are_whole_in_their_racks() {
    // Racks have room for 3, 4, 2 and 4 members: for 1, 2, 1 and 2 segments. The second block is the fuller.
    check(
        [0, 4, 0, 0, 8, 0, 0, 0],
        "role worker 6x4
         topology segment=2:rack",
        "worker n5 n5 n6 n6 n7 n7",
    );
}

#[test]
fn segments_that_do_not_fit_say_so() {
    check(
        [4, 8, 4, 8, 4, 8, 4, 8],
        "role worker 4x4
         topology segment=2:rack",
        "TopologyNotMet: needs room for 4 worker in segments of 2, each in one rack; found room for 0 in 4 of them. \
         Nodes 8: too few free 4, with room 4",
    );
}

#[test]
fn last_segment_may_be_smaller() {
    check(
        [0, 4, 8, 4, 8, 8, 8, 8],
        "role worker 4x4
         topology segment=3:rack",
        "worker n0 n0 n1 n3",
    );
}

#[test]
fn segments_within_one_block() {
    check(
        [0, 0, 8, 8, 0, 8, 0, 8],
        "role worker 2x8
         topology required=block segment=1:rack",
        "worker n0 n1",
    );
    check(
        [0, 8, 0, 8, 0, 0, 0, 0],
        "role worker 4x8
         topology required=block segment=2:rack",
        "worker n4 n5 n6 n7",
    );
}

#[test]
fn member_that_comes_back_goes_to_where_the_others_are() {
    check(
        [8, 4, 0, 0, 0, 0, 0, 0],
        "role worker 1x4
         placed n0
         topology required=rack",
        "worker n1",
    );
    check(
        [8, 8, 0, 0, 0, 0, 0, 0],
        "role worker 1x4
         placed n0
         topology preferred=rack",
        "worker n2",
    );
    check(
        [8, 8, 0, 0, 0, 0, 0, 0],
        "role worker 1x4
         placed n0
         topology required=rack",
        "TopologyNotMet: needs room for 1 worker in one rack; found room for 0 in 4 of them. \
         Nodes 8: too few free 2, with room 6",
    );
}

#[test]
fn member_of_a_segment_that_comes_back_goes_to_its_segment() {
    check(
        [8, 4, 4, 8, 8, 8, 8, 8],
        "role worker 1x4
         placed n2 segment=0
         placed n0 segment=1
         topology segment=2:rack",
        "worker n2",
    );
}

/// Every rack takes each role alone, and none both: to be in one is a wish only.
#[test]
fn wish_that_no_domain_can_meet_costs_no_place() {
    let mut text = String::from("levels block rack\n");
    for at in 0..2_000 {
        text += &format!("node n{at:04} gpu=8 label=block:b label=rack:r{}\n", at / 4);
    }
    text += "role master 1x8 cpu=2
             role worker 4x8
             topology preferred=rack";
    let (snapshot, gang) = read(&text);
    let found = plan(&snapshot, &gang, &config(&text)).unwrap();
    let nodes: BTreeSet<_> = found.members.iter().map(|m| m.node.as_str()).collect();
    assert_eq!(nodes.len(), 5);
}

/// A preferred level of hosts: each member's place is looked for among those of its host alone.
#[test]
fn narrow_level_with_very_many_domains_is_not_too_much() {
    let mut text = String::from("levels kubernetes.io/hostname\n");
    for at in 0..4_096 {
        text += &format!("node n{at:04} gpu=8\n");
    }
    text += "role worker 4096x8\ntopology preferred=kubernetes.io/hostname";
    let (snapshot, gang) = read(&text);
    let found = plan(&snapshot, &gang, &config(&text)).unwrap();
    assert_eq!(found.members.len(), 4_096);
}

#[test]
fn segments_wider_than_what_is_required_change_nothing() {
    check(
        [0, 0, 8, 8, 8, 8, 8, 8],
        "role worker 4x4
         topology required=rack segment=3:block",
        "worker n0 n0 n1 n1",
    );
    check(
        [4, 0, 0, 0, 0, 0, 0, 0],
        "role worker 1x4
         placed n1 segment=0
         topology required=rack segment=3:block",
        "worker n0",
    );
}

#[test]
fn shortage_with_segments_is_told_as_a_shortage() {
    check(
        [8, 8, 8, 8, 8, 8, 8, 0],
        "role master 1x8 cpu=2
         role worker 4x8
         topology segment=2:rack",
        "NotEnoughFree: needs room for 4 worker with 8 nvidia.com/gpu each; found room for 0, 8 free in all. \
         Nodes 8: too few free 7, with room 1",
    );
}

#[test]
fn domain_that_takes_each_role_but_not_both_is_not_named_as_the_best() {
    check(
        [8, 8, 8, 8, 8, 8, 0, 0],
        "role master 1x8 cpu=2
         role worker 2x8
         topology required=rack",
        "TopologyNotMet: needs room for 2 worker in one rack; found room for 1 in 4 of them, and when the cluster is \
         empty for 1. Nodes 8: too few free 6, with room 2",
    );
    check(
        [0, 0, 0, 8, 8, 8, 8, 8],
        "role master 1x8 cpu=2
         role worker 2x8
         topology required=rack",
        "TopologyNotMet: needs room for 2 worker in one rack; found room for 1 in 4 of them, and when the cluster is \
         empty for 1. Nodes 8: too few free 5, with room 3",
    );
}

/// A node: free GPUs, block, rack; a node without a rack, or without a block and a rack.
#[derive(Clone, Debug)]
struct Small {
    free: u64,
    place: Vec<u64>,
}

#[derive(Clone, Debug, Default)]
struct Asked {
    required: Option<usize>,
    preferred: Option<usize>,
    segment: Option<(usize, usize)>,
}

fn case(rng: &mut Rng) -> (Vec<Small>, Vec<(u64, u64)>, Asked) {
    let nodes = (0..1 + rng.below(6))
        .map(|_| Small {
            free: rng.below(9),
            place: (0..[2, 2, 2, 2, 1, 0][rng.below(6) as usize])
                .map(|_| rng.below(2))
                .collect(),
        })
        .collect();
    let mut roles = vec![(1 + rng.below(6), 1 + rng.below(8))];
    let mut asked = Asked::default();
    match rng.below(4) {
        0 => asked.required = Some(rng.below(2) as usize),
        1 => asked.preferred = Some(rng.below(2) as usize),
        2 => {
            asked.required = Some(0);
            asked.preferred = Some(1);
        }
        _ => {
            asked.segment = Some((1 + rng.below(4) as usize, rng.below(2) as usize));
            asked.required = (rng.below(2) == 0).then(|| rng.below(2) as usize);
        }
    }
    if asked.segment.is_none() && rng.below(3) == 0 {
        roles.push((1 + rng.below(2), 1 + rng.below(8)));
    }
    (nodes, roles, asked)
}

fn written(nodes: &[Small], roles: &[(u64, u64)], asked: &Asked) -> String {
    let mut text = String::from("levels block rack\n");
    for (at, node) in nodes.iter().enumerate() {
        text += &format!("node n{at} gpu=8 used={}", 8 - node.free);
        for (value, key) in node.place.iter().zip(["block", "rack"]) {
            text += &format!(" label={key}:{key}{value}");
        }
        text += "\n";
    }
    for (at, (count, each)) in roles.iter().enumerate() {
        text += &format!("role r{at} {count}x{each}\n");
    }
    let name = |level: usize| ["block", "rack"][level];
    text += "topology";
    if let Some(level) = asked.required {
        text += &format!(" required={}", name(level));
    }
    if let Some(level) = asked.preferred {
        text += &format!(" preferred={}", name(level));
    }
    if let Some((size, level)) = asked.segment {
        text += &format!(" segment={size}:{}", name(level));
    }
    text
}

/// Whether the members fit onto these nodes: each on every node in turn.
fn fits(free: &[u64], members: &[u64]) -> bool {
    let Some((each, rest)) = members.split_first() else {
        return true;
    };
    (0..free.len()).any(|at| {
        free[at] >= *each && {
            let mut left = free.to_vec();
            left[at] -= each;
            fits(&left, rest)
        }
    })
}

/// Nodes by their domain of a level; those in none are left out.
fn domains(nodes: &[Small], levels: usize) -> BTreeMap<Vec<u64>, Vec<Small>> {
    let mut domains: BTreeMap<Vec<u64>, Vec<Small>> = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.place.len() >= levels) {
        let domain = node.place[..levels].to_vec();
        domains.entry(domain).or_default().push(node.clone());
    }
    domains
}

/// Whether there is a place as it is asked for, by trying every domain for each segment.
fn possible(nodes: &[Small], roles: &[(u64, u64)], asked: &Asked) -> bool {
    if let Some(level) = asked.required {
        let within = Asked {
            required: None,
            ..asked.clone()
        };
        let domains = domains(nodes, level + 1);
        return domains
            .values()
            .any(|nodes| possible(nodes, roles, &within));
    }
    let members: Vec<u64> = roles
        .iter()
        .flat_map(|(count, each)| vec![*each; *count as usize])
        .collect();
    let Some((size, level)) = asked.segment else {
        let free: Vec<u64> = nodes.iter().map(|node| node.free).collect();
        return fits(&free, &members);
    };
    // Of one role: a domain takes as many members as it takes, in whichever segments.
    let rooms: Vec<u64> = domains(nodes, level + 1)
        .values()
        .map(|nodes| nodes.iter().map(|node| node.free / members[0]).sum())
        .collect();
    let segments: Vec<u64> = members.chunks(size).map(|part| part.len() as u64).collect();
    fits(&rooms, &segments)
}

fn assert_kept(nodes: &[Small], asked: &Asked, found: &Placement) {
    let place = |member: &Placed| {
        let at: usize = member.node.as_str()[1..].parse().unwrap();
        nodes[at].place.clone()
    };
    let used = |levels: usize, members: &[Placed]| -> BTreeSet<Vec<u64>> {
        let cut = |place: Vec<u64>| place.into_iter().take(levels).collect();
        members.iter().map(|member| cut(place(member))).collect()
    };
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for member in &found.members {
        *sums.entry(member.node.as_str()).or_default() += member.shape.requests.extended(GPU);
    }
    for (node, sum) in sums {
        assert!(sum <= nodes[node[1..].parse::<usize>().unwrap()].free);
    }
    if let Some(level) = asked.required {
        assert_eq!(used(level + 1, &found.members).len(), 1);
        assert!(
            found
                .members
                .iter()
                .all(|member| place(member).len() > level)
        );
    }
    if let Some((size, level)) = asked.segment {
        for segment in found.members.chunks(size) {
            assert_eq!(used(level + 1, segment).len(), 1);
            assert!(segment.iter().all(|member| place(member).len() > level));
        }
    }
}

/// The fewest domains of a level, nodes in none counting as one for each place, that take so many.
fn fewest(nodes: &[Small], levels: usize, (count, each): (u64, u64)) -> usize {
    let mut rooms: BTreeMap<Vec<u64>, u64> = BTreeMap::new();
    for node in nodes {
        let domain = node.place.iter().copied().take(levels).collect();
        *rooms.entry(domain).or_default() += node.free / each;
    }
    let mut rooms: Vec<u64> = rooms.into_values().collect();
    rooms.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = count;
    rooms
        .into_iter()
        .take_while(|room| {
            let wanted = left > 0;
            left = left.saturating_sub(*room);
            wanted
        })
        .count()
}

#[test]
fn gangs_are_placed_as_they_ask_exactly_when_they_can_be() {
    let mut rng = Rng(11);
    let (mut placed, mut limits) = (0, 0);
    for _ in 0..CASES {
        let (nodes, roles, asked) = case(&mut rng);
        let text = written(&nodes, &roles, &asked);
        let (snapshot, gang) = read(&text);
        let answer = plan(&snapshot, &gang, &config(&text));
        let is_possible = possible(&nodes, &roles, &asked);
        match &answer {
            Ok(found) => {
                assert!(is_possible, "{text}\ncannot be and is placed");
                assert_kept(&nodes, &asked, found);
                placed += 1;
                if let (None, Some(0), [role]) = (asked.required, asked.preferred, &*roles) {
                    let cut = |member: &Placed| {
                        let at: usize = member.node.as_str()[1..].parse().unwrap();
                        nodes[at].place.first().copied()
                    };
                    let used: BTreeSet<_> = found.members.iter().map(cut).collect();
                    assert_eq!(used.len(), fewest(&nodes, 1, *role), "{text}");
                }
            }
            Err(Unplaceable::TooComplex { .. }) => limits += 1,
            Err(why) => assert!(!is_possible, "{text}\ncan be, and the answer is: {why}"),
        }
    }
    println!("{placed} of {CASES} placed, {limits} given up");
    assert!(placed > CASES / 4, "{placed}");
    assert_eq!(limits, 0);
}

const CASES: u32 = 50_000;
