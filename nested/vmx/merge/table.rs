// SPDX-License-Identifier: GPL-2.0

//! Tables that say for each bit of a control word where vmcs02 takes it from.

use super::controls::{Condition, Conditions};

/// Where vmcs02 takes a control from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From vmcs12: L0 has no stake in it, or emulates its own use of it in another way.
    L1,
    /// From vmcs01: what L1 says is emulated, or concerns the hardware only.
    L0,
    /// From both: who of the two set it is found out when it has caused an exit.
    Both,
    /// Always set.
    On,
    /// Never set.
    Off,
    /// From vmcs12 as long as a condition holds.
    L1If(Condition),
    /// From vmcs12, and set as well if a condition holds.
    L1OrIf(Condition),
    /// Set exactly if a condition holds.
    If(Condition),
}

impl Source {
    /// Returns `bits` as vmcs02 has them, given the words of vmcs12 and vmcs01.
    ///
    /// Evaluated with a constant source this is one mask: the tables expand to straight-line code.
    #[inline(always)]
    pub const fn select(self, bits: u32, vmcs12: u32, vmcs01: u32, conditions: Conditions) -> u32 {
        match self {
            Self::L1 => vmcs12 & bits,
            Self::L0 => vmcs01 & bits,
            Self::Both => (vmcs12 | vmcs01) & bits,
            Self::On => bits,
            Self::Off => 0,
            Self::L1If(condition) => conditions.mask(condition) & vmcs12 & bits,
            Self::L1OrIf(condition) => (conditions.mask(condition) | vmcs12) & bits,
            Self::If(condition) => conditions.mask(condition) & bits,
        }
    }
}

/// A row of a table: one control, or the reserved bits that are treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The name of the control, as KVM has it.
    pub name: &'static str,
    /// The bits of the control word.
    pub bits: u32,
    /// Where vmcs02 takes them from.
    pub source: Source,
}

/// Declares how a control word of vmcs02 is merged.
///
/// Expands to a function with one line a row, and to the rows as data for tests and documents.
macro_rules! merge_table {
    (
        $(#[$meta:meta])*
        fn $func:ident($word:ident), $(#[$rmeta:meta])* rows $rows:ident {
            $( $bit:ident: $source:expr, )*
        }
    ) => {
        $(#[$rmeta])*
        pub const $rows: &[Row] = &[
            $( Row {
                name: stringify!($bit),
                bits: $word::$bit.into_raw(),
                source: $source,
            }, )*
        ];

        $(#[$meta])*
        #[inline]
        fn $func(vmcs12: u32, vmcs01: u32, conditions: Conditions) -> u32 {
            let mut vmcs02 = 0;

            $( vmcs02 |= const { $source }.select(
                $word::$bit.into_raw(),
                vmcs12,
                vmcs01,
                conditions,
            ); )*
            vmcs02
        }
    };
}

pub(super) use merge_table;
