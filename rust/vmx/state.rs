// SPDX-License-Identifier: GPL-2.0

//! VMX operation of L1: what a vCPU has for it, and which VMCS is current.

use crate::{
    events,
    exit,
    hyperv,
    pages,
    processor::Reserved,
    shadow,
    vcpu::{
        VmxVcpu,
        Which,
        INVALID_GPA, //
    },
    vmcs02, //
};
use core::{
    mem::offset_of,
    ptr::null_mut, //
};
use kernel::{
    error::to_result,
    pr_warn_once,
    prelude::*, //
};
use kvm::{
    bindings,
    mmu::LoadedRoot, //
};
use nested::{
    address::Gpa,
    memory::GuestMemory,
    vmx::{
        check::Passed,
        field::{
            Allowed,
            FieldSet, //
        },
        instruction::{
            InstructionError,
            Refusal, //
        },
        merge::controls::PauseLoop,
        vmcs12::REGION_SIZE,
        vpid::Tags,
        Vmcs12, //
    }, //
};

/// Where the launch state is in a VMCS.
pub(crate) const LAUNCH_STATE_OFFSET: u64 = offset_of!(Vmcs12, launch_state) as u64;

/// What KVM has no place for: kept beside the nested state as long as L1 is in VMX operation.
pub(crate) struct Private {
    /// The fields that exist for L1.
    pub(crate) fields: FieldSet,
    /// What is known of the shadow VMCS.
    pub(crate) image: shadow::Image,
    /// The checks of vmcs12 that need no repetition.
    pub(crate) passed: Passed,
    /// What L1's virtual processor reserves, once it has entered L2: it cannot change after that.
    pub(crate) reserved: Option<Reserved>,
    /// What KVM has set up for the guest that is not active.
    pub(crate) idle: Idle,
    /// The VPIDs of L2.
    pub(crate) tags: Tags,
    /// The root of the tables that L2 runs on.
    pub(crate) root: LoadedRoot,
    /// The VPID in vmcs02, 0 where none was written.
    pub(crate) written_vpid: u16,
    /// When the pages were mapped that vmcs02 refers to.
    pub(crate) mapped_in: Option<pages::Epoch>,
    /// What a loop of PAUSEs is for L1, in which only the window changes.
    pub(crate) pause_loop01: PauseLoop,
    /// What it is in vmcs02.
    pub(crate) pause_loop02: PauseLoop,
}

/// What KVM has set up for the guest that is not active, so that it need not do so again.
#[derive(Default)]
pub(crate) struct Idle {
    /// The `IA32_EFER` that the VMCS of that guest is set up for, if it is known.
    pub(crate) efer: Option<u64>,
    /// How its page tables are walked: KVM has one place for L1 and L2. It says itself what it is
    /// good for.
    pub(crate) walk: bindings::kvm_pagewalk,
}

impl Private {
    fn new(vmx: &VmxVcpu) -> Result<KBox<Self>> {
        Ok(KBox::new(
            Self {
                fields: FieldSet::of_l1(&Allowed::of(vmx.msrs())),
                image: shadow::Image::new()?,
                passed: Passed::NONE,
                reserved: None,
                idle: Idle::default(),
                tags: Tags::default(),
                root: LoadedRoot::default(),
                written_vpid: 0,
                mapped_in: None,
                pause_loop01: vmcs02::pause_loop01(vmx),
                pause_loop02: PauseLoop::default(),
            },
            GFP_KERNEL_ACCOUNT,
        )?)
    }

    /// Has all checks repeated: vmcs12 is another one.
    pub(crate) fn forget(&mut self) {
        self.passed = Passed::NONE;
    }
}

impl VmxVcpu {
    /// Returns what KVM has no place for.
    pub(crate) fn private(&mut self) -> &mut Private {
        // SAFETY: `enter_vmx_operation()` has set it, and nothing asks for it outside of VMX
        // operation. Nothing but the vCPU refers to it.
        unsafe { &mut *(self.nested().provider_data[0] as *mut Private) }
    }

