//! The recorder: three watches that never lose their place without saying so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, ObjectList, VersionMatch,
    WatchEvent, WatchParams,
};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::error::{Error, Result};

use super::state::{JobState, NodeState, PodState};
use super::{Change, Event, Gap, History, World};

/// Pause before a watch that broke is opened again (the API server may be down).
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// Most versions that are asked for one by one after a gap. What a server had not told before it died are a few; what others
/// wrote before it was asked again are tens.
const WALK_MAX: u64 = 1_000;
/// Longest that versions are asked for one by one, unless it is said otherwise.
const WALK_TIME_MAX: Duration = Duration::from_secs(120);
/// Most events kept; later ones are dropped and counted as a gap. At about 2 KB each this is 4 GB.
const EVENTS_MAX: usize = 2_000_000;

/// Records every change of pods, nodes and PyTorchJobs from its start on. Dropping it ends the watches.
#[derive(Debug)]
pub struct Recorder {
    client: Quiet,
    shared: Arc<Shared>,
    /// Owned, so that the watches end with the recorder.
    _watches: JoinSet<()>,
}

/// A client that prints as nothing.
struct Quiet(Client);

impl std::fmt::Debug for Quiet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// Tells the time that events are stamped with.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

struct Shared {
    now: Now,
    /// Longest that versions are asked for one by one.
    walk_max: Mutex<Duration>,
    log: Mutex<Log>,
    /// Told the number of events at each one.
    count: watch::Sender<usize>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("events", &self.log().events.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Log {
    events: Vec<Event>,
    gaps: Vec<Gap>,
    world: World,
    /// Resource version of each object that exists, by UID.
    versions: BTreeMap<String, u64>,
    /// Resource version of the last pod event.
    pods_seen: u64,
}

/// How objects of one kind become changes.
trait Recorded:
    Clone + std::fmt::Debug + DeserializeOwned + ResourceExt + Send + Sync + 'static
{
    fn set(&self) -> Change;
    fn gone(&self) -> Change;
    /// The objects of this kind in the world, as if they were gone.
    fn all_gone(world: &World) -> Vec<(String, Change)>;
}

impl Recorded for Pod {
    fn set(&self) -> Change {
        Change::Pod(PodState::of(self))
    }
    fn gone(&self) -> Change {
        Change::PodGone(PodState::of(self))
    }
    fn all_gone(world: &World) -> Vec<(String, Change)> {
        let gone = |(uid, pod): (&String, &PodState)| (uid.clone(), Change::PodGone(pod.clone()));
        world.pods.iter().map(gone).collect()
    }
}

impl Recorded for Node {
    fn set(&self) -> Change {
        Change::Node(NodeState::of(self))
    }
    fn gone(&self) -> Change {
        Change::NodeGone(NodeState::of(self))
    }
    fn all_gone(world: &World) -> Vec<(String, Change)> {
        let nodes = world.nodes.values();
        nodes
            .map(|node| (node.uid.clone(), Change::NodeGone(node.clone())))
            .collect()
    }
}

impl Recorded for DynamicObject {
    fn set(&self) -> Change {
        Change::Job(JobState::of(self))
    }
    fn gone(&self) -> Change {
        Change::JobGone(JobState::of(self))
    }
    fn all_gone(world: &World) -> Vec<(String, Change)> {
        let gone = |(uid, job): (&String, &JobState)| (uid.clone(), Change::JobGone(job.clone()));
        world.jobs.iter().map(gone).collect()
    }
}

impl Recorder {
    /// Lists what there is and begins to watch. PyTorchJobs are recorded when their CRD is served at this moment.
    ///
    /// The client needs to list and watch pods, nodes and PyTorchJobs in all namespaces.
    pub async fn start(client: Client) -> Result<Recorder> {
        Self::start_with(client, Arc::new(Timestamp::now)).await
    }

    /// The same, with the time of a clock that is given: a cluster on a paused clock has its own time.
    pub async fn start_with(client: Client, now: Now) -> Result<Recorder> {
        let shared = Arc::new(Shared {
            now,
            walk_max: Mutex::new(WALK_TIME_MAX),
            log: Mutex::new(Log::default()),
            count: watch::Sender::new(0),
        });
        let mut watches = JoinSet::new();
        let nodes: Api<Node> = Api::all(client.clone());
        let version = shared
            .list(&nodes)
            .await
            .map_err(Error::api("list nodes to record"))?;
        watches.spawn(shared.clone().follow(nodes, version));
        let kind = GroupVersionKind::gvk("kubeflow.org", "v1", "PyTorchJob");
        let jobs: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
        match shared.list(&jobs).await {
            Ok(version) => {
                watches.spawn(shared.clone().follow(jobs, version));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::api("list pytorchjobs to record")(error)),
        }
        let pods: Api<Pod> = Api::all(client.clone());
        let version = shared
            .list(&pods)
            .await
            .map_err(Error::api("list pods to record"))?;
        watches.spawn(shared.clone().follow(pods, version));
        Ok(Recorder {
            client: Quiet(client),
            shared,
            _watches: watches,
        })
    }

    /// How long versions may be asked for one by one after an API server was restarted; 120 s otherwise. Each answer holds every object there is:
    /// on a busy machine with hundreds of pods a thousand of them took three minutes, in which whoever looks at the recorded cluster saw none
    /// of what happened. What is not had by then is a gap.
    pub fn ask_for_versions_up_to(&self, longest: Duration) {
        *self.shared.walk_max() = longest;
    }

    /// What has been recorded so far.
    pub fn history(&self) -> History {
        let log = self.shared.log();
        let mut history = History::new(log.events.clone());
        history.gaps.clone_from(&log.gaps);
        history.until = Some((self.shared.now)());
        history
    }

    /// Waits until the recorder has seen all that happened to pods before this call, and returns the history. Call it at the end of a
    /// scenario, before judging.
    pub async fn caught_up(&self, timeout: Duration) -> Result<History> {
        let pods: Api<Pod> = Api::all(self.client.0.clone());
        let list = pods
            .list(&ListParams::default())
            .await
            .map_err(Error::api("list pods to compare with the record"))?;
        let listed_at = number(list.metadata.resource_version.as_deref());
        let listed: BTreeMap<String, u64> = list
            .items
            .iter()
            .map(|pod| {
                (
                    pod.uid().unwrap_or_default(),
                    number(pod.metadata.resource_version.as_deref()),
                )
            })
            .collect();
        self.wait(timeout, "the record of all pods", |log| {
            let version_of = |uid: &String| log.versions.get(uid).copied().unwrap_or(0);
            let seen = |(uid, version): (&String, &u64)| version_of(uid) >= *version;
            let known = |uid: &String| version_of(uid) > listed_at || listed.contains_key(uid);
            log.pods_seen > listed_at
                || (listed.iter().all(seen) && log.world.pods.keys().all(known))
        })
        .await?;
        Ok(self.history())
    }

    /// Waits until the recorded cluster is in a wanted state. `what` names that state in the error of a timeout.
    pub async fn wait_for(
        &self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&World) -> bool,
    ) -> Result<()> {
        self.wait(timeout, what, |log| wanted(&log.world)).await
    }

    /// Looks at the recorded cluster as it is now.
    pub fn look<T>(&self, look: impl FnOnce(&World) -> T) -> T {
        look(&self.shared.log().world)
    }

    async fn wait(
        &self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&Log) -> bool,
    ) -> Result<()> {
        let mut changed = self.shared.count.subscribe();
        let deadline = Instant::now() + timeout;
        loop {
            changed.mark_unchanged();
            if wanted(&self.shared.log()) {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, changed.changed())
                .await
                .is_err()
            {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    waited: timeout,
                    detail: summary(&self.shared.log().world),
                });
            }
        }
    }
}

