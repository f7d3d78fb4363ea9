//! Network topology: the levels of domains that nodes lie in, and what a gang asks of them.
//!
//! A level is a node label, for example of blocks or racks, or the NVLink fabric that a node's agent
//! reports, from the widest to the narrowest. A domain of a level is told by the values of that level and of all wider ones: rack `r1`
//! of block `a` and rack `r1` of block `b` are two domains. A node that lacks the label of a level is in
//! no domain of it, nor of a narrower one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::config::Config;
use crate::ids::RoleName;
use crate::node::Node;
use crate::pod::PodShape;
use crate::workload::{InvalidWorkload, MEMBERS_MAX};

/// Most levels.
pub const LEVELS_MAX: usize = 8;

/// Annotation: all members in one domain of this level.
pub const REQUIRED: &str = "muster.dev/required-topology";
/// Annotation: members in as few domains of this level as can be.
pub const PREFERRED: &str = "muster.dev/preferred-topology";
/// Annotation: members of each segment.
pub const SEGMENT_SIZE: &str = "muster.dev/segment-size";
/// Annotation: level of which each segment is in one domain.
pub const SEGMENT_LEVEL: &str = "muster.dev/segment-topology";
/// All of these.
pub const KEYS: [&str; 4] = [REQUIRED, PREFERRED, SEGMENT_SIZE, SEGMENT_LEVEL];

/// One level of domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// What people call it: `block`, `rack`.
    pub name: Arc<str>,
    /// What tells in which of its domains a node is.
    pub source: Source,
}

/// What tells in which domain of a level a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The value of this label.
    Label(Arc<str>),
    /// The clique of the NVLink fabric in which its GPUs are, as its agent reports it.
    FabricClique,
}

/// Values of a node's levels, the widest first, as far as it has them.
pub type Path = Arc<[Arc<str>]>;

/// Where a node lies; `clique` is what its agent says of the NVLink fabric.
pub fn path_of(node: &Node, clique: Option<&Arc<str>>, levels: &[Level]) -> Path {
    let value = |level: &Level| match &level.source {
        Source::Label(label) => node.labels.get(label).cloned(),
        Source::FabricClique => clique.cloned(),
    };
    levels.iter().map_while(value).collect()
}

/// Groups of members, each of which comes into one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// Members of each; the last one may be smaller.
    pub size: u32,
    /// Position of the level.
    pub level: usize,
}

/// What a gang asks of the topology. Levels by their position, 0 being the widest.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopologyRequest {
    /// All members are in one domain of this level.
    pub required: Option<usize>,
    /// Members are in as few domains of this level as can be, and of each wider one.
    pub preferred: Option<usize>,
    /// Members in order of rank are in segments.
    pub segment: Option<Segment>,
}

impl TopologyRequest {
    /// What annotations ask for, of these levels. A level goes by its name or by its label.
    ///
    /// # Errors
    /// A level that there is none of, or a segment of which the size or the level is missing or wrong.
    pub fn of(
        settings: &BTreeMap<Arc<str>, Arc<str>>,
        levels: &[Level],
    ) -> Result<Self, InvalidWorkload> {
        let level = |key: &str| {
            let wanted = settings.get(key);
            let position = wanted.map(|wanted| {
                let is_meant = |level: &Level| {
                    level.name == *wanted
                        || matches!(&level.source, Source::Label(label) if label == wanted)
                };
                levels
                    .iter()
                    .position(is_meant)
                    .ok_or_else(|| invalid(key, wanted, known(levels)))
            });
            position.transpose()
        };
        let (segment_level, size) = (level(SEGMENT_LEVEL)?, settings.get(SEGMENT_SIZE));
        let segment = match (segment_level, size) {
            (None, None) => None,
            (Some(level), Some(text)) => {
                let size = text.parse().ok();
                let size = size.filter(|size| (1..=MEMBERS_MAX).contains(size));
                let limit = || format!("must be the members of a segment, 1 to {MEMBERS_MAX}");
                Some(Segment {
                    size: size.ok_or_else(|| invalid(SEGMENT_SIZE, text, limit()))?,
                    level,
                })
            }
            (Some(_), None) => {
                let limit = format!("must be there, beside {SEGMENT_LEVEL}");
                return Err(invalid(SEGMENT_SIZE, "missing", limit));
            }
            (None, Some(_)) => {
                let limit = format!("must be there, beside {SEGMENT_SIZE}");
                return Err(invalid(SEGMENT_LEVEL, "missing", limit));
            }
        };
        Ok(Self {
            required: level(REQUIRED)?,
            preferred: level(PREFERRED)?,
            segment,
        })
    }

    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The narrowest level that matters; `None` where nothing is asked.
    pub fn narrowest(&self) -> Option<usize> {
        let segment = self.segment.map(|segment| segment.level);
        [self.required, self.preferred, segment]
            .into_iter()
            .flatten()
            .max()
    }
}

