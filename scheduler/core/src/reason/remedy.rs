//! What would make a gang fit that does not: the last clause of a reason, from the numbers of the reason itself. What is
//! said is enough, as far as the reason shows; there may be less that would do.

use std::fmt;

use super::{NodeTally, Unplaceable, short_of};
use crate::interpod::{HOSTNAME, InterPodKind};
use crate::resources::Shortage;

/// The clause, with the space before it; nothing where the numbers say nothing.
pub(super) struct Remedy<'a>(pub &'a Unplaceable);

impl fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Unplaceable::NotEnoughFree {
                needed,
                placed,
                what,
                each,
                tally,
                ..
            } => more_room(f, needed.saturating_sub(*placed), what, *each, tally),
            Unplaceable::NeverFits {
                needed,
                possible,
                what,
                each,
                largest,
                ..
            } => never(f, (*needed, *possible), what, (*each, *largest)),
            Unplaceable::RuleBetweenMembers {
                needed,
                placed,
                kind,
                topology,
                ..
            } => between(f, (*needed, *placed), kind, topology),
            Unplaceable::NotInOneDomain { level, segment, .. } => match segment {
                Some(size) => write!(
                    f,
                    ". More of one {level} with room for {size} would do, or no segments"
                ),
                None => write!(
                    f,
                    ". One {level} with room for all of it would do, or one that is preferred and not required"
                ),
            },
            Unplaceable::NoNode {
                tally, selector, ..
            } => let_in(f, tally, selector.as_ref()),
            // Those say it themselves.
            Unplaceable::NoSuchResource { .. } | Unplaceable::TooComplex { .. } => Ok(()),
        }
    }
}

fn nodes(count: u32) -> String {
    match count {
        1 => "1 more node".to_owned(),
        _ => format!("{count} more nodes"),
    }
}

/// Nodes are told by what ran out; the rest of what a member asks for has to be there, too.
fn more_room(
    f: &mut fmt::Formatter<'_>,
    missing: u32,
    what: &Shortage,
    each: u64,
    tally: &NodeTally,
) -> fmt::Result {
    if missing == 0 {
        return Ok(());
    }
    write!(
        f,
        ". {} with {each} free {} would do",
        nodes(missing),
        short_of(what)
    )?;
    // Those have the room but for that.
    match tally.unhealthy {
        count if count >= missing => {
            write!(
                f,
                ", or {missing} of {count} with an unhealthy GPU when it is well"
            )
        }
        _ => Ok(()),
    }
}

fn never(
    f: &mut fmt::Formatter<'_>,
    (needed, possible): (u32, u32),
    what: &Shortage,
    (each, largest): (u64, u64),
) -> fmt::Result {
    let what = short_of(what);
    let missing = needed.saturating_sub(possible);
    if each > largest {
        return match largest {
            0 => write!(f, ". It takes {} with {each} {what} each", nodes(missing)),
            _ => write!(
                f,
                ". With at most {largest} {what} each, members find a node"
            ),
        };
    }
    write!(f, ". {} with {each} {what} would do", nodes(missing))?;
    match possible {
        0 => Ok(()),
        _ => write!(f, ", or a gang with {possible}"),
    }
}

fn between(
    f: &mut fmt::Formatter<'_>,
    (needed, placed): (u32, u32),
    kind: &InterPodKind,
    topology: &str,
) -> fmt::Result {
    let missing = needed.saturating_sub(placed);
    match kind {
        InterPodKind::AntiAffinity if topology == HOSTNAME => {
            write!(f, ". {} with room for one would do", nodes(missing))
        }
        InterPodKind::AntiAffinity => write!(
            f,
            ". {missing} more with room for one and other values of {topology} would do"
        ),
        InterPodKind::Affinity => write!(
            f,
            ". One value of {topology} with room for all of the gang would do"
        ),
        InterPodKind::Spread(spread) => write!(
            f,
            ". Room for {missing} more where {topology} has the fewest would do, or a maxSkew above {}",
            spread.skew_max
        ),
    }
}

fn let_in(
    f: &mut fmt::Formatter<'_>,
    tally: &NodeTally,
    selector: Option<&super::Selected>,
) -> fmt::Result {
    if let Some(selected) = selector {
        let (key, value) = (&selected.key, &selected.value);
        return match selected.without {
            0 => write!(
                f,
                ". No node has the label {key}={value} and what else is selected"
            ),
            1 => write!(
                f,
                ". 1 node could be used without the selector {key}={value}"
            ),
            count => write!(
                f,
                ". {count} nodes could be used without the selector {key}={value}"
            ),
        };
    }
    match &tally.tainted_by {
        Some(taint) => write!(f, ". A toleration of {taint} would help most"),
        None => Ok(()),
    }
}
