//! Rules between members: what is planned keeps them, and passes kube-scheduler's check as members
//! come one after the other.

use std::collections::BTreeSet;

use muster_core::config::Config;
use muster_core::interpod::{InterPodKind, InterPodRule};
use muster_core::plan::{GangRequest, plan};
use muster_core::reason::Unplaceable;
use muster_core::snapshot::Snapshot;

use super::{GPU, Rng, check_plan, read};

#[test]
fn one_worker_per_host_goes_on_as_many_hosts() {
    check_plan(
        "node a gpu=8
         node b gpu=8 used=4
         node c gpu=8
         role worker 3x1 apart=host",
        "worker b a c",
    );
}

#[test]
fn master_and_workers_may_be_kept_apart_together() {
    check_plan(
        "node a gpu=8
         node b gpu=8
         node c gpu=8
         role master 1x1 app=job apart=host
         role worker 2x1 app=job apart=host",
        "master a; worker b c",
    );
}

#[test]
fn anti_affinity_of_one_role_keeps_the_other_away_too() {
    check_plan(
        "node a gpu=8
         node b gpu=8
         role master 1x1
         role worker 2x2 apart=host@master",
        "master b; worker a a",
    );
}

#[test]
fn more_workers_than_hosts_wait_and_say_so() {
    check_plan(
        "node a gpu=8
         node b gpu=8
         role worker 3x1 apart=host",
        "AntiAffinityNotMet: needs room for 3 worker kept apart by anti-affinity on \
         kubernetes.io/hostname; found room for 2, and when the cluster is empty for 2. Nodes 2: \
         with room 2",
    );
}

#[test]
fn hosts_that_are_full_for_now_are_not_never() {
    check_plan(
        "node a gpu=8
         node b gpu=8
         node c gpu=8 used=8
         role worker 3x1 apart=host",
        "AntiAffinityNotMet: needs room for 3 worker kept apart by anti-affinity on \
         kubernetes.io/hostname; found room for 2. Nodes 3: too few free 1, with room 2",
    );
}

#[test]
fn what_would_not_fit_without_the_rule_is_said_as_before() {
    check_plan(
        "node a gpu=8 used=7
         node b gpu=8 used=8
         role worker 2x1 apart=host",
        "NotEnoughFree: needs room for 2 worker with 1 nvidia.com/gpu each; found room for 1, 1 \
         free in all. Nodes 2: too few free 1, with room 1",
    );
}

#[test]
fn one_worker_per_zone() {
    check_plan(
        "node a gpu=8 label=zone:x
         node b gpu=8 label=zone:x used=2
         node c gpu=8 label=zone:y
         role worker 2x2 apart=zone",
        "worker b c",
    );
}

#[test]
fn spread_takes_turns_so_that_each_next_worker_is_accepted() {
    check_plan(
        "node a gpu=8 label=zone:x
         node b gpu=8 label=zone:x
         node c gpu=8 label=zone:y
         role worker 4x4 spread=zone:1",
        "worker a c a c",
    );
}

#[test]
fn spread_counts_zones_that_are_full_or_cordoned() {
    check_plan(
        "node a gpu=8 label=zone:x
         node c gpu=8 label=zone:y cordoned
         role worker 2x2 spread=zone:1",
        "SpreadNotMet: needs room for 2 worker spread over zone with maxSkew 1; found room for 1. \
         Nodes 2: cordoned 1, with room 1",
    );
}

#[test]
fn spread_counts_zones_that_taints_keep_away_and_not_those_that_are_not_selected() {
    check_plan(
        "node a gpu=8 label=zone:x
         node b gpu=8 label=zone:y taint=infra
         role worker 2x2 spread=zone:1",
        "SpreadNotMet: needs room for 2 worker spread over zone with maxSkew 1; found room for 1, \
         and when the cluster is empty for 1. Nodes 2: taint 1 (infra:NoSchedule), with room 1",
    );
    check_plan(
        "node a gpu=8 label=zone:x label=pool:p
         node b gpu=8 label=zone:y
         role worker 2x2 spread=zone:1 select=pool:p",
        "worker a a",
    );
}

#[test]
fn spread_leaves_nodes_without_the_label_alone() {
    check_plan(
        "node a gpu=8
         node b gpu=8 label=zone:x
         role worker 2x2 spread=zone:1",
        "worker b b",
    );
    check_plan(
        "node a gpu=8
         node b gpu=8 label=zone:x
         role worker 2x2 spread=zone@others:1",
        "worker b b",
    );
    check_plan(
        "node a gpu=8
         node b gpu=8 label=zone:x
         role master 1x1
         role worker 4x2 spread=zone:1",
        "master a; worker b b b b",
    );
}

