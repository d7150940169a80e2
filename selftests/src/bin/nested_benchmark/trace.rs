// SPDX-License-Identifier: GPL-2.0

//! What a hypervisor executes for an operation of its guest's guest, from a trace of the level
//! below it, which takes part in each VM entry and in each access to a VMCS.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};

/// Operations, and the reason of their exit in the words of KVM's trace.
const OPERATIONS: &[(&str, [&str; 2])] = &[
    ("cpuid", ["CPUID", "cpuid"]),
    ("hypercall", ["VMCALL", "hypercall"]),
    ("rdmsr", ["MSR_READ", "msr"]),
    ("port-kernel", ["IO_INSTRUCTION", "io"]),
];

/// The names of instructions, by columns: VM entries, reads and writes of a VMCS, or the two of SVM
/// that move state, and others for virtualization.
const COLUMNS: [&[&str]; 4] = [
    &["VMLAUNCH", "VMRESUME", "vmrun"],
    &["VMREAD", "vmload"],
    &["VMWRITE", "vmsave"],
    &[
        "VMPTRLD", "VMPTRST", "VMCLEAR", "VMON", "VMOFF", "INVEPT", "INVVPID", "invlpga", "stgi",
        "clgi",
    ],
];

/// Fewest rounds of an operation that mean something.
const LEAST: usize = 8;

/// An exit to the level below.
#[derive(Clone, Debug)]
struct Exit<'a> {
    reason: &'a str,
    rip: &'a str,
    /// It is one of the hypervisor's guests, or theirs, and not of the hypervisor.
    nested: bool,
}

/// Returns the exits in a trace.
fn exits(trace: &str) -> Vec<Exit<'_>> {
    let mut exits: Vec<Exit<'_>> = Vec::new();
    for line in trace.lines() {
        // The same exit again, if the hypervisor's guest was running.
        if line.contains(": kvm_nested_vmexit: ") {
            if let Some(exit) = exits.last_mut() {
                exit.nested = true;
            }
            continue;
        }
        let Some((_, event)) = line.split_once(": kvm_exit: ") else {
            continue;
        };
        let word = |name: &str| {
            let mut words = event.split_whitespace();
            words.find(|word| *word == name)?;
            words.next()
        };
        if let (Some(reason), Some(rip)) = (word("reason"), word("rip")) {
            exits.push(Exit {
                reason,
                rip,
                nested: false,
            });
        }
    }
    exits
}

/// Returns whether an address is one of a program, as that of the measured guest is, whose code is
/// part of one: kernels are above these, and firmware is below.
fn of_program(rip: &str) -> bool {
    let digits = rip.strip_prefix("0x").unwrap_or(rip);
    u64::from_str_radix(digits, 16).is_ok_and(|rip| (1 << 32..1 << 47).contains(&rip))
}

/// Returns where rounds of an operation begin: where it was executed at its most frequent address.
fn rounds(exits: &[Exit<'_>], reasons: [&str; 2]) -> Vec<usize> {
    let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, exit) in exits.iter().enumerate() {
        if exit.nested && reasons.contains(&exit.reason) && of_program(exit.rip) {
            places.entry(exit.rip).or_default().push(index);
        }
    }
    places
        .into_values()
        .max_by_key(Vec::len)
        .unwrap_or_default()
}

/// Returns how many instructions of each column are in a round of each operation.
pub fn transitions(trace: &str) -> Result<Vec<(&'static str, [usize; 4])>> {
    let exits = exits(trace);
    let mut results = Vec::new();
    for &(name, reasons) in OPERATIONS {
        let rounds = rounds(&exits, reasons);
        ensure!(rounds.len() >= LEAST, "{name}: {} rounds", rounds.len());
        let counts = COLUMNS.map(|column| {
            let count = |pair: &[usize]| {
                let round = exits.get(pair[0]..pair[1]).unwrap_or_default();
                let own = round.iter().filter(|exit| !exit.nested);
                own.filter(|exit| column.contains(&exit.reason)).count()
            };
            let mut counts: Vec<usize> = rounds.windows(2).map(count).collect();
            counts.sort_unstable();
            counts[counts.len() / 2]
        });
        results.push((name, counts));
    }
    Ok(results)
}

/// Reads the trace of this level and prints what is in it.
pub fn print() -> Result<()> {
    let path = "/sys/kernel/tracing/trace";
    let trace = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    for (name, counts) in transitions(&trace)? {
        let [entries, reads, writes, others] = counts;
        println!("transitions: {name} {entries} {reads} {writes} {others}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(event: &str, reason: &str, rip: &str) -> String {
        format!(" qemu-60 [000] d..1. 12.5: {event}: vcpu 0 reason {reason} rip {rip} info1 0x0\n")
    }

    fn exit(reason: &str, rip: &str) -> String {
        line("kvm_exit", reason, rip)
    }

    fn nested(reason: &str, rip: &str) -> String {
        exit(reason, rip) + &line("kvm_nested_vmexit", reason, rip)
    }

    #[test]
    fn a_round_has_the_instructions_of_the_hypervisor_and_of_nobody_else() {
        let mut trace = String::from("# tracer: nop\n");
        for reason in ["CPUID", "VMCALL", "MSR_READ", "IO_INSTRUCTION"] {
            // An operation of another program of the level.
            trace += &nested(reason, "0x7f0000000bad");
            for _ in 0..10 {
                // Of the kernel that boots before, and of its firmware.
                trace += &nested(reason, "0xffffffff81000000").repeat(2);
                trace += &nested(reason, "0xf1234").repeat(2);
                trace += &nested(reason, "0x7f0000005000");
                trace += &exit("VMREAD", "0x1");
                trace += &exit("VMREAD", "0x2");
                trace += &nested("VMREAD", "0x3");
                trace += &exit("VMWRITE", "0x4");
                trace += &exit("INVVPID", "0x5");
                trace += &exit("VMRESUME", "0x6");
            }
        }
        let results = transitions(&trace).unwrap();
        assert_eq!(results.len(), 4);
        assert!(results.iter().all(|(_, counts)| *counts == [1, 2, 1, 1]));
    }

    #[test]
    fn a_trace_without_an_operation_is_an_error() {
        assert!(transitions(&nested("CPUID", "0x7f0000000001")).is_err());
    }
}
