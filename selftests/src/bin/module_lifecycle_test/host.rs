// SPDX-License-Identifier: GPL-2.0

//! The machine under test: its modules, loaded and removed as a test asks for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use argh::FromArgValue;
use rustix::io::Errno;
use rustix::thread::{sched_setaffinity, CpuSet};
use selftests::kmsg::Log;
use selftests::offer::Offer;
use selftests::{expect, module, vm};

/// Where our modules keep the counters of VMs.
pub const DEBUGFS: &str = "/sys/kernel/debug/nested";

/// Whose virtualization extension the processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromArgValue)]
pub enum Vendor {
    /// SVM.
    Amd,
    /// VMX.
    Intel,
}

/// What the kernel's KVM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromArgValue)]
pub enum Variant {
    /// Without the provider patches.
    Stock,
    /// With them, and with nested code of its own.
    Builtin,
    /// With them only.
    #[argh(name = "nobuiltin")]
    NoBuiltin,
}

/// The names of a vendor's modules and parameters.
pub struct Names {
    /// KVM's module, as messages and `/proc/modules` call it.
    pub kvm: &'static str,
    /// The same as a file name without its ending, and as our module calls it.
    pub kvm_file: &'static str,
    /// Our module.
    pub ours: &'static str,
    /// The same as a file name without its ending.
    pub ours_file: &'static str,
    /// The parameter for paging by hardware.
    pub paging: &'static str,
    /// The word for the extension.
    pub extension: &'static str,
}

impl Vendor {
    /// Returns the names.
    pub fn names(self) -> &'static Names {
        match self {
            Self::Amd => &Names {
                kvm: "kvm_amd",
                kvm_file: "kvm-amd",
                ours: "nested_svm",
                ours_file: "nested-svm",
                paging: "npt",
                extension: "SVM",
            },
            Self::Intel => &Names {
                kvm: "kvm_intel",
                kvm_file: "kvm-intel",
                ours: "nested_vmx",
                ours_file: "nested-vmx",
                paging: "ept",
                extension: "VMX",
            },
        }
    }

    /// Returns the other one.
    pub fn other(self) -> Self {
        match self {
            Self::Amd => Self::Intel,
            Self::Intel => Self::Amd,
        }
    }
}

/// The machine under test.
pub struct Host {
    /// Of the processor.
    pub vendor: Vendor,
    /// Of the kernel.
    pub variant: Variant,
    /// Directory of the modules.
    pub dir: PathBuf,
    /// What the vendor module always gets.
    pub parameters: String,
}

