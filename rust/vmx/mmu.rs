// SPDX-License-Identifier: GPL-2.0

//! The page tables that L2 runs on.
//!
//! If L1 has EPT for L2, KVM's shadow MMU translates what L1's tables say; if it has not, L2 runs on
//! the tables of L1.

use crate::{
    entry::Origin,
    exit,
    vcpu::VmxVcpu, //
};
use kernel::ffi::{
    c_int,
    c_ulong, //
};
use kvm::{
    bindings,
    Vcpu, //
};
use nested::{
    checked::Checked,
    vmx::{
        capability::msrs::ept,
        exit::information::{
            ExitInformation,
            ReasonField, //
        },
        exit_reason::ExitReason,
        instruction::invalidate::{
            Invvpid,
            Vpid, //
        },
        vpid::{
            Host, //
        },
        Vmcs12, //
    }, //
};

/// CR3 cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadFailure {
    /// It has a value that it must not have.
    Cr3,
    /// The page-directory pointers have.
    Pdptrs,
}

/// What a guest pages with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    /// Tables that EPT of L1 translates once more: KVM does not look at them.
    BelowEpt,
    /// Tables of its own, in memory of L1. The page-directory pointers are loaded.
    OwnLoaded,
    /// As above, but the page-directory pointers stay as they are.
    OwnKept,
}

impl Tables {
    /// Returns what L2 pages with.
    pub(crate) fn of_l2(vmcs12: &Vmcs12, origin: Origin) -> Self {
        match origin {
            _ if vmcs12.secondary().ept() => Self::BelowEpt,
            Origin::Instruction => Self::OwnLoaded,
            Origin::State => Self::OwnKept,
        }
    }
}

/// Loads CR3 of L1 or L2, whichever is active.
pub(crate) fn load_cr3(vmx: &mut VmxVcpu, cr3: u64, tables: Tables) -> Result<(), LoadFailure> {
    if !vmx.is_legal_cr3(cr3 as usize) {
        vmx.trace_failed_check(c"IllegalCr3");
        return Err(LoadFailure::Cr3);
    }
    if tables == Tables::OwnLoaded && vmx.is_pae_paging() {
        load_pdptrs(vmx, cr3)?;
    }
    vmx.with_arch(|arch| arch.cr3 = cr3 as usize);
    vmx.mark_cr3_dirty();
    // CR0, CR4 and EFER may have changed.
    vmx.init_mmu();
    if tables != Tables::BelowEpt {
        vmx.use_page_tables(cr3);
    }
    Ok(())
}

/// Gives KVM back what it found out about page tables when the guest that becomes active was before.
///
/// KVM looks whether it still holds, and starts anew if not: L1 and L2 differ in that alone that a
/// walk says which of them it is for. It may depend on CPUID, which cannot change any more once L1
/// has executed an instruction.
pub(crate) fn exchange_walks(vmx: &mut VmxVcpu) {
    let mut walk = core::mem::take(&mut vmx.private().idle.walk);

    vmx.with_arch(|arch| core::mem::swap(&mut arch.gva_walk, &mut walk));
    vmx.private().idle.walk = walk;
}

/// Loads the page-directory pointers of L1, or of an L2 that runs on L1's tables.
pub(crate) fn load_pdptrs(vmx: &mut VmxVcpu, cr3: u64) -> Result<(), LoadFailure> {
    if Vcpu::load_pdptrs(vmx, cr3 as usize) == 0 {
        vmx.trace_failed_check(c"IllegalPdptrs");
        return Err(LoadFailure::Pdptrs);
    }
    Ok(())
}

/// Makes KVM use EPT12.
pub(crate) fn enter_ept(vmx: &mut VmxVcpu) {
    vmx.with_arch(|arch| arch.mmu = &raw mut arch.guest_mmu);
    use_eptp(vmx);
    vmx.with_arch(|arch| {
        arch.ngpa_walk.get_guest_pgd = Some(eptp_of);
        arch.ngpa_walk.get_pdptr = Some(bindings::nested_helper_read_pdptr);
        arch.ngpa_walk.inject_page_fault = Some(inject_ept_fault);
    });
}

