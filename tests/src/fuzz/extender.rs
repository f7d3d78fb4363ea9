//! The extender's verbs, called as kube-scheduler calls them, but for the body.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use muster_core::event::Event;
use muster_core::ids::{Epoch, GangKey};
use muster_core::resources::Resources;
use muster_core::view::{GangView, View};
use muster_kubernetes::translate::PodRules;
use muster_scheduler::binds::Binds;
use muster_scheduler::config;
use muster_scheduler::extender::Extender;
use muster_scheduler::inbox::{self, Outbox};
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

use super::{Target, corpus, runtime, too_large};

/// Most bytes of an answer that are read.
const ANSWER_MAX: usize = 64 << 20;

/// The verbs, by their paths.
pub(super) const VERBS: [&str; 3] = ["filter", "preempt", "bind"];

/// One verb of an extender that has a gang with member `m` planned on node `n2`. Nobody decides about Binds.
pub(super) struct Verb {
    name: &'static str,
    runtime: Runtime,
    router: Router,
    outbox: Outbox,
    binds: Arc<Binds>,
    view: Arc<ArcSwap<View>>,
    published: Arc<View>,
}

/// A published view with one gang and one node with room.
fn view() -> View {
    let gang = GangView {
        plan: Some("e1-1".into()),
        slots: BTreeMap::new(),
        nodes: BTreeMap::from([("m".into(), "n2".into())]),
        refusal: "muster: needs 4 nodes".into(),
    };
    let key = GangKey::labelled("ns", "g");
    let room = Resources {
        milli_cpu: 8000,
        memory_bytes: 1 << 33,
        pods: 10,
        ..Resources::default()
    };
    View {
        leading: true,
        synced: true,
        frozen: false,
        epoch: Epoch(1),
        gangs: [(key.clone(), Arc::new(gang))].into_iter().collect(),
        members: [("m".into(), key)].into_iter().collect(),
        free: [("n1".into(), Arc::new(room))].into_iter().collect(),
        protected: ["held".into()].into_iter().collect(),
    }
}

impl Verb {
    pub(super) fn new(name: &'static str) -> anyhow::Result<Self> {
        let published = Arc::new(view());
        let view = Arc::new(ArcSwap::from(Arc::clone(&published)));
        let (inbox, outbox) = inbox::inbox();
        let settings = config::Config::default().extender;
        let binds = Arc::new(Binds::new(settings.binds_held_max));
        let extender = Extender::new(
            Arc::clone(&view),
            Arc::new(ArcSwap::from_pointee(PodRules::default())),
            inbox,
            Arc::clone(&binds),
            Arc::default(),
            &settings,
        );
        Ok(Self {
            name,
            runtime: runtime()?,
            router: extender.router(settings.body_bytes_max),
            outbox,
            binds,
            view,
            published,
        })
    }

    fn ask(&self, input: &[u8]) -> anyhow::Result<(u16, Vec<u8>)> {
        let path = match self.name {
            "bind" => "/v1/bind/bind".to_owned(),
            verb => format!("/v1/short/{verb}"),
        };
        let request = Request::post(path).body(Body::from(input.to_vec()))?;
        let router = self.router.clone();
        self.runtime.block_on(async {
            let response = router.oneshot(request).await?;
            let code = response.status().as_u16();
            let bytes = axum::body::to_bytes(response.into_body(), ANSWER_MAX).await;
            Ok((code, bytes.context("the answer")?.to_vec()))
        })
    }

