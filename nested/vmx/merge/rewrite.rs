// SPDX-License-Identifier: GPL-2.0

//! Which parts of vmcs02 an entry has to write again.
//!
//! A VMWRITE costs tens of cycles, and most of vmcs02 is the same at the next entry. What depends
//! on fields that L1 has not written since, and that neither L0 nor L2 changes, is left alone.

/// Something that happened since vmcs02 was last entered with the current vmcs12.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// vmcs02 is new: nothing has been written.
    Created,
    /// Another vmcs12 became current, or its contents came from elsewhere than VMWRITE.
    Vmcs12Replaced,
    /// L1 wrote a field of vmcs12 that hardware VMCS shadowing does not cover.
    Vmcs12Written,
    /// L1 may have changed its MSR bitmap, or L0 that of vmcs01.
    MsrBitmapChanged,
    /// The offset or multiplier of L1's own time-stamp counter changed.
    L1TscChanged,
    /// The exceptions or register bits that L0 intercepts changed.
    L0InterceptsChanged,
}

/// A set of [`Event`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events(u8);

impl Events {
    /// Nothing happened: L1 resumes the same L2.
    pub const NONE: Self = Self(0);

    /// Every event.
    pub const ALL: Self = Self(0x3f);

    const fn of(event: Event) -> Self {
        Self(1 << event as u8)
    }

    /// Returns the events with one more.
    #[must_use]
    pub const fn with(self, event: Event) -> Self {
        Self(self.0 | Self::of(event).0)
    }

    const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A part of vmcs02 that is written as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Addresses of L0's structures, host state, VM functions off, log off.
    Constant,
    /// VPID, link pointer.
    Identity,
    /// Segments and descriptor tables.
    Segments,
    /// SYSENTER MSRs, pending debug exceptions, bound and shadow-stack state.
    RareGuestState,
    /// XSS- and EOI-exit bitmaps, ENCLS-exit bitmap, page-fault masks.
    RareControls,
    /// The counts of the MSR areas, with the slot for the time-stamp counter.
    MsrAreaCounts,
    /// PDPTEs, if L2 uses PAE paging with EPT12.
    Pdptes,
    /// Guest/host mask of CR4.
    Cr4Mask,
    /// The MSR bitmap.
    MsrBitmap,
    /// TSC offset and multiplier.
    Tsc,
    /// The control words. Their writes are skipped further if a word is as it was.
    Controls,
    /// Exception bitmap, guest/host mask of CR0.
    Intercepts,
    /// CR0, CR3, CR4, their shadows, `IA32_EFER`, RSP, RIP, RFLAGS, DR7.
    Registers,
    /// The event that L1 injects, interruptibility.
    Event,
}

impl Part {
    /// Every part.
    pub const ALL: &'static [Self] = &[
        Self::Constant,
        Self::Identity,
        Self::Segments,
        Self::RareGuestState,
        Self::RareControls,
        Self::MsrAreaCounts,
        Self::Pdptes,
        Self::Cr4Mask,
        Self::MsrBitmap,
        Self::Tsc,
        Self::Controls,
        Self::Intercepts,
        Self::Registers,
        Self::Event,
    ];

    /// Returns the events after which the part is to be written, or nothing if it always is.
    const fn written_after(self) -> Option<Events> {
        const NEW: Events = Events::of(Event::Created).with(Event::Vmcs12Replaced);
        const RARE: Events = NEW.with(Event::Vmcs12Written);

        match self {
            Self::Constant => Some(Events::of(Event::Created)),
            Self::Identity
            | Self::Segments
            | Self::RareGuestState
            | Self::RareControls
            | Self::Pdptes => Some(RARE),
            Self::Cr4Mask => Some(RARE.with(Event::L0InterceptsChanged)),
            Self::MsrBitmap => Some(RARE.with(Event::MsrBitmapChanged)),
            // Offset and multiplier can be among the shadowed fields, which raise no event.
            Self::Tsc
            | Self::MsrAreaCounts
            | Self::Controls
            | Self::Intercepts
            | Self::Registers
            | Self::Event => None,
        }
    }

    /// Returns whether an entry has to write the part after these events.
    #[inline]
    pub const fn is_stale(self, events: Events) -> bool {
        match self.written_after() {
            Some(after) => after.intersects(events),
            None => true,
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_merge_rewrite))]
mod tests {
    use super::*;

    fn stale(events: Events) -> impl Iterator<Item = Part> {
        Part::ALL
            .iter()
            .copied()
            .filter(move |part| part.is_stale(events))
    }

    #[test]
    fn a_new_vmcs02_is_written_completely() {
        assert_eq!(
            stale(Events::NONE.with(Event::Created)).count(),
            Part::ALL.len()
        );
        assert_eq!(stale(Events::ALL).count(), Part::ALL.len());
    }

    #[test]
    fn a_resume_without_changes_leaves_the_rare_parts_alone() {
        for part in [
            Part::Constant,
            Part::Identity,
            Part::Segments,
            Part::RareGuestState,
            Part::RareControls,
            Part::Pdptes,
            Part::Cr4Mask,
            Part::MsrBitmap,
        ] {
            assert!(!part.is_stale(Events::NONE));
        }
        assert_eq!(stale(Events::NONE).count(), 6);
    }

    #[test]
    fn another_vmcs12_leaves_only_what_is_constant() {
        let events = Events::NONE.with(Event::Vmcs12Replaced);

        assert_eq!(stale(events).count(), Part::ALL.len() - 1);
        assert!(!Part::Constant.is_stale(events));
    }

    #[test]
    fn a_change_of_one_kind_rewrites_what_depends_on_it() {
        for (event, part) in [
            (Event::MsrBitmapChanged, Part::MsrBitmap),
            (Event::L0InterceptsChanged, Part::Cr4Mask),
            (Event::Vmcs12Written, Part::Segments),
            (Event::L1TscChanged, Part::Tsc),
        ] {
            assert!(part.is_stale(Events::NONE.with(event)));
        }
        assert!(!Part::Segments.is_stale(Events::NONE.with(Event::MsrBitmapChanged)));
    }
}
