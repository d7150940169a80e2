// SPDX-License-Identifier: GPL-2.0

//! INVEPT and INVVPID of L1, and VMFUNC of L2.

use crate::{
    exit,
    instruction::{
        information,
        permitted,
        read_operand,
        read_register,
        Stop,
        RESUME, //
    },
    mmu,
    vcpu::VmxVcpu, //
};
use kernel::ffi::c_int;
use kvm::bindings;
use nested::vmx::{
    exit::information::ReasonField,
    field::Allowed,
    instruction::{
        invalidate::{
            check_invept_supported,
            check_invvpid_supported,
            Invept,
            InveptType,
            InvvpidType, //
        },
        vmfunc::{
            check_function,
            switch_eptp,
            Function,
            Vmfunc,
            VmfuncRefusal, //
        }, //
    }, //
};

/// Executes INVEPT.
pub(crate) fn invept(vmx: &mut VmxVcpu) -> Result<(), Stop> {
    let capability = vmx.msrs().ept_vpid();
    check_invept_supported(&Allowed::of(vmx.msrs()), capability)?;
    let processor = permitted(vmx)?;

    let information = information(vmx);
    let kind = InveptType::new(read_register(vmx, information.register()), capability)?;
    let descriptor = read_operand(vmx, &processor, &information.memory()?)?;
    let width = vmx.physical_address_width();

    match kind.request(descriptor, capability, width)? {
        Invept::SingleContext(eptp) => mmu::invalidate_ept(vmx, Some(eptp)),
        Invept::Global => mmu::invalidate_ept(vmx, None),
    }
    Ok(())
}

/// Executes INVVPID.
pub(crate) fn invvpid(vmx: &mut VmxVcpu) -> Result<(), Stop> {
    let capability = vmx.msrs().ept_vpid();
    check_invvpid_supported(&Allowed::of(vmx.msrs()), capability)?;
    let processor = permitted(vmx)?;

    let information = information(vmx);
    let kind = InvvpidType::new(read_register(vmx, information.register()), capability)?;
    let descriptor = read_operand(vmx, &processor, &information.memory()?)?;

    mmu::invalidate_vpid(vmx, kind.request(descriptor, linear_address_width())?);
    Ok(())
}

/// Returns the number of bits that linear addresses of the host have at most.
pub(crate) fn linear_address_width() -> u32 {
    // SAFETY: Reads a capability of the host.
    unsafe { bindings::nested_helper_vmx_linear_address_width() }
}

/// Executes VMFUNC for L2; returns what an exit handler returns.
pub(crate) fn vmfunc(vmx: &mut VmxVcpu) -> c_int {
    // L1 has no VM functions.
    if !vmx.is_guest_mode() {
        vmx.raise_undefined_opcode();
        return RESUME;
    }

    match call_function(vmx) {
        Ok(()) => vmx.skip_instruction(),
        Err(VmfuncRefusal::Fault(_)) => {
            vmx.raise_undefined_opcode();
            RESUME
        }
        Err(VmfuncRefusal::Exit(_)) => {
            let reason = ReasonField::from_raw(vmx.exit_reason());
            exit::reflect_hardware_exit(vmx, reason);
            RESUME
        }
    }
}

fn call_function(vmx: &mut VmxVcpu) -> Result<(), VmfuncRefusal> {
    let Function::EptpSwitching = check_function(vmx.vmcs12(), vmx.eax())?;
    let request = switch_eptp::<kvm::Vcpu>(
        vmx.vmcs12(),
        vmx.ecx(),
        vmx,
        vmx.msrs().ept_vpid(),
        vmx.physical_address_width(),
    )?;

    match request {
        Vmfunc::Unchanged => {}
        Vmfunc::Switch { eptp, .. } => {
            vmx.vmcs12_mut().ept_pointer = eptp.into_raw();
            mmu::use_eptp(vmx);
            if vmx.nested().vpid02 == 0 {
                vmx.request_guest_tlb_flush();
            }
        }
    }
    Ok(())
}
