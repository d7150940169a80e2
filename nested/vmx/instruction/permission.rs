// SPDX-License-Identifier: GPL-2.0

//! Who may execute an instruction of VMX, and when.
//!
//! The processor makes most of these checks itself before an instruction exits, but not all: L1
//! runs with bits of CR0 and CR4 that it does not know of. All of them are here, in the order of
//! the manual, so that an instruction that L0 emulates is checked as well.

use super::{Fault, InstructionError, Refusal};

/// How a processor executes code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected mode outside IA-32e mode.
    Protected,
    /// Compatibility mode, in IA-32e mode.
    Compatibility,
    /// 64-bit mode.
    SixtyFourBit,
}

/// Where in VMX a processor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Outside VMX operation.
    Outside,
    /// VMX root operation: L1 executes.
    Root,
    /// VMX non-root operation: L2 executes.
    NonRoot,
}

/// What the checks look at: a processor as its own software sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// CR0.
    pub cr0: u64,
    /// CR3, with the bits that control linear-address masking.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// `IA32_EFER`.
    pub efer: u64,
    /// The access rights of CS, in the format of the VMCS.
    pub cs_access_rights: u32,
    /// The current privilege level.
    pub privilege_level: u8,
    /// Where in VMX it is.
    pub operation: Operation,
}

impl Processor {
    const CR0_PE: u64 = 1 << 0;
    const CR4_VMXE: u64 = 1 << 13;
    const RFLAGS_VM: u64 = 1 << 17;
    const EFER_LMA: u64 = 1 << 10;
    const CS_L: u32 = 1 << 13;

    /// Returns the mode.
    pub const fn mode(&self) -> Mode {
        if self.cr0 & Self::CR0_PE == 0 {
            Mode::Real
        } else if self.efer & Self::EFER_LMA != 0 {
            if self.cs_access_rights & Self::CS_L != 0 {
                Mode::SixtyFourBit
            } else {
                Mode::Compatibility
            }
        } else if self.rflags & Self::RFLAGS_VM != 0 {
            Mode::Virtual8086
        } else {
            Mode::Protected
        }
    }
}

/// What L1 must have set up for VMXON: its MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmxonRequirements {
    /// `IA32_FEATURE_CONTROL`.
    pub feature_control: u64,
    /// The bits of CR0.
    pub cr0: FixedBits,
    /// The bits of CR4.
    pub cr4: FixedBits,
}

impl VmxonRequirements {
    const LOCKED: u64 = 1 << 0;
    const ENABLED_OUTSIDE_SMX: u64 = 1 << 2;
}

/// Bits of a control register that VMX operation fixes (SDM, "VMX-Fixed Bits in CR0" and "VMX-Fixed
/// Bits in CR4").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBits {
    /// `IA32_VMX_CRn_FIXED0`: bits that must be 1.
    pub fixed0: u64,
    /// `IA32_VMX_CRn_FIXED1`: bits that may be 1.
    pub fixed1: u64,
}

impl FixedBits {
    /// Returns whether a register may have `value`.
    pub const fn allow(self, value: u64) -> bool {
        value & self.fixed0 == self.fixed0 && value & !self.fixed1 == 0
    }
}

consistency_checks! {
    /// Checks whether the processor recognizes the instructions of VMX other than VMXON.
    pub fn check_recognized(processor: &Processor) -> Result<(), Unrecognized> {
        /// VMXON was not executed.
        OutsideVmxOperation: processor.operation == Operation::Outside,
        /// CR0.PE is 0.
        RealMode: processor.mode() == Mode::Real,
        /// RFLAGS.VM is 1.
        Virtual8086Mode: processor.mode() == Mode::Virtual8086,
        /// `IA32_EFER.LMA` is 1 and CS.L is 0.
        CompatibilityMode: processor.mode() == Mode::Compatibility,
    }
}

consistency_checks! {
    /// Checks whether the processor recognizes VMXON.
    pub fn check_vmxon_recognized(processor: &Processor) -> Result<(), VmxonUnrecognized> {
        /// CR0.PE is 0.
        RealMode: processor.mode() == Mode::Real,
        /// CR4.VMXE is 0.
        VmxDisabled: processor.cr4 & Processor::CR4_VMXE == 0,
        /// RFLAGS.VM is 1.
        Virtual8086Mode: processor.mode() == Mode::Virtual8086,
        /// `IA32_EFER.LMA` is 1 and CS.L is 0.
        CompatibilityMode: processor.mode() == Mode::Compatibility,
    }
}