/// The pods by controller, as a line for the error of a timeout.
fn summary(world: &World) -> String {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for pod in world.pods.values() {
        let controller = pod
            .controller
            .as_ref()
            .map_or(&pod.name, |(_, name, _)| name);
        let entry = counts
            .entry(format!("{}/{controller} {}", pod.namespace, pod.phase))
            .or_default();
        entry.0 += 1;
        entry.1 += usize::from(pod.node.is_some());
    }
    let parts: Vec<String> = counts
        .iter()
        .take(20)
        .map(|(name, (pods, bound))| format!("{name}: {pods} pods, {bound} bound"))
        .collect();
    format!("{} pods; {}", world.pods.len(), parts.join("; "))
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn walk_max(&self) -> MutexGuard<'_, Duration> {
        self.walk_max.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, at: Timestamp, resource_version: u64, change: Change) {
        let count = {
            let mut log = self.log();
            log.world.apply(&change);
            if matches!(change, Change::Pod(_) | Change::PodGone(_)) {
                log.pods_seen = log.pods_seen.max(resource_version);
            }
            match &change {
                Change::Pod(PodState { uid, .. })
                | Change::Node(NodeState { uid, .. })
                | Change::Job(JobState { uid, .. }) => {
                    log.versions.insert(uid.clone(), resource_version);
                }
                Change::PodGone(PodState { uid, .. })
                | Change::NodeGone(NodeState { uid, .. })
                | Change::JobGone(JobState { uid, .. }) => {
                    log.versions.remove(uid);
                }
            }
            if log.events.len() < EVENTS_MAX {
                log.events.push(Event {
                    resource_version,
                    at,
                    change,
                });
            } else if log
                .gaps
                .last()
                .is_none_or(|last| at.duration_since(last.until).as_secs() >= 1)
            {
                log.gaps.push(Gap {
                    from: at,
                    until: at,
                });
            }
            log.events.len()
        };
        self.count.send_replace(count);
    }

    /// Lists everything and records it. Returns the list's version.
    async fn list<K: Recorded>(&self, api: &Api<K>) -> kube::Result<String> {
        let list = api.list(&ListParams::default()).await?;
        self.take(&list, (self.now)(), false);
        Ok(list.metadata.resource_version.unwrap_or_default())
    }

    /// Records what of a list differs from what is known, as of some time; objects that are not in it are recorded as gone. Each object
    /// changed at its own version, or, where nobody knows in which order they did, all of them at once at the list's.
    fn take<K: Recorded>(&self, list: &ObjectList<K>, at: Timestamp, at_once: bool) {
        let version = number(list.metadata.resource_version.as_deref());
        let listed: BTreeSet<String> = list.items.iter().filter_map(ResourceExt::uid).collect();
        let known = K::all_gone(&self.log().world);
        for (_, change) in known.into_iter().filter(|(uid, _)| !listed.contains(uid)) {
            self.push(at, version, change);
        }
        for object in &list.items {
            let own = number(object.resource_version().as_deref());
            let uid = object.uid().unwrap_or_default();
            if self.log().versions.get(&uid) != Some(&own) {
                let version = if at_once { version } else { own };
                self.push(at, version, object.set());
            }
        }
    }

    /// Whether anything in a list differs that is judged from what is known: a heartbeat of a node or a pod's condition hides
    /// nothing.
    fn differs<K: Recorded>(&self, list: &ObjectList<K>) -> bool {
        let known: BTreeMap<String, Change> = K::all_gone(&self.log().world).into_iter().collect();
        let changed = |object: &K| {
            let before = known.get(&object.uid().unwrap_or_default());
            before.cloned().map(judged) != Some(judged(object.gone()))
        };
        known.len() != list.items.len() || list.items.iter().any(changed)
    }

    /// Watches for ever, from a version on. A server that was restarted refuses versions from before. When a list then shows every
    /// object as it was last seen, nothing was missed (but for objects that were made and removed in between, and nodes that changed
    /// and changed back: what is judged of a pod never goes back). Otherwise what was missed is asked for, version by version.
    async fn follow<K: Recorded>(self: Arc<Self>, api: Api<K>, mut version: String) {
        // Until when a watch told all that there was.
        let mut told_until = (self.now)();
        loop {
            let before = version.clone();
            let expired = match api.watch(&WatchParams::default(), &version).await {
                Ok(stream) => {
                    let expired = self.drain::<K>(stream, &mut version).await;
                    if !expired || version != before {
                        told_until = (self.now)();
                    }
                    expired
                }
                Err(kube::Error::Api(status)) => status.code == 410,
                Err(_) => false,
            };
            if expired && self.catch_up(&api, &mut version, told_until).await {
                told_until = (self.now)();
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    /// Records what a server that was restarted no longer tells, and goes on from there until the new watch ends. What happens while versions
    /// are asked for is told by that watch, and recorded as of when it was told. Returns whether the server could be asked.
    async fn catch_up<K: Recorded>(
        &self,
        api: &Api<K>,
        version: &mut String,
        told_until: Timestamp,
    ) -> bool {
        let Ok(list) = api.list(&ListParams::default()).await else {
            return false;
        };
        let listed = list.metadata.resource_version.clone().unwrap_or_default();
        let Ok(stream) = api.watch(&WatchParams::default(), &listed).await else {
            return false;
        };
        let missed = Missed {
            seen: number(Some(version)),
            now: number(Some(&listed)),
            time: Gap {
                from: told_until,
                until: (self.now)(),
            },
        };
        let mut stream = Box::pin(stream);
        let mut early = Vec::new();
        {
            let mut filled = std::pin::pin!(self.fill(api, &list, &missed));
            let mut is_open = true;
            loop {
                tokio::select! {
                    () = &mut filled => break,
                    event = stream.next(), if is_open => match event {
                        Some(event) => early.push(((self.now)(), event)),
                        None => is_open = false,
                    },
                }
            }
        }
        *version = listed;
        for (at, event) in early {
            if self.tell(at, event, version).is_some() {
                return true;
            }
        }
        self.drain(stream, version).await;
        true
    }

    /// Records what was missed before a list.
    async fn fill<K: Recorded>(&self, api: &Api<K>, list: &ObjectList<K>, missed: &Missed) {
        let complete = !self.differs(list) || self.walk(api, missed).await;
        if !complete {
            self.log().gaps.push(missed.time);
        }
        self.take(list, missed.time.until, !complete);
    }

    /// Records what was so at each version between two: the store keeps them for minutes, also when the server's memory of events is
    /// lost. Returns whether all of it could be had in time.
    async fn walk<K: Recorded>(&self, api: &Api<K>, missed: &Missed) -> bool {
        if missed.now.saturating_sub(missed.seen) > WALK_MAX {
            return false;
        }
        let longest = *self.walk_max();
        let all = async {
            for version in missed.seen.saturating_add(1)..missed.now {
                let exactly = ListParams {
                    resource_version: Some(version.to_string()),
                    version_match: Some(VersionMatch::Exact),
                    ..ListParams::default()
                };
                match api.list(&exactly).await {
                    Ok(list) if number(list.metadata.resource_version.as_deref()) == version => {
                        self.take(&list, missed.time_of(version), false);
                    }
                    _ => return false,
                }
            }
            true
        };
        let all = tokio::time::timeout(longest, all).await;
        all.unwrap_or(false)
    }

    /// Takes in events until the watch ends; returns whether its version has expired.
    async fn drain<K: Recorded>(
        &self,
        stream: impl futures::Stream<Item = kube::Result<WatchEvent<K>>>,
        version: &mut String,
    ) -> bool {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            if let Some(expired) = self.tell((self.now)(), event, version) {
                return expired;
            }
        }
        false
    }

    /// Takes in an event that was told at some time. Returns something when it ends the watch: whether its version has expired.
    fn tell<K: Recorded>(
        &self,
        at: Timestamp,
        event: kube::Result<WatchEvent<K>>,
        version: &mut String,
    ) -> Option<bool> {
        match event {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                *version = object.resource_version().unwrap_or_default();
                self.push(at, number(Some(version)), object.set());
            }
            Ok(WatchEvent::Deleted(object)) => {
                *version = object.resource_version().unwrap_or_default();
                self.push(at, number(Some(version)), object.gone());
            }
            Ok(WatchEvent::Bookmark(bookmark)) => *version = bookmark.metadata.resource_version,
            Ok(WatchEvent::Error(status)) => return Some(status.code == 410),
            Err(_) => return Some(false),
        }
        None
    }
}