    /// Returns the memory of the snapshot of vmcs12, a whole region.
    pub(crate) fn vmcs12_region(&mut self) -> &mut [u8] {
        let region = self.nested().cached_vmcs12.cast();

        // SAFETY: `enter_vmx_operation()` has allocated a region of this size.
        unsafe { core::slice::from_raw_parts_mut(region, REGION_SIZE) }
    }

    /// Returns the memory of the snapshot of the shadow VMCS, a whole region.
    pub(crate) fn shadow_vmcs12_region(&mut self) -> &mut [u8] {
        let region = self.nested().cached_shadow_vmcs12.cast();

        // SAFETY: As above.
        unsafe { core::slice::from_raw_parts_mut(region, REGION_SIZE) }
    }
}

/// A region for a VMCS of L1, on its way to or from a raw pointer.
struct Region;

impl Region {
    fn allocate() -> Result<KBox<[u64; REGION_SIZE / 8]>> {
        KBox::init(pin_init::init_zeroed(), GFP_KERNEL_ACCOUNT)
    }

    /// Frees a region, if there is one.
    ///
    /// # Safety
    ///
    /// `region` must come from [`Self::allocate()`], and nothing may refer to it any more.
    unsafe fn free(region: *mut bindings::vmcs12) {
        if !region.is_null() {
            // SAFETY: By the requirements of this function.
            drop(unsafe { KBox::from_raw(region.cast::<[u64; REGION_SIZE / 8]>()) });
        }
    }
}

/// Enters VMX operation: allocates what L1 needs for it.
///
/// # Errors
///
/// `ENOMEM` if memory is short.
pub(crate) fn enter_vmx_operation(vmx: &mut VmxVcpu) -> Result {
    let private = Private::new(vmx)?;
    let vmcs12 = Region::allocate()?;
    let shadow_vmcs12 = Region::allocate()?;
    let shadow_vmcs = allocate_shadow_vmcs()?;
    let vmcs02 = &raw mut vmx.nested().vmcs02;

    // SAFETY: vmcs02 is not in use outside of VMX operation.
    let result = to_result(unsafe { bindings::nested_helper_vmx_alloc_loaded_vmcs(vmcs02) });
    if result.is_err() {
        free_shadow_vmcs(shadow_vmcs);
        return result;
    }
    vmx.fields().vmcs01.shadow_vmcs = shadow_vmcs;

    let nested = vmx.nested();
    nested.provider_data[0] = KBox::into_raw(private) as u64;
    nested.cached_vmcs12 = KBox::into_raw(vmcs12).cast();
    nested.cached_shadow_vmcs12 = KBox::into_raw(shadow_vmcs12).cast();
    nested.vpid02 = 0;
    nested.vmcs02_initialized = false;
    nested.vmxon = true;
    events::set_up_timer(vmx);
    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe { bindings::nested_helper_vmx_stop_trace(vmx.raw()) };
    Ok(())
}

/// Allocates a shadow VMCS that the processor can use, or null without VMCS shadowing.
fn allocate_shadow_vmcs() -> Result<*mut bindings::vmcs> {
    if !shadow::is_enabled() {
        return Ok(null_mut());
    }
    // SAFETY: Allocates; the VMCS becomes known to the processor by VMCLEAR only.
    let vmcs = unsafe { bindings::nested_helper_vmx_alloc_shadow_vmcs() };
    if vmcs.is_null() {
        return Err(ENOMEM);
    }
    // SAFETY: It has been allocated.
    unsafe { bindings::nested_helper_vmx_clear(vmcs) };
    Ok(vmcs)
}

fn free_shadow_vmcs(vmcs: *mut bindings::vmcs) {
    if !vmcs.is_null() {
        // SAFETY: `allocate_shadow_vmcs()` has allocated it, and no processor uses it.
        unsafe { bindings::nested_helper_vmx_free_vmcs(vmcs) };
    }
}

