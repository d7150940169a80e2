// SPDX-License-Identifier: GPL-2.0

//! VMFUNC: what L2 may do without an exit to L1 (SDM, "VM Functions").

use super::Fault;
use crate::{
    address::Gpa,
    memory::GuestMemory,
    vmx::{
        eptp::{EptVpidCapability, Eptp},
        Vmcs12,
    },
};

/// A VM function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// To use another EPT pointer of a list of L1.
    EptpSwitching,
}

/// What VMFUNC does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmfunc {
    /// L2 has the EPT pointer already.
    Unchanged,
    /// L2 gets another EPT pointer. It becomes that of vmcs12.
    Switch {
        /// The EPT pointer.
        eptp: Eptp,
        /// Its index in the list, for the EPTP index of vmcs12.
        index: u16,
    },
}

/// Why L2 does not get what VMFUNC asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmfuncRefusal {
    /// There is no such function, or L1 has not enabled VM functions: a fault.
    Fault(Fault),
    /// VMFUNC exits to L1, which can tell nothing but that from it.
    Exit(ExitCause),
}

/// Why VMFUNC exits to L1, for tracing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// L1 has not enabled the function, or L0 does not know it.
    FunctionDisabled,
    /// The index is beyond the list.
    Index,
    /// There is no memory where the list is.
    List,
    /// The entry of the list is not a good EPT pointer.
    Eptp,
}

impl ExitCause {
    /// Returns the name of the cause.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FunctionDisabled => "FunctionDisabled",
            Self::Index => "Index",
            Self::List => "List",
            Self::Eptp => "Eptp",
        }
    }
}

/// The number of EPT pointers in a list, which is a page.
pub const EPTP_LIST_ENTRIES: u32 = 512;

/// Whether L1 has enabled VM functions in vmcs12.
///
/// It cannot enable them without EPT: the checks of VM entry see to that.
fn are_functions_enabled(vmcs12: &Vmcs12) -> bool {
    const ACTIVATE_SECONDARY_CONTROLS: u32 = 1 << 31;
    const ENABLE_VM_FUNCTIONS: u32 = 1 << 13;

    vmcs12.cpu_based_vm_exec_control & ACTIVATE_SECONDARY_CONTROLS != 0
        && vmcs12.secondary_vm_exec_control & ENABLE_VM_FUNCTIONS != 0
}

/// Checks which function L2 asks for: its number is in EAX.
pub fn check_function(vmcs12: &Vmcs12, eax: u32) -> Result<Function, VmfuncRefusal> {
    if eax > 63 || !are_functions_enabled(vmcs12) {
        return Err(VmfuncRefusal::Fault(Fault::InvalidOpcode));
    }
    if vmcs12.vm_function_control >> eax & 1 == 0 {
        return Err(VmfuncRefusal::Exit(ExitCause::FunctionDisabled));
    }
    match eax {
        0 => Ok(Function::EptpSwitching),
        _ => Err(VmfuncRefusal::Exit(ExitCause::FunctionDisabled)),
    }
}

/// Finds the EPT pointer that L2 asks for: its index in the list is in ECX.
///
/// The pointer that L2 has already is not checked again.
pub fn switch_eptp<M: GuestMemory>(
    vmcs12: &Vmcs12,
    ecx: u32,
    memory: &M,
    capability: EptVpidCapability,
    physical_address_width: u32,
) -> Result<Vmfunc, VmfuncRefusal> {
    let exit = VmfuncRefusal::Exit;
    let index = u16::try_from(ecx)
        .ok()
        .filter(|_| ecx < EPTP_LIST_ENTRIES)
        .ok_or(exit(ExitCause::Index))?;

    let mut entry = [0; 8];
    Gpa::from_raw(vmcs12.eptp_list_address)
        .page()
        .checked_add(u64::from(index) << 3)
        .and_then(|gpa| memory.read(gpa, &mut entry).ok())
        .ok_or(exit(ExitCause::List))?;

    let raw = u64::from_le_bytes(entry);
    if raw == vmcs12.ept_pointer {
        return Ok(Vmfunc::Unchanged);
    }
    Eptp::new(raw, capability, physical_address_width)
        .map(|eptp| Vmfunc::Switch { eptp, index })
        .map_err(|_| exit(ExitCause::Eptp))
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_vmfunc)
)]
mod tests {
    use super::*;
    use crate::{memory::Inaccessible, vmx::field::CLEAR};

