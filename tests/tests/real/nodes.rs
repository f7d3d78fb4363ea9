//! Nodes that change between plan and bind, and after it, on the real control plane, in every way in
//! which users make gangs and Muster releases them.
//!
//! kube-scheduler is halted while a gang is planned and its pods are born, so that nothing can be
//! bound before the node has changed.

use std::time::Duration;

use muster_control_plane::history::World;
use muster_control_plane::{NodeTemplate, Program};
use muster_tests::acts::PATIENCE;
use muster_tests::fleet::Fleet;
use muster_tests::gangs::{Gang, Way};
use muster_tests::pods::By;
use muster_tests::stack::{Stack, StackOptions};
use serde_json::json;

/// GPU nodes for each way: two are taken away before the gangs of all ways run on what is left.
const NODES: u32 = 4;

/// Longest until the garbage collector has taken the pods of a node that is gone, and they run again.
const COLLECTED: Duration = Duration::from_secs(180);

/// Two members with all GPUs of a node each.
fn pair(way: Way, what: &str) -> Gang {
    way.gang(what, 2, 8)
}

/// Plans and releases a gang of two while nothing can be bound, lets `change` happen to one of its
/// nodes, and expects the gang to run elsewhere. Returns that node.
async fn changed_before_bind(
    stack: &Stack,
    gang: &Gang,
    change: impl AsyncFnOnce(String) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let name = gang.name();
    stack.cluster.pause(&Program::KubeScheduler)?;
    stack.submit_gang(gang).await?;
    let planned = stack.wait_planned(&gang.object()).await?;
    stack.wait_gang_born(gang, 2).await?;
    let node = planned.nodes().first().cloned().unwrap_or_default();
    anyhow::ensure!(!node.is_empty(), "no node in {planned:?}");
    change(node.clone()).await?;
    wait_elsewhere(stack, gang, &node).await?;
    stack.cluster.resume(&Program::KubeScheduler).await?;
    stack.wait_gang_running(gang).await?;
    let nodes = stack.gang_nodes(gang);
    assert!(
        !nodes.contains(&node),
        "{name} stands on {nodes:?}, not {node}"
    );
    Ok(node)
}

/// Waits until a gang has a plan without this node.
async fn wait_elsewhere(stack: &Stack, gang: &Gang, node: &String) -> anyhow::Result<()> {
    stack
        .wait_gang("default", &gang.object(), PATIENCE, |says| {
            !says.plan().is_empty() && !says.nodes().contains(node)
        })
        .await?;
    Ok(())
}

