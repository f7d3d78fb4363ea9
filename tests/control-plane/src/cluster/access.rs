//! Ways in: kubeconfig files, clients, tokens, kubectl.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::certs::{self, Authority, CertFiles};
use crate::error::{Error, Result};
use crate::probe;
use crate::writes::{self, AuditPosition, Writes};

use super::Cluster;

/// Longest wait for the service account of a new namespace.
const ACCOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a CustomResourceDefinition to be served.
pub(super) const CRD_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two looks at something that is to appear.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lifetime of a token unless another one is asked for, seconds.
const TOKEN_SECONDS: i64 = 12 * 3600;

/// Who speaks to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Group `system:masters`: everything is allowed.
    Admin,
    /// The user of the built-in role `system:kube-scheduler`.
    KubeScheduler,
    /// The user of the built-in role `system:kube-controller-manager`.
    KubeControllerManager,
    /// The stand-in for kubelets, in `system:masters`.
    Kwok,
    /// Any other user, with the rights that RBAC gives to name and groups.
    User {
        /// The user's name.
        name: String,
        /// The groups besides `system:authenticated`.
        groups: Vec<String>,
    },
}

impl Identity {
    fn file(&self) -> String {
        match self {
            Identity::Admin => "admin".into(),
            Identity::KubeScheduler => "kube-scheduler".into(),
            Identity::KubeControllerManager => "kube-controller-manager".into(),
            Identity::Kwok => "kwok".into(),
            Identity::User { name, groups } => {
                let text = format!("user-{name}-{}", groups.join("-"));
                text.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
            }
        }
    }

    fn user_and_groups(&self) -> (&str, Vec<&str>) {
        match self {
            Identity::Admin => ("admin", vec!["system:masters"]),
            Identity::KubeScheduler => ("system:kube-scheduler", vec![]),
            Identity::KubeControllerManager => ("system:kube-controller-manager", vec![]),
            Identity::Kwok => ("kwok", vec!["system:masters"]),
            Identity::User { name, groups } => (name, groups.iter().map(String::as_str).collect()),
        }
    }
}

/// What a service account token is to be good for.
#[derive(Clone, Debug)]
pub struct TokenOptions {
    /// Audiences; empty means the API server itself.
    pub audiences: Vec<String>,
    /// Lifetime, seconds; at least 600, and at most 24 h here.
    pub expiration_seconds: i64,
    /// A pod to bind the token to. The token then proves the pod's node as well (`authentication.kubernetes.io/node-name`).
    pub pod: Option<String>,
}

impl Default for TokenOptions {
    fn default() -> Self {
        TokenOptions {
            audiences: Vec::new(),
            expiration_seconds: TOKEN_SECONDS,
            pod: None,
        }
    }
}

/// What kubectl printed.
#[derive(Clone, Debug)]
pub struct KubectlOutput {
    /// Whether the exit status was 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cluster {
    /// A client with all rights. Clones share connections.
    pub fn admin(&self) -> Client {
        self.admin.clone()
    }

    /// A new client for an identity, with connections of its own.
    pub async fn client(&self, identity: &Identity) -> Result<Client> {
        client_from(&self.kubeconfig(identity)?).await
    }

    /// A kubeconfig file for an identity; made when it is not there yet.
    pub fn kubeconfig(&self, identity: &Identity) -> Result<PathBuf> {
        let file = kubeconfig_file(self.folder(), identity);
        if !file.is_file() {
            write_kubeconfig(self.folder(), self.authority(), &self.api_url(), identity)?;
        }
        Ok(file)
    }

