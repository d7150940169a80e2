// SPDX-License-Identifier: GPL-2.0

//! Declarations of numbers and bits that a guest or a processor supplies.

/// Makes a C string of a literal that ends with a null.
pub(crate) const fn c_str(literal: &'static str) -> &'static core::ffi::CStr {
    match core::ffi::CStr::from_bytes_with_nul(literal.as_bytes()) {
        Ok(text) => text,
        // Evaluated by the compiler only.
        Err(_) => c"?",
    }
}

/// Declares a number whose named values are not the only ones that occur.
///
/// Expands to a newtype with one constant a named value, and a way to get the name back. A number
/// that comes from a guest is never a Rust `enum`, for which another value would be undefined.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident: $repr:ty {
            $( $(#[$vmeta:meta])* $variant:ident = $value:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(transparent)]
        $vis struct $name($repr);

        impl $name {
            $( $(#[$vmeta])* $vis const $variant: Self = Self($value); )*

            /// The named values, in the order of their declaration.
            $vis const NAMED: &'static [Self] = &[$( Self::$variant, )*];

            /// Wraps a number, named or not.
            $vis const fn from_raw(raw: $repr) -> Self {
                Self(raw)
            }

            /// Returns the number.
            $vis const fn into_raw(self) -> $repr {
                self.0
            }

            /// Returns the name, for those that have one.
            $vis const fn name(self) -> Option<&'static str> {
                match self {
                    $( Self::$variant => Some(stringify!($variant)), )*
                    _ => None,
                }
            }
        }
    };
}

/// Declares features that are enumerated by single bits of a processor's words.
///
/// Expands to a set that lists the names of its members when it is displayed.
macro_rules! feature_set {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident from $words:ty {
            $( $(#[$vmeta:meta])* $text:literal: $word:ident[$bit:literal], )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis struct $name($words);

        impl $name {
            /// Collects the features that `words` enumerate.
            $vis const fn new(words: $words) -> Self {
                Self(words)
            }

            /// Calls `visit` with each feature's name and whether it is a member of the set.
            fn for_each(&self, mut visit: impl FnMut(&'static str, bool)) {
                $( visit($text, (self.0.$word >> $bit) & 1 != 0); )*
            }
        }

        /// Writes the names of the members, separated by spaces, or a dash if there is none.
        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                let mut separator = "";
                let mut result = Ok(());

                self.for_each(|name, member| {
                    if member && result.is_ok() {
                        result = f.write_str(separator).and_then(|()| f.write_str(name));
                        separator = " ";
                    }
                });
                result?;

                if separator.is_empty() {
                    f.write_str("-")?;
                }
                Ok(())
            }
        }
    };
}

/// Declares a group of consistency checks.
///
/// Expands to straight-line code, and to an enum that names each check for tracing and tests. The
/// expression of a check is true if what it looks at violates the rule. The enum is public even if
/// the function is not, since a failure that contains it is.
macro_rules! consistency_checks {
    (
        $(#[$meta:meta])*
        $vis:vis fn $func:ident($($arg:ident: $ty:ty),+ $(,)?) -> Result<(), $id:ident> {
            $( $(#[$vmeta:meta])* $variant:ident: $violated:expr, )*
        }
    ) => {
        #[doc = concat!("A check made by `", stringify!($func), "()`.")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $id {
            $( $(#[$vmeta])* $variant, )*
        }

        impl $id {
            /// Every check of the group, in the order in which they are made.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];

            /// Returns the name of the check.
            pub const fn name(self) -> &'static core::ffi::CStr {
                match self {
                    $( Self::$variant => const { $crate::macros::c_str(concat!(
                        stringify!($id), "::", stringify!($variant), "\0",
                    )) }, )*
                }
            }
        }

        $(#[$meta])*
        $vis fn $func($($arg: $ty),+) -> Result<(), $id> {
            $(
                if $violated {
                    return Err($id::$variant);
                }
            )*
            Ok(())
        }
    };
}
