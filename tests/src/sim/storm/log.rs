//! What happened, for people: what was done to the cluster beside what the cluster did.

use std::sync::{Arc, Mutex, PoisonError};

use muster_embedded::EmbeddedCluster;
use muster_embedded::api::history::Write;
use tokio::time::Instant;

/// Lines at the end of a shortened log.
const TAIL: usize = 40;
/// Lines before them that are about what is wrong.
const ABOUT: usize = 60;

/// The story of one run. Clones share it.
#[derive(Clone)]
pub struct Log {
    start: Instant,
    lines: Arc<Mutex<Vec<(u64, String)>>>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            lines: Arc::default(),
        }
    }
}

impl Log {
    /// Time since the start, milliseconds.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes what was done to the cluster.
    pub fn note(&self, line: impl Into<String>) {
        let line = (self.now_ms(), line.into());
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }

    fn noted(&self) -> Vec<(u64, String)> {
        self.lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// FNV-1a over the digest of the cluster's writes and all that was done to it.
    pub fn digest(&self, cluster: &EmbeddedCluster) -> u64 {
        let (_, writes) = cluster.api().digest();
        let noted = self.noted();
        let lines = noted.iter().map(|(at, line)| format!("{at} {line}\n"));
        let lines = lines.collect::<String>();
        lines.bytes().fold(writes, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    /// Everything in order of time. What was done to the cluster is marked with `!`.
    pub fn story(&self, cluster: &EmbeddedCluster) -> Vec<String> {
        let writes = cluster.api().writes_since(0);
        let written = writes.iter().filter(|write| is_news(write));
        let mut all: Vec<(u64, u8, String)> = self
            .noted()
            .into_iter()
            .map(|(at, line)| (at, 0, format!("! {line}")))
            .chain(written.map(|write| (write.at_ms, 1, told(write))))
            .collect();
        all.sort_by_key(|(at, order, _)| (*at, *order));
        let seconds = |at: u64| format!("{:>5}.{:03}", at / 1000, at % 1000);
        all.into_iter()
            .map(|(at, _, line)| format!("{} {line}", seconds(at)))
            .collect()
    }

    /// The end of the story, and what came before it about any of these words.
    pub fn short(&self, cluster: &EmbeddedCluster, words: &[String]) -> String {
        let story = self.story(cluster);
        let (before, tail) = story.split_at(story.len().saturating_sub(TAIL));
        let is_about = |line: &&String| words.iter().any(|word| line.contains(word.as_str()));
        let mut about: Vec<&String> = before.iter().filter(is_about).rev().take(ABOUT).collect();
        about.reverse();
        let mut lines: Vec<&str> = about.into_iter().map(String::as_str).collect();
        if !before.is_empty() {
            lines.push("  ...");
        }
        lines.extend(tail.iter().map(String::as_str));
        lines.join("\n")
    }
}

/// Leases, Services and Events tell nothing.
fn is_news(write: &Write) -> bool {
    !["leases", "services", "events"]
        .iter()
        .any(|kind| write.resource.starts_with(kind))
}

fn told(write: &Write) -> String {
    let kind = write.resource.split('.').next().unwrap_or_default();
    let kind = kind.strip_suffix('s').unwrap_or(kind);
    format!(
        "{} {} {kind} {} (version {}) {}",
        write.client, write.verb, write.name, write.version, write.summary
    )
}
