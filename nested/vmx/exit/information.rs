// SPDX-License-Identifier: GPL-2.0

//! The VM-exit information fields of vmcs12.

use super::interruption::{Event, InterruptionInformation, InterruptionType};
use crate::vmx::{bits::vector, ExitReason, Vmcs12};

/// The exit-reason field: a basic exit reason, and flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ReasonField(u32);

impl ReasonField {
    const ENCLAVE_MODE: u32 = 1 << 27;
    const FAILED_ENTRY: u32 = 1 << 31;

    /// A reason without flags.
    pub const fn new(reason: ExitReason) -> Self {
        Self(reason.into_raw() as u32)
    }

    /// Wraps the value of the field.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Returns the value of the field.
    pub const fn into_raw(self) -> u32 {
        self.0
    }

    /// Adds that the exit was incident to enclave mode.
    #[must_use]
    pub const fn in_enclave_mode(self) -> Self {
        Self(self.0 | Self::ENCLAVE_MODE)
    }

    /// Adds that the VM entry failed.
    #[must_use]
    pub const fn of_failed_entry(self) -> Self {
        Self(self.0 | Self::FAILED_ENTRY)
    }

    /// Returns whether the VM entry failed.
    pub const fn is_failed_entry(self) -> bool {
        self.0 & Self::FAILED_ENTRY != 0
    }

    /// Returns the basic exit reason.
    pub const fn basic(self) -> ExitReason {
        ExitReason::from_field(self.0)
    }
}

/// An exit as L1 is told of it.
#[derive(Clone, Copy, Debug)]
pub struct ExitInformation {
    /// The exit reason.
    pub reason: ReasonField,
    /// The exit qualification.
    pub qualification: u64,
    /// The event that caused the exit, if one did.
    pub interruption: InterruptionInformation,
    /// The error code of that event. It counts only if the event has one.
    pub error_code: u32,
    /// The length of the instruction that caused the exit, else 0.
    pub instruction_length: u32,
    /// The VM-exit instruction information.
    pub instruction_information: u32,
    /// The guest-physical address, of the exits that EPT causes.
    pub guest_physical_address: Option<u64>,
}

/// Whether the exit goes on with storing MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum MsrStore {
    /// The VM-exit MSR-store area is to be filled.
    Due,
    /// It is left as it is: the entry has failed.
    Omitted,
}

impl ExitInformation {
    /// An exit with a reason alone.
    pub const fn new(reason: ReasonField) -> Self {
        Self {
            reason,
            qualification: 0,
            interruption: InterruptionInformation::NONE,
            error_code: 0,
            instruction_length: 0,
            instruction_information: 0,
            guest_physical_address: None,
        }
    }

    /// Returns whether the exit can have interrupted the delivery of an event.
    ///
    /// Double and triple faults are the outcome of deliveries, and interrupt none (SDM,
    /// "Information for VM Exits That Occur During Event Delivery").
    const fn can_interrupt_delivery(&self) -> bool {
        match self.reason.basic() {
            ExitReason::TRIPLE_FAULT => false,
            ExitReason::EXCEPTION_NMI => !self.interruption.is_exception(vector::DF),
            _ => true,
        }
    }

    /// Returns whether the exit has a guest-linear address (SDM, "Basic VM-Exit Information").
    ///
    /// After other exits the field is undefined; that of vmcs12 then stays as it is, so that L1 sees
    /// nothing of exits that L0 has handled.
    pub const fn has_linear_address(&self) -> bool {
        const LMSW_FROM_MEMORY: u64 = 3 << 4 | 1 << 6;
        const STRING_IO: u64 = 1 << 4;
        const LINEAR_VALID: u64 = 1 << 7;

        match self.reason.basic() {
            ExitReason::CR_ACCESS => self.qualification & 0x70 == LMSW_FROM_MEMORY,
            ExitReason::IO_INSTRUCTION => self.qualification & STRING_IO != 0,
            ExitReason::EPT_VIOLATION => self.qualification & LINEAR_VALID != 0,
            _ => false,
        }
    }

