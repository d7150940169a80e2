// SPDX-License-Identifier: GPL-2.0

//! Checks on the injection of an event by VM entry.

use crate::vmx::{
    capability::msrs::{basic, misc},
    check::{Processor, CR0_PE},
    Vmcs12,
};

/// The number of the NMI.
const NMI_VECTOR: u32 = 2;
/// Exceptions have the vectors up to this one.
const LAST_EXCEPTION: u32 = 31;
/// An instruction has so many bytes at most.
const MAX_INSTRUCTION_LENGTH: u32 = 15;
/// The exceptions that deliver an error code: #DF, #TS, #NP, #SS, #GP, #PF and #AC.
const WITH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;

/// The event that VM entry injects: the VM-entry interruption-information field (SDM, "VM-Entry
/// Controls for Event Injection").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event(u32);

impl Event {
    /// External interrupt.
    pub const EXTERNAL_INTERRUPT: u32 = 0;
    /// A type that does not exist.
    pub const RESERVED: u32 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u32 = 2;
    /// Hardware exception.
    pub const HARDWARE_EXCEPTION: u32 = 3;
    /// Software interrupt, INT n.
    pub const SOFTWARE_INTERRUPT: u32 = 4;
    /// Privileged software exception, INT1.
    pub const PRIVILEGED_SOFTWARE_EXCEPTION: u32 = 5;
    /// Software exception, INT3 or INTO.
    pub const SOFTWARE_EXCEPTION: u32 = 6;
    /// Other event, which is an exit by the monitor trap flag.
    pub const OTHER: u32 = 7;

    /// Takes the event of a VMCS.
    #[inline]
    pub const fn of(vmcs12: &Vmcs12) -> Self {
        Self(vmcs12.vm_entry_intr_info_field)
    }

    /// Returns whether there is one.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 & 1 << 31 != 0
    }

    /// Returns whether there is one of this type.
    #[inline]
    pub const fn is(self, kind: u32) -> bool {
        self.is_valid() && self.kind() == kind
    }

    /// Returns the type.
    #[inline]
    pub const fn kind(self) -> u32 {
        self.0 >> 8 & 7
    }

    /// Returns the vector.
    #[inline]
    pub const fn vector(self) -> u32 {
        self.0 & 0xff
    }

    /// Returns whether an error code is delivered.
    #[inline]
    pub const fn delivers_error_code(self) -> bool {
        self.0 & 1 << 11 != 0
    }

    /// Returns whether reserved bits are set.
    #[inline]
    const fn has_reserved(self) -> bool {
        self.0 & 0x7fff_f000 != 0
    }

    /// Returns whether the event is caused by an instruction, the length of which is thus needed.
    #[inline]
    const fn is_software(self) -> bool {
        matches!(
            self.kind(),
            Self::SOFTWARE_INTERRUPT
                | Self::PRIVILEGED_SOFTWARE_EXCEPTION
                | Self::SOFTWARE_EXCEPTION
        )
    }

    /// Returns whether the processor would deliver an error code with the vector.
    #[inline]
    const fn has_error_code(self) -> bool {
        match WITH_ERROR_CODE.checked_shr(self.vector()) {
            Some(bits) => bits & 1 != 0,
            None => false,
        }
    }
}

/// Returns whether an exception is delivered as in protected mode, with an error code.
#[inline]
const fn in_protected_mode(vmcs12: &Vmcs12) -> bool {
    !vmcs12.secondary().unrestricted_guest() || vmcs12.guest_cr0 & CR0_PE != 0
}

/// Makes the checks on event injection, if an event is injected.
#[inline]
pub fn check_event_injection(
    vmcs12: &Vmcs12,
    processor: &Processor<'_>,
) -> Result<(), EventInjectionCheck> {
    let event = Event::of(vmcs12);

    if event.is_valid() {
        check_event(vmcs12, event, processor)
    } else {
        Ok(())
    }
}

consistency_checks! {
    /// Makes the checks on the event that is injected (SDM, "VM-Entry Control Fields").
    fn check_event(
        vmcs12: &Vmcs12,
        event: Event,
        processor: &Processor<'_>,
    ) -> Result<(), EventInjectionCheck> {
        /// The type exists.
        TypeReserved: event.kind() == Event::RESERVED,
        /// The monitor trap flag exists.
        OtherEvent: event.kind() == Event::OTHER && !processor.msrs.primary().monitor_trap_flag(),
        /// An NMI has its vector.
        NmiVector: event.kind() == Event::NMI && event.vector() != NMI_VECTOR,
        /// An exception has the vector of one.
        ExceptionVector: event.kind() == Event::HARDWARE_EXCEPTION
            && event.vector() > LAST_EXCEPTION,
        /// An exit by the monitor trap flag has no vector.
        OtherEventVector: event.kind() == Event::OTHER && event.vector() != 0,
        /// Only exceptions deliver an error code, and not in real mode.
        ErrorCodeUnexpected: event.delivers_error_code()
            && (event.kind() != Event::HARDWARE_EXCEPTION || !in_protected_mode(vmcs12)),
        /// An exception delivers an error code if its vector does, unless that is not checked.
        ErrorCodeOfVector: event.kind() == Event::HARDWARE_EXCEPTION
            && in_protected_mode(vmcs12)
            && processor.msrs.basic & basic::NO_HW_ERROR_CODE_CC == 0
            && event.delivers_error_code() != event.has_error_code(),
        /// Reserved bits are 0.
        Reserved: event.has_reserved(),
        /// An error code has 16 bits.
        ErrorCode: event.delivers_error_code()
            && vmcs12.vm_entry_exception_error_code & 0xffff_0000 != 0,
        /// The instruction that causes the event has a length.
        InstructionLength: event.is_software()
            && vmcs12.vm_entry_instruction_len > MAX_INSTRUCTION_LENGTH,
        /// The length is not 0, unless that is supported.
        InstructionLengthZero: event.is_software()
            && vmcs12.vm_entry_instruction_len == 0
            && processor.msrs.misc_low & misc::ZERO_LEN_INS == 0,
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_event))]
mod tests {
    use super::*;
    use crate::vmx::{
        check::{valid::Case, ControlCheck, Failure, CR0_PG},
        controls::Primary,
    };

