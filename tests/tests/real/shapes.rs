//! Shapes of jobs that people publish, on the real control plane, all submitted together: each runs
//! whole, on the nodes that its resources and selectors allow.

use std::collections::{BTreeMap, BTreeSet};

use muster_control_plane::NodeTemplate;
use muster_control_plane::history::{GangRule, GangTimeline, History};
use muster_tests::acts::PATIENCE;
use muster_tests::jobs::{Job, Role};
use muster_tests::stack::{PARTIAL_MAX, Stack, StackOptions};

const EFA: &str = "vpc.amazonaws.com/efa";
const INSTANCE: &str = "node.kubernetes.io/instance-type";
const HEALTH: &str = "sagemaker.amazonaws.com/node-health-status";
const ZONE: &str = "topology.kubernetes.io/zone";
const RACK: &str = "example.com/rack";
const LEVELS: &str = "topology: {levels: [{name: zone, label: topology.kubernetes.io/zone}, {name: rack, label: example.com/rack}]}\n";
/// The shape that asks for segments.
const SEGMENTED: u32 = 17;
const QUEUE: &str = "kueue.x-k8s.io/queue-name";
const PRIORITY: &str = "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: training}\nvalue: 1000\n";

/// A shape, and the prefixes of the nodes that its pods may stand on. Where the published one names
/// another scheduler, it names ours.
struct Shape {
    number: u32,
    job: Job,
    nodes: &'static [&'static str],
    /// All its pods stand in one zone.
    one_zone: bool,
}

fn shape(number: u32, roles: Vec<Role>, nodes: &'static [&'static str]) -> Shape {
    Shape {
        number,
        job: Job::new(&format!("shape-{number:02}"), roles).running_for(3),
        nodes,
        one_zone: false,
    }
}

impl Shape {
    /// With an elastic policy between these numbers of workers.
    fn elastic(self, backend: &str, limits: Option<(u32, u32)>) -> Self {
        let limits = limits.map_or(String::new(), |(min, max)| {
            format!(", minReplicas: {min}, maxReplicas: {max}, maxRestarts: 100")
        });
        self.line(&format!(
            "elasticPolicy: {{rdzvBackend: {backend}{limits}}}"
        ))
    }

    /// With a horizontal autoscaler as well, by the use of a resource in percent.
    fn autoscaled(self, backend: &str, limits: (u32, u32), resource: &str, percent: u32) -> Self {
        let (min, max) = limits;
        self.line(&format!(
            "elasticPolicy: {{rdzvBackend: {backend}, minReplicas: {min}, maxReplicas: {max}, maxRestarts: 200, \
             metrics: [{{type: Resource, resource: {{name: {resource}, target: {{type: Utilization, averageUtilization: {percent}}}}}}}]}}"
        ))
    }

    fn line(self, line: &str) -> Self {
        self.of(|job| job.line(line))
    }

    fn of(mut self, change: impl FnOnce(Job) -> Job) -> Self {
        self.job = change(self.job);
        self
    }
}

fn master(gpus: u32) -> Role {
    Role::new("Master", 1, gpus)
}

fn workers(count: u32, gpus: u32) -> Role {
    Role::new("Worker", count, gpus)
}

/// Both roles, changed in the same way.
fn both(roles: [Role; 2], change: impl Fn(Role) -> Role) -> Vec<Role> {
    roles.into_iter().map(change).collect()
}

/// Node affinity: required health, and a preference for nodes that passed the deep check.
fn healthy_by_affinity() -> String {
    let check = "sagemaker.amazonaws.com/deep-health-check-status";
    format!(
        "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: \
         [{{matchExpressions: [{{key: {HEALTH}, operator: In, values: [Schedulable]}}]}}]}}, \
         preferredDuringSchedulingIgnoredDuringExecution: [{{weight: 100, preference: \
         {{matchExpressions: [{{key: {check}, operator: In, values: [Passed]}}]}}}}]}}}}"
    )
}

const ANY: &[&str] = &["p5", "g5", "a100", "trn", "cpu"];
const GPU: &[&str] = &["p5", "g5", "a100"];
const P5: &[&str] = &["p5"];

