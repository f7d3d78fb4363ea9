//! Every flow once: the rights that are printed are those that it takes, and each line of the log about a gang names its plan.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use muster_agent::scenario::FaultEvent;
use muster_embedded::api::ApiError;
use muster_embedded::api::faults::{After, Before, Faults, RequestInfo};
use muster_embedded::{value, yaml};
use muster_kubernetes::manifests;
use muster_scheduler::logs;
use muster_tests::jobs::{Job, Role};
use muster_tests::pods::{By, PodGang};
use muster_tests::sim::{
    CLIENT, GANGS, JOBS, LEASES, PODS, SOON, Script, Sim, SimOptions, bound, gang_field,
};
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;

use super::{MINUTE, paused, train};

/// A verb on a resource of a group, `pods/binding` for one of its subresources.
type Right = (String, String, String);

/// Notes what the scheduler asks for. Of each kind of write the first answer is lost, so that it reads back what it may have
/// done; its first Event is refused.
struct Watched {
    script: Arc<Script>,
    /// With the namespaces in which it was asked for.
    asked: Mutex<BTreeMap<Right, BTreeSet<String>>>,
    lost: Mutex<BTreeSet<Right>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn right(request: &RequestInfo) -> Right {
    let resource = match request.subresource.as_str() {
        "" => request.resource.clone(),
        sub => format!("{}/{sub}", request.resource),
    };
    // The embedded cluster knows reviews by their names alone.
    let group = match resource.as_str() {
        "tokenreviews" => "authentication.k8s.io".to_owned(),
        _ => request.group.clone(),
    };
    (group, resource, request.verb.clone())
}

impl Faults for Watched {
    fn before(&self, request: &RequestInfo) -> Before {
        if request.client == CLIENT && !request.resource.is_empty() {
            let mut asked = locked(&self.asked);
            let namespaces = asked.entry(right(request)).or_default();
            let is_first = namespaces.is_empty();
            namespaces.insert(request.namespace.clone());
            if is_first && (request.resource == "events" && request.verb == "create") {
                return Before::Refuse(ApiError::new(403, "Forbidden", "no events today"));
            }
        }
        self.script.before(request)
    }

