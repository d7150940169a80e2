// SPDX-License-Identifier: GPL-2.0

//! Whether the checks that are skipped are those that would pass.

use super::*;
use crate::vmx::{
    check::{check_vm_entry, valid::Case, Failure},
    controls::{Entry, Primary, Secondary},
};

/// A field of a VMCS.
struct Field {
    encoding: u32,
    name: &'static str,
    bits: u32,
    flip: fn(&mut Vmcs12, u64),
}

/// Lists the fields by their encodings.
macro_rules! fields {
    ($( $encoding:literal: $name:ident; )*) => {
        const FIELDS: &[Field] = &[$(
            Field {
                encoding: $encoding,
                name: stringify!($name),
                // Bits 14:13 of an encoding are the width: 16, 64, 32 bits, or natural.
                bits: match $encoding >> 13 {
                    0 => 16,
                    2 => 32,
                    _ => 64,
                },
                flip: |vmcs12, mask| vmcs12.$name = (u64::from(vmcs12.$name) ^ mask) as _,
            },
        )*];
    };
}

fields! {
    0x0000: virtual_processor_id;
    0x0002: posted_intr_nv;
    0x0800: guest_es_selector;
    0x0802: guest_cs_selector;
    0x0804: guest_ss_selector;
    0x0806: guest_ds_selector;
    0x0808: guest_fs_selector;
    0x080a: guest_gs_selector;
    0x080c: guest_ldtr_selector;
    0x080e: guest_tr_selector;
    0x0810: guest_intr_status;
    0x0812: guest_pml_index;
    0x0c00: host_es_selector;
    0x0c02: host_cs_selector;
    0x0c04: host_ss_selector;
    0x0c06: host_ds_selector;
    0x0c08: host_fs_selector;
    0x0c0a: host_gs_selector;
    0x0c0c: host_tr_selector;
    0x2000: io_bitmap_a;
    0x2002: io_bitmap_b;
    0x2004: msr_bitmap;
    0x2006: vm_exit_msr_store_addr;
    0x2008: vm_exit_msr_load_addr;
    0x200a: vm_entry_msr_load_addr;
    0x200e: pml_address;
    0x2010: tsc_offset;
    0x2012: virtual_apic_page_addr;
    0x2014: apic_access_addr;
    0x2016: posted_intr_desc_addr;
    0x2018: vm_function_control;
    0x201a: ept_pointer;
    0x201c: eoi_exit_bitmap0;
    0x201e: eoi_exit_bitmap1;
    0x2020: eoi_exit_bitmap2;
    0x2022: eoi_exit_bitmap3;
    0x2024: eptp_list_address;
    0x2026: vmread_bitmap;
    0x2028: vmwrite_bitmap;
    0x202c: xss_exit_bitmap;
    0x202e: encls_exiting_bitmap;
    0x2032: tsc_multiplier;
    0x2400: guest_physical_address;
    0x2800: vmcs_link_pointer;
    0x2802: guest_ia32_debugctl;
    0x2804: guest_ia32_pat;
    0x2806: guest_ia32_efer;
    0x2808: guest_ia32_perf_global_ctrl;
    0x280a: guest_pdptr0;
    0x280c: guest_pdptr1;
    0x280e: guest_pdptr2;
    0x2810: guest_pdptr3;
    0x2812: guest_bndcfgs;
    0x2c00: host_ia32_pat;
    0x2c02: host_ia32_efer;
    0x2c04: host_ia32_perf_global_ctrl;
    0x4000: pin_based_vm_exec_control;
    0x4002: cpu_based_vm_exec_control;
    0x4004: exception_bitmap;
    0x4006: page_fault_error_code_mask;
    0x4008: page_fault_error_code_match;
    0x400a: cr3_target_count;
    0x400c: vm_exit_controls;
    0x400e: vm_exit_msr_store_count;
    0x4010: vm_exit_msr_load_count;
    0x4012: vm_entry_controls;
    0x4014: vm_entry_msr_load_count;
    0x4016: vm_entry_intr_info_field;
    0x4018: vm_entry_exception_error_code;
    0x401a: vm_entry_instruction_len;
    0x401c: tpr_threshold;
    0x401e: secondary_vm_exec_control;
    0x4400: vm_instruction_error;
    0x4402: vm_exit_reason;
    0x4404: vm_exit_intr_info;
    0x4406: vm_exit_intr_error_code;
    0x4408: idt_vectoring_info_field;
    0x440a: idt_vectoring_error_code;
    0x440c: vm_exit_instruction_len;
    0x440e: vmx_instruction_info;
    0x4800: guest_es_limit;
    0x4802: guest_cs_limit;
    0x4804: guest_ss_limit;
    0x4806: guest_ds_limit;
    0x4808: guest_fs_limit;
    0x480a: guest_gs_limit;
    0x480c: guest_ldtr_limit;
    0x480e: guest_tr_limit;
    0x4810: guest_gdtr_limit;
    0x4812: guest_idtr_limit;
    0x4814: guest_es_ar_bytes;
    0x4816: guest_cs_ar_bytes;
    0x4818: guest_ss_ar_bytes;
    0x481a: guest_ds_ar_bytes;
    0x481c: guest_fs_ar_bytes;
    0x481e: guest_gs_ar_bytes;
    0x4820: guest_ldtr_ar_bytes;
    0x4822: guest_tr_ar_bytes;
    0x4824: guest_interruptibility_info;
    0x4826: guest_activity_state;
    0x482a: guest_sysenter_cs;
    0x482e: vmx_preemption_timer_value;
    0x4c00: host_ia32_sysenter_cs;
    0x6000: cr0_guest_host_mask;
    0x6002: cr4_guest_host_mask;
    0x6004: cr0_read_shadow;
    0x6006: cr4_read_shadow;
    0x6400: exit_qualification;
    0x640a: guest_linear_address;
    0x6800: guest_cr0;
    0x6802: guest_cr3;
    0x6804: guest_cr4;
    0x6806: guest_es_base;
    0x6808: guest_cs_base;
    0x680a: guest_ss_base;
    0x680c: guest_ds_base;
    0x680e: guest_fs_base;
    0x6810: guest_gs_base;
    0x6812: guest_ldtr_base;
    0x6814: guest_tr_base;
    0x6816: guest_gdtr_base;
    0x6818: guest_idtr_base;
    0x681a: guest_dr7;
    0x681c: guest_rsp;
    0x681e: guest_rip;
    0x6820: guest_rflags;
    0x6822: guest_pending_dbg_exceptions;
    0x6824: guest_sysenter_esp;
    0x6826: guest_sysenter_eip;
    0x6828: guest_s_cet;
    0x682a: guest_ssp;
    0x682c: guest_ssp_tbl;
    0x6c00: host_cr0;
    0x6c02: host_cr3;
    0x6c04: host_cr4;
    0x6c06: host_fs_base;
    0x6c08: host_gs_base;
    0x6c0a: host_tr_base;
    0x6c0c: host_gdtr_base;
    0x6c0e: host_idtr_base;
    0x6c10: host_ia32_sysenter_esp;
    0x6c12: host_ia32_sysenter_eip;
    0x6c14: host_rsp;
    0x6c16: host_rip;
    0x6c18: host_s_cet;
    0x6c1a: host_ssp;
    0x6c1c: host_ssp_tbl;
}

