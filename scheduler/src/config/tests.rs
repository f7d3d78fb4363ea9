//! The file, its keys and its limits.

use super::*;

fn refusal(text: &str) -> String {
    Config::parse(text)
        .map(|_| String::new())
        .unwrap_or_else(|error| error.to_string())
}

#[test]
fn defaults_are_within_their_own_limits() {
    assert!(Config::default().check().is_ok());
    assert_eq!(Config::parse("# nothing\n\n").ok(), Some(Config::default()));
}

/// The keys of a part of the file, as the parser lists them when it meets one that is none.
fn keys_of(part: &str) -> Vec<String> {
    let json = match part {
        "" => r#"{"no-such-key": 1}"#.to_owned(),
        part => format!(r#"{{"{part}": {{"no-such-key": 1}}}}"#),
    };
    let said = serde_json::from_str::<Config>(&json).unwrap_err();
    let said = said.to_string();
    let listed = said.split_once("expected").unwrap().1;
    let keys: Vec<String> = listed
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    assert!(!keys.is_empty(), "{said}");
    keys
}

#[test]
fn documented_file_holds_every_key_once_with_its_default() {
    assert_eq!(Config::parse(DOCUMENTED).unwrap(), Config::default());
    let mut part = String::new();
    let mut found = Vec::new();
    let mut explained = false;
    for line in DOCUMENTED.lines() {
        let text = line.trim_start();
        if text.is_empty() || text.starts_with('#') {
            explained = text.starts_with('#');
            continue;
        }
        let Some((key, value)) = text.split_once(':').filter(|_| !text.starts_with('-')) else {
            continue;
        };
        assert!(explained, "{line} has no comment above it");
        explained = false;
        if line.starts_with(' ') {
            found.push(format!("{part}.{key}"));
        } else {
            found.push(key.to_owned());
            part = if value.is_empty() {
                key.to_owned()
            } else {
                String::new()
            };
        }
    }
    let mut wanted = Vec::new();
    for key in keys_of("") {
        let is_part = found
            .iter()
            .any(|name| name.starts_with(&format!("{key}.")));
        if is_part {
            wanted.extend(keys_of(&key).iter().map(|name| format!("{key}.{name}")));
        }
        wanted.push(key);
    }
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

#[test]
fn unknown_key_is_named_with_its_path() {
    let said = refusal("inventory:\n  nodesWithoutAgents: refuse\n");
    assert!(
        said.contains("inventory") && said.contains("nodesWithoutAgents"),
        "{said}"
    );
    let said = refusal("colour: red\n");
    assert!(said.contains("colour"), "{said}");
}

#[test]
fn levels_of_the_network_are_told_apart_by_name_and_label() {
    let config =
        "topology: {levels: [{name: block, label: a/b}, {name: nvlink, source: fabricClique}]}";
    let levels = Config::parse(config).unwrap().core().topology;
    let sources: Vec<_> = levels
        .iter()
        .map(|l| (&*l.name, l.source.clone()))
        .collect();
    let label = muster_core::topology::Source::Label("a/b".into());
    let clique = muster_core::topology::Source::FabricClique;
    assert_eq!(sources, [("block", label), ("nvlink", clique)]);
    for both in ["", ", label: a, source: fabricClique"] {
        let said = refusal(&format!("topology: {{levels: [{{name: x{both}}}]}}"));
        assert_eq!(
            said,
            "topology.levels[] is \"x\": a level has either a label or a source"
        );
    }
    let said = refusal("topology: {levels: [{name: x, label: a}, {name: y, label: x}]}");
    assert_eq!(
        said,
        "topology.levels[].label is \"x\": each level has a name and a label of its own"
    );
    let said = refusal("topology: {levels: [{name: '', label: a}]}");
    assert!(said.starts_with("topology.levels[].name is \"\""), "{said}");
    let said = refusal("topology: {levels: [{name: x, source: rack}]}");
    assert!(
        said.contains("topology.levels[0]") && said.contains("fabricClique"),
        "{said}"
    );
}

#[test]
fn gangs_are_kept_together_by_the_narrowest_level_or_another_or_none() {
    let levels = "levels: [{name: block, label: a/b}, {name: rack, label: a/r}]";
    let together = |rest: &str| {
        let text = format!("topology: {{{levels}{rest}}}");
        Config::parse(&text).unwrap().core().together
    };
    assert_eq!(together(""), Some(1));
    assert_eq!(together(", keepTogether: block"), Some(0));
    assert_eq!(together(", keepTogether: none"), None);
    assert_eq!(Config::default().core().together, None);
    let said = refusal(&format!("topology: {{{levels}, keepTogether: row}}"));
    assert_eq!(
        said,
        "topology.keepTogether is \"row\": narrowest, none, or a level: block, rack"
    );
    let said = refusal("topology: {levels: [{name: none, label: a}]}");
    assert!(
        said.starts_with("topology.levels[].name is \"none\""),
        "{said}"
    );
}

#[test]
fn values_arrive_and_wrong_ones_name_the_key() {
    let config = Config::parse(
        "inventory: {nodesWithoutAgent: useAllocatable, reportAgeMax: 45s}\nlease: {duration: 3s, renewDeadline: 2s, retryPeriod: 500ms}\n",
    );
    let config = config.unwrap();
    assert_eq!(
        config.core().nodes_without_agent,
        core::NodesWithoutAgent::UseAllocatable
    );
    assert_eq!(config.core().report_age_max.0, 45_000);
    let said = refusal("inventory: {nodesWithoutAgent: sometimes}\n");
    assert!(
        said.contains("inventory.nodesWithoutAgent") && said.contains("sometimes"),
        "{said}"
    );
    let said = refusal("gang: {gatherMax: 200s}\n");
    assert_eq!(
        said,
        "gang.gatherMax is 200s: must be 1s to 150s, half of extender.bindTimeout"
    );
    for wrong in ["muster-agent", "system:serviceaccount::a", "system:node:n1"] {
        let said = refusal(&format!("agents: {{serviceAccount: '{wrong}'}}\n"));
        assert!(said.contains("agents.serviceAccount is"), "{said}");
    }
    let said = refusal("lease: {renewDeadline: 15s}\n");
    assert!(said.contains("lease.renewDeadline is 15s"), "{said}");
    let said = refusal("writes: {deadline: 30}\n");
    assert!(said.contains("writes.deadline"), "{said}");
}

#[test]
fn f05_the_key_that_was_set_is_blamed_where_two_do_not_go_together() {
    for (text, wanted) in [
        (
            "extender: {bindTimeout: 100s}",
            "extender.bindTimeout is 100s: must be at least 300s, or gang.gatherMax, which is 150s, be made shorter",
        ),
        (
            "{extender: {bindTimeout: 100s}, gang: {gatherMax: 60s}}",
            "gang.gatherMax is 60s: must be 1s to 50s, half of extender.bindTimeout",
        ),
        (
            "{extender: {bindTimeout: 60s}, gang: {gatherMax: 30s}, writes: {deadline: 40s}}",
            "writes.deadline is 40s: must be 100ms to 30s, extender.bindTimeout less gang.gatherMax",
        ),
        (
            "{extender: {bindTimeout: 30s}, gang: {gatherMax: 15s}}",
            "extender.bindTimeout is 30s: must be at least 35s, or writes.deadline, which is 20s, be made shorter",
        ),
        (
            "writes: {deadline: 1s}",
            "writes.deadline is 1s: must be at least 5s, or writes.attemptTimeout, which is 5s, be made shorter",
        ),
        (
            "lease: {duration: 5s}",
            "lease.duration is 5s: must be at least 10001ms, or lease.renewDeadline, which is 10s, be made shorter",
        ),
        (
            "lease: {retryPeriod: 11s}",
            "lease.retryPeriod is 11s: must be 100ms to 9999ms, less than lease.renewDeadline",
        ),
        (
            "inventory: {reportAgeMax: 6s}",
            "inventory.reportAgeMax is 6s: must be at least 10s, or agents.heartbeatEvery, which is 10s, be made shorter",
        ),
        (
            "watch: {backoffMax: 100ms}",
            "watch.backoffMax is 100ms: must be at least 200ms, or watch.backoffFirst, which is 200ms, be made shorter",
        ),
    ] {
        assert_eq!(refusal(text), wanted);
    }
}

#[test]
fn names_that_kubernetes_would_not_take_are_refused() {
    let label = |key: &str| {
        refusal(&format!(
            "topology: {{levels: [{{name: rack, label: '{key}'}}]}}"
        ))
    };
    for key in [
        "rack",
        "Example_1.b",
        "example.com/rack",
        "topology.kubernetes.io/zone",
    ] {
        assert_eq!(label(key), "", "{key}");
    }
    let long = "x".repeat(64);
    for key in [
        "",
        "a b",
        "/rack",
        "example.com/",
        "Example.com/rack",
        "a/b/c",
        "-rack",
        "rack_",
        &long,
    ] {
        let said = label(key);
        assert!(
            said.contains("topology.levels[].label is") && said.contains("must be a label key"),
            "{key}: {said}"
        );
    }
    for (text, wanted) in [
        (
            "lease: {namespace: muster.system}",
            "lease.namespace is \"muster.system\": must be a namespace",
        ),
        (
            "extender: {clientName: 'kube scheduler'}",
            "extender.clientName is \"kube scheduler\": must be a name",
        ),
        ("extender: {clientName: ''}", ""),
        (
            "lease: {name: Muster}",
            "lease.name is \"Muster\": must be a name",
        ),
        (
            "deviceResources: ['nvidia.com/gpu*x']",
            "deviceResources is \"nvidia.com/gpu*x\"",
        ),
        ("deviceResources: ['*']", ""),
        (
            "deviceResources: ['amd.com/*', 'nvidia.com/mig-*', gpu]",
            "",
        ),
        (
            "agents: {serviceAccount: 'system:serviceaccount:a b:c'}",
            "agents.serviceAccount is",
        ),
    ] {
        let said = refusal(text);
        assert!(
            said.starts_with(wanted) && said.is_empty() == wanted.is_empty(),
            "{text}: {said}"
        );
    }
}

#[test]
fn numbers_that_are_refused_say_what_they_count() {
    for (text, wanted) in [
        (
            "extender: {bodyBytesMax: 5}",
            "extender.bodyBytesMax is 5: must be 65536 to 268435456 bytes",
        ),
        (
            "gang: {templateNodesMax: 2000}",
            "gang.templateNodesMax is 2000: must be 0 to 1024 nodes",
        ),
        (
            "agents: {tokenReviewsPerSecond: 0}",
            "agents.tokenReviewsPerSecond is 0: must be 1 to 10000 TokenReviews a second",
        ),
    ] {
        assert_eq!(refusal(text), wanted);
    }
    let said = refusal("writes: {deadline: 30}");
    assert!(
        said.contains("write numbers with units h, m, s or ms, for example 30s"),
        "{said}"
    );
}
