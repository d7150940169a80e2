// SPDX-License-Identifier: GPL-2.0

//! What happened between two samples, per second.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::sample::{Exits, Sample, Vm};

/// A reason for which L2 exits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub reason: String,
    /// Since the VM was created.
    pub total: Exits,
    /// Exits per second that the host handled.
    pub l0_rate: f64,
    /// Exits per second that went to the guest hypervisor.
    pub l1_rate: f64,
}

impl Row {
    /// Returns the exits per second.
    pub fn rate(&self) -> f64 {
        self.l0_rate + self.l1_rate
    }
}

/// A VM over a span of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Activity {
    /// Name of its directory.
    pub vm: String,
    /// Entries of L2 that it asked for, per second.
    pub entry_rate: f64,
    /// Entries since it was created, and those that were refused.
    pub entries: BTreeMap<String, u64>,
    /// Exits, the most frequent ones first.
    pub exits: Vec<Row>,
    /// Consistency checks that failed since it was created.
    pub failed_checks: BTreeMap<String, u64>,
    /// What the page tables of L2 have counted since it was created.
    pub mmu: BTreeMap<String, u64>,
}

impl Activity {
    /// Returns the exits per second of all reasons.
    pub fn rate(&self) -> f64 {
        self.exits.iter().map(Row::rate).sum()
    }
}

/// Returns what happened between two samples; a VM that is new has begun at 0.
pub fn between(before: &Sample, now: &Sample) -> Vec<Activity> {
    let span = now.time.saturating_duration_since(before.time);
    let new = Vm::default();
    now.vms
        .iter()
        .map(|(name, vm)| {
            let before = before.vms.get(name).unwrap_or(&new);
            activity(name, before, vm, span)
        })
        .collect()
}

fn activity(name: &str, before: &Vm, now: &Vm, span: Duration) -> Activity {
    let rate = |before: u64, now: u64| {
        let seconds = span.as_secs_f64();
        // The counters of all processors are not read at the same moment.
        let count = now.saturating_sub(before);
        if seconds > 0.0 {
            count as f64 / seconds
        } else {
            0.0
        }
    };
    let mut exits: Vec<Row> = now
        .exits
        .iter()
        .map(|(reason, total)| {
            let before = before.exits.get(reason).copied().unwrap_or_default();
            Row {
                reason: reason.clone(),
                total: *total,
                l0_rate: rate(before.l0, total.l0),
                l1_rate: rate(before.l1, total.l1),
            }
        })
        .collect();
    exits.sort_by(|a, b| {
        let totals = b.total.total().cmp(&a.total.total());
        b.rate().total_cmp(&a.rate()).then(totals)
    });
    Activity {
        vm: name.to_owned(),
        entry_rate: rate(before.entries("entered"), now.entries("entered")),
        entries: now.entries.clone(),
        exits,
        failed_checks: now.failed_checks.clone(),
        mmu: now.mmu.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn sample(time: Instant, exits: &[(&str, u64, u64)], entered: u64) -> Sample {
        let exits = exits.iter();
        let vm = Vm {
            exits: exits
                .map(|(name, l0, l1)| ((*name).to_owned(), Exits { l0: *l0, l1: *l1 }))
                .collect(),
            entries: [("entered".to_owned(), entered)].into(),
            failed_checks: BTreeMap::new(),
            mmu: BTreeMap::new(),
        };
        Sample {
            time,
            vms: [("7-1".to_owned(), vm)].into(),
        }
    }

    #[test]
    fn rates_are_per_second_and_the_most_frequent_reason_comes_first() {
        let start = Instant::now();
        let before = sample(start, &[("HLT", 100, 0), ("CPUID", 0, 10)], 10);
        let later = start + Duration::from_secs(2);
        let now = sample(
            later,
            &[("HLT", 100, 0), ("CPUID", 2, 30), ("MSR", 1, 0)],
            30,
        );
        let seen = &between(&before, &now)[0];
        let reasons: Vec<&str> = seen.exits.iter().map(|row| row.reason.as_str()).collect();
        assert_eq!(reasons, ["CPUID", "MSR", "HLT"]);
        assert_eq!((seen.exits[0].l0_rate, seen.exits[0].l1_rate), (1.0, 10.0));
        assert_eq!((seen.entry_rate, seen.rate()), (10.0, 11.5));
    }

    #[test]
    fn a_vm_that_is_new_has_begun_at_0_and_no_time_is_no_rate() {
        let start = Instant::now();
        let now = sample(start, &[("HLT", 5, 0)], 5);
        let none = Sample {
            time: start - Duration::from_secs(1),
            vms: BTreeMap::new(),
        };
        assert_eq!(between(&none, &now)[0].rate(), 5.0);
        assert_eq!(between(&now, &now)[0].rate(), 0.0);
    }
}