fn enter(case: &Case, passed: &mut Passed) -> Result<(), Failure> {
    check_vm_entry(
        &case.vmcs12,
        case.current,
        &case.processor(),
        &case.memory,
        passed,
    )
    .map(|_| ())
}

/// Valid cases in which different fields are used.
fn cases() -> Vec<Case> {
    let changes: &[fn(&mut Case)] = &[
        |_| {},
        |case| case.make_l2_32bit(),
        |case| case.make_l1_32bit(),
        |case| case.restrict_guest(),
        |case| case.without_tpr_shadow(),
        |case| {
            case.make_l2_32bit();
            case.enter_virtual_8086();
        },
        |case| {
            case.make_l2_32bit();
            case.without_ept();
        },
        |case| {
            case.clear(Secondary::VIRTUALIZE_X2APIC_MODE);
            case.set(Secondary::VIRTUALIZE_APIC_ACCESSES);
        },
        |case| {
            case.vmcs12.cpu_based_vm_exec_control &=
                !Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw();
            case.vmcs12.pin_based_vm_exec_control &= !(1 << 7);
            case.vmcs12.vmcs_link_pointer = u64::MAX;
        },
        |case| {
            case.vmcs12.vm_entry_controls &= !Entry::LOAD_CET_STATE.into_raw();
            case.inject(3, 14);
        },
    ];

    changes
        .iter()
        .map(|change| {
            let mut case = Case::new();

            change(&mut case);
            case
        })
        .collect()
}

#[test]
fn a_change_of_any_bit_has_the_same_result_as_if_nothing_had_passed() {
    for (index, case) in cases().iter_mut().enumerate() {
        let mut passed = Passed::NONE;
        assert_eq!(enter(case, &mut passed), Ok(()), "case {index}");

        for field in FIELDS {
            let bits = (0..field.bits).map(|bit| 1 << bit);

            for mask in bits.chain([u64::MAX, 3 << 10, 0xffff]) {
                let mut kept = passed;
                let mut nothing = Passed::NONE;

                (field.flip)(&mut case.vmcs12, mask);
                kept.forget_field(field.encoding);
                assert_eq!(
                    enter(case, &mut kept),
                    enter(case, &mut nothing),
                    "case {index}, {} ^ {mask:#x}",
                    field.name
                );

                // And back, with what passed in between.
                (field.flip)(&mut case.vmcs12, mask);
                kept.forget_field(field.encoding);
                assert_eq!(
                    enter(case, &mut kept),
                    Ok(()),
                    "case {index}, {}",
                    field.name
                );
            }
        }
    }
}

#[test]
fn fields_of_no_group_do_not_have_checks_repeated() {
    for field in FIELDS {
        let mut passed = Passed::NONE;
        assert_eq!(enter(&Case::new(), &mut passed), Ok(()));
        let before = passed;

        passed.forget_field(field.encoding);
        assert_eq!(
            passed == before,
            Group::of_field(field.encoding).is_none(),
            "{}",
            field.name
        );
    }
}
