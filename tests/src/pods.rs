//! Gangs of pods without a job, as YAML.

use std::fmt::Write as _;

use muster_control_plane::history::{PodState, World};

/// What makes the pods a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Label `muster.dev/gang` and annotation `muster.dev/gang-size`.
    Label,
    /// A PodGroup with `minMember` equal to the number of pods, and the label that names it.
    PodGroup,
}

impl By {
    /// The label that names the gang.
    pub fn label(self) -> &'static str {
        match self {
            Self::Label => "muster.dev/gang",
            Self::PodGroup => "scheduling.x-k8s.io/pod-group",
        }
    }
}

/// A gang of equal pods, `NAME-0`, `NAME-1` and so on, in namespace `default`.
#[derive(Clone, Debug)]
pub struct PodGang {
    /// Name of the gang.
    pub name: String,
    /// What makes it one.
    pub by: By,
    /// Number of pods.
    pub count: u32,
    /// GPUs of each.
    pub gpus: u32,
    /// How long each pod runs, seconds; `None`: until it is deleted.
    pub run_seconds: Option<u32>,
    /// Further annotations of the PodGroup; of each pod where there is none.
    pub annotations: Vec<(String, String)>,
    /// Further lines of each pod's spec.
    pub extra_spec: String,
    /// A further line of the last pod's spec.
    pub extra_spec_of_last: String,
}

impl PodGang {
    /// A gang that runs until it is deleted.
    pub fn new(name: &str, by: By, count: u32, gpus: u32) -> Self {
        Self {
            name: name.into(),
            by,
            count,
            gpus,
            run_seconds: None,
            annotations: Vec::new(),
            extra_spec: String::new(),
            extra_spec_of_last: String::new(),
        }
    }

    /// With a line of YAML more in each pod's spec.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        let _ = writeln!(self.extra_spec, "{line}");
        self
    }

    /// Lets each pod end well after so many seconds.
    #[must_use]
    pub fn running_for(mut self, seconds: u32) -> Self {
        self.run_seconds = Some(seconds);
        self
    }

    /// Name of its Gang object.
    pub fn object(&self) -> String {
        match self.by {
            By::Label => format!("label-{}", self.name),
            By::PodGroup => format!("podgroup-{}", self.name),
        }
    }

    /// Its pods in the recorded world.
    pub fn members<'a>(&'a self, world: &'a World) -> impl Iterator<Item = &'a PodState> {
        world
            .pods
            .values()
            .filter(|pod| pod.labels.get(self.by.label()) == Some(&self.name))
    }

    /// Number of its pods that are bound and live.
    pub fn bound(&self, world: &World) -> usize {
        self.members(world)
            .filter(|pod| pod.is_bound_and_live())
            .count()
    }

    /// The PodGroup, if there is one, as YAML.
    pub fn head(&self) -> String {
        match self.by {
            By::Label => String::new(),
            By::PodGroup => format!(
                "apiVersion: scheduling.x-k8s.io/v1alpha1\nkind: PodGroup\nmetadata: {{name: {}, namespace: default, annotations: {{{}}}}}\nspec: {{minMember: {}}}\n",
                self.name,
                self.annotated(),
                self.count
            ),
        }
    }

    fn annotated(&self) -> String {
        let all = self.annotations.iter();
        all.map(|(key, value)| format!("{key}: \"{value}\", "))
            .collect()
    }

    /// One pod as YAML.
    pub fn pod(&self, index: u32) -> String {
        let mut annotations = String::new();
        if self.by == By::Label {
            let _ = write!(annotations, "muster.dev/gang-size: \"{}\", ", self.count);
            annotations.push_str(&self.annotated());
        }
        if let Some(seconds) = self.run_seconds {
            let _ = write!(annotations, "muster.dev/run-seconds: \"{seconds}\"");
        }
        let is_last = index.saturating_add(1) == self.count;
        let of_last = is_last.then_some(self.extra_spec_of_last.as_str());
        let extra = self.extra_spec.lines().chain(of_last);
        let extra: String = extra
            .filter(|line| !line.is_empty())
            .map(|line| format!("  {line}\n"))
            .collect();
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}-{index}\n  namespace: default\n  labels: {{{label}: {name}, muster.dev/index: \"{index}\"}}\n  \
             annotations: {{{annotations}}}\nspec:\n  schedulerName: muster\n  restartPolicy: Never\n  tolerations:\n  - {{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}}\n{extra}  \
             containers:\n  - name: main\n    image: train:1\n    resources: {{limits: {{nvidia.com/gpu: {gpus}}}}}\n",
            name = self.name,
            label = self.by.label(),
            gpus = self.gpus,
        )
    }

    /// All of it as YAML documents, pods in order.
    pub fn yaml(&self) -> String {
        let pods = (0..self.count).map(|index| self.pod(index));
        let documents: Vec<String> = std::iter::once(self.head()).chain(pods).collect();
        documents.join("---\n")
    }
}
