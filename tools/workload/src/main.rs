// SPDX-License-Identifier: GPL-2.0

//! Work that a broken hypervisor gets wrong, with a result that does not depend on the machine.
//!
//! The same program runs on the host and in the innermost guest with the same seed: each part
//! prints `workload: name=value`, and the last line is a checksum over all of them. Only what must
//! be equal everywhere goes into a value: counts, hashes and yes/no answers, never a duration.

mod float;
mod memory;
mod process;
mod sys;
mod timer;

use sha2::{Digest, Sha256};
use std::fmt::Write;

/// A pseudo-random sequence that is the same on every machine (xorshift64*).
pub struct Sequence(u64);

impl Sequence {
    /// Starts the sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns the next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Mixes one word into a running hash, cheap enough for every page of a mapping.
pub fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

type Part = fn(u64) -> Result<u64, String>;

/// The parts in the order in which they run and are printed.
const PARTS: &[(&str, Part)] = &[
    ("memory", memory::patterns),
    ("protection", memory::protection),
    ("copy-on-write", memory::copy_on_write),
    ("pipe-ring", process::pipe_ring),
    ("exec", process::exec),
    ("futex", process::futex_pingpong),
    ("signals", process::signals),
    ("clock", timer::clock),
    ("timerfd", timer::timerfd),
    ("interval-timer", timer::interval),
    ("sse-registers", float::registers),
    ("arithmetic", float::arithmetic),
];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let seed = match arguments.get(2).map(|word| word.parse()) {
        Some(Ok(seed)) => seed,
        _ => usage(),
    };
    match arguments[1].as_str() {
        "run" => std::process::exit(run(seed)),
        process::CHILD => process::exec_child(seed),
        _ => usage(),
    }
}

fn usage() -> ! {
    eprintln!("usage: workload run SEED");
    std::process::exit(2)
}

/// Runs all parts and returns the exit status: 1 when a part failed.
fn run(seed: u64) -> i32 {
    let mut lines = String::new();
    let mut failed = 0;
    for (name, part) in PARTS {
        match part(seed) {
            Ok(value) => {
                println!("workload: {name}={value:016x}");
                // Writing to a String cannot fail.
                let _ = writeln!(lines, "{name}={value:016x}");
            }
            Err(reason) => {
                println!("workload: {name} failed: {reason}");
                failed += 1;
            }
        }
    }
    println!("workload: failed={failed}");
    if failed != 0 {
        return 1;
    }
    let digest = Sha256::digest(lines.as_bytes());
    let checksum: String = digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("workload: checksum={checksum}");
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_gives_the_same_value_twice() {
        for (name, part) in PARTS.iter().filter(|(name, _)| *name != "exec") {
            assert_eq!(part(3), part(3), "{name}");
        }
    }

    #[test]
    fn the_seed_reaches_the_values() {
        assert_ne!(memory::patterns(1), memory::patterns(2));
        assert_ne!(float::arithmetic(1), float::arithmetic(2));
    }

    #[test]
    fn a_sequence_never_gets_stuck_at_zero() {
        let mut sequence = Sequence::new(0);
        assert_ne!(sequence.next_number(), sequence.next_number());
    }
}
