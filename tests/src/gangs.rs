//! A gang in each of the ways in which users make one, so that one scenario can be played in all.

use muster_control_plane::history::{PodState, World};
use serde_json::Value;

use crate::acts::PATIENCE;
use crate::jobs::{Job, Role};
use crate::pods::{By, PodGang};
use crate::stack::{GangSays, Stack};

/// A claim that no volume answers yet: kube-scheduler leaves a pod that needs it alone, without asking
/// any extender.
const CLAIM: &str = "late";

/// What users write to get a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A PyTorchJob with equal workers.
    Job,
    /// Pods that belong together by this.
    Pods(By),
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Job, Self::Pods(By::Label), Self::Pods(By::PodGroup)];

    /// A word for names of objects.
    pub fn word(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Pods(By::Label) => "label",
            Self::Pods(By::PodGroup) => "group",
        }
    }

    /// A gang of equal members that is made in this way. Its name is `WHAT-WORD`.
    pub fn gang(self, what: &str, count: u32, gpus: u32) -> Gang {
        let name = format!("{what}-{}", self.word());
        match self {
            Self::Job => Gang::Job(Job::new(&name, vec![Role::new("Worker", count, gpus)])),
            Self::Pods(by) => Gang::Pods(PodGang::new(&name, by, count, gpus)),
        }
    }

    /// A gang of equal members of which one comes to kube-scheduler only after [`Stack::let_go`]: until
    /// then the others stand at the barrier.
    pub fn gang_with_straggler(self, what: &str, count: u32, gpus: u32) -> Gang {
        let line =
            format!("volumes: [{{name: data, persistentVolumeClaim: {{claimName: {CLAIM}}}}}]");
        match self.gang(what, count, gpus) {
            Gang::Job(mut job) => {
                let workers = count.saturating_sub(1);
                job.roles = vec![
                    Role::new("Master", 1, gpus).with(&line),
                    Role::new("Worker", workers, gpus),
                ];
                Gang::Job(job)
            }
            Gang::Pods(mut pods) => {
                pods.extra_spec_of_last = line;
                Gang::Pods(pods)
            }
        }
    }
}

/// A gang of equal members in namespace `default`.
#[derive(Clone, Debug)]
pub enum Gang {
    /// A PyTorchJob.
    Job(Job),
    /// Pods without a job.
    Pods(PodGang),
}

impl Gang {
    /// With a line of YAML more in each member's spec.
    #[must_use]
    pub fn with(self, line: &str) -> Self {
        match self {
            Self::Job(mut job) => {
                job.roles = job.roles.into_iter().map(|role| role.with(line)).collect();
                Self::Job(job)
            }
            Self::Pods(pods) => Self::Pods(pods.with(line)),
        }
    }

    /// With an annotation more on the job or PodGroup; on each pod where there is neither.
    #[must_use]
    pub fn annotated(self, key: &str, value: &str) -> Self {
        match self {
            Self::Job(job) => Self::Job(job.annotation(key, value)),
            Self::Pods(mut pods) => {
                pods.annotations.push((key.to_owned(), value.to_owned()));
                Self::Pods(pods)
            }
        }
    }

    /// Its name, and the start of its members' names.
    pub fn name(&self) -> &str {
        match self {
            Self::Job(job) => &job.name,
            Self::Pods(pods) => &pods.name,
        }
    }

    /// Name of its Gang object.
    pub fn object(&self) -> String {
        match self {
            Self::Job(job) => job.name.clone(),
            Self::Pods(pods) => pods.object(),
        }
    }

    /// Number of its members.
    pub fn size(&self) -> usize {
        match self {
            Self::Job(job) => job.pods(),
            Self::Pods(pods) => pods.count as usize,
        }
    }

    /// All of it as YAML documents.
    pub fn yaml(&self) -> String {
        match self {
            Self::Job(job) => job.yaml(),
            Self::Pods(pods) => pods.yaml(),
        }
    }

    /// Name of a member.
    pub fn member(&self, index: usize) -> String {
        match self {
            Self::Job(job) => format!("{}-worker-{index}", job.name),
            Self::Pods(pods) => format!("{}-{index}", pods.name),
        }
    }

    /// Whether a pod is one of its members.
    fn has(&self, pod: &PodState) -> bool {
        match self {
            Self::Job(job) => pod
                .controller
                .as_ref()
                .is_some_and(|(_, name, _)| *name == job.name),
            Self::Pods(pods) => pod.labels.get(pods.by.label()) == Some(&pods.name),
        }
    }

    /// Its pods in the recorded world.
    pub fn members<'a>(&'a self, world: &'a World) -> impl Iterator<Item = &'a PodState> {
        world.pods.values().filter(|pod| self.has(pod))
    }

    /// Number of its pods in the recorded world.
    pub fn born(&self, world: &World) -> usize {
        self.members(world).count()
    }

