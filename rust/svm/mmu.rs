// SPDX-License-Identifier: GPL-2.0

//! The page tables that L2 runs on.
//!
//! If L1 has nested paging for L2, L2 runs on a shadow of L1's tables; if it has not, L2 runs on the
//! tables of L1.

use crate::{
    exit,
    vcpu::SvmVcpu, //
};
use kernel::ffi::c_ulong;
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
    memory::GuestTables,
    mmu::{
        access::Access,
        format::{
            Format,
            RootKey, //
        },
        npt::{
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
    svm::ExitCode, //
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
        // What KVM remembers an asynchronous page fault by.
        arch.ngpa_walk.get_guest_pgd = Some(nested_cr3_of);
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

/// Called by KVM: returns nCR3.
///
/// # Safety
///
/// `vcpu` is one of an SVM that L2 is active on.
unsafe extern "C" fn nested_cr3_of(vcpu: *mut bindings::kvm_vcpu) -> c_ulong {
    // SAFETY: By the requirements of this function.
    let svm = unsafe { SvmVcpu::from_vcpu(vcpu) };

    svm.control12().nested_cr3.into_raw() as c_ulong
}

/// Called by KVM: L1's tables do not allow an access that KVM was to make in L2's place.
///
/// # Safety
///
/// As [`nested_cr3_of()`]; `fault` is valid.
unsafe extern "C" fn inject_nested_page_fault(
    vcpu: *mut bindings::kvm_vcpu,
    fault: *mut bindings::x86_exception,
    _from_hardware: bool,
) {
    // SAFETY: By the requirements of this function.
    let (svm, fault) = unsafe { (SvmVcpu::from_vcpu(vcpu), &*fault) };
    // SAFETY: All members of the union are integers; for a page fault it is the address.
    let address = unsafe { fault.__bindgen_anon_1.address };

    kvm::mmu::forget(svm, L2Gpa::from_raw(address));
    reflect_fault(svm, fault.error_code, address, None);
}

/// Exits to L1 with a nested page fault, of which the processor may have `reported` something.
fn reflect_fault(svm: &mut SvmVcpu, error_code: u64, address: u64, reported: Option<u64>) {
    let control = &mut svm.current_vmcb().control;

    control.exit_info_1 = nested::svm::exit::nested_page_fault_error(error_code, reported);
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

    fn fault(&mut self, refusal: &Refusal, access: Access) -> Fault {
        Fault {
            error_code: format(self).error_code(refusal, access),
            qualification: 0,
        }
    }

    fn refuse(&mut self, refusal: &Refusal, address: L2Gpa, access: Access) {
        let error_code = format(self).error_code(refusal, access);
        let reported = self.current_vmcb().control.exit_info_1;

        reflect_fault(self, error_code, address.into_raw(), Some(reported));
    }

    fn without_memory_type(_attributes: u64) -> Option<u64> {
        None
    }
}

/// Called when KVM needs an address of L1 for one of L2.
///
/// # Safety
///
/// `vcpu` is one of an SVM that L2 is active on; `exception` is valid or null.
pub(crate) unsafe extern "C" fn translate_nested_gpa(
    vcpu: *mut bindings::kvm_vcpu,
    gpa: bindings::gpa_t,
    access: u64,
    exception: *mut bindings::x86_exception,
    _pte_access: u64,
) -> bindings::gpa_t {
    // SAFETY: By the requirements of this function.
    unsafe { kvm::mmu::translate(SvmVcpu::from_vcpu(vcpu), gpa, access, exception) }
}
