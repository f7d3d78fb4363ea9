//! Stories: what goes wrong in a few steps, one after the other, where chance alone hardly ever gets to the last.
//!
//! | story | what must not come of it |
//! |---|---|
//! | a Binding is on its way while its gang is released whole, and others wait for the room | the room is given away, and taken |
//! | a leader dies with a Binding on its way, the next one plans | the Binding applies after that |
//! | a Binding's answer is lost, and no watch shows that it was applied, until its gang is released whole | its room is given away |
//! | a follower has not seen what the leader bound last, and leads | it plans as if nothing had been bound |
//! | a leader stands still in the middle of a write, another one leads | the write goes out after that |
//! | a pod is made again under its name while a Binding is on its way | the other pod is bound |
//! | nobody makes the pods of a job that is planned | its room is kept for ever, or it is never tried again |
//! | a user thinks better of it in the middle of a plan | a gang bound in part, room that nobody gives back |
//!
//! Each is told in a cluster where nothing else happens; now and then in a storm nevertheless.

use std::time::Duration;

use muster_embedded::value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ambush::{Ambush, Sender, Step, Target};
use super::mischief::Undo;
use super::replica::Replica;
use super::workload::{self, GPUS, Set};
use super::{Storm, is_long, judge};
use crate::sim::{GANGS, PODS};

/// Longest time until the first write of a gang that has the cluster for itself.
const SPRUNG_MAX: Duration = Duration::from_secs(60);
/// Longest time for which a Binding is on its way: an API server gives a request up after a minute.
const PARKED_MAX: Duration = Duration::from_secs(52);
/// Longest time until another leader is there and has planned.
const SUCCESSION_MAX: Duration = Duration::from_secs(50);
/// Time after which a plan whose members do not come is given back, and made anew after a rest.
const NOBODY_MAX: Duration = Duration::from_secs(95);
/// Time within which a leader that sees no pods gives up a gang of which it knows nothing, and plans others there.
const GIVEN_UP_MAX: Duration = Duration::from_secs(45);
/// How long a new leader's lists of pods take.
const SLOW_LIST: Duration = Duration::from_secs(5);
/// How long a kubelet takes that is slow, at most.
const SLOW_KUBELET: Duration = Duration::from_secs(120);
/// How often a story looks whether its next step is due.
const LOOK: Duration = Duration::from_millis(100);

/// Which story is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    /// The gang is released while a Binding is on its way. `said_before`: it had been refused once, so that
    /// kube-scheduler has nothing new to write on the pod.
    Release {
        said_before: bool,
    },
    Succession,
    /// Nobody can be asked either what became of the Binding.
    LostAnswer {
        unread: bool,
    },
    StaleFollower,
    Deposed,
    Recreated,
    NobodyComes,
    SecondThoughts,
}

/// Each as often as it is listed.
const TOLD: [Story; 18] = [
    Story::Release { said_before: true },
    Story::Release { said_before: true },
    Story::Release { said_before: true },
    Story::Release { said_before: false },
    Story::Succession,
    Story::Succession,
    Story::LostAnswer { unread: true },
    Story::LostAnswer { unread: true },
    Story::LostAnswer { unread: false },
    Story::LostAnswer { unread: false },
    Story::StaleFollower,
    Story::StaleFollower,
    Story::Deposed,
    Story::Deposed,
    Story::Recreated,
    Story::NobodyComes,
    Story::SecondThoughts,
    Story::SecondThoughts,
];

impl Storm {
    /// Tells some stories, one after the other.
    pub(super) async fn stories(&mut self) -> Result<(), String> {
        let stories = if is_long(self.seed) { 2 } else { 1 };
        for _ in 0..stories {
            let story = self.a_story();
            self.story(story).await?;
            self.all_end().await?;
        }
        Ok(())
    }

