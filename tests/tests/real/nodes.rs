//! Nodes that change between plan and bind, and after it, on the real control plane.
//!
//! kube-scheduler is halted while a gang is planned and its pods are born, so that nothing can be
//! bound before the node has changed.

use muster_control_plane::{NodeTemplate, Program};
use muster_tests::acts::PATIENCE;
use muster_tests::fleet::Fleet;
use muster_tests::jobs::{Job, Role};
use muster_tests::stack::{Stack, StackOptions};
use serde_json::json;

/// Two workers with all GPUs of a node each.
fn pair(name: &str) -> Job {
    Job::new(name, vec![Role::new("Worker", 2, 8)])
}

/// Plans and releases a gang of two while nothing can be bound, lets `change` happen to one of its
/// nodes, and expects the gang to run elsewhere.
async fn changed_before_bind(
    stack: &Stack,
    job: &Job,
    change: impl AsyncFnOnce(String) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let name = job.name.as_str();
    stack.cluster.pause(&Program::KubeScheduler)?;
    stack.submit(job).await?;
    let planned = stack.wait_planned(name).await?;
    stack
        .wait_world(PATIENCE, "two pods of the job", |world| {
            world.pods_of(name).count() == 2
        })
        .await?;
    let node = planned.nodes().first().cloned().unwrap_or_default();
    anyhow::ensure!(!node.is_empty(), "no node in {planned:?}");
    change(node.clone()).await?;
    stack
        .wait_gang("default", name, PATIENCE, |says| {
            !says.plan().is_empty() && !says.nodes().contains(&node)
        })
        .await?;
    stack.cluster.resume(&Program::KubeScheduler).await?;
    stack.wait_running(name, 2).await?;
    let nodes = stack.nodes_of(name);
    assert!(
        !nodes.contains(&node),
        "{name} stands on {nodes:?}, not {node}"
    );
    Ok(node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gangs_leave_nodes_that_change_before_bind_and_stay_on_those_that_change_after()
-> anyhow::Result<()> {
    let options = StackOptions {
        pools: vec![NodeTemplate::gpu_pool("gpu", 4)],
        ..StackOptions::default()
    };
    let stack = Stack::start(options).await?;
    stack.step("cordoned before bind", cordoned(&stack)).await?;
    stack.step("tainted before bind", tainted(&stack)).await?;
    stack
        .step("not ready before bind", not_ready(&stack))
        .await?;
    stack
        .step("room stolen before bind", stolen(&stack))
        .await?;
    stack
        .step("room taken by another scheduler", taken(&stack))
        .await?;
    stack
        .step("room taken by a DaemonSet", daemon_set(&stack))
        .await?;
    stack
        .step("a neighbour that the gang cannot stand", shy(&stack))
        .await?;
    stack
        .step("a volume in the other zone", zonal(&stack))
        .await?;
    stack
        .step("GPU fails before bind", gpu_fails(&stack))
        .await?;
    stack
        .step("cordoned and tainted after bind", after_bind(&stack))
        .await?;
    stack.step("deleted before bind", deleted(&stack)).await?;
    stack
        .step("deleted after bind", deleted_after_bind(&stack))
        .await?;
    stack.judge().await?;
    Ok(())
}

async fn cordoned(stack: &Stack) -> anyhow::Result<()> {
    let node = changed_before_bind(stack, &pair("cordoned"), async |node| {
        stack.cordon(&node, true).await
    })
    .await?;
    stack.cordon(&node, false).await?;
    stack.end_job("cordoned").await
}

async fn tainted(stack: &Stack) -> anyhow::Result<()> {
    let node = changed_before_bind(stack, &pair("tainted"), async |node| {
        stack.taint(&node, Some("NoSchedule")).await
    })
    .await?;
    stack.taint(&node, None).await?;
    stack.end_job("tainted").await
}

async fn not_ready(stack: &Stack) -> anyhow::Result<()> {
    let node = changed_before_bind(stack, &pair("unready"), async |node| {
        Ok(stack.cluster.set_node_ready(&node, false).await?)
    })
    .await?;
    stack.cluster.set_node_ready(&node, true).await?;
    stack.end_job("unready").await
}

async fn stolen(stack: &Stack) -> anyhow::Result<()> {
    changed_before_bind(stack, &pair("robbed"), async |node| {
        stack.intrude("intruder", &node, 1).await
    })
    .await?;
    stack.delete_pod("intruder").await?;
    stack.end_job("robbed").await
}

/// A pod of another scheduler, which binds it to a node that Muster has planned.
async fn taken(stack: &Stack) -> anyhow::Result<()> {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: rival, namespace: default}\nspec: {schedulerName: rival, tolerations: [{operator: Exists}], \
               containers: [{name: a, image: a, resources: {limits: {nvidia.com/gpu: 1}}}]}\n";
    changed_before_bind(stack, &pair("outpaced"), async |node| {
        stack.cluster.apply_yaml(pod).await?;
        stack.bind("rival", &node).await
    })
    .await?;
    stack.delete_pod("rival").await?;
    stack.end_job("outpaced").await
}

/// A DaemonSet's pod, which another scheduler binds to its node, as the default scheduler does.
async fn daemon_set(stack: &Stack) -> anyhow::Result<()> {
    changed_before_bind(stack, &pair("crowded"), async |node| {
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
    stack.end_job("crowded").await
}

/// Number of a plan within its leadership.
fn number_of(plan: &str) -> anyhow::Result<u64> {
    let number = plan.rsplit('-').next().unwrap_or_default();
    Ok(number.parse()?)
}

/// Waits until a gang of two whose plan kube-scheduler refuses runs elsewhere, and counts what that
/// cost: not looped on means few plans, and few questions by kube-scheduler.
async fn replanned(stack: &Stack, job: &str, first: &str) -> anyhow::Result<()> {
    let filters = stack
        .counted("muster_filter_duration_seconds_count")
        .await?;
    stack.cluster.resume(&Program::KubeScheduler).await?;
    let says = stack.wait_running(job, 2).await?;
    let plans = number_of(says.plan())? - number_of(first)?;
    let filters = stack
        .counted("muster_filter_duration_seconds_count")
        .await?
        - filters;
    eprintln!("{job}: {plans} plans more, {filters} calls of Filter");
    assert!((1..=3).contains(&plans), "{job}: {plans} plans more");
    assert!(filters <= 30.0, "{job}: {filters} calls of Filter");
    Ok(())
}

/// Required anti-affinity to pods of somebody else on the nodes that are planned first: only
/// kube-scheduler reads it. The pods are there before the members, so that kube-scheduler hears of
/// them before. There are two of them: what ran before may still be there for Muster on one node.
async fn shy(stack: &Stack) -> anyhow::Result<()> {
    let apart = "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                 [{topologyKey: kubernetes.io/hostname, labelSelector: {matchExpressions: \
                 [{key: app, operator: In, values: [loud, louder]}]}}]}}";
    let job = Job::new("shy", vec![Role::new("Worker", 2, 8).with(apart)]);
    let taken = [("loud", "gpu-0"), ("louder", "gpu-1")];
    for (pod, node) in taken {
        stack.intrude(pod, node, 0).await?;
    }
    let beside = |nodes: &[String]| {
        let is_taken = |node: &String| taken.iter().any(|(_, taken)| node == taken);
        nodes.iter().any(is_taken)
    };
    stack.cluster.pause(&Program::KubeScheduler)?;
    stack.submit(&job).await?;
    let planned = stack.wait_planned("shy").await?;
    assert!(beside(&planned.nodes()), "{:?}", planned.nodes());
    replanned(stack, "shy", planned.plan()).await?;
    let nodes = stack.nodes_of("shy");
    assert!(!beside(&nodes), "{nodes:?} beside those on {taken:?}");
    for (pod, _) in taken {
        stack.delete_pod(pod).await?;
    }
    stack.end_job("shy").await
}

/// Members whose volume can be reached from the other zone only. Muster reads no volumes: it plans
/// the first zone, kube-scheduler refuses both nodes, and the next plan is in the other one.
async fn zonal(stack: &Stack) -> anyhow::Result<()> {
    for (node, zone) in [
        ("gpu-0", "a"),
        ("gpu-1", "a"),
        ("gpu-2", "b"),
        ("gpu-3", "b"),
    ] {
        let labels = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
        stack.patch_node(node, &labels).await?;
    }
    stack.cluster.pause(&Program::KubeScheduler)?;
    let claim = "volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]";
    let job = Job::new("zonal", vec![Role::new("Worker", 2, 8).with(claim)]);
    stack.submit(&job).await?;
    let planned = stack.wait_planned("zonal").await?;
    let first = planned.nodes();
    let zone = if first.iter().any(|node| node == "gpu-0") {
        "b"
    } else {
        "a"
    };
    let volume = format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: data}}\nspec:\n  capacity: {{storage: 1Gi}}\n  accessModes: [ReadWriteMany]\n  \
         storageClassName: \"\"\n  persistentVolumeReclaimPolicy: Retain\n  hostPath: {{path: /data}}\n  nodeAffinity: {{required: {{nodeSelectorTerms: \
         [{{matchExpressions: [{{key: topology.kubernetes.io/zone, operator: In, values: [{zone}]}}]}}]}}}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: data, namespace: default}}\nspec:\n  accessModes: [ReadWriteMany]\n  \
         storageClassName: \"\"\n  volumeName: data\n  resources: {{requests: {{storage: 1Gi}}}}\n"
    );
    stack.cluster.apply_yaml(&volume).await?;
    let bound = [
        "wait",
        "--for=jsonpath={.status.phase}=Bound",
        "pvc/data",
        "--timeout=60s",
    ];
    stack.kubectl(&bound).await?;
    replanned(stack, "zonal", planned.plan()).await?;
    let nodes = stack.nodes_of("zonal");
    assert!(
        nodes.iter().all(|node| !first.contains(node)),
        "{nodes:?} after {first:?}"
    );
    stack.end_job("zonal").await?;
    stack
        .kubectl(&["delete", "pvc/data", "pv/data", "--wait=false"])
        .await?;
    Ok(())
}

