//! The real training operator (v1 PyTorchJobs) without a kubelet.
//!
//! ```text
//!   Secret training-operator-webhook-cert   empty at first; the operator fills it with certificates of its own
//!   TMPDIR/k8s-webhook-server/serving-certs a stand-in certificate, so that the webhook server can start, then the secret's
//!   Service training-operator (ExternalName localhost) <- ValidatingWebhookConfiguration <- API server
//! ```
//! One detail is shared between all clusters of a machine: the operator's certificate rotator looks for a file at a constant path
//! under /tmp before it starts (it only asks whether the file is there). An empty placeholder is left in that place.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;

use crate::cluster::{Cluster, Program};
use crate::error::{Error, Result};
use crate::ports::free_port;
use crate::probe::Probe;

/// The operator's namespace.
const NAMESPACE: &str = "kubeflow";
/// Name of its service, its service account and its role.
const NAME: &str = "training-operator";
/// The secret with the webhook's certificates.
const SECRET: &str = "training-operator-webhook-cert";
/// Where the operator's rotator looks, whatever TMPDIR is.
const ROTATOR_FOLDER: &str = "/tmp/k8s-webhook-server/serving-certs";
/// Longest wait until the API server reaches the webhook.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause between two tries to reach it.
const WEBHOOK_EVERY: Duration = Duration::from_millis(200);

/// How the operator runs.
#[derive(Clone, Debug)]
pub struct TrainingOperatorOptions {
    /// `--gang-scheduler-name`: makes a scheduling.x-k8s.io PodGroup for each job and sets schedulerName on pods without one.
    pub gang_scheduler_name: Option<String>,
    /// Client requests per second; the operator's own default of 20 makes about 10 pods per second.
    pub qps: u32,
    /// Client burst; the operator's own default is 30.
    pub burst: u32,
    /// Worker threads; the operator's own default is 1.
    pub threads: u32,
}

impl Default for TrainingOperatorOptions {
    fn default() -> Self {
        TrainingOperatorOptions {
            gang_scheduler_name: None,
            qps: 20,
            burst: 30,
            threads: 1,
        }
    }
}

impl Cluster {
    /// Installs the CRDs of PyTorchJob and PodGroup, and starts the training operator under its own service account and role.
    /// Returns when the API server reaches its webhook.
    pub async fn start_training_operator(&self, options: &TrainingOperatorOptions) -> Result<()> {
        self.install_job_crds().await?;
        self.create_namespace(NAMESPACE).await?;
        let folder = self.folder().join(NAME);
        let serving = folder.join("k8s-webhook-server").join("serving-certs");
        self.write_stand_in_certificate(&serving)?;
        let (webhook_port, health_port) = (free_port()?, free_port()?);
        self.apply_yaml(&objects(webhook_port)).await?;
        self.apply_file(&self.binaries().training_operator_role())
            .await?;
        let kubeconfig = self.service_account_kubeconfig(NAMESPACE, NAME).await?;
        let mut args = vec![
            "--enable-scheme=pytorchjob".to_owned(),
            "--metrics-bind-address=0".to_owned(),
            format!("--health-probe-bind-address=127.0.0.1:{health_port}"),
            format!("--webhook-server-port={webhook_port}"),
            format!("--kube-api-qps={}", options.qps),
            format!("--kube-api-burst={}", options.burst),
            format!("--controller-threads={}", options.threads),
        ];
        if let Some(name) = &options.gang_scheduler_name {
            args.push(format!("--gang-scheduler-name={name}"));
        }
        let program = Program::TrainingOperator;
        let probe = Probe::Http {
            port: health_port,
            path: "/readyz",
        };
        self.insert(&program, &self.binaries().training_operator, args, probe)?;
        self.set_env(&program, "KUBECONFIG", &kubeconfig.display().to_string())?;
        self.set_env(&program, "TMPDIR", &folder.display().to_string())?;
        self.set_env(&program, "MY_POD_NAMESPACE", NAMESPACE)?;
        self.start(&program).await?;
        self.mount_secret(&serving).await?;
        self.wait_for_webhook().await
    }

    /// Installs the CRDs of PyTorchJob and PodGroup alone, for a cluster without the operator.
    pub async fn install_job_crds(&self) -> Result<()> {
        self.apply_file(&self.binaries().pytorchjobs_crd()).await?;
        self.apply_file(&self.binaries().pod_groups_crd()).await?;
        self.wait_for_crds(&["pytorchjobs.kubeflow.org", "podgroups.scheduling.x-k8s.io"])
            .await
    }

