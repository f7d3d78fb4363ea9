//! The scheduler dies after the n-th write, or the n-th write fails, for every n, in each way in
//! which gangs are held and released. Each time the gang ends whole.

use muster_embedded::value;
use muster_kubernetes::names;
use muster_tests::pods::{By, PodGang};
use muster_tests::sim::{LEASES, PODS, SOON, Sim, SimOptions, Trap, bound, phase_of};

use super::{MINUTE, paused, train};

/// How members are kept back until there is a plan.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The job is suspended.
    Job,
    /// Pods are gated.
    Gate,
    /// Not at all: Filter refuses.
    Neither,
}

/// Writes that a crash is tried after; runs with fewer end the row.
const WRITES_MAX: u32 = 20;

impl Way {
    fn options(self, seed: u64) -> SimOptions {
        SimOptions {
            seed,
            policies: !matches!(self, Self::Neither),
            ..SimOptions::default()
        }
    }

    /// Submits a gang whose pods' names begin with `gang-`, and returns its size.
    fn submit(self, sim: &Sim) -> anyhow::Result<usize> {
        if matches!(self, Self::Gate) {
            for at in 0..4 {
                sim.apply(&gated(at))?;
            }
            return Ok(4);
        }
        sim.apply(&train("gang").yaml())?;
        Ok(5)
    }

    /// Name of the Gang object.
    fn gang(self) -> &'static str {
        match self {
            Self::Gate => "label-gang",
            Self::Job | Self::Neither => "gang",
        }
    }

    async fn judge(self, sim: &Sim) -> anyhow::Result<()> {
        match self {
            Self::Gate => {
                sim.judge_labelled("muster.dev/gang", &[("default/gang", 4)])
                    .await?
            }
            Self::Job | Self::Neither => sim.judge().await?,
        };
        Ok(())
    }
}

fn gated(at: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: gang-{at}\n  labels: {{muster.dev/gang: gang, muster.dev/index: \"{at}\"}}\n  \
         annotations: {{muster.dev/gang-size: \"4\"}}\nspec:\n  schedulerName: muster\n  tolerations: [{{key: nvidia.com/gpu, operator: Exists}}]\n  \
         containers: [{{name: main, image: x, resources: {{limits: {{nvidia.com/gpu: 4}}}}}}]\n"
    )
}

/// One run with a trap; returns whether it sprang.
async fn run(way: Way, trap: Trap, seed: u64) -> anyhow::Result<bool> {
    let mut sim = Sim::start(way.options(seed)).await?;
    sim.script.set(trap);
    let members = way.submit(&sim)?;
    let sprung = sim.sprung(MINUTE).await;
    if sprung && matches!(trap, Trap::CrashAfter(_)) {
        sim.kill_scheduler().await;
        sim.start_scheduler();
        sim.wait_ready().await?;
    }
    sim.until("the gang is whole", SOON * 3, |c| {
        bound(c, "gang-").len() == members
    })
    .await?;
    sim.until_phase(way.gang(), "Running").await?;
    way.judge(&sim).await?;
    sim.stop().await;
    Ok(sprung)
}

/// Tries a trap at every write until the writes of a run are used up; returns how many were tried.
fn every_write(way: Way, trap: impl Fn(u32) -> Trap) -> anyhow::Result<u32> {
    let mut tried = 0;
    let mut failures = Vec::new();
    for at in 1..=WRITES_MAX {
        let mut sprung = false;
        let run = paused(async {
            sprung = run(way, trap(at), u64::from(at)).await?;
            Ok(())
        });
        if let Err(error) = run {
            failures.push(format!("{way:?} {:?}: {error:#}", trap(at)));
        } else if !sprung {
            break;
        }
        tried = at;
    }
    anyhow::ensure!(
        failures.is_empty(),
        "{} of {tried} failed:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    println!("{way:?}: {tried} writes tried");
    Ok(tried)
}

#[test]
fn killed_after_any_write_of_a_held_job_it_ends_whole() -> anyhow::Result<()> {
    assert!(every_write(Way::Job, Trap::CrashAfter)? >= 9);
    Ok(())
}

#[test]
fn killed_after_any_write_of_gated_pods_it_ends_whole() -> anyhow::Result<()> {
    assert!(every_write(Way::Gate, Trap::CrashAfter)? >= 10);
    Ok(())
}

#[test]
fn killed_after_any_write_of_an_unheld_job_it_ends_whole() -> anyhow::Result<()> {
    assert!(every_write(Way::Neither, Trap::CrashAfter)? >= 8);
    Ok(())
}

#[test]
fn any_write_may_be_refused_once() -> anyhow::Result<()> {
    for way in [Way::Job, Way::Gate, Way::Neither] {
        assert!(every_write(way, Trap::RefuseAt)? >= 8);
    }
    Ok(())
}

#[test]
fn any_answer_may_be_lost_once() -> anyhow::Result<()> {
    for way in [Way::Job, Way::Gate, Way::Neither] {
        assert!(every_write(way, Trap::LoseAt)? >= 8);
    }
    Ok(())
}

/// 3,200 pods that waited for Muster to be installed were stamped one by one before the first plan, against nobody.
#[test]
fn the_first_leader_of_a_cluster_stamps_no_pod_and_the_next_one_each() -> anyhow::Result<()> {
    paused(async {
        let mut sim = Sim::start(SimOptions {
            policies: false,
            ..SimOptions::nodes(1)
        })
        .await?;
        sim.kill_scheduler().await;
        let lease = "muster-scheduler";
        sim.cluster.delete(LEASES, names::NAMESPACE, lease)?;
        // Three nodes' worth, on one.
        sim.apply(&PodGang::new("big", By::Label, 3, 8).yaml())?;
        let stamped = |sim: &Sim| {
            let pods = sim.cluster.list(PODS).into_iter();
            pods.filter(|pod| {
                !value::text(pod, &["metadata", "annotations", names::EPOCH]).is_empty()
            })
            .count()
        };
        sim.start_scheduler();
        sim.wait_ready().await?;
        sim.until("it waits", SOON, |cluster| {
            phase_of(cluster, "label-big") == "Waiting"
        })
        .await?;
        assert_eq!(stamped(&sim), 0, "there is nobody to fence off");
        sim.kill_scheduler().await;
        sim.start_scheduler();
        sim.wait_ready().await?;
        assert_eq!(stamped(&sim), 3, "now there is");
        sim.stop().await;
        Ok(())
    })
}
