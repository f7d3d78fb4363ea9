//! Gangs on several nodes that ask nothing of the network are kept together where its levels are known.

use std::collections::{BTreeMap, BTreeSet};

use muster_core::config::Config;
use muster_core::ids::NodeName;
use muster_core::plan::{Placed, plan};
use muster_core::resources::Resources;
use muster_core::snapshot::Snapshot;

use super::{Rng, check_plan, config, read};

/// Two blocks of two racks of two nodes, by turns as their names go, with so many of 8 GPUs used on each.
fn cluster(used: [u32; 8], rest: &str) -> String {
    let mut text = String::from("levels block rack\nkeep rack\n");
    for (at, used) in used.into_iter().enumerate() {
        let (block, rack) = (at % 2, at / 2 % 2);
        text += &format!("node n{at} gpu=8 used={used} label=block:b{block} label=rack:r{rack}\n");
    }
    text + rest
}

#[track_caller]
fn check(used: [u32; 8], rest: &str, expected: &str) {
    check_plan(&cluster(used, rest), expected);
}

#[test]
fn gang_that_asks_nothing_goes_to_one_rack() {
    check([0; 8], "role worker 2x8", "worker n0 n4");
    let apart = cluster([0; 8], "role worker 2x8").replace("keep rack\n", "");
    check_plan(&apart, "worker n0 n1");
}

#[test]
fn gang_that_asks_nothing_goes_to_the_fullest_rack_that_takes_it_and_leaves_the_other_block_whole()
{
    // Of rack b0/r1 (n2, n6) and b1/r0 (n1, n5) and b1/r1 (n3, n7) the block b0 has a node in use.
    check(
        [8, 0, 0, 0, 0, 0, 0, 0],
        "role worker 3x8",
        "worker n4 n2 n6",
    );
}

#[test]
fn where_no_rack_takes_it_the_fewest_racks_do_and_where_nothing_does_it_goes_anywhere() {
    check(
        [8, 8, 0, 0, 0, 0, 8, 8],
        "role worker 4x8",
        "worker n4 n2 n5 n3",
    );
}

#[test]
fn gang_that_one_node_takes_stays_where_it_fits_best() {
    check([0, 0, 0, 4, 0, 0, 0, 0], "role worker 2x2", "worker n3 n3");
}

#[test]
fn gang_is_not_spread_over_more_nodes_for_being_together() {
    // Rack b0/r0 (n0, n4) is the fullest with room for 12 by fours, on two nodes; n1 and n5 do it on two as well.
    check(
        [4, 0, 8, 8, 4, 0, 8, 8],
        "role worker 3x4",
        "worker n1 n1 n5",
    );
}

#[test]
fn master_without_devices_stays_off_the_rack() {
    check(
        [0; 8],
        "node z\nrole master 1x0 tolerate=gpu\nrole worker 2x8",
        "master z; worker n0 n4",
    );
}

#[test]
fn members_that_keep_apart_are_kept_together_all_the_same() {
    check([0; 8], "role worker 2x1 apart=host", "worker n0 n4");
}

/// What the members of a node ask for is there.
fn has_room(snapshot: &Snapshot, members: &[Placed], text: &str) {
    let mut asked: BTreeMap<&NodeName, Resources> = BTreeMap::new();
    for member in members {
        asked
            .entry(&member.node)
            .or_default()
            .add(&member.shape.requests);
    }
    for (node, asked) in asked {
        let free = &snapshot.get(node).unwrap().free;
        assert!(
            free.shortage(&asked).is_none(),
            "{node}: {asked:?} of {free:?}\n{text}"
        );
    }
}

/// Two roles without devices, of which only one can be beside the rack, do not both count on the same room.
#[test]
fn room_of_a_role_that_stays_is_not_given_to_one_that_moves() {
    check_plan(
        "levels block rack
         keep rack
         node g1 gpu=8 label=block:b label=rack:r
         node g2 gpu=8 label=block:b label=rack:r
         node c1 cpu=4 label=block:b label=rack:r
         role launcher 1x0 cpu=2 tolerate=gpu
         role ps 1x0 cpu=4
         role worker 2x8",
        "launcher g1; ps c1; worker g1 g2",
    );
}

#[test]
fn member_that_joins_others_comes_to_their_rack() {
    check(
        [0, 0, 0, 8, 0, 0, 0, 0],
        "role worker 1x8\nplaced n3\n",
        "worker n7",
    );
}

/// Being kept together decides where, never whether; the answer is in as few racks as can be, or fewer than without.
#[test]
fn keeping_together_takes_no_gang_its_place() {
    let (mut fits, mut closer) = (0, 0);
    for seed in 0..3_000 {
        let mut rng = Rng(seed);
        let mut used = [0; 8];
        for used in &mut used {
            *used = rng.below(9) as u32;
        }
        let mut rest = String::new();
        for role in 0..=rng.below(2) {
            let (count, gpus) = (1 + rng.below(4), 1 << rng.below(4));
            let apart = if rng.below(6) == 0 { " apart=host" } else { "" };
            rest += &format!("role r{role} {count}x{gpus}{apart}\n");
        }
        for role in 0..rng.below(3) {
            let (count, cpu) = (1 + rng.below(2), 1 + rng.below(40));
            let tolerate = if rng.below(2) == 0 {
                " tolerate=gpu"
            } else {
                ""
            };
            rest += &format!("role m{role} {count}x0 cpu={cpu}{tolerate}\n");
        }
        if rng.below(2) == 0 {
            rest += "node z cpu=40\n";
        }
        let text = cluster(used, &rest);
        let (snapshot, gang) = read(&text);
        let with = config(&text);
        let without = Config {
            together: None,
            ..with.clone()
        };
        let apart = plan(&snapshot, &gang, &without);
        let together = plan(&snapshot, &gang, &with);
        let (Ok(apart), Ok(together)) = (&apart, &together) else {
            assert_eq!(apart, together, "{text}");
            continue;
        };
        fits += 1;
        let count = |members: &[Placed], racks: bool| {
            // Only nodes of devices are counted; nobody has to move closer for a role without any.
            let members = members.iter();
            let members = members.filter(|placed| racks || placed.shape.devices(&with) > 0);
            let places = members.map(|placed| {
                let capacity = snapshot.get(&placed.node).unwrap();
                match racks {
                    true => format!("{:?}", capacity.path),
                    false => placed.node.to_string(),
                }
            });
            places.collect::<BTreeSet<_>>().len()
        };
        assert_eq!(apart.members.len(), together.members.len(), "{text}");
        has_room(&snapshot, &together.members, &text);
        assert!(
            count(&together.members, false) <= count(&apart.members, false),
            "{text}"
        );
        let racks = (count(&together.members, true), count(&apart.members, true));
        assert!(racks.0 <= racks.1, "{racks:?}\n{text}");
        closer += u32::from(racks.0 < racks.1);
    }
    assert!(fits > 500 && closer > 50, "{fits} {closer}");
}
