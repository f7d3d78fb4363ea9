//! Which stream speaks for which node. A newer agent process of a node ends the older one's stream.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::locked;

#[derive(Debug)]
struct Entry {
    stream: u64,
    instance: u64,
    abort: CancellationToken,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    nodes: BTreeMap<String, Entry>,
}

/// All streams by node.
#[derive(Debug)]
pub struct Registry {
    entries: Mutex<Entries>,
    limit: usize,
}

/// A stream's place.
#[derive(Debug)]
pub struct Place {
    node: String,
    stream: u64,
    /// Cancelled when a newer agent of the node has come.
    pub abort: CancellationToken,
}

impl Registry {
    /// A register of at most `limit` nodes.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: Mutex::default(),
            limit,
        }
    }

    /// Takes the place of a node. The same instance again is a reconnection and takes over too.
    pub fn enter(&self, node: &str, instance: u64) -> Result<Place, Status> {
        let mut entries = locked(&self.entries);
        match entries.nodes.get(node) {
            Some(entry) if entry.instance > instance => {
                return Err(Status::aborted("a newer agent of this node is connected"));
            }
            Some(entry) => entry.abort.cancel(),
            None if entries.nodes.len() >= self.limit => {
                return Err(Status::resource_exhausted(format!(
                    "{} nodes are connected, which is the limit",
                    self.limit
                )));
            }
            None => {}
        }
        entries.next = entries.next.saturating_add(1);
        let stream = entries.next;
        let abort = CancellationToken::new();
        entries.nodes.insert(
            node.to_owned(),
            Entry {
                stream,
                instance,
                abort: abort.clone(),
            },
        );
        Ok(Place {
            node: node.to_owned(),
            stream,
            abort,
        })
    }

    /// Leaves a place, unless somebody else has taken it.
    pub fn leave(&self, place: &Place) {
        let mut entries = locked(&self.entries);
        if entries
            .nodes
            .get(&place.node)
            .is_some_and(|entry| entry.stream == place.stream)
        {
            entries.nodes.remove(&place.node);
        }
    }

    /// Nodes connected now.
    pub fn len(&self) -> usize {
        locked(&self.entries).nodes.len()
    }

    /// Whether no node is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_agent_replaces_and_older_one_is_refused() {
        let registry = Registry::new(1);
        let first = registry.enter("n", 5).unwrap();
        assert!(registry.enter("other", 1).is_err());
        assert_eq!(
            registry.enter("n", 4).unwrap_err().code(),
            tonic::Code::Aborted
        );
        let second = registry.enter("n", 6).unwrap();
        assert!(first.abort.is_cancelled() && !second.abort.is_cancelled());
        registry.leave(&first);
        assert_eq!(registry.len(), 1);
        registry.leave(&second);
        assert!(registry.is_empty());
    }
}
