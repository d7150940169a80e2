// SPDX-License-Identifier: GPL-2.0

//! A vCPU of kvm-intel.

use crate::vmcs::{
    LoadedVmcs,
    Vmcs, //
};
use core::{
    ffi::CStr,
    mem::{
        align_of,
        offset_of,
        size_of, //
    },
    ops::Deref, //
};
use kernel::types::Opaque;
use kvm::{
    bindings,
    Preemption,
    Vcpu,
    VmStats, //
};
use nested::{
    address::Gpa,
    vmx::{
        capability::Msrs,
        exit_reason::ExitReason,
        merge::msr_bitmap::MsrBitmap,
        Vmcs12, //
    }, //
};

/// What stands for "there is none" where KVM keeps an address.
pub(crate) const INVALID_GPA: u64 = u64::MAX;

/// A vCPU of kvm-intel, whose first member is that of KVM.
///
/// # Invariants
///
/// As those of [`Vcpu`]. In addition, as long as the vCPU is in VMX operation, what
/// [`crate::state::enter_vmx_operation()`] allocates is there.
#[repr(transparent)]
pub(crate) struct VmxVcpu(Opaque<bindings::vcpu_vmx>);

/// Which VMCS the vCPU runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// That of L1.
    Vmcs01,
    /// That of L2.
    Vmcs02,
}

impl VmxVcpu {
    /// Makes a reference of the pointer that kvm-intel passes to an op.
    ///
    /// # Safety
    ///
    /// `vcpu` must be the argument of an op that kvm-intel calls for a vCPU which fulfils the
    /// invariants of the type, and the reference must not outlive the call.
    pub(crate) unsafe fn from_raw<'a>(vcpu: *mut bindings::kvm_vcpu) -> &'a mut Self {
        // SAFETY: By the requirements of this function the pointer is valid for `'a`; the vCPU is
        // the first member. While ops nest, the reference of the outer one is not used: it has
        // called into KVM.
        unsafe { &mut *vcpu.cast() }
    }

    /// Returns the pointer that kvm-intel knows the vCPU by.
    pub(crate) fn raw(&self) -> *mut bindings::vcpu_vmx {
        self.0.get()
    }

    /// Returns the members that no type of ours stands for.
    #[inline]
    pub(crate) fn fields(&mut self) -> &mut bindings::vcpu_vmx {
        // SAFETY: By the type invariants; KVM cannot use the vCPU while it is borrowed.
        unsafe { &mut *self.raw() }
    }

    /// Returns the nested state.
    #[inline]
    pub(crate) fn nested(&mut self) -> &mut bindings::nested_vmx {
        &mut self.fields().nested
    }

    /// Returns the vCPU as memory of L1 is accessed by it.
    ///
    /// # Safety
    ///
    /// The reference must not outlive the op that `self` was passed to, and nothing that it is used
    /// for may access what is borrowed of `self` meanwhile.
    #[inline]
    pub(crate) unsafe fn memory<'a>(&self) -> &'a Vcpu {
        // SAFETY: By the requirements of this function and the type invariants.
        unsafe { Vcpu::from_raw(self.as_ptr()) }
    }

    /// Returns the VMX capability MSRs of L1.
    #[inline]
    pub(crate) fn msrs(&self) -> &Msrs {
        // SAFETY: By the type invariants the vCPU is valid; the type has the same layout as the C
        // one, as is checked below.
        unsafe { &*(&raw const (*self.raw()).nested.msrs).cast() }
    }

    /// Returns the VMX capability MSRs of L1, to change them.
    pub(crate) fn msrs_mut(&mut self) -> &mut Msrs {
        // SAFETY: As above.
        unsafe { &mut *(&raw mut self.nested().msrs).cast() }
    }

    /// Returns the snapshot of vmcs12.
    #[inline]
    pub(crate) fn vmcs12(&self) -> &Vmcs12 {
        // SAFETY: By the type invariants the snapshot is there in VMX operation, and nothing asks
        // for it outside; the type has the same layout as the C one, as is checked in `layout`.
        unsafe { &*(*self.raw()).nested.cached_vmcs12.cast() }
    }

    /// Returns the snapshot of vmcs12, to change it.
    #[inline]
    pub(crate) fn vmcs12_mut(&mut self) -> &mut Vmcs12 {
        // SAFETY: As above.
        unsafe { &mut *self.nested().cached_vmcs12.cast() }
    }

    /// Returns the snapshot of vmcs12 apart from the vCPU.
    ///
    /// # Safety
    ///
    /// During `'a` nothing may change the snapshot: neither [`Self::vmcs12_mut()`], nor an exit of
    /// L2, nor an MSR that is written while L2 is active.
    #[inline]
    pub(crate) unsafe fn snapshot<'a>(&self) -> &'a Vmcs12 {
        // SAFETY: By the requirements of this function.
        unsafe { &*(*self.raw()).nested.cached_vmcs12.cast() }
    }

    /// Returns the snapshot of the shadow VMCS that L1 gives to L2.
    #[inline]
    pub(crate) fn shadow_vmcs12_mut(&mut self) -> &mut Vmcs12 {
        // SAFETY: As in `vmcs12()`.
        unsafe { &mut *self.nested().cached_shadow_vmcs12.cast() }
    }

