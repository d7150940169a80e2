// SPDX-License-Identifier: GPL-2.0

//! Checks on the VMX controls.

mod entry;
mod event;
mod execution;
mod exit;

pub use entry::{check_entry_controls, EntryControlCheck};
pub use event::{check_event_injection, Event, EventInjectionCheck};
pub use execution::{check_execution_controls, ExecutionControlCheck};
pub use exit::{check_exit_controls, ExitControlCheck};

use super::{failure::ControlCheck, Processor};
use crate::{
    address::Gpa,
    vmx::{eptp::check_eptp, Vmcs12},
};

/// The alignment and size of an entry of an MSR area in bytes.
const MSR_ENTRY_SIZE: u64 = 16;

/// Makes all checks on controls but those on event injection (SDM, "Checks on VMX Controls").
pub fn check_controls(vmcs12: &Vmcs12, processor: &Processor<'_>) -> Result<(), ControlCheck> {
    check_execution_controls(vmcs12, processor).map_err(ControlCheck::Execution)?;
    if vmcs12.secondary().ept() {
        check_eptp(
            vmcs12.ept_pointer,
            processor.msrs.ept_vpid(),
            processor.physical_address_width,
        )
        .map_err(ControlCheck::EptPointer)?;
    }
    check_exit_controls(vmcs12, processor).map_err(ControlCheck::Exit)?;
    check_entry_controls(vmcs12, processor).map_err(ControlCheck::Entry)
}

/// Returns whether an MSR area at `address` is aligned and ends within the physical addresses.
#[inline]
fn is_legal_msr_area(address: u64, count: u32, processor: &Processor<'_>) -> bool {
    let last_byte = u64::from(count)
        .wrapping_mul(MSR_ENTRY_SIZE)
        .wrapping_sub(1);

    address & (MSR_ENTRY_SIZE - 1) == 0
        && Gpa::from_raw(address)
            .checked_add(last_byte)
            .is_some_and(|end| end.fits(processor.physical_address_width))
}
