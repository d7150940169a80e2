// SPDX-License-Identifier: GPL-2.0

//! The shadow against a flat model, with whatever L1, L2 and L0 can do, in any order: at random,
//! and as a fuzzer says, which looks for what leads to new code.
//!
//! The model knows, for each processor, each translation that was valid at any time since that
//! processor flushed: these are what the architecture allows it to use. After each step all that
//! is in the shadow, and all that is in the TLBs, must be among them, and must be what L0 has.

mod machine;
mod steps;
#[cfg(test)]
mod strategy;

use super::*;
use crate::mmu::npt::{Npt, Paging};
use crate::mmu::testing::NPT;
use arbitrary::Unstructured;
use machine::Machine;
use steps::Step;

fn run(format: Format, steps: &[Step]) {
    let mut machine = Machine::new(format);
    for step in steps {
        machine.take(step);
        machine.check();
        machine.check_tables();
    }
    machine.check_tables();
}

/// Does what bytes say.
///
/// # Panics
///
/// When something is other than the architecture allows.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    if let Some((format, steps)) = decode(bytes) {
        run(format, &steps);
    }
}

/// Steps that an input of a fuzzer has, at most.
const STEPS: usize = 200;

/// Reads an input of a fuzzer: the first byte is a format, the others are steps.
fn decode(bytes: &[u8]) -> Option<(Format, Vec<Step>)> {
    let mut bytes = Unstructured::new(bytes);
    let format = bytes.choose(FORMATS).ok()?;
    let next = || (!bytes.is_empty()).then(|| bytes.arbitrary().ok())?;
    Some((*format, std::iter::from_fn(next).take(STEPS).collect()))
}

macro_rules! models {
    ($( $(#[$meta:meta])* $name:ident: $format:expr; )*) => {
        const FORMATS: &[Format] = &[$($format),*];

        #[cfg(test)]
        proptest::proptest! {
            #![proptest_config(crate::mmu::testing::properties(192))]
            $(
                $(#[$meta])*
                #[test]
                fn $name(steps in proptest::collection::vec(strategy::step(), 1..120)) {
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

/// What a fuzzer has found worth keeping is done again.
#[test]
fn the_corpus_shows_what_the_architecture_allows() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/shadow");
    let mut files: Vec<_> = std::fs::read_dir(corpus)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();

    let mut missing = FORMATS.to_vec();
    for file in files {
        println!("{}", file.display());
        let (format, steps) = decode(&std::fs::read(&file).unwrap()).unwrap();
        missing.retain(|any| *any != format);
        run(format, &steps);
    }
    assert_eq!(missing, []);
}

/// A processor has cached a translation whose entry is gone: its write goes where the new one leads.
#[test]
fn a_write_of_which_no_flag_is_known_goes_by_the_tables() {
    use steps::Edit;

    const NONE: Edit = Edit {
        table: 0,
        index: 0,
        target: 0,
        bits: 0,
        shape: 0,
    };
    let access = |cpu, address, kind| Step::Access {
        cpu,
        address,
        kind,
        edit: NONE,
    };
    let edit = Edit {
        table: 1,
        index: 119,
        bits: 217,
        ..NONE
    };
    let steps = [
        access(0, 180, 1),
        Step::Log { tracking: 2 },
        access(1, 18, 2),
        Step::Edit(edit),
        Step::DirtyPass,
        Step::Prefault {
            cpu: 0,
            address: 156,
        },
        access(1, 42, 1),
        Step::DirtyPass,
    ];
    let npt = Npt {
        paging: Paging::Legacy {
            page_size_extension: true,
        },
        no_execute: false,
        ..NPT
    };
    run(Format::Npt(npt), &steps);
}
