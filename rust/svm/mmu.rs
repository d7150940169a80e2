// SPDX-License-Identifier: GPL-2.0

//! The page tables that L2 runs on.
//!
//! If L1 has nested paging for L2, L2 runs on a shadow of L1's tables; if it has not, L2 runs on the
//! tables of L1.

use crate::{
    exit,
    vcpu::SvmVcpu, //
};
use kernel::ffi::{
    c_int,
    c_ulong, //
};
use kvm::{
    bindings,
    mmu::{
        LoadedRoot,
        L2, //
    },
    Vcpu, //
};
use nested::{
    address::{
        Gpa,
        L2Gpa, //
    },
    memory::{
        GuestMemory,
        GuestTables, //
    },
    mmu::{
        access::{
            Access,
            Kind,
            Mode,
            Stage, //
        },
        format::{
            Format,
            RootKey, //
        },
        npt::{
            error,
            Host,
            Npt, //
        },
        shadow::{
            FlushScope,
            Ticket, //
        },
        walk::{
            Refusal,
            Request,
            Stop,
            Walk, //
        }, //
    },
    svm::{
        bits::register::CR3_PDPT_BASE,
        ExitCode, //
    }, //
};

/// CR3 has a value that must not be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IllegalCr3;

/// Where the page-directory pointers of a CR3 come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pdptrs {
    /// They are read from memory.
    Load,
    /// They are what they were.
    Keep,
}

/// Makes KVM use L1's nested page tables.
pub(crate) fn enter_nested_paging(svm: &mut SvmVcpu) {
    let control12 = svm.control12();
    let (nested_cr3, misc_ctl) = (control12.nested_cr3.into_raw(), control12.misc_ctl);
    let save01 = &svm.vmcb01().0.save;
    let (cr4, efer) = (save01.cr4, save01.efer);

    svm.with_arch(|arch| arch.mmu = &raw mut arch.guest_mmu);
    // SAFETY: By the invariants of `SvmVcpu`. The format of the tables is that of L1's own mode.
    unsafe {
        bindings::kvm_init_shadow_npt_mmu(svm.as_ptr(), cr4 as usize, efer, nested_cr3, misc_ctl);
    }
    svm.with_arch(|arch| {
        arch.ngpa_walk.get_guest_pgd = Some(nested_cr3_of);
        arch.ngpa_walk.get_pdptr = Some(nested_pdptr);
        arch.ngpa_walk.inject_page_fault = Some(inject_nested_page_fault);
    });
    kvm::mmu::check_root(svm);
}

/// Makes KVM use the page tables of L1.
pub(crate) fn leave_nested_paging(svm: &mut SvmVcpu) {
    svm.with_arch(|arch| arch.mmu = &raw mut arch.root_mmu);
}

/// Makes the tables that L2 is about to run on agree with what L1 has flushed.
pub(crate) fn synchronize(svm: &mut SvmVcpu) {
    if svm.control12().nested_paging() {
        let table = svm.key().table;
        kvm::mmu::sync(svm, FlushScope::Table(table));
    }
}

/// Loads CR3 of L1 or L2, whichever is active.
pub(crate) fn load_cr3(svm: &mut SvmVcpu, cr3: u64, pdptrs: Pdptrs) -> Result<(), IllegalCr3> {
    let nested_paging = svm.is_guest_mode() && svm.control12().nested_paging();

    if !svm.is_legal_cr3(cr3 as usize) {
        svm.trace_failed_check(c"IllegalCr3");
        return Err(IllegalCr3);
    }
    if pdptrs == Pdptrs::Load && svm.is_pae_paging() {
        if nested_paging {
            svm.reload_pdptrs();
        } else {
            load_pdptrs(svm, cr3)?;
        }
    }
    svm.with_arch(|arch| arch.cr3 = cr3 as usize);
    svm.init_mmu();
    if !nested_paging {
        svm.use_page_tables(cr3);
    }
    Ok(())
}

/// Loads the page-directory pointers of L1, or of an L2 that runs on L1's tables.
pub(crate) fn load_pdptrs(svm: &mut SvmVcpu, cr3: u64) -> Result<(), IllegalCr3> {
    if Vcpu::load_pdptrs(svm, cr3 as usize) == 0 {
        svm.trace_failed_check(c"IllegalPdptrs");
        return Err(IllegalCr3);
    }
    Ok(())
}

/// Called by KVM's walker of nested page tables: returns CR3 of the tables.
///
/// # Safety
///
/// `vcpu` is one of an SVM that L2 is active on.
unsafe extern "C" fn nested_cr3_of(vcpu: *mut bindings::kvm_vcpu) -> c_ulong {
    // SAFETY: By the requirements of this function.
    let svm = unsafe { SvmVcpu::from_vcpu(vcpu) };

    svm.control12().nested_cr3.into_raw() as c_ulong
}

