// SPDX-License-Identifier: GPL-2.0

//! A machine of two processors: L1's tables, L0's memory, TLBs, and the flat model.

use std::collections::BTreeMap;

use super::steps::Edit;
use super::*;
use crate::mmu::entry::Decoded;
use crate::mmu::npt::bit as npt;
use crate::mmu::shadow::hardware::HardwareKind;

/// L1's tables, of which the first two are the top of one set each.
const TABLES: u64 = 4;
const CPUS: usize = 2;
const LARGE: u64 = 0x80_0000;

/// What a processor may use for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allowed {
    page: u64,
    permissions: Permissions,
}

/// A translation in a TLB, with the tables that it came by.
#[derive(Clone, Debug)]
struct Cached {
    found: Translation,
    tables: Vec<Handle>,
}

struct Cpu {
    root: Option<RootUse>,
    key: RootKey,
    tlb: BTreeMap<u64, Cached>,
    /// By top-level table and address: all since the last flush.
    allowed: BTreeMap<(u64, u64), Vec<Allowed>>,
}

pub(super) struct Machine {
    world: World,
    format: Format,
    addresses: Vec<u64>,
    cpus: Vec<Cpu>,
    /// How often L0 has moved a page.
    moves: BTreeMap<u64, u64>,
    tracking: Tracking,
    /// Pages that L2 has written since the last pass.
    written: BTreeSet<u64>,
    /// Pages of L1 that L0's own tables protect.
    protected: RefCell<BTreeSet<u64>>,
}

struct Protector<'a>(&'a RefCell<BTreeSet<u64>>);

impl WriteTracker for Protector<'_> {
    fn protect(&self, page: Gpa) -> Result<(), Untrackable> {
        self.0.borrow_mut().insert(page.into_raw());
        Ok(())
    }
}

/// Indexes at each level that addresses of the test have.
fn indexes(format: &Format, level: Level) -> &'static [u64] {
    let is_pae = matches!(
        format,
        Format::Npt(Npt {
            paging: Paging::Pae,
            ..
        })
    );
    match level {
        Level::Page4K if format.is_legacy() => &[0, 1, 513],
        Level::Page4K => &[0, 1, 2],
        Level::Page2M if format.is_legacy() => &[0, 257],
        Level::Page2M => &[0, 3],
        Level::Page1G if is_pae => &[0, 3],
        _ => &[0, 1],
    }
}

