//! Where the programs come from.
//!
//! ```text
//!   MUSTER_CONTROL_PLANE_BIN=<folder of ready binaries>            used as it is
//!   otherwise <target>/control-plane/<hash of go.mod, go.sum, go version>/
//!        etcd kube-apiserver kube-controller-manager kube-scheduler kubectl kwok training-operator.v1
//!        manifests/  the CRDs and roles that come with the modules
//! ```
//! The versions are those of the two Go modules beside this crate (`tools/go.mod`, `training-operator/go.mod`). A cold build takes
//! about six minutes on two cores; the Go build cache makes later ones a matter of linking. A file lock lets parallel test binaries
//! build once.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// The environment variable that names a folder of ready binaries.
pub const BIN_ENV: &str = "MUSTER_CONTROL_PLANE_BIN";

/// Pause between two progress lines of a build.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Lines of a failed Go command quoted in the error.
const GO_LOG_LINES: usize = 30;

/// A manifest taken from a Go module: module path, file inside, name here.
const MANIFESTS: [(&str, &str, &str); 3] = [
    (
        "github.com/kubeflow/training-operator",
        "manifests/base/crds/kubeflow.org_pytorchjobs.yaml",
        PYTORCHJOBS_CRD,
    ),
    (
        "github.com/kubeflow/training-operator",
        "manifests/base/rbac/role.yaml",
        TRAINING_OPERATOR_ROLE,
    ),
    (
        "sigs.k8s.io/scheduler-plugins",
        "config/crd/bases/scheduling.x-k8s.io_podgroups.yaml",
        POD_GROUPS_CRD,
    ),
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
        let find = |names: &[&str]| -> Result<PathBuf> {
            names
                .iter()
                .map(|name| folder.join(name))
                .find(|path| path.is_file())
                .ok_or_else(|| Error::MissingProgram {
                    program: names.first().copied().unwrap_or_default().to_owned(),
                    folder: folder.clone(),
                })
        };
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
        };
        if MANIFESTS
            .iter()
            .any(|(_, _, name)| !binaries.manifests.join(name).is_file())
        {
            // A folder of binaries alone: the manifests still come from the modules.
            binaries.manifests = target_folder().join("control-plane").join("manifests");
            let _lock = lock(&binaries.manifests.with_extension("lock"))?;
            copy_manifests(&binaries.manifests)?;
        }
        Ok(binaries)
    }

    fn built() -> Result<Binaries> {
        let version = go_version()?;
        let root = target_folder().join("control-plane");
        let folder = root.join(source_hash(&version)?);
        let _lock = lock(&root.join("build.lock"))?;
        if !folder.is_dir() {
            build_into(&folder, &version)?;
        }
        Binaries::in_folder(&folder)
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

/// The crate's folder in the checkout, where the Go modules lie.
fn source_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Cargo's target folder: the one the running program lies in, else the one that the environment names, else the workspace's.
fn target_folder() -> PathBuf {
    let beside_program = std::env::current_exe().ok().and_then(|program| {
        program
            .ancestors()
            .find(|folder| folder.join("CACHEDIR.TAG").is_file())
            .map(Path::to_path_buf)
    });
    beside_program
        .or_else(|| std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from))
        .unwrap_or_else(|| source_folder().join("../../target"))
}

fn lock(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io(format!("create {}", parent.display())))?;
    }
    let what = || format!("lock {}", path.display());
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::io(what()))?;
    if file.try_lock().is_err() {
        eprintln!(
            "control plane: waiting for another process that holds {}",
            path.display()
        );
        file.lock().map_err(Error::io(what()))?;
    }
    Ok(file)
}

fn go() -> Command {
    let mut command = Command::new("go");
    command.env("CGO_ENABLED", "0").stdin(Stdio::null());
    command
}

fn go_version() -> Result<String> {
    let output = go()
        .arg("version")
        .output()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoGoToolchain,
            _ => Error::Io {
                what: "run go version".into(),
                source,
            },
        })?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// FNV-1a, 64 bits: the same on every machine and with every compiler, which is all that a folder name needs.
fn source_hash(version: &str) -> Result<String> {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for module in ["tools", "training-operator"] {
        for file in ["go.mod", "go.sum"] {
            let path = source_folder().join(module).join(file);
            add(&fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?);
        }
    }
    add(version.as_bytes());
    Ok(format!("{hash:016x}"))
}