#[test]
fn spread_asks_for_as_many_zones_as_min_domains_says() {
    check_plan(
        "node a gpu=8 label=zone:x
         role worker 2x2 spread=zone:1:2",
        "SpreadNotMet: needs room for 2 worker spread over zone with maxSkew 1; found room for 1, \
         and when the cluster is empty for 1. Nodes 1: with room 1",
    );
}

#[test]
fn workers_kept_together_share_the_fullest_zone_that_has_room() {
    check_plan(
        "node a gpu=8 label=zone:x
         node b gpu=8 label=zone:x
         node c gpu=8 label=zone:y used=4
         node d gpu=8 label=zone:y
         node e gpu=8
         role worker 3x4 together=zone",
        "worker d d c",
    );
}

#[test]
fn home_is_where_the_whole_gang_fits_not_only_its_workers() {
    check_plan(
        "node a gpu=8 label=zone:x used=4
         node b gpu=8 label=zone:y
         role master 1x2 app=job together=zone
         role worker 1x4 app=job together=zone",
        "master b; worker b",
    );
}

#[test]
fn no_zone_with_room_for_all_of_them() {
    check_plan(
        "node a gpu=8 label=zone:x used=2
         node b gpu=8 label=zone:y used=4
         role worker 4x2 together=zone",
        "AffinityNotMet: needs room for 4 worker kept together by affinity on zone; found room for \
         3. Nodes 2: with room 2",
    );
}

#[test]
fn roles_that_wait_for_each_other_by_affinity_are_not_placed_for_nobody_ever_comes_first() {
    check_plan(
        "node a gpu=8 label=zone:x
         role master 1x1 together=zone@worker
         role worker 2x1 together=zone@master",
        "AffinityNotMet: needs room for 1 master kept together by affinity on zone; found room for \
         0, and when the cluster is empty for 0. Nodes 1: with room 1",
    );
    // Those of one are taken once a member of the other stands.
    check_plan(
        "node a gpu=8 label=zone:x
         placed a app=worker
         role master 1x1 together=zone@worker
         role worker 2x1 together=zone@master",
        "master a; worker a a",
    );
}

#[test]
fn replacement_keeps_away_from_the_members_that_stand() {
    check_plan(
        "node a gpu=8 used=1
         node b gpu=8
         placed a app=worker apart=host
         role worker 1x1 apart=host",
        "worker b",
    );
}

#[test]
fn replacement_joins_the_zone_of_the_members_that_stand() {
    check_plan(
        "node a gpu=8 label=zone:x
         node b gpu=8 label=zone:y
         placed b app=worker together=zone
         role worker 1x1 together=zone",
        "worker b",
    );
    check_plan(
        "node a gpu=8 label=zone:x
         node b gpu=8 label=zone:y
         placed a app=worker
         role worker 1x1 spread=zone:1",
        "worker b",
    );
}

/// Members, each by its role and the position of its node.
type Places = Vec<(usize, usize)>;

/// A picture of where members are, that answers like kube-scheduler.
struct Cluster<'a> {
    snapshot: &'a Snapshot,
    gang: &'a GangRequest,
}