    /// Writes the VM-exit information fields of vmcs12, but the guest-linear address.
    ///
    /// `undelivered` is the event that L0 was about to deliver to L2, for itself or for L1.
    /// An entry that failed writes the reason and the qualification only (SDM, "VM-Entry Failures
    /// During or After Loading Guest State").
    pub fn save(&self, vmcs12: &mut Vmcs12, undelivered: Option<Event>) -> MsrStore {
        vmcs12.vm_exit_reason = self.reason.into_raw();
        vmcs12.exit_qualification = self.qualification;
        if self.reason.is_failed_entry() {
            return MsrStore::Omitted;
        }

        vmcs12.launch_state = 1;

        // The processor takes the event away that an entry has injected.
        vmcs12.vm_entry_intr_info_field =
            InterruptionInformation::from_raw(vmcs12.vm_entry_intr_info_field)
                .invalidated()
                .into_raw();

        vmcs12.vm_exit_intr_info = self.interruption.into_raw();
        if self.interruption.delivers_error_code() {
            vmcs12.vm_exit_intr_error_code = self.error_code;
        }
        vmcs12.vm_exit_instruction_len = self.instruction_length;
        vmcs12.vmx_instruction_info = self.instruction_information;
        if let Some(address) = self.guest_physical_address {
            vmcs12.guest_physical_address = address;
        }

        match undelivered {
            Some(event) if self.can_interrupt_delivery() => save_idt_vectoring(vmcs12, event),
            _ => vmcs12.idt_vectoring_info_field = 0,
        }
        MsrStore::Due
    }
}

/// Writes the IDT-vectoring fields.
fn save_idt_vectoring(vmcs12: &mut Vmcs12, event: Event) {
    vmcs12.idt_vectoring_info_field = event.information().into_raw();
    if let Some(error_code) = event.error_code() {
        vmcs12.idt_vectoring_error_code = error_code;
    }
    // L1 needs the length to inject the event again.
    if let Some(length) = event.instruction_length() {
        vmcs12.vm_exit_instruction_len = length;
    }
}

/// Returns the event that L1 injects with the next entry, if it does.
///
/// A pending MTF exit is injected too, see [`is_pending_monitor_trap()`].
pub const fn injected_event(vmcs12: &Vmcs12) -> Option<Event> {
    Event::decode(
        InterruptionInformation::from_raw(vmcs12.vm_entry_intr_info_field),
        vmcs12.vm_entry_exception_error_code,
        vmcs12.vm_entry_instruction_len,
    )
}

/// Returns whether L1 injects a pending MTF exit with the next entry.
pub const fn is_pending_monitor_trap(vmcs12: &Vmcs12) -> bool {
    let information = InterruptionInformation::from_raw(vmcs12.vm_entry_intr_info_field);

    information.is_kind(InterruptionType::OTHER_EVENT) && information.vector() == 0
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_exit_info))]
mod tests {
    use super::*;

    const PAGE_FAULT: Event = Event::HardwareException {
        vector: 14,
        error_code: Some(6),
    };

    /// vmcs12 with marks in the fields that not each exit writes.
    fn marked() -> Vmcs12 {
        Vmcs12 {
            vm_entry_intr_info_field: 0x8000_0080,
            vm_exit_intr_info: 0x55,
            vm_exit_intr_error_code: 0x66,
            vm_exit_instruction_len: 0x77,
            vmx_instruction_info: 0x88,
            idt_vectoring_info_field: 0x99,
            idt_vectoring_error_code: 0xaa,
            guest_physical_address: 0xbb,
            ..Vmcs12::default()
        }
    }

    #[test]
    fn a_failed_entry_writes_reason_and_qualification_only() {
        let mut vmcs12 = marked();
        let exit = ExitInformation {
            qualification: 4,
            ..ExitInformation::new(ReasonField::new(ExitReason::INVALID_STATE).of_failed_entry())
        };

        assert_eq!(exit.save(&mut vmcs12, Some(PAGE_FAULT)), MsrStore::Omitted);
        assert_eq!(
            vmcs12,
            Vmcs12 {
                vm_exit_reason: 0x8000_0021,
                exit_qualification: 4,
                ..marked()
            }
        );
    }

    #[test]
    fn an_exit_writes_what_it_has() {
        let mut vmcs12 = marked();
        let exit = ExitInformation {
            qualification: 0x1234,
            instruction_length: 2,
            instruction_information: 3,
            ..ExitInformation::new(ReasonField::new(ExitReason::CPUID).in_enclave_mode())
        };

        assert_eq!(exit.save(&mut vmcs12, None), MsrStore::Due);
        assert_eq!(
            vmcs12,
            Vmcs12 {
                launch_state: 1,
                vm_exit_reason: 0x0800_000a,
                exit_qualification: 0x1234,
                vm_entry_intr_info_field: 0x80,
                vm_exit_intr_info: 0,
                vm_exit_instruction_len: 2,
                vmx_instruction_info: 3,
                idt_vectoring_info_field: 0,
                ..marked()
            }
        );
    }

    #[test]
    fn an_error_code_is_written_if_the_exception_has_one() {
        for (interruption, expected) in [(0x8000_0b0e, 6), (0x8000_0306, 0x66), (0xb0e, 0x66)] {
            let mut vmcs12 = marked();
            let exit = ExitInformation {
                interruption: InterruptionInformation::from_raw(interruption),
                error_code: 6,
                ..ExitInformation::new(ReasonField::new(ExitReason::EXCEPTION_NMI))
            };

            assert_eq!(exit.save(&mut vmcs12, None), MsrStore::Due);
            assert_eq!(vmcs12.vm_exit_intr_info, interruption);
            assert_eq!(vmcs12.vm_exit_intr_error_code, expected);
        }
    }

