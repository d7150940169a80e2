// SPDX-License-Identifier: GPL-2.0

//! The walk of L1's tables.

use super::access::{Access, Permissions};
use super::entry::Decoded;
use super::format::{Format, RootKey};
use super::level::Level;
use super::shadow::Ticket;
use crate::address::{Gpa, L2Gpa};
use crate::memory::{EntrySize, Exchange, GuestTables};

/// How often a walk begins again because L1 changed what it had read.
const ATTEMPTS: usize = 8;

/// Entries of the lowest level that are read at a time.
pub const NEIGHBOURS: usize = 8;

/// Why an access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// An entry is not present, or the tables do not cover the address.
    NotPresent,
    /// A table is where L1 has no memory that can be read.
    Inaccessible,
    /// An entry has something that it must not have.
    Reserved,
    /// All entries are present, but do not permit the access.
    Forbidden,
    /// The access makes the page dirty, and L1's log of such pages is full.
    LogFull,
}

/// An access that L1's tables do not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub why: Why,
    /// What all of the entries that were used permit; nothing if one is not present.
    pub permitted: Permissions,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is for L1 to handle.
    Refused(Refusal),
    /// L1 keeps changing the entries, or flags would have to be set by a mere speculation. L2 may
    /// try again.
    Again,
}

/// Why a walk is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// L2 made the access: flags are set.
    Demand,
    /// L2 may make the access: nothing is written.
    Speculative,
}

/// L1's log of the pages that become dirty cannot take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFull;

/// Where pages that become dirty in L1's tables are recorded (SDM, "Page-Modification Logging").
pub trait DirtyLog {
    /// Records a page.
    fn record(&self, page: L2Gpa) -> Result<(), LogFull>;
}

/// L1 has no log.
impl DirtyLog for () {
    fn record(&self, _page: L2Gpa) -> Result<(), LogFull> {
        Ok(())
    }
}

/// An entry that a walk used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The table that it is in.
    pub table: Gpa,
    /// What it was, with the flags that the walk set.
    pub raw: u64,
}

/// What is to be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The address.
    pub address: L2Gpa,
    /// What is done there.
    pub access: Access,
    /// Why.
    pub intent: Intent,
}

/// What a walk found above the table of the lowest level, where it has set the flags, as processors
/// cache it: L1 has to flush when it changes that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Above {
    key: RootKey,
    /// Taken before the tables were read.
    ticket: Ticket,
    /// What the entries permit.
    permitted: Permissions,
}

/// What the last walk of a vCPU found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// What was translated.
    pub address: L2Gpa,
    /// The page of L1 that it is in.
    pub page: Gpa,
    /// The level of the entry that maps it.
    pub level: Level,
    /// What that entry permits. Writing is not among it as long as the page is not dirty.
    pub permissions: Permissions,
    /// As in [`Decoded::Page`].
    pub memory_type: u8,
    steps: [Option<Step>; 5],
    neighbours: [u64; NEIGHBOURS],
    /// What the next walk may use, if it is in the same table of the lowest level.
    above: Option<Above>,
}

impl Default for Walk {
    fn default() -> Self {
        Self {
            address: L2Gpa::from_raw(0),
            page: Gpa::from_raw(0),
            level: Level::Page4K,
            permissions: Permissions::NONE,
            memory_type: 0,
            steps: [None; 5],
            neighbours: [0; NEIGHBOURS],
            above: None,
        }
    }
}

impl Walk {
    /// Returns the entry that was used at a level.
    #[inline]
    pub fn step(&self, level: Level) -> Option<Step> {
        self.steps
            .get(usize::from(level.number().wrapping_sub(1)))
            .copied()
            .flatten()
    }

