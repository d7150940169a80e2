// SPDX-License-Identifier: GPL-2.0

//! NPT12: the formats of its entries, and the exit that it leads to.

use super::access::{Access, Kind, Mode, Permissions, Stage};
use super::entry::{bits, AccessedDirty, Decoded, ADDRESS};
use super::level::Level;
use super::walk::{Refusal, Why};
use crate::address::Gpa;

/// Bits of an entry (APM, "Page-Translation-Table Entry Fields").
pub mod bit {
    /// The entry is present.
    pub const PRESENT: u64 = 1 << 0;
    /// The page can be written.
    pub const WRITE: u64 = 1 << 1;
    /// The page is a user's.
    pub const USER: u64 = 1 << 2;
    /// The entry was used.
    pub const ACCESSED: u64 = 1 << 5;
    /// The page was written.
    pub const DIRTY: u64 = 1 << 6;
    /// The entry maps a page, above the lowest level.
    pub const PAGE: u64 = 1 << 7;
    /// Instructions cannot be fetched.
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// How L1 paged when it executed VMRUN: nested paging uses the same format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// Long mode, 5 levels.
    Long5,
    /// Long mode, 4 levels.
    Long4,
    /// 32 bits with physical-address extension.
    Pae,
    /// 32 bits, with pages of 4 MiB if `CR4.PSE` was set.
    Legacy {
        /// `CR4.PSE`.
        page_size_extension: bool,
    },
}

/// What decides how NPT12 is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt {
    /// The format.
    pub paging: Paging,
    /// `EFER.NXE` of L1.
    pub no_execute: bool,
    /// The guest-mode execute trap is on.
    pub execute_trap: bool,
    /// Pages of 1 GiB exist.
    pub gigabyte_pages: bool,
    /// The physical-address width that L1 sees, in bits.
    pub physical_address_width: u32,
}

/// What the processor of L1 has that decides how NPT12 is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// Pages of 1 GiB exist.
    pub gigabyte_pages: bool,
    /// The physical-address width, in bits.
    pub physical_address_width: u32,
}

impl Npt {
    /// Takes what L1's processor had when it executed VMRUN.
    pub const fn new(host: &Host, execute_trap: bool) -> Self {
        const CR4_PSE: u64 = 1 << 4;
        const CR4_PAE: u64 = 1 << 5;
        const CR4_LA57: u64 = 1 << 12;
        const EFER_LMA: u64 = 1 << 10;
        const EFER_NXE: u64 = 1 << 11;

        Self {
            paging: if host.efer & EFER_LMA != 0 {
                if host.cr4 & CR4_LA57 != 0 {
                    Paging::Long5
                } else {
                    Paging::Long4
                }
            } else if host.cr4 & CR4_PAE != 0 {
                Paging::Pae
            } else {
                Paging::Legacy {
                    page_size_extension: host.cr4 & CR4_PSE != 0,
                }
            },
            no_execute: host.efer & EFER_NXE != 0,
            execute_trap,
            gigabyte_pages: host.gigabyte_pages,
            physical_address_width: host.physical_address_width,
        }
    }

    /// Returns the level of the table that nCR3 refers to.
    #[inline]
    pub const fn top(&self) -> Level {
        match self.paging {
            Paging::Long5 => Level::Table256T,
            Paging::Long4 => Level::Table512G,
            Paging::Pae => Level::Page1G,
            Paging::Legacy { .. } => Level::Page2M,
        }
    }

    /// Returns the address of the table in a value of nCR3.
    pub const fn table(&self, nested_cr3: u64) -> Gpa {
        Gpa::from_raw(match self.paging {
            Paging::Long5 | Paging::Long4 => nested_cr3 & ADDRESS,
            Paging::Pae => nested_cr3 & bits(5, 31),
            Paging::Legacy { .. } => nested_cr3 & bits(12, 31),
        })
    }

    #[inline]
    const fn is_legacy(&self) -> bool {
        matches!(self.paging, Paging::Legacy { .. })
    }

    /// Returns where the flags are at a level.
    ///
    /// The four entries of a page-directory-pointer table have none.
    #[inline]
    pub const fn accessed_dirty_bits(&self, level: Level) -> Option<AccessedDirty> {
        match (self.paging, level) {
            (Paging::Pae, Level::Page1G) => None,
            _ => Some(AccessedDirty {
                accessed: bit::ACCESSED,
                dirty: bit::DIRTY,
            }),
        }
    }

    #[inline]
    const fn is_page(&self, raw: u64, level: Level) -> bool {
        match (level, self.paging) {
            (Level::Page4K, _) => true,
            (
                Level::Page2M,
                Paging::Legacy {
                    page_size_extension,
                },
            ) => page_size_extension && raw & bit::PAGE != 0,
            (Level::Page2M, _) => raw & bit::PAGE != 0,
            (Level::Page1G, Paging::Long4 | Paging::Long5) => raw & bit::PAGE != 0,
            (Level::Page1G | Level::Table512G | Level::Table256T, _) => false,
        }
    }

