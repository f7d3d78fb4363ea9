//! The API server as a value: shared state, and the verbs on JSON objects.
//!
//! ```text
//! HTTP request ─► http.rs (path, verb, query) ─► verbs here ─► strategy (defaults, rules) ─► store.commit
//! stand-in     ──────────────────────────────────┘
//! ```
//! Every verb runs under one lock from the read to the commit, so a write is atomic with its checks. Admission
//! functions run under that lock too: they may look at the object only.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::admission::{AdmissionContext, Mutator, Operation};
use super::auth::Tokens;
use super::error::ApiError;
use super::faults::{Faults, NoFaults};
use super::history::Write;
use super::patch::{self, PatchKind};
use super::resources::ResourceType;
use super::selectors::Filter;
use super::store::{Key, Origin, Store, Stored};
use super::{events, strategy};
use crate::clock::{Chance, Clock};
use crate::signal::Listener;
use crate::value;

/// Sizes of the API server's memory.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Changes kept per resource for watches; older ones answer 410.
    pub changes: usize,
    /// Writes kept in the event log; the digest covers all of them.
    pub log: usize,
    /// Largest request body, in bytes.
    pub body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            changes: 65_536,
            log: 1_000_000,
            body_bytes: 3 * 1024 * 1024,
        }
    }
}

/// Who asks, and how the write is to be done.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Identity of the client, for the log, the counts and the faults.
    pub client: String,
    /// `fieldManager` of the query.
    pub manager: String,
    /// Whether nothing is to be kept (`dryRun=All`).
    pub dry_run: bool,
    /// Whether unknown fields of custom resources are an error (`fieldValidation=Strict`).
    pub strict: bool,
}

impl Caller {
    /// A caller with this identity and no options.
    #[must_use]
    pub fn new(client: &str) -> Self {
        Self {
            client: client.into(),
            ..Self::default()
        }
    }
}

/// What a request is about.
#[derive(Debug, Clone)]
pub struct Target {
    /// The table of the resource.
    pub table: usize,
    /// Its type.
    pub ty: Arc<ResourceType>,
    /// The version in the path.
    pub version: String,
    /// Namespace of the path, `""` without one.
    pub namespace: String,
    /// Name of the path, `""` without one.
    pub name: String,
    /// Subresource, `""` without one.
    pub subresource: String,
}

impl Target {
    /// The key of the named object.
    #[must_use]
    pub fn key(&self) -> Key {
        Key::new(&self.namespace, &self.name)
    }

    fn verb(&self, verb: &str) -> String {
        if self.subresource.is_empty() {
            verb.to_owned()
        } else {
            format!("{verb}/{}", self.subresource)
        }
    }
}

/// What stands in DeleteOptions.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Seconds to wait for the kubelet; the pod's own value when `None`.
    pub grace_seconds: Option<i64>,
    /// `Background` (also when empty), `Foreground` or `Orphan`.
    pub propagation: String,
    /// The uid that the object has to have.
    pub uid: Option<String>,
    /// The resourceVersion that the object has to have.
    pub version: Option<String>,
}

/// Counts of requests by (client, verb, resource).
pub type RequestCounts = BTreeMap<(String, String, String), u64>;

pub(crate) struct Inner {
    pub(crate) store: Mutex<Store>,
    pub(crate) clock: Clock,
    pub(crate) chance: Chance,
    pub(crate) limits: Limits,
    pub(crate) faults: RwLock<Arc<dyn Faults>>,
    pub(crate) mutators: RwLock<Vec<Mutator>>,
    pub(crate) tokens: Tokens,
    pub(crate) counts: Mutex<RequestCounts>,
    pub(crate) stop: CancellationToken,
    pub(crate) collect: Notify,
    pub(crate) requests: AtomicU64,
    /// Requests that are applied later than they came. They end with the server.
    pub(crate) late: Mutex<JoinSet<()>>,
}

/// The API server. Clones share one state.
#[derive(Clone)]
pub struct ApiServer {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("version", &self.store().version)
            .finish_non_exhaustive()
    }
}

