//! One kind: list, watch, diff, and pauses after failures.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Resource;
use kube::api::Api;
use kube::runtime::watcher;
use muster_core::event::Event;
use muster_core::ids::{GangKey, NodeName, PodUid};
use muster_core::planted::{self, Bug};
use serde::de::DeserializeOwned;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;

use super::{Shared, Texts, WatchEnd};

/// Who an object is to the engine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// A node.
    Node(NodeName),
    /// A pod.
    Pod(PodUid),
    /// A job or PodGroup.
    Workload(GangKey),
    /// A Gang object.
    Record(GangKey),
    /// An object that the engine does not know about.
    Other,
}

impl Identity {
    fn removed(self) -> Option<Event> {
        match self {
            Self::Node(name) => Some(Event::NodeRemoved(name)),
            Self::Pod(uid) => Some(Event::PodRemoved(uid)),
            Self::Workload(key) => Some(Event::WorkloadRemoved(key)),
            Self::Record(key) => Some(Event::RecordRemoved(key)),
            Self::Other => None,
        }
    }
}

/// What an object means: who it is, and the event that says so.
pub type Meaning = Option<(Identity, Option<Event>)>;

/// Turns objects of one kind into meanings. `None`: not ours.
pub trait Reading: Send {
    /// Type of the objects.
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static;
    /// Kind, for logs, metrics and readiness.
    const KIND: &'static str;

    /// What an object means.
    fn read(&mut self, object: &Self::Object) -> Meaning;

    /// An object is gone. Called besides the event.
    fn gone(&mut self, _name: &str) {}

    /// A complete LIST is in.
    fn listed(&mut self) {}

    /// The event that says that a LIST which was asked for is in.
    fn relisted(&self) -> Option<Event> {
        None
    }
}

/// Namespace, empty where there is none, and name.
type Place = (Arc<str>, Box<str>);

/// What is known of a kind, to tell a relist from news. There are as many of these as objects.
#[derive(Debug, Default)]
struct Known {
    /// Who an object is, and in which LIST it was seen last, or after which.
    objects: BTreeMap<Place, (Identity, u32)>,
    /// Objects by identity, of the one kind of which two may be the same.
    records: BTreeMap<Identity, u32>,
    /// Number of the LIST.
    pass: u32,
    namespaces: Texts,
}

impl Known {
    /// Notes an object; returns the events that are due.
    fn apply(&mut self, place: Place, meaning: Meaning) -> Vec<Event> {
        let Some((identity, event)) = meaning else {
            return self.remove(&place).into_iter().collect();
        };
        let mut events = Vec::with_capacity(1);
        match self.objects.get_mut(&place) {
            Some((known, seen)) if *known == identity => *seen = self.pass,
            _ => {
                // Recreated under its name: the one before is gone, seen or not.
                events.extend(self.remove(&place));
                if matches!(identity, Identity::Record(_)) {
                    let count = self.records.entry(identity.clone()).or_insert(0);
                    *count = count.saturating_add(1);
                }
                let namespace = self.namespaces.share(place.0);
                self.objects
                    .insert((namespace, place.1), (identity, self.pass));
            }
        }
        events.extend(event);
        events
    }

    /// Begins a LIST.
    fn begin(&mut self) {
        self.pass = self.pass.wrapping_add(1);
    }

    /// Forgets an object; the event when nothing else stands for the same identity.
    fn remove(&mut self, place: &Place) -> Option<Event> {
        let (identity, _) = self.objects.remove(place)?;
        if let Some(count) = self.records.get_mut(&identity) {
            *count = count.saturating_sub(1);
            if *count > 0 {
                return None;
            }
            self.records.remove(&identity);
        }
        identity.removed()
    }

