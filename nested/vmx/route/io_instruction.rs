// SPDX-License-Identifier: GPL-2.0

//! I/O instructions, and how an exit describes them.

use crate::vmx::merge::io_bitmap::IoAccess;

/// The direction of an I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDirection {
    /// OUT.
    Out,
    /// IN.
    In,
}

/// Whether an I/O instruction accesses a register or memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoForm {
    /// IN or OUT.
    Single,
    /// INS or OUTS.
    String,
}

/// Whether an I/O instruction is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoRepeat {
    /// There is no REP prefix.
    Once,
    /// There is a REP prefix.
    Rep,
}

/// How an I/O instruction names the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOperand {
    /// By DX.
    Dx,
    /// By an immediate.
    Immediate,
}

/// An I/O instruction (SDM, "Exit Qualification for I/O Instructions").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoInstruction {
    /// The ports.
    pub access: IoAccess,
    /// The direction.
    pub direction: IoDirection,
    /// Whether it is a string instruction.
    pub form: IoForm,
    /// Whether it is repeated.
    pub repeat: IoRepeat,
    /// How it names the port.
    pub operand: IoOperand,
}

impl IoInstruction {
    /// Encodes the exit qualification.
    pub const fn into_qualification(self) -> u64 {
        let size = (self.access.size as u64).saturating_sub(1) & 7;
        let direction = matches!(self.direction, IoDirection::In) as u64;
        let form = matches!(self.form, IoForm::String) as u64;
        let repeat = matches!(self.repeat, IoRepeat::Rep) as u64;
        let operand = matches!(self.operand, IoOperand::Immediate) as u64;
        let port = self.access.port as u64;

        size | direction << 3 | form << 4 | repeat << 5 | operand << 6 | port << 16
    }
}

/// OUT to a port that is an immediate, for tests.
#[cfg(any(test, CONFIG_KUNIT))]
pub(super) const OUT_0X80: IoInstruction = IoInstruction {
    access: IoAccess {
        port: 0x80,
        size: 1,
    },
    direction: IoDirection::Out,
    form: IoForm::Single,
    repeat: IoRepeat::Once,
    operand: IoOperand::Immediate,
};

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_io_instruction))]
mod tests {
    use super::*;

    #[test]
    fn each_property_of_an_io_instruction_has_its_bits() {
        let plain = IoInstruction {
            operand: IoOperand::Dx,
            ..OUT_0X80
        };

        for (io, expected) in [
            (plain, 0x80_0000),
            (
                IoInstruction {
                    access: IoAccess { port: 1, size: 4 },
                    ..plain
                },
                0x1_0003,
            ),
            (
                IoInstruction {
                    direction: IoDirection::In,
                    ..plain
                },
                0x80_0008,
            ),
            (
                IoInstruction {
                    form: IoForm::String,
                    ..plain
                },
                0x80_0010,
            ),
            (
                IoInstruction {
                    repeat: IoRepeat::Rep,
                    ..plain
                },
                0x80_0020,
            ),
            (OUT_0X80, 0x80_0040),
        ] {
            assert_eq!(io.into_qualification(), expected);
            assert_eq!(IoAccess::from_qualification(expected), io.access);
        }
    }
}
