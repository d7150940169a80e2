// SPDX-License-Identifier: GPL-2.0

//! The areas of MSRs that VM entries load, and that VM exits store and load.

use super::Abort;
use crate::{
    address::Gpa,
    memory::{GuestMemory, Inaccessible},
    vmx::Vmcs12,
};

const IA32_BIOS_UPDT_TRIG: u32 = 0x79;
const IA32_BIOS_SIGN_ID: u32 = 0x8b;
const IA32_SMM_MONITOR_CTL: u32 = 0x9b;
const IA32_SMBASE: u32 = 0x9e;
const IA32_FS_BASE: u32 = 0xc000_0100;
const IA32_GS_BASE: u32 = 0xc000_0101;

/// The size of an entry in bytes: the number of the MSR, a reserved word, the value.
const ENTRY_SIZE: u64 = 16;
const VALUE_OFFSET: u64 = 8;

/// An MSR could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The MSRs of a virtual processor.
pub trait Msrs {
    /// Reads an MSR as RDMSR does, or `IA32_TIME_STAMP_COUNTER` as it was at the exit.
    fn read(&mut self, msr: u32) -> Result<u64, Refused>;

    /// Writes an MSR as WRMSR does.
    fn write(&mut self, msr: u32, value: u64) -> Result<(), Refused>;
}

/// The mode of the local APIC of L1's vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApicMode {
    /// x2APIC mode: there are MSRs for its registers.
    X2Apic,
    /// xAPIC mode, or disabled.
    Other,
}

/// What limits the use of areas on a virtual processor.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many entries an area can have, by the `IA32_VMX_MISC` that L1 is shown.
    pub capacity: u32,
    /// The mode of the local APIC.
    pub apic: ApicMode,
}

impl Limits {
    /// Returns whether neither a load nor a store may access an MSR.
    const fn exclude(&self, msr: u32) -> bool {
        matches!(self.apic, ApicMode::X2Apic) && msr >> 8 == 8
            || matches!(msr, IA32_BIOS_UPDT_TRIG | IA32_BIOS_SIGN_ID)
    }

    /// Returns whether a load may access an MSR (SDM, "Loading MSRs").
    const fn allow_load(&self, msr: u32) -> bool {
        !self.exclude(msr) && !matches!(msr, IA32_FS_BASE | IA32_GS_BASE | IA32_SMM_MONITOR_CTL)
    }

    /// Returns whether a store may access an MSR (SDM, "Saving MSRs").
    const fn allow_store(&self, msr: u32) -> bool {
        !self.exclude(msr) && msr != IA32_SMBASE
    }
}

/// An area of MSRs in the memory of L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrArea {
    address: Gpa,
    count: u32,
}

/// The number, from 1, of the entry that a load failed at: the exit qualification of an entry that
/// fails for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedEntry(pub u32);

impl MsrArea {
    /// Returns the area that an entry loads.
    pub const fn entry_load(vmcs12: &Vmcs12) -> Self {
        Self {
            address: Gpa::from_raw(vmcs12.vm_entry_msr_load_addr),
            count: vmcs12.vm_entry_msr_load_count,
        }
    }

    /// Returns the area that an exit stores.
    pub const fn exit_store(vmcs12: &Vmcs12) -> Self {
        Self {
            address: Gpa::from_raw(vmcs12.vm_exit_msr_store_addr),
            count: vmcs12.vm_exit_msr_store_count,
        }
    }

    /// Returns the area that an exit loads.
    pub const fn exit_load(vmcs12: &Vmcs12) -> Self {
        Self {
            address: Gpa::from_raw(vmcs12.vm_exit_msr_load_addr),
            count: vmcs12.vm_exit_msr_load_count,
        }
    }

    /// Returns the address of an entry.
    fn entry(&self, index: u32) -> Result<Gpa, Inaccessible> {
        u64::from(index)
            .checked_mul(ENTRY_SIZE)
            .and_then(|offset| self.address.checked_add(offset))
            .ok_or(Inaccessible)
    }

