//! What the server has: `/version`, `/api`, `/apis` (plain and aggregated), the resource lists, health, OpenAPI.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};

use super::http::Answer;
use super::openapi;
use super::resources::ResourceType;
use super::server::ApiServer;

/// The version that the server says it is.
pub const SERVER_VERSION: &str = "v1.37.2";

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers the paths that are no resources; `None` for the others.
#[must_use]
pub fn answer(server: &ApiServer, method: &Method, path: &str, accept: &str) -> Option<Answer> {
    if *method != Method::GET {
        return None;
    }
    let types = types(server);
    let aggregated = accept.contains("as=APIGroupDiscoveryList");
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let value = match parts.as_slice() {
        ["healthz" | "readyz" | "livez", ..] => {
            return Some(Answer::Typed("text/plain; charset=utf-8", "ok".into()));
        }
        ["version"] => version(),
        ["api"] if aggregated => return Some(typed(&aggregate(&types, true))),
        ["apis"] if aggregated => return Some(typed(&aggregate(&types, false))),
        ["api"] => {
            json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
        }
        ["apis"] => json!({"kind": "APIGroupList", "apiVersion": "v1",
            "groups": groups(&types).keys().map(|g| group_value(&types, g)).collect::<Vec<_>>()}),
        ["apis", group] => {
            groups(&types).get(*group)?;
            let mut value = group_value(&types, group);
            crate::value::set(&mut value, &["kind"], "APIGroup");
            crate::value::set(&mut value, &["apiVersion"], "v1");
            value
        }
        ["api", "v1"] => resource_list(&types, "", "v1")?,
        ["apis", group, version] => resource_list(&types, group, version)?,
        ["openapi", "v2"] => {
            json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": SERVER_VERSION},
            "paths": {}, "definitions": {}})
        }
        ["openapi", "v3"] => openapi::index(&groups(&types)),
        ["openapi", "v3", "api", "v1"] => openapi::document(&types, "", "v1")?,
        ["openapi", "v3", "apis", group, version] => openapi::document(&types, group, version)?,
        _ => return None,
    };
    Some(Answer::Document(200, value.to_string().into()))
}

fn typed(value: &Value) -> Answer {
    Answer::Typed(AGGREGATED, value.to_string().into())
}

fn types(server: &ApiServer) -> Vec<Arc<ResourceType>> {
    let store = server.store();
    store
        .tables
        .iter()
        .filter(|t| t.served)
        .map(|t| t.ty.clone())
        .collect()
}

fn version() -> Value {
    json!({"major": "1", "minor": "37", "gitVersion": SERVER_VERSION, "gitCommit": "embedded",
        "gitTreeState": "clean", "buildDate": "2026-09-08T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": "linux/amd64", "emulationMajor": "1", "emulationMinor": "37",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "36"})
}

/// The served versions of each named group, the preferred one first.
pub(crate) fn groups(types: &[Arc<ResourceType>]) -> BTreeMap<String, Vec<String>> {
    let mut map: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (group, version) in [
        ("authentication.k8s.io", "v1"),
        ("authorization.k8s.io", "v1"),
    ] {
        map.entry(group.into()).or_default().push(version.into());
    }
    for ty in types.iter().filter(|t| !t.group.is_empty()) {
        let versions = map.entry(ty.group.clone()).or_default();
        for version in &ty.versions {
            if !versions.contains(version) {
                versions.push(version.clone());
            }
        }
    }
    map
}

fn group_value(types: &[Arc<ResourceType>], group: &str) -> Value {
    let versions: Vec<Value> = groups(types)
        .get(group)
        .into_iter()
        .flatten()
        .map(|v| json!({"groupVersion": format!("{group}/{v}"), "version": v}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions.first()})
}

fn reviews(group: &str) -> &'static [(&'static str, &'static str)] {
    match group {
        "authentication.k8s.io" => &[
            ("tokenreviews", "TokenReview"),
            ("selfsubjectreviews", "SelfSubjectReview"),
        ],
        "authorization.k8s.io" => &[
            ("subjectaccessreviews", "SubjectAccessReview"),
            ("selfsubjectaccessreviews", "SelfSubjectAccessReview"),
            ("selfsubjectrulesreviews", "SelfSubjectRulesReview"),
        ],
        _ => &[],
    }
}

const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

fn subresource_verbs(name: &str) -> &'static [&'static str] {
    match name {
        "binding" | "eviction" | "token" => &["create"],
        "log" => &["get"],
        _ => &["get", "patch", "update"],
    }
}

fn resource_list(types: &[Arc<ResourceType>], group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for (plural, kind) in reviews(group) {
        list.push(json!({"name": plural, "singularName": "", "namespaced": false, "kind": kind, "verbs": ["create"]}));
    }
    for ty in types
        .iter()
        .filter(|t| t.group == group && t.versions.iter().any(|v| v == version))
    {
        let mut own = json!({"name": ty.plural, "singularName": ty.singular, "namespaced": ty.namespaced,
            "kind": ty.kind, "verbs": VERBS});
        if !ty.short.is_empty() {
            crate::value::set(&mut own, &["shortNames"], json!(ty.short));
        }
        if !ty.categories.is_empty() {
            crate::value::set(&mut own, &["categories"], json!(ty.categories));
        }
        list.push(own);
        for (name, kind, gv) in ty.subresources() {
            let (g, v) = gv.split_once('/').unwrap_or(("", gv.as_str()));
            list.push(json!({"name": format!("{}/{name}", ty.plural), "singularName": "", "namespaced": ty.namespaced,
                "kind": kind, "group": g, "version": v, "verbs": subresource_verbs(name)}));
        }
    }
    let gv = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    (!list.is_empty()).then(|| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": gv, "resources": list}))
}

fn aggregate(types: &[Arc<ResourceType>], core: bool) -> Value {
    let all: Vec<(String, Vec<String>)> = if core {
        vec![(String::new(), vec!["v1".into()])]
    } else {
        groups(types).into_iter().collect()
    };
    let items: Vec<Value> = all
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| json!({"version": v, "freshness": "Current", "resources": aggregate_version(types, group, v)}))
                .collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregate_version(types: &[Arc<ResourceType>], group: &str, version: &str) -> Vec<Value> {
    let mut list = Vec::new();
    for (plural, kind) in reviews(group) {
        list.push(json!({"resource": plural, "singularResource": "", "scope": "Cluster", "verbs": ["create"],
            "responseKind": {"group": group, "version": version, "kind": kind}}));
    }
    for ty in types
        .iter()
        .filter(|t| t.group == group && t.versions.iter().any(|v| v == version))
    {
        let subresources: Vec<Value> = ty
            .subresources()
            .into_iter()
            .map(|(name, kind, gv)| {
                let (g, v) = gv.split_once('/').unwrap_or(("", gv.as_str()));
                json!({"subresource": name, "responseKind": {"group": g, "version": v, "kind": kind},
                    "verbs": subresource_verbs(name)})
            })
            .collect();
        let scope = if ty.namespaced {
            "Namespaced"
        } else {
            "Cluster"
        };
        list.push(json!({"resource": ty.plural, "singularResource": ty.singular, "scope": scope, "verbs": VERBS,
            "shortNames": ty.short, "categories": ty.categories, "subresources": subresources,
            "responseKind": {"group": group, "version": version, "kind": ty.kind}}));
    }
    list
}
