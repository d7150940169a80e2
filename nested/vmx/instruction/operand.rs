// SPDX-License-Identifier: GPL-2.0

//! The operands of an instruction, as an exit describes them.

use super::{permission::Mode, Fault, Refusal};

/// A general-purpose register, by the number that instructions encode: 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u8);

impl Register {
    /// Takes the number of a register out of an instruction-information field.
    const fn from_field(field: u32, shift: u32) -> Self {
        let [low, ..] = (field >> shift & 0xf).to_le_bytes();

        Self(low)
    }

    /// Returns the number of the register, below 16.
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// A segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// The width to which an effective address is truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSize {
    /// 16 bits.
    Bits16,
    /// 32 bits.
    Bits32,
    /// 64 bits.
    Bits64,
}

impl AddressSize {
    /// Truncates an effective address.
    pub const fn truncate(self, address: u64) -> u64 {
        match self {
            Self::Bits16 => address & 0xffff,
            Self::Bits32 => address & 0xffff_ffff,
            Self::Bits64 => address,
        }
    }
}

/// How many bits of a register, or of memory, VMREAD and VMWRITE take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandSize {
    /// 32 bits, outside 64-bit mode.
    Bits32,
    /// 64 bits, in 64-bit mode.
    Bits64,
}

impl OperandSize {
    /// Truncates a value.
    pub const fn truncate(self, value: u64) -> u64 {
        match self {
            Self::Bits32 => value & 0xffff_ffff,
            Self::Bits64 => value,
        }
    }

    /// Returns the number of bytes that the operand has in memory.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }
}

impl Mode {
    /// Returns the size of what VMREAD and VMWRITE move, and of all registers that instructions of
    /// VMX take.
    pub const fn operand_size(self) -> OperandSize {
        match self {
            Self::SixtyFourBit => OperandSize::Bits64,
            Self::Real | Self::Virtual8086 | Self::Protected | Self::Compatibility => {
                OperandSize::Bits32
            }
        }
    }
}

/// An operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The segment.
    pub segment: Segment,
    /// The base register, if there is one.
    pub base: Option<Register>,
    /// The index register, if there is one.
    pub index: Option<Register>,
    /// The index is shifted left by this, from 0 to 3.
    pub scale: u32,
    /// The displacement, and the address of the next instruction if it is relative to that.
    pub displacement: u64,
    /// The width of the effective address.
    pub address_size: AddressSize,
}

/// An operand that is in a register or in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// It is in a register.
    Register(Register),
    /// It is in memory.
    Memory(Memory),
}

/// The VM-exit instruction-information field of an instruction of VMX, with the exit qualification
/// (SDM, "Information for VM Exits Due to Instruction Execution").
///
/// The formats of all instructions are one format, of which most leave parts undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Information {
    field: u32,
    qualification: u64,
}

impl Information {
    const IN_REGISTER: u32 = 1 << 10;
    const NO_INDEX: u32 = 1 << 22;
    const NO_BASE: u32 = 1 << 27;

    /// Takes the field and the exit qualification, which has the displacement.
    pub const fn new(field: u32, qualification: u64) -> Self {
        Self {
            field,
            qualification,
        }
    }

    /// Returns the value that VMREAD and VMWRITE move.
    pub fn operand(self) -> Result<Operand, Refusal> {
        if self.field & Self::IN_REGISTER != 0 {
            Ok(Operand::Register(Register::from_field(self.field, 3)))
        } else {
            self.memory().map(Operand::Memory)
        }
    }

    /// Returns the operand of an instruction that has one in memory only.
    ///
    /// There is no such instruction with a register, nor with an address size or a segment that
    /// the format does not define.
    pub fn memory(self) -> Result<Memory, Refusal> {
        let undefined = |check| Err(Refusal::Fault(Fault::InvalidOpcode, check));

        if self.field & Self::IN_REGISTER != 0 {
            return undefined(c"RegisterOperand");
        }
        let address_size = match self.field >> 7 & 7 {
            0 => AddressSize::Bits16,
            1 => AddressSize::Bits32,
            2 => AddressSize::Bits64,
            _ => return undefined(c"AddressSize"),
        };
        let segment = match self.field >> 15 & 7 {
            0 => Segment::Es,
            1 => Segment::Cs,
            2 => Segment::Ss,
            3 => Segment::Ds,
            4 => Segment::Fs,
            5 => Segment::Gs,
            _ => return undefined(c"Segment"),
        };

        Ok(Memory {
            segment,
            base: self.unless(Self::NO_BASE, 23),
            index: self.unless(Self::NO_INDEX, 18),
            scale: self.field & 3,
            displacement: self.qualification,
            address_size,
        })
    }