    /// Returns what a present entry must not have.
    const fn reserved(&self, raw: u64, level: Level) -> u64 {
        let no_execute = if self.no_execute { 0 } else { bit::NO_EXECUTE };
        let wide = bits(self.physical_address_width, 51);
        let is_page = self.is_page(raw, level);

        match self.paging {
            Paging::Legacy { .. } => match level {
                // Bits 20:13 are bits 39:32 of the address.
                Level::Page2M if is_page => {
                    let above = self.physical_address_width.saturating_sub(32);
                    bits(above.saturating_add(13), 20) | bits(21, 21)
                }
                _ => 0,
            },
            Paging::Pae => match level {
                Level::Page1G => wide | bits(52, 62) | bit::NO_EXECUTE | bits(5, 8) | bits(1, 2),
                Level::Page2M if is_page => wide | bits(52, 62) | no_execute | bits(13, 20),
                _ => wide | bits(52, 62) | no_execute,
            },
            Paging::Long4 | Paging::Long5 => match level {
                Level::Page4K => wide | no_execute,
                Level::Page2M if is_page => wide | no_execute | bits(13, 20),
                Level::Page2M => wide | no_execute,
                Level::Page1G if is_page && !self.gigabyte_pages => bit::PAGE,
                Level::Page1G if is_page => wide | no_execute | bits(13, 29),
                Level::Page1G => wide | no_execute,
                Level::Table512G | Level::Table256T => wide | no_execute | bits(7, 8),
            },
        }
    }

    const fn permissions(&self, raw: u64, level: Level) -> Permissions {
        // The page-directory-pointer table of PAE has no permissions.
        if matches!((self.paging, level), (Paging::Pae, Level::Page1G)) {
            return Permissions::ALL;
        }
        let no_execute = !self.is_legacy() && self.no_execute && raw & bit::NO_EXECUTE != 0;
        Permissions::READ
            .with(Permissions::WRITE.when(raw & bit::WRITE != 0))
            .with(Permissions::USER.when(raw & bit::USER != 0))
            .with(Permissions::EXECUTE.when(!no_execute))
    }

    /// Returns the address of the page that an entry maps.
    fn page(&self, raw: u64, level: Level) -> Gpa {
        Gpa::from_raw(match (self.paging, level) {
            (Paging::Legacy { .. }, Level::Page2M) => {
                (raw & bits(22, 31)) | (raw & bits(13, 20)) << 19
            }
            (Paging::Legacy { .. }, _) => raw & bits(12, 31),
            _ => level.align(raw & ADDRESS),
        })
    }

    /// Returns what an entry means at a level.
    ///
    /// A page of 4 MiB is one of level [`Level::Page2M`], and so is the entry for it.
    pub fn decode(&self, raw: u64, level: Level) -> Decoded {
        if raw & bit::PRESENT == 0 {
            return Decoded::NotPresent;
        }
        if raw & self.reserved(raw, level) != 0 {
            return Decoded::Reserved;
        }
        let permissions = self.permissions(raw, level);

        if self.is_page(raw, level) {
            Decoded::Page {
                page: self.page(raw, level),
                permissions,
                memory_type: 0,
            }
        } else {
            let address = if self.is_legacy() {
                bits(12, 31)
            } else {
                ADDRESS
            };
            Decoded::Table {
                table: Gpa::from_raw(raw & address),
                permissions,
            }
        }
    }

    /// Returns whether an access is permitted.
    ///
    /// Without the guest-mode execute trap, all accesses are those of a user. With it, the user bit
    /// matters to fetches by the supervisor only (APM, "Guest Mode Execute Trap").
    #[inline]
    pub fn permits(&self, permissions: Permissions, access: Access) -> bool {
        let user = if self.execute_trap {
            access.kind != Kind::Fetch
                || access.mode == Mode::User
                || !permissions.has(Permissions::USER)
        } else {
            permissions.has(Permissions::USER)
        };

        user && match access.kind {
            Kind::Read => permissions.has(Permissions::READ),
            Kind::Write => permissions.has(Permissions::WRITE),
            Kind::Fetch => permissions.has(Permissions::EXECUTE),
        }
    }

    /// Returns the error code of the nested page fault for an access that was refused (APM, "Nested
    /// versus Guest Page Faults, Fault Ordering").
    pub fn error_code(&self, refusal: &Refusal, access: Access) -> u64 {
        let of_entry = match refusal.why {
            Why::NotPresent | Why::Inaccessible | Why::LogFull => 0,
            Why::Reserved => error::PRESENT | error::RESERVED,
            Why::Forbidden => error::PRESENT,
        };
        let of_access = match access.kind {
            Kind::Read => 0,
            Kind::Write => error::WRITE,
            Kind::Fetch if self.no_execute || self.execute_trap => error::FETCH,
            Kind::Fetch => 0,
        };
        let of_mode = if !self.execute_trap || access.mode == Mode::User {
            error::USER
        } else {
            0
        };
        let of_stage = match access.stage {
            Stage::Final => error::FINAL,
            Stage::PageTable => error::PAGE_TABLE,
        };

        of_entry | of_access | of_mode | of_stage
    }
}

/// Bits of the error code, which is in `EXITINFO1`.
pub mod error {
    /// All entries were present.
    pub const PRESENT: u64 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u64 = 1 << 1;
    /// The access was a user's.
    pub const USER: u64 = 1 << 2;
    /// A reserved bit was set.
    pub const RESERVED: u64 = 1 << 3;
    /// The access was a fetch.
    pub const FETCH: u64 = 1 << 4;
    /// The final address was being translated.
    pub const FINAL: u64 = 1 << 32;
    /// An entry of L2's page tables was being translated.
    pub const PAGE_TABLE: u64 = 1 << 33;
}

#[cfg(test)]
mod tests;
