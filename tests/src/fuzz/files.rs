//! Files that an operator gives to Muster, and quantities, which are in every object.

use muster_kubernetes::quantity::Quantity;
use muster_scheduler::config::Config;

use super::{Target, corpus};

/// Which files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Config,
    Dump,
    Quantity,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Config, Self::Dump, Self::Quantity];
}

/// One kind of files.
pub(super) struct File {
    kind: Kind,
}

impl File {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind }
    }
}

fn config(text: &str) -> Result<String, String> {
    match Config::parse(text) {
        Ok(config) => {
            // What it takes is within its limits, and so is what the core makes of it.
            config
                .check()
                .map_err(|error| format!("it is taken: {error}"))?;
            let core = config.core();
            if core.gather_max.0 == 0 || core.report_age_max.0 == 0 || core.repair_max.0 == 0 {
                return Err(format!("a wait of no time is taken: {core:?}"));
            }
            Ok(format!(
                "taken {} {}",
                core.topology.len(),
                core.device_resources.len()
            ))
        }
        Err(error) => Ok(error.to_string()),
    }
}

fn dump(text: &str) -> Result<String, String> {
    let state = match muster_dump::read(text) {
        Ok(state) => state,
        Err(error) => return Ok(error.to_string()),
    };
    let again = muster_dump::write(&state).map_err(|error| error.to_string())?;
    muster_dump::read(&again).map_err(|error| format!("what is written is not read: {error}"))?;
    let replay = muster_dump::replay(&state);
    Ok(format!("planned {}", replay.gangs.len().min(4)))
}

fn quantity(text: &str) -> Result<String, String> {
    let quantity = match Quantity::parse(text) {
        Ok(quantity) => quantity,
        Err(error) => return Ok(error.to_string()),
    };
    let (units, milli) = (quantity.units(), quantity.milli());
    // A thousandth more or less is rounding; a request is never read as less than it is.
    if units < milli / 1000 || (quantity.is_zero() != (milli == 0)) {
        return Err(format!("{units} units are {milli} thousandths"));
    }
    let size = milli.checked_ilog10().unwrap_or(0);
    Ok(format!(
        "taken {}",
        "i".repeat(usize::try_from(size).unwrap_or(0))
    ))
}

impl Target for File {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Config => "config",
            Kind::Dump => "dump",
            Kind::Quantity => "quantity",
        }
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let texts = match self.kind {
            Kind::Config => corpus::configs(),
            Kind::Dump => corpus::dumps(),
            Kind::Quantity => corpus::QUANTITIES
                .iter()
                .map(|text| (*text).to_owned())
                .collect(),
        };
        texts.into_iter().map(String::into_bytes).collect()
    }

    fn words(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Config => corpus::CONFIG_WORDS,
            _ => corpus::WORDS,
        }
    }

    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let Ok(text) = std::str::from_utf8(input) else {
            return Ok("no text".into());
        };
        match self.kind {
            Kind::Config => config(text),
            Kind::Dump => dump(text),
            Kind::Quantity => quantity(text),
        }
    }
}
