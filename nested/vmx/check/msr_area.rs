// SPDX-License-Identifier: GPL-2.0

//! The areas of MSRs that VM entries and exits load and store.

use super::{ApicMode, Processor};
use crate::{address::Gpa, memory::GuestMemory};

/// The size of an entry in bytes.
const ENTRY_SIZE: u64 = 16;

/// Numbers of MSRs that an area cannot contain.
mod msr {
    pub(super) const IA32_UCODE_WRITE: u32 = 0x79;
    pub(super) const IA32_UCODE_REV: u32 = 0x8b;
    pub(super) const IA32_SMM_MONITOR_CTL: u32 = 0x9b;
    pub(super) const IA32_SMBASE: u32 = 0x9e;
    pub(super) const FS_BASE: u32 = 0xc000_0100;
    pub(super) const GS_BASE: u32 = 0xc000_0101;
}

/// An entry of an area (SDM, "VM-Exit Controls for MSRs").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrEntry {
    /// The number of the MSR.
    pub index: u32,
    /// Is 0.
    pub reserved: u32,
    /// The value.
    pub value: u64,
}

impl MsrEntry {
    /// Takes an entry apart.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let whole = u128::from_le_bytes(bytes);
        let [a, b, c, d, e, f, g, h, value @ ..] = whole.to_le_bytes();

        Self {
            index: u32::from_le_bytes([a, b, c, d]),
            reserved: u32::from_le_bytes([e, f, g, h]),
            value: u64::from_le_bytes(value),
        }
    }

    /// Returns whether the MSR is one of the local APIC in x2APIC mode.
    const fn is_x2apic(self) -> bool {
        self.index >> 8 == 0x8
    }
}

consistency_checks! {
    /// Makes the checks on an entry that is loaded, but for those of WRMSR (SDM, "Loading MSRs").
    pub fn check_load(
        entry: MsrEntry,
        processor: &Processor<'_>,
    ) -> Result<(), MsrEntryCheck> {
        /// The base of FS is loaded from a field of its own.
        FsBase: entry.index == msr::FS_BASE,
        /// The base of GS is loaded from a field of its own.
        GsBase: entry.index == msr::GS_BASE,
        /// The MSEG can be changed in SMM only.
        SmmMonitorCtl: entry.index == msr::IA32_SMM_MONITOR_CTL,
        /// The local APIC is not accessed by MSRs.
        X2apic: processor.apic_mode == ApicMode::X2apic && entry.is_x2apic(),
        /// Microcode is not updated.
        MicrocodeUpdate: entry.index == msr::IA32_UCODE_WRITE,
        /// The revision of microcode is not written.
        MicrocodeRevision: entry.index == msr::IA32_UCODE_REV,
        /// Reserved bits are 0.
        Reserved: entry.reserved != 0,
    }
}

consistency_checks! {
    /// Makes the checks on an entry that is stored, but for those of RDMSR (SDM, "Saving MSRs").
    pub fn check_store(
        entry: MsrEntry,
        processor: &Processor<'_>,
    ) -> Result<(), MsrStoreCheck> {
        /// The SMBASE can be read in SMM only.
        Smbase: entry.index == msr::IA32_SMBASE,
        /// The local APIC is not accessed by MSRs.
        X2apic: processor.apic_mode == ApicMode::X2apic && entry.is_x2apic(),
        /// Microcode is not updated.
        MicrocodeUpdate: entry.index == msr::IA32_UCODE_WRITE,
        /// The revision of microcode is not stored.
        MicrocodeRevision: entry.index == msr::IA32_UCODE_REV,
        /// Reserved bits are 0.
        Reserved: entry.reserved != 0,
    }
}

/// MSRs of L1, as WRMSR writes them.
pub trait WriteMsr {
    /// Writes `value` to the MSR `index`, unless WRMSR would raise a fault.
    fn write(&mut self, index: u32, value: u64) -> Result<(), InvalidMsr>;
}

/// WRMSR would raise a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidMsr;

/// An entry could not be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadFailure {
    /// Which entry, counting from 1.
    pub entry: u32,
    /// The check that failed, or `None` if the entry cannot be read or WRMSR would raise a fault.
    pub check: Option<MsrEntryCheck>,
}

/// Loads the MSRs in the area of `count` entries at `area` (SDM, "Loading MSRs").
///
/// The entries before the one that fails are loaded. The checks on the controls have bounded the
/// count.
pub fn load<M: GuestMemory, W: WriteMsr>(
    area: Gpa,
    count: u32,
    processor: &Processor<'_>,
    memory: &M,
    msrs: &mut W,
) -> Result<(), LoadFailure> {
    for index in 0..count {
        let failed = |check| LoadFailure {
            entry: index.saturating_add(1),
            check,
        };
        let entry = read(area, index, memory).ok_or(failed(None))?;

        check_load(entry, processor).map_err(|check| failed(Some(check)))?;
        msrs.write(entry.index, entry.value)
            .map_err(|InvalidMsr| failed(None))?;
    }
    Ok(())
}

/// Reads the entry `index` of an area.
pub fn read<M: GuestMemory>(area: Gpa, index: u32, memory: &M) -> Option<MsrEntry> {
    let address = area.checked_add(u64::from(index).checked_mul(ENTRY_SIZE)?)?;
    let mut bytes = [0; 16];

    memory.read(address, &mut bytes).ok()?;
    Some(MsrEntry::from_bytes(bytes))
}
