// SPDX-License-Identifier: GPL-2.0

//! Faults, flushes and L0 at the same time, under a scheduler that looks for the bad orders.
//!
//! Each operation on a word that processors share, and each access to L1's memory, is a point where
//! another thread may go on. The same code runs as in the kernel: only the words are others.

mod probe;
mod races;

use super::*;
use crate::memory::{EntrySize, Exchange, GuestTables, Inaccessible};
use crate::mmu::testing::{scale, seed};
use probe::{point, quietly, Probe};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::{Arc, RwLock};
use shuttle::{thread, Config as ShuttleConfig, Runner};

/// Runs a test in many orders.
fn explore(iterations: usize, test: impl Fn() + Send + Sync + 'static) {
    let iterations = iterations * scale() as usize;
    let test = Arc::new(test);
    let mut config = ShuttleConfig::new();
    config.stack_size = 1 << 19;

    let random = test.clone();
    Runner::new(
        RandomScheduler::new_from_seed(seed(), iterations),
        config.clone(),
    )
    .run(move || random());
    // A few switches at bad places find more than many at random ones.
    Runner::new(PctScheduler::new_from_seed(seed(), 3, iterations), config).run(move || test());
}

/// L1's memory, with a point before each access.
struct SharedMemory(Memory);

impl GuestTables for SharedMemory {
    fn read_entries(
        &self,
        first: Gpa,
        size: EntrySize,
        entries: &mut [u64],
    ) -> Result<(), Inaccessible> {
        point();
        self.0.read_entries(first, size, entries)
    }

    fn compare_exchange(
        &self,
        entry: Gpa,
        size: EntrySize,
        old: u64,
        new: u64,
    ) -> Result<Exchange, Inaccessible> {
        point();
        self.0.compare_exchange(entry, size, old, new)
    }
}

struct NoReports;

impl DirtyPages for NoReports {
    fn report(&self, _page: Gpa) {}
}

struct NoTlbs;

impl Tlbs for NoTlbs {
    fn flush_all(&self) {
        point();
    }
}

/// The shadow behind its lock, and what is beside it.
struct Machine {
    memory: SharedMemory,
    shadow: RwLock<Shadow<FakePages<Probe>>>,
    sequences: Sequences<Probe>,
    key: RootKey,
    /// What L0 counts when it changes its memory: odd while it does.
    host_sequence: Probe,
    /// By how much L0 has moved all pages.
    host_offset: Probe,
}

impl Machine {
    fn new() -> Arc<Self> {
        quietly(|| {
            Arc::new(Self {
                memory: SharedMemory(Memory::default()),
                shadow: RwLock::new(shadow_with(CONFIG, 44)),
                sequences: Sequences::default(),
                key: key(Format::Ept(EPT)),
                host_sequence: Probe::new(0),
                host_offset: Probe::new(0),
            })
        })
    }

    fn root(&self) -> RootUse {
        quietly(|| {
            let mut shadow = self.shadow.write().unwrap();
            shadow.load_root(&self.key, &NoReports).unwrap()
        })
    }

    /// Another use of the same root.
    fn root_again(&self) -> RootUse {
        let shadow = self.shadow.read().unwrap();
        shadow.find_root(&self.key).unwrap()
    }

    /// Handles a fault once, in the order that the kernel has to keep.
    fn fault_once(&self, root: &RootUse, address: u64, access: Access) -> Option<Mapped> {
        let address = L2Gpa::from_raw(address);
        let ticket = self.sequences.begin(&self.key);
        let found = walk(
            &self.memory,
            &(),
            &self.key,
            address,
            access,
            Intent::Demand,
        )
        .ok()?;
        let sequence = self.host_sequence.load();
        let target = Target::Memory(Backing {
            physical: HOST + self.host_offset.load() + found.page.into_raw(),
            ..backing(found.page)
        });

        let shadow = self.shadow.read().unwrap();
        if sequence & 1 != 0 || self.host_sequence.load() != sequence {
            return Some(Mapped::Again);
        }
        let install = Installation {
            sequences: &self.sequences,
            ticket,
            dirty: &NoReports,
        };
        Some(shadow.map_one(&install, root, &found, access, &target))
    }

    /// Handles a fault until L2 can go on, or it is L1's.
    fn fault(&self, root: &RootUse, address: u64, access: Access) -> Option<Mapped> {
        for _ in 0..1000 {
            match self.fault_once(root, address, access)? {
                Mapped::Again => thread::yield_now(),
                other => return Some(other),
            }
        }
        panic!("no progress");
    }

    fn flush(&self) -> Synced {
        let shadow = self.shadow.read().unwrap();
        shadow.sync(
            &self.sequences,
            &self.memory,
            FlushScope::Table(self.key.table),
            &NoReports,
        )
    }

    fn translate(&self, root: &RootUse, address: u64) -> Option<Translation> {
        let shadow = self.shadow.read().unwrap();
        shadow.translate(root, L2Gpa::from_raw(address))
    }

    /// L0 moves all memory.
    fn move_memory(&self, page: u64) {
        {
            let mut shadow = self.shadow.write().unwrap();
            self.host_sequence.fetch_add(1);
            let frames = Frames::new(Gpa::from_raw(page), 0x1000);
            let _ = shadow.unmap(&frames, &NoReports);
        }
        self.host_offset.fetch_add(1 << 32);
        let _shadow = self.shadow.write().unwrap();
        self.host_sequence.fetch_add(1);
    }

    fn reclaim(&self) {
        let mut shadow = self.shadow.write().unwrap();
        shadow.reclaim(&NoTlbs, &NoReports);
    }

    fn check(&self) {
        quietly(|| self.shadow.read().unwrap().check());
    }
}
