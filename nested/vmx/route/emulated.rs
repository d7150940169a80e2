// SPDX-License-Identifier: GPL-2.0

//! Instructions of L2 that L0 emulates.
//!
//! An instruction that L0 emulates does not exit by itself. What L1 would have seen has to be found
//! out here, before the instruction has an effect, or L2 gets around the intercepts of L1.

use super::{ControlRegisterAccess, IoInstruction};
use crate::{
    memory::GuestMemory,
    vmx::{
        merge::{
            io_bitmap::io_exits_to_l1,
            msr_bitmap::{msr_exits_to_l1, Access},
        },
        ExitReason, Vmcs12,
    },
};

/// An instruction that L0 is about to emulate for L2, as far as VMX can intercept it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// IN, OUT, INS, OUTS.
    Io(IoInstruction),
    /// LGDT, LIDT, SGDT, SIDT.
    GdtrIdtr {
        /// The displacement of the memory operand.
        displacement: u64,
    },
    /// LLDT, LTR, SLDT, STR.
    LdtrTr {
        /// The displacement of the memory operand, if that is what it has.
        displacement: u64,
    },
    /// MOV to and from control registers, CLTS, LMSW.
    ControlRegister {
        /// What it does.
        access: ControlRegisterAccess,
        /// The value that MOV writes.
        value: u64,
    },
    /// MOV to and from debug registers.
    DebugRegister {
        /// The exit qualification (SDM, "Exit Qualification for MOV DR").
        qualification: u64,
    },
    /// RDMSR.
    Rdmsr {
        /// The MSR.
        msr: u32,
    },
    /// WRMSR.
    Wrmsr {
        /// The MSR.
        msr: u32,
    },
    /// INVLPG.
    Invlpg {
        /// The linear address of the operand.
        address: u64,
    },
    /// MWAIT.
    Mwait {
        /// 1 if address-range monitoring is armed.
        armed: u64,
    },
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// INVD.
    Invd,
    /// MONITOR.
    Monitor,
    /// PAUSE.
    Pause,
    /// RDPID.
    Rdpid,
    /// RDPMC.
    Rdpmc,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// WBINVD, WBNOINVD.
    Wbinvd,
    /// XSETBV.
    Xsetbv,
    /// An instruction that VMX never intercepts, such as SMSW, PUSHF, IRET, INT.
    Other,
}

/// What becomes of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercept {
    /// L1 does not intercept it: L0 goes on with it.
    Continue,
    /// L1 has not enabled it: it raises #UD.
    UndefinedOpcode,
    /// L1 intercepts it.
    Exit {
        /// The basic exit reason.
        reason: ExitReason,
        /// The exit qualification.
        qualification: u64,
    },
}

