//! Muster on the real control plane: its objects installed from what `print` prints, the scheduler
//! under its own ServiceAccount, mTLS to an unmodified kube-scheduler, and a fleet of fake agents.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures::future::LocalBoxFuture;
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use muster_control_plane::history::{GangRule, History, Minimum, PodState, Recorder, World};
use muster_control_plane::{Cluster, NodeTemplate, Program, TrainingOperatorOptions};
use muster_kubernetes::{manifests, names};
use serde_json::json;

use crate::fleet::Fleet;
use crate::jobs::{Job, Role};
use crate::pods::By;
use crate::programs;

/// Longest a gang may be bound in part: the 30 s of Muster's `repairMax`, and 2 s for what lies between
/// the writes that the judge sees and those of Muster: the watch that brings it a loss, and the
/// deletions that release a gang. The longest seen on the real control plane was 19 s, where Muster
/// was killed between two Bindings.
pub const PARTIAL_MAX: Duration = Duration::from_secs(32);

/// A loaded machine may stand still for longer than a leader of production may.
const LEASE: &str = "lease: {duration: 60s, renewDeadline: 45s, retryPeriod: 2s}\n";

/// How the stack is put together.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// Pools of nodes.
    pub pools: Vec<NodeTemplate>,
    /// Install the admission policies that hold jobs and gate pods.
    pub policies: bool,
    /// Run training-operator, and how.
    pub operator: Option<TrainingOperatorOptions>,
    /// Run fake agents for the GPU pools; otherwise the configuration says `nodesWithoutAgent: useAllocatable`.
    pub agents: bool,
    /// Further lines of Muster's configuration.
    pub config: String,
    /// `httpTimeout` of kube-scheduler for bind.
    pub bind_timeout: Duration,
    /// Scenario file for the fleet.
    pub scenario: Option<PathBuf>,
    /// Is told what is being done next.
    pub progress: fn(&str),
}

impl Default for StackOptions {
    fn default() -> Self {
        Self {
            pools: vec![
                NodeTemplate::gpu_pool("gpu", 4),
                NodeTemplate::cpu_pool("cpu", 1),
            ],
            policies: true,
            operator: Some(TrainingOperatorOptions::default()),
            agents: true,
            config: String::new(),
            bind_timeout: Duration::from_secs(300),
            scenario: None,
            progress: |_| {},
        }
    }
}

/// The running stack.
pub struct Stack {
    /// The control plane.
    pub cluster: Cluster,
    /// Records what the API server says.
    pub recorder: Recorder,
    /// Where Muster serves metrics.
    pub http: String,
    /// Where Muster takes the agents' streams.
    pub agents: String,
    options: StackOptions,
}

/// Muster's process.
pub fn muster() -> Program {
    Program::Other("muster-scheduler".into())
}

/// The fleet's process.
pub fn fleet() -> Program {
    Program::Other("muster-fleet".into())
}

pub(crate) fn free_address() -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
    Ok(listener.local_addr().context("its address")?.to_string())
}

