// SPDX-License-Identifier: GPL-2.0

//! EPT12: the format of its entries, and the exits that it leads to.

use super::access::{Access, Kind, Permissions, Stage};
use super::entry::{bits, AccessedDirty, Decoded, ADDRESS};
use super::level::Level;
use super::walk::{Refusal, Why};
use crate::address::Gpa;
use crate::vmx::eptp::{EptVpidCapability, Eptp};

/// Bits of an EPT entry (SDM, "EPT Translation Mechanism").
pub mod bit {
    /// Data can be read.
    pub const READ: u64 = 1 << 0;
    /// Data can be written.
    pub const WRITE: u64 = 1 << 1;
    /// Instructions can be fetched; with mode-based execute control, by the supervisor.
    pub const EXECUTE: u64 = 1 << 2;
    /// Memory type, and "ignore PAT" above it.
    pub const MEMORY_TYPE: u64 = 0xf << 3;
    /// The entry maps a page, above the lowest level.
    pub const PAGE: u64 = 1 << 7;
    /// The entry was used.
    pub const ACCESSED: u64 = 1 << 8;
    /// The page was written.
    pub const DIRTY: u64 = 1 << 9;
    /// With mode-based execute control, a user's instructions can be fetched.
    pub const USER_EXECUTE: u64 = 1 << 10;
    /// A violation is not turned into a virtualization exception.
    pub const SUPPRESS_VE: u64 = 1 << 63;
}

/// What decides how EPT12 is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept {
    /// The level of the table that the EPT pointer refers to.
    pub top: Level,
    /// Entries have accessed and dirty flags.
    pub accessed_dirty: bool,
    /// Mode-based execute control is on.
    pub mode_based: bool,
    /// Execute-only translations exist.
    pub execute_only: bool,
    /// The largest page.
    pub largest_page: Level,
    /// The physical-address width that L1 sees, in bits.
    pub physical_address_width: u32,
}

impl Ept {
    /// Takes what the EPT pointer, the capabilities of L1 and its controls say.
    pub const fn new(
        eptp: Eptp,
        capability: EptVpidCapability,
        mode_based: bool,
        physical_address_width: u32,
    ) -> Self {
        Self {
            top: eptp.top(),
            accessed_dirty: eptp.has_accessed_dirty(),
            mode_based,
            execute_only: capability.has(EptVpidCapability::EXECUTE_ONLY),
            largest_page: if capability.has(EptVpidCapability::PAGE_1G) {
                Level::Page1G
            } else if capability.has(EptVpidCapability::PAGE_2M) {
                Level::Page2M
            } else {
                Level::Page4K
            },
            physical_address_width,
        }
    }

    /// Returns where the flags are, if there are any.
    #[inline]
    pub const fn accessed_dirty_bits(&self) -> Option<AccessedDirty> {
        if self.accessed_dirty {
            Some(AccessedDirty {
                accessed: bit::ACCESSED,
                dirty: bit::DIRTY,
            })
        } else {
            None
        }
    }

    #[inline]
    const fn present_bits(&self) -> u64 {
        let all = bit::READ | bit::WRITE | bit::EXECUTE;
        if self.mode_based {
            all | bit::USER_EXECUTE
        } else {
            all
        }
    }

    #[inline]
    const fn permissions(&self, raw: u64) -> Permissions {
        Permissions::READ
            .when(raw & bit::READ != 0)
            .with(Permissions::WRITE.when(raw & bit::WRITE != 0))
            .with(Permissions::EXECUTE.when(raw & bit::EXECUTE != 0))
            .with(Permissions::USER_EXECUTE.when(self.mode_based && raw & bit::USER_EXECUTE != 0))
    }

    #[inline]
    const fn is_page(raw: u64, level: Level) -> bool {
        match level {
            Level::Page4K => true,
            Level::Page2M | Level::Page1G => raw & bit::PAGE != 0,
            Level::Table512G | Level::Table256T => false,
        }
    }

    /// Returns what a present entry must not have (SDM, "EPT Misconfigurations").
    fn reserved(&self, raw: u64, level: Level) -> u64 {
        let wide = bits(self.physical_address_width, 51);
        let large = if level > self.largest_page {
            bit::PAGE
        } else {
            0
        };

        wide | match level {
            Level::Page4K => 0,
            Level::Page2M | Level::Page1G if raw & bit::PAGE != 0 => {
                large | bits(12, level.shift().wrapping_sub(1))
            }
            Level::Page2M | Level::Page1G => large | bits(3, 6),
            Level::Table512G | Level::Table256T => bits(3, 7),
        }
    }

    /// Returns whether the processor refuses the entry, whatever the access.
    fn is_misconfigured(&self, raw: u64, level: Level) -> bool {
        let fetches = bit::EXECUTE
            | if self.mode_based {
                bit::USER_EXECUTE
            } else {
                0
            };
        let unreadable = raw & bit::READ == 0
            && (raw & bit::WRITE != 0 || (!self.execute_only && raw & fetches != 0));

        unreadable
            || raw & self.reserved(raw, level) != 0
            || (Self::is_page(raw, level) && matches!((raw >> 3) & 7, 2 | 3 | 7))
    }

