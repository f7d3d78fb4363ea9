//! Chance that a seed repeats.

/// SplitMix64: a generator of 64-bit numbers whose state is one number, so that every seed is as good as
/// every other. (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.)
///
/// The same seed gives the same numbers on every machine, whatever the version of Muster's dependencies.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number; all are equally likely.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 where that is 0. The high half of a product: of limits up to a million
    /// none is less likely than another by more than one in 10^13.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u128::try_from(limit).unwrap_or(u128::MAX);
        let product = u128::from(self.draw()).wrapping_mul(limit);
        usize::try_from(product >> 64).unwrap_or(0)
    }

    /// Brings a list into an order of which all are equally likely: Fisher and Yates, from the end.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last.saturating_add(1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_generator() {
        // First outputs for the seed 1234567, as in the test vectors of other implementations.
        let mut random = Random::new(1_234_567);
        assert_eq!(
            [random.draw(), random.draw(), random.draw()],
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn every_order_comes_about_as_often_as_every_other() {
        let mut random = Random::new(7);
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            let mut list = [0, 1, 2];
            random.shuffle(&mut list);
            *seen.entry(list).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(
            seen.values().all(|count| (900..1100).contains(count)),
            "{seen:?}"
        );
        assert_eq!(random.below(0), 0);
        assert!((0..100).all(|_| random.below(3) < 3));
    }
}