/// In which segment each member of a gang is.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    /// Members of each; none where the gang has no segments.
    size: Option<u32>,
    /// Of each role: number of its shape, and members of that shape in the roles before it.
    roles: BTreeMap<RoleName, (u32, u32)>,
}

impl Segments {
    /// Those of these roles in order: each with the shape of its members, and how many they are.
    pub fn of_roles(
        roles: impl IntoIterator<Item = (RoleName, Arc<PodShape>, u32)>,
        segment: Segment,
        config: &Config,
    ) -> Self {
        let mut counted: Vec<(Arc<PodShape>, u32)> = Vec::new();
        let mut segments = Self {
            size: Some(segment.size),
            roles: BTreeMap::new(),
        };
        for (name, shape, count) in roles {
            if shape.devices(config) == 0 {
                continue;
            }
            let class = counted.iter().position(|(other, _)| *other == shape);
            let class = class.unwrap_or_else(|| {
                counted.push((shape, 0));
                counted.len().saturating_sub(1)
            });
            if let Some((_, before)) = counted.get_mut(class) {
                let class = u32::try_from(class).unwrap_or(u32::MAX);
                segments.roles.insert(name, (class, *before));
                *before = before.saturating_add(count);
            }
        }
        segments
    }

    /// Number of the segment that a member is in. Members of one shape are counted through role by role, as
    /// they are ranked; those of a role without devices are in none.
    pub fn of(&self, (role, index): &(RoleName, u32)) -> Option<u32> {
        let (class, before) = self.roles.get(role)?;
        // No gang has more members than that, so that no two classes share a number.
        let rank = before.saturating_add(*index).min(MEMBERS_MAX);
        let number = rank.checked_div(self.size?)?;
        let first = class.saturating_mul(MEMBERS_MAX.saturating_add(1));
        Some(first.saturating_add(number))
    }
}

fn invalid(key: &str, value: &str, limit: String) -> InvalidWorkload {
    InvalidWorkload {
        field: Arc::from(format!("metadata.annotations[{key}]")),
        value: value.chars().take(64).collect::<String>().into(),
        limit: Arc::from(limit),
    }
}

fn known(levels: &[Level]) -> String {
    if levels.is_empty() {
        return "must be a level of the scheduler's configuration (topology.levels), which has none"
            .to_owned();
    }
    let names: Vec<&str> = levels.iter().map(|level| &*level.name).collect();
    format!(
        "must be a level of the scheduler's configuration (topology.levels): {}",
        names.join(", ")
    )
}

/// A domain, for people: `a/r1`.
#[derive(Clone, Copy, Debug)]
pub struct Domain<'a>(pub &'a [Arc<str>]);

impl fmt::Display for Domain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, value) in self.0.iter().enumerate() {
            let between = if position == 0 { "" } else { "/" };
            write!(f, "{between}{value}")?;
        }
        Ok(())
    }
}
