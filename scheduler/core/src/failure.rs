//! What becomes of a gang with a member on a GPU that has failed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::workload::InvalidWorkload;

/// Annotation by which a gang says so.
pub const ON_GPU_FAILURE: &str = "muster.dev/on-gpu-failure";

/// Longest part of a wrong value that is shown, characters.
const SHOWN_MAX: usize = 64;

/// What becomes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnGpuFailure {
    /// It is told.
    #[default]
    Ignore,
    /// The member's pod is deleted, and the one that its controller makes in its place goes to another node.
    Repair,
    /// All of it is released, and waits for a place again.
    Evict,
}

impl OnGpuFailure {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ignore, Self::Repair, Self::Evict];

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ignore => "Ignore",
            Self::Repair => "Repair",
            Self::Evict => "Evict",
        }
    }

    /// What a gang asks for by its annotations; `None` where it asks for nothing.
    pub fn of(settings: &BTreeMap<Arc<str>, Arc<str>>) -> Result<Option<Self>, InvalidWorkload> {
        let Some(value) = settings.get(ON_GPU_FAILURE) else {
            return Ok(None);
        };
        let wanted = Self::ALL.into_iter().find(|one| one.as_str() == &**value);
        wanted.map(Some).ok_or_else(|| InvalidWorkload {
            field: Arc::from(ON_GPU_FAILURE),
            value: value.chars().take(SHOWN_MAX).collect::<String>().into(),
            limit: Arc::from("must be Repair, Evict or Ignore"),
        })
    }
}

impl fmt::Display for OnGpuFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Result<Option<OnGpuFailure>, String> {
        let settings = BTreeMap::from([(Arc::from(ON_GPU_FAILURE), Arc::from(value))]);
        OnGpuFailure::of(&settings).map_err(|error| error.to_string())
    }

    #[test]
    fn each_is_read_as_it_is_written_and_nothing_else_is() {
        for one in OnGpuFailure::ALL {
            assert_eq!(of(one.as_str()), Ok(Some(one)));
        }
        assert_eq!(OnGpuFailure::of(&BTreeMap::new()), Ok(None));
        for wrong in ["evict", "", "Delete"] {
            let said = of(wrong).unwrap_err();
            let wanted = format!("{ON_GPU_FAILURE} is {wrong}: must be Repair, Evict or Ignore");
            assert_eq!(said, wanted);
        }
        assert!(of(&"x".repeat(1000)).unwrap_err().len() < 150);
    }
}
