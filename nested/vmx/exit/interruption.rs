// SPDX-License-Identifier: GPL-2.0

//! The words that describe events: those that a VM entry injects, those that cause an exit, and
//! those that an exit interrupts.

use crate::vmx::bits::vector;

open_enum! {
    /// The kind of an event (SDM, "Format of the VM-Entry Interruption-Information Field").
    pub enum InterruptionType: u8 {
        /// `INTR_TYPE_EXT_INTR`.
        EXTERNAL_INTERRUPT = 0,
        /// `INTR_TYPE_NMI_INTR`.
        NMI = 2,
        /// `INTR_TYPE_HARD_EXCEPTION`.
        HARDWARE_EXCEPTION = 3,
        /// `INTR_TYPE_SOFT_INTR`: INT n.
        SOFTWARE_INTERRUPT = 4,
        /// `INTR_TYPE_PRIV_SW_EXCEPTION`: INT1.
        PRIVILEGED_SOFTWARE_EXCEPTION = 5,
        /// `INTR_TYPE_SOFT_EXCEPTION`: INT3 and INTO.
        SOFTWARE_EXCEPTION = 6,
        /// `INTR_TYPE_OTHER_EVENT`: a pending monitor-trap-flag exit, with vector 0.
        OTHER_EVENT = 7,
    }
}

impl InterruptionType {
    /// Returns whether an instruction causes such events, the length of which goes with them.
    pub const fn has_instruction_length(self) -> bool {
        matches!(
            self,
            Self::SOFTWARE_INTERRUPT
                | Self::PRIVILEGED_SOFTWARE_EXCEPTION
                | Self::SOFTWARE_EXCEPTION
        )
    }
}

/// Returns whether a hardware exception with this vector pushes an error code, outside of real
/// mode.
pub const fn has_error_code(vector: u8) -> bool {
    matches!(
        vector,
        vector::DF
            | vector::TS
            | vector::NP
            | vector::SS
            | vector::GP
            | vector::PF
            | vector::AC
            | vector::CP
    )
}

/// Interruption information, as any of the VMCS fields of that name has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct InterruptionInformation(u32);

impl InterruptionInformation {
    /// Nothing: there is no event.
    pub const NONE: Self = Self(0);

    const DELIVER_ERROR_CODE: u32 = 1 << 11;
    const VALID: u32 = 1 << 31;

    /// Wraps the value of a field.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Returns the value of the field.
    pub const fn into_raw(self) -> u32 {
        self.0
    }

    /// Describes an event without an error code.
    pub const fn new(kind: InterruptionType, vector: u8) -> Self {
        Self(Self::VALID | ((kind.into_raw() as u32 & 7) << 8) | vector as u32)
    }

    /// Adds that there is an error code.
    #[must_use]
    pub const fn with_error_code(self) -> Self {
        Self(self.0 | Self::DELIVER_ERROR_CODE)
    }

    /// Returns the same event marked as not there, as an exit leaves the VM-entry field.
    #[must_use]
    pub const fn invalidated(self) -> Self {
        Self(self.0 & !Self::VALID)
    }

    /// Returns whether there is an event.
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Returns the vector, whatever it means for the kind of event.
    pub const fn vector(self) -> u8 {
        let [vector, ..] = self.0.to_le_bytes();

        vector
    }

    /// Returns the kind of event.
    pub const fn kind(self) -> InterruptionType {
        let [_, kind, ..] = self.0.to_le_bytes();

        InterruptionType::from_raw(kind & 7)
    }

    /// Returns whether the event has an error code.
    pub const fn delivers_error_code(self) -> bool {
        self.is_valid() && self.0 & Self::DELIVER_ERROR_CODE != 0
    }

    /// Returns whether this is an event of one kind.
    pub const fn is_kind(self, kind: InterruptionType) -> bool {
        self.is_valid() && self.kind().into_raw() == kind.into_raw()
    }

    /// Returns whether this is the hardware exception with a vector.
    pub const fn is_exception(self, vector: u8) -> bool {
        self.is_kind(InterruptionType::HARDWARE_EXCEPTION) && self.vector() == vector
    }
}

/// An event that is delivered through the IDT, or that an exit found half delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An exception that the processor raised.
    HardwareException {
        /// Its vector.
        vector: u8,
        /// Its error code, if it has one.
        error_code: Option<u32>,
    },
    /// INT3 or INTO.
    SoftwareException {
        /// Its vector.
        vector: u8,
        /// The length of the instruction.
        instruction_length: u32,
    },
    /// INT1.
    PrivilegedSoftwareException {
        /// The length of the instruction.
        instruction_length: u32,
    },
    /// A non-maskable interrupt.
    Nmi,
    /// An interrupt from outside.
    ExternalInterrupt {
        /// Its vector.
        vector: u8,
    },
    /// INT n.
    SoftwareInterrupt {
        /// Its vector.
        vector: u8,
        /// The length of the instruction.
        instruction_length: u32,
    },
}

impl Event {
    /// Returns an exception by its vector: #BP and #OF are software exceptions.
    pub const fn exception(vector: u8, error_code: Option<u32>, instruction_length: u32) -> Self {
        match vector {
            vector::BP | vector::OF => Self::SoftwareException {
                vector,
                instruction_length,
            },
            _ => Self::HardwareException { vector, error_code },
        }
    }