    /// Returns the table of the lowest level that the next walk may begin with, for addresses in the
    /// same 2 MiB as this one's, and what the entries above permit.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn cached(&self, key: &RootKey, ticket: Ticket) -> Option<(Gpa, Permissions)> {
        let above = self
            .above
            .filter(|above| above.ticket == ticket && above.key == *key)?;
        Some((self.step(Level::Page4K)?.table, above.permitted))
    }

    /// Returns the entries above the lowest level that were used, 0 where there is none.
    #[inline]
    pub(super) fn above(&self) -> [u64; 4] {
        let [_, above @ ..] = &self.steps;
        above.map(|step| step.map_or(0, |step| step.raw))
    }

    /// Returns whether the entries above the lowest level are what [`above()`](Self::above) has
    /// returned.
    #[inline]
    pub(super) fn is_below(&self, entries: &[u64; 4]) -> bool {
        let mut different = 0;
        for (step, raw) in self.steps.iter().skip(1).zip(entries) {
            different |= step.as_ref().map_or(0, |step| step.raw) ^ raw;
        }
        different == 0
    }

    /// Returns the flag without which an entry of the lowest level has not been used.
    #[inline]
    pub(super) fn accessed_flag(format: &Format) -> u64 {
        format
            .accessed_dirty(Level::Page4K)
            .map_or(0, |flags| flags.accessed)
    }

    /// Returns whether L2 can use the page of an entry of the lowest level without any flag being
    /// set.
    #[inline]
    pub(super) const fn is_usable(accessed: u64, raw: u64) -> bool {
        raw & accessed == accessed && raw & 0x7 != 0
    }

    /// Makes of the walk what it would have found for the page with a number in the group of
    /// [`neighbours()`](Self::neighbours). Returns whether L2 can use that without any flag being
    /// set; if not, the walk stays what it is.
    pub fn move_to_neighbour(&mut self, format: &Format, number: u32) -> bool {
        let raw = self
            .neighbours()
            .and_then(|neighbours| neighbours.get(usize::try_from(number).ok()?).copied());
        let Some(raw) = raw.filter(|raw| Self::is_usable(Self::accessed_flag(format), *raw)) else {
            return false;
        };
        let Decoded::Page {
            page,
            permissions,
            memory_type,
        } = format.decode(raw, Level::Page4K)
        else {
            return false;
        };
        let (offset, Some(Some(step))) = (u64::from(number), self.steps.first_mut()) else {
            return false;
        };

        step.raw = raw;
        self.address = L2Gpa::from_raw(self.address.into_raw() & !0x7fff | offset.wrapping_shl(12));
        self.page = page;
        self.permissions = permissions;
        self.memory_type = memory_type;
        let is_clean = format
            .accessed_dirty(Level::Page4K)
            .is_some_and(|flags| raw & flags.dirty == 0);
        if is_clean {
            self.permissions = permissions.without(Permissions::WRITE);
        }
        true
    }

    /// Returns the entries of the lowest level around the one that was used, which includes it.
    /// The first is for the address rounded down to as many pages.
    #[inline]
    pub fn neighbours(&self) -> Option<&[u64; NEIGHBOURS]> {
        (self.level == Level::Page4K).then_some(&self.neighbours)
    }
}

impl Walk {
    /// Translates an address of L2, and becomes what was found; what it was is lost.
    ///
    /// Each entry is read once. Accessed and dirty flags are set as the processor would, each by a
    /// compare-exchange with what was read; if L1 has changed the entry meanwhile, the walk begins
    /// again. If L1 has flushed nothing since the last walk, and that was by the same table of the
    /// lowest level, those above are not read again.
    ///
    /// The ticket was taken just before.
    pub fn translate(
        &mut self,
        memory: &impl GuestTables,
        log: &impl DirtyLog,
        key: &RootKey,
        ticket: Ticket,
        request: &Request,
    ) -> Result<(), Stop> {
        let &Request {
            address, access, ..
        } = request;
        let is_near = Level::Page2M.align(self.address.into_raw() ^ address.into_raw()) == 0;
        let mut above = self
            .above
            .take()
            .filter(|above| is_near && above.ticket == ticket && above.key == *key);

        if !key.format.covers(address) {
            return Err(refuse(Why::NotPresent, Permissions::NONE));
        }
        self.address = address;
        for _ in 0..ATTEMPTS {
            let above = above.take();
            let marked = match above {
                Some(_) => &Level::ALL[..1],
                None => &Level::ALL[..],
            };
            let (of_above, own) = descend(memory, key, self, above)?;
            let permitted = of_above & own;

            if !key.format.permits(permitted, access) {
                return Err(refuse(Why::Forbidden, permitted));
            }
            match mark(memory, log, &key.format, self, request, marked)? {
                Marking::Done => {
                    if self.level == Level::Page4K {
                        self.above = Some(Above {
                            key: *key,
                            ticket,
                            permitted: of_above,
                        });
                    }
                    return Ok(());
                }
                Marking::Changed => {}
            }
        }
        Err(Stop::Again)
    }
}

/// Translates an address of L2 by a walk from the top.
#[cfg(any(test, fuzzing))]
pub(crate) fn walk(
    memory: &impl GuestTables,
    log: &impl DirtyLog,
    key: &RootKey,
    address: L2Gpa,
    access: Access,
    intent: Intent,
) -> Result<Walk, Stop> {
    let sequences = super::shadow::Sequences::<core::sync::atomic::AtomicU64>::default();
    let request = Request {
        address,
        access,
        intent,
    };
    let mut found = Walk::default();
    found.translate(memory, log, key, sequences.begin(key), &request)?;
    Ok(found)
}

#[inline]
const fn refuse(why: Why, permitted: Permissions) -> Stop {
    Stop::Refused(Refusal { why, permitted })
}