    const ALL: EptVpidCapability = EptVpidCapability::new(u64::MAX);
    const WIDTH: u32 = 40;
    const LIST: u64 = 0x5000;
    const FIRST: u64 = 0x1000_001e;

    /// A list at [`LIST`]: entry `n` points to the `n`th page after [`FIRST`], but entry 3 is 0.
    struct List;

    impl GuestMemory for List {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
            if gpa.page().into_raw() != LIST || bytes.len() != 8 {
                return Err(Inaccessible);
            }
            let index = (gpa.into_raw() & 0xfff) / 8;
            let entry = if index == 3 { 0 } else { FIRST + (index << 12) };

            bytes.copy_from_slice(&entry.to_le_bytes());
            Ok(())
        }

        fn write(&self, _: Gpa, _: &[u8]) -> Result<(), Inaccessible> {
            Err(Inaccessible)
        }
    }

    fn vmcs12() -> Vmcs12 {
        let mut vmcs12 = CLEAR;

        vmcs12.cpu_based_vm_exec_control = 1 << 31;
        vmcs12.secondary_vm_exec_control = 1 << 13;
        vmcs12.vm_function_control = 1;
        vmcs12.eptp_list_address = LIST;
        vmcs12.ept_pointer = FIRST;
        vmcs12
    }

    fn switch(vmcs12: &Vmcs12, ecx: u32) -> Result<Vmfunc, VmfuncRefusal> {
        switch_eptp(vmcs12, ecx, &List, ALL, WIDTH)
    }

    #[test]
    fn only_eptp_switching_is_known() {
        let disabled = VmfuncRefusal::Exit(ExitCause::FunctionDisabled);
        let mut vmcs12 = vmcs12();

        assert_eq!(check_function(&vmcs12, 0), Ok(Function::EptpSwitching));
        assert_eq!(check_function(&vmcs12, 1), Err(disabled));

        vmcs12.vm_function_control = !1;
        for eax in 0..64 {
            assert_eq!(check_function(&vmcs12, eax), Err(disabled));
        }
    }

    #[test]
    fn numbers_beyond_63_are_undefined() {
        let undefined = VmfuncRefusal::Fault(Fault::InvalidOpcode);
        let mut vmcs12 = vmcs12();

        vmcs12.vm_function_control = u64::MAX;
        for eax in [64, 128, u32::MAX] {
            assert_eq!(check_function(&vmcs12, eax), Err(undefined));
        }
    }

    #[test]
    fn functions_are_undefined_if_l1_has_not_enabled_them() {
        let undefined = VmfuncRefusal::Fault(Fault::InvalidOpcode);
        let mut vmcs12 = vmcs12();

        vmcs12.cpu_based_vm_exec_control = 0;
        assert_eq!(check_function(&vmcs12, 0), Err(undefined));
        vmcs12.cpu_based_vm_exec_control = 1 << 31;
        vmcs12.secondary_vm_exec_control = 0;
        assert_eq!(check_function(&vmcs12, 0), Err(undefined));
    }

    #[test]
    fn the_entry_of_the_list_becomes_the_pointer() {
        let vmcs12 = vmcs12();

        assert_eq!(switch(&vmcs12, 0), Ok(Vmfunc::Unchanged));
        for index in [1, 2, 511] {
            let raw = FIRST + (u64::from(index) << 12);
            let expected = Eptp::new(raw, ALL, WIDTH).map(|eptp| Vmfunc::Switch { eptp, index });

            assert_eq!(switch(&vmcs12, u32::from(index)).ok(), expected.ok());
        }
    }

    #[test]
    fn what_is_not_in_the_list_exits() {
        let vmcs12 = vmcs12();

        for ecx in [512, 513, 0x1_0000, 0x1_0001, u32::MAX] {
            assert_eq!(
                switch(&vmcs12, ecx),
                Err(VmfuncRefusal::Exit(ExitCause::Index))
            );
        }
        assert_eq!(
            switch(&vmcs12, 3),
            Err(VmfuncRefusal::Exit(ExitCause::Eptp))
        );
    }

    #[test]
    fn a_list_without_memory_exits() {
        let mut vmcs12 = vmcs12();

        for address in [0, LIST + 0x1000, !0xfff] {
            vmcs12.eptp_list_address = address;
            assert_eq!(
                switch(&vmcs12, 1),
                Err(VmfuncRefusal::Exit(ExitCause::List))
            );
        }
    }
}
