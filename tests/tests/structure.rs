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

/// The Rust sources under a folder, with their texts.
fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source is text");
            found.push((path.display().to_string(), text));
        }
    }
    found
}

/// Lines of code, comments left out, that hold one of these words.
fn lines_with(text: &str, words: &[&str]) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    text.lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code))
        .filter(|code| {
            code.split(|c| !is_word(c)).any(|path| {
                words.iter().any(|word| {
                    path == *word
                        || path.starts_with(&format!("{word}::"))
                        || path.ends_with(&format!("::{word}"))
                        || path.contains(&format!("::{word}::"))
                })
            })
        })
        .map(str::to_owned)
        .collect()
}

/// What the standard library offers and the core must not take: the dependency tree does not show it.
const NOT_IN_CORE: [&str; 16] = [
    "HashMap",
    "HashSet",
    "RandomState",
    "Instant",
    "SystemTime",
    "std::time",
    "std::thread",
    "std::fs",
    "std::net",
    "std::env",
    "std::io",
    "std::process",
    "println",
    "eprintln",
    "print",
    "dbg",
];

#[test]
fn core_has_no_clock_no_threads_no_io_and_no_hash_order() {
    let sources = sources(&root().join("scheduler/core/src"));
    assert!(sources.len() > 20, "{} sources", sources.len());
    for (path, text) in sources {
        let found = lines_with(&text, &NOT_IN_CORE);
        assert!(found.is_empty(), "{path}: {found:?}");
    }
    for line in [
        "use std::collections::HashMap;",
        "let now = std::time::Instant::now();",
        "    Instant::now() // the time",
        "map: HashSet<u8>,",
        "std::thread::spawn(|| ());",
    ] {
        assert_eq!(lines_with(line, &NOT_IN_CORE).len(), 1, "{line}");
    }
    assert!(lines_with("// no HashMap here, InstantNoodles", &NOT_IN_CORE).is_empty());
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