impl Cluster<'_> {
    fn domain(&self, rule: &InterPodRule, node: usize) -> Option<&str> {
        let labels = &self.snapshot.nodes()[node].node.labels;
        labels.get(&rule.topology).map(AsRef::as_ref)
    }

    fn rules(&self, role: usize) -> &BTreeSet<InterPodRule> {
        &self.gang.roles[role].shape.between_pods
    }

    /// Members in the domain that the rule speaks of.
    fn count(&self, rule: &InterPodRule, domain: &str, places: &Places) -> usize {
        places
            .iter()
            .filter(|(role, node)| {
                rule.matches(&self.gang.roles[*role].labels)
                    && self.domain(rule, *node) == Some(domain)
            })
            .count()
    }

    /// Members in the domain that has the fewest, by a spread of the role.
    fn fewest(&self, role: usize, rule: &InterPodRule, domains_min: u32, places: &Places) -> usize {
        let live: BTreeSet<&str> = (0..self.snapshot.nodes().len())
            .filter(|node| self.is_labelled(role, *node))
            .filter_map(|node| self.domain(rule, node))
            .collect();
        if live.len() < domains_min as usize {
            return 0;
        }
        let counts = live.iter().map(|domain| self.count(rule, domain, places));
        counts.min().unwrap_or(0)
    }

    fn is_labelled(&self, role: usize, node: usize) -> bool {
        self.rules(role)
            .iter()
            .filter(|rule| matches!(rule.kind, InterPodKind::Spread(_)))
            .all(|rule| self.domain(rule, node).is_some())
    }

    /// Whether `places`, of which the last has just come, would be accepted in full.
    fn accepts(&self, places: &Places) -> bool {
        let (last, before) = places.split_last().unwrap();
        let before = before.to_vec();
        let (role, node) = *last;
        let forbidden = before.iter().any(|(other, there)| {
            self.rules(*other).iter().any(|rule| {
                rule.kind == InterPodKind::AntiAffinity
                    && rule.matches(&self.gang.roles[role].labels)
                    && self.domain(rule, *there).is_some()
                    && self.domain(rule, *there) == self.domain(rule, node)
            })
        });
        !forbidden
            && self.rules(role).iter().all(|rule| {
                let itself = rule.matches(&self.gang.roles[role].labels);
                let domain = self.domain(rule, node);
                let here = domain.map(|domain| self.count(rule, domain, &before));
                match &rule.kind {
                    InterPodKind::AntiAffinity => here.unwrap_or(0) == 0,
                    InterPodKind::Affinity => {
                        let anywhere = before
                            .iter()
                            .any(|(role, _)| rule.matches(&self.gang.roles[*role].labels));
                        here.is_some_and(|here| here > 0 || !anywhere && itself)
                    }
                    InterPodKind::Spread(spread) => {
                        let fewest = self.fewest(role, rule, spread.domains_min, &before);
                        here.is_some_and(|here| {
                            here + usize::from(itself) <= fewest + spread.skew_max as usize
                        })
                    }
                }
            })
    }

    /// Whether the end that `places` are keeps every rule, however it came about.
    fn keeps(&self, places: &Places) -> bool {
        places.iter().enumerate().all(|(at, (role, node))| {
            self.rules(*role).iter().all(|rule| {
                let Some(domain) = self.domain(rule, *node) else {
                    return rule.kind == InterPodKind::AntiAffinity;
                };
                let others: Places = [&places[..at], &places[at + 1..]].concat();
                let here = self.count(rule, domain, &others);
                match &rule.kind {
                    InterPodKind::AntiAffinity => here == 0,
                    InterPodKind::Affinity => others
                        .iter()
                        .all(|(_, other)| self.domain(rule, *other) == Some(domain)),
                    InterPodKind::Spread(spread) => {
                        let fewest = self.fewest(*role, rule, spread.domains_min, places);
                        self.count(rule, domain, places) <= fewest + spread.skew_max as usize
                    }
                }
            })
        })
    }

    /// Whether the members that are left find places in which every rule is kept, by trying everything: each
    /// comes when kube-scheduler takes it, in whatever order that is. `seen` are the places that lead nowhere.
    fn fits(
        &self,
        free: &mut [u64],
        left: &mut [usize],
        places: &mut Places,
        seen: &mut BTreeSet<Places>,
    ) -> bool {
        if left.iter().all(|left| *left == 0) {
            return self.keeps(places);
        }
        let mut state = places.clone();
        state.sort_unstable();
        if !seen.insert(state) {
            return false;
        }
        for role in 0..left.len() {
            let each = self.gang.roles[role].shape.requests.extended(GPU);
            for node in 0..free.len() {
                if left[role] == 0 || free[node] < each {
                    continue;
                }
                free[node] -= each;
                left[role] -= 1;
                places.push((role, node));
                let found = self.accepts(places) && self.fits(free, left, places, seen);
                places.pop();
                left[role] += 1;
                free[node] += each;
                if found {
                    return true;
                }
            }
        }
        false
    }

    /// Whether there is an order in which kube-scheduler takes them, one after the other.
    fn has_order(&self, left: &Places, taken: &mut Places) -> bool {
        left.is_empty()
            || (0..left.len()).any(|next| {
                let mut rest = left.clone();
                taken.push(rest.swap_remove(next));
                let found = self.accepts(taken) && self.has_order(&rest, taken);
                taken.pop();
                found
            })
    }
}

