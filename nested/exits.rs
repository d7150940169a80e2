// SPDX-License-Identifier: GPL-2.0

//! Counters of the exits of L2, by reason and by who took them.

use core::{
    fmt,
    marker::PhantomData,
    ops::Deref,
    sync::atomic::{AtomicU64, Ordering},
};

/// Who an exit of L2 goes to first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taker {
    /// The host handles it, L1 does not see it.
    L0,
    /// The guest hypervisor gets it.
    L1,
}

/// The reason of an exit, as the counters see it: a small number, and a name for it.
pub trait Reason: Copy {
    /// The number of slots.
    const SLOTS: usize;

    /// Returns the slot of the reason, below [`Self::SLOTS`].
    fn slot(self) -> usize;

    /// Returns the name of what is counted in `slot`, if it has one.
    fn slot_name(slot: usize) -> Option<&'static str>;
}

/// Counters of the exits of all vCPUs of a VM.
///
/// There are several shards of them, and vCPUs that run at the same time mostly use different
/// ones, so that counting an exit does not move a cache line between processors.
///
/// `S` is the storage, which has to have [`Self::CELLS`] cells; more are not used, and what would
/// fall into missing ones is not counted.
pub struct ExitCounters<R, S> {
    cells: S,
    reason: PhantomData<R>,
}

impl<R: Reason, S: Deref<Target = [AtomicU64]>> ExitCounters<R, S> {
    const TAKERS: usize = 2;
    const SHARDS: usize = 8;
    const SHARD_CELLS: usize = R::SLOTS.saturating_mul(Self::TAKERS);

    /// The number of cells that the storage has to have.
    pub const CELLS: usize = Self::SHARD_CELLS.saturating_mul(Self::SHARDS);

    /// Makes counters of `cells`, which the caller has set to 0.
    pub fn new(cells: S) -> Self {
        Self {
            cells,
            reason: PhantomData,
        }
    }

    fn cell(&self, shard: usize, slot: usize, taker: Taker) -> Option<&AtomicU64> {
        let taker = match taker {
            Taker::L0 => 0,
            Taker::L1 => 1,
        };
        let first = shard.checked_mul(Self::SHARD_CELLS)?;
        let index = slot.checked_mul(Self::TAKERS)?.checked_add(taker)?;

        self.cells.get(first.checked_add(index)?)
    }

    /// Counts an exit of the vCPU with the index `vcpu`.
    pub fn count(&self, vcpu: usize, reason: R, taker: Taker) {
        let shard = vcpu.checked_rem(Self::SHARDS).unwrap_or(0);

        if let Some(cell) = self.cell(shard, reason.slot(), taker) {
            cell.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns how many exits of the reasons in `slot` went to `taker`.
    pub fn total(&self, slot: usize, taker: Taker) -> u64 {
        (0..Self::SHARDS)
            .filter_map(|shard| self.cell(shard, slot, taker))
            .map(|cell| cell.load(Ordering::Relaxed))
            .fold(0, u64::wrapping_add)
    }
}

/// Writes a line for each slot that is not 0: the name, the exits that L0 took, those that L1 took.
impl<R: Reason, S: Deref<Target = [AtomicU64]>> fmt::Display for ExitCounters<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for slot in 0..R::SLOTS {
            let l0 = self.total(slot, Taker::L0);
            let l1 = self.total(slot, Taker::L1);

            if l0 == 0 && l1 == 0 {
                continue;
            }
            match R::slot_name(slot) {
                Some(name) => writeln!(f, "{name} {l0} {l1}")?,
                None => writeln!(f, "{slot:#x} {l0} {l1}")?,
            }
        }
        Ok(())
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_exits))]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    struct Digit(usize);

    impl Reason for Digit {
        const SLOTS: usize = 10;

        fn slot(self) -> usize {
            self.0
        }

        fn slot_name(slot: usize) -> Option<&'static str> {
            (slot == 7).then_some("SEVEN")
        }
    }

    static CELLS: [AtomicU64; 160] = [const { AtomicU64::new(0) }; 160];

    #[test]
    fn vcpus_of_all_shards_add_up() {
        let counters = ExitCounters::<Digit, &[AtomicU64]>::new(&CELLS);

        assert_eq!(ExitCounters::<Digit, &[AtomicU64]>::CELLS, CELLS.len());
        for vcpu in 0..100 {
            counters.count(vcpu, Digit(7), Taker::L1);
        }
        counters.count(3, Digit(7), Taker::L0);
        counters.count(3, Digit(2), Taker::L0);

        assert_eq!(counters.total(7, Taker::L1), 100);
        assert_eq!(counters.total(7, Taker::L0), 1);
        assert_eq!(counters.total(2, Taker::L1), 0);
    }

    #[cfg(test)]
    mod host {
        use super::*;

        fn zeroed(cells: usize) -> Vec<AtomicU64> {
            (0..cells).map(|_| AtomicU64::new(0)).collect()
        }

        #[test]
        fn only_what_occurred_is_written() {
            let cells = zeroed(160);
            let counters = ExitCounters::<Digit, &[AtomicU64]>::new(&cells);

            counters.count(0, Digit(7), Taker::L1);
            counters.count(1, Digit(2), Taker::L0);
            counters.count(9, Digit(2), Taker::L0);

            assert_eq!(counters.to_string(), "0x2 2 0\nSEVEN 0 1\n");
        }

        #[test]
        fn short_storage_loses_counts_and_nothing_else() {
            let cells = zeroed(3);
            let counters = ExitCounters::<Digit, &[AtomicU64]>::new(&cells);

            counters.count(0, Digit(0), Taker::L1);
            counters.count(0, Digit(9), Taker::L1);
            counters.count(7, Digit(0), Taker::L0);

            assert_eq!(counters.to_string(), "0x0 0 1\n");
        }
    }
}
