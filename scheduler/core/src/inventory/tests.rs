use super::*;

fn report(node: &str, instance: u64, generation: u64, uuids: &[&str]) -> NodeReport {
    NodeReport {
        node: node.into(),
        order: ReportOrder {
            boot: "boot".into(),
            instance,
            generation,
        },
        sampler_ok: true,
        holders_known: true,
        fabric_clique: None,
        links: None,
        devices: uuids
            .iter()
            .map(|uuid| Device {
                uuid: (*uuid).into(),
                resource: "nvidia.com/gpu".into(),
                health: DeviceHealth::Healthy,
                leaked: false,
                holders: Vec::new(),
                model: None,
                index: 0,
                numa: None,
                parent: None,
                memory_bytes: None,
            })
            .collect(),
    }
}

#[test]
fn walked_side_by_side_nodes_are_as_fresh_as_looked_up_one_by_one() {
    let mut inventory = Inventory::default();
    for (at, name) in ["a", "b", "d", "e"].into_iter().enumerate() {
        let heard = Timestamp(at as u64 * 10_000);
        inventory.apply(report(name, 1, 1, &[]), heard).unwrap();
    }
    for (name, boot) in [
        ("b", "boot"),
        ("c", "boot"),
        ("d", "another"),
        ("f", "boot"),
    ] {
        inventory.nodes.insert(
            name.into(),
            NodeIdentity {
                uid: "".into(),
                boot_id: Some(boot.into()),
            },
        );
    }
    for now in [30_000, 35_000, 55_000, 90_000].map(Timestamp) {
        let limit = Millis::from_secs(30);
        let walked: Vec<(&NodeName, bool)> = inventory.each_fresh(now, limit).collect();
        let looked_up: Vec<(&NodeName, bool)> = inventory
            .beliefs
            .keys()
            .map(|name| (name, inventory.is_fresh(name, now, limit)))
            .collect();
        assert_eq!(walked, looked_up);
        assert_eq!(walked.len(), 4);
    }
    let at_first = inventory.each_fresh(Timestamp(30_000), Millis::from_secs(30));
    let trusted: Vec<&str> = at_first
        .filter(|(_, is)| *is)
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(trusted, ["a", "b", "e"], "d has booted again");
}

#[test]
fn s14_replayed_report_is_refused_and_does_not_refresh() {
    let mut inventory = Inventory::default();
    assert_eq!(
        inventory.apply(report("a", 1, 2, &["x"]), Timestamp(0)),
        Ok(true)
    );
    assert_eq!(
        inventory.apply(report("a", 1, 1, &["x", "y"]), Timestamp(40_000)),
        Err(ReportRefused::Old)
    );
    assert!(!inventory.is_fresh(&"a".into(), Timestamp(40_000), Millis::from_secs(30)));
}

#[test]
fn older_instance_is_refused_newer_restarts_generations() {
    let mut inventory = Inventory::default();
    assert_eq!(
        inventory.apply(report("a", 5, 9, &["x"]), Timestamp(0)),
        Ok(true)
    );
    assert_eq!(
        inventory.apply(report("a", 4, 99, &[]), Timestamp(1)),
        Err(ReportRefused::Replaced)
    );
    assert_eq!(
        inventory.apply(report("a", 6, 1, &[]), Timestamp(2)),
        Ok(true)
    );
}

#[test]
fn instance_from_the_future_does_not_keep_the_node_out_once_it_is_silent() {
    let mut inventory = Inventory::default();
    assert_eq!(
        inventory.apply(report("a", u64::MAX, 9, &["x"]), Timestamp(0)),
        Ok(true)
    );
    assert_eq!(
        inventory.apply(report("a", 5, 1, &["x"]), Timestamp(30_000)),
        Err(ReportRefused::Replaced)
    );
    assert_eq!(
        inventory.apply(report("a", 5, 1, &["x"]), Timestamp(30_001)),
        Ok(true)
    );
    // And the silent one is newer again when it comes back: its silence was not its end.
    assert_eq!(
        inventory.apply(report("a", u64::MAX, 10, &["x"]), Timestamp(30_002)),
        Ok(true)
    );
}

#[test]
fn cloned_uuid_is_known_until_one_node_lets_go() {
    let mut inventory = Inventory::default();
    assert_eq!(
        inventory.apply(report("a", 1, 1, &["x"]), Timestamp(0)),
        Ok(true)
    );
    assert_eq!(
        inventory.apply(report("b", 1, 1, &["x"]), Timestamp(0)),
        Ok(true)
    );
    assert!(inventory.is_cloned(&"x".into()));
    inventory.remove(&"b".into());
    assert!(!inventory.is_cloned(&"x".into()));
    inventory.remove(&"a".into());
    assert!(!inventory.is_cloned(&"x".into()));
}

fn node(uid: &str, boot_id: Option<&str>) -> Node {
    Node {
        name: "a".into(),
        uid: Arc::from(uid),
        boot_id: boot_id.map(Arc::from),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        unschedulable: false,
        ready: true,
        terminating: false,
        allocatable: crate::resources::Resources::default(),
    }
}

