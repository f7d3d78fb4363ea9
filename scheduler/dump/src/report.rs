//! What came of planning a state again, for people and for programs.

use muster_core::plan::Placed;
use muster_core::reason::Unplaceable;
use muster_core::record::Phase;
use muster_core::state::{GangState, SlotState, State, Why};
use serde::Serialize;

use crate::replay::{Found, Replay};

/// What is said of every gang that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// When the state was taken, milliseconds on the clock of the scheduler that took it.
    pub at_ms: u64,
    /// Nodes that exist.
    pub nodes: usize,
    /// Gangs: those that wait in order of the queue, those that start in order of their plans, the others by name.
    pub gangs: Vec<Verdict>,
}

/// What is said of a gang.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Its namespace.
    pub namespace: String,
    /// Name of its workload.
    pub name: String,
    /// Kind of its workload.
    pub kind: &'static str,
    /// Name of its Gang object.
    pub object: String,
    /// Its phase in the state.
    pub phase: &'static str,
    /// Id of the plan that it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// What was found.
    pub answer: Answer,
    /// It rests for so long after a plan of it failed: the scheduler does not look at it before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rests_for_ms: Option<u64>,
    /// Why it has no place, or is not planned now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<Cause>,
    /// Where members go, or are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
}

/// What was found for a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It waits, and there is room.
    Fits,
    /// It waits, and there is no room.
    DoesNotFit,
    /// It waits, and is not planned now.
    NotPlannedNow,
    /// It has a plan, and is planned in the same way again.
    SamePlan,
    /// It has a plan, and would be planned in another way now.
    OtherPlan,
    /// It has a plan, and members without a place; `members` are those that find one.
    MembersMissing,
    /// It stands as it is; `members` are where its plan has them.
    Stands,
    /// Its workload has ended: nobody of it is planned any more.
    Ended,
}

/// A reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// Its stable word.
    pub code: String,
    /// Its text.
    pub text: String,
}

/// A member's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its rank among those that are here: role by role, index by index.
    pub rank: usize,
    /// Role.
    pub role: String,
    /// Index within the role.
    pub index: u32,
    /// Node.
    pub node: String,
    /// Devices that it is predicted to get.
    pub devices: Vec<String>,
}

impl Answer {
    fn in_words(self) -> &'static str {
        match self {
            Self::Fits => "fits",
            Self::DoesNotFit => "does not fit",
            Self::NotPlannedNow => "is not planned now",
            Self::SamePlan => "is planned in the same way again",
            Self::OtherPlan => "would be planned in another way now, for things have changed since",
            Self::MembersMissing => "lacks members; places for them",
            Self::Stands => "stands",
            Self::Ended => "has ended",
        }
    }
}

impl Report {
    /// What is said of the gangs of a state; `gang`, `NAMESPACE/NAME`, of those of that name only: the
    /// workload's or the Gang object's.
    pub fn of(state: &State, replay: &Replay<'_>, gang: Option<&str>) -> Self {
        let is_asked = |state: &GangState| {
            gang.is_none_or(|wanted| {
                wanted.split_once('/').is_some_and(|(namespace, name)| {
                    state.key.namespace.as_str() == namespace
                        && [&*state.name, &*state.object].contains(&name)
                })
            })
        };
        let planned = replay
            .gangs
            .iter()
            .filter(|replayed| is_asked(replayed.gang));
        let planned = planned.map(|replayed| verdict(state, replayed.gang, Some(&replayed.found)));
        let others = replay.others.iter().filter(|other| is_asked(other));
        let others = others.map(|other| verdict(state, other, None));
        Self {
            at_ms: state.at.0,
            nodes: state
                .nodes
                .iter()
                .filter(|node| node.node.is_some())
                .count(),
            gangs: planned.chain(others).collect(),
        }
    }

    /// As JSON.
    ///
    /// # Errors
    /// None: numbers and texts.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    /// For people.
    pub fn in_words(&self) -> String {
        let count = |answer| {
            self.gangs
                .iter()
                .filter(|gang| gang.answer == answer)
                .count()
        };
        let mut text = format!(
            "Nodes {}, gangs {}: fit {}, do not fit {}, not planned now {}, with a plan {}\n",
            self.nodes,
            self.gangs.len(),
            count(Answer::Fits),
            count(Answer::DoesNotFit),
            count(Answer::NotPlannedNow),
            self.gangs.iter().filter(|gang| gang.plan.is_some()).count(),
        );
        for gang in &self.gangs {
            gang.in_words(&mut text);
        }
        text
    }
}

