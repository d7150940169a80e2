// SPDX-License-Identifier: GPL-2.0

//! A vCPU, as an op of nested virtualization gets it.

use crate::{
    bindings,
    stats::{
        Reason,
        VmStats, //
    },
};
use kernel::types::Opaque;

/// A vCPU of a VM that can use nested virtualization.
///
/// # Invariants
///
/// The vCPU belongs to a VM with `nested_enabled`, it is loaded, and its mutex is held.
#[repr(transparent)]
pub struct Vcpu(Opaque<bindings::kvm_vcpu>);

impl Vcpu {
    /// Makes a reference of the pointer that KVM passes to an op.
    ///
    /// # Safety
    ///
    /// `vcpu` must be the argument of an op that KVM calls for a vCPU which fulfils the invariants
    /// of the type, and the reference must not outlive the call.
    pub unsafe fn from_raw<'a>(vcpu: *mut bindings::kvm_vcpu) -> &'a Self {
        // SAFETY: By the requirements of this function the pointer is valid for `'a`, and the type
        // is transparent.
        unsafe { &*vcpu.cast() }
    }

    /// Returns the pointer that KVM knows the vCPU by.
    pub fn as_ptr(&self) -> *mut bindings::kvm_vcpu {
        self.0.get()
    }

    /// Returns the index of the vCPU in its VM.
    pub fn index(&self) -> usize {
        // SAFETY: By the type invariants, the vCPU is valid; `vcpu_idx` does not change.
        let index = unsafe { (*self.as_ptr()).vcpu_idx };

        usize::try_from(index).unwrap_or(0)
    }

    /// Returns the statistics of the VM that the vCPU belongs to.
    ///
    /// # Safety
    ///
    /// [`VmStats::<R>::vm_init`](VmStats::vm_init) must be the provider's op.
    pub unsafe fn vm_stats<R: Reason>(&self) -> &VmStats<R> {
        // SAFETY: By the type invariants, the vCPU and hence its VM are valid.
        let kvm = unsafe { (*self.as_ptr()).kvm };

        // SAFETY: By the type invariants the VM has `nested_enabled`, by the requirements of this
        // function it has got its statistics, and it lives longer than its vCPU.
        unsafe { VmStats::of(kvm) }
    }
}
