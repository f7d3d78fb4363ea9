//! Shapes of jobs that people publish, on the real control plane, all submitted together: each runs
//! whole, on the nodes that its resources and selectors allow.

use std::collections::{BTreeMap, BTreeSet};

use muster_control_plane::NodeTemplate;
use muster_control_plane::history::{GangRule, GangTimeline, History};
use muster_tests::acts::PATIENCE;
use muster_tests::jobs::{Job, Role};
use muster_tests::stack::{PARTIAL_MAX, Stack, StackOptions};

const EFA: &str = "vpc.amazonaws.com/efa";

/// A shape, and the prefixes of the nodes that its pods may stand on.
struct Shape {
    job: Job,
    nodes: &'static [&'static str],
}

fn shape(number: u32, roles: Vec<Role>, nodes: &'static [&'static str]) -> Shape {
    Shape {
        job: Job::new(&format!("shape-{number:02}"), roles).running_for(3),
        nodes,
    }
}

impl Shape {
    /// With an elastic policy between these numbers of workers.
    fn elastic(mut self, backend: &str, limits: Option<(u32, u32)>) -> Self {
        let limits = limits.map_or(String::new(), |(min, max)| {
            format!(", minReplicas: {min}, maxReplicas: {max}, maxRestarts: 100")
        });
        self.job = self.job.line(&format!(
            "elasticPolicy: {{rdzvBackend: {backend}{limits}}}"
        ));
        self
    }

    /// With a horizontal autoscaler as well.
    fn autoscaled(mut self, backend: &str, min: u32, max: u32) -> Self {
        self.job = self.job.line(&format!(
            "elasticPolicy: {{rdzvBackend: {backend}, minReplicas: {min}, maxReplicas: {max}, maxRestarts: 200, \
             metrics: [{{type: Resource, resource: {{name: cpu, target: {{type: Utilization, averageUtilization: 80}}}}}}]}}"
        ));
        self
    }

    fn line(mut self, line: &str) -> Self {
        self.job = self.job.line(line);
        self
    }

    fn policy(mut self, line: &str) -> Self {
        self.job = self.job.policy(line);
        self
    }
}

fn master(gpus: u32) -> Role {
    Role::new("Master", 1, gpus)
}

fn workers(count: u32, gpus: u32) -> Role {
    Role::new("Worker", count, gpus)
}

const ANY: &[&str] = &["p5", "g5", "a100", "trn", "cpu"];
const GPU: &[&str] = &["p5", "g5", "a100"];
const P5: &[&str] = &["p5"];

/// The first half of the table: by the numbers of the published list.
fn shapes_one() -> Vec<Shape> {
    let g5 = "nodeSelector: {node.kubernetes.io/instance-type: ml.g5.8xlarge}";
    let healthy = "nodeSelector: {sagemaker.amazonaws.com/node-health-status: Schedulable, \
                   node.kubernetes.io/instance-type: p5.48xlarge}";
    vec![
        shape(1, vec![master(0), workers(1, 0)], ANY),
        shape(2, vec![master(1), workers(1, 1)], GPU),
        shape(3, vec![workers(3, 1).with(g5)], &["g5"]).autoscaled("etcd", 1, 36),
        shape(5, vec![workers(4, 8).limit(EFA, 32)], P5).autoscaled("c10d", 1, 64),
        shape(6, vec![workers(2, 8).limit(EFA, 32)], P5).elastic("c10d", Some((1, 2))),
        shape(7, vec![workers(2, 8).limit(EFA, 32)], P5).elastic("etcd", Some((1, 64))),
        shape(
            8,
            vec![
                workers(8, 8)
                    .limit(EFA, 32)
                    .sized("180", "220Gi")
                    .with("volumes: [{name: shm, emptyDir: {medium: Memory}}]"),
            ],
            P5,
        ),
        shape(
            10,
            vec![
                master(1).sized("4", "16Gi").with(healthy),
                workers(3, 1).sized("4", "16Gi").with(healthy),
            ],
            P5,
        )
        .line("nprocPerNode: \"1\""),
        shape(
            11,
            vec![
                master(8).limit(EFA, 32).with(healthy),
                workers(1, 8).limit(EFA, 32).with(healthy),
            ],
            P5,
        ),
        shape(
            13,
            vec![
                workers(1, 0)
                    .limit("aws.amazon.com/neuron", 16)
                    .limit(EFA, 8),
            ],
            &["trn"],
        )
        .elastic("etcd", Some((1, 64))),
        shape(15, vec![master(1), workers(2, 1)], GPU),
    ]
}

