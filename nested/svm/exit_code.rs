// SPDX-License-Identifier: GPL-2.0

//! Exit codes.

use crate::exits::Reason;

open_enum! {
    /// An intercept exit code (APM, "SVM Intercept Exit Codes").
    pub enum ExitCode: u64 {
        /// `SVM_EXIT_READ_CR0`.
        READ_CR0 = 0x000,
        /// `SVM_EXIT_READ_CR2`.
        READ_CR2 = 0x002,
        /// `SVM_EXIT_READ_CR3`.
        READ_CR3 = 0x003,
        /// `SVM_EXIT_READ_CR4`.
        READ_CR4 = 0x004,
        /// `SVM_EXIT_READ_CR8`.
        READ_CR8 = 0x008,
        /// `SVM_EXIT_WRITE_CR0`.
        WRITE_CR0 = 0x010,
        /// `SVM_EXIT_WRITE_CR2`.
        WRITE_CR2 = 0x012,
        /// `SVM_EXIT_WRITE_CR3`.
        WRITE_CR3 = 0x013,
        /// `SVM_EXIT_WRITE_CR4`.
        WRITE_CR4 = 0x014,
        /// `SVM_EXIT_WRITE_CR8`.
        WRITE_CR8 = 0x018,
        /// `SVM_EXIT_READ_DR0`.
        READ_DR0 = 0x020,
        /// `SVM_EXIT_READ_DR1`.
        READ_DR1 = 0x021,
        /// `SVM_EXIT_READ_DR2`.
        READ_DR2 = 0x022,
        /// `SVM_EXIT_READ_DR3`.
        READ_DR3 = 0x023,
        /// `SVM_EXIT_READ_DR4`.
        READ_DR4 = 0x024,
        /// `SVM_EXIT_READ_DR5`.
        READ_DR5 = 0x025,
        /// `SVM_EXIT_READ_DR6`.
        READ_DR6 = 0x026,
        /// `SVM_EXIT_READ_DR7`.
        READ_DR7 = 0x027,
        /// `SVM_EXIT_WRITE_DR0`.
        WRITE_DR0 = 0x030,
        /// `SVM_EXIT_WRITE_DR1`.
        WRITE_DR1 = 0x031,
        /// `SVM_EXIT_WRITE_DR2`.
        WRITE_DR2 = 0x032,
        /// `SVM_EXIT_WRITE_DR3`.
        WRITE_DR3 = 0x033,
        /// `SVM_EXIT_WRITE_DR4`.
        WRITE_DR4 = 0x034,
        /// `SVM_EXIT_WRITE_DR5`.
        WRITE_DR5 = 0x035,
        /// `SVM_EXIT_WRITE_DR6`.
        WRITE_DR6 = 0x036,
        /// `SVM_EXIT_WRITE_DR7`.
        WRITE_DR7 = 0x037,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#DE`.
        EXCP_DE = 0x040,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#DB`.
        EXCP_DB = 0x041,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#BP`.
        EXCP_BP = 0x043,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#OF`.
        EXCP_OF = 0x044,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#BR`.
        EXCP_BR = 0x045,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#UD`.
        EXCP_UD = 0x046,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#NM`.
        EXCP_NM = 0x047,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#DF`.
        EXCP_DF = 0x048,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#TS`.
        EXCP_TS = 0x04a,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#NP`.
        EXCP_NP = 0x04b,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#SS`.
        EXCP_SS = 0x04c,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#GP`.
        EXCP_GP = 0x04d,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#PF`.
        EXCP_PF = 0x04e,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#MF`.
        EXCP_MF = 0x050,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#AC`.
        EXCP_AC = 0x051,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#MC`.
        EXCP_MC = 0x052,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#XF`.
        EXCP_XF = 0x053,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#CP`.
        EXCP_CP = 0x055,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#HV`.
        EXCP_HV = 0x05c,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#VC`.
        EXCP_VC = 0x05d,
        /// `SVM_EXIT_EXCP_BASE` and the vector of `#SX`.
        EXCP_SX = 0x05e,
        /// `SVM_EXIT_INTR`.
        INTR = 0x060,
        /// `SVM_EXIT_NMI`.
        NMI = 0x061,
        /// `SVM_EXIT_SMI`.
        SMI = 0x062,
        /// `SVM_EXIT_INIT`.
        INIT = 0x063,
        /// `SVM_EXIT_VINTR`.
        VINTR = 0x064,
        /// `SVM_EXIT_CR0_SEL_WRITE`.
        CR0_SEL_WRITE = 0x065,
        /// `SVM_EXIT_IDTR_READ`.
        IDTR_READ = 0x066,
        /// `SVM_EXIT_GDTR_READ`.
        GDTR_READ = 0x067,
        /// `SVM_EXIT_LDTR_READ`.
        LDTR_READ = 0x068,
        /// `SVM_EXIT_TR_READ`.
        TR_READ = 0x069,
        /// `SVM_EXIT_IDTR_WRITE`.
        IDTR_WRITE = 0x06a,
        /// `SVM_EXIT_GDTR_WRITE`.
        GDTR_WRITE = 0x06b,
        /// `SVM_EXIT_LDTR_WRITE`.
        LDTR_WRITE = 0x06c,
        /// `SVM_EXIT_TR_WRITE`.
        TR_WRITE = 0x06d,
        /// `SVM_EXIT_RDTSC`.
        RDTSC = 0x06e,
        /// `SVM_EXIT_RDPMC`.
        RDPMC = 0x06f,
        /// `SVM_EXIT_PUSHF`.
        PUSHF = 0x070,
        /// `SVM_EXIT_POPF`.
        POPF = 0x071,
        /// `SVM_EXIT_CPUID`.
        CPUID = 0x072,
        /// `SVM_EXIT_RSM`.
        RSM = 0x073,
        /// `SVM_EXIT_IRET`.
        IRET = 0x074,
        /// `SVM_EXIT_SWINT`.
        SWINT = 0x075,
        /// `SVM_EXIT_INVD`.
        INVD = 0x076,
        /// `SVM_EXIT_PAUSE`.
        PAUSE = 0x077,
        /// `SVM_EXIT_HLT`.
        HLT = 0x078,
        /// `SVM_EXIT_INVLPG`.
        INVLPG = 0x079,
        /// `SVM_EXIT_INVLPGA`.
        INVLPGA = 0x07a,
        /// `SVM_EXIT_IOIO`.
        IOIO = 0x07b,
        /// `SVM_EXIT_MSR`.
        MSR = 0x07c,
        /// `SVM_EXIT_TASK_SWITCH`.
        TASK_SWITCH = 0x07d,
        /// `SVM_EXIT_FERR_FREEZE`.
        FERR_FREEZE = 0x07e,
        /// `SVM_EXIT_SHUTDOWN`.
        SHUTDOWN = 0x07f,
        /// `SVM_EXIT_VMRUN`.
        VMRUN = 0x080,
        /// `SVM_EXIT_VMMCALL`.
        VMMCALL = 0x081,
        /// `SVM_EXIT_VMLOAD`.
        VMLOAD = 0x082,
        /// `SVM_EXIT_VMSAVE`.
        VMSAVE = 0x083,
        /// `SVM_EXIT_STGI`.
        STGI = 0x084,
        /// `SVM_EXIT_CLGI`.
        CLGI = 0x085,
        /// `SVM_EXIT_SKINIT`.
        SKINIT = 0x086,
        /// `SVM_EXIT_RDTSCP`.
        RDTSCP = 0x087,
        /// `SVM_EXIT_ICEBP`.
        ICEBP = 0x088,
        /// `SVM_EXIT_WBINVD`.
        WBINVD = 0x089,
        /// `SVM_EXIT_MONITOR`.
        MONITOR = 0x08a,
        /// `SVM_EXIT_MWAIT`.
        MWAIT = 0x08b,
        /// `SVM_EXIT_MWAIT_COND`.
        MWAIT_COND = 0x08c,
        /// `SVM_EXIT_XSETBV`.
        XSETBV = 0x08d,
        /// `SVM_EXIT_RDPRU`.
        RDPRU = 0x08e,
        /// `SVM_EXIT_EFER_WRITE_TRAP`.
        EFER_WRITE_TRAP = 0x08f,
        /// `SVM_EXIT_CR0_WRITE_TRAP`.
        CR0_WRITE_TRAP = 0x090,
        /// `SVM_EXIT_CR1_WRITE_TRAP`.
        CR1_WRITE_TRAP = 0x091,
        /// `SVM_EXIT_CR2_WRITE_TRAP`.
        CR2_WRITE_TRAP = 0x092,
        /// `SVM_EXIT_CR3_WRITE_TRAP`.
        CR3_WRITE_TRAP = 0x093,
        /// `SVM_EXIT_CR4_WRITE_TRAP`.
        CR4_WRITE_TRAP = 0x094,
        /// `SVM_EXIT_CR5_WRITE_TRAP`.
        CR5_WRITE_TRAP = 0x095,
        /// `SVM_EXIT_CR6_WRITE_TRAP`.
        CR6_WRITE_TRAP = 0x096,
        /// `SVM_EXIT_CR7_WRITE_TRAP`.
        CR7_WRITE_TRAP = 0x097,
        /// `SVM_EXIT_CR8_WRITE_TRAP`.
        CR8_WRITE_TRAP = 0x098,
        /// `SVM_EXIT_CR9_WRITE_TRAP`.
        CR9_WRITE_TRAP = 0x099,
        /// `SVM_EXIT_CR10_WRITE_TRAP`.
        CR10_WRITE_TRAP = 0x09a,
        /// `SVM_EXIT_CR11_WRITE_TRAP`.
        CR11_WRITE_TRAP = 0x09b,
        /// `SVM_EXIT_CR12_WRITE_TRAP`.
        CR12_WRITE_TRAP = 0x09c,
        /// `SVM_EXIT_CR13_WRITE_TRAP`.
        CR13_WRITE_TRAP = 0x09d,
        /// `SVM_EXIT_CR14_WRITE_TRAP`.
        CR14_WRITE_TRAP = 0x09e,
        /// `SVM_EXIT_CR15_WRITE_TRAP`.
        CR15_WRITE_TRAP = 0x09f,
        /// `SVM_EXIT_INVPCID`.
        INVPCID = 0x0a2,
        /// `SVM_EXIT_BUS_LOCK`.
        BUS_LOCK = 0x0a5,
        /// `SVM_EXIT_IDLE_HLT`.
        IDLE_HLT = 0x0a6,
        /// `SVM_EXIT_NPF`.
        NPF = 0x400,
        /// `SVM_EXIT_AVIC_INCOMPLETE_IPI`.
        AVIC_INCOMPLETE_IPI = 0x401,
        /// `SVM_EXIT_AVIC_UNACCELERATED_ACCESS`.
        AVIC_UNACCELERATED_ACCESS = 0x402,
        /// `SVM_EXIT_VMGEXIT`.
        VMGEXIT = 0x403,
        /// `SVM_EXIT_SW`, for software: Hyper-V's hosts report what they did for a guest.
        ENLIGHTENMENT = 0xf000_0000,
        /// `SVM_EXIT_ERR`: VMRUN has found the guest state in the VMCB to be illegal.
        INVALID = u64::MAX,
    }
}