    /// Ends a LIST: what was not in it is gone.
    fn finish(&mut self) -> Vec<(Place, Option<Event>)> {
        let gone: Vec<Place> = self
            .objects
            .iter()
            .filter(|(_, (_, seen))| *seen != self.pass)
            .filter(|_| !planted::is(Bug::ListsForgetNothing))
            .map(|(place, _)| place.clone())
            .collect();
        gone.into_iter()
            .map(|place| {
                let event = self.remove(&place);
                (place, event)
            })
            .collect()
    }
}

/// Watches one kind until stopped.
pub struct Watcher<R: Reading> {
    shared: Shared,
    reading: R,
    known: Known,
    pause: Duration,
    /// Restarts asked for when this LIST began, and those answered.
    asked: u64,
    answered: u64,
}

/// Why one run of a watch ended.
enum Pass {
    Ended(WatchEnd),
    /// The rules changed: read everything again.
    Restart,
    /// The API server does not serve the kind.
    NotServed,
}

impl<R: Reading> Watcher<R> {
    /// A watcher that knows nothing yet.
    pub fn new(shared: Shared, reading: R) -> Self {
        let pause = shared.settings.backoff_first.0;
        Self {
            shared,
            reading,
            known: Known::default(),
            pause,
            asked: 0,
            answered: 0,
        }
    }

    /// Watches until stopped. With `optional`, a kind that is not served has no objects, and is
    /// looked for again. A change of `restart` lists everything again.
    pub async fn run(
        mut self,
        optional: bool,
        mut restart: Option<signal::Receiver<u64>>,
        stop: CancellationToken,
    ) -> WatchEnd {
        loop {
            let pass = tokio::select! {
                biased;
                () = stop.cancelled() => return WatchEnd::Stopped,
                pass = self.pass(optional, &mut restart) => pass,
            };
            match pass {
                Pass::Ended(end) => return end,
                Pass::Restart => {}
                Pass::NotServed => {
                    self.known.begin();
                    if self.finish_listing().await.is_err() {
                        return WatchEnd::Stopped;
                    }
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return WatchEnd::Stopped,
                        () = tokio::time::sleep(self.shared.settings.rediscover_every.0) => {}
                    }
                }
            }
        }
    }

    async fn pass(&mut self, optional: bool, restart: &mut Option<signal::Receiver<u64>>) -> Pass {
        let api: Api<R::Object> = Api::all(self.shared.client.clone());
        let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()));
        // What is asked for from here on needs another LIST than this one.
        self.asked = restart
            .as_mut()
            .map_or(0, |restart| *restart.borrow_and_update());
        loop {
            let item = tokio::select! {
                biased;
                () = changed(restart) => return Pass::Restart,
                item = stream.next() => item,
            };
            match item {
                None => return Pass::Restart,
                Some(Ok(event)) => {
                    if self.take(event).await.is_err() {
                        return Pass::Ended(WatchEnd::Stopped);
                    }
                }
                Some(Err(error)) => {
                    if optional && code(&error) == Some(404) {
                        return Pass::NotServed;
                    }
                    if let Some(end) = self.note_error(&error) {
                        return Pass::Ended(end);
                    }
                    self.sleep().await;
                }
            }
        }
    }

    async fn take(&mut self, event: watcher::Event<R::Object>) -> Result<(), crate::inbox::Closed> {
        match event {
            watcher::Event::Init => {
                self.known.begin();
                Ok(())
            }
            watcher::Event::InitApply(object) => self.apply(&object).await,
            watcher::Event::Apply(object) => {
                self.alive();
                self.apply(&object).await
            }
            watcher::Event::Delete(object) => {
                self.alive();
                let place = place(&object);
                self.reading.gone(&place.1);
                match self.known.remove(&place) {
                    Some(event) => self.shared.inbox.send(event).await,
                    None => Ok(()),
                }
            }
            watcher::Event::InitDone => {
                self.pause = self.shared.settings.backoff_first.0;
                self.finish_listing().await
            }
        }
    }

    fn alive(&mut self) {
        self.pause = self.shared.settings.backoff_first.0;
        self.shared.health.note_alive(R::KIND);
    }

    async fn apply(&mut self, object: &R::Object) -> Result<(), crate::inbox::Closed> {
        let place = place(object);
        if place.1.is_empty() {
            tracing::warn!(kind = R::KIND, "an object without a name is ignored");
            return Ok(());
        }
        let meaning = self.reading.read(object);
        for event in self.known.apply(place, meaning) {
            self.shared.inbox.send(event).await?;
        }
        Ok(())
    }

    async fn finish_listing(&mut self) -> Result<(), crate::inbox::Closed> {
        for (place, event) in self.known.finish() {
            self.reading.gone(&place.1);
            if let Some(event) = event {
                self.shared.inbox.send(event).await?;
            }
        }
        self.reading.listed();
        self.shared.health.note_listed(R::KIND);
        if self.asked != self.answered {
            self.answered = self.asked;
            if let Some(event) = self.reading.relisted() {
                self.shared.inbox.send(event).await?;
            }
        }
        Ok(())
    }

    fn note_error(&self, error: &watcher::Error) -> Option<WatchEnd> {
        let text = crate::api::shorten(&error.to_string());
        let now = self.shared.clock.now();
        let failing = self.shared.health.note_error(R::KIND, &text, now);
        self.shared.metrics.watch_failed(R::KIND);
        tracing::warn!(kind = R::KIND, error = %text, "watch failed");
        let limit = self.shared.settings.unhealthy_after.millis();
        (code(error) == Some(401) && failing >= limit).then_some(WatchEnd::LoginRefused {
            kind: R::KIND,
            seconds: failing.0 / 1000,
        })
    }

    async fn sleep(&mut self) {
        tokio::time::sleep(self.shared.dice.shortened(self.pause)).await;
        self.pause = self
            .pause
            .saturating_mul(2)
            .min(self.shared.settings.backoff_max.0);
    }
}

