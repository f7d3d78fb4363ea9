//! What a program costs: processor time and memory, read from /proc.

use std::time::Duration;

/// Resources of one process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time since the process started, user and system together.
    pub cpu: Duration,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// Largest resident memory so far, bytes.
    pub rss_peak_bytes: u64,
}

impl Usage {
    /// The usage of a process, or nothing when it is gone.
    pub fn of(pid: u32) -> Option<Usage> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some(Usage {
            cpu: cpu_time(&stat, rustix::param::clock_ticks_per_second())?,
            rss_bytes: status_bytes(&status, "VmRSS:"),
            rss_peak_bytes: status_bytes(&status, "VmHWM:"),
        })
    }

    /// The usage of a process and the processes that it has started, added up, or nothing when it is gone. Of a child's
    /// memory what it shares with others is left out: that is the program itself, which the parent has as well. The peak
    /// adds each one's own peak, which is what they took at one moment at most.
    pub fn with_children(pid: u32) -> Option<Usage> {
        let mut sum = Usage::of(pid)?;
        for child in children(pid) {
            let usage = Usage::of(child).unwrap_or_default();
            let shared = shared_bytes(child);
            let own = usage.rss_bytes.saturating_sub(shared);
            let own_peak = usage.rss_peak_bytes.saturating_sub(shared);
            sum.cpu = sum.cpu.saturating_add(usage.cpu);
            sum.rss_bytes = sum.rss_bytes.saturating_add(own);
            sum.rss_peak_bytes = sum.rss_peak_bytes.saturating_add(own_peak);
        }
        Some(sum)
    }
}

/// Resident memory of a process that another one has mapped, too; none when it is gone or may not be read.
fn shared_bytes(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kinds = ["Shared_Clean:", "Shared_Dirty:"];
    let shared = kinds.map(|kind| status_bytes(&rollup, kind));
    shared.into_iter().fold(0, u64::saturating_add)
}

/// Processes whose parent it is.
pub fn children(pid: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |child: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        parent(&stat) == Some(pid)
    };
    pids.filter(is_child).collect()
}

/// The parent is field 4.
fn parent(stat: &str) -> Option<u32> {
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// utime and stime are fields 14 and 15, counted from 1; the program's name (field 2) may hold spaces and parentheses.
fn cpu_time(stat: &str, ticks_per_second: u64) -> Option<Duration> {
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = user.checked_add(system)?;
    let milliseconds = ticks.checked_mul(1_000)?.checked_div(ticks_per_second)?;
    Some(Duration::from_millis(milliseconds))
}

fn status_bytes(status: &str, key: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .and_then(|kib| kib.checked_mul(1_024))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a) b (c)) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0 20 0";
        assert_eq!(cpu_time(stat, 100), Some(Duration::from_secs(2)));
        assert_eq!(cpu_time("42 (a) S 1", 100), None);
    }

    #[test]
    fn this_process_has_memory() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 100_000);
        assert!(usage.rss_peak_bytes >= usage.rss_bytes);
        assert_eq!(Usage::of(u32::MAX), None);
    }

    #[test]
    fn children_are_part_of_what_a_program_costs() {
        let own = Usage::with_children(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        let both = Usage::with_children(std::process::id()).unwrap();
        assert!(both.rss_peak_bytes > own.rss_peak_bytes);
        let usage = Usage::of(child.id()).unwrap();
        assert!((1..usage.rss_bytes).contains(&shared_bytes(child.id())));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(parent("42 (a) b (c)) S 7 1"), Some(7));
    }
}
