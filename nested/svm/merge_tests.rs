// SPDX-License-Identifier: GPL-2.0

use super::*;
use crate::svm::{
    cpu::fake::Cpu,
    testing::{vmcb01, vmcb02},
    vmcb::Segment,
};

const HOST: Host = Host {
    intercepts_smi: true,
    virtual_nmi: true,
};

fn loaded(control: &Control12, vmcb01: &Vmcb01, start: Start, host: Host, cpu: &Cpu) -> Vmcb02 {
    let mut vmcb02 = vmcb02();
    load_control(
        &mut vmcb02,
        vmcb01,
        Checked::vouch(control),
        start,
        host,
        cpu,
    );
    vmcb02
}

fn from_l1(control: &Control12, cpu: &Cpu) -> Vmcb02 {
    loaded(control, &vmcb01(), Start::Vmrun, HOST, cpu)
}

#[test]
fn each_bit_of_int_ctl_reaches_vmcb02_or_does_not() {
    let gif = interrupt::V_GIF;
    let nmi = interrupt::V_NMI_PENDING | interrupt::V_NMI_BLOCKING;
    let always =
        interrupt::V_TPR | interrupt::V_IRQ | interrupt::V_INTR_PRIO | interrupt::V_IGN_TPR;
    let cpu = Cpu::with_everything();
    let reaches = |extra: u32, cpu: &Cpu, host: Host| -> u32 {
        (0..32)
            .map(|bit| 1u32 << bit)
            .filter(|bit| {
                let int_ctl = bit | extra;
                let control = Control12 {
                    int_ctl,
                    ..Control12::default()
                };
                merge_interrupt_control(&vmcb01(), &control, host, cpu) & bit != 0
            })
            .sum()
    };
    let enables = interrupt::V_GIF_ENABLE | interrupt::V_NMI_ENABLE;
    let no_nmi = Host {
        virtual_nmi: false,
        ..HOST
    };

    assert_eq!(reaches(0, &cpu, HOST), always | enables);
    assert_eq!(
        reaches(interrupt::V_GIF_ENABLE, &cpu, HOST),
        always | enables | gif
    );
    assert_eq!(
        reaches(interrupt::V_NMI_ENABLE, &cpu, HOST),
        always | enables | nmi
    );
    assert_eq!(reaches(enables, &Cpu::with_nothing(), HOST), always);
    assert_eq!(
        reaches(enables, &cpu, no_nmi),
        always | interrupt::V_GIF_ENABLE | gif
    );
}

#[test]
fn l0_keeps_its_masking_and_its_gif() {
    let mut vmcb01 = vmcb01();
    vmcb01.0.control.int_ctl = u32::MAX;
    let cpu = Cpu::with_everything();
    let of_l0 = |int_ctl| {
        let control = Control12 {
            int_ctl,
            ..Control12::default()
        };
        merge_interrupt_control(&vmcb01, &control, HOST, &cpu)
    };
    let gif = interrupt::V_GIF | interrupt::V_GIF_ENABLE;

    assert_eq!(of_l0(0), interrupt::V_INTR_MASKING | gif);
    assert_eq!(
        of_l0(interrupt::V_GIF_ENABLE),
        interrupt::V_INTR_MASKING | interrupt::V_GIF_ENABLE
    );
}

#[test]
fn each_bit_of_misc_ctl_reaches_vmcb02_or_does_not() {
    let cpu = Cpu::with_everything();
    for bit in 0..64 {
        let control = Control12 {
            misc_ctl: 1 << bit | misc::NESTED_PAGING,
            ..Control12::default()
        };
        let expected = 1 << bit & misc::GMET;
        assert_eq!(
            from_l1(&control, &cpu).0.control.misc_ctl,
            expected,
            "bit {bit}"
        );
    }
}

#[test]
fn l2_without_nested_paging_of_l1_runs_on_the_tables_of_l1() {
    let mut vmcb01 = vmcb01();
    vmcb01.0.control.misc_ctl = u64::MAX;
    let cpu = Cpu::with_everything();
    let vmcb02 = loaded(&Control12::default(), &vmcb01, Start::Vmrun, HOST, &cpu);

    assert_eq!(vmcb02.0.control.misc_ctl, misc::NESTED_PAGING | misc::GMET);
}

