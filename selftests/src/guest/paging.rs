// SPDX-License-Identifier: GPL-2.0

//! What L1's page tables mean: EPT and nested paging in long mode, by the manuals.
//!
//! This is written down a second time, and not that of the module.

pub mod program;

use anyhow::Result;
use kvm_ioctls::Kvm;

use crate::guest::vmx::bits::reason;
use crate::guest::vmx::Capabilities;
use crate::guest::{vmcb, GuestMemory, Vendor};
use crate::vm;

use program::{Access, Root, Stopped};

/// Bits of an entry that are its address.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The entry is no table but a large page.
pub const LARGE: u64 = 1 << 7;

/// A bit of addresses that no processor of a test has.
pub const RESERVED: u64 = 1 << 51;

/// Bits of an entry of nested paging.
mod npt {
    pub const PRESENT: u64 = 1 << 0;
    pub const WRITABLE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// Bits of an entry of EPT.
mod ept {
    pub const READ: u64 = 1 << 0;
    pub const WRITE: u64 = 1 << 1;
    pub const EXECUTE: u64 = 1 << 2;
    pub const WRITE_BACK: u64 = 6 << 3;
    pub const ACCESSED: u64 = 1 << 8;
    pub const DIRTY: u64 = 1 << 9;
}

/// Entries of L1's own tables, which are L2's, too.
mod own {
    pub const TABLE: u64 = 0x67;
    pub const LARGE_PAGE: u64 = 0xe7;
}

/// Maps a gigabyte to itself in L1's own tables; `upper` is a table with entries for gigabytes, and
/// `table` is memory for one more.
pub fn map_gigabyte(memory: &GuestMemory, upper: u64, table: u64, number: u64) {
    memory.write(upper + 8 * number, table | own::TABLE);
    for index in 0..512 {
        let page = number << 30 | index << 21;
        memory.write(table + 8 * index, page | own::LARGE_PAGE);
    }
}

/// What an entry permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// All.
    All,
    /// Reads and execution.
    NoWrite,
    /// Reads and writes.
    NoExecute,
    /// Reads.
    ReadOnly,
    /// Execution only; with nested paging, nothing for users: that is, nothing.
    ExecuteOnly,
    /// An entry that is not valid.
    Invalid,
}

/// A format of page tables.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The extension.
    pub vendor: Vendor,
    /// Whether EPT allows what can be executed only.
    pub execute_only: bool,
    /// Whether there are pages of 1 GiB.
    pub gigabyte: bool,
    /// Whether EPT can have accessed and dirty flags.
    pub flags: bool,
}

/// Where an address leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The address in L1's memory.
    pub address: u64,
    /// Where the entries are that were used, the last one being that of the page.
    pub entries: Vec<u64>,
}

/// What a walk finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Walk {
    /// The access is allowed.
    Page(Translation),
    /// L2 stops.
    Stops(Stopped),
    /// The walk leads to memory that the test does not know.
    Unknown,
}

impl Format {
    /// Returns what KVM lets L1's tables be.
    pub fn offered(kvm: &Kvm, vendor: Vendor) -> Result<Self> {
        Ok(match vendor {
            Vendor::Svm => {
                let cpuid = vm::cpuid(kvm)?;
                let mut entries = cpuid.as_slice().iter();
                let features = entries.find(|entry| entry.function == 0x8000_0001);
                Self {
                    vendor,
                    execute_only: false,
                    gigabyte: features.is_some_and(|entry| entry.edx >> 26 & 1 == 1),
                    flags: true,
                }
            }
            Vendor::Vmx => {
                let capabilities = Capabilities::read(kvm)?.ept_vpid;
                Self {
                    vendor,
                    execute_only: capabilities & 1 == 1,
                    gigabyte: capabilities >> 17 & 1 == 1,
                    flags: capabilities >> 21 & 1 == 1,
                }
            }
        })
    }

    /// Returns how the processor gets the table at an address, with accessed and dirty flags or not.
    pub fn root(self, table: u64, tag: u64, flags: bool) -> Root {
        let value = match self.vendor {
            Vendor::Svm => table,
            // Write-back, four levels.
            Vendor::Vmx => table | 0x1e | u64::from(flags) << 6,
        };
        Root { value, tag }
    }

