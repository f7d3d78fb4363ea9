//! Jobs as users write them, as YAML.

use std::fmt::Write as _;

/// One replica type of a PyTorchJob.
#[derive(Clone, Debug)]
pub struct Role {
    /// `Master` or `Worker`.
    pub name: &'static str,
    /// Number of pods.
    pub replicas: u32,
    /// GPUs of each.
    pub gpus: u32,
    /// Cores of each, as a quantity.
    pub cpu: &'static str,
    /// Memory of each, as a quantity.
    pub memory: &'static str,
    /// Limits of each besides GPUs, by resource name.
    pub limits: Vec<(&'static str, String)>,
    /// `restartPolicy`.
    pub restart: &'static str,
    /// Labels of the template.
    pub labels: Vec<(String, String)>,
    /// Annotations of the template.
    pub annotations: Vec<(String, String)>,
    /// Tolerates the taint of GPU nodes.
    pub tolerates_gpu_taint: bool,
    /// Further tolerations, each a YAML mapping in one line.
    pub tolerations: Vec<String>,
    /// Further lines of the pod's spec, indented as YAML by the caller's own two spaces.
    pub extra_spec: String,
    /// Further lines of the container.
    pub extra_container: String,
}

impl Role {
    /// A role with 1 core and 1 GiB per pod.
    pub fn new(name: &'static str, replicas: u32, gpus: u32) -> Self {
        Self {
            name,
            replicas,
            gpus,
            cpu: "1",
            memory: "1Gi",
            limits: Vec::new(),
            restart: "OnFailure",
            labels: Vec::new(),
            annotations: Vec::new(),
            tolerates_gpu_taint: true,
            tolerations: Vec::new(),
            extra_spec: String::new(),
            extra_container: String::new(),
        }
    }

    /// With a limit more.
    #[must_use]
    pub fn limit(mut self, resource: &'static str, amount: impl ToString) -> Self {
        self.limits.push((resource, amount.to_string()));
        self
    }

    /// With another `restartPolicy`.
    #[must_use]
    pub fn restart(mut self, policy: &'static str) -> Self {
        self.restart = policy;
        self
    }

    /// With a label on the template.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// With an annotation on the template.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.into(), value.into()));
        self
    }

    /// With a toleration more: a YAML mapping in one line.
    #[must_use]
    pub fn tolerating(mut self, toleration: &str) -> Self {
        self.tolerations.push(toleration.into());
        self
    }

    /// With memory as `/dev/shm`, as data loaders need.
    #[must_use]
    pub fn with_shm(mut self) -> Self {
        self = self.with("volumes: [{name: shm, emptyDir: {medium: Memory}}]");
        let mount = "volumeMounts: [{name: shm, mountPath: /dev/shm}]";
        let _ = writeln!(self.extra_container, "{mount}");
        self
    }

    /// With other cores and memory.
    #[must_use]
    pub fn sized(mut self, cpu: &'static str, memory: &'static str) -> Self {
        self.cpu = cpu;
        self.memory = memory;
        self
    }

    /// Without the toleration of GPU nodes' taint.
    #[must_use]
    pub fn off_gpu_nodes(mut self) -> Self {
        self.tolerates_gpu_taint = false;
        self
    }

    /// With a line of YAML more in the pod's spec.
    #[must_use]
    pub fn with(mut self, line: &str) -> Self {
        let _ = writeln!(self.extra_spec, "{line}");
        self
    }
}

/// A PyTorchJob.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Roles.
    pub roles: Vec<Role>,
    /// How long each pod runs, seconds; `None`: until it is deleted.
    pub run_seconds: Option<u32>,
    /// Lines of `spec.runPolicy`.
    pub run_policy: Vec<String>,
    /// Lines of `spec` besides replicas and run policy.
    pub extra: Vec<String>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Whether the templates name Muster's scheduler.
    pub named: bool,
}

impl Job {
    /// A job in namespace `default`.
    pub fn new(name: &str, roles: Vec<Role>) -> Self {
        Self {
            name: name.into(),
            namespace: "default".into(),
            roles,
            run_seconds: None,
            run_policy: Vec::new(),
            extra: Vec::new(),
            annotations: Vec::new(),
            labels: Vec::new(),
            named: true,
        }
    }

