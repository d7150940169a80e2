// SPDX-License-Identifier: GPL-2.0

//! What happens to L1's memory: the ops that KVM calls when it changes mappings.

use super::Vm;
use crate::bindings;
use nested::{
    address::Gpa,
    mmu::shadow::{
        Age,
        FlushNeeded,
        Frames, //
    }, //
};

/// Adds the ops to those of a provider.
pub fn add_ops(ops: bindings::kvm_x86_nested_ops) -> bindings::kvm_x86_nested_ops {
    bindings::kvm_x86_nested_ops {
        mmu_unmap: Some(unmap),
        mmu_age: Some(age),
        mmu_write_protect: Some(write_protect),
        mmu_clear_dirty: Some(clear_dirty),
        mmu_sync_dirty: Some(sync_dirty),
        mmu_recover_huge_pages: Some(recover_huge_pages),
        mmu_zap_all: Some(zap_all),
        mmu_write: Some(write),
        ..ops
    }
}

/// Returns the range of pages from `start` to `end`, which is not included.
fn frames(start: u64, end: u64) -> Frames {
    const BYTES: u64 = 1 << 12;

    Frames::new(
        Gpa::from_raw(start.saturating_mul(BYTES)),
        end.saturating_sub(start).saturating_mul(BYTES),
    )
}

/// Declares ops that are called with `mmu_lock` held for writing.
macro_rules! exclusive_ops {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($vm:ident, $shadow:ident $(, $arg:ident: $ty:ty)*) $body:block
    )*) => {
        $(
            $(#[$meta])*
            ///
            /// # Safety
            ///
            /// `kvm` is a VM of this provider, whose `mmu_lock` is held for writing.
            unsafe extern "C" fn $name(kvm: *mut bindings::kvm $(, $arg: $ty)*) -> bool {
                // INVARIANT: By the requirements of this function.
                let $vm = Vm(kvm);
                // SAFETY: By the requirements of this function. What is called with the reference
                // does not come here again.
                let Some($shadow) = (unsafe { $vm.tables().locked_for_write() }) else {
                    return false;
                };
                let needed: FlushNeeded = $body;
                needed == FlushNeeded::Yes
            }
        )*
    };
}

exclusive_ops! {
    /// Memory of L1 is unmapped or moved.
    fn unmap(vm, shadow, start: u64, end: u64) {
        vm.tables().sequences.advance_all();
        shadow.unmap(&frames(start, end), &vm)
    }

    /// A page of L1 is to be written by nobody, or by nobody as part of a large one.
    fn write_protect(vm, shadow, start: u64, end: u64, min_level: i32) {
        let _ = vm;
        if min_level > 1 {
            // Those go when writes to the page are logged.
            return false;
        }
        shadow.write_protect(&frames(start, end))
    }

    /// The next write to each page is to be noticed.
    fn clear_dirty(vm, shadow, start: u64, end: u64) {
        if vm.logs_by_flags() {
            shadow.clear_dirty(&frames(start, end), &vm)
        } else {
            shadow.write_protect(&frames(start, end))
        }
    }

    /// Writes that were noticed by dirty flags only are to be reported.
    fn sync_dirty(vm, shadow, start: u64, end: u64) {
        shadow.sync_dirty(&frames(start, end), &vm)
    }

    /// There may be large pages again.
    fn recover_huge_pages(vm, shadow, start: u64, end: u64) {
        shadow.recover_large_pages(&frames(start, end), &vm)
    }

    /// All mappings are void.
    fn zap_all(vm, shadow) {
        // SAFETY: By the invariants of `Vm`. It is changed before this is called.
        let splits = unsafe { bindings::kvm_mmu_nested_nx_huge_pages(vm.0) };
        shadow.set_executable_large_pages(!splits);
        vm.tables().sequences.advance_all();
        shadow.zap_all(&vm)
    }
}

/// Returns whether memory of L1 was used, which is forgotten unless `test_only`.
///
/// # Safety
///
/// `kvm` is a VM of this provider, whose `mmu_lock` is held for reading.
unsafe extern "C" fn age(kvm: *mut bindings::kvm, start: u64, end: u64, test_only: bool) -> bool {
    // INVARIANT: By the requirements of this function.
    let vm = Vm(kvm);
    let age = if test_only { Age::Test } else { Age::Clear };

    // SAFETY: By the requirements of this function.
    unsafe { vm.tables().locked_for_read() }
        .is_some_and(|shadow| shadow.age(&frames(start, end), age, &vm))
}

/// L1 is about to write to a page, or to be able to.
///
/// # Safety
///
/// `kvm` is a VM of this provider, whose `mmu_lock` is held.
unsafe extern "C" fn write(kvm: *mut bindings::kvm, page: u64) {
    // INVARIANT: By the requirements of this function.
    let vm = Vm(kvm);

    // SAFETY: By the requirements of this function.
    if let Some(shadow) = unsafe { vm.tables().locked_for_read() } {
        shadow.tracked_write(Gpa::from_raw(page << 12));
    }
}
