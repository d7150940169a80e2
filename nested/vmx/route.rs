// SPDX-License-Identifier: GPL-2.0

//! Who gets an exit of L2.
//!
//! vmcs02 exits for what L0 needs and for what L1 asks for. First L0 takes what is its own business
//! whatever L1 says; then L1 gets what it asked for; the rest L0 handles behind L1's back.

mod control_register;
mod exception;
mod instruction;

use super::{
    exit::interruption::InterruptionInformation,
    merge::{
        io_bitmap::{io_exits_to_l1, IoAccess},
        msr_bitmap::{msr_exits_to_l1, Access},
    },
    ExitReason, Vmcs12,
};
use crate::{exits::Taker, memory::GuestMemory};

pub use control_register::{ControlRegisterAccess, LmswOperand};

/// Who an exit of L2 goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// L0 handles it, L1 does not see it.
    L0,
    /// L0 has to look at it; what it finds may be an exit to L1, of this reason or another.
    L0First,
    /// L1 gets it.
    L1,
}

impl From<Route> for Taker {
    fn from(route: Route) -> Self {
        match route {
            Route::L0 | Route::L0First => Self::L0,
            Route::L1 => Self::L1,
        }
    }
}

/// A reason for which L0 may want an exit at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A page fault: L0 intercepts them, or the fault tells it that a page of the host is absent.
    PageFault,
    /// A debug exception: user space single-steps L1 or has set hardware breakpoints.
    DebugException,
    /// A breakpoint: user space has set software breakpoints.
    Breakpoint,
    /// An alignment check: a split lock that the host does not tolerate.
    AlignmentCheck,
    /// A hypercall of L2 by which it flushes TLBs, and that L1 lets L0 answer.
    FlushHypercall,
    /// A CPUID that L0 refuses: user space has turned on CPUID faulting.
    Cpuid,
    /// An ENCLS for which there is #UD, because L1 has no SGX.
    Encls,
}

/// What routing asks about an exit.
///
/// Most exits are routed by their reason alone. Reading a field of vmcs02 is not free: nothing is
/// read that is not asked for.
pub trait ExitFacts {
    /// Returns the exit qualification.
    fn qualification(&self) -> u64;

    /// Returns the VM-exit interruption information.
    fn interruption(&self) -> InterruptionInformation;

    /// Returns the VM-exit instruction information.
    fn instruction_information(&self) -> u32;

    /// Returns a general-purpose register of L2, by its number in instructions.
    ///
    /// Outside of 64-bit mode, only the lower 32 bits count.
    fn register(&self, number: u8) -> u64;

    /// Returns whether L0 wants the exit for a reason of its own.
    fn l0_wants(&self, wish: Wish) -> bool;
}

/// An exit of L2.
#[derive(Debug)]
pub struct Exit<'a, F, M> {
    /// The basic exit reason.
    pub reason: ExitReason,
    /// The VMCS that L1 runs L2 with.
    pub vmcs12: &'a Vmcs12,
    /// The rest of what is known of the exit.
    pub facts: &'a F,
    /// The memory of L1, where bitmaps are.
    pub memory: &'a M,
}

