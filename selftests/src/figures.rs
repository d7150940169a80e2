// SPDX-License-Identifier: GPL-2.0

//! What the kernel holds: figures before and after something, to find what it leaves behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

/// How long what was freed by RCU or a work queue may take to be free.
const DEFERRED: Duration = Duration::from_millis(500);

/// What the kernel holds at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Numbers that a leak in each of many rounds increases by as many.
    counts: BTreeMap<String, i64>,
    /// Names that must be the same at the end.
    names: BTreeSet<String>,
}

impl Figures {
    /// Reads the figures, once everything that is on its way out is gone.
    pub fn read() -> Result<Self> {
        settle()?;
        let mut figures = Self::default();
        let slabs = read("/proc/slabinfo")?;
        figures.counts.extend(slab_objects(&slabs));
        figures.counts.extend(vmalloc(&read("/proc/vmallocinfo")?));
        let pages = free_pages(&read("/proc/zoneinfo")?);
        figures.counts.insert("pages in use".into(), -pages);
        for module in crate::module::list()? {
            figures.names.insert(format!("module {}", module.name));
        }
        for dir in ["/sys/kernel/debug", "/sys/module", "/sys/kernel/slab"] {
            tree(Path::new(dir), &mut figures.names)?;
        }
        Ok(figures)
    }

    /// Returns what there is more of than in `before`, by `least` or more, and the names that are
    /// in one of them only.
    pub fn growth(&self, before: &Self, least: i64) -> Vec<String> {
        let counts = self.counts.iter().filter_map(|(name, after)| {
            let before = before.counts.get(name).copied().unwrap_or(0);
            let more = after - before;
            (more >= least).then(|| format!("{name}: {before} before, {after} after (+{more})"))
        });
        let gone = before
            .names
            .difference(&self.names)
            .map(|name| format!("gone: {name}"));
        let new = self
            .names
            .difference(&before.names)
            .map(|name| format!("new: {name}"));
        counts.chain(gone).chain(new).collect()
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

/// Frees what is kept for later use or freed later, as far as the kernel can be asked to.
fn settle() -> Result<()> {
    // Objects that RCU frees, modules' memory that a work queue frees.
    sleep(DEFERRED);
    // Entries that were used since the last time survive the first request.
    for _ in 0..3 {
        fs::write("/proc/sys/vm/drop_caches", "3").context("writing drop_caches")?;
    }
    sleep(DEFERRED);
    // The objects in the per-CPU part of a cache count as used: give that up.
    let slabs = fs::read_dir("/sys/kernel/slab").context("reading /sys/kernel/slab")?;
    for slab in slabs {
        let shrink = slab?.path().join("shrink");
        fs::write(&shrink, "1").with_context(|| format!("writing {}", shrink.display()))?;
    }
    sleep(DEFERRED);
    Ok(())
}

/// The cache of areas of vmalloc: those that are freed are kept until there are many of them, and
/// those in use are counted by themselves.
const AREAS: &str = "vmap_area";

/// Returns the objects in use of each slab cache.
fn slab_objects(text: &str) -> BTreeMap<String, i64> {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with("slabinfo") && !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next().filter(|name| *name != AREAS)?;
            let active = words.next()?.parse().ok()?;
            Some((format!("objects of {name}"), active))
        })
        .collect()
}

/// Returns the number of areas and their pages.
///
/// An area that is freed stays in the list as unpurged until there are many of them.
fn vmalloc(text: &str) -> BTreeMap<String, i64> {
    let areas: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("unpurged"))
        .collect();
    let pages = areas.iter().flat_map(|line| line.split_whitespace());
    let pages = pages.filter_map(|word| word.strip_prefix("pages=")?.parse::<i64>().ok());
    let lines = i64::try_from(areas.len()).unwrap_or(i64::MAX);
    BTreeMap::from([
        ("vmalloc areas".into(), lines),
        ("vmalloc pages".into(), pages.sum()),
    ])
}

/// Returns the free pages of all zones, with those that CPUs have set aside.
fn free_pages(text: &str) -> i64 {
    let lines = text.lines().map(str::trim);
    let words = lines.filter_map(|line| {
        line.strip_prefix("nr_free_pages ")
            .or_else(|| line.strip_prefix("count:"))
    });
    words
        .filter_map(|word| word.trim().parse::<i64>().ok())
        .sum()
}

/// Adds the paths below a directory; `tracing` is left out, which has thousands of them.
fn tree(dir: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        names.insert(path.display().to_string());
        if entry.file_type()?.is_dir() && entry.file_name() != "tracing" {
            tree(&path, names)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_parsed() {
        let slabs = "slabinfo - version: 2.1\n# name <active_objs>\nkmalloc-8 3 512 8 512 1 : x\n\
                     vmap_area 9 9 64 64 1 : x\n";
        assert_eq!(
            slab_objects(slabs),
            BTreeMap::from([("objects of kmalloc-8".into(), 3)])
        );
        let areas = "0x1-0x2 8192 f+0x1/0x2 pages=1 vmalloc\n0x3-0x4 4096 unpurged vm_area\n\
                     0x5-0x6 4096 g+0x1/0x2 phys=0x1 ioremap\n";
        let areas = vmalloc(areas);
        assert_eq!((areas["vmalloc areas"], areas["vmalloc pages"]), (2, 1));
        let zones = "Node 0, zone DMA\n  nr_free_pages 5\n cpu: 0\n count:    2\n high: 9\n";
        assert_eq!(free_pages(zones), 7);
    }

    #[test]
    fn growth_is_found_from_the_least_number_on() {
        let figures = |count, name: &str| Figures {
            counts: BTreeMap::from([("x".into(), count)]),
            names: BTreeSet::from([name.into()]),
        };
        assert!(figures(9, "n").growth(&figures(5, "n"), 5).is_empty());
        let growth = figures(10, "m").growth(&figures(5, "n"), 5);
        assert_eq!(growth, ["x: 5 before, 10 after (+5)", "gone: n", "new: m"]);
    }
}
