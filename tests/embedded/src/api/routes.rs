//! From paths to verbs, and the verbs' options from queries and bodies.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use super::error::{ApiError, FieldError};
use super::faults::RequestInfo;
use super::http::{Answer, WATCH_TIMEOUT_DEFAULT, stream_body};
use super::patch::PatchKind;
use super::query::{Query, decode};
use super::render::Render;
use super::selectors::Filter;
use super::server::{ApiServer, Caller, DeleteOptions, Target};
use super::store::Key;
use super::watch::{self, WatchOptions};
use super::{scale, server};
use crate::value;

/// A request that was understood.
#[derive(Debug, Clone)]
pub struct Call {
    verb: &'static str,
    target: Option<Target>,
    review: &'static str,
}

impl Call {
    /// The verb, as RBAC names it.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        self.verb
    }

    /// Group, resource, subresource, namespace and name.
    #[must_use]
    pub fn place(&self) -> (String, String, String, String, String) {
        match &self.target {
            Some(t) => (
                t.ty.group.clone(),
                t.ty.plural.clone(),
                t.subresource.clone(),
                t.namespace.clone(),
                t.name.clone(),
            ),
            None => (
                String::new(),
                self.review.into(),
                String::new(),
                String::new(),
                String::new(),
            ),
        }
    }
}

/// What a call needs besides the path.
#[derive(Debug)]
pub struct RequestContext<'a> {
    /// Who and what, for watches.
    pub info: &'a RequestInfo,
    /// The query.
    pub query: &'a Query,
    /// `Accept`.
    pub accept: &'a str,
    /// `Content-Type`.
    pub content_type: &'a str,
    /// The body.
    pub body: &'a Bytes,
    /// Most objects of one page, where that is limited.
    pub page_max: Option<usize>,
    /// Whether bookmarks may be sent.
    pub bookmarks: bool,
}

const REVIEWS: &[(&str, &str)] = &[
    ("authentication.k8s.io", "tokenreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
];

/// Finds what a path is about.
///
/// # Errors
/// 404 when it leads nowhere, 405 when the method does not fit.
pub fn route(
    server: &ApiServer,
    method: &Method,
    path: &str,
    query: &Query,
) -> Result<Call, ApiError> {
    let parts: Vec<String> = path
        .split('/')
        .filter(|p| !p.is_empty())
        .map(|p| decode(p, false))
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Err(ApiError::no_such_path()),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, plural, tail @ ..]
            if !matches!(*plural, "status" | "finalize") =>
        {
            let mut list = vec![*plural];
            list.extend(tail);
            (*namespace, list)
        }
        other => ("", other.to_vec()),
    };
    if let Some((_, review)) = REVIEWS.iter().find(|(g, r)| *g == group && rest == [*r]) {
        return Ok(Call {
            verb: "create",
            target: None,
            review,
        });
    }
    let (plural, name, subresource) = match rest.as_slice() {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, sub] => (*plural, *name, *sub),
        _ => return Err(ApiError::no_such_path()),
    };
    if group.is_empty() && plural == "bindings" && name.is_empty() {
        let mut target = server.target("", "pods", namespace, "")?;
        target.subresource = "binding".into();
        return Ok(Call {
            verb: "create",
            target: Some(target),
            review: "",
        });
    }
    let mut target = server.target(group, plural, namespace, name)?;
    if !target.ty.versions.iter().any(|v| v == version) {
        return Err(ApiError::no_such_path());
    }
    if target.ty.namespaced && namespace.is_empty() && !name.is_empty()
        || !target.ty.namespaced && !namespace.is_empty()
    {
        return Err(ApiError::no_such_path());
    }
    if !subresource.is_empty()
        && !target
            .ty
            .subresources()
            .iter()
            .any(|(s, _, _)| *s == subresource)
    {
        return Err(ApiError::no_such_path());
    }
    target.version = version.into();
    target.subresource = subresource.into();
    let verb = verb(method, &target, query)?;
    Ok(Call {
        verb,
        target: Some(target),
        review: "",
    })
}

