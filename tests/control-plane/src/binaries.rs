//! Where the programs come from.
//!
//! ```text
//!   MUSTER_CONTROL_PLANE_BIN=<folder of ready binaries>            used as it is
//!   otherwise <target>/control-plane/<hash of go.mod, go.sum, go version>/
//!        etcd etcdctl etcdutl kube-apiserver kube-controller-manager kube-scheduler kubectl kwok training-operator.v1
//!        manifests/  the CRDs and roles that come with the modules
//! ```
//! The versions are those of the two Go modules beside this crate (`tools/go.mod`, `training-operator/go.mod`). A cold build takes
//! about six minutes on two cores; the Go build cache makes later ones a matter of linking. A file lock lets parallel test binaries
//! build once.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::go::{self, Hash, Manifest, Module};

/// The environment variable that names a folder of ready binaries.
pub const BIN_ENV: &str = "MUSTER_CONTROL_PLANE_BIN";

/// Files that come with the modules.
const MANIFESTS: [Manifest; 3] = [
    Manifest {
        module: "github.com/kubeflow/training-operator",
        file: "manifests/base/crds/kubeflow.org_pytorchjobs.yaml",
        name: PYTORCHJOBS_CRD,
    },
    Manifest {
        module: "github.com/kubeflow/training-operator",
        file: "manifests/base/rbac/role.yaml",
        name: TRAINING_OPERATOR_ROLE,
    },
    Manifest {
        module: "sigs.k8s.io/scheduler-plugins",
        file: "config/crd/bases/scheduling.x-k8s.io_podgroups.yaml",
        name: POD_GROUPS_CRD,
    },
];

const PYTORCHJOBS_CRD: &str = "pytorchjobs.yaml";
const TRAINING_OPERATOR_ROLE: &str = "training-operator-role.yaml";
const POD_GROUPS_CRD: &str = "podgroups.yaml";

/// The programs of a control plane, as absolute paths.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// etcd 3.7.
    pub etcd: PathBuf,
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// The controller manager.
    pub kube_controller_manager: PathBuf,
    /// The scheduler, unmodified.
    pub kube_scheduler: PathBuf,
    /// The command line client.
    pub kubectl: PathBuf,
    /// KWOK, which stands in for kubelets.
    pub kwok: PathBuf,
    /// Kubeflow's training operator (v1 jobs).
    pub training_operator: PathBuf,
    manifests: PathBuf,
    folder: PathBuf,
}

impl Binaries {
    /// Finds the programs, building them when that was not done yet. Blocks, for minutes on a first run; prints progress lines on
    /// standard error.
    pub fn locate_or_build() -> Result<Binaries> {
        match std::env::var_os(BIN_ENV) {
            Some(folder) if !folder.is_empty() => Binaries::in_folder(Path::new(&folder)),
            _ => Binaries::built(),
        }
    }

    fn in_folder(folder: &Path) -> Result<Binaries> {
        let folder = std::path::absolute(folder)
            .map_err(Error::io(format!("folder {}", folder.display())))?;
        let find = |names: &[&str]| find(&folder, names);
        let mut binaries = Binaries {
            // etcd's command is called `server` in its module.
            etcd: find(&["etcd", "server"])?,
            kube_apiserver: find(&["kube-apiserver"])?,
            kube_controller_manager: find(&["kube-controller-manager"])?,
            kube_scheduler: find(&["kube-scheduler"])?,
            kubectl: find(&["kubectl"])?,
            kwok: find(&["kwok"])?,
            training_operator: find(&["training-operator.v1", "training-operator"])?,
            manifests: folder.join("manifests"),
            folder: folder.clone(),
        };
        if MANIFESTS
            .iter()
            .any(|manifest| !binaries.manifests.join(manifest.name).is_file())
        {
            // A folder of binaries alone: the manifests still come from the modules.
            binaries.manifests = go::target_folder().join("control-plane").join("manifests");
            let _lock = go::lock(&binaries.manifests.with_extension("lock"))?;
            training_operator().copy_manifests(&MANIFESTS, &binaries.manifests)?;
        }
        Ok(binaries)
    }

