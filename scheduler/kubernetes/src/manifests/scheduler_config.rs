//! Configuration of the dedicated kube-scheduler.

use std::time::Duration;

use serde_json::{Value, json};

use super::yaml;
use crate::names;
use crate::pins::set;

/// Where kube-scheduler finds Muster and the API server, and how long it waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeSchedulerConfigOptions {
    /// Base URL of Muster's extender, without the paths below it.
    pub extender_url: String,
    /// Folder with `ca.crt`, `tls.crt` and `tls.key` as kube-scheduler sees it: Muster's CA, and
    /// the client certificate to show. `None`: no TLS settings.
    pub tls_dir: Option<String>,
    /// kubeconfig file as kube-scheduler sees it; `None`: the Pod's own account.
    pub kubeconfig: Option<String>,
    /// `httpTimeout` of filter and preempt. A hung Filter stops the whole scheduler for this long.
    pub filter_timeout: Duration,
    /// `httpTimeout` of bind. A held Bind costs a goroutine; Muster gives up at half of it.
    pub bind_timeout: Duration,
    /// kube-scheduler leads only while it holds a Lease: one of several replicas, each of which has a
    /// Lease of its own that the Muster beside it keeps.
    pub leader_elect: bool,
}

impl Default for KubeSchedulerConfigOptions {
    fn default() -> Self {
        Self {
            extender_url: "https://muster-scheduler.muster-system.svc:8443".to_owned(),
            tls_dir: None,
            kubeconfig: None,
            filter_timeout: Duration::from_secs(5),
            bind_timeout: Duration::from_secs(300),
            leader_elect: false,
        }
    }
}

/// For how long kube-scheduler works on while it cannot renew its Lease.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// Times of kube-scheduler's election. Looked at twice a second, so that it works as soon as its Muster
/// leads; given up after as long as Muster gives its own Lease up.
const ELECTION: [(&str, Duration); 3] = [
    ("leaseDuration", Duration::from_secs(15)),
    ("renewDeadline", RENEW_DEADLINE),
    ("retryPeriod", Duration::from_millis(500)),
];

/// A `KubeSchedulerConfiguration` for an unmodified kube-scheduler that serves `muster` pods alone.
///
/// Two extender entries for one server: filter and preempt with a short timeout, bind with a long
/// one. No `managedResources`, so that a Master without GPUs does not slip by; never `ignorable`,
/// or kube-scheduler would bind by itself when Muster is away.
pub fn kube_scheduler_config(options: &KubeSchedulerConfigOptions) -> String {
    let mut client = json!({"qps": 5000, "burst": 10000});
    if let (Some(file), Some(object)) = (&options.kubeconfig, client.as_object_mut()) {
        object.insert("kubeconfig".to_owned(), json!(file));
    }
    let mut election = json!({
        "leaderElect": options.leader_elect,
        "resourceName": names::KUBE_SCHEDULER_LEASE,
        "resourceNamespace": names::NAMESPACE,
    });
    if options.leader_elect {
        for (key, span) in ELECTION {
            set(&mut election, &[key], Some(json!(go_duration(span))));
        }
    }
    let mut filter = extender(options, "short", options.filter_timeout);
    let mut bind = extender(options, "bind", options.bind_timeout);
    set(&mut filter, &["filterVerb"], Some(json!("filter")));
    set(&mut filter, &["preemptVerb"], Some(json!("preempt")));
    set(&mut bind, &["bindVerb"], Some(json!("bind")));
    yaml(&json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": election,
        "clientConnection": client,
        "percentageOfNodesToScore": 100,
        "profiles": [{"schedulerName": names::SCHEDULER_NAME}],
        "extenders": [filter, bind],
    }))
}

fn extender(options: &KubeSchedulerConfigOptions, path: &str, timeout: Duration) -> Value {
    let base = options.extender_url.trim_end_matches('/');
    let https = base.starts_with("https://") || options.tls_dir.is_some();
    let mut entry = json!({
        "urlPrefix": format!("{base}/v1/{path}"),
        "enableHTTPS": https,
        "httpTimeout": go_duration(timeout),
        "nodeCacheCapable": true,
        "ignorable": false,
    });
    if let Some(dir) = &options.tls_dir {
        let dir = dir.trim_end_matches('/');
        let tls = json!({
            "insecure": false,
            "caFile": format!("{dir}/ca.crt"),
            "certFile": format!("{dir}/tls.crt"),
            "keyFile": format!("{dir}/tls.key"),
        });
        set(&mut entry, &["tlsConfig"], Some(tls));
    }
    entry
}

/// A duration as Go reads it: whole seconds where it is whole, else milliseconds.
fn go_duration(span: Duration) -> String {
    if span.subsec_nanos() == 0 {
        format!("{}s", span.as_secs())
    } else {
        format!("{}ms", span.as_millis())
    }
}