fn verb(method: &Method, target: &Target, query: &Query) -> Result<&'static str, ApiError> {
    let one = !target.name.is_empty();
    let posts = matches!(
        target.subresource.as_str(),
        "binding" | "eviction" | "token"
    );
    Ok(match method.as_str() {
        "GET" | "HEAD" if query.flag("watch") => "watch",
        "GET" | "HEAD" if one && !posts => "get",
        "GET" | "HEAD" if !one => "list",
        "POST" if one == posts => "create",
        "PUT" if one && !posts => "update",
        "PATCH" if one && !posts => "patch",
        "DELETE" if one && target.subresource.is_empty() => "delete",
        "DELETE" if !one => "deletecollection",
        _ => return Err(ApiError::method_not_allowed()),
    })
}

/// Does what was asked.
///
/// # Errors
/// The refusal to answer with.
pub fn run(
    server: &ApiServer,
    call: Call,
    context: &RequestContext<'_>,
) -> Result<Answer, ApiError> {
    let Some(target) = call.target else {
        return Ok(document(
            201,
            &review(
                server,
                call.review,
                &parse_body(context)?,
                &context.info.client,
            ),
        ));
    };
    let query = context.query;
    let caller = Caller {
        client: context.info.client.clone(),
        manager: match query.get("fieldManager") {
            "" => context.info.client.clone(),
            manager => manager.to_owned(),
        },
        dry_run: query.get("dryRun") == "All",
        strict: query.get("fieldValidation") == "Strict",
    };
    let render = Render::from_accept(context.accept);
    let show = |code: u16, stored: &std::sync::Arc<super::store::Stored>| {
        Answer::Document(code, render.object(&target, stored))
    };
    if target.subresource == "scale" {
        return run_scale(server, call.verb, &caller, &target, context);
    }
    match call.verb {
        "get" if target.subresource == "log" => Err(ApiError::bad_request(
            "the pods of this cluster keep no logs",
        )),
        "get" => server.get(&target).map(|o| show(200, &o)),
        "list" => list(server, &target, context, render),
        "watch" => open_watch(server, &target, context, render),
        "create" if target.subresource == "binding" => {
            bind(server, &caller, &target, &parse_body(context)?)
        }
        "create" if target.subresource == "eviction" => {
            evict(server, &caller, &target, &parse_body(context)?)
        }
        "create" if target.subresource == "token" => {
            let mut account = target.clone();
            account.subresource.clear();
            Ok(document(
                201,
                &server.request_token(&account, &parse_body(context)?)?,
            ))
        }
        "create" => server
            .create(&caller, &target, parse_body(context)?)
            .map(|o| show(201, &o)),
        "update" => server
            .update(&caller, &target, parse_body(context)?)
            .map(|o| show(200, &o)),
        "patch" => {
            let kind = PatchKind::from_content_type(context.content_type)
                .ok_or_else(|| ApiError::unsupported_media(context.content_type))?;
            let (object, created) = server.patch(&caller, &target, kind, &parse_body(context)?)?;
            Ok(show(if created { 201 } else { 200 }, &object))
        }
        "delete" => {
            let options = delete_options(context)?;
            let (object, gone) = server.delete(&caller, &target, &options)?;
            if gone && !target.ty.is_pod() {
                return Ok(document(
                    200,
                    &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": {"name": target.name, "group": target.ty.group, "kind": target.ty.plural, "uid": value::uid(&object.value)}}),
                ));
            }
            Ok(show(200, &object))
        }
        _ => delete_collection(server, &caller, &target, context, render),
    }
}

fn document(code: u16, value: &Value) -> Answer {
    Answer::Document(code, value.to_string().into())
}

fn parse_body(context: &RequestContext<'_>) -> Result<Value, ApiError> {
    if context.content_type.contains("protobuf") || context.content_type.contains("cbor") {
        return Err(ApiError::unsupported_media(context.content_type));
    }
    if let Ok(value) = serde_json::from_slice(context.body) {
        return Ok(value);
    }
    let text = std::str::from_utf8(context.body)
        .map_err(|e| ApiError::bad_request(format!("the body is no text: {e}")))?;
    crate::yaml::one(text)
        .map_err(|e| ApiError::bad_request(format!("the body is neither JSON nor YAML: {e}")))
}