impl Stack {
    /// Starts everything and waits until Muster leads and is ready.
    ///
    /// Boxed, so that it is compiled here and not once more with each test program.
    pub fn start(options: StackOptions) -> LocalBoxFuture<'static, anyhow::Result<Self>> {
        Box::pin(Self::bring_up(options))
    }

    async fn bring_up(options: StackOptions) -> anyhow::Result<Self> {
        let say = options.progress;
        say("starting etcd, kube-apiserver, kube-controller-manager, KWOK and the nodes");
        let mut builder = Cluster::builder();
        for pool in &options.pools {
            builder = builder.nodes(pool.clone());
        }
        let cluster = builder.start().await?;
        say("installing CRDs, RBAC and admission policies");
        cluster.install_job_crds().await?;
        install(&cluster, options.policies).await?;
        know_kinds(&cluster).await?;
        let recorder = record(&cluster).await?;
        let (http, agents) = start_muster(&cluster, &options).await?;
        let stack = Self {
            cluster,
            recorder,
            http,
            agents,
            options,
        };
        let fleet = Fleet {
            scenario: stack.options.scenario.clone(),
            ..Fleet::of(&stack.options.pools)
        };
        if stack.options.agents && !fleet.nodes.is_empty() {
            say("starting a fake agent for each GPU node");
            stack.start_fleet(&fleet).await?;
        }
        stack.wait_ready(Duration::from_secs(60)).await?;
        if stack.options.policies {
            say("waiting for the admission policies to act");
            stack.wait_policies(Duration::from_secs(60)).await?;
        }
        if let Some(operator) = &stack.options.operator {
            say("starting training-operator");
            stack.cluster.start_training_operator(operator).await?;
        }
        Ok(stack)
    }

    /// Waits until `/readyz` answers well.
    pub async fn wait_ready(&self, timeout: Duration) -> anyhow::Result<()> {
        let address = self.http.clone();
        self.wait_until(timeout, "Muster to be ready", async || {
            http_ok(&address, "/readyz").await
        })
        .await
    }

    /// A policy takes a few seconds to act after it was created, and refuses jobs with 503 until it
    /// knows their kind: waits until a pod of ours is gated and a job of ours is held.
    async fn wait_policies(&self, timeout: Duration) -> anyhow::Result<()> {
        let job = Job::new("policy-probe", vec![Role::new("Master", 1, 1)]).yaml();
        let job: DynamicObject = serde_saphyr::from_str(&job)?;
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        self.wait_until(timeout, "the admission policy to hold jobs", async || {
            let made = self.jobs().create(&dry_run, &job).await;
            made.is_ok_and(|made| {
                made.data.pointer("/spec/runPolicy/suspend") == Some(&json!(true))
            })
        })
        .await?;
        let pod = serde_json::from_value(json!({
            "metadata": {
                "name": "policy-probe",
                "labels": { names::GANG_LABEL: "probe" },
                "annotations": { names::GANG_SIZE: "2" },
            },
            "spec": { "schedulerName": "muster", "containers": [{ "name": "a", "image": "a" }] },
        }))?;
        self.wait_until(timeout, "the admission policies to act", async || {
            let made = self.pods().create(&dry_run, &pod).await;
            let gates = made.map(|pod| pod.spec.and_then(|spec| spec.scheduling_gates));
            let mut gates = gates.unwrap_or_default().into_iter().flatten();
            gates.any(|gate| gate.name == names::GATE)
        })
        .await
    }

    /// Waits until Muster's log has a line that is as wanted.
    pub async fn wait_log(
        &self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<()> {
        let path = self.cluster.log(&muster());
        self.wait_until(timeout, what, async || {
            std::fs::read_to_string(&path).is_ok_and(|text| text.lines().any(&wanted))
        })
        .await
    }

    /// Polls until `condition` holds.
    pub async fn wait_until(
        &self,
        timeout: Duration,
        what: &str,
        condition: impl AsyncFn() -> bool,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + timeout;
        while !condition().await {
            if Instant::now() > end {
                bail!(
                    "waited {timeout:?} for {what}; Muster's last lines:\n{}",
                    self.log_tail(30)
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Waits until the recorded world is as wanted; says how gangs and pods are when it is not.
    pub async fn wait_world(
        &self,
        timeout: Duration,
        what: &str,
        wanted: impl Fn(&World) -> bool,
    ) -> anyhow::Result<()> {
        let end = Instant::now() + timeout;
        while !self.recorder.look(&wanted) {
            if Instant::now() > end {
                bail!("waited {timeout:?} for {what}\n{}", self.picture().await);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Submits a job.
    pub async fn submit(&self, job: &Job) -> anyhow::Result<()> {
        self.cluster.apply_yaml(&job.yaml()).await?;
        Ok(())
    }

    /// Waits until every pod of a job is bound.
    pub async fn wait_bound(
        &self,
        job: &str,
        pods: usize,
        timeout: Duration,
    ) -> anyhow::Result<()> {
        self.wait_world(timeout, &format!("{pods} bound pods of {job}"), |world| {
            world.bound_of(job) == pods
        })
        .await
    }

    /// What a Gang's status says of the gang: phase, reason of the condition, message.
    pub async fn gang(&self, namespace: &str, name: &str) -> anyhow::Result<Option<GangSays>> {
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("muster.dev", "v1alpha1", "Gang"),
            "gangs",
        );
        let api: Api<DynamicObject> = Api::namespaced_with(self.cluster.admin(), namespace, &kind);
        let Some(gang) = api.get_opt(name).await? else {
            return Ok(None);
        };
        let status = gang.data.get("status").cloned().unwrap_or_default();
        let text = |value: Option<&serde_json::Value>| {
            value
                .and_then(|value| value.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        Ok(Some(GangSays {
            phase: text(status.get("phase")),
            reason: text(status.get("reason")),
            message: text(status.get("message")),
            status,
        }))
    }

    /// Waits until a Gang says what is wanted.
    pub async fn wait_gang(
        &self,
        namespace: &str,
        name: &str,
        timeout: Duration,
        wanted: impl Fn(&GangSays) -> bool,
    ) -> anyhow::Result<GangSays> {
        let end = Instant::now() + timeout;
        loop {
            let says = self.gang(namespace, name).await?;
            match says {
                Some(says) if wanted(&says) => return Ok(says),
                other if Instant::now() > end => {
                    bail!(
                        "waited {timeout:?} for gang {name}; it says {other:?}\n{}",
                        self.picture().await
                    )
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// The answer of a page that Muster serves, with its head.
    pub async fn page(&self, path: &str) -> anyhow::Result<String> {
        Ok(http_get(&self.http, path).await?)
    }

    /// Sum of all series of a counter that Muster serves.
    pub async fn counted(&self, name: &str) -> anyhow::Result<f64> {
        let text = http_get(&self.http, "/metrics").await?;
        let series = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            (labels.is_empty() || labels.starts_with('{')).then_some(value)
        });
        let values: Vec<f64> = series.map(str::parse).collect::<Result<_, _>>()?;
        anyhow::ensure!(!values.is_empty(), "Muster serves no {name}");
        Ok(values.iter().sum())
    }

    /// The last lines of Muster's log.
    fn log_tail(&self, lines: usize) -> String {
        let log = std::fs::read_to_string(self.cluster.log(&muster())).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(lines).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        tail.join("\n")
    }

    /// Jobs, gangs, pods and Muster's log, for the error of a wait that was in vain.
    async fn picture(&self) -> String {
        let show = ["get", "pytorchjobs,gangs,pods", "-A", "-o", "wide"];
        let objects = match self.cluster.kubectl(&show).await {
            Ok(found) => found.stdout,
            Err(error) => error.to_string(),
        };
        format!("{objects}\nMuster's last lines:\n{}", self.log_tail(60))
    }

    /// Runs one step of a scenario: its name goes to standard error with the time it took, and into
    /// its error.
    pub async fn step<T>(
        &self,
        name: &str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let since = Instant::now();
        eprintln!("step: {name}");
        let result = work.await.with_context(|| format!("step: {name}"));
        let end = if result.is_ok() { "done" } else { "FAILED" };
        if result.is_err() {
            self.cluster.keep_logs();
        }
        eprintln!("step: {name}: {end} after {:.1?}", since.elapsed());
        result
    }

    /// Gives Muster's next process another Lease: `lease: {...}` as a line.
    pub fn set_lease(&self, lease: &str) -> anyhow::Result<()> {
        let file = self.cluster.folder().join("muster").join("config.yaml");
        let config = std::fs::read_to_string(&file)?;
        anyhow::ensure!(config.contains(LEASE), "no {LEASE} in {}", file.display());
        std::fs::write(&file, config.replace(LEASE, lease))?;
        Ok(())
    }

    /// Starts Muster after it was killed. Nobody holds the Lease then, as if an administrator did not want to wait until it
    /// expires. (Where it is deleted the next leader begins frozen, and looks for half a minute whether the cluster was restored.)
    pub async fn start_muster_again(&self) -> anyhow::Result<()> {
        let lease = ["-n", "muster-system", "patch", "lease", "muster-scheduler"];
        let unheld = [
            "--type=merge",
            "-p",
            r#"{"spec": {"holderIdentity": null}}"#,
        ];
        self.kubectl(&[&lease[..], &unheld[..]].concat()).await?;
        self.cluster.start(&muster()).await?;
        Ok(())
    }

    /// Judges what has happened: all of it was seen, nothing over-committed, no gang in part past the
    /// deadline.
    pub async fn judge(&self) -> anyhow::Result<History> {
        let history = self.recorder.caught_up(Duration::from_secs(30)).await?;
        if let Some(gaps) = history.unseen() {
            bail!(gaps);
        }
        let over = history.over_commitments();
        if let Some(first) = over.first() {
            bail!("{} over-commitments, the first: {first}", over.len());
        }
        let mut longest = Duration::ZERO;
        for rule in gang_rules(PARTIAL_MAX) {
            let rule = rule.outages(self.cluster.outages());
            let partial = history.partial_gangs(&rule);
            if let Some(first) = partial.first() {
                bail!("{} partial gangs, the first: {first}", partial.len());
            }
            let gangs = history.gangs(&rule);
            longest = longest.max(
                gangs
                    .iter()
                    .map(|gang| gang.partial_longest)
                    .max()
                    .unwrap_or_default(),
            );
        }
        eprintln!("judge: no gang was bound in part for longer than {longest:.1?}");
        Ok(history)
    }
}

/// Who belongs together, in the order in which Muster asks: a PyTorchJob's pods, then pods of one
/// label whatever makes them, then pods of one PodGroup.
pub(crate) fn gang_rules(partial_max: Duration) -> [GangRule; 3] {
    let of_job = |pod: &PodState| match &pod.controller {
        Some((kind, _, uid)) if kind == "PyTorchJob" => Some(uid.clone()),
        _ => None,
    };
    let of_label = |pod: &PodState, by: By| {
        let value = pod.labels.get(by.label())?;
        Some(format!("{}/{value}", pod.namespace))
    };
    [
        GangRule::new(partial_max).group_by(of_job),
        GangRule::new(partial_max)
            .group_by(move |pod| match of_job(pod) {
                Some(_) => None,
                None => of_label(pod, By::Label),
            })
            .minimum(Minimum::Stated(names::GANG_SIZE.into())),
        GangRule::new(partial_max).group_by(move |pod| {
            match of_job(pod).or_else(|| of_label(pod, By::Label)) {
                Some(_) => None,
                None => of_label(pod, By::PodGroup),
            }
        }),
    ]
}

/// What a Gang's status says.
#[derive(Clone, Debug)]
pub struct GangSays {
    /// `status.phase`.
    pub phase: String,
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// The whole status.
    pub status: serde_json::Value,
}

/// Starts the recorder; the API server answers 429 for a moment after a CRD has come.
pub(crate) async fn record(cluster: &Cluster) -> anyhow::Result<Recorder> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match Recorder::start(cluster.admin()).await {
            Ok(recorder) => return Ok(recorder),
            Err(error) if Instant::now() > end => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
}

/// Installs Muster's objects: exactly what `muster-scheduler print` prints.
pub(crate) async fn install(cluster: &Cluster, policies: bool) -> anyhow::Result<()> {
    cluster.apply_yaml(&manifests::crds()).await?;
    cluster.wait_for_crds(&["gangs.muster.dev"]).await?;
    cluster.apply_yaml(&manifests::rbac()).await?;
    cluster.apply_yaml(&manifests::account_policy()).await?;
    if policies {
        cluster.apply_yaml(&manifests::admission_policy()).await?;
    }
    Ok(())
}

/// The garbage collector learns of new kinds every 30 s only, and until then takes away nothing that
/// belongs to a job or Gang. One that starts after the CRDs knows them from the start.
pub(crate) async fn know_kinds(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kill(&Program::KubeControllerManager)?;
    cluster.start(&Program::KubeControllerManager).await?;
    Ok(())
}

/// Certificates of a Muster and its kube-scheduler, in two folders below `folder`: what Muster serves with,
/// and what kube-scheduler shows to it.
pub(crate) fn certificates(cluster: &Cluster, folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let tls = folder.join("tls");
    let client_tls = folder.join("client-tls");
    for dir in [&tls, &client_tls] {
        std::fs::create_dir_all(dir)?;
    }
    let server = cluster
        .authority()
        .server("muster-scheduler", &["localhost", "127.0.0.1"])?;
    std::fs::copy(&server.cert, tls.join("tls.crt"))?;
    std::fs::copy(&server.key, tls.join("tls.key"))?;
    let client = cluster
        .authority()
        .client("extender-client", "muster-kube-scheduler", &[])?;
    std::fs::copy(&client.cert, client_tls.join("tls.crt"))?;
    std::fs::copy(&client.key, client_tls.join("tls.key"))?;
    for (dir, name) in [
        (&tls, "ca.crt"),
        (&tls, "client-ca.crt"),
        (&client_tls, "ca.crt"),
    ] {
        std::fs::write(dir.join(name), cluster.authority().ca_pem())?;
    }
    Ok((tls, client_tls))
}

/// Starts Muster and its kube-scheduler. Returns the addresses of `/metrics` and of the agents' door.
async fn start_muster(
    cluster: &Cluster,
    options: &StackOptions,
) -> anyhow::Result<(String, String)> {
    (options.progress)("starting muster-scheduler and its kube-scheduler");
    let (extender, agents, http) = (free_address()?, free_address()?, free_address()?);
    let folder = cluster.folder().join("muster");
    std::fs::create_dir_all(&folder)?;
    let (tls, client_tls) = certificates(cluster, &folder)?;
    let policy = if options.agents {
        "refuse"
    } else {
        "useAllocatable"
    };
    let config = folder.join("config.yaml");
    std::fs::write(
        &config,
        format!(
            "inventory:\n  nodesWithoutAgent: {policy}\n{LEASE}{}",
            options.config
        ),
    )?;
    let kubeconfig = cluster
        .service_account_kubeconfig("muster-system", "muster-scheduler")
        .await?;
    let mut command = Command::new(programs::scheduler()?);
    command
        .arg("serve")
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .arg("--config")
        .arg(&config)
        .args([
            "--extender-listen",
            &extender,
            "--agent-listen",
            &agents,
            "--http-listen",
            &http,
        ])
        .arg("--tls-dir")
        .arg(&tls)
        .env("RUST_LOG", "info");
    cluster.spawn("muster-scheduler", &command).await?;
    let scheduler_config = folder.join("kube-scheduler.yaml");
    let kubeconfig = cluster.kubeconfig(&muster_control_plane::Identity::KubeScheduler)?;
    std::fs::write(
        &scheduler_config,
        manifests::kube_scheduler_config(&manifests::KubeSchedulerConfigOptions {
            extender_url: format!("https://{extender}"),
            tls_dir: Some(client_tls.display().to_string()),
            kubeconfig: Some(kubeconfig.display().to_string()),
            bind_timeout: options.bind_timeout,
            ..manifests::KubeSchedulerConfigOptions::default()
        }),
    )?;
    cluster.start_kube_scheduler(&scheduler_config).await?;
    Ok((http, agents))
}

/// Whether a plain GET is answered with 200.
pub(crate) async fn http_ok(address: &str, path: &str) -> bool {
    let answer = http_get(address, path).await;
    answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// The answer to a plain GET, headers and all.
pub async fn http_get(address: &str, path: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
