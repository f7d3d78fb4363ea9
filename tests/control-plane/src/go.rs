//! Go modules of ours that declare programs as tools (`go.mod` with `tool` lines), and their build by the ordinary Go toolchain.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Pause between two progress lines of a build.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// Lines of a failed Go command quoted in the error.
const GO_LOG_LINES: usize = 30;

/// A file that comes with a Go module, such as a CustomResourceDefinition.
#[derive(Clone, Copy, Debug)]
pub struct Manifest {
    /// The module's path.
    pub module: &'static str,
    /// The file inside of it.
    pub file: &'static str,
    /// Its name in the folder `manifests/` beside the programs.
    pub name: &'static str,
}

/// One of our Go modules.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    folder: PathBuf,
}

impl Module {
    /// The module in a folder with a `go.mod` and a `go.sum`.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder's name, as it is shown.
    pub(crate) fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Takes in everything that the module's programs depend on but for the toolchain.
    pub(crate) fn add_to(&self, hash: &mut Hash) -> Result<()> {
        for file in ["go.mod", "go.sum"] {
            let path = self.folder.join(file);
            hash.add(&fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?);
        }
        Ok(())
    }

    /// Builds the declared tools into `out`, with a progress line every ten seconds.
    pub(crate) fn install(&self, out: &Path, ldflags: &str, since: Instant) -> Result<()> {
        let name = self.name();
        let what = format!("go install of the tools in {name}");
        let mut child = command()
            .args(["install", "-v", "-ldflags", ldflags, "tool"])
            .env("GOBIN", out)
            .current_dir(&self.folder)
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
                        "control plane: {name}: {built} packages compiled, {} s",
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
            folder: self.folder.clone(),
            log: lines.join("\n"),
        })
    }

    /// What `go list -m` says of a module that this one depends on.
    fn list(&self, format: &str, module: &str) -> Result<String> {
        let what = format!("go list -m {module}");
        let output = command()
            .args(["list", "-m", "-f", format, module])
            .current_dir(&self.folder)
            .output()
            .map_err(not_started(what.clone()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(Error::Go {
            what,
            folder: self.folder.clone(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Linker flags that make the programs say the version of `k8s.io/kubernetes` in this module.
    pub(crate) fn version_flags(&self) -> Result<String> {
        version_flags(&self.list("{{.Version}}", "k8s.io/kubernetes")?)
    }

    /// Copies files of modules that this one depends on into a folder.
    pub(crate) fn copy_manifests(&self, manifests: &[Manifest], to: &Path) -> Result<()> {
        fs::create_dir_all(to).map_err(Error::io(format!("create {}", to.display())))?;
        for manifest in manifests {
            let folder = self.list("{{.Dir}}", manifest.module)?;
            let source = Path::new(&folder).join(manifest.file);
            let mut bytes = Vec::new();
            File::open(&source)
                .and_then(|mut file| file.read_to_end(&mut bytes))
                .map_err(Error::io(format!("read {}", source.display())))?;
            let target = to.join(manifest.name);
            // Module files are read-only; the copy is an ordinary file, renamed into place so that no reader sees half of it.
            let partial = target.with_extension("partial");
            fs::write(&partial, &bytes)
                .map_err(Error::io(format!("write {}", partial.display())))?;
            fs::rename(&partial, &target)
                .map_err(Error::io(format!("rename {}", partial.display())))?;
        }
        Ok(())
    }
}

/// Builds the programs that the Go module in `source` declares as tools, and copies files of its dependencies to `manifests/` beside
/// them. Does nothing but find them when that was done before for the same `go.mod`, `go.sum` and Go. Blocks, for minutes the first
/// time; prints progress lines on standard error; a file lock lets parallel processes build once.
///
/// Returns the folder, `<target>/<kind>/<name of the module's folder>-<hash>`.
///
/// # Errors
/// No Go toolchain, a module that cannot be built, a file that cannot be read or written.
pub fn build_tools(kind: &str, source: &Path, manifests: &[Manifest]) -> Result<PathBuf> {
    let module = Module::new(source.to_path_buf());
    let version = version()?;
    let mut hash = Hash::default();
    module.add_to(&mut hash)?;
    hash.add(version.as_bytes());
    let root = target_folder().join(kind);
    let folder = root.join(format!("{}-{}", module.name(), hash.text()));
    let _lock = lock(&root.join("build.lock"))?;
    if folder.is_dir() {
        return Ok(folder);
    }
    eprintln!(
        "control plane: building {} with {version} into {} (minutes the first time)",
        module.name(),
        folder.display()
    );
    let since = Instant::now();
    let partial = empty_folder(folder.with_extension("partial"))?;
    module.install(&partial, &module.version_flags()?, since)?;
    module.copy_manifests(manifests, &partial.join("manifests"))?;
    fs::rename(&partial, &folder).map_err(Error::io(format!("rename {}", partial.display())))?;
    eprintln!(
        "control plane: {} built in {} s",
        module.name(),
        since.elapsed().as_secs()
    );
    Ok(folder)
}

/// Makes a folder, or makes it empty.
pub(crate) fn empty_folder(folder: PathBuf) -> Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(Error::io(format!("remove {}", folder.display())))?;
    }
    fs::create_dir_all(&folder).map_err(Error::io(format!("create {}", folder.display())))?;
    Ok(folder)
}

/// Cargo's target folder: the one the running program lies in, else the one that the environment names, else the workspace's.
pub(crate) fn target_folder() -> PathBuf {
    let beside_program = std::env::current_exe().ok().and_then(|program| {
        program
            .ancestors()
            .find(|folder| folder.join("CACHEDIR.TAG").is_file())
            .map(Path::to_path_buf)
    });
    beside_program
        .or_else(|| std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from))
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"))
}

/// Holds a file lock until it is dropped.
pub(crate) fn lock(path: &Path) -> Result<File> {
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

fn command() -> Command {
    let mut command = Command::new("go");
    command.env("CGO_ENABLED", "0").stdin(Stdio::null());
    command
}

fn not_started(what: String) -> impl FnOnce(std::io::Error) -> Error {
    move |source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NoGoToolchain,
        _ => Error::Io { what, source },
    }
}

/// What `go version` says.
pub(crate) fn version() -> Result<String> {
    let output = command()
        .arg("version")
        .output()
        .map_err(not_started("run go version".into()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// FNV-1a, 64 bits: the same on every machine and with every compiler, which is all that a folder name needs.
pub(crate) struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Without these flags the server calls itself v0.0.0-master.
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn programs_are_built_again_when_a_version_of_a_module_changes() {
        let folder = tempfile::tempdir().unwrap();
        let hash = || {
            let mut hash = Hash::default();
            let module = Module::new(folder.path().to_path_buf());
            module.add_to(&mut hash).map(|()| hash.text())
        };
        assert!(hash().unwrap_err().to_string().contains("go.mod"));
        fs::write(folder.path().join("go.mod"), "module a").unwrap();
        fs::write(folder.path().join("go.sum"), "b v1").unwrap();
        let first = hash().unwrap();
        assert_eq!(hash().unwrap(), first);
        fs::write(folder.path().join("go.sum"), "b v2").unwrap();
        assert_ne!(hash().unwrap(), first);
    }
}