    /// Returns an entry for a large page.
    pub fn large(self, address: u64, right: Right) -> u64 {
        self.page(address, right) | LARGE
    }

    /// The accessed flag.
    pub fn accessed(self) -> u64 {
        match self.vendor {
            Vendor::Svm => npt::ACCESSED,
            Vendor::Vmx => ept::ACCESSED,
        }
    }

    /// The dirty flag.
    pub fn dirty(self) -> u64 {
        match self.vendor {
            Vendor::Svm => npt::DIRTY,
            Vendor::Vmx => ept::DIRTY,
        }
    }

    /// Returns an entry that refers to a table.
    pub fn table(self, address: u64, right: Right) -> u64 {
        address | self.rights(right)
    }

    /// Returns an entry that refers to a page.
    pub fn page(self, address: u64, right: Right) -> u64 {
        let memory_type = match self.vendor {
            Vendor::Svm => 0,
            Vendor::Vmx => ept::WRITE_BACK,
        };
        address | memory_type | self.rights(right)
    }

    fn rights(self, right: Right) -> u64 {
        let all = npt::PRESENT | npt::WRITABLE | npt::USER;
        match (self.vendor, right) {
            (Vendor::Svm, Right::All) => all,
            (Vendor::Svm, Right::NoWrite) => all & !npt::WRITABLE,
            (Vendor::Svm, Right::NoExecute) => all | npt::NO_EXECUTE,
            (Vendor::Svm, Right::ReadOnly) => all & !npt::WRITABLE | npt::NO_EXECUTE,
            (Vendor::Svm, Right::ExecuteOnly) => all & !npt::USER,
            (Vendor::Svm, Right::Invalid) => all | RESERVED,
            (Vendor::Vmx, Right::All) => ept::READ | ept::WRITE | ept::EXECUTE,
            (Vendor::Vmx, Right::NoWrite) => ept::READ | ept::EXECUTE,
            (Vendor::Vmx, Right::NoExecute) => ept::READ | ept::WRITE,
            (Vendor::Vmx, Right::ReadOnly) => ept::READ,
            (Vendor::Vmx, Right::ExecuteOnly) => ept::EXECUTE,
            (Vendor::Vmx, Right::Invalid) => ept::WRITE | ept::EXECUTE,
        }
    }

    /// Returns whether a processor may have something of an entry.
    pub fn present(self, entry: u64) -> bool {
        match self.vendor {
            Vendor::Svm => entry & npt::PRESENT != 0,
            Vendor::Vmx => entry & (ept::READ | ept::WRITE | ept::EXECUTE) != 0,
        }
    }

    /// Returns whether an entry at a level is for a page.
    fn is_page(self, entry: u64, level: u64) -> bool {
        level == 1 || level < 4 && entry & LARGE != 0
    }

    /// Returns whether an entry that is present has bits that it must not have.
    fn is_invalid(self, entry: u64, level: u64) -> bool {
        let page = self.is_page(entry, level);
        let size = 12 + 9 * (level - 1);
        // With nested paging, bit 12 of a large page is no part of the address.
        let lowest = match self.vendor {
            Vendor::Svm => 13,
            Vendor::Vmx => 12,
        };
        let aligned = |address: u64| address & ((1 << size) - 1) >> lowest << lowest == 0;
        let bad_address = entry & RESERVED != 0
            || page && level > 1 && !aligned(entry & ADDRESS)
            || page && level == 3 && !self.gigabyte;
        let bad_rest = match self.vendor {
            Vendor::Svm => level == 4 && entry & LARGE != 0,
            Vendor::Vmx => {
                let memory_type = entry >> 3 & 7;
                entry & (ept::READ | ept::WRITE) == ept::WRITE
                    || entry & 7 == ept::EXECUTE && !self.execute_only
                    || page && matches!(memory_type, 2 | 3 | 7)
                    || !page && entry & 0x78 != 0
                    || level == 4 && entry & LARGE != 0
            }
        };
        bad_address || bad_rest
    }

