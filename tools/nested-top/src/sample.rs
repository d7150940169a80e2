// SPDX-License-Identifier: GPL-2.0

//! What the modules count, as debugfs shows it at one moment.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

/// Exits of L2 of one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exits {
    /// Those that the host handled.
    pub l0: u64,
    /// Those that went to the guest hypervisor.
    pub l1: u64,
}

impl Exits {
    /// Returns their sum.
    pub fn total(self) -> u64 {
        self.l0.saturating_add(self.l1)
    }
}

/// The counters of one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// Exits of its L2, by reason.
    pub exits: BTreeMap<String, Exits>,
    /// Entries of its L2 that it asked for: those that were made, and those that were refused.
    pub entries: BTreeMap<String, u64>,
    /// Consistency checks that such an entry failed, by name.
    pub failed_checks: BTreeMap<String, u64>,
    /// What the page tables that its L2 runs on have counted, by name.
    pub mmu: BTreeMap<String, u64>,
}

impl Vm {
    /// Returns one of the counters of entries.
    pub fn entries(&self, name: &str) -> u64 {
        self.entries.get(name).copied().unwrap_or_default()
    }
}

/// The counters of all VMs at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When they were read.
    pub time: Instant,
    /// The VMs, by the name of their directory: `PID-N`.
    pub vms: BTreeMap<String, Vm>,
}

impl Sample {
    /// Reads the counters below `dir`; `process` selects the VMs of one.
    pub fn read(dir: &Path, process: Option<u32>) -> Result<Self> {
        let mut vms = BTreeMap::new();
        let entries = fs::read_dir(dir).with_context(|| {
            format!(
                "reading {}: is nested-vmx or nested-svm loaded, and are you root?",
                dir.display()
            )
        })?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_wanted = process.is_none_or(|process| of_process(&name, process));
            if is_wanted && entry.file_type()?.is_dir() {
                // One that ends meanwhile is not there any more.
                if let Some(vm) = read_vm(&entry.path())? {
                    vms.insert(name, vm);
                }
            }
        }
        Ok(Self {
            time: Instant::now(),
            vms,
        })
    }
}

/// Returns whether a directory's name is that of a VM of a process.
fn of_process(name: &str, process: u32) -> bool {
    name.split_once('-')
        .is_some_and(|(pid, _)| pid.parse() == Ok(process))
}

fn read_vm(dir: &Path) -> Result<Option<Vm>> {
    let Some(exits) = read_file(&dir.join("exits"))? else {
        return Ok(None);
    };
    let counts = |file: &str| -> Result<BTreeMap<String, u64>> {
        let path = dir.join(file);
        let text = read_file(&path)?.unwrap_or_default();
        lines(&path, &text, |[name, count]| {
            Some((name.to_owned(), count.parse().ok()?))
        })
    };
    Ok(Some(Vm {
        exits: lines(dir, &exits, |[name, l0, l1]| {
            let (l0, l1) = (l0.parse().ok()?, l1.parse().ok()?);
            Some((name.to_owned(), Exits { l0, l1 }))
        })?,
        entries: counts("entries")?,
        failed_checks: counts("failed_checks")?,
        mmu: counts("mmu")?,
    }))
}

/// Reads a file that may be gone.
fn read_file(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Parses lines of `N` words each.
fn lines<const N: usize, V>(
    path: &Path,
    text: &str,
    parse: impl Fn([&str; N]) -> Option<(String, V)>,
) -> Result<BTreeMap<String, V>> {
    text.lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let words = <[&str; N]>::try_from(words).ok();
            words
                .and_then(&parse)
                .with_context(|| format!("{}: not understood: {line}", path.display()))
        })
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Makes the files of a VM.
    pub fn add_vm(dir: &Path, name: &str, exits: &str) {
        let vm = dir.join(name);
        fs::create_dir(&vm).unwrap();
        fs::write(vm.join("exits"), exits).unwrap();
        fs::write(vm.join("entries"), "entered 12\nrefused 1\n").unwrap();
        fs::write(vm.join("failed_checks"), "Control::Asid 1\n").unwrap();
        fs::write(vm.join("mmu"), "mapped 5\n").unwrap();
    }

    #[test]
    fn all_counters_of_all_vms_are_read() {
        let dir = tempfile::tempdir().unwrap();
        add_vm(dir.path(), "7-1", "CPUID 2 10\n0x99 0 1\n");
        add_vm(dir.path(), "77-2", "");
        let sample = Sample::read(dir.path(), None).unwrap();
        let vm = &sample.vms["7-1"];
        assert_eq!(vm.exits["CPUID"], Exits { l0: 2, l1: 10 });
        assert_eq!(vm.exits["0x99"].total(), 1);
        assert_eq!((vm.entries("entered"), vm.entries("refused")), (12, 1));
        assert_eq!(vm.failed_checks["Control::Asid"], 1);
        assert_eq!(vm.mmu["mapped"], 5);
        assert!(sample.vms["77-2"].exits.is_empty());

        let sample = Sample::read(dir.path(), Some(7)).unwrap();
        assert_eq!(sample.vms.keys().collect::<Vec<_>>(), ["7-1"]);
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_what_is_gone_is_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("7-1")).unwrap();
        assert!(Sample::read(dir.path(), None).unwrap().vms.is_empty());
        add_vm(dir.path(), "7-2", "CPUID 2\n");
        let error = Sample::read(dir.path(), None).unwrap_err();
        assert!(format!("{error:#}").contains("not understood: CPUID 2"));
        let absent = Sample::read(&dir.path().join("absent"), None).unwrap_err();
        assert!(format!("{absent:#}").contains("is nested-vmx or nested-svm loaded"));
    }
}
