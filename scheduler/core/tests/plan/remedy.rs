//! What would make a gang fit is said in its reason, and it is true: done, it fits.

use muster_core::config::Config;
use muster_core::plan::plan;
use muster_core::reason::Unplaceable;

use super::{Rng, config, read};

/// What is said at the end, and whether there is a place once these lines are there instead.
#[track_caller]
fn check(text: &str, remedy: &str, done: &str) {
    let answer = |text: &str| {
        let (snapshot, gang) = read(text);
        plan(&snapshot, &gang, &config(text))
    };
    let said = answer(text).unwrap_err().to_string();
    assert!(said.ends_with(&format!(". {remedy}")), "{said}");
    if let Err(why) = answer(done) {
        panic!("{remedy}: {why}");
    }
}

fn more(count: u32) -> String {
    match count {
        1 => "1 more node with".to_owned(),
        _ => format!("{count} more nodes with"),
    }
}

#[test]
fn nodes_that_are_said_to_be_missing_are_enough() {
    let mut rng = Rng(5);
    let (mut for_now, mut never) = (0, 0);
    for _ in 0..4000 {
        let mut text = String::new();
        for at in 0..1 + rng.below(6) {
            text += &format!("node n{at} gpu=8 used={}\n", rng.below(9));
        }
        let (count, each) = (1 + rng.below(8), 1 + rng.below(9));
        let role = |count: u64, each: u64| format!("role worker {count}x{each}\n");
        let answer = |text: &str| {
            let (snapshot, gang) = read(text);
            plan(&snapshot, &gang, &Config::default())
        };
        let Err(why) = answer(&format!("{text}{}", role(count, each))) else {
            continue;
        };
        let said = why.to_string();
        let with = |count: u32| {
            let nodes = (0..count).map(|at| format!("node z{at} gpu={each}\n"));
            answer(&format!(
                "{text}{}{}",
                nodes.collect::<String>(),
                role(u64::from(count_of(&why)), each)
            ))
        };
        match &why {
            Unplaceable::NotEnoughFree { needed, placed, .. } => {
                for_now += 1;
                let missing = needed - placed;
                assert!(said.contains(&more(missing)), "{said}");
                assert!(with(missing).is_ok(), "{text}{said}");
            }
            Unplaceable::NeverFits {
                needed,
                possible,
                largest,
                ..
            } => {
                never += 1;
                if each > *largest {
                    assert!(
                        said.ends_with("With at most 8 nvidia.com/gpu each, members find a node"),
                        "{said}"
                    );
                    continue;
                }
                assert!(said.contains(&more(needed - possible)), "{said}");
                // Not now perhaps, but when what runs has ended.
                let why = with(needed - possible).err();
                assert!(
                    !matches!(why, Some(Unplaceable::NeverFits { .. })),
                    "{text}{said}"
                );
                let part = answer(&format!("{text}{}", role(u64::from(*possible), each))).err();
                assert!(
                    !matches!(part, Some(Unplaceable::NeverFits { .. })),
                    "{text}{said}"
                );
            }
            _ => panic!("{text}{said}"),
        }
    }
    assert!(for_now > 500 && never > 500, "{for_now} and {never}");
}

fn count_of(why: &Unplaceable) -> u32 {
    match why {
        Unplaceable::NotEnoughFree { needed, .. } | Unplaceable::NeverFits { needed, .. } => {
            *needed
        }
        _ => 0,
    }
}

#[test]
fn selector_that_keeps_it_from_most_nodes_is_named() {
    let nodes =
        "node a gpu=8 label=zone:x\nnode b gpu=8 label=zone:x\nnode c gpu=8 label=disk:fast\n";
    check(
        &format!("{nodes}role worker 2x8 select=disk:fast select=zone:x"),
        "2 nodes could be used without the selector disk=fast",
        &format!("{nodes}role worker 2x8 select=zone:x"),
    );
    check(
        &format!("{nodes}role worker 1x8 select=zone:y select=disk:slow"),
        "No node has the label disk=slow and what else is selected",
        &format!(
            "{nodes}node d gpu=8 label=zone:y label=disk:slow\nrole worker 1x8 select=zone:y select=disk:slow"
        ),
    );
}

