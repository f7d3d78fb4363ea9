//! Inputs that once came to something new, kept in the tree: `tests/corpus/TARGET/`, one file each.
//!
//! They are what later rounds begin with, and the test runs each of them. `FUZZ_KEEP=1` has the `fuzz` program add to them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use anyhow::Context as _;

use super::{Target, outcome_of};

/// Longest input that is kept, bytes.
const BYTES_MAX: usize = 1024;
/// Most inputs of one target that are kept.
const COUNT_MAX: usize = 32;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus")).join(target)
}

/// The inputs that are kept for a target, in order of their names.
///
/// # Errors
/// A file cannot be read.
pub fn kept(target: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let folder = folder(target);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        files.push(entry?.path());
    }
    files.sort();
    let read = |file: PathBuf| std::fs::read(&file).with_context(|| file.display().to_string());
    files.into_iter().map(read).collect()
}

/// Adds to what is kept for a target: the shortest input for each outcome that no input of it came to before. Returns how many.
///
/// # Errors
/// A file cannot be read or written, or an input does harm.
pub fn keep(target: &mut dyn Target, found: BTreeMap<u64, Vec<u8>>) -> anyhow::Result<usize> {
    let name = target.name();
    let there = kept(name)?;
    let mut new = found;
    for input in target.corpus().iter().chain(&there) {
        let outcome = target.run(input).map_err(anyhow::Error::msg)?;
        new.remove(&outcome_of(&outcome));
    }
    let mut new: Vec<Vec<u8>> = new.into_values().collect();
    new.retain(|input| input.len() <= BYTES_MAX);
    new.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    new.truncate(COUNT_MAX.saturating_sub(there.len()));
    let folder = folder(name);
    if !new.is_empty() {
        std::fs::create_dir_all(&folder)?;
    }
    for input in &new {
        let mut hasher = DefaultHasher::new();
        input.hash(&mut hasher);
        let file = folder.join(format!("{:016x}", hasher.finish()));
        std::fs::write(&file, input).with_context(|| file.display().to_string())?;
    }
    Ok(new.len())
}
