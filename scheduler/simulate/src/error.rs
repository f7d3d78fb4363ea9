//! What can go wrong before or during a replay.

use std::path::Path;

/// Why there is no replay, or none to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value on the command line is outside its limits.
    #[error("{flag} is {value}: {limit}")]
    Flag {
        /// The flag, with its dashes.
        flag: &'static str,
        /// The value that it has.
        value: String,
        /// What is allowed.
        limit: String,
    },
    /// A row of a trace cannot be read.
    #[error("{file}, line {line}: {field} is {value:?}: {limit}")]
    Row {
        /// Name of the file.
        file: String,
        /// Line, from 1.
        line: u64,
        /// Column.
        field: String,
        /// What is there, shortened to 64 characters.
        value: String,
        /// What is allowed.
        limit: String,
    },
    /// A file is no CSV, or lacks a column.
    #[error("{file}: {said}")]
    Table {
        /// Name of the file.
        file: String,
        /// What is wrong.
        said: String,
    },
    /// A scenario is no YAML, has an unknown key, or a value of the wrong type.
    #[error("{file}: {path}: {said}")]
    Malformed {
        /// Name of the file.
        file: String,
        /// Path of the field.
        path: String,
        /// What is wrong.
        said: String,
    },
    /// A value of a scenario is outside its limits.
    #[error("{file}: {path} is {value}: {limit}")]
    Field {
        /// Name of the file.
        file: String,
        /// Path of the field.
        path: String,
        /// The value that it has, shortened to 64 characters.
        value: String,
        /// What is allowed.
        limit: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// A policy has placed a pod where there is no room for it.
    #[error(
        "a bug: {policy} placed {pod} on GPUs {devices:?} of {node}, which has no such room for it"
    )]
    Misplaced {
        /// The policy.
        policy: &'static str,
        /// The pod.
        pod: String,
        /// The node.
        node: String,
        /// Positions of the node's GPUs.
        devices: Vec<usize>,
    },
    /// The scheduler goes on and on without time passing.
    #[error("the replay does not come to rest at {seconds} s, after {rounds} rounds")]
    Restless {
        /// Time in the replay, seconds.
        seconds: u64,
        /// Rounds of decisions that were taken at that time.
        rounds: u32,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.display().to_string();
        move |error| Self::Io { path, error }
    }

    pub(crate) fn flag(flag: &'static str, value: impl ToString, limit: impl Into<String>) -> Self {
        Self::Flag {
            flag,
            value: value.to_string(),
            limit: limit.into(),
        }
    }
}

/// A text from outside, cut to 64 characters.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(64).collect()
}
