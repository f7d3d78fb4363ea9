//! Bind: held until the engine answers.
//!
//! A caller that goes away is told to the engine, and so is the watchdog's giving up: in both cases
//! nobody will hear the answer, and the pod is no longer accepted by kube-scheduler.

use axum::extract::{Request, State};
use axum::response::Response;
use muster_core::event::{BindAsked, Event, Ticket};
use muster_core::ids::PodUid;
use muster_core::view;
use muster_kubernetes::extender::{BindingArgs, BindingResult};
use std::sync::Arc;
use tokio::time::Instant;

use super::{Door, Extender, Whose};
use crate::binds::{BUSY, BindAnswer, STOPPING};

/// Text for a request that is no Bind. Constant.
const NO_ARGS: &str = "muster: the request names no pod to bind";
/// Text of the watchdog. Constant.
pub const NOT_DECIDED: &str = "muster: not decided in time, nothing was bound for this call";

pub(super) async fn bind(State(extender): Door, request: Request) -> Response {
    let bytes = match super::body(request).await {
        Ok(bytes) => bytes,
        Err(response) => return response,
    };
    let started = Instant::now();
    let args: BindingArgs = match serde_json::from_slice::<Option<BindingArgs>>(&bytes) {
        Ok(args) => args.unwrap_or_default(),
        Err(error) => return super::malformed(&error),
    };
    let pod = format!("{}/{}", args.pod_namespace, args.pod_name);
    let node = args.node.clone();
    let uid = PodUid::from(args.pod_uid.as_str());
    // The plan that the Bind is asked under: a refusal may come with its end.
    let mut of = Whose::promised(&extender.view.load(), &uid);
    let outcome = extender.bind(args).await;
    if of.gang.is_none() {
        of = Whose::promised(&extender.view.load(), &uid);
    }
    let (gang, plan) = of.words();
    extender.metrics.bind_left(started.elapsed());
    let held_ms = started.elapsed().as_millis();
    match &outcome {
        Ok(()) => tracing::debug!(gang, plan, pod, node, held_ms, "bound"),
        Err(said) => tracing::info!(gang, plan, pod, node, held_ms, %said, "not bound"),
    }
    match &outcome {
        Ok(()) => super::answer(&BindingResult::bound()),
        Err(text) => super::answer(&BindingResult::refused(text.as_ref())),
    }
}

/// Gives the ticket back, and tells the engine, unless an answer has come.
struct Ticketed<'a> {
    extender: &'a Extender,
    ticket: Ticket,
}

impl Drop for Ticketed<'_> {
    fn drop(&mut self) {
        if self.extender.binds.forget(self.ticket) {
            self.extender.metrics.bind_not_asked("dropped");
            self.extender.inbox.dropped(self.ticket);
        }
        let held = self.extender.binds.len();
        self.extender.metrics.binds_held(held);
    }
}

impl Extender {
    async fn bind(&self, args: BindingArgs) -> BindAnswer {
        if let Some(field) = args.missing() {
            self.metrics.bind_not_asked("malformed");
            return Err(Arc::from(format!("{NO_ARGS}: {field} is empty")));
        }
        let view = self.view.load();
        if !view.leading || !view.synced {
            self.metrics.bind_not_asked("not leading");
            let text = if view.leading {
                view::NOT_SYNCED
            } else {
                view::NOT_LEADING
            };
            return Err(Arc::from(text));
        }
        drop(view);
        let uid = PodUid::from(args.pod_uid);
        let (ticket, answer) = self.binds.hold(uid.clone()).inspect_err(|_| {
            self.metrics.bind_not_asked("busy");
        })?;
        let ticketed = Ticketed {
            extender: self,
            ticket,
        };
        self.metrics.binds_held(self.binds.len());
        let asked = Event::BindAsked(BindAsked {
            ticket,
            namespace: args.pod_namespace.into(),
            name: Arc::from(args.pod_name),
            pod: uid,
            node: args.node.into(),
        });
        if !self.inbox.try_send(asked) {
            self.binds.forget(ticket);
            self.metrics.bind_not_asked("busy");
            return Err(Arc::from(BUSY));
        }
        let answered = tokio::time::timeout(self.watchdog, answer).await;
        drop(ticketed);
        match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Arc::from(STOPPING)),
            Err(_) => Err(Arc::from(NOT_DECIDED)),
        }
    }
}