impl<F: ExitFacts, M: GuestMemory> Exit<'_, F, M> {
    /// Returns who gets the exit.
    pub fn route(&self) -> Route {
        match self.taken_by_l0() {
            Some(route) => route,
            None if self.is_wanted_by_l1() => Route::L1,
            None => Route::L0,
        }
    }

    /// Returns the route of an exit that is L0's whatever L1 wants.
    fn taken_by_l0(&self) -> Option<Route> {
        let if_wished = |wish| self.facts.l0_wants(wish).then_some(Route::L0);

        match self.reason {
            ExitReason::EXCEPTION_NMI => exception::taken_by_l0(self.facts),
            // Interrupts, machine checks and the timer are the host's.
            ExitReason::EXTERNAL_INTERRUPT
            | ExitReason::MCE_DURING_VMENTRY
            | ExitReason::PREEMPTION_TIMER => Some(Route::L0),
            // A fault in EPT02 may be one in EPT12; only a walk of the latter can tell.
            ExitReason::EPT_VIOLATION => Some(Route::L0First),
            // Entries of EPT02 are written by L0 alone.
            ExitReason::EPT_MISCONFIG => Some(Route::L0),
            // Both are off in vmcs02, L0 emulates what L1 set up.
            ExitReason::VMFUNC => Some(Route::L0First),
            ExitReason::PML_FULL => Some(Route::L0),
            // Not offered to L1.
            ExitReason::BUS_LOCK => Some(Route::L0),
            ExitReason::VMCALL => if_wished(Wish::FlushHypercall),
            ExitReason::CPUID => if_wished(Wish::Cpuid),
            ExitReason::ENCLS => if_wished(Wish::Encls),
            _ => None,
        }
    }

    /// Returns whether L1 asked for the exit.
    fn is_wanted_by_l1(&self) -> bool {
        let vmcs12 = self.vmcs12;

        match self.reason {
            ExitReason::EXCEPTION_NMI => {
                exception::is_wanted_by_l1(vmcs12, self.facts.interruption())
            }
            ExitReason::INTERRUPT_WINDOW => vmcs12.primary().interrupt_window_exiting(),
            ExitReason::NMI_WINDOW => vmcs12.primary().nmi_window_exiting(),
            ExitReason::HLT => vmcs12.primary().hlt_exiting(),
            ExitReason::INVLPG => vmcs12.primary().invlpg_exiting(),
            ExitReason::RDPMC => vmcs12.primary().rdpmc_exiting(),
            ExitReason::RDTSC | ExitReason::RDTSCP => vmcs12.primary().rdtsc_exiting(),
            ExitReason::DR_ACCESS => vmcs12.primary().mov_dr_exiting(),
            ExitReason::MWAIT_INSTRUCTION => vmcs12.primary().mwait_exiting(),
            ExitReason::MONITOR_INSTRUCTION => vmcs12.primary().monitor_exiting(),
            ExitReason::PAUSE_INSTRUCTION => {
                vmcs12.primary().pause_exiting() || vmcs12.secondary().pause_loop_exiting()
            }
            ExitReason::TPR_BELOW_THRESHOLD => vmcs12.primary().tpr_shadow(),
            ExitReason::GDTR_IDTR | ExitReason::LDTR_TR => {
                vmcs12.secondary().descriptor_table_exiting()
            }
            ExitReason::RDRAND => vmcs12.secondary().rdrand_exiting(),
            ExitReason::RDSEED => vmcs12.secondary().rdseed_exiting(),
            ExitReason::WBINVD => vmcs12.secondary().wbinvd_exiting(),
            // The instruction exits by the control of INVLPG, if there is the instruction at all.
            ExitReason::INVPCID => {
                vmcs12.secondary().invpcid() && vmcs12.primary().invlpg_exiting()
            }
            ExitReason::UMWAIT | ExitReason::TPAUSE => vmcs12.secondary().user_wait_and_pause(),
            ExitReason::CR_ACCESS => {
                let access = ControlRegisterAccess::from_qualification(self.facts.qualification());

                access.exits_to_l1(vmcs12, |register| self.facts.register(register))
            }
            ExitReason::IO_INSTRUCTION => {
                let access = IoAccess::from_qualification(self.facts.qualification());

                io_exits_to_l1(vmcs12, self.memory, access)
            }
            ExitReason::MSR_READ | ExitReason::MSR_READ_IMM => self.is_msr_wanted(Access::Read),
            ExitReason::MSR_WRITE | ExitReason::MSR_WRITE_IMM => self.is_msr_wanted(Access::Write),
            ExitReason::VMREAD => self.is_field_wanted(vmcs12.vmread_bitmap),
            ExitReason::VMWRITE => self.is_field_wanted(vmcs12.vmwrite_bitmap),
            ExitReason::MONITOR_TRAP_FLAG => instruction::is_monitor_trap_wanted(vmcs12),
            ExitReason::ENCLS => instruction::is_encls_wanted(vmcs12, self.facts),
            // Neither offered to L1 nor emulated for it.
            ExitReason::NOTIFY | ExitReason::SEAMCALL | ExitReason::TDCALL => false,
            // What exits unconditionally, what only L1's controls make exit (the virtual APIC, the
            // XSS bitmap), and what is not known here: L1 asked for it, or nobody did.
            _ => true,
        }
    }

    fn is_msr_wanted(&self, access: Access) -> bool {
        let msr = instruction::msr(self.reason, self.facts);

        msr_exits_to_l1(self.vmcs12, self.memory, msr, access)
    }

    fn is_field_wanted(&self, bitmap: u64) -> bool {
        instruction::is_field_wanted(self.vmcs12, self.memory, bitmap, self.facts)
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
mod fake;

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_route))]
mod tests {
    use super::{
        fake::{Facts, Memory},
        *,
    };
    use crate::vmx::controls::{Primary, Secondary};

    /// What decides about an exit, for those that depend on no more than controls.
    #[derive(Clone, Copy)]
    enum Decider {
        Always(Route),
        OnPrimary(Primary),
        OnSecondary(Secondary),
        /// Both are needed.
        Both(Primary, Secondary),
        /// Tests of their own look at it.
        Other,
    }

    use Decider::{Always, Both, OnPrimary, OnSecondary, Other};

