// SPDX-License-Identifier: GPL-2.0

//! nested-svm: nested SVM for kvm-amd.

use kernel::{
    error::to_result,
    prelude::*, //
};
use kvm::{
    bindings,
    mmu::Shrinker,
    StatsRoot, //
};
use nested::svm::capability::{
    Features,
    Words, //
};

mod address_space;
mod entry;
mod events;
mod exit;
mod instructions;
mod mmu;
mod ops;
mod state;
mod vcpu;

module! {
    type: NestedSvm,
    name: "nested_svm",
    authors: ["The nested-kvm developers"],
    description: "Nested virtualization for KVM on AMD processors",
    license: "GPL",
}

const VERSION: &str = "0.1.0";

/// The module while it is loaded: attached to kvm-amd.
///
/// # Invariants
///
/// kvm-amd calls `ops`.
struct NestedSvm {
    // Not read here: kvm-amd refers to it.
    _ops: KBox<bindings::svm_nested_ops>,
    // Dropped after the module is detached: no VM has statistics then.
    _stats: StatsRoot,
    _shrinker: Shrinker,
}

// SAFETY: The ops are not changed once they are built, and consist of addresses of functions and of
// the module.
unsafe impl Sync for NestedSvm {}

// SAFETY: As above.
unsafe impl Send for NestedSvm {}

impl kernel::Module for NestedSvm {
    fn init(module: &'static ThisModule) -> Result<Self> {
        check_host()?;

        let ops = KBox::new(ops::build(module), GFP_KERNEL)?;
        // SAFETY: This is the only call, and no op is registered yet.
        let stats = unsafe { StatsRoot::new() };
        // SAFETY: As above.
        let shrinker = unsafe { Shrinker::new() }?;

        // SAFETY: `check_host()` has found the function. `ops` is complete, and on success it is kept
        // until `drop()` has detached it.
        to_result(unsafe { bindings::nested_helper_svm_attach(&raw const *ops) })
            .inspect_err(explain)?;
        pr_info!("version {VERSION} attached to kvm-amd\n");
        report_features();

        // INVARIANT: kvm-amd has taken `ops`.
        Ok(Self {
            _ops: ops,
            _stats: stats,
            _shrinker: shrinker,
        })
    }
}

impl Drop for NestedSvm {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the module is attached; as it is being unloaded, no VM
        // holds a reference to it.
        unsafe { bindings::nested_helper_svm_detach() };
        pr_info!("detached from kvm-amd\n");
    }
}

/// Logs what the processor offers of SVM, and what of it L1 sees.
fn report_features() {
    // SAFETY: Both are functions without preconditions on a processor with SVM.
    let (processor, offered) = unsafe {
        (
            bindings::nested_helper_svm_cpu_features(),
            bindings::nested_helper_svm_nested_features(),
        )
    };

    pr_info!(
        "processor: {}\n",
        format_args!("{}", Features::new(Words { edx: processor }))
    );
    pr_info!(
        "offered to L1: {}\n",
        format_args!("{}", Features::new(Words { edx: offered }))
    );
}

/// Checks that the host has what the module needs.
///
/// # Errors
///
/// `ENODEV` without SVM or kvm-amd's interface to providers, `EOPNOTSUPP` without NPT. The reason is
/// logged.
fn check_host() -> Result {
    // SAFETY: Reads the capabilities of the boot CPU.
    if !unsafe { bindings::nested_helper_svm_supported() } {
        pr_err!("this processor has no SVM (the module for Intel processors is nested-vmx)\n");
        return Err(ENODEV);
    }
    // SAFETY: No function of KVM is in use yet.
    if !unsafe { bindings::nested_helper_import() } {
        pr_err!("this kernel's KVM lacks the provider patches\n");
        return Err(ENODEV);
    }
    // SAFETY: Looks at the address of a symbol.
    if !unsafe { bindings::nested_helper_svm_attachable() } {
        pr_err!("kvm-amd is not loaded, or its kernel lacks the provider patches\n");
        return Err(ENODEV);
    }
    // SAFETY: A kvm-amd that can be attached to exports the variable.
    if !unsafe { bindings::nested_helper_svm_npt_enabled() } {
        pr_err!("kvm-amd runs without NPT, which is needed\n");
        return Err(EOPNOTSUPP);
    }
    Ok(())
}

/// Says why kvm-amd does not take the module.
fn explain(error: &Error) {
    let reason = match *error {
        EBUSY => "a VM that can use nested virtualization exists, stop it first",
        EPERM => "kvm-amd was loaded with nested=0",
        _ => "kvm-amd refuses",
    };

    pr_err!("not attached: {reason} ({error:?})\n");
}
