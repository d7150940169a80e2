// SPDX-License-Identifier: GPL-2.0

//! Activity as text, and as JSON.

use std::fmt::Write;

use anyhow::Result;

use crate::rates::Activity;

/// Formats the activity of all VMs as tables.
pub fn text(activities: &[Activity]) -> String {
    let mut text = String::new();
    if activities.is_empty() {
        text.push_str("no VM that could use nested virtualization\n");
    }
    for activity in activities {
        // Writing to a String cannot fail.
        let _ = write_vm(&mut text, activity);
    }
    text
}

fn write_vm(text: &mut String, activity: &Activity) -> std::fmt::Result {
    writeln!(text, "VM {}", activity.vm)?;
    for (name, count) in &activity.entries {
        writeln!(text, "  entries of L2, {name}: {count}")?;
    }
    writeln!(
        text,
        "  {:<32}{:>14}{:>14}{:>12}{:>12}",
        "exits of L2", "to L0", "to L1", "L0/s", "L1/s"
    )?;
    for row in &activity.exits {
        writeln!(
            text,
            "  {:<32}{:>14}{:>14}{:>12.0}{:>12.0}",
            row.reason, row.total.l0, row.total.l1, row.l0_rate, row.l1_rate
        )?;
    }
    for (name, count) in &activity.failed_checks {
        writeln!(text, "  failed check {name}: {count}")?;
    }
    for (name, count) in &activity.mmu {
        writeln!(text, "  page tables of L2, {name}: {count}")?;
    }
    Ok(())
}

/// Formats the activity of all VMs as one line of JSON.
pub fn json(activities: &[Activity]) -> Result<String> {
    Ok(serde_json::to_string(activities)?)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::rates::Row;
    use crate::sample::Exits;

    /// Returns the activity of a VM.
    pub fn activity(vm: &str) -> Activity {
        Activity {
            vm: vm.to_owned(),
            entry_rate: 8.0,
            entries: [("entered".to_owned(), 80), ("refused".to_owned(), 3)].into(),
            exits: vec![Row {
                reason: "CPUID".into(),
                total: Exits { l0: 1, l1: 79 },
                l0_rate: 0.5,
                l1_rate: 7.5,
            }],
            failed_checks: [("Control::Asid".to_owned(), 3)].into(),
            mmu: [("mapped".to_owned(), 5)].into(),
        }
    }

    #[test]
    fn text_has_all_counters() {
        let text = text(&[activity("7-1")]);
        for part in ["VM 7-1", "refused: 3", "CPUID", "79", "Control::Asid: 3"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(super::text(&[]).contains("no VM"));
    }

    #[test]
    fn json_is_one_line_with_numbers() {
        let line = json(&[activity("7-1")]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value[0]["exits"][0]["total"]["l1"], 79);
        assert_eq!(value[0]["entry_rate"], 8.0);
        assert!(!line.contains('\n'));
    }
}
