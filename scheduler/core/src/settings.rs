//! Keys of annotations and labels that are Muster's, and those that only look like it: a key under
//! `muster.dev/` that nobody reads is a slip of the keyboard more often than not.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{failure, topology};

/// Keys under `muster.dev/` that users write.
pub const OF_USERS: [&str; 11] = [
    "muster.dev/gang",
    "muster.dev/gang-size",
    "muster.dev/role",
    "muster.dev/index",
    "muster.dev/elastic-minimum",
    "muster.dev/hold",
    failure::ON_GPU_FAILURE,
    topology::REQUIRED,
    topology::PREFERRED,
    topology::SEGMENT_SIZE,
    topology::SEGMENT_LEVEL,
];

/// Keys under `muster.dev/` that Muster writes itself.
pub const OWN: [&str; 7] = [
    "muster.dev/plan",
    "muster.dev/pinned",
    "muster.dev/epoch",
    "muster.dev/stamp-mark",
    "muster.dev/devices",
    "muster.dev/woken-for",
    "muster.dev/emulate",
];

/// Keys under `muster.dev/` by which fake kubelets are told what a pod does, in the demo and in tests.
pub const OF_FAKES: [&str; 4] = [
    "muster.dev/run-seconds",
    "muster.dev/fail-seconds",
    "muster.dev/terminate-seconds",
    "muster.dev/exit-code",
];

/// Most keys that are named.
const NAMED_MAX: usize = 3;

/// Longest key that is compared and shown, characters.
const SHOWN_MAX: usize = 64;

/// Whether somebody reads this key.
pub fn is_known(key: &str) -> bool {
    OF_USERS.contains(&key) || OWN.contains(&key) || OF_FAKES.contains(&key)
}

/// What is said of keys that nobody reads; `None` where there are none. The same keys give the same text.
pub fn ignored(settings: &BTreeMap<Arc<str>, Arc<str>>) -> Option<Arc<str>> {
    let unknown = || settings.keys().filter(|key| !is_known(key));
    let count = unknown().count();
    if count == 0 {
        return None;
    }
    let mut text = String::new();
    for key in unknown().take(NAMED_MAX) {
        let printed = key.chars().filter(|c| !c.is_control());
        let shown: String = printed.take(SHOWN_MAX).collect();
        text.push_str(&match nearest(&shown) {
            Some(meant) => format!("{shown} is ignored, did you mean {meant}? "),
            None => format!("{shown} is ignored, it is no key of Muster's. "),
        });
    }
    let more = count.saturating_sub(NAMED_MAX);
    if more > 0 {
        text.push_str(&format!("So are {more} more."));
    }
    Some(Arc::from(text.trim_end()))
}

/// The user's key that is most like `key`, if any is: at most a third of its letters differ.
fn nearest(key: &str) -> Option<&'static str> {
    let tail = |key: &str| {
        key.rsplit('/')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase()
    };
    let wanted = tail(key);
    let measured = OF_USERS
        .into_iter()
        .map(|known| (distance(&wanted, &tail(known)), known));
    let (far, known) = measured.min()?;
    let longer = wanted.len().max(tail(known).len());
    (far.saturating_mul(3) <= longer).then_some(known)
}

/// How many letters have to be put in, taken out or changed to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, letter) in a.chars().enumerate() {
        let mut next = vec![at.saturating_add(1)];
        for (other, pair) in b.iter().zip(row.windows(2)) {
            let [diagonal, above] = pair else { continue };
            let left = next.last().copied().unwrap_or(0);
            let changed = diagonal.saturating_add(usize::from(letter != *other));
            let moved = left.min(*above).saturating_add(1);
            next.push(changed.min(moved));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(keys: &[&str]) -> String {
        let keys = keys.iter().map(|key| (Arc::from(*key), Arc::from("")));
        ignored(&keys.collect())
            .map(|text| text.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn mistyped_keys_name_the_one_that_was_meant() {
        for (typed, meant) in [
            ("muster.dev/required-topolgy", topology::REQUIRED),
            ("muster.dev/Required-Topology", topology::REQUIRED),
            ("muster.dev/requried-topology", topology::REQUIRED),
            ("muster.dev/prefered-topology", topology::PREFERRED),
            ("muster.dev/segmentsize", topology::SEGMENT_SIZE),
            ("muster.dev/gang-sise", "muster.dev/gang-size"),
            ("muster.dev/gangs", "muster.dev/gang"),
            ("muster.dev/elastic-min", "muster.dev/elastic-minimum"),
        ] {
            assert_eq!(
                said(&[typed]),
                format!("{typed} is ignored, did you mean {meant}?")
            );
        }
        assert_eq!(
            said(&["muster.dev/queue"]),
            "muster.dev/queue is ignored, it is no key of Muster's."
        );
    }

    #[test]
    fn keys_that_somebody_reads_are_not_spoken_of_and_many_are_cut_short() {
        assert_eq!(said(&OF_USERS), "");
        assert_eq!(said(&OWN), "");
        // The demo's own batch job was warned of the key that ends it.
        assert_eq!(said(&OF_FAKES), "");
        let many = [
            "muster.dev/a1b2",
            "muster.dev/b",
            "muster.dev/c",
            "muster.dev/d",
            "muster.dev/e",
        ];
        assert!(
            said(&many)
                .ends_with("muster.dev/c is ignored, it is no key of Muster's. So are 2 more.")
        );
        // Found by fuzzing: no API server takes such a key, and no terminal should have to.
        assert_eq!(
            said(&["muster.dev/gang\u{0}\u{1b}s"]),
            "muster.dev/gangs is ignored, did you mean muster.dev/gang?"
        );
        let long = format!("muster.dev/{}", "x".repeat(500));
        assert!(said(&[&long]).len() < 120, "{}", said(&[&long]));
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
