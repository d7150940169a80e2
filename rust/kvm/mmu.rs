// SPDX-License-Identifier: GPL-2.0

//! The page tables that L2 runs on.
//!
//! `nested::mmu` makes them and keeps them; this is what it needs of KVM, and what KVM asks of it.
//! Each VM has one set of [`Tables`], protected by KVM's `mmu_lock`.

mod entries;
mod fault;
mod notify;
mod pages;
mod root;
mod shrinker;
mod translate;

use crate::{
    bindings,
    Vcpu, //
};
use core::{
    cell::UnsafeCell,
    sync::atomic::AtomicU64, //
};
use entries::Entries;
use kernel::{
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc, //
    }, //
};
use nested::{
    address::{
        Gpa,
        L2Gpa, //
    },
    mmu::{
        counters::{
            Counters,
            Event, //
        },
        level::Level,
        shadow::{
            hardware::{
                Hardware,
                HardwareKind, //
            },
            Config,
            DirtyPages,
            FlushScope,
            Sequences,
            Shadow,
            Shrunk,
            Tlbs,
            Untrackable,
            WriteTracker, //
        }, //
    }, //
};
use pages::{
    Chunk,
    Pages,
    TablePage, //
};

pub use fault::{
    anticipate,
    forget,
    handle_fault,
    L2, //
};
pub use notify::add_ops;
pub use root::{
    check_root,
    flush_roots,
    load_root,
    release_root,
    unload_root,
    LoadedRoot, //
};
pub use shrinker::{
    leave as leave_shrinker,
    Shrinker, //
};
pub use translate::{
    translate,
    Fault, //
};

/// A VM, as the shadow tables know it.
///
/// # Invariants
///
/// The VM can use nested virtualization, and has [`Tables`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vm(*mut bindings::kvm);

// SAFETY: Whatever is done with a VM here, any thread can do.
unsafe impl Send for Vm {}

impl Vm {
    /// Returns the VM that a vCPU belongs to.
    fn of(vcpu: &Vcpu) -> Self {
        // INVARIANT: By the invariants of `Vcpu`.
        // SAFETY: As above.
        Self(unsafe { (*vcpu.as_ptr()).kvm })
    }

    /// Returns whether L2's writes may be noticed later than they happen. A ring, other than a
    /// bitmap, gets each as it happens.
    fn logs_by_flags(self) -> bool {
        // SAFETY: By the type invariants. It does not change while vCPUs run.
        unsafe { (*self.0).dirty_ring_size == 0 }
    }

    /// Returns the VM's tables.
    fn tables<'a>(self) -> &'a Tables {
        // SAFETY: By the type invariants. The tables live as long as the VM, which lasts longer
        // than the op that this is called in.
        unsafe { crate::vm::tables(self.0) }
    }
}

impl DirtyPages for Vm {
    fn report(&self, page: Gpa) {
        // SAFETY: By the type invariants. KVM protects memory slots wherever it calls this module.
        unsafe { bindings::nested_helper_log_dirty(self.0, page.into_raw() >> 12) }
    }
}

impl Tlbs for Vm {
    fn flush_all(&self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::kvm_flush_remote_tlbs(self.0) }
    }
}

impl WriteTracker for Vm {
    fn protect(&self, page: Gpa) -> core::result::Result<(), Untrackable> {
        // SAFETY: By the type invariants; called with `mmu_lock` held for writing.
        let is_protected = unsafe { bindings::kvm_mmu_nested_track(self.0, page.into_raw() >> 12) };

        is_protected.then_some(()).ok_or(Untrackable)
    }
}

/// What is about no address of L2 in particular.
const NO_ADDRESS: L2Gpa = L2Gpa::from_raw(0);

/// The shadow tables of a VM.
pub struct Tables {
    counters: Arc<Counters>,
    sequences: Sequences<AtomicU64>,
    /// Protected by `mmu_lock` of the VM. There are none before an L2 needs them.
    shadow: UnsafeCell<Option<Shadow<Pages>>>,
    /// Whether the shrinker knows the VM. It changes with the lock of its list.
    is_listed: Atomic<bool>,
}

// SAFETY: The shadow is accessed with `mmu_lock` only.
unsafe impl Send for Tables {}

// SAFETY: As above; held for reading, it gives shared references to what can be shared.
unsafe impl Sync for Tables {}

impl Tables {
    /// Roots that are kept though no vCPU uses them.
    const CACHED_ROOTS: u32 = 16;
    /// Pages that are added at a time, at least.
    const STEP: u32 = 32;
    /// Pages that a VM may have in any case.
    const MINIMUM: u32 = 512;

