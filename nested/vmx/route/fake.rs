// SPDX-License-Identifier: GPL-2.0

//! Exits that did not happen, for tests.

use super::{ExitFacts, InterruptionInformation, Wish};
use crate::{
    address::Gpa,
    memory::{GuestMemory, Inaccessible},
};

/// Facts as a test wants them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) qualification: u64,
    pub(super) interruption: u32,
    pub(super) instruction_information: u32,
    /// The number of a register and its value. All others are 0.
    pub(super) register: (u8, u64),
    pub(super) wish: Option<Wish>,
}

impl Facts {
    pub(super) const NONE: Self = Self {
        qualification: 0,
        interruption: 0,
        instruction_information: 0,
        register: (0, 0),
        wish: None,
    };
}

impl ExitFacts for Facts {
    fn qualification(&self) -> u64 {
        self.qualification
    }

    fn interruption(&self) -> InterruptionInformation {
        InterruptionInformation::from_raw(self.interruption)
    }

    fn instruction_information(&self) -> u32 {
        self.instruction_information
    }

    fn register(&self, number: u8) -> u64 {
        let (known, value) = self.register;

        if number == known {
            value
        } else {
            0
        }
    }

    fn l0_wants(&self, wish: Wish) -> bool {
        self.wish == Some(wish)
    }
}

/// Memory with a byte at one address, zeros around it, and nothing that begins above 64 KiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) address: u64,
    pub(super) byte: u8,
}

impl Memory {
    pub(super) const EMPTY: Self = Self {
        address: 0,
        byte: 0,
    };
}

impl GuestMemory for Memory {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Inaccessible> {
        let first = gpa.into_raw();

        if first >= 0x1_0000 {
            return Err(Inaccessible);
        }
        for (byte, address) in bytes.iter_mut().zip(first..) {
            *byte = if address == self.address {
                self.byte
            } else {
                0
            };
        }
        Ok(())
    }

    fn write(&self, _gpa: Gpa, _bytes: &[u8]) -> Result<(), Inaccessible> {
        Err(Inaccessible)
    }
}
