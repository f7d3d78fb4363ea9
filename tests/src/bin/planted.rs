//! Plants one bug after the other and tells which seed of the storms finds it first.
//!
//! `cargo run -p muster-tests --bin planted` tries all; with names, only those. `SIM_SEEDS=50` says after
//! how many seeds a bug counts as not found, `SIM_THREADS=1` on how many processors they run. Fails when fewer than
//! 95 of 100 are found. A release build has no bugs to plant.

/// Seeds after which a bug counts as not found: no more than CI runs.
#[cfg(debug_assertions)]
const SEEDS: u64 = 100;

#[cfg(debug_assertions)]
fn main() -> anyhow::Result<()> {
    use muster_tests::sim::planting;

    let names: Vec<String> = std::env::args().skip(1).collect();
    let seeds = std::env::var("SIM_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok());
    planting::try_these(&planting::named(&names.join(","))?, seeds.unwrap_or(SEEDS))
}

#[cfg(not(debug_assertions))]
fn main() -> anyhow::Result<()> {
    anyhow::bail!("a release build has no planted bugs: run it without --release")
}
