// SPDX-License-Identifier: GPL-2.0

//! Events that `VMRUN` injects, and events whose delivery an exit has interrupted.

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An external or virtual interrupt.
    Interrupt,
    /// A non-maskable interrupt.
    Nmi,
    /// A fault or a trap.
    Exception,
    /// An interrupt by the instruction INTn.
    Software,
}

/// An event in the format of `EVENTINJ` and `EXITINTINFO` (APM, "Event Injection").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event(u32);

impl Event {
    const VALID: u32 = 1 << 31;
    const ERROR_CODE: u32 = 1 << 11;

    /// Wraps the word of a VMCB.
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Returns the word for a VMCB.
    pub const fn into_raw(self) -> u32 {
        self.0
    }

    /// Makes an event without an error code.
    pub const fn new(kind: Kind, vector: u8) -> Self {
        let kind = match kind {
            Kind::Interrupt => 0,
            Kind::Nmi => 2,
            Kind::Exception => 3,
            Kind::Software => 4,
        };

        Self(Self::VALID | kind << 8 | vector as u32)
    }

    /// Returns the event, with an error code.
    #[must_use]
    pub const fn with_error_code(self) -> Self {
        Self(self.0 | Self::ERROR_CODE)
    }

    /// Returns whether there is an event at all.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Returns the type, unless it is a reserved one.
    #[inline]
    pub const fn kind(self) -> Option<Kind> {
        match self.0 >> 8 & 7 {
            0 => Some(Kind::Interrupt),
            2 => Some(Kind::Nmi),
            3 => Some(Kind::Exception),
            4 => Some(Kind::Software),
            _ => None,
        }
    }

    /// Returns the vector.
    #[inline]
    pub const fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    /// Returns whether this is a valid NMI.
    #[inline]
    pub const fn is_nmi(self) -> bool {
        self.is_valid() && matches!(self.kind(), Some(Kind::Nmi))
    }

    /// Returns whether an instruction of the guest has raised the event: delivery needs the
    /// address of the next instruction.
    #[inline]
    pub const fn is_soft(self) -> bool {
        const BP: u8 = 3;
        const OF: u8 = 4;

        self.is_valid()
            && match self.kind() {
                Some(Kind::Software) => true,
                Some(Kind::Exception) => self.vector() == BP || self.vector() == OF,
                _ => false,
            }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_svm_event))]
mod tests {
    use super::*;

    const KINDS: [Kind; 4] = [Kind::Interrupt, Kind::Nmi, Kind::Exception, Kind::Software];

    #[test]
    fn an_event_gives_back_what_it_is_made_of() {
        for kind in KINDS {
            for vector in 0..=255 {
                let event = Event::new(kind, vector);

                assert!(event.is_valid());
                assert_eq!(event.kind(), Some(kind));
                assert_eq!(event.vector(), vector);
                assert_eq!(event.is_nmi(), kind == Kind::Nmi);
                assert_eq!(event.with_error_code().into_raw(), event.into_raw() | 0x800);
            }
        }
    }

    #[test]
    fn reserved_types_have_no_kind() {
        for kind in [1, 5, 6, 7] {
            assert_eq!(Event::from_raw(0x8000_0000 | kind << 8).kind(), None);
        }
    }

    #[test]
    fn soft_events_are_those_of_instructions() {
        assert!(Event::new(Kind::Software, 0x80).is_soft());
        assert!(Event::new(Kind::Exception, 3).is_soft());
        assert!(Event::new(Kind::Exception, 4).is_soft());
        assert!(!Event::new(Kind::Exception, 14).is_soft());
        assert!(!Event::new(Kind::Interrupt, 3).is_soft());
        assert!(!Event::from_raw(4 << 8 | 3).is_soft());
    }
}
