//! The freeze switch: two annotations of Muster's Lease, which the leader reads whenever it renews it.
//!
//! ```text
//!   muster.dev/frozen: WHY       an operator's, and only an operator takes it off
//!   muster.dev/restored: WHAT    written by a replica that saw the cluster's state go back; the leader takes it
//!                                off once it has read everything afresh and nothing disagrees
//! ```
//!
//! The Lease is there in any case, survives every restart, and is written every 2 s anyway: a switch costs no
//! right and no write more. A renewal is a PUT of what was read, so that the first one after a switch was
//! thrown says that the leader has seen it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::time::Instant;

use crate::config;

/// Annotation of the Lease by which an operator freezes the scheduler; its value is the reason.
pub const FROZEN_ANNOTATION: &str = "muster.dev/frozen";
/// Annotation of the Lease that says that the cluster's state went back.
pub const RESTORED_ANNOTATION: &str = "muster.dev/restored";
/// Longest text that is taken over, characters.
const TEXT_MAX: usize = 200;
/// Time for the leader to renew the Lease after the switch: two renewals, and a slow API server.
const SEEN_MAX: Duration = Duration::from_secs(15);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why nothing new is to be begun, as the Lease says it.
pub(crate) fn why(lease: &Lease) -> Option<Arc<str>> {
    let annotations = lease.annotations();
    if let Some(said) = annotations.get(FROZEN_ANNOTATION) {
        let said = cleaned(said);
        return Some(Arc::from(if said.is_empty() {
            format!("frozen by an operator ({FROZEN_ANNOTATION} on the Lease)")
        } else {
            format!("frozen by an operator: {said}")
        }));
    }
    is_restored(lease).then(|| {
        Arc::from(
            "the cluster's state went back, as after a restore from a backup; the scheduler goes on by itself once \
             it waits for no agent any more (30 s after it began, 5 min at most while agents still come) and nothing \
             disagrees",
        )
    })
}

/// Whether the Lease says that the cluster's state went back.
pub(crate) fn is_restored(lease: &Lease) -> bool {
    restored(lease).is_some()
}

/// By what it was told that the cluster's state went back, as the Lease says it.
pub(crate) fn restored(lease: &Lease) -> Option<&str> {
    let said = lease.annotations().get(RESTORED_ANNOTATION);
    said.map(String::as_str)
}

/// A text that others may write, as one line of bounded length.
fn cleaned(text: &str) -> String {
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(TEXT_MAX).collect::<String>().trim().to_owned()
}

/// Throws the switch and waits until the leader has seen it; `None` lets it go on. Returns what to tell.
pub async fn switch(
    client: Client,
    settings: &config::Lease,
    why: Option<&str>,
) -> anyhow::Result<String> {
    let api: Api<Lease> = Api::namespaced(client, &settings.namespace);
    let name = &settings.name;
    let at = format!("Lease {}/{name}", settings.namespace);
    let end = Instant::now() + SEEN_MAX;
    let version = loop {
        let mut lease = api.get(name).await.with_context(|| at.clone())?;
        let annotations = lease.metadata.annotations.get_or_insert_default();
        let before = annotations.get(FROZEN_ANNOTATION).cloned();
        match why {
            Some(why) => annotations.insert(FROZEN_ANNOTATION.into(), cleaned(why)),
            None => annotations.remove(FROZEN_ANNOTATION),
        };
        if before == why.map(cleaned) {
            let state = match why {
                Some(_) => "frozen".to_owned(),
                None => still(&lease, settings).unwrap_or_else(|| "not frozen".to_owned()),
            };
            return Ok(format!("{at} says so already: {state}"));
        }
        match api.replace(name, &PostParams::default(), &lease).await {
            Ok(lease) => break lease.resource_version(),
            // The leader was faster.
            Err(kube::Error::Api(status)) if status.is_conflict() && Instant::now() < end => {}
            Err(error) => return Err(error).with_context(|| at.clone()),
        }
    };
    loop {
        let lease = api.get(name).await.with_context(|| at.clone())?;
        if lease.annotations().contains_key(FROZEN_ANNOTATION) != why.is_some() {
            bail!("{at} was changed by somebody else meanwhile");
        }
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.clone());
        let holder = holder.unwrap_or_default();
        if lease.resource_version() != version && !holder.is_empty() {
            let does = match why {
                Some(_) => "is frozen".to_owned(),
                None => still(&lease, settings).unwrap_or_else(|| "goes on".to_owned()),
            };
            return Ok(format!("{holder} {does}"));
        }
        if Instant::now() >= end {
            let nobody =
                "no leader has renewed it since: it counts from the next leader's first moment on";
            return Ok(format!("{at} is written; {nobody}"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What freezes it when no operator does, and how that is lifted.
fn still(lease: &Lease, settings: &config::Lease) -> Option<String> {
    let (namespace, name) = (&settings.namespace, &settings.name);
    is_restored(lease).then(|| {
        format!(
            "is still frozen by {RESTORED_ANNOTATION}, because the cluster's state went back, and goes on by itself once \
             nothing disagrees; to have it go on at once: \
             kubectl -n {namespace} annotate lease {name} {RESTORED_ANNOTATION}-"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(annotations: &[(&str, &str)]) -> Lease {
        let mut lease = Lease::default();
        let pairs = annotations.iter();
        let pairs = pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        lease.metadata.annotations = Some(pairs.collect());
        lease
    }

    #[test]
    fn reasons_are_one_line_of_bounded_length_and_an_operator_comes_first() {
        assert_eq!(why(&Lease::default()), None);
        let long = format!("a\nb\u{7}{}", "x".repeat(9000));
        let said = why(&lease(&[(FROZEN_ANNOTATION, &long)])).unwrap();
        assert!(said.starts_with("frozen by an operator: a b x"), "{said}");
        assert!(said.len() < 300 && !said.contains('\n'));
        let both = lease(&[(FROZEN_ANNOTATION, ""), (RESTORED_ANNOTATION, "x")]);
        assert!(why(&both).unwrap().starts_with("frozen by an operator ("));
        let restored = why(&lease(&[(RESTORED_ANNOTATION, "x")])).unwrap();
        assert!(restored.contains("went back"), "{restored}");
    }
}
