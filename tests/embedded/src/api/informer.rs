//! What stand-ins read and write with: a client without HTTP, and an informer on one resource.

use std::sync::Arc;

use serde_json::Value;

use super::error::ApiError;
use super::selectors::Filter;
use super::server::{ApiServer, Caller, DeleteOptions, Target};
use super::store::{Change, Stored};
use crate::signal::Listener;
use crate::value;

/// A client of the server that calls its verbs directly. Calls are counted and logged like those by HTTP.
#[derive(Debug, Clone)]
pub struct Local {
    server: ApiServer,
    caller: Caller,
}

impl Local {
    /// A client under the identity `client`.
    #[must_use]
    pub fn new(server: &ApiServer, client: &str) -> Self {
        Self {
            server: server.clone(),
            caller: Caller::new(client),
        }
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    fn target(
        &self,
        verb: &str,
        kind: (&str, &str),
        namespace: &str,
        name: &str,
    ) -> Result<Target, ApiError> {
        self.server.count(&self.caller.client, verb, kind.1);
        self.server.target(kind.0, kind.1, namespace, name)
    }

    /// Reads one object; `kind` is group and plural.
    ///
    /// # Errors
    /// 404.
    pub fn get(
        &self,
        kind: (&str, &str),
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Stored>, ApiError> {
        self.server.get(&self.target("get", kind, namespace, name)?)
    }

    /// All objects of a resource, in every namespace.
    ///
    /// # Errors
    /// 404 when the resource is not served.
    pub fn list(&self, kind: (&str, &str)) -> Result<Vec<Arc<Stored>>, ApiError> {
        let target = self.target("list", kind, "", "")?;
        self.server
            .list(&target, &Filter::default())
            .map(|(objects, _)| objects)
    }

    /// Creates an object in the namespace that it names.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn create(&self, kind: (&str, &str), object: Value) -> Result<Arc<Stored>, ApiError> {
        let namespace = value::namespace(&object).to_owned();
        let target = self.target("create", kind, &namespace, "")?;
        self.server.create(&self.caller, &target, object)
    }

    /// Changes an object or a subresource (`""`, `status`) in one step.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn change(
        &self,
        kind: (&str, &str),
        namespace: &str,
        name: &str,
        subresource: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<Arc<Stored>, ApiError> {
        let mut target = self.target("patch", kind, namespace, name)?;
        target.subresource = subresource.into();
        self.server.modify(&self.caller, &target, "patch", |old| {
            let mut new = old.clone();
            change(&mut new);
            Ok(new)
        })
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn delete(
        &self,
        kind: (&str, &str),
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        let target = self.target("delete", kind, namespace, name)?;
        self.server
            .delete(&self.caller, &target, options)
            .map(|_| ())
    }

    /// Binds a pod.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn bind(&self, namespace: &str, name: &str, binding: &Value) -> Result<(), ApiError> {
        let target = self.target("create", ("", "pods"), namespace, name)?;
        self.server.bind(&self.caller, &target, binding).map(|_| ())
    }

    /// Evicts a pod.
    ///
    /// # Errors
    /// What the server refuses.
    pub fn evict(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        let target = self.target("create", ("", "pods"), namespace, name)?;
        self.server.evict(&self.caller, &target, options)
    }

    /// Records an event on an object.
    pub fn event(&self, about: &Value, kind: &str, reason: &str, message: &str) {
        let now = self.server.clock().stamp();
        let namespace = match value::namespace(about) {
            "" => "default",
            other => other,
        };
        let name = format!(
            "{}.{}",
            value::name(about),
            self.server.chance().token().get(..16).unwrap_or_default()
        );
        let event = serde_json::json!({
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {"kind": about.get("kind"), "apiVersion": about.get("apiVersion"),
                "name": value::name(about), "namespace": value::namespace(about), "uid": value::uid(about)},
            "type": kind, "reason": reason, "message": message, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now, "eventTime": self.server.clock().stamp_micro(),
            "reportingComponent": self.caller.client, "source": {"component": self.caller.client},
        });
        if let Err(error) = self.create(("", "events"), event) {
            tracing::debug!(%error, "event not recorded");
        }
    }
}

/// What an informer saw.
#[derive(Debug)]
pub enum Batch {
    /// All objects: at the start, and after history was lost.
    Resync(Vec<Arc<Stored>>),
    /// What changed since.
    Changes(Vec<Arc<Change>>),
}

/// Follows one resource without gaps.
#[derive(Debug)]
pub struct Informer {
    server: ApiServer,
    table: usize,
    at: Option<u64>,
    signal: Listener,
}

impl Informer {
    /// An informer that starts with all objects.
    ///
    /// # Errors
    /// 404 when the resource is not served.
    pub fn new(server: &ApiServer, group: &str, plural: &str) -> Result<Self, ApiError> {
        let table = server.target(group, plural, "", "")?.table;
        let store = server.store();
        let signal = store
            .tables
            .get(table)
            .ok_or_else(ApiError::no_such_path)?
            .subscribe();
        drop(store);
        Ok(Self {
            server: server.clone(),
            table,
            at: None,
            signal,
        })
    }

    /// What is new, or `None` when nothing is.
    pub fn poll(&mut self) -> Option<Batch> {
        self.signal.mark_seen();
        let store = self.server.store();
        let table = store.tables.get(self.table)?;
        if let Some(at) = self.at
            && let Some(changes) = table.changes_after(at, usize::MAX)
        {
            self.at = changes.last().map_or(Some(at), |c| Some(c.version));
            return (!changes.is_empty()).then_some(Batch::Changes(changes));
        }
        self.at = Some(store.version);
        Some(Batch::Resync(table.objects.values().cloned().collect()))
    }

    /// Waits until `poll` may have something.
    pub async fn changed(&mut self) {
        if self.at.is_some() {
            self.signal.changed().await;
        }
    }
}