/// The first half of the table: by the numbers of the published list.
fn shapes_one() -> Vec<Shape> {
    let on = |instance: &str| format!("nodeSelector: {{{INSTANCE}: {instance}}}");
    let healthy = format!("nodeSelector: {{{HEALTH}: Schedulable, {INSTANCE}: p5.48xlarge}}");
    let unhealthy =
        format!("{{key: {HEALTH}, operator: Equal, value: Unschedulable, effect: NoSchedule}}");
    vec![
        shape(1, vec![master(0), workers(1, 0)], ANY),
        shape(2, vec![master(1), workers(1, 1)], GPU),
        shape(
            3,
            vec![
                workers(3, 1)
                    .with(&on("ml.g5.8xlarge"))
                    .with(&healthy_by_affinity()),
            ],
            &["g5"],
        )
        .autoscaled("etcd", (1, 36), "cpu", 80)
        .of(|job| job.label(QUEUE, "hyperpod-ns-team-a-localqueue"))
        .of(|job| job.label("kueue.x-k8s.io/priority-class", "training-priority")),
        shape(5, vec![workers(4, 8).limit(EFA, 32)], P5).autoscaled("c10d", (1, 64), "cpu", 90),
        shape(6, vec![workers(2, 8).limit(EFA, 32)], P5).elastic("c10d", Some((1, 2))),
        shape(7, vec![workers(2, 8).limit(EFA, 32)], P5).elastic("etcd", Some((1, 64))),
        shape(
            8,
            vec![
                workers(8, 8)
                    .limit(EFA, 32)
                    .sized("192", "220Gi")
                    .with_shm(),
            ],
            P5,
        ),
        shape(
            10,
            both([master(1), workers(3, 1)], |role| {
                role.sized("4", "16Gi")
                    .with(&healthy)
                    .with(&healthy_by_affinity())
                    .tolerating(&unhealthy)
            }),
            P5,
        )
        .line("nprocPerNode: \"1\"")
        .of(|job| job.annotation("sagemaker.amazonaws.com/enable-job-auto-resume", "true"))
        .of(|job| job.annotation("sagemaker.amazonaws.com/job-max-retry-count", "2")),
        shape(
            11,
            both([master(8), workers(1, 8)], |role| {
                let role = role.limit(EFA, 32).sized("90", "900Gi");
                role.with(&healthy).with_shm()
            }),
            P5,
        ),
        // The published one asks to scale by a resource that nothing measures.
        shape(
            13,
            vec![
                workers(1, 0)
                    .limit("aws.amazon.com/neuron", 16)
                    .limit(EFA, 8),
            ],
            &["trn"],
        )
        .autoscaled("etcd", (1, 64), "cpuyeah", 80),
        shape(15, vec![master(1), workers(2, 1)], GPU)
            .of(|job| job.label("kai.scheduler/queue", "default-queue")),
    ]
}

fn shapes_two() -> Vec<Shape> {
    let a100 = "nodeSelector: {nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB}";
    vec![
        shape(16, vec![workers(2, 0).sized("4", "1Gi")], ANY).elastic("c10d", Some((1, 3))),
        in_segments(),
        shape(
            18,
            both([master(0), workers(1, 0)], |role| role.sized("1", "200Mi")),
            ANY,
        )
        .of(|job| job.label(QUEUE, "user-queue")),
        shape(19, of_arena(), GPU),
        shape(
            21,
            both([master(8), workers(3, 8)], |role| role.limit("rdma/hca", 1)),
            P5,
        )
        .of(|job| job.policy("schedulingPolicy: {minAvailable: 4}")),
        shape(
            23,
            both([master(8), workers(3, 8)], |role| {
                role.limit("rdma/hca_shared_devices_a", 1)
                    .annotation("k8s.v1.cni.cncf.io/networks", "rdma-network")
            }),
            P5,
        )
        .elastic("c10d", None),
        shape(24, vec![workers(4, 8).with(a100)], &["a100"]).autoscaled("c10d", (2, 8), "cpu", 80),
        shape(
            26,
            vec![
                workers(4, 8)
                    .limit(EFA, 4)
                    .limit("cpu", 96)
                    .limit("memory", "1000Gi")
                    .sized("48", "500Gi"),
            ],
            P5,
        ),
        shape(
            27,
            both([master(1), workers(2, 1)], |role| role.sized("4", "16Gi")),
            GPU,
        ),
        shape(29, vec![master(1), workers(4, 1)], GPU),
        shape(29, vec![master(0), workers(3, 0)], ANY).of(|mut job| {
            job.name.push_str("-plain");
            job
        }),
    ]
}