/// Finds out what L1 has decided about an instruction that L0 is about to emulate.
#[must_use]
pub fn check_intercept(
    vmcs12: &Vmcs12,
    memory: &impl GuestMemory,
    instruction: Instruction,
) -> Intercept {
    use Instruction as I;

    if !is_enabled(vmcs12, instruction) {
        return Intercept::UndefinedOpcode;
    }

    let (reason, qualification, intercepted) = match instruction {
        I::Io(io) => (
            ExitReason::IO_INSTRUCTION,
            io.into_qualification(),
            io_exits_to_l1(vmcs12, memory, io.access),
        ),
        I::GdtrIdtr { displacement } => (
            ExitReason::GDTR_IDTR,
            displacement,
            vmcs12.secondary().descriptor_table_exiting(),
        ),
        I::LdtrTr { displacement } => (
            ExitReason::LDTR_TR,
            displacement,
            vmcs12.secondary().descriptor_table_exiting(),
        ),
        I::ControlRegister { access, value } => (
            ExitReason::CR_ACCESS,
            access.into_qualification(),
            access.exits_to_l1(vmcs12, |_| value),
        ),
        I::DebugRegister { qualification } => (
            ExitReason::DR_ACCESS,
            qualification,
            vmcs12.primary().mov_dr_exiting(),
        ),
        I::Rdmsr { msr } => (
            ExitReason::MSR_READ,
            0,
            msr_exits_to_l1(vmcs12, memory, msr, Access::Read),
        ),
        I::Wrmsr { msr } => (
            ExitReason::MSR_WRITE,
            0,
            msr_exits_to_l1(vmcs12, memory, msr, Access::Write),
        ),
        I::Invlpg { address } => (
            ExitReason::INVLPG,
            address,
            vmcs12.primary().invlpg_exiting(),
        ),
        I::Mwait { armed } => (
            ExitReason::MWAIT_INSTRUCTION,
            armed,
            vmcs12.primary().mwait_exiting(),
        ),
        I::Cpuid => (ExitReason::CPUID, 0, true),
        I::Hlt => (ExitReason::HLT, 0, vmcs12.primary().hlt_exiting()),
        I::Invd => (ExitReason::INVD, 0, true),
        I::Monitor => (
            ExitReason::MONITOR_INSTRUCTION,
            0,
            vmcs12.primary().monitor_exiting(),
        ),
        // PAUSE-loop exiting does not count: L1 cannot expect that it is this PAUSE that exits.
        I::Pause => (
            ExitReason::PAUSE_INSTRUCTION,
            0,
            vmcs12.primary().pause_exiting(),
        ),
        I::Rdpmc => (ExitReason::RDPMC, 0, vmcs12.primary().rdpmc_exiting()),
        I::Rdtsc => (ExitReason::RDTSC, 0, vmcs12.primary().rdtsc_exiting()),
        I::Rdtscp => (ExitReason::RDTSCP, 0, vmcs12.primary().rdtsc_exiting()),
        I::Wbinvd => (ExitReason::WBINVD, 0, vmcs12.secondary().wbinvd_exiting()),
        I::Xsetbv => (ExitReason::XSETBV, 0, true),
        // RDPID reads an MSR, which does not make it an access that the MSR bitmap is about.
        I::Rdpid | I::Other => return Intercept::Continue,
    };

    if intercepted {
        Intercept::Exit {
            reason,
            qualification,
        }
    } else {
        Intercept::Continue
    }
}

/// Returns whether L1 lets L2 have an instruction.
fn is_enabled(vmcs12: &Vmcs12, instruction: Instruction) -> bool {
    match instruction {
        Instruction::Rdpid | Instruction::Rdtscp => vmcs12.secondary().rdtscp(),
        _ => true,
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_route_emulated))]
mod tests {
    use super::{
        super::{fake::Memory, io_instruction::OUT_0X80},
        *,
    };
    use crate::vmx::controls;

    const ACTIVATE: u32 = controls::Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw();

    fn check(primary: u32, secondary: u32, instruction: Instruction) -> Intercept {
        let vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: primary,
            secondary_vm_exec_control: secondary,
            ..Vmcs12::default()
        };