    const ERROR_CODE: u32 = 1 << 11;

    /// Makes the smallest change that violates `check`.
    fn violate(check: EventInjectionCheck, case: &mut Case) {
        use EventInjectionCheck as Check;

        match check {
            Check::TypeReserved => case.inject(Event::RESERVED, 0),
            Check::OtherEvent => {
                case.inject(Event::OTHER, 0);
                case.msrs.procbased_ctls_high &= !Primary::MONITOR_TRAP_FLAG.into_raw();
            }
            Check::NmiVector => case.inject(Event::NMI, 3),
            Check::ExceptionVector => case.inject(Event::HARDWARE_EXCEPTION, 32),
            Check::OtherEventVector => case.inject(Event::OTHER, 1),
            Check::ErrorCodeUnexpected => {
                case.inject(Event::EXTERNAL_INTERRUPT, 0x20);
                case.vmcs12.vm_entry_intr_info_field |= ERROR_CODE;
            }
            Check::ErrorCodeOfVector => {
                case.inject(Event::HARDWARE_EXCEPTION, 13);
                case.msrs.basic &= !basic::NO_HW_ERROR_CODE_CC;
            }
            Check::Reserved => {
                case.inject(Event::EXTERNAL_INTERRUPT, 0x20);
                case.vmcs12.vm_entry_intr_info_field |= 1 << 12;
            }
            Check::ErrorCode => {
                case.inject(Event::HARDWARE_EXCEPTION, 13);
                case.vmcs12.vm_entry_intr_info_field |= ERROR_CODE;
                case.vmcs12.vm_entry_exception_error_code = 1 << 16;
            }
            Check::InstructionLength => {
                case.inject(Event::SOFTWARE_INTERRUPT, 0x80);
                case.vmcs12.vm_entry_instruction_len = 16;
            }
            Check::InstructionLengthZero => case.inject(Event::SOFTWARE_EXCEPTION, 3),
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_is_named() {
        for &check in EventInjectionCheck::ALL {
            let mut case = Case::new();

            violate(check, &mut case);
            assert_eq!(
                case.failure(),
                Some(Failure::Controls(ControlCheck::Event(check)))
            );
        }
    }

    #[test]
    fn an_invalid_event_is_no_event() {
        let mut case = Case::new();

        case.vmcs12.vm_entry_intr_info_field = !(1 << 31);
        case.vmcs12.vm_entry_instruction_len = u32::MAX;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn events_of_each_type_are_valid() {
        for (kind, vector) in [
            (Event::EXTERNAL_INTERRUPT, 0x20),
            (Event::NMI, 2),
            (Event::HARDWARE_EXCEPTION, 6),
            (Event::SOFTWARE_INTERRUPT, 0x80),
            (Event::PRIVILEGED_SOFTWARE_EXCEPTION, 1),
            (Event::SOFTWARE_EXCEPTION, 3),
            (Event::OTHER, 0),
        ] {
            let mut case = Case::new();

            case.inject(kind, vector);
            case.vmcs12.vm_entry_instruction_len = 1;
            assert_eq!(case.failure(), None);
        }
    }

    #[test]
    fn software_events_of_length_0_need_support() {
        let mut case = Case::new();

        case.inject(Event::SOFTWARE_INTERRUPT, 0x80);
        case.msrs.misc_low |= misc::ZERO_LEN_INS;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn exceptions_with_an_error_code_are_those_of_the_manual() {
        for vector in 0..=u8::MAX {
            assert_eq!(
                Event(u32::from(vector)).has_error_code(),
                matches!(vector, 8 | 10..=14 | 17)
            );
        }
    }

    #[test]
    fn real_mode_has_no_error_codes() {
        let mut case = Case::new();

        case.make_l2_32bit();
        case.msrs.basic &= !basic::NO_HW_ERROR_CODE_CC;
        case.vmcs12.guest_cr0 &= !(CR0_PE | CR0_PG);
        case.inject(Event::HARDWARE_EXCEPTION, 13);
        assert_eq!(case.failure(), None);

        case.vmcs12.vm_entry_intr_info_field |= ERROR_CODE;
        assert_eq!(
            case.failure(),
            Some(Failure::Controls(ControlCheck::Event(
                EventInjectionCheck::ErrorCodeUnexpected
            )))
        );
    }
}