impl ApiServer {
    /// An API server with the namespaces and priority classes that every cluster has.
    #[must_use]
    pub fn new(clock: Clock, seed: u64, limits: Limits) -> Self {
        let server = Self {
            inner: Arc::new(Inner {
                store: Mutex::new(Store::new(limits.changes, limits.log)),
                clock,
                chance: Chance::new(seed),
                limits,
                faults: RwLock::new(Arc::new(NoFaults)),
                mutators: RwLock::new(Vec::new()),
                tokens: Tokens::default(),
                counts: Mutex::new(BTreeMap::new()),
                stop: CancellationToken::new(),
                collect: Notify::new(),
                requests: AtomicU64::new(0),
                late: Mutex::new(JoinSet::new()),
            }),
        };
        super::bootstrap::fill(&server);
        server
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.inner
            .store
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// The cluster's source of chance.
    #[must_use]
    pub fn chance(&self) -> &Chance {
        &self.inner.chance
    }

    /// Puts other faults in place; they hold from the next request on.
    pub fn set_faults(&self, faults: Arc<dyn Faults>) {
        *self
            .inner
            .faults
            .write()
            .unwrap_or_else(PoisonError::into_inner) = faults;
    }

    pub(crate) fn faults(&self) -> Arc<dyn Faults> {
        self.inner
            .faults
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Adds an admission function; they run in the order in which they were added, after the built-in ones.
    pub fn add_mutator(&self, mutator: Mutator) {
        self.inner
            .mutators
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(mutator);
    }

    /// Number of writes so far, and the digest over all of them.
    #[must_use]
    pub fn digest(&self) -> (u64, u64) {
        let store = self.store();
        (store.history.count(), store.history.digest())
    }

    /// The writes with a number above `after`, oldest first.
    #[must_use]
    pub fn writes_since(&self, after: u64) -> Vec<Write> {
        self.store().history.since(after)
    }

    /// Requests so far by (client, verb, resource). Calls of the stand-ins count like those that come by HTTP.
    #[must_use]
    pub fn request_counts(&self) -> RequestCounts {
        self.inner
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn count(&self, client: &str, verb: &str, resource: &str) {
        let key = (client.to_owned(), verb.to_owned(), resource.to_owned());
        let mut counts = self
            .inner
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *counts.entry(key).or_default() += 1;
    }

    /// Forgets all history, as a compaction does: watches that resume from an older version get 410.
    pub fn compact(&self) {
        self.store().compact();
    }

    /// Runs what goes on without its caller, and forgets what has ended.
    pub(crate) fn own(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut late = self
            .inner
            .late
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while late.try_join_next().is_some() {}
        late.spawn(task);
    }

    /// Waits until what went on without its caller has ended; after `shutdown`.
    pub(crate) async fn join_late(&self) {
        let mut late = std::mem::take(
            &mut *self
                .inner
                .late
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        while late.join_next().await.is_some() {}
    }

    /// Tells of every write of the store.
    #[must_use]
    pub fn subscribe(&self) -> Listener {
        self.store().subscribe()
    }

    /// Ends every watch and the background tasks.
    pub fn shutdown(&self) {
        self.inner.stop.cancel();
    }

    /// Ends when the server is shut down.
    pub(crate) fn stopped(&self) -> CancellationToken {
        self.inner.stop.clone()
    }

    /// The resource `plural` of `group`, for an object or a collection.
    ///
    /// # Errors
    /// 404 when the resource is not served.
    pub fn target(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Target, ApiError> {
        let store = self.store();
        let table = store
            .find(group, plural)
            .ok_or_else(ApiError::no_such_path)?;
        let ty = store
            .tables
            .get(table)
            .ok_or_else(ApiError::no_such_path)?
            .ty
            .clone();
        Ok(Target {
            table: store.storage(table).ok_or_else(ApiError::no_such_path)?,
            version: ty.version().to_owned(),
            ty,
            namespace: namespace.into(),
            name: name.into(),
            subresource: String::new(),
        })
    }

    /// Reads one object.
    ///
    /// # Errors
    /// 404 when it is not there.
    pub fn get(&self, target: &Target) -> Result<Arc<Stored>, ApiError> {
        self.store()
            .get(target.table, &target.key())
            .cloned()
            .ok_or_else(|| ApiError::not_found(&target.ty, &target.name))
    }

    /// All selected objects, and the version of the list.
    ///
    /// # Errors
    /// 404 when the resource is no longer served.
    pub fn list(
        &self,
        target: &Target,
        filter: &Filter,
    ) -> Result<(Vec<Arc<Stored>>, u64), ApiError> {
        let store = self.store();
        let table = store
            .tables
            .get(target.table)
            .ok_or_else(ApiError::no_such_path)?;
        let objects = table
            .objects
            .values()
            .filter(|o| filter.holds(&o.value))
            .cloned();
        Ok((objects.collect(), store.version))
    }

    /// Creates an object.
    ///
    /// # Errors
    /// What Kubernetes answers: 400, 403, 404 for the namespace, 409, 422.
    pub fn create(
        &self,
        caller: &Caller,
        target: &Target,
        body: Value,
    ) -> Result<Arc<Stored>, ApiError> {
        let mut object = self.incoming(target, body)?;
        let mut store = self.store();
        strategy::name_new(&mut object, target, &self.inner.chance)?;
        let key = Key::new(&target.namespace, value::name(&object));
        strategy::check_namespace(&store, target)?;
        strategy::fresh_metadata(
            &mut object,
            &target.ty,
            &self.inner.clock,
            &self.inner.chance,
        )?;
        self.admit(&store, caller, target, &key, &mut object, None)?;
        strategy::prepare_create(&store, caller, target, &mut object, &self.inner.clock)?;
        if store.get(target.table, &key).is_some() {
            return Err(ApiError::already_exists(&target.ty, &key.name));
        }
        if caller.dry_run {
            value::set(&mut object, &["metadata", "resourceVersion"], "");
            return Ok(Arc::new(Stored::unsaved(object)));
        }
        let stored = self.commit(&mut store, caller, target, "create", &key, Some(object))?;
        strategy::after_write(&mut store, target, &stored.value);
        drop(store);
        self.inner.collect.notify_one();
        Ok(stored)
    }

    /// Replaces an object (or its subresource) by `body`.
    ///
    /// # Errors
    /// What Kubernetes answers: 400, 404, 409, 422.
    pub fn update(
        &self,
        caller: &Caller,
        target: &Target,
        body: Value,
    ) -> Result<Arc<Stored>, ApiError> {
        let body = self.incoming(target, body)?;
        let leases = target.ty.is("coordination.k8s.io", "leases");
        if leases && target.subresource.is_empty() && self.get(target).is_err() {
            return self.create(caller, target, body);
        }
        self.modify(caller, target, "update", |old| {
            strategy::check_update_metadata(target, old, &body)?;
            Ok(body)
        })
    }

    /// Patches an object (or its subresource). Apply creates what is not there.
    ///
    /// # Errors
    /// What Kubernetes answers: 400, 404, 409, 415, 422.
    pub fn patch(
        &self,
        caller: &Caller,
        target: &Target,
        kind: PatchKind,
        body: &Value,
    ) -> Result<(Arc<Stored>, bool), ApiError> {
        if kind == PatchKind::Strategic && target.ty.custom {
            return Err(ApiError::unsupported_media(
                "application/strategic-merge-patch+json",
            ));
        }
        if kind == PatchKind::Apply && self.get(target).is_err() {
            let mut object = Value::Null;
            patch::apply(
                &mut object,
                body,
                &caller.manager,
                &target.subresource,
                &self.inner.clock.stamp(),
            );
            value::set(&mut object, &["metadata", "name"], target.name.clone());
            return self.create(caller, target, object).map(|o| (o, true));
        }
        let wanted = value::text(body, &["metadata", "resourceVersion"]).to_owned();
        let now = self.inner.clock.stamp();
        let done = self.modify(caller, target, "patch", |old| {
            if kind != PatchKind::Json
                && !wanted.is_empty()
                && wanted != value::text(old, &["metadata", "resourceVersion"])
            {
                return Err(ApiError::stale(&target.ty, &target.name));
            }
            let mut new = events::outgoing(&target.ty, old);
            match kind {
                PatchKind::Json => patch::json_patch(&mut new, body)?,
                PatchKind::Merge => patch::merge(&mut new, body),
                PatchKind::Strategic => patch::strategic(&mut new, body),
                PatchKind::Apply => {
                    patch::apply(&mut new, body, &caller.manager, &target.subresource, &now)
                }
            }
            strategy::check_update_metadata(target, old, &new)?;
            Ok(events::incoming(&target.ty, new))
        })?;
        Ok((done, false))
    }

    /// Reads, changes and writes an object in one step. A change that changes nothing is not written.
    ///
    /// # Errors
    /// 404 when the object is not there, the error of `change`, and what the rules of the resource refuse.
    pub fn modify(
        &self,
        caller: &Caller,
        target: &Target,
        verb: &str,
        change: impl FnOnce(&Value) -> Result<Value, ApiError>,
    ) -> Result<Arc<Stored>, ApiError> {
        let mut store = self.store();
        let key = target.key();
        let old = store
            .get(target.table, &key)
            .cloned()
            .ok_or_else(|| ApiError::not_found(&target.ty, &target.name))?;
        let mut new = change(&old.value)?;
        strategy::keep_metadata(&mut new, &old.value, target);
        if target.subresource.is_empty() {
            self.admit(&store, caller, target, &key, &mut new, Some(&old.value))?;
        } else if target.subresource == "status" {
            super::admission::emulate_status(&store, &target.ty, &mut new, &old.value);
        }
        strategy::prepare_update(caller, target, &mut new, &old.value)?;
        if new == old.value {
            return Ok(old);
        }
        if caller.dry_run {
            return Ok(Arc::new(Stored::unsaved(new)));
        }
        let gone = strategy::is_finished(&new);
        let stored = self.commit(&mut store, caller, target, verb, &key, Some(new))?;
        if gone {
            self.commit(&mut store, caller, target, "delete", &key, None)?;
            strategy::after_delete(&mut store, target, &stored.value);
        } else {
            strategy::after_write(&mut store, target, &stored.value);
        }
        drop(store);
        self.inner.collect.notify_one();
        Ok(stored)
    }

    /// Deletes an object, or marks it for deletion when something has to happen first (finalizers, a kubelet,
    /// dependents). Returns the object, and whether it is gone.
    ///
    /// # Errors
    /// 404 when it is not there, 409 when a precondition does not hold.
    pub fn delete(
        &self,
        caller: &Caller,
        target: &Target,
        options: &DeleteOptions,
    ) -> Result<(Arc<Stored>, bool), ApiError> {
        let mut store = self.store();
        let key = target.key();
        let old = store
            .get(target.table, &key)
            .cloned()
            .ok_or_else(|| ApiError::not_found(&target.ty, &target.name))?;
        strategy::check_preconditions(
            target,
            &old.value,
            options.uid.as_deref(),
            options.version.as_deref(),
        )?;
        if caller.dry_run {
            return Ok((old, true));
        }
        if options.propagation == "Orphan" {
            self.orphan_dependents(&mut store, caller, value::uid(&old.value))?;
        }
        let marked = strategy::mark_deleted(&old.value, target, options, &self.inner.clock);
        let result = match marked {
            Some(new) if new == old.value => (old, false),
            Some(new) => (
                self.commit(&mut store, caller, target, "delete", &key, Some(new))?,
                false,
            ),
            None => {
                let last = self.commit(&mut store, caller, target, "delete", &key, None)?;
                strategy::after_delete(&mut store, target, &last.value);
                (last, true)
            }
        };
        drop(store);
        self.inner.collect.notify_one();
        Ok(result)
    }

    fn orphan_dependents(
        &self,
        store: &mut Store,
        caller: &Caller,
        uid: &str,
    ) -> Result<(), ApiError> {
        for (table, key) in store.dependents(uid) {
            let Some(object) = store.get(table, &key).cloned() else {
                continue;
            };
            let Some(ty) = store.tables.get(table).map(|t| t.ty.clone()) else {
                continue;
            };
            let mut new = object.value.clone();
            value::list(&mut new, &["metadata", "ownerReferences"])
                .retain(|o| value::text(o, &["uid"]) != uid);
            let version = ty.version().to_owned();
            let target = Target {
                table,
                ty,
                version,
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                subresource: String::new(),
            };
            self.commit(store, caller, &target, "patch", &key, Some(new))?;
        }
        Ok(())
    }

    pub(crate) fn commit(
        &self,
        store: &mut Store,
        caller: &Caller,
        target: &Target,
        verb: &str,
        key: &Key,
        new: Option<Value>,
    ) -> Result<Arc<Stored>, ApiError> {
        let verb = target.verb(verb);
        let origin = Origin {
            client: &caller.client,
            verb: &verb,
            at: self.inner.clock.elapsed(),
        };
        store
            .commit(target.table, key, new, &origin)
            .ok_or_else(|| ApiError::not_found(&target.ty, &key.name))
    }

    fn incoming(&self, target: &Target, body: Value) -> Result<Value, ApiError> {
        strategy::check_kind(target, &body)?;
        let mut object = events::incoming(&target.ty, body);
        if target.ty.stored_as.is_none() {
            let api_version = target.ty.api_version(target.ty.version());
            value::set(&mut object, &["apiVersion"], api_version);
            value::set(&mut object, &["kind"], target.ty.kind.clone());
        }
        strategy::check_path(target, &mut object)?;
        Ok(object)
    }

    fn admit(
        &self,
        store: &Store,
        caller: &Caller,
        target: &Target,
        key: &Key,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), ApiError> {
        let context = AdmissionContext {
            operation: if old.is_some() {
                Operation::Update
            } else {
                Operation::Create
            },
            ty: &target.ty,
            namespace: &key.namespace,
            name: &key.name,
            client: &caller.client,
            old,
        };
        super::admission::emulate(store, object, &context);
        let mutators = self
            .inner
            .mutators
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for mutator in &mutators {
            mutator(object, &context)?;
        }
        Ok(())
    }
}
