// SPDX-License-Identifier: GPL-2.0

//! Addresses of L2, for KVM, which emulates an instruction of L2.

use super::{
    fault::{
        access_of,
        L2, //
    },
    Entries,
    Vm, //
};
use crate::{
    bindings,
    Vcpu, //
};
use nested::{
    address::L2Gpa,
    mmu::{
        access::{
            Access,
            Permissions, //
        },
        walk::{
            Intent,
            Refusal,
            Request,
            Stop,
            Walk,
            Why, //
        }, //
    }, //
};

/// What KVM keeps of an access that L1's tables do not allow, until it asks for the exit to L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// An error code, of which KVM knows the bits that say that all entries were present, and that
    /// one had a reserved bit set; what the others are is the vendor's.
    pub error_code: u64,
    /// More about the access.
    pub qualification: u64,
}

/// How often a walk is made anew because L1 keeps changing what it reads.
const WALKS: u32 = 64;

/// Translates an address of L2 for an access that KVM makes in L2's place, or reads L2's own tables
/// for: the op `translate_nested_gpa`. Flags are set as the processor would. May sleep.
///
/// Returns the address in L1's memory, or all ones if L1's tables do not allow the access.
///
/// # Safety
///
/// `exception` is valid, or null if KVM does not want to know why.
pub unsafe fn translate<L: L2>(
    l2: &mut L,
    address: bindings::gpa_t,
    access: u64,
    exception: *mut bindings::x86_exception,
) -> bindings::gpa_t {
    const NONE: bindings::gpa_t = bindings::gpa_t::MAX;
    const PAGE_FAULT: u8 = 14;

    let access = access_of(access);
    let refusal = match find(l2, L2Gpa::from_raw(address), access) {
        Ok(page) => return page | address & 0xfff,
        Err(refusal) => refusal,
    };
    let fault = l2.fault(&refusal, access);

    // SAFETY: By the requirements of this function.
    if let Some(exception) = unsafe { exception.as_mut() } {
        *exception = bindings::x86_exception {
            vector: PAGE_FAULT,
            error_code_valid: true,
            error_code: fault.error_code,
            nested_page_fault: true,
            __bindgen_anon_1: bindings::x86_exception__bindgen_ty_1 { address },
            async_page_fault: 0,
            exit_qualification: fault.qualification as usize,
        };
    }
    NONE
}

/// Returns the page of L1 that an address of L2 is in.
fn find<L: L2>(l2: &mut L, address: L2Gpa, access: Access) -> Result<bindings::gpa_t, Refusal> {
    let key = l2.key();
    let request = Request {
        address,
        access,
        intent: Intent::Demand,
    };
    // SAFETY: What is done with the reference, accessing L1's memory, is done with none of the
    // parts of `l2`, which lives as long as the op takes.
    let vcpu = unsafe { Vcpu::from_raw(l2.vcpu().as_ptr()) };
    let memory = Entries::new(vcpu);
    let sequences = &Vm::of(vcpu).tables().sequences;
    // Not the walk of the vCPU's faults: they are somewhere else.
    let mut walk = Walk::default();

    for _ in 0..WALKS {
        match l2.walk(&memory, &key, sequences.begin(&key), &request, &mut walk) {
            Ok(()) => return Ok(walk.page.into_raw()),
            Err(Stop::Refused(refusal)) => return Err(refusal),
            Err(Stop::Again) => {}
        }
    }
    // L2 will make the access again.
    Err(Refusal {
        why: Why::NotPresent,
        permitted: Permissions::NONE,
    })
}
