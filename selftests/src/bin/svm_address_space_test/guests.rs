// SPDX-License-Identifier: GPL-2.0

//! An L1 that changes its nested page tables and flushes, and an L2 that reads by them.
//!
//! Each processor has a page that L2 reads, in two nested page tables. Each change of a table maps
//! another one of [`PAGES`] pages there, whose content says which it is.

use std::arch::asm;

use selftests::guest::code::{peek, poke, report, run_l2, stgi, DONE, WRONG};
use selftests::guest::layout::{BUFFER, REGISTERS, VMCB};
use selftests::guest::vmcb;
use selftests::guest_code;

/// Pages that a table maps in turn.
pub const PAGES: u64 = 64;

/// Bytes between what processors have.
pub const STEP: u64 = 0x1000;

/// ASIDs that L1 uses.
const ASIDS: u64 = 9;

/// Words of a processor, by their offsets from [`BUFFER`].
pub mod word {
    /// The random numbers.
    pub const SEED: u64 = 0x00;
    /// Times that L2 is to run.
    pub const RUNS: u64 = 0x08;
    /// The page that L2 reads.
    pub const PAGE: u64 = 0x10;
    /// The first of the pages that are mapped there.
    pub const PAGES: u64 = 0x18;
    /// What the content of each of them has above the number of the page.
    pub const MARK: u64 = 0x20;
    /// The nested page tables.
    pub const ROOTS: u64 = 0x30;
    /// The entries that map the page.
    pub const ENTRIES: u64 = 0x40;
    /// How often each entry was changed.
    pub const VERSIONS: u64 = 0x50;
    /// For each ASID: the versions at its last flush, and the table that it was used with.
    pub const FLUSHED: u64 = 0x100;
}

guest_code! {
    /// L2: reads a word.
    address_space_test_l2: "mov rbx, [rdi]", "vmmcall", "ud2";
}

/// L1 on the first processor.
pub extern "C" fn first() -> ! {
    // SAFETY: This is L1.
    unsafe { l1(0) }
}

/// L1 on the second processor.
pub extern "C" fn second() -> ! {
    // SAFETY: This is L1.
    unsafe { l1(1) }
}

/// What L1 knows of an ASID.
struct Space {
    asid: u64,
    words: u64,
}

impl Space {
    const TABLE: u64 = 16;

    fn new(own: u64, asid: u64) -> Self {
        Self {
            asid,
            words: own + word::FLUSHED + asid * 0x20,
        }
    }

    /// L1 flushes it: what L2 sees must not be older than now.
    ///
    /// # Safety
    ///
    /// Only L1 may call this.
    unsafe fn flushed(&self, own: u64) {
        // SAFETY: This is L1.
        unsafe {
            poke(self.words, peek(own + word::VERSIONS));
            poke(self.words + 8, peek(own + word::VERSIONS + 8));
        }
    }
}

/// Changes tables, flushes and runs L2 at random, and checks what L2 reads.
///
/// # Safety
///
/// Only L1 may call this.
unsafe fn l1(processor: u64) -> ! {
    let own = BUFFER + processor * STEP;
    let control = VMCB + processor * STEP;
    let registers = REGISTERS + processor * 0x80;
    // SAFETY: This is L1.
    unsafe {
        let mut state = peek(own + word::SEED) | 1;
        let mut below = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % bound
        };

        for _ in 0..peek(own + word::RUNS) {
            for _ in 0..below(4) {
                change(own, below(2));
            }
            let chosen = if below(4) == 0 { ASIDS } else { 2 };
            let space = Space::new(own, 1 + below(chosen));
            if below(8) == 0 {
                let page = peek(own + word::PAGE);
                asm!("invlpga rax, ecx", in("rax") page, in("ecx") space.asid, options(nostack));
                space.flushed(own);
            }

            let table = match below(6) {
                0 => below(2),
                _ => peek(space.words + Space::TABLE),
            };
            // L1 has to flush if it uses an ASID with another table.
            let flush = match below(8) {
                _ if table != peek(space.words + Space::TABLE) => 3,
                0 => 1,
                1 => 3,
                2 => 7,
                _ => 0,
            };
            match flush {
                0 => (),
                1 => (1..=ASIDS).for_each(|asid| Space::new(own, asid).flushed(own)),
                _ => space.flushed(own),
            }
            poke(space.words + Space::TABLE, table);
            let root = peek(own + word::ROOTS + 8 * table);
            poke(control + (vmcb::ASID - VMCB), space.asid | flush << 32);
            poke(control + (vmcb::NESTED_CR3 - VMCB), root);
            check(own, control, registers, table, &space);
        }
        loop {
            report(DONE, 0, 0);
        }
    }
}

/// Maps the next page.
///
/// # Safety
///
/// Only L1 may call this.
unsafe fn change(own: u64, table: u64) {
    // SAFETY: This is L1.
    unsafe {
        let version = peek(own + word::VERSIONS + 8 * table) + 1;
        let page = peek(own + word::PAGES) + (2 * (version % PAGES) + table) * 0x1000;
        poke(own + word::VERSIONS + 8 * table, version);
        poke(peek(own + word::ENTRIES + 8 * table), page | 0x67);
    }
}

/// Runs L2, and checks that what it reads is as new as the last flush.
///
/// # Safety
///
/// Only L1 may call this.
unsafe fn check(own: u64, control: u64, registers: u64, table: u64, space: &Space) {
    let l2 = address_space_test_l2 as *const () as u64;
    // SAFETY: This is L1.
    unsafe {
        poke(control + (vmcb::RIP - VMCB), l2);
        poke(registers, 0);
        poke(registers + 32, peek(own + word::PAGE));
        run_l2(control, registers);
        stgi();
        let code = peek(control + (vmcb::EXIT_CODE - VMCB));
        if code != vmcb::exit::VMMCALL {
            report(WRONG, code, peek(control + (vmcb::EXIT_INFO_2 - VMCB)));
        }

        let read = peek(registers);
        let now = peek(own + word::VERSIONS + 8 * table);
        let flushed = peek(space.words + 8 * table);
        let page = read & 0xffff;
        // Bits: who, which table, which page.
        if read >> 16 != peek(own + word::MARK) << 1 | table || page >= PAGES {
            report(WRONG, read, now);
        }
        // The last time that this page was mapped.
        let behind = (now + PAGES - page) % PAGES;
        if behind > now - flushed {
            report(WRONG, behind, now - flushed);
        }
    }
}
