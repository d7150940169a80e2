// SPDX-License-Identifier: GPL-2.0

//! What the user asked for, shared by all subcommands.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::hypervisor::Kind;

/// Whose virtualization extension the machine at level 0 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Vendor {
    /// SVM and nested paging, emulated by QEMU.
    Amd,
    /// VMX and EPT, emulated by Bochs.
    Intel,
}

/// What runs the machine at level 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM if a guest's CPU would have the extension, else the emulator of the vendor.
    Auto,
    /// QEMU's emulator, which has SVM only.
    Tcg,
    /// Bochs, which emulates both vendors.
    Bochs,
    /// The virtualization extension of the machine that runs `lab`.
    Kvm,
}

/// A Kconfig boolean as it is typed on make's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum YesNo {
    /// The option is set.
    Y,
    /// The option is not set.
    N,
}

/// A module parameter as it is typed on make's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// The feature is used.
    #[value(name = "1")]
    On,
    /// The feature is not used.
    #[value(name = "0")]
    Off,
}

/// How KVM in a guest gives memory to its own guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// By NPT or EPT.
    Nested,
    /// By page tables that shadow those of its guest.
    Shadow,
}

/// What kvm-intel leaves unused although the processor has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    /// VMCS shadowing, at all levels.
    pub shadow_vmcs: bool,
    /// Unrestricted guests, in the guests.
    pub unrestricted: bool,
}

/// Options that every subcommand takes; make passes them as environment variables.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Vendor of the virtualization extension at level 0
    #[arg(long, env = "VENDOR", value_enum, default_value = "amd", global = true)]
    pub vendor: Vendor,

    /// What runs level 0: an emulator, or the machine's own KVM
    #[arg(long, env = "ACCEL", value_enum, default_value = "auto", global = true)]
    pub accel: Accel,

    /// A Linux 7.3.y source tree to build instead of Debian's (it is copied, never modified)
    #[arg(long, env = "KSRC", value_name = "DIR", global = true)]
    pub ksrc: Option<PathBuf>,

    /// The last level to boot: 2 for an L2, 1 for a guest that has none
    #[arg(long, env = "LEVELS", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=3), global = true)]
    pub levels: u8,

    /// What level 1 is: this project's kernel, Debian's, or Xen
    #[arg(long, env = "L1", value_enum, default_value = "linux", global = true)]
    pub l1: Kind,

    /// Virtual CPUs of every level
    #[arg(long, env = "SMP", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8), global = true)]
    pub smp: u32,

    /// Parameter npt of kvm-amd in the guests: 0 makes them use shadow paging
    #[arg(long, env = "NPT", value_enum, default_value = "1", global = true)]
    pub npt: Switch,

    /// Parameter ept of kvm-intel in the guests: 0 makes them use shadow paging
    #[arg(long, env = "EPT", value_enum, default_value = "1", global = true)]
    pub ept: Switch,

    /// Parameter enable_shadow_vmcs of kvm-intel at all levels, and of our module: 0 makes each
    /// VMREAD and VMWRITE of a guest hypervisor exit
    #[arg(
        long,
        env = "SHADOW_VMCS",
        value_enum,
        default_value = "1",
        global = true
    )]
    pub shadow_vmcs: Switch,

    /// Parameter unrestricted_guest of kvm-intel in the guests: 0 makes them emulate real mode
    #[arg(
        long,
        env = "UNRESTRICTED",
        value_enum,
        default_value = "1",
        global = true
    )]
    pub unrestricted: Switch,

    /// Whether the kernel keeps KVM's own nested code as the default provider
    #[arg(
        long,
        env = "CONFIG_KVM_NESTED_BUILTIN",
        value_enum,
        default_value = "y",
        global = true
    )]
    pub builtin: YesNo,

    /// Whether the kernel checks itself: KASAN, lockdep, RCU; the machines are several times slower
    #[arg(
        long,
        env = "KERNEL_DEBUG",
        value_enum,
        default_value = "n",
        global = true
    )]
    pub kernel_debug: YesNo,

    /// Directory of the patches to apply [default: patches/ of the checkout]
    #[arg(long, env = "LAB_PATCHES", value_name = "DIR", global = true)]
    pub patches: Option<PathBuf>,

    /// Parallel jobs of each build [default: the number of processors]
    #[arg(short, long, env = "LAB_JOBS", global = true)]
    pub jobs: Option<usize>,
}

