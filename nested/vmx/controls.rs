// SPDX-License-Identifier: GPL-2.0

//! The control words of a VMCS.

/// Declares a control word: one row a bit, which gives its number, its constant and its predicate.
///
/// Expands to a newtype that is a set of bits.
macro_rules! controls {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident, default1 $default1:literal {
            $( $(#[$vmeta:meta])* $bit:literal: $constant:ident, $predicate:ident; )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(transparent)]
        $vis struct $name(u32);

        impl $name {
            /// No control.
            $vis const NONE: Self = Self(0);

            /// The controls that are 1 unless a processor says that they may be 0 (SDM, "Reserved
            /// Controls and Default Settings").
            $vis const DEFAULT1: Self = Self($default1);

            /// Those of them that have no name.
            $vis const RESERVED1: Self = Self($default1 & !(0 $( | 1 << $bit )*));

            $( $(#[$vmeta])* $vis const $constant: Self = Self(1 << $bit); )*

            /// The controls that have a name, in the order of their bits.
            $vis const NAMED: &'static [Self] = &[$( Self::$constant, )*];

            /// Wraps a word.
            $vis const fn from_raw(raw: u32) -> Self {
                Self(raw)
            }

            /// Returns the word.
            $vis const fn into_raw(self) -> u32 {
                self.0
            }

            /// Returns whether all of `controls` are 1.
            #[inline]
            $vis const fn contains(self, controls: Self) -> bool {
                self.0 & controls.0 == controls.0
            }

            /// Returns the controls that are 1 here or in `controls`.
            $vis const fn with(self, controls: Self) -> Self {
                Self(self.0 | controls.0)
            }

            /// Returns the controls that are 1 here and 0 in `controls`.
            $vis const fn without(self, controls: Self) -> Self {
                Self(self.0 & !controls.0)
            }

            $(
                #[doc = concat!("Returns whether [`Self::", stringify!($constant), "`] is 1.")]
                #[inline]
                $vis const fn $predicate(self) -> bool {
                    self.contains(Self::$constant)
                }
            )*
        }
    };
}

mod execution;
mod transition;

pub use execution::{Pin, Primary, Secondary};
pub use transition::{Entry, Exit};

use super::Vmcs12;

/// The VM function that switches the EPT pointer (SDM, "EPTP Switching").
pub const VMFUNC_EPTP_SWITCHING: u64 = 1 << 0;

impl Vmcs12 {
    /// Returns the pin-based VM-execution controls.
    #[inline]
    pub const fn pin(&self) -> Pin {
        Pin::from_raw(self.pin_based_vm_exec_control)
    }

    /// Returns the primary processor-based VM-execution controls.
    #[inline]
    pub const fn primary(&self) -> Primary {
        Primary::from_raw(self.cpu_based_vm_exec_control)
    }

    /// Returns the secondary processor-based VM-execution controls that are in effect: none, unless
    /// the primary controls activate them.
    #[inline]
    pub const fn secondary(&self) -> Secondary {
        if self.primary().secondary_controls() {
            Secondary::from_raw(self.secondary_vm_exec_control)
        } else {
            Secondary::NONE
        }
    }

    /// Returns the VM-exit controls.
    #[inline]
    pub const fn exit(&self) -> Exit {
        Exit::from_raw(self.vm_exit_controls)
    }

    /// Returns the VM-entry controls.
    #[inline]
    pub const fn entry(&self) -> Entry {
        Entry::from_raw(self.vm_entry_controls)
    }

    /// Returns whether L2 may switch the EPT pointer by VMFUNC.
    #[inline]
    pub const fn eptp_switching(&self) -> bool {
        self.secondary().vmfunc() && self.vm_function_control & VMFUNC_EPTP_SWITCHING != 0
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_vmx_controls))]
mod tests {
    use super::*;

    #[test]
    fn bits_are_in_order_and_in_one_row_each() {
        fn ascending(words: impl Iterator<Item = u32>) -> bool {
            let mut last = 0;

            for word in words {
                if word <= last {
                    return false;
                }
                last = word;
            }
            true
        }

        assert!(ascending(Pin::NAMED.iter().map(|word| word.into_raw())));
        assert!(ascending(Primary::NAMED.iter().map(|word| word.into_raw())));
        assert!(ascending(
            Secondary::NAMED.iter().map(|word| word.into_raw())
        ));
        assert!(ascending(Exit::NAMED.iter().map(|word| word.into_raw())));
        assert!(ascending(Entry::NAMED.iter().map(|word| word.into_raw())));
    }

    #[test]
    fn words_are_sets() {
        let word = Pin::NMI_EXITING.with(Pin::VIRTUAL_NMIS);

        assert!(word.virtual_nmis());
        assert!(word.contains(Pin::NMI_EXITING));
        assert!(!word.contains(Pin::NMI_EXITING.with(Pin::POSTED_INTR)));
        assert_eq!(word.without(Pin::NMI_EXITING), Pin::VIRTUAL_NMIS);
    }

    #[test]
    fn secondary_controls_need_to_be_activated() {
        let mut vmcs12 = Vmcs12 {
            secondary_vm_exec_control: Secondary::ENABLE_VMFUNC.into_raw(),
            vm_function_control: VMFUNC_EPTP_SWITCHING,
            ..Vmcs12::default()
        };
        assert_eq!(vmcs12.secondary(), Secondary::NONE);
        assert!(!vmcs12.eptp_switching());

        vmcs12.cpu_based_vm_exec_control = Primary::ACTIVATE_SECONDARY_CONTROLS.into_raw();
        assert_eq!(vmcs12.secondary(), Secondary::ENABLE_VMFUNC);
        assert!(vmcs12.eptp_switching());
    }
}
