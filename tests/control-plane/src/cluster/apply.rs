//! Objects from YAML, applied server-side as kubectl would. Of lists it knows `kind: List` alone, and a text that is no YAML is
//! refused whole.
//!
//! `kubectl apply --server-side` reads the API server's whole OpenAPI document each time it is called: half a second of two
//! processors, of which the suites have hundreds. This asks for the one API group that an object is of.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{self, Scope};
use serde_json::Value;

use super::Cluster;
use super::access::{CRD_TIMEOUT, LOOK_EVERY};
use crate::error::{Error, Result};

/// Who owns the fields that are applied.
const MANAGER: &str = "kubectl";
/// What an API server answers to a server-side apply of a kind whose schema it has not read yet.
const KINDS_TO_COME: &str =
    "There can be a delay between when CustomResourceDefinitions are created";

/// Longest wait for a kind to be there at all.
const KIND_TIMEOUT: Duration = Duration::from_secs(5);

/// Where objects of a kind go.
type Kinds = BTreeMap<(String, String), (ApiResource, Scope)>;

impl Cluster {
    /// Applies YAML documents server-side as admin, each field of them one that the kind has; a `List` is what it lists. Objects
    /// without a namespace go to `default`. All are tried.
    ///
    /// # Errors
    /// What the API server says of the objects that it refuses, a line each.
    pub async fn apply_yaml(&self, yaml: &str) -> Result<()> {
        let mut kinds = Kinds::new();
        let mut refused = Vec::new();
        let since = Instant::now();
        for object in documents(yaml)? {
            if let Err(why) = self.apply(&object, &mut kinds, since).await {
                refused.push(format!(
                    "{} {}: {why}",
                    text(&object, "/kind"),
                    text(&object, "/metadata/name")
                ));
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        Err(Error::Refused {
            what: "apply".into(),
            refused: refused.join("\n"),
        })
    }

    /// The same of a file.
    ///
    /// # Errors
    /// The file can't be read; and as [`Cluster::apply_yaml`].
    pub async fn apply_file(&self, file: &Path) -> Result<()> {
        let read = std::fs::read_to_string(file);
        self.apply_yaml(&read.map_err(Error::io(format!("read {}", file.display())))?)
            .await
    }

    /// Until so long after `since` an API server that is not ready for it is asked again.
    async fn apply(
        &self,
        object: &Value,
        kinds: &mut Kinds,
        since: Instant,
    ) -> Result<(), kube::Error> {
        loop {
            match self.apply_once(object, kinds, since).await {
                Err(error) if is_early(&error, since.elapsed()) => {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                applied => return applied,
            }
        }
    }

    async fn apply_once(
        &self,
        object: &Value,
        kinds: &mut Kinds,
        since: Instant,
    ) -> Result<(), kube::Error> {
        let params = PatchParams::apply(MANAGER).force().validation_strict();
        let api = self.api_of(object, kinds, since).await?;
        let name = text(object, "/metadata/name");
        api.patch(name, &params, &Patch::Apply(object)).await?;
        Ok(())
    }

    async fn api_of(
        &self,
        object: &Value,
        kinds: &mut Kinds,
        since: Instant,
    ) -> Result<Api<DynamicObject>, kube::Error> {
        let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
        let key = (version.to_owned(), kind.to_owned());
        let (resource, scope) = match kinds.get(&key) {
            Some(known) => known.clone(),
            None => {
                let (group, version) = version.split_once('/').unwrap_or(("", version));
                let kind = GroupVersionKind::gvk(group, version, kind);
                let (resource, found) = loop {
                    match discovery::pinned_kind(&self.admin(), &kind).await {
                        Err(error) if is_unknown(&error) && since.elapsed() < KIND_TIMEOUT => {
                            tokio::time::sleep(LOOK_EVERY).await;
                        }
                        found => break found?,
                    }
                };
                kinds.insert(key, (resource.clone(), found.scope.clone()));
                (resource, found.scope)
            }
        };
        let namespace = match text(object, "/metadata/namespace") {
            "" => "default",
            named => named,
        };
        Ok(match scope {
            Scope::Cluster => Api::all_with(self.admin(), &resource),
            Scope::Namespaced => Api::namespaced_with(self.admin(), namespace, &resource),
        })
    }
}

/// Nobody has defined the kind, or its CustomResourceDefinition is not served yet.
fn is_unknown(error: &kube::Error) -> bool {
    match error {
        kube::Error::Discovery(_) => true,
        kube::Error::Api(status) => status.code == 404,
        _ => false,
    }
}

/// An API server that has just started says for some moments that it does not know the kinds of its
/// CustomResourceDefinitions yet; it says so of server-side apply even while it lists and creates them.
fn is_early(error: &kube::Error, waited: Duration) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    (status.code == 429 || status.message.contains(KINDS_TO_COME)) && waited < CRD_TIMEOUT
}

/// The objects of a text.
fn documents(yaml: &str) -> Result<Vec<Value>> {
    let read = serde_saphyr::from_multiple::<Value>(yaml).map_err(|error| Error::Invalid {
        field: "YAML to apply".into(),
        value: error.to_string(),
        limit: "documents with one object each".into(),
    })?;
    let mut objects = Vec::new();
    for document in read.into_iter().filter(|document| !document.is_null()) {
        match document.pointer("/items").and_then(Value::as_array) {
            Some(items) if text(&document, "/kind") == "List" => {
                objects.extend(items.iter().cloned());
            }
            _ => objects.push(document),
        }
    }
    Ok(objects)
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    let found = object.pointer(path);
    found.and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_objects_and_empty_documents_are_none() {
        let yaml = "# nothing\n---\nkind: A\n---\n---\napiVersion: v1\nkind: List\nitems: [{kind: B}, {kind: C}]\n";
        let read = documents(yaml).unwrap();
        let kinds: Vec<&str> = read.iter().map(|object| text(object, "/kind")).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        assert!(documents("a: [").is_err());
    }
}
