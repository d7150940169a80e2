// SPDX-License-Identifier: GPL-2.0

//! The state that L1 goes on with after an exit.

use crate::vmx::{bits::efer, controls::Exit, Vmcs12};

/// A segment register, with access rights in the format of the VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The base address.
    pub base: u64,
    /// The limit in bytes.
    pub limit: u32,
    /// The access rights.
    pub access_rights: u32,
}

impl Segment {
    const UNUSABLE: u32 = 1 << 16;
    const CODE_64: u32 = 0xa09b;
    const CODE_32: u32 = 0xc09b;
    const DATA: u32 = 0xc093;
    const BUSY_TSS: u32 = 0x8b;

    /// A code segment for the mode that L1 is in.
    const fn code(selector: u16, mode: Mode) -> Self {
        Self {
            selector,
            base: 0,
            limit: u32::MAX,
            access_rights: match mode {
                Mode::Bits64 => Self::CODE_64,
                Mode::Bits32 => Self::CODE_32,
            },
        }
    }

    /// A data segment. It is not usable if its selector is null.
    const fn data(selector: u16, base: u64) -> Self {
        Self {
            selector,
            base,
            limit: u32::MAX,
            access_rights: match selector {
                0 => Self::DATA | Self::UNUSABLE,
                _ => Self::DATA,
            },
        }
    }

    /// A task-state segment.
    const fn task(selector: u16, base: u64) -> Self {
        Self {
            selector,
            base,
            limit: 0x67,
            access_rights: Self::BUSY_TSS,
        }
    }

    /// A register without a segment.
    const fn unusable() -> Self {
        Self {
            selector: 0,
            base: 0,
            limit: 0,
            access_rights: Self::UNUSABLE,
        }
    }

    /// Returns whether the segment cannot be used.
    pub const fn is_unusable(&self) -> bool {
        self.access_rights & Self::UNUSABLE != 0
    }
}

/// The mode that L1 is in after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode.
    Bits64,
    /// 32-bit protected mode.
    Bits32,
}

/// The register of a descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorTable {
    /// The base address.
    pub base: u64,
    /// The limit in bytes.
    pub limit: u16,
}

/// Control-flow enforcement state of a supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlFlowState {
    /// `IA32_S_CET`.
    pub s_cet: u64,
    /// SSP.
    pub ssp: u64,
    /// `IA32_INTERRUPT_SSP_TABLE_ADDR`.
    pub ssp_table: u64,
}

/// The state that an exit loads (SDM, "Loading Host State").
///
/// There is no blocking of any events in it, and no monitoring of an address range. What is
/// optional stays as L2 has left it if there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostState {
    /// CR0.
    pub cr0: u64,
    /// CR3. L1 pages with PAE paging if CR0, CR4 and `efer` say so: PDPTEs have to be loaded, and
    /// to fail to is [`super::Abort::LOAD_HOST_PDPTE_FAIL`].
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// `IA32_EFER`.
    pub efer: u64,
    /// RSP.
    pub rsp: u64,
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// DR7.
    pub dr7: u64,
    /// `IA32_DEBUGCTL`.
    pub debugctl: u64,
    /// CS.
    pub cs: Segment,
    /// SS.
    pub ss: Segment,
    /// DS.
    pub ds: Segment,
    /// ES.
    pub es: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// TR.
    pub tr: Segment,
    /// LDTR.
    pub ldtr: Segment,
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
    /// `IA32_SYSENTER_CS`.
    pub sysenter_cs: u32,
    /// `IA32_SYSENTER_ESP`.
    pub sysenter_esp: u64,
    /// `IA32_SYSENTER_EIP`.
    pub sysenter_eip: u64,
    /// `IA32_PAT`.
    pub pat: Option<u64>,
    /// `IA32_PERF_GLOBAL_CTRL`.
    pub perf_global_ctrl: Option<u64>,
    /// `IA32_BNDCFGS`.
    pub bndcfgs: Option<u64>,
    /// Control-flow enforcement. Without a control to load it, it is that of L2.
    pub control_flow: ControlFlowState,
}

impl HostState {
    const RFLAGS_FIXED: u64 = 1 << 1;
    const DR7_FIXED: u64 = 0x400;