consistency_checks! {
    /// Checks whether the software has the privilege for an instruction of VMX.
    pub fn check_privileged(processor: &Processor) -> Result<(), Unprivileged> {
        /// The current privilege level is not 0.
        PrivilegeLevel: processor.privilege_level > 0,
    }
}

consistency_checks! {
    /// Checks whether a processor outside VMX operation may enter it.
    ///
    /// KVM has no A20M mode and no SMX operation, which the manual names here too.
    pub fn check_vmxon_allowed(
        processor: &Processor,
        requirements: &VmxonRequirements,
    ) -> Result<(), VmxonDisallowed> {
        /// The current privilege level is not 0.
        PrivilegeLevel: processor.privilege_level > 0,
        /// A bit of CR0 is not as VMX operation fixes it.
        Cr0: !requirements.cr0.allow(processor.cr0),
        /// A bit of CR4 is not as VMX operation fixes it.
        Cr4: !requirements.cr4.allow(processor.cr4),
        /// The firmware has not locked `IA32_FEATURE_CONTROL`.
        FeatureControlUnlocked: requirements.feature_control & VmxonRequirements::LOCKED == 0,
        /// The firmware has not enabled VMX outside SMX operation.
        FeatureDisabled:
            requirements.feature_control & VmxonRequirements::ENABLED_OUTSIDE_SMX == 0,
    }
}

/// Checks whether an instruction other than VMXON may be executed.
pub fn check_permission(processor: &Processor) -> Result<(), Refusal> {
    check_recognized(processor)
        .map_err(|check| Refusal::Fault(Fault::InvalidOpcode, check.name()))?;
    check_privileged(processor)
        .map_err(|check| Refusal::Fault(Fault::GeneralProtection, check.name()))
}

