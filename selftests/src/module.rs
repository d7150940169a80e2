// SPDX-License-Identifier: GPL-2.0

//! Kernel modules: inserting, removing, and what the kernel says is there.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::system::{delete_module, finit_module};

/// A line of `/proc/modules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Name with underscores.
    pub name: String,
    /// Bytes of its memory.
    pub size: u64,
    /// References to it.
    pub references: i32,
    /// `Live`, `Loading` or `Unloading`.
    pub state: String,
}

/// Inserts a module; the inner result is that of the system call.
pub fn insert(path: &Path, parameters: &str) -> Result<Result<(), Errno>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    Ok(finit_module(file, &CString::new(parameters)?, 0))
}

/// Inserts a module that has no reason to be refused.
pub fn load(path: &Path, parameters: &str) -> Result<()> {
    insert(path, parameters)?.with_context(|| format!("insmod {} {parameters}", path.display()))
}

/// Removes a module if nothing uses it, as rmmod does; does not wait.
pub fn remove(name: &str) -> Result<Result<(), Errno>> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits())?;
    Ok(delete_module(&CString::new(name)?, flags))
}

/// Removes a module that nothing should use.
pub fn unload(name: &str) -> Result<()> {
    remove(name)?.with_context(|| format!("rmmod {name}"))
}

/// Returns the modules that are loaded.
pub fn list() -> Result<Vec<Loaded>> {
    let text = fs::read_to_string("/proc/modules").context("reading /proc/modules")?;
    text.lines().map(parse).collect()
}

/// Returns the module with a name, if it is loaded.
pub fn find(name: &str) -> Result<Option<Loaded>> {
    Ok(list()?.into_iter().find(|module| module.name == name))
}

fn parse(line: &str) -> Result<Loaded> {
    let mut words = line.split_whitespace();
    let mut word = || words.next().with_context(|| format!("short line {line:?}"));
    let (name, size, references, _users, state) = (word()?, word()?, word()?, word()?, word()?);
    Ok(Loaded {
        name: name.to_owned(),
        size: size.parse()?,
        references: references.parse()?,
        state: state.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_modules_is_parsed() {
        let line = "kvm_amd 200704 1 nested_svm, Live 0xffffffffc0a00000 (O)";
        let module = parse(line).unwrap();
        assert_eq!((module.name.as_str(), module.size), ("kvm_amd", 200_704));
        assert_eq!((module.references, module.state.as_str()), (1, "Live"));
        assert!(parse("kvm 1").is_err());
    }
}
