//! The repository itself is tested: who may depend on whom, and that the code is formatted.

// A test that cannot go on stops with the place and the value.
#![allow(clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

#[path = "structure/supply.rs"]
mod supply;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Answer of one cargo command that needs no network.
fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(args)
        .output()
        .expect("cargo starts");
    assert!(
        output.status.success(),
        "cargo {} (packages that are missing come with cargo fetch --locked):\n{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// What `cargo metadata` says for this machine's platform: each package by its id, with what it
/// declares, and the packages that its dependencies were resolved to.
struct Metadata {
    packages: BTreeMap<String, Value>,
    resolved: BTreeMap<String, Value>,
}

/// The entries of a list, none where there is no list.
fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

impl Metadata {
    fn read() -> &'static Self {
        static READ: OnceLock<Metadata> = OnceLock::new();
        READ.get_or_init(|| {
            let version = cargo(&["-vV"]);
            let host = version.lines().find_map(|line| line.strip_prefix("host: "));
            let host = host.expect("cargo names its host");
            let answer = cargo(&[
                "metadata",
                "--format-version=1",
                "--locked",
                "--offline",
                "--filter-platform",
                host,
            ]);
            let all: Value = serde_json::from_str(&answer).expect("JSON");
            let by_id = |value: &Value, key: &str| -> BTreeMap<String, Value> {
                let named = |item: &Value| (text(item, "id").to_owned(), item.clone());
                items(value, key).map(named).collect()
            };
            Self {
                packages: by_id(&all, "packages"),
                resolved: by_id(all.get("resolve").expect("a graph"), "nodes"),
            }
        })
    }

    fn name(&self, id: &str) -> &str {
        text(self.packages.get(id).expect("a known package"), "name")
    }

    /// Names of the packages that a build of `package` alone links, itself included. The graph of
    /// `cargo metadata` has every feature that any package of the workspace asks for: which of them
    /// this build has is worked out here.
    fn tree(&self, package: &str, default_features: bool) -> BTreeSet<&str> {
        let root = self.packages.keys().find(|id| self.name(id) == package);
        let root = root.unwrap_or_else(|| panic!("no package {package}"));
        let first = default_features.then(|| "default".to_owned());
        let mut features: Features = [(root.clone(), first.into_iter().collect())].into();
        loop {
            let mut next = features.clone();
            for (id, on) in &features {
                for (dependency, wanted) in self.dependencies(id, on) {
                    next.entry(dependency).or_default().extend(wanted);
                }
            }
            if next == features {
                return features.keys().map(|id| self.name(id)).collect();
            }
            features = next;
        }
    }

    /// Normal dependencies of a package that has these features, each with the features asked of it.
    fn dependencies(&self, id: &str, on: &BTreeSet<String>) -> Vec<(String, BTreeSet<String>)> {
        let package = self.packages.get(id).expect("a known package");
        let (optional, of_dependency) = switched_on(package, on);
        let resolved = self.resolved.get(id).expect("a resolved package");
        let mut found = Vec::new();
        for declared in items(package, "dependencies") {
            let name = text(declared, "name");
            let key = match text(declared, "rename") {
                "" => name,
                rename => rename,
            };
            let is_normal = declared.get("kind").is_some_and(Value::is_null);
            let is_optional = declared.get("optional") == Some(&Value::Bool(true));
            // For no platform at all: it only ties the two versions together.
            let is_normal = is_normal && text(declared, "target") != "cfg(any())";
            if !is_normal || (is_optional && !optional.contains(key)) {
                continue;
            }
            let mut wanted: BTreeSet<String> = items(declared, "features")
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            if declared.get("uses_default_features") == Some(&Value::Bool(true)) {
                wanted.insert("default".into());
            }
            wanted.extend(of_dependency.get(key).into_iter().flatten().cloned());
            for edge in items(resolved, "deps") {
                let mut kinds = items(edge, "dep_kinds");
                let links = kinds.any(|kind| kind.get("kind").is_some_and(Value::is_null));
                let to = text(edge, "pkg");
                if links && self.name(to) == name {
                    found.push((to.to_owned(), wanted.clone()));
                }
            }
        }
        found
    }
}

/// Sets of features by what has them.
type Features = BTreeMap<String, BTreeSet<String>>;

/// What a package's features lead to: optional dependencies that are on, and features of dependencies.
fn switched_on(package: &Value, on: &BTreeSet<String>) -> (BTreeSet<String>, Features) {
    let mut optional = BTreeSet::new();
    let mut of_dependency = Features::new();
    let mut seen = BTreeSet::new();
    let mut open: Vec<String> = on.iter().cloned().collect();
    while let Some(feature) = open.pop() {
        if !seen.insert(feature.clone()) {
            continue;
        }
        let table = package.get("features").unwrap_or(&Value::Null);
        for entry in items(table, &feature).filter_map(Value::as_str) {
            if let Some(key) = entry.strip_prefix("dep:") {
                optional.insert(key.to_owned());
            } else if let Some((key, feature)) = entry.split_once('/') {
                let only_if_on = key.strip_suffix('?');
                let key = only_if_on.unwrap_or(key).to_owned();
                if only_if_on.is_none() {
                    optional.insert(key.clone());
                }
                of_dependency
                    .entry(key)
                    .or_default()
                    .insert(feature.to_owned());
            } else {
                open.push(entry.to_owned());
            }
        }
    }
    (optional, of_dependency)
}

