// SPDX-License-Identifier: GPL-2.0

//! VMX instructions of L1: what they have in common, and those that manage VMCSes.

use crate::{
    hyperv,
    shadow,
    state,
    vcpu::VmxVcpu, //
};
use kernel::ffi::c_int;
use kvm::bindings;
use nested::{
    address::{
        Gpa,
        Gva, //
    },
    memory::GuestMemory,
    vmx::{
        field::Field,
        instruction::{
            address::{
                linear_address,
                Registers, //
            },
            operand::{
                Information,
                Memory,
                Register,
                Segment, //
            },
            permission::{
                check_permission,
                check_vmxon_permission,
                FixedBits,
                Operation,
                Processor,
                VmxonRequirements, //
            },
            pointer::{
                check_vmclear,
                check_vmptrld,
                check_vmptrld_revision,
                check_vmxon,
                check_vmxon_region,
                read_revision,
                Limits,
                ShadowVmcs, //
            },
            segment::{
                Direction,
                SegmentRegister, //
            },
            Fault,
            Outcome,
            Refusal, //
        }, //
    }, //
};

/// The exit was handled: the guest goes on.
pub(crate) const RESUME: c_int = 1;

/// Why an instruction does not do what it is for.
pub(crate) enum Stop {
    /// The rules of VMX say so.
    Refused(Refusal),
    /// The exit has been handled in another way, with this result of an exit handler.
    Handled(c_int),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Ends an instruction; returns what an exit handler returns.
pub(crate) fn finish(vmx: &mut VmxVcpu, result: Result<(), Stop>) -> c_int {
    match result {
        Ok(()) => conclude(vmx, Outcome::Succeed),
        Err(Stop::Handled(result)) => result,
        Err(Stop::Refused(refusal)) => refuse(vmx, refusal),
    }
}

/// Makes an instruction fail, or fault; returns what an exit handler returns.
pub(crate) fn refuse(vmx: &mut VmxVcpu, refusal: Refusal) -> c_int {
    let current = vmx.current_vmptr().or_else(|| hyperv::evmptr(vmx));

    match refusal.outcome(current) {
        Ok(outcome) => conclude(vmx, outcome),
        Err(fault) => {
            raise(vmx, fault);
            RESUME
        }
    }
}

/// Sets the flags by which an instruction tells how it ended, and goes on after it.
pub(crate) fn conclude(vmx: &mut VmxVcpu, outcome: Outcome) -> c_int {
    let flags = outcome.rflags(vmx.flags() as u64);

    vmx.set_flags(flags as usize);
    if let Outcome::FailValid(error) = outcome {
        vmx.vmcs12_mut().vm_instruction_error = error.into_raw();
        // A shadow VMCS does not have the field, an enlightened VMCS does.
        if hyperv::is_evmptr_set(vmx) {
            vmx.nested().need_vmcs12_to_shadow_sync = true;
        }
    }
    vmx.skip_instruction()
}

fn raise(vmx: &VmxVcpu, fault: Fault) {
    match fault {
        Fault::InvalidOpcode => vmx.raise_undefined_opcode(),
        Fault::GeneralProtection => vmx.raise_general_protection(),
        Fault::Stack => vmx.raise_stack_fault(),
    }
}

/// Returns the processor as L1, or L2, sees it.
fn processor(vmx: &mut VmxVcpu) -> Processor {
    let operation = if !vmx.nested().vmxon {
        Operation::Outside
    } else if vmx.is_guest_mode() {
        Operation::NonRoot
    } else {
        Operation::Root
    };

    Processor {
        cr0: vmx.cr0() as u64,
        cr3: vmx.cr3() as u64,
        cr4: vmx.cr4() as u64,
        rflags: vmx.flags() as u64,
        efer: vmx.with_arch(|arch| arch.efer),
        cs_access_rights: vmx.vmcs().read(Field::GUEST_CS_AR_BYTES) as u32,
        privilege_level: vmx.privilege_level() as u8,
        operation,
    }
}

/// Checks whether an instruction other than VMXON may be executed.
pub(crate) fn permitted(vmx: &mut VmxVcpu) -> Result<Processor, Refusal> {
    let processor = processor(vmx);

    check_permission(&processor).map(|()| processor)
}

/// Returns what the exit says of the operands.
pub(crate) fn information(vmx: &VmxVcpu) -> Information {
    let field = vmx.vmcs().read(Field::VMX_INSTRUCTION_INFO) as u32;

    Information::new(field, vmx.exit_qualification())
}

/// Registers of the active guest.
struct GuestRegisters<'a>(&'a VmxVcpu);

