// SPDX-License-Identifier: GPL-2.0

//! What several tests need.

use super::{
    vmcb::{ControlArea, Enlightenments, SaveArea, Segment, Vmcb},
    Vmcb01, Vmcb02,
};

/// A VMCB that is all zeroes.
fn vmcb() -> Vmcb {
    let segment = Segment::default();

    Vmcb {
        control: ControlArea {
            intercepts: [0; 6],
            reserved_1: [0; 9],
            pause_filter_thresh: 0,
            pause_filter_count: 0,
            iopm_base_pa: 0,
            msrpm_base_pa: 0,
            tsc_offset: 0,
            asid: 0,
            tlb_ctl: 0,
            erap_ctl: 0,
            reserved_2: [0; 2],
            int_ctl: 0,
            int_vector: 0,
            int_state: 0,
            reserved_3: 0,
            exit_code: 0,
            exit_info_1: 0,
            exit_info_2: 0,
            exit_int_info: 0,
            exit_int_info_err: 0,
            misc_ctl: 0,
            avic_vapic_bar: 0,
            ghcb_gpa: 0,
            event_inj: 0,
            event_inj_err: 0,
            nested_cr3: 0,
            misc_ctl2: 0,
            clean: 0,
            reserved_5: 0,
            next_rip: 0,
            insn_len: 0,
            insn_bytes: [0; 15],
            avic_backing_page: 0,
            reserved_6: 0,
            avic_logical_id: 0,
            avic_physical_id: 0,
            reserved_7: 0,
            vmsa_pa: 0,
            reserved_8: [0; 2],
            bus_lock_counter: 0,
            reserved_9: [0; 11],
            allowed_sev_features: 0,
            guest_sev_features: 0,
            reserved_10: [0; 83],
            enlightenments: Enlightenments::default(),
        },
        save: SaveArea {
            es: segment,
            cs: segment,
            ss: segment,
            ds: segment,
            fs: segment,
            gs: segment,
            gdtr: segment,
            ldtr: segment,
            idtr: segment,
            tr: segment,
            reserved_0xa0: [0; 42],
            vmpl: 0,
            cpl: 0,
            reserved_0xcc: 0,
            efer: 0,
            reserved_0xd8: [0; 14],
            cr4: 0,
            cr3: 0,
            cr0: 0,
            dr7: 0,
            dr6: 0,
            rflags: 0,
            rip: 0,
            reserved_0x180: [0; 11],
            rsp: 0,
            s_cet: 0,
            ssp: 0,
            isst_addr: 0,
            rax: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            cr2: 0,
            reserved_0x248: [0; 4],
            g_pat: 0,
            dbgctl: 0,
            br_from: 0,
            br_to: 0,
            last_excp_from: 0,
            last_excp_to: 0,
            reserved_0x298: [0; 9],
            spec_ctrl: 0,
        },
    }
}

/// A vmcb01 that is all zeroes.
pub(super) fn vmcb01() -> Vmcb01 {
    Vmcb01(vmcb())
}

/// A vmcb02 that is all zeroes.
pub(super) fn vmcb02() -> Vmcb02 {
    Vmcb02(vmcb())
}

/// Numbers that look random, the same in each run.
pub(super) fn noise(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}