impl Verdict {
    fn in_words(&self, text: &mut String) {
        let plan = self.plan.iter().map(|plan| format!(", plan {plan}"));
        text.push_str(&format!(
            "\n{}/{} ({}, {}{}): {}\n",
            self.namespace,
            self.name,
            self.kind,
            self.phase,
            plan.collect::<String>(),
            self.answer.in_words()
        ));
        for Cause { code, text: why } in &self.why {
            text.push_str(&format!("  {code}: {why}\n"));
        }
        if let Some(rests) = self.rests_for_ms {
            text.push_str(&format!("  rests for another {rests} ms\n"));
        }
        if self.members.is_empty() {
            return;
        }
        let names = self.members.iter().map(Member::name);
        let names: Vec<String> = names.collect();
        let width = |heading: &str, words: &mut dyn Iterator<Item = usize>| {
            words.max().unwrap_or(0).max(heading.len())
        };
        let wide = width("member", &mut names.iter().map(String::len));
        let node = width(
            "node",
            &mut self.members.iter().map(|member| member.node.len()),
        );
        text.push_str(&format!(
            "  rank  {:wide$}  {:node$}  devices\n",
            "member", "node"
        ));
        for (member, name) in self.members.iter().zip(&names) {
            let devices = match member.devices.as_slice() {
                [] => "-".to_owned(),
                devices => devices.join(" "),
            };
            let (rank, on) = (member.rank, &member.node);
            text.push_str(&format!(
                "  {rank:>4}  {name:wide$}  {on:node$}  {devices}\n"
            ));
        }
    }
}

impl Member {
    fn name(&self) -> String {
        format!("{}-{}", self.role, self.index)
    }
}

fn verdict(state: &State, gang: &GangState, found: Option<&Found>) -> Verdict {
    let (answer, members, why) = match found {
        Some(Found::Places(members)) => (Answer::Fits, placed(members), Vec::new()),
        Some(Found::None(why)) => (Answer::DoesNotFit, Vec::new(), vec![cause(why)]),
        Some(Found::NotAsked) => {
            let why = gang.why.iter().map(said).collect();
            (Answer::NotPlannedNow, Vec::new(), why)
        }
        Some(Found::Missing(answers)) => {
            let found = answers.iter().flatten().flatten();
            let why = answers.iter().filter_map(|answer| answer.as_ref().err());
            let why = why.map(cause).collect();
            (Answer::MembersMissing, placed(found), why)
        }
        Some(Found::Again { found, same }) => {
            let answer = if *same {
                Answer::SamePlan
            } else {
                Answer::OtherPlan
            };
            let why = found.as_ref().err().map(cause);
            let members = placed(found.iter().flatten());
            (answer, members, why.into_iter().collect())
        }
        None => {
            let slots = gang.plan.iter().flat_map(|plan| &plan.slots);
            let why = gang.why.iter().map(said).collect();
            let answer = match gang.phase {
                Phase::Succeeded | Phase::Failed => Answer::Ended,
                _ => Answer::Stands,
            };
            (answer, places(slots), why)
        }
    };
    Verdict {
        namespace: gang.key.namespace.as_str().to_owned(),
        name: gang.name.to_string(),
        kind: gang.kind.as_str(),
        object: gang.object.to_string(),
        phase: gang.phase.as_str(),
        plan: gang.plan.as_ref().map(|plan| plan.id.as_str().to_owned()),
        answer,
        rests_for_ms: gang.rests_until.map(|until| until.since(state.at).0),
        why,
        members,
    }
}

fn cause(why: &Unplaceable) -> Cause {
    Cause {
        code: why.code().to_owned(),
        text: why.to_string(),
    }
}

fn said(why: &Why) -> Cause {
    Cause {
        code: why.code.to_string(),
        text: why.text.to_string(),
    }
}

fn placed<'a>(members: impl IntoIterator<Item = &'a Placed>) -> Vec<Member> {
    let members = members.into_iter().enumerate();
    let member = |(rank, member): (usize, &Placed)| Member {
        rank,
        role: member.role.as_str().to_owned(),
        index: member.index,
        node: member.node.as_str().to_owned(),
        devices: member
            .devices
            .iter()
            .map(|uuid| uuid.as_str().to_owned())
            .collect(),
    };
    members.map(member).collect()
}

fn places<'a>(slots: impl IntoIterator<Item = &'a SlotState>) -> Vec<Member> {
    let slots = slots.into_iter().enumerate();
    let member = |(rank, slot): (usize, &SlotState)| {
        Some(Member {
            rank,
            role: slot.role.as_str().to_owned(),
            index: slot.index,
            node: slot.node.as_ref()?.as_str().to_owned(),
            devices: slot
                .devices
                .iter()
                .map(|uuid| uuid.as_str().to_owned())
                .collect(),
        })
    };
    slots.filter_map(member).collect()
}