    /// The reasons that do not go to L1 always, in their order.
    const DECIDERS: &[(ExitReason, Decider)] = &[
        (ExitReason::EXCEPTION_NMI, Other),
        (ExitReason::EXTERNAL_INTERRUPT, Always(Route::L0)),
        (
            ExitReason::INTERRUPT_WINDOW,
            OnPrimary(Primary::INTR_WINDOW_EXITING),
        ),
        (
            ExitReason::NMI_WINDOW,
            OnPrimary(Primary::NMI_WINDOW_EXITING),
        ),
        (ExitReason::HLT, OnPrimary(Primary::HLT_EXITING)),
        (ExitReason::INVLPG, OnPrimary(Primary::INVLPG_EXITING)),
        (ExitReason::RDPMC, OnPrimary(Primary::RDPMC_EXITING)),
        (ExitReason::RDTSC, OnPrimary(Primary::RDTSC_EXITING)),
        (ExitReason::VMREAD, Other),
        (ExitReason::VMWRITE, Other),
        (ExitReason::CR_ACCESS, Other),
        (ExitReason::DR_ACCESS, OnPrimary(Primary::MOV_DR_EXITING)),
        (ExitReason::IO_INSTRUCTION, Other),
        (ExitReason::MSR_READ, Other),
        (ExitReason::MSR_WRITE, Other),
        (
            ExitReason::MWAIT_INSTRUCTION,
            OnPrimary(Primary::MWAIT_EXITING),
        ),
        (
            ExitReason::MONITOR_TRAP_FLAG,
            OnPrimary(Primary::MONITOR_TRAP_FLAG),
        ),
        (
            ExitReason::MONITOR_INSTRUCTION,
            OnPrimary(Primary::MONITOR_EXITING),
        ),
        (
            ExitReason::PAUSE_INSTRUCTION,
            OnPrimary(Primary::PAUSE_EXITING),
        ),
        (
            ExitReason::PAUSE_INSTRUCTION,
            OnSecondary(Secondary::PAUSE_LOOP_EXITING),
        ),
        (ExitReason::MCE_DURING_VMENTRY, Always(Route::L0)),
        (
            ExitReason::TPR_BELOW_THRESHOLD,
            OnPrimary(Primary::TPR_SHADOW),
        ),
        (ExitReason::GDTR_IDTR, OnSecondary(Secondary::DESC)),
        (ExitReason::LDTR_TR, OnSecondary(Secondary::DESC)),
        (ExitReason::EPT_VIOLATION, Always(Route::L0First)),
        (ExitReason::EPT_MISCONFIG, Always(Route::L0)),
        (ExitReason::RDTSCP, OnPrimary(Primary::RDTSC_EXITING)),
        (ExitReason::PREEMPTION_TIMER, Always(Route::L0)),
        (ExitReason::WBINVD, OnSecondary(Secondary::WBINVD_EXITING)),
        (ExitReason::RDRAND, OnSecondary(Secondary::RDRAND_EXITING)),
        (
            ExitReason::INVPCID,
            Both(Primary::INVLPG_EXITING, Secondary::ENABLE_INVPCID),
        ),
        (ExitReason::VMFUNC, Always(Route::L0First)),
        (ExitReason::ENCLS, Other),
        (ExitReason::RDSEED, OnSecondary(Secondary::RDSEED_EXITING)),
        (ExitReason::PML_FULL, Always(Route::L0)),
        (
            ExitReason::UMWAIT,
            OnSecondary(Secondary::ENABLE_USR_WAIT_PAUSE),
        ),
        (
            ExitReason::TPAUSE,
            OnSecondary(Secondary::ENABLE_USR_WAIT_PAUSE),
        ),
        (ExitReason::BUS_LOCK, Always(Route::L0)),
        (ExitReason::NOTIFY, Always(Route::L0)),
        (ExitReason::SEAMCALL, Always(Route::L0)),
        (ExitReason::TDCALL, Always(Route::L0)),
        (ExitReason::MSR_READ_IMM, Other),
        (ExitReason::MSR_WRITE_IMM, Other),
    ];

    fn route(reason: ExitReason, primary: u32, secondary: u32) -> Route {
        let vmcs12 = Vmcs12 {
            cpu_based_vm_exec_control: primary,
            secondary_vm_exec_control: secondary,
            ..Vmcs12::default()
        };

        Exit {
            reason,
            vmcs12: &vmcs12,
            facts: &Facts::NONE,
            memory: &Memory::EMPTY,
        }
        .route()
    }