    /// How L2 stops for an entry; `allowed` is what those above and itself permit.
    fn stop(self, access: Access, address: u64, kind: Kind, allowed: u64) -> Walk {
        let bit = match access {
            Access::Read => 1,
            Access::Write => 2,
            Access::Execute => 4,
        };
        let (code, info) = match (self.vendor, kind) {
            (Vendor::Svm, _) => {
                let write = u64::from(access == Access::Write) << 1;
                let fetch = u64::from(access == Access::Execute) << 4;
                let why = match kind {
                    Kind::NotPresent => 0,
                    Kind::Forbidden => 1,
                    Kind::Invalid => 9,
                };
                // Of a user, and not of a walk of L2's own tables.
                (vmcb::exit::NPF, 1 << 32 | fetch | 4 | write | why)
            }
            (Vendor::Vmx, Kind::Invalid) => (reason::EPT_MISCONFIGURATION, 0),
            // The linear address is valid, and not one of a walk.
            (Vendor::Vmx, _) => (reason::EPT_VIOLATION, bit | allowed << 3 | 0x180),
        };
        Walk::Stops(Stopped {
            code,
            info,
            physical: address,
            value: 0,
        })
    }

    /// Returns what a processor finds for an access of L2; `read` is for L1's memory.
    pub fn walk(
        self,
        top: u64,
        address: u64,
        access: Access,
        read: impl Fn(u64) -> Option<u64>,
    ) -> Walk {
        let mut table = top;
        let mut rights = u64::MAX;
        let mut entries = Vec::new();
        for level in (1..=4).rev() {
            let shift = 12 + 9 * (level - 1);
            let at = table + 8 * (address >> shift & 0x1ff);
            let Some(entry) = read(at) else {
                return Walk::Unknown;
            };
            if !self.present(entry) {
                return self.stop(access, address, Kind::NotPresent, 0);
            }
            if self.is_invalid(entry, level) {
                return self.stop(access, address, Kind::Invalid, 0);
            }
            // As bits that are set where something is allowed.
            rights &= entry ^ npt::NO_EXECUTE;
            entries.push(at);
            if !self.is_page(entry, level) {
                table = entry & ADDRESS;
                continue;
            }
            if !self.allows(rights, access) {
                return self.stop(access, address, Kind::Forbidden, rights & 7);
            }
            let within = (1 << shift) - 1;
            return Walk::Page(Translation {
                address: entry & ADDRESS & !within | address & within,
                entries,
            });
        }
        Walk::Unknown
    }

    fn allows(self, rights: u64, access: Access) -> bool {
        let needed = match (self.vendor, access) {
            (Vendor::Svm, Access::Read) => npt::USER,
            (Vendor::Svm, Access::Write) => npt::USER | npt::WRITABLE,
            (Vendor::Svm, Access::Execute) => npt::USER | npt::NO_EXECUTE,
            (Vendor::Vmx, Access::Read) => ept::READ,
            (Vendor::Vmx, Access::Write) => ept::WRITE,
            (Vendor::Vmx, Access::Execute) => ept::EXECUTE,
        };
        rights & needed == needed
    }

    /// How L2 stops when it calls L1.
    pub fn call(self) -> u64 {
        match self.vendor {
            Vendor::Svm => vmcb::exit::VMMCALL,
            Vendor::Vmx => reason::VMCALL,
        }
    }

    /// A call, as L2 executes it.
    pub fn call_code(self) -> u64 {
        match self.vendor {
            Vendor::Svm => 0xd9_010f,
            Vendor::Vmx => 0xc1_010f,
        }
    }

    /// Returns what is defined of how L2 has stopped.
    pub fn defined(self, stopped: Stopped) -> Stopped {
        let call = stopped.code == self.call();
        let misconfigured =
            self.vendor == Vendor::Vmx && stopped.code == reason::EPT_MISCONFIGURATION;
        let info = match self.vendor {
            Vendor::Vmx => stopped.info & 0x1bf,
            Vendor::Svm => stopped.info,
        };
        Stopped {
            code: stopped.code,
            info: if call || misconfigured { 0 } else { info },
            physical: if call { 0 } else { stopped.physical },
            value: if call { stopped.value } else { 0 },
        }
    }
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NotPresent,
    Forbidden,
    Invalid,
}
