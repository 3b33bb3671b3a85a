//! The short run of the fuzzers: every file of the corpus and some thousand mutations of them through every reader, the same ones each
//! time. A panic or an overflow fails; so does an allocation beyond what the machine has.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

#[path = "../fuzz/src/lib.rs"]
mod readers;

/// Mutations of the corpus for each reader; fewer where reading is slow.
const MUTATIONS: usize = 4_000;
/// A reader that takes longer than this stops early and says so: this is a test, not a campaign.
const LONGEST: Duration = Duration::from_secs(3);

/// Numbers that look random and are the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Sizes and offsets that break arithmetic.
const NUMBERS: [u64; 8] = [0, 1, 7, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// One to four changes: a byte, a number in place, a cut, a stretch repeated or taken from another file.
fn mutated(numbers: &mut Numbers, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[numbers.below(corpus.len())].clone();
    for _ in 0..1 + numbers.below(4) {
        let at = numbers.below(bytes.len());
        let length = numbers.below(bytes.len() - at).min(64);
        match numbers.below(6) {
            0 | 1 if !bytes.is_empty() => bytes[at] = numbers.next() as u8,
            2 => {
                let width = [1, 2, 4, 8][numbers.below(4)];
                let number = NUMBERS[numbers.below(NUMBERS.len())].to_le_bytes();
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            3 => bytes.truncate(at),
            4 => {
                let stretch = bytes[at..at + length].to_vec();
                bytes.splice(at..at, stretch);
            }
            _ => {
                let other = &corpus[numbers.below(corpus.len())];
                let from = numbers.below(other.len());
                let stretch = other[from..]
                    .iter()
                    .copied()
                    .take(length)
                    .collect::<Vec<u8>>();
                bytes.splice(at..at + length, stretch);
            }
        }
    }
    bytes
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("readable"))
        .collect()
}

#[test]
fn no_mutation_of_the_corpus_does_harm() {
    std::thread::scope(|scope| {
        for (name, read) in readers::READERS {
            scope.spawn(move || {
                let corpus = corpus(name);
                assert!(!corpus.is_empty(), "{name} has no corpus");
                corpus.iter().for_each(|bytes| read(bytes));
                let started = Instant::now();
                let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
                for done in 0..MUTATIONS {
                    if started.elapsed() > LONGEST {
                        println!("{name}: {done} mutations in {LONGEST:?}");
                        return;
                    }
                    read(&mutated(&mut numbers, &corpus));
                }
                println!("{name}: {MUTATIONS} mutations in {:?}", started.elapsed());
            });
        }
    });
}