    /// Returns the tables of a new VM, which count what they do.
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self {
            counters,
            sequences: Sequences::default(),
            shadow: UnsafeCell::new(None),
            is_listed: Atomic::new(false),
        }
    }

    /// Counts events, and traces them; `address` is that of L2 that they are about, or 0.
    fn note(&self, vm: Vm, event: Event, count: u64, address: L2Gpa) {
        if count != 0 {
            self.counters.add(event, count);
            let name = event.name().as_char_ptr();
            // SAFETY: By the invariants of `Vm`; the tracepoint copies the name.
            unsafe { bindings::nested_helper_trace_mmu(vm.0, name, count, address.into_raw()) };
        }
    }

    /// Calls `access` with the shadow, if there is one, and `mmu_lock` held for reading. It must
    /// not sleep.
    fn read<R>(&self, vm: Vm, access: impl FnOnce(&Shadow<Pages>) -> R) -> Option<R> {
        // SAFETY: By the invariants of `Vm`; it is unlocked below.
        unsafe { bindings::nested_helper_mmu_read_lock(vm.0) };
        // SAFETY: The lock is held.
        let result = unsafe { self.locked_for_read() }.map(access);
        // SAFETY: As above.
        unsafe { bindings::nested_helper_mmu_read_unlock(vm.0) };
        result
    }

    /// Calls `access` with `mmu_lock` held for writing. It must not sleep.
    fn write<R>(&self, vm: Vm, access: impl FnOnce(&mut Option<Shadow<Pages>>) -> R) -> R {
        // SAFETY: By the invariants of `Vm`; it is unlocked below.
        unsafe { bindings::nested_helper_mmu_write_lock(vm.0) };
        // SAFETY: The lock is held for writing.
        let result = access(unsafe { &mut *self.shadow.get() });
        // SAFETY: As above.
        unsafe { bindings::nested_helper_mmu_write_unlock(vm.0) };
        result
    }

    /// Gives up to `wanted` pages back to the host, and returns how many. It waits for nobody.
    fn shrink(&self, vm: Vm, wanted: u32) -> u32 {
        let mut srcu = 0;
        // SAFETY: By the invariants of `Vm`; it is unlocked below.
        if !unsafe { bindings::nested_helper_mmu_try_write_lock(vm.0, &raw mut srcu) } {
            return 0;
        }
        // SAFETY: The lock is held for writing.
        let shadow = unsafe { self.locked_for_write() };
        let shrunk = shadow.map_or(Shrunk::default(), |shadow| {
            shadow.shrink(wanted, &vm, &vm, drop)
        });
        // SAFETY: As above.
        unsafe { bindings::nested_helper_mmu_end_try_write_lock(vm.0, srcu) };

        self.note(vm, Event::GivenBack, u64::from(shrunk.pages), NO_ADDRESS);
        self.note(vm, Event::Eviction, u64::from(shrunk.evicted), NO_ADDRESS);
        shrunk.pages
    }

    /// Returns the shadow, if there is one.
    ///
    /// # Safety
    ///
    /// `mmu_lock` of the VM must be held, for reading or for writing, as long as the reference
    /// lives, and no other reference be exclusive.
    unsafe fn locked_for_read(&self) -> Option<&Shadow<Pages>> {
        // SAFETY: By the requirements of this function.
        unsafe { &*self.shadow.get() }.as_ref()
    }

    /// Returns the shadow, if there is one, exclusively.
    ///
    /// # Safety
    ///
    /// `mmu_lock` of the VM must be held for writing as long as the reference lives, and there be
    /// no other reference.
    #[expect(clippy::mut_from_ref)]
    unsafe fn locked_for_write(&self) -> Option<&mut Shadow<Pages>> {
        // SAFETY: By the requirements of this function.
        unsafe { &mut *self.shadow.get() }.as_mut()
    }

    /// Adds pages, or makes some free; may sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the host has none.
    fn refill(&self, vcpu: &Vcpu) -> Result {
        let vm = Vm::of(vcpu);
        let limit = page_limit(vm);
        shrinker::enter(vm)?;
        let (has_shadow, pages, room) = self
            .read(vm, |shadow| {
                (true, shadow.pages_in_pool(), shadow.pages().room())
            })
            .unwrap_or((false, 0, 0));
        let is_enough = self.write(vm, |shadow| {
            shadow.as_mut().is_some_and(|shadow| shadow.replenish())
        });
        if is_enough {
            return Ok(());
        }

        if !has_shadow {
            let shadow = Shadow::new(Pages::new()?, config(vcpu));
            self.write(vm, |place| {
                // Another vCPU may have been faster: its pages stay.
                if place.is_none() {
                    *place = Some(shadow);
                    None
                } else {
                    Some(shadow)
                }
            });
        }
        let step = Self::STEP.max(pages / 64).min(Chunk::SLOTS);
        if pages.saturating_add(step) > limit {
            // Many at a time: each time takes a flush.
            let enough = Self::STEP.max(pages / 8).min(1024);
            self.note(vm, Event::Eviction, 1, NO_ADDRESS);
            let free = self.write(vm, |shadow| {
                shadow
                    .as_mut()
                    .map_or(0, |shadow| shadow.evict(enough, &vm, &vm))
            });
            // What there is besides may be needed at once.
            if free >= enough / 2 {
                return Ok(());
            }
        }

        let mut chunk = if room < step {
            Some(Chunk::new()?)
        } else {
            None
        };
        let mut fresh = KVec::with_capacity(step as usize, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..step {
            fresh.push(TablePage::new()?, GFP_KERNEL_ACCOUNT)?;
        }
        let fresh = self.write(vm, |shadow| {
            let Some(shadow) = shadow else {
                return fresh;
            };
            shadow.reclaim(&vm, &vm);
            if let Some(more) = chunk.take() {
                chunk = shadow.pages_mut().add_chunk(more);
            }
            while let Some(page) = fresh.pop() {
                if let Err(page) = shadow.donate(page) {
                    // There was room for it.
                    let _ = fresh.push_within_capacity(page);
                    break;
                }
            }
            fresh
        });
        let used = (step as usize).saturating_sub(fresh.len());
        self.note(vm, Event::Page, used as u64, NO_ADDRESS);
        // What could not be used is freed without the lock.
        drop(fresh);
        Ok(())
    }

    /// Follows a flush by L1.
    pub(crate) fn sync(&self, vcpu: &Vcpu, scope: FlushScope) {
        let vm = Vm::of(vcpu);
        let memory = Entries::resident(vcpu);

        let synced = self.read(vm, |shadow| {
            shadow.sync(&self.sequences, &memory, scope, &vm)
        });
        self.note(vm, Event::Flush, 1, NO_ADDRESS);
        let Some(synced) = synced else {
            return;
        };
        let (tables, entries) = (u64::from(synced.tables), u64::from(synced.entries));
        self.note(vm, Event::ComparedTable, tables, NO_ADDRESS);
        self.note(vm, Event::ChangedEntry, entries, NO_ADDRESS);
        if synced.calm != 0 {
            self.settle(vcpu);
        }
    }

    /// Tracks L1's tables that are calm.
    fn settle(&self, vcpu: &Vcpu) {
        let vm = Vm::of(vcpu);
        let memory = Entries::resident(vcpu);
        let tracked = self.write(vm, |shadow| {
            shadow
                .as_mut()
                .map(|shadow| shadow.settle(&self.sequences, &memory, &vm, &vm, &vm))
        });
        let tracked = tracked.map_or(0, u64::from);
        self.note(vm, Event::TrackedTable, tracked, NO_ADDRESS);
    }
}

