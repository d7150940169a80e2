// SPDX-License-Identifier: GPL-2.0

//! The entry points from kvm-intel.
//!
//! What is not here yet is left to the code that is built into kvm-intel: the ops of the module are
//! that code's, with ours in their places.

use kernel::prelude::*;
use kvm::{
    bindings,
    Vcpu,
    VmStats, //
};
use nested::{
    exits::Taker,
    vmx::{
        capability::{
            Features,
            Words, //
        },
        ExitReason, //
    }, //
};

/// Builds the ops of `module` on those that are built into kvm-intel.
pub(crate) fn build(
    module: &ThisModule,
    builtin: &bindings::vmx_nested_ops,
) -> bindings::vmx_nested_ops {
    bindings::vmx_nested_ops {
        x86: bindings::kvm_x86_nested_ops {
            owner: module.as_ptr().cast(),
            vm_init: Some(VmStats::<ExitReason>::vm_init),
            vm_destroy: Some(VmStats::<ExitReason>::vm_destroy),
            ..builtin.x86
        },
        setup_ctls_msrs: Some(setup_ctls_msrs),
        reflect_vmexit: Some(reflect_vmexit),
        ..*builtin
    }
}

/// Computes what the VMX capability MSRs offer to L1, and logs it.
///
/// # Safety
///
/// `vmcs_conf` points to the configuration of kvm-intel, which no one else changes. The call is made
/// while a provider is attached.
unsafe extern "C" fn setup_ctls_msrs(vmcs_conf: *mut bindings::vmcs_config, ept_caps: u32) {
    // SAFETY: By the requirements of this function.
    unsafe { bindings::nested_helper_vmx_setup_ctls_msrs(vmcs_conf, ept_caps) };

    // SAFETY: As above.
    let msrs = unsafe { &(*vmcs_conf).nested };
    let offered = Words {
        pin: msrs.pinbased_ctls_high,
        primary: msrs.procbased_ctls_high,
        secondary: msrs.secondary_ctls_high,
        ept: msrs.ept_caps,
    };

    pr_info!(
        "processor: {}\n",
        format_args!("{}", Features::new(processor_words()))
    );
    pr_info!(
        "offered to L1: {}\n",
        format_args!("{}", Features::new(offered))
    );
}

/// Reads what the processor offers of VMX.
fn processor_words() -> Words {
    // The allowed 1-settings are bits 63:32; the "true" MSRs differ in the allowed 0-settings only.
    let high = |msr| u32::try_from(capability(msr) >> 32).unwrap_or(0);
    let low = |msr| u32::try_from(capability(msr) & u64::from(u32::MAX)).unwrap_or(0);

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

/// Called after each VM exit of L2: returns whether L1 gets it, in which case it has been reflected.
///
/// # Safety
///
/// `vcpu` is loaded and in guest mode, and the caller holds its mutex.
unsafe extern "C" fn reflect_vmexit(vcpu: *mut bindings::kvm_vcpu) -> bool {
    // SAFETY: By the requirements of this function; KVM calls this for a VM that can nest.
    let vcpu = unsafe { Vcpu::from_raw(vcpu) };
    // SAFETY: By the type invariants of `Vcpu`. To be read before L1's exit takes its place.
    let field = unsafe { bindings::nested_helper_vmx_exit_reason(vcpu.as_ptr()) };
    // SAFETY: As above.
    let reflected = unsafe { bindings::nested_helper_vmx_reflect_vmexit(vcpu.as_ptr()) };

    // SAFETY: `build()` has put in `vm_init()` of these.
    let stats = unsafe { vcpu.vm_stats::<ExitReason>() };
    let taker = if reflected { Taker::L1 } else { Taker::L0 };
    stats
        .exits()
        .count(vcpu.index(), ExitReason::from_field(field), taker);

    reflected
}