fn options(ways: &[Way]) -> anyhow::Result<StackOptions> {
    let nodes = NODES * u32::try_from(ways.len())?;
    Ok(StackOptions {
        pools: vec![NodeTemplate::gpu_pool("gpu", nodes)],
        ..StackOptions::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_jobs_and_gated_pods_leave_nodes_that_change_before_bind_and_stay_after()
-> anyhow::Result<()> {
    let stack = Stack::start(options(&Way::ALL)?).await?;
    nodes_change(&stack, &Way::ALL).await?;
    let failing = gpus_fail(&stack, &Way::ALL);
    stack.step("GPUs fail before bind", failing).await?;
    nodes_go(&stack, &Way::ALL, Going::Collected).await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_gangs_leave_nodes_that_change_before_bind_and_stay_after()
-> anyhow::Result<()> {
    let stack = Stack::start(StackOptions {
        policies: false,
        ..options(&Way::ALL)?
    })
    .await?;
    nodes_change(&stack, &Way::ALL).await?;
    let failing = gpus_fail(&stack, &Way::ALL);
    stack.step("GPUs fail before bind", failing).await?;
    nodes_go(&stack, &Way::ALL, Going::Forced).await?;
    stack.judge().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_agents_gangs_leave_nodes_that_change_before_bind_and_stay_after()
-> anyhow::Result<()> {
    let ways = [Way::Job, Way::Pods(By::PodGroup)];
    let stack = Stack::start(StackOptions {
        agents: false,
        ..options(&ways)?
    })
    .await?;
    nodes_change(&stack, &ways).await?;
    for way in ways {
        step(&stack, way, "a GPU is offered no more", shrunk(&stack, way)).await?;
    }
    nodes_go(&stack, &ways, Going::Forced).await?;
    stack.judge().await?;
    Ok(())
}

async fn step<T>(
    stack: &Stack,
    way: Way,
    what: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    stack.step(&format!("{}: {what}", way.word()), work).await
}

/// What happens to nodes that stay in the cluster.
async fn nodes_change(stack: &Stack, ways: &[Way]) -> anyhow::Result<()> {
    for way in ways.iter().copied() {
        step(stack, way, "cordoned before bind", cordoned(stack, way)).await?;
        step(stack, way, "tainted before bind", tainted(stack, way)).await?;
        step(stack, way, "not ready before bind", not_ready(stack, way)).await?;
        step(stack, way, "room stolen before bind", stolen(stack, way)).await?;
        step(
            stack,
            way,
            "room taken by another scheduler",
            taken(stack, way),
        )
        .await?;
        step(
            stack,
            way,
            "room taken by a DaemonSet",
            daemon_set(stack, way),
        )
        .await?;
        step(
            stack,
            way,
            "a neighbour that it cannot stand",
            shy(stack, way),
        )
        .await?;
        step(stack, way, "a volume in the other zone", zonal(stack, way)).await?;
        step(stack, way, "changed after bind", after_bind(stack, way)).await?;
    }
    Ok(())
}

async fn cordoned(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = pair(way, "cordoned");
    let node = changed_before_bind(stack, &gang, async |node| stack.cordon(&node, true).await);
    let node = node.await?;
    stack.cordon(&node, false).await?;
    stack.end_gang(&gang).await
}

async fn tainted(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = pair(way, "tainted");
    let node = changed_before_bind(stack, &gang, async |node| {
        stack.taint(&node, Some("NoSchedule")).await
    })
    .await?;
    stack.taint(&node, None).await?;
    stack.end_gang(&gang).await
}

async fn not_ready(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = pair(way, "unready");
    let node = changed_before_bind(stack, &gang, async |node| {
        Ok(stack.cluster.set_node_ready(&node, false).await?)
    })
    .await?;
    stack.cluster.set_node_ready(&node, true).await?;
    stack.end_gang(&gang).await
}

async fn stolen(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = pair(way, "robbed");
    changed_before_bind(stack, &gang, async |node| {
        stack.intrude("intruder", &node, 1).await
    })
    .await?;
    stack.delete_pod("intruder").await?;
    stack.end_gang(&gang).await
}

/// A pod of another scheduler, which binds it to a node that Muster has planned.
async fn taken(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = pair(way, "outpaced");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: rival, namespace: default}\nspec: {schedulerName: rival, tolerations: [{operator: Exists}], \
               containers: [{name: a, image: a, resources: {limits: {nvidia.com/gpu: 1}}}]}\n";
    changed_before_bind(stack, &gang, async |node| {
        stack.cluster.apply_yaml(pod).await?;
        stack.bind("rival", &node).await
    })
    .await?;
    stack.delete_pod("rival").await?;
    stack.end_gang(&gang).await
}

/// A DaemonSet's pod, which another scheduler binds to its node, as the default scheduler does.
async fn daemon_set(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = pair(way, "crowded");
    changed_before_bind(stack, &gang, async |node| {
        let set = format!(
            "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: probe, namespace: default}}\nspec:\n  selector: {{matchLabels: {{app: probe}}}}\n  \
             template:\n    metadata: {{labels: {{app: probe}}}}\n    spec:\n      nodeSelector: {{kubernetes.io/hostname: {node}}}\n      \
             tolerations: [{{operator: Exists}}]\n      containers: [{{name: a, image: a, resources: {{limits: {{nvidia.com/gpu: 1}}}}}}]\n"
        );
        stack.cluster.apply_yaml(&set).await?;
        stack
            .wait_world(PATIENCE, "the DaemonSet's pod", |world| {
                world.pods_of("probe").count() == 1
            })
            .await?;
        let pod = stack
            .recorder
            .look(|world| world.pods_of("probe").map(|pod| pod.name.clone()).next());
        stack.bind(&pod.unwrap_or_default(), &node).await
    })
    .await?;
    stack.kubectl(&["delete", "daemonset", "probe"]).await?;
    stack
        .wait_world(PATIENCE, "no pod of the DaemonSet", |world| {
            world.pods_of("probe").count() == 0
        })
        .await?;
    stack.end_gang(&gang).await
}

/// Number of a plan within its leadership.
fn number_of(plan: &str) -> anyhow::Result<u64> {
    let number = plan.rsplit('-').next().unwrap_or_default();
    Ok(number.parse()?)
}

/// Waits until a gang of two whose plan kube-scheduler refuses runs elsewhere, and counts what that
/// cost: not looped on means few plans, and few questions by kube-scheduler.
async fn replanned(stack: &Stack, gang: &Gang, first: &str) -> anyhow::Result<()> {
    let asked = "muster_filter_duration_seconds_count";
    let filters = stack.counted(asked).await?;
    stack.cluster.resume(&Program::KubeScheduler).await?;
    let says = stack.wait_gang_running(gang).await?;
    let plans = number_of(says.plan())? - number_of(first)?;
    let filters = stack.counted(asked).await? - filters;
    let name = gang.name();
    eprintln!("{name}: {plans} plans more, {filters} calls of Filter");
    assert!((1..=3).contains(&plans), "{name}: {plans} plans more");
    assert!(filters <= 30.0, "{name}: {filters} calls of Filter");
    Ok(())
}

/// Required anti-affinity to pods of somebody else on the nodes that are planned first: only
/// kube-scheduler reads it. The pods are there before the members, so that kube-scheduler hears of
/// them before. There are two of them: what ran before may still be there for Muster on one node.
async fn shy(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let apart = "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                 [{topologyKey: kubernetes.io/hostname, labelSelector: {matchExpressions: \
                 [{key: app, operator: In, values: [loud, louder]}]}}]}}";
    let gang = pair(way, "shy").with(apart);
    let taken = [("loud", "gpu-0"), ("louder", "gpu-1")];
    for (pod, node) in taken {
        stack.intrude(pod, node, 0).await?;
    }
    let beside = |nodes: &[String]| {
        let is_taken = |node: &String| taken.iter().any(|(_, taken)| node == taken);
        nodes.iter().any(is_taken)
    };
    stack.cluster.pause(&Program::KubeScheduler)?;
    stack.submit_gang(&gang).await?;
    let planned = stack.wait_planned(&gang.object()).await?;
    assert!(beside(&planned.nodes()), "{:?}", planned.nodes());
    replanned(stack, &gang, planned.plan()).await?;
    let nodes = stack.gang_nodes(&gang);
    assert!(!beside(&nodes), "{nodes:?} beside those on {taken:?}");
    for (pod, _) in taken {
        stack.delete_pod(pod).await?;
    }
    stack.end_gang(&gang).await
}

/// Members whose volume can be reached from the other zone only. Muster reads no volumes: it plans
/// the first zone, kube-scheduler refuses both nodes, and the next plan is in the other one.
async fn zonal(stack: &Stack, way: Way) -> anyhow::Result<()> {
    for index in 0..NODES {
        let zone = if index < NODES / 2 { "a" } else { "b" };
        let labels = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
        stack.patch_node(&format!("gpu-{index}"), &labels).await?;
    }
    stack.cluster.pause(&Program::KubeScheduler)?;
    let name = format!("data-{}", way.word());
    let spec = format!(
        "volumes: [{{name: data, persistentVolumeClaim: {{claimName: {name}}}}}]\n\
         affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: \
         [{{matchExpressions: [{{key: topology.kubernetes.io/zone, operator: Exists}}]}}]}}}}}}"
    );
    let gang = pair(way, "zonal").with(&spec);
    stack.submit_gang(&gang).await?;
    let planned = stack.wait_planned(&gang.object()).await?;
    let first = planned.nodes();
    let zone = if first.iter().any(|node| node == "gpu-0") {
        "b"
    } else {
        "a"
    };
    let volume = format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec:\n  capacity: {{storage: 1Gi}}\n  accessModes: [ReadWriteMany]\n  \
         storageClassName: \"\"\n  persistentVolumeReclaimPolicy: Retain\n  hostPath: {{path: /data}}\n  nodeAffinity: {{required: {{nodeSelectorTerms: \
         [{{matchExpressions: [{{key: topology.kubernetes.io/zone, operator: In, values: [{zone}]}}]}}]}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  accessModes: [ReadWriteMany]\n  \
         storageClassName: \"\"\n  volumeName: {name}\n  resources: {{requests: {{storage: 1Gi}}}}\n"
    );
    stack.cluster.apply_yaml(&volume).await?;
    let (claim, volume) = (format!("pvc/{name}"), format!("pv/{name}"));
    let bound = [
        "wait",
        "--for=jsonpath={.status.phase}=Bound",
        &claim,
        "--timeout=60s",
    ];
    stack.kubectl(&bound).await?;
    replanned(stack, &gang, planned.plan()).await?;
    let nodes = stack.gang_nodes(&gang);
    assert!(
        nodes.iter().all(|node| !first.contains(node)),
        "{nodes:?} after {first:?}"
    );
    stack.end_gang(&gang).await?;
    stack
        .kubectl(&["delete", &claim, &volume, "--timeout=60s"])
        .await?;
    Ok(())
}

/// The device plugin offers a GPU less, where no agent says which.
async fn shrunk(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = pair(way, "shrunk");
    let gpus = "nvidia.com/gpu";
    let node = changed_before_bind(stack, &gang, async |node| {
        Ok(stack.cluster.set_node_resource(&node, gpus, "7").await?)
    })
    .await?;
    stack.cluster.set_node_resource(&node, gpus, "8").await?;
    stack.end_gang(&gang).await
}

/// Seconds after which the GPUs fail: the gangs have their plans by then.
const FAILS_AFTER: u32 = 15;

/// A pool for each way, whose agents all run through the plan: then a GPU of the first node of each
/// falls off the bus.
async fn gpus_fail(stack: &Stack, ways: &[Way]) -> anyhow::Result<()> {
    let mut nodes = Vec::new();
    for way in ways {
        let word = way.word();
        let mut pool = NodeTemplate::gpu_pool(&format!("frail-{word}"), 3);
        pool.labels = [("pool", "frail"), ("way", word)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        stack.cluster.add_nodes(&pool).await?;
        nodes.extend(pool.names());
    }
    let first: Vec<String> = ways
        .iter()
        .map(|way| format!("frail-{}-0", way.word()))
        .collect();
    let file = stack.cluster.folder().join("xid.toml");
    let event =
        format!("at_s = {FAILS_AFTER}\nfault = \"xid\"\ngpu = 3\ncode = 79\nnodes = {first:?}\n");
    std::fs::write(&file, format!("name = \"xid\"\n[[events]]\n{event}"))?;
    stack.cluster.pause(&Program::KubeScheduler)?;
    let reports = "muster_agent_messages_total{kind=\"snapshot\"}";
    let known = stack.counted(reports).await?;
    let wanted = f64::from(u32::try_from(nodes.len())?);
    stack
        .start_fleet(&Fleet {
            name: "frail-fleet".into(),
            selector: "pool=frail".into(),
            nodes,
            scenario: Some(file),
        })
        .await?;
    stack
        .wait_until(PATIENCE, "every agent's report", async || {
            let reported = stack.counted(reports).await;
            reported.is_ok_and(|reported| reported >= known + wanted)
        })
        .await?;
    let gangs: Vec<Gang> = ways
        .iter()
        .map(|way| pair(*way, "unlucky").with(&format!("nodeSelector: {{way: {}}}", way.word())))
        .collect();
    for gang in &gangs {
        stack.submit_gang(gang).await?;
    }
    for (gang, node) in gangs.iter().zip(&first) {
        let planned = stack.wait_planned(&gang.object()).await?;
        assert!(planned.nodes().contains(node), "{:?}", planned.nodes());
        stack.wait_gang_born(gang, 2).await?;
    }
    for (gang, node) in gangs.iter().zip(&first) {
        wait_elsewhere(stack, gang, node).await?;
    }
    stack.cluster.resume(&Program::KubeScheduler).await?;
    for (gang, node) in gangs.iter().zip(&first) {
        stack.wait_gang_running(gang).await?;
        assert!(!stack.gang_nodes(gang).contains(node));
        stack.end_gang(gang).await?;
    }
    Ok(())
}

/// Administrators empty nodes by cordoning: what runs goes on. A NoExecute taint evicts, and the
/// member comes back elsewhere while the other stays.
async fn after_bind(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let (steady, witness) = (pair(way, "steady"), pair(way, "witness"));
    stack.submit_gang(&steady).await?;
    stack.wait_gang_running(&steady).await?;
    let before = stack.gang_nodes(&steady);
    let (first, second) = (before[0].clone(), before[1].clone());
    stack.cordon(&first, true).await?;
    stack.cluster.set_node_ready(&second, false).await?;
    stack.submit_gang(&witness).await?;
    stack.wait_gang_running(&witness).await?;
    assert_eq!(stack.gang_nodes(&steady), before, "running members stay");
    stack.end_gang(&witness).await?;
    stack.cordon(&first, false).await?;
    stack.cluster.set_node_ready(&second, true).await?;
    stack.taint(&first, Some("NoExecute")).await?;
    stack.revive(&steady).await?;
    stack
        .wait_world(PATIENCE, "the evicted member elsewhere", |world| {
            let nodes = steady.nodes(world);
            nodes.len() == 2 && nodes.contains(&second) && !nodes.contains(&first)
        })
        .await?;
    stack.taint(&first, None).await?;
    stack.end_gang(&steady).await
}

/// How the pods of a node that was deleted go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    /// The garbage collector of kube-controller-manager takes them, after a minute or so.
    Collected,
    /// An administrator does not wait for that.
    Forced,
}

/// Nodes are deleted, before members are bound there and after.
async fn nodes_go(stack: &Stack, ways: &[Way], going: Going) -> anyhow::Result<()> {
    for way in ways.iter().copied() {
        step(stack, way, "deleted before bind", deleted(stack, way)).await?;
    }
    let after = deleted_after_bind(stack, ways, going);
    stack.step("deleted after bind", after).await
}

async fn deleted(stack: &Stack, way: Way) -> anyhow::Result<()> {
    let gang = pair(way, "homeless");
    changed_before_bind(stack, &gang, async |node| stack.delete_node(&node).await).await?;
    stack.end_gang(&gang).await
}

/// The pods of a node that is gone go too; their successors run elsewhere.
async fn deleted_after_bind(stack: &Stack, ways: &[Way], going: Going) -> anyhow::Result<()> {
    let gangs: Vec<Gang> = ways.iter().map(|way| pair(*way, "bereft")).collect();
    let mut gone = Vec::new();
    for gang in &gangs {
        stack.submit_gang(gang).await?;
        stack.wait_gang_running(gang).await?;
        let node = stack.gang_nodes(gang)[0].clone();
        stack.delete_node(&node).await?;
        if going == Going::Forced {
            let on_it = |world: &World| -> Vec<String> {
                let members = gang.members(world);
                let on_it = members.filter(|pod| pod.node.as_ref() == Some(&node));
                on_it.map(|pod| pod.name.clone()).collect()
            };
            for name in stack.recorder.look(on_it) {
                let force = ["delete", "pod", &name, "--force", "--grace-period=0"];
                stack.kubectl(&force).await?;
            }
        }
        gone.push(node);
    }
    for (gang, node) in gangs.iter().zip(&gone) {
        stack.revive(gang).await?;
        let what = format!("{} to run on nodes that are there", gang.name());
        let two_elsewhere = |world: &World| {
            let nodes = gang.nodes(world);
            nodes.len() == 2 && !nodes.contains(node)
        };
        stack.wait_world(COLLECTED, &what, two_elsewhere).await?;
        stack.wait_gang_running(gang).await?;
    }
    for gang in &gangs {
        stack.end_gang(gang).await?;
    }
    Ok(())
}