impl Host {
    /// Returns the names of the vendor's modules.
    pub fn names(&self) -> &'static Names {
        self.vendor.names()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.ko"))
    }

    /// Loads what the vendor module needs.
    pub fn load_common(&self) -> Result<()> {
        module::load(&self.file("irqbypass"), "")?;
        module::load(&self.file("kvm"), "")
    }

    /// Loads KVM, with a further parameter for the vendor module.
    pub fn load_kvm(&self, parameter: &str) -> Result<()> {
        self.load_common()?;
        let parameters = format!("{} {parameter}", self.parameters);
        module::load(&self.file(self.names().kvm_file), parameters.trim())
    }

    /// Inserts our module; the inner result is that of the system call.
    pub fn insert_ours(&self) -> Result<Result<(), Errno>> {
        self.insert(self.vendor)
    }

    /// Inserts our module for a vendor.
    pub fn insert(&self, vendor: Vendor) -> Result<Result<(), Errno>> {
        module::insert(&self.file(vendor.names().ours_file), "")
    }

    /// Inserts our module, which must work.
    pub fn attach(&self) -> Result<()> {
        expect(
            format_args!("insmod {}", self.names().ours_file),
            self.insert_ours()?,
            Ok(()),
        )
    }

    /// Removes our module, which must work and leave nothing.
    pub fn detach(&self) -> Result<()> {
        let name = self.names().ours;
        expect(format_args!("rmmod {name}"), module::remove(name)?, Ok(()))?;
        self.nothing_of(self.vendor)
    }

    /// Inserts our module for `vendor`, which must be refused: with `errno`, with one line in the
    /// log that contains `cause`, and with nothing left behind.
    pub fn refused(&self, vendor: Vendor, errno: Errno, cause: &str) -> Result<()> {
        let name = vendor.names().ours;
        let before = module::list()?;
        let mut log = Log::end()?;
        expect(
            format_args!("insmod {name}"),
            self.insert(vendor)?,
            Err(errno),
        )?;
        let lines = log.lines_of(name)?;
        let [line] = lines.as_slice() else {
            anyhow::bail!("log of {name}: expected one line about {cause:?}, saw {lines:?}");
        };
        ensure!(
            line.contains(cause),
            "log of {name}: expected {cause:?} in it, saw {line:?}"
        );
        self.nothing_of(vendor)?;
        // With the references that they have.
        expect("/proc/modules", module::list()?, before)
    }

    /// Inserts our module for `vendor`, which the loader must refuse, as KVM is not loaded: modprobe
    /// would have loaded it. The log has a line for each symbol that is missing.
    pub fn refused_by_loader(&self, vendor: Vendor) -> Result<()> {
        let name = vendor.names().ours;
        let before = module::list()?;
        let mut log = Log::end()?;
        expect(
            format_args!("insmod {name}"),
            self.insert(vendor)?,
            Err(Errno::NOENT),
        )?;
        let lines = log.lines_of(name)?;
        ensure!(
            !lines.is_empty() && lines.iter().all(|line| line.starts_with("Unknown symbol")),
            "log of {name}: expected lines about symbols, saw {lines:?}"
        );
        self.nothing_of(vendor)?;
        expect("/proc/modules", module::list()?, before)
    }

    /// Checks that nothing of our module is there.
    pub fn nothing_of(&self, vendor: Vendor) -> Result<()> {
        let name = vendor.names().ours;
        expect(
            format_args!("{name} in /proc/modules"),
            module::find(name)?,
            None,
        )?;
        for path in [format!("/sys/module/{name}"), DEBUGFS.to_owned()] {
            ensure!(
                !Path::new(&path).exists(),
                "{path}: expected to be gone, saw that it exists"
            );
        }
        Ok(())
    }

    /// Removes all modules: the state in which a test begins.
    pub fn restore(&self) -> Result<()> {
        pin(0)?;
        let both = [Vendor::Amd.names(), Vendor::Intel.names()];
        let ours = both.iter().map(|names| names.ours);
        let vendors = both.iter().map(|names| names.kvm);
        for name in ours.chain(vendors).chain(["kvm", "irqbypass"]) {
            if module::find(name)?.is_some() {
                module::unload(name)?;
            }
        }
        self.nothing_of(Vendor::Amd)?;
        self.nothing_of(Vendor::Intel)
    }

    /// Checks that a VM can be created and runs.
    pub fn vm_runs(&self) -> Result<()> {
        vm::Vm::new(&vm::open()?)?.work()
    }

    /// Returns what KVM offers now.
    pub fn offer(&self) -> Result<Offer> {
        Offer::read(&vm::open()?)
    }

    /// Checks that KVM offers the vendor's extension, completely.
    pub fn offers_nesting(&self, offer: &Offer) -> Result<()> {
        expect(
            "size of KVM_CAP_NESTED_STATE > 0",
            offer.nested_state() > 0,
            true,
        )?;
        match self.vendor {
            Vendor::Amd => {
                expect("SVM in CPUID", offer.svm(), true)?;
                let features = offer.svm_features();
                ensure!(
                    features & 1 == 1,
                    "SVM features: expected NPT, saw {features:#x}"
                );
            }
            Vendor::Intel => {
                expect("VMX in CPUID", offer.vmx(), true)?;
                let msrs = offer.vmx_msrs();
                // IA32_VMX_BASIC and the one about EPT, which every processor has that we support.
                ensure!(
                    msrs.contains(&0x480) && msrs.contains(&0x48c),
                    "feature MSRs of VMX: expected at least 0x480 and 0x48c, saw {msrs:x?}"
                );
            }
        }
        Ok(())
    }

    /// Checks that KVM offers nothing of the vendor's extension.
    pub fn offers_no_nesting(&self, offer: &Offer) -> Result<()> {
        expect("size of KVM_CAP_NESTED_STATE", offer.nested_state(), 0)?;
        expect(
            "SVM and VMX in CPUID",
            (offer.svm(), offer.vmx()),
            (false, false),
        )?;
        expect("SVM features", offer.svm_features(), 0)?;
        expect("feature MSRs of VMX", offer.vmx_msrs(), Vec::new())
    }
}

/// Binds the calling thread to a CPU: CPUID contains the number of the CPU that reads it.
pub fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("binding a thread to CPU {cpu}"))
}

/// Returns the VMs that our module counts, by the names of their directories.
pub fn counted_vms() -> Result<Vec<String>> {
    let entries = match fs::read_dir(DEBUGFS) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(DEBUGFS),
    };
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}
