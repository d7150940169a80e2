// SPDX-License-Identifier: GPL-2.0

//! Measures what operations of a guest cost, in ticks of the TSC; under an emulator whose TSC counts
//! instructions, these are the instructions of all levels below the guest, and its own.
//!
//! `nested_benchmark [ROW...]` prints `bench: ROW VALUE` for the rows that are named, or for all.
//! `nested_benchmark samples=N ROW...` takes N samples of each row.
//! `nested_benchmark clock` prints the TSC of the level that it runs at: what its boot has taken.
//! `nested_benchmark transitions` prints what the trace of this level says about its guest.

mod guest;
mod host;
mod trace;

use std::arch::x86_64::_rdtsc;
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use kvm_ioctls::Kvm;

use guest::PAGES;
use host::{Guest, Service};

/// How samples become the value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// The median: what interrupts a few samples does not count.
    Median,
    /// The mean over all, where one sample may do the work of others.
    Mean,
    /// The median over the samples, of which each is for as many pages.
    MedianOfPages,
}

/// An operation.
struct Row {
    name: &'static str,
    program: extern "C" fn() -> !,
    processors: u64,
    service: Service,
    /// How many samples are taken.
    samples: u64,
    /// How many of them, the first ones, do not count: what they use is not mapped yet.
    warm_up: usize,
    value: Value,
}

const fn row(name: &'static str, program: extern "C" fn() -> !) -> Row {
    Row {
        name,
        program,
        processors: 1,
        service: Service::None,
        samples: 320,
        warm_up: 64,
        value: Value::Median,
    }
}

/// The operations.
fn rows(amd: bool) -> Vec<Row> {
    vec![
        row("cpuid", guest::cpuid),
        row(
            "hypercall",
            if amd { guest::vmmcall } else { guest::vmcall },
        ),
        row("rdmsr", guest::rdmsr),
        row("wrmsr", guest::wrmsr),
        row("port-kernel", guest::kernel_port),
        row("port-user", guest::user_port),
        row("timer", guest::timer),
        row("hlt", guest::hlt),
        Row {
            processors: 2,
            ..row("ipi", guest::ipi)
        },
        Row {
            samples: PAGES,
            warm_up: 0,
            value: Value::Mean,
            ..row("fault-cold", guest::read_pages)
        },
        Row {
            service: Service::Map,
            samples: PAGES,
            warm_up: 0,
            value: Value::Mean,
            ..row("fault-shadow", guest::read_pages)
        },
        Row {
            service: Service::Replace,
            samples: 72,
            warm_up: 8,
            ..row("flush", guest::flush)
        },
        Row {
            service: Service::DirtyLog,
            samples: 4,
            warm_up: 1,
            value: Value::MedianOfPages,
            ..row("dirty-log", guest::dirty_log)
        },
    ]
}

/// Returns the value of a row.
fn value(row: &Row, samples: &[u64]) -> Result<u64> {
    let mut samples = samples.get(row.warm_up..).unwrap_or_default().to_vec();
    samples.sort_unstable();
    ensure!(!samples.is_empty(), "too few samples");
    let median = samples[samples.len() / 2];
    Ok(match row.value {
        Value::Median => median,
        Value::MedianOfPages => median / PAGES,
        Value::Mean => samples.iter().sum::<u64>() / samples.len() as u64,
    })
}

/// Measures a row and prints it.
fn measure(kvm: &Kvm, row: &Row, samples: u64) -> Result<()> {
    let mut guest = Guest::new(kvm, row.processors, row.service)?;
    let samples = guest.run(row.program, samples)?;
    println!("bench: {} {}", row.name, value(row, &samples)?);
    Ok(())
}

fn run() -> Result<()> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    if names == ["transitions"] {
        return trace::print();
    }
    if names == ["clock"] {
        // SAFETY: Every processor in 64-bit mode has a TSC, and Linux lets programs read it.
        println!("bench: boot {}", unsafe { _rdtsc() });
        return Ok(());
    }
    let samples = names.first().and_then(|name| name.strip_prefix("samples="));
    let samples: Option<u64> = samples.map(str::parse).transpose()?;
    if samples.is_some() {
        names.remove(0);
    }
    let kvm = selftests::vm::open()?;
    let cpuid = selftests::vm::cpuid(&kvm)?;
    let mut leaves = cpuid.as_slice().iter();
    // "Auth" of "AuthenticAMD".
    let amd = leaves.any(|leaf| leaf.function == 0 && leaf.ebx.to_le_bytes() == *b"Auth");
    for row in rows(amd) {
        if names.is_empty() || names.iter().any(|name| name == row.name) {
            measure(&kvm, &row, samples.unwrap_or(row.samples)).with_context(|| row.name)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nested_benchmark: {error:#}");
            ExitCode::FAILURE
        }
    }
}
