//! The objects and their history.
//!
//! ```text
//! commit ──► table (BTreeMap key -> Arc<Stored>)       list, get
//!        ├─► changes (ring, bounded)  ── cursor ──►    watch, list at an older version
//!        ├─► owners (uid -> dependents)                garbage collector
//!        └─► history (one line per write)              tests, digest
//! ```
//! A watch holds no queue: it is a cursor into the ring of its resource. One that falls behind the ring gets 410, as
//! after a compaction in etcd. Objects are shared by `Arc` and serialised at most once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::history::{History, Write};
use super::resources::ResourceType;
use crate::signal::{Listener, Signal};
use crate::value;

/// Namespace and name; the namespace is empty for cluster-wide objects.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Namespace or `""`.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of `namespace/name`.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// One version of one object.
#[derive(Debug)]
pub struct Stored {
    /// The object, resourceVersion included.
    pub value: Value,
    /// The resourceVersion.
    pub version: u64,
    text: OnceLock<Bytes>,
}

impl Stored {
    fn new(value: Value, version: u64) -> Self {
        Self {
            value,
            version,
            text: OnceLock::new(),
        }
    }

    /// A version that is in no table: the answer to a dry run.
    #[must_use]
    pub fn unsaved(value: Value) -> Self {
        Self::new(value, 0)
    }

    /// The object as JSON text, made at the first call.
    #[must_use]
    pub fn text(&self) -> Bytes {
        self.text
            // To a buffer: what is formatted goes through more hands, and every write comes by here.
            .get_or_init(|| Bytes::from(serde_json::to_vec(&self.value).unwrap_or_default()))
            .clone()
    }
}

/// How an object came to its new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was not there before.
    Added,
    /// It was there with another content.
    Modified,
    /// It is gone.
    Deleted,
}

/// One entry of a resource's ring.
#[derive(Debug)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The resourceVersion of the change.
    pub version: u64,
    /// The key.
    pub key: Key,
    /// The object after the change; for a deletion its last state with the version of the deletion.
    pub object: Arc<Stored>,
    /// The object before the change.
    pub before: Option<Arc<Stored>>,
}

/// Everything of one resource.
#[derive(Debug)]
pub struct Table {
    /// The type; replaced when its CustomResourceDefinition changes.
    pub ty: Arc<ResourceType>,
    /// False once the CustomResourceDefinition is gone.
    pub served: bool,
    /// The objects in key order.
    pub objects: BTreeMap<Key, Arc<Stored>>,
    /// The newest changes.
    pub changes: VecDeque<Arc<Change>>,
    /// Changes up to this version are no longer kept.
    pub compacted: u64,
    signal: Signal,
}

impl Table {
    /// The changes after `version`, at most `limit`, or `None` when some of them are no longer kept.
    #[must_use]
    pub fn changes_after(&self, version: u64, limit: usize) -> Option<Vec<Arc<Change>>> {
        if version < self.compacted {
            return None;
        }
        let from = self.changes.partition_point(|c| c.version <= version);
        Some(self.changes.range(from..).take(limit).cloned().collect())
    }

    /// The objects as they were at `version`, or `None` when that is no longer known.
    #[must_use]
    pub fn at_version(&self, version: u64) -> Option<BTreeMap<Key, Arc<Stored>>> {
        if version < self.compacted {
            return None;
        }
        let mut objects = self.objects.clone();
        for change in self
            .changes
            .iter()
            .rev()
            .take_while(|c| c.version > version)
        {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        Some(objects)
    }

    /// Wakes when a change is committed.
    #[must_use]
    pub fn subscribe(&self) -> Listener {
        self.signal.subscribe()
    }
}

/// What a write says about itself for the log.
#[derive(Debug, Clone)]
pub struct Origin<'a> {
    /// The identity of the client.
    pub client: &'a str,
    /// Verb and subresource.
    pub verb: &'a str,
    /// Cluster time.
    pub at: Duration,
}

/// A dependent of an owner: index of its table and its key.
pub type Dependent = (usize, Key);

/// All tables, the version counter and the log.
#[derive(Debug)]
pub struct Store {
    /// The newest resourceVersion.
    pub version: u64,
    /// Tables; an index stays valid for ever.
    pub tables: Vec<Table>,
    /// By group, then by plural.
    names: BTreeMap<String, BTreeMap<String, usize>>,
    owners: BTreeMap<String, BTreeSet<Dependent>>,
    live: BTreeMap<String, Dependent>,
    /// The log.
    pub history: History,
    /// Uids whose dependents the garbage collector has to look at.
    pub orphans: VecDeque<String>,
    changes_limit: usize,
    any: Signal,
}

