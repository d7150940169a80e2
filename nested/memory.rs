// SPDX-License-Identifier: GPL-2.0

//! Memory of L1 as the architecture's code sees it.

use crate::address::Gpa;

/// There is no memory at an address, or it cannot be accessed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inaccessible;

/// Memory of L1.
///
/// Other vCPUs and devices write to it at any time. Whoever reads something twice may get two
/// values: read once, into a snapshot, and look at that.
pub trait GuestMemory {
    /// Reads the bytes at `gpa` and after it, which may be in several pages, each byte once.
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible>;

    /// Writes the bytes at `gpa` and after it, which may be in several pages.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), Inaccessible>;
}