    /// Loads the MSRs of the area.
    ///
    /// An area with more entries than there may be is loaded as far as it is valid.
    pub fn load(
        self,
        memory: &impl GuestMemory,
        msrs: &mut impl Msrs,
        limits: Limits,
    ) -> Result<(), FailedEntry> {
        for index in 0..self.count {
            self.load_entry(index, memory, msrs, limits)
                .map_err(|Refused| FailedEntry(index.saturating_add(1)))?;
        }
        Ok(())
    }

    fn load_entry(
        self,
        index: u32,
        memory: &impl GuestMemory,
        msrs: &mut impl Msrs,
        limits: Limits,
    ) -> Result<(), Refused> {
        let mut bytes = [0; 16];

        if index >= limits.capacity {
            return Err(Refused);
        }
        self.entry(index)
            .and_then(|address| memory.read(address, &mut bytes))
            .map_err(|Inaccessible| Refused)?;

        let [m0, m1, m2, m3, r0, r1, r2, r3, value @ ..] = bytes;
        let msr = u32::from_le_bytes([m0, m1, m2, m3]);

        if [r0, r1, r2, r3] != [0; 4] || !limits.allow_load(msr) {
            return Err(Refused);
        }
        msrs.write(msr, u64::from_le_bytes(value))
    }

    /// Loads the MSRs of the area at an exit, where a failure is an abort.
    pub fn load_at_exit(
        self,
        memory: &impl GuestMemory,
        msrs: &mut impl Msrs,
        limits: Limits,
    ) -> Result<(), Abort> {
        self.load(memory, msrs, limits)
            .map_err(|FailedEntry(_)| Abort::LOAD_HOST_MSR_FAIL)
    }

    /// Undoes that `entered` was loaded, for an entry that the processor has refused.
    ///
    /// What the MSRs were is not known. Those that an exit would load from this area are loaded as
    /// far as they have other values there.
    pub fn undo(
        self,
        entered: Self,
        memory: &impl GuestMemory,
        msrs: &mut impl Msrs,
        limits: Limits,
    ) -> Result<(), Abort> {
        for index in 0..entered.count {
            self.undo_entry(entered.read(index, memory, limits)?, memory, msrs, limits)?;
        }
        Ok(())
    }

    fn undo_entry(
        self,
        (msr, loaded): (u32, u64),
        memory: &impl GuestMemory,
        msrs: &mut impl Msrs,
        limits: Limits,
    ) -> Result<(), Abort> {
        for index in 0..self.count {
            let (other, value) = self.read(index, memory, limits)?;

            if other == msr && value != loaded {
                self.load_entry(index, memory, msrs, limits)
                    .map_err(|Refused| Abort::LOAD_HOST_MSR_FAIL)?;
            }
        }
        Ok(())
    }

    /// Reads the number and the value of an entry, valid or not.
    fn read(
        self,
        index: u32,
        memory: &impl GuestMemory,
        limits: Limits,
    ) -> Result<(u32, u64), Abort> {
        let mut bytes = [0; 16];

        if index >= limits.capacity {
            return Err(Abort::LOAD_HOST_MSR_FAIL);
        }
        self.entry(index)
            .and_then(|address| memory.read(address, &mut bytes))
            .map_err(|Inaccessible| Abort::LOAD_HOST_MSR_FAIL)?;

        let [m0, m1, m2, m3, _, _, _, _, value @ ..] = bytes;
        Ok((
            u32::from_le_bytes([m0, m1, m2, m3]),
            u64::from_le_bytes(value),
        ))
    }

    /// Stores MSRs in the area, into the values of its entries.
    pub fn store(
        self,
        memory: &impl GuestMemory,
        msrs: &mut impl Msrs,
        limits: Limits,
    ) -> Result<(), Abort> {
        for index in 0..self.count {
            self.store_entry(index, memory, msrs, limits)
                .map_err(|Refused| Abort::SAVE_GUEST_MSR_FAIL)?;
        }
        Ok(())
    }

