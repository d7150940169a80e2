// SPDX-License-Identifier: GPL-2.0

//! The page tables that L2 runs on.
//!
//! If L1 has EPT for L2, L2 runs on a shadow of L1's tables; if it has not, L2 runs on the tables of
//! L1.

use crate::{
    entry::Origin,
    exit,
    pml,
    vcpu::VmxVcpu, //
};
use core::cell::Cell;
use kernel::ffi::{
    c_int,
    c_ulong, //
};
use kvm::{
    bindings,
    mmu::{
        Fault,
        LoadedRoot,
        L2, //
    },
    Vcpu, //
};
use nested::{
    address::L2Gpa,
    checked::Checked,
    memory::GuestTables,
    mmu::{
        access::Access,
        ept::{
            Ept,
            EptExit,
            Linear, //
        },
        format::{
            Format,
            RootKey, //
        },
        npt::error,
        shadow::{
            FlushScope,
            Ticket, //
        },
        walk::{
            DirtyLog,
            LogFull,
            Refusal,
            Request,
            Stop,
            Walk,
            Why, //
        }, //
    },
    vmx::{
        capability::msrs::ept,
        eptp::Eptp,
        exit::information::{
            ExitInformation,
            ReasonField, //
        },
        exit_reason::ExitReason,
        instruction::invalidate::{
            Invvpid,
            Vpid, //
        },
        vpid::Host,
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
        // What KVM remembers an asynchronous page fault by.
        arch.ngpa_walk.get_guest_pgd = Some(eptp_of);
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
    kvm::mmu::check_root(vmx);
}

/// Makes KVM use the page tables of L1.
pub(crate) fn leave_ept(vmx: &mut VmxVcpu) {
    vmx.with_arch(|arch| arch.mmu = &raw mut arch.root_mmu);
}

const EPTP_ACCESSED_DIRTY: u64 = 1 << 6;

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

/// Makes the shadow of the tables of an EPT pointer, or of all, agree with them.
///
/// The processor's translations by them are flushed before L2 runs on them again.
pub(crate) fn invalidate_ept(vmx: &mut VmxVcpu, eptp: Option<Eptp>) {
    let scope = match eptp {
        Some(eptp) => FlushScope::Table(eptp.table()),
        None => FlushScope::All,
    };

    kvm::mmu::sync(vmx, scope);
    kvm::mmu::flush_roots(vmx);
}

/// Called by KVM: returns the EPT pointer.
///
/// # Safety
///
/// `vcpu` is one of a VMX that L2 is active on.
unsafe extern "C" fn eptp_of(vcpu: *mut bindings::kvm_vcpu) -> c_ulong {
    // SAFETY: By the requirements of this function.
    let vmx = unsafe { VmxVcpu::from_raw(vcpu) };

    vmx.vmcs12().ept_pointer as c_ulong
}

/// Called by KVM: EPT12 does not allow an access that KVM was to make in L2's place.
///
/// # Safety
///
/// As [`eptp_of()`]; `fault` is valid.
unsafe extern "C" fn inject_ept_fault(
    vcpu: *mut bindings::kvm_vcpu,
    fault: *mut bindings::x86_exception,
    _from_hardware: bool,
) {
    // SAFETY: By the requirements of this function.
    let (vmx, fault) = unsafe { (VmxVcpu::from_raw(vcpu), &*fault) };
    // SAFETY: All members of the union are integers; for a page fault it is the address.
    let address = unsafe { fault.__bindgen_anon_1.address };
    let exit = match fault.error_code {
        error_code if error_code & LOG_FULL != 0 => EptExit::LogFull,
        error_code if error_code & error::RESERVED != 0 => EptExit::Misconfiguration,
        _ => EptExit::Violation {
            qualification: fault.exit_qualification as u64,
        },
    };

    if exit != EptExit::LogFull {
        kvm::mmu::forget(vmx, L2Gpa::from_raw(address));
    }
    reflect_ept_exit(vmx, exit, address, 0);
}

/// In the error code of an access that KVM was to make: L1's log of dirty pages is full. KVM knows no
/// such bit, and takes no notice.
const LOG_FULL: u64 = 1 << 63;

/// Exits to L1 because of EPT12. `reported` is the qualification of the processor's exit, if that was
/// because of EPT, too.
fn reflect_ept_exit(vmx: &mut VmxVcpu, exit: EptExit, address: u64, reported: u64) {
    let (reason, qualification) = match exit {
        // The unblocking of NMIs by IRET is reported in the same bit by both exits.
        EptExit::LogFull => (ExitReason::PML_FULL, reported & NMI_UNBLOCKED),
        EptExit::Misconfiguration => (ExitReason::EPT_MISCONFIG, 0),
        EptExit::Violation { qualification } => (ExitReason::EPT_VIOLATION, qualification),
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

/// Returns the exit qualification of an EPT violation that the processor has reported.
///
/// What it says of the linear address only the processor knows: a walk is of the guest-physical
/// address.
fn violation_qualification(vmx: &VmxVcpu, walked: u64) -> u64 {
    const LINEAR_VALID: u64 = 1 << 7;
    const LINEAR_TRANSLATED: u64 = 1 << 8;
    /// User, writable, not executable.
    const ADVANCED: u64 = 7 << 9;

    let mut of_linear = LINEAR_VALID | LINEAR_TRANSLATED;
    if vmx.msrs().ept_caps & ept::ADVANCED_VMEXIT_INFO != 0 {
        of_linear |= ADVANCED;
    }

    walked & !of_linear | vmx.exit_qualification() & of_linear
}

/// Returns how EPT12 is read by an EPT pointer.
fn format(vmx: &VmxVcpu) -> Ept {
    let mode_based = vmx.vmcs12().secondary().mode_based_execute_control();

    Ept::new(
        Eptp::of_checked(vmx.vmcs12().ept_pointer),
        vmx.msrs().ept_vpid(),
        mode_based,
        vmx.physical_address_width(),
    )
}

impl L2 for VmxVcpu {
    const KNOWS_ACCESS_OF_RESERVED: bool = false;

    fn vcpu(&self) -> &Vcpu {
        self
    }

    fn key(&mut self) -> RootKey {
        RootKey {
            format: Format::Ept(format(self)),
            table: Eptp::of_checked(self.page_table()).table(),
        }
    }

    fn page_table(&self) -> u64 {
        self.vmcs12().ept_pointer
    }

    fn loaded_root(&mut self) -> &mut LoadedRoot {
        &mut self.private().root
    }

    fn walk(
        &mut self,
        memory: &impl GuestTables,
        key: &RootKey,
        ticket: Ticket,
        request: &Request,
        found: &mut Walk,
    ) -> Result<(), Stop> {
        let log = Log(Cell::new(Some(self)));

        found.translate(memory, &log, key, ticket, request)
    }

    fn fault(&mut self, refusal: &Refusal, access: Access) -> Fault {
        // KVM accesses no guest-physical address that is not one for a linear address.
        let (error_code, qualification) = match format(self).exit(refusal, access, Linear::Valid) {
            EptExit::LogFull => (LOG_FULL, 0),
            EptExit::Misconfiguration => (error::PRESENT | error::RESERVED, 0),
            EptExit::Violation { qualification } => match refusal.why {
                Why::Forbidden => (error::PRESENT, qualification),
                _ => (0, qualification),
            },
        };

        Fault {
            error_code,
            qualification,
        }
    }

    fn refuse(&mut self, refusal: &Refusal, address: L2Gpa, access: Access) {
        let exit = match format(self).exit(refusal, access, Linear::None) {
            EptExit::Violation { qualification } => EptExit::Violation {
                qualification: violation_qualification(self, qualification),
            },
            exit => exit,
        };
        let reported = self.exit_qualification();

        reflect_ept_exit(self, exit, address.into_raw(), reported);
    }

    fn without_memory_type(attributes: u64) -> Option<u64> {
        /// The type, and that L2's page-attribute table is ignored.
        const TYPE: u64 = 0xf << 3;
        const WRITE_BACK: u64 = 6 << 3;

        // L0 leaves the type to L1.
        (attributes & TYPE == WRITE_BACK).then_some(attributes & !TYPE)
    }
}

/// L1's log of the pages that L2 makes dirty.
struct Log<'a>(Cell<Option<&'a mut VmxVcpu>>);

impl DirtyLog for Log<'_> {
    fn record(&self, page: L2Gpa) -> Result<(), LogFull> {
        let Some(vmx) = self.0.take() else {
            return Ok(());
        };
        let result = pml::log(vmx, page.into_raw()).map_err(|pml::Full| LogFull);

        self.0.set(Some(vmx));
        result
    }
}

/// Called when KVM needs an address of L1 for one of L2.
///
/// # Safety
///
/// `vcpu` is one of a VMX that L2 is active on; `exception` is valid or null.
pub(crate) unsafe extern "C" fn translate_nested_gpa(
    vcpu: *mut bindings::kvm_vcpu,
    gpa: bindings::gpa_t,
    access: u64,
    exception: *mut bindings::x86_exception,
    pte_access: u64,
) -> bindings::gpa_t {
    const ACC_USER: u64 = 1 << 2;

    // Mode-based execute control goes by what L2's tables say of a page, not by the privilege level.
    let is_user = pte_access & ACC_USER != 0 && access & error::FINAL != 0;
    let access = access & !error::USER | if is_user { error::USER } else { 0 };

    // SAFETY: By the requirements of this function.
    unsafe { kvm::mmu::translate(VmxVcpu::from_raw(vcpu), gpa, access, exception) }
}
