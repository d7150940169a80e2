// SPDX-License-Identifier: GPL-2.0

//! Accesses by L2, and what tables permit.

use core::ops::BitAnd;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It reads data.
    Read,
    /// It writes data.
    Write,
    /// It fetches an instruction.
    Fetch,
}

/// On whose behalf an access is made.
///
/// With mode-based execute control it is the privilege of the linear address, with the guest-mode
/// execute trap that of the access; without them it does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A user's.
    User,
    /// The supervisor's.
    Supervisor,
}

/// What the address of an access is to L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The translation of a linear address, or there is no linear address.
    Final,
    /// An entry of L2's own page tables.
    PageTable,
}

/// An access to a guest-physical address of L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What it does.
    pub kind: Kind,
    /// On whose behalf.
    pub mode: Mode,
    /// What the address is to L2.
    pub stage: Stage,
}

impl Access {
    /// Makes a user's access to a final address.
    #[inline]
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            mode: Mode::User,
            stage: Stage::Final,
        }
    }
}

/// What an entry permits.
///
/// EPT has [`READ`](Self::READ), [`WRITE`](Self::WRITE), [`EXECUTE`](Self::EXECUTE) and
/// [`USER_EXECUTE`](Self::USER_EXECUTE); nested paging has `READ`, which each present entry gives,
/// `WRITE`, `EXECUTE` and [`USER`](Self::USER).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions(u8);

impl Permissions {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Data can be read.
    pub const READ: Self = Self(1 << 0);
    /// Data can be written.
    pub const WRITE: Self = Self(1 << 1);
    /// Instructions can be fetched; with mode-based execute control, by the supervisor.
    pub const EXECUTE: Self = Self(1 << 2);
    /// Instructions can be fetched by a user.
    pub const USER_EXECUTE: Self = Self(1 << 3);
    /// The page is a user's.
    pub const USER: Self = Self(1 << 4);
    /// Everything.
    pub const ALL: Self = Self(0x1f);

    /// Returns whether all of `wanted` is there.
    #[inline]
    pub const fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// Returns what is in either.
    #[must_use]
    #[inline]
    pub const fn with(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Returns what is not in `less`.
    #[must_use]
    #[inline]
    pub const fn without(self, less: Self) -> Self {
        Self(self.0 & !less.0)
    }

    /// Returns `self` if `condition`, or nothing.
    #[must_use]
    #[inline]
    pub const fn when(self, condition: bool) -> Self {
        if condition {
            self
        } else {
            Self::NONE
        }
    }
}

impl BitAnd for Permissions {
    type Output = Self;

    #[inline]
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}
