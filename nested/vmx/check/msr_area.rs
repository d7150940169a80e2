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

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_check_msr_area))]
mod tests {
    use super::*;
    use crate::vmx::check::valid::Case;

    const IA32_PAT: u32 = 0x277;

    fn entry(index: u32) -> MsrEntry {
        MsrEntry {
            index,
            reserved: 0,
            value: 0,
        }
    }

    #[test]
    fn the_smallest_violation_of_each_check_on_loading_is_named() {
        use MsrEntryCheck as Check;

        let case = Case::new();

        for &check in MsrEntryCheck::ALL {
            let entry = match check {
                Check::FsBase => entry(msr::FS_BASE),
                Check::GsBase => entry(msr::GS_BASE),
                Check::SmmMonitorCtl => entry(msr::IA32_SMM_MONITOR_CTL),
                Check::X2apic => entry(0x808),
                Check::MicrocodeUpdate => entry(msr::IA32_UCODE_WRITE),
                Check::MicrocodeRevision => entry(msr::IA32_UCODE_REV),
                Check::Reserved => MsrEntry {
                    reserved: 1,
                    ..entry(IA32_PAT)
                },
            };
            assert_eq!(check_load(entry, &case.processor()), Err(check));
        }
        assert_eq!(check_load(entry(IA32_PAT), &case.processor()), Ok(()));
    }

    #[test]
    fn the_smallest_violation_of_each_check_on_storing_is_named() {
        use MsrStoreCheck as Check;

        let case = Case::new();

        for &check in MsrStoreCheck::ALL {
            let entry = match check {
                Check::Smbase => entry(msr::IA32_SMBASE),
                Check::X2apic => entry(0x8ff),
                Check::MicrocodeUpdate => entry(msr::IA32_UCODE_WRITE),
                Check::MicrocodeRevision => entry(msr::IA32_UCODE_REV),
                Check::Reserved => MsrEntry {
                    reserved: 1 << 31,
                    ..entry(IA32_PAT)
                },
            };
            assert_eq!(check_store(entry, &case.processor()), Err(check));
        }
        for index in [IA32_PAT, msr::FS_BASE, msr::GS_BASE] {
            assert_eq!(check_store(entry(index), &case.processor()), Ok(()));
        }
    }

    #[test]
    fn msrs_of_the_local_apic_are_refused_in_x2apic_mode_only() {
        let mut case = Case::new();

        case.apic_mode = ApicMode::Xapic;
        for index in 0..0x1000 {
            let is_x2apic = (0x800..0x900).contains(&index);

            assert_eq!(entry(index).is_x2apic(), is_x2apic);
        }
        assert_eq!(check_load(entry(0x808), &case.processor()), Ok(()));
        assert_eq!(check_store(entry(0x808), &case.processor()), Ok(()));
    }

    #[test]
    fn an_entry_is_an_index_and_a_value() {
        assert_eq!(
            MsrEntry::from_bytes([1, 0, 0, 0x80, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0x40]),
            MsrEntry {
                index: 0x8000_0001,
                reserved: 2,
                value: 0x4000_0000_0000_0003
            }
        );
    }

    /// MSRs of which only the PAT can be written, and not to everything.
    struct Pat {
        value: u64,
        writes: u32,
    }

    impl WriteMsr for Pat {
        fn write(&mut self, index: u32, value: u64) -> Result<(), InvalidMsr> {
            if index != IA32_PAT || value >> 8 != 0 {
                return Err(InvalidMsr);
            }
            self.value = value;
            self.writes = self.writes.wrapping_add(1);
            Ok(())
        }
    }

    #[test]
    fn entries_are_loaded_up_to_the_one_that_fails() {
        let area = 0xe000;
        let pat = u64::from(IA32_PAT);
        let outcome = |words, count| {
            let mut case = Case::new();
            let mut msrs = Pat {
                value: 0,
                writes: 0,
            };

            case.memory.words = words;
            let result = load(
                Gpa::from_raw(area),
                count,
                &case.processor(),
                &case.memory,
                &mut msrs,
            );
            (result, msrs.value, msrs.writes)
        };
        let two = [(area, pat), (area + 8, 6), (area + 16, pat), (area + 24, 7)];

        assert_eq!(outcome(two, 0), (Ok(()), 0, 0));
        assert_eq!(outcome(two, 1), (Ok(()), 6, 1));
        assert_eq!(outcome(two, 2), (Ok(()), 7, 2));

        // WRMSR would raise a fault.
        let mut words = two;
        words[3].1 = 0x100;
        let failed = |entry, check| Err(LoadFailure { entry, check });
        assert_eq!(outcome(words, 2), (failed(2, None), 6, 1));
        assert_eq!(outcome(two, 3), (failed(3, None), 7, 2));

        // A check fails.
        words[0].1 |= 1 << 32;
        assert_eq!(
            outcome(words, 2),
            (failed(1, Some(MsrEntryCheck::Reserved)), 0, 0)
        );
    }

    #[test]
    fn an_area_that_is_not_memory_cannot_be_loaded() {
        let case = Case::new();
        let mut msrs = Pat {
            value: 0,
            writes: 0,
        };

        for area in [1 << 30, !0xf] {
            assert_eq!(
                load(
                    Gpa::from_raw(area),
                    1,
                    &case.processor(),
                    &case.memory,
                    &mut msrs
                ),
                Err(LoadFailure {
                    entry: 1,
                    check: None
                })
            );
        }
    }
}
