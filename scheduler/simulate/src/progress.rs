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

    /// Shows how far it is, if it is time for that.
    pub fn update(&mut self, progress: Progress) {
        let Some(next) = self.next else { return };
        let now = Instant::now();
        if now < next {
            return;
        }
        self.next = now.checked_add(EVERY);
        self.shown = true;
        let percent = progress
            .ended
            .saturating_mul(100)
            .checked_div(progress.gangs);
        let hours = progress.now_ms.checked_div(3_600_000).unwrap_or(0);
        // A terminal that is gone is no reason to stop.
        let _ = write!(
            std::io::stderr(),
            "\r{} of {} gangs ended ({} %), {hours} h replayed  ",
            progress.ended,
            progress.gangs,
            percent.unwrap_or(0)
        );
    }

    /// Takes the line away.
    pub fn finish(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r{:70}\r", "");
        }
    }
}