    /// Returns the information that describes the event.
    pub const fn information(self) -> InterruptionInformation {
        use InterruptionInformation as Information;
        use InterruptionType as Type;

        match self {
            Self::HardwareException {
                vector,
                error_code: None,
            } => Information::new(Type::HARDWARE_EXCEPTION, vector),
            Self::HardwareException {
                vector,
                error_code: Some(_),
            } => Information::new(Type::HARDWARE_EXCEPTION, vector).with_error_code(),
            Self::SoftwareException { vector, .. } => {
                Information::new(Type::SOFTWARE_EXCEPTION, vector)
            }
            Self::PrivilegedSoftwareException { .. } => {
                Information::new(Type::PRIVILEGED_SOFTWARE_EXCEPTION, vector::DB)
            }
            Self::Nmi => Information::new(Type::NMI, vector::NMI),
            Self::ExternalInterrupt { vector } => {
                Information::new(Type::EXTERNAL_INTERRUPT, vector)
            }
            Self::SoftwareInterrupt { vector, .. } => {
                Information::new(Type::SOFTWARE_INTERRUPT, vector)
            }
        }
    }

    /// Returns the error code, of events that have one.
    pub const fn error_code(self) -> Option<u32> {
        match self {
            Self::HardwareException { error_code, .. } => error_code,
            _ => None,
        }
    }

    /// Returns the length of the instruction, of events that one causes.
    pub const fn instruction_length(self) -> Option<u32> {
        match self {
            Self::SoftwareException {
                instruction_length, ..
            }
            | Self::PrivilegedSoftwareException { instruction_length }
            | Self::SoftwareInterrupt {
                instruction_length, ..
            } => Some(instruction_length),
            _ => None,
        }
    }

    /// Reads the event out of the three fields that describe it.
    ///
    /// There is none if the information is not valid, or is no event that goes through the IDT.
    pub const fn decode(
        information: InterruptionInformation,
        error_code: u32,
        instruction_length: u32,
    ) -> Option<Self> {
        let vector = information.vector();

        if !information.is_valid() {
            return None;
        }
        match information.kind() {
            InterruptionType::HARDWARE_EXCEPTION => Some(Self::HardwareException {
                vector,
                error_code: if information.delivers_error_code() {
                    Some(error_code)
                } else {
                    None
                },
            }),
            InterruptionType::SOFTWARE_EXCEPTION => Some(Self::SoftwareException {
                vector,
                instruction_length,
            }),
            InterruptionType::PRIVILEGED_SOFTWARE_EXCEPTION => {
                Some(Self::PrivilegedSoftwareException { instruction_length })
            }
            InterruptionType::NMI => Some(Self::Nmi),
            InterruptionType::EXTERNAL_INTERRUPT => Some(Self::ExternalInterrupt { vector }),
            InterruptionType::SOFTWARE_INTERRUPT => Some(Self::SoftwareInterrupt {
                vector,
                instruction_length,
            }),
            _ => None,
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_interruption))]
mod tests {
    use super::*;

    const EVENTS: &[(Event, u32)] = &[
        (
            Event::HardwareException {
                vector: 14,
                error_code: Some(2),
            },
            0x8000_0b0e,
        ),
        (
            Event::HardwareException {
                vector: 6,
                error_code: None,
            },
            0x8000_0306,
        ),
        (
            Event::SoftwareException {
                vector: 3,
                instruction_length: 1,
            },
            0x8000_0603,
        ),
        (
            Event::PrivilegedSoftwareException {
                instruction_length: 1,
            },
            0x8000_0501,
        ),
        (Event::Nmi, 0x8000_0202),
        (Event::ExternalInterrupt { vector: 0xec }, 0x8000_00ec),
        (
            Event::SoftwareInterrupt {
                vector: 0x80,
                instruction_length: 2,
            },
            0x8000_0480,
        ),
    ];

    #[test]
    fn events_are_encoded_as_the_manual_says_and_back() {
        for &(event, raw) in EVENTS {
            let information = event.information();

            assert_eq!(information.into_raw(), raw);
            assert_eq!(
                Event::decode(
                    information,
                    event.error_code().unwrap_or(99),
                    event.instruction_length().unwrap_or(99)
                ),
                Some(event)
            );
            assert_eq!(Event::decode(information.invalidated(), 0, 0), None);
            assert_eq!(
                information.kind().has_instruction_length(),
                event.instruction_length().is_some()
            );
        }
    }

    #[test]
    fn what_is_not_delivered_through_the_idt_is_no_event() {
        for kind in [1, 7] {
            let information = InterruptionInformation::new(InterruptionType::from_raw(kind), 0);

            assert!(information.is_valid());
            assert_eq!(Event::decode(information, 0, 0), None);
        }
    }

    #[test]
    fn breakpoint_and_overflow_are_software_exceptions() {
        for vector in 0..32 {
            let event = Event::exception(vector, None, 1);

            assert_eq!(
                event.instruction_length().is_some(),
                vector == 3 || vector == 4
            );
            assert_eq!(event.information().vector(), vector);
        }
    }

    #[test]
    fn eight_exceptions_have_an_error_code() {
        let with_error_code = [8, 10, 11, 12, 13, 14, 17, 21];

        for vector in 0..=u8::MAX {
            assert_eq!(has_error_code(vector), with_error_code.contains(&vector));
        }
    }

    #[test]
    fn an_exception_is_told_from_an_interrupt_with_its_vector() {
        let exception = InterruptionInformation::new(InterruptionType::HARDWARE_EXCEPTION, 14);
        let interrupt = InterruptionInformation::new(InterruptionType::SOFTWARE_INTERRUPT, 14);

        assert!(exception.is_exception(14));
        assert!(!exception.is_exception(13));
        assert!(!interrupt.is_exception(14));
        assert!(!exception.invalidated().is_exception(14));
        assert!(!InterruptionInformation::NONE.is_valid());
        assert!(!InterruptionInformation::from_raw(0x800).delivers_error_code());
    }
}
