//! The whole scheduler in seeded storms, on a paused clock. One seed is one run.
//!
//! ```text
//!   SIM_SEED=7      one seed, with the end of its story when something is wrong
//!   SIM_TRACE=1     and with all of its story
//!   SIM_FIRST=1000  where a range begins
//!   SIM_SEEDS=500   how many seeds it has; from 50,000,000 on all runs are long
//!   SIM_STORY=Stale only stories whose names begin so, after the storms
//!   SIM_THREADS=1   on how many processors; all of them otherwise
//! ```
//! `SIM_SEED=7 cargo test -p muster-tests --test simulation storms -- --nocapture`

#[cfg(debug_assertions)]
mod planted;
mod range;
mod same_seed;
mod systematic;

/// Values are parsed, copied and dropped all the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The command that runs one seed again.
fn replay(seed: u64) -> String {
    format!("SIM_SEED={seed} cargo test -p muster-tests --test simulation storms -- --nocapture")
}
