// SPDX-License-Identifier: GPL-2.0

//! The shadow tables against a flat model.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nested::mmu::shadow::fuzz(bytes));

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("To be run by cargo-fuzz.");
}
