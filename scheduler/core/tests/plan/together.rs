//! Gangs on several nodes that ask nothing of the network are kept together where its levels are known.

use std::collections::BTreeSet;

use muster_core::config::Config;
use muster_core::plan::plan;

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
        let count = |members: &[muster_core::plan::Placed], racks: bool| {
            let places = members.iter().map(|placed| {
                let capacity = snapshot.get(&placed.node).unwrap();
                match racks {
                    true => format!("{:?}", capacity.path),
                    false => placed.node.to_string(),
                }
            });
            places.collect::<BTreeSet<_>>().len()
        };
        assert_eq!(apart.members.len(), together.members.len(), "{text}");
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