/// Names of the packages in the normal dependency tree of `package`, itself included.
fn tree(package: &str, default_features: bool) -> BTreeSet<&'static str> {
    let names = Metadata::read().tree(package, default_features);
    assert!(
        names.contains(package) && names.len() > 3,
        "{package} and some dependencies: {names:?}"
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

/// The Rust files below a folder, but for build outputs and hidden folders, with their texts.
fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") {
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
const NOT_IN_CORE: [&str; 20] = [
    "HashMap",
    "HashSet",
    "RandomState",
    "Mutex",
    "RwLock",
    "Condvar",
    "RefCell",
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

/// Other schedulers had data races and deadlocks in the caches that their parts shared.
#[test]
fn f47_core_has_no_clock_no_threads_no_locks_no_io_and_no_hash_order() {
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
        "cache: Arc<std::sync::Mutex<Cache>>,",
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

/// A dump is the core's values as text: what is planned from it depends on nothing else.
#[test]
fn dump_has_no_runtime_and_no_client() {
    assert_free_of(
        "muster-dump",
        &[
            "tokio",
            "futures",
            "kube",
            "kube-core",
            "k8s-openapi",
            "tracing",
            "jiff",
            "rand",
            "axum",
            "hyper",
            "clap",
            "muster-kubernetes",
            "muster-proto",
        ],
    );
    for (path, text) in sources(&root().join("scheduler/dump/src")) {
        let words = ["HashMap", "HashSet", "RandomState", "Instant", "SystemTime"];
        let found = lines_with(&text, &words);
        assert!(found.is_empty(), "{path}: {found:?}");
    }
}

/// A replay is the core, files and nothing else: no runtime, no client, no clock of its own.
#[test]
fn replay_has_no_runtime_and_no_client() {
    assert_free_of(
        "muster-simulate",
        &[
            "tokio",
            "futures",
            "kube",
            "kube-core",
            "k8s-openapi",
            "tracing",
            "jiff",
            "rand",
            "tonic",
            "prost",
            "axum",
            "hyper",
            "rustls",
            "clap",
            "muster-kubernetes",
            "muster-proto",
            "muster-scheduler",
        ],
    );
    // Only the line on the terminal looks at a clock, and no result depends on it.
    for (path, text) in sources(&root().join("scheduler/simulate/src")) {
        let words = ["HashMap", "HashSet", "RandomState", "Instant", "SystemTime"];
        let found = lines_with(&text, &words);
        let allowed = path.ends_with("progress.rs");
        assert!(found.is_empty() || allowed, "{path}: {found:?}");
    }
}

#[test]
fn agent_and_scheduler_share_only_the_protocol() {
    let ours = |names: BTreeSet<&'static str>| -> BTreeSet<&str> {
        let names = names.into_iter();
        names.filter(|name| name.starts_with("muster-")).collect()
    };
    let agent = ours(tree("muster-agent", true));
    let scheduler = ours(tree("muster-scheduler", false));
    let shared: Vec<&&str> = agent.intersection(&scheduler).collect();
    assert_eq!(shared, [&"muster-proto"]);
    let with_demo = ours(tree("muster-scheduler", true));
    let for_demo: Vec<&&str> = with_demo.difference(&scheduler).collect();
    assert_eq!(
        for_demo,
        [&"muster-agent", &"muster-embedded"],
        "what the feature demo brings"
    );
}

/// The tree is not empty by mistake: what is there is found, through features too.
#[test]
fn the_dependency_tree_is_read_as_cargo_builds_it() {
    let scheduler = tree("muster-scheduler", false);
    for name in ["muster-core", "tokio", "kube-client", "tonic", "rustls"] {
        assert!(scheduler.contains(name), "{name} is not in {scheduler:?}");
    }
    let kubernetes = tree("muster-kubernetes", true);
    for name in ["k8s-openapi", "kube-core", "serde_json"] {
        assert!(kubernetes.contains(name), "{name} is not in {kubernetes:?}");
    }
    for package in ["muster-core", "muster-kubernetes", "muster-agent"] {
        let printed = cargo(&[
            "tree",
            "--locked",
            "--offline",
            "--edges=normal",
            "--prefix=none",
            "--format={p}",
            "-p",
            package,
        ]);
        let printed: BTreeSet<&str> = printed
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(printed, tree(package, true), "{package}");
    }
}

/// What kube-scheduler's extender protocol, and what lies behind it, can do to a gang scheduler.
/// The tests of a trap carry its number: `t07_no_score_is_ever_sent`.
const TRAPS: [&str; 43] = [
    "names in any case come in, PascalCase goes out; null, absent and empty are told apart",
    "a request with whole nodes is answered with nodes",
    "what is not 200 against what has an Error",
    "null or {} for a Bind reads as success",
    "a node that was not offered",
    "5,000 names within a millisecond",
    "a score above 10 or below 0",
    "preemption by UID, unknown victims, no victims",
    "a thousand Binds at once over HTTP/2",
    "slow, large and broken requests, callers without a certificate",
    "a hang, and the caller's deadline",
    "a refusal whose text changes makes kube-scheduler spin",
    "a bound pod wakes every pod that was refused",
    "default plugins refuse every node, and nobody asks",
    "a nominated node is asked about alone first",
    "Filter is asked many times",
    "kube-scheduler offers a sample of the nodes",
    "CPU-only members, init containers, resources of the pod",
    "the barrier's deadline against the caller's",
    "OK without a binding loses the pod",
    "a binding after the caller has given up",
    "a lost answer, and the same Bind again",
    "a pod made again under its name",
    "conflicts: deleted, gated, bound elsewhere",
    "a node that is lost between plan and bind",
    "some bindings fail",
    "the barrier opens once, however often it is asked",
    "a held pod is preempted",
    "gangs interleaved on room for one",
    "a large gang beside a stream of small ones",
    "another number of members than expected",
    "a crash at every step",
    "kube-scheduler restarts with half a gang in Bind",
    "an old leader",
    "a foreign pod takes planned room",
    "a gate of somebody else",
    "a pin to a node that died",
    "one release is refused",
    "429 and timeouts",
    "gates come off in any order",
    "a device is lost between plan and kubelet's admission",
    "the agent's inventory against the node's allocatable",
    "pods of native groups",
];

#[test]
fn every_trap_of_the_extender_protocol_has_a_test() {
    let mut carried: BTreeSet<usize> = BTreeSet::new();
    for (_, text) in sources(root()) {
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[") {
                is_test |= line.contains("test");
                continue;
            }
            let name = line.trim_start_matches("async ").strip_prefix("fn t");
            let number = name
                .and_then(|name| name.split_once('_'))
                .map(|(number, _)| number);
            if let Some(Ok(number)) = number.filter(|_| is_test).map(str::parse) {
                carried.insert(number);
            }
            is_test &= line.starts_with("//");
        }
    }
    assert!(carried.contains(&1), "the tree was read: {carried:?}");
    let missing: Vec<(usize, &str)> = (1..)
        .zip(TRAPS)
        .filter(|(number, _)| !carried.contains(number))
        .collect();
    assert_eq!(missing, [], "traps without a test");
    assert!(
        carried
            .iter()
            .all(|number| (1..=TRAPS.len()).contains(number)),
        "a test of a trap that is not listed: {carried:?}"
    );
}

/// Invariants that only a history or two engines could tell: the engine's audit leaves them to tests.
#[test]
fn every_invariant_that_is_not_audited_has_a_test_of_its_name() {
    for name in ["lead_1_", "que_1_", "det_1_", "text_1_"] {
        let carries = |line: &str| {
            let function = line.trim().trim_start_matches("async ");
            let name_at = function
                .strip_prefix("fn ")
                .and_then(|rest| rest.find(name));
            name_at.is_some_and(|at| at == 0 || function.starts_with("fn t"))
        };
        let found = sources(&root().join("scheduler"))
            .iter()
            .any(|(_, text)| text.lines().any(carries));
        assert!(found, "no test is named {name}...");
    }
}

/// Programs and examples are compiled for tests only where there are some: a test that is written into another one would
/// never run.
#[test]
fn no_test_is_left_out() {
    let metadata = Metadata::read();
    let own = metadata.packages.values();
    let own = own.filter(|package| package.get("source").is_some_and(Value::is_null));
    let (mut bins, mut libs) = (0, 0);
    for target in own.flat_map(|package| items(package, "targets")) {
        let off = |key: &str| target.get(key) == Some(&Value::Bool(false));
        let path = Path::new(text(target, "src_path"));
        let is = |wanted: &str| items(target, "kind").any(|kind| kind == wanted);
        if is("bin") && off("test") {
            let code = std::fs::read_to_string(path).expect("a program");
            assert!(
                !code.contains("test]") && !code.contains("::test("),
                "{}",
                path.display()
            );
            bins += 1;
        }
        if (is("lib") || is("rlib")) && off("doctest") {
            let folder = path.parent().expect("src");
            for (file, code) in sources(folder) {
                let fences = code.lines().map(str::trim).filter_map(|line| {
                    let line = line.strip_prefix("///").or(line.strip_prefix("//!"))?;
                    line.trim().strip_prefix("```")
                });
                // The first of each two opens.
                let example = fences
                    .step_by(2)
                    .find(|of| of.is_empty() || of.contains("rust"));
                assert_eq!(example, None, "an example in {file}");
            }
            libs += 1;
        }
    }
    assert!(
        bins >= 10 && libs >= 10,
        "{bins} programs, {libs} libraries"
    );
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