    fn after(&self, request: &RequestInfo, code: u16) -> After {
        let is_write = matches!(request.verb.as_str(), "create" | "update" | "patch");
        let is_own = !matches!(
            request.resource.as_str(),
            "leases" | "events" | "tokenreviews"
        );
        if request.client == CLIENT
            && is_write
            && is_own
            && locked(&self.lost).insert(right(request))
        {
            return After::Lose;
        }
        self.script.after(request, code)
    }
}

/// What a printed role gives.
fn rules(kind: &str) -> anyhow::Result<BTreeSet<Right>> {
    let printed = yaml::all(&manifests::rbac()).map_err(anyhow::Error::msg)?;
    let is_role = |object: &&Value| {
        value::text(object, &["kind"]) == kind && value::name(object) == "muster-scheduler"
    };
    let role = printed.iter().find(is_role).context(kind.to_owned())?;
    let words = |rule: &Value, key: &str| -> Vec<String> {
        let words = value::items(rule, &[key]).iter();
        words.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in value::items(role, &["rules"]) {
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                for verb in words(rule, "verbs") {
                    rights.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    Ok(rights)
}

fn uid_of(sim: &Sim, pod: &str) -> String {
    let pod = sim.cluster.get(PODS, "default", pod);
    pod.map(|pod| value::uid(&pod).to_owned())
        .unwrap_or_default()
}

fn suspend(sim: &Sim, job: &str, on: bool) -> anyhow::Result<()> {
    let patch = json!({"spec": {"runPolicy": {"suspend": on}}});
    sim.cluster.patch(JOBS, "default", job, "", &patch)?;
    Ok(())
}

/// A new scheduler, which finds no Lease.
async fn starts(sim: &mut Sim) -> anyhow::Result<()> {
    sim.kill_scheduler().await;
    sim.cluster
        .delete(LEASES, "muster-system", "muster-scheduler")?;
    sim.start_scheduler();
    sim.wait_ready().await
}

/// A job starts, is suspended by its user, and goes on, twice.
async fn job(sim: &Sim) -> anyhow::Result<()> {
    sim.apply(&train("train").yaml())?;
    sim.until_phase("train", "Running").await?;
    // The second time what is told of it is a repetition.
    for _ in 0..2 {
        suspend(sim, "train", true)?;
        sim.until_phase("train", "Suspended").await?;
        suspend(sim, "train", false)?;
        sim.until_phase("train", "Running").await?;
    }
    sim.cluster.delete(JOBS, "default", "train")?;
    sim.until("it is gone", SOON, |c| c.list(PODS).is_empty())
        .await
}

/// Pods without a job start, and go.
async fn pods(sim: &Sim, by: By) -> anyhow::Result<()> {
    let gang = PodGang::new("pods", by, 2, 1);
    sim.apply(&gang.yaml())?;
    sim.until_phase(&gang.object(), "Running").await?;
    for pod in ["pods-0", "pods-1"] {
        sim.cluster.delete(PODS, "default", pod)?;
    }
    if by == By::PodGroup {
        let groups = ("scheduling.x-k8s.io", "podgroups");
        sim.cluster.delete(groups, "default", "pods")?;
    }
    sim.until("its object is gone", MINUTE * 10, |c| {
        c.get(GANGS, "default", &gang.object()).is_none()
    })
    .await
}

/// A member on a GPU that fails is deleted, where its gang asks for that, and one waits for room.
async fn repair_and_wait(sim: &Sim) -> anyhow::Result<()> {
    let mut fill = Job::new("fill", vec![Role::new("Worker", 2, 8)]);
    fill.annotations
        .push(("muster.dev/on-gpu-failure".into(), "Repair".into()));
    sim.apply(&fill.yaml())?;
    sim.until_phase("fill", "Running").await?;
    let one_more = Job::new("waits", vec![Role::new("Worker", 3, 8)]);
    sim.apply(&one_more.yaml())?;
    sim.until("it waits for room", SOON, |c| {
        gang_field(c, "waits", "reason") == "NotEnoughFree"
    })
    .await?;
    // Its user takes it out of the queue, and puts it back: what its status says is Muster's to write then.
    let unmarked = json!({"metadata": {"annotations": {"muster.dev/hold": null}}});
    sim.cluster.patch(JOBS, "default", "waits", "", &unmarked)?;
    sim.until_phase("waits", "Suspended").await?;
    suspend(sim, "waits", false)?;
    sim.until("it waits for room again", SOON, |c| {
        gang_field(c, "waits", "reason") == "NotEnoughFree"
    })
    .await?;
    let before = uid_of(sim, "fill-worker-1");
    let node = bound(&sim.cluster, "fill-worker-1")
        .remove("fill-worker-1")
        .context("its node")?;
    let xid = FaultEvent::Xid { gpu: 3, code: 79 };
    sim.agents.inject(&node, xid)?;
    sim.until("the member is replaced", MINUTE * 10, |c| {
        uid_of(sim, "fill-worker-1") != before && bound(c, "fill-").len() == 2
    })
    .await
}

/// Another leader takes over what runs.
async fn taken_over(sim: &mut Sim) -> anyhow::Result<()> {
    sim.kill_scheduler().await;
    sim.start_scheduler();
    sim.wait_ready().await?;
    let stamp = ["metadata", "annotations", "muster.dev/epoch"];
    for gang in ["fill", "waits"] {
        let found = sim.cluster.get(GANGS, "default", gang);
        let found = found.with_context(|| gang.to_owned())?;
        ensure!(!value::text(&found, &stamp).is_empty(), "{found}");
    }
    sim.until_phase("fill", "Running").await
}

/// The lines about gangs: each names its plan, which is empty where there is none.
fn check_logs(text: &str) -> anyhow::Result<()> {
    let (mut of_gangs, mut with_plan, mut refused) = (0, 0, 0);
    for line in text.lines() {
        let said: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if said.get("gang").is_none() {
            continue;
        }
        let plan = said.get("plan").and_then(Value::as_str);
        let plan = plan.with_context(|| format!("no plan in {line}"))?;
        of_gangs += 1;
        with_plan += usize::from(!plan.is_empty());
        refused += usize::from(value::text(&said, &["message"]) == "an event was refused");
    }
    ensure!(
        of_gangs > 50 && with_plan > 30 && refused == 1,
        "{of_gangs} lines about gangs, {with_plan} with a plan, {refused} about a refused event"
    );
    Ok(())
}

/// What is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        locked(&self.0).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn rights_are_those_that_all_flows_take_and_each_log_line_of_a_gang_names_its_plan()
-> anyhow::Result<()> {
    let lines = Lines::default();
    let writer = lines.clone();
    // While there is one subscriber alone, a test of another thread that comes to a line first switches that line off for all of them
    // (tracing-core 0.1.36, `callsite.rs`, `has_just_one`).
    let another = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let filter = EnvFilter::new("muster_scheduler=trace");
    let logged = logs::lines(filter, move || writer.clone());
    let guard = tracing::subscriber::set_default(logged);
    let mut asked = BTreeMap::new();
    paused(async {
        let mut sim = Sim::start(SimOptions::nodes(3)).await?;
        let watched = Arc::new(Watched {
            script: Arc::clone(&sim.script),
            asked: Mutex::default(),
            lost: Mutex::default(),
        });
        sim.cluster.set_faults(Arc::clone(&watched) as _);
        starts(&mut sim).await?;
        job(&sim).await?;
        pods(&sim, By::Label).await?;
        pods(&sim, By::PodGroup).await?;
        repair_and_wait(&sim).await?;
        taken_over(&mut sim).await?;
        asked.clone_from(&locked(&watched.asked));
        sim.stop().await;
        Ok(())
    })?;
    drop((guard, another));
    check_logs(&String::from_utf8_lossy(&locked(&lines.0)))?;
    let (everywhere, in_own) = (rules("ClusterRole")?, rules("Role")?);
    for (right, namespaces) in &asked {
        let own = BTreeSet::from(["muster-system".to_owned()]);
        let is_given = everywhere.contains(right) || (in_own.contains(right) && *namespaces == own);
        ensure!(
            is_given,
            "{right:?} was asked for in {namespaces:?} and is not given"
        );
    }
    let given = everywhere.union(&in_own);
    let unused: Vec<_> = given.filter(|right| !asked.contains_key(*right)).collect();
    ensure!(unused.is_empty(), "given and never asked for: {unused:?}");
    Ok(())
}
