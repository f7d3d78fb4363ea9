//! The printed manifests are the files, byte for byte.

use std::fs;

use muster_kubernetes::manifests::{self, KubeSchedulerConfigOptions};

use crate::files::{deploy, documents};

/// Writes the files anew instead of comparing them.
const UPDATE_ENV: &str = "MUSTER_UPDATE_DEPLOY";

/// kube-scheduler's configuration in Muster's own pod: Muster is on loopback, and the client
/// certificate comes from the Secret `muster-kube-scheduler-tls`.
fn kube_scheduler_config() -> String {
    manifests::kube_scheduler_config(&KubeSchedulerConfigOptions {
        extender_url: "https://127.0.0.1:8443".into(),
        tls_dir: Some("/etc/muster/kube-scheduler-tls".into()),
        leader_elect: true,
        ..KubeSchedulerConfigOptions::default()
    })
}

fn check_printed(text: &str, paths: &[&str]) {
    let update = std::env::var_os(UPDATE_ENV).is_some_and(|value| value == "1");
    for path in paths {
        let file = deploy().join(path);
        if update {
            fs::write(&file, text).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        let held = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            held == text,
            "deploy/{path} differs from what muster-scheduler prints: run the test with {UPDATE_ENV}=1"
        );
    }
    assert!(
        !documents(text).is_empty(),
        "nothing is printed for {paths:?}"
    );
}

#[test]
fn crds_are_as_printed() {
    let paths = ["crds/muster.dev.yaml", "helm/muster/files/crds.yaml"];
    check_printed(&manifests::crds(), &paths);
}

#[test]
fn rbac_is_as_printed() {
    let paths = ["rbac/rbac.yaml", "helm/muster/files/rbac.yaml"];
    check_printed(&manifests::rbac(), &paths);
}

#[test]
fn admission_policies_are_as_printed() {
    let paths = [
        "admission/admission-policy.yaml",
        "helm/muster/files/admission-policy.yaml",
    ];
    check_printed(&manifests::admission_policy(), &paths);
}

#[test]
fn account_policies_are_as_printed() {
    let paths = [
        "admission/account-policy.yaml",
        "helm/muster/files/account-policy.yaml",
    ];
    check_printed(&manifests::account_policy(), &paths);
}

#[test]
fn kube_scheduler_configuration_is_as_printed() {
    let paths = [
        "kube-scheduler/config.yaml",
        "helm/muster/files/kube-scheduler-config.yaml",
    ];
    check_printed(&kube_scheduler_config(), &paths);
}

#[test]
fn documented_configuration_is_as_printed() {
    check_printed(muster_scheduler::config::DOCUMENTED, &["config.yaml"]);
}
