// SPDX-License-Identifier: GPL-2.0

//! What hosts offer.

#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_capability_offer))]
mod cases {
    use super::super::*;
    use crate::vmx::capability::hosts::{EVERYTHING, NOTHING};

    /// Returns the allowed 1-settings of `msrs`.
    fn high(msrs: &Msrs) -> [u32; 5] {
        [
            msrs.pinbased_ctls_high,
            msrs.procbased_ctls_high,
            msrs.secondary_ctls_high,
            msrs.exit_ctls_high,
            msrs.entry_ctls_high,
        ]
    }

    /// Returns what of the allowed 1-settings `host` does not offer, but one with everything does.
    fn lost(host: &Host) -> [u32; 5] {
        let [pin, primary, secondary, exit, entry] = high(&host.offer());
        let [all_pin, all_primary, all_secondary, all_exit, all_entry] = high(&EVERYTHING.offer());

        [
            all_pin & !pin,
            all_primary & !primary,
            all_secondary & !secondary,
            all_exit & !exit,
            all_entry & !entry,
        ]
    }

    fn lost_without(change: impl FnOnce(&mut Enabled)) -> [u32; 5] {
        let mut host = EVERYTHING;

        change(&mut host.enabled);
        lost(&host)
    }

    #[test]
    fn a_host_with_nothing_offers_what_is_emulated() {
        assert_eq!(
            high(&NOTHING.offer()),
            [
                Pin::DEFAULT1.with(Pin::VMX_PREEMPTION_TIMER).into_raw(),
                Primary::DEFAULT1.with(Primary::USE_MSR_BITMAPS).into_raw(),
                Secondary::SHADOW_VMCS.into_raw(),
                Exit::DEFAULT1
                    .with(Exit::LOAD_IA32_PERF_GLOBAL_CTRL)
                    .with(Exit::ACK_INTR_ON_EXIT)
                    .with(Exit::SAVE_IA32_EFER)
                    .with(Exit::LOAD_IA32_EFER)
                    .with(Exit::SAVE_VMX_PREEMPTION_TIMER)
                    .into_raw(),
                Entry::DEFAULT1
                    .with(Entry::LOAD_IA32_PERF_GLOBAL_CTRL)
                    .with(Entry::LOAD_IA32_EFER)
                    .into_raw(),
            ]
        );
    }

    #[test]
    fn a_host_with_everything_offers_what_is_listed() {
        assert_eq!(
            high(&EVERYTHING.offer()),
            [
                0x0000_00ff,
                0xfff9_fffe,
                0x0653_ffff,
                0x10ff_ffff,
                0x0011_f3ff
            ],
        );
    }

    #[test]
    fn a_control_of_the_processor_is_lost_with_its_bit() {
        for bit in 0..32 {
            let bit = 1u32 << bit;
            let mut host = EVERYTHING;

            host.pin = Pin::from_raw(!bit);
            let emulated = Pin::DEFAULT1.with(Pin::VMX_PREEMPTION_TIMER).into_raw();
            assert_eq!(lost(&host), [bit & 0xff & !emulated, 0, 0, 0, 0]);

            host = EVERYTHING;
            host.primary = Primary::from_raw(!bit);
            let emulated = Primary::DEFAULT1.with(Primary::USE_MSR_BITMAPS).into_raw();
            assert_eq!(lost(&host), [0, bit & 0xfff9_fffe & !emulated, 0, 0, 0]);

            host = EVERYTHING;
            host.secondary = Secondary::from_raw(!bit);
            assert_eq!(lost(&host), [0, 0, bit & 0x0611_3f5c, 0, 0]);

            host = EVERYTHING;
            host.exit = Exit::from_raw(!bit);
            assert_eq!(lost(&host), [0, 0, 0, bit & 0x108c_0200, 0]);

            host = EVERYTHING;
            host.entry = Entry::from_raw(!bit);
            assert_eq!(lost(&host), [0, 0, 0, 0, bit & 0x0011_4200]);
        }
    }

