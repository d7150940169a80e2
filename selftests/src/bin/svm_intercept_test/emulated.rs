// SPDX-License-Identifier: GPL-2.0

//! Memory that L0 accesses in L2's place: strings that go to ports, and come from there.
//!
//! L0 goes through L1's nested page table by itself then, for the string and for L2's page tables.

use anyhow::{Context, Result};
use selftests::guest::layout::{BUFFER, REGISTERS};
use selftests::guest::machine::Stop;
use selftests::guest::tables::{nested_entry, table_of};
use selftests::guest::vmcb::{self, exit};
use selftests::guest::GuestMemory;
use selftests::tap::Point;
use selftests::{expect, guest_code};

use crate::{Code, Fixture, Ran};

guest_code! {
    /// OUTS of a byte.
    l2_outsb: "outsb", "vmmcall";
    /// INS of a byte.
    l2_insb: "insb", "vmmcall";
}

/// The page with the string.
const PAGE: u64 = BUFFER + 0x8000;

/// A port that L1 does not intercept.
const PORT: u16 = 0x3f8;

/// What user space answers to IN.
const ANSWER: u8 = 0x5a;

/// Bits of entries.
const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const RESERVED: u64 = 1 << 51;

/// Bits of the error code of a nested page fault that no entry has.
mod error {
    pub const RESERVED: u64 = 1 << 3;
    pub const FINAL: u64 = 1 << 32;
    pub const PAGE_TABLE: u64 = 1 << 33;
}

/// Runs code with an entry of L1's table, and returns what became of it.
fn run_with(fixture: &Fixture, code: Code, page: u64, entry: u64) -> Result<(Ran, Vec<Stop>, u64)> {
    let at = |memory: &GuestMemory| nested_entry(memory, memory.read(vmcb::NESTED_CR3), page);
    let mut before = 0u64;
    let (ran, stops) = fixture.run(code, |memory| {
        // RDX, RSI, RDI.
        memory.write(REGISTERS + 16, u64::from(PORT));
        memory.write(REGISTERS + 24, PAGE);
        memory.write(REGISTERS + 32, PAGE);
        memory.write(PAGE, b'L');
        before = memory.read(at(memory));
        memory.write(at(memory), entry);
    })?;
    let machine = fixture.machine.borrow();
    let memory = &machine.as_ref().context("there is no machine")?.memory;
    let after = memory.read(at(memory));
    memory.write(at(memory), before);
    Ok((ran, stops, after))
}

/// Checks that an access is a nested page fault, with an error code, for the page.
fn refused(fixture: &Fixture, code: Code, page: u64, entry: u64, error: u64) -> Result<()> {
    let (ran, stops, _) = run_with(fixture, code, page, entry)?;
    let what = format_args!("entry {entry:#x}");
    expect(what, ran, Ran::Exit(exit::NPF))?;
    // IN comes before what it reads is written.
    let expected = match code as *const () == l2_insb as *const () && page == PAGE {
        true => vec![Stop::In(PORT, 1)],
        false => Vec::new(),
    };
    expect("what user space saw", stops, expected)?;
    let machine = fixture.machine.borrow();
    let memory = &machine.as_ref().context("there is no machine")?.memory;
    let rip = code as *const () as u64;
    expect("RIP", memory.read::<u64>(vmcb::RIP), rip)?;
    expect("error", memory.read::<u64>(vmcb::EXIT_INFO_1), error)?;
    expect("address", memory.read::<u64>(vmcb::EXIT_INFO_2), page)
}

/// The tests.
pub fn points() -> Vec<Point<Fixture>> {
    vec![
        Point::new(
            "a string that L0 reads for L2 is a nested page fault where L1 has no page",
            |fixture| {
                let error = USER | error::FINAL;
                refused(fixture, l2_outsb, PAGE, 0, error)?;
                // All accesses by L2 are those of a user.
                let entry = PAGE | PRESENT | WRITE;
                refused(fixture, l2_outsb, PAGE, entry, error | PRESENT)
            },
        ),
        Point::new(
            "a string that L0 writes for L2 is a nested page fault where L1 forbids that",
            |fixture| {
                let error = USER | WRITE | error::FINAL;
                refused(fixture, l2_insb, PAGE, 0, error)?;
                let entry = PAGE | PRESENT | USER;
                refused(fixture, l2_insb, PAGE, entry, error | PRESENT)?;
                let (ran, stops, _) = run_with(fixture, l2_outsb, PAGE, entry)?;
                expect("a read", ran, Ran::Finished)?;
                expect("the string", stops, vec![Stop::Out(PORT, vec![b'L'])])
            },
        ),
        Point::new("a reserved bit is found by L0's accesses, too", |fixture| {
            let entry = PAGE | PRESENT | WRITE | USER | RESERVED;
            let error = PRESENT | USER | error::RESERVED | error::FINAL;
            refused(fixture, l2_outsb, PAGE, entry, error)?;
            refused(fixture, l2_insb, PAGE, entry, error | WRITE)
        }),
        Point::new(
            "L0 reads L2's page tables by L1's nested page table",
            |fixture| {
                let table = {
                    let machine = fixture.machine.borrow();
                    let machine = machine.as_ref().context("there is no machine")?;
                    table_of(&machine.memory, machine.tables.root, PAGE)
                };
                // They are written, too, for their flags.
                let error = USER | WRITE | error::PAGE_TABLE;
                refused(fixture, l2_outsb, table, 0, error)?;
                let entry = table | PRESENT | USER;
                refused(fixture, l2_outsb, table, entry, error | PRESENT)
            },
        ),
        Point::new("accesses by L0 set the flags of L1's entry", |fixture| {
            let entry = PAGE | PRESENT | WRITE | USER;
            let (ran, stops, after) = run_with(fixture, l2_outsb, PAGE, entry)?;
            expect("OUTS", ran, Ran::Finished)?;
            expect("the string", stops, vec![Stop::Out(PORT, vec![b'L'])])?;
            expect("entry after a read", after, entry | ACCESSED)?;
            let (ran, stops, after) = run_with(fixture, l2_insb, PAGE, entry)?;
            expect("INS", ran, Ran::Finished)?;
            expect("what user space saw", stops, vec![Stop::In(PORT, 1)])?;
            expect("entry after a write", after, entry | ACCESSED | DIRTY)?;
            let machine = fixture.machine.borrow();
            let memory = &machine.as_ref().context("there is no machine")?.memory;
            expect("the string", memory.read::<u8>(PAGE), ANSWER)
        }),
    ]
}
