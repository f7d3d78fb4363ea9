//! Filter: a pure read of the published view. Asking twice changes nothing.

use axum::extract::{Request, State};
use axum::response::Response;
use muster_core::view::FilterAnswer;
use muster_core::view::{NO_ROOM, NOT_OFFERED};
use muster_kubernetes::extender::{ExtenderArgs, FilterResult};
use muster_kubernetes::translate;
use tokio::time::Instant;

use super::{Door, Extender, Whose};

/// Text for a request without a pod. Constant.
const NO_POD: &str = "muster: the request names no pod";

pub(super) async fn filter(State(extender): Door, request: Request) -> Response {
    let bytes = match super::body(request).await {
        Ok(bytes) => bytes,
        Err(response) => return response,
    };
    let started = Instant::now();
    let args: ExtenderArgs<'_> = match serde_json::from_slice::<Option<ExtenderArgs<'_>>>(&bytes) {
        Ok(args) => args.unwrap_or_default(),
        Err(error) => return super::malformed(&error),
    };
    let (word, response) = extender.filter(&args);
    extender.metrics.filtered(started.elapsed(), word);
    response
}

impl Extender {
    fn filter(&self, args: &ExtenderArgs<'_>) -> (&'static str, Response) {
        let Some(pod) = &args.pod else {
            return (
                "Error",
                super::written(FilterResult::failed(NO_POD).to_json()),
            );
        };
        let pod = translate::pod(pod, &self.rules.load());
        let view = self.view.load();
        match view.filter(&pod.uid, pod.membership.as_ref()) {
            FilterAnswer::Later(text) => (
                "Later",
                super::written(FilterResult::failed(text).to_json()),
            ),
            FilterAnswer::Nowhere(text) => (
                "Nowhere",
                super::written(FilterResult::nowhere(args, &text).to_json()),
            ),
            FilterAnswer::WhereRoom => {
                let requests = &pod.shape.requests;
                let result =
                    FilterResult::divide(args, NO_ROOM, |node| view.has_room(node, requests));
                ("WhereRoom", super::written(result.to_json()))
            }
            FilterAnswer::Only(node) => {
                let mut result = FilterResult::only(args, node.as_str(), NOT_OFFERED);
                if result.passed.is_empty() {
                    let membership = pod.membership.as_ref();
                    let of = Whose {
                        gang: membership.map(|membership| membership.gang.clone()),
                        plan: view.plan_of(membership).cloned(),
                    };
                    self.tell_not_offered(&pod.uid, &node, of);
                    ("NotOffered", super::written(result.to_json()))
                } else {
                    self.tell_offered(&pod.uid, &node);
                    // kube-scheduler takes the node and reads no refusals: naming thousands of
                    // other nodes would only cost both sides time.
                    result.refused.clear();
                    ("Only", super::written(result.to_json()))
                }
            }
        }
    }
}