/// Leaves VMX operation: frees what [`enter_vmx_operation()`] has allocated.
pub(crate) fn leave_vmx_operation(vmx: &mut VmxVcpu) {
    if vmx.which_vmcs() == Which::Vmcs02 {
        pr_warn_once!("L2 is active while VMX operation ends\n");
        vmx.switch_vmcs(Which::Vmcs01);
    }
    if !vmx.nested().vmxon && !vmx.nested().smm.vmxon {
        return;
    }

    vmx.clear_state_pages();
    let nested = vmx.nested();
    nested.vmxon = false;
    nested.smm.vmxon = false;
    // RSM must not return to an L2 whose VMCS is gone.
    nested.smm.guest_mode = false;
    nested.vmxon_ptr = INVALID_GPA;
    nested.posted_intr_nv = NO_VECTOR;
    nested.current_vmptr = INVALID_GPA;
    nested.vpid02 = 0;
    while let Some(vpid) = vmx.private().tags.take() {
        // SAFETY: It is one that was allocated; whoever has it next flushes it first.
        unsafe { bindings::nested_helper_vmx_free_vpid(i32::from(vpid.into_raw())) };
    }

    if shadow::is_enabled() {
        shadow::disable(vmx);
        let vmcs = vmx.fields().vmcs01.shadow_vmcs;
        // The pointer stays until the processor has forgotten the VMCS: another processor, from
        // which the vCPU has come, may still have to be told.
        // SAFETY: It is the one that was allocated.
        unsafe { bindings::nested_helper_vmx_clear(vmcs) };
        vmx.fields().vmcs01.shadow_vmcs = null_mut();
        free_shadow_vmcs(vmcs);
    }

    kvm::mmu::unload_root(vmx);
    let nested = vmx.nested();
    let private = core::mem::take(&mut nested.provider_data[0]) as *mut Private;
    let vmcs12 = core::mem::replace(&mut nested.cached_vmcs12, null_mut());
    let shadow_vmcs12 = core::mem::replace(&mut nested.cached_shadow_vmcs12, null_mut());
    // SAFETY: All were allocated by `enter_vmx_operation()`, and the vCPU has forgotten them.
    unsafe {
        drop(KBox::from_raw(private));
        Region::free(vmcs12);
        Region::free(shadow_vmcs12);
    }

    pages::unmap(vmx);
    hyperv::release(vmx);
    let vmcs02 = &raw mut vmx.nested().vmcs02;
    // SAFETY: The vCPU runs with vmcs01.
    unsafe { bindings::nested_helper_vmx_free_loaded_vmcs(vmcs02) };
}

/// What stands for "there is none" where KVM keeps the vector of posted interrupts.
pub(crate) const NO_VECTOR: u16 = u16::MAX;

/// Leaves L2 without an exit, and VMX operation.
pub(crate) fn leave(vmx: &mut VmxVcpu) {
    if vmx.is_guest_mode() {
        vmx.set_run_pending(kvm::RunPending::No);
        exit::leave(vmx);
    }
    leave_vmx_operation(vmx);
}

/// Reads the VMCS at `pointer` into the snapshot.
pub(crate) fn load_vmcs12(vmx: &mut VmxVcpu, pointer: Gpa) -> Result<(), Refusal> {
    const INCORRECT_REVISION: Refusal =
        Refusal::Fail(InstructionError::VMPTRLD_INCORRECT_VMCS_REVISION_ID);

    // SAFETY: Reading memory of L1 accesses no snapshot.
    let memory = unsafe { vmx.memory() };
    // Where there is no memory, there is no revision either.
    memory
        .read(pointer, vmx.vmcs12_region())
        .map_err(|_| INCORRECT_REVISION)
}

/// Writes the current VMCS to where L1 has it, and makes none current.
pub(crate) fn release_vmcs12(vmx: &mut VmxVcpu) {
    let Some(pointer) = vmx.current_vmptr() else {
        return;
    };
    exit::fetch_rare_state(vmx);
    if shadow::is_enabled() {
        shadow::copy_to_vmcs12(vmx);
        shadow::disable(vmx);
    }
    vmx.nested().posted_intr_nv = NO_VECTOR;

    // SAFETY: Writing memory of L1 accesses no snapshot.
    let memory = unsafe { vmx.memory() };
    // L1 may have taken the memory away meanwhile.
    let _ = memory.write(pointer, vmx.vmcs12_region());
    vmx.nested().current_vmptr = INVALID_GPA;
}