async fn deleted(stack: &Stack) -> anyhow::Result<()> {
    changed_before_bind(stack, &pair("homeless"), async |node| {
        stack.delete_node(&node).await
    })
    .await?;
    stack.end_job("homeless").await
}

/// A pool of its own, with a fleet of its own, of which one GPU falls off the bus.
async fn gpu_fails(stack: &Stack) -> anyhow::Result<()> {
    let mut pool = NodeTemplate::gpu_pool("frail", 3);
    pool.labels = [("pool".to_owned(), "frail".to_owned())].into();
    stack.cluster.add_nodes(&pool).await?;
    let healthy = Fleet {
        name: "frail-fleet".into(),
        selector: "pool=frail".into(),
        nodes: pool.names().collect(),
        scenario: None,
    };
    stack.start_fleet(&healthy).await?;
    let frail = Role::new("Worker", 2, 8).with("nodeSelector: {pool: frail}");
    let job = Job::new("unlucky", vec![frail]);
    changed_before_bind(stack, &job, async |node| {
        let file = stack.cluster.folder().join("xid.toml");
        std::fs::write(
            &file,
            format!("name = \"xid\"\n[[events]]\nat_s = 1\nfault = \"xid\"\ngpu = 3\ncode = 79\nnodes = [\"{node}\"]\n"),
        )?;
        stack
            .cluster
            .kill(&Program::Other(healthy.name.clone()))?;
        let failing = Fleet {
            scenario: Some(file),
            ..healthy.clone()
        };
        stack.start_fleet(&failing).await
    })
    .await?;
    stack.end_job("unlucky").await
}