/// Makes KVM use the tables that the EPT pointer of vmcs12 refers to.
pub(crate) fn use_eptp(vmx: &mut VmxVcpu) {
    let caps = vmx.msrs().ept_caps;
    let largest_page = if caps & ept::PAGE_1GB != 0 {
        bindings::pg_level_PG_LEVEL_1G
    } else if caps & ept::PAGE_2MB != 0 {
        bindings::pg_level_PG_LEVEL_2M
    } else {
        bindings::pg_level_PG_LEVEL_4K
    };
    let vmcs12 = vmx.vmcs12();
    let eptp = vmcs12.ept_pointer;
    let mode_based = vmcs12.secondary().mode_based_execute_control();

    // SAFETY: By the invariants of `VmxVcpu`.
    unsafe {
        bindings::kvm_init_shadow_ept_mmu(
            vmx.as_ptr(),
            caps & ept::EXECUTE_ONLY != 0,
            largest_page as c_int,
            eptp & EPTP_ACCESSED_DIRTY != 0,
            mode_based,
            eptp,
        );
    }
}

/// Makes KVM use the page tables of L1.
pub(crate) fn leave_ept(vmx: &mut VmxVcpu) {
    vmx.with_arch(|arch| arch.mmu = &raw mut arch.root_mmu);
}

const EPTP_ACCESSED_DIRTY: u64 = 1 << 6;
/// The address in an EPT pointer. Translations are tagged by it alone.
const EPTP_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The VPIDs of kvm-intel.
struct Vpids;

impl Host for Vpids {
    fn allocate(&mut self) -> Option<Vpid> {
        // SAFETY: Allocates a number.
        let vpid = unsafe { bindings::nested_helper_vmx_allocate_vpid() };

        u64::try_from(vpid).ok().and_then(Vpid::new)
    }

    fn flush(&mut self, vpid: Vpid) {
        // SAFETY: The processor has VPIDs, or none would have been allocated.
        unsafe { bindings::nested_helper_vmx_flush_vpid(c_int::from(vpid.into_raw())) };
    }
}

/// Returns the VPID that L2 is about to run with, 0 if L0 uses none.
///
/// KVM flushes what it has to of the one that it finds in `vpid02`. Where it flushes all, it does so
/// by EPT, which has no regard to VPIDs.
pub(crate) fn select_vpid(vmx: &mut VmxVcpu, vmcs12: Checked<'_, Vmcs12>) -> u16 {
    let vpid12 = vmcs12
        .secondary()
        .vpid()
        .then(|| Vpid::new(u64::from(vmcs12.virtual_processor_id)))
        .flatten();
    let selected = vpid12.and_then(|vpid12| vmx.private().tags.select(vpid12, &mut Vpids));
    let vpid02 = selected.map_or(0, |flushed| flushed.vpid().into_raw());

    vmx.nested().vpid02 = vpid02;
    match vpid02 {
        // Without a VPID, L2 has that of L1: 0, as far as L1 knows.
        0 => vmx.fields().vpid as u16,
        vpid02 => vpid02,
    }
}

/// Invalidates what INVVPID of L1 asks for.
pub(crate) fn invalidate_vpid(vmx: &mut VmxVcpu, request: Invvpid) {
    let tags = &mut vmx.private().tags;

    match request {
        Invvpid::IndividualAddress { vpid, linear } => {
            if let Some(flushed) = tags.find(vpid) {
                let vpid02 = c_int::from(flushed.vpid().into_raw());
                // SAFETY: The processor has VPIDs, or L1 would have none.
                unsafe {
                    bindings::nested_helper_vmx_flush_vpid_address(vpid02, linear.into_raw());
                }
            }
        }
        Invvpid::SingleContext(vpid) | Invvpid::SingleContextRetainingGlobals(vpid) => {
            tags.invalidate(vpid);
        }
        Invvpid::AllContexts => tags.invalidate_all(),
    }
}

