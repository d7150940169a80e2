// SPDX-License-Identifier: GPL-2.0

//! Exit reasons.

use crate::exits::Reason;

open_enum! {
    /// A basic exit reason (SDM, "VMX Basic Exit Reasons").
    pub enum ExitReason: u16 {
        /// `EXIT_REASON_EXCEPTION_NMI`.
        EXCEPTION_NMI = 0,
        /// `EXIT_REASON_EXTERNAL_INTERRUPT`.
        EXTERNAL_INTERRUPT = 1,
        /// `EXIT_REASON_TRIPLE_FAULT`.
        TRIPLE_FAULT = 2,
        /// `EXIT_REASON_INIT_SIGNAL`.
        INIT_SIGNAL = 3,
        /// `EXIT_REASON_SIPI_SIGNAL`.
        SIPI_SIGNAL = 4,
        /// `EXIT_REASON_OTHER_SMI`.
        OTHER_SMI = 6,
        /// `EXIT_REASON_INTERRUPT_WINDOW`.
        INTERRUPT_WINDOW = 7,
        /// `EXIT_REASON_NMI_WINDOW`.
        NMI_WINDOW = 8,
        /// `EXIT_REASON_TASK_SWITCH`.
        TASK_SWITCH = 9,
        /// `EXIT_REASON_CPUID`.
        CPUID = 10,
        /// `EXIT_REASON_HLT`.
        HLT = 12,
        /// `EXIT_REASON_INVD`.
        INVD = 13,
        /// `EXIT_REASON_INVLPG`.
        INVLPG = 14,
        /// `EXIT_REASON_RDPMC`.
        RDPMC = 15,
        /// `EXIT_REASON_RDTSC`.
        RDTSC = 16,
        /// `EXIT_REASON_VMCALL`.
        VMCALL = 18,
        /// `EXIT_REASON_VMCLEAR`.
        VMCLEAR = 19,
        /// `EXIT_REASON_VMLAUNCH`.
        VMLAUNCH = 20,
        /// `EXIT_REASON_VMPTRLD`.
        VMPTRLD = 21,
        /// `EXIT_REASON_VMPTRST`.
        VMPTRST = 22,
        /// `EXIT_REASON_VMREAD`.
        VMREAD = 23,
        /// `EXIT_REASON_VMRESUME`.
        VMRESUME = 24,
        /// `EXIT_REASON_VMWRITE`.
        VMWRITE = 25,
        /// `EXIT_REASON_VMOFF`.
        VMXOFF = 26,
        /// `EXIT_REASON_VMON`.
        VMXON = 27,
        /// `EXIT_REASON_CR_ACCESS`.
        CR_ACCESS = 28,
        /// `EXIT_REASON_DR_ACCESS`.
        DR_ACCESS = 29,
        /// `EXIT_REASON_IO_INSTRUCTION`.
        IO_INSTRUCTION = 30,
        /// `EXIT_REASON_MSR_READ`.
        MSR_READ = 31,
        /// `EXIT_REASON_MSR_WRITE`.
        MSR_WRITE = 32,
        /// `EXIT_REASON_INVALID_STATE`.
        INVALID_STATE = 33,
        /// `EXIT_REASON_MSR_LOAD_FAIL`.
        MSR_LOAD_FAIL = 34,
        /// `EXIT_REASON_MWAIT_INSTRUCTION`.
        MWAIT_INSTRUCTION = 36,
        /// `EXIT_REASON_MONITOR_TRAP_FLAG`.
        MONITOR_TRAP_FLAG = 37,
        /// `EXIT_REASON_MONITOR_INSTRUCTION`.
        MONITOR_INSTRUCTION = 39,
        /// `EXIT_REASON_PAUSE_INSTRUCTION`.
        PAUSE_INSTRUCTION = 40,
        /// `EXIT_REASON_MCE_DURING_VMENTRY`.
        MCE_DURING_VMENTRY = 41,
        /// `EXIT_REASON_TPR_BELOW_THRESHOLD`.
        TPR_BELOW_THRESHOLD = 43,
        /// `EXIT_REASON_APIC_ACCESS`.
        APIC_ACCESS = 44,
        /// `EXIT_REASON_EOI_INDUCED`.
        EOI_INDUCED = 45,
        /// `EXIT_REASON_GDTR_IDTR`.
        GDTR_IDTR = 46,
        /// `EXIT_REASON_LDTR_TR`.
        LDTR_TR = 47,
        /// `EXIT_REASON_EPT_VIOLATION`.
        EPT_VIOLATION = 48,
        /// `EXIT_REASON_EPT_MISCONFIG`.
        EPT_MISCONFIG = 49,
        /// `EXIT_REASON_INVEPT`.
        INVEPT = 50,
        /// `EXIT_REASON_RDTSCP`.
        RDTSCP = 51,
        /// `EXIT_REASON_PREEMPTION_TIMER`.
        PREEMPTION_TIMER = 52,
        /// `EXIT_REASON_INVVPID`.
        INVVPID = 53,
        /// `EXIT_REASON_WBINVD`.
        WBINVD = 54,
        /// `EXIT_REASON_XSETBV`.
        XSETBV = 55,
        /// `EXIT_REASON_APIC_WRITE`.
        APIC_WRITE = 56,
        /// `EXIT_REASON_RDRAND`.
        RDRAND = 57,
        /// `EXIT_REASON_INVPCID`.
        INVPCID = 58,
        /// `EXIT_REASON_VMFUNC`.
        VMFUNC = 59,
        /// `EXIT_REASON_ENCLS`.
        ENCLS = 60,
        /// `EXIT_REASON_RDSEED`.
        RDSEED = 61,
        /// `EXIT_REASON_PML_FULL`.
        PML_FULL = 62,
        /// `EXIT_REASON_XSAVES`.
        XSAVES = 63,
        /// `EXIT_REASON_XRSTORS`.
        XRSTORS = 64,
        /// `EXIT_REASON_UMWAIT`.
        UMWAIT = 67,
        /// `EXIT_REASON_TPAUSE`.
        TPAUSE = 68,
        /// `EXIT_REASON_BUS_LOCK`.
        BUS_LOCK = 74,
        /// `EXIT_REASON_NOTIFY`.
        NOTIFY = 75,
        /// `EXIT_REASON_SEAMCALL`.
        SEAMCALL = 76,
        /// `EXIT_REASON_TDCALL`.
        TDCALL = 77,
        /// `EXIT_REASON_MSR_READ_IMM`.
        MSR_READ_IMM = 84,
        /// `EXIT_REASON_MSR_WRITE_IMM`.
        MSR_WRITE_IMM = 85,
    }
}

