//! What happens in the demo, second by second, and how it has to end.

use std::time::Duration;

use anyhow::Context as _;

use super::laptop::Laptop;
use super::look::Look;

const SMALL: &str = include_str!("../../../deploy/examples/pytorchjob-1-4.yaml");
const CPU_MASTER: &str = include_str!("../../../deploy/examples/pytorchjob-cpu-master.yaml");
const POD: &str = include_str!("../../../deploy/examples/gpu-pod.yaml");
const BATCH: &str = include_str!("../../../deploy/examples/pytorchjob-batch.yaml");
const TOO_BIG: &str = include_str!("../../../deploy/examples/pytorchjob-too-big-for-now.yaml");
const IMPOSSIBLE: &str = include_str!("../../../deploy/examples/pytorchjob-impossible.yaml");

/// End of the story.
const END: Duration = Duration::from_secs(45);

/// The pod under which a GPU fails.
const VICTIM: &str = "train-cpu-master-worker-1";

#[derive(Clone, Copy, Debug)]
enum Turn {
    Submit(&'static str, &'static str),
    FailGpu,
    RepairGpu,
}

/// Second, what happens.
const TURNS: &[(u64, Turn)] = &[
    (
        0,
        Turn::Submit("a PyTorchJob of 1 master and 4 workers, 1 GPU each", SMALL),
    ),
    (
        1,
        Turn::Submit(
            "a PyTorchJob with a CPU-only master and 4 workers with 8 GPUs each",
            CPU_MASTER,
        ),
    ),
    (2, Turn::Submit("one pod with one GPU in pool a", POD)),
    (
        3,
        Turn::Submit(
            "a batch of 10 workers with 8 GPUs each, for 15 seconds",
            BATCH,
        ),
    ),
    (
        6,
        Turn::Submit(
            "a gang that is too big for now: 24 workers with 8 GPUs each",
            TOO_BIG,
        ),
    ),
    (
        8,
        Turn::Submit("an impossible one: a worker with 64 GPUs", IMPOSSIBLE),
    ),
    (12, Turn::FailGpu),
    (30, Turn::RepairGpu),
];

/// The story, and how far it has been told.
#[derive(Debug, Default)]
pub struct Story {
    told: usize,
    failed: Option<(String, u32)>,
}

impl Story {
    /// A story that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether all has happened, and had time to have its effect.
    pub fn is_over(&self, elapsed: Duration) -> bool {
        self.told >= TURNS.len() && elapsed >= END
    }

    /// Lets everything happen that is due. Returns what to say about it.
    pub fn tell(&mut self, laptop: &Laptop, elapsed: Duration) -> anyhow::Result<Vec<String>> {
        let mut said = Vec::new();
        while let Some((at, turn)) = TURNS.get(self.told) {
            if elapsed < Duration::from_secs(*at) {
                break;
            }
            self.told = self.told.saturating_add(1);
            match turn {
                Turn::Submit(what, yaml) => {
                    laptop.cluster.apply_yaml(yaml)?;
                    said.push(format!("submitted: {what}"));
                }
                Turn::FailGpu => said.push(self.fail_gpu(laptop)?),
                Turn::RepairGpu => {
                    let (node, gpu) = self
                        .failed
                        .as_ref()
                        .context("no GPU has failed that could be repaired")?;
                    laptop.repair_gpu(node, *gpu)?;
                    said.push(format!("GPU {gpu} of {node} is repaired"));
                }
            }
        }
        Ok(said)
    }

    /// Fails GPU 3 of the node of the CPU-only master's second worker, which holds all 8 of them. An
    /// error when it does not run: the story would go on without its accident, and nobody notice.
    fn fail_gpu(&mut self, laptop: &Laptop) -> anyhow::Result<String> {
        let pod = laptop.cluster.get(("", "pods"), "default", VICTIM);
        let node = pod
            .as_ref()
            .and_then(|pod| pod.pointer("/spec/nodeName"))
            .and_then(|node| node.as_str())
            .map(str::to_owned)
            .with_context(|| format!("{VICTIM} has no node whose GPU could fail"))?;
        let victim = laptop
            .fail_gpu(&node, 3)?
            .with_context(|| format!("nobody holds GPU 3 of {node}, the node of {VICTIM}"))?;
        self.failed = Some((node.clone(), 3));
        Ok(format!(
            "XID 79: GPU 3 of {node} falls off the bus under {victim}"
        ))
    }

    /// What did not come out as it should; `None` when all did.
    pub fn missing(&self, look: &Look) -> Option<String> {
        let expected = [
            ("train-1-4", "Running"),
            ("train-cpu-master", "Running"),
            ("pod-notebook", "Running"),
            ("train-batch", "Succeeded"),
            ("train-too-big-for-now", "Running"),
            ("train-impossible", "Waiting"),
        ];
        expected
            .iter()
            .find(|(name, phase)| look.phase(name) != Some(*phase))
            .map(|(name, phase)| {
                format!(
                    "gang {name} should be {phase} and is {:?}",
                    look.phase(name)
                )
            })
    }
}
