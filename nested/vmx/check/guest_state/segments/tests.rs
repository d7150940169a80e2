// SPDX-License-Identifier: GPL-2.0

//! Violations of the checks on segment registers.

#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_segments))]
mod cases {
    use super::super::*;
    use crate::vmx::check::{
        valid::{Case, NON_CANONICAL},
        Failure, GuestStateCheck,
    };

    const DPL_1: u32 = 1 << 5;
    const PRESENT: u32 = 1 << 7;
    const CODE_OR_DATA: u32 = 1 << 4;
    const UNUSABLE: u32 = 1 << 16;

    fn failure(check: SegmentCheck) -> Option<Failure> {
        Some(Failure::GuestState(GuestStateCheck::Segments(check)))
    }

    /// The fields of a segment register.
    type Fields<'a> = (&'a mut u16, &'a mut u64, &'a mut u32, &'a mut u32);

    fn ds(vmcs12: &mut Vmcs12) -> Fields<'_> {
        (
            &mut vmcs12.guest_ds_selector,
            &mut vmcs12.guest_ds_base,
            &mut vmcs12.guest_ds_limit,
            &mut vmcs12.guest_ds_ar_bytes,
        )
    }

    fn es(vmcs12: &mut Vmcs12) -> Fields<'_> {
        (
            &mut vmcs12.guest_es_selector,
            &mut vmcs12.guest_es_base,
            &mut vmcs12.guest_es_limit,
            &mut vmcs12.guest_es_ar_bytes,
        )
    }

    fn fs(vmcs12: &mut Vmcs12) -> Fields<'_> {
        (
            &mut vmcs12.guest_fs_selector,
            &mut vmcs12.guest_fs_base,
            &mut vmcs12.guest_fs_limit,
            &mut vmcs12.guest_fs_ar_bytes,
        )
    }

    fn gs(vmcs12: &mut Vmcs12) -> Fields<'_> {
        (
            &mut vmcs12.guest_gs_selector,
            &mut vmcs12.guest_gs_base,
            &mut vmcs12.guest_gs_limit,
            &mut vmcs12.guest_gs_ar_bytes,
        )
    }

    #[test]
    fn the_smallest_violation_of_each_check_on_cs_is_named() {
        use CodeSegmentCheck as Check;

        for &check in CodeSegmentCheck::ALL {
            let mut case = Case::new();
            if check == Check::DplOfData {
                case.make_l2_32bit();
            }
            let vmcs12 = &mut case.vmcs12;
            let rights = &mut vmcs12.guest_cs_ar_bytes;

            match check {
                Check::Unusable => *rights |= UNUSABLE,
                Check::Base => vmcs12.guest_cs_base = 1 << 32,
                Check::Type => *rights &= !1,
                Check::System => *rights &= !CODE_OR_DATA,
                Check::DplOfData => *rights = 0xc093 | DPL_1,
                Check::DplNonConforming => *rights |= DPL_1,
                Check::DplConforming => *rights |= 0xf | DPL_1,
                Check::Present => *rights &= !PRESENT,
                Check::Reserved => *rights |= 1 << 8,
                Check::DefaultSize => *rights |= 1 << 14,
                Check::Granularity => vmcs12.guest_cs_limit -= 1,
            }
            assert_eq!(case.failure(), failure(SegmentCheck::Cs(check)));
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_on_ss_is_named() {
        use StackSegmentCheck as Check;

        for &check in StackSegmentCheck::ALL {
            let mut case = Case::new();
            match check {
                Check::Rpl | Check::Dpl => case.restrict_guest(),
                Check::DplInRealMode => case.make_l2_32bit(),
                _ => {}
            }
            let vmcs12 = &mut case.vmcs12;
            let rights = &mut vmcs12.guest_ss_ar_bytes;

            match check {
                Check::Rpl => vmcs12.guest_ss_selector |= 1,
                Check::Base => vmcs12.guest_ss_base = 1 << 63,
                Check::Type => *rights &= !2,
                Check::System => *rights &= !CODE_OR_DATA,
                Check::Dpl => {
                    *rights |= DPL_1;
                    vmcs12.guest_cs_ar_bytes |= 0xf;
                }
                Check::DplInRealMode => {
                    *rights |= DPL_1;
                    vmcs12.guest_cs_ar_bytes = 0xc093;
                }
                Check::Present => *rights &= !PRESENT,
                Check::Reserved => *rights |= 1 << 17,
                Check::Granularity => vmcs12.guest_ss_limit = 0,
            }
            assert_eq!(case.failure(), failure(SegmentCheck::Ss(check)));
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_on_data_segments_is_named() {
        use DataSegmentCheck as Check;

        type Register = (
            fn(&mut Vmcs12) -> Fields<'_>,
            fn(DataSegmentCheck) -> SegmentCheck,
            u64,
        );
        const REGISTERS: [Register; 4] = [
            (ds, SegmentCheck::Ds, 1 << 32),
            (es, SegmentCheck::Es, 1 << 32),
            (fs, SegmentCheck::Fs, NON_CANONICAL),
            (gs, SegmentCheck::Gs, NON_CANONICAL),
        ];

        for (register, named, bad_base) in REGISTERS {
            for &check in DataSegmentCheck::ALL {
                let mut case = Case::new();
                if check == Check::Dpl {
                    case.restrict_guest();
                }
                let (selector, base, limit, rights) = register(&mut case.vmcs12);

                match check {
                    Check::Base => *base = bad_base,
                    Check::Accessed => *rights &= !1,
                    Check::Readable => *rights = *rights & !0xf | 9,
                    Check::System => *rights &= !CODE_OR_DATA,
                    Check::Dpl => *selector |= 1,
                    Check::Present => *rights &= !PRESENT,
                    Check::Reserved => *rights |= 1 << 11,
                    Check::Granularity => *limit &= !0xfff,
                }
                assert_eq!(case.failure(), failure(named(check)));
            }
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_on_tr_is_named() {
        use TaskRegisterCheck as Check;

        for &check in TaskRegisterCheck::ALL {
            let mut case = Case::new();
            let vmcs12 = &mut case.vmcs12;
            let rights = &mut vmcs12.guest_tr_ar_bytes;

            match check {
                Check::Selector => vmcs12.guest_tr_selector |= 4,
                Check::Base => vmcs12.guest_tr_base = NON_CANONICAL,
                Check::Type => *rights &= !8,
                Check::System => *rights |= CODE_OR_DATA,
                Check::Present => *rights &= !PRESENT,
                Check::Reserved => *rights |= 1 << 31,
                Check::Granularity => *rights |= 1 << 15,
                Check::Unusable => *rights |= UNUSABLE,
            }
            assert_eq!(case.failure(), failure(SegmentCheck::Tr(check)));
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_on_ldtr_is_named() {
        use LdtrCheck as Check;

        for &check in LdtrCheck::ALL {
            let mut case = Case::new();
            let vmcs12 = &mut case.vmcs12;
            let rights = &mut vmcs12.guest_ldtr_ar_bytes;

            match check {
                Check::Selector => vmcs12.guest_ldtr_selector |= 4,
                Check::Base => vmcs12.guest_ldtr_base = NON_CANONICAL,
                Check::Type => *rights |= 1,
                Check::System => *rights |= CODE_OR_DATA,
                Check::Present => *rights &= !PRESENT,
                Check::Reserved => *rights |= 1 << 10,
                Check::Granularity => vmcs12.guest_ldtr_limit = 1 << 20,
            }
            assert_eq!(case.failure(), failure(SegmentCheck::Ldtr(check)));
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_in_virtual_8086_mode_is_named() {
        use Virtual8086Check as Check;

        for &check in Virtual8086Check::ALL {
            let case = |change: fn(&mut Vmcs12, Virtual8086Check)| {
                let mut case = Case::new();

                case.make_l2_32bit();
                case.enter_virtual_8086();
                change(&mut case.vmcs12, check);
                case.failure()
            };
            macro_rules! violate {
                ($register:ident, $base:ident, $limit:ident, $rights:ident) => {
                    assert_eq!(
                        case(|vmcs12, check| match check {
                            Check::Base => vmcs12.$base += 1,
                            Check::Limit => vmcs12.$limit = 0xf_ffff,
                            Check::AccessRights => vmcs12.$rights = 0x93,
                        }),
                        failure(SegmentCheck::$register(check))
                    );
                };
            }

            violate!(
                Virtual8086Cs,
                guest_cs_base,
                guest_cs_limit,
                guest_cs_ar_bytes
            );
            violate!(
                Virtual8086Ss,
                guest_ss_base,
                guest_ss_limit,
                guest_ss_ar_bytes
            );
            violate!(
                Virtual8086Ds,
                guest_ds_base,
                guest_ds_limit,
                guest_ds_ar_bytes
            );
            violate!(
                Virtual8086Es,
                guest_es_base,
                guest_es_limit,
                guest_es_ar_bytes
            );
            violate!(
                Virtual8086Fs,
                guest_fs_base,
                guest_fs_limit,
                guest_fs_ar_bytes
            );
            violate!(
                Virtual8086Gs,
                guest_gs_base,
                guest_gs_limit,
                guest_gs_ar_bytes
            );
        }
    }

    #[test]
    fn virtual_8086_mode_is_valid_in_protected_mode() {
        let mut case = Case::new();

        case.make_l2_32bit();
        case.enter_virtual_8086();
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn segments_that_cannot_be_used_are_ignored() {
        let mut case = Case::new();

        for register in [ds, es, fs, gs] {
            let (selector, base, limit, rights) = register(&mut case.vmcs12);

            *selector = 3;
            *base = 0;
            *limit = 0x1234_5678;
            *rights = UNUSABLE | 0x8f0f;
        }
        case.vmcs12.guest_ds_base = NON_CANONICAL;
        case.vmcs12.guest_es_base = NON_CANONICAL;
        case.vmcs12.guest_ss_base = NON_CANONICAL;
        case.vmcs12.guest_ss_ar_bytes = UNUSABLE;
        case.vmcs12.guest_ldtr_selector = 4;
        case.vmcs12.guest_ldtr_base = NON_CANONICAL;
        case.vmcs12.guest_ldtr_ar_bytes = UNUSABLE;
        assert_eq!(case.failure(), None);

        // Except for the bases that 64-bit mode uses.
        case.vmcs12.guest_fs_base = NON_CANONICAL;
        assert_eq!(
            case.failure(),
            failure(SegmentCheck::Fs(DataSegmentCheck::Base))
        );
    }

    #[test]
    fn real_mode_is_valid_in_an_unrestricted_guest() {
        let mut case = Case::new();

        case.make_l2_32bit();
        case.vmcs12.guest_cr0 &= !(1 << 31 | CR0_PE);
        case.vmcs12.guest_cs_selector = 0xf000;
        case.vmcs12.guest_cs_base = 0xffff_0000;
        case.vmcs12.guest_cs_limit = 0xffff;
        case.vmcs12.guest_cs_ar_bytes = 0x93;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn user_mode_is_valid() {
        let mut case = Case::new();

        case.restrict_guest();
        case.vmcs12.guest_cs_selector |= 3;
        case.vmcs12.guest_cs_ar_bytes |= 3 << 5;
        case.vmcs12.guest_ss_selector |= 3;
        case.vmcs12.guest_ss_ar_bytes |= 3 << 5;
        assert_eq!(case.failure(), None);
    }

    #[test]
    fn a_16_bit_task_is_valid_outside_ia32e_mode() {
        let mut case = Case::new();

        case.make_l2_32bit();
        case.vmcs12.guest_tr_ar_bytes = 0x83;
        assert_eq!(case.failure(), None);
    }
}