    /// Lets each pod end well after so many seconds.
    #[must_use]
    pub fn running_for(mut self, seconds: u32) -> Self {
        self.run_seconds = Some(seconds);
        self
    }

    /// With a line of `spec.runPolicy` more.
    #[must_use]
    pub fn policy(mut self, line: &str) -> Self {
        self.run_policy.push(line.into());
        self
    }

    /// With templates that name no scheduler: training-operator is to do that.
    #[must_use]
    pub fn unnamed(mut self) -> Self {
        self.named = false;
        self
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// With an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.into(), value.into()));
        self
    }

    /// With a line of `spec` more.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.extra.push(line.into());
        self
    }

    /// Number of pods.
    pub fn pods(&self) -> usize {
        self.roles.iter().map(|role| role.replicas as usize).sum()
    }

    /// The object as YAML.
    pub fn yaml(&self) -> String {
        let mut text = format!(
            "apiVersion: kubeflow.org/v1\nkind: PyTorchJob\nmetadata:\n  name: {}\n  namespace: {}\n",
            self.name, self.namespace
        );
        text.push_str(&pairs("  ", &self.labels, &self.annotations));
        text.push_str("spec:\n");
        for line in &self.extra {
            let _ = writeln!(text, "  {line}");
        }
        if !self.run_policy.is_empty() {
            text.push_str("  runPolicy:\n");
            for line in &self.run_policy {
                let _ = writeln!(text, "    {line}");
            }
        }
        text.push_str("  pytorchReplicaSpecs:\n");
        for role in &self.roles {
            text.push_str(&self.role(role));
        }
        text
    }

    fn role(&self, role: &Role) -> String {
        let mut text = format!(
            "    {}:\n      replicas: {}\n      restartPolicy: {}\n      template:\n",
            role.name, role.replicas, role.restart
        );
        let run = self
            .run_seconds
            .map(|seconds| ("muster.dev/run-seconds".to_owned(), seconds.to_string()));
        let annotations: Vec<_> = run.into_iter().chain(role.annotations.clone()).collect();
        let marks = pairs("          ", &role.labels, &annotations);
        if !marks.is_empty() {
            let _ = write!(text, "        metadata:\n{marks}");
        }
        text.push_str("        spec:\n");
        if self.named {
            text.push_str("          schedulerName: muster\n");
        }
        let of_gpu_nodes = "{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}";
        let of_gpu_nodes = role.tolerates_gpu_taint.then_some(of_gpu_nodes);
        let tolerations: Vec<&str> = of_gpu_nodes
            .into_iter()
            .chain(role.tolerations.iter().map(String::as_str))
            .collect();
        if !tolerations.is_empty() {
            let _ = writeln!(text, "          tolerations: [{}]", tolerations.join(", "));
        }
        for line in role.extra_spec.lines() {
            let _ = writeln!(text, "          {line}");
        }
        let _ = write!(
            text,
            "          containers:\n          - name: pytorch\n            image: train:1\n            resources:\n              requests: {{cpu: \"{}\", memory: {}}}\n",
            role.cpu, role.memory
        );
        let gpus = (role.gpus > 0).then(|| ("nvidia.com/gpu", role.gpus.to_string()));
        let limits: Vec<String> = gpus
            .iter()
            .chain(&role.limits)
            .map(|(name, amount)| format!("{name}: {amount}"))
            .collect();
        if !limits.is_empty() {
            let _ = writeln!(text, "              limits: {{{}}}", limits.join(", "));
        }
        for line in role.extra_container.lines() {
            let _ = writeln!(text, "            {line}");
        }
        text
    }
}

/// Labels and annotations as lines of metadata.
fn pairs(indent: &str, labels: &[(String, String)], annotations: &[(String, String)]) -> String {
    let mut text = String::new();
    for (field, pairs) in [("labels", labels), ("annotations", annotations)] {
        if !pairs.is_empty() {
            let _ = writeln!(text, "{indent}{field}:");
        }
        for (key, value) in pairs {
            let _ = writeln!(text, "{indent}  {key}: \"{value}\"");
        }
    }
    text
}
