//! What is done to the writes about one object, at the moment when it hurts most.
//!
//! ```text
//! armed ──first write to one of these objects──► sprung: its steps one by one, then the last for all that follow
//!                                                  └─► whoever sent it is stopped or killed with it
//! ```

use std::collections::VecDeque;

use muster_embedded::api::ApiError;
use muster_embedded::api::faults::{Before, RequestInfo};
use muster_embedded::cluster::Running;
use muster_scheduler::hold::Hold;
use tokio_util::sync::CancellationToken;

/// What is done to one write.
#[derive(Clone, Debug)]
pub enum Step {
    /// Nothing.
    Proceed,
    /// 403, by an administrator's policy.
    Forbid,
    /// 429 with Retry-After: it is sent again after a second.
    Throttle,
    /// The connection breaks, and it is applied when somebody says so.
    Park(CancellationToken),
    /// It is applied, and its answer is lost.
    Lose,
}

/// Which writes are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Bindings.
    Bindings,
    /// Statuses of Gangs.
    GangStatuses,
}

impl Target {
    fn is(self, request: &RequestInfo) -> bool {
        let (resource, subresource) = match self {
            Self::Bindings => ("pods", "binding"),
            Self::GangStatuses => ("gangs", "status"),
        };
        let reads = matches!(request.verb.as_str(), "get" | "list" | "watch");
        request.resource == resource && request.subresource == subresource && !reads
    }
}

/// What befalls its sender with the first of these writes.
#[derive(Clone, Debug, Default)]
pub enum Sender {
    /// Nothing.
    #[default]
    Lives,
    /// It is killed, and this kube-scheduler with it: they are a pair.
    Dies(Hold, Running),
    /// It is stopped, until somebody lets it go on.
    Stands(Hold),
}

/// An ambush.
#[derive(Debug)]
pub struct Ambush {
    /// Beginning of the names of the objects that are waited for.
    pub prefix: String,
    /// Which writes.
    pub target: Target,
    /// What is done to the first writes about the object that was hit.
    pub steps: VecDeque<Step>,
    /// What is done to the others.
    pub then: Step,
    /// What befalls the sender of the first.
    pub sender: Sender,
    /// Whether nobody of ours can read the object that was hit.
    pub unread: bool,
    /// The object that was hit.
    pub victim: Option<String>,
}

impl Ambush {
    /// One that waits for writes about these objects.
    pub fn new(prefix: &str, target: Target, steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            prefix: prefix.to_owned(),
            target,
            steps: steps.into_iter().collect(),
            then: Step::Proceed,
            sender: Sender::default(),
            unread: false,
            victim: None,
        }
    }

    /// The same, and this is done to what follows.
    pub fn then(mut self, then: Step) -> Self {
        self.then = then;
        self
    }

    /// The same, and this befalls the sender of the first.
    pub fn sender(mut self, sender: Sender) -> Self {
        self.sender = sender;
        self
    }

    /// The same, and nobody of ours can read the object that was hit.
    pub fn unread(mut self, unread: bool) -> Self {
        self.unread = unread;
        self
    }

    /// Whether this asks for the object that was hit, and has no answer.
    pub fn hides(&self, request: &RequestInfo) -> bool {
        let asked = request.verb == "get" && request.resource == "pods";
        self.unread && asked && self.victim.as_ref() == Some(&request.name)
    }

    /// What is done to a write, if it is one of those.
    pub fn meets(&mut self, request: &RequestInfo) -> Option<(Step, Before)> {
        if !self.target.is(request) || !request.name.starts_with(&self.prefix) {
            return None;
        }
        match &self.victim {
            Some(victim) if *victim != request.name => return None,
            Some(_) => {}
            None => {
                self.victim = Some(request.name.clone());
                match &self.sender {
                    Sender::Lives => {}
                    Sender::Dies(hold, kube_scheduler) => {
                        kube_scheduler.kill();
                        hold.set_after(0);
                    }
                    Sender::Stands(hold) => hold.set(),
                }
            }
        }
        let step = self.steps.pop_front().unwrap_or_else(|| self.then.clone());
        let before = match &step {
            Step::Proceed => return None,
            Step::Forbid => {
                let why = format!("{} is forbidden: denied by policy", request.name);
                Before::Refuse(ApiError::new(403, "Forbidden", why))
            }
            Step::Throttle => {
                let why = "too many requests, please try again later";
                Before::Refuse(ApiError::too_many_requests(why, 1))
            }
            Step::Park(until) => Before::Parked(until.clone()),
            // What is done to its answer is done once there is one.
            Step::Lose => Before::Proceed,
        };
        Some((step, before))
    }
}

impl Step {
    /// One word for the story.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Proceed => "let through",
            Self::Forbid => "forbidden",
            Self::Throttle => "put off",
            Self::Park(_) => "parked",
            Self::Lose => "applied without an answer",
        }
    }
}