#[test]
fn each_bit_of_misc_ctl2_reaches_vmcb02_or_does_not() {
    for bit in 0..64 {
        let control = Control12 {
            misc_ctl: misc::NESTED_PAGING,
            misc_ctl2: 1 << bit,
            ..Control12::default()
        };
        let reached = from_l1(&control, &Cpu::with_everything())
            .0
            .control
            .misc_ctl2;
        assert_eq!(reached, 1 << bit & misc2::VMLOAD_VMSAVE, "bit {bit}");
    }
}

#[test]
fn each_bit_of_erap_ctl_reaches_vmcb02_or_does_not() {
    for bit in 0..8 {
        let control = Control12 {
            erap_ctl: 1 << bit,
            ..Control12::default()
        };
        let reached = |cpu| from_l1(&control, &cpu).0.control.erap_ctl;
        let allowed = 1 << bit & erap::ALLOW_LARGER_RAP;
        assert_eq!(
            reached(Cpu::with_everything()),
            erap::CLEAR_RAP | allowed,
            "bit {bit}"
        );
        assert_eq!(reached(Cpu::without(Feature::Eraps)), 0, "bit {bit}");
    }
}

#[test]
fn vmload_and_vmsave_exit_unless_hardware_translates_their_address() {
    let everything = Control12 {
        misc_ctl: misc::NESTED_PAGING,
        misc_ctl2: misc2::VMLOAD_VMSAVE,
        ..Control12::default()
    };
    let cpu = Cpu::with_everything();
    let exits = |control: &Control12, cpu: &Cpu| {
        let merged = merge_intercepts(&vmcb01(), control, HOST, cpu);
        assert_eq!(
            merged.contains(Intercept::VMLOAD),
            merged.contains(Intercept::VMSAVE)
        );
        merged.contains(Intercept::VMLOAD)
    };
    let change = |change: fn(&mut Control12)| {
        let mut control = everything;
        change(&mut control);
        control
    };

    assert!(!exits(&everything, &cpu));
    assert!(exits(&everything, &Cpu::without(Feature::VmloadVmsave)));
    assert!(exits(&change(|control| control.misc_ctl = 0), &cpu));
    assert!(exits(&change(|control| control.misc_ctl2 = 0), &cpu));
}

#[test]
fn vmload_exits_alone_if_l1_intercepts_it_alone() {
    let mut control = Control12 {
        misc_ctl: misc::NESTED_PAGING,
        misc_ctl2: misc2::VMLOAD_VMSAVE,
        ..Control12::default()
    };
    control.intercepts.insert(Intercept::VMLOAD);
    let merged = merge_intercepts(&vmcb01(), &control, HOST, &Cpu::with_everything());

    assert!(merged.contains(Intercept::VMLOAD) && !merged.contains(Intercept::VMSAVE));
}

#[test]
fn a_bit_left_in_misc_ctl2_of_vmcb02_does_not_stay() {
    let mut vmcb02 = vmcb02();
    vmcb02.0.control.misc_ctl2 = misc2::VMLOAD_VMSAVE | misc2::LAST_BRANCH;
    let control = Control12::default();
    let cpu = Cpu::with_everything();

    load_control(
        &mut vmcb02,
        &vmcb01(),
        Checked::vouch(&control),
        Start::Vmrun,
        HOST,
        &cpu,
    );
    assert_eq!(vmcb02.0.control.misc_ctl2, misc2::LAST_BRANCH);
}

#[test]
fn each_intercept_of_either_level_is_in_vmcb02_with_few_exceptions() {
    let cpu = Cpu::with_everything();
    for bit in 0..u64::from(Intercepts::BITS) {
        let intercept = Intercept::of(crate::svm::ExitCode::from_raw(bit)).unwrap();
        let mut vmcb01 = vmcb01();
        let mut words = Intercepts::default();
        words.insert(intercept);

        let of_l1 = Control12 {
            intercepts: words,
            ..Control12::default()
        };
        assert!(merge_intercepts(&vmcb01, &of_l1, HOST, &cpu).contains(intercept));

        vmcb01.0.control.intercepts = words.words();
        let merged = merge_intercepts(&vmcb01, &Control12::default(), HOST, &cpu);
        assert_eq!(merged.contains(intercept), intercept != Intercept::PAUSE);
    }
}

