//! Preempt: a veto for members of gangs, and for victims that are members of gangs.

use axum::extract::{Request, State};
use axum::response::Response;
use muster_core::ids::PodUid;
use muster_kubernetes::extender::{PreemptionArgs, PreemptionResult};
use muster_kubernetes::translate;

use super::{Door, Extender};

pub(super) async fn preempt(State(extender): Door, request: Request) -> Response {
    let bytes = match super::body(request).await {
        Ok(bytes) => bytes,
        Err(response) => return response,
    };
    let args: PreemptionArgs = match serde_json::from_slice::<Option<PreemptionArgs>>(&bytes) {
        Ok(args) => args.unwrap_or_default(),
        Err(error) => return super::malformed(&error),
    };
    let result = extender.preempt(args);
    let word = if result.meta_victims.is_empty() {
        "vetoed"
    } else {
        "allowed"
    };
    extender.metrics.preempted(word);
    super::answer(&result)
}

impl Extender {
    fn preempt(&self, args: PreemptionArgs) -> PreemptionResult {
        let view = self.view.load();
        let may = args.pod.as_ref().is_some_and(|pod| {
            let pod = translate::pod(pod, &self.rules.load());
            view.may_preempt(pod.membership.as_ref())
        });
        if !may {
            return PreemptionResult::default();
        }
        let mut candidates = args.candidates();
        candidates.retain(|_, victims| {
            let mut pods = victims.pods.iter().flatten();
            pods.all(|pod| {
                !pod.uid.is_empty() && view.may_be_victim(&PodUid::from(pod.uid.as_str()))
            })
        });
        PreemptionResult {
            meta_victims: candidates,
        }
    }
}