#[test]
fn belief_of_a_node_is_not_inherited_by_the_next_one_of_its_name() {
    let mut inventory = Inventory::default();
    let (now, limit) = (Timestamp(1), Millis::from_secs(30));
    let is_fresh = |inventory: &Inventory| inventory.is_fresh(&"a".into(), now, limit);
    // Heard before its Node is seen, and again after.
    inventory.apply(report("a", 1, 1, &["x"]), now).unwrap();
    inventory.set_node(&node("first", None));
    assert!(is_fresh(&inventory));
    inventory.set_node(&node("first", Some("boot")));
    assert!(is_fresh(&inventory));
    inventory.set_node(&node("second", None));
    assert!(!is_fresh(&inventory), "made again under its name");
    inventory.apply(report("a", 1, 2, &["x"]), now).unwrap();
    assert!(is_fresh(&inventory), "a report that comes afterwards");
    // The same with a time in which there is no Node, and an agent that only shows that it lives.
    inventory.remove_node(&"a".into());
    let (order, later) = (report("a", 1, 2, &[]).order, report("a", 1, 3, &[]).order);
    assert!(inventory.hear(&"a".into(), &order, true, now));
    inventory.apply(report("a", 1, 3, &["x"]), now).unwrap();
    inventory.set_node(&node("third", None));
    assert!(!is_fresh(&inventory));
    assert!(inventory.hear(&"a".into(), &later, true, now));
    assert!(is_fresh(&inventory));
}

#[test]
fn report_of_another_boot_than_the_nodes_does_not_count() {
    let mut inventory = Inventory::default();
    let (now, limit) = (Timestamp(1), Millis::from_secs(30));
    let is_fresh = |inventory: &Inventory| inventory.is_fresh(&"a".into(), now, limit);
    inventory.set_node(&node("uid", Some("boot")));
    inventory.apply(report("a", 1, 1, &["x"]), now).unwrap();
    assert!(is_fresh(&inventory));
    inventory.set_node(&node("uid", Some("next boot")));
    assert!(!is_fresh(&inventory));
    let mut next = report("a", 2, 1, &["x"]);
    assert_eq!(inventory.apply(next.clone(), now), Ok(true));
    assert!(!is_fresh(&inventory), "still of the boot before");
    next.order.boot = Arc::from("next boot");
    next.order.instance = 3;
    inventory.apply(next, now).unwrap();
    assert!(is_fresh(&inventory));
}

#[test]
fn uuid_of_three_nodes_is_cloned_for_as_long_as_two_of_them_report_it() {
    let mut inventory = Inventory::default();
    for node in ["a", "b", "c"] {
        inventory
            .apply(report(node, 1, 1, &["x"]), Timestamp(0))
            .unwrap();
    }
    // One that says it again is still one of them.
    for node in ["a", "b", "c"] {
        inventory
            .apply(report(node, 1, 2, &["x"]), Timestamp(1))
            .unwrap();
        let mut sharing = inventory.sharing(&"a".into());
        sharing.sort();
        assert_eq!(sharing, ["a", "b", "c"].map(NodeName::from), "{node}");
    }
    inventory.remove(&"b".into());
    assert!(inventory.is_cloned(&"x".into()), "a and c report it");
    inventory
        .apply(report("c", 1, 3, &[]), Timestamp(2))
        .unwrap();
    assert!(!inventory.is_cloned(&"x".into()), "only a reports it");
}

/// A report of device x, as in use or not, by an agent whose kubelet answers or does not.
fn used(instance: u64, known: bool, leaked: bool, holder: Option<&str>) -> NodeReport {
    let mut report = report("a", instance, 1, &["x", "y"]);
    report.holders_known = known;
    report.devices[0].leaked = leaked;
    report.devices[0].holders = holder
        .map(|pod| ("team".into(), Arc::from(pod)))
        .into_iter()
        .collect();
    report
}

fn use_of(inventory: &Inventory) -> (bool, Vec<&str>) {
    let belief = inventory.get(&"a".into()).unwrap();
    let device = &belief.report.devices[0];
    assert!(!belief.report.devices[1].leaked && belief.report.devices[1].holders.is_empty());
    let pods = device.holders.iter().map(|(_, pod)| &**pod).collect();
    (device.leaked, pods)
}

#[test]
fn devices_stay_held_and_leaked_while_the_kubelet_does_not_answer() {
    let mut inventory = Inventory::default();
    inventory
        .apply(used(1, true, false, Some("notebook")), Timestamp(0))
        .unwrap();
    // The agent has been started anew while the kubelet is away: it knows nothing.
    for instance in 2..4 {
        inventory
            .apply(used(instance, false, false, None), Timestamp(1))
            .unwrap();
        assert_eq!(use_of(&inventory), (false, vec!["notebook"]));
    }
    // The same state again changes nothing.
    let again = used(3, false, false, None);
    assert_eq!(inventory.apply(again, Timestamp(2)), Ok(false));
    inventory
        .apply(used(4, true, true, None), Timestamp(3))
        .unwrap();
    assert_eq!(use_of(&inventory), (true, vec![]));
    // The driver is away as well, and so are the devices for a while.
    let mut empty = used(5, false, false, None);
    empty.devices.clear();
    inventory.apply(empty, Timestamp(4)).unwrap();
    inventory
        .apply(used(6, false, false, None), Timestamp(5))
        .unwrap();
    assert_eq!(use_of(&inventory), (true, vec![]));
    inventory
        .apply(used(7, true, false, None), Timestamp(6))
        .unwrap();
    assert_eq!(use_of(&inventory), (false, vec![]));
}

#[test]
fn heartbeat_of_another_generation_does_not_refresh() {
    let mut inventory = Inventory::default();
    assert_eq!(
        inventory.apply(report("a", 1, 1, &[]), Timestamp(0)),
        Ok(true)
    );
    let order = ReportOrder {
        boot: "boot".into(),
        instance: 1,
        generation: 2,
    };
    assert!(!inventory.hear(&"a".into(), &order, true, Timestamp(50_000)));
    assert!(!inventory.is_fresh(&"a".into(), Timestamp(50_000), Millis::from_secs(30)));
}
