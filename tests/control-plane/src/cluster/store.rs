//! Backup and restore of etcd, by its own tools.

use std::path::Path;
use std::process::Stdio;

use crate::error::{Error, Result};

use super::{Cluster, Program};

impl Cluster {
    /// Has `etcdctl snapshot save` write what etcd holds to a file, while etcd runs.
    ///
    /// # Errors
    /// There is no `etcdctl`, or it fails.
    pub async fn save_snapshot(&self, file: &Path) -> Result<()> {
        let args = [
            format!("--endpoints={}", self.layout().etcd_url()),
            "snapshot".into(),
            "save".into(),
            file.display().to_string(),
        ];
        run(&self.binaries.etcdctl()?, &args).await
    }

    /// Has `etcdutl snapshot restore`, with these flags more, make etcd's data anew of such a file. The API server and etcd are down
    /// afterwards: start etcd first.
    ///
    /// # Errors
    /// There is no `etcdutl`, or it fails.
    pub async fn restore_snapshot(&self, file: &Path, flags: &[&str]) -> Result<()> {
        let etcdutl = self.binaries.etcdutl()?;
        self.kill(&Program::KubeApiserver)?;
        self.kill(&Program::Etcd)?;
        let layout = self.layout();
        let data = layout.etcd_data();
        std::fs::remove_dir_all(&data).map_err(Error::io(format!("remove {}", data.display())))?;
        let mut args = vec![
            "snapshot".into(),
            "restore".into(),
            file.display().to_string(),
            format!("--data-dir={}", data.display()),
            "--name=default".into(),
        ];
        args.extend(layout.etcd_member());
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        run(&etcdutl, &args).await
    }
}

/// Runs a program until it has ended well.
async fn run(program: &Path, args: &[String]) -> Result<()> {
    let command = format!("{} {}", program.display(), args.join(" "));
    let output = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(Error::io(format!("run {command}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command,
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