impl Store {
    /// A store with the built-in resources that keeps `changes_limit` changes per resource and `log_limit` log lines.
    #[must_use]
    pub fn new(changes_limit: usize, log_limit: usize) -> Self {
        let mut store = Self {
            version: 1,
            tables: Vec::new(),
            names: BTreeMap::new(),
            owners: BTreeMap::new(),
            live: BTreeMap::new(),
            history: History::new(log_limit),
            orphans: VecDeque::new(),
            changes_limit: changes_limit.max(1),
            any: Signal::default(),
        };
        for ty in super::resources::builtin() {
            store.define(ty);
        }
        store
    }

    /// Adds a resource, or replaces the type of one that is there. Returns its index.
    pub fn define(&mut self, ty: ResourceType) -> usize {
        let (group, plural) = (ty.group.clone(), ty.plural.clone());
        if let Some(index) = self.index_of(&group, &plural) {
            if let Some(table) = self.tables.get_mut(index) {
                table.ty = Arc::new(ty);
                table.served = true;
            }
            return index;
        }
        let index = self.tables.len();
        self.tables.push(Table {
            ty: Arc::new(ty),
            served: true,
            objects: BTreeMap::new(),
            changes: VecDeque::new(),
            compacted: self.version,
            signal: Signal::default(),
        });
        self.names.entry(group).or_default().insert(plural, index);
        index
    }

    fn index_of(&self, group: &str, plural: &str) -> Option<usize> {
        self.names.get(group)?.get(plural).copied()
    }

    /// The index of a served resource.
    #[must_use]
    pub fn find(&self, group: &str, plural: &str) -> Option<usize> {
        let index = self.index_of(group, plural)?;
        self.tables.get(index).filter(|t| t.served).map(|_| index)
    }

    /// The table that holds the objects of the resource at `index` (another one for views such as events.k8s.io).
    #[must_use]
    pub fn storage(&self, index: usize) -> Option<usize> {
        let table = self.tables.get(index)?;
        match &table.ty.stored_as {
            Some((group, plural)) => self.find(group, plural),
            None => Some(index),
        }
    }

    /// The object at `key`.
    #[must_use]
    pub fn get(&self, index: usize, key: &Key) -> Option<&Arc<Stored>> {
        self.tables.get(index)?.objects.get(key)
    }

    /// Whether an object with this uid is there, and where.
    #[must_use]
    pub fn live(&self, uid: &str) -> Option<&Dependent> {
        self.live.get(uid)
    }