    /// Returns where the current VMCS of L1 is, if it has one.
    #[inline]
    pub(crate) fn current_vmptr(&mut self) -> Option<Gpa> {
        match self.nested().current_vmptr {
            INVALID_GPA => None,
            pointer => Some(Gpa::from_raw(pointer)),
        }
    }

    /// Returns the VMCS that the processor uses now.
    #[inline]
    pub(crate) fn vmcs(&self) -> Vmcs<'_> {
        // SAFETY: By the type invariants the vCPU is loaded, and hence its current VMCS.
        unsafe { Vmcs::current((*self.raw()).loaded_vmcs) }
    }

    /// Returns what KVM keeps of vmcs01 in memory.
    #[inline]
    pub(crate) fn loaded_vmcs01(&mut self) -> LoadedVmcs<'_> {
        LoadedVmcs::new(&mut self.fields().vmcs01)
    }

    /// Returns the MSR bitmaps of vmcs01 and vmcs02, if the processor has such bitmaps.
    pub(crate) fn msr_bitmaps(&mut self) -> Option<(&MsrBitmap, &mut MsrBitmap)> {
        let vmcs01: *const MsrBitmap = self.fields().vmcs01.msr_bitmap.cast_const().cast();
        let vmcs02: *mut MsrBitmap = self.nested().vmcs02.msr_bitmap.cast();

        // SAFETY: Each is null or a page of its own, which lives as long as the VMCS.
        unsafe { Some((vmcs01.as_ref()?, vmcs02.as_mut()?)) }
    }

    /// Returns which VMCS the vCPU runs with.
    pub(crate) fn which_vmcs(&mut self) -> Which {
        let fields = self.fields();

        if core::ptr::eq(fields.loaded_vmcs, &raw const fields.vmcs01) {
            Which::Vmcs01
        } else {
            Which::Vmcs02
        }
    }

    /// Makes the vCPU run with another VMCS.
    pub(crate) fn switch_vmcs(&mut self, to: Which) {
        {
            let preemption = Preemption::disable();
            let previous = self.fields().loaded_vmcs;
            self.load_vmcs(to, &preemption);
            self.take_over_host_state(previous);
        }
        // What is cached of registers is of the other guest.
        // SAFETY: By the type invariants.
        unsafe { bindings::nested_helper_vmx_reset_registers(self.as_ptr()) };
    }

    /// Loads another VMCS for a moment, and calls `access`.
    pub(crate) fn with_vmcs02(&mut self, access: impl FnOnce(&mut Self)) {
        let preemption = Preemption::disable();

        self.load_vmcs(Which::Vmcs02, &preemption);
        access(self);
        self.load_vmcs(Which::Vmcs01, &preemption);
    }

    fn load_vmcs(&mut self, which: Which, preemption: &Preemption) {
        let fields = self.fields();

        fields.loaded_vmcs = match which {
            Which::Vmcs01 => &raw mut fields.vmcs01,
            Which::Vmcs02 => &raw mut fields.nested.vmcs02,
        };
        // SAFETY: By the type invariants; the thread stays on the processor.
        unsafe { bindings::nested_helper_vmx_load_vmcs(self.as_ptr(), preemption.processor()) }
    }

    /// Copies what KVM has written of the host's state to `previous`, if it has.
    fn take_over_host_state(&mut self, previous: *const bindings::loaded_vmcs) {
        let fields = self.fields();
        if !fields.vt.guest_state_loaded {
            return;
        }
        // SAFETY: Both are VMCSes of this vCPU.
        let (from, to) = unsafe {
            (
                &(*previous).host_state,
                &mut (*fields.loaded_vmcs).host_state,
            )
        };
        // SAFETY: The VMCS that `to` belongs to is loaded.
        unsafe { bindings::nested_helper_vmx_set_host_fs_gs(to, from) };
        to.ldt_sel = from.ldt_sel;
        to.ds_sel = from.ds_sel;
        to.es_sel = from.es_sel;
    }
}

impl VmxVcpu {
    /// Returns the statistics of the VM.
    pub(crate) fn stats(&self) -> &VmStats<ExitReason> {
        // SAFETY: The provider's ops have `vm_init()` of these.
        unsafe { self.vm_stats() }
    }

    /// Traces and counts that the consistency check `name` has refused an entry of L2.
    pub(crate) fn trace_failed_check(&self, name: &'static CStr) {
        self.stats().count_failed_check(name);
        Vcpu::trace_failed_check(self, name);
    }
}

impl Deref for VmxVcpu {
    type Target = Vcpu;

    #[inline]
    fn deref(&self) -> &Vcpu {
        // SAFETY: By the type invariants, which include those of `Vcpu`; it is the first member,
        // and the reference is as old as that to `self`.
        unsafe { Vcpu::from_raw(self.raw().cast()) }
    }
}