    /// Returns what an entry means at a level.
    pub fn decode(&self, raw: u64, level: Level) -> Decoded {
        if raw & self.present_bits() == 0 {
            return Decoded::NotPresent;
        }
        if self.is_misconfigured(raw, level) {
            return Decoded::Reserved;
        }
        let permissions = self.permissions(raw);

        if Self::is_page(raw, level) {
            Decoded::Page {
                page: Gpa::from_raw(level.align(raw & ADDRESS)),
                permissions,
                memory_type: ((raw & bit::MEMORY_TYPE) >> 3) as u8,
            }
        } else {
            Decoded::Table {
                table: Gpa::from_raw(raw & ADDRESS),
                permissions,
            }
        }
    }

    /// Returns what an access needs.
    ///
    /// With accessed and dirty flags, L2's page tables are written whenever they are used.
    #[inline]
    pub fn needs(&self, access: Access) -> Permissions {
        match (access.kind, access.stage) {
            (_, Stage::PageTable) if self.accessed_dirty => {
                Permissions::READ.with(Permissions::WRITE)
            }
            (Kind::Read, _) => Permissions::READ,
            (Kind::Write, _) => Permissions::WRITE,
            (Kind::Fetch, _) if self.mode_based => match access.mode {
                super::access::Mode::User => Permissions::USER_EXECUTE,
                super::access::Mode::Supervisor => Permissions::EXECUTE,
            },
            (Kind::Fetch, _) => Permissions::EXECUTE,
        }
    }

    /// Returns whether an access makes the page dirty.
    #[inline]
    pub const fn writes(&self, access: Access) -> bool {
        matches!(access.kind, Kind::Write)
            || (self.accessed_dirty && matches!(access.stage, Stage::PageTable))
    }
}

/// The exit that L1 gets because of EPT12.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EptExit {
    /// An EPT misconfiguration.
    Misconfiguration,
    /// An EPT violation.
    Violation {
        /// Its qualification, without what only the processor knows: bits 9 and above.
        qualification: u64,
    },
    /// A page-modification log-full event.
    LogFull,
}

/// What is known about the linear address of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linear {
    /// There is one.
    Valid,
    /// There is none.
    None,
}

impl Ept {
    /// Returns the exit for an access that was refused (SDM, "Exit Qualification for EPT Violations").
    pub fn exit(&self, refusal: &Refusal, access: Access, linear: Linear) -> EptExit {
        match refusal.why {
            Why::Reserved => return EptExit::Misconfiguration,
            Why::LogFull => return EptExit::LogFull,
            Why::NotPresent | Why::Inaccessible | Why::Forbidden => {}
        }

        let of_access = match (access.kind, access.stage) {
            (_, Stage::PageTable) if self.accessed_dirty => {
                qualification::READ | qualification::WRITE
            }
            // The processor's own accesses to page tables are reads, and writes of flags besides.
            (Kind::Write, Stage::PageTable) => qualification::READ | qualification::WRITE,
            (Kind::Read, _) => qualification::READ,
            (Kind::Write, Stage::Final) => qualification::WRITE,
            (Kind::Fetch, _) => qualification::FETCH,
        };
        let permitted = refusal.permitted;
        let mut of_entries = 0;
        for (permission, bit) in [
            (Permissions::READ, qualification::READABLE),
            (Permissions::WRITE, qualification::WRITABLE),
            (Permissions::EXECUTE, qualification::EXECUTABLE),
            (Permissions::USER_EXECUTE, qualification::USER_EXECUTABLE),
        ] {
            if permitted.has(permission) {
                of_entries |= bit;
            }
        }
        if !self.mode_based {
            of_entries &= !qualification::USER_EXECUTABLE;
        }
        let of_linear = match (linear, access.stage) {
            (Linear::None, _) => 0,
            (Linear::Valid, Stage::PageTable) => qualification::LINEAR_VALID,
            (Linear::Valid, Stage::Final) => {
                qualification::LINEAR_VALID | qualification::TRANSLATION
            }
        };

        EptExit::Violation {
            qualification: of_access | of_entries | of_linear,
        }
    }
}

/// Bits of the exit qualification of an EPT violation.
pub mod qualification {
    /// Data was read.
    pub const READ: u64 = 1 << 0;
    /// Data was written.
    pub const WRITE: u64 = 1 << 1;
    /// An instruction was fetched.
    pub const FETCH: u64 = 1 << 2;
    /// All entries permit reading.
    pub const READABLE: u64 = 1 << 3;
    /// All entries permit writing.
    pub const WRITABLE: u64 = 1 << 4;
    /// All entries permit fetching; with mode-based execute control, by the supervisor.
    pub const EXECUTABLE: u64 = 1 << 5;
    /// All entries permit fetching by a user.
    pub const USER_EXECUTABLE: u64 = 1 << 6;
    /// The guest-linear address is valid.
    pub const LINEAR_VALID: u64 = 1 << 7;
    /// The access is to the translation of the linear address.
    pub const TRANSLATION: u64 = 1 << 8;
}

#[cfg(test)]
mod tests;