#[test]
fn smis_are_intercepted_only_if_the_host_does() {
    let host = Host {
        intercepts_smi: false,
        ..HOST
    };
    let mut control = Control12::default();
    control.intercepts.insert(Intercept::SMI);
    let cpu = Cpu::with_everything();

    assert!(merge_intercepts(&vmcb01(), &control, HOST, &cpu).contains(Intercept::SMI));
    assert!(!merge_intercepts(&vmcb01(), &control, host, &cpu).contains(Intercept::SMI));
}

#[test]
fn with_virtual_interrupt_masking_l0_needs_fewer_intercepts() {
    let mut vmcb01 = vmcb01();
    let mut words = Intercepts::default();
    words.insert(Intercept::CR8_WRITE);
    words.insert(Intercept::VINTR);
    vmcb01.0.control.intercepts = words.words();
    let control = Control12 {
        int_ctl: interrupt::V_INTR_MASKING,
        ..Control12::default()
    };
    let cpu = Cpu::with_everything();

    let masked = merge_intercepts(&vmcb01, &control, HOST, &cpu);
    assert!(!masked.contains(Intercept::CR8_WRITE) && !masked.contains(Intercept::VINTR));

    vmcb01.0.save.rflags = RFLAGS_IF;
    let open = merge_intercepts(&vmcb01, &control, HOST, &cpu);
    assert!(!open.contains(Intercept::CR8_WRITE) && open.contains(Intercept::VINTR));
}

#[test]
fn the_pause_filter_needs_its_features() {
    let control = Control12 {
        pause_filter_count: 3000,
        pause_filter_thresh: 128,
        ..Control12::default()
    };
    let filter = |cpu: &Cpu| {
        let vmcb02 = from_l1(&control, cpu);
        (
            vmcb02.0.control.pause_filter_count,
            vmcb02.0.control.pause_filter_thresh,
        )
    };

    assert_eq!(filter(&Cpu::with_everything()), (3000, 128));
    assert_eq!(filter(&Cpu::without(Feature::PauseFilter)), (0, 128));
    assert_eq!(
        filter(&Cpu::without(Feature::PauseFilterThreshold)),
        (3000, 0)
    );
}

#[test]
fn next_rip_is_of_l1_only_with_the_feature() {
    let control = Control12 {
        next_rip: 0x1234,
        ..Control12::default()
    };
    let next_rip = |start, cpu: &Cpu| {
        loaded(&control, &vmcb01(), start, HOST, cpu)
            .0
            .control
            .next_rip
    };
    let without = Cpu::without(Feature::Nrips);

    assert_eq!(next_rip(Start::Vmrun, &Cpu::with_everything()), 0x1234);
    assert_eq!(next_rip(Start::Vmrun, &without), 0);
    assert_eq!(next_rip(Start::Resumed, &without), 0x1234);
}

#[test]
fn fields_that_no_line_names_do_not_reach_vmcb02() {
    // All that L1 can write, at its extreme.
    let control = Control12 {
        intercepts: Intercepts::from_words([u32::MAX; 6]),
        pause_filter_thresh: u16::MAX,
        pause_filter_count: u16::MAX,
        iopm_base_pa: crate::address::Gpa::from_raw(u64::MAX),
        msrpm_base_pa: crate::address::Gpa::from_raw(u64::MAX),
        tsc_offset: u64::MAX,
        asid: u32::MAX,
        tlb_ctl: u8::MAX,
        erap_ctl: u8::MAX,
        int_ctl: u32::MAX,
        int_vector: u32::MAX,
        int_state: u32::MAX,
        exit_code: u64::MAX,
        exit_info_1: u64::MAX,
        exit_info_2: u64::MAX,
        exit_int_info: u32::MAX,
        exit_int_info_err: u32::MAX,
        misc_ctl: u64::MAX,
        event_inj: u32::MAX,
        event_inj_err: u32::MAX,
        next_rip: u64::MAX,
        nested_cr3: crate::address::Gpa::from_raw(u64::MAX),
        misc_ctl2: u64::MAX,
        clean: u32::MAX,
        enlightenments: Default::default(),
    };
    let mut expected = vmcb02().0.control;
    expected.intercepts = [u32::MAX; 6];
    expected.pause_filter_thresh = u16::MAX;
    expected.pause_filter_count = u16::MAX;
    expected.erap_ctl = 3;
    expected.int_ctl = interrupt::V_TPR
        | interrupt::V_IRQ
        | interrupt::V_INTR_PRIO
        | interrupt::V_IGN_TPR
        | interrupt::V_GIF
        | interrupt::V_GIF_ENABLE
        | interrupt::V_NMI_PENDING
        | interrupt::V_NMI_BLOCKING
        | interrupt::V_NMI_ENABLE;
    expected.int_vector = u32::MAX;
    expected.int_state = u32::MAX;
    expected.misc_ctl = misc::GMET;
    expected.event_inj = u32::MAX;
    expected.event_inj_err = u32::MAX;
    expected.next_rip = u64::MAX;
    expected.misc_ctl2 = misc2::VMLOAD_VMSAVE;

    assert_eq!(
        from_l1(&control, &Cpu::with_everything()).0.control,
        expected
    );
}

