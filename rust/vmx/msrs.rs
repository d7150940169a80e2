// SPDX-License-Identifier: GPL-2.0

//! MSRs that entries and exits load and store.

use crate::vcpu::VmxVcpu;
use kvm::bindings;
use nested::vmx::{
    exit::msr_area::{
        ApicMode,
        Limits,
        MsrArea,
        Msrs,
        Refused, //
    },
    field::Field, //
};

const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
const IA32_PERF_GLOBAL_CTRL: u32 = 0x38f;
const X2APIC_ENABLE: u64 = 1 << 10;

/// The MSRs of the active guest.
pub(crate) struct GuestMsrs<'a>(pub(crate) &'a mut VmxVcpu);

impl Msrs for GuestMsrs<'_> {
    fn read(&mut self, msr: u32) -> Result<u64, Refused> {
        if msr == IA32_TIME_STAMP_COUNTER {
            if let Some(value) = stored_tsc(self.0) {
                return Ok(value);
            }
        }
        let mut value = 0;
        // SAFETY: By the invariants of `VmxVcpu`.
        match unsafe { bindings::kvm_emulate_msr_read(self.0.as_ptr(), msr, &raw mut value) } {
            0 => Ok(value),
            _ => Err(Refused),
        }
    }

    fn write(&mut self, msr: u32, value: u64) -> Result<(), Refused> {
        // SAFETY: By the invariants of `VmxVcpu`.
        match unsafe { bindings::kvm_emulate_msr_write(self.0.as_ptr(), msr, value) } {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }
}

/// Returns L1's time-stamp counter at the exit, if vmcs02 has stored it.
fn stored_tsc(vmx: &mut VmxVcpu) -> Option<u64> {
    let slot = usize::try_from(vmx.nested().tsc_autostore_slot).ok()?;
    let value = vmx.fields().msr_autostore.val.get(slot)?.value;

    // SAFETY: By the invariants of `VmxVcpu`.
    Some(unsafe { bindings::kvm_read_l1_tsc(vmx.as_ptr(), value) })
}

/// Returns what limits the areas of MSRs.
pub(crate) fn limits(vmx: &VmxVcpu) -> Limits {
    Limits {
        capacity: vmx.msrs().msr_list_size(),
        apic: if vmx.with_arch(|arch| arch.apic_base) & X2APIC_ENABLE != 0 {
            ApicMode::X2Apic
        } else {
            ApicMode::Other
        },
    }
}

/// Writes the counts of L0's own areas of MSRs, which change with the guest.
pub(crate) fn write_counts(vmx: &mut VmxVcpu) {
    let fields = vmx.fields();
    let (store, load) = (fields.msr_autostore.nr, fields.msr_autoload.host.nr);
    let entry = fields.msr_autoload.guest.nr;
    let mut vmcs = vmx.vmcs();

    vmcs.write(Field::VM_EXIT_MSR_STORE_COUNT, u64::from(store));
    vmcs.write(Field::VM_EXIT_MSR_LOAD_COUNT, u64::from(load));
    vmcs.write(Field::VM_ENTRY_MSR_LOAD_COUNT, u64::from(entry));
}

/// Has vmcs02 store the time-stamp counter if L1 wants it: by the time that L0 has emulated the
/// exit, it is another. Writes the counts of the areas of vmcs02.
pub(crate) fn write_counts_of_vmcs02(vmx: &mut VmxVcpu) {
    let area = MsrArea::exit_store(vmx.vmcs12());
    // SAFETY: Memory of L1 is not a part of the vCPU.
    let stores_tsc = area.stores(
        IA32_TIME_STAMP_COUNTER,
        unsafe { vmx.memory() },
        limits(vmx),
    );

    write_counts(vmx);
    vmx.nested().tsc_autostore_slot = -1;
    if !stores_tsc {
        return;
    }
    // The area is that of L1 too: only the count of vmcs02 includes the slot.
    let count = vmx.fields().msr_autostore.nr;
    if let Some(slot) = vmx.fields().msr_autostore.val.get_mut(count as usize) {
        slot.index = IA32_TIME_STAMP_COUNTER;
        vmx.nested().tsc_autostore_slot = count as i32;
        vmx.vmcs()
            .write(Field::VM_EXIT_MSR_STORE_COUNT, u64::from(count + 1));
    }
}

/// Loads `IA32_PERF_GLOBAL_CTRL`, if there is the MSR. The value has been checked.
pub(crate) fn load_perf_global_ctrl(vmx: &mut VmxVcpu, value: u64) -> Result<(), Refused> {
    if !vmx.has_perf_global_ctrl() {
        return Ok(());
    }
    // SAFETY: By the invariants of `VmxVcpu`.
    let result =
        unsafe { bindings::__kvm_emulate_msr_write(vmx.as_ptr(), IA32_PERF_GLOBAL_CTRL, value) };
    match result {
        0 => Ok(()),
        _ => Err(Refused),
    }
}
