//! What comes from outside, changed at random by seed: nothing of it makes Muster panic, takes long, answers without
//! measure, or changes anything that it may not.
//!
//! ```text
//!   corpus of real inputs ──mutate──> input ──target──> what it came to, or what is wrong
//!        ^                                                   │
//!        └────── inputs that came to something new ──────────┘──FUZZ_KEEP──> tests/corpus, for later rounds
//! ```
//!
//! A round is a target, a seed and a number of runs, and repeats itself. `cargo test -p muster-tests --test fuzz` runs
//! short ones, `cargo run --release -p muster-tests --bin fuzz` goes on for as long as it is told to. A target is a
//! function of bytes, so that a fuzzer that is guided by coverage can be put in front of it as well.

mod agents;
mod corpus;
mod extender;
mod files;
mod kept;
mod mutate;
mod objects;
mod pages;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::rng::Rng;

pub use kept::{keep, kept};

/// Longest input, bytes.
const INPUT_MAX: usize = 64 << 10;
/// Longest time for one run, which takes some microseconds: this machine may be busy.
const RUN_MAX: Duration = Duration::from_secs(5);
/// Inputs that came to something new, kept beside the corpus.
const FOUND_MAX: usize = 512;

/// An input with one to four things changed, by the words of requests and objects.
pub fn mutated(rng: &mut Rng, input: &[u8], other: &[u8]) -> Vec<u8> {
    mutate::mutated(rng, input.to_vec(), other, corpus::WORDS)
}

/// A door, or a format.
pub trait Target {
    /// Its name.
    fn name(&self) -> &'static str;

    /// What really comes.
    fn corpus(&self) -> Vec<Vec<u8>>;

    /// Words that mean something to it.
    fn words(&self) -> &'static [&'static str] {
        corpus::WORDS
    }

    /// Takes an input in. Returns what it came to, so that other inputs can be told to be new.
    ///
    /// # Errors
    /// What is wrong.
    fn run(&mut self, input: &[u8]) -> Result<String, String>;
}

/// All targets, made anew.
///
/// # Errors
/// A runtime that cannot be made.
pub fn targets() -> anyhow::Result<Vec<Box<dyn Target>>> {
    let mut targets: Vec<Box<dyn Target>> = Vec::new();
    for verb in extender::VERBS {
        targets.push(Box::new(extender::Verb::new(verb)?));
    }
    targets.push(Box::new(agents::Door::new()?));
    targets.push(Box::new(pages::Pages::new()?));
    for kind in objects::Kind::ALL {
        targets.push(Box::new(objects::Object::new(kind)));
    }
    for kind in files::Kind::ALL {
        targets.push(Box::new(files::File::new(kind)));
    }
    Ok(targets)
}

/// One of them, made anew.
///
/// # Errors
/// There is none of this name.
pub fn target(name: &str) -> anyhow::Result<Box<dyn Target>> {
    for verb in extender::VERBS {
        if verb == name {
            return Ok(Box::new(extender::Verb::new(verb)?));
        }
    }
    match name {
        "agents" => return Ok(Box::new(agents::Door::new()?)),
        "pages" => return Ok(Box::new(pages::Pages::new()?)),
        _ => {}
    }
    let objects = objects::Kind::ALL.map(objects::Object::new).into_iter();
    let files = files::Kind::ALL.map(files::File::new).into_iter();
    let objects = objects.map(|target| Box::new(target) as Box<dyn Target>);
    let files = files.map(|target| Box::new(target) as Box<dyn Target>);
    let found = objects.chain(files).find(|target| target.name() == name);
    found.ok_or_else(|| anyhow::anyhow!("no target is called {name}"))
}

/// What a round came to.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Inputs that were run.
    pub runs: u64,
    /// Different things that they came to.
    pub outcomes: usize,
    /// The first input that came to each of them.
    pub found: BTreeMap<u64, Vec<u8>>,
}

/// An input with which something is wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Name of the target.
    pub target: &'static str,
    /// Seed of the round.
    pub seed: u64,
    /// Which run of it.
    pub run: u64,
    /// What is wrong.
    pub why: String,
    /// The input.
    pub input: Vec<u8>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            target,
            seed,
            run,
            why,
            input,
        } = self;
        write!(
            f,
            "{target}: {why}\nin run {run} of the round FUZZ_TARGET={target} FUZZ_SEED={seed}, with {} bytes: {}",
            input.len(),
            input.escape_ascii()
        )
    }
}

/// Runs so many inputs, all of which follow from the seed.
///
/// # Errors
/// The first input with which something is wrong. The target is not to be used again then.
pub fn round(target: &mut dyn Target, seed: u64, runs: u64) -> Result<Round, Box<Failure>> {
    let (name, corpus) = (target.name(), target.corpus());
    let mut bases = corpus.clone();
    bases.extend(kept(name).map_err(|error| {
        Box::new(Failure {
            target: name,
            seed,
            run: 0,
            why: format!("{error:#}"),
            input: Vec::new(),
        })
    })?);
    let mut rng = Rng::new(seed);
    let mut found: VecDeque<Vec<u8>> = VecDeque::new();
    let mut outcomes: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for run in 0..runs {
        let (of_found, of_bases) = (rng.index(found.len()), rng.index(bases.len()));
        let again = rng.chance(50);
        let base = found.get(of_found).filter(|_| again);
        let base = base.or_else(|| bases.get(of_bases)).cloned();
        let base = base.unwrap_or_default();
        let other = bases.get(rng.index(bases.len()));
        // The corpus itself first.
        let input = match corpus.get(usize::try_from(run).unwrap_or(usize::MAX)) {
            Some(input) => input.clone(),
            None => {
                let other = other.map_or(&[][..], Vec::as_slice);
                mutate::mutated(&mut rng, base, other, target.words())
            }
        };
        let failed = |why: String| {
            Box::new(Failure {
                target: name,
                seed,
                run,
                why,
                input: input.clone(),
            })
        };
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| target.run(&input)));
        let took = started.elapsed();
        let outcome = match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(why)) => return Err(failed(why)),
            Err(panic) => return Err(failed(format!("a panic: {}", said(&*panic)))),
        };
        if took > RUN_MAX {
            return Err(failed(format!("it took {took:?}")));
        }
        let outcome = outcome_of(&outcome);
        if !outcomes.contains_key(&outcome) {
            if found.len() >= FOUND_MAX {
                found.pop_front();
            }
            found.push_back(input.clone());
            outcomes.insert(outcome, input);
        }
    }
    Ok(Round {
        runs,
        outcomes: outcomes.len(),
        found: outcomes,
    })
}

/// What tells one outcome from another, within one process.
fn outcome_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    shape_of(text).hash(&mut hasher);
    hasher.finish()
}

/// A text without its numbers and quoted words: of those there are too many to be news.
fn shape_of(text: &str) -> String {
    let mut shape = String::new();
    let mut quoted = false;
    for c in text.chars().take(400) {
        match c {
            '"' | '`' => quoted = !quoted,
            _ if quoted || c.is_ascii_digit() => {}
            _ => shape.push(c),
        }
    }
    shape
}

fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a text")
}

/// Why an answer is too large for its request: a name comes back with a text, so there is some room.
fn too_large(input: usize, answer: usize) -> Result<(), String> {
    let most = 4096 + 256 * input;
    if answer > most {
        return Err(format!("{answer} bytes are answered to {input}"));
    }
    Ok(())
}

/// A runtime of one thread on the paused clock: whoever waits for a time waits for nothing.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().start_paused(true).build()?)
}