fn addresses(format: &Format) -> Vec<u64> {
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
    pub(super) fn new(format: Format) -> Self {
        let mut config = CONFIG;
        if matches!(format, Format::Npt(_)) {
            config.hardware.kind = HardwareKind::Npt {
                top: Level::Table512G,
                bit_51_is_reserved: true,
            };
        }
        config.page_limit = 90;
        config.cached_roots = 1;
        let mut world = World::with(config, key(format));
        world.shadow = shadow_with(config, 60);
        let mut machine = Self {
            world,
            format,
            addresses: addresses(&format),
            cpus: Vec::new(),
            moves: BTreeMap::new(),
            tracking: Tracking::None,
            written: BTreeSet::new(),
            protected: RefCell::default(),
        };
        for _ in 0..CPUS {
            machine.cpus.push(Cpu {
                root: None,
                key: key(format),
                tlb: BTreeMap::new(),
                allowed: BTreeMap::new(),
            });
        }
        machine.map_everything();
        machine
    }

    fn key(&self, table: u64) -> RootKey {
        RootKey {
            format: self.format,
            table: Gpa::from_raw(TOP + table * 0x1000),
        }
    }

    /// Returns what L1's tables say now, in the simplest way.
    fn flat(&self, top: u64, address: u64) -> Option<Allowed> {
        let mut table = top;
        let mut permissions = Permissions::ALL;
        let mut level = self.format.top();
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

    /// Adds what is valid now to what each processor may use.
    fn learn(&mut self) {
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

    /// Returns what L0 has for a page of L1.
    fn backing(&self, page: u64) -> Backing {
        let large = Level::Page2M.align(page);
        let is_whole = !self
            .moves
            .keys()
            .any(|moved| Level::Page2M.align(*moved) == large);
        Backing {
            physical: self.host(page),
            largest: if is_whole && self.tracking == Tracking::None {
                Level::Page2M
            } else {
                Level::Page4K
            },
            tracking: self.effective_tracking(),
            ..super::super::backing(Gpa::from_raw(page))
        }
    }

    /// Flags are of no use where there are none.
    fn effective_tracking(&self) -> Tracking {
        let has_flags = self.format.accessed_dirty(Level::Page4K).is_some();
        match self.tracking {
            Tracking::Flag if !has_flags => Tracking::Protect,
            tracking => tracking,
        }
    }

    fn host(&self, page: u64) -> u64 {
        HOST + page
            + self
                .moves
                .get(&page)
                .map_or(0, |moves| (moves & 0xff) << 32)
    }

    /// Makes an entry of small numbers.
    fn entry(&self, edit: Edit) -> u64 {
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
    fn map_everything(&mut self) {
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
    fn place(&self, edit: &Edit) -> (Level, u64) {
        let level = Level::from_number(edit.index % self.format.top().number() + 1).unwrap();
        let choices = indexes(&self.format, level);
        let index = choices[usize::from(edit.index >> 3) % choices.len()];
        (
            level,
            TOP + u64::from(edit.table) * 0x1000 + index * self.format.entry_size().bytes(),
        )
    }

    /// Changes bits of an entry, and leaves what it refers to.
    fn change(&mut self, table: u8, index: u8, bits: u8) {
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

    fn read(&self, at: u64) -> u64 {
        if self.format.is_legacy() {
            self.world.memory.get(at & !7) >> ((at & 4) * 8) & 0xffff_ffff
        } else {
            self.world.memory.get(at)
        }
    }

    fn set(&mut self, at: u64, raw: u64) {
        if self.format.is_legacy() {
            self.world.memory.set_small(at, raw & 0xffff_ffff);
        } else {
            self.world.memory.set(at, raw);
        }
        self.learn();
    }

    /// Writes to a table of L1, as L1 or L2.
    fn write(&mut self, edit: Edit) {
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

    fn flush_tlbs(&mut self) {
        for cpu in &mut self.cpus {
            cpu.tlb.clear();
        }
    }

    /// L0 flushes if it has to.
    fn follow(&mut self, needed: FlushNeeded) {
        if needed == FlushNeeded::Yes {
            let mark = self.world.shadow.begin_flush();
            self.flush_tlbs();
            self.world.shadow.end_flush(mark);
        }
    }

    /// Calls what may flush by itself, and flushes the TLBs if it did.
    fn with_flushes<R>(&mut self, call: impl FnOnce(&mut World) -> R) -> R {
        let before = self.world.flushes.0.get();
        let result = call(&mut self.world);
        if self.world.flushes.0.get() != before {
            self.flush_tlbs();
        }
        result
    }

    fn evict(&mut self, wanted: u32) {
        self.with_flushes(|world| world.shadow.evict(wanted, &world.flushes, &world.reports));
    }

    /// Loads the root of a processor, if it has none.
    fn load(&mut self, cpu: usize) {
        while self.cpus[cpu].root.is_none() {
            let key = self.cpus[cpu].key;
            match self.world.shadow.load_root(&key, &self.world.reports) {
                Ok(root) => self.cpus[cpu].root = Some(root),
                Err(RootRefusal::NeedPages) => self.make_room(),
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
    }

    fn make_room(&mut self) {
        if self.world.shadow.donate(FakePage::new()).is_err() {
            self.evict(8);
        }
    }

    /// Handles a fault of L2, until it has a translation or the fault is L1's. In both cases, what
    /// the processor uses for the address is new.
    fn fault(&mut self, cpu: usize, address: u64, access: Access, intent: Intent) -> bool {
        let is_mapped = self.try_to_map(cpu, address, access, intent);
        if intent == Intent::Demand {
            if !is_mapped {
                let root = self.cpus[cpu].root.as_ref().unwrap();
                let at = L2Gpa::from_raw(address);
                let world = &self.world;
                world
                    .shadow
                    .invalidate(&world.sequences, root, at, &world.reports);
            }
            let top = self.cpus[cpu].key.table.into_raw();
            self.cpus[cpu].tlb.remove(&address);
            self.cpus[cpu].allowed.remove(&(top, address));
            self.learn();
        }
        is_mapped
    }

    fn try_to_map(&mut self, cpu: usize, address: u64, access: Access, intent: Intent) -> bool {
        for _ in 0..100 {
            self.load(cpu);
            let key = self.cpus[cpu].key;
            let at = L2Gpa::from_raw(address);
            let ticket = self.world.sequences.begin(&key);
            let found = walk(&self.world.memory, &(), &key, at, access, intent);
            self.learn();
            let Ok(found) = found else {
                return false;
            };
            let target = Target::Memory(self.backing(found.page.into_raw()));
            let install = self.world.install(ticket);
            let root = self.cpus[cpu].root.as_ref().unwrap();
            let mapped = self
                .world
                .shadow
                .map(&install, root, &found, access, &target);
            match mapped {
                Mapped::Done { is_writable, .. } => {
                    if self.format.writes(access) {
                        assert!(is_writable);
                        if self.effective_tracking() == Tracking::Protect {
                            self.world.reports.report(found.page);
                        }
                    }
                    self.world.shadow.prefetch(&install, root, &found, self);
                    return true;
                }
                Mapped::NeedPages => self.make_room(),
                other => panic!("{other:?}"),
            }
        }
        panic!("no progress");
    }

    /// Looks an address up as the processor does: in the TLB, then in the tables.
    fn translate(&mut self, cpu: usize, address: u64, access: Access) -> Option<Translation> {
        let permits = |found: &Translation| self.format.permits(found.permissions, access);
        if let Some(cached) = self.cpus[cpu].tlb.get(&address) {
            if permits(&cached.found) {
                return Some(cached.found);
            }
        }
        let root = self.cpus[cpu].root.as_ref()?;
        let found = self.world.translate(root, address)?;
        if !permits(&found) {
            return None;
        }
        let tables = Level::ALL
            .iter()
            .filter_map(|level| {
                self.world
                    .shadow
                    .table_at(root.handle, L2Gpa::from_raw(address), *level)
            })
            .collect();
        let cached = Cached { found, tables };
        self.cpus[cpu].tlb.insert(address, cached);
        Some(found)
    }

    fn access(&mut self, cpu: usize, address: u64, kind: u8, edit: Edit) {
        let access = [READS, WRITES, FETCHES][usize::from(kind)];
        let mut found = self.translate(cpu, address, access);
        if found.is_none() && self.fault(cpu, address, access, Intent::Demand) {
            found = self.translate(cpu, address, access);
            assert!(found.is_some(), "a fault was handled, and does not help");
        }
        let (Some(found), AccessKind::Write) = (found, access.kind) else {
            return;
        };
        // The processor sets the flag in the tables, not in what it has cached.
        self.set_dirty(cpu, address);
        let page = found.page.into_raw();
        self.written.insert(page);
        if (TOP..TOP + TABLES * 0x1000).contains(&page) {
            let table = (page - TOP) >> 12;
            assert!(
                !self.world.shadow.is_tracked(found.page),
                "a write was missed"
            );
            self.write(Edit {
                table: table as u8,
                ..edit
            });
        }
    }

    fn set_dirty(&mut self, cpu: usize, address: u64) {
        let has_flags = self.format.accessed_dirty(Level::Page4K).is_some();
        let Some(root) = self.cpus[cpu].root.as_ref().filter(|_| has_flags) else {
            return;
        };
        let at = L2Gpa::from_raw(address);
        for level in [Level::Page4K, Level::Page2M] {
            let Some(table) = self.world.shadow.table_at(root.handle, at, level) else {
                continue;
            };
            let word = self
                .world
                .shadow
                .pages
                .word(table.index, level.index(at))
                .unwrap();
            if self
                .world
                .shadow
                .hardware()
                .content(Word::load(word), level)
                == Content::Leaf
            {
                let flags = match self.format {
                    Format::Ept(_) => ACCESSED | DIRTY,
                    Format::Npt(_) => npt::ACCESSED | npt::DIRTY,
                };
                Word::fetch_or(word, flags);
            }
        }
    }

    fn page(number: u8) -> u64 {
        match number % 16 {
            0..=7 => 0x4_0000 + u64::from(number % 8) * 0x1000,
            8..=11 => TOP + u64::from(number % 4) * 0x1000,
            number => LARGE + u64::from(number) * 0x1000,
        }
    }

    fn flush(&mut self, cpu: usize, is_all: bool) {
        let table = self.cpus[cpu].key.table;
        let scope = if is_all {
            FlushScope::All
        } else {
            FlushScope::Table(table)
        };
        self.world.flush(scope);
        self.cpus[cpu].tlb.clear();
        self.cpus[cpu]
            .allowed
            .retain(|(top, _), _| !is_all && *top != table.into_raw());
        self.learn();
    }

    fn dirty_pass(&mut self) {
        let everything = Frames::new(Gpa::from_raw(0), 1 << 40);
        let needed = match self.effective_tracking() {
            Tracking::None => return,
            Tracking::Protect => self.world.shadow.write_protect(&everything),
            Tracking::Flag => {
                let world = &mut self.world;
                world.shadow.clear_dirty(&everything, &world.reports)
            }
        };
        self.follow(needed);
        let reported = self.world.reports.0.take();
        let written = core::mem::take(&mut self.written);
        assert!(
            reported.is_superset(&written),
            "{written:x?} was written, {reported:x?} reported"
        );
    }

    pub(super) fn take(&mut self, step: &Step) {
        match *step {
            Step::Edit(edit) => {
                let page = TOP + u64::from(edit.table) * 0x1000;
                if self.protected.borrow_mut().remove(&page) {
                    self.world.shadow.tracked_write(Gpa::from_raw(page));
                }
                self.write(edit);
            }
            Step::Change { table, index, bits } => {
                let page = TOP + u64::from(table) * 0x1000;
                if self.protected.borrow_mut().remove(&page) {
                    self.world.shadow.tracked_write(Gpa::from_raw(page));
                }
                self.change(table, index, bits);
            }
            Step::Access {
                cpu,
                address,
                kind,
                edit,
            } => {
                let address = self.addresses[usize::from(address) % self.addresses.len()];
                self.access(usize::from(cpu), address, kind, edit);
            }
            Step::Prefault { cpu, address } => {
                let address = self.addresses[usize::from(address) % self.addresses.len()];
                self.fault(usize::from(cpu), address, READS, Intent::Speculative);
            }
            Step::Flush { cpu, is_all } => self.flush(usize::from(cpu), is_all),
            Step::Settle => {
                let protected = RefCell::new(self.protected.take());
                self.with_flushes(|world| {
                    world.shadow.settle(
                        &world.sequences,
                        &world.memory,
                        &Protector(&protected),
                        &world.flushes,
                        &world.reports,
                    )
                });
                self.protected = protected;
            }
            Step::Unmap { page, count } => {
                let first = Self::page(page);
                for page in (first..).step_by(0x1000).take(usize::from(count)) {
                    *self.moves.entry(page).or_default() += 1;
                }
                let frames = Frames::new(Gpa::from_raw(first), u64::from(count) * 0x1000);
                let world = &mut self.world;
                let needed = world.shadow.unmap(&frames, &world.reports);
                self.follow(needed);
            }
            Step::DirtyPass => self.dirty_pass(),
            Step::Log { tracking } => {
                self.dirty_pass();
                let all = [Tracking::None, Tracking::Protect, Tracking::Flag];
                self.tracking = all[usize::from(tracking)];
                // What is mapped already begins to be logged by the first pass.
                self.written.clear();
                let everything = Frames::new(Gpa::from_raw(0), 1 << 40);
                let world = &mut self.world;
                let needed = world.shadow.unmap(&everything, &world.reports);
                self.follow(needed);
                self.world.reports.0.take();
            }
            Step::Age { page, is_test } => {
                let frames = Frames::new(Gpa::from_raw(Self::page(page)), 0x1000);
                let age = if is_test { Age::Test } else { Age::Clear };
                self.world.shadow.age(&frames, age, &self.world.reports);
            }
            Step::Recover { page } => {
                let frames = Frames::new(Gpa::from_raw(Self::page(page)), 0x1000);
                let world = &mut self.world;
                let needed = world.shadow.recover_large_pages(&frames, &world.reports);
                self.follow(needed);
            }
            Step::ZapAll => {
                let world = &mut self.world;
                let needed = world.shadow.zap_all(&world.reports);
                self.follow(needed);
            }
            Step::Evict { wanted } => self.evict(u32::from(wanted)),
            Step::Reclaim => {
                self.with_flushes(|world| world.reclaim());
            }
            Step::Switch { cpu } => {
                let cpu = usize::from(cpu);
                if let Some(root) = self.cpus[cpu].root.take() {
                    self.world.shadow.release_root(root);
                }
                // The processor tells translations by different tables apart; this one forgets.
                self.cpus[cpu].tlb.clear();
                let other = u64::from(self.cpus[cpu].key == self.key(0));
                self.cpus[cpu].key = self.key(other);
            }
        }
    }

    /// Makes sure that a processor may use a translation, and that it is to where L0 has the page.
    fn check_one(&self, cpu: &Cpu, top: u64, address: u64, found: &Translation, whose: &str) {
        let known = cpu.allowed.get(&(top, address));
        let is_allowed = known.is_some_and(|known| {
            known.iter().any(|allowed| {
                allowed.page == found.page.into_raw() && allowed.permissions.has(self.of(found))
            })
        });
        assert!(
            is_allowed,
            "{whose}: {address:#x} is {found:x?}, of {known:x?}"
        );
        assert_eq!(found.physical, self.host(found.page.into_raw()), "{whose}");
    }

    /// Returns the permissions that the format of L1 has, too.
    fn of(&self, found: &Translation) -> Permissions {
        match self.format {
            Format::Ept(ept) if !ept.mode_based => {
                found.permissions.without(Permissions::USER_EXECUTE)
            }
            _ => found.permissions,
        }
    }

    pub(super) fn check(&self) {
        for cpu in &self.cpus {
            let Some(root) = &cpu.root else {
                continue;
            };
            let top = cpu.key.table.into_raw();
            for address in &self.addresses {
                if let Some(found) = self.world.translate(root, *address) {
                    // All processors share the tables.
                    for any in &self.cpus {
                        self.check_one(any, top, *address, &found, "the shadow");
                    }
                }
                if let Some(cached) = cpu.tlb.get(address) {
                    self.check_one(cpu, top, *address, &cached.found, "a TLB");
                    for table in &cached.tables {
                        assert!(
                            self.world.shadow.live(*table).is_some(),
                            "a table was freed that a processor may be using"
                        );
                    }
                }
            }
        }
    }

    pub(super) fn check_tables(&self) {
        self.world.shadow.check();
    }
}

impl Backings for Machine {
    fn resident(&self, page: Gpa) -> Option<Backing> {
        Some(self.backing(page.into_raw()))
    }
}