    /// Returns the state that vmcs12 says, given the `IA32_EFER` in use.
    ///
    /// The guest state has to be saved before: a part of it may be the state of L1.
    #[must_use]
    pub fn of(vmcs12: &Vmcs12, current_efer: u64) -> Self {
        let loaded = |control, value| vmcs12.exit().contains(control).then_some(value);
        let mode = if vmcs12.exit().host_address_space_size() {
            Mode::Bits64
        } else {
            Mode::Bits32
        };

        Self {
            cr0: vmcs12.host_cr0,
            cr3: vmcs12.host_cr3,
            cr4: vmcs12.host_cr4,
            efer: host_efer(vmcs12, mode, current_efer),
            rsp: vmcs12.host_rsp,
            rip: vmcs12.host_rip,
            rflags: Self::RFLAGS_FIXED,
            dr7: Self::DR7_FIXED,
            debugctl: 0,
            cs: Segment::code(vmcs12.host_cs_selector, mode),
            ss: Segment::data(vmcs12.host_ss_selector, 0),
            ds: Segment::data(vmcs12.host_ds_selector, 0),
            es: Segment::data(vmcs12.host_es_selector, 0),
            fs: Segment::data(vmcs12.host_fs_selector, vmcs12.host_fs_base),
            gs: Segment::data(vmcs12.host_gs_selector, vmcs12.host_gs_base),
            tr: Segment::task(vmcs12.host_tr_selector, vmcs12.host_tr_base),
            ldtr: Segment::unusable(),
            gdtr: DescriptorTable {
                base: vmcs12.host_gdtr_base,
                limit: u16::MAX,
            },
            idtr: DescriptorTable {
                base: vmcs12.host_idtr_base,
                limit: u16::MAX,
            },
            sysenter_cs: vmcs12.host_ia32_sysenter_cs,
            sysenter_esp: vmcs12.host_ia32_sysenter_esp,
            sysenter_eip: vmcs12.host_ia32_sysenter_eip,
            pat: loaded(Exit::LOAD_IA32_PAT, vmcs12.host_ia32_pat),
            perf_global_ctrl: loaded(
                Exit::LOAD_IA32_PERF_GLOBAL_CTRL,
                vmcs12.host_ia32_perf_global_ctrl,
            ),
            bndcfgs: loaded(Exit::CLEAR_BNDCFGS, 0),
            control_flow: control_flow(vmcs12),
        }
    }
}

/// Returns `IA32_EFER`: L1's field, or the one in use with the bits of the mode.
fn host_efer(vmcs12: &Vmcs12, mode: Mode, current: u64) -> u64 {
    const LONG_MODE: u64 = efer::LME | efer::LMA;

    if vmcs12.exit().load_efer() {
        return vmcs12.host_ia32_efer;
    }
    match mode {
        Mode::Bits64 => current | LONG_MODE,
        Mode::Bits32 => current & !LONG_MODE,
    }
}

fn control_flow(vmcs12: &Vmcs12) -> ControlFlowState {
    if vmcs12.exit().load_cet_state() {
        ControlFlowState {
            s_cet: vmcs12.host_s_cet,
            ssp: vmcs12.host_ssp,
            ssp_table: vmcs12.host_ssp_tbl,
        }
    } else {
        ControlFlowState {
            s_cet: vmcs12.guest_s_cet,
            ssp: vmcs12.guest_ssp,
            ssp_table: vmcs12.guest_ssp_tbl,
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_host_state))]
mod tests {
    use super::*;

    fn vmcs12(controls: u32) -> Vmcs12 {
        Vmcs12 {
            vm_exit_controls: controls,
            host_cr0: 1,
            host_cr3: 2,
            host_cr4: 3,
            host_rsp: 4,
            host_rip: 5,
            host_ia32_efer: 6,
            host_ia32_pat: 7,
            host_ia32_perf_global_ctrl: 8,
            host_gdtr_base: 9,
            host_idtr_base: 10,
            host_tr_base: 11,
            host_fs_base: 12,
            host_gs_base: 13,
            host_ia32_sysenter_cs: 14,
            host_ia32_sysenter_esp: 15,
            host_ia32_sysenter_eip: 16,
            host_s_cet: 17,
            host_ssp: 18,
            host_ssp_tbl: 19,
            guest_s_cet: 20,
            guest_ssp: 21,
            guest_ssp_tbl: 22,
            host_cs_selector: 0x10,
            host_ss_selector: 0x18,
            host_ds_selector: 0x20,
            host_es_selector: 0x28,
            host_fs_selector: 0x30,
            host_gs_selector: 0x38,
            host_tr_selector: 0x40,
            ..Vmcs12::default()
        }
    }

