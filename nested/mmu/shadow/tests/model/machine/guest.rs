// SPDX-License-Identifier: GPL-2.0

//! L1's side of the machine: its tables, and what they say.

use super::*;

/// Indexes at each level that addresses of the test have: beside each other, and not in one of the
/// groups of entries that a flush reads at a time.
pub(super) fn indexes(format: &Format, level: Level) -> &'static [u64] {
    let is_pae = matches!(
        format,
        Format::Npt(Npt {
            paging: Paging::Pae,
            ..
        })
    );
    match level {
        Level::Page4K if format.is_legacy() => &[0, 1, 577],
        Level::Page4K => &[0, 1, 40],
        Level::Page2M if format.is_legacy() => &[0, 277],
        Level::Page2M => &[0, 67],
        Level::Page1G if is_pae => &[0, 3],
        _ => &[0, 1],
    }
}

pub(super) fn addresses(format: &Format) -> Vec<u64> {
    let mut all = vec![0];
    let mut level = Some(format.top());
    while let Some(at) = level {
        let shift = match (format.is_legacy(), at) {
            (true, Level::Page2M) => 22,
            _ => at.shift(),
        };
        all = all
            .iter()
            .flat_map(|address| {
                indexes(format, at)
                    .iter()
                    .map(move |index| address | index << shift)
            })
            .collect();
        level = at.below();
    }
    all
}

impl Machine {
    /// Returns what L1's tables say now, in the simplest way.
    pub(super) fn flat(&self, top: u64, address: u64) -> Option<Allowed> {
        self.flat_below(top, Permissions::ALL, self.format.top(), address)
    }

    /// Returns the same from a table on.
    fn flat_below(
        &self,
        mut table: u64,
        mut permissions: Permissions,
        mut level: Level,
        address: u64,
    ) -> Option<Allowed> {
        loop {
            let at = self
                .format
                .entry(Gpa::from_raw(table), L2Gpa::from_raw(address), level)
                .into_raw();
            let raw = self.read(at);
            if let Some(flags) = self.format.accessed_dirty(level) {
                // What was never used by a walk is in no TLB.
                if raw & flags.accessed == 0 {
                    return None;
                }
            }
            match self.format.decode(raw, level) {
                Decoded::NotPresent | Decoded::Reserved => return None,
                Decoded::Table {
                    table: below,
                    permissions: more,
                } => {
                    permissions = permissions & more;
                    table = below.into_raw();
                    level = level.below()?;
                }
                Decoded::Page {
                    page,
                    permissions: more,
                    ..
                } => {
                    permissions = permissions & more;
                    if let Some(flags) = self.format.accessed_dirty(level) {
                        if raw & flags.dirty == 0 {
                            permissions = permissions.without(Permissions::WRITE);
                        }
                    }
                    let size = if self.format.is_legacy() && level == Level::Page2M {
                        1 << 22
                    } else {
                        level.size()
                    };
                    return Some(Allowed {
                        page: page.into_raw() + (address & (size - 1) & !0xfff),
                        permissions,
                    });
                }
            }
        }
    }

    /// Returns what a fault of a processor would find, if that has cached what is above the lowest
    /// level.
    fn cached(&self, cpu: &Cpu, address: u64) -> Option<Allowed> {
        let ticket = self.world.sequences.begin(&cpu.key);
        let (table, permitted) = cpu.walk.cached(&cpu.key, ticket)?;
        if Level::Page2M.align(cpu.walk.address.into_raw() ^ address) != 0 {
            return None;
        }
        self.flat_below(table.into_raw(), permitted, Level::Page4K, address)
    }

    /// Adds what is valid now to what each processor may use, and what a fault of any processor
    /// could find: they share the shadow.
    pub(super) fn learn(&mut self) {
        for number in 0..self.cpus.len() {
            let top = self.cpus[number].key.table.into_raw();
            for address in self.addresses.clone() {
                let Some(found) = self.cached(&self.cpus[number], address) else {
                    continue;
                };
                for cpu in &mut self.cpus {
                    let known = cpu.allowed.entry((top, address)).or_default();
                    if !known.contains(&found) {
                        known.push(found);
                    }
                }
            }
        }
        for top in [TOP, TOP + 0x1000] {
            for address in self.addresses.clone() {
                let Some(now) = self.flat(top, address) else {
                    continue;
                };
                for cpu in &mut self.cpus {
                    let known = cpu.allowed.entry((top, address)).or_default();
                    if !known.contains(&now) {
                        known.push(now);
                    }
                }
            }
        }
    }

