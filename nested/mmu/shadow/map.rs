// SPDX-License-Identifier: GPL-2.0

//! Faults: a translation of L1 and a page of L0 become entries.

use super::array::NoPage;
use super::hardware::{Content, Hardware, Leaf};
use super::pool::Displaced;
use super::prefetch::Backings;
use super::reverse::{Known, Subject};
use super::root::RootUse;
use super::sequence::{Sequences, Ticket};
use super::table::{Handle, Identity, Kind, Table, TablePages};
use super::word::Word;
use super::{DirtyPages, Shadow};
use crate::address::{Gpa, L2Gpa};
use crate::mmu::access::{Access, Kind as AccessKind, Permissions};
use crate::mmu::entry::ADDRESS;
use crate::mmu::format::{Change, RootKey};
use crate::mmu::level::Level;
use crate::mmu::walk::Walk;

/// How L0 learns that a page becomes dirty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// It does not want to.
    None,
    /// By a fault: the caller reports the page whenever a fault makes its entry writable.
    Protect,
    /// By a fault, as above, and from then on by the dirty flag of the entry.
    Flag,
}

/// What L0 has for a page of L1.
#[derive(Clone, Copy, Debug)]
pub struct Backing {
    /// The host-physical address of the page of 4 KiB.
    pub physical: u64,
    /// The largest page around it that L0 maps as one, and allows to be mapped so.
    pub largest: Level,
    /// Writes are allowed.
    pub is_writable: bool,
    /// How L0 learns of writes.
    pub tracking: Tracking,
    /// Bits that the entry shall have: encryption, and the memory type where L1's is not followed.
    pub attributes: u64,
    /// The memory type is the one that L1's entry says.
    pub follow_memory_type: bool,
}

/// What is at the page of L1.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Memory.
    Memory(Backing),
    /// Nothing that L0 knows: a device that it emulates. The generation is that of the memory
    /// slots.
    Mmio {
        /// The generation.
        generation: u64,
    },
}

/// What came of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Mapped {
    /// L2 may go on.
    Done {
        /// The page was mapped by an entry of this level.
        level: Level,
        /// The entry can be written: if writes are tracked, the caller reports the page.
        is_writable: bool,
    },
    /// There is an entry for MMIO, or there cannot be one: L0 emulates the access.
    Emulate,
    /// Something changed meanwhile. L2 tries again.
    Again,
    /// The root is not one for these tables.
    WrongRoot,
    /// Pages have to be donated, or evicted.
    NeedPages,
}

/// What all installations of a fault have in common.
#[derive(Clone, Copy)]
pub struct Installation<'a, W, D> {
    /// The sequences of the VM.
    pub sequences: &'a Sequences<W>,
    /// The ticket that was taken before L1's tables were read.
    pub ticket: Ticket,
    /// Who hears of dirty pages.
    pub dirty: &'a D,
}

/// Why a page is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// L2 has accessed it.
    Fault(Access),
    /// L2 has accessed a page beside it.
    Neighbour,
}

/// An entry of a live table.
#[derive(Clone, Copy)]
pub(super) struct Place<'a, W> {
    pub(super) handle: Handle,
    pub(super) table: &'a Table<W>,
    pub(super) kind: Kind,
    pub(super) level: Level,
    pub(super) entry: u16,
    pub(super) word: &'a W,
    /// What the entry is made of, if that is not to be computed.
    pub(super) origin: Option<&'a W>,
}

/// What an entry shall refer to: a table like this, by a link that permits so much.
struct Wanted {
    identity: Identity,
    permissions: Permissions,
}

impl<P: TablePages> Shadow<P> {
    /// Maps what a fault has found out, and what L1 has around it and L0 has in memory. Returns the
    /// number of the latter, too; the walk is that of the last of them then.
    ///
    /// The caller has made sure, with the same access to the shadow, that what L0 has for the page
    /// has not changed since it was looked up.
    pub fn map(
        &self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        root: &RootUse,
        walk: &mut Walk,
        access: Access,
        target: &Target,
        backings: &impl Backings,
    ) -> (Mapped, u32) {
        let (key, place) = match self.place_for(install, root, walk, access, target) {
            Ok(found) => found,
            Err(outcome) => return (outcome, 0),
        };
        let mapped = self.map_leaf(install, &place, key, walk, Cause::Fault(access), target);
        let count = match mapped {
            Mapped::Done { .. } if place.level == Level::Page4K => {
                self.prefetch(install, &place, key, walk, backings)
            }
            _ => 0,
        };
        (mapped, count)
    }

