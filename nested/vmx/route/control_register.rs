// SPDX-License-Identifier: GPL-2.0

//! Who gets an access of L2 to a control register.

use crate::vmx::{bits::cr0, Vmcs12};

/// An instruction that accesses a control register (SDM, "Exit Qualification for Control-Register
/// Accesses").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRegisterAccess {
    /// MOV to a control register.
    MovTo {
        /// The number of the control register.
        control_register: u8,
        /// The number of the general-purpose register that is read.
        register: u8,
    },
    /// MOV from a control register.
    MovFrom {
        /// The number of the control register.
        control_register: u8,
        /// The number of the general-purpose register that is written.
        register: u8,
    },
    /// CLTS, which clears CR0.TS.
    Clts,
    /// LMSW, which writes bits 3:0 of CR0.
    Lmsw {
        /// The operand.
        source: u16,
        /// Where the operand comes from.
        operand: LmswOperand,
    },
}

/// Where LMSW has its operand from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LmswOperand {
    /// From a register.
    Register,
    /// From memory.
    Memory,
}

impl ControlRegisterAccess {
    const MEMORY_OPERAND: u64 = 1 << 6;

    /// Decodes the exit qualification.
    #[inline]
    pub const fn from_qualification(qualification: u64) -> Self {
        let [low, high, source_low, source_high, ..] = qualification.to_le_bytes();
        let control_register = low & 0xf;
        let register = high & 0xf;

        match (low >> 4) & 3 {
            0 => Self::MovTo {
                control_register,
                register,
            },
            1 => Self::MovFrom {
                control_register,
                register,
            },
            2 => Self::Clts,
            _ => Self::Lmsw {
                source: u16::from_le_bytes([source_low, source_high]),
                operand: if qualification & Self::MEMORY_OPERAND != 0 {
                    LmswOperand::Memory
                } else {
                    LmswOperand::Register
                },
            },
        }
    }

    /// Encodes the exit qualification.
    #[cfg(any(test, CONFIG_KUNIT))]
    pub const fn into_qualification(self) -> u64 {
        match self {
            Self::MovTo {
                control_register,
                register,
            } => mov(control_register, register),
            Self::MovFrom {
                control_register,
                register,
            } => mov(control_register, register) | 1 << 4,
            Self::Clts => 2 << 4,
            Self::Lmsw { source, operand } => {
                let operand = match operand {
                    LmswOperand::Register => 0,
                    LmswOperand::Memory => Self::MEMORY_OPERAND,
                };

                (source as u64) << 16 | operand | 3 << 4
            }
        }
    }

    /// Returns whether L1 wants the access. `register` reads general-purpose registers.
    ///
    /// For CR0 and CR4 that is a change of a bit that L1 masks, compared with what L2 sees there.
    /// L1 has no CR3-target values: their number is 0 in the `IA32_VMX_MISC` that it is shown.
    #[inline]
    pub fn exits_to_l1(self, vmcs12: &Vmcs12, register: impl FnOnce(u8) -> u64) -> bool {
        match self {
            Self::MovTo {
                control_register: 0,
                register: source,
            } => vmcs12.cr0_guest_host_mask & (register(source) ^ vmcs12.cr0_read_shadow) != 0,
            Self::MovTo {
                control_register: 4,
                register: source,
            } => vmcs12.cr4_guest_host_mask & (register(source) ^ vmcs12.cr4_read_shadow) != 0,
            Self::MovTo {
                control_register, ..
            } => match control_register {
                3 => vmcs12.primary().cr3_load_exiting(),
                8 => vmcs12.primary().cr8_load_exiting(),
                _ => false,
            },
            Self::MovFrom {
                control_register, ..
            } => match control_register {
                3 => vmcs12.primary().cr3_store_exiting(),
                8 => vmcs12.primary().cr8_store_exiting(),
                _ => false,
            },
            Self::Clts => vmcs12.cr0_guest_host_mask & vmcs12.cr0_read_shadow & cr0::TS != 0,
            Self::Lmsw { source, .. } => lmsw_exits_to_l1(vmcs12, u64::from(source)),
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
const fn mov(control_register: u8, register: u8) -> u64 {
    (control_register as u64 & 0xf) | (register as u64 & 0xf) << 8
}

/// LMSW can change MP, EM and TS, and can set PE but not clear it.
const fn lmsw_exits_to_l1(vmcs12: &Vmcs12, source: u64) -> bool {
    const CHANGEABLE: u64 = cr0::MP | cr0::EM | cr0::TS;

    let changed = (source ^ vmcs12.cr0_read_shadow) & CHANGEABLE;
    let set = source & !vmcs12.cr0_read_shadow & cr0::PE;

    vmcs12.cr0_guest_host_mask & (changed | set) != 0
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_route_cr))]
mod tests {
    use super::{
        super::{
            fake::{Facts, Memory},
            Exit, Route,
        },
        *,
    };
    use crate::vmx::controls::Primary;
    use crate::vmx::ExitReason;

    const RBX: u8 = 3;

    fn mov_to(control_register: u8) -> ControlRegisterAccess {
        ControlRegisterAccess::MovTo {
            control_register,
            register: RBX,
        }
    }