fn shapes_two() -> Vec<Shape> {
    let a100 = "nodeSelector: {nvidia.com/gpu.product: NVIDIA-A100-SXM4-80GB}";
    vec![
        shape(16, vec![workers(2, 0).sized("4", "1Gi")], ANY).elastic("c10d", Some((1, 3))),
        shape(17, vec![master(0), workers(16, 0)], ANY),
        shape(
            18,
            vec![
                master(0).sized("1", "200Mi"),
                workers(1, 0).sized("1", "200Mi"),
            ],
            ANY,
        ),
        shape(
            19,
            vec![
                master(2)
                    .with("hostNetwork: true")
                    .with("dnsPolicy: ClusterFirstWithHostNet"),
                workers(2, 2)
                    .with("hostNetwork: true")
                    .with("dnsPolicy: ClusterFirstWithHostNet"),
            ],
            GPU,
        ),
        shape(
            21,
            vec![
                master(8).limit("rdma/hca", 1),
                workers(3, 8).limit("rdma/hca", 1),
            ],
            P5,
        )
        .policy("schedulingPolicy: {minAvailable: 4}"),
        shape(
            23,
            vec![
                master(8).limit("rdma/hca_shared_devices_a", 1),
                workers(3, 8).limit("rdma/hca_shared_devices_a", 1),
            ],
            P5,
        )
        .elastic("c10d", None),
        shape(24, vec![workers(4, 8).with(a100)], &["a100"]).autoscaled("c10d", 2, 8),
        shape(
            26,
            vec![
                workers(4, 8)
                    .limit(EFA, 4)
                    .limit("cpu", 96)
                    .sized("48", "500Gi"),
            ],
            P5,
        ),
        shape(
            27,
            vec![
                master(1).sized("4", "16Gi"),
                workers(2, 1).sized("4", "16Gi"),
            ],
            GPU,
        ),
        shape(29, vec![master(1), workers(4, 1)], GPU),
    ]
}

fn pools() -> Vec<NodeTemplate> {
    let labelled = |mut pool: NodeTemplate, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        pool.labels.extend(labels);
        pool
    };
    let p5 = NodeTemplate {
        cpu: "192".into(),
        memory: "2Ti".into(),
        extra_resources: [
            (EFA, "32"),
            ("rdma/hca", "1"),
            ("rdma/hca_shared_devices_a", "64"),
        ]
        .map(|(name, amount)| (name.to_owned(), amount.to_owned()))
        .into(),
        ..NodeTemplate::gpu_pool("p5", 8)
    };
    let trn = NodeTemplate {
        extra_resources: [("aws.amazon.com/neuron", "16"), (EFA, "8")]
            .map(|(name, amount)| (name.to_owned(), amount.to_owned()))
            .into(),
        ..NodeTemplate::cpu_pool("trn", 1)
    };
    let instance = "node.kubernetes.io/instance-type";
    vec![
        labelled(
            p5,
            &[
                (instance, "p5.48xlarge"),
                ("sagemaker.amazonaws.com/node-health-status", "Schedulable"),
            ],
        ),
        labelled(
            NodeTemplate::gpu_pool("g5", 1),
            &[(instance, "ml.g5.8xlarge")],
        ),
        labelled(
            NodeTemplate::gpu_pool("a100", 4),
            &[("nvidia.com/gpu.product", "NVIDIA-A100-SXM4-80GB")],
        ),
        trn,
        NodeTemplate::cpu_pool("cpu", 1),
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
    let allowed = |node: &&String| {
        node.rsplit_once('-')
            .is_some_and(|(pool, _)| shape.nodes.contains(&pool))
    };
    match nodes
        .get(name)
        .and_then(|nodes| nodes.iter().find(|node| !allowed(node)))
    {
        Some(node) => Err(format!("{name} had a pod on {node}")),
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_published_shape_runs_whole_where_it_may() -> anyhow::Result<()> {
    let options = StackOptions {
        pools: pools(),
        ..StackOptions::default()
    };
    let stack = Stack::start(options).await?;
    let shapes: Vec<Shape> = shapes_one().into_iter().chain(shapes_two()).collect();
    assert_eq!(shapes.len(), 21);
    let all: Vec<String> = shapes.iter().map(|shape| shape.job.yaml()).collect();
    stack
        .step("submitting 21 jobs", async {
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
    Ok(())
}
