// SPDX-License-Identifier: GPL-2.0

//! The machine: an L1 with a gigabyte of memory, and an L2 that has the same gigabyte elsewhere, by
//! small pages of L1's page tables.

use std::arch::x86_64::_rdtsc;
use std::fs;
use std::ptr::null_mut;

use anyhow::{bail, ensure, Context, Result};
use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES};
use rustix::fs::{ftruncate, memfd_create, MemfdFlags};
use rustix::mm::{mmap, mmap_anonymous, munmap, MapFlags, ProtFlags};
use selftests::guest::machine::{heard, run, Interrupts, Machine, Stop};
use selftests::guest::memory::Mapping;
use selftests::guest::paging::program::{self, Access, Flush, Operation, Pages, Root, Supply};
use selftests::guest::paging::{map_gigabyte, Format, Right, ADDRESS};
use selftests::vm;

/// The gigabyte, for L1.
const MEMORY: u64 = 2 << 30;

/// The page tables for it, for L1: those of the lowest level, and the one above.
const TABLES: u64 = 3 << 30;

/// The gigabyte, for L2.
const WINDOW: u64 = 4 << 30;

/// Pages of the gigabyte.
pub const WINDOW_PAGES: u64 = 1 << 18;

/// The entry of L1's page tables that is changed is that of this page.
const CHANGED: u64 = 0x2345;

/// Where L1's own page tables have room for more.
const OWN_TABLES: u64 = 0x30_0000;

const SLOT_MEMORY: u32 = 3;
const SLOT_TABLES: u32 = 4;

/// A guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Level 0's.
    L1,
    /// That guest's.
    L2,
}

impl Guest {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::L1, Self::L2];

    /// Returns its name on the console.
    pub const fn name(self) -> &'static str {
        match self {
            Self::L1 => "l1",
            Self::L2 => "l2",
        }
    }
}

/// A gigabyte of addresses with two megabytes of memory, over and over: level 0 has small pages, and
/// needs no memory for their content.
struct Gigabyte(*mut u8);

impl Gigabyte {
    const SIZE: usize = 1 << 30;
    const PART: usize = 2 << 20;

    fn new() -> Result<Self> {
        let file = memfd_create("gigabyte", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, Self::PART as u64)?;
        let nothing = ProtFlags::empty();
        // SAFETY: A new mapping where the kernel finds room touches no memory of this program.
        let base = unsafe { mmap_anonymous(null_mut(), Self::SIZE, nothing, MapFlags::PRIVATE) }?;
        let this = Self(base.cast());
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // The host's page tables are complete from the beginning.
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE;
        for offset in (0..Self::SIZE).step_by(Self::PART) {
            // SAFETY: The part is in the mapping, of which nothing was used.
            unsafe {
                let part = this.0.add(offset).cast();
                mmap(part, Self::PART, protection, flags, &file, 0)?;
            }
        }
        Ok(this)
    }
}

impl Drop for Gigabyte {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and nothing refers to it any more.
        let _ = unsafe { munmap(self.0.cast(), Self::SIZE) };
    }
}

/// The machine.
pub struct World {
    // Closed before its memory goes.
    machine: Machine,
    memory: Gigabyte,
    _tables: Mapping,
    format: Format,
    root: Root,
    /// Bytes of the gigabyte that the machine has.
    size: usize,
}

impl World {
    /// Creates a machine that has so many pages of the gigabyte, and whose L1 has page tables with none
    /// of them in them.
    pub fn new(pages: u64) -> Result<Self> {
        let kvm = vm::open()?;
        let mut machine = Machine::new(&kvm, 1, Interrupts::None)?;
        let format = Format::offered(&kvm, machine.vendor)?;
        let tables = Mapping::new(513 << 12)?;
        // L1 has them at TABLES.
        let directory = 512 << 12;
        for index in 0..512 {
            let table = format.table(TABLES + (index << 12), Right::All);
            tables.write(directory + 8 * index, table);
        }
        let next = |table: u64| machine.memory.read::<u64>(table) & ADDRESS;
        let own = next(machine.tables.root);
        for (number, table) in [MEMORY, TABLES, WINDOW].into_iter().zip(0..) {
            let table = OWN_TABLES + (table << 12);
            map_gigabyte(&machine.memory, own, table, number >> 30);
        }
        let nested = next(machine.tables.nested) + 8 * (WINDOW >> 30);
        let entry = format.table(TABLES + directory, Right::All);
        machine.memory.write(nested, entry);
        program::begin(&kvm, &mut machine)?;
        let root = format.root(machine.tables.nested, 1, format.flags);
        let world = Self {
            machine,
            memory: Gigabyte::new()?,
            _tables: tables,
            format,
            root,
            size: usize::try_from(pages << 12)?,
        };
        world.set_slot(SLOT_TABLES, TABLES, 513 << 12, world._tables.address(), 0)?;
        world.set_memory(0)?;
        Ok(world)
    }

