// SPDX-License-Identifier: GPL-2.0

//! The profile that a module has no runtime to write: made from the module's file, which says what
//! is counted, and from the counters, which a machine has printed.

use anyhow::{Context, Result, ensure};
use goblin::elf::Elf;
use goblin::elf::reloc::R_X86_64_PC64;

/// The section with the counters, and those that describe them.
pub const COUNTERS: &str = "__llvm_prf_cnts";
const FUNCTIONS: &str = "__llvm_prf_data";
const NAMES: &str = "__llvm_prf_names";

/// How a profile begins, as LLVM writes it on a processor with 64 bits.
const MAGIC: u64 = u64::from_be_bytes(*b"\xfflprofr\x81");

/// The version of this form of a profile, that of LLVM 19 and later. Other ones refuse it by name.
const VERSION: u64 = 10;

/// The last kind of values that functions could record, of which the compiler uses none.
const LAST_KIND_OF_VALUES: u64 = 2;

/// Bytes of the description of a function.
const FUNCTION: usize = 64;

/// Bytes of a counter.
const COUNTER: usize = 8;

/// Returns the counters that a machine has printed.
pub fn counters(text: &str) -> Result<Vec<u64>> {
    let number = |word: &str| {
        word.parse()
            .with_context(|| format!("{word} is no counter"))
    };
    text.split_whitespace().map(number).collect()
}

/// Returns a profile, in the form in which LLVM's runtime writes it, of a module's file and of its
/// counters.
pub fn encode(module: &[u8], counters: &[u64]) -> Result<Vec<u8>> {
    let elf = Elf::parse(module)?;
    let room = section(&elf, module, COUNTERS)?.len() / COUNTER;
    ensure!(
        counters.len() == room,
        "{} counters where the module has {room}",
        counters.len()
    );
    let mut functions = section(&elf, module, FUNCTIONS)?.to_vec();
    relocate(&mut functions, &relocations(&elf)?)?;
    Ok(profile(&functions, counters, section(&elf, module, NAMES)?))
}

/// Puts the parts of a profile together.
fn profile(functions: &[u8], counters: &[u64], names: &[u8]) -> Vec<u8> {
    let header = [
        MAGIC,
        VERSION,
        0, // bytes that identify the program
        (functions.len() / FUNCTION) as u64,
        0, // padding before the counters
        counters.len() as u64,
        0, // padding behind them
        0, // bytes of bitmaps
        0, // padding behind these
        names.len() as u64,
        0, // from the first function to the first counter: both are at address 0
        0, // from there to the bitmaps
        0, // the address of the names
        0, // virtual tables
        0, // bytes of their names
        LAST_KIND_OF_VALUES,
    ];
    let words =
        |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|it| it.to_le_bytes()).collect() };
    let mut profile = [&words(&header), functions, &words(counters), names].concat();
    profile.resize(profile.len().next_multiple_of(size_of::<u64>()), 0);
    profile
}

/// Returns the places in the descriptions of functions that are to be relocated, and what they
/// become if all sections are at address 0: how far it is from a function to its counters.
fn relocations(elf: &Elf<'_>) -> Result<Vec<(u64, u64)>> {
    let index = index(elf, FUNCTIONS)?;
    let tables = elf.shdr_relocs.iter();
    let tables = tables.filter(|(table, _)| elf.section_headers[*table].sh_info as usize == index);
    let relocated = tables.flat_map(|(_, table)| table.iter()).map(|entry| {
        let symbol = elf.syms.get(entry.r_sym).context("no such symbol")?;
        ensure!(
            entry.r_type == R_X86_64_PC64,
            "a relocation of type {} in {FUNCTIONS}",
            entry.r_type
        );
        let target = symbol.st_value;
        let target = target.wrapping_add_signed(entry.r_addend.unwrap_or_default());
        Ok((entry.r_offset, target.wrapping_sub(entry.r_offset)))
    });
    relocated.collect()
}

/// Writes values to their places.
fn relocate(bytes: &mut [u8], relocations: &[(u64, u64)]) -> Result<()> {
    for (offset, value) in relocations {
        let start = usize::try_from(*offset)?;
        bytes
            .get_mut(start..start + size_of::<u64>())
            .with_context(|| format!("{FUNCTIONS} has no place {offset}"))?
            .copy_from_slice(&value.to_le_bytes());
    }
    Ok(())
}

fn index(elf: &Elf<'_>, name: &str) -> Result<usize> {
    let mut headers = elf.section_headers.iter();
    headers
        .position(|header| elf.shdr_strtab.get_at(header.sh_name) == Some(name))
        .with_context(|| format!("the module has no section {name}"))
}

fn section<'a>(elf: &Elf<'_>, module: &'a [u8], name: &str) -> Result<&'a [u8]> {
    let range = elf.section_headers[index(elf, name)?].file_range();
    let bytes = range.and_then(|range| module.get(range));
    bytes.with_context(|| format!("section {name} has no bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_numbers_on_any_number_of_lines() {
        let max = u64::MAX.to_string();
        assert_eq!(counters(" 0 7\n 12\n").unwrap(), [0, 7, 12]);
        assert_eq!(counters(&max).unwrap(), [u64::MAX]);
        assert!(counters("1 2x").is_err());
    }

    #[test]
    fn functions_are_relocated_in_their_place_only() {
        let mut bytes = [0xaa; 24];
        relocate(&mut bytes, &[(8, 1), (16, 0_u64.wrapping_sub(2))]).unwrap();
        assert_eq!(bytes[..9], [170, 170, 170, 170, 170, 170, 170, 170, 1]);
        assert_eq!(bytes[15..18], [0, 0xfe, 0xff]);
        assert!(relocate(&mut bytes, &[(17, 1)]).is_err());
    }

    #[test]
    fn the_parts_of_a_profile_follow_the_counts_of_them() {
        let profile = profile(&[1; 2 * FUNCTION], &[5, 6, 7], b"names");
        assert_eq!(profile[..8], *b"\x81rforpl\xff");
        let word = |index: usize| {
            let bytes = profile[8 * index..][..8].try_into().unwrap();
            u64::from_le_bytes(bytes)
        };
        assert_eq!((word(3), word(5), word(9)), (2, 3, 5));
        let counters = 16 + 2 * FUNCTION / 8;
        assert_eq!([0, 1, 2].map(|it| word(counters + it)), [5, 6, 7]);
        assert_eq!(profile[8 * (counters + 3)..], *b"names\0\0\0");
    }
}