/// Reads the entry for an address, and at the lowest level those around it.
fn read(
    memory: &impl GuestTables,
    format: &Format,
    table: Gpa,
    address: L2Gpa,
    level: Level,
    neighbours: &mut [u64; NEIGHBOURS],
) -> Result<u64, Stop> {
    const INACCESSIBLE: Stop = refuse(Why::Inaccessible, Permissions::NONE);

    let size = format.entry_size();
    let entry = format.entry(table, address, level);

    if level != Level::Page4K {
        let mut raw = [0];
        memory
            .read_entries(entry, size, &mut raw)
            .map_err(|_| INACCESSIBLE)?;
        return Ok(raw[0]);
    }
    let group = match size {
        EntrySize::Four => 31,
        EntrySize::Eight => 63,
    };
    let first = Gpa::from_raw(entry.into_raw() & !group);
    memory
        .read_entries(first, size, neighbours)
        .map_err(|_| INACCESSIBLE)?;
    let index = (address.into_raw() >> 12) & 7;
    neighbours
        .iter()
        .zip(0u64..)
        .find_map(|(raw, at)| (at == index).then_some(*raw))
        .ok_or(INACCESSIBLE)
}

/// Reads entries from the top, or from the table of the lowest level on, to the one that maps the
/// page; returns what those above that permit, and what that one does.
fn descend(
    memory: &impl GuestTables,
    key: &RootKey,
    found: &mut Walk,
    above: Option<Above>,
) -> Result<(Permissions, Permissions), Stop> {
    let format = &key.format;
    let address = found.address;
    let lowest = found.step(Level::Page4K).map(|step| step.table);
    let (mut permitted, mut table, mut next) = match (above, lowest) {
        (Some(above), Some(table)) => (above.permitted, table, Some(Level::Page4K)),
        _ => {
            found.steps = [None; 5];
            (Permissions::ALL, key.table, Some(format.top()))
        }
    };

    while let Some(level) = next {
        let raw = read(memory, format, table, address, level, &mut found.neighbours)?;
        if let Some(step) = found
            .steps
            .get_mut(usize::from(level.number().wrapping_sub(1)))
        {
            *step = Some(Step { table, raw });
        }
        match format.decode(raw, level) {
            Decoded::NotPresent => return Err(refuse(Why::NotPresent, Permissions::NONE)),
            Decoded::Reserved => return Err(refuse(Why::Reserved, Permissions::NONE)),
            Decoded::Table {
                table: below,
                permissions,
            } => {
                permitted = permitted & permissions;
                table = below;
                next = level.below();
            }
            Decoded::Page {
                page,
                permissions,
                memory_type,
            } => {
                let size: u64 = if format.is_legacy() && level == Level::Page2M {
                    4 << 20
                } else {
                    level.size()
                };
                let within = address.into_raw() & size.wrapping_sub(1);
                found.page = Gpa::from_raw(page.into_raw() | within).page();
                found.level = level;
                found.permissions = permissions;
                found.memory_type = memory_type;
                return Ok((permitted, permissions));
            }
        }
    }
    // An entry of the lowest level always maps a page.
    Err(refuse(Why::NotPresent, Permissions::NONE))
}

/// What became of setting flags.
#[must_use]
enum Marking {
    /// They are set.
    Done,
    /// L1 has changed an entry.
    Changed,
}

/// Sets accessed and dirty flags in the entries of a walk at some levels, of which the lowest is the
/// first.
fn mark(
    memory: &impl GuestTables,
    log: &impl DirtyLog,
    format: &Format,
    found: &mut Walk,
    request: &Request,
    levels: &[Level],
) -> Result<Marking, Stop> {
    let writes = format.writes(request.access);

    for level in levels.iter().rev().copied() {
        let Some(step) = found
            .steps
            .get_mut(usize::from(level.number().wrapping_sub(1)))
            .and_then(Option::as_mut)
        else {
            continue;
        };
        let Some(flags) = format.accessed_dirty(level) else {
            continue;
        };
        let is_page = level == found.level;
        let dirty = if is_page && writes { flags.dirty } else { 0 };
        let wanted = step.raw | flags.accessed | dirty;

        if wanted != step.raw {
            if request.intent == Intent::Speculative {
                return Err(Stop::Again);
            }
            if dirty & !step.raw != 0 {
                log.record(found.address.page())
                    .map_err(|_| refuse(Why::LogFull, Permissions::NONE))?;
            }
            let entry = format.entry(step.table, found.address, level);
            match memory.compare_exchange(entry, format.entry_size(), step.raw, wanted) {
                Ok(Exchange::Done) => step.raw = wanted,
                Ok(Exchange::Changed) => return Ok(Marking::Changed),
                // As in ROM, which has no flags to keep.
                Ok(Exchange::ReadOnly) => {}
                Err(_) => return Err(refuse(Why::Inaccessible, Permissions::NONE)),
            }
        }
        // The first write has to come here for the dirty flag.
        if is_page && !writes && step.raw & flags.dirty == 0 {
            found.permissions = found.permissions.without(Permissions::WRITE);
        }
    }
    Ok(Marking::Done)
}

#[cfg(test)]
mod tests;