impl Options {
    /// Returns the directory of the patch series.
    pub fn patches_dir(&self) -> Result<PathBuf> {
        match &self.patches {
            Some(dir) => Ok(dir.clone()),
            None => Ok(checkout()?.join("patches")),
        }
    }

    /// Returns the user's kernel source; make passes an unset variable as an empty string.
    pub fn ksrc(&self) -> Option<&Path> {
        self.ksrc.as_deref().filter(|dir| *dir != Path::new(""))
    }

    /// Returns how KVM in the guests gives memory to its own guests.
    pub fn paging(&self) -> Result<Paging> {
        match (self.vendor, self.npt, self.ept) {
            (Vendor::Intel, Switch::Off, _) => bail!("NPT=0 is for VENDOR=amd; intel has EPT=0"),
            (Vendor::Amd, _, Switch::Off) => bail!("EPT=0 is for VENDOR=intel; amd has NPT=0"),
            (Vendor::Amd, Switch::Off, _) | (Vendor::Intel, _, Switch::Off) => Ok(Paging::Shadow),
            (_, Switch::On, Switch::On) => Ok(Paging::Nested),
        }
    }

    /// Returns what kvm-intel is told to leave unused.
    pub fn without(&self) -> Result<Without> {
        let without = Without {
            shadow_vmcs: self.shadow_vmcs == Switch::Off,
            unrestricted: self.unrestricted == Switch::Off,
        };
        match self.vendor {
            Vendor::Amd if without != Without::default() => {
                bail!("SHADOW_VMCS=0 and UNRESTRICTED=0 are for VENDOR=intel")
            }
            _ => Ok(without),
        }
    }

    /// Returns the number of jobs that `make -j` gets.
    pub fn jobs(&self) -> usize {
        self.jobs.unwrap_or_else(default_jobs)
    }
}

/// Returns the number of processors.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Finds the checkout: the directory above the current one that has `tools/lab/Cargo.toml`.
pub fn checkout() -> Result<PathBuf> {
    let here = std::env::current_dir().context("the current directory")?;
    checkout_above(&here)
}

fn checkout_above(start: &Path) -> Result<PathBuf> {
    for dir in start.ancestors() {
        if dir.join("tools/lab/Cargo.toml").is_file() {
            return Ok(fs::canonicalize(dir)?);
        }
    }
    bail!(
        "{} is not inside a checkout (no tools/lab/Cargo.toml above it)",
        start.display()
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn options(words: &[&str]) -> Options {
        Line::parse_from([&["lab"], words].concat()).options
    }

    #[test]
    fn shadow_paging_is_asked_for_by_the_vendors_own_parameter() {
        let paging = |words: &[&str]| options(words).paging().ok();
        assert_eq!(paging(&["--vendor=amd"]), Some(Paging::Nested));
        assert_eq!(paging(&["--vendor=amd", "--npt=0"]), Some(Paging::Shadow));
        assert_eq!(paging(&["--vendor=intel", "--ept=0"]), Some(Paging::Shadow));
        assert_eq!(paging(&["--vendor=amd", "--ept=0"]), None);
        assert_eq!(paging(&["--vendor=intel", "--npt=0"]), None);
    }

    #[test]
    fn features_of_intel_are_left_unused_for_intel_only() {
        let without = |words: &[&str]| options(words).without().ok();
        assert_eq!(without(&["--vendor=amd"]), Some(Without::default()));
        assert_eq!(without(&["--vendor=amd", "--unrestricted=0"]), None);
        assert_eq!(without(&["--vendor=amd", "--shadow-vmcs=0"]), None);
        assert_eq!(
            without(&["--vendor=intel", "--shadow-vmcs=0"]),
            Some(Without {
                shadow_vmcs: true,
                unrestricted: false,
            })
        );
    }

    #[test]
    fn the_last_level_is_an_l2_unless_another_one_is_asked_for() {
        assert_eq!(options(&[]).levels, 2);
        assert_eq!(options(&["--levels=3"]).levels, 3);
        assert!(Line::try_parse_from(["lab", "--levels=0"]).is_err());
    }

    #[test]
    fn the_checkout_is_found_from_a_directory_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("tools/lab/src");
        fs::create_dir_all(&below).unwrap();
        fs::write(dir.path().join("tools/lab/Cargo.toml"), "").unwrap();
        assert_eq!(
            checkout_above(&below).unwrap(),
            dir.path().canonicalize().unwrap()
        );
    }

    #[test]
    fn a_directory_outside_a_checkout_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(checkout_above(dir.path()).is_err());
    }
}