    #[test]
    fn an_ept_violation_has_an_address() {
        let mut vmcs12 = marked();
        let exit = ExitInformation {
            guest_physical_address: Some(0xfee0_0000),
            ..ExitInformation::new(ReasonField::new(ExitReason::EPT_VIOLATION))
        };

        assert_eq!(exit.save(&mut vmcs12, None), MsrStore::Due);
        assert_eq!(vmcs12.guest_physical_address, 0xfee0_0000);
    }

    #[test]
    fn some_exits_have_a_linear_address() {
        for (reason, qualification, expected) in [
            (ExitReason::EPT_VIOLATION, 0x81, true),
            (ExitReason::EPT_VIOLATION, 0x101, false),
            (ExitReason::EPT_MISCONFIG, 0x81, false),
            (ExitReason::IO_INSTRUCTION, 0x0060_0010, true),
            (ExitReason::IO_INSTRUCTION, 0x0060_0040, false),
            // LMSW from memory and from a register, CLTS, and a move to CR0.
            (ExitReason::CR_ACCESS, 0x1_0070, true),
            (ExitReason::CR_ACCESS, 0x1_0030, false),
            (ExitReason::CR_ACCESS, 0x20, false),
            (ExitReason::CR_ACCESS, 0, false),
            (ExitReason::VMCALL, u64::MAX, false),
        ] {
            let exit = ExitInformation {
                qualification,
                ..ExitInformation::new(ReasonField::new(reason))
            };

            assert_eq!(
                exit.has_linear_address(),
                expected,
                "{reason:?} {qualification:#x}"
            );
        }
    }

    #[test]
    fn an_event_that_was_not_delivered_is_left_to_l1() {
        for (event, information, error_code, length) in [
            (PAGE_FAULT, 0x8000_0b0e, 6, 5),
            (Event::exception(6, None, 0), 0x8000_0306, 0xaa, 5),
            (Event::exception(3, None, 1), 0x8000_0603, 0xaa, 1),
            (Event::Nmi, 0x8000_0202, 0xaa, 5),
            (
                Event::ExternalInterrupt { vector: 0x20 },
                0x8000_0020,
                0xaa,
                5,
            ),
            (
                Event::SoftwareInterrupt {
                    vector: 0x80,
                    instruction_length: 2,
                },
                0x8000_0480,
                0xaa,
                2,
            ),
        ] {
            let mut vmcs12 = marked();
            let exit = ExitInformation {
                instruction_length: 5,
                ..ExitInformation::new(ReasonField::new(ExitReason::EPT_VIOLATION))
            };

            assert_eq!(exit.save(&mut vmcs12, Some(event)), MsrStore::Due);
            assert_eq!(vmcs12.idt_vectoring_info_field, information);
            assert_eq!(vmcs12.idt_vectoring_error_code, error_code);
            assert_eq!(vmcs12.vm_exit_instruction_len, length);
        }
    }

    #[test]
    fn double_and_triple_faults_interrupt_no_delivery() {
        for (reason, interruption, expected) in [
            (ExitReason::TRIPLE_FAULT, 0, 0),
            (ExitReason::EXCEPTION_NMI, 0x8000_0b08, 0),
            (ExitReason::EXCEPTION_NMI, 0x8000_0b0d, 0x8000_0b0e),
            (ExitReason::TASK_SWITCH, 0, 0x8000_0b0e),
        ] {
            let mut vmcs12 = marked();
            let exit = ExitInformation {
                interruption: InterruptionInformation::from_raw(interruption),
                ..ExitInformation::new(ReasonField::new(reason))
            };

            assert_eq!(exit.save(&mut vmcs12, Some(PAGE_FAULT)), MsrStore::Due);
            assert_eq!(vmcs12.idt_vectoring_info_field, expected);
        }
    }

    #[test]
    fn what_l1_injects_is_read_out_of_three_fields() {
        let mut vmcs12 = Vmcs12 {
            vm_entry_intr_info_field: 0x8000_0b0e,
            vm_entry_exception_error_code: 6,
            vm_entry_instruction_len: 2,
            ..Vmcs12::default()
        };
        assert_eq!(injected_event(&vmcs12), Some(PAGE_FAULT));
        assert!(!is_pending_monitor_trap(&vmcs12));

        vmcs12.vm_entry_intr_info_field = 0x8000_0700;
        assert_eq!(injected_event(&vmcs12), None);
        assert!(is_pending_monitor_trap(&vmcs12));

        vmcs12.vm_entry_intr_info_field = 0;
        assert_eq!(injected_event(&vmcs12), None);
        assert!(!is_pending_monitor_trap(&vmcs12));
    }
}
