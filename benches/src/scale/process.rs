//! What a process costs, over a span of time.

use std::time::{Duration, Instant};

use muster_control_plane::Child;

use crate::machine;

/// What a process cost over a span.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Share of one core.
    pub cores: f64,
    /// Resident memory at the end, bytes.
    pub rss_bytes: u64,
    /// Share of the machine that other programs used meanwhile, this one included.
    pub others: f64,
}

/// Watches a process for a while.
///
/// # Errors
/// It ended meanwhile.
pub async fn watch(child: &mut Child, span: Duration) -> anyhow::Result<Cost> {
    let (since, before, busy) = (Instant::now(), child.usage()?, machine::busy());
    tokio::time::sleep(span).await;
    let (after, busy) = (child.usage()?, machine::busy().saturating_sub(busy));
    let seconds = since.elapsed().as_secs_f64();
    let used = after.cpu.saturating_sub(before.cpu);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(Cost {
        cores: used.as_secs_f64() / seconds,
        rss_bytes: after.rss_bytes,
        others: busy.saturating_sub(used).as_secs_f64() / seconds / cores as f64,
    })
}

/// Most files that this process and its children may have open at once; `None` where that is not told.
pub fn files_max() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_may_open_files() {
        assert!(super::files_max().is_none_or(|files| files >= 64));
    }
}