    /// What the engine was told; it may be told nothing else.
    fn told(&mut self) -> Result<(), String> {
        let queued: Vec<Event> = std::iter::from_fn(|| self.outbox.take()).collect();
        let (mut asked, mut dropped) = (0_u32, 0_u32);
        for event in queued.into_iter().chain(self.outbox.collect()) {
            match (&event, self.name) {
                (Event::PlannedNodeNotOffered { pod, node }, "filter")
                    if pod.as_str() == "m" && node.as_str() == "n2" => {}
                (Event::BindAsked(of), "bind")
                    if ![
                        of.pod.as_str(),
                        of.node.as_str(),
                        of.namespace.as_str(),
                        &of.name,
                    ]
                    .contains(&"") =>
                {
                    asked += 1;
                }
                (Event::BindDropped(_), "bind") => dropped += 1,
                _ => return Err(format!("the engine was told {event:?}")),
            }
        }
        if asked != dropped || !self.binds.is_empty() {
            return Err(format!(
                "{asked} Binds were asked, {dropped} taken back, {} are held",
                self.binds.len()
            ));
        }
        match Arc::ptr_eq(&self.view.load_full(), &self.published) {
            true => Ok(()),
            false => Err("the view is another one".into()),
        }
    }

    /// Whether an answer may be given to a request.
    fn judge(&self, input: &[u8], answer: &Value) -> Result<(), String> {
        let error = answer["Error"].as_str();
        if self.name == "bind" {
            let refused = error.is_some_and(|error| !error.is_empty());
            return match refused {
                true => Ok(()),
                false => Err(format!(
                    "a Bind that nobody decided reads as success: {answer}"
                )),
            };
        }
        // What nobody looks at need not be text there; it has to be for this.
        let raw = String::from_utf8_lossy(input);
        let request: Value = serde_json::from_str(&raw).unwrap_or_default();
        let mut said = Vec::new();
        strings(&request, &mut said);
        let named = |name: &str| said.contains(&name) || raw.contains(name);
        if self.name == "preempt" {
            let nodes = answer["NodeNameToMetaVictims"].as_object();
            let nodes = nodes.ok_or("no map of victims")?;
            for (node, victims) in nodes {
                let pods = victims["Pods"].as_array().ok_or("no victims")?;
                let uids: Vec<&str> = pods.iter().filter_map(|pod| pod["UID"].as_str()).collect();
                if uids.is_empty()
                    || !named(node)
                    || !uids.iter().all(|uid| uid.is_empty() || named(uid))
                {
                    return Err(format!("victims that were not offered: {node} {victims}"));
                }
                if uids.contains(&"held") {
                    return Err("a gang's member is a victim".into());
                }
            }
            return Ok(());
        }
        let error = error.ok_or("no Error")?;
        let names = answer["NodeNames"].as_array().into_iter().flatten();
        let items = answer.pointer("/Nodes/items").and_then(Value::as_array);
        let items = items.into_iter().flatten();
        let items = items.filter_map(|item| item.pointer("/metadata/name"));
        for node in names.chain(items) {
            let node = node.as_str().ok_or("a node that is no name")?;
            if !error.is_empty() || !(named(node) || node.is_empty()) {
                return Err(format!("{node} is answered, which was not offered"));
            }
        }
        Ok(())
    }
}

/// All texts of a value, keys included.
fn strings<'a>(value: &'a Value, to: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => to.push(text),
        Value::Array(list) => list.iter().for_each(|value| strings(value, to)),
        Value::Object(map) => {
            for (key, value) in map {
                to.push(key);
                strings(value, to);
            }
        }
        _ => {}
    }
}

impl Target for Verb {
    fn name(&self) -> &'static str {
        self.name
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        match self.name {
            "filter" => corpus::filter(),
            "preempt" => corpus::preempt(),
            _ => corpus::bind(),
        }
    }

    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let (code, answer) = self.ask(input).map_err(|error| format!("{error:#}"))?;
        too_large(input.len(), answer.len())?;
        self.told()?;
        let text = String::from_utf8_lossy(&answer);
        match code {
            200 => {
                let answer = serde_json::from_slice(&answer)
                    .map_err(|error| format!("the answer is no JSON: {error}"))?;
                self.judge(input, &answer)?;
            }
            400 => {}
            code => return Err(format!("code {code}: {text}")),
        }
        Ok(format!("{code} {text}"))
    }
}