    fn store_entry(
        self,
        index: u32,
        memory: &impl GuestMemory,
        msrs: &mut impl Msrs,
        limits: Limits,
    ) -> Result<(), Refused> {
        let msr = self.msr_to_store(index, memory, limits)?;
        let value = msrs.read(msr)?;

        self.entry(index)
            .and_then(|entry| entry.checked_add(VALUE_OFFSET).ok_or(Inaccessible))
            .and_then(|address| memory.write(address, &value.to_le_bytes()))
            .map_err(|Inaccessible| Refused)
    }

    /// Reads which MSR an entry is about.
    fn msr_to_store(
        self,
        index: u32,
        memory: &impl GuestMemory,
        limits: Limits,
    ) -> Result<u32, Refused> {
        let mut bytes = [0; 8];

        if index >= limits.capacity {
            return Err(Refused);
        }
        self.entry(index)
            .and_then(|address| memory.read(address, &mut bytes))
            .map_err(|Inaccessible| Refused)?;

        let [m0, m1, m2, m3, reserved @ ..] = bytes;
        let msr = u32::from_le_bytes([m0, m1, m2, m3]);

        if reserved != [0; 4] || !limits.allow_store(msr) {
            return Err(Refused);
        }
        Ok(msr)
    }

    /// Returns whether a store would come to an MSR.
    ///
    /// For `IA32_TIME_STAMP_COUNTER`, vmcs02 stores it too: the value at the exit is wanted, not
    /// the one when the exit has been emulated.
    pub fn stores(self, msr: u32, memory: &impl GuestMemory, limits: Limits) -> bool {
        (0..self.count)
            .map_while(|index| self.msr_to_store(index, memory, limits).ok())
            .any(|stored| stored == msr)
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_msr_area))]
mod tests {
    use super::*;
    use core::cell::Cell;

    const ADDRESS: u64 = 0x3000;
    const ENTRIES: usize = 4;

    const LIMITS: Limits = Limits {
        capacity: 512,
        apic: ApicMode::X2Apic,
    };

    /// An area of four entries, and no memory after it.
    struct Area {
        words: [Cell<u64>; 2 * ENTRIES],
    }

    impl Area {
        fn new(msrs: [u64; ENTRIES]) -> Self {
            let [a, b, c, d] = msrs;

            Self {
                words: [a, 100, b, 101, c, 102, d, 103].map(Cell::new),
            }
        }

        fn value(&self, index: usize) -> u64 {
            self.words[2 * index + 1].get()
        }

        fn slot(&self, gpa: Gpa) -> Result<usize, Inaccessible> {
            let offset = gpa.into_raw().checked_sub(ADDRESS).ok_or(Inaccessible)?;

            if offset < 16 * ENTRIES as u64 {
                Ok(offset as usize / 8)
            } else {
                Err(Inaccessible)
            }
        }
    }

    impl GuestMemory for Area {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
            let slot = self.slot(gpa)?;

            for (word, chunk) in self.words[slot..].iter().zip(bytes.chunks_mut(8)) {
                chunk.copy_from_slice(&word.get().to_le_bytes());
            }
            Ok(())
        }

        fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), Inaccessible> {
            let slot = self.slot(gpa)?;
            let mut value = [0; 8];

            value.copy_from_slice(bytes);
            self.words[slot].set(u64::from_le_bytes(value));
            Ok(())
        }
    }

    /// MSRs whose value is their number plus one, of which 0x666 is refused.
    struct Numbers {
        writes: usize,
        last: (u32, u64),
    }

    impl Numbers {
        fn new() -> Self {
            Self {
                writes: 0,
                last: (0, 0),
            }
        }
    }

    impl Msrs for Numbers {
        fn read(&mut self, msr: u32) -> Result<u64, Refused> {
            if msr == 0x666 {
                return Err(Refused);
            }
            Ok(u64::from(msr) + 1)
        }

        fn write(&mut self, msr: u32, value: u64) -> Result<(), Refused> {
            if msr == 0x666 {
                return Err(Refused);
            }
            self.writes += 1;
            self.last = (msr, value);
            Ok(())
        }
    }

    fn area(count: u32) -> MsrArea {
        MsrArea {
            address: Gpa::from_raw(ADDRESS),
            count,
        }
    }

    #[test]
    fn each_area_has_its_fields() {
        let vmcs12 = Vmcs12 {
            vm_entry_msr_load_addr: 0x1000,
            vm_entry_msr_load_count: 1,
            vm_exit_msr_store_addr: 0x2000,
            vm_exit_msr_store_count: 2,
            vm_exit_msr_load_addr: 0x3000,
            vm_exit_msr_load_count: 3,
            ..Vmcs12::default()
        };

        for (area, address, count) in [
            (MsrArea::entry_load(&vmcs12), 0x1000, 1),
            (MsrArea::exit_store(&vmcs12), 0x2000, 2),
            (MsrArea::exit_load(&vmcs12), 0x3000, 3),
        ] {
            assert_eq!(area.address, Gpa::from_raw(address));
            assert_eq!(area.count, count);
        }
    }

    #[test]
    fn a_load_writes_the_msrs_in_order() {
        let memory = Area::new([0x10, 0x11, 0x12, 0x13]);
        let mut msrs = Numbers::new();

        assert_eq!(area(4).load(&memory, &mut msrs, LIMITS), Ok(()));
        assert_eq!(msrs.writes, 4);
        assert_eq!(msrs.last, (0x13, 103));
        assert_eq!(area(0).load(&memory, &mut msrs, LIMITS), Ok(()));
        assert_eq!(msrs.writes, 4);
    }

    #[test]
    fn a_load_fails_at_the_first_entry_that_is_not_allowed() {
        for bad in [
            0x79,
            0x8b,
            0x9b,
            0x800,
            0x8ff,
            0xc000_0100,
            0xc000_0101,
            0x1_0000_0010,
            0x666,
        ] {
            let memory = Area::new([0x10, 0x11, bad, 0x13]);
            let mut msrs = Numbers::new();

            assert_eq!(
                area(4).load(&memory, &mut msrs, LIMITS),
                Err(FailedEntry(3))
            );
            assert_eq!(msrs.writes, 2);
            assert_eq!(
                area(4).load_at_exit(&memory, &mut msrs, LIMITS),
                Err(Abort::LOAD_HOST_MSR_FAIL)
            );
        }
    }

    #[test]
    fn a_load_fails_where_the_area_has_no_memory_or_is_too_long() {
        let memory = Area::new([0x10; 4]);
        let mut msrs = Numbers::new();
        let short = Limits {
            capacity: 2,
            ..LIMITS
        };

        assert_eq!(
            area(5).load(&memory, &mut msrs, LIMITS),
            Err(FailedEntry(5))
        );
        assert_eq!(area(4).load(&memory, &mut msrs, short), Err(FailedEntry(3)));
        assert_eq!(msrs.writes, 6);

        let wrapping = MsrArea {
            address: Gpa::from_raw(!0xf),
            count: 2,
        };
        assert_eq!(
            wrapping.load(&memory, &mut msrs, LIMITS),
            Err(FailedEntry(1))
        );
    }

    #[test]
    fn a_store_writes_the_values_only() {
        let memory = Area::new([0x10, 0xc000_0100, 0x9b, 0x13]);

        assert_eq!(area(3).store(&memory, &mut Numbers::new(), LIMITS), Ok(()));
        assert_eq!(memory.value(0), 0x11);
        assert_eq!(memory.value(1), 0xc000_0101);
        assert_eq!(memory.value(2), 0x9c);
        assert_eq!(memory.value(3), 103);
        assert_eq!(memory.words[0].get(), 0x10);
    }

    #[test]
    fn a_store_of_what_is_not_allowed_is_an_abort() {
        for bad in [0x79, 0x8b, 0x9e, 0x808, 0x1_0000_0010, 0x666] {
            let memory = Area::new([0x10, bad, 0x12, 0x13]);

            assert_eq!(
                area(4).store(&memory, &mut Numbers::new(), LIMITS),
                Err(Abort::SAVE_GUEST_MSR_FAIL)
            );
            assert_eq!(memory.value(0), 0x11);
            assert_eq!(memory.value(1), 101);
            assert_eq!(memory.value(2), 102);
        }
        assert_eq!(
            area(5).store(&Area::new([0x10; 4]), &mut Numbers::new(), LIMITS),
            Err(Abort::SAVE_GUEST_MSR_FAIL)
        );
        let short = Limits {
            capacity: 3,
            ..LIMITS
        };
        assert_eq!(
            area(4).store(&Area::new([0x10; 4]), &mut Numbers::new(), short),
            Err(Abort::SAVE_GUEST_MSR_FAIL)
        );
    }

    #[test]
    fn x2apic_msrs_are_excluded_in_x2apic_mode() {
        let memory = Area::new([0x808; 4]);
        let other = Limits {
            apic: ApicMode::Other,
            ..LIMITS
        };

        assert_eq!(area(4).load(&memory, &mut Numbers::new(), other), Ok(()));
        assert_eq!(area(4).store(&memory, &mut Numbers::new(), other), Ok(()));
    }

    /// The second half of the memory.
    fn second_half(count: u32) -> MsrArea {
        MsrArea {
            address: Gpa::from_raw(ADDRESS + 0x20),
            count,
        }
    }

    #[test]
    fn a_refused_entry_is_undone_where_an_exit_would_load_another_value() {
        let memory = Area::new([0x10, 0x11, 0x12, 0x11]);
        let mut msrs = Numbers::new();

        assert_eq!(
            second_half(2).undo(area(2), &memory, &mut msrs, LIMITS),
            Ok(())
        );
        assert_eq!(msrs.writes, 1);
        assert_eq!(msrs.last, (0x11, 103));

        // What is loaded already is not loaded again.
        memory.words[7].set(101);
        assert_eq!(
            second_half(2).undo(area(2), &memory, &mut msrs, LIMITS),
            Ok(())
        );
        assert_eq!(msrs.writes, 1);
    }

    #[test]
    fn what_cannot_be_undone_aborts() {
        let refused = Area::new([0x666, 0, 0x666, 0]);
        let memory = Area::new([0x10; 4]);
        let short = Limits {
            capacity: 1,
            ..LIMITS
        };
        let abort = Err(Abort::LOAD_HOST_MSR_FAIL);

        for (area, entered, memory, limits) in [
            (second_half(1), area(1), &refused, LIMITS),
            (second_half(3), area(1), &memory, LIMITS),
            (second_half(1), area(5), &memory, LIMITS),
            (second_half(1), area(2), &memory, short),
        ] {
            let undone = area.undo(entered, memory, &mut Numbers::new(), limits);
            assert_eq!(undone, abort);
        }
    }

    #[test]
    fn a_store_of_the_time_is_found_unless_an_entry_before_it_is_bad() {
        assert!(area(4).stores(0x10, &Area::new([1, 2, 3, 0x10]), LIMITS));
        assert!(!area(3).stores(0x10, &Area::new([1, 2, 3, 0x10]), LIMITS));
        assert!(!area(4).stores(0x10, &Area::new([1, 0x79, 3, 0x10]), LIMITS));
        assert!(!area(5).stores(0x10, &Area::new([1; 4]), LIMITS));
    }
}
