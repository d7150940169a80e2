// SPDX-License-Identifier: GPL-2.0

//! Counters of the entries of L2 that L1 asks for: those that were made, and those that a
//! consistency check refused, by its name.

use core::ffi::CStr;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};

/// Counts entries that all vCPUs of a VM make.
///
/// There are several shards, each in a cache line of its own, as for
/// [`ExitCounters`](crate::exits::ExitCounters). `S` is the storage, which has to have
/// [`Self::CELLS`] cells.
pub struct EntryCounter<S>(S);

impl<S: Deref<Target = [AtomicU64]>> EntryCounter<S> {
    const SHARDS: usize = 8;
    const CELLS_PER_LINE: usize = 8;

    /// The number of cells that the storage has to have.
    pub const CELLS: usize = Self::SHARDS.saturating_mul(Self::CELLS_PER_LINE);

    /// Makes a counter of `cells`, which the caller has set to 0.
    pub fn new(cells: S) -> Self {
        Self(cells)
    }

    /// Counts an entry of the vCPU with the index `vcpu`.
    #[inline]
    pub fn count(&self, vcpu: usize) {
        let shard = vcpu.checked_rem(Self::SHARDS).unwrap_or(0);

        if let Some(cell) = self.0.get(shard.wrapping_mul(Self::CELLS_PER_LINE)) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of entries.
    pub fn total(&self) -> u64 {
        let cells = self.0.iter().map(|cell| cell.load(Ordering::Relaxed));
        cells.fold(0, u64::wrapping_add)
    }
}

/// How often one check has failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct FailedCheck {
    name: Option<&'static CStr>,
    count: u64,
}

/// Counts failed checks by their names.
///
/// A hash table of which nothing is ever removed: there are as many names as checks. `S` is the
/// storage; the names that do not fit are counted together.
pub struct FailedChecks<S> {
    slots: S,
    others: u64,
}

impl<S: DerefMut<Target = [FailedCheck]>> FailedChecks<S> {
    /// Makes counters of slots that have their default values.
    pub fn new(slots: S) -> Self {
        Self { slots, others: 0 }
    }

    /// Counts a failure of the check with this name.
    pub fn count(&mut self, name: &'static CStr) {
        let start = hash(name).checked_rem(self.slots.len()).unwrap_or(0);
        let (before, from) = self.slots.split_at_mut_checked(start).unwrap_or_default();
        let mut slots = from.iter_mut().chain(before);
        let slot = slots.find(|slot| slot.name.is_none_or(|other| other == name));

        match slot {
            Some(slot) => {
                slot.name = Some(name);
                slot.count = slot.count.wrapping_add(1);
            }
            None => self.others = self.others.wrapping_add(1),
        }
    }

    /// Returns the number of all failures.
    pub fn total(&self) -> u64 {
        let counts = self.slots.iter().map(|slot| slot.count);
        counts.fold(self.others, u64::wrapping_add)
    }
}

/// FNV-1a.
fn hash(name: &CStr) -> usize {
    const OFFSET_BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;

    let bytes = name.to_bytes().iter();
    let hash = bytes.fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(PRIME)
    });
    usize::try_from(hash).unwrap_or(0)
}

/// Writes a line for each check that has failed: its name, and how often.
impl<S: Deref<Target = [FailedCheck]>> fmt::Display for FailedChecks<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slot in self.slots.iter() {
            if let Some(name) = slot.name.and_then(|name| name.to_str().ok()) {
                writeln!(f, "{name} {}", slot.count)?;
            }
        }
        if self.others != 0 {
            writeln!(f, "(others) {}", self.others)?;
        }
        Ok(())
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_entries))]
mod tests {
    use super::*;

    static CELLS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

    #[test]
    fn entries_of_all_vcpus_add_up() {
        let counter = EntryCounter::<&[AtomicU64]>::new(&CELLS);

        assert_eq!(EntryCounter::<&[AtomicU64]>::CELLS, CELLS.len());
        for vcpu in 0..100 {
            counter.count(vcpu);
        }
        assert_eq!(counter.total(), 100);
    }

    #[test]
    fn checks_are_counted_by_their_names() {
        let mut slots = [FailedCheck::default(); 4];
        let mut failed = FailedChecks::new(&mut slots[..]);

        failed.count(c"A");
        failed.count(c"B");
        failed.count(c"A");
        assert_eq!(failed.total(), 3);
        assert!(failed
            .slots
            .iter()
            .any(|slot| slot.name == Some(c"A") && slot.count == 2));
    }

    #[cfg(test)]
    mod host {
        use super::*;

        #[test]
        fn names_that_do_not_fit_are_counted_together() {
            let mut failed = FailedChecks::new(vec![FailedCheck::default(); 2]);

            for name in [c"A", c"B", c"C", c"D", c"A"] {
                failed.count(name);
            }
            let text = failed.to_string();
            assert_eq!(text.lines().count(), 3);
            assert!(
                text.contains("A 2\n") && text.ends_with("(others) 2\n"),
                "{text}"
            );
            assert_eq!(failed.total(), 5);
        }

        #[test]
        fn no_storage_loses_names_and_nothing_else() {
            let mut failed = FailedChecks::new(Vec::new());

            failed.count(c"A");
            assert_eq!(failed.to_string(), "(others) 1\n");
        }
    }
}
