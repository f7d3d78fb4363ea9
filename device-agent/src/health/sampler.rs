//! The reader of devices as a whole: what follows for all of them when the driver cannot be asked, and for how
//! long after that.
//!
//! ```text
//!   Hung, Crashed, NoDriver --row of the table--> worst cause of every device
//!   Ok                      --probation--> the same verdict for some time, then none
//! ```

use std::time::Duration;

use muster_proto::inventory::{HealthSource, Sampler};

use super::table::Table;
use super::{Note, State, Verdict};

/// Remembers how the reader is doing, and what was wrong with it before.
#[derive(Debug, Clone, Default)]
pub(super) struct SamplerMemory {
    now: Sampler,
    /// The last fault, until its probation is over: name of its row, and when it ended.
    fault: Option<(&'static str, Option<Duration>)>,
}

/// The name of the row about a state of the reader; `None` for one in which devices are read, or will be.
fn row_name(sampler: Sampler) -> Option<&'static str> {
    match sampler {
        Sampler::Hung => Some("sampler-hung"),
        Sampler::Crashed => Some("sampler-crashed"),
        Sampler::NoDriver => Some("no-driver"),
        Sampler::Ok | Sampler::Unspecified => None,
    }
}

impl SamplerMemory {
    /// Takes in how the reader is doing. Returns what to tell of it.
    pub(super) fn take(&mut self, now: Duration, sampler: Sampler, table: &Table) -> Option<Note> {
        let before = std::mem::replace(&mut self.now, sampler);
        if before == sampler {
            return None;
        }
        let name = row_name(sampler);
        match (name, &mut self.fault) {
            (Some(name), _) => self.fault = Some((name, None)),
            (None, Some((_, ended))) => *ended = Some(now),
            // The first reading of all.
            (None, None) => return None,
        }
        let state = name
            .and_then(|name| table.sampler(name))
            .map_or(State::Healthy, |row| row.state);
        Some(Note {
            device_uuid: String::new(),
            source: HealthSource::Sampler,
            code: i32::from(sampler).into(),
            count: 1,
            state,
            fatal: name.is_some(),
        })
    }

    /// When its verdict changes although nothing new is read.
    pub(super) fn ends(&self, table: &Table) -> Option<Duration> {
        let (name, ended) = self.fault?;
        ended?.checked_add(table.sampler(name)?.probation)
    }

    /// What follows for every device. Forgets a fault whose probation is over.
    pub(super) fn verdict(&mut self, now: Duration, table: &Table) -> Verdict {
        if self.ends(table).is_some_and(|end| end <= now) {
            self.fault = None;
        }
        let Some((name, ended)) = self.fault else {
            return Verdict::healthy();
        };
        let Some(row) = table.sampler(name) else {
            return Verdict::healthy();
        };
        // A device that is read again has not failed, whatever it was before.
        let (state, detail) = match ended {
            None => (row.state, row.text.clone()),
            Some(_) => (
                row.state.min(State::Suspect),
                format!("on probation, for before: {}", row.text),
            ),
        };
        Verdict {
            state,
            reason: name.into(),
            detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(memory: &mut SamplerMemory, at_s: u64, sampler: Sampler) -> Option<(i64, State, bool)> {
        let table = Table::embedded().unwrap();
        let note = memory.take(Duration::from_secs(at_s), sampler, &table)?;
        assert_eq!(note.source, HealthSource::Sampler);
        Some((note.code, note.state, note.fatal))
    }

    fn is(memory: &mut SamplerMemory, at_s: u64) -> (State, String) {
        let verdict = memory.verdict(Duration::from_secs(at_s), &Table::embedded().unwrap());
        (verdict.state, verdict.reason)
    }

    #[test]
    fn a_driver_that_hung_is_on_probation_once_it_answers() {
        let mut memory = SamplerMemory::default();
        let well = (State::Healthy, String::new());
        let hung = (State::Suspect, "sampler-hung".to_owned());
        assert_eq!(told(&mut memory, 0, Sampler::Ok), None);
        assert_eq!(is(&mut memory, 0), well);
        assert_eq!(
            told(&mut memory, 10, Sampler::Hung),
            Some((2, State::Suspect, true))
        );
        assert_eq!(told(&mut memory, 11, Sampler::Hung), None);
        assert_eq!(is(&mut memory, 4000), hung);
        assert_eq!(
            told(&mut memory, 4001, Sampler::Ok),
            Some((1, State::Healthy, false))
        );
        assert_eq!(is(&mut memory, 4030), hung);
        let table = Table::embedded().unwrap();
        assert_eq!(memory.ends(&table), Some(Duration::from_secs(4031)));
        assert_eq!(is(&mut memory, 4031), well);
        assert_eq!(memory.ends(&table), None);
    }

    #[test]
    fn a_fault_during_probation_begins_it_anew_and_the_last_one_counts() {
        let mut memory = SamplerMemory::default();
        told(&mut memory, 10, Sampler::Crashed);
        told(&mut memory, 20, Sampler::Ok);
        told(&mut memory, 30, Sampler::Hung);
        assert_eq!(memory.ends(&Table::embedded().unwrap()), None);
        told(&mut memory, 40, Sampler::Ok);
        let hung = (State::Suspect, "sampler-hung".to_owned());
        assert_eq!(is(&mut memory, 69), hung);
        assert_eq!(is(&mut memory, 70).0, State::Healthy);
    }
}
