// SPDX-License-Identifier: GPL-2.0

//! Address spaces of L2, and L1's own.
//!
//! kvm-amd assigns an ASID when a vCPU is about to run with a VMCB whose generation is not the one of
//! the processor: a generation of 0 asks for that. The number is in `svm->asid`, whichever VMCB is
//! the current one. That of vmcb01 is in vmcb01, while L2 is active; those of L2 are in
//! [`AddressSpaces`].

use crate::{
    mmu,
    vcpu::SvmVcpu, //
};
use kvm::bindings;
use nested::svm::{
    asid::{
        AddressSpaces,
        Assigned,
        Flush,
        FlushByAsid,
        Invalidated,
        Left,
        Machine,
        Request,
        Tables, //
    },
    bits::tlb,
    Control12, //
};

/// Asks kvm-amd to assign an ASID.
const UNASSIGNED: u64 = 0;

/// Returns the address spaces of a new vCPU.
pub(crate) fn new() -> AddressSpaces {
    AddressSpaces::new(flush_by_asid())
}

fn flush_by_asid() -> FlushByAsid {
    // SAFETY: Reads the capabilities of the boot CPU.
    if unsafe { bindings::nested_helper_svm_flush_by_asid() } {
        FlushByAsid::Present
    } else {
        FlushByAsid::Absent
    }
}

/// Gives L2 its ASID: the vCPU has just switched to vmcb02.
pub(crate) fn enter(svm: &mut SvmVcpu, control12: &Control12) {
    let (cr4, efer) = {
        let save01 = &svm.vmcb01().0.save;
        (save01.cr4, save01.efer)
    };
    // L0 flushes for an L2 that uses Hyper-V's interface, at the request of any vCPU: it does not
    // know which of L1's address spaces that L2 has.
    let tlb_control = match control12.tlb_ctl {
        tlb::NOTHING if control12.direct_flush(svm.cpu()) => tlb::ASID,
        tlb_control => tlb_control,
    };
    let request = Request {
        asid: control12.asid,
        tlb_control,
        tables: Tables::new(control12, cr4, efer),
    };
    let cpu = svm.fields().nested.vmcb02.cpu;

    svm.address_spaces().enter(request, cpu).carry_out(svm);
    flush_at_transition(svm);
}

impl Machine for SvmVcpu {
    fn load(&mut self, asid: Option<Assigned>, flush: Flush) {
        let svm = self.fields();
        match asid {
            Some(assigned) => {
                svm.asid = assigned.asid;
                svm.nested.vmcb02.asid_generation = assigned.generation;
            }
            None => svm.nested.vmcb02.asid_generation = UNASSIGNED,
        }

        // Without the feature none but an ASID that is new needs it, which is flushed by KVM.
        self.parts().vmcb02.0.control.tlb_ctl = match flush_by_asid() {
            FlushByAsid::Present => flush.tlb_control(),
            FlushByAsid::Absent => tlb::NOTHING,
        };
    }

    fn synchronize(&mut self) {
        mmu::synchronize(self);
    }

    fn flush_l1(&mut self) {
        match flush_by_asid() {
            FlushByAsid::Present => self.vmcb01().0.control.tlb_ctl = tlb::ASID,
            FlushByAsid::Absent => self.fields().vmcb01.asid_generation = UNASSIGNED,
        }
    }
}

/// Keeps L2's ASID: the vCPU is about to switch to vmcb01.
pub(crate) fn leave(svm: &mut SvmVcpu) {
    let tlb_control = svm.parts().vmcb02.0.control.tlb_ctl;
    let fields = svm.fields();
    let vmcb02 = &fields.nested.vmcb02;
    let assigned = (vmcb02.asid_generation != UNASSIGNED).then_some(Assigned {
        cpu: vmcb02.cpu,
        generation: vmcb02.asid_generation,
        asid: fields.asid,
    });

    svm.address_spaces().leave(Left {
        assigned,
        tlb_control,
    });
    flush_at_transition(svm);
}

/// Flushes for the guest that is entered, if its ASID is not enough.
fn flush_at_transition(svm: &mut SvmVcpu) {
    svm.flush_for_hyperv();
    // SAFETY: By the invariants of `SvmVcpu`.
    if unsafe { bindings::nested_helper_svm_transitions_flush(svm.raw()) } {
        svm.request_tlb_flush();
    }
}

/// Forgets all ASIDs of L2: the vCPU is about to switch to vmcb01, without an exit.
pub(crate) fn forget(svm: &mut SvmVcpu) {
    svm.address_spaces().forget();
    flush_at_transition(svm);
}

/// Flushes what KVM does not when it flushes the ASID of the current VMCB.
pub(crate) fn flush_others(svm: &mut SvmVcpu) {
    svm.address_spaces().flush();
    if svm.runs_vmcb02() {
        svm.flush_l1();
    }
}

/// Invalidates the page at `address` in one of L1's address spaces.
pub(crate) fn invalidate_page(svm: &mut SvmVcpu, asid: u32, address: usize) {
    if asid == 0 {
        // That of L1 itself; L2 has no page of it if it is the one that executes the instruction.
        if svm.runs_vmcb02() {
            svm.flush_l1();
        } else {
            svm.invalidate_page(address);
        }
        return;
    }
    match svm.address_spaces().invalidate(asid) {
        Invalidated::Later => (),
        Invalidated::InUse => {
            mmu::synchronize(svm);
            svm.request_guest_tlb_flush();
        }
    }
}
