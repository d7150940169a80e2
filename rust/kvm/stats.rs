// SPDX-License-Identifier: GPL-2.0

//! Statistics of each VM that can use nested virtualization, in debugfs.
//!
//! They are in `/sys/kernel/debug/nested/PID-N`, where `PID` is the process that created the VM and
//! `N` counts the VMs since the module was loaded:
//!
//! - `exits` has a line for each reason for which L2 has exited: its name, how many of these exits
//!   L0 took, and how many L1 took.
//! - `entries` has two lines: `entered`, how many entries that L1 asked for were made, and
//!   `refused`, how many failed a consistency check.
//! - `failed_checks` has a line for each check that has failed: its name, and how often.
//! - `mmu` has a line for each thing that the shadow tables count: its name, and how often.

use core::{
    fmt,
    ops::{
        Deref,
        DerefMut, //
    },
    sync::atomic::AtomicU64, //
};
use kernel::{
    debugfs::{
        Dir,
        Scope, //
    },
    new_spinlock,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock, //
    }, //
};
use nested::entries::{
    EntryCounter,
    FailedCheck,
    FailedChecks, //
};
use nested::exits::ExitCounters;
pub use nested::exits::Reason;
use nested::mmu;

kernel::sync::global_lock! {
    // SAFETY: `StatsRoot::new()` initializes it before the module registers any op.
    unsafe(uninit) static ROOT: Mutex<Option<Dir>> = None;
}

/// Numbers the VMs.
static NEXT_VM: Atomic<u64> = Atomic::new(1);

/// The directory of all VMs in debugfs. It is removed when this is dropped.
pub struct StatsRoot(());

impl StatsRoot {
    /// Creates the directory.
    ///
    /// # Safety
    ///
    /// Must be called once, when the module is loaded, before a VM can get statistics.
    pub unsafe fn new() -> Self {
        // SAFETY: By the requirements of this function, this happens once.
        unsafe { ROOT.init() };
        *ROOT.lock() = Some(Dir::new(c"nested"));

        Self(())
    }
}

impl Drop for StatsRoot {
    fn drop(&mut self) {
        *ROOT.lock() = None;
    }
}

/// The cells of the counters.
struct Cells(KVVec<AtomicU64>);

impl Cells {
    fn zeroed(count: usize) -> Result<Self> {
        let mut cells = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;

        for _ in 0..count {
            cells.push(AtomicU64::new(0), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Self(cells))
    }
}

impl Deref for Cells {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// The slots of the checks that have failed.
struct Slots(KVVec<FailedCheck>);

impl Slots {
    /// More than there are checks.
    const COUNT: usize = 512;

    fn new() -> Result<Self> {
        Ok(Self(KVVec::from_elem(
            FailedCheck::default(),
            Self::COUNT,
            GFP_KERNEL_ACCOUNT,
        )?))
    }
}

impl Deref for Slots {
    type Target = [FailedCheck];

    fn deref(&self) -> &[FailedCheck] {
        &self.0
    }
}

impl DerefMut for Slots {
    fn deref_mut(&mut self) -> &mut [FailedCheck] {
        &mut self.0
    }
}

/// What is counted of the entries of L2.
#[pin_data]
struct Entries {
    made: EntryCounter<Cells>,
    #[pin]
    failed: SpinLock<FailedChecks<Slots>>,
}

impl Entries {
    fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            made: EntryCounter::new(Cells::zeroed(EntryCounter::<Cells>::CELLS)?),
            failed <- new_spinlock!(FailedChecks::new(Slots::new()?)),
        }? Error)
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self.failed.lock().total();

        writeln!(f, "entered {}\nrefused {refused}", self.made.total())
    }

    fn show_failed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&*self.failed.lock(), f)
    }
}

/// What is counted of a VM.
#[pin_data]
struct Counters<R: Reason> {
    exits: ExitCounters<R, Cells>,
    #[pin]
    entries: Entries,
    mmu: Arc<mmu::counters::Counters>,
}

/// The statistics of a VM, whose exits of L2 have reasons of type `R`.
#[pin_data]
pub struct VmStats<R: Reason> {
    #[pin]
    counters: Scope<Counters<R>>,
}

/// Calls `create` with the directory of all VMs.
///
/// # Errors
///
/// `ENODEV` if there is none, and those of `create`.
pub(crate) fn with_root<T>(create: impl FnOnce(&Dir) -> Result<T>) -> Result<T> {
    create(ROOT.lock().as_ref().ok_or(ENODEV)?)
}

/// Returns the name of the directory of a new VM, which the current process creates.
///
/// # Errors
///
/// `ENOMEM` if memory is short.
pub(crate) fn next_name() -> Result<CString> {
    // By way of C: what bindgen makes of the layout of `task_struct` is not to be relied on.
    let pid = kernel::current!().tgid_nr_ns(None);
    let number = NEXT_VM.fetch_add(1, Relaxed);

    CString::try_from_fmt(fmt!("{pid}-{number}"))
}

impl<R: Reason + Send + Sync + 'static> VmStats<R> {
    /// Creates the statistics of a VM, with a directory of that name below `root`. `mmu` is what its
    /// shadow tables count.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if memory is short.
    pub(crate) fn new<'a>(
        root: &'a Dir,
        name: &'a CStr,
        mmu: Arc<mmu::counters::Counters>,
    ) -> Result<impl PinInit<Self, Error> + use<'a, R>> {
        let cells = Cells::zeroed(ExitCounters::<R, Cells>::CELLS)?;
        let counters = try_pin_init!(Counters {
            exits: ExitCounters::new(cells),
            entries <- Entries::new(),
            mmu,
        }? Error);

        Ok(try_pin_init!(Self {
            counters <- root.scope::<_, Error, _>(counters, name, |counters, dir| {
                dir.read_callback_file(c"exits", &counters.exits, &fmt::Display::fmt);
                dir.read_callback_file(c"entries", &counters.entries, &Entries::show);
                dir.read_callback_file(
                    c"failed_checks",
                    &counters.entries,
                    &Entries::show_failed,
                );
                dir.read_callback_file(c"mmu", &counters.mmu, &|mmu, f| fmt::Display::fmt(&**mmu, f));
            }),
        }? Error))
    }
}

impl<R: Reason> VmStats<R> {
    /// Returns the counters of the exits of L2.
    pub fn exits(&self) -> &ExitCounters<R, impl Deref<Target = [AtomicU64]>> {
        &self.counters.exits
    }

    /// Counts an entry of L2 that L1 has asked for, by the vCPU with the index `vcpu`.
    #[inline]
    pub fn count_entry(&self, vcpu: usize) {
        self.counters.entries.made.count(vcpu);
    }

    /// Counts that the check `name` has refused an entry of L2.
    pub fn count_failed_check(&self, name: &'static CStr) {
        self.counters.entries.failed.lock().count(name);
    }
}
