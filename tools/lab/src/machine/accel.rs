// SPDX-License-Identifier: GPL-2.0

//! What executes level 0, chosen by what its CPU would offer and not by the presence of a file.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::{Result, bail};

use crate::options::{Accel, Vendor};

/// What executes level 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// QEMU's emulator, driven by virtme-ng; it has SVM only.
    Tcg,
    /// The same with a clock that counts instructions; no `ACCEL` names it: it is for measuring.
    Icount,
    /// Bochs, which emulates VMX and SVM.
    Bochs,
    /// The virtualization extension of this machine, driven by virtme-ng.
    Kvm,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcg => "QEMU TCG (virtme-ng)",
            Self::Icount => "QEMU TCG with -icount",
            Self::Bochs => "Bochs",
            Self::Kvm => "KVM (virtme-ng)",
        })
    }
}

impl Engine {
    /// Returns the word for names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Icount => "icount",
            Self::Bochs => "bochs",
            Self::Kvm => "kvm",
        }
    }
}

/// Returns the engine for a vendor and a wish.
pub fn choose(vendor: Vendor, accel: Accel) -> Result<Engine> {
    match (accel, vendor) {
        (Accel::Kvm, _) => match why_not_kvm(vendor, Path::new("/")) {
            None => Ok(Engine::Kvm),
            Some(reason) => bail!("ACCEL=kvm cannot be used here: {reason}"),
        },
        (Accel::Auto, _) if why_not_kvm(vendor, Path::new("/")).is_none() => Ok(Engine::Kvm),
        (Accel::Bochs, _) | (Accel::Auto, Vendor::Intel) => Ok(Engine::Bochs),
        (Accel::Tcg | Accel::Auto, Vendor::Amd) => Ok(Engine::Tcg),
        (Accel::Tcg, Vendor::Intel) => bail!("ACCEL=tcg: QEMU does not emulate VMX; use bochs"),
    }
}

/// Returns why a guest of this machine's KVM would have no virtualization extension of `vendor`.
///
/// `root` is the root of the filesystem, for tests.
pub fn why_not_kvm(vendor: Vendor, root: &Path) -> Option<String> {
    let (flag, module) = match vendor {
        Vendor::Amd => ("svm", "kvm_amd"),
        Vendor::Intel => ("vmx", "kvm_intel"),
    };
    let cpuinfo = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    if !flags.split_whitespace().any(|word| word == flag) {
        return Some(format!("the CPU has no {flag}"));
    }
    let parameter = root
        .join("sys/module")
        .join(module)
        .join("parameters/nested");
    let nested = fs::read_to_string(&parameter).unwrap_or_default();
    if !matches!(nested.trim(), "1" | "Y") {
        return Some(format!("{module} is not loaded with nested=1"));
    }
    let device = root.join("dev/kvm");
    match OpenOptions::new().read(true).write(true).open(&device) {
        Ok(_) => None,
        Err(error) => Some(format!("/dev/kvm: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(flags: &str, nested: &str, device: bool) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "proc/cpuinfo",
            &format!("processor : 0\nflags\t: fpu {flags} sse\n"),
        );
        write("sys/module/kvm_amd/parameters/nested", nested);
        if device {
            write("dev/kvm", "");
        }
        dir
    }

    #[test]
    fn the_device_alone_is_not_enough() {
        let dir = machine("", "1", true);
        assert_eq!(
            why_not_kvm(Vendor::Amd, dir.path()).unwrap(),
            "the CPU has no svm"
        );
    }

    #[test]
    fn nested_must_be_on() {
        let dir = machine("svm", "0\n", true);
        assert!(
            why_not_kvm(Vendor::Amd, dir.path())
                .unwrap()
                .contains("nested=1")
        );
    }

    #[test]
    fn all_three_together_are_enough_for_that_vendor_only() {
        let dir = machine("svm", "1\n", true);
        assert_eq!(why_not_kvm(Vendor::Amd, dir.path()), None);
        assert!(why_not_kvm(Vendor::Intel, dir.path()).is_some());
        let dir = machine("svm", "Y\n", false);
        assert!(
            why_not_kvm(Vendor::Amd, dir.path())
                .unwrap()
                .contains("/dev/kvm")
        );
    }
}
