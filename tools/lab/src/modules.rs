// SPDX-License-Identifier: GPL-2.0

//! Our own modules, built from the checkout against a kernel of the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::cache::{Cache, Key, Lock};
use crate::command;
use crate::host::Toolchain;
use crate::kernel::build::Objects;
use crate::kernel::{Kernel, Variant};
use crate::options::{checkout, default_jobs};
use crate::step;

/// The modules that are built.
#[derive(Clone, Debug)]
pub struct OurModules {
    /// nested-vmx.ko, for kvm-intel.
    pub vmx: PathBuf,
    /// nested-svm.ko, for kvm-amd.
    pub svm: PathBuf,
}

/// Builds the modules for a kernel; kbuild decides what is out of date.
pub fn ensure(cache: &Cache, kernel: &Kernel) -> Result<OurModules> {
    let dir = build_dir(&checkout()?, kernel);
    let checks = if kernel.debug {
        ", with its checks"
    } else {
        ""
    };
    let what = format!("for the {} kernel{checks}", kernel.variant);
    ensure_in(cache, kernel, &dir, &what, &[])
}

/// Builds modules for a kernel in a directory, with further arguments of make; `what` says which.
pub fn ensure_in(
    cache: &Cache,
    kernel: &Kernel,
    dir: &Path,
    what: &str,
    arguments: &[&str],
) -> Result<OurModules> {
    if kernel.variant == Variant::Stock {
        bail!("the modules need a kernel with the series: this one is unpatched");
    }
    let checkout = checkout()?;
    let toolchain = Toolchain::ensure(cache)?;
    let guard = lock(cache, &checkout, kernel)?;
    step::run(&format!("build the modules {what}"), |step| {
        let mut make = make(&toolchain, kernel, &checkout, dir, &guard)?;
        make.args(arguments);
        make.arg(format!("-j{}", default_jobs())).arg("modules");
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let log = cache.log(&format!("modules-{name}"))?;
        let mut objects = Objects::default();
        command::logged(&mut make, &log, |line| objects.see(line, step))
    })?;
    let modules = OurModules {
        vmx: dir.join("nested-vmx.ko"),
        svm: dir.join("nested-svm.ko"),
    };
    for module in [&modules.vmx, &modules.svm] {
        if !module.is_file() {
            bail!("the build made no {}", module.display());
        }
    }
    Ok(modules)
}

/// Returns the directory that modules for a kernel are built in.
pub fn build_dir(checkout: &Path, kernel: &Kernel) -> PathBuf {
    let of_checks = if kernel.debug { "-debug" } else { "" };
    let name = format!("{}{of_checks}", kernel.variant.name());
    checkout.join("build").join(name)
}

/// The locks that a build against a kernel's output needs.
pub struct Guard {
    source: Lock,
    output: Lock,
}

/// Takes the locks of the kernel's tree and of the checkout's output, in this order.
pub fn lock(cache: &Cache, checkout: &Path, kernel: &Kernel) -> Result<Guard> {
    let key = Key::builder("checkout")
        .add("path", checkout.as_os_str().as_encoded_bytes())
        .finish();
    Ok(Guard {
        source: cache.lock(&kernel.lock)?,
        output: cache.lock(&format!("modules-{key}"))?,
    })
}

/// Returns a make of the checkout's Kbuild with its output in a directory.
pub fn make(
    toolchain: &Toolchain,
    kernel: &Kernel,
    checkout: &Path,
    dir: &Path,
    guard: &Guard,
) -> Result<Command> {
    std::fs::create_dir_all(dir)?;
    let mut make = toolchain.make(&kernel.objtree);
    make.arg(format!("M={}", checkout.display()))
        .arg(format!("MO={}", dir.display()));
    Lock::share_all([&guard.source, &guard.output], &mut make)?;
    Ok(make)
}
