// SPDX-License-Identifier: GPL-2.0

//! nested-vmx: nested VMX for kvm-intel.

use kernel::{
    error::to_result,
    prelude::*, //
};
use kvm::{
    bindings,
    mmu::Shrinker,
    StatsRoot, //
};

mod access;
mod capability;
mod entry;
mod events;
mod exit;
mod host_state;
#[cfg(CONFIG_KVM_HYPERV)]
mod hyperv;
#[cfg(not(CONFIG_KVM_HYPERV))]
#[path = "no_hyperv.rs"]
mod hyperv;
mod instruction;
mod invalidate;
mod layout;
mod mmu;
mod msrs;
mod nested_state;
mod ops;
mod pages;
mod pml;
mod processor;
mod route;
mod shadow;
mod state;
mod vcpu;
mod vmcs;
mod vmcs02;

module! {
    type: NestedVmx,
    name: "nested_vmx",
    authors: ["The nested-kvm developers"],
    description: "Nested virtualization for KVM on Intel processors",
    license: "GPL",
    params: {
        enable_shadow_vmcs: bool {
            default: true,
            description: "Let L1 access its VMCS without exits, where the processor can",
        },
    },
}

const VERSION: &str = "0.1.0";

/// The module while it is loaded: attached to kvm-intel.
///
/// # Invariants
///
/// kvm-intel calls `ops`.
struct NestedVmx {
    // Not read here: kvm-intel refers to it.
    _ops: KBox<bindings::vmx_nested_ops>,
    // Dropped after the module is detached: no VM has statistics or uses the bitmaps then.
    _stats: StatsRoot,
    _shrinker: Shrinker,
    _bitmaps: Option<shadow::Bitmaps>,
}

// SAFETY: The ops are not changed once they are built, and consist of addresses of functions and of
// the module.
unsafe impl Sync for NestedVmx {}

// SAFETY: As above.
unsafe impl Send for NestedVmx {}

impl kernel::Module for NestedVmx {
    fn init(module: &'static ThisModule) -> Result<Self> {
        check_host()?;

        let ops = KBox::new(ops::build(module), GFP_KERNEL)?;
        let bitmaps = shadow::Bitmaps::new()?;
        // SAFETY: This is the only call, and no op is registered yet.
        let stats = unsafe { StatsRoot::new() };
        // SAFETY: As above.
        let shrinker = unsafe { Shrinker::new() }?;

        // SAFETY: `check_host()` has found the function. `ops` is complete, and on success it is kept
        // until `drop()` has detached it.
        to_result(unsafe { bindings::nested_helper_vmx_attach(&raw const *ops) })
            .inspect_err(explain)?;
        pr_info!("version {VERSION} attached to kvm-intel\n");

        // INVARIANT: kvm-intel has taken `ops`.
        Ok(Self {
            _ops: ops,
            _stats: stats,
            _shrinker: shrinker,
            _bitmaps: bitmaps,
        })
    }
}

impl Drop for NestedVmx {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the module is attached; as it is being unloaded, no VM
        // holds a reference to it.
        unsafe { bindings::nested_helper_vmx_detach() };
        pr_info!("detached from kvm-intel\n");
    }
}

/// Checks that the host has what the module needs.
///
/// # Errors
///
/// `ENODEV` without VMX or kvm-intel's interface to providers, `EOPNOTSUPP` without EPT. The reason
/// is logged.
fn check_host() -> Result {
    // SAFETY: Reads the capabilities of the boot CPU.
    if !unsafe { bindings::nested_helper_vmx_supported() } {
        pr_err!("this processor has no VMX (the module for AMD processors is nested-svm)\n");
        return Err(ENODEV);
    }
    // SAFETY: No function of KVM is in use yet.
    if !unsafe { bindings::nested_helper_import() } {
        pr_err!("this kernel's KVM lacks the provider patches\n");
        return Err(ENODEV);
    }
    // SAFETY: Looks at the address of a symbol.
    if !unsafe { bindings::nested_helper_vmx_attachable() } {
        pr_err!("kvm-intel is not loaded, or its kernel lacks the provider patches\n");
        return Err(ENODEV);
    }
    // SAFETY: A kvm-intel that can be attached to exports the variable.
    if !unsafe { bindings::nested_helper_vmx_enable_ept() } {
        pr_err!("kvm-intel runs without EPT, which is needed\n");
        return Err(EOPNOTSUPP);
    }
    Ok(())
}

/// Says why kvm-intel does not take the module.
fn explain(error: &Error) {
    let reason = match *error {
        EBUSY => "a VM that can use nested virtualization exists, stop it first",
        EPERM => "kvm-intel was loaded with nested=0",
        _ => "kvm-intel refuses",
    };

    pr_err!("not attached: {reason} ({error:?})\n");
}