/// Flushes what the processor would flush at a transition, if L1 and L2 have one VPID.
pub(crate) fn flush_at_transition(vmx: &mut VmxVcpu) {
    vmx.flush_for_hyperv();

    // It is not EPT12 that is flushed then.
    if vmx.nested().vpid02 == 0 {
        vmx.request_guest_tlb_flush();
    }
}

/// Drops the shadow tables of an EPT pointer, or all.
pub(crate) fn invalidate_ept(vmx: &mut VmxVcpu, eptp: Option<u64>) {
    let roots = match eptp {
        None => u64::MAX,
        Some(eptp) => vmx.with_arch(|arch| {
            let mmu = &arch.guest_mmu;
            let current = if matches(&mmu.root, eptp) {
                ROOT_CURRENT
            } else {
                0
            };

            current | previous_roots(mmu, eptp)
        }),
    };
    if roots != 0 {
        free_roots(vmx, roots);
    }
}

/// Drops shadow tables of EPT12.
pub(crate) fn free_roots(vmx: &mut VmxVcpu, roots: u64) {
    const ALL: u64 = (1 << (1 + bindings::KVM_MMU_NUM_PREV_ROOTS)) - 1;

    let mmu = vmx.with_arch(|arch| &raw mut arch.guest_mmu);
    // SAFETY: By the invariants of `VmxVcpu`; the MMU is a part of the vCPU.
    unsafe { bindings::kvm_mmu_free_roots((*vmx.as_ptr()).kvm, mmu, (roots & ALL) as usize) }
}

const ROOT_CURRENT: u64 = 1 << 0;

/// Returns whether a root shadows the tables of `eptp`.
fn matches(root: &bindings::kvm_mmu_root_info, eptp: u64) -> bool {
    root.hpa != u64::MAX && (root.pgd ^ eptp) & EPTP_ADDRESS == 0
}

/// Returns which of the cached roots shadow the tables of `eptp`.
fn previous_roots(mmu: &bindings::kvm_mmu, eptp: u64) -> u64 {
    mmu.prev_roots
        .iter()
        .enumerate()
        .filter(|(_, root)| matches(root, eptp))
        .fold(0, |roots, (index, _)| roots | ROOT_CURRENT << (1 + index))
}

/// Called by KVM's walker of nested page tables: returns the EPT pointer.
///
/// # Safety
///
/// `vcpu` is one of a VMX that L2 is active on.
unsafe extern "C" fn eptp_of(vcpu: *mut bindings::kvm_vcpu) -> c_ulong {
    // SAFETY: By the requirements of this function.
    let vmx = unsafe { VmxVcpu::from_raw(vcpu) };

    vmx.vmcs12().ept_pointer as c_ulong
}

/// Called by KVM's walker of nested page tables, or when hardware has reported a fault: EPT12 does
/// not allow an access of L2.
///
/// # Safety
///
/// As [`eptp_of()`]; `fault` is valid.
unsafe extern "C" fn inject_ept_fault(
    vcpu: *mut bindings::kvm_vcpu,
    fault: *mut bindings::x86_exception,
    from_hardware: bool,
) {
    // SAFETY: By the requirements of this function.
    let (vmx, fault) = unsafe { (VmxVcpu::from_raw(vcpu), &*fault) };
    // SAFETY: All members of the union are integers; for a page fault it is the address.
    let address = unsafe { fault.__bindgen_anon_1.address };

    let (reason, qualification) = if core::mem::take(&mut vmx.nested().pml_full) {
        // The unblocking of NMIs by IRET is reported in the same bit by both exits.
        let unblocks = vmx.exit_qualification() & NMI_UNBLOCKED;
        (ExitReason::PML_FULL, unblocks)
    } else {
        let exit = if fault.error_code & PFERR_RESERVED != 0 {
            (ExitReason::EPT_MISCONFIG, 0)
        } else {
            (
                ExitReason::EPT_VIOLATION,
                violation_qualification(vmx, fault, from_hardware),
            )
        };
        invalidate_address(vmx, address);
        exit
    };

    let information = exit::information(vmx, ReasonField::new(reason));
    exit::reflect(
        vmx,
        &ExitInformation {
            qualification,
            guest_physical_address: Some(address),
            ..information
        },
    );
}