impl ExitReason {
    /// Takes the basic exit reason out of the exit-reason field, bits 15:0 of which it is.
    pub const fn from_field(field: u32) -> Self {
        let [low, high, _, _] = field.to_le_bytes();

        Self::from_raw(u16::from_le_bytes([low, high]))
    }
}

/// The slots of a counter are the reasons themselves, and one for all that are beyond.
impl Reason for ExitReason {
    const SLOTS: usize = 96;

    fn slot(self) -> usize {
        usize::from(self.into_raw()).min(Self::SLOTS.saturating_sub(1))
    }

    fn slot_name(slot: usize) -> Option<&'static str> {
        u16::try_from(slot).ok().map(Self::from_raw)?.name()
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_exit_reason))]
mod tests {
    use super::*;

    #[test]
    fn every_named_reason_has_a_slot_of_its_own() {
        for &reason in ExitReason::NAMED {
            assert_eq!(ExitReason::slot_name(reason.slot()), reason.name());
        }
    }

    #[test]
    fn every_reason_has_a_slot() {
        for raw in 0..=u16::MAX {
            assert!(ExitReason::from_raw(raw).slot() < ExitReason::SLOTS);
        }
    }

    #[test]
    fn flags_beside_the_basic_reason_are_ignored() {
        let failed_entry = 0x8000_0021;

        assert_eq!(
            ExitReason::from_field(failed_entry),
            ExitReason::INVALID_STATE
        );
        assert_eq!(ExitReason::from_field(10), ExitReason::CPUID);
    }
}
