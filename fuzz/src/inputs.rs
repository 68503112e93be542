//! Inputs for a target without a fuzzer: damaged samples, and noise.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use gabion_base::codec::DecodeError;
use gabion_base::rng::Rng;

/// A target, and valid inputs of it.
pub struct Target {
    /// What it decodes.
    pub name: &'static str,
    /// Decodes an input, and asserts what follows from success.
    pub run: fn(&[u8]) -> Result<(), DecodeError>,
    /// Inputs that are decoded.
    pub samples: Vec<Vec<u8>>,
}

/// Runs a target over its samples and over `count` other inputs; a panic says which.
pub fn run(target: &Target, count: u64) {
    let mut rng = Rng::new(1);
    for sample in &target.samples {
        assert_eq!(attempt(target, sample), Ok(()), "a sample of {}", target.name);
    }
    let mut decoded = 0;
    for _ in 0..count {
        decoded += u64::from(attempt(target, &input(&target.samples, &mut rng)).is_ok());
    }
    // Else the inputs are too wild, or the target does not look.
    let some = (count / 200)..(count - count / 200);
    assert!(some.contains(&decoded), "{decoded} of {count} inputs of {}", target.name);
}

fn attempt(target: &Target, input: &[u8]) -> Result<(), DecodeError> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).unwrap_or_else(|cause| {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("{} does not stand {hex}", target.name);
        resume_unwind(cause)
    })
}

/// A damaged sample, or noise.
fn input(samples: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = samples[rng.below(samples.len() as u64) as usize].clone();
    if rng.chance(1, 10) {
        bytes = vec![0; rng.below(300) as usize];
        rng.fill(&mut bytes);
    }
    for _ in 0..1 + rng.below(3) {
        damage(&mut bytes, samples, rng);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, samples: &[Vec<u8>], rng: &mut Rng) {
    // The head of a structure is more interesting than what follows.
    let length = bytes.len() as u64;
    let reach = if rng.chance(1, 2) { length.min(80) } else { length };
    let at = rng.below(reach.max(1)) as usize;
    match rng.below(7) {
        _ if bytes.is_empty() => bytes.push(rng.next_u64() as u8),
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.next_u64() as u8,
        2 => bytes.truncate(at),
        3 => bytes.extend((0..1 + rng.below(20)).map(|_| rng.next_u64() as u8)),
        4 => {
            let other = &samples[rng.below(samples.len() as u64) as usize];
            let from = rng.below(other.len() as u64 + 1) as usize;
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        5 => {
            let end = (at + 1 + rng.below(16) as usize).min(bytes.len());
            bytes[at..end].fill(if rng.chance(1, 2) { 0 } else { 0xff });
        }
        _ => {
            let width = (1 << rng.below(4)).min(bytes.len() - at);
            let number = match rng.below(4) {
                0 => u64::MAX - rng.below(3),
                1 => 1 << rng.below(64),
                2 => (1 << rng.below(64)) - 1,
                _ => rng.below(20),
            };
            bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
    }
}