    async fn story(&mut self, story: Story) -> Result<(), String> {
        let is_windy = story != Story::NobodyComes && self.rng.chance(20);
        self.log
            .note(format!("a story: {story:?}, windy: {is_windy}"));
        judge::locked(&self.judge).calm(false);
        self.weather.storm(is_windy);
        self.done = self.done.saturating_add(1);
        match story {
            Story::Release { said_before } => self.released_meanwhile(said_before).await?,
            Story::Succession => self.leader_dies().await?,
            Story::LostAnswer { unread } => self.answer_is_lost(unread).await?,
            Story::StaleFollower => self.stale_follower_leads().await?,
            Story::Deposed => self.leader_stands_still().await?,
            Story::Recreated => self.pod_is_made_again().await?,
            Story::NobodyComes => self.members_do_not_come().await?,
            Story::SecondThoughts => self.user_thinks_better().await?,
        }
        self.clear_up();
        Ok(())
    }

    fn a_story(&mut self) -> Story {
        let named = |story: &Story| {
            self.only
                .as_ref()
                .is_none_or(|only| format!("{story:?}").starts_with(only))
        };
        let told: Vec<Story> = TOLD.into_iter().filter(named).collect();
        let story = self.rng.pick(&told).copied();
        match story.unwrap_or(Story::SecondThoughts) {
            Story::StaleFollower | Story::Deposed if self.replicas.len() < 2 => {
                Story::LostAnswer { unread: true }
            }
            other => other,
        }
    }

    fn leader(&mut self) -> Option<&mut Replica> {
        self.replicas
            .iter_mut()
            .find(|replica| replica.leads() && replica.is_up())
    }

    /// Looks often whether something holds; whether it did in time.
    async fn soon(
        &mut self,
        limit: Duration,
        holds: impl Fn(&mut Self) -> bool,
    ) -> Result<bool, String> {
        self.until_every(LOOK, limit, holds).await
    }

    /// The object whose write has been met.
    async fn sprung(&mut self) -> Result<Option<String>, String> {
        self.soon(SPRUNG_MAX, |storm| storm.weather.victim().is_some())
            .await?;
        Ok(self.weather.victim())
    }

    /// A gang of bare pods.
    fn put(&mut self, make: impl FnOnce(&str) -> Set) -> String {
        let name = self.next_name("set");
        let set = make(&name);
        self.submit_set(set);
        name
    }

    /// Everybody wants a whole node.
    fn crowd(&mut self, seconds: u64) {
        for _ in 0..self.nodes {
            self.put(|name| workload::alone(name, GPUS, Some(seconds)));
        }
    }

    /// A kubelet takes nothing in: no agent tells who holds which devices.
    fn stop_kubelet_of(&mut self, node: String) {
        self.log.note(format!("the kubelet of {node} is slow"));
        self.cluster.kubelet().set_silent(&node, true);
        self.undo
            .push((Instant::now() + SLOW_KUBELET, Undo::Kubelet(node)));
    }

    /// Whether a pod of another gang was bound to the node since.
    fn has_others(&self, node: &str, set: &str, since: Instant) -> bool {
        let judge = judge::locked(&self.judge);
        judge.pods().any(|(_, pod)| {
            pod.node == node
                && !pod.name.starts_with(set)
                && pod.bound.is_some_and(|bound| bound.at > since)
        })
    }

    /// Node of a plan.
    fn planned_node(&self, gang: &str) -> String {
        let gang = self.cluster.get(GANGS, "default", gang);
        let members = gang
            .as_ref()
            .map_or(&[][..], |gang| value::items(gang, &["status", "members"]));
        members
            .first()
            .map_or("", |member| value::text(member, &["node"]))
            .to_owned()
    }

    fn planned_epoch(&self) -> u64 {
        judge::locked(&self.judge).planned_epoch()
    }

    async fn released_meanwhile(&mut self, said_before: bool) -> Result<(), String> {
        let parked = CancellationToken::new();
        let mut steps = vec![Step::Forbid, Step::Park(parked.clone())];
        if !said_before {
            steps.remove(0);
        }
        let name = self.put(|name| workload::labelled(name, 2, GPUS / 2, Some(30)));
        let prefix = format!("{name}-");
        self.weather
            .ambush(Ambush::new(&prefix, Target::Bindings, steps).then(Step::Forbid));
        if self.sprung().await?.is_none() {
            return Ok(());
        }
        let (since, node) = (Instant::now(), self.planned_node(&format!("label-{name}")));
        // One of them still waits when the gang is released.
        self.crowd(80);
        self.soon(PARKED_MAX, |storm| storm.has_others(&node, &prefix, since))
            .await?;
        self.log.note("the parked Binding is applied");
        parked.cancel();
        self.pass(Duration::from_secs(8)).await
    }

