// SPDX-License-Identifier: GPL-2.0

//! A machine of two processors: L1's tables, L0's memory, TLBs, and the flat model.

mod guest;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use super::steps::Edit;
use super::*;
use crate::mmu::entry::Decoded;
use crate::mmu::npt::bit as npt;
use crate::mmu::shadow::hardware::HardwareKind;

/// L1's tables, of which the first two are the top of one set each.
const TABLES: u64 = 4;
const CPUS: usize = 2;
const LARGE: u64 = 0x80_0000;
const EVERYTHING: Frames = Frames::new(Gpa::from_raw(0), 1 << 40);

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
    /// The dirty flag is known to be set.
    is_dirty: bool,
}

struct Cpu {
    root: Option<RootUse>,
    key: RootKey,
    walk: Walk,
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
            addresses: guest::addresses(&format),
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
                walk: Walk::default(),
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
        match self.tracking {
            Tracking::Flag if !self.has_flags() => Tracking::Protect,
            tracking => tracking,
        }
    }

    fn has_flags(&self) -> bool {
        self.format.accessed_dirty(Level::Page4K).is_some()
    }

    fn host(&self, page: u64) -> u64 {
        HOST + page
            + self
                .moves
                .get(&page)
                .map_or(0, |moves| (moves & 0xff) << 32)
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

    fn shrink(&mut self, wanted: u32) {
        self.with_flushes(|world| {
            let (tlbs, dirty) = (&world.flushes, &world.reports);
            world.shadow.shrink(wanted, tlbs, dirty, drop);
        });
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
            let request = Request {
                address: at,
                access,
                intent,
            };
            let found = &mut self.cpus[cpu].walk;
            let result = found.translate(&self.world.memory, &(), &key, ticket, &request);
            let mut found = *found;
            self.learn();
            if result.is_err() {
                return false;
            }
            let target = Target::Memory(self.backing(found.page.into_raw()));
            let install = self.world.install(ticket);
            let root = self.cpus[cpu].root.as_ref().unwrap();
            let page = found.page;
            let shadow = &self.world.shadow;
            let (mapped, _) = shadow.map(&install, root, &mut found, access, &target, self);
            match mapped {
                Mapped::Done { is_writable, .. } => {
                    if self.format.writes(access) {
                        assert!(is_writable);
                    }
                    if is_writable && self.effective_tracking() != Tracking::None {
                        self.world.reports.report(page);
                    }
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
        // To set the dirty flag the processor walks the tables, and takes what they say now.
        let is_to_set = access.kind == AccessKind::Write && self.has_flags();
        if let Some(cached) = self.cpus[cpu].tlb.get(&address) {
            if permits(&cached.found) && (cached.is_dirty || !is_to_set) {
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
        let hardware = self.world.shadow.hardware();
        let leaf = self.leaf(cpu, address).map(Word::load);
        let cached = Cached {
            found,
            tables,
            is_dirty: leaf.is_some_and(|raw| hardware.is_dirty(raw)),
        };
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

    /// Returns the entry of the page at an address.
    fn leaf(&self, cpu: usize, address: u64) -> Option<&AtomicU64> {
        let root = self.cpus[cpu].root.as_ref()?;
        let shadow = &self.world.shadow;
        let at = L2Gpa::from_raw(address);
        let leaf_at = |level: Level| {
            let table = shadow.table_at(root.handle, at, level)?;
            let word = shadow.pages.word(table.index, level.index(at))?;
            (shadow.hardware().content(Word::load(word), level) == Content::Leaf).then_some(word)
        };
        leaf_at(Level::Page4K).or_else(|| leaf_at(Level::Page2M))
    }

    /// Sets the flag in the tables, unless it is known to be set.
    fn set_dirty(&mut self, cpu: usize, address: u64) {
        let is_known = |cached: &Cached| cached.is_dirty;
        if !self.has_flags() || self.cpus[cpu].tlb.get(&address).is_some_and(is_known) {
            return;
        }
        let flags = match self.format {
            Format::Ept(_) => ACCESSED | DIRTY,
            Format::Npt(_) => npt::ACCESSED | npt::DIRTY,
        };
        let word = self.leaf(cpu, address).expect("a page that was just found");
        Word::fetch_or(word, flags);
        if let Some(cached) = self.cpus[cpu].tlb.get_mut(&address) {
            cached.is_dirty = true;
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
        let needed = match self.effective_tracking() {
            Tracking::None => return,
            Tracking::Protect => self.world.shadow.write_protect(&EVERYTHING),
            Tracking::Flag => {
                let world = &mut self.world;
                // Whatever was reported, L0 asks to hear of again.
                let needed = world.shadow.sync_dirty(&EVERYTHING, &world.reports);
                if world.reports.0.borrow().len() % 2 == 0 {
                    needed
                } else {
                    // A part of the memory: for all of it, nothing that is known would count.
                    let most = Frames::new(Gpa::from_raw(0), (1 << 40) - 0x1000);
                    world.shadow.clear_dirty(&most, &world.reports)
                }
            }
        };
        self.follow(needed);
        let reported = self.world.reports.0.take();
        self.check_log(&reported);
        self.written.clear();
    }

    fn read_log(&mut self) {
        if self.tracking == Tracking::None {
            return;
        }
        let world = &mut self.world;
        let needed = world.shadow.sync_dirty(&EVERYTHING, &world.reports);
        self.follow(needed);
        self.check_log(&self.world.reports.0.borrow());
    }

    fn clear_log(&mut self, pages: impl Iterator<Item = u64>) {
        let mut needed = FlushNeeded::No;
        for page in pages {
            let world = &mut self.world;
            // L0 asks for pages in the log only.
            if self.tracking == Tracking::None || !world.reports.0.borrow_mut().remove(&page) {
                continue;
            }
            self.written.remove(&page);
            let frames = Frames::new(Gpa::from_raw(page), 0x1000);
            needed = match self.tracking {
                Tracking::Flag => world.shadow.clear_dirty(&frames, &world.reports),
                _ => world.shadow.write_protect(&frames),
            };
        }
        self.follow(needed);
    }

    /// Makes sure that L0 has heard of all that L2 has written.
    fn check_log(&self, reported: &BTreeSet<u64>) {
        let written = &self.written;
        assert!(
            reported.is_superset(written),
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
            Step::Settle { flushes } => {
                for _ in 0..flushes {
                    self.flush(0, true);
                }
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
                    // It need not know the new page for one that it has protected.
                    self.protected.borrow_mut().remove(&page);
                }
                let frames = Frames::new(Gpa::from_raw(first), u64::from(count) * 0x1000);
                let world = &mut self.world;
                let needed = world.shadow.unmap(&frames, &world.reports);
                self.follow(needed);
            }
            Step::DirtyPass => self.dirty_pass(),
            Step::ReadLog => self.read_log(),
            Step::ClearLog { page, count } => {
                let first = Self::page(page);
                self.clear_log((first..).step_by(0x1000).take(usize::from(count)));
            }
            Step::Log { tracking } => {
                self.dirty_pass();
                let all = [Tracking::None, Tracking::Protect, Tracking::Flag];
                self.tracking = all[usize::from(tracking)];
                // What is mapped already begins to be logged by the first pass.
                self.written.clear();
                self.protected.borrow_mut().clear();
                let world = &mut self.world;
                let needed = world.shadow.unmap(&EVERYTHING, &world.reports);
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
                self.protected.borrow_mut().clear();
                let world = &mut self.world;
                let needed = world.shadow.zap_all(&world.reports);
                self.follow(needed);
            }
            Step::Evict { wanted } => self.evict(u32::from(wanted)),
            Step::Shrink { wanted } => self.shrink(u32::from(wanted) / 4),
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