        check_intercept(&vmcs12, &Memory::EMPTY, instruction)
    }

    fn exit(reason: ExitReason, qualification: u64) -> Intercept {
        Intercept::Exit {
            reason,
            qualification,
        }
    }

    #[test]
    fn instructions_exit_by_their_control() {
        use Instruction as I;

        for (instruction, primary, secondary, expected) in [
            (
                I::Io(OUT_0X80),
                controls::Primary::UNCOND_IO_EXITING.into_raw(),
                0,
                exit(ExitReason::IO_INSTRUCTION, 0x80_0040),
            ),
            (
                I::GdtrIdtr { displacement: 8 },
                0,
                controls::Secondary::DESC.into_raw(),
                exit(ExitReason::GDTR_IDTR, 8),
            ),
            (
                I::LdtrTr { displacement: 0 },
                0,
                controls::Secondary::DESC.into_raw(),
                exit(ExitReason::LDTR_TR, 0),
            ),
            (
                I::ControlRegister {
                    access: ControlRegisterAccess::from_qualification(0x303),
                    value: 0,
                },
                controls::Primary::CR3_LOAD_EXITING.into_raw(),
                0,
                exit(ExitReason::CR_ACCESS, 0x303),
            ),
            (
                I::DebugRegister {
                    qualification: 0x17,
                },
                controls::Primary::MOV_DR_EXITING.into_raw(),
                0,
                exit(ExitReason::DR_ACCESS, 0x17),
            ),
            (
                I::Invlpg { address: 0x1234 },
                controls::Primary::INVLPG_EXITING.into_raw(),
                0,
                exit(ExitReason::INVLPG, 0x1234),
            ),
            (
                I::Mwait { armed: 1 },
                controls::Primary::MWAIT_EXITING.into_raw(),
                0,
                exit(ExitReason::MWAIT_INSTRUCTION, 1),
            ),
            (
                I::Hlt,
                controls::Primary::HLT_EXITING.into_raw(),
                0,
                exit(ExitReason::HLT, 0),
            ),
            (
                I::Monitor,
                controls::Primary::MONITOR_EXITING.into_raw(),
                0,
                exit(ExitReason::MONITOR_INSTRUCTION, 0),
            ),
            (
                I::Pause,
                controls::Primary::PAUSE_EXITING.into_raw(),
                0,
                exit(ExitReason::PAUSE_INSTRUCTION, 0),
            ),
            (
                I::Rdpmc,
                controls::Primary::RDPMC_EXITING.into_raw(),
                0,
                exit(ExitReason::RDPMC, 0),
            ),
            (
                I::Rdtsc,
                controls::Primary::RDTSC_EXITING.into_raw(),
                0,
                exit(ExitReason::RDTSC, 0),
            ),
            (
                I::Wbinvd,
                0,
                controls::Secondary::WBINVD_EXITING.into_raw(),
                exit(ExitReason::WBINVD, 0),
            ),
        ] {
            assert_eq!(check(ACTIVATE | primary, secondary, instruction), expected);
            assert_eq!(
                check(ACTIVATE & !primary, !secondary, instruction),
                Intercept::Continue
            );
        }
    }

    #[test]
    fn some_instructions_always_exit_and_some_never_do() {
        use Instruction as I;

        for (instruction, reason) in [
            (I::Cpuid, ExitReason::CPUID),
            (I::Invd, ExitReason::INVD),
            (I::Xsetbv, ExitReason::XSETBV),
            // Without bitmaps, each access to an MSR.
            (I::Rdmsr { msr: 0x10 }, ExitReason::MSR_READ),
            (I::Wrmsr { msr: 0x10 }, ExitReason::MSR_WRITE),
        ] {
            assert_eq!(check(0, 0, instruction), exit(reason, 0));
        }
        assert_eq!(check(u32::MAX, u32::MAX, I::Other), Intercept::Continue);
    }

    #[test]
    fn rdtscp_and_rdpid_need_to_be_enabled() {
        const RDTSC: u32 = controls::Primary::RDTSC_EXITING.into_raw();
        const ENABLE: u32 = controls::Secondary::ENABLE_RDTSCP.into_raw();

        for (primary, secondary, rdtscp, rdpid) in [
            (
                ACTIVATE | RDTSC,
                0,
                Intercept::UndefinedOpcode,
                Intercept::UndefinedOpcode,
            ),
            (ACTIVATE, ENABLE, Intercept::Continue, Intercept::Continue),
            (
                ACTIVATE | RDTSC,
                ENABLE,
                exit(ExitReason::RDTSCP, 0),
                Intercept::Continue,
            ),
        ] {
            assert_eq!(check(primary, secondary, Instruction::Rdtscp), rdtscp);
            assert_eq!(check(primary, secondary, Instruction::Rdpid), rdpid);
        }
    }

    #[test]
    fn pause_loop_exiting_leaves_an_emulated_pause_alone() {
        assert_eq!(
            check(
                ACTIVATE,
                controls::Secondary::PAUSE_LOOP_EXITING.into_raw(),
                Instruction::Pause
            ),
            Intercept::Continue
        );
    }

    #[test]
    fn bitmaps_of_l1_count_for_emulated_instructions_too() {
        let vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: controls::Primary::USE_IO_BITMAPS.into_raw()
                | controls::Primary::USE_MSR_BITMAPS.into_raw(),
            io_bitmap_a: 0x1000,
            msr_bitmap: 0x1000,
            ..Vmcs12::default()
        };
        let check = |byte, instruction| {
            let memory = Memory {
                address: 0x1010,
                byte,
            };
            check_intercept(&vmcs12, &memory, instruction)
        };
        let rdmsr = Instruction::Rdmsr { msr: 0x80 };

        assert_eq!(
            check(1, Instruction::Io(OUT_0X80)),
            exit(ExitReason::IO_INSTRUCTION, 0x80_0040)
        );
        assert_eq!(check(0xfe, Instruction::Io(OUT_0X80)), Intercept::Continue);
        assert_eq!(check(1, rdmsr), exit(ExitReason::MSR_READ, 0));
        assert_eq!(check(0xfe, rdmsr), Intercept::Continue);
    }
}
