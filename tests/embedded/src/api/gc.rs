//! The garbage collector and the end of namespaces: what kube-controller-manager does elsewhere.
//!
//! A deleted object puts its uid into the store's queue. For each dependent: when none of its owners is left it is
//! deleted, else the reference that dangles is taken out. An owner that waits for its dependents (foreground deletion)
//! is released when none is left.

use std::sync::Arc;

use serde_json::Value;

use super::error::ApiError;
use super::server::{ApiServer, Caller, DeleteOptions, Target};
use super::store::{Dependent, Stored};
use crate::value;

const CLIENT: &str = "garbage-collector";

impl ApiServer {
    /// Collects garbage until the server is shut down. One such task per server.
    pub async fn collect_garbage(&self) {
        let stop = self.stopped();
        loop {
            self.collect_once();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.inner.collect.notified() => {}
            }
        }
    }

    /// Works the queue off.
    pub fn collect_once(&self) {
        loop {
            let next = self.store().orphans.pop_front();
            match next {
                Some(uid) => self.collect(&uid),
                None if self.end_namespaces() == 0 => return,
                None => {}
            }
        }
    }

    fn place(&self, place: &Dependent) -> Option<(Target, Arc<Stored>)> {
        let store = self.store();
        let ty = store.tables.get(place.0)?.ty.clone();
        let object = Arc::clone(store.get(place.0, &place.1)?);
        let target = Target {
            table: place.0,
            version: ty.version().to_owned(),
            ty,
            namespace: place.1.namespace.clone(),
            name: place.1.name.clone(),
            subresource: String::new(),
        };
        Some((target, object))
    }

    fn collect(&self, uid: &str) {
        let owner = {
            let store = self.store();
            store.live(uid).cloned()
        };
        let caller = Caller::new(CLIENT);
        let waiting = owner
            .and_then(|place| self.place(&place))
            .filter(|(_, object)| {
                let name = Value::from("foregroundDeletion");
                value::items(&object.value, &["metadata", "finalizers"]).contains(&name)
            });
        let exists = self.store().live(uid).is_some();
        if exists && waiting.is_none() {
            return;
        }
        let dependents = self.store().dependents(uid);
        for place in &dependents {
            if let Some((target, object)) = self.place(place) {
                // A failure means that the dependent changed or went meanwhile, which queues it again.
                let _ = self.drop_dependent(&caller, &target, &object.value, uid);
            }
        }
        let left = !self.store().dependents(uid).is_empty();
        if let (Some((target, _)), false) = (waiting, left) {
            // A failure means that somebody else changed the owner meanwhile, which queues it again.
            let _ = self.modify(&caller, &target, "patch", |old| {
                let mut new = old.clone();
                value::list(&mut new, &["metadata", "finalizers"])
                    .retain(|f| f != "foregroundDeletion");
                Ok(new)
            });
        }
    }

    fn drop_dependent(
        &self,
        caller: &Caller,
        target: &Target,
        object: &Value,
        uid: &str,
    ) -> Result<(), ApiError> {
        let other_owner = {
            let store = self.store();
            value::items(object, &["metadata", "ownerReferences"])
                .iter()
                .map(|o| value::text(o, &["uid"]))
                .any(|o| o != uid && store.live(o).is_some())
        };
        if other_owner {
            self.modify(caller, target, "patch", |old| {
                let mut new = old.clone();
                value::list(&mut new, &["metadata", "ownerReferences"])
                    .retain(|o| value::text(o, &["uid"]) != uid);
                Ok(new)
            })?;
            return Ok(());
        }
        if value::at(object, &["metadata", "deletionTimestamp"]).is_some() {
            return Ok(());
        }
        let options = DeleteOptions {
            uid: Some(value::uid(object).to_owned()),
            propagation: "Background".into(),
            ..DeleteOptions::default()
        };
        self.delete(caller, target, &options).map(|_| ())
    }

    /// Empties namespaces that are being deleted, and removes those that are empty. Returns how many objects it touched.
    fn end_namespaces(&self) -> usize {
        let caller = Caller::new("namespace-controller");
        let ending: Vec<String> = {
            let store = self.store();
            let Some(table) = store
                .find("", "namespaces")
                .and_then(|i| store.tables.get(i))
            else {
                return 0;
            };
            let dying = |o: &Value| value::at(o, &["metadata", "deletionTimestamp"]).is_some();
            table
                .objects
                .values()
                .filter(|o| dying(&o.value))
                .map(|o| value::name(&o.value).to_owned())
                .collect()
        };
        let mut touched = 0;
        for namespace in ending {
            let (places, all) = self.contents(&namespace);
            for place in places {
                let Some((target, _)) = self.place(&place) else {
                    continue;
                };
                touched += usize::from(
                    self.delete(&caller, &target, &DeleteOptions::default())
                        .is_ok(),
                );
            }
            if all == 0
                && let Ok(target) = self.target("", "namespaces", "", &namespace)
            {
                let done = self.modify(&caller, &target, "update", |old| {
                    let mut new = old.clone();
                    value::set(&mut new, &["spec", "finalizers"], Value::Array(Vec::new()));
                    Ok(new)
                });
                touched += usize::from(done.is_ok());
            }
        }
        touched
    }

    /// The objects of a namespace that are not being deleted yet, and the number of all of them.
    fn contents(&self, namespace: &str) -> (Vec<Dependent>, usize) {
        let store = self.store();
        let mut all = 0;
        let mut list = Vec::new();
        for (index, table) in store.tables.iter().enumerate() {
            for (key, object) in table
                .objects
                .iter()
                .filter(|(k, _)| k.namespace == namespace)
            {
                all += 1;
                if value::at(&object.value, &["metadata", "deletionTimestamp"]).is_none() {
                    list.push((index, key.clone()));
                }
            }
        }
        (list, all)
    }
}