fn build_into(folder: &Path, version: &str) -> Result<()> {
    eprintln!(
        "control plane: building etcd, Kubernetes, KWOK and training-operator with {version} into {} \
         (about 6 minutes on 2 cores the first time)",
        folder.display()
    );
    let since = Instant::now();
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(Error::io(format!("remove {}", partial.display())))?;
    }
    fs::create_dir_all(&partial).map_err(Error::io(format!("create {}", partial.display())))?;
    let kubernetes = module_version("tools", "k8s.io/kubernetes")?;
    go_install("tools", &partial, &version_flags(&kubernetes)?, since)?;
    go_install("training-operator", &partial, "-s -w", since)?;
    let etcd = partial.join("server");
    fs::rename(&etcd, partial.join("etcd"))
        .map_err(Error::io(format!("rename {}", etcd.display())))?;
    copy_manifests(&partial.join("manifests"))?;
    fs::rename(&partial, folder).map_err(Error::io(format!("rename {}", partial.display())))?;
    eprintln!("control plane: built in {} s", since.elapsed().as_secs());
    Ok(())
}

/// Linker flags that make the programs say the version of their module: without them the server calls itself v0.0.0-master.
fn version_flags(kubernetes: &str) -> Result<String> {
    let mut parts = kubernetes.trim_start_matches('v').split('.');
    let (Some(major), Some(minor)) = (parts.next(), parts.next()) else {
        return Err(Error::Invalid {
            field: "version of k8s.io/kubernetes".into(),
            value: kubernetes.into(),
            limit: "vMAJOR.MINOR.PATCH".into(),
        });
    };
    let package = "k8s.io/component-base/version";
    Ok(format!(
        "-s -w -X {package}.gitVersion={kubernetes} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    ))
}

fn go_install(module: &str, out: &Path, ldflags: &str, since: Instant) -> Result<()> {
    let folder = source_folder().join(module);
    let what = format!("go install of the tools in {module}");
    let mut child = go()
        .args(["install", "-v", "-ldflags", ldflags, "tool"])
        .env("GOBIN", out)
        .current_dir(&folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io(what.clone()))?;
    let mut lines: Vec<String> = Vec::new();
    let mut built = 0_usize;
    let mut printed = Instant::now();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr)
            .lines()
            .map_while(std::io::Result::ok)
        {
            built += 1;
            if lines.len() >= GO_LOG_LINES {
                lines.remove(0);
            }
            lines.push(line);
            if printed.elapsed() >= PROGRESS_EVERY {
                printed = Instant::now();
                eprintln!(
                    "control plane: {module}: {built} packages compiled, {} s",
                    since.elapsed().as_secs()
                );
            }
        }
    }
    let status = child.wait().map_err(Error::io(what.clone()))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Go {
        what,
        folder,
        log: lines.join("\n"),
    })
}

fn go_list(module: &str, format: &str, package: &str) -> Result<String> {
    let folder = source_folder().join(module);
    let what = format!("go list -m {package}");
    let output = go()
        .args(["list", "-m", "-f", format, package])
        .current_dir(&folder)
        .output()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::NoGoToolchain,
            _ => Error::Io {
                what: what.clone(),
                source,
            },
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(Error::Go {
        what,
        folder,
        log: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn module_version(module: &str, package: &str) -> Result<String> {
    go_list(module, "{{.Version}}", package)
}

fn copy_manifests(to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(Error::io(format!("create {}", to.display())))?;
    for (package, file, name) in MANIFESTS {
        let folder = go_list("training-operator", "{{.Dir}}", package)?;
        let source = Path::new(&folder).join(file);
        let mut bytes = Vec::new();
        File::open(&source)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(Error::io(format!("read {}", source.display())))?;
        let target = to.join(name);
        // Module files are read-only; the copy is an ordinary file, renamed into place so that no reader sees half of it.
        let partial = target.with_extension("partial");
        fs::write(&partial, &bytes).map_err(Error::io(format!("write {}", partial.display())))?;
        fs::rename(&partial, &target)
            .map_err(Error::io(format!("rename {}", partial.display())))?;
    }
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
        for (_, _, name) in MANIFESTS {
            fs::write(manifests.join(name), "").unwrap();
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
    fn the_version_flags_name_major_and_minor() {
        let flags = version_flags("v1.37.2").unwrap();
        assert!(
            flags.ends_with("gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"),
            "{flags}"
        );
        assert!(version_flags("v1").is_err());
    }

    #[test]
    fn the_hash_follows_the_go_version() {
        assert_ne!(
            source_hash("go1.26.8").unwrap(),
            source_hash("go1.27.0").unwrap()
        );
    }
}
