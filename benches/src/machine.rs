//! The machine's own part in a figure: its cores, and who else used them.

use std::time::Duration;

use serde::Serialize;

/// What the figures were seen on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores.
    pub cores: usize,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Kernel.
    pub kernel: String,
    /// Commit of the checkout, `unknown` outside of one.
    pub commit: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let memory_kib = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0);
        let commit = std::process::Command::new("git")
            .args(["rev-parse", "--short", "HEAD"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: memory_kib.saturating_mul(1024),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: commit.unwrap_or_else(|| "unknown".into()),
        }
    }
}

/// Processor time that the whole machine has spent since it started, all cores together, time
/// stolen by its host included.
pub fn busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_of(&stat)
}

/// The kernel counts in hundredths of a second here, whatever its own tick is.
const TICKS_PER_SECOND: u64 = 100;

fn busy_of(stat: &str) -> Duration {
    let Some(rest) = stat
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("cpu "))
    else {
        return Duration::ZERO;
    };
    // user nice system idle iowait irq softirq steal guest guest_nice; guest is part of user.
    let ticks = rest
        .split_whitespace()
        .take(8)
        .enumerate()
        .filter(|(place, _)| *place != 3 && *place != 4)
        .filter_map(|(_, field)| field.parse::<u64>().ok())
        .fold(0_u64, u64::saturating_add);
    Duration::from_millis(ticks.saturating_mul(1000) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_for_disks_is_not_busy() {
        let stat = "cpu  100 10 40 9000 500 5 5 40 7 0\ncpu0 1 1 1 1\n";
        assert_eq!(busy_of(stat), Duration::from_secs(2));
        assert_eq!(busy_of(""), Duration::ZERO);
    }
}
