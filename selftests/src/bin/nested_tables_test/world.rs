// SPDX-License-Identifier: GPL-2.0

//! The machine: what it has besides that of the other tests, and where.
//!
//! Each processor works on one *slice* at a time: a gigabyte of addresses of L2, and memory of L1
//! with the tables and the pages of it. Nobody else changes that meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use anyhow::{ensure, Context, Result};
use kvm_bindings::{kvm_userspace_memory_region, KVM_MEM_LOG_DIRTY_PAGES};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use selftests::guest::machine::{Interrupts, Machine};
use selftests::guest::memory::Mapping;
use selftests::guest::{GuestMemory, Vendor};

use crate::slice::Slice;
use selftests::guest::paging::program::{self, Root};
use selftests::guest::paging::{map_gigabyte, Format, Right, ADDRESS};

/// Where the memory of the slices is, for L1.
pub const ARENA: u64 = 2 << 30;

/// Bytes of a large page.
pub const BLOCK: u64 = 2 << 20;

/// Bytes of a slice: two large pages.
pub const SLICE: u64 = 2 * BLOCK;

/// The first address of L2 in the first slice.
const WINDOW: u64 = 4 << 30;

/// The tables that are in the memory of all.
const TABLES: u64 = 0x30_0000;

/// The top tables, one for each root.
const TOPS: u64 = 0x38_0000;

/// The slot of the slices' memory.
const SLOT: u32 = 3;

/// A slot that comes and goes, where nobody looks.
const SLOT_ELSEWHERE: u32 = 7;

/// Where that is.
const ELSEWHERE: u64 = 0x3000_0000;

/// Address-space identifiers that L1 uses.
pub const TAGS: u64 = 7;

/// The tables' tops, and the way they are used.
#[derive(Clone, Copy, Debug)]
pub struct Top {
    /// Where the table is.
    pub address: u64,
    /// What the processor gets.
    pub root: Root,
    /// Whether accessed and dirty flags are set.
    pub flags: bool,
}

/// What all threads of a test use.
pub struct World {
    /// The machine.
    pub vm: VmFd,
    /// The memory of all.
    pub memory: Arc<GuestMemory>,
    /// That of the slices, which begins at an address that suits large pages.
    pub arena: Mapping,
    /// Where it begins in the mapping.
    pub offset: u64,
    /// The format of L1's tables.
    pub format: Format,
    /// The slices.
    pub slices: Vec<Mutex<Slice>>,
    /// What L2 wrote, and what the log says.
    pub log: Mutex<Log>,
    /// Who runs a processor holds it for reading.
    pub gate: RwLock<()>,
    /// Somebody waits for it.
    pub closing: AtomicBool,
    /// The test ends.
    pub stop: AtomicBool,
    /// What has happened, for the test's output.
    pub counts: Counts,
}

/// What has happened.
#[derive(Debug, Default)]
pub struct Counts {
    /// L2 finished its access.
    pub accesses: AtomicU64,
    /// L1's tables did not allow it.
    pub refused: AtomicU64,
    /// Changes of tables.
    pub changes: AtomicU64,
    /// Flushes.
    pub flushes: AtomicU64,
    /// Accessed and dirty flags that were to be set.
    pub flags: AtomicU64,
    /// Pages of which the log was asked.
    pub logged: AtomicU64,
}

impl Counts {
    /// Counts something.
    pub fn add(counter: &AtomicU64, number: usize) {
        counter.fetch_add(number as u64, Ordering::Relaxed);
    }
}

/// The log of written pages.
#[derive(Debug, Default)]
pub struct Log {
    /// Whether there is one; a number that changes when it begins.
    pub active: Option<u64>,
    begun: u64,
    /// How often it was read.
    pub epoch: u64,
    /// For each page, the number of the last reading that had it.
    seen: Vec<u64>,
    /// Pages that must be in the next reading, or in those since an earlier one.
    pub due: Vec<(u64, u64)>,
}

impl World {
    /// Creates a machine with a number of processors, slices and roots.
    pub fn new(kvm: &Kvm, processors: u64, slices: u64, roots: u64) -> Result<(Self, Vec<VcpuFd>)> {
        let mut machine = Machine::new(kvm, processors, Interrupts::None)?;
        let format = Format::offered(kvm, machine.vendor)?;
        let size = slices * SLICE;
        let arena = Mapping::new(size + BLOCK)?;
        let offset = arena.address().next_multiple_of(BLOCK) - arena.address();
        let tops = tables(&machine, format, slices, roots);
        let slices = (0..slices)
            .map(|number| Mutex::new(Slice::new(number, format, &tops)))
            .collect();
        program::begin(kvm, &mut machine)?;
        let Machine {
            vcpus, vm, memory, ..
        } = machine;
        let world = Self {
            vm,
            memory,
            arena,
            offset,
            format,
            slices,
            log: Mutex::default(),
            gate: RwLock::default(),
            closing: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            counts: Counts::default(),
        };
        world.set_slot(true, false)?;
        for slice in &world.slices {
            slice.lock().unwrap().fill(&world);
        }
        Ok((world, vcpus))
    }

