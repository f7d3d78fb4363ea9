//! The commands of `deploy/operations.md`, run as they stand there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};
use muster_control_plane::{Cluster, Identity};

use crate::programs;

const GUIDE: &str = include_str!("../../deploy/operations.md");

/// What the guide asks of `curl`, for machines without it: `curl -s http://HOST:PORT/PATH`.
const CURL: &str = r#"#!/usr/bin/env bash
set -euo pipefail
url=${2#http://}
host=${url%%/*}
exec 3<>"/dev/tcp/${host%:*}/${host#*:}"
printf 'GET /%s HTTP/1.0\r\nHost: %s\r\n\r\n' "${url#*/}" "$host" >&3
read -r _ status _ <&3
[ "$status" = 200 ]
while IFS= read -r line <&3 && [ "$line" != $'\r' ]; do :; done
cat <&3
"#;

/// The commands of a section, in order.
///
/// # Errors
/// There is no such section, or it has no command.
pub fn commands(section: &str) -> anyhow::Result<Vec<&'static str>> {
    let title = format!("## {section}");
    let mut lines = GUIDE.lines().skip_while(|line| *line != title);
    lines
        .next()
        .with_context(|| format!("no section {title}"))?;
    let own = lines.take_while(|line| !line.starts_with("## "));
    let found: Vec<&str> = own.filter_map(|line| line.strip_prefix("$ ")).collect();
    anyhow::ensure!(!found.is_empty(), "no command in {title}");
    Ok(found)
}

/// What a command that stands inside of a sentence has after its dots: `COMMAND ... these`.
///
/// # Errors
/// There is no such command.
pub fn flags(command: &str) -> anyhow::Result<Vec<&'static str>> {
    let start = format!("`{command} ... ");
    let (_, rest) = GUIDE.split_once(&start).with_context(|| start.clone())?;
    let (flags, _) = rest.split_once('`').with_context(|| start.clone())?;
    Ok(flags.split_whitespace().collect())
}

/// Sections with commands.
pub fn sections() -> Vec<&'static str> {
    let titles = GUIDE.lines().filter_map(|line| line.strip_prefix("## "));
    titles.filter(|title| commands(title).is_ok()).collect()
}

/// Runs commands as an operator would.
pub struct Operator {
    folder: PathBuf,
    kubeconfig: PathBuf,
    /// Where Muster serves its pages.
    http: String,
}

impl Operator {
    /// An operator of this cluster, beside a Muster that serves its pages at `http`.
    pub fn new(cluster: &Cluster, http: &str) -> anyhow::Result<Self> {
        let folder = cluster.folder().join("operator");
        std::fs::create_dir_all(&folder)?;
        let programs = [
            ("kubectl", cluster.binaries().kubectl.clone()),
            ("muster-scheduler", programs::scheduler()?),
        ];
        for (name, path) in programs {
            let link = folder.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(path, link)?;
            }
        }
        let curl = folder.join("curl");
        std::fs::write(&curl, CURL)?;
        std::fs::set_permissions(&curl, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            folder,
            kubeconfig: cluster.kubeconfig(&Identity::Admin)?,
            http: http.to_owned(),
        })
    }

    /// Runs a command of the guide; its standard output.
    ///
    /// # Errors
    /// It cannot be run, or fails.
    pub async fn run(&self, command: &str) -> anyhow::Result<String> {
        let here = command.replace("127.0.0.1:8080", &self.http);
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("bash");
        shell
            .args(["-euo", "pipefail", "-c", &here])
            .current_dir(&self.folder)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("PATH", format!("{}:{path}", self.folder.display()));
        let output = tokio::task::spawn_blocking(move || shell.output()).await??;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "{command}: {out}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        eprintln!("$ {command}\n{out}");
        Ok(out)
    }
}
