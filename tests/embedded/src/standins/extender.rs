//! The client side of the extender protocol, as kube-scheduler speaks it.
//!
//! `POST {urlPrefix}/{verb}` with PascalCase JSON; only 200 is success, the body of anything else is not read, answers
//! are read in any case, and each call ends after `httpTimeout`. The transport is given by the caller: TCP, or a
//! service in the same process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::value;

/// One entry of `extenders` in the kube-scheduler configuration.
#[derive(Debug, Clone)]
pub struct ExtenderConfig {
    /// `urlPrefix`, also the name in messages.
    pub url_prefix: String,
    /// `filterVerb`; empty: not asked.
    pub filter_verb: String,
    /// `prioritizeVerb`; empty: not asked.
    pub prioritize_verb: String,
    /// `preemptVerb`; empty: not asked.
    pub preempt_verb: String,
    /// `bindVerb`; empty: kube-scheduler binds itself.
    pub bind_verb: String,
    /// `weight` of the scores.
    pub weight: i64,
    /// `httpTimeout`.
    pub http_timeout: Duration,
    /// `nodeCacheCapable`: names instead of whole nodes.
    pub node_cache_capable: bool,
    /// `ignorable`: errors are passed over.
    pub ignorable: bool,
    /// Names of `managedResources`; empty: every pod is shown.
    pub managed_resources: Vec<String>,
}

impl ExtenderConfig {
    /// An entry with no verbs, names only, and the default timeout of 5 s.
    #[must_use]
    pub fn new(url_prefix: &str) -> Self {
        Self {
            url_prefix: url_prefix.trim_end_matches('/').into(),
            filter_verb: String::new(),
            prioritize_verb: String::new(),
            preempt_verb: String::new(),
            bind_verb: String::new(),
            weight: 1,
            http_timeout: Duration::from_secs(5),
            node_cache_capable: true,
            ignorable: false,
            managed_resources: Vec::new(),
        }
    }

    /// The two entries of Muster: filter and preempt with a short timeout, bind with a long one.
    #[must_use]
    pub fn muster(url: &str, filter_timeout: Duration, bind_timeout: Duration) -> Vec<Self> {
        let url = url.trim_end_matches('/');
        let mut filter = Self::new(url);
        filter.filter_verb = "filter".into();
        filter.preempt_verb = "preempt".into();
        filter.http_timeout = filter_timeout;
        let mut bind = Self::new(url);
        bind.bind_verb = "bind".into();
        bind.http_timeout = bind_timeout;
        vec![filter, bind]
    }
}

/// Muster's two entries, as `muster-scheduler print kube-scheduler-config` prints them: a short one that filters and
/// is asked about preemption, and a long one that binds.
#[must_use]
pub fn of_muster(url: &str, transport: &Transport) -> Vec<Extender> {
    let mut filter = ExtenderConfig::new(&format!("{url}/v1/short"));
    filter.filter_verb = "filter".into();
    filter.preempt_verb = "preempt".into();
    let mut bind = ExtenderConfig::new(&format!("{url}/v1/bind"));
    bind.bind_verb = "bind".into();
    bind.http_timeout = Duration::from_secs(300);
    [filter, bind]
        .map(|config| Extender::new(config, Arc::clone(transport)))
        .into()
}

/// Sends a request, and gives status and body or the text of a failure.
pub type Transport = Arc<
    dyn Fn(Request<Full<Bytes>>) -> BoxFuture<'static, Result<(u16, Bytes), String>> + Send + Sync,
>;

async fn read<B>(response: Response<B>) -> Result<(u16, Bytes), String>
where
    B: http_body_util::BodyExt<Data = Bytes>,
    B::Error: std::fmt::Display,
{
    let code = response.status().as_u16();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|e| e.to_string())?;
    Ok((code, body.to_bytes()))
}

/// Plain HTTP/1 over TCP, with connections kept open.
#[must_use]
pub fn tcp() -> Transport {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    Arc::new(move |request| {
        let client = client.clone();
        Box::pin(
            async move { read(client.request(request).await.map_err(|e| e.to_string())?).await },
        )
    })
}

/// A service in the same process: no sockets, fit for the paused clock.
pub fn in_process<S, B>(service: S) -> Transport
where
    S: tower::Service<Request<axum::body::Body>, Response = Response<B>>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    S::Error: std::fmt::Display,
    B: http_body_util::BodyExt<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    Arc::new(move |request| {
        let service = service.clone();
        Box::pin(async move {
            let request = request.map(axum::body::Body::new);
            let response = tower::ServiceExt::oneshot(service, request)
                .await
                .map_err(|e| e.to_string())?;
            read(response).await
        })
    })
}

