//! What the workspace is built from keeps to `deny.toml`: the rules of `cargo deny check bans licenses sources`, of which CI need not
//! build the tool. And code that the compiler cannot check is where it is known to be.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use spdx::{Expression, Licensee, ParseMode};

use super::{Metadata, root, text};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What `deny.toml` says, of which this test knows every key.
struct Rules {
    allowed: Vec<Licensee>,
    banned: BTreeSet<String>,
}

fn keys(table: &toml::Table, name: &str) -> BTreeSet<String> {
    let table = table.get(name).and_then(toml::Value::as_table);
    table
        .into_iter()
        .flat_map(|table| table.keys().cloned())
        .collect()
}

impl Rules {
    fn read() -> Self {
        let file = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
        let rules: toml::Table = toml::from_str(&file).expect("TOML");
        let known = [
            ("graph", &["targets"][..]),
            ("licenses", &["allow", "private"]),
            ("bans", &["deny", "multiple-versions"]),
            ("sources", &["unknown-git", "unknown-registry"]),
        ];
        let sections: BTreeSet<String> = rules.keys().cloned().collect();
        assert_eq!(sections, known.map(|(name, _)| name.to_owned()).into());
        for (name, known) in known {
            let known = known.iter().map(|key| (*key).to_owned()).collect();
            assert_eq!(
                keys(&rules, name),
                known,
                "[{name}]: a rule that is not looked at"
            );
        }
        for key in ["unknown-git", "unknown-registry"] {
            assert_eq!(rules["sources"][key].as_str(), Some("deny"), "{key}");
        }
        let list = |section: &str, key: &str| {
            let list = rules[section][key].as_array().cloned();
            list.expect("a list")
        };
        let licence = |licence: &toml::Value| {
            Licensee::parse(licence.as_str().expect("text")).expect("a licence of SPDX")
        };
        let banned = |ban: &toml::Value| ban["crate"].as_str().expect("text").to_owned();
        Self {
            allowed: list("licenses", "allow").iter().map(licence).collect(),
            banned: list("bans", "deny").iter().map(banned).collect(),
        }
    }

    /// What is wrong with a package, none where nothing is.
    fn fault(&self, package: &Value) -> Option<String> {
        let name = text(package, "name");
        let source = text(package, "source");
        // Ours has none.
        if source.is_empty() {
            return None;
        }
        if source != CRATES_IO {
            return Some(format!("{name} comes from {source}"));
        }
        if self.banned.contains(name) {
            return Some(format!("{name} is banned"));
        }
        let licence = text(package, "license");
        let allows = Expression::parse_mode(licence, ParseMode::LAX).is_ok_and(|licence| {
            licence.evaluate(|asked| self.allowed.iter().any(|allowed| allowed.satisfies(asked)))
        });
        (!allows).then(|| format!("{name} is under {licence:?}"))
    }
}

#[test]
fn packages_come_from_the_registry_under_licences_that_are_allowed_and_none_is_banned() {
    let (rules, metadata) = (Rules::read(), Metadata::read());
    let linked: Vec<&Value> = metadata.packages.values().collect();
    assert!(linked.len() > 100, "{} packages", linked.len());
    let faults: Vec<String> = linked
        .iter()
        .filter_map(|package| rules.fault(package))
        .collect();
    assert_eq!(faults, Vec::<String>::new());
}

#[test]
fn packages_that_break_a_rule_are_named() {
    let rules = Rules::read();
    let package = |name: &str, source: &str, license: &str| serde_json::json!({"name": name, "source": source, "license": license});
    assert_eq!(
        rules.fault(&package("a", CRATES_IO, "MIT/Apache-2.0")),
        None
    );
    assert_eq!(
        rules.fault(&package("b", CRATES_IO, "GPL-3.0-only OR MPL-2.0")),
        None
    );
    for (name, source, license) in [
        ("c", CRATES_IO, "GPL-3.0-only"),
        ("d", CRATES_IO, "MIT AND AGPL-3.0-only"),
        ("e", CRATES_IO, ""),
        ("f", "git+https://example.org/f", "MIT"),
        ("openssl", CRATES_IO, "MIT"),
    ] {
        let fault = rules.fault(&package(name, source, license));
        assert!(fault.is_some_and(|fault| fault.starts_with(name)), "{name}");
    }
}

/// Files that may hold `unsafe` code: the edge to the driver's library with the fake of that library, and the one call that has a child of
/// a test die with it.
const UNSAFE: [&str; 3] = [
    "device-agent/src/source/nvml/raw.rs",
    "device-agent/fake-nvml/",
    "tests/control-plane/src/pdeathsig.rs",
];

fn rust_files(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            rust_files(&path, found);
        } else if name.ends_with(".rs") {
            let from_root = path.strip_prefix(root()).unwrap_or(&path);
            found.push(from_root.display().to_string());
        }
    }
}

#[test]
fn unsafe_code_is_only_at_the_edge_to_the_driver_and_in_its_fake() {
    let mut files = Vec::new();
    rust_files(root(), &mut files);
    assert!(files.len() > 300, "{} files", files.len());
    let lint = ["unsafe", "code"].join("_");
    let allows: Vec<&String> = files
        .iter()
        .filter(|file| {
            let source = std::fs::read_to_string(root().join(file)).expect("a file");
            let mut lines = source.lines().filter(|line| line.contains(&lint));
            lines.any(|line| line.contains("allow(") || line.contains("expect("))
        })
        .filter(|file| !UNSAFE.iter().any(|known| file.starts_with(known)))
        .collect();
    assert_eq!(allows, Vec::<&String>::new());
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    assert!(manifest.contains(&format!("{lint} = \"deny\"")));
    // The lint is asked for by every package but the fake, whose functions C calls.
    for package in Metadata::read().packages.values() {
        let manifest = text(package, "manifest_path");
        if text(package, "source").is_empty() && !manifest.contains("fake-nvml") {
            let own = std::fs::read_to_string(manifest).expect("a manifest");
            assert!(own.contains("[lints]\nworkspace = true"), "{manifest}");
        }
    }
}