/// A job in one zone, its workers by fours in one rack each. They take all of the racks of `p5`.
fn in_segments() -> Shape {
    let mut shape = shape(SEGMENTED, vec![master(0), workers(16, 4)], &["p5", "trn"])
        .of(|job| job.annotation("muster.dev/required-topology", "zone"))
        .of(|job| job.annotation("muster.dev/segment-size", "4"))
        .of(|job| job.annotation("muster.dev/segment-topology", "rack"));
    shape.one_zone = true;
    shape
}

/// What the chart of arena makes with its options for the host's network and IPC.
fn of_arena() -> Vec<Role> {
    let group = "pod-group.scheduling.sigs.k8s.io";
    both([master(2), workers(2, 2)], |role| {
        role.label(&format!("{group}/name"), "shape-19")
            .label(&format!("{group}/min-available"), "3")
            .restart("Never")
            .with("hostNetwork: true")
            .with("dnsPolicy: ClusterFirstWithHostNet")
            .with("hostIPC: true")
            .with("priorityClassName: training")
    })
}

/// Nodes of a rack of `p5`, of which there are two.
const PER_RACK: u32 = 4;

fn zone_of(pool: &str) -> &'static str {
    match pool {
        "p5" | "trn" => "zone-a",
        _ => "zone-b",
    }
}

fn pools() -> Vec<NodeTemplate> {
    let finish = |mut pool: NodeTemplate, labels: &[(&str, &str)], extra: &[(&str, &str)]| {
        let owned = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            pairs.iter().map(owned).collect()
        };
        pool.labels.extend(owned(labels));
        let zone = zone_of(&pool.prefix);
        pool.labels.insert(ZONE.into(), zone.into());
        pool.extra_resources.extend(owned(extra));
        pool
    };
    let p5 = |rack: &str, first: u32| {
        let pool = NodeTemplate {
            first,
            cpu: "256".into(),
            memory: "2Ti".into(),
            ..NodeTemplate::gpu_pool("p5", PER_RACK)
        };
        finish(
            pool,
            &[
                (INSTANCE, "p5.48xlarge"),
                (HEALTH, "Schedulable"),
                (RACK, rack),
            ],
            &[
                (EFA, "32"),
                ("rdma/hca", "1"),
                ("rdma/hca_shared_devices_a", "64"),
            ],
        )
    };
    vec![
        p5("rack-1", 0),
        p5("rack-2", PER_RACK),
        finish(
            NodeTemplate::gpu_pool("g5", 1),
            &[(INSTANCE, "ml.g5.8xlarge"), (HEALTH, "Schedulable")],
            &[],
        ),
        finish(
            NodeTemplate::gpu_pool("a100", 4),
            &[("nvidia.com/gpu.product", "NVIDIA-A100-SXM4-80GB")],
            &[],
        ),
        finish(
            NodeTemplate::cpu_pool("trn", 1),
            &[],
            &[("aws.amazon.com/neuron", "16"), (EFA, "8")],
        ),
        finish(NodeTemplate::cpu_pool("cpu", 1), &[], &[]),
    ]
}

/// Nodes on which pods of each job were bound, by job.
fn nodes_by_job(history: &History) -> BTreeMap<String, BTreeSet<String>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, pod) in history.binds() {
        if let (Some((_, job, _)), Some(node)) = (&pod.controller, &pod.node) {
            found.entry(job.clone()).or_default().insert(node.clone());
        }
    }
    found
}