/// An extender: its entry and the way to it.
#[derive(Clone)]
pub struct Extender {
    /// The entry.
    pub config: ExtenderConfig,
    transport: Transport,
}

impl std::fmt::Debug for Extender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extender")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What Filter and Prioritize are asked, as it is sent: the pod is not copied for it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Args<'a> {
    pod: &'a Value,
    nodes: Option<Nodes<'a>>,
    node_names: Option<&'a [String]>,
}

#[derive(Serialize)]
struct Nodes<'a> {
    metadata: Map<String, Value>,
    items: &'a [&'a Value],
}

/// What a Filter call left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filtered {
    /// Nodes that passed.
    pub nodes: Vec<String>,
    /// Refused nodes with texts: preemption could help.
    pub failed: BTreeMap<String, String>,
    /// Refused nodes with texts: nothing helps.
    pub unresolvable: BTreeMap<String, String>,
}

/// The value of a key whatever the case of its letters.
fn any_case<'a>(map: &'a Map<String, Value>, key: &str) -> &'a Value {
    const NULL: &Value = &Value::Null;
    map.get(key)
        .or_else(|| {
            map.iter()
                .find(|(k, _)| k.eq_ignore_ascii_case(key))
                .map(|(_, v)| v)
        })
        .unwrap_or(NULL)
}

fn texts(value: &Value) -> BTreeMap<String, String> {
    let map = value.as_object().into_iter().flatten();
    map.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
        .collect()
}

impl Extender {
    /// An extender behind `transport`.
    #[must_use]
    pub fn new(config: ExtenderConfig, transport: Transport) -> Self {
        Self { config, transport }
    }

    /// Whether the extender is asked about this pod: it uses a managed resource, or none is named.
    #[must_use]
    pub fn is_interested(&self, pod: &Value) -> bool {
        let managed = &self.config.managed_resources;
        let containers = ["containers", "initContainers"]
            .into_iter()
            .flat_map(|l| value::items(pod, &["spec", l]));
        let uses = |c: &Value, part: &str| {
            let map = value::at(c, &["resources", part]).and_then(Value::as_object);
            map.is_some_and(|m| m.keys().any(|k| managed.contains(k)))
        };
        managed.is_empty()
            || containers
                .into_iter()
                .any(|c| uses(c, "requests") || uses(c, "limits"))
    }