    /// The objects that name `uid` as an owner.
    #[must_use]
    pub fn dependents(&self, uid: &str) -> Vec<Dependent> {
        self.owners
            .get(uid)
            .map(|set| set.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Writes the new state of an object, or deletes it when `new` is `None`. The resourceVersion is set here.
    /// Returns the stored object (for a deletion: its last state).
    pub fn commit(
        &mut self,
        index: usize,
        key: &Key,
        new: Option<Value>,
        origin: &Origin<'_>,
    ) -> Option<Arc<Stored>> {
        let before = self.get(index, key).cloned();
        let version = self.version + 1;
        let kind = match (&before, &new) {
            (None, None) => return None,
            (None, Some(_)) => ChangeKind::Added,
            (Some(_), Some(_)) => ChangeKind::Modified,
            (Some(_), None) => ChangeKind::Deleted,
        };
        let mut value = match new {
            Some(value) => value,
            None => before.as_ref()?.value.clone(),
        };
        value::set(
            &mut value,
            &["metadata", "resourceVersion"],
            version.to_string(),
        );
        let object = Arc::new(Stored::new(value, version));
        self.version = version;
        self.index_owners(index, key, kind, before.as_deref(), &object);
        let log = Write {
            number: 0,
            at_ms: 0,
            client: origin.client.into(),
            verb: origin.verb.into(),
            resource: self.tables.get(index)?.ty.qualified(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            version,
            summary: summary(kind, before.as_deref().map(|b| &b.value), &object.value),
        };
        self.history.push(origin.at, log);
        let table = self.tables.get_mut(index)?;
        match kind {
            ChangeKind::Deleted => table.objects.remove(key),
            _ => table.objects.insert(key.clone(), object.clone()),
        };
        if table.changes.len() >= self.changes_limit
            && let Some(dropped) = table.changes.pop_front()
        {
            table.compacted = dropped.version;
        }
        table.changes.push_back(Arc::new(Change {
            kind,
            version,
            key: key.clone(),
            object: object.clone(),
            before,
        }));
        table.signal.send();
        self.any.send();
        Some(object)
    }

    fn index_owners(
        &mut self,
        index: usize,
        key: &Key,
        kind: ChangeKind,
        before: Option<&Stored>,
        after: &Stored,
    ) {
        let place = (index, key.clone());
        let owners = |stored: &Stored| -> BTreeSet<String> {
            value::items(&stored.value, &["metadata", "ownerReferences"])
                .iter()
                .map(|o| value::text(o, &["uid"]).to_owned())
                .collect()
        };
        let old = before.map(owners).unwrap_or_default();
        let new = if kind == ChangeKind::Deleted {
            BTreeSet::new()
        } else {
            owners(after)
        };
        for uid in old.difference(&new) {
            if let Some(set) = self.owners.get_mut(uid) {
                set.remove(&place);
                if set.is_empty() {
                    self.owners.remove(uid);
                }
            }
        }
        let uid = value::uid(&after.value).to_owned();
        if kind == ChangeKind::Deleted {
            self.live.remove(&uid);
            self.orphans.extend(old);
            self.orphans.push_back(uid);
        } else {
            for owner in new.difference(&old) {
                self.owners
                    .entry(owner.clone())
                    .or_default()
                    .insert(place.clone());
                if !self.live.contains_key(owner) {
                    self.orphans.push_back(owner.clone());
                }
            }
            if value::at(&after.value, &["metadata", "deletionTimestamp"]).is_some() {
                self.orphans.push_back(uid.clone());
            }
            self.live.insert(uid, place);
        }
    }

    /// Wakes when anything is committed.
    #[must_use]
    pub fn subscribe(&self) -> Listener {
        self.any.subscribe()
    }

    /// Forgets the changes of every resource, as a compaction does. A watch that has seen them all goes on; one from a
    /// version before the last of them gets 410.
    pub fn compact(&mut self) {
        for table in &mut self.tables {
            if let Some(last) = table.changes.back() {
                table.compacted = last.version;
            }
            table.changes.clear();
        }
    }

    /// Stops serving a resource and drops its objects' table entries (the objects must have been deleted before).
    pub fn undefine(&mut self, group: &str, plural: &str) {
        let found = self.index_of(group, plural);
        if let Some(table) = found.and_then(|index| self.tables.get_mut(index)) {
            table.served = false;
            table.signal.send();
        }
    }
}

/// The changed paths, at most eight, two levels deep, without what changes at every write.
fn summary(kind: ChangeKind, before: Option<&Value>, after: &Value) -> String {
    match (kind, before) {
        (ChangeKind::Added, _) => value::uid(after).to_owned(),
        (ChangeKind::Deleted, _) | (_, None) => value::uid(after).to_owned(),
        (ChangeKind::Modified, Some(before)) => {
            let mut paths = Vec::new();
            changed(before, after, &mut String::new(), 0, &mut paths);
            paths.truncate(8);
            paths.join(",")
        }
    }
}

fn changed(old: &Value, new: &Value, path: &mut String, depth: usize, out: &mut Vec<String>) {
    if out.len() > 8 {
        return;
    }
    // What is gone into is compared by its parts, once.
    let (a, b) = match (old, new) {
        (Value::Object(a), Value::Object(b)) if depth < 3 => (a, b),
        _ if old == new => return,
        (Value::Object(_), Value::Object(_)) => return out.push(path.clone()),
        _ => return out.push(leaf(path, new)),
    };
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for key in keys {
        if matches!(key.as_str(), "resourceVersion" | "managedFields") {
            continue;
        }
        let kept = path.len();
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        let null = Value::Null;
        changed(
            a.get(key).unwrap_or(&null),
            b.get(key).unwrap_or(&null),
            path,
            depth + 1,
            out,
        );
        path.truncate(kept);
    }
}

fn leaf(path: &str, new: &Value) -> String {
    match new {
        Value::Null | Value::Bool(_) | Value::Number(_) => format!("{path}={new}"),
        Value::String(text) if text.len() <= 64 => format!("{path}={text}"),
        _ => path.to_owned(),
    }
}