/// A save area whose fields all differ from those of an empty one.
fn save() -> Save12 {
    let segment = Segment {
        selector: 8,
        attrib: 0x93,
        limit: 0xffff,
        base: 0x1000,
    };
    Save12 {
        es: segment,
        cs: segment,
        ss: segment,
        ds: segment,
        gdtr: segment,
        idtr: segment,
        cpl: 3,
        dr7: 0x400,
        s_cet: 1,
        ssp: 8,
        isst_addr: 16,
        rax: 1,
        rsp: 2,
        rip: 3,
        dbgctl: u64::MAX,
        br_from: 4,
        ..Save12::default()
    }
}

fn loaded_save(clean: u32, previous: Previous, cpu: &Cpu) -> Vmcb02 {
    let control = Control12 {
        clean,
        misc_ctl2: misc2::LAST_BRANCH,
        ..Control12::default()
    };
    let mut vmcb02 = vmcb02();
    vmcb02.0.control.clean = u32::MAX;
    load_save(
        &mut vmcb02,
        &vmcb01(),
        (Checked::vouch(&control), Checked::vouch(&save())),
        previous,
        cpu,
    );
    vmcb02
}

#[test]
fn a_clean_group_of_the_same_vmcb12_is_not_loaded_again() {
    let cpu = Cpu::with_everything();
    let groups = [
        Group::Segments,
        Group::DescriptorTables,
        Group::Cet,
        Group::DebugRegisters,
    ];
    let loads = |vmcb02: &Vmcb02| {
        let area = &vmcb02.0.save;
        [
            area.cs.base != 0,
            area.idtr.base != 0,
            area.ssp != 0,
            area.dr7 != 0,
        ]
    };

    assert_eq!(
        loads(&loaded_save(u32::MAX, Previous::Other, &cpu)),
        [true; 4]
    );
    assert_eq!(
        loads(&loaded_save(u32::MAX, Previous::Same, &cpu)),
        [false; 4]
    );
    for (index, group) in groups.into_iter().enumerate() {
        let vmcb02 = loaded_save(!group.bit(), Previous::Same, &cpu);
        let loaded = loads(&vmcb02);
        assert!((0..4).all(|other| loaded[other] == (other == index)));
        assert_eq!(vmcb02.0.control.clean & group.bit(), 0);
    }
}

#[test]
fn shadow_stacks_are_loaded_with_the_feature_only() {
    let cpu = Cpu::without(Feature::ShadowStack);

    assert_eq!(loaded_save(0, Previous::Other, &cpu).0.save.ssp, 0);
}

#[test]
fn last_branch_records_are_those_of_l1_unless_l2_has_its_own() {
    let own = loaded_save(0, Previous::Other, &Cpu::with_everything());
    let shared = loaded_save(0, Previous::Other, &Cpu::without(Feature::Lbrv));

    assert_eq!((own.0.save.dbgctl, own.0.save.br_from), (DEBUGCTL_LBR, 4));
    assert_eq!((shared.0.save.dbgctl, shared.0.save.br_from), (0, 0));
}

#[test]
fn debug_registers_are_loaded_if_l1_may_have_changed_them() {
    let mut control = Control12 {
        clean: u32::MAX,
        ..Control12::default()
    };

    assert!(!loads_debug_registers(&control, Previous::Same));
    assert!(loads_debug_registers(&control, Previous::Other));

    control.clean = !Group::DebugRegisters.bit();
    assert!(loads_debug_registers(&control, Previous::Same));
}
