// SPDX-License-Identifier: GPL-2.0

//! What an exit of L2 writes into vmcb12 (APM, "#VMEXIT").

use super::{
    bits::interrupt,
    check::Pat,
    event::Event,
    intercept::{Intercept, Intercepts},
    vmcb12::{store, Control12, VmcbPage},
    ExitCode, Feature, VirtualCpu, Vmcb02,
};

/// Registers of L2 that are not kept in vmcb02 while KVM handles an exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields have the names of the registers")]
pub struct Registers {
    pub efer: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    pub rsp: u64,
    pub rax: u64,
}

/// An event that was to be delivered to L2 when it exited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The event, or none.
    pub event: Event,
    /// Its error code, if it has one.
    pub error_code: Option<u32>,
}

/// What of vmcb12's words was reported to L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// `EXITINTINFO`.
    pub event: u32,
    /// Its error code.
    pub error_code: u32,
}

/// Writes the state of L2 and the reason of its exit to vmcb12.
///
/// The reason is what is in the exit fields of `vmcb02`.
pub fn save_to_vmcb12(
    page: &mut (impl VmcbPage + ?Sized),
    vmcb02: &Vmcb02,
    control: &Control12,
    registers: &Registers,
    pending: Pending,
    pat: Pat,
    cpu: &impl VirtualCpu,
) -> Reported {
    let Vmcb02(vmcb02) = vmcb02;
    let area = &vmcb02.save;

    store!(page, save.es, area.es);
    store!(page, save.cs, area.cs);
    store!(page, save.ss, area.ss);
    store!(page, save.ds, area.ds);
    store!(page, save.gdtr, area.gdtr);
    store!(page, save.idtr, area.idtr);
    store!(page, save.cpl, area.cpl);
    store!(page, save.dr7, area.dr7);
    store!(page, save.efer, registers.efer);
    store!(page, save.cr0, registers.cr0);
    store!(page, save.cr2, registers.cr2);
    store!(page, save.cr3, registers.cr3);
    store!(page, save.cr4, registers.cr4);
    store!(page, save.dr6, registers.dr6);
    store!(page, save.rflags, registers.rflags);
    store!(page, save.rip, registers.rip);
    store!(page, save.rsp, registers.rsp);
    store!(page, save.rax, registers.rax);

    if pat == Pat::Separate {
        store!(page, save.g_pat, area.g_pat);
    }
    if cpu.has(Feature::ShadowStack) {
        store!(page, save.s_cet, area.s_cet);
        store!(page, save.isst_addr, area.isst_addr);
        store!(page, save.ssp, area.ssp);
    }
    if control.last_branch_virtualization(cpu) {
        store!(page, save.dbgctl, area.dbgctl);
        store!(page, save.br_from, area.br_from);
        store!(page, save.br_to, area.br_to);
        store!(page, save.last_excp_from, area.last_excp_from);
        store!(page, save.last_excp_to, area.last_excp_to);
    }

    store!(page, control.int_state, vmcb02.control.int_state);
    store!(page, control.int_ctl, control.int_ctl);
    store!(page, control.exit_code, vmcb02.control.exit_code);
    store!(page, control.exit_info_1, vmcb02.control.exit_info_1);
    store!(page, control.exit_info_2, vmcb02.control.exit_info_2);
    store!(page, control.event_inj, 0u32);
    store!(page, control.event_inj_err, 0u32);
    if cpu.has(Feature::Nrips) {
        store!(page, control.next_rip, vmcb02.control.next_rip);
    }

    // A VMRUN that failed has delivered nothing.
    if ExitCode::from_raw(vmcb02.control.exit_code).is_vmrun_failure() {
        return Reported {
            event: control.exit_int_info,
            error_code: control.exit_int_info_err,
        };
    }
    store!(page, control.exit_int_info, pending.event.into_raw());
    if let Some(error_code) = pending.error_code {
        store!(page, control.exit_int_info_err, error_code);
    }
    Reported {
        event: pending.event.into_raw(),
        error_code: pending.error_code.unwrap_or(control.exit_int_info_err),
    }
}