async fn changed(restart: &mut Option<signal::Receiver<u64>>) {
    match restart {
        // A sender that is gone sends no more changes.
        Some(receiver) => {
            if receiver.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

fn place<K: Resource<DynamicType = ()>>(object: &K) -> Place {
    let meta = object.meta();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let name = meta.name.as_deref().unwrap_or_default();
    (Arc::from(namespace), Box::from(name))
}

fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        ("ns".into(), name.into())
    }

    fn pod(uid: &str) -> Meaning {
        Some((Identity::Pod(uid.into()), Some(Event::Tick)))
    }

    #[test]
    fn deletion_seen_only_by_relist_becomes_removed() {
        let mut known = Known::default();
        known.apply(place("a"), pod("1"));
        known.apply(place("b"), pod("2"));
        known.begin();
        known.apply(place("b"), pod("2"));
        let gone: Vec<_> = known.finish().into_iter().map(|(_, event)| event).collect();
        assert_eq!(gone, [Some(Event::PodRemoved("1".into()))]);
        known.begin();
        assert!(known.finish().len() == 1, "an empty list forgets the rest");
    }

    #[test]
    fn recreated_under_its_name_is_another_object() {
        let mut known = Known::default();
        known.apply(place("a"), pod("1"));
        assert_eq!(
            known.apply(place("a"), pod("2")),
            [Event::PodRemoved("1".into()), Event::Tick]
        );
        assert_eq!(
            known.remove(&place("a")),
            Some(Event::PodRemoved("2".into()))
        );
        assert_eq!(known.remove(&place("a")), None);
    }

    #[test]
    fn object_that_is_not_ours_any_more_is_removed_and_a_double_counts_once() {
        let key = GangKey::new("ns", "u");
        let record = || Some((Identity::Record(key.clone()), None));
        let mut known = Known::default();
        known.apply(place("a"), record());
        known.apply(place("a-u"), record());
        assert_eq!(known.apply(place("a"), None), []);
        assert_eq!(known.apply(place("a-u"), None), [Event::RecordRemoved(key)]);
    }
}
