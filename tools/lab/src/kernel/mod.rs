// SPDX-License-Identifier: GPL-2.0

//! The kernel: source, patches, configuration, build.

pub mod build;
pub mod config;
pub mod patches;
pub mod source;

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{Cache, Key};
use crate::host::Toolchain;
use crate::options::{Options, YesNo};

/// Which kernel is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Without the series: what upstream's KVM does.
    Stock,
    /// With the series, and KVM's own nested code as the default provider.
    Builtin,
    /// With the series, without KVM's own nested code.
    NoBuiltin,
}

impl Variant {
    /// Returns the patched variant that the options ask for.
    pub fn asked_for(options: &Options) -> Self {
        match options.builtin {
            YesNo::Y => Self::Builtin,
            YesNo::N => Self::NoBuiltin,
        }
    }

    /// Returns the name by which directories and messages call the variant.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Builtin => "builtin",
            Self::NoBuiltin => "nobuiltin",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kernel that is built.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The boot image.
    pub bzimage: PathBuf,
    /// irqbypass.ko, kvm.ko, kvm-intel.ko, kvm-amd.ko, in load order.
    pub modules: Vec<PathBuf>,
    /// Build output, for modules that are built against this kernel.
    pub objtree: PathBuf,
    /// Source that the build output refers to.
    pub srctree: PathBuf,
    /// The release, as `uname -r` gives it.
    pub version: String,
    /// Whether KVM has nested code of its own.
    pub builtin: bool,
    /// Whether it checks itself, which takes time.
    pub debug: bool,
    /// Which kernel this is.
    pub variant: Variant,
    /// Hash of everything that it is made of.
    pub key: Key,
    /// Name of the lock of the source tree, which builds against it take.
    pub lock: String,
}

/// How much longer a kernel takes that checks itself.
const SLOWDOWN_OF_CHECKS: u32 = 5;

impl Kernel {
    /// Returns how many times the usual time things may take with this kernel.
    pub fn slowdown(&self) -> u32 {
        if self.debug { SLOWDOWN_OF_CHECKS } else { 1 }
    }
}

/// Returns the kernel of a variant; builds what the cache lacks.
pub fn ensure(cache: &Cache, options: &Options, variant: Variant) -> Result<Kernel> {
    let toolchain = Toolchain::ensure(cache)?;
    let source = source::ensure(cache, options.ksrc())?;
    let series = match variant {
        Variant::Stock => patches::Series::default(),
        Variant::Builtin | Variant::NoBuiltin => patches::Series::read(&options.patches_dir()?)?,
    };
    let debug = options.kernel_debug == YesNo::Y;
    let build = build::Build::new(cache, &toolchain, &source, &series, options.jobs(), debug)?;
    build.ensure(variant)
}