/// Administrators empty nodes by cordoning: what runs goes on. A NoExecute taint evicts, and the
/// member comes back elsewhere while the other stays.
async fn after_bind(stack: &Stack) -> anyhow::Result<()> {
    stack.submit(&pair("steady")).await?;
    stack.wait_running("steady", 2).await?;
    let before = stack.nodes_of("steady");
    let (first, second) = (before[0].clone(), before[1].clone());
    stack.cordon(&first, true).await?;
    stack.cluster.set_node_ready(&second, false).await?;
    stack.submit(&pair("witness")).await?;
    stack.wait_running("witness", 2).await?;
    assert_eq!(stack.nodes_of("steady"), before, "running members stay");
    stack.end_job("witness").await?;
    stack.cordon(&first, false).await?;
    stack.cluster.set_node_ready(&second, true).await?;
    stack.taint(&first, Some("NoExecute")).await?;
    stack
        .wait_world(PATIENCE, "the evicted member elsewhere", |world| {
            let nodes: Vec<&String> = world
                .pods_of("steady")
                .filter(|pod| pod.is_bound_and_live())
                .filter_map(|pod| pod.node.as_ref())
                .collect();
            nodes.len() == 2 && nodes.contains(&&second) && !nodes.contains(&&first)
        })
        .await?;
    stack.taint(&first, None).await?;
    stack.end_job("steady").await
}

/// The garbage collector takes the pods of a node that is gone; their successors run elsewhere.
async fn deleted_after_bind(stack: &Stack) -> anyhow::Result<()> {
    stack
        .submit(&Job::new("bereft", vec![Role::new("Worker", 2, 4)]))
        .await?;
    stack.wait_running("bereft", 2).await?;
    let node = stack.nodes_of("bereft")[0].clone();
    stack.delete_node(&node).await?;
    for index in 0..2 {
        // The collector itself waits for more than a minute.
        let name = format!("bereft-worker-{index}");
        let force = ["delete", "pod", &name, "--force", "--grace-period=0"];
        stack.cluster.kubectl(&force).await?;
    }
    stack.wait_running("bereft", 2).await?;
    assert!(!stack.nodes_of("bereft").contains(&node));
    stack.end_job("bereft").await
}
