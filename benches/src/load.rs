//! Creates the load as fast as the API server takes it, in the same way for every contender.
//!
//! ```text
//!   gangs that are submitted ---------------------------> steps --(64 requests in flight)--> API server
//!   jobs that are submitted -> API server -> controller --^
//!   without a scheduler: each pod that is there -> raw::bind
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::Client;
use kube::api::PostParams;
use kube::core::Request;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::contender::Contender;
use crate::controller;
use crate::objects::{self, Gang, Object};
use crate::raw::{self, Places};

/// Requests in flight: more make the API server no faster on a few cores.
pub const IN_FLIGHT: usize = 64;
/// Jobs or PodGroups in flight.
const HEADS_IN_FLIGHT: usize = 8;
/// Steps that wait for the maker; the submitter then waits as well.
const STEPS_MAX: usize = 1_024;
/// Longest wait for the answer to one request.
const REQUEST_MAX: Duration = Duration::from_secs(60);
/// Pause between two tries to create an object whose predecessor is still there.
const AGAIN_EVERY: Duration = Duration::from_millis(200);

/// Objects to create: first these, then those.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Created first, such as PodGroups.
    pub head: Vec<Object>,
    /// Created then, in order, many at once.
    pub pods: Vec<Object>,
    /// Pods of these names may still be on their way out: they are waited for.
    pub again: bool,
}

/// What has been created, and when.
#[derive(Clone, Debug, Default)]
pub struct Created {
    /// When each gang was submitted: just before the request for its first object, or when it was
    /// handed to the maker of pods.
    pub submitted: BTreeMap<String, Timestamp>,
    /// When the last pod was answered.
    pub last_pod: Option<Timestamp>,
    /// Pods created.
    pub pods: usize,
    /// When the last job was answered.
    pub last_job: Option<Timestamp>,
    /// Jobs created.
    pub jobs: usize,
}