    /// Bytes of the slices.
    pub fn size(&self) -> u64 {
        SLICE * self.slices.len() as u64
    }

    /// Reads what L1 has at an address of the slices.
    pub fn read(&self, address: u64) -> u64 {
        self.arena.read(address - ARENA + self.offset)
    }

    /// Writes it; only before anything runs.
    pub fn write(&self, address: u64, value: u64) {
        self.arena.write(address - ARENA + self.offset, value);
    }

    /// Reads a word of any memory of L1.
    pub fn read_any(&self, address: u64) -> u64 {
        if address >= ARENA {
            self.read(address)
        } else {
            self.memory.read(address)
        }
    }

    /// Gives the machine the memory of the slices, or takes it away.
    pub fn set_slot(&self, there: bool, log: bool) -> Result<()> {
        let region = kvm_userspace_memory_region {
            slot: SLOT,
            flags: if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: ARENA,
            memory_size: if there { self.size() } else { 0 },
            userspace_addr: self.arena.address() + self.offset,
        };
        // SAFETY: The mapping lives as long as the machine.
        unsafe { self.vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")
    }

    /// Lets memory come and go that nobody uses: KVM drops all tables that it has made.
    pub fn drop_roots(&self) -> Result<()> {
        for memory_size in [0x1000, 0] {
            let region = kvm_userspace_memory_region {
                slot: SLOT_ELSEWHERE,
                flags: 0,
                guest_phys_addr: ELSEWHERE,
                memory_size,
                userspace_addr: self.arena.address(),
            };
            // SAFETY: As above.
            unsafe { self.vm.set_user_memory_region(region) }
                .context("KVM_SET_USER_MEMORY_REGION")?;
        }
        Ok(())
    }

    /// Begins or ends logging.
    pub fn toggle_log(&self) -> Result<()> {
        let mut log = self.log.lock().unwrap();
        let active = log.active.is_none();
        self.set_slot(true, active)?;
        log.due.clear();
        log.begun += 1;
        log.active = active.then_some(log.begun);
        let pages = usize::try_from(self.size() >> 12)?;
        log.seen = vec![0; pages];
        Ok(())
    }

    /// Reads the log, and checks that all that was written is there.
    pub fn read_log(&self) -> Result<()> {
        let mut log = self.log.lock().unwrap();
        if log.active.is_none() {
            return Ok(());
        }
        let bits = self.vm.get_dirty_log(SLOT, usize::try_from(self.size())?);
        let bits = bits.context("KVM_GET_DIRTY_LOG")?;
        log.epoch += 1;
        let Log {
            epoch, seen, due, ..
        } = &mut *log;
        for (page, last) in seen.iter_mut().enumerate() {
            if bits[page / 64] >> (page % 64) & 1 == 1 {
                *last = *epoch;
            }
        }
        Counts::add(&self.counts.logged, due.len());
        for (page, since) in due.drain(..) {
            let last = seen[usize::try_from((page - ARENA) >> 12)?];
            ensure!(
                last > since,
                "page {page:#x} was written after reading {since} of the log, and is not in those \
                 up to {epoch}"
            );
        }
        Ok(())
    }
}

/// Returns the first address of L2 in a slice.
pub fn window(slice: u64) -> u64 {
    WINDOW + (slice << 30)
}

/// Writes the tables that are there already, and returns L1's roots.
fn tables(machine: &Machine, format: Format, slices: u64, roots: u64) -> Vec<Top> {
    let memory = &machine.memory;
    let next = |table: u64| memory.read::<u64>(table) & ADDRESS;
    // L1's own tables, which are L2's: the slices for L1, the windows for L2.
    let upper = next(machine.tables.root);
    let mut table = TABLES;
    let ranges = (0..slices).map(|slice| window(slice) >> 30);
    for number in [ARENA >> 30].into_iter().chain(ranges) {
        map_gigabyte(memory, upper, table, number);
        table += 0x1000;
    }
    let upper = next(machine.tables.nested);
    (0..roots)
        .map(|number| {
            let address = TOPS + 0x1000 * number;
            memory.fill(address, 0x1000, 0);
            memory.write(address, format.table(upper, Right::All));
            // Each second one has no accessed and dirty flags, where there is a choice.
            top(format, address, number, number % 2 == 0)
        })
        .collect()
}

/// Returns how a table at an address is used as a root.
pub fn top(format: Format, address: u64, number: u64, flags: bool) -> Top {
    let flags = match format.vendor {
        Vendor::Svm => true,
        Vendor::Vmx => flags && format.flags,
    };
    let tag = 1 + number % TAGS;
    Top {
        address,
        root: format.root(address, tag, flags),
        flags,
    }
}