    /// Maps what a fault has found out, and nothing else.
    #[cfg(any(test, fuzzing))]
    pub(super) fn map_one(
        &self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        root: &RootUse,
        walk: &Walk,
        access: Access,
        target: &Target,
    ) -> Mapped {
        match self.place_for(install, root, walk, access, target) {
            Ok((key, place)) => {
                self.map_leaf(install, &place, key, walk, Cause::Fault(access), target)
            }
            Err(outcome) => outcome,
        }
    }

    /// Returns the entry to be made, and makes the tables that lead to it.
    fn place_for<'a>(
        &'a self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        root: &RootUse,
        walk: &Walk,
        access: Access,
        target: &Target,
    ) -> Result<(&'a RootKey, Place<'a, P::Word>), Mapped> {
        let top = self.live(root.handle).ok_or(Mapped::WrongRoot)?;
        let key = top.key.as_ref().ok_or(Mapped::WrongRoot)?;
        let mut level = match target {
            Target::Memory(backing) => self.leaf_level(walk, backing, access),
            Target::Mmio { .. } => Level::Page4K,
        };
        if level == Level::Page4K {
            if let Some(place) = self.recent(root, walk) {
                return Ok((key, place));
            }
        }
        let structure = self.structure.load();
        let mut next = (root.handle, top);

        for _ in Level::ALL {
            let place = self.place_in(next, walk.address).ok_or(Mapped::Again)?;
            if place.level == level && self.is_split(&place) {
                // Someone fetches from a part of the page, and would come back.
                level = level.below().unwrap_or(Level::Page4K);
            }
            if place.level == level {
                if level == Level::Page4K {
                    self.remember(root, &place, walk, structure);
                }
                return Ok((key, place));
            }
            next = self.child_for(install, &place, key, walk)?;
        }
        Err(Mapped::WrongRoot)
    }

    /// Returns the entry for an address in a table that has been looked up, if it is for it.
    pub(super) fn place_in<'a>(
        &'a self,
        (handle, table): (Handle, &'a Table<P::Word>),
        address: L2Gpa,
    ) -> Option<Place<'a, P::Word>> {
        let place = self.place_at(handle, table, table.index_of(address)?)?;
        let clock = self.clock.load();
        if table.used.load() != clock {
            table.used.store(clock);
        }
        Some(place)
    }

    /// Returns the table that a link refers to, if the link is what it was when it was read.
    pub(super) fn child_in(&self, place: &Place<'_, P::Word>) -> Option<(Handle, &Table<P::Word>)> {
        self.child_of(place.handle, place.entry, place.origin?)
    }

    /// Returns an entry of a table.
    pub(super) fn place_at<'a>(
        &'a self,
        handle: Handle,
        table: &'a Table<P::Word>,
        entry: u16,
    ) -> Option<Place<'a, P::Word>> {
        let (kind, level) = table.role();
        Some(Place {
            handle,
            table,
            kind,
            level,
            entry,
            word: self.pages.word(handle.index, entry)?,
            origin: self.origin(table, entry),
        })
    }

    /// Returns the level at which a page is mapped: the highest that L1, L0 and the alignment of
    /// all addresses allow.
    fn leaf_level(&self, walk: &Walk, backing: &Backing, access: Access) -> Level {
        let is_fetch = access.kind == AccessKind::Fetch;
        let mut level = walk.level.min(backing.largest).min(Level::Page1G);

        if backing.tracking != Tracking::None
            || (is_fetch && !self.hardware().executable_large_pages)
        {
            return Level::Page4K;
        }
        let page = walk.address.page().into_raw();
        while let Some(below) = level.below() {
            let offset = level.offset(page);
            if level.offset(walk.page.into_raw()) == offset
                && level.offset(backing.physical) == offset
            {
                break;
            }
            level = below;
        }
        level
    }

    /// Returns whether there are small entries because a large one could not be executed.
    fn is_split(&self, place: &Place<'_, P::Word>) -> bool {
        !self.hardware().executable_large_pages
            && self.hardware().content(place.word.load(), place.level) == Content::Link
    }

    /// Returns what the table below an entry has to be, for a walk.
    fn wanted(&self, place: &Place<'_, P::Word>, key: &RootKey, walk: &Walk) -> Option<Wanted> {
        let format = &key.format;
        let parent = place.level;
        let level = parent.below()?;
        let is_legacy = format.is_legacy();
        let base = place.table.address_of(place.entry);
        let of_parent = walk.step(parent);
        let identity = |kind, source, from| Identity {
            kind,
            level,
            base,
            source,
            from,
            is_legacy,
        };

        if level > format.top() {
            return Some(Wanted {
                identity: identity(Kind::Filler, 0, 0),
                permissions: Permissions::ALL,
            });
        }
        if level < walk.level {
            let raw = walk.step(walk.level)?.raw;
            let source = walk.page.into_raw() & !level.span().wrapping_sub(1);
            return Some(Wanted {
                identity: identity(Kind::Direct, source, format.significant(raw)),
                permissions: Permissions::ALL,
            });
        }
        // A table of ours has 512 entries: L1's may have twice as many, and each of those above
        // the lowest level counts for two of ours.
        let part = match (is_legacy, level) {
            (true, Level::Page2M) => (base.into_raw() >> 30 & 3).wrapping_mul(1024),
            (true, Level::Page4K) => (base.into_raw() >> 21 & 1).wrapping_mul(2048),
            _ => 0,
        };
        let source = walk.step(level)?.table.into_raw() | part;
        let (from, permissions) = match of_parent {
            Some(step) => match format.decode(step.raw, parent) {
                crate::mmu::entry::Decoded::Table { permissions, .. } => {
                    (format.significant(step.raw), permissions)
                }
                _ => return None,
            },
            None => (0, Permissions::ALL),
        };
        Some(Wanted {
            identity: identity(Kind::Guest, source, from),
            permissions,
        })
    }

    /// Returns whether the table below an entry is what it has to be, and takes over flags of L1's entry.
    fn is_wanted(
        place: &Place<'_, P::Word>,
        table: &Table<P::Word>,
        wanted: &Identity,
        key: &RootKey,
    ) -> bool {
        let is_same = table.kind() == wanted.kind
            && table.level() == wanted.level
            && table.base() == wanted.base
            && table.source() == wanted.source
            && key.format.compare(table.from(), wanted.from, place.level) == Change::None;
        if is_same {
            table.add_flags(wanted.from);
        }
        is_same
    }

    /// Returns the table below an entry, which is made if it is not there or another one.
    fn child_for(
        &self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        place: &Place<'_, P::Word>,
        key: &RootKey,
        walk: &Walk,
    ) -> Result<(Handle, &Table<P::Word>), Mapped> {
        let wanted = self.wanted(place, key, walk).ok_or(Mapped::WrongRoot)?;
        let old = place.word.load();

        match self.hardware().content(old, place.level) {
            Content::Reserved => return Err(Mapped::Again),
            Content::Link => {
                if let Some((child, table)) = self.child_in(place) {
                    if Self::is_wanted(place, table, &wanted.identity, key)
                        && place.word.load() == old
                    {
                        return Ok((child, table));
                    }
                }
            }
            Content::Empty | Content::Leaf | Content::Mmio => {}
        }

        let root = Handle::unpack(place.table.root.load());
        let child = self
            .allocate(&wanted.identity, Some((place.handle, place.entry)), root)
            .ok_or(Mapped::NeedPages)?;
        let (Some(physical), Some(table), Some(origin)) = (
            self.pages.physical(child.index),
            self.live(child),
            place.origin,
        ) else {
            self.detach(child);
            return Err(Mapped::Again);
        };
        let new = self.hardware().link(physical, wanted.permissions);

        match self.replace(install, place, old, new, origin, child.pack()) {
            Ok(()) => Ok((child, table)),
            Err(outcome) => {
                self.detach(child);
                Err(outcome)
            }
        }
    }

    /// Replaces an entry in the three steps: reserve, check, commit.
    pub(super) fn replace(
        &self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        place: &Place<'_, P::Word>,
        old: u64,
        new: u64,
        origin: &P::Word,
        made_of: u64,
    ) -> Result<(), Mapped> {
        let content = self.hardware().content(old, place.level);
        let is_upgrade = content == Content::Leaf && self.is_upgrade(place.level, old, new);
        let reserved = self.hardware().reserved();

        if content == Content::Reserved || place.word.compare_exchange(old, reserved).is_err() {
            return Err(Mapped::Again);
        }
        // Until it is something else, the entry is ours: a flush can only cancel what we do.
        let displaced = if content == Content::Empty {
            Displaced::Nothing
        } else {
            self.displaced(place.handle, place.entry, old)
        };
        origin.store(made_of);

        let committed = install.sequences.is_current(&install.ticket)
            && place.word.compare_exchange(reserved, new).is_ok();
        if committed && is_upgrade {
            // What processors have of the old entry is allowed by the new one, too.
            self.leaves.fetch_add(u64::MAX);
            return Ok(());
        }
        self.dispose(displaced, install.dirty);
        if committed {
            return Ok(());
        }
        place.word.store(self.hardware().empty());
        Err(Mapped::Again)
    }

    /// Returns whether an entry maps the same page as another that maps one, permits all that the other does, and
    /// has its flags.
    fn is_upgrade(&self, level: Level, old: u64, new: u64) -> bool {
        let hardware = self.hardware();
        let permitted = hardware.permissions(old);

        hardware.content(new, level) == Content::Leaf
            && hardware.physical(old, level) == hardware.physical(new, level)
            && hardware.permissions(new).has(permitted)
            && hardware.flags(new) & hardware.flags(old) == hardware.flags(old)
    }

    pub(super) fn map_leaf(
        &self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        place: &Place<'_, P::Word>,
        key: &RootKey,
        walk: &Walk,
        cause: Cause,
        target: &Target,
    ) -> Mapped {
        let made_of = match walk.step(place.level) {
            Some(step) if place.kind == Kind::Guest => key.format.significant(step.raw),
            _ => 0,
        };
        match target {
            Target::Memory(backing) => {
                self.map_page(install, place, key, walk, cause, backing, made_of)
            }
            Target::Mmio { generation } => {
                let Some(new) = self.hardware().mmio(*generation) else {
                    return Mapped::Emulate;
                };
                let old = place.word.load();
                if old == new && self.is_made_of(place, made_of) {
                    return Mapped::Emulate;
                }
                // An origin that names a page says that the page is noted.
                if self.note(place, walk.page).is_err() {
                    return Mapped::NeedPages;
                }
                match self.put(install, place, old, new, made_of) {
                    Ok(()) => Mapped::Emulate,
                    Err(outcome) => outcome,
                }
            }
        }
    }

    fn is_made_of(&self, place: &Place<'_, P::Word>, made_of: u64) -> bool {
        place.origin.is_none_or(|origin| origin.load() == made_of)
    }

    #[allow(clippy::too_many_arguments)]
    fn map_page(
        &self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        place: &Place<'_, P::Word>,
        key: &RootKey,
        walk: &Walk,
        cause: Cause,
        backing: &Backing,
        made_of: u64,
    ) -> Mapped {
        let level = place.level;
        let leaf = self.leaf(key, walk, cause, backing, level);
        let page = Gpa::from_raw(level.align(walk.page.into_raw()));
        let is_writable = leaf.permissions.has(Permissions::WRITE);
        let done = Mapped::Done { level, is_writable };

        if is_writable {
            // Before L2 can write: L1's tables in this page are not tracked any more.
            self.untrack_range(page, level);
        }
        if is_writable && (leaf.dirty || !leaf.logged) {
            self.note_unlogged(page, level);
        }
        let mut new = self.hardware().leaf(&leaf);
        let old = place.word.load();
        if self.hardware().content(old, level) == Content::Leaf
            && self.hardware().physical(old, level) == self.hardware().physical(new, level)
        {
            // The page stays: so do the flags that the processor has set.
            new |= self.hardware().flags(old);
            // Another vCPU may have faulted for a write: this one does not take that back.
            if (new == old || new == Hardware::without_write(old))
                && self.is_made_of(place, made_of)
            {
                return Mapped::Done {
                    level,
                    is_writable: Hardware::is_writable(old),
                };
            }
        }
        if self.note(place, page).is_err() {
            return Mapped::NeedPages;
        }
        self.leaves.fetch_add(1);
        match self.put(install, place, old, new, made_of) {
            Ok(()) => done,
            Err(outcome) => {
                self.leaves.fetch_add(u64::MAX);
                outcome
            }
        }
    }

    /// Sees to it that the reverse map leads from a page to an entry that is to be made of it.
    fn note(&self, place: &Place<'_, P::Word>, page: Gpa) -> Result<(), NoPage> {
        let level = place.level;
        let known = match place.origin {
            Some(origin) if level == Level::Page4K => {
                // What the entry was made of last, if anything: it was noted before that was stored.
                let last = origin.load();
                if last != 0 && last & ADDRESS == page.into_raw() {
                    return Ok(());
                }
                Known::No
            }
            // Above the lowest level it may be a table, and a part of a page says nothing.
            _ => Known::Maybe,
        };
        let subject = Subject::Mapped(level, page.into_raw());

        self.reverse
            .add(&self.pages, subject, place.handle, place.entry, known)
    }

    /// Replaces an entry by one that is not a link.
    fn put(
        &self,
        install: &Installation<'_, P::Word, impl DirtyPages>,
        place: &Place<'_, P::Word>,
        old: u64,
        new: u64,
        made_of: u64,
    ) -> Result<(), Mapped> {
        match place.origin {
            Some(origin) => self.replace(install, place, old, new, origin, made_of),
            // The lowest entries of a part of a page have none: what is stored goes nowhere.
            None => self.replace(install, place, old, new, &P::Word::new(0), 0),
        }
    }

    /// Makes an entry: what L1 and L0 both permit.
    fn leaf(
        &self,
        key: &RootKey,
        walk: &Walk,
        cause: Cause,
        backing: &Backing,
        level: Level,
    ) -> Leaf {
        let is_write = match cause {
            Cause::Fault(access) => key.format.writes(access),
            Cause::Neighbour => false,
        };
        let mut permissions = walk.permissions;

        // Of a neighbour that is written, nobody would hear.
        let is_unheard = backing.tracking == Tracking::Protect && cause == Cause::Neighbour;
        if !backing.is_writable || is_unheard {
            permissions = permissions.without(Permissions::WRITE);
        }
        if level > Level::Page4K && !self.hardware().executable_large_pages {
            permissions = permissions.without(Permissions::EXECUTE.with(Permissions::USER_EXECUTE));
        }
        let attributes = if backing.follow_memory_type {
            backing.attributes | u64::from(walk.memory_type) << 3
        } else {
            backing.attributes
        };
        let is_logged = backing.tracking == Tracking::Flag;
        Leaf {
            physical: backing.physical,
            level,
            permissions,
            attributes,
            accessed: cause != Cause::Neighbour,
            dirty: permissions.has(Permissions::WRITE) && (!is_logged || is_write),
            logged: is_logged,
        }
    }

    /// Takes the permission to write from an entry. Returns whether it had it.
    pub(super) fn protect_entry(&self, handle: Handle, entry: u16) -> bool {
        let (Some(table), Some(word)) = (self.live(handle), self.pages.word(handle.index, entry))
        else {
            return false;
        };
        let mut old = word.load();
        loop {
            if self.hardware().content(old, table.level()) != Content::Leaf
                || !Hardware::is_writable(old)
            {
                return false;
            }
            match word.compare_exchange(old, Hardware::without_write(old)) {
                Ok(()) => {
                    self.owe_flush();
                    return true;
                }
                Err(now) => old = now,
            }
        }
    }
}