    fn mov_from(control_register: u8) -> ControlRegisterAccess {
        ControlRegisterAccess::MovFrom {
            control_register,
            register: RBX,
        }
    }

    fn lmsw(source: u16) -> ControlRegisterAccess {
        ControlRegisterAccess::Lmsw {
            source,
            operand: LmswOperand::Register,
        }
    }

    fn goes_to_l1(vmcs12: &Vmcs12, access: ControlRegisterAccess, rbx: u64) -> bool {
        let exit = Exit {
            reason: ExitReason::CR_ACCESS,
            vmcs12,
            facts: &Facts {
                qualification: access.into_qualification(),
                register: (RBX, rbx),
                ..Facts::NONE
            },
            memory: &Memory::EMPTY,
        };

        exit.route() == Route::L1
    }

    #[test]
    fn qualifications_are_encoded_as_the_manual_says_and_back() {
        for (access, qualification) in [
            (mov_to(0), 0x300),
            (mov_to(8), 0x308),
            (mov_from(3), 0x313),
            (ControlRegisterAccess::Clts, 0x20),
            (lmsw(0xabcd), 0xabcd_0030),
            (
                ControlRegisterAccess::Lmsw {
                    source: 1,
                    operand: LmswOperand::Memory,
                },
                0x1_0070,
            ),
        ] {
            assert_eq!(access.into_qualification(), qualification);
            assert_eq!(
                ControlRegisterAccess::from_qualification(qualification),
                access
            );
        }
    }

    #[test]
    fn a_write_goes_to_l1_if_it_changes_a_masked_bit() {
        let vmcs12 = Vmcs12 {
            cr0_guest_host_mask: 0x8000_0009,
            cr0_read_shadow: 0x8000_0001,
            cr4_guest_host_mask: 0x2000,
            cr4_read_shadow: 0,
            ..Vmcs12::default()
        };

        for (control_register, value, expected) in [
            (0, 0x8000_0001, false),
            (0, 0x8000_0033, false),
            (0, 0x8000_0009, true),
            (0, 0x0000_0001, true),
            (0, 0x8000_0000, true),
            (4, 0x20, false),
            (4, 0x2020, true),
        ] {
            assert_eq!(
                goes_to_l1(&vmcs12, mov_to(control_register), value),
                expected
            );
        }
    }

    #[test]
    fn cr3_and_cr8_go_by_their_controls() {
        for (access, control) in [
            (mov_to(3), Primary::CR3_LOAD_EXITING.into_raw()),
            (mov_from(3), Primary::CR3_STORE_EXITING.into_raw()),
            (mov_to(8), Primary::CR8_LOAD_EXITING.into_raw()),
            (mov_from(8), Primary::CR8_STORE_EXITING.into_raw()),
        ] {
            for (controls, expected) in [(control, true), (!control, false)] {
                let vmcs12 = Vmcs12 {
                    cpu_based_vm_exec_control: controls,
                    ..Vmcs12::default()
                };

                assert_eq!(goes_to_l1(&vmcs12, access, 0), expected);
            }
        }
    }

    #[test]
    fn other_reads_and_registers_are_not_of_interest() {
        let vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: u32::MAX,
            cr0_guest_host_mask: u64::MAX,
            cr4_guest_host_mask: u64::MAX,
            ..Vmcs12::default()
        };

        for control_register in [0, 1, 2, 4, 5, 15] {
            assert!(!goes_to_l1(&vmcs12, mov_from(control_register), 0));
        }
        for control_register in [1, 2, 5, 15] {
            assert!(!goes_to_l1(&vmcs12, mov_to(control_register), u64::MAX));
        }
    }

    #[test]
    fn clts_goes_to_l1_if_l1_masks_a_ts_that_l2_sees_set() {
        for bits in 0..4 {
            let vmcs12 = Vmcs12 {
                cr0_guest_host_mask: (bits & 1) << 3,
                cr0_read_shadow: (bits >> 1) << 3,
                ..Vmcs12::default()
            };

            assert_eq!(
                goes_to_l1(&vmcs12, ControlRegisterAccess::Clts, 0),
                bits == 3
            );
        }
    }

    /// Each mask, shadow and operand, against the rule said bit by bit.
    #[test]
    fn lmsw_goes_to_l1_if_it_changes_a_masked_bit_that_it_can_change() {
        for mask in 0..16u64 {
            for shadow in 0..16u64 {
                for source in 0..16u16 {
                    let vmcs12 = Vmcs12 {
                        cr0_guest_host_mask: mask | !0xf,
                        cr0_read_shadow: shadow,
                        ..Vmcs12::default()
                    };
                    let bit = |word: u64, n: u32| word >> n & 1 != 0;
                    let expected = (0..4).any(|n| {
                        let old = bit(shadow, n);
                        let new = bit(source.into(), n);

                        bit(mask, n) && old != new && (n != 0 || new)
                    });

                    assert_eq!(goes_to_l1(&vmcs12, lmsw(source | 0xfff0), 0), expected);
                }
            }
        }
    }
}
