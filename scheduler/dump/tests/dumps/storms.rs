//! Whatever state an engine comes to, its dump is read again and says the same.

use muster_dump::replay::replay;

use crate::chaos::Storm;

#[test]
fn every_state_of_a_storm_is_written_and_read_to_the_same_bytes() {
    let (mut asked, mut planned, mut largest) = (0, 0, 0);
    for seed in 1..=12 {
        let mut storm = Storm::new(seed);
        for _ in 0..60 {
            storm.turn();
            let state = storm.world.engine.state(storm.world.now);
            let text = muster_dump::write(&state).unwrap();
            let read = muster_dump::read(&text);
            let read = read.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
            assert_eq!(muster_dump::write(&read).unwrap(), text, "seed {seed}");
            let (live, again) = (replay(&state), replay(&read));
            assert_eq!(
                format!("{:?}", live.gangs),
                format!("{:?}", again.gangs),
                "seed {seed}"
            );
            let gangs = state.gangs.iter();
            asked += gangs.clone().filter(|gang| !gang.asks.is_empty()).count();
            planned += gangs.filter(|gang| gang.plan.is_some()).count();
            largest = largest.max(text.len());
        }
    }
    assert!(
        asked > 300 && planned > 300 && largest > 10_000,
        "{asked} {planned} {largest}"
    );
}
