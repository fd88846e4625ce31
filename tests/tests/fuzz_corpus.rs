//! The fuzz targets on stable Rust: everything that a fuzzer found worth keeping, every input that
//! once broke something, and some thousand inputs made up from a seed.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use headgate_tests::fuzzing::{self, TARGETS};
use rand::{Rng, SeedableRng, rngs::SmallRng};

#[test]
fn classify() {
    replay("classify", fuzzing::classify);
    invent(fuzzing::classify, "classify", 20_000);
}

#[test]
fn config() {
    replay("config", fuzzing::config);
    invent(fuzzing::config, "config", 3_000);
}

#[test]
fn plane() {
    replay("plane", fuzzing::plane);
    invent(fuzzing::plane, "plane", 1_000);
}

#[test]
fn segment() {
    replay("segment", fuzzing::segment);
    invent(fuzzing::segment, "segment", 20_000);
}

#[test]
fn every_target_is_fuzzed_and_replayed() {
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for name in TARGETS {
        assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
        assert!(!files(&folder("corpus").join(name)).is_empty(), "{name}");
    }
    for entry in fs::read_dir(folder("regressions")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(TARGETS.iter().any(|target| name == *target), "{name:?} is no target");
    }
}

/// Runs a target over its corpus, and over what once broke it.
fn replay(name: &str, target: fn(&[u8])) {
    let corpus = files(&folder("corpus").join(name));
    assert!(corpus.len() >= 10, "the corpus of {name} has {} files", corpus.len());
    let regressions = folder("regressions").join(name);
    let regressions = if regressions.exists() { files(&regressions) } else { Vec::new() };
    for path in corpus.iter().chain(&regressions) {
        let data = read(path);
        attempt(target, &data, || format!("{name} breaks on {}", path.display()));
    }
}

/// Runs a target over random bytes, and over files of its corpus with random changes.
fn invent(target: fn(&[u8]), name: &str, count: u64) {
    let corpus: Vec<_> =
        files(&folder("corpus").join(name)).iter().map(|path| read(path)).collect();
    for seed in 0..count {
        let mut rng = SmallRng::seed_from_u64(seed);
        let data = if seed % 4 == 0 {
            let len = rng.random_range(0..300);
            (0..len).map(|_| rng.random()).collect()
        } else {
            mutated(&corpus, &mut rng)
        };
        attempt(target, &data, || format!("{name} breaks on seed {seed}: {data:02x?}"));
    }
}

/// The beginning of one file and the end of another, with some bytes changed.
fn mutated(corpus: &[Vec<u8>], rng: &mut SmallRng) -> Vec<u8> {
    let [head, tail] = [(); 2].map(|()| &corpus[rng.random_range(0..corpus.len())]);
    let mut data = head[..rng.random_range(0..=head.len())].to_vec();
    data.extend_from_slice(&tail[rng.random_range(0..=tail.len())..]);
    for _ in 0..rng.random_range(0..4) {
        if !data.is_empty() {
            let at = rng.random_range(0..data.len());
            data[at] = rng.random();
        }
    }
    data
}

fn attempt(target: fn(&[u8]), data: &[u8], told: impl Fn() -> String) {
    let outcome = catch_unwind(AssertUnwindSafe(|| target(data)));
    assert!(outcome.is_ok(), "{}", told());
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| {
        panic!("{} cannot be read: {error}", folder.display());
    });
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{} cannot be read: {error}", path.display()))
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}
