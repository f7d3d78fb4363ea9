//! The objects that an installation needs, as YAML.
//!
//! `crds` comes from the types, so that schema and code cannot differ. `rbac`,
//! `admission_policy` and `account_policy` are files beside this one. `kube_scheduler_config` depends on where Muster
//! and its certificates are.

mod scheduler_config;

use kube::CustomResourceExt;
use serde::Serialize;

pub use scheduler_config::{KubeSchedulerConfigOptions, RENEW_DEADLINE, kube_scheduler_config};

use crate::gang::Gang;

/// CustomResourceDefinitions of Muster's own kinds.
pub fn crds() -> String {
    yaml(&Gang::crd())
}

/// Namespace, ServiceAccounts, and the least rights that scheduler and agent need.
pub fn rbac() -> String {
    include_str!("rbac.yaml").to_owned()
}

/// The admission policies that hold jobs and pods back at creation, with their bindings. They need
/// Kubernetes 1.36, or 1.34 with `MutatingAdmissionPolicy` switched on; without them Muster works
/// by refusing in Filter.
pub fn admission_policy() -> String {
    include_str!("admission-policy.yaml").to_owned()
}

/// The admission policies that limit what the account of Muster's pod may write, with their bindings.
/// Any Kubernetes that Muster runs on serves them.
pub fn account_policy() -> String {
    include_str!("account-policy.yaml").to_owned()
}

/// One YAML document. Values made of text, numbers, lists and maps always have one; should that
/// ever not hold, the document says so and is refused by whoever reads it.
fn yaml(value: &impl Serialize) -> String {
    match serde_saphyr::to_string(value) {
        Ok(text) => text,
        Err(error) => format!("error: {:?}\n", error.to_string()),
    }
}

#[cfg(test)]
mod tests;
