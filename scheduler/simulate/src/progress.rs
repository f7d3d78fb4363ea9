//! A line on the terminal that says how far a replay is.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::replay::Progress;

/// Time between two updates.
const EVERY: Duration = Duration::from_millis(200);

/// Updates a line on stderr, at most five times a second, and only where that is a terminal.
#[derive(Debug)]
pub struct Meter {
    shown: bool,
    next: Option<Instant>,
}

impl Meter {
    /// A meter for stderr.
    pub fn stderr() -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        Self {
            shown: false,
            next: is_terminal.then(Instant::now),
        }
    }

    /// Shows how far a replay is, if it is time for that.
    pub fn update(&mut self, progress: Progress) {
        self.show(|| {
            let percent = percent(progress.ended, progress.gangs);
            let hours = progress.now_ms.checked_div(3_600_000).unwrap_or(0);
            format!(
                "{} of {} gangs ended ({percent} %), {hours} h replayed",
                progress.ended, progress.gangs
            )
        });
    }

    /// Shows how many pods of how many have arrived, if it is time for that.
    pub fn update_arrivals(&mut self, arrived: usize, all: usize) {
        self.show(|| {
            let percent = percent(arrived, all);
            format!("{arrived} of {all} pods arrived ({percent} %)")
        });
    }

    fn show(&mut self, text: impl FnOnce() -> String) {
        let Some(next) = self.next else { return };
        let now = Instant::now();
        if now < next {
            return;
        }
        self.next = now.checked_add(EVERY);
        self.shown = true;
        // A terminal that is gone is no reason to stop.
        let _ = write!(std::io::stderr(), "\r{}  ", text());
    }

    /// Takes the line away.
    pub fn finish(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r{:70}\r", "");
        }
    }
}

fn percent(part: usize, whole: usize) -> usize {
    part.saturating_mul(100).checked_div(whole).unwrap_or(0)
}