    async fn send(&self, verb: &str, body: Vec<u8>) -> Result<Value, String> {
        let url = format!("{}/{verb}", self.config.url_prefix.trim_end_matches('/'));
        let request = Request::post(&url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        let timeout = self.config.http_timeout;
        let answer = tokio::time::timeout(timeout, (self.transport)(request)).await;
        let (code, body) = answer.map_err(|_| {
            format!("Post {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)")
        })??;
        if code != 200 {
            return Err(format!(
                "failed {verb} with extender at URL {url}, code {code}"
            ));
        }
        let mut stream = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
        match stream.next() {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("EOF".into()),
        }
    }

    /// Asks which of the nodes take the pod.
    ///
    /// # Errors
    /// The text of a failed call, of an `Error` in the answer, or of a node that was not offered.
    pub async fn filter(
        &self,
        pod: &Value,
        names: &[String],
        nodes: &[&Value],
    ) -> Result<Filtered, String> {
        let args = self.args(pod, names, nodes)?;
        let answer = self.send(&self.config.filter_verb, args).await?;
        let empty = Map::new();
        let map = answer.as_object().unwrap_or(&empty);
        let error = any_case(map, "Error").as_str().unwrap_or_default();
        if !error.is_empty() {
            return Err(error.to_owned());
        }
        let listed = any_case(map, "NodeNames");
        let left: Vec<String> = if self.config.node_cache_capable && listed.is_array() {
            let list = listed.as_array().into_iter().flatten();
            list.filter_map(|n| n.as_str().map(str::to_owned)).collect()
        } else {
            let list = value::items(any_case(map, "Nodes"), &["items"]).iter();
            list.map(|n| value::name(n).to_owned()).collect()
        };
        if let Some(foreign) = left.iter().find(|n| !names.contains(n)) {
            return Err(format!(
                "extender {:?} claims a filtered node {foreign:?} which is not found in the input node list",
                self.config.url_prefix
            ));
        }
        Ok(Filtered {
            nodes: left,
            failed: texts(any_case(map, "FailedNodes")),
            unresolvable: texts(any_case(map, "FailedAndUnresolvableNodes")),
        })
    }

    fn args(&self, pod: &Value, names: &[String], nodes: &[&Value]) -> Result<Vec<u8>, String> {
        let by_name = self.config.node_cache_capable;
        let args = Args {
            pod,
            nodes: (!by_name).then(|| Nodes {
                metadata: Map::new(),
                items: nodes,
            }),
            node_names: by_name.then_some(names),
        };
        serde_json::to_vec(&args).map_err(|e| e.to_string())
    }

    /// Asks for scores; already multiplied by weight and brought to kube-scheduler's range.
    ///
    /// # Errors
    /// The text of a failed call.
    pub async fn prioritize(
        &self,
        pod: &Value,
        names: &[String],
        nodes: &[&Value],
    ) -> Result<BTreeMap<String, i64>, String> {
        let answer = self
            .send(&self.config.prioritize_verb, self.args(pod, names, nodes)?)
            .await?;
        let mut scores: BTreeMap<String, i64> = BTreeMap::new();
        for item in answer.as_array().into_iter().flatten() {
            let Some(map) = item.as_object() else {
                continue;
            };
            let host = any_case(map, "Host").as_str().unwrap_or_default();
            let score = any_case(map, "Score").as_i64().unwrap_or(0);
            let slot = scores.entry(host.to_owned()).or_default();
            *slot =
                slot.saturating_add(score.saturating_mul(self.config.weight).saturating_mul(10));
        }
        Ok(scores)
    }

    /// Asks which of the candidate nodes and victims (uids) may be preempted.
    ///
    /// # Errors
    /// The text of a failed call.
    pub async fn preempt(
        &self,
        pod: &Value,
        victims: &BTreeMap<String, Vec<Value>>,
    ) -> Result<BTreeMap<String, Vec<String>>, String> {
        let full: Map<String, Value> = victims
            .iter()
            .map(|(node, pods)| (node.clone(), json!({"Pods": pods, "NumPDBViolations": 0})))
            .collect();
        let meta: Map<String, Value> = victims
            .iter()
            .map(|(node, pods)| {
                let uids: Vec<Value> = pods.iter().map(|p| json!({"UID": value::uid(p)})).collect();
                (node.clone(), json!({"Pods": uids, "NumPDBViolations": 0}))
            })
            .collect();
        let args = if self.config.node_cache_capable {
            json!({"Pod": pod, "NodeNameToVictims": null, "NodeNameToMetaVictims": meta})
        } else {
            json!({"Pod": pod, "NodeNameToVictims": full, "NodeNameToMetaVictims": null})
        };
        let args = args.to_string().into_bytes();
        let answer = self.send(&self.config.preempt_verb, args).await?;
        let empty = Map::new();
        let map = answer.as_object().unwrap_or(&empty);
        let mut left = BTreeMap::new();
        for (node, entry) in any_case(map, "NodeNameToMetaVictims")
            .as_object()
            .into_iter()
            .flatten()
        {
            let entry = entry.as_object().unwrap_or(&empty);
            let pods = any_case(entry, "Pods").as_array().into_iter().flatten();
            let uids: Vec<String> = pods
                .filter_map(|p| any_case(p.as_object()?, "UID").as_str().map(str::to_owned))
                .collect();
            let known = victims.get(node).ok_or_else(|| {
                format!("extender names the node {node:?} which was no candidate")
            })?;
            if uids.is_empty()
                || uids
                    .iter()
                    .any(|u| !known.iter().any(|p| value::uid(p) == u))
            {
                return Err(format!(
                    "extender names unknown or no victims on node {node:?}"
                ));
            }
            left.insert(node.clone(), uids);
        }
        Ok(left)
    }

    /// Asks the extender to bind the pod.
    ///
    /// # Errors
    /// The text of a failed call, or of an `Error` in the answer.
    pub async fn bind(&self, pod: &Value, node: &str) -> Result<(), String> {
        let args = json!({"PodName": value::name(pod), "PodNamespace": value::namespace(pod), "PodUID": value::uid(pod), "Node": node});
        let args = args.to_string().into_bytes();
        let answer = self.send(&self.config.bind_verb, args).await?;
        let empty = Map::new();
        let error = any_case(answer.as_object().unwrap_or(&empty), "Error")
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if error.is_empty() { Ok(()) } else { Err(error) }
    }
}