    #[test]
    fn registers_are_those_of_the_host_state_area() {
        let state = HostState::of(&vmcs12(0), 0);

        assert_eq!((state.cr0, state.cr3, state.cr4), (1, 2, 3));
        assert_eq!((state.rsp, state.rip), (4, 5));
        assert_eq!((state.rflags, state.dr7, state.debugctl), (2, 0x400, 0));
        assert_eq!((state.gdtr.base, state.gdtr.limit), (9, 0xffff));
        assert_eq!((state.idtr.base, state.idtr.limit), (10, 0xffff));
        assert_eq!(
            (state.sysenter_cs, state.sysenter_esp, state.sysenter_eip),
            (14, 15, 16)
        );
    }

    #[test]
    fn segments_are_flat_but_for_their_bases() {
        let state = HostState::of(&vmcs12(0), 0);

        for (segment, selector, base, limit, access_rights) in [
            (state.cs, 0x10, 0, u32::MAX, 0xc09b),
            (state.ss, 0x18, 0, u32::MAX, 0xc093),
            (state.ds, 0x20, 0, u32::MAX, 0xc093),
            (state.es, 0x28, 0, u32::MAX, 0xc093),
            (state.fs, 0x30, 12, u32::MAX, 0xc093),
            (state.gs, 0x38, 13, u32::MAX, 0xc093),
            (state.tr, 0x40, 11, 0x67, 0x8b),
            (state.ldtr, 0, 0, 0, 0x1_0000),
        ] {
            assert_eq!(
                segment,
                Segment {
                    selector,
                    base,
                    limit,
                    access_rights
                }
            );
        }
    }

    #[test]
    fn the_code_segment_has_the_mode_of_l1() {
        let state = HostState::of(&vmcs12(Exit::HOST_ADDR_SPACE_SIZE.into_raw()), 0);

        assert_eq!(state.cs.access_rights, 0xa09b);
    }

    #[test]
    fn segments_with_null_selectors_cannot_be_used() {
        let vmcs12 = Vmcs12 {
            host_ds_selector: 0,
            host_gs_selector: 0,
            ..vmcs12(Exit::HOST_ADDR_SPACE_SIZE.into_raw())
        };
        let state = HostState::of(&vmcs12, 0);

        assert!(state.ds.is_unusable());
        assert!(state.gs.is_unusable());
        // In 64-bit mode the base counts all the same.
        assert_eq!(state.gs.base, 13);
        assert!(!state.ss.is_unusable());
    }

    #[test]
    fn efer_is_loaded_or_follows_the_mode() {
        const LOAD: u32 = Exit::LOAD_IA32_EFER.into_raw();
        const BITS64: u32 = Exit::HOST_ADDR_SPACE_SIZE.into_raw();

        for (controls, current, expected) in [
            (LOAD, 0xd01, 6),
            (LOAD | BITS64, 0xd01, 6),
            (BITS64, 0x801, 0xd01),
            (0, 0xd01, 0x801),
        ] {
            assert_eq!(HostState::of(&vmcs12(controls), current).efer, expected);
        }
    }

    #[test]
    fn exit_controls_say_what_else_is_loaded() {
        for (controls, pat, perf_global_ctrl, bndcfgs) in [
            (0, None, None, None),
            (Exit::LOAD_IA32_PAT.into_raw(), Some(7), None, None),
            (
                Exit::LOAD_IA32_PERF_GLOBAL_CTRL.into_raw(),
                None,
                Some(8),
                None,
            ),
            (Exit::CLEAR_BNDCFGS.into_raw(), None, None, Some(0)),
        ] {
            let state = HostState::of(&vmcs12(controls), 0);

            assert_eq!(state.pat, pat);
            assert_eq!(state.perf_global_ctrl, perf_global_ctrl);
            assert_eq!(state.bndcfgs, bndcfgs);
        }
    }

    #[test]
    fn control_flow_state_is_loaded_or_that_of_l2() {
        for (controls, s_cet, ssp, ssp_table) in [
            (Exit::LOAD_CET_STATE.into_raw(), 17, 18, 19),
            (0, 20, 21, 22),
        ] {
            assert_eq!(
                HostState::of(&vmcs12(controls), 0).control_flow,
                ControlFlowState {
                    s_cet,
                    ssp,
                    ssp_table
                }
            );
        }
    }
}