    fn assert_decides(reason: ExitReason, decider: Decider) {
        const ACTIVATE: u32 = Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw();

        let wanted_if = |wanted: bool| if wanted { Route::L1 } else { Route::L0 };

        match decider {
            Always(expected) => {
                assert_eq!(route(reason, 0, 0), expected);
                assert_eq!(route(reason, u32::MAX, u32::MAX), expected);
            }
            OnPrimary(control) => {
                let bit = control.into_raw();
                assert_eq!(route(reason, bit, 0), Route::L1);
                assert_eq!(route(reason, 0, u32::MAX), Route::L0);
            }
            OnSecondary(control) => {
                let bit = control.into_raw();
                assert_eq!(route(reason, ACTIVATE, bit), Route::L1);
                assert_eq!(route(reason, ACTIVATE, !bit), Route::L0);
                assert_eq!(route(reason, 0, bit), Route::L0);
            }
            Both(first, second) => {
                let (first, second) = (first.into_raw(), second.into_raw());
                for bits in 0..4 {
                    let primary = if bits & 1 != 0 { first } else { 0 };
                    let secondary = if bits & 2 != 0 { second } else { 0 };

                    assert_eq!(
                        route(reason, ACTIVATE | primary, secondary),
                        wanted_if(bits == 3)
                    );
                }
            }
            Other => (),
        }
    }

    #[test]
    fn controls_decide_about_each_reason() {
        for &(reason, decider) in DECIDERS {
            assert_decides(reason, decider);
        }
    }

    #[test]
    fn all_other_reasons_go_to_l1_known_or_not() {
        for raw in 0..=u16::MAX {
            let reason = ExitReason::from_raw(raw);

            if DECIDERS.iter().all(|&(listed, _)| listed != reason) {
                assert_decides(reason, Always(Route::L1));
            }
        }
    }

    #[test]
    fn a_primary_control_concerns_no_other_reason() {
        for bit in (0..31).map(|n| 1 << n) {
            for raw in 0..=80 {
                let reason = ExitReason::from_raw(raw);
                let named = DECIDERS.iter().any(|&(listed, decider)| {
                    listed == reason
                        && matches!(decider, OnPrimary(named) if named.into_raw() == bit)
                });
                let other = DECIDERS
                    .iter()
                    .any(|&(listed, decider)| listed == reason && matches!(decider, Other));

                if !other {
                    assert_eq!(route(reason, bit, 0) != route(reason, 0, 0), named);
                }
            }
        }
    }

    #[test]
    fn wishes_of_l0_come_first() {
        for (reason, wish) in [
            (ExitReason::VMCALL, Wish::FlushHypercall),
            (ExitReason::CPUID, Wish::Cpuid),
            (ExitReason::ENCLS, Wish::Encls),
        ] {
            let vmcs12 = Vmcs12 {
                cpu_based_vm_exec_control: u32::MAX,
                secondary_vm_exec_control: u32::MAX,
                encls_exiting_bitmap: u64::MAX,
                ..Vmcs12::default()
            };
            let route = |facts: &Facts| {
                Exit {
                    reason,
                    vmcs12: &vmcs12,
                    facts,
                    memory: &Memory::EMPTY,
                }
                .route()
            };

            assert_eq!(route(&Facts::NONE), Route::L1);
            assert_eq!(
                route(&Facts {
                    wish: Some(wish),
                    ..Facts::NONE
                }),
                Route::L0
            );
        }
    }

    #[test]
    fn bitmaps_decide_about_ports_and_msrs() {
        const BITMAPS: u32 =
            Primary::USE_IO_BITMAPS.into_raw() | Primary::USE_MSR_BITMAPS.into_raw();

        // The registers hold MSR 0x10, the qualification port 0x10 or, as an immediate, MSR 0x10.
        for (reason, qualification, address) in [
            (ExitReason::IO_INSTRUCTION, 0x10 << 16, 0x1002),
            (ExitReason::MSR_READ, 0, 0x2002),
            (ExitReason::MSR_WRITE, 0, 0x2802),
            (ExitReason::MSR_READ_IMM, 0x10, 0x2002),
            (ExitReason::MSR_WRITE_IMM, 0x10, 0x2802),
        ] {
            let vmcs12 = Vmcs12 {
                cpu_based_vm_exec_control: BITMAPS,
                io_bitmap_a: 0x1000,
                msr_bitmap: 0x2000,
                ..Vmcs12::default()
            };
            let route = |byte| {
                Exit {
                    reason,
                    vmcs12: &vmcs12,
                    facts: &Facts {
                        qualification,
                        register: (1, 0xffff_ffff_0000_0010),
                        ..Facts::NONE
                    },
                    memory: &Memory { address, byte },
                }
                .route()
            };

            assert_eq!(route(1), Route::L1);
            assert_eq!(route(!1), Route::L0);
        }
    }

    #[test]
    fn counters_see_who_handles_an_exit_first() {
        for (route, taker) in [
            (Route::L0, Taker::L0),
            (Route::L0First, Taker::L0),
            (Route::L1, Taker::L1),
        ] {
            assert_eq!(Taker::from(route), taker);
        }
    }
}