    async fn leader_dies(&mut self) -> Result<(), String> {
        let Some(hold) = self.leader().and_then(|leader| leader.hold()) else {
            return Ok(());
        };
        let parked = CancellationToken::new();
        let name = self.put(|name| workload::labelled(name, 2, GPUS / 2, Some(30)));
        let pair = Sender::Dies(hold, self.kube_scheduler.clone());
        let steps = [Step::Park(parked.clone())];
        self.weather.ambush(
            Ambush::new(&format!("{name}-"), Target::Bindings, steps)
                .then(Step::Forbid)
                .sender(pair),
        );
        if self.sprung().await?.is_none() {
            return Ok(());
        }
        let epoch = self.planned_epoch();
        self.crowd(20);
        self.soon(SUCCESSION_MAX, |storm| storm.planned_epoch() > epoch)
            .await?;
        self.log.note("the parked Binding is applied");
        parked.cancel();
        self.soon(LOOK * 3, |_| false).await?;
        self.start_kube_scheduler()?;
        self.pass(Duration::from_secs(8)).await
    }

    /// The gang runs, and its leader believes that it does not. It gives the gang up; what it must not give away is the
    /// room.
    async fn answer_is_lost(&mut self, unread: bool) -> Result<(), String> {
        let name = self.put(|name| workload::labelled(name, 1, GPUS, Some(30)));
        let prefix = format!("{name}-");
        let steps = [Step::Throttle, Step::Lose];
        self.weather
            .ambush(Ambush::new(&prefix, Target::Bindings, steps).unread(unread));
        if self.sprung().await?.is_none() {
            return Ok(());
        }
        let node = self.planned_node(&format!("label-{name}"));
        self.stop_kubelet_of(node);
        // One of them still waits when the gang is given up.
        self.crowd(80);
        self.soon(LOOK * 4, |_| false).await?;
        let Some(client) = self.leader().map(|leader| leader.client) else {
            return Ok(());
        };
        self.log.note(format!("{client} sees no pods any more"));
        self.weather.blind(client, "pods", GIVEN_UP_MAX);
        self.pass(GIVEN_UP_MAX).await
    }

    async fn stale_follower_leads(&mut self) -> Result<(), String> {
        let followers = self.replicas.iter().filter(|replica| !replica.leads());
        let Some(follower) = followers.map(|replica| replica.client).next() else {
            return Ok(());
        };
        self.log.note(format!("{follower} sees no pods any more"));
        self.weather
            .blind(follower, "pods", Duration::from_secs(50));
        // What it plans before it has listed them is planned blindly.
        self.weather.slow_lists(follower, "pods", SLOW_LIST);
        for node in 0..self.nodes {
            self.stop_kubelet_of(format!("gpu-{node:03}"));
        }
        let since = Instant::now();
        self.crowd(30);
        let nodes = usize::try_from(self.nodes).unwrap_or(0);
        let is_full = move |storm: &mut Self| {
            let judge = judge::locked(&storm.judge);
            let bound = judge
                .pods()
                .filter(|(_, pod)| pod.bound.is_some_and(|bound| bound.at > since));
            bound.count() >= nodes
        };
        if !self.soon(Duration::from_secs(25), is_full).await? {
            return Ok(());
        }
        let epoch = self.planned_epoch();
        let Some(leader) = self.leader() else {
            return Ok(());
        };
        leader.kill_after(0, Duration::from_secs(20));
        self.log
            .note("the leader is killed, and somebody deletes all Gangs");
        for gang in self.cluster.list(GANGS) {
            let _ = self.cluster.delete(GANGS, "default", value::name(&gang));
        }
        let name = self.next_name("job");
        self.create(workload::job(&name, &[("Worker", 1, GPUS)], Some(10)));
        self.soon(SUCCESSION_MAX, |storm| storm.planned_epoch() > epoch)
            .await?;
        self.pass(Duration::from_secs(8)).await
    }

