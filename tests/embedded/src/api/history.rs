//! The event log: one line per write of the store, in order, with a digest that two runs can compare.

use std::collections::VecDeque;
use std::time::Duration;

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Counts up from 1 without gaps.
    pub number: u64,
    /// Cluster time since the start, in milliseconds.
    pub at_ms: u64,
    /// Who wrote: the identity of the client.
    pub client: String,
    /// `create`, `update`, `delete`; with a subresource `update/status`, `create/binding` and so on.
    pub verb: String,
    /// `pods`, or `pytorchjobs.kubeflow.org`.
    pub resource: String,
    /// Namespace, empty for cluster-wide objects.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The resourceVersion that the write made.
    pub version: u64,
    /// What changed, in short: the changed paths.
    pub summary: String,
}

impl Write {
    /// The line that goes into the digest.
    #[must_use]
    pub fn line(&self) -> String {
        let Self {
            number,
            at_ms,
            client,
            verb,
            resource,
            namespace,
            name,
            version,
            summary,
        } = self;
        format!(
            "{number} {at_ms} {client} {verb} {resource} {namespace}/{name} {version} {summary}"
        )
    }
}

/// The writes so far. Keeps the newest ones up to a limit; count and digest cover all of them.
#[derive(Debug)]
pub struct History {
    writes: VecDeque<Write>,
    limit: usize,
    count: u64,
    digest: u64,
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl History {
    /// An empty log that keeps `limit` writes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            writes: VecDeque::new(),
            limit,
            count: 0,
            digest: FNV_OFFSET,
        }
    }

    /// Appends a write; its number is set here.
    pub fn push(&mut self, at: Duration, mut write: Write) {
        self.count += 1;
        write.number = self.count;
        write.at_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        let line = write.line();
        self.digest = line.bytes().chain([b'\n']).fold(self.digest, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
        });
        if self.writes.len() >= self.limit {
            self.writes.pop_front();
        }
        self.writes.push_back(write);
    }

    /// How many writes there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// FNV-1a (64 bit) over the lines of all writes.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The kept writes with a number above `after`, oldest first.
    #[must_use]
    pub fn since(&self, after: u64) -> Vec<Write> {
        self.writes
            .iter()
            .filter(|w| w.number > after)
            .cloned()
            .collect()
    }
}
