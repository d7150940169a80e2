// SPDX-License-Identifier: GPL-2.0

//! Proof that something which L1 or user space wrote has passed its checks.

use core::ops::Deref;

/// A reference to a value that has passed all the checks of its kind.
///
/// Only the checks make one, so that what takes a `Checked` cannot be given anything else. The
/// value cannot change as long as the reference lives.
#[derive(Debug)]
pub struct Checked<'a, T: ?Sized>(&'a T);

impl<'a, T: ?Sized> Checked<'a, T> {
    /// Vouches for `value`: for the functions that make the checks.
    pub(crate) fn vouch(value: &'a T) -> Self {
        Self(value)
    }
}

impl<T: ?Sized> Clone for Checked<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for Checked<'_, T> {}

impl<T: ?Sized> Deref for Checked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0
    }
}
