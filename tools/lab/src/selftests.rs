// SPDX-License-Identifier: GPL-2.0

//! The KVM selftests of the kernel source, linked statically for any root file system.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use crate::cache::{Cache, Key, Lock, remove_all};
use crate::command;
use crate::host::clean;
use crate::kernel::Kernel;
use crate::kernel::build::Objects;
use crate::options::default_jobs;
use crate::step::{self, Step};

/// Where the selftests are in the kernel source.
const SOURCE: &str = "tools/testing/selftests/kvm";

/// The selftests that are built.
#[derive(Clone, Debug)]
pub struct Selftests {
    /// Directory with the programs as the source has them: `x86/*_test`, `*_test`.
    pub dir: PathBuf,
    /// Hash of everything that they are made of.
    pub key: Key,
}

/// Returns the selftests of a kernel's source; builds them where the cache has none.
///
/// The series leaves the selftests and the interface to user space alone: all variants of a
/// kernel have the same.
pub fn ensure(cache: &Cache, kernel: &Kernel) -> Result<Selftests> {
    let compiler = command::output(Command::new("gcc").args(["--version"]))?;
    let key = Key::builder("selftests")
        .add("source", &kernel.lock)
        .add("compiler", compiler.lines().next().unwrap_or_default())
        .finish();
    let dir = cache.entry("selftests", &key, |dir, lock| {
        step::run("build the KVM selftests", |step| {
            build(cache, &kernel.srctree, dir, lock, step)
        })
    })?;
    Ok(Selftests { dir, key })
}

fn build(cache: &Cache, srctree: &Path, dir: &Path, lock: &Lock, step: &Step) -> Result<()> {
    let work = dir.join(".work");
    let (headers, output) = (work.join("headers"), work.join("output"));
    fs::create_dir_all(&headers)?;
    fs::create_dir_all(&output)?;

    let mut install = clean("make");
    install
        .arg("-C")
        .arg(srctree)
        .arg(format!("O={}", headers.display()))
        .arg(format!(
            "INSTALL_HDR_PATH={}",
            headers.join("usr").display()
        ))
        .arg("headers_install");
    lock.share_with(&mut install)?;
    command::logged(&mut install, &cache.log("headers")?, |_| ())?;

    let mut make = clean("make");
    make.arg("-C")
        .arg(srctree.join(SOURCE))
        .arg(format!("-j{}", default_jobs()))
        .arg(format!("OUTPUT={}", output.display()))
        .arg(format!(
            "KHDR_INCLUDES=-isystem {}",
            headers.join("usr/include").display()
        ))
        .arg("LDFLAGS=-static -pthread -no-pie");
    lock.share_with(&mut make)?;
    let mut objects = Objects::default();
    command::logged(&mut make, &cache.log("selftests")?, |line| {
        objects.see(line, step);
    })?;

    let programs = install_programs(&output, dir)?;
    if programs == 0 {
        bail!("the build of {SOURCE} made no program");
    }
    install_scripts(&srctree.join(SOURCE), dir)?;
    remove_all(&work)
}

/// Copies the programs of a build, and leaves objects and libraries; returns their number.
fn install_programs(output: &Path, dir: &Path) -> Result<u32> {
    let mut count = 0;
    for entry in WalkDir::new(output) {
        let entry = entry?;
        if entry.file_type().is_file() && is_program(entry.path())? {
            install(entry.path(), &dir.join(entry.path().strip_prefix(output)?))?;
            count += 1;
        }
    }
    Ok(count)
}

fn install_scripts(source: &Path, dir: &Path) -> Result<()> {
    for entry in WalkDir::new(source) {
        let entry = entry?;
        if entry.path().extension().is_some_and(|ext| ext == "sh") {
            install(entry.path(), &dir.join(entry.path().strip_prefix(source)?))?;
        }
    }
    Ok(())
}

fn install(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file has a directory")?)?;
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

/// Returns whether a file is an ELF file that may be executed.
fn is_program(path: &Path) -> Result<bool> {
    let executable = fs::metadata(path)?.permissions().mode() & 0o111 != 0;
    if !executable || path.extension().is_some() {
        return Ok(false);
    }
    let mut magic = [0; 4];
    let read = fs::File::open(path)?.read(&mut magic)?;
    Ok(read == magic.len() && magic == *b"\x7fELF")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_objects_and_from_scripts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8], mode| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            is_program(&path).unwrap()
        };
        assert!(write("state_test", b"\x7fELF....", 0o755));
        assert!(!write("state_test.o", b"\x7fELF....", 0o755));
        assert!(!write("object", b"\x7fELF....", 0o644));
        assert!(!write("script", b"#!/bin/sh\n", 0o755));
        assert!(!write("empty", b"", 0o755));
    }
}
