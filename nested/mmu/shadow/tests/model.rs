// SPDX-License-Identifier: GPL-2.0

//! The shadow against a flat model, with whatever L1, L2 and L0 can do, in any order.
//!
//! The model knows, for each processor, each translation that was valid at any time since that
//! processor flushed: these are what the architecture allows it to use. After each step all that
//! is in the shadow, and all that is in the TLBs, must be among them, and must be what L0 has.

mod machine;
mod steps;

use super::*;
use crate::mmu::npt::{Npt, Paging};
use crate::mmu::testing::NPT;
use machine::Machine;
use proptest::prelude::*;
use steps::{step, Step};

fn run(format: Format, steps: &[Step]) {
    let mut machine = Machine::new(format);
    for step in steps {
        machine.take(step);
        machine.check();
        machine.check_tables();
    }
    machine.check_tables();
}

macro_rules! models {
    ($( $(#[$meta:meta])* $name:ident: $format:expr; )*) => {
        proptest! {
            #![proptest_config(ProptestConfig {
                cases: 192 * crate::mmu::testing::scale(),
                failure_persistence: None,
                ..ProptestConfig::default()
            })]
            $(
                $(#[$meta])*
                #[test]
                fn $name(steps in prop::collection::vec(step(), 1..120)) {
                    run($format, &steps);
                }
            )*
        }
    };
}

models! {
    ept_with_flags_shows_what_the_architecture_allows: Format::Ept(EPT);
    ept_without_flags_shows_what_the_architecture_allows: Format::Ept(crate::mmu::ept::Ept {
        accessed_dirty: false,
        ..EPT
    });
    ept_with_mode_based_execution_shows_what_the_architecture_allows:
        Format::Ept(crate::mmu::ept::Ept {
            mode_based: true,
            execute_only: false,
            ..EPT
        });
    nested_paging_in_long_mode_shows_what_the_architecture_allows: Format::Npt(NPT);
    nested_paging_with_pae_shows_what_the_architecture_allows: Format::Npt(Npt {
        paging: Paging::Pae,
        ..NPT
    });
    nested_paging_with_32_bits_shows_what_the_architecture_allows: Format::Npt(Npt {
        paging: Paging::Legacy { page_size_extension: true },
        no_execute: false,
        ..NPT
    });
}
