// SPDX-License-Identifier: GPL-2.0

//! Hypervisors of Debian that can be L1, unmodified: its kernel with KVM, and Xen.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::archive::{Archive, Package};
use crate::cache::{Cache, Key, remove_all};
use crate::image::level::Module;
use crate::options::Vendor;
use crate::{command, step};

/// What L1 is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The kernel of this project, with its KVM.
    #[default]
    Linux,
    /// Debian's own kernel, with its KVM.
    Debian,
    /// Debian's Xen, whose first domain is L2.
    Xen,
}

/// What L1 needs of Debian.
#[derive(Clone, Debug, Default)]
pub enum Hypervisor {
    /// Nothing.
    #[default]
    Linux,
    /// A kernel.
    Debian(Kernel),
    /// Xen, and a kernel for its first domain.
    Xen(PathBuf, Kernel),
}

/// Debian's kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    dir: PathBuf,
    /// Its version.
    pub version: String,
}

/// The metapackage of the kernel.
const METAPACKAGE: &str = "linux-image-amd64";

/// Beginning of the names of kernels.
const IMAGE: &str = "linux-image-";

/// The package of Xen.
const XEN: &str = "xen-hypervisor-4.20-amd64";

/// Modules of the kernel, below its directory of modules.
const MODULES: [&str; 5] = [
    "virt/lib/irqbypass",
    "drivers/crypto/ccp/ccp",
    "arch/x86/kvm/kvm",
    "arch/x86/kvm/kvm-amd",
    "arch/x86/kvm/kvm-intel",
];

impl Hypervisor {
    /// Downloads what is needed, where the cache has it not.
    pub fn ensure(cache: &Cache, kind: Kind) -> Result<Self> {
        if kind == Kind::Linux {
            return Ok(Self::Linux);
        }
        let archive = Archive::stable(cache)?;
        let kernel = kernel(cache, &archive)?;
        Ok(match kind {
            Kind::Xen => Self::Xen(xen(cache, &archive)?, kernel),
            _ => Self::Debian(kernel),
        })
    }

    /// Returns what the hypervisor is, for a report.
    pub fn name(&self) -> String {
        match self {
            Self::Linux => "the kernel of this project".to_owned(),
            Self::Debian(kernel) => format!("Debian's Linux {}, unmodified", kernel.version),
            Self::Xen(_, kernel) => {
                format!("Debian's Xen, its domain 0 is Linux {}", kernel.version)
            }
        }
    }
}

impl Kernel {
    /// Returns the kernel itself.
    pub fn bzimage(&self) -> PathBuf {
        self.dir.join("bzImage")
    }

    /// Returns its modules of KVM, in the order in which they are inserted.
    pub fn kvm(&self, vendor: Vendor) -> Vec<Module> {
        let names: &[&str] = match vendor {
            Vendor::Amd => &["irqbypass", "ccp", "kvm", "kvm-amd"],
            Vendor::Intel => &["irqbypass", "kvm", "kvm-intel"],
        };
        let module = |name: &&str| Module::new(&self.dir.join(file_of(name)));
        names.iter().map(module).collect()
    }
}

/// Returns the name of a module's file: not that of level 0's module.
fn file_of(module: &str) -> String {
    format!("debian-{module}.ko")
}

/// Unpacks a package into a directory, which is removed afterwards.
fn with_package<T>(
    archive: &Archive,
    package: &Package,
    dir: &Path,
    then: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    step::run(&format!("download {}", package.name), |step| {
        let file = archive.download(package, dir, step)?;
        let root = dir.join("root");
        command::output(Command::new("dpkg").arg("-x").arg(&file).arg(&root))?;
        let result = then(&root)?;
        fs::remove_file(file)?;
        remove_all(&root)?;
        Ok(result)
    })
}

fn kernel(cache: &Cache, archive: &Archive) -> Result<Kernel> {
    // The oldest one is that of the release itself, and not that of the backports.
    let names = archive.depends(&archive.oldest(METAPACKAGE)?)?;
    let name = names.iter().find(|name| name.starts_with(IMAGE));
    let package = archive.newest(name.context("Debian's kernel depends on no image")?)?;
    let version = package.name.trim_start_matches(IMAGE).to_owned();
    let version = version.trim_end_matches("-amd64").to_owned();
    let key = Key::builder("Debian's kernel")
        .add("package", format!("{}={}", package.name, package.version))
        .finish();
    let dir = cache.entry("debian-kernel", &key, |dir, _| {
        with_package(archive, &package, dir, |root| {
            let release = package.name.trim_start_matches(IMAGE);
            let image = root.join(format!("boot/vmlinuz-{release}"));
            fs::copy(image, dir.join("bzImage"))?;
            let modules = root.join(format!("usr/lib/modules/{release}/kernel"));
            for path in MODULES {
                let name = path.rsplit('/').next().unwrap_or(path);
                let packed = modules.join(format!("{path}.ko.xz"));
                unpack("xz", &packed, &dir.join(file_of(name)))?;
            }
            Ok(())
        })
    })?;
    Ok(Kernel { dir, version })
}

fn xen(cache: &Cache, archive: &Archive) -> Result<PathBuf> {
    let package = archive.newest(XEN)?;
    let key = Key::builder("Debian's Xen")
        .add("package", format!("{}={}", package.name, package.version))
        .finish();
    let dir = cache.entry("debian-xen", &key, |dir, _| {
        with_package(archive, &package, dir, |root| {
            let name = XEN.trim_start_matches("xen-hypervisor-");
            unpack(
                "gzip",
                &root.join(format!("boot/xen-{name}.gz")),
                &dir.join("xen"),
            )
        })
    })?;
    Ok(dir.join("xen"))
}

/// Unpacks a file.
fn unpack(program: &str, from: &Path, to: &Path) -> Result<()> {
    let status = Command::new(program)
        .arg("-dc")
        .stdin(File::open(from).with_context(|| format!("opening {}", from.display()))?)
        .stdout(Stdio::from(File::create(to)?))
        .status()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        status.success(),
        "{program} of {}: {status}",
        from.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_debian_are_told_from_those_of_level_0() {
        let kernel = Kernel {
            dir: "/d".into(),
            version: "6.12".into(),
        };
        let modules = kernel.kvm(Vendor::Amd);
        let paths: Vec<_> = modules.iter().map(|module| module.path.clone()).collect();
        assert_eq!(
            paths.first(),
            Some(&PathBuf::from("/d/debian-irqbypass.ko"))
        );
        assert_eq!(paths.last(), Some(&PathBuf::from("/d/debian-kvm-amd.ko")));
    }
}