/// Returns `EXITINFO1` of a nested page fault with `error_code`.
///
/// Whether L2's final address or one of its page tables was being translated is known to the
/// processor, if it has reported the fault with `reported` as `EXITINFO1`; otherwise to whoever made
/// the error code. One of the two it must be: "final" is for when neither is known.
pub const fn nested_page_fault_error(error_code: u64, reported: Option<u64>) -> u64 {
    const FINAL: u64 = 1 << 32;
    const PAGE_TABLE: u64 = 1 << 33;
    const STAGE: u64 = FINAL | PAGE_TABLE;

    let stage = match reported {
        Some(reported) => reported & STAGE,
        None => error_code & STAGE,
    };

    (error_code & !STAGE)
        | match stage {
            PAGE_TABLE => PAGE_TABLE,
            _ => FINAL,
        }
}

/// Makes `VMRUN` fail: L2 has not run, and nothing of its state is written.
pub fn refuse(page: &mut (impl VmcbPage + ?Sized)) {
    store!(page, control.exit_code, ExitCode::INVALID.into_raw());
    store!(page, control.exit_info_1, 0u64);
    store!(page, control.exit_info_2, 0u64);
    store!(page, control.event_inj, 0u32);
    store!(page, control.event_inj_err, 0u32);
}

/// Takes over what the processor has written to the control area while L2 ran.
pub fn sync_control(control: &mut Control12, vmcb02: &Vmcb02, cpu: &impl VirtualCpu) {
    let from = &vmcb02.0.control;
    let mut written = interrupt::V_TPR | interrupt::V_IRQ;

    // If L0 waits for an interrupt window, the virtual interrupt in vmcb02 is its own. L1's, which
    // L0 puts back when the window opens, has not been delivered meanwhile.
    if Intercepts::from_words(from.intercepts).contains(Intercept::VINTR)
        && !control.intercepts.contains(Intercept::VINTR)
    {
        written &= !interrupt::V_IRQ;
    }
    if control.virtual_gif(cpu) {
        written |= interrupt::V_GIF;
    }
    if control.virtual_nmi(cpu) {
        written |= interrupt::V_NMI_BLOCKING | interrupt::V_NMI_PENDING;
    }

    control.int_ctl = (control.int_ctl & !written) | (from.int_ctl & written);
    control.event_inj = from.event_inj;
    control.event_inj_err = from.event_inj_err;
    control.int_state = from.int_state;
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            bits::{misc, misc2},
            cpu::fake::Cpu,
            event::Kind,
            testing::vmcb02,
            vmcb12::fake::Page,
        },
        *,
    };
    use core::mem::offset_of;

    use super::super::vmcb::Vmcb;

    fn saved(vmcb02: &Vmcb02, control: &Control12, pat: Pat, cpu: &Cpu) -> Page {
        let mut page = Page::new();
        page.bytes.fill(0xa5);
        let pending = Pending {
            event: Event::new(Kind::Exception, 14).with_error_code(),
            error_code: Some(0x1234),
        };
        save_to_vmcb12(
            &mut page,
            vmcb02,
            control,
            &Registers::default(),
            pending,
            pat,
            cpu,
        );
        page
    }

    fn untouched(page: &Page, offset: usize, size: usize) -> bool {
        page.bytes[offset..offset + size]
            .iter()
            .all(|&byte| byte == 0xa5)
    }

    #[test]
    fn fields_that_hardware_does_not_write_are_left_alone() {
        let page = saved(
            &vmcb02(),
            &Control12::default(),
            Pat::Shared,
            &Cpu::with_nothing(),
        );
        let kept = [
            (offset_of!(Vmcb, control.intercepts), 24),
            (offset_of!(Vmcb, control.iopm_base_pa), 0x20),
            (offset_of!(Vmcb, control.int_vector), 4),
            (offset_of!(Vmcb, control.misc_ctl), 8),
            (offset_of!(Vmcb, control.nested_cr3), 0x18),
            (offset_of!(Vmcb, control.next_rip), 8),
            (offset_of!(Vmcb, save.fs), 32),
            (offset_of!(Vmcb, save.ldtr), 16),
            (offset_of!(Vmcb, save.tr), 16),
            (offset_of!(Vmcb, save.s_cet), 24),
            (offset_of!(Vmcb, save.star), 64),
            (offset_of!(Vmcb, save.g_pat), 0x30),
            (offset_of!(Vmcb, save.spec_ctrl), 8),
        ];

        for (offset, size) in kept {
            assert!(untouched(&page, offset, size), "{offset:#x}");
        }
    }

    #[test]
    fn optional_fields_are_written_with_their_feature() {
        let control = Control12 {
            misc_ctl: misc::NESTED_PAGING,
            misc_ctl2: misc2::LAST_BRANCH,
            ..Control12::default()
        };
        let all = saved(&vmcb02(), &control, Pat::Separate, &Cpu::with_everything());
        let cases = [
            (Feature::Nrips, offset_of!(Vmcb, control.next_rip)),
            (Feature::ShadowStack, offset_of!(Vmcb, save.ssp)),
            (Feature::Lbrv, offset_of!(Vmcb, save.br_from)),
        ];

        assert!(!untouched(&all, offset_of!(Vmcb, save.g_pat), 8));
        for (feature, offset) in cases {
            let without = saved(&vmcb02(), &control, Pat::Separate, &Cpu::without(feature));
            assert!(!untouched(&all, offset, 8), "{feature:?}");
            assert!(untouched(&without, offset, 8), "{feature:?}");
        }
    }

    #[test]
    fn a_nested_page_fault_has_exactly_one_stage() {
        let stage = |error_code, reported| nested_page_fault_error(error_code, reported) >> 32;

        for reported in [0, 1, 3] {
            assert_eq!(stage(2 << 32, Some(reported << 32)), 1);
            assert_eq!(stage(reported << 32, None), 1);
        }
        assert_eq!(stage(1 << 32, Some(2 << 32)), 2);
        assert_eq!(stage(2 << 32, None), 2);
        assert_eq!(nested_page_fault_error(0x15, Some(0)), 1 << 32 | 0x15);
    }

    #[test]
    fn a_failed_vmrun_reports_no_event() {
        let mut vmcb02 = vmcb02();
        vmcb02.0.control.exit_code = ExitCode::INVALID.into_raw();
        let cpu = Cpu::with_everything();
        let page = saved(&vmcb02, &Control12::default(), Pat::Shared, &cpu);

        assert!(untouched(&page, offset_of!(Vmcb, control.exit_int_info), 8));
    }

    #[test]
    fn the_interrupted_event_and_its_error_code_are_reported() {
        let cpu = Cpu::with_everything();
        let page = saved(&vmcb02(), &Control12::default(), Pat::Shared, &cpu);

        assert_eq!(
            page.read_u32(offset_of!(Vmcb, control.exit_int_info)),
            0x8000_0b0e
        );
        assert_eq!(
            page.read_u32(offset_of!(Vmcb, control.exit_int_info_err)),
            0x1234
        );
        assert_eq!(page.read_u32(offset_of!(Vmcb, control.event_inj)), 0);
    }

    #[test]
    fn a_refused_vmrun_writes_the_exit_and_clears_the_event() {
        let mut page = Page::new();
        page.bytes.fill(0xa5);
        refuse(&mut page);

        assert_eq!(page.read_u64(offset_of!(Vmcb, control.exit_code)), u64::MAX);
        assert_eq!(page.read_u32(offset_of!(Vmcb, control.event_inj)), 0);
        assert!(untouched(&page, 0x400, 0x400));
    }

    #[test]
    fn a_window_of_l0_does_not_change_the_virtual_interrupt_of_l1() {
        let mut vmcb02 = vmcb02();
        let mut windows = Intercepts::default();
        windows.insert(Intercept::VINTR);
        vmcb02.0.control.intercepts = windows.words();
        vmcb02.0.control.int_ctl = interrupt::V_IRQ;
        let cpu = Cpu::with_everything();

        let mut control = Control12::default();
        sync_control(&mut control, &vmcb02, &cpu);
        assert_eq!(control.int_ctl, 0);

        control.intercepts = windows;
        sync_control(&mut control, &vmcb02, &cpu);
        assert_eq!(control.int_ctl, interrupt::V_IRQ);
    }

    #[test]
    fn only_what_the_processor_writes_is_taken_over() {
        let cpu = Cpu::with_everything();
        let mut vmcb02 = vmcb02();
        vmcb02.0.control.int_ctl = u32::MAX;
        let mut control = Control12::default();
        sync_control(&mut control, &vmcb02, &cpu);
        assert_eq!(control.int_ctl, interrupt::V_TPR | interrupt::V_IRQ);

        control.int_ctl = interrupt::V_GIF_ENABLE | interrupt::V_NMI_ENABLE;
        sync_control(&mut control, &vmcb02, &cpu);
        assert_eq!(
            control.int_ctl,
            interrupt::V_TPR
                | interrupt::V_IRQ
                | interrupt::V_GIF
                | interrupt::V_GIF_ENABLE
                | interrupt::V_NMI_PENDING
                | interrupt::V_NMI_BLOCKING
                | interrupt::V_NMI_ENABLE
        );
    }
}
