//! OpenAPI v3, as much as kubectl needs: which kinds take PATCH with `fieldValidation`, and the schemas of custom
//! resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::resources::ResourceType;

/// The list of documents.
#[must_use]
pub fn index(groups: &BTreeMap<String, Vec<String>>) -> Value {
    let mut paths = json!({"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"}});
    for (group, versions) in groups {
        for version in versions {
            let path = format!("apis/{group}/{version}");
            let url = format!("/openapi/v3/{path}");
            crate::value::set(
                &mut paths,
                &[path.as_str()],
                json!({"serverRelativeURL": url}),
            );
        }
    }
    json!({"paths": paths})
}

/// The document of one group and version; `None` when it is not served.
#[must_use]
pub fn document(types: &[Arc<ResourceType>], group: &str, version: &str) -> Option<Value> {
    let mut paths = json!({});
    let mut schemas = json!({});
    let of_group = types
        .iter()
        .filter(|t| t.group == group && t.versions.iter().any(|v| v == version));
    let mut any = matches!(group, "authentication.k8s.io" | "authorization.k8s.io");
    for ty in of_group {
        any = true;
        let gvk = json!({"group": group, "version": version, "kind": ty.kind});
        let base = if group.is_empty() {
            format!("/api/{version}")
        } else {
            format!("/apis/{group}/{version}")
        };
        let place = if ty.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let query: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation", "force"]
            .iter()
            .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
            .collect();
        let operation = |action: &str| {
            json!({"parameters": query, "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk})
        };
        let one = format!("{base}{place}/{}/{{name}}", ty.plural);
        let item =
            json!({"get": operation("get"), "patch": operation("patch"), "put": operation("put")});
        crate::value::set(&mut paths, &[one.as_str()], item);
        let many = format!("{base}{place}/{}", ty.plural);
        crate::value::set(
            &mut paths,
            &[many.as_str()],
            json!({"post": operation("post"), "get": operation("list")}),
        );
        let mut schema = ty
            .schemas
            .get(version)
            .cloned()
            .unwrap_or_else(|| json!({"type": "object"}));
        crate::value::set(
            &mut schema,
            &["x-kubernetes-group-version-kind"],
            json!([gvk]),
        );
        let domain: Vec<&str> = group.split('.').rev().collect();
        let name = format!("{}.{version}.{}", domain.join("."), ty.kind);
        crate::value::set(&mut schemas, &[name.trim_start_matches('.')], schema);
    }
    any.then(|| {
        json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": super::discovery::SERVER_VERSION},
            "paths": paths, "components": {"schemas": schemas}})
    })
}