impl Registers for GuestRegisters<'_> {
    fn general(&self, register: Register) -> u64 {
        read_register(self.0, register)
    }

    fn segment(&self, segment: Segment) -> SegmentRegister {
        let vmcs = self.0.vmcs();
        let (base, limit, access_rights) = match segment {
            Segment::Es => (
                Field::GUEST_ES_BASE,
                Field::GUEST_ES_LIMIT,
                Field::GUEST_ES_AR_BYTES,
            ),
            Segment::Cs => (
                Field::GUEST_CS_BASE,
                Field::GUEST_CS_LIMIT,
                Field::GUEST_CS_AR_BYTES,
            ),
            Segment::Ss => (
                Field::GUEST_SS_BASE,
                Field::GUEST_SS_LIMIT,
                Field::GUEST_SS_AR_BYTES,
            ),
            Segment::Ds => (
                Field::GUEST_DS_BASE,
                Field::GUEST_DS_LIMIT,
                Field::GUEST_DS_AR_BYTES,
            ),
            Segment::Fs => (
                Field::GUEST_FS_BASE,
                Field::GUEST_FS_LIMIT,
                Field::GUEST_FS_AR_BYTES,
            ),
            Segment::Gs => (
                Field::GUEST_GS_BASE,
                Field::GUEST_GS_LIMIT,
                Field::GUEST_GS_AR_BYTES,
            ),
        };

        SegmentRegister {
            base: vmcs.read(base),
            limit: vmcs.read(limit) as u32,
            access_rights: vmcs.read(access_rights) as u32,
        }
    }
}

/// Returns a general-purpose register, as wide as the mode has it.
pub(crate) fn read_register(vmx: &VmxVcpu, register: Register) -> u64 {
    vmx.register(c_int::from(register.number())) as u64
}

/// Reads an operand in memory.
pub(crate) fn read_operand<const BYTES: usize>(
    vmx: &VmxVcpu,
    processor: &Processor,
    operand: &Memory,
) -> Result<[u8; BYTES], Stop> {
    let address = address(vmx, processor, operand, BYTES as u64, Direction::Read)?;
    let mut bytes = [0; BYTES];
    let mut exception = bindings::x86_exception::default();

    // SAFETY: By the invariants of `VmxVcpu`; the buffer has the length given.
    let result = unsafe {
        bindings::kvm_read_guest_virt(
            vmx.as_ptr(),
            address.into_raw() as usize,
            bytes.as_mut_ptr().cast(),
            BYTES as u32,
            &raw mut exception,
        )
    };
    complete_access(vmx, result, &mut exception)?;
    Ok(bytes)
}

/// Writes an operand in memory. The privilege level has been checked.
pub(crate) fn write_operand(
    vmx: &VmxVcpu,
    processor: &Processor,
    operand: &Memory,
    bytes: &[u8],
) -> Result<(), Stop> {
    let address = address(
        vmx,
        processor,
        operand,
        bytes.len() as u64,
        Direction::Write,
    )?;
    let mut exception = bindings::x86_exception::default();

    // SAFETY: By the invariants of `VmxVcpu`; the buffer has the length given, and is only read.
    let result = unsafe {
        bindings::kvm_write_guest_virt_system(
            vmx.as_ptr(),
            address.into_raw() as usize,
            bytes.as_ptr().cast_mut().cast(),
            bytes.len() as u32,
            &raw mut exception,
        )
    };
    complete_access(vmx, result, &mut exception)
}

fn address(
    vmx: &VmxVcpu,
    processor: &Processor,
    operand: &Memory,
    bytes: u64,
    direction: Direction,
) -> Result<Gva, Refusal> {
    linear_address(
        operand,
        bytes,
        direction,
        processor.addressing(),
        &GuestRegisters(vmx),
    )
}

/// Raises the exception of an access that has failed, or reports it to user space.
fn complete_access(
    vmx: &VmxVcpu,
    result: c_int,
    exception: &mut bindings::x86_exception,
) -> Result<(), Stop> {
    const CONTINUE: c_int = 0;

    if result == CONTINUE {
        return Ok(());
    }
    // SAFETY: By the invariants of `VmxVcpu`; the result and the exception are of one access.
    Err(Stop::Handled(unsafe {
        bindings::kvm_handle_memory_failure(vmx.as_ptr(), result, exception)
    }))
}