    /// The operator's webhook server ends the whole program when it finds no certificate at its start. That can't be made to wait for
    /// the secret, so it starts with a certificate nobody trusts.
    fn write_stand_in_certificate(&self, serving: &Path) -> Result<()> {
        let create = |folder: &Path| {
            std::fs::create_dir_all(folder)
                .map_err(Error::io(format!("create {}", folder.display())))
        };
        create(serving)?;
        let files = self
            .authority()
            .server("training-operator-stand-in", &["localhost"])?;
        for (from, to) in [(&files.key, "tls.key"), (&files.cert, "tls.crt")] {
            let to = serving.join(to);
            std::fs::copy(from, &to).map_err(Error::io(format!("write {}", to.display())))?;
        }
        let rotator = Path::new(ROTATOR_FOLDER);
        create(rotator)?;
        let placeholder = rotator.join("tls.crt");
        if !placeholder.exists() {
            std::fs::write(&placeholder, "")
                .map_err(Error::io(format!("write {}", placeholder.display())))?;
        }
        Ok(())
    }

    /// Does what kubelet does with a Secret volume, once the operator has filled the secret.
    async fn mount_secret(&self, serving: &Path) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.admin(), NAMESPACE);
        let since = Instant::now();
        loop {
            let secret = secrets
                .get(SECRET)
                .await
                .map_err(Error::api(format!("get secret {SECRET}")))?;
            let data = secret.data.unwrap_or_default();
            if let (Some(key), Some(cert)) = (data.get("tls.key"), data.get("tls.crt")) {
                for (name, bytes) in [("tls.key", key), ("tls.crt", cert)] {
                    let path = serving.join(name);
                    std::fs::write(&path, &bytes.0)
                        .map_err(Error::io(format!("write {}", path.display())))?;
                }
                return Ok(());
            }
            self.check_running(&Program::TrainingOperator)?;
            if since.elapsed() > WEBHOOK_TIMEOUT {
                return Err(Error::Timeout {
                    what: "certificates of the training operator".into(),
                    waited: WEBHOOK_TIMEOUT,
                    detail: format!("secret {NAMESPACE}/{SECRET} has no tls.crt"),
                });
            }
            tokio::time::sleep(WEBHOOK_EVERY).await;
        }
    }

    /// Sends a job that the webhook must refuse, until it does.
    async fn wait_for_webhook(&self) -> Result<()> {
        let kind = GroupVersionKind::gvk("kubeflow.org", "v1", "PyTorchJob");
        let kind = ApiResource::from_gvk_with_plural(&kind, "pytorchjobs");
        let jobs: Api<DynamicObject> = Api::default_namespaced_with(self.admin(), &kind);
        let job = json!({
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": { "name": "webhook-probe", "namespace": "default" },
            "spec": { "pytorchReplicaSpecs": { "Nobody": { "template": { "spec": { "containers": [
                { "name": "pytorch", "image": "none" }
            ] } } } } },
        });
        let job: DynamicObject = serde_json::from_value(job)
            .map_err(|error| Error::api("probe the webhook")(kube::Error::SerdeError(error)))?;
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let since = Instant::now();
        loop {
            let said = match jobs.create(&dry_run, &job).await {
                Ok(_) => "it takes a job that it must refuse".to_owned(),
                Err(error) => error.to_string(),
            };
            if said.contains("validator.pytorchjob") && said.contains("denied the request") {
                return Ok(());
            }
            self.check_running(&Program::TrainingOperator)?;
            if since.elapsed() > WEBHOOK_TIMEOUT {
                return Err(Error::Timeout {
                    what: "an answer of the training operator's webhook".into(),
                    waited: WEBHOOK_TIMEOUT,
                    detail: said,
                });
            }
            tokio::time::sleep(WEBHOOK_EVERY).await;
        }
    }
}

/// Everything the operator finds in the cluster, as one list.
fn objects(webhook_port: u16) -> String {
    let meta = json!({ "name": NAME, "namespace": NAMESPACE });
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta },
        { "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": NAME },
          "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME },
          "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE }] },
        { "apiVersion": "v1", "kind": "Secret", "metadata": { "name": SECRET, "namespace": NAMESPACE } },
        { "apiVersion": "v1", "kind": "Service", "metadata": meta,
          "spec": { "type": "ExternalName", "externalName": "localhost" } },
        { "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
          "metadata": { "name": "validator.training-operator.kubeflow.org" },
          "webhooks": [{
            "name": "validator.pytorchjob.training-operator.kubeflow.org",
            "admissionReviewVersions": ["v1"], "failurePolicy": "Fail", "sideEffects": "None",
            "clientConfig": { "service": { "name": NAME, "namespace": NAMESPACE, "port": webhook_port,
                                           "path": "/validate-kubeflow-org-v1-pytorchjob" } },
            "rules": [{ "apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                        "resources": ["pytorchjobs"] }] }] },
    ]});
    list.to_string()
}
