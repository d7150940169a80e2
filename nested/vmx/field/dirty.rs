// SPDX-License-Identifier: GPL-2.0

//! Marks of what L1 has written, so that an entry does only the work that is needed.

use super::{Entry, Field, Kind};

/// Fields that are checked and loaded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Group {
    /// Control fields.
    Control = 1 << 0,
    /// Guest state that each entry loads.
    GuestState = 1 << 1,
    /// Guest state that an entry loads only if L1 has written it.
    RareGuestState = 1 << 2,
    /// Host state.
    HostState = 1 << 3,
}

impl Field {
    /// Returns the group that a write to the field changes, if an entry depends on the field.
    pub const fn group(self) -> Option<Group> {
        match (self.kind(), self.entry()) {
            (Kind::Control, _) => Some(Group::Control),
            (Kind::ReadOnlyData, _) => None,
            (Kind::GuestState, Entry::IfDirty) => Some(Group::RareGuestState),
            (Kind::GuestState, _) => Some(Group::GuestState),
            (Kind::HostState, _) => Some(Group::HostState),
        }
    }
}

/// The groups that L1 has written since the last entry.
///
/// Writes to a shadow VMCS do not exit: they are not seen here. A group is clean only for its
/// fields that [`Field::shadow()`] does not let L1 write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirty(u8);

impl Dirty {
    /// Nothing is written: vmcs02 is up to date.
    pub const NONE: Self = Self(0);

    /// Everything may be: vmcs02 was made from another vmcs12, or from none.
    pub const ALL: Self = Self(
        Group::Control as u8
            | Group::GuestState as u8
            | Group::RareGuestState as u8
            | Group::HostState as u8,
    );

    /// Marks the group of a field that L1 has written.
    #[inline]
    pub fn mark(&mut self, field: Field) {
        if let Some(group) = field.group() {
            self.0 |= group as u8;
        }
    }

    /// Returns whether a group is marked.
    pub const fn contains(self, group: Group) -> bool {
        self.0 & group as u8 != 0
    }

    /// Removes the mark of a group, for an entry that has taken it over.
    pub fn clear(&mut self, group: Group) {
        self.0 &= !(group as u8);
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_field_dirty))]
mod tests {
    use super::*;

    #[test]
    fn a_write_marks_the_group_of_the_field_alone() {
        for (field, group) in [
            (Field::EPT_POINTER, Group::Control),
            (Field::EOI_EXIT_BITMAP0, Group::Control),
            (Field::GUEST_CR0, Group::GuestState),
            (Field::GUEST_CS_BASE, Group::RareGuestState),
            (Field::HOST_RIP, Group::HostState),
        ] {
            let mut dirty = Dirty::NONE;

            dirty.mark(field);
            assert!(dirty.contains(group));
            dirty.clear(group);
            assert_eq!(dirty, Dirty::NONE);
        }
    }

    #[test]
    fn exit_information_makes_nothing_dirty() {
        for &field in Field::ALL {
            let mut dirty = Dirty::NONE;

            dirty.mark(field);
            assert_eq!(dirty == Dirty::NONE, field.is_read_only());
        }
    }

    #[test]
    fn at_first_everything_is_dirty() {
        for &field in Field::ALL {
            assert!(field.group().is_none_or(|group| Dirty::ALL.contains(group)));
        }
    }
}