    /// Makes an entry of small numbers.
    pub(super) fn entry(&self, edit: Edit) -> u64 {
        let table = TOP + u64::from(edit.target % 4) * 0x1000;
        let data = 0x4_0000 + u64::from(edit.target % 8) * 0x1000;
        let large = if edit.target & 1 == 0 { 0 } else { LARGE };
        let (target, page) = match edit.shape % 8 {
            0..=3 => (table, 0),
            4 | 5 => (data, 0),
            6 => (large, 1 << 7),
            _ => (table, if edit.shape >= 250 { 1 << 45 } else { 0 }),
        };
        if edit.bits == 0 {
            return 0;
        }
        let mostly = |bit: u8| edit.bits & (3 << bit) != 0;
        let bits = |list: &[(bool, u64)]| {
            list.iter()
                .filter(|(is_set, _)| *is_set)
                .fold(0, |raw, (_, bit)| raw | bit)
        };
        let flags = edit.bits & 0x80 != 0;
        target
            | page
            | match self.format {
                Format::Ept(_) => bits(&[
                    (mostly(0) || mostly(1), READ),
                    (mostly(1), WRITE),
                    (mostly(3), EXECUTE),
                    (mostly(5), 1 << 10),
                    (flags, ACCESSED),
                    (flags && mostly(2), DIRTY),
                ]),
                Format::Npt(_) => bits(&[
                    (mostly(0), npt::PRESENT),
                    (mostly(1), npt::WRITE),
                    (mostly(3), npt::USER),
                    (!mostly(4) && !self.format.is_legacy(), npt::NO_EXECUTE),
                    (flags, npt::ACCESSED),
                    (flags && mostly(2), npt::DIRTY),
                ]),
            }
    }

    /// Lets L1 map a page at each address of the test, by tables one below the other.
    pub(super) fn map_everything(&mut self) {
        for level in 1..=self.format.top().number() {
            for index in 0..8u8 {
                let is_page = level == 1;
                let table = self.format.top().number() - level;
                self.write(Edit {
                    table,
                    index: index << 3 | (level - 1),
                    target: if is_page { index } else { table + 1 },
                    bits: 0x7f,
                    shape: if is_page { 4 } else { 0 },
                });
            }
        }
    }

    /// Returns where an entry is that an edit means.
    pub(super) fn place(&self, edit: &Edit) -> (Level, u64) {
        let level = Level::from_number(edit.index % self.format.top().number() + 1).unwrap();
        let choices = indexes(&self.format, level);
        let index = choices[usize::from(edit.index >> 3) % choices.len()];
        (
            level,
            TOP + u64::from(edit.table) * 0x1000 + index * self.format.entry_size().bytes(),
        )
    }

    /// Changes bits of an entry, and leaves what it refers to.
    pub(super) fn change(&mut self, table: u8, index: u8, bits: u8) {
        let edit = Edit {
            table,
            index,
            target: 0,
            bits,
            shape: 0,
        };
        let (_, at) = self.place(&edit);
        let old = self.read(at);
        let [a, b, c, d] = match self.format {
            Format::Ept(_) => [WRITE, DIRTY, ACCESSED, EXECUTE],
            Format::Npt(_) => [npt::WRITE, npt::DIRTY, npt::ACCESSED, npt::PRESENT],
        };
        // Mostly what makes less of it.
        let raw = match bits % 8 {
            0 | 1 => old & !a,
            2 | 3 => old & !b,
            4 => old & !c,
            5 => old & !d,
            6 => old & !(a | b),
            _ => old | a,
        };
        self.set(at, raw);
    }

    pub(super) fn read(&self, at: u64) -> u64 {
        if self.format.is_legacy() {
            self.world.memory.get(at & !7) >> ((at & 4) * 8) & 0xffff_ffff
        } else {
            self.world.memory.get(at)
        }
    }

    pub(super) fn set(&mut self, at: u64, raw: u64) {
        if self.format.is_legacy() {
            self.world.memory.set_small(at, raw & 0xffff_ffff);
        } else {
            self.world.memory.set(at, raw);
        }
        self.learn();
    }

    /// Writes to a table of L1, as L1 or L2.
    pub(super) fn write(&mut self, edit: Edit) {
        let (level, at) = self.place(&edit);
        let mut raw = self.entry(edit);
        let is_pointer = matches!(
            self.format,
            Format::Npt(Npt {
                paging: Paging::Pae,
                ..
            })
        ) && level == Level::Page1G;
        if is_pointer && edit.table < 2 {
            raw &= !0x80 & 0x000f_ffff_ffff_f001;
        }
        self.set(at, raw);
    }
}
