//! What the planner sees, taken out of a running scheduler and planned again from the file.

use anyhow::{Context as _, ensure};
use axum::body::Body;
use axum::http::Request;
use muster_core::state::{NodeState, State};
use muster_dump::report::{Answer, Member, Report, Verdict};
use muster_embedded::value;
use muster_scheduler::dump::{Key, redacted};
use muster_scheduler::server::Peer;
use muster_tests::jobs::{Job, Role};
use muster_tests::sim::{GANGS, SOON, Sim, gang_field};
use serde_json::Value;
use tower::ServiceExt as _;

use super::{gathering, paused};

/// The page, as `muster-scheduler dump` asks for it.
async fn page(sim: &Sim) -> anyhow::Result<String> {
    let peer: std::net::SocketAddr = "127.0.0.1:40000".parse()?;
    let request = Request::get("/debug/dump")
        .extension(Peer(peer))
        .body(Body::empty())?;
    let answer = sim.pages()?.oneshot(request).await?;
    let status = answer.status();
    let bytes = axum::body::to_bytes(answer.into_body(), 64 << 20).await?;
    let text = String::from_utf8(bytes.to_vec())?;
    ensure!(status.is_success(), "{status}: {text}");
    Ok(text)
}

fn planned(state: &State) -> Report {
    Report::of(state, &muster_dump::replay(state), None)
}

fn of<'a>(report: &'a Report, name: &str) -> anyhow::Result<&'a Verdict> {
    let mut gangs = report.gangs.iter();
    gangs
        .find(|gang| gang.name == name)
        .with_context(|| format!("{name} is not in {report:?}"))
}

/// A line for each member, as the report has them.
fn lines(members: &[Member]) -> Vec<String> {
    let line = |member: &Member| {
        let Member {
            role,
            index,
            node,
            devices,
            ..
        } = member;
        format!("{role} {index} {node} {}", devices.join(" "))
    };
    let mut lines: Vec<String> = members.iter().map(line).collect();
    lines.sort();
    lines
}

/// The same, as the Gang that the scheduler has written has them.
fn live(gang: &Value) -> Vec<String> {
    let line = |member: &Value| {
        let devices = value::items(member, &["devices"]).iter();
        let devices: Vec<&str> = devices.filter_map(Value::as_str).collect();
        let (role, node) = (
            value::text(member, &["role"]),
            value::text(member, &["node"]),
        );
        let index = value::int(member, &["index"]).unwrap_or(-1);
        format!("{role} {index} {node} {}", devices.join(" "))
    };
    let members = value::items(gang, &["status", "members"]).iter();
    let mut lines: Vec<String> = members.map(line).collect();
    lines.sort();
    lines
}

/// A name of the redacted state that stands at the same place as one of the plain one.
fn places(plain: &State, redacted: &State) -> Vec<(String, String)> {
    let devices = |node: &NodeState| -> Vec<String> {
        let devices = node.belief.iter().flat_map(|belief| &belief.report.devices);
        devices.map(|device| device.uuid.to_string()).collect()
    };
    let mut pairs = Vec::new();
    for (node, other) in plain.nodes.iter().zip(&redacted.nodes) {
        pairs.push((node.name.to_string(), other.name.to_string()));
        pairs.extend(devices(node).into_iter().zip(devices(other)));
    }
    pairs
}

#[test]
fn a_dump_of_a_live_scheduler_is_planned_as_it_has_planned_and_so_is_a_redacted_one()
-> anyhow::Result<()> {
    paused(async {
        let sim = gathering().await?;
        sim.apply(&Job::new("wide", vec![Role::new("Worker", 5, 8)]).yaml())?;
        sim.until("the next one is told why", SOON, |c| {
            gang_field(c, "wide", "reason") == "NeverFits"
        })
        .await?;
        let text = page(&sim).await?;
        let gang = sim.cluster.get(GANGS, "default", "train");
        let written = live(&gang.context("its Gang")?);
        ensure!(written.len() == 4, "{written:?}");
        let state = muster_dump::read(&text)?;
        ensure!(muster_dump::write(&state)? == text);
        let report = planned(&state);
        let train = of(&report, "train")?;
        ensure!(train.answer == Answer::SamePlan, "{train:?}");
        ensure!(lines(&train.members) == written, "{train:?}\n{written:?}");
        let wide = of(&report, "wide")?;
        let why = wide.why.first().context("a reason")?;
        ensure!(
            why.text == gang_field(&sim.cluster, "wide", "message"),
            "{why:?}"
        );

        let key = Key::of(b"a secret of sixteen bytes or more");
        let hidden = redacted(&text, &key)?;
        ensure!(
            hidden == redacted(&text, &key)?,
            "the same key, the same hashes"
        );
        for name in ["gpu-000", "train", "wide", "default"] {
            ensure!(
                !hidden.contains(&format!("\"{name}")),
                "{name} is in {hidden}"
            );
        }
        let other = muster_dump::read(&hidden)?;
        let again = planned(&other);
        let names = places(&state, &other);
        let named = |line: &String| {
            let words = line.split(' ').map(|word| {
                let pair = names.iter().find(|(_, hidden)| hidden == word);
                pair.map_or(word, |(plain, _)| plain.as_str()).to_owned()
            });
            // `r<rank>-Worker`
            let mut words: Vec<String> = words.collect();
            if let Some((_, role)) = words.first().and_then(|role| role.split_once('-')) {
                words[0] = role.to_owned();
            }
            words.join(" ")
        };
        let same: Vec<&Verdict> = again
            .gangs
            .iter()
            .filter(|gang| gang.answer == Answer::SamePlan)
            .collect();
        let [train] = same.as_slice() else {
            anyhow::bail!("{again:?}");
        };
        let mut found: Vec<String> = lines(&train.members).iter().map(named).collect();
        found.sort();
        ensure!(found == written, "{found:?}\n{written:?}");
        let codes = |report: &Report| -> Vec<String> {
            let causes = report.gangs.iter().flat_map(|gang| &gang.why);
            causes.map(|cause| cause.code.clone()).collect()
        };
        ensure!(codes(&again) == codes(&report));
        sim.stop().await;
        Ok(())
    })
}