/// Versions that no watch told of.
struct Missed {
    /// The last version that was told, and the one that a list showed afterwards.
    seen: u64,
    now: u64,
    /// What happened in between happened in this time.
    time: Gap,
}

impl Missed {
    /// About when a version in it was written: as far in its time as it is among its versions.
    fn time_of(&self, version: u64) -> Timestamp {
        let part = |number: u64| u128::from(number.saturating_sub(self.seen).max(1));
        let span =
            Duration::try_from(self.time.until.duration_since(self.time.from)).unwrap_or_default();
        let into = span.as_millis().saturating_mul(part(version)) / part(self.now);
        let into = Duration::from_millis(u64::try_from(into).unwrap_or(u64::MAX)).min(span);
        self.time.from.checked_add(into).unwrap_or(self.time.until)
    }
}

/// What is judged of a change: annotations are not.
pub(super) fn judged(mut change: Change) -> Change {
    if let Change::PodGone(pod) | Change::Pod(pod) = &mut change {
        pod.annotations.clear();
    }
    change
}

/// Resource versions of the API server are decimal numbers out of one sequence (comparable as such since Kubernetes 1.35).
fn number(version: Option<&str>) -> u64 {
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Versions of a gap were stamped when they were asked for: a gang that was bound within a second looked as if it had been bound in part
    /// for as long as the asking took.
    #[test]
    fn what_happened_in_a_gap_is_told_as_of_the_gap() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let between = |from: i64, until: i64| Missed {
            seen: 1_000,
            now: 1_100,
            time: Gap {
                from: at(from),
                until: at(until),
            },
        };
        let gap = between(50, 60);
        assert_eq!(gap.time_of(1_010), at(51));
        assert_eq!(gap.time_of(1_050), at(55));
        assert_eq!(gap.time_of(1_100), at(60));
        assert_eq!(gap.time_of(5_000), at(60));
        // A clock that was set back meanwhile.
        assert_eq!(between(70, 60).time_of(1_050), at(70));
    }
}