/// Called by KVM's walker of nested page tables: returns a page-directory pointer, which is not
/// present if it cannot be read.
///
/// # Safety
///
/// As [`nested_cr3_of()`].
unsafe extern "C" fn nested_pdptr(vcpu: *mut bindings::kvm_vcpu, index: c_int) -> u64 {
    // SAFETY: By the requirements of this function.
    let svm = unsafe { SvmVcpu::from_vcpu(vcpu) };
    // The processor ignores the lower bits.
    let table = svm.control12().nested_cr3.into_raw() & CR3_PDPT_BASE;
    let entry = u64::try_from(index & 3).unwrap_or(0) * 8;
    let mut bytes = [0; 8];

    match svm.read(Gpa::from_raw(table | entry), &mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

/// Called by KVM's walker of nested page tables: L1's tables do not allow an access of L2 that KVM
/// makes for it.
///
/// # Safety
///
/// As [`nested_cr3_of()`]; `fault` is valid.
unsafe extern "C" fn inject_nested_page_fault(
    vcpu: *mut bindings::kvm_vcpu,
    fault: *mut bindings::x86_exception,
    from_hardware: bool,
) {
    // SAFETY: By the requirements of this function.
    let (svm, fault) = unsafe { (SvmVcpu::from_vcpu(vcpu), &*fault) };
    // SAFETY: All members of the union are integers; for a page fault it is the address.
    let address = unsafe { fault.__bindgen_anon_1.address };

    kvm::mmu::forget(svm, L2Gpa::from_raw(address));
    reflect_fault(svm, fault.error_code, address, from_hardware);
}

/// Exits to L1 with a nested page fault.
fn reflect_fault(svm: &mut SvmVcpu, error_code: u64, address: u64, from_hardware: bool) {
    let control = &mut svm.current_vmcb().control;

    control.exit_info_1 = nested::svm::exit::nested_page_fault_error(
        error_code,
        from_hardware.then_some(control.exit_info_1),
    );
    control.exit_info_2 = address;
    control.exit_code = ExitCode::NPF.into_raw();
    exit::reflect(svm);
}

/// Returns the format of L1's nested page tables.
fn format(svm: &mut SvmVcpu) -> Npt {
    let execute_trap = svm.control12().gmet();
    let save01 = &svm.vmcb01().0.save;
    let (cr4, efer) = (save01.cr4, save01.efer);
    let host = Host {
        cr4,
        efer,
        // SAFETY: By the invariants of `SvmVcpu`; reads the capabilities of the vCPU.
        gigabyte_pages: unsafe { bindings::nested_helper_guest_has_gbpages(svm.as_ptr()) },
        physical_address_width: svm.with_arch(|arch| arch.maxphyaddr as u32),
    };

    Npt::new(&host, execute_trap)
}

impl L2 for SvmVcpu {
    const KNOWS_ACCESS_OF_RESERVED: bool = true;

    fn vcpu(&self) -> &Vcpu {
        self
    }

    fn key(&mut self) -> RootKey {
        let format = format(self);

        RootKey {
            format: Format::Npt(format),
            table: format.table(self.page_table()),
        }
    }

    fn page_table(&self) -> u64 {
        self.control12().nested_cr3.into_raw()
    }

    fn loaded_root(&mut self) -> &mut LoadedRoot {
        SvmVcpu::loaded_root(self)
    }

    fn access(&self, error_code: u64) -> Access {
        Access {
            kind: if error_code & error::FETCH != 0 {
                Kind::Fetch
            } else if error_code & error::WRITE != 0 {
                Kind::Write
            } else {
                Kind::Read
            },
            mode: if error_code & error::USER != 0 {
                Mode::User
            } else {
                Mode::Supervisor
            },
            stage: if error_code & error::PAGE_TABLE != 0 {
                Stage::PageTable
            } else {
                Stage::Final
            },
        }
    }

    fn walk(
        &mut self,
        memory: &impl GuestTables,
        key: &RootKey,
        ticket: Ticket,
        request: &Request,
        found: &mut Walk,
    ) -> Result<(), Stop> {
        found.translate(memory, &(), key, ticket, request)
    }

    fn refuse(&mut self, refusal: &Refusal, address: L2Gpa, access: Access) {
        let error_code = format(self).error_code(refusal, access);

        reflect_fault(self, error_code, address.into_raw(), true);
    }

    fn without_memory_type(_attributes: u64) -> Option<u64> {
        None
    }
}

/// Called when KVM needs an address of L1 for one of L2.
///
/// # Safety
///
/// `vcpu` is one of an SVM that L2 is active on; `exception` is valid.
pub(crate) unsafe extern "C" fn translate_nested_gpa(
    vcpu: *mut bindings::kvm_vcpu,
    gpa: bindings::gpa_t,
    mut access: u64,
    exception: *mut bindings::x86_exception,
    _pte_access: u64,
) -> bindings::gpa_t {
    const USER: u64 = 1 << 2;

    // SAFETY: By the requirements of this function.
    let svm = unsafe { SvmVcpu::from_vcpu(vcpu) };
    // Without the guest-mode execution trap, all accesses by L2 are those of a user.
    if !svm.control12().gmet() {
        access |= USER;
    }
    let walk = svm.with_arch(|arch| &raw mut arch.ngpa_walk);

    // SAFETY: The walk is part of the vCPU, and was set up for nested paging.
    match unsafe { (*walk).gva_to_gpa } {
        // SAFETY: The arguments are those of KVM.
        Some(gva_to_gpa) => unsafe { gva_to_gpa(vcpu, walk, gpa, access, exception) },
        None => gpa,
    }
}
