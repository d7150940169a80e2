// SPDX-License-Identifier: GPL-2.0

//! The fields of the VMCS of L1, and what becomes of each.
//!
//! All that is known of a field stands in its row of the table. L1 names a field by an encoding,
//! which it supplies as a number: [`Component::from_encoding()`] looks it up. The lookup is an
//! access to a small table by an index that cannot be beyond it, even speculatively.

use super::vmcs12::Vmcs12;

mod set;
mod shadow;
mod table;

pub use set::{Allowed, FieldSet, Requires};
pub use shadow::{Extent, ShadowVmcs};
pub use table::{load_shadow, store_shadow, Field, CLEAR};

/// The width of a field (SDM, "Field Encoding in VMCS").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 16 bits.
    Bits16,
    /// 64 bits, also on processors without 64-bit mode.
    Bits64,
    /// 32 bits.
    Bits32,
    /// As wide as a register: 64 bits for us.
    Natural,
}

impl Width {
    /// Returns the number of bytes that a field of this width has.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
            Self::Bits64 | Self::Natural => 8,
        }
    }
}

/// The area of the VMCS that a field belongs to (SDM, "Field Encoding in VMCS").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Control fields of execution, entry and exit.
    Control,
    /// VM-exit information fields, which the SDM calls read-only data.
    ReadOnlyData,
    /// Guest state.
    GuestState,
    /// Host state.
    HostState,
}

/// How a field gets from vmcs12 into vmcs02.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Each entry copies it: most entries have a new value.
    Copied,
    /// An entry copies it if L1 has written something of its group; otherwise the value that the
    /// last exit left in vmcs02 is the right one.
    IfDirty,
    /// Combined with what L0 wants, or with what the processor or L0 forbids.
    Merged,
    /// An address of L1, for which vmcs02 has the address of the page that L0 uses.
    Located,
    /// It does not reach vmcs02: L0 does what it asks for.
    Emulated,
    /// It says something about an exit, an entry has no use for it.
    Absent,
}

/// How a field gets from vmcs02 back into vmcs12.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Each exit to L1 stores it, if a control does not forbid that.
    Always,
    /// It stays in vmcs02 until L1 reads it, or leaves this VMCS.
    WhenRead,
    /// L0 stores it when L2 writes the MSR whose value it has.
    WithMsr,
    /// An exit has nothing to store.
    Never,
}

/// What L1 may do with a field in a shadow VMCS, where the processor has them.
///
/// A field that L0 changes while it emulates an instruction is no candidate: L1 would not see the
/// change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// Nothing, accesses exit to L0.
    Trapped,
    /// Read it.
    Read,
    /// Read and write it, which L0 does not notice.
    ReadWrite,
}

/// Which part of a field is accessed (SDM, "Field Encoding in VMCS", access type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The whole field.
    Full,
    /// Bits 63:32 of a 64-bit field.
    High,
}

impl Field {
    /// Returns the encoding of the field, for a full access.
    pub const fn encoding(self) -> u16 {
        self as u16
    }

    /// Returns the width of the field.
    pub const fn width(self) -> Width {
        match self.encoding() >> 13 & 3 {
            0 => Width::Bits16,
            1 => Width::Bits64,
            2 => Width::Bits32,
            _ => Width::Natural,
        }
    }

    /// Returns the area that the field belongs to.
    pub const fn kind(self) -> Kind {
        match self.encoding() >> 10 & 3 {
            0 => Kind::Control,
            1 => Kind::ReadOnlyData,
            2 => Kind::GuestState,
            _ => Kind::HostState,
        }
    }

    /// Returns the index of the field among those of its kind and width.
    pub const fn index(self) -> u16 {
        self.encoding() >> 1 & 0x1ff
    }

    /// Returns whether VMWRITE fails on a processor that does not allow writes to all fields.
    pub const fn is_read_only(self) -> bool {
        matches!(self.kind(), Kind::ReadOnlyData)
    }