    fn built() -> Result<Binaries> {
        let version = go::version()?;
        let root = go::target_folder().join("control-plane");
        let folder = root.join(source_hash(&version)?);
        let _lock = go::lock(&root.join("build.lock"))?;
        if !folder.is_dir() {
            build_into(&folder, &version)?;
        }
        Binaries::in_folder(&folder)
    }

    /// The client that takes snapshots of etcd. Only a restore needs it: a folder of ready binaries does without, else.
    ///
    /// # Errors
    /// The folder has none.
    pub fn etcdctl(&self) -> Result<PathBuf> {
        find(&self.folder, &["etcdctl"])
    }

    /// The program that makes a store of a snapshot of etcd; the same holds.
    ///
    /// # Errors
    /// The folder has none.
    pub fn etcdutl(&self) -> Result<PathBuf> {
        find(&self.folder, &["etcdutl"])
    }

    /// The CustomResourceDefinition of `kubeflow.org/v1` PyTorchJob (644 KB: apply it server-side).
    pub fn pytorchjobs_crd(&self) -> PathBuf {
        self.manifests.join(PYTORCHJOBS_CRD)
    }

    /// The CustomResourceDefinition of `scheduling.x-k8s.io/v1alpha1` PodGroup.
    pub fn pod_groups_crd(&self) -> PathBuf {
        self.manifests.join(POD_GROUPS_CRD)
    }

    /// The ClusterRole `training-operator` that comes with the operator.
    pub fn training_operator_role(&self) -> PathBuf {
        self.manifests.join(TRAINING_OPERATOR_ROLE)
    }
}

/// The first of these names that is a file in the folder.
fn find(folder: &Path, names: &[&str]) -> Result<PathBuf> {
    let mut paths = names.iter().map(|name| folder.join(name));
    let found = paths.find(|path| path.is_file());
    found.ok_or_else(|| Error::MissingProgram {
        program: names.first().copied().unwrap_or_default().to_owned(),
        folder: folder.to_owned(),
    })
}

/// The module of the control plane's own programs.
fn tools() -> Module {
    Module::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools"))
}

/// The module of training-operator, which needs older libraries of Kubernetes.
fn training_operator() -> Module {
    Module::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("training-operator"))
}

fn source_hash(version: &str) -> Result<String> {
    let mut hash = Hash::default();
    tools().add_to(&mut hash)?;
    training_operator().add_to(&mut hash)?;
    hash.add(version.as_bytes());
    Ok(hash.text())
}

fn build_into(folder: &Path, version: &str) -> Result<()> {
    eprintln!(
        "control plane: building etcd, Kubernetes, KWOK and training-operator with {version} into {} \
         (about 6 minutes on 2 cores the first time)",
        folder.display()
    );
    let since = Instant::now();
    let partial = go::empty_folder(folder.with_extension("partial"))?;
    let tools = tools();
    tools.install(&partial, &tools.version_flags()?, since)?;
    let operator = training_operator();
    operator.install(&partial, "-s -w", since)?;
    let etcd = partial.join("server");
    fs::rename(&etcd, partial.join("etcd"))
        .map_err(Error::io(format!("rename {}", etcd.display())))?;
    operator.copy_manifests(&MANIFESTS, &partial.join("manifests"))?;
    fs::rename(&partial, folder).map_err(Error::io(format!("rename {}", partial.display())))?;
    eprintln!("control plane: built in {} s", since.elapsed().as_secs());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = folder.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        for manifest in MANIFESTS {
            fs::write(manifests.join(manifest.name), "").unwrap();
        }
        for name in ["server", "kube-apiserver", "kube-controller-manager"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let error = Binaries::in_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("kube-scheduler is missing"), "{error}");
        assert!(
            error.contains(&folder.path().display().to_string()),
            "{error}"
        );
    }

    #[test]
    fn the_hash_follows_the_go_version() {
        assert_ne!(
            source_hash("go1.26.8").unwrap(),
            source_hash("go1.27.0").unwrap()
        );
    }
}