fn filter(target: &Target, query: &Query) -> Result<Filter, ApiError> {
    let namespace = (!target.namespace.is_empty()).then(|| target.namespace.clone());
    let mut fields = query.get("fieldSelector").to_owned();
    if !target.name.is_empty() {
        let tail = format!("metadata.name={}", target.name);
        fields = if fields.is_empty() {
            tail
        } else {
            format!("{fields},{tail}")
        };
    }
    Filter::parse(&target.ty, namespace, query.get("labelSelector"), &fields)
}

/// Version and position of a `continue` token.
fn parse_continue(token: &str) -> Option<(u64, Key)> {
    let (version, key) = token.strip_prefix("v1:")?.split_once(':')?;
    let (namespace, name) = key.split_once('/')?;
    Some((version.parse().ok()?, Key::new(namespace, name)))
}

fn parse_version(text: &str) -> Result<Option<u64>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = |_| {
        ApiError::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: must be a whole number"
        ))
    };
    text.parse().map(Some).map_err(bad)
}

fn list(
    server: &ApiServer,
    target: &Target,
    context: &RequestContext<'_>,
    render: Render,
) -> Result<Answer, ApiError> {
    let query = context.query;
    let filter = filter(target, query)?;
    let limit = usize::try_from(query.number("limit").unwrap_or(0)).unwrap_or(0);
    let limit = limit.min(context.page_max.unwrap_or(usize::MAX).max(1));
    let token = query.get("continue");
    let wanted = parse_version(query.get("resourceVersion"))?.filter(|v| *v > 0);
    let exact = query.get("resourceVersionMatch") == "Exact";
    let store = server.store();
    let table = store
        .tables
        .get(target.table)
        .ok_or_else(ApiError::no_such_path)?;
    if let Some(version) = wanted.filter(|v| *v > store.version) {
        return Err(ApiError::too_large_version(version, store.version));
    }
    let gone = || {
        ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
        )
    };
    let (version, after) = if token.is_empty() {
        (wanted.filter(|_| exact).unwrap_or(store.version), None)
    } else {
        let (version, key) = parse_continue(token).ok_or_else(|| {
            ApiError::bad_request(format!("continue key is not valid: {token:?}"))
        })?;
        (version, Some(key))
    };
    let old;
    let objects = if version == store.version {
        &table.objects
    } else {
        old = table.at_version(version).ok_or_else(gone)?;
        &old
    };
    let mut found: Vec<_> = objects
        .iter()
        .filter(|(key, o)| after.as_ref().is_none_or(|a| *key > a) && filter.holds(&o.value))
        .collect();
    let mut meta = json!({"resourceVersion": version.to_string()});
    if limit > 0 && found.len() > limit {
        let left = found.len().saturating_sub(limit);
        found.truncate(limit);
        if let Some((key, _)) = found.last() {
            value::set(
                &mut meta,
                &["continue"],
                format!("v1:{version}:{}/{}", key.namespace, key.name),
            );
            if query.get("labelSelector").is_empty() && query.get("fieldSelector").is_empty() {
                value::set(&mut meta, &["remainingItemCount"], left);
            }
        }
    }
    let found: Vec<_> = found.into_iter().map(|(_, o)| o.clone()).collect();
    drop(store);
    let is_last = meta.get("continue").is_none();
    let text = render.list(target, &found, &meta);
    Ok(Answer::List(is_last.then_some(version), text))
}

fn open_watch(
    server: &ApiServer,
    target: &Target,
    context: &RequestContext<'_>,
    render: Render,
) -> Result<Answer, ApiError> {
    let query = context.query;
    let filter = filter(target, query)?;
    let version = parse_version(query.get("resourceVersion"))?;
    let initial = query.flag("sendInitialEvents");
    if initial && query.get("resourceVersionMatch") != "NotOlderThan" {
        let cause = FieldError::forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
        return Err(ApiError::new(
            422,
            "Invalid",
            format!(
                "ListOptions.meta.k8s.io \"\" is invalid: {}: {}",
                cause.field, cause.message
            ),
        ));
    }
    let options = WatchOptions {
        since: version.filter(|v| *v > 0 && !initial),
        mark_initial: initial,
        bookmarks: query.flag("allowWatchBookmarks") && context.bookmarks,
        timeout: query
            .number("timeoutSeconds")
            .filter(|s| *s > 0)
            .map_or(WATCH_TIMEOUT_DEFAULT, |s| {
                Duration::from_secs(s.min(86_400))
            }),
        render,
    };
    let mut target = target.clone();
    target.name.clear();
    let stream = watch::open(server, target, filter, options, context.info.clone())?;
    Ok(stream_body(stream))
}