    /// Stores `value` in the field, without the bits that the field does not have.
    ///
    /// The reserved bits of access rights are not kept, as on some processors: otherwise what L1
    /// reads back would depend on whether the access exits to L0.
    #[inline]
    pub fn write(self, vmcs12: &mut Vmcs12, value: u64) {
        const FIRST: u16 = Field::GUEST_ES_AR_BYTES.encoding();
        const LAST: u16 = Field::GUEST_TR_AR_BYTES.encoding();
        const ACCESS_RIGHTS: u64 = 0x1_f0ff;

        let value = match self.encoding() {
            FIRST..=LAST => value & ACCESS_RIGHTS,
            _ => value,
        };
        self.store(vmcs12, value);
    }
}

/// What an encoding stands for: a field, and the part of it that is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Component {
    field: Field,
    access: Access,
}

impl Component {
    /// Looks up an encoding, as L1 supplies it.
    ///
    /// There is no component if a reserved bit is set, if the table has no such field, or if the
    /// access is to the high bits of a field that has none.
    #[inline]
    pub fn from_encoding(raw: u64) -> Option<Self> {
        let encoding = u16::try_from(raw).ok()?;
        let field = FIELDS.get(slot(encoding)).copied().flatten()?;

        // Several encodings share a slot, if bits are set in them that no field has.
        let access = match encoding ^ field.encoding() {
            0 => Access::Full,
            1 if field.width() == Width::Bits64 => Access::High,
            _ => return None,
        };
        Some(Self { field, access })
    }

    /// Returns the whole of a field.
    pub const fn full(field: Field) -> Self {
        Self {
            field,
            access: Access::Full,
        }
    }

    /// Returns the high bits of a field, for one that has them.
    pub const fn high(field: Field) -> Option<Self> {
        match field.width() {
            Width::Bits64 => Some(Self {
                field,
                access: Access::High,
            }),
            Width::Bits16 | Width::Bits32 | Width::Natural => None,
        }
    }

    /// Returns the encoding of the component.
    pub const fn encoding(self) -> u16 {
        match self.access {
            Access::Full => self.field.encoding(),
            Access::High => self.field.encoding() | 1,
        }
    }

    /// Returns the field.
    pub const fn field(self) -> Field {
        self.field
    }

    /// Returns the part of the field that is accessed.
    pub const fn access(self) -> Access {
        self.access
    }

    /// Returns the value of the component, zero-extended.
    #[inline]
    pub fn read(self, vmcs12: &Vmcs12) -> u64 {
        let value = self.field.read(vmcs12);

        match self.access {
            Access::Full => value,
            Access::High => value >> 32,
        }
    }

    /// Stores `value` in the component, without the bits that it does not have.
    #[inline]
    pub fn write(self, vmcs12: &mut Vmcs12, value: u64) {
        let value = match self.access {
            Access::Full => value,
            Access::High => value << 32 | self.field.read(vmcs12) & 0xffff_ffff,
        };
        self.field.write(vmcs12, value);
    }
}

/// The number of slots: 4 widths, 4 kinds, and 32 indices, which are more than there are.
const SLOTS: usize = 512;

/// Returns the slot of an encoding, below [`SLOTS`]. No two fields have the same.
const fn slot(encoding: u16) -> usize {
    let width = encoding >> 6 & 0x180;
    let kind = encoding >> 5 & 0x60;
    let index = encoding >> 1 & 0x1f;

    (width | kind | index) as usize
}

/// The fields by their slots, computed when this is compiled: so are its failures.
#[allow(clippy::indexing_slicing)]
static FIELDS: [Option<Field>; SLOTS] = {
    let mut fields = [None; SLOTS];
    let mut rest = Field::ALL;

    while let [field, tail @ ..] = rest {
        let slot = &mut fields[slot(field.encoding())];

        assert!(slot.is_none());
        *slot = Some(*field);
        rest = tail;
    }
    fields
};

/// Numbers that are made of the low bits of larger ones.
trait Truncate {
    /// Drops the high bits of `value`.
    fn truncate(value: u64) -> Self;
}

impl Truncate for u16 {
    fn truncate(value: u64) -> Self {
        let [low, high, ..] = value.to_le_bytes();

        Self::from_le_bytes([low, high])
    }
}