const NMI_UNBLOCKED: u64 = 1 << 12;
const PFERR_RESERVED: u64 = 1 << 3;

/// Returns the exit qualification of an EPT violation.
///
/// What it says of the linear address only the processor knows, if it has reported the violation:
/// KVM walks the guest-physical address.
fn violation_qualification(
    vmx: &VmxVcpu,
    fault: &bindings::x86_exception,
    from_hardware: bool,
) -> u64 {
    const LINEAR_VALID: u64 = 1 << 7;
    const LINEAR_TRANSLATED: u64 = 1 << 8;
    /// User, writable, not executable.
    const ADVANCED: u64 = 7 << 9;

    let mut of_linear = LINEAR_VALID | LINEAR_TRANSLATED;
    if vmx.msrs().ept_caps & ept::ADVANCED_VMEXIT_INFO != 0 {
        of_linear |= ADVANCED;
    }
    let walked = fault.exit_qualification as u64;
    let linear = if from_hardware {
        vmx.exit_qualification()
    } else {
        walked
    };

    walked & !of_linear | linear & of_linear
}

/// Synchronizes an address in the cached tables of the EPT pointer.
///
/// KVM has done so in the current ones. The TLB does not tell apart EPT pointers of one table.
fn invalidate_address(vmx: &mut VmxVcpu, address: u64) {
    let eptp = vmx.vmcs12().ept_pointer;

    let (mmu, walk) = vmx.with_arch(|arch| (arch.mmu, &raw mut arch.ngpa_walk));
    // SAFETY: KVM has set it to one of the MMUs of the vCPU.
    let roots = previous_roots(unsafe { &*mmu }, eptp);
    if roots != 0 {
        // SAFETY: By the invariants of `VmxVcpu`; the walk is a part of the vCPU.
        unsafe { bindings::kvm_mmu_invalidate_addr(vmx.as_ptr(), walk, address, roots as usize) }
    }
}

/// Called when KVM needs an address of L1 for one of L2.
///
/// # Safety
///
/// `vcpu` is one of a VMX that L2 is active on; `exception` is valid.
pub(crate) unsafe extern "C" fn translate_nested_gpa(
    vcpu: *mut bindings::kvm_vcpu,
    gpa: bindings::gpa_t,
    access: u64,
    exception: *mut bindings::x86_exception,
    pte_access: u64,
) -> bindings::gpa_t {
    const USER: u64 = 1 << 2;
    const FINAL: u64 = 1 << 32;
    const ACC_USER: u64 = 1 << 2;

    // SAFETY: By the requirements of this function.
    let vmx = unsafe { VmxVcpu::from_raw(vcpu) };
    // Mode-based execute control goes by what L2's tables say of a page, not by the privilege level.
    let user = pte_access & ACC_USER != 0 && access & FINAL != 0;
    let access = access & !USER | if user { USER } else { 0 };
    let walk = vmx.with_arch(|arch| &raw mut arch.ngpa_walk);

    // SAFETY: The walk is part of the vCPU, and was set up for EPT.
    match unsafe { (*walk).gva_to_gpa } {
        // SAFETY: The arguments are those of KVM.
        Some(gva_to_gpa) => unsafe { gva_to_gpa(vcpu, walk, gpa, access, exception) },
        None => gpa,
    }
}