    #[test]
    fn a_control_that_kvm_makes_use_of_is_lost_with_the_use() {
        let secondary = |controls: Secondary| [0, 0, controls.into_raw(), 0, 0];

        assert_eq!(
            lost_without(|enabled| enabled.ept = false),
            secondary(
                Secondary::ENABLE_EPT
                    .with(Secondary::ENABLE_PML)
                    .with(Secondary::MODE_BASED_EPT_EXEC)
            )
        );
        assert_eq!(
            lost_without(|enabled| enabled.ept_ad_bits = false),
            secondary(Secondary::ENABLE_PML)
        );
        assert_eq!(
            lost_without(|enabled| enabled.mbec = false),
            secondary(Secondary::MODE_BASED_EPT_EXEC)
        );
        assert_eq!(
            lost_without(|enabled| enabled.vpid = false),
            secondary(Secondary::ENABLE_VPID)
        );
        assert_eq!(
            lost_without(|enabled| enabled.unrestricted_guest = false),
            secondary(Secondary::UNRESTRICTED_GUEST)
        );
        assert_eq!(
            lost_without(|enabled| enabled.flexpriority = false),
            secondary(Secondary::VIRTUALIZE_APIC_ACCESSES)
        );
        assert_eq!(
            lost_without(|enabled| enabled.sgx = false),
            secondary(Secondary::ENCLS_EXITING)
        );
        assert_eq!(
            lost_without(|enabled| enabled.apicv = false),
            [Pin::POSTED_INTR.into_raw(), 0, 0, 0, 0]
        );
        assert_eq!(
            lost_without(|enabled| enabled.cet = false),
            [
                0,
                0,
                0,
                Exit::LOAD_CET_STATE.into_raw(),
                Entry::LOAD_CET_STATE.into_raw()
            ]
        );
    }

    #[test]
    fn what_must_be_1_may_be_1() {
        for host in [NOTHING, EVERYTHING] {
            let msrs = host.offer();

            assert_eq!(msrs.pinbased_ctls_low & !msrs.pinbased_ctls_high, 0);
            assert_eq!(msrs.procbased_ctls_low & !msrs.procbased_ctls_high, 0);
            assert_eq!(msrs.secondary_ctls_low & !msrs.secondary_ctls_high, 0);
            assert_eq!(msrs.exit_ctls_low & !msrs.exit_ctls_high, 0);
            assert_eq!(msrs.entry_ctls_low & !msrs.entry_ctls_high, 0);
        }
        let msrs = EVERYTHING.offer();

        assert_eq!(msrs.procbased_ctls_low, 0x0400_6172);
        assert_eq!(msrs.exit_ctls_low, 0x0003_6dfb);
        assert_eq!(msrs.entry_ctls_low, 0x0000_11fb);
    }

    #[test]
    fn ept_and_vpid_have_capabilities_only_where_they_are_offered() {
        let mut host = EVERYTHING;
        assert_eq!(host.offer().ept_caps, 0x0673_40c1);
        assert_eq!(host.offer().vpid_caps, 0x0000_0f01);

        host.enabled.ept_ad_bits = false;
        assert_eq!(host.offer().ept_caps, 0x0653_40c1);

        host.ept = 0;
        assert_eq!(host.offer().ept_caps, 0x0603_0000);

        host.enabled.ept = false;
        assert_eq!(host.offer().ept_caps, 0);
        assert_eq!(host.offer().vmfunc_controls, 0);

        host.enabled.vpid = false;
        assert_eq!(host.offer().vpid_caps, 0);
    }

    #[test]
    fn each_capability_of_ept_depends_on_its_bit_only() {
        for bit in 0..32 {
            let mut host = EVERYTHING;

            host.ept = !(1 << bit);
            assert_eq!(
                EVERYTHING.offer().ept_caps & !host.offer().ept_caps,
                0x0050_40c1 & 1 << bit
            );
        }
    }

    #[test]
    fn basic_and_misc_describe_the_vmcs_of_l1() {
        assert_eq!(
            NOTHING.offer().basic,
            0x0098_1000_0000_0000 | u64::from(REVISION)
        );
        assert_eq!(
            EVERYTHING.offer().basic,
            0x01d8_1000_0000_0000 | u64::from(REVISION)
        );
        assert_eq!(NOTHING.offer().misc_low, 0x2000_0145);
        assert_eq!(EVERYTHING.offer().misc_low, 0x2000_0165);
        assert_eq!(EVERYTHING.offer().vmcs_enum, 0x32);
    }

    #[test]
    fn vm_functions_need_the_instruction() {
        let mut host = EVERYTHING;
        assert_eq!(host.offer().vmfunc_controls, VMFUNC_EPTP_SWITCHING);

        host.secondary = host.secondary.without(Secondary::ENABLE_VMFUNC);
        assert_eq!(host.offer().vmfunc_controls, 0);
    }

    #[test]
    fn umip_may_be_emulated() {
        let mut host = NOTHING;
        assert_eq!(host.offer().cr4_fixed1, 0);

        host.enabled.umip_emulation = true;
        assert_eq!(host.offer().cr4_fixed1, CR4_UMIP);
    }
}