fn check(
    shape: &Shape,
    gangs: &[GangTimeline],
    nodes: &BTreeMap<String, BTreeSet<String>>,
) -> Result<(), String> {
    let name = &shape.job.name;
    let gang = gangs
        .iter()
        .find(|gang| gang.name == format!("default/{name}"))
        .ok_or_else(|| format!("{name} had no pods"))?;
    if gang.whole.is_none() {
        return Err(format!("{name} never ran whole: {gang:?}"));
    }
    if gang.minimum as usize != shape.job.pods() {
        return Err(format!("{name} needs {} members", gang.minimum));
    }
    let none = BTreeSet::new();
    let nodes = nodes.get(name).unwrap_or(&none);
    let pool = |node: &str| node.rsplit_once('-').map(|(pool, _)| pool.to_owned());
    let pools: BTreeSet<String> = nodes.iter().filter_map(|node| pool(node)).collect();
    let allowed = |pool: &String| shape.nodes.contains(&pool.as_str());
    if pools.is_empty() || !pools.iter().all(allowed) {
        return Err(format!("{name} had pods on {nodes:?}"));
    }
    let zones: BTreeSet<&str> = pools.iter().map(|pool| zone_of(pool)).collect();
    if shape.one_zone && zones.len() > 1 {
        return Err(format!("{name} was in several zones: {nodes:?}"));
    }
    Ok(())
}

/// Each segment of the one that has some stands in one rack.
fn check_segments(history: &History) -> Result<(), String> {
    let start = format!("shape-{SEGMENTED}-worker-");
    let mut racks: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (_, pod) in history.binds() {
        let Some(index) = pod.name.strip_prefix(&start) else {
            continue;
        };
        let node = pod
            .node
            .as_deref()
            .and_then(|node| node.strip_prefix("p5-"));
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|error| format!("{text}: {error}"))
        };
        let node = node.ok_or_else(|| format!("{} on {:?}", pod.name, pod.node))?;
        let rack = number(node)? / PER_RACK;
        racks.entry(number(index)? / 4).or_default().insert(rack);
    }
    let in_one = racks.values().all(|racks| racks.len() == 1);
    let both: BTreeSet<&u32> = racks.values().flatten().collect();
    if racks.len() != 4 || !in_one || both.len() != 2 {
        return Err(format!("racks of the segments: {racks:?}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_published_shape_runs_whole_where_it_may() -> anyhow::Result<()> {
    each_runs_whole(StackOptions::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_policies_and_agents_each_published_shape_runs_whole_too() -> anyhow::Result<()> {
    each_runs_whole(StackOptions {
        policies: false,
        agents: false,
        ..StackOptions::default()
    })
    .await
}

async fn each_runs_whole(options: StackOptions) -> anyhow::Result<()> {
    let options = StackOptions {
        pools: pools(),
        config: LEVELS.into(),
        ..options
    };
    let stack = Stack::start(options).await?;
    let shapes: Vec<Shape> = shapes_one().into_iter().chain(shapes_two()).collect();
    let numbers: BTreeSet<u32> = shapes.iter().map(|shape| shape.number).collect();
    assert_eq!(
        (numbers.len(), shapes.len()),
        (21, 22),
        "one in two variants"
    );
    stack.cluster.apply_yaml(PRIORITY).await?;
    let all: Vec<String> = shapes.iter().map(|shape| shape.job.yaml()).collect();
    stack
        .step("submitting 22 jobs", async {
            Ok(stack.cluster.apply_yaml(&all.join("---\n")).await?)
        })
        .await?;
    for shape in &shapes {
        let name = &shape.job.name;
        let ended = |world: &muster_control_plane::history::World| {
            world
                .jobs
                .values()
                .any(|job| job.name == *name && job.finished)
        };
        stack
            .step(name, stack.wait_world(2 * PATIENCE, "its end", ended))
            .await?;
    }
    let history = stack.judge().await?;
    let gangs = history.gangs(&GangRule::new(PARTIAL_MAX));
    let nodes = nodes_by_job(&history);
    for shape in &shapes {
        check(shape, &gangs, &nodes).map_err(anyhow::Error::msg)?;
    }
    check_segments(&history).map_err(anyhow::Error::msg)
}
