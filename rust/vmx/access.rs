// SPDX-License-Identifier: GPL-2.0

//! VMREAD and VMWRITE, of L1 and of an L2 that has a shadow VMCS.

use crate::{
    exit,
    hyperv,
    instruction::{
        information,
        permitted,
        read_operand,
        read_register,
        write_operand,
        Stop, //
    },
    shadow,
    vcpu::VmxVcpu, //
};
use kernel::ffi::c_int;
use nested::vmx::{
    exit::guest_state::is_rare,
    field::{
        Component,
        Shadow, //
    },
    instruction::{
        access::{
            check_vmread,
            check_vmwrite,
            link_pointer,
            Accessor,
            ExitInformation, //
        },
        operand::{
            Operand,
            OperandSize, //
        },
        permission::Processor, //
    },
    Vmcs12, //
};

/// Returns who executes the instruction.
fn accessor(vmx: &mut VmxVcpu) -> Accessor {
    if vmx.is_guest_mode() {
        Accessor::L2 {
            shadow: link_pointer(vmx.vmcs12()),
        }
    } else {
        Accessor::L1 {
            current: vmx.current_vmptr(),
        }
    }
}

/// Returns the VMCS that is accessed.
fn target(vmx: &mut VmxVcpu, accessor: Accessor) -> &mut Vmcs12 {
    match accessor {
        Accessor::L1 { .. } => vmx.vmcs12_mut(),
        Accessor::L2 { .. } => vmx.shadow_vmcs12_mut(),
    }
}

/// Executes VMREAD.
pub(crate) fn vmread(vmx: &mut VmxVcpu) -> Result<(), Stop> {
    let processor = permitted(vmx)?;
    let information = information(vmx);
    let encoding = read_register(vmx, information.register());

    let value = if hyperv::evmptr(vmx).is_some() {
        hyperv::read_field(vmx, encoding)?
    } else {
        let accessor = accessor(vmx);
        accessor.target()?;
        let component = check_vmread(encoding, &vmx.private().fields)?;
        let is_of_l1 = matches!(accessor, Accessor::L1 { .. });
        if is_of_l1 && is_rare(u32::from(component.field().encoding())) {
            exit::fetch_rare_state(vmx);
        }
        component.read(target(vmx, accessor))
    };

    match information.operand()? {
        Operand::Register(register) => {
            vmx.set_register(c_int::from(register.number()), value as usize);
            Ok(())
        }
        Operand::Memory(memory) => match processor.mode().operand_size() {
            OperandSize::Bits64 => write_operand(vmx, &processor, &memory, &value.to_le_bytes()),
            OperandSize::Bits32 => {
                write_operand(vmx, &processor, &memory, &(value as u32).to_le_bytes())
            }
        },
    }
}

/// Executes VMWRITE.
pub(crate) fn vmwrite(vmx: &mut VmxVcpu) -> Result<(), Stop> {
    let processor = permitted(vmx)?;
    let accessor = accessor(vmx);
    // The current VMCS has to be there even where L2 accesses another one.
    if vmx.current_vmptr().is_none() {
        Accessor::L1 { current: None }.target()?;
    }
    accessor.target()?;

    let information = information(vmx);
    let value = source(vmx, &processor, information.operand()?)?;
    let encoding = read_register(vmx, information.register());
    let exit_information = ExitInformation::from_misc(u64::from(vmx.msrs().misc_low));
    let component = check_vmwrite(encoding, &vmx.private().fields, exit_information)?;

    match accessor {
        Accessor::L1 { .. } => write_vmcs12(vmx, component, value),
        // What L2 writes says nothing about what L2 runs with.
        Accessor::L2 { .. } => component.write(vmx.shadow_vmcs12_mut(), value),
    }
    Ok(())
}

/// Returns the value that VMWRITE takes.
fn source(vmx: &VmxVcpu, processor: &Processor, operand: Operand) -> Result<u64, Stop> {
    match operand {
        Operand::Register(register) => Ok(read_register(vmx, register)),
        Operand::Memory(memory) => match processor.mode().operand_size() {
            OperandSize::Bits64 => read_operand(vmx, processor, &memory).map(u64::from_le_bytes),
            OperandSize::Bits32 => read_operand(vmx, processor, &memory)
                .map(u32::from_le_bytes)
                .map(u64::from),
        },
    }
}

/// Writes a field of the current VMCS.
fn write_vmcs12(vmx: &mut VmxVcpu, component: Component, value: u64) {
    let field = component.field();

    if field.shadow() != Shadow::ReadWrite {
        // The next entry writes all of the rare state to vmcs02, which must not be outdated then.
        exit::fetch_rare_state(vmx);
        vmx.nested().dirty_vmcs12 = true;
    }
    component.write(vmx.vmcs12_mut(), value);
    vmx.private()
        .passed
        .forget_field(u32::from(field.encoding()));
    // L1 may read it without an exit.
    if field.shadow() == Shadow::Read {
        shadow::copy_from_vmcs12(vmx);
    }
}
