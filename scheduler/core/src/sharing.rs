//! Equal values kept once: thousands of pods have one namespace, one shape, one set of labels.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Fewest values at which those that nobody else has any more are looked for.
const SWEEP_MIN: usize = 64;

/// Values that were shared and may still be in use.
#[derive(Debug)]
pub struct Shared<T: ?Sized> {
    known: BTreeSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self {
            known: BTreeSet::new(),
            sweep_at: SWEEP_MIN,
        }
    }
}

impl<T: ?Sized + Ord> Shared<T> {
    /// The value that is equal to this one and was given first.
    pub fn share(&mut self, value: Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(&value) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = self.known.len().saturating_mul(2).max(SWEEP_MIN);
        }
        self.known.insert(Arc::clone(&value));
        value
    }

    /// The same in place.
    pub fn share_in(&mut self, value: &mut Arc<T>) {
        *value = self.share(Arc::clone(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_are_swept() {
        let mut shared: Shared<str> = Shared::default();
        let first = shared.share(Arc::from("a"));
        let second = shared.share(Arc::from("a"));
        assert!(Arc::ptr_eq(&first, &second));
        for number in 0..1000 {
            drop(shared.share(Arc::from(number.to_string())));
        }
        assert!(shared.known.len() < 200, "{}", shared.known.len());
        let mut third = Arc::from("a");
        shared.share_in(&mut third);
        assert!(Arc::ptr_eq(&first, &third));
    }
}