/// GPUs were named, of which there are enough, because they were in use.
#[test]
fn never_for_want_of_cores_says_so_also_while_gpus_are_in_use() {
    let never = |used: u32| {
        format!(
            "node a gpu=8 cpu=96 used={used}\nnode b gpu=8 cpu=96 used={used}\nrole worker 1x8 cpu=97"
        )
    };
    for used in [0, 8] {
        // Nodes without GPUs, of which there are more, hide nothing, however many cores they have.
        for others in ["", "node c cpu=200\nnode d cpu=96\nnode e cpu=96\n"] {
            check(
                &format!("{others}{}", never(used)),
                "With at most 96000 milli-CPU each, members find a node",
                "node a gpu=8 cpu=96\nrole worker 1x8 cpu=96",
            );
        }
    }
}

#[test]
fn toleration_that_lets_it_onto_most_nodes_is_named() {
    check(
        "node a gpu=8 taint=zoo\nrole worker 1x8",
        "A toleration of zoo:NoSchedule would help most",
        "node a gpu=8 taint=zoo\nrole worker 1x8 tolerate=zoo",
    );
}

#[test]
fn gpus_that_can_be_mended_are_counted() {
    check(
        "node a gpu=8 sick=1\nnode b gpu=8 sick=2\nnode c gpu=8 used=8\nrole worker 2x8",
        "2 more nodes with 8 free nvidia.com/gpu would do, or 2 of 2 with an unhealthy GPU when it is well",
        "node a gpu=8\nnode b gpu=8\nnode c gpu=8 used=8\nrole worker 2x8",
    );
}

#[test]
fn domains_that_would_do_are_described() {
    let rule = |rule: &str| format!("role worker 3x1 {rule}");
    check(
        &format!("node a gpu=8\nnode b gpu=8\n{}", rule("apart=host")),
        "1 more node with room for one would do",
        &format!(
            "node a gpu=8\nnode b gpu=8\nnode c gpu=1\n{}",
            rule("apart=host")
        ),
    );
    let zone = "node a gpu=8 label=zone:x\nnode b gpu=8 label=zone:x\n";
    check(
        &format!("{zone}{}", rule("apart=zone")),
        "2 more with room for one and other values of zone would do",
        &format!(
            "{zone}node c gpu=1 label=zone:y\nnode d gpu=1 label=zone:z\n{}",
            rule("apart=zone")
        ),
    );
    let zone = "node a gpu=8 label=zone:x used=6\nnode b gpu=8 label=zone:y used=7\n";
    check(
        &format!("{zone}{}", rule("together=zone")),
        "One value of zone with room for all of the gang would do",
        &format!("{zone}node c gpu=8 label=zone:z\n{}", rule("together=zone")),
    );
    let zone = "node a gpu=8 label=zone:x\nnode b gpu=8 label=zone:y used=8\n";
    check(
        &format!("{zone}{}", rule("spread=zone:1")),
        "Room for 2 more where zone has the fewest would do, or a maxSkew above 1",
        "node a gpu=8 label=zone:x\nnode b gpu=8 label=zone:y used=6\nrole worker 3x1 spread=zone:1",
    );
    let racks =
        "levels rack\nnode a gpu=8 label=rack:x\nnode b gpu=8 label=rack:y\nrole worker 2x8\n";
    check(
        &format!("{racks}topology required=rack"),
        "One rack with room for all of it would do, or one that is preferred and not required",
        &format!("{racks}topology preferred=rack"),
    );
    check(
        &format!("{racks}topology segment=2:rack"),
        "More of one rack with room for 2 would do, or no segments",
        racks,
    );
}
