// SPDX-License-Identifier: GPL-2.0

//! Sequences that tell a fault whether L1 has flushed since the fault read L1's tables.

use super::word::Word;
use crate::address::Gpa;
use crate::mmu::format::RootKey;

/// Sequences of flushes, by the address of the top-level table.
///
/// They are outside of the lock of the [`Shadow`](super::Shadow), because a fault takes its ticket
/// and walks before it takes the lock.
#[derive(Debug)]
pub struct Sequences<W> {
    counters: [W; 8],
}

/// What the sequence was when a walk began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    table: Gpa,
    value: u64,
}

impl<W: Word> Default for Sequences<W> {
    fn default() -> Self {
        Self {
            counters: core::array::from_fn(|_| W::new(0)),
        }
    }
}

impl<W: Word> Sequences<W> {
    fn counter(&self, table: Gpa) -> Option<&W> {
        let index = usize::try_from((table.into_raw() >> 12 ^ table.into_raw() >> 15) & 7).ok()?;
        self.counters.get(index)
    }

    /// Returns the ticket that a walk needs, which begins after this.
    pub fn begin(&self, key: &RootKey) -> Ticket {
        Ticket {
            table: key.table,
            value: self.counter(key.table).map_or(0, W::load),
        }
    }

    /// Returns whether nothing was flushed since the ticket was taken.
    pub(super) fn is_current(&self, ticket: &Ticket) -> bool {
        self.counter(ticket.table)
            .is_some_and(|counter| counter.load() == ticket.value)
    }

    /// Makes all tickets void: L1's memory has changed, and what was read of it must not be used
    /// again.
    pub fn advance_all(&self) {
        self.advance(None);
    }

    /// Makes tickets for a top-level table void, or for all.
    pub(super) fn advance(&self, table: Option<Gpa>) {
        match table {
            Some(table) => {
                if let Some(counter) = self.counter(table) {
                    counter.fetch_add(1);
                }
            }
            None => {
                for counter in &self.counters {
                    counter.fetch_add(1);
                }
            }
        }
    }
}