    /// Returns the second register: the encoding of the field for VMREAD and VMWRITE, the type for
    /// INVEPT and INVVPID.
    pub const fn register(self) -> Register {
        Register::from_field(self.field, 28)
    }

    /// Returns the register whose number is at `shift`, unless `absent` is set.
    fn unless(self, absent: u32, shift: u32) -> Option<Register> {
        (self.field & absent == 0).then(|| Register::from_field(self.field, shift))
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_operand)
)]
mod tests {
    use super::*;
    use core::ffi::CStr;

    const QUALIFICATION: u64 = 0xffff_ffff_ffff_fff8;

    fn undefined(check: &'static CStr) -> Result<Memory, Refusal> {
        Err(Refusal::Fault(Fault::InvalidOpcode, check))
    }

    #[test]
    fn every_part_of_the_field_is_found() {
        // VMWRITE 8, gs:-8(%r9, %r14, 4)
        let field = 2 | 2 << 7 | 5 << 15 | 14 << 18 | 9 << 23 | 8 << 28;
        let information = Information::new(field, QUALIFICATION);
        let memory = Memory {
            segment: Segment::Gs,
            base: Some(Register(9)),
            index: Some(Register(14)),
            scale: 2,
            displacement: QUALIFICATION,
            address_size: AddressSize::Bits64,
        };

        assert_eq!(information.memory(), Ok(memory));
        assert_eq!(information.operand(), Ok(Operand::Memory(memory)));
        assert_eq!(information.register().number(), 8);
    }

    #[test]
    fn base_and_index_may_be_missing() {
        const FIELD: u32 = 2 << 7 | 3 << 15 | 5 << 18 | 6 << 23;
        const NO_INDEX: u32 = 1 << 22;
        const NO_BASE: u32 = 1 << 27;

        let (base, index) = (Some(Register(6)), Some(Register(5)));

        for (field, expected) in [
            (FIELD, (base, index)),
            (FIELD | NO_INDEX, (base, None)),
            (FIELD | NO_BASE, (None, index)),
            (FIELD | NO_BASE | NO_INDEX, (None, None)),
        ] {
            let memory = Information::new(field, 0).memory();

            assert_eq!(
                memory.map(|memory| (memory.base, memory.index)),
                Ok(expected)
            );
        }
    }

    #[test]
    fn only_vmread_and_vmwrite_take_a_register() {
        let information = Information::new(1 << 10 | 13 << 3, 0);

        assert_eq!(information.operand(), Ok(Operand::Register(Register(13))));
        assert_eq!(information.memory(), undefined(c"RegisterOperand"));
    }

    #[test]
    fn undefined_address_sizes_are_refused() {
        for (size, expected) in (0..8).zip([
            Some(AddressSize::Bits16),
            Some(AddressSize::Bits32),
            Some(AddressSize::Bits64),
        ]) {
            let memory = Information::new(size << 7, 0).memory();

            assert_eq!(memory.map(|memory| memory.address_size).ok(), expected);
        }
        for size in 3..8 {
            assert_eq!(
                Information::new(size << 7, 0).memory(),
                undefined(c"AddressSize")
            );
        }
    }

    #[test]
    fn undefined_segments_are_refused() {
        for (number, segment) in (0..).zip([
            Segment::Es,
            Segment::Cs,
            Segment::Ss,
            Segment::Ds,
            Segment::Fs,
            Segment::Gs,
        ]) {
            let memory = Information::new(number << 15, 0).memory();

            assert_eq!(memory.map(|memory| memory.segment), Ok(segment));
        }
        for number in 6..8 {
            assert_eq!(
                Information::new(number << 15, 0).memory(),
                undefined(c"Segment")
            );
        }
    }

    #[test]
    fn sizes_truncate() {
        assert_eq!(AddressSize::Bits16.truncate(u64::MAX), 0xffff);
        assert_eq!(AddressSize::Bits32.truncate(u64::MAX), 0xffff_ffff);
        assert_eq!(AddressSize::Bits64.truncate(u64::MAX), u64::MAX);
        assert_eq!(OperandSize::Bits32.truncate(u64::MAX), 0xffff_ffff);
        assert_eq!(OperandSize::Bits64.truncate(u64::MAX), u64::MAX);
        assert_eq!(Mode::SixtyFourBit.operand_size(), OperandSize::Bits64);
        assert_eq!(Mode::Protected.operand_size(), OperandSize::Bits32);
        assert_eq!(OperandSize::Bits32.bytes(), 4);
        assert_eq!(OperandSize::Bits64.bytes(), 8);
    }
}
