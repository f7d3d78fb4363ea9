//! Taking single rights from Muster, so that it stands still right before a step.
//!
//! ```text
//!   create Gang -> write its plan -> release (patch job or pods) -> bind -> ...
//!        |              |                     |                      |
//!   without create   without status      without patch      without bind, or bind of some pods
//! ```
//! Whatever was done before the refused step is in the API server, as after a crash at that place.

use anyhow::{Context as _, bail};
use muster_kubernetes::manifests;

use crate::stack::Stack;

/// What Muster may not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Without {
    /// Create Gang objects.
    Creating,
    /// Write the status of Gang objects.
    Committing,
    /// Patch PyTorchJobs.
    ReleasingJobs,
    /// Patch pods.
    ReleasingPods,
    /// Patch or delete any pod but these.
    ReleasingPodsBut(Vec<String>),
    /// Bind any pod but these.
    BindingBut(Vec<String>),
}

impl Without {
    /// The line of the role that changes, and what it becomes.
    fn change(&self) -> (&'static str, String) {
        let gangs = "resources: [\"gangs\"]\n    verbs: [\"get\", \"list\", \"watch\", \"create\", \"patch\", \"delete\"]";
        let status = "resources: [\"gangs/status\"]\n    verbs: [\"update\"]";
        let jobs =
            "resources: [\"pytorchjobs\"]\n    verbs: [\"get\", \"list\", \"watch\", \"patch\"]";
        let pods = "verbs: [\"patch\", \"delete\"]";
        let binding = "resources: [\"pods/binding\"]\n    verbs: [\"create\"]";
        match self {
            Self::Creating => (gangs, gangs.replace("\"create\", ", "")),
            Self::Committing => (status, status.replace("update", "get")),
            Self::ReleasingJobs => (jobs, jobs.replace(", \"patch\"", "")),
            Self::ReleasingPods => (pods, "verbs: [\"delete\"]".into()),
            Self::ReleasingPodsBut(names) => {
                (pods, format!("{pods}\n    resourceNames: {names:?}"))
            }
            Self::BindingBut(names) if names.is_empty() => (
                binding,
                "resources: [\"pods/binding\"]\n    verbs: [\"get\"]".into(),
            ),
            Self::BindingBut(names) => {
                (binding, format!("{binding}\n    resourceNames: {names:?}"))
            }
        }
    }
}

/// The role of Muster as it is printed.
fn role() -> anyhow::Result<String> {
    let all = manifests::rbac();
    let found = all.split("---\n").find(|document| {
        document.contains("kind: ClusterRole\n") && document.contains("name: muster-scheduler\n")
    });
    Ok(found
        .context("the printed ClusterRole of Muster")?
        .to_owned())
}

impl Stack {
    /// Takes rights from Muster; those taken before come back.
    pub async fn take_rights(&self, without: &[Without]) -> anyhow::Result<()> {
        let mut rights = role()?;
        for without in without {
            let (line, instead) = without.change();
            if !rights.contains(line) {
                bail!("the printed ClusterRole has no line {line}");
            }
            rights = rights.replace(line, &instead);
        }
        self.cluster.apply_yaml(&rights).await?;
        Ok(())
    }

    /// Gives Muster all its rights again.
    pub async fn give_rights(&self) -> anyhow::Result<()> {
        self.cluster.apply_yaml(&role()?).await?;
        Ok(())
    }
}