const RULES: &[&str] = &[
    "apart=host",
    "apart=zone",
    "spread=zone:1",
    "spread=zone:2",
    "spread=zone:1:3",
    "spread=host:1",
    "together=zone",
    "apart=host spread=zone:1",
    "apart=host together=zone",
    "spread=host:1 together=zone",
];

/// Rules of which some have a domain for each node and others share theirs.
const MIXED: &[&str] = &[
    "spread=host:1 spread=zone:1",
    "spread=host:1 spread=host:3 spread=zone:2",
    "spread=host:2 apart=zone",
    "spread=host:1 spread=zone:1:3 spread=zone:2",
];

/// What became of random clusters.
#[derive(Debug, Default)]
struct Agreement {
    /// In which the planner says the same as trying everything.
    agreed: u64,
    /// In which there is a place, and it says that it has given up.
    gave_up: u64,
}

impl Agreement {
    /// Says what it was, and holds it to 999 of 1,000.
    fn check(&self, what: &str, rounds: u64) {
        let Self { agreed, gave_up } = self;
        println!(
            "{what}: {agreed} of {rounds} answers agree with trying everything, {gave_up} were given up"
        );
        assert_eq!(agreed + gave_up, rounds);
        assert!(agreed * 1000 >= rounds * 999, "{agreed} of {rounds}");
    }
}

fn agreement(seed: u64, rounds: u64, from: &[&str], master: bool) -> Agreement {
    let mut rng = Rng(seed);
    let mut found = Agreement::default();
    let mut placed = 0;
    for _ in 0..rounds {
        let mut free: Vec<u64> = (0..1 + rng.below(5)).map(|_| rng.below(5)).collect();
        let rules = from[rng.below(from.len() as u64) as usize];
        let mut text = String::new();
        for (at, free) in free.iter().enumerate() {
            let zone = [
                "",
                "label=zone:x",
                "label=zone:x",
                "label=zone:y",
                "label=zone:z",
            ];
            let zone = zone[rng.below(5) as usize];
            text += &format!("node n{at} gpu=8 used={} {zone}\n", 8 - free);
        }
        let (count, each) = (1 + rng.below(5), 1 + rng.below(2));
        text += &format!("role worker {count}x{each} app=job {rules}\n");
        if master {
            text += &format!("role master 1x1 app=job {rules}\n");
        }
        let (snapshot, gang) = read(&text);
        let cluster = Cluster {
            snapshot: &snapshot,
            gang: &gang,
        };
        let mut left: Vec<usize> = gang.roles.iter().map(|role| role.indices.len()).collect();
        let possible = cluster.fits(&mut free, &mut left, &mut Vec::new(), &mut BTreeSet::new());
        let answer = plan(&snapshot, &gang, &Config::default());
        match &answer {
            Ok(placement) => {
                placed += 1;
                let mut places = Vec::new();
                for member in &placement.members {
                    let role = usize::from(member.role.as_str() == "master");
                    let node = member.node.as_str()[1..].parse().unwrap();
                    places.push((role, node));
                    let index_is_order = !master;
                    assert!(
                        !index_is_order || cluster.accepts(&places),
                        "{text}kube-scheduler refuses the last of {places:?}"
                    );
                }
                assert!(cluster.keeps(&places), "{text}{places:?} breaks a rule");
                assert!(
                    cluster.has_order(&places, &mut Vec::new()),
                    "{text}{places:?} is taken in no order"
                );
                assert!(possible, "{text}cannot fit and is placed");
            }
            Err(Unplaceable::TooComplex { .. }) => found.gave_up += u64::from(possible),
            // Whoever says that there is no place is right.
            Err(why) => assert!(!possible, "{text}fits, and the answer is: {why}"),
        }
        found.agreed += u64::from(answer.is_ok() == possible);
    }
    assert!(placed > rounds / 4, "only {placed} of {rounds} were placed");
    found
}

#[test]
fn ruled_role_is_placed_exactly_when_it_can_be_and_accepted_in_order() {
    let found = agreement(11, 4000, RULES, false);
    found.check("one ruled role", 4000);
    assert_eq!(found.agreed, 4000);
}

#[test]
fn ruled_master_and_workers_that_fit_are_never_told_that_they_do_not() {
    agreement(12, 4000, RULES, true).check("ruled roles", 4000);
}

#[test]
fn several_spreads_at_once_that_can_be_kept_are_never_said_to_be_impossible() {
    agreement(13, 4000, MIXED, false).check("mixed spreads", 4000);
}
