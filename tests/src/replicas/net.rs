//! What is between the pairs and the API server.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_embedded::api::faults::{After, Before, Faults, OnEvent, RequestInfo};
use muster_embedded::api::store::Change;

/// The name under which a pair's Muster calls the API server.
pub(super) fn muster(pair: &str) -> String {
    format!("muster-scheduler-{pair}")
}

/// The name under which a pair's kube-scheduler takes part in its election.
pub(super) fn kube_scheduler(pair: &str) -> String {
    format!("kube-scheduler-{pair}")
}

/// A Binding that comes late.
#[derive(Debug)]
struct Late {
    client: String,
    by: Duration,
    /// The request, once it has been sent, with the pod that it binds.
    sent: Option<(u64, String)>,
    /// The answer, once it has been given.
    code: Option<u16>,
}

/// A pair that is cut off after a write of its Muster.
#[derive(Debug)]
struct Doomed {
    pair: String,
    /// Writes that are still answered.
    writes: u32,
    /// The write whose answer was lost.
    what: Option<String>,
}

/// Cuts pairs off, and brings Bindings late.
#[derive(Debug, Default)]
pub struct Net {
    cut: Mutex<BTreeSet<String>>,
    late: Mutex<Option<Late>>,
    doomed: Mutex<Option<Doomed>>,
}

impl Net {
    fn cut_off(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> std::sync::MutexGuard<'_, Option<Late>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing goes between a pair and the API server any more; or it does again.
    pub fn cut(&self, pair: &str, cut: bool) {
        for client in [muster(pair), kube_scheduler(pair)] {
            if cut {
                self.cut_off().insert(client);
            } else {
                self.cut_off().remove(&client);
            }
        }
    }

    /// The next Binding of a pair's Muster arrives at the API server so much later.
    pub fn hold_binding(&self, pair: &str, by: Duration) {
        *self.late() = Some(Late {
            client: muster(pair),
            by,
            sent: None,
            code: None,
        });
    }

    /// The pod whose Binding is on its way.
    pub fn held_pod(&self) -> Option<String> {
        let late = self.late();
        late.as_ref()?.sent.as_ref().map(|(_, pod)| pod.clone())
    }

    /// What the late Binding was answered with, when it had arrived.
    pub fn late_code(&self) -> Option<u16> {
        self.late().as_ref()?.code
    }

    /// After so many writes of a pair's Muster, Leases and Events aside, the next one is applied, its answer
    /// is lost, and the pair is cut off.
    pub fn cut_after(&self, pair: &str, writes: u32) {
        let doomed = Doomed {
            pair: pair.to_owned(),
            writes,
            what: None,
        };
        *self.doomed.lock().unwrap_or_else(PoisonError::into_inner) = Some(doomed);
    }

    /// The write after which the pair was cut off.
    pub fn cut_at(&self) -> Option<String> {
        let doomed = self.doomed.lock().unwrap_or_else(PoisonError::into_inner);
        doomed.as_ref()?.what.clone()
    }

    fn counts(&self, request: &RequestInfo, code: u16) {
        let mut doomed = self.doomed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(doomed) = doomed.as_mut() else {
            return;
        };
        let verb = request.verb.as_str();
        let is_write = matches!(verb, "create" | "update" | "patch" | "delete")
            && !matches!(
                request.resource.as_str(),
                "leases" | "events" | "tokenreviews"
            );
        if !is_write || code >= 300 || request.client != muster(&doomed.pair) {
            return;
        }
        match doomed.writes.checked_sub(1) {
            Some(left) => doomed.writes = left,
            None if doomed.what.is_none() => {
                doomed.what = Some(format!(
                    "{verb} {}/{} {}",
                    request.resource, request.subresource, request.name
                ));
                self.cut(&doomed.pair, true);
            }
            None => {}
        }
    }

    fn is_cut(&self, request: &RequestInfo) -> bool {
        self.cut_off().contains(&request.client)
    }
}

impl Faults for Net {
    fn before(&self, request: &RequestInfo) -> Before {
        let mut late = self.late();
        if let Some(late) = late.as_mut()
            && late.sent.is_none()
            && late.client == request.client
            && (request.resource.as_str(), request.subresource.as_str()) == ("pods", "binding")
        {
            late.sent = Some((request.number, request.name.clone()));
            // It is on its way already when the pair is cut off.
            return Before::Delay(late.by);
        }
        drop(late);
        if self.is_cut(request) {
            return Before::Disconnect;
        }
        Before::Proceed
    }

    fn after(&self, request: &RequestInfo, code: u16) -> After {
        if let Some(late) = self.late().as_mut()
            && late
                .sent
                .as_ref()
                .is_some_and(|(number, _)| *number == request.number)
        {
            late.code = Some(code);
        }
        self.counts(request, code);
        if self.is_cut(request) {
            return After::Lose;
        }
        After::Deliver
    }

    fn watch_event(&self, request: &RequestInfo, _change: &Change) -> OnEvent {
        if self.is_cut(request) {
            return OnEvent::Cut;
        }
        OnEvent::Deliver
    }
}
