//! The command lines of the programs. Reasons stand beside the flags that surprise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::process::ProgramSpec;

use super::{Program, log_file};

/// Everything the command lines are made of.
pub(super) struct Layout<'a> {
    pub(super) folder: &'a Path,
    pub(super) feature_gates: &'a str,
    pub(super) etcd_port: u16,
    pub(super) etcd_peer_port: u16,
    pub(super) api_port: u16,
}

impl Layout<'_> {
    fn pki(&self, file: &str) -> String {
        self.folder.join("pki").join(file).display().to_string()
    }

    fn kubeconfig(&self, name: &str) -> String {
        self.folder
            .join("kubeconfig")
            .join(name)
            .display()
            .to_string()
    }

    pub(super) fn spec(&self, program: &Program, path: &Path, args: Vec<String>) -> ProgramSpec {
        ProgramSpec {
            path: path.to_path_buf(),
            args,
            env: BTreeMap::new(),
            log: log_file(self.folder, program),
        }
    }

    fn gates(&self, args: &mut Vec<String>) {
        if !self.feature_gates.is_empty() {
            args.push(format!("--feature-gates={}", self.feature_gates));
        }
    }

    /// Where etcd serves its clients.
    pub(super) fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port)
    }

    /// Where etcd keeps its data.
    pub(super) fn etcd_data(&self) -> PathBuf {
        self.folder.join("etcd")
    }

    /// What etcd and a restore of its data have to agree about: who the one member is.
    pub(super) fn etcd_member(&self) -> [String; 2] {
        let peer = format!("http://127.0.0.1:{}", self.etcd_peer_port);
        [
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
        ]
    }

    pub(super) fn etcd(&self) -> Vec<String> {
        let client = self.etcd_url();
        let [advertised, members] = self.etcd_member();
        vec![
            format!("--data-dir={}", self.etcd_data().display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!(
                "--listen-peer-urls=http://127.0.0.1:{}",
                self.etcd_peer_port
            ),
            advertised,
            members,
            // The data goes with the cluster; waiting for a disk would measure the disk.
            "--unsafe-no-fsync".into(),
            "--quota-backend-bytes=8589934592".into(),
            "--logger=zap".into(),
            "--log-level=warn".into(),
        ]
    }

    pub(super) fn kube_apiserver(
        &self,
        audit: bool,
        runtime_config: &[String],
        extra: &[String],
    ) -> Vec<String> {
        let mut args = vec![
            format!("--etcd-servers={}", self.etcd_url()),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            // With the usual reconcilers: "cannot use public IP 127.0.0.1 with endpoint reconciler".
            "--endpoint-reconciler-type=none".into(),
            format!("--secure-port={}", self.api_port),
            format!("--tls-cert-file={}", self.pki("kube-apiserver.crt")),
            format!("--tls-private-key-file={}", self.pki("kube-apiserver.key")),
            format!("--client-ca-file={}", self.pki("ca.crt")),
            format!(
                "--service-account-key-file={}",
                self.pki("service-account.pub")
            ),
            format!(
                "--service-account-signing-key-file={}",
                self.pki("service-account.key")
            ),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--service-account-max-token-expiration=24h".into(),
            "--service-account-extend-token-expiration=false".into(),
            "--authorization-mode=RBAC".into(),
            "--allow-privileged=true".into(),
            "--service-cluster-ip-range=10.96.0.0/12".into(),
            "--max-requests-inflight=2000".into(),
            "--max-mutating-requests-inflight=1000".into(),
        ];
        if audit {
            args.extend([
                format!(
                    "--audit-policy-file={}",
                    self.folder.join("audit-policy.yaml").display()
                ),
                format!(
                    "--audit-log-path={}",
                    self.folder.join("audit.log").display()
                ),
                // Blocking: each write is in the file before it is answered, so a count never misses one.
                "--audit-log-mode=blocking".into(),
                "--audit-log-maxsize=8192".into(),
            ]);
        }
        if !runtime_config.is_empty() {
            args.push(format!("--runtime-config={}", runtime_config.join(",")));
        }
        self.gates(&mut args);
        args.extend_from_slice(extra);
        args
    }

    pub(super) fn kube_controller_manager(&self, port: u16, extra: &[String]) -> Vec<String> {
        let kubeconfig = self.kubeconfig("kube-controller-manager");
        let mut args = vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            format!("--secure-port={port}"),
            "--bind-address=127.0.0.1".into(),
            format!("--tls-cert-file={}", self.pki("loopback.crt")),
            format!("--tls-private-key-file={}", self.pki("loopback.key")),
            format!("--root-ca-file={}", self.pki("ca.crt")),
            format!(
                "--service-account-private-key-file={}",
                self.pki("service-account.key")
            ),
            "--use-service-account-credentials=true".into(),
            "--leader-elect=false".into(),
            // Nodes without a kubelet send no heartbeats.
            "--node-monitor-grace-period=24h".into(),
            "--kube-api-qps=1000".into(),
            "--kube-api-burst=2000".into(),
            ALWAYS_ALLOW.into(),
        ];
        self.gates(&mut args);
        args.extend_from_slice(extra);
        args
    }

    pub(super) fn kwok(&self, port: u16) -> Vec<String> {
        vec![
            format!("--kubeconfig={}", self.kubeconfig("kwok")),
            format!("--config={}", self.folder.join("kwok.yaml").display()),
            format!("--server-address=127.0.0.1:{port}"),
        ]
    }
}

/// Health and metrics without a token, so that a probe and a bench can read them.
const ALWAYS_ALLOW: &str = "--authorization-always-allow-paths=/healthz,/readyz,/livez,/metrics";

/// kube-scheduler's command line around a configuration file; serving settings exist as flags only.
pub(super) fn kube_scheduler(
    folder: &Path,
    config: &Path,
    port: u16,
    feature_gates: &str,
) -> Vec<String> {
    let pki = |file: &str| -> PathBuf { folder.join("pki").join(file) };
    let kubeconfig = folder.join("kubeconfig").join("kube-scheduler");
    let mut args = vec![
        format!("--config={}", config.display()),
        format!("--authentication-kubeconfig={}", kubeconfig.display()),
        format!("--authorization-kubeconfig={}", kubeconfig.display()),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".into(),
        format!("--tls-cert-file={}", pki("loopback.crt").display()),
        format!("--tls-private-key-file={}", pki("loopback.key").display()),
        ALWAYS_ALLOW.into(),
    ];
    if !feature_gates.is_empty() {
        args.push(format!("--feature-gates={feature_gates}"));
    }
    args
}
