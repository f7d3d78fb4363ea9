//! The levels of the network's topology.

use std::sync::Arc;

use muster_core::topology as core;
use serde::Deserialize;

use super::limits::{count, text};
use super::{InvalidConfig, names};

/// The network, as far as gangs may ask something of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Topology {
    /// Levels of domains, the widest first. At most 8.
    pub levels: Vec<Level>,
    /// Name of the level in whose domains a gang on several nodes is kept together, as far as can be, though it asks
    /// for none; or [`NARROWEST`], or [`NONE`].
    pub keep_together: String,
}

/// For `keepTogether`: the last level, if there is one.
const NARROWEST: &str = "narrowest";
/// For `keepTogether`: only whoever asks is kept together.
const NONE: &str = "none";

impl Default for Topology {
    fn default() -> Self {
        Self {
            levels: Vec::new(),
            keep_together: NARROWEST.into(),
        }
    }
}

/// One level of domains: either by a label or by another source.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Level {
    /// What annotations and messages call it: `block`, `rack`.
    pub name: String,
    /// Label of nodes whose values are its domains.
    pub label: Option<String>,
    /// What else tells in which domain a node is.
    pub source: Option<Source>,
}

/// What tells in which domain a node is, where no label does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The clique of the NVLink fabric that the node's agent reports.
    FabricClique,
}

impl Level {
    /// Its name, and its label if it has one.
    fn words(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let label = self.label.iter();
        std::iter::once(("topology.levels[].name", &self.name))
            .chain(label.map(|label| ("topology.levels[].label", label)))
    }
}

impl Topology {
    pub(super) fn check(&self) -> Result<(), InvalidConfig> {
        count(
            "topology.levels (entries)",
            self.levels.len(),
            0,
            core::LEVELS_MAX,
        )?;
        for (at, level) in self.levels.iter().enumerate() {
            if level.label.is_some() == level.source.is_some() {
                return Err(InvalidConfig::OutOfRange {
                    key: "topology.levels[]",
                    value: format!("\"{}\"", level.name),
                    limit: "a level has either a label or a source".into(),
                });
            }
            let others = || self.levels.iter().take(at).flat_map(Level::words);
            for (key, value) in level.words() {
                match level.label.as_ref() == Some(value) && key.ends_with("label") {
                    true => names::label(key, value)?,
                    false => text(key, value)?,
                }
                if key.ends_with("name") && [NARROWEST, NONE].contains(&value.as_str()) {
                    return Err(InvalidConfig::OutOfRange {
                        key,
                        value: format!("\"{value}\""),
                        limit: "topology.keepTogether means something else by this word".into(),
                    });
                }
                if others().any(|(_, word)| word == value) {
                    return Err(InvalidConfig::OutOfRange {
                        key,
                        value: format!("\"{value}\""),
                        limit: "each level has a name and a label of its own".into(),
                    });
                }
            }
        }
        if self.position().is_none() && ![NARROWEST, NONE].contains(&self.keep_together.as_str()) {
            let names: Vec<&str> = self
                .levels
                .iter()
                .map(|level| level.name.as_str())
                .collect();
            return Err(InvalidConfig::OutOfRange {
                key: "topology.keepTogether",
                value: format!("\"{}\"", self.keep_together),
                limit: format!("{NARROWEST}, {NONE}, or a level: {}", names.join(", ")),
            });
        }
        Ok(())
    }

    /// Position of the level that is named.
    fn position(&self) -> Option<usize> {
        let mut levels = self.levels.iter();
        levels.position(|level| level.name == self.keep_together)
    }

    /// Position of the level in whose domains gangs are kept together that ask for none.
    pub(super) fn together(&self) -> Option<usize> {
        match self.keep_together.as_str() {
            NARROWEST => self.levels.len().checked_sub(1),
            _ => self.position(),
        }
    }

    pub(super) fn core(&self) -> Vec<core::Level> {
        let levels = self.levels.iter();
        levels
            .map(|level| core::Level {
                name: Arc::from(level.name.as_str()),
                source: match &level.label {
                    Some(label) => core::Source::Label(Arc::from(label.as_str())),
                    None => core::Source::FabricClique,
                },
            })
            .collect()
    }
}
