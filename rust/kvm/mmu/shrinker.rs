// SPDX-License-Identifier: GPL-2.0

//! The shrinker of the shadow tables: a host that is short of memory gets some of it back.
//!
//! Reclaim may hold any lock: nothing here waits for one. A VM whose `mmu_lock` is held is left out.

use super::{
    pages,
    Vm, //
};
use crate::{
    bindings,
    Vcpu, //
};
use core::ptr::NonNull;
use kernel::{
    error::code::ENOMEM,
    ffi::c_ulong,
    prelude::*,
    sync::atomic::Relaxed, //
};

kernel::sync::global_lock! {
    // SAFETY: `Shrinker::new()` initializes it before there is a VM with tables.
    unsafe(uninit) static VMS: Mutex<Turns> = Turns { vms: KVVec::new(), next: 0 };
}

/// The VMs that may have shadow tables, which are served in turn.
///
/// # Invariants
///
/// No vCPU of a VM that is here is freed: [`leave()`] is called before.
struct Turns {
    vms: KVVec<Vm>,
    /// Whose turn it is.
    next: usize,
}

impl Turns {
    fn next(&mut self) -> Option<Vm> {
        if self.next >= self.vms.len() {
            self.next = 0;
        }
        let vm = self.vms.get(self.next).copied()?;

        self.next += 1;
        Some(vm)
    }
}

/// Makes the shrinker look at the tables of a VM, one of whose vCPUs is about to get some.
///
/// # Errors
///
/// `ENOMEM` if memory is short.
pub(super) fn enter(vm: Vm) -> Result {
    let is_listed = &vm.tables().is_listed;
    if is_listed.load(Relaxed) {
        return Ok(());
    }
    let mut turns = VMS.lock();

    if !is_listed.load(Relaxed) {
        // INVARIANT: The caller uses a vCPU: none is freed before the VM has no user any more.
        turns.vms.push(vm, GFP_KERNEL)?;
        is_listed.store(true, Relaxed);
    }
    Ok(())
}

/// Makes the shrinker leave the VM alone, if it is being destroyed. To be called before any of its
/// vCPUs is freed: a flush sends requests to all of them.
pub fn leave(vcpu: &Vcpu) {
    let vm = Vm::of(vcpu);
    let is_listed = &vm.tables().is_listed;

    // SAFETY: By the invariants of `Vm`.
    if unsafe { bindings::nested_helper_is_in_use(vm.0) } || !is_listed.load(Relaxed) {
        return;
    }
    let mut turns = VMS.lock();

    // `retain()` could panic, as far as the compiler can tell.
    if let Some(place) = turns.vms.iter().position(|other| *other == vm) {
        let _ = turns.vms.remove(place);
    }
    is_listed.store(false, Relaxed);
}

/// The shrinker, registered as long as this lives.
///
/// # Invariants
///
/// It is a shrinker that was registered.
pub struct Shrinker(NonNull<bindings::shrinker>);

impl Shrinker {
    /// A table costs at least a fault and a look at L1's tables to have it again: memory that is
    /// cheaper shall go first.
    const SEEKS: i32 = 10 * bindings::DEFAULT_SEEKS as i32;

    /// Registers it.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if memory is short.
    ///
    /// # Safety
    ///
    /// Must be called once, when the module is loaded, before there can be a VM with tables.
    pub unsafe fn new() -> Result<Self> {
        // SAFETY: By the requirements of this function, this happens once.
        unsafe { VMS.init() };
        // SAFETY: The name is the format, which has no arguments.
        let shrinker = unsafe { bindings::shrinker_alloc(0, c"nested-kvm".as_char_ptr()) };
        let shrinker = NonNull::new(shrinker).ok_or(ENOMEM)?;

        // SAFETY: It was allocated, and nobody else uses it before it is registered.
        unsafe {
            let shrinker = &mut *shrinker.as_ptr();
            shrinker.count_objects = Some(count);
            shrinker.scan_objects = Some(scan);
            shrinker.seeks = Self::SEEKS;
        }
        // SAFETY: As above.
        unsafe { bindings::shrinker_register(shrinker.as_ptr()) };
        // INVARIANT: It is registered.
        Ok(Self(shrinker))
    }
}

impl Drop for Shrinker {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; it waits for calls that are going on.
        unsafe { bindings::shrinker_free(self.0.as_ptr()) };
        VMS.lock().vms = KVVec::new();
    }
}

// SAFETY: What is registered can be freed by any thread.
unsafe impl Send for Shrinker {}

// SAFETY: There is nothing to be done with a reference.
unsafe impl Sync for Shrinker {}

/// There is nothing to be had.
const EMPTY: c_ulong = c_ulong::MAX - 1;

/// There is nothing to be had without waiting.
const STOP: c_ulong = c_ulong::MAX;

/// Returns how many pages there are that may be given back: all that tables are made of, as each
/// can be made again.
///
/// # Safety
///
/// None; it is called with a shrinker of [`Shrinker`].
unsafe extern "C" fn count(
    _: *mut bindings::shrinker,
    _: *mut bindings::shrink_control,
) -> c_ulong {
    match pages::COUNT.load(Relaxed) {
        0 => EMPTY,
        count => count,
    }
}

/// Gives pages back; returns how many.
///
/// # Safety
///
/// `control` is valid.
unsafe extern "C" fn scan(
    _: *mut bindings::shrinker,
    control: *mut bindings::shrink_control,
) -> c_ulong {
    /// What one call does at most; the kernel asks for 128.
    const MOST: u32 = 1024;

    // SAFETY: By the requirements of this function.
    let wanted = unsafe { (*control).nr_to_scan };
    let wanted = u32::try_from(wanted).map_or(MOST, |wanted| wanted.min(MOST));
    let Some(mut turns) = VMS.try_lock() else {
        return STOP;
    };
    let mut left = wanted;

    for _ in 0..turns.vms.len() {
        if left == 0 {
            break;
        }
        let Some(vm) = turns.next() else {
            break;
        };
        left = left.saturating_sub(vm.tables().shrink(vm, left));
    }
    match wanted - left {
        0 => STOP,
        given => given as c_ulong,
    }
}