impl Truncate for u32 {
    fn truncate(value: u64) -> Self {
        let [a, b, c, d, ..] = value.to_le_bytes();

        Self::from_le_bytes([a, b, c, d])
    }
}

impl Truncate for u64 {
    fn truncate(value: u64) -> Self {
        value
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_field))]
mod tests {
    use super::*;

    /// Looks for the field of an encoding in the table, one row after the other.
    fn search(raw: u64) -> Option<(Field, Access)> {
        let field = Field::ALL
            .iter()
            .find(|field| u64::from(field.encoding()) == raw & !1)?;

        match raw & 1 {
            0 => Some((*field, Access::Full)),
            _ if field.width() == Width::Bits64 => Some((*field, Access::High)),
            _ => None,
        }
    }

    #[test]
    fn exactly_the_fields_of_the_table_exist() {
        let mut full = 0;
        let mut high = 0;

        for raw in 0..=u64::from(u16::MAX) {
            let component = Component::from_encoding(raw);

            assert_eq!(
                component.map(|found| (found.field, found.access)),
                search(raw)
            );
            match component.map(Component::access) {
                Some(Access::Full) => full += 1,
                Some(Access::High) => high += 1,
                None => (),
            }
        }
        assert_eq!(full, 149);
        assert_eq!(high, 37);
        assert_eq!(Field::ALL.len(), 149);
    }

    /// The manual's "Structure of VMCS Component Encoding", for each number of 16 bits.
    #[test]
    fn fields_are_what_the_bits_of_their_encodings_say() {
        for raw in 0..=u16::MAX {
            let Some(component) = Component::from_encoding(u64::from(raw)) else {
                continue;
            };
            let field = component.field;
            let bytes = match raw >> 13 & 3 {
                0 => 2,
                2 => 4,
                _ => 8,
            };

            // Bits 12 and 15 are reserved.
            assert_eq!(raw & 0x9000, 0);
            assert_eq!(field.encoding(), raw & !1);
            assert_eq!(field.width().bytes(), bytes);
            assert_eq!(field.width() == Width::Natural, raw >> 13 & 3 == 3);
            assert_eq!(field.is_read_only(), raw >> 10 & 3 == 1);
            assert_eq!(field.kind() == Kind::Control, raw >> 10 & 3 == 0);
            assert_eq!(field.kind() == Kind::GuestState, raw >> 10 & 3 == 2);
            assert_eq!(field.kind() == Kind::HostState, raw >> 10 & 3 == 3);
            assert_eq!(field.index(), raw >> 1 & 0x1ff);
            // Only fields of 64 bits have an upper half.
            assert!(raw & 1 == 0 || raw >> 13 & 3 == 1);
            assert_eq!(component.access() == Access::High, raw & 1 == 1);
            // A field of 64 bits always has one.
            let other = Component::from_encoding(u64::from(raw ^ 1));
            assert_eq!(other.is_some(), raw >> 13 & 3 == 1);
        }
    }

    #[test]
    fn wide_numbers_are_no_encodings() {
        let encoding = u64::from(Field::GUEST_RIP.encoding());

        for bit in 15..64 {
            assert_eq!(Component::from_encoding(encoding | 1 << bit), None);
        }
    }

    #[test]
    fn the_encoding_gives_width_and_kind() {
        let of = |field: Field| (field.width(), field.kind(), field.index());

        assert_eq!(
            of(Field::VIRTUAL_PROCESSOR_ID),
            (Width::Bits16, Kind::Control, 0)
        );
        assert_eq!(
            of(Field::GUEST_PML_INDEX),
            (Width::Bits16, Kind::GuestState, 9)
        );
        assert_eq!(
            of(Field::HOST_IA32_EFER),
            (Width::Bits64, Kind::HostState, 1)
        );
        assert_eq!(
            of(Field::VM_EXIT_REASON),
            (Width::Bits32, Kind::ReadOnlyData, 1)
        );
        assert_eq!(of(Field::GUEST_RIP), (Width::Natural, Kind::GuestState, 15));
    }

