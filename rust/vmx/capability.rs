// SPDX-License-Identifier: GPL-2.0

//! The VMX capability MSRs that L1 sees.

use crate::{
    vcpu::VmxVcpu,
    vmcs::config, //
};
use kernel::prelude::*;
use kvm::bindings;
use nested::vmx::{
    capability::{
        Enabled,
        Features,
        Host,
        Msr,
        Msrs,
        Refusal,
        Words, //
    },
    controls::{
        Entry,
        Exit,
        Pin,
        Primary,
        Secondary, //
    },
    field::{
        Allowed,
        FieldSet, //
    }, //
};

/// Computes what L1 sees, given what kvm-intel has found on the processor.
pub(crate) fn offer(config: &bindings::vmcs_config, ept: u32) -> Msrs {
    let mut msrs = host(config, ept).offer();

    msrs.vmcs_enum = FieldSet::of_l1(&Allowed::of(&msrs)).vmcs_enum();
    msrs
}

fn host(config: &bindings::vmcs_config, ept: u32) -> Host {
    Host {
        basic: config.basic,
        pin: Pin::from_raw(config.pin_based_exec_ctrl),
        primary: Primary::from_raw(config.cpu_based_exec_ctrl),
        secondary: Secondary::from_raw(config.cpu_based_2nd_exec_ctrl),
        exit: Exit::from_raw(config.vmexit_ctrl),
        entry: Entry::from_raw(config.vmentry_ctrl),
        misc: config.misc as u32,
        ept,
        cr0_fixed1: config.cr0_fixed1,
        cr4_fixed1: config.cr4_fixed1,
        highest_field_index: 0,
        enabled: enabled(),
    }
}

/// Returns what KVM makes use of.
fn enabled() -> Enabled {
    // SAFETY: Each reads a parameter of kvm-intel, which is loaded, or a capability of the host.
    unsafe {
        Enabled {
            ept: bindings::nested_helper_vmx_enable_ept(),
            ept_ad_bits: bindings::nested_helper_vmx_enable_ept_ad_bits(),
            mbec: bindings::nested_helper_vmx_enable_mbec(),
            vpid: bindings::nested_helper_vmx_enable_vpid(),
            unrestricted_guest: bindings::nested_helper_vmx_enable_unrestricted_guest(),
            flexpriority: bindings::nested_helper_vmx_flexpriority_enabled(),
            apicv: bindings::nested_helper_vmx_apicv_enabled(),
            sgx: bindings::nested_helper_vmx_sgx_enabled(),
            cet: bindings::nested_helper_vmx_cet_supported(),
            umip_emulation: bindings::nested_helper_vmx_umip_emulated(),
        }
    }
}

/// Logs what the processor has, and what of it L1 sees.
pub(crate) fn report(offered: &Msrs) {
    let words = Words {
        pin: offered.pinbased_ctls_high,
        primary: offered.procbased_ctls_high,
        secondary: offered.secondary_ctls_high,
        ept: offered.ept_caps,
    };

    pr_info!(
        "processor: {}\n",
        format_args!("{}", Features::new(processor_words()))
    );
    pr_info!(
        "offered to L1: {}\n",
        format_args!("{}", Features::new(words))
    );
}

/// Reads what the processor offers of VMX.
fn processor_words() -> Words {
    // The allowed 1-settings are bits 63:32; the "true" MSRs differ in the allowed 0-settings only.
    let high = |msr| (capability(msr) >> 32) as u32;
    let low = |msr| capability(msr) as u32;

    Words {
        pin: high(bindings::MSR_IA32_VMX_PINBASED_CTLS),
        primary: high(bindings::MSR_IA32_VMX_PROCBASED_CTLS),
        secondary: high(bindings::MSR_IA32_VMX_PROCBASED_CTLS2),
        ept: low(bindings::MSR_IA32_VMX_EPT_VPID_CAP),
    }
}

/// Returns the value of a capability MSR, 0 if the processor does not have it.
fn capability(msr: u32) -> u64 {
    // SAFETY: Reading a capability MSR has no effect, and one that does not exist is caught.
    unsafe { bindings::nested_helper_vmx_capability(msr) }
}

/// Returns the fields that the processor has in its own VMCS.
pub(crate) fn processor_fields() -> FieldSet {
    let config = config();

    FieldSet::of_processor(&Allowed {
        pin: config.pin_based_exec_ctrl,
        primary: config.cpu_based_exec_ctrl,
        secondary: config.cpu_based_2nd_exec_ctrl,
        entry: config.vmentry_ctrl,
    })
}

/// Writes a capability MSR, for user space.
///
/// # Errors
///
/// `EBUSY` in VMX operation, `EINVAL` if it would go beyond what is offered.
pub(crate) fn restrict(vmx: &mut VmxVcpu, msr: u32, value: u64) -> Result {
    if vmx.nested().vmxon {
        return Err(EBUSY);
    }
    // SAFETY: The types have the same layout.
    let offered: &Msrs = unsafe { &*(&raw const config().nested).cast() };

    vmx.msrs_mut()
        .restrict(offered, Msr::from_raw(msr), value)
        .inspect_err(|refusal| explain(msr, refusal))
        .map_err(|_| EINVAL)
}

fn explain(msr: u32, refusal: &Refusal) {
    pr_debug!("MSR {:#x} refused: {}\n", msr, refusal.reason());
}