    fn set_slot(&self, slot: u32, address: u64, size: u64, from: u64, flags: u32) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: address,
            memory_size: size,
            userspace_addr: from,
        };
        // SAFETY: The mappings live as long as the machine.
        unsafe { self.machine.vm.set_user_memory_region(region) }
            .context("KVM_SET_USER_MEMORY_REGION")
    }

    fn set_memory(&self, flags: u32) -> Result<()> {
        let size = self.size as u64;
        self.set_slot(SLOT_MEMORY, MEMORY, size, self.memory.0 as u64, flags)
    }

    /// Makes level 0 log which pages of the gigabyte are written.
    pub fn log_writes(&mut self) -> Result<()> {
        self.set_memory(KVM_MEM_LOG_DIRTY_PAGES)?;
        self.logged().map(|_| ())
    }

    /// Returns how many pages were written since the last time.
    pub fn logged(&self) -> Result<u64> {
        let bits = self.machine.vm.get_dirty_log(SLOT_MEMORY, self.size);
        let bits = bits.context("KVM_GET_DIRTY_LOG")?;
        Ok(bits.iter().map(|word| u64::from(word.count_ones())).sum())
    }

    /// Returns an entry of L1's page tables for a page of the gigabyte. It was accessed and is dirty,
    /// as hypervisors write entries for accesses that they have refused.
    fn page(&self, number: u64) -> u64 {
        let flags = self.format.accessed() | self.format.dirty();
        self.format.page(MEMORY + (number << 12), Right::All) | flags
    }

    /// Makes L1 execute operations.
    fn execute(&mut self, operations: &[Operation]) -> Result<()> {
        program::write(&self.machine.memory, 0, operations);
        match run(&mut self.machine.vcpus[0]) {
            Stop::Said(message) => heard(message).map(|_| ()),
            other => bail!("the guest stopped: {other:?}"),
        }
    }

    /// Fails if the L2 of an operation did not reach its end.
    fn finished(&self, index: usize) -> Result<()> {
        let stopped = program::stopped(&self.machine.memory, 0, index);
        ensure!(
            stopped.code == self.format.call(),
            "L2 stopped: {stopped:x?}"
        );
        Ok(())
    }

    /// Makes a guest write to the first pages of the gigabyte; L1 gives L2 those that it does not have.
    pub fn sweep(&mut self, guest: Guest, number: u64) -> Result<()> {
        self.sweep_from(guest, 0, number)
    }

    /// Makes L1 give L2 all pages of the gigabyte.
    pub fn supply_all(&mut self) -> Result<()> {
        let fill =
            |table: u64| Operation::Fill(TABLES + (table << 12), self.page(table << 9), 0x1000);
        let tables: Vec<_> = (0..512).map(fill).collect();
        self.execute(&tables)
    }

    /// Makes a guest write to many pages of the gigabyte, and says now and then that it goes on.
    pub fn sweep_window(&mut self, guest: Guest, pages: u64) -> Result<()> {
        const PART: u64 = WINDOW_PAGES / 16;
        for first in (0..pages).step_by(PART as usize) {
            self.sweep_from(guest, first, PART.min(pages - first))?;
            println!("# {} of {pages} pages", first + PART);
        }
        Ok(())
    }

    fn sweep_from(&mut self, guest: Guest, first: u64, number: u64) -> Result<()> {
        let pages = |start| Pages {
            address: start + (first << 12),
            number,
        };
        match guest {
            Guest::L1 => self.execute(&[Operation::SweepAtL1(pages(MEMORY))]),
            Guest::L2 => {
                let supply = Supply {
                    entries: TABLES + 8 * first,
                    first: self.page(first),
                };
                self.execute(&[Operation::Sweep(self.root, pages(WINDOW), supply)])?;
                self.finished(0)
            }
        }
    }

    /// Makes L1 give L2 another page in the place of one, and L2 write to it; returns the ticks.
    pub fn change(&mut self, round: u64) -> Result<u64> {
        let entry = TABLES + 8 * CHANGED;
        let address = WINDOW + (CHANGED << 12);
        self.execute(&[
            // When this is done, the clock begins.
            Operation::Poke(MEMORY, 0),
            Operation::Poke(entry, self.page(round)),
            Operation::Run(Access::Write, self.root, Flush::One, address, round),
        ])?;
        self.finished(2)?;
        let time = |index| program::time(&self.machine.memory, 0, index);
        Ok(time(2) - time(0))
    }
}

/// Returns the TSC.
pub fn now() -> u64 {
    // SAFETY: Every processor in 64-bit mode has a TSC, and Linux lets programs read it.
    unsafe { _rdtsc() }
}

/// Returns how many exits of guests there were.
pub fn exits() -> Result<u64> {
    const PATH: &str = "/sys/kernel/debug/kvm/exits";
    let text = fs::read_to_string(PATH).context(PATH)?;
    text.trim().parse().context(PATH)
}

/// Returns the memory that is free, in KiB: to the page, with what processors keep for themselves.
pub fn free() -> Result<u64> {
    const REFRESH: &str = "/proc/sys/vm/stat_refresh";
    const ZONES: &str = "/proc/zoneinfo";
    // Else each processor has changed the figure by some that it has told nobody of.
    fs::write(REFRESH, "1").context(REFRESH)?;
    let text = fs::read_to_string(ZONES).context(ZONES)?;
    let mut pages = 0;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["nr_free_pages" | "count:", number] = words[..] {
            pages += number.parse::<u64>().context(ZONES)?;
        }
    }
    Ok(4 * pages)
}