impl ExitCode {
    /// Returns the vector, if the guest has exited because of an exception.
    #[inline]
    pub const fn exception(self) -> Option<u8> {
        match self.into_raw() {
            #[allow(clippy::cast_possible_truncation, reason = "masked to 5 bits")]
            code @ 0x40..=0x5f => Some((code & 0x1f) as u8),
            _ => None,
        }
    }

    /// Returns the code of an exit because of the exception with `vector`.
    #[inline]
    pub const fn of_exception(vector: u8) -> Self {
        Self::from_raw(Self::EXCP_DE.into_raw() | (vector & 0x1f) as u64)
    }

    /// Returns whether VMRUN has failed: the guest has not run.
    ///
    /// Where the processor itself is virtual, its hypervisor may write 32 bits only.
    #[inline]
    pub const fn is_vmrun_failure(self) -> bool {
        self.into_raw() & 0xffff_ffff == 0xffff_ffff
    }
}

/// The slots of a counter are the codes up to [`ExitCode::LAST_DENSE`], those around the nested
/// page fault, [`ExitCode::INVALID`], and one for all that are beyond.
impl ExitCode {
    const LAST_DENSE: u64 = 0xa7;
    const LAST_NPF: u64 = 0x403;
    const NPF_SLOT: usize = 0xa8;
    const INVALID_SLOT: usize = 0xac;
    const ENLIGHTENMENT_SLOT: usize = 0xad;
    const OTHER_SLOT: usize = 0xae;
}

