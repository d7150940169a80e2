// SPDX-License-Identifier: GPL-2.0

//! L1's log of pages that L2 writes (SDM, "Page-Modification Logging").
//!
//! L0 keeps it: the processor would log addresses of the host's view of L2.

use crate::vcpu::VmxVcpu;
use nested::{
    address::Gpa,
    memory::GuestMemory, //
};

/// The number of entries of a log, which is a page.
const ENTRIES: u16 = 512;
const ENTRY_SIZE: u64 = 8;

/// The log is full: the access has to exit to L1.
pub(crate) struct Full;

/// Writes an address of L2 to the log, if L1 keeps one.
pub(crate) fn log(vmx: &mut VmxVcpu, l2_gpa: u64) -> Result<(), Full> {
    let vmcs12 = vmx.vmcs12();
    if !vmx.is_guest_mode() || !vmcs12.secondary().pml() {
        return Ok(());
    }
    let index = vmcs12.guest_pml_index;
    if index >= ENTRIES {
        return Err(Full);
    }

    let entry = Gpa::from_raw(vmcs12.pml_address).checked_add(u64::from(index) * ENTRY_SIZE);
    // SAFETY: Memory of L1 is not a part of the vCPU.
    let memory = unsafe { vmx.memory() };
    let page = (l2_gpa & !0xfff).to_le_bytes();
    // Where there is no memory, nothing is logged.
    if entry.is_some_and(|entry| memory.write(entry, &page).is_ok()) {
        // Below the first entry comes the number that says that the log is full.
        vmx.vmcs12_mut().guest_pml_index = index.wrapping_sub(1);
    }
    Ok(())
}