    /// Number of its pods that are bound and live.
    pub fn bound(&self, world: &World) -> usize {
        self.members(world)
            .filter(|pod| pod.is_bound_and_live())
            .count()
    }

    /// Nodes of its bound pods, sorted.
    pub fn nodes(&self, world: &World) -> Vec<String> {
        let live = self.members(world).filter(|pod| pod.is_bound_and_live());
        let mut nodes: Vec<String> = live.filter_map(|pod| pod.node.clone()).collect();
        nodes.sort();
        nodes
    }
}

impl Stack {
    /// Submits a gang, all of it at once.
    pub async fn submit_gang(&self, gang: &Gang) -> anyhow::Result<()> {
        self.cluster.apply_yaml(&gang.yaml()).await?;
        Ok(())
    }

    /// Waits until a gang has so many pods.
    pub async fn wait_gang_born(&self, gang: &Gang, pods: usize) -> anyhow::Result<()> {
        let what = format!("{pods} pods of {}", gang.name());
        self.wait_world(PATIENCE, &what, |world| gang.born(world) == pods)
            .await
    }

    /// Waits until all members of a gang are bound and its Gang says that it runs.
    pub async fn wait_gang_running(&self, gang: &Gang) -> anyhow::Result<GangSays> {
        let all = gang.size();
        let what = format!("{all} bound pods of {}", gang.name());
        self.wait_world(PATIENCE, &what, |world| gang.bound(world) == all)
            .await?;
        let bound = Some(u64::try_from(all)?);
        self.wait_gang("default", &gang.object(), PATIENCE, |says| {
            says.phase == "Running" && says.status.get("bound").and_then(Value::as_u64) == bound
        })
        .await
    }

    /// Waits until a gang waits for this reason.
    pub async fn wait_gang_says(&self, gang: &Gang, reason: &str) -> anyhow::Result<GangSays> {
        self.wait_gang("default", &gang.object(), PATIENCE, |says| {
            says.reason == reason
        })
        .await
    }

    /// Nodes of a gang's bound pods, sorted.
    pub fn gang_nodes(&self, gang: &Gang) -> Vec<String> {
        self.recorder.look(|world| gang.nodes(world))
    }

    /// Number of bindings that were ever made of pods whose names go on with `-` after this.
    pub fn ever_bound(&self, name: &str) -> usize {
        let start = format!("{name}-");
        let history = self.recorder.history();
        let binds = history.binds();
        let of_it = binds.iter().filter(|(_, pod)| pod.name.starts_with(&start));
        of_it.count()
    }

    /// Makes anew what of a gang's pods went away: the operator's work, or that of a user without one.
    pub async fn revive(&self, gang: &Gang) -> anyhow::Result<()> {
        if let Gang::Pods(_) = gang {
            let all = gang.size();
            let what = format!("a pod of {} to go", gang.name());
            self.wait_world(PATIENCE, &what, |world| gang.born(world) < all)
                .await?;
            self.submit_gang(gang).await?;
        }
        Ok(())
    }

    /// Deletes a gang, whatever it was made of, and waits until nothing of it is left.
    pub async fn end_gang(&self, gang: &Gang) -> anyhow::Result<()> {
        match gang {
            Gang::Job(job) => self.end_job(&job.name).await,
            Gang::Pods(pods) => self.end_pods(pods).await,
        }
    }

    /// Waits until Muster holds at least so many Binds at the barrier.
    pub async fn wait_held(&self, binds: usize) -> anyhow::Result<()> {
        let wanted = f64::from(u32::try_from(binds)?);
        let what = format!("{binds} Binds to be held");
        self.wait_until(PATIENCE, &what, async || {
            let held = self.counted("muster_binds_held").await;
            held.is_ok_and(|held| held >= wanted)
        })
        .await
    }

    /// Gives the stragglers the volume that they wait for.
    pub async fn let_go(&self) -> anyhow::Result<()> {
        let volume = format!(
            "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {CLAIM}}}\nspec:\n  capacity: {{storage: 1Gi}}\n  accessModes: [ReadWriteMany]\n  \
             storageClassName: \"\"\n  persistentVolumeReclaimPolicy: Retain\n  hostPath: {{path: /data}}\n---\n\
             apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {CLAIM}, namespace: default}}\nspec:\n  accessModes: [ReadWriteMany]\n  \
             storageClassName: \"\"\n  volumeName: {CLAIM}\n  resources: {{requests: {{storage: 1Gi}}}}\n"
        );
        self.cluster.apply_yaml(&volume).await?;
        Ok(())
    }

    /// Takes the stragglers' volume away, for the next ones.
    pub async fn take_volume(&self) -> anyhow::Result<()> {
        let (claim, volume) = (format!("pvc/{CLAIM}"), format!("pv/{CLAIM}"));
        self.kubectl(&["delete", &claim, &volume, "--timeout=60s"])
            .await?;
        Ok(())
    }
}
