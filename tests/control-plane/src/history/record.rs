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
use super::{Change, Event, History, World};

/// Pause before a watch that broke is opened again (the API server may be down).
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// Most versions that are asked for one by one after a gap. What a server had not told before it died are a few; what others
/// wrote before it was asked again are tens.
const WALK_MAX: u64 = 1_000;
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
    gaps: Vec<Timestamp>,
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

    fn push(&self, resource_version: u64, change: Change) {
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
            let at = (self.now)();
            if log.events.len() < EVENTS_MAX {
                log.events.push(Event {
                    resource_version,
                    at,
                    change,
                });
            } else if log
                .gaps
                .last()
                .is_none_or(|last| at.duration_since(*last).as_secs() >= 1)
            {
                log.gaps.push(at);
            }
            log.events.len()
        };
        self.count.send_replace(count);
    }

    /// Lists everything and records it. Returns the list's version.
    async fn list<K: Recorded>(&self, api: &Api<K>) -> kube::Result<String> {
        let list = api.list(&ListParams::default()).await?;
        self.take(&list);
        Ok(list.metadata.resource_version.unwrap_or_default())
    }

    /// Records what of a list differs from what is known; objects that are not in it are recorded as gone.
    fn take<K: Recorded>(&self, list: &ObjectList<K>) {
        let version = number(list.metadata.resource_version.as_deref());
        let listed: BTreeSet<String> = list.items.iter().filter_map(ResourceExt::uid).collect();
        let known = K::all_gone(&self.log().world);
        for (_, change) in known.into_iter().filter(|(uid, _)| !listed.contains(uid)) {
            self.push(version, change);
        }
        for object in &list.items {
            let own = number(object.resource_version().as_deref());
            let uid = object.uid().unwrap_or_default();
            if self.log().versions.get(&uid) != Some(&own) {
                self.push(own, object.set());
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
        loop {
            let expired = match api.watch(&WatchParams::default(), &version).await {
                Ok(stream) => self.drain::<K>(stream, &mut version).await,
                Err(kube::Error::Api(status)) => status.code == 410,
                Err(_) => false,
            };
            if expired && let Ok(list) = api.list(&ListParams::default()).await {
                let listed = list.metadata.resource_version.clone().unwrap_or_default();
                let (seen, now) = (number(Some(&version)), number(Some(&listed)));
                if self.differs(&list) && !self.walk(&api, seen, now).await {
                    let at = (self.now)();
                    self.log().gaps.push(at);
                }
                self.take(&list);
                version = listed;
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    /// Records what was so at each version between two: the store keeps them for minutes, also when the server's memory of events is
    /// lost. Returns whether it could be had.
    async fn walk<K: Recorded>(&self, api: &Api<K>, seen: u64, now: u64) -> bool {
        if now.saturating_sub(seen) > WALK_MAX {
            return false;
        }
        for version in seen.saturating_add(1)..now {
            let exactly = ListParams {
                resource_version: Some(version.to_string()),
                version_match: Some(VersionMatch::Exact),
                ..ListParams::default()
            };
            match api.list(&exactly).await {
                Ok(list) if number(list.metadata.resource_version.as_deref()) == version => {
                    self.take(&list);
                }
                _ => return false,
            }
        }
        true
    }

    /// Takes in events until the watch ends; returns whether its version has expired.
    async fn drain<K: Recorded>(
        &self,
        stream: impl futures::Stream<Item = kube::Result<WatchEvent<K>>>,
        version: &mut String,
    ) -> bool {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    *version = object.resource_version().unwrap_or_default();
                    self.push(number(Some(version)), object.set());
                }
                Ok(WatchEvent::Deleted(object)) => {
                    *version = object.resource_version().unwrap_or_default();
                    self.push(number(Some(version)), object.gone());
                }
                Ok(WatchEvent::Bookmark(bookmark)) => *version = bookmark.metadata.resource_version,
                Ok(WatchEvent::Error(status)) => return status.code == 410,
                Err(_) => return false,
            }
        }
        false
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