impl Reason for ExitCode {
    const SLOTS: usize = 0xaf;

    fn slot(self) -> usize {
        let slot = match self.into_raw() {
            code @ 0..=Self::LAST_DENSE => usize::try_from(code).ok(),
            code @ 0x400..=Self::LAST_NPF => usize::try_from(code & 3)
                .ok()
                .and_then(|offset| offset.checked_add(Self::NPF_SLOT)),
            0xf000_0000 => Some(Self::ENLIGHTENMENT_SLOT),
            u64::MAX => Some(Self::INVALID_SLOT),
            _ => None,
        };

        slot.unwrap_or(Self::OTHER_SLOT)
    }

    fn slot_name(slot: usize) -> Option<&'static str> {
        let code = match slot {
            Self::NPF_SLOT..Self::INVALID_SLOT => {
                Self::NPF.into_raw() | u64::try_from(slot & 3).ok()?
            }
            Self::ENLIGHTENMENT_SLOT => Self::ENLIGHTENMENT.into_raw(),
            Self::INVALID_SLOT => u64::MAX,
            Self::OTHER_SLOT => return Some("OTHER"),
            _ => u64::try_from(slot).ok()?,
        };

        Self::from_raw(code).name()
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_svm_exit_code))]
mod tests {
    use super::*;

    #[test]
    fn every_named_code_has_a_slot_of_its_own() {
        for &code in ExitCode::NAMED {
            assert_eq!(ExitCode::slot_name(code.slot()), code.name());
        }
    }

    #[test]
    fn every_code_has_a_slot() {
        for raw in (0..0x1_0000).chain([1 << 31, 1 << 32, 0x400 | 1 << 32, u64::MAX - 1, u64::MAX])
        {
            assert!(ExitCode::from_raw(raw).slot() < ExitCode::SLOTS);
        }
    }

    #[test]
    fn exceptions_are_32_codes() {
        for raw in 0..0x500u64 {
            let exception = ExitCode::from_raw(raw).exception();

            assert_eq!(
                exception.map(u64::from),
                raw.checked_sub(0x40).filter(|v| *v < 32)
            );
        }
    }

    #[test]
    fn unknown_codes_share_a_slot() {
        assert_eq!(
            ExitCode::slot_name(ExitCode::from_raw(0x404).slot()),
            Some("OTHER")
        );
    }
}