    async fn leader_stands_still(&mut self) -> Result<(), String> {
        // Longer than a Lease lasts, and shorter than a write is tried.
        let time = Duration::from_millis(16_800 + self.rng.below(2_400));
        let Some(leader) = self.leader() else {
            return Ok(());
        };
        let (Some(hold), client) = (leader.hold(), leader.client) else {
            return Ok(());
        };
        let name = self.put(|name| workload::labelled(name, 2, 1, Some(20)));
        self.weather.ambush(
            Ambush::new(
                &format!("label-{name}"),
                Target::GangStatuses,
                [Step::Throttle],
            )
            .sender(Sender::Stands(hold)),
        );
        if self.sprung().await?.is_none() {
            return Ok(());
        }
        self.log
            .note(format!("{client} stands still for {} ms", time.as_millis()));
        let deposed = self
            .replicas
            .iter_mut()
            .find(|replica| replica.client == client);
        if let Some(deposed) = deposed {
            deposed.stop_for(time);
        }
        self.soon(time + Duration::from_secs(8), |_| false).await?;
        Ok(())
    }

    async fn pod_is_made_again(&mut self) -> Result<(), String> {
        let parked = CancellationToken::new();
        let steps = [Step::Park(parked.clone())];
        let name = self.put(|name| workload::alone(name, 2, Some(20)));
        self.weather
            .ambush(Ambush::new(&format!("{name}-"), Target::Bindings, steps).then(Step::Forbid));
        let Some(pod) = self.sprung().await? else {
            return Ok(());
        };
        self.log
            .note(format!("{pod} is made again, for another scheduler"));
        let _ = self.cluster.delete(PODS, "default", &pod);
        self.create(workload::elsewhere(&pod, 2));
        let rest = Duration::from_millis(200 + self.rng.below(6_000));
        self.soon(rest, |_| false).await?;
        self.log.note("the parked Binding is applied");
        parked.cancel();
        self.pass(Duration::from_secs(3)).await?;
        self.undo.push((Instant::now(), Undo::Stranger(pod)));
        Ok(())
    }

    async fn members_do_not_come(&mut self) -> Result<(), String> {
        self.operator.kill();
        let name = self.next_name("job");
        self.create(workload::job(&name, &[("Worker", 2, GPUS)], Some(20)));
        let plan = |storm: &Self| {
            let gang = storm.cluster.get(GANGS, "default", &name);
            let id = gang
                .as_ref()
                .map_or("", |gang| value::text(gang, &["status", "planId"]));
            id.to_owned()
        };
        self.soon(SPRUNG_MAX, |storm| !plan(storm).is_empty())
            .await?;
        let first = plan(self);
        let again = move |storm: &mut Self| {
            let now = plan(storm);
            !now.is_empty() && now != first
        };
        let is_again = self.soon(NOBODY_MAX, again).await?;
        self.start_operator()?;
        match is_again {
            true => Ok(()),
            false => Err(format!(
                "S5, L1: {name}, whose pods nobody makes, is not planned anew within {} s:\n{}",
                NOBODY_MAX.as_secs(),
                self.picture()
            )),
        }
    }

    async fn user_thinks_better(&mut self) -> Result<(), String> {
        let target = match self.rng.chance(50) {
            true => Target::Bindings,
            false => Target::GangStatuses,
        };
        let steps = vec![Step::Throttle; 1 + self.rng.index(3)];
        self.weather.ambush(Ambush::new("", target, steps));
        for _ in 0..2 {
            self.submit();
        }
        if self.sprung().await?.is_none() {
            return Ok(());
        }
        for _ in 0..1 + self.rng.below(3) {
            match self.rng.below(9) {
                0 | 1 => self.resize_job(),
                2 => self.suspend_job(),
                3 => self.delete_gang(),
                4 => self.delete_pod(),
                5 => self.delete_record(),
                6 => self.cordon(),
                7 => self.change_devices(),
                _ => self.restart_kube_scheduler()?,
            }
            let rest = Duration::from_millis(self.rng.below(1_500));
            self.soon(rest, |_| false).await?;
        }
        self.take_back(false);
        self.pass(Duration::from_secs(15)).await
    }
}
