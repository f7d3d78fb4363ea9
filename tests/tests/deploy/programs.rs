//! Helm and kubectl, as programs built from their Go modules.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use muster_control_plane::{BIN_ENV, Binaries};
use serde_json::Value;

use crate::files::{deploy, documents};

/// The version of the cluster that charts are rendered for.
pub const KUBE_VERSION: &str = "v1.37.2";

/// Builds both programs once for this process.
fn programs() -> &'static (PathBuf, PathBuf) {
    static PROGRAMS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let binaries = Binaries::locate_or_build().unwrap_or_else(|error| panic!("{error}"));
        (helm(), binaries.kubectl)
    })
}

/// `helm` of a folder of ready binaries, else built from deploy/helm/tools into a folder of the
/// target directory: about a minute the first time.
fn helm() -> PathBuf {
    if let Some(folder) = std::env::var_os(BIN_ENV) {
        let ready = Path::new(&folder).join("helm");
        if ready.is_file() {
            return ready;
        }
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("helm");
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    // Go's own cache makes this a matter of seconds when nothing changed, and never gives an old
    // program for a new go.sum.
    eprintln!("deploy: building helm from deploy/helm/tools (about a minute the first time)");
    let output = Command::new("go")
        .args(["install", "-ldflags", "-s -w", "tool"])
        .env("CGO_ENABLED", "0")
        .env("GOBIN", &folder)
        .current_dir(deploy().join("helm/tools"))
        .stdin(Stdio::null())
        .output();
    match output {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("go is not installed: Helm is built from source (Go 1.26 or later)")
        }
        output => expect_success("go install helm", &output.unwrap()),
    };
    folder.join("helm")
}

fn expect_success(what: &str, output: &Output) -> String {
    assert!(
        output.status.success(),
        "{what}: {}\n{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn run_helm(args: &[&str], values: &str) -> Output {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("values.yaml");
    fs::write(&file, values).unwrap();
    Command::new(&programs().0)
        .args(args)
        .arg("--values")
        .arg(&file)
        .env("HELM_CACHE_HOME", home.path())
        .env("HELM_CONFIG_HOME", home.path())
        .env("HELM_DATA_HOME", home.path())
        // Never the cluster of the person who runs the tests.
        .env("KUBECONFIG", home.path().join("none"))
        .output()
        .unwrap()
}

fn chart() -> String {
    deploy().join("helm/muster").display().to_string()
}

/// Renders the chart and gives what Helm says, whether it works or not.
pub fn try_template(namespace: &str, kube_version: &str, values: &str) -> Result<String, String> {
    let chart = chart();
    let args = [
        "template",
        "muster",
        &chart,
        "--namespace",
        namespace,
        "--kube-version",
        kube_version,
    ];
    let output = run_helm(&args, values);
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The objects that the chart gives.
pub fn template(namespace: &str, kube_version: &str, values: &str) -> Vec<Value> {
    let rendered = try_template(namespace, kube_version, values);
    documents(&rendered.unwrap_or_else(|error| panic!("{error}")))
}

/// `helm lint --strict` on the chart.
pub fn lint(values: &str) -> String {
    let chart = chart();
    expect_success(
        "helm lint",
        &run_helm(&["lint", &chart, "--strict"], values),
    )
}

/// The objects that a kustomization below deploy/ gives, as text.
pub fn kustomize_text(folder: &str) -> String {
    let output = Command::new(&programs().1)
        .arg("kustomize")
        .arg(deploy().join(folder))
        .output()
        .unwrap();
    expect_success(&format!("kubectl kustomize deploy/{folder}"), &output)
}

/// The objects that a kustomization below deploy/ gives.
pub fn kustomize(folder: &str) -> Vec<Value> {
    documents(&kustomize_text(folder))
}