/// Declares methods that call a function of kvm-intel with the vCPU and plain values.
macro_rules! forward {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $target:ident;
    )*) => {
        impl VmxVcpu {
            $(
                $(#[$meta])*
                #[inline]
                pub(crate) fn $name(&self, $($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: By the type invariants, the vCPU is valid and loaded.
                    unsafe { bindings::$target(self.as_ptr(), $($arg),*) }
                }
            )*
        }
    };
}

forward! {
    /// Returns RFLAGS of the active guest.
    fn flags() -> usize = nested_helper_vmx_rflags;
    /// Sets RFLAGS of the active guest.
    fn set_flags(value: usize) = nested_helper_vmx_set_rflags;
    /// Returns the privilege level of the active guest.
    fn privilege_level() -> i32 = nested_helper_vmx_cpl;
    /// Sets CR0 of the active guest.
    fn set_cr0(value: usize) = nested_helper_vmx_set_cr0;
    /// Sets CR4 of the active guest.
    fn set_cr4(value: usize) = nested_helper_vmx_set_cr4;
    /// Sets `IA32_EFER` of the active guest.
    fn set_efer(value: u64) = nested_helper_vmx_set_efer;
    /// Sets `IA32_DEBUGCTL` of the active guest.
    fn set_debugctl(value: u64) = nested_helper_vmx_set_debugctl;
    /// Returns what `IA32_DEBUGCTL` may have of L1.
    fn supported_debugctl() -> u64 = nested_helper_vmx_supported_debugctl;
    /// Writes the exceptions that exit.
    fn update_exception_bitmap() = nested_helper_vmx_update_exception_bitmap;
    /// Returns whether L0 wants page faults.
    fn needs_page_faults() -> bool = nested_helper_vmx_needs_page_faults;
    /// Returns whether the active guest's state is one that the processor can run.
    fn is_guest_state_valid() -> bool = nested_helper_vmx_guest_state_valid;
    /// Returns whether the active guest has to be emulated.
    fn is_emulation_required() -> bool = nested_helper_vmx_emulation_required;
    /// Writes the page-directory pointers that KVM has to the VMCS.
    fn flush_pdptrs() = nested_helper_vmx_load_pdptrs;
    /// Reads the page-directory pointers from the VMCS.
    fn fetch_pdptrs() = nested_helper_vmx_save_pdptrs;
    /// Returns the exit reason, all bits of it.
    fn exit_reason() -> u32 = nested_helper_vmx_exit_reason;
    /// Returns the exit qualification.
    fn exit_qualification() -> u64 = nested_helper_vmx_exit_qualification;
    /// Returns the VM-exit interruption information.
    fn exit_interruption() -> u32 = nested_helper_vmx_exit_interruption;
    /// Returns what interrupts are blocked by, as KVM encodes it.
    fn interrupt_shadow() -> u32 = nested_helper_vmx_interrupt_shadow;
    /// Unblocks interrupts.
    fn clear_interrupt_shadow() = nested_helper_vmx_clear_interrupt_shadow;
    /// Returns whether NMIs are blocked by an NMI.
    fn is_nmi_masked() -> bool = nested_helper_vmx_nmi_mask;
    /// Blocks NMIs.
    fn mask_nmi() = nested_helper_vmx_mask_nmi;
    /// Returns whether there is an NMI that is not blocked.
    fn nmi_is_pending() -> bool = nested_helper_vmx_nmi_is_pending;
    /// Returns whether there is an interrupt that is not blocked.
    fn interrupt_is_pending() -> bool = nested_helper_vmx_interrupt_is_pending;
    /// Returns whether L2 blocks its interrupts.
    fn l2_blocks_interrupts() -> bool = nested_helper_vmx_l2_interrupt_blocked;
    /// Returns L1's time-stamp counter.
    fn l1_tsc() -> u64 = nested_helper_vmx_l1_tsc;
}

/// Checks that a member is at the same place in both types.
macro_rules! same_layout {
    ($ours:ty, $theirs:ty: $($field:ident $(= $other:ident)?),* $(,)?) => {
        const _: () = {
            assert!(align_of::<$ours>() <= 8);
            $( assert!(offset_of!($ours, $field) == same_layout!(@ $theirs, $field $($other)?)); )*
        };
    };
    (@ $theirs:ty, $field:ident) => { offset_of!($theirs, $field) };
    (@ $theirs:ty, $field:ident $other:ident) => { offset_of!($theirs, $other) };
}

pub(crate) use same_layout;

same_layout! {
    Msrs, bindings::nested_vmx_msrs:
    procbased_ctls_low, procbased_ctls_high, secondary_ctls_low, secondary_ctls_high,
    pinbased_ctls_low, pinbased_ctls_high, exit_ctls_low, exit_ctls_high, entry_ctls_low,
    entry_ctls_high, misc_low, misc_high, ept_caps, vpid_caps, basic, cr0_fixed0, cr0_fixed1,
    cr4_fixed0, cr4_fixed1, vmcs_enum, vmfunc_controls,
}

const _: () = {
    assert!(size_of::<Msrs>() == size_of::<bindings::nested_vmx_msrs>());
    assert!(offset_of!(bindings::vcpu_vmx, vcpu) == 0);
};