    #[test]
    fn offsets_increase_with_the_members() {
        assert_eq!(Field::IO_BITMAP_A.offset(), 40);
        assert_eq!(Field::CR0_GUEST_HOST_MASK.offset(), 344);
        assert_eq!(Field::PIN_BASED_VM_EXEC_CONTROL.offset(), 744);
        assert_eq!(Field::GUEST_INTR_SSP_TABLE.offset(), 720);
        assert_eq!(Field::GUEST_PML_INDEX.offset(), 996);
    }

    #[test]
    fn each_field_keeps_what_it_has_room_for() {
        let mut vmcs12 = CLEAR;

        for (number, &field) in (1..).zip(Field::ALL) {
            field.store(&mut vmcs12, number);
        }
        // No store has changed another field.
        for (number, &field) in (1..).zip(Field::ALL) {
            assert_eq!(field.read(&vmcs12), number);
        }
        for &field in Field::ALL {
            field.store(&mut vmcs12, u64::MAX);
            let bits = field.read(&vmcs12).count_ones();

            assert_eq!(usize::try_from(bits), Ok(8 * field.width().bytes()));
        }
    }

    #[test]
    fn high_accesses_leave_the_low_bits_alone() {
        let mut vmcs12 = CLEAR;
        let full = Component::full(Field::MSR_BITMAP);

        full.write(&mut vmcs12, 0x1111_2222_3333_4444);
        if let Some(high) = Component::high(Field::MSR_BITMAP) {
            assert_eq!(high.read(&vmcs12), 0x1111_2222);
            high.write(&mut vmcs12, 0xaaaa_aaaa_5555_6666);
        }
        assert_eq!(vmcs12.msr_bitmap, 0x5555_6666_3333_4444);
        assert_eq!(full.read(&vmcs12), vmcs12.msr_bitmap);
    }

    #[test]
    fn a_component_is_found_by_its_encoding() {
        for &field in Field::ALL {
            let full = Component::full(field);

            assert_eq!(
                Component::from_encoding(u64::from(full.encoding())),
                Some(full)
            );
            let encoding = u64::from(full.encoding()) | 1;
            assert_eq!(Component::from_encoding(encoding), Component::high(field));
        }
    }

    #[test]
    fn reserved_bits_of_access_rights_are_dropped() {
        let mut vmcs12 = CLEAR;

        for (field, kept) in [
            (Field::GUEST_IDTR_LIMIT, 0xffff_ffff),
            (Field::GUEST_ES_AR_BYTES, 0x1_f0ff),
            (Field::GUEST_SS_AR_BYTES, 0x1_f0ff),
            (Field::GUEST_TR_AR_BYTES, 0x1_f0ff),
            (Field::GUEST_INTERRUPTIBILITY_INFO, 0xffff_ffff),
        ] {
            field.write(&mut vmcs12, u64::MAX);
            assert_eq!(field.read(&vmcs12), kept);
        }
    }

    #[test]
    fn what_l1_writes_unnoticed_is_never_taken_for_unchanged() {
        for &field in Field::ALL {
            match field.shadow() {
                Shadow::Trapped => (),
                Shadow::Read => assert!(field.exit() == Exit::Always),
                Shadow::ReadWrite => {
                    assert!(field.entry() != Entry::IfDirty);
                    assert!(field.exit() != Exit::WhenRead);
                }
            }
        }
    }

    #[test]
    fn what_stays_in_vmcs02_is_not_copied_there_again() {
        for &field in Field::ALL {
            assert!(field.exit() != Exit::WhenRead || field.entry() == Entry::IfDirty);
            assert_eq!(field.entry() == Entry::Absent, field.is_read_only());
        }
    }

    #[test]
    fn an_exit_changes_neither_host_state_nor_addresses_of_l1() {
        for &field in Field::ALL {
            if field.kind() == Kind::HostState {
                assert!(field.entry() == Entry::Emulated);
                assert!(field.exit() == Exit::Never);
            }
            if field.entry() == Entry::Located {
                assert!(field.exit() == Exit::Never);
            }
        }
    }
}