/// The load on its way. Dropping it stops what is still to be created.
#[derive(Debug)]
pub struct Load {
    created: Arc<Mutex<Created>>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Load {
    /// Submits all gangs at once. With places, each pod is bound to its own as soon as it is there.
    pub fn start(
        client: &Client,
        gangs: Vec<Gang>,
        contender: Contender,
        interleaved: bool,
        places: Option<Places>,
    ) -> Load {
        let created: Arc<Mutex<Created>> = Arc::default();
        let (sender, receiver) = mpsc::channel(STEPS_MAX);
        let mut tasks = JoinSet::new();
        let binder = places.map(|places| {
            let (binder, pods) = mpsc::channel(STEPS_MAX);
            tasks.spawn(raw::bind(client.clone(), places, pods));
            binder
        });
        tasks.spawn(make(client.clone(), receiver, Arc::clone(&created), binder));
        if contender.has_jobs() {
            tasks.spawn(controller::run(client.clone(), sender));
            tasks.spawn(submit_jobs(
                client.clone(),
                gangs,
                contender,
                Arc::clone(&created),
            ));
        } else {
            tasks.spawn(submit_pods(
                sender,
                gangs,
                contender,
                interleaved,
                Arc::clone(&created),
            ));
        }
        Load { created, tasks }
    }

    /// Binds pods that are there already to their places.
    pub fn bind(&mut self, client: &Client, places: Places) {
        let (binder, pods) = mpsc::channel(STEPS_MAX);
        let names: Vec<String> = places.keys().cloned().collect();
        self.tasks.spawn(raw::bind(client.clone(), places, pods));
        self.tasks.spawn(async move {
            for name in names {
                if binder.send(name).await.is_err() {
                    break;
                }
            }
            Ok(())
        });
    }

    /// What has been created so far.
    pub fn created(&self) -> Created {
        locked(&self.created).clone()
    }

    /// Fails when something could not be created.
    pub fn check(&mut self) -> anyhow::Result<()> {
        while let Some(ended) = self.tasks.try_join_next() {
            ended.context("a task of the load")??;
        }
        Ok(())
    }
}

fn locked(created: &Mutex<Created>) -> std::sync::MutexGuard<'_, Created> {
    created.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn submit_pods(
    steps: mpsc::Sender<Step>,
    gangs: Vec<Gang>,
    contender: Contender,
    interleaved: bool,
    created: Arc<Mutex<Created>>,
) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for gang in &gangs {
        all.push(Step {
            head: objects::pod_group(gang, contender)?.into_iter().collect(),
            pods: objects::pods(gang, contender)?,
            again: false,
        });
    }
    if interleaved {
        all = vec![interleave(all)];
    }
    let now = Timestamp::now();
    locked(&created).submitted = gangs.into_iter().map(|gang| (gang.name, now)).collect();
    for step in all {
        if steps.send(step).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// One step out of many: all heads, then the first pod of each, the second of each, and so on.
fn interleave(steps: Vec<Step>) -> Step {
    let mut one = Step::default();
    let mut queues: Vec<_> = Vec::new();
    for step in steps {
        one.head.extend(step.head);
        queues.push(step.pods.into_iter());
    }
    loop {
        let round: Vec<Object> = queues.iter_mut().filter_map(Iterator::next).collect();
        if round.is_empty() {
            return one;
        }
        one.pods.extend(round);
    }
}

async fn submit_jobs(
    client: Client,
    gangs: Vec<Gang>,
    contender: Contender,
    created: Arc<Mutex<Created>>,
) -> anyhow::Result<()> {
    let mut jobs = Vec::new();
    for gang in &gangs {
        jobs.push((gang.name.clone(), objects::job(gang, contender)?));
    }
    futures::stream::iter(jobs)
        .map(|(name, job)| {
            let (client, created) = (client.clone(), Arc::clone(&created));
            async move {
                locked(&created).submitted.insert(name, Timestamp::now());
                create(&client, job).await?;
                let mut created = locked(&created);
                created.jobs = created.jobs.saturating_add(1);
                created.last_job = Some(Timestamp::now());
                Ok(())
            }
        })
        .buffered(HEADS_IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await
}

/// Creates objects, as many at once as the load does.
pub async fn create_all(client: &Client, objects: Vec<Object>) -> anyhow::Result<()> {
    futures::stream::iter(objects)
        .map(|object| create(client, object))
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await
}

/// Creates what comes, step by step, until nothing more comes, and tells the binder, if there is
/// one, of each pod.
async fn make(
    client: Client,
    steps: mpsc::Receiver<Step>,
    created: Arc<Mutex<Created>>,
    binder: Option<mpsc::Sender<String>>,
) -> anyhow::Result<()> {
    let steps = futures::stream::unfold(steps, |mut steps| async move {
        let step = steps.recv().await?;
        Some((step, steps))
    });
    let heads = steps
        .map(|step| {
            let client = client.clone();
            async move {
                for object in step.head {
                    create(&client, object).await?;
                }
                let again = step.again;
                anyhow::Ok(step.pods.into_iter().map(move |pod| (pod, again)))
            }
        })
        .buffered(HEADS_IN_FLIGHT);
    heads
        .map_ok(|pods| futures::stream::iter(pods).map(anyhow::Ok))
        .try_flatten()
        .map_ok(|(pod, again)| {
            let (client, created) = (client.clone(), Arc::clone(&created));
            let binder = binder.clone();
            async move {
                let name = pod.name.clone();
                if again {
                    create_again(&client, pod).await?;
                } else {
                    create(&client, pod).await?;
                }
                {
                    let mut created = locked(&created);
                    created.pods = created.pods.saturating_add(1);
                    created.last_pod = Some(Timestamp::now());
                }
                if let Some(binder) = binder {
                    binder.send(name).await.context("the binder has ended")?;
                }
                anyhow::Ok(())
            }
        })
        .try_buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await
}

/// Creates an object in the place of one that is being deleted.
async fn create_again(client: &Client, object: Object) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        match create(client, object.clone()).await {
            Err(error) if is_there(&error) && since.elapsed() < REQUEST_MAX => {
                tokio::time::sleep(AGAIN_EVERY).await;
            }
            other => return other,
        }
    }
}

fn is_there(error: &anyhow::Error) -> bool {
    let answer = error.downcast_ref::<kube::Error>();
    matches!(answer, Some(kube::Error::Api(status)) if status.is_already_exists())
}

/// Creates one object.
pub async fn create(client: &Client, object: Object) -> anyhow::Result<()> {
    let path = object.path.clone();
    let request = Request::new(object.path)
        .create(&PostParams::default(), object.body)
        .with_context(|| format!("a request for {path}"))?;
    tokio::time::timeout(REQUEST_MAX, client.request_text(request))
        .await
        .with_context(|| format!("POST {path}: no answer within {REQUEST_MAX:?}"))?
        .with_context(|| format!("POST {path}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str) -> Object {
        Object {
            name: name.into(),
            path: name.into(),
            body: Vec::new(),
        }
    }

    #[test]
    fn an_object_that_is_still_there_is_told_from_other_refusals() {
        let refused = |code, reason: &str| {
            let status = kube::core::Status::failure("no", reason)
                .with_code(code)
                .boxed();
            let answer: Result<(), _> = Err(kube::Error::Api(status));
            answer.with_context(|| "POST pods").unwrap_err()
        };
        assert!(is_there(&refused(409, "AlreadyExists")));
        assert!(!is_there(&refused(409, "Conflict")));
        assert!(!is_there(&refused(403, "Forbidden")));
    }

    #[test]
    fn members_of_all_gangs_take_turns() {
        let step = |names: &[&str]| Step {
            head: vec![object("head")],
            pods: names.iter().map(|name| object(name)).collect(),
            again: false,
        };
        let one = interleave(vec![step(&["a0", "a1", "a2"]), step(&["b0", "b1"])]);
        let names: Vec<&str> = one.pods.iter().map(|pod| pod.path.as_str()).collect();
        assert_eq!(names, ["a0", "b0", "a1", "b1", "a2"]);
        assert_eq!(one.head.len(), 2);
    }
}
