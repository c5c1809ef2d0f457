//! Fuzzing on the stable toolchain: untrusted bytes, mutated, into plain functions.
//!
//! A target is a function over bytes that says what came of them (a short text: the reason of a refusal, the kind of what
//! was read), and that panics when something is not as it should be. It stands beside what it tries, in a `fuzz_tests.rs`
//! that [`target!`] makes two tests of:
//! - `the_corpus_is_replayed`: each file of `src/fuzz/corpus/TARGET/`, in each run of the tests;
//! - `mutations_of_the_corpus` (ignored; `scripts/check --fuzz`): mutates what is in the corpus, by default for
//!   60 s. Bytes with a new outcome are mutated further; with `FORMIC_FUZZ_SAVE=1` they also become files of the corpus.
//!
//! What made a target panic is written to `target/fuzz/`. It becomes a file of the corpus, with a name that says what it
//! was: so it is replayed for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What came of some bytes.
pub(crate) type Outcome = String;

/// A target.
pub(crate) type Run = fn(&[u8]) -> Outcome;

/// Octets of an input at most.
const INPUT_MAX: usize = 4096;
/// What a run may take at most: a thousand times what the slowest takes.
const SLOW: Duration = Duration::from_secs(2);
/// Different outcomes that are kept at most: texts with numbers in them would be endless.
const OUTCOMES_MAX: usize = 400;
/// What an ordinary fuzzing run takes for each target.
const RUN_SECS: u64 = 60;

/// Makes the two tests of a target: `target!("name", run, seeds)`.
macro_rules! target {
    ($name:literal, $run:ident, $seeds:ident) => {
        #[test]
        fn the_corpus_is_replayed() {
            $crate::fuzz::replay($name, $run, $seeds());
        }

        #[test]
        #[ignore = "long: scripts/check --fuzz"]
        fn mutations_of_the_corpus() {
            $crate::fuzz::mutate_for_a_while($name, $run, $seeds());
        }
    };
}
pub(crate) use target;

fn corpus_of(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fuzz/corpus").join(name)
}

/// The files of the corpus, by name.
fn corpus(name: &str) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(corpus_of(name)).expect("a directory of the corpus").flatten();
    files.map(|file| (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).unwrap())).collect()
}

/// Runs a target on each file of its corpus, and on the seeds.
pub(crate) fn replay(name: &str, run: Run, seeds: Vec<Vec<u8>>) {
    let corpus = corpus(name);
    assert!(!corpus.is_empty() && !seeds.is_empty(), "{name}: an empty corpus tries nothing");
    for (file, bytes) in &corpus {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(bytes)));
        assert!(outcome.is_ok(), "{name}: {file}");
    }
    let outcomes: BTreeSet<Outcome> = corpus.values().chain(&seeds).map(|bytes| run(bytes)).collect();
    assert!(outcomes.len() > 1, "{name}: all comes to {outcomes:?}");
}

/// Mutates for `FORMIC_FUZZ_SECS`, else for [`RUN_SECS`].
pub(crate) fn mutate_for_a_while(name: &str, run: Run, seeds: Vec<Vec<u8>>) {
    let secs = std::env::var("FORMIC_FUZZ_SECS").ok().and_then(|text| text.parse().ok()).unwrap_or(RUN_SECS);
    let save = std::env::var_os("FORMIC_FUZZ_SAVE").is_some();
    let mut pool: Vec<Vec<u8>> = corpus(name).into_values().chain(seeds).collect();
    let mut outcomes: BTreeSet<Outcome> = pool.iter().map(|bytes| run(bytes)).collect();
    let start = Instant::now();
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64);
    let (mut dice, mut runs) = (Dice(seed), 0u64);
    while start.elapsed() < Duration::from_secs(secs) {
        let bytes = dice.mutant(&pool);
        let begun = Instant::now();
        let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| run(&bytes))) else { failed(name, &bytes, "panics") };
        if begun.elapsed() > SLOW {
            failed(name, &bytes, "is slow");
        }
        if outcomes.len() < OUTCOMES_MAX && outcomes.insert(outcome) {
            if save {
                std::fs::write(corpus_of(name).join(format!("{:016x}", hash(&bytes))), &bytes).unwrap();
            }
            pool.push(bytes);
        }
        runs += 1;
    }
    println!("{name}: {runs} runs in {secs} s, {} outcomes from {} inputs", outcomes.len(), pool.len());
}

fn failed(name: &str, bytes: &[u8], how: &str) -> ! {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
    let path = directory.join(format!("{name}-{:016x}", hash(bytes)));
    let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, bytes));
    panic!("{name} {how} on {} ({written:?})", path.display());
}

fn hash(bytes: &[u8]) -> u64 {
    let hash = crate::crypto::sha256(&[bytes]);
    hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Choices (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, or 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % (bound as u64).max(1)) as usize
    }

    /// One of the pool, changed in a few places.
    fn mutant(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = pool[self.below(pool.len())].clone();
        for _ in 0..=self.below(4) {
            self.change(&mut bytes, pool);
        }
        bytes.truncate(INPUT_MAX);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, pool: &[Vec<u8>]) {
        const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, u64::MAX];
        let at = self.below(bytes.len() + 1);
        match self.below(8) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, self.roll() as u8),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 if at < bytes.len() => bytes[at] = self.roll() as u8,
            4 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            5 => {
                // A number that lengths and counters break at, in one to eight octets.
                let number = NUMBERS[self.below(NUMBERS.len())].to_be_bytes();
                let width = 1 << self.below(4);
                bytes.iter_mut().skip(at).zip(&number[8 - width..]).for_each(|(octet, new)| *octet = *new);
            }
            6 => {
                // The end of another one.
                let other = &pool[self.below(pool.len())];
                let from = self.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                // A part again.
                let end = (at + self.below(64)).min(bytes.len());
                let part = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
}
