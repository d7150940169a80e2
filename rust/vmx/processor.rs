// SPDX-License-Identifier: GPL-2.0

//! L1's virtual processor, as the checks of VM entry look at it.

use crate::{
    invalidate::linear_address_width,
    vcpu::VmxVcpu, //
};
use kvm::bindings;
use nested::vmx::check::{
    Mode,
    Processor, //
};

const CR3_LAM: u64 = 1 << 61 | 1 << 62;
const EFER_LMA: u64 = 1 << 10;

/// Reserved bits that take a while to find out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reserved {
    efer: u64,
    debugctl: u64,
    s_cet: u64,
    pending_debug: u64,
    interruptibility: u32,
}

impl Reserved {
    /// Finds out what the virtual processor reserves.
    pub(crate) fn of(vmx: &VmxVcpu) -> Self {
        let vcpu = vmx.as_ptr();
        // SAFETY: By the invariants of `VmxVcpu`; each reads the capabilities of the vCPU.
        let (bus_lock, ibt, rtm, sgx, shadow_stack) = unsafe {
            (
                bindings::nested_helper_vmx_guest_has_bus_lock_detect(vcpu),
                bindings::nested_helper_vmx_guest_has_ibt(vcpu),
                bindings::nested_helper_vmx_guest_has_rtm(vcpu),
                bindings::nested_helper_vmx_guest_has_sgx(vcpu),
                bindings::nested_helper_vmx_guest_has_shadow_stack(vcpu),
            )
        };

        Self {
            efer: reserved_efer(vmx),
            debugctl: reserved_debugctl(vmx),
            s_cet: 0xf << 6
                | if shadow_stack { 0 } else { 0x3 }
                | if ibt { 0 } else { !0x3ff | 0x3c },
            pending_debug: !0x1_ffff
                | 1 << 15
                | 1 << 13
                | 0x7f << 4
                | if bus_lock { 0 } else { 1 << 11 }
                | if rtm { 0 } else { 1 << 16 },
            interruptibility: !0x1f | if sgx { 0 } else { 1 << 4 },
        }
    }
}

/// Returns the reserved bits of `IA32_EFER`.
fn reserved_efer(vmx: &VmxVcpu) -> u64 {
    (0..64)
        .map(|bit| 1 << bit)
        .filter(|&bit| !vmx.is_legal_efer(bit))
        .fold(0, |reserved, bit| reserved | bit)
}

/// Returns the reserved bits of `IA32_DEBUGCTL`.
fn reserved_debugctl(vmx: &VmxVcpu) -> u64 {
    // Guests set them in the belief that each processor has them: in vain.
    const LBR: u64 = 1 << 0;
    const BTF: u64 = 1 << 1;
    const FREEZE_IN_SMM: u64 = 1 << 14;

    let quirk = u64::from(bindings::KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM);
    let in_vain = if vmx.has_quirk(quirk) {
        LBR | BTF | FREEZE_IN_SMM
    } else {
        LBR | BTF
    };

    !(vmx.supported_debugctl() | in_vain)
}

impl VmxVcpu {
    /// Returns how many bits a physical address has.
    pub(crate) fn physical_address_width(&self) -> u32 {
        self.with_arch(|arch| arch.maxphyaddr as u32)
    }

    /// Returns L1's virtual processor.
    pub(crate) fn processor(&self, reserved: &Reserved) -> Processor<'_> {
        let perf_global_ctrl_reserved = self.perf_global_ctrl_reserved();
        // SAFETY: By the invariants of `VmxVcpu`; reads the capabilities of the vCPU.
        let lam = unsafe { bindings::nested_helper_vmx_guest_has_lam(self.as_ptr()) };
        let linear_address_width = linear_address_width();
        let msrs = self.msrs();

        self.with_arch(|arch| Processor {
            msrs,
            physical_address_width: arch.maxphyaddr as u32,
            linear_address_width,
            cr3_reserved: arch.reserved_gpa_bits & if lam { !CR3_LAM } else { u64::MAX },
            cr4_reserved: arch.cr4_guest_rsvd_bits as u64,
            efer_reserved: reserved.efer,
            debugctl_reserved: reserved.debugctl,
            perf_global_ctrl_reserved,
            s_cet_reserved: reserved.s_cet,
            pending_debug_reserved: reserved.pending_debug,
            interruptibility_reserved: reserved.interruptibility,
            mode: if arch.efer & EFER_LMA != 0 {
                Mode::Ia32e
            } else {
                Mode::Legacy
            },
        })
    }
}