/// Reads the pointer that is the operand of an instruction.
fn read_pointer(vmx: &VmxVcpu, processor: &Processor) -> Result<Gpa, Stop> {
    let operand = information(vmx).memory()?;

    read_operand(vmx, processor, &operand)
        .map(u64::from_le_bytes)
        .map(Gpa::from_raw)
}

/// Executes VMXON.
pub(crate) fn vmxon(vmx: &mut VmxVcpu) -> Result<(), Stop> {
    let processor = processor(vmx);
    let msrs = vmx.msrs();
    let requirements = VmxonRequirements {
        cr0: FixedBits {
            fixed0: msrs.cr0_fixed0,
            fixed1: msrs.cr0_fixed1,
        },
        cr4: FixedBits {
            fixed0: msrs.cr4_fixed0,
            fixed1: msrs.cr4_fixed1,
        },
        feature_control: vmx.fields().msr_ia32_feature_control,
    };
    check_vmxon_permission(&processor, &requirements)?;

    let pointer = read_pointer(vmx, &processor)?;
    check_vmxon(pointer, vmx.physical_address_width())?;
    check_vmxon_region::<kvm::Vcpu>(vmx, pointer)?;

    vmx.nested().vmxon_ptr = pointer.into_raw();
    state::enter_vmx_operation(vmx).map_err(|error| Stop::Handled(error.to_errno()))
}

/// Executes VMXOFF.
pub(crate) fn vmxoff(vmx: &mut VmxVcpu) -> Result<(), Stop> {
    permitted(vmx)?;
    state::leave_vmx_operation(vmx);
    // They were blocked.
    if vmx.init_or_sipi_is_pending() {
        vmx.request_event();
    }
    Ok(())
}

fn limits(vmx: &mut VmxVcpu) -> Limits {
    Limits {
        physical_address_width: vmx.physical_address_width(),
        vmxon_region: Gpa::from_raw(vmx.nested().vmxon_ptr),
    }
}

/// Executes VMCLEAR.
pub(crate) fn vmclear(vmx: &mut VmxVcpu) -> Result<(), Stop> {
    let processor = permitted(vmx)?;
    let pointer = read_pointer(vmx, &processor)?;
    check_vmclear(pointer, &limits(vmx))?;

    if hyperv::clear(vmx, pointer) {
        return Ok(());
    }
    if vmx.current_vmptr() == Some(pointer) {
        state::release_vmcs12(vmx);
    }
    // Where there is no memory, there is nothing to clear.
    if let Some(launch_state) = pointer.checked_add(state::LAUNCH_STATE_OFFSET) {
        let _ = vmx.write(launch_state, &[0; 4]);
    }
    Ok(())
}

/// Executes VMPTRLD.
pub(crate) fn vmptrld(vmx: &mut VmxVcpu) -> Result<(), Stop> {
    const SHADOW_VMCS: u32 = 1 << 14;

    let processor = permitted(vmx)?;
    let pointer = read_pointer(vmx, &processor)?;
    check_vmptrld(pointer, &limits(vmx))?;
    if hyperv::evmptr(vmx).is_some() {
        // L1 uses enlightened VMCSes: the interface leaves this undefined.
        return Err(Stop::Handled(RESUME));
    }
    if vmx.current_vmptr() == Some(pointer) {
        return Ok(());
    }

    let shadow = if vmx.msrs().secondary_ctls_high & SHADOW_VMCS != 0 {
        ShadowVmcs::Supported
    } else {
        ShadowVmcs::Unsupported
    };
    check_vmptrld_revision(read_revision::<kvm::Vcpu>(vmx, pointer), shadow)?;
    state::release_vmcs12(vmx);
    state::load_vmcs12(vmx, pointer)?;
    // What was read counts, not what was there before.
    let revision = vmx.vmcs12().revision;
    check_vmptrld_revision(revision, shadow)?;
    shadow::set_current_vmptr(vmx, pointer);
    Ok(())
}

/// Executes VMPTRST.
///
/// What it stores with an enlightened VMCS is not defined. Where that is serves L1 best.
pub(crate) fn vmptrst(vmx: &mut VmxVcpu) -> Result<(), Stop> {
    let processor = permitted(vmx)?;
    let operand = information(vmx).memory()?;
    let pointer = match hyperv::evmptr(vmx) {
        Some(enlightened) => enlightened.into_raw(),
        None => vmx.nested().current_vmptr,
    };

    write_operand(vmx, &processor, &operand, &pointer.to_le_bytes())
}
