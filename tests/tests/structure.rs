//! The repository itself is tested: who may depend on whom, and that the code is formatted.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Names of the packages in the normal dependency tree of `package`, itself included.
fn tree(package: &str, default_features: bool) -> BTreeSet<String> {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args([
        "tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}", "-p",
        package,
    ]);
    if !default_features {
        command.arg("--no-default-features");
    }
    let output = command.output().expect("cargo tree starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("names are UTF-8");
    let names: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect();
    assert!(
        names.contains(package),
        "{package} is not in its own tree: {names:?}"
    );
    names
}

fn assert_free_of(package: &str, forbidden: &[&str]) {
    let names = tree(package, true);
    let found: Vec<&&str> = forbidden
        .iter()
        .filter(|name| names.contains(**name))
        .collect();
    assert!(found.is_empty(), "{package} must not depend on {found:?}");
}

#[test]
fn core_knows_no_runtime_no_kubernetes_no_serialisation_and_no_chance() {
    assert_free_of(
        "muster-core",
        &[
            "tokio",
            "futures",
            "kube",
            "kube-core",
            "k8s-openapi",
            "serde",
            "serde_json",
            "tracing",
            "jiff",
            "rand",
            "getrandom",
            "uuid",
            "tonic",
            "prost",
            "axum",
            "hyper",
            "muster-kubernetes",
            "muster-proto",
        ],
    );
}

#[test]
fn translation_has_no_client_and_no_runtime() {
    assert_free_of(
        "muster-kubernetes",
        &[
            "kube-client",
            "kube-runtime",
            "tokio",
            "hyper",
            "axum",
            "tonic",
            "tracing-subscriber",
            "rustls",
            "muster-proto",
        ],
    );
}

#[test]
fn agent_and_scheduler_share_only_the_protocol() {
    let ours = |names: BTreeSet<String>| -> BTreeSet<String> {
        names
            .into_iter()
            .filter(|name| name.starts_with("muster-"))
            .collect()
    };
    let agent = ours(tree("muster-agent", true));
    let scheduler = ours(tree("muster-scheduler", false));
    let shared: Vec<&String> = agent.intersection(&scheduler).collect();
    assert_eq!(shared, ["muster-proto"]);
}

#[test]
fn code_is_formatted() {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["fmt", "--all", "--check"])
        .output()
        .expect("cargo fmt starts");
    assert!(
        output.status.success(),
        "run cargo fmt --all:\n{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