/// Checks whether VMXON may be executed, up to the operand.
pub fn check_vmxon_permission(
    processor: &Processor,
    requirements: &VmxonRequirements,
) -> Result<(), Refusal> {
    check_vmxon_recognized(processor)
        .map_err(|check| Refusal::Fault(Fault::InvalidOpcode, check.name()))?;

    match processor.operation {
        Operation::Outside => check_vmxon_allowed(processor, requirements)
            .map_err(|check| Refusal::Fault(Fault::GeneralProtection, check.name())),

        // Who has entered VMX operation need not have what was needed to enter it.
        Operation::Root | Operation::NonRoot => {
            check_privileged(processor)
                .map_err(|check| Refusal::Fault(Fault::GeneralProtection, check.name()))?;
            Err(Refusal::Fail(InstructionError::VMXON_IN_VMX_ROOT_OPERATION))
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(
    CONFIG_KUNIT,
    kernel::macros::kunit_tests(nested_vmx_instruction_permission)
)]
mod tests {
    use super::*;

    /// Kernel code of a 64-bit L1 that has executed VMXON.
    const GOOD: Processor = Processor {
        cr0: 0x8005_0033,
        cr3: 0x1000,
        cr4: 0x2020,
        rflags: 0x2,
        efer: 0xd00,
        cs_access_rights: 0xa09b,
        privilege_level: 0,
        operation: Operation::Root,
    };
    const BEFORE: Processor = Processor {
        operation: Operation::Outside,
        ..GOOD
    };
    const REQUIREMENTS: VmxonRequirements = VmxonRequirements {
        feature_control: 0x5,
        cr0: FixedBits {
            fixed0: 0x8000_0021,
            fixed1: 0xffff_ffff,
        },
        cr4: FixedBits {
            fixed0: 0x2000,
            fixed1: 0x3727ff,
        },
    };
    const REAL: Processor = Processor {
        cr0: 0x10,
        efer: 0,
        ..GOOD
    };
    const PROTECTED: Processor = Processor {
        efer: 0,
        cs_access_rights: 0xc09b,
        ..GOOD
    };
    const VIRTUAL_8086: Processor = Processor {
        rflags: 0x2_0002,
        privilege_level: 3,
        ..PROTECTED
    };
    const COMPATIBILITY: Processor = Processor {
        cs_access_rights: 0xc09b,
        ..GOOD
    };

    fn undefined(check: Unrecognized) -> Result<(), Refusal> {
        Err(Refusal::Fault(Fault::InvalidOpcode, check.name()))
    }

    #[test]
    fn modes_are_told_apart() {
        assert_eq!(GOOD.mode(), Mode::SixtyFourBit);
        assert_eq!(REAL.mode(), Mode::Real);
        assert_eq!(PROTECTED.mode(), Mode::Protected);
        assert_eq!(VIRTUAL_8086.mode(), Mode::Virtual8086);
        assert_eq!(COMPATIBILITY.mode(), Mode::Compatibility);
    }

    #[test]
    fn instructions_are_permitted_in_64_bit_and_in_protected_mode() {
        assert_eq!(check_permission(&GOOD), Ok(()));
        assert_eq!(check_permission(&PROTECTED), Ok(()));
    }

    #[test]
    fn instructions_are_undefined_elsewhere() {
        for (processor, check) in [
            (BEFORE, Unrecognized::OutsideVmxOperation),
            (REAL, Unrecognized::RealMode),
            (VIRTUAL_8086, Unrecognized::Virtual8086Mode),
            (COMPATIBILITY, Unrecognized::CompatibilityMode),
        ] {
            assert_eq!(check_permission(&processor), undefined(check));

            // That comes before the privilege level.
            let user = Processor {
                privilege_level: 3,
                ..processor
            };
            assert_eq!(check_permission(&user), undefined(check));
        }
    }

    #[test]
    fn instructions_of_user_code_fault() {
        for privilege_level in 1..=3 {
            let user = Processor {
                privilege_level,
                ..GOOD
            };
            let fault = |check| Err(Refusal::Fault(Fault::GeneralProtection, check));

            assert_eq!(
                check_permission(&user),
                fault(c"Unprivileged::PrivilegeLevel")
            );
            assert_eq!(
                check_vmxon_permission(&user, &REQUIREMENTS),
                fault(c"Unprivileged::PrivilegeLevel")
            );
        }
    }

    #[test]
    fn vmxon_is_permitted_once() {
        let again = Refusal::Fail(InstructionError::VMXON_IN_VMX_ROOT_OPERATION);

        assert_eq!(check_vmxon_permission(&BEFORE, &REQUIREMENTS), Ok(()));
        assert_eq!(check_vmxon_permission(&GOOD, &REQUIREMENTS), Err(again));
    }

    #[test]
    fn vmxon_is_undefined_without_vmxe_and_in_other_modes() {
        let disabled = Processor {
            cr4: 0x20,
            ..BEFORE
        };

        for (processor, check) in [
            (REAL, VmxonUnrecognized::RealMode),
            (disabled, VmxonUnrecognized::VmxDisabled),
            (VIRTUAL_8086, VmxonUnrecognized::Virtual8086Mode),
            (COMPATIBILITY, VmxonUnrecognized::CompatibilityMode),
        ] {
            let refusal = Refusal::Fault(Fault::InvalidOpcode, check.name());
            let user = Processor {
                privilege_level: 3,
                ..processor
            };

            assert_eq!(check_vmxon_permission(&user, &REQUIREMENTS), Err(refusal));
        }
    }

    #[test]
    fn vmxon_faults_on_each_unmet_requirement() {
        let user = Processor {
            privilege_level: 3,
            ..BEFORE
        };
        let cr0 = Processor {
            cr0: 0x8005_0013,
            ..BEFORE
        };
        let cr4 = Processor {
            cr4: 0x80_2020,
            ..BEFORE
        };
        let unlocked = VmxonRequirements {
            feature_control: 0x4,
            ..REQUIREMENTS
        };
        let only_in_smx = VmxonRequirements {
            feature_control: 0x3,
            ..REQUIREMENTS
        };

        for (processor, requirements, check) in [
            (user, REQUIREMENTS, VmxonDisallowed::PrivilegeLevel),
            (cr0, REQUIREMENTS, VmxonDisallowed::Cr0),
            (cr4, REQUIREMENTS, VmxonDisallowed::Cr4),
            (BEFORE, unlocked, VmxonDisallowed::FeatureControlUnlocked),
            (BEFORE, only_in_smx, VmxonDisallowed::FeatureDisabled),
        ] {
            let refusal = Refusal::Fault(Fault::GeneralProtection, check.name());

            assert_eq!(
                check_vmxon_permission(&processor, &requirements),
                Err(refusal)
            );
        }
    }

    #[test]
    fn in_vmx_operation_vmxon_fails_before_its_requirements_matter() {
        let unlocked = VmxonRequirements {
            feature_control: 0,
            ..REQUIREMENTS
        };
        let again = Refusal::Fail(InstructionError::VMXON_IN_VMX_ROOT_OPERATION);

        assert_eq!(check_vmxon_permission(&GOOD, &unlocked), Err(again));
    }

    #[test]
    fn fixed_bits_are_looked_at_one_by_one() {
        let fixed = FixedBits {
            fixed0: 0b0011,
            fixed1: 0b0111,
        };

        assert!(fixed.allow(0b0011));
        assert!(fixed.allow(0b0111));
        assert!(!fixed.allow(0b0010));
        assert!(!fixed.allow(0b0001));
        assert!(!fixed.allow(0b1011));
    }
}