fn delete_options(context: &RequestContext<'_>) -> Result<DeleteOptions, ApiError> {
    let body = if context.body.is_empty() {
        Value::Null
    } else {
        parse_body(context)?
    };
    Ok(read_delete_options(&body, context.query))
}

fn read_delete_options(body: &Value, query: &Query) -> DeleteOptions {
    let text = |path: &[&str]| {
        value::at(body, path)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    DeleteOptions {
        grace_seconds: value::int(body, &["gracePeriodSeconds"])
            .or_else(|| query.get("gracePeriodSeconds").parse().ok()),
        propagation: text(&["propagationPolicy"]).unwrap_or_else(|| {
            let orphan = value::flag(body, &["orphanDependents"]);
            if orphan {
                "Orphan".into()
            } else {
                query.get("propagationPolicy").to_owned()
            }
        }),
        uid: text(&["preconditions", "uid"]),
        version: text(&["preconditions", "resourceVersion"]),
    }
}

fn delete_collection(
    server: &ApiServer,
    caller: &Caller,
    target: &Target,
    context: &RequestContext<'_>,
    render: Render,
) -> Result<Answer, ApiError> {
    let options = delete_options(context)?;
    let (objects, version) = server.list(target, &filter(target, context.query)?)?;
    for object in &objects {
        let mut one = target.clone();
        one.namespace = value::namespace(&object.value).to_owned();
        one.name = value::name(&object.value).to_owned();
        match server.delete(caller, &one, &options) {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    let meta = json!({"resourceVersion": version.to_string()});
    Ok(Answer::Document(200, render.list(target, &objects, &meta)))
}

fn bind(
    server: &ApiServer,
    caller: &Caller,
    target: &Target,
    body: &Value,
) -> Result<Answer, ApiError> {
    let mut pod = target.clone();
    pod.subresource.clear();
    if pod.name.is_empty() {
        pod.name = value::name(body).to_owned();
    }
    server.bind(caller, &pod, body)?;
    Ok(document(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

fn evict(
    server: &ApiServer,
    caller: &Caller,
    target: &Target,
    body: &Value,
) -> Result<Answer, ApiError> {
    let mut pod = target.clone();
    pod.subresource.clear();
    let options = read_delete_options(
        body.get("deleteOptions").unwrap_or(&Value::Null),
        &Query::default(),
    );
    server.evict(caller, &pod, &options)?;
    Ok(document(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

fn run_scale(
    server: &ApiServer,
    verb: &str,
    caller: &Caller,
    target: &Target,
    context: &RequestContext<'_>,
) -> Result<Answer, ApiError> {
    let done = match verb {
        "get" => scale::show(target, &server::ApiServer::get(server, target)?.value)?,
        "update" => {
            let body = parse_body(context)?;
            scale::write(server, caller, target, "update", |s| {
                *s = body;
                Ok(())
            })?
            .0
        }
        "patch" => {
            let kind = PatchKind::from_content_type(context.content_type)
                .ok_or_else(|| ApiError::unsupported_media(context.content_type))?;
            let body = parse_body(context)?;
            scale::write(server, caller, target, "patch", |s| {
                scale::patch(s, kind, &body)
            })?
            .0
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    Ok(document(200, &done))
}

fn review(server: &ApiServer, kind: &str, body: &Value, client: &str) -> Value {
    let mut answer = body.clone();
    match kind {
        "tokenreviews" => return server.review_token(body),
        "selfsubjectreviews" => {
            let user =
                json!({"userInfo": {"username": client, "groups": ["system:authenticated"]}});
            value::set(&mut answer, &["status"], user);
        }
        "selfsubjectrulesreviews" => {
            let all = json!({"resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}], "incomplete": false});
            value::set(&mut answer, &["status"], all);
        }
        _ => value::set(
            &mut answer,
            &["status"],
            json!({"allowed": true, "reason": "everybody may do everything here"}),
        ),
    }
    answer
}