/// Makes the tables that L2 runs on agree with L1's as far as L1 asks for it.
///
/// What the processor has of them is for the caller to flush.
pub fn sync(vcpu: &Vcpu, scope: FlushScope) {
    Vm::of(vcpu).tables().sync(vcpu, scope);
}

/// Returns the most pages that a VM's tables may have: what KVM allows for its own.
fn page_limit(vm: Vm) -> u32 {
    // SAFETY: By the invariants of `Vm`.
    let limit = unsafe { (*vm.0).arch.n_max_mmu_pages };

    u32::try_from(limit)
        .unwrap_or(u32::MAX)
        .clamp(Tables::MINIMUM, Pages::MAXIMUM)
}

/// Returns what the tables of a VM are to be like.
fn config(vcpu: &Vcpu) -> Config {
    let mut host = bindings::kvm_nested_mmu_config::default();
    // SAFETY: By the invariants of `Vcpu`.
    unsafe { bindings::kvm_mmu_nested_config(vcpu.as_ptr(), &raw mut host) };
    // SAFETY: Reads what kvm.ko was loaded with.
    let kind = if unsafe { bindings::nested_helper_has_ept() } {
        HardwareKind::Ept
    } else {
        HardwareKind::Npt {
            top: if host.level == 5 {
                Level::Table256T
            } else {
                Level::Table512G
            },
            bit_51_is_reserved: host.mmio_is_reserved,
        }
    };

    Config {
        hardware: Hardware {
            kind,
            encryption: host.encryption,
            executable_large_pages: !host.no_executable_huge_pages,
        },
        page_limit: Pages::MAXIMUM,
        cached_roots: Tables::CACHED_ROOTS,
        // KVM allows itself a page of tables for 50 pages of the VM: 8 pages in a bucket.
        buckets: (page_limit(Vm::of(vcpu)) * 6).clamp(512, 1 << 18),
        // SAFETY: Returns a number.
        seed: unsafe { bindings::nested_helper_random() },
    }
}