    /// A token of a service account by TokenRequest, as kubelet projects it into a pod.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        options: &TokenOptions,
    ) -> Result<String> {
        let what = || format!("request a token for service account {namespace}/{name}");
        let bound_object_ref = match &options.pod {
            None => None,
            Some(pod) => {
                let pods: Api<Pod> = Api::namespaced(self.admin(), namespace);
                let uid = pods
                    .get(pod)
                    .await
                    .map_err(Error::api(what()))?
                    .metadata
                    .uid;
                Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.clone()),
                    uid,
                })
            }
        };
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: Some(TokenRequestSpec {
                audiences: Some(options.audiences.clone()),
                expiration_seconds: Some(options.expiration_seconds),
                bound_object_ref,
                ..TokenRequestSpec::default()
            }),
            status: None,
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin(), namespace);
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .map_err(Error::api(what()))?;
        answer
            .status
            .and_then(|status| status.token)
            .ok_or_else(|| Error::Invalid {
                field: what(),
                value: "an answer without status.token".into(),
                limit: "a token".into(),
            })
    }

    /// A kubeconfig file that holds a token of a service account, for a program that runs with its own RBAC and never as admin.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self
            .service_account_token(namespace, name, &TokenOptions::default())
            .await?;
        let file = self
            .folder()
            .join("kubeconfig")
            .join(format!("sa-{namespace}-{name}"));
        let user = json!({ "token": token });
        write_kubeconfig_file(&file, &self.authority().ca(), &self.api_url(), &user)?;
        Ok(file)
    }

    /// Runs kubectl as admin. A failing command is an output with `success` false, not an error.
    pub async fn kubectl(&self, args: &[&str]) -> Result<KubectlOutput> {
        self.kubectl_as(&Identity::Admin, args, "").await
    }

    /// Runs kubectl as an identity, with a text on its standard input.
    pub async fn kubectl_as(
        &self,
        identity: &Identity,
        args: &[&str],
        stdin: &str,
    ) -> Result<KubectlOutput> {
        let what = || format!("run kubectl {}", args.join(" "));
        let mut child = tokio::process::Command::new(&self.binaries().kubectl)
            .arg("--kubeconfig")
            .arg(self.kubeconfig(identity)?)
            .arg("--cache-dir")
            .arg(self.folder().join("kubectl-cache"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(Error::io(what()))?;
        let pipe = child.stdin.take();
        let feed = async {
            if let Some(mut pipe) = pipe {
                // A kubectl that does not read its input closes the pipe; its own message tells more.
                let _ = pipe.write_all(stdin.as_bytes()).await;
            }
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        let output = output.map_err(Error::io(what()))?;
        Ok(KubectlOutput {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Waits until CustomResourceDefinitions are served. `kubectl wait` fails on one that has no
    /// conditions yet.
    pub async fn wait_for_crds(&self, names: &[&str]) -> Result<()> {
        let crds: Api<CustomResourceDefinition> = Api::all(self.admin());
        let since = Instant::now();
        for name in names {
            loop {
                let found = crds
                    .get_opt(name)
                    .await
                    .map_err(Error::api(format!("get CustomResourceDefinition {name}")))?;
                if found.as_ref().is_some_and(is_established) {
                    break;
                }
                if since.elapsed() > CRD_TIMEOUT {
                    let status = found.and_then(|found| found.status);
                    return Err(Error::Timeout {
                        what: format!("CustomResourceDefinition {name} to be established"),
                        waited: CRD_TIMEOUT,
                        detail: format!("its status is {status:?}"),
                    });
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }

    /// Creates a namespace and waits until pods can be created in it (its `default` service account exists).
    pub async fn create_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.admin());
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        match namespaces.create(&PostParams::default(), &namespace).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            other => drop(other.map_err(Error::api(format!("create namespace {name}")))?),
        }
        if self.is_running(&super::Program::KubeControllerManager) {
            self.wait_for_default_account(name, ACCOUNT_TIMEOUT).await
        } else {
            self.create_default_account(name).await
        }
    }

    pub(super) async fn wait_for_default_account(
        &self,
        namespace: &str,
        timeout: Duration,
    ) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin(), namespace);
        let since = Instant::now();
        loop {
            let found = accounts
                .get_opt("default")
                .await
                .map_err(Error::api(format!(
                    "get service account {namespace}/default"
                )))?;
            if found.is_some() {
                return Ok(());
            }
            if since.elapsed() > timeout {
                return Err(Error::Timeout {
                    what: format!(
                        "service account {namespace}/default made by kube-controller-manager"
                    ),
                    waited: timeout,
                    detail: "it does not exist".into(),
                });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Does by hand what kube-controller-manager does for a namespace.
    pub(super) async fn create_default_account(&self, namespace: &str) -> Result<()> {
        let what = || format!("create service account {namespace}/default");
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin(), namespace);
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some("default".into()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        let since = Instant::now();
        loop {
            match accounts.create(&PostParams::default(), &account).await {
                Ok(_) => return Ok(()),
                Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(()),
                // The server makes the namespace `default` a moment after it is ready.
                Err(kube::Error::Api(status))
                    if status.is_not_found() && since.elapsed() < ACCOUNT_TIMEOUT =>
                {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                Err(error) => return Err(Error::api(what())(error)),
            }
        }
    }

    /// A KubeSchedulerConfiguration file of the plain default scheduler, with client limits that don't throttle.
    pub fn default_kube_scheduler_config(&self) -> Result<PathBuf> {
        let file = self.folder().join("default-kube-scheduler.yaml");
        let kubeconfig = self.kubeconfig(&Identity::KubeScheduler)?;
        let text = format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
             leaderElection: {{leaderElect: false}}\n\
             clientConnection: {{kubeconfig: {}, qps: 5000, burst: 10000}}\n",
            kubeconfig.display()
        );
        certs::write(&file, &text)?;
        Ok(file)
    }

    /// The API server's metrics page.
    pub async fn api_server_metrics(&self) -> Result<String> {
        self.get_text("/metrics").await
    }

    /// Write requests since the API server started, by resource, verb and code.
    pub async fn api_writes(&self) -> Result<Writes> {
        Ok(Writes::from_metrics(&self.api_server_metrics().await?))
    }

    /// Waits until nobody has written or listed anything (but for Leases) for the length of `window`: what new nodes set off is over, and
    /// a measurement can begin.
    pub async fn wait_until_quiet(&self, window: Duration, timeout: Duration) -> Result<()> {
        let since = Instant::now();
        let mut before = None;
        loop {
            let now = writes::activity(&self.api_server_metrics().await?);
            if before == Some(now) {
                return Ok(());
            }
            if since.elapsed() > timeout {
                return Err(Error::Timeout {
                    what: format!("an API server without requests for {window:?}"),
                    waited: timeout,
                    detail: format!(
                        "{} requests in the last window",
                        now.saturating_sub(before.unwrap_or(0))
                    ),
                });
            }
            before = Some(now);
            tokio::time::sleep(window).await;
        }
    }

    /// A raw GET as admin, for pages such as `/metrics` and `/version`.
    pub async fn get_text(&self, path: &str) -> Result<String> {
        probe::https_get(&self.admin, path)
            .await
            .map_err(|detail| Error::Timeout {
                what: format!("GET {path}"),
                waited: Duration::ZERO,
                detail,
            })
    }

    /// The present end of the audit log, to count from later.
    pub fn audit_position(&self) -> AuditPosition {
        AuditPosition(
            std::fs::metadata(self.audit_log())
                .map(|meta| meta.len())
                .unwrap_or(0),
        )
    }

    /// Write requests in the audit log from a position on, by client as well.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the cluster was built without [`super::ClusterBuilder::audit`].
    pub fn audit_writes(&self, from: AuditPosition) -> Result<Writes> {
        if !self.audit {
            return Err(Error::Invalid {
                field: "audit".into(),
                value: "false".into(),
                limit: "true, set by ClusterBuilder::audit".into(),
            });
        }
        Writes::from_audit_log(&self.audit_log(), from)
    }

    fn audit_log(&self) -> PathBuf {
        self.folder().join("audit.log")
    }
}

fn is_established(crd: &CustomResourceDefinition) -> bool {
    let conditions = crd
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .flatten();
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Established" && condition.status == "True")
}

pub(super) fn kubeconfig_file(folder: &Path, identity: &Identity) -> PathBuf {
    folder.join("kubeconfig").join(identity.file())
}

/// Where an identity's certificate lies once [`write_kubeconfig`] made it.
pub(super) fn cert_files(folder: &Path, identity: &Identity) -> CertFiles {
    let file = format!("client-{}", identity.file());
    CertFiles {
        cert: folder.join("pki").join(format!("{file}.crt")),
        key: folder.join("pki").join(format!("{file}.key")),
    }
}

pub(super) fn write_kubeconfig(
    folder: &Path,
    authority: &Authority,
    url: &str,
    identity: &Identity,
) -> Result<()> {
    let (user, groups) = identity.user_and_groups();
    let files = authority.client(&format!("client-{}", identity.file()), user, &groups)?;
    let user = json!({ "client-certificate": files.cert, "client-key": files.key });
    write_kubeconfig_file(
        &kubeconfig_file(folder, identity),
        &authority.ca(),
        url,
        &user,
    )
}

fn write_kubeconfig_file(
    file: &Path,
    ca: &Path,
    url: &str,
    user: &serde_json::Value,
) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "local", "cluster": { "server": url, "certificate-authority": ca } }],
        "users": [{ "name": "local", "user": user }],
        "contexts": [{ "name": "local", "context": { "cluster": "local", "user": "local" } }],
        "current-context": "local",
    });
    // JSON is YAML.
    certs::write(file, &format!("{config:#}\n"))
}

pub(super) async fn client_from(file: &Path) -> Result<Client> {
    let invalid = |detail: String| Error::Invalid {
        field: format!("kubeconfig {}", file.display()),
        value: detail,
        limit: "a readable kubeconfig".into(),
    };
    let kubeconfig = Kubeconfig::read_from(file).map_err(|error| invalid(error.to_string()))?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| invalid(error.to_string()))?;
    // Retries are the caller's: a hidden one makes a refused write look slow instead of refused.
    config.default_retry = false;
    let agent = http::HeaderValue::from_static("muster-control-plane");
    config.headers.push((http::header::USER_AGENT, agent));
    Client::try_from(config).map_err(Error::api(format!("make a client from {}", file.display())))
}

/// A client without an identity for a program on loopback whose certificate this authority signed.
pub(super) fn loopback_client(authority: &Authority, port: u16) -> Result<Client> {
    let url = format!("https://127.0.0.1:{port}");
    let uri: http::Uri = url
        .parse()
        .map_err(|error: http::uri::InvalidUri| Error::Invalid {
            field: "url".into(),
            value: url.clone(),
            limit: error.to_string(),
        })?;
    let mut config = Config::new(uri);
    config.root_cert_file = Some(authority.ca());
    config.default_retry = false;
    Client::try_from(config).map_err(Error::api(format!("make a client for {url}")))
}
