//! The HTTP door for kube-scheduler.
//!
//! ```text
//!   POST {prefix}/filter   reads the published view: the planned node, or every node refused
//!   POST {prefix}/preempt  reads the published view: a veto for gangs
//!   POST {prefix}/bind     held until the engine answers, or until just before the caller gives up
//! ```
//!
//! kube-scheduler is configured with two entries, `/v1/short` and `/v1/bind`, that differ in their
//! timeouts; both prefixes serve all verbs. What can be understood is answered with 200 and an
//! `Error` in the body, because kube-scheduler shows no other text to anybody; what cannot is 400.
//! A request creates and frees nothing by itself: the engine decides what a Bind means.

mod bind;
mod filter;
mod preempt;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use muster_core::event::Event;
use muster_core::ids::{GangKey, NodeName, PlanId, PodUid};
use muster_core::view::View;
use muster_kubernetes::translate::PodRules;
use serde::Serialize;
use tokio::time::Instant;

use crate::binds::Binds;
use crate::config;
use crate::inbox::Inbox;
use crate::metrics::Metrics;

/// Time for a request's body. kube-scheduler sends it at once.
const BODY_MAX: Duration = Duration::from_secs(10);
/// Time before kube-scheduler's own timeout at which a held Bind is answered by the watchdog.
const WATCHDOG_MARGIN: Duration = Duration::from_secs(5);
/// Pods remembered as told, so that one pod is told once in a while; cleared when full.
const TOLD_MAX: usize = 16_384;
/// Time after which it is told again: the engine may have had another plan when it was told before.
const TOLD_FOR: Duration = Duration::from_secs(2);

/// What the verbs are answered from.
#[derive(Clone, Debug)]
pub struct Extender {
    /// The published picture.
    pub view: Arc<ArcSwap<View>>,
    /// How pods are read.
    pub rules: Arc<ArcSwap<PodRules>>,
    /// Where Binds are asked.
    pub inbox: Inbox,
    /// Held Binds.
    pub binds: Arc<Binds>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Time after which a held Bind is answered by the watchdog.
    pub watchdog: Duration,
    /// Of which pods the engine was told that their node was not offered.
    told: Arc<Mutex<BTreeMap<(PodUid, NodeName), Told>>>,
}

/// When the engine was told, and by which plan the pod had its place then.
#[derive(Clone, Debug)]
struct Told {
    plan: Option<PlanId>,
    at: Instant,
}

/// Gang and plan of a pod, for logs, as far as they are known.
#[derive(Clone, Debug, Default)]
struct Whose {
    gang: Option<GangKey>,
    plan: Option<PlanId>,
}

impl Whose {
    fn promised(view: &View, pod: &PodUid) -> Self {
        let Some((gang, plan)) = view.promised(pod) else {
            return Self::default();
        };
        Self {
            gang: Some(gang.clone()),
            plan: plan.cloned(),
        }
    }

    /// Both as text, empty where not known.
    fn words(&self) -> (String, &str) {
        let gang = self.gang.as_ref().map(GangKey::to_string);
        let plan = self.plan.as_ref().map_or("", |plan| plan.as_str());
        (gang.unwrap_or_default(), plan)
    }
}

impl Extender {
    /// A door with the times of the configuration.
    pub fn new(
        view: Arc<ArcSwap<View>>,
        rules: Arc<ArcSwap<PodRules>>,
        inbox: Inbox,
        binds: Arc<Binds>,
        metrics: Arc<Metrics>,
        settings: &config::Extender,
    ) -> Self {
        let timeout = settings.bind_timeout.0;
        let margin = WATCHDOG_MARGIN.min(timeout / 4);
        Self {
            view,
            rules,
            inbox,
            binds,
            metrics,
            watchdog: timeout.saturating_sub(margin),
            told: Arc::default(),
        }
    }

    /// The verbs as a service.
    pub fn router(self, body_bytes_max: usize) -> Router {
        let verbs = Router::new()
            .route("/filter", post(filter::filter))
            .route("/preempt", post(preempt::preempt))
            .route("/bind", post(bind::bind));
        Router::new()
            .nest("/v1/short", verbs.clone())
            .nest("/v1/bind", verbs)
            .layer(DefaultBodyLimit::max(body_bytes_max))
            .with_state(self)
    }

    /// Tells the engine that a pod's planned node was not offered: once for each plan in [`TOLD_FOR`],
    /// however often kube-scheduler asks.
    fn tell_not_offered(&self, pod: &PodUid, node: &NodeName, of: Whose) {
        self.metrics.planned_node_not_offered();
        let (key, now) = ((pod.clone(), node.clone()), Instant::now());
        let mut told = crate::locked(&self.told);
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        let before = told.get(&key);
        if before.is_some_and(|told| told.plan == of.plan && now < told.at + TOLD_FOR) {
            return;
        }
        let event = Event::PlannedNodeNotOffered {
            pod: pod.clone(),
            node: node.clone(),
        };
        if self.inbox.try_send(event) {
            let (gang, plan) = of.words();
            tracing::info!(gang, plan, %pod, %node, "kube-scheduler does not offer the planned node");
            let plan = of.plan;
            told.insert(key, Told { plan, at: now });
        }
    }

    /// A pod whose planned node was offered may be told about again.
    fn tell_offered(&self, pod: &PodUid, node: &NodeName) {
        let mut told = crate::locked(&self.told);
        if !told.is_empty() {
            told.remove(&(pod.clone(), node.clone()));
        }
    }
}

/// Reads a body within its limits. `Err` is the answer to give.
async fn body(request: Request) -> Result<Bytes, Response> {
    let read = <Bytes as axum::extract::FromRequest<()>>::from_request(request, &());
    match tokio::time::timeout(BODY_MAX, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) => Err(rejection.into_response()),
        Err(_) => Err(refuse(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive in time",
        )),
    }
}

/// An answer that kube-scheduler takes for a failed call.
fn refuse(code: StatusCode, text: &str) -> Response {
    (code, text.to_owned()).into_response()
}

/// An answer that kube-scheduler reads.
fn answer(value: &impl Serialize) -> Response {
    written(serde_json::to_vec(value))
}

fn written(json: serde_json::Result<Vec<u8>>) -> Response {
    match json {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The text of a 400.
fn malformed(error: &serde_json::Error) -> Response {
    let text = format!("muster: the request is not understood: {error}");
    refuse(StatusCode::BAD_REQUEST, &text)
}

type Door = State<Extender>;
