// SPDX-License-Identifier: GPL-2.0

//! Counters of what the shadow tables of a VM do.

use core::ffi::CStr;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// Declares the counters.
macro_rules! counters {
    ($( $(#[$meta:meta])* $name:ident = $text:literal; )*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $( $(#[$meta])* $name, )*
        }

        impl Event {
            const NAMES: &'static [&'static CStr] = &[$( $text ),*];

            /// Returns the name.
            #[inline]
            pub const fn name(self) -> &'static CStr {
                match self {
                    $( Self::$name => $text, )*
                }
            }
        }

        /// The counters of a VM.
        #[derive(Debug, Default)]
        pub struct Counters([AtomicU64; Event::NAMES.len()]);
    };
}

counters! {
    /// A fault mapped a page.
    Mapped = c"mapped";
    /// A page was mapped before L2 had accessed it: beside one that a fault has mapped.
    Neighbour = c"neighbours";
    /// A page was mapped before L2 had accessed it: L1 was asked for it, and has entered L2.
    Anticipated = c"anticipated";
    /// A fault is one for L1.
    Refused = c"refused";
    /// A fault is an access to a device, as it was known to be.
    KnownMmio = c"mmio";
    /// A fault has to be emulated otherwise.
    Emulated = c"emulated";
    /// A fault is to be repeated.
    Repeated = c"repeated";
    /// L1 has flushed.
    Flush = c"flushes";
    /// A flush has compared a table.
    ComparedTable = c"compared_tables";
    /// A flush has found an entry that had changed.
    ChangedEntry = c"changed_entries";
    /// A table has become one that flushes need not look at.
    TrackedTable = c"tracked_tables";
    /// A root was loaded.
    Root = c"roots_loaded";
    /// A page was added to those that tables are made of.
    Page = c"pages_added";
    /// Tables were dropped because there were too many, or the host is short of memory.
    Eviction = c"evictions";
    /// A page was given back to the host, which is short of memory.
    GivenBack = c"pages_given_back";
}

impl Counters {
    /// Counts events.
    #[inline]
    pub fn add(&self, event: Event, count: u64) {
        if count != 0 {
            if let Some(cell) = self.0.get(event as usize) {
                cell.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// Returns how many there were.
    pub fn get(&self, event: Event) -> u64 {
        let cell = self.0.get(event as usize);
        cell.map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}

/// Writes a line for each: its name, and how often.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, cell) in Event::NAMES.iter().zip(&self.0) {
            // All are ASCII.
            let name = name.to_str().unwrap_or_default();
            writeln!(f, "{name} {}", cell.load(Ordering::Relaxed))?;
        }
        Ok(())
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_mmu_counters))]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_a_counter_of_its_own() {
        let counters = Counters::default();

        counters.add(Event::Mapped, 1);
        counters.add(Event::Eviction, 2);
        counters.add(Event::Eviction, 3);
        assert_eq!(counters.get(Event::Mapped), 1);
        assert_eq!(counters.get(Event::Eviction), 5);
        assert_eq!(counters.get(Event::Refused), 0);
    }

    #[cfg(test)]
    #[test]
    fn there_is_a_line_for_each() {
        let counters = Counters::default();
        counters.add(Event::Flush, 7);
        let text = counters.to_string();

        assert_eq!(text.lines().count(), Event::NAMES.len());
        assert!(text.contains("\nflushes 7\n"), "{text}");
    }
}
