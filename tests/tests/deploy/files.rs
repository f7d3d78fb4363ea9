//! Where the files of deploy/ lie, and YAML as values.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folder deploy/ of the checkout.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A file of deploy/, as text.
pub fn read(path: &str) -> String {
    let path = deploy().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every document of a YAML text that holds something.
pub fn documents(text: &str) -> Vec<Value> {
    // `y` and `on` are words here, as in Kubernetes.
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .unwrap_or_else(|error| panic!("{error}\n{text}"));
    documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect()
}

/// All files below deploy/ with this ending, as paths relative to it, in order. Scenarios of
/// `muster-scheduler simulate` are no objects of Kubernetes; the crate that reads them runs them.
pub fn with_ending(ending: &str) -> Vec<String> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("examples/scenarios") {
                continue;
            }
            if path.is_dir() {
                walk(&path, ending, found);
            } else if path.extension().is_some_and(|e| e == ending) {
                found.push(path);
            }
        }
    }
    let root = deploy();
    let mut found = Vec::new();
    walk(&root, ending, &mut found);
    let mut names: Vec<String> = found
        .iter()
        .map(|path| path.strip_prefix(&root).unwrap().display().to_string())
        .collect();
    names.sort();
    names
}

/// A text field of an object, empty where it is not there.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// `Kind namespace/name` of an object.
pub fn id(object: &Value) -> String {
    let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
    match text(object, "/metadata/namespace") {
        "" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    }
}
