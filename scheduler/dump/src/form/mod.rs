//! The file: strict JSON, sorted, a node or gang to a line. What is written is read back to the same bytes.

mod config;
mod gang;
mod node;
mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::ids::Epoch;
use muster_core::plan::GangRequest;
use muster_core::pod::PodShape;
use muster_core::state::State;
use muster_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use self::config::Config;
use self::gang::{Gang, Known};
use self::node::Node;
use self::shape::{Shape, Shapes, Usual};
use crate::error::Error;

/// Version of the form. Another one is refused.
pub const FORMAT: u32 = 1;

/// Largest file that is read, bytes: 5,000 nodes with 8 GPUs and 50,000 pods take some 25 MB.
pub const FILE_MAX: u64 = 1 << 30;

type Text = Arc<str>;

/// Words by words: labels, selectors.
type Words = BTreeMap<String, String>;

fn word(text: &Text) -> String {
    (**text).to_owned()
}

fn text(word: String) -> Text {
    Arc::from(word)
}

fn words(texts: &BTreeMap<Text, Text>) -> Words {
    texts
        .iter()
        .map(|(key, value)| (word(key), word(value)))
        .collect()
}

fn texts(words: Words) -> BTreeMap<Text, Text> {
    words
        .into_iter()
        .map(|(key, value)| (text(key), text(value)))
        .collect()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The file but for its lists.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "format")]
    _format: u32,
    /// For people: the version of Muster that wrote it.
    #[serde(rename = "version")]
    _version: String,
    at_ms: u64,
    epoch: u64,
    leads: bool,
    synced: bool,
    config: Config,
    shapes: Vec<Shape>,
    demand: Vec<Usual>,
    nodes: Vec<Node>,
    gangs: Vec<Gang>,
}

/// The text of a dump. The same state gives the same bytes.
///
/// # Errors
/// None with the states that an engine makes: everything in it is a number, a text, or a map by texts.
pub fn write(state: &State) -> Result<String, serde_json::Error> {
    let State {
        at,
        config,
        epoch,
        leads,
        synced,
        demand,
        nodes,
        gangs,
    } = state;
    let shapes = Shapes::new(shapes_of(state));
    let mut text = String::from("{\n");
    let head = [
        ("format", serde_json::to_string(&FORMAT)?),
        ("version", serde_json::to_string(env!("CARGO_PKG_VERSION"))?),
        ("at_ms", serde_json::to_string(&at.0)?),
        ("epoch", serde_json::to_string(&epoch.0)?),
        ("leads", serde_json::to_string(leads)?),
        ("synced", serde_json::to_string(synced)?),
        ("config", serde_json::to_string(&Config::of(config))?),
    ];
    for (key, value) in head {
        text.push_str(&format!("\"{key}\":{value},\n"));
    }
    list(&mut text, "shapes", shapes.forms())?;
    text.push_str(",\n");
    list(
        &mut text,
        "demand",
        demand.iter().map(|usual| Usual::of(usual, &shapes)),
    )?;
    text.push_str(",\n");
    list(
        &mut text,
        "nodes",
        nodes.iter().map(|node| Node::of(node, &shapes)),
    )?;
    text.push_str(",\n");
    list(
        &mut text,
        "gangs",
        gangs.iter().map(|gang| Gang::of(gang, &shapes)),
    )?;
    text.push_str("\n}\n");
    Ok(text)
}

/// A list with a line for each entry.
fn list<T: Serialize>(
    text: &mut String,
    key: &str,
    entries: impl IntoIterator<Item = T>,
) -> Result<(), serde_json::Error> {
    text.push_str(&format!("\"{key}\":["));
    let mut between = "\n";
    for entry in entries {
        text.push_str(between);
        text.push_str(&serde_json::to_string(&entry)?);
        between = ",\n";
    }
    text.push(']');
    Ok(())
}

/// Reads a dump and checks it.
///
/// # Errors
/// An unknown key, a wrong type, another [`FORMAT`], or values that no scheduler writes: with the path of
/// the field, the value and what is allowed.
pub fn read(text: &str) -> Result<State, Error> {
    check_format(text)?;
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_str(text);
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let file = File::deserialize(tracked)
        .and_then(|file| json.end().map(|()| file))
        .map_err(|error| malformed(track.path().to_string(), &error))?;
    let config = file.config.read()?;
    let shapes = Shapes::read(file.shapes)?;
    let known = Known {
        shapes: &shapes,
        levels: config.topology.len(),
    };
    let demand = file.demand.into_iter().enumerate();
    let demand = demand.map(|(at, usual)| usual.read(&format!("demand[{at}]"), &shapes));
    let nodes = file.nodes.into_iter().enumerate();
    let nodes = nodes.map(|(at, node)| node.read(&format!("nodes[{at}]"), &shapes));
    let gangs = file.gangs.into_iter().enumerate();
    let gangs = gangs.map(|(at, gang)| gang.read(&format!("gangs[{at}]"), &known));
    let mut state = State {
        at: Timestamp(file.at_ms),
        epoch: Epoch(file.epoch),
        leads: file.leads,
        synced: file.synced,
        demand: demand.collect::<Result<_, _>>()?,
        nodes: nodes.collect::<Result<_, _>>()?,
        gangs: gangs.collect::<Result<_, _>>()?,
        config,
    };
    node::check(&state)?;
    gang::check(&state.gangs)?;
    state.nodes.sort_by(|a, b| a.name.cmp(&b.name));
    state.gangs.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(state)
}

/// A file of another form has other keys: its version is what is wrong with it, not those.
fn check_format(text: &str) -> Result<(), Error> {
    #[derive(Deserialize)]
    struct Head {
        format: Option<serde_json::Value>,
    }
    let head: Head =
        serde_json::from_str(text).map_err(|error| malformed(String::new(), &error))?;
    let limit = format!("must be {FORMAT}, the form that this version of muster-scheduler reads");
    match head.format {
        Some(format) if format == FORMAT => Ok(()),
        Some(format) => Err(Error::field("format", format, limit)),
        None => Err(Error::field("format", "missing", limit)),
    }
}

fn malformed(path: String, error: &serde_json::Error) -> Error {
    let is_known = !path.is_empty() && path != ".";
    Error::Malformed {
        path: if is_known { path } else { "dump".into() },
        said: error.to_string(),
    }
}

/// Every shape that something in the state has.
pub(crate) fn shapes_of(state: &State) -> BTreeSet<Arc<PodShape>> {
    let mut shapes: BTreeSet<Arc<PodShape>> = BTreeSet::new();
    shapes.extend(state.demand.iter().map(|usual| Arc::clone(&usual.shape)));
    for node in &state.nodes {
        shapes.extend(
            node.holdings
                .iter()
                .map(|holding| Arc::clone(&holding.shape)),
        );
    }
    for gang in &state.gangs {
        let asked = gang.plan.iter().flat_map(|plan| &plan.asked);
        for ask in gang.asks.iter().chain(asked) {
            let GangRequest { roles, placed, .. } = &ask.request;
            shapes.extend(roles.iter().map(|role| Arc::clone(&role.shape)));
            shapes.extend(placed.iter().map(|member| Arc::clone(&member.shape)));
        }
    }
    shapes
}
