// SPDX-License-Identifier: GPL-2.0

//! Who gets an instruction of L2 about which L1 decides by more than one control.

use super::ExitFacts;
use crate::{
    address::Gpa,
    memory::GuestMemory,
    vmx::{
        exit::interruption::{InterruptionInformation, InterruptionType},
        ExitReason, Vmcs12,
    },
};

/// The numbers of the registers that instructions use implicitly.
const EAX: u8 = 0;
const ECX: u8 = 1;

/// Returns the lower half of a register.
const fn lower(register: u64) -> u32 {
    let [a, b, c, d, ..] = register.to_le_bytes();

    u32::from_le_bytes([a, b, c, d])
}

/// Returns the MSR that an instruction accesses.
pub(super) fn msr(reason: ExitReason, facts: &impl ExitFacts) -> u32 {
    match reason {
        ExitReason::MSR_READ_IMM | ExitReason::MSR_WRITE_IMM => lower(facts.qualification()),
        _ => lower(facts.register(ECX)),
    }
}

/// Returns whether L1 wants a VMREAD or VMWRITE of L2, given the bitmap for it (SDM, "VMREAD-Bitmap
/// and VMWRITE-Bitmap Addresses").
pub(super) fn is_field_wanted(
    vmcs12: &Vmcs12,
    memory: &impl GuestMemory,
    bitmap: u64,
    facts: &impl ExitFacts,
) -> bool {
    if !vmcs12.secondary().vmcs_shadowing() {
        return true;
    }

    // The register with the field's encoding is in bits 31:28 of the instruction information.
    let [.., information] = facts.instruction_information().to_le_bytes();
    let field = facts.register(information >> 4);
    if field >> 15 != 0 {
        return true;
    }

    let mut byte = [0];
    let read = Gpa::from_raw(bitmap)
        .checked_add(field >> 3)
        .map(|address| memory.read(address, &mut byte));
    let [byte] = byte;

    // What cannot be read exits: it is L1 that knows.
    read != Some(Ok(())) || byte & (1 << (field & 7)) != 0
}

/// Returns whether L1 wants an exit by the monitor trap flag.
///
/// It asks for one by the control, or injects one as an event (SDM, "Injection of Pending MTF VM
/// Exits").
pub(super) fn is_monitor_trap_wanted(vmcs12: &Vmcs12) -> bool {
    const PENDING: InterruptionInformation =
        InterruptionInformation::new(InterruptionType::OTHER_EVENT, 0);

    vmcs12.primary().monitor_trap_flag() || vmcs12.vm_entry_intr_info_field == PENDING.into_raw()
}

/// Returns whether L1 wants an ENCLS. Leaves above 62 share the last bit.
pub(super) fn is_encls_wanted(vmcs12: &Vmcs12, facts: &impl ExitFacts) -> bool {
    if !vmcs12.secondary().encls_exiting() {
        return false;
    }

    let leaf = lower(facts.register(EAX)).min(63);
    vmcs12.encls_exiting_bitmap >> leaf & 1 != 0
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_route_instruction)
)]
mod tests {
    use super::{
        super::{
            fake::{Facts, Memory},
            Exit, Route,
        },
        *,
    };
    use crate::vmx::controls::{Primary, Secondary};

    const ACTIVATE: u32 = Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw();

    fn route(reason: ExitReason, vmcs12: &Vmcs12, facts: Facts, memory: Memory) -> Route {
        Exit {
            reason,
            vmcs12,
            facts: &facts,
            memory: &memory,
        }
        .route()
    }

    #[test]
    fn vmread_and_vmwrite_have_a_bitmap_each() {
        let mut vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: ACTIVATE,
            secondary_vm_exec_control: Secondary::SHADOW_VMCS.into_raw(),
            vmread_bitmap: 0x1000,
            vmwrite_bitmap: 0x2000,
            ..Vmcs12::default()
        };
        let facts = |field| Facts {
            instruction_information: 0xb000_0000,
            register: (11, field),
            ..Facts::NONE
        };
        // The field 0x681e (RIP) has bit 6 of byte 0xd03.
        let memory = |bitmap: u64, byte| Memory {
            address: bitmap + 0xd03,
            byte,
        };

        for (reason, bitmap, other) in [
            (ExitReason::VMREAD, 0x1000, 0x2000),
            (ExitReason::VMWRITE, 0x2000, 0x1000),
        ] {
            let rip = facts(0x681e);

            assert_eq!(route(reason, &vmcs12, rip, memory(bitmap, 0x40)), Route::L1);
            assert_eq!(route(reason, &vmcs12, rip, memory(bitmap, 0xbf)), Route::L0);
            assert_eq!(route(reason, &vmcs12, rip, memory(other, 0x40)), Route::L0);
            assert_eq!(
                route(reason, &vmcs12, facts(0x8000), Memory::EMPTY),
                Route::L1
            );
            assert_eq!(
                route(reason, &vmcs12, facts(1 << 63), Memory::EMPTY),
                Route::L1
            );
        }

        vmcs12.vmread_bitmap = 0x10_0000;
        assert_eq!(
            route(ExitReason::VMREAD, &vmcs12, facts(0), Memory::EMPTY),
            Route::L1
        );
        vmcs12.vmread_bitmap = !0xfff;
        assert_eq!(
            route(ExitReason::VMREAD, &vmcs12, facts(0x7fff), Memory::EMPTY),
            Route::L1
        );

        vmcs12.secondary_vm_exec_control = 0;
        assert_eq!(
            route(ExitReason::VMWRITE, &vmcs12, facts(0), Memory::EMPTY),
            Route::L1
        );
    }

    #[test]
    fn a_monitor_trap_can_be_injected() {
        let mut vmcs12 = Vmcs12::default();
        let mut route = |information| {
            vmcs12.vm_entry_intr_info_field = information;
            route(
                ExitReason::MONITOR_TRAP_FLAG,
                &vmcs12,
                Facts::NONE,
                Memory::EMPTY,
            )
        };

        assert_eq!(route(0x8000_0700), Route::L1);
        assert_eq!(route(0x0000_0700), Route::L0);
        assert_eq!(route(0x8000_0701), Route::L0);
    }

    #[test]
    fn encls_goes_by_its_leaf() {
        for (leaf, bit) in [(0, 0), (5, 5), (62, 62), (63, 63), (64, 63), (u32::MAX, 63)] {
            let mut vmcs12 = Vmcs12 {
                cpu_based_vm_exec_control: ACTIVATE,
                secondary_vm_exec_control: Secondary::ENCLS_EXITING.into_raw(),
                encls_exiting_bitmap: 1 << bit,
                ..Vmcs12::default()
            };
            let facts = Facts {
                register: (0, 0xabcd_0000_0000 | u64::from(leaf)),
                ..Facts::NONE
            };
            let route = |vmcs12: &Vmcs12| route(ExitReason::ENCLS, vmcs12, facts, Memory::EMPTY);

            assert_eq!(route(&vmcs12), Route::L1);
            vmcs12.encls_exiting_bitmap = !(1 << bit);
            assert_eq!(route(&vmcs12), Route::L0);
            vmcs12.encls_exiting_bitmap = u64::MAX;
            vmcs12.secondary_vm_exec_control = 0;
            assert_eq!(route(&vmcs12), Route::L0);
        }
    }
}
