// SPDX-License-Identifier: GPL-2.0

//! Intercepts: what L2 does that exits.

use super::ExitCode;

/// An intercept, by its bit in the vectors of intercepts.
///
/// The number is that of the exit code, so far as an exit code has an intercept of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Intercept(u8);

macro_rules! intercepts {
    ($($name:ident = $code:expr,)*) => {
        impl Intercept {
            $(
                #[doc = concat!("The intercept `", stringify!($name), "`.")]
                pub const $name: Self = match Self::of($code) {
                    Some(intercept) => intercept,
                    // Evaluated by the compiler only.
                    None => Self(0),
                };
            )*
        }

        #[cfg(test)]
        const NAMED: &[(Intercept, ExitCode)] = &[$( (Intercept::$name, $code), )*];
    };
}

intercepts! {
    CR8_WRITE = ExitCode::WRITE_CR8,
    INTR = ExitCode::INTR,
    NMI = ExitCode::NMI,
    SMI = ExitCode::SMI,
    INIT = ExitCode::INIT,
    VINTR = ExitCode::VINTR,
    CPUID = ExitCode::CPUID,
    PAUSE = ExitCode::PAUSE,
    IOIO = ExitCode::IOIO,
    MSR = ExitCode::MSR,
    SHUTDOWN = ExitCode::SHUTDOWN,
    VMRUN = ExitCode::VMRUN,
    VMLOAD = ExitCode::VMLOAD,
    VMSAVE = ExitCode::VMSAVE,
    SKINIT = ExitCode::SKINIT,
    RDTSCP = ExitCode::RDTSCP,
    XSETBV = ExitCode::XSETBV,
    RDPRU = ExitCode::RDPRU,
    INVPCID = ExitCode::INVPCID,
}

impl Intercept {
    /// Returns the intercept whose exit code is `code`, if there is one.
    #[inline]
    pub const fn of(code: ExitCode) -> Option<Self> {
        let code = code.into_raw();

        if code < Intercepts::BITS as u64 {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "it is less than the number of bits"
            )]
            Some(Self(code as u8))
        } else {
            None
        }
    }
}

/// The vectors of intercepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Intercepts([u32; 6]);

impl Intercepts {
    /// The number of intercepts that fit into the vectors.
    pub const BITS: u32 = 6 * 32;

    /// The index of the vector of exceptions, which has a bit for each.
    const EXCEPTIONS: usize = 2;

    /// Makes intercepts of the vectors of a VMCB.
    pub const fn from_words(words: [u32; 6]) -> Self {
        Self(words)
    }

    /// Returns the vectors for a VMCB.
    pub const fn words(self) -> [u32; 6] {
        self.0
    }

    const fn place(intercept: Intercept) -> (usize, u32) {
        (
            (intercept.0 >> 5) as usize,
            1u32.wrapping_shl((intercept.0 & 31) as u32),
        )
    }

    /// Returns whether `intercept` is set.
    #[inline]
    pub fn contains(&self, intercept: Intercept) -> bool {
        let (word, bit) = Self::place(intercept);

        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Sets `intercept`.
    #[inline]
    pub fn insert(&mut self, intercept: Intercept) {
        let (word, bit) = Self::place(intercept);

        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    /// Clears `intercept`.
    #[inline]
    pub fn remove(&mut self, intercept: Intercept) {
        let (word, bit) = Self::place(intercept);

        if let Some(word) = self.0.get_mut(word) {
            *word &= !bit;
        }
    }

    /// Returns whether the exception with `vector` is intercepted.
    #[inline]
    pub fn contains_exception(&self, vector: u8) -> bool {
        vector < 32
            && self
                .0
                .get(Self::EXCEPTIONS)
                .is_some_and(|word| word.wrapping_shr(u32::from(vector)) & 1 != 0)
    }

    /// Returns the intercepts that are set in one of the two.
    #[inline]
    pub fn union(self, other: Self) -> Self {
        let [a0, a1, a2, a3, a4, a5] = self.0;
        let [b0, b1, b2, b3, b4, b5] = other.0;

        Self([a0 | b0, a1 | b1, a2 | b2, a3 | b3, a4 | b4, a5 | b5])
    }
}

#[cfg(any(test, CONFIG_KUNIT))]
#[cfg_attr(CONFIG_KUNIT, kernel::macros::kunit_tests(nested_svm_intercept))]
mod tests {
    use super::*;

    #[test]
    fn each_bit_is_set_and_cleared_alone() {
        for bit in 0..Intercepts::BITS {
            let intercept =
                Intercept::of(ExitCode::from_raw(u64::from(bit))).unwrap_or(Intercept::CPUID);
            let mut intercepts = Intercepts::default();

            intercepts.insert(intercept);
            assert!(intercepts.contains(intercept));
            assert_eq!(
                intercepts
                    .words()
                    .iter()
                    .map(|word| word.count_ones())
                    .sum::<u32>(),
                1
            );
            intercepts.remove(intercept);
            assert_eq!(intercepts, Intercepts::default());
        }
    }

    #[test]
    fn exit_codes_beyond_the_vectors_have_no_intercept() {
        assert_eq!(Intercept::of(ExitCode::from_raw(192)), None);
        assert_eq!(Intercept::of(ExitCode::NPF), None);
        assert_eq!(Intercept::of(ExitCode::from_raw(u64::MAX)), None);
    }

    #[test]
    fn exceptions_are_bits_of_their_vector() {
        let intercepts = Intercepts::from_words([0, 0, 1 << 14, 0, 0, 0]);

        for vector in 0..=255 {
            assert_eq!(intercepts.contains_exception(vector), vector == 14);
        }
        assert!(Intercept::of(ExitCode::EXCP_PF).is_some_and(|pf| intercepts.contains(pf)));
    }

    #[cfg(test)]
    #[test]
    fn named_intercepts_are_those_of_their_exit_codes() {
        for &(intercept, code) in NAMED {
            assert_eq!(u64::from(intercept.0), code.into_raw());
        }
    }
}
