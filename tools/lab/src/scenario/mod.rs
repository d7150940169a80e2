// SPDX-License-Identifier: GPL-2.0

//! What `lab run`, `lab shell` and `lab test` do.

pub mod bare;
pub mod benchmark;
pub mod fuzz;
pub mod guest;
pub mod harness;
pub mod jobs;
pub mod kept;
pub mod kselftest;
pub mod lifecycle;
pub mod nested;
pub mod report;
pub mod selftests;
pub mod shell;
pub mod suites;
pub mod tools;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::cache::Cache;
use crate::hypervisor::{Hypervisor, Kind};
use crate::image::level::Module;
use crate::kernel::{self, Kernel, Variant};
use crate::machine::accel::{self, Engine};
use crate::machine::{Programs, Target};
use crate::modules::{self, OurModules};
use crate::options::{Options, Paging, Vendor, Without, YesNo};
use crate::{archive, command, host};

pub use benchmark::{Benchmark, machines_named};
pub use fuzz::{Cases, fuzz};
pub use nested::run;
pub use shell::shell;
pub use suites::{Selection, test};

/// Whose code gives KVM at level 0 its nested virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    /// KVM's own C code.
    C,
    /// The modules of this project.
    Ours,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::C => "C (built into KVM)",
            Self::Ours => "our module",
        })
    }
}

/// The levels that a scenario boots below level 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// The last one.
    pub last: u8,
    /// How KVM in those before the last one gives memory to its guest.
    pub paging: Paging,
    /// What kvm-intel leaves unused.
    pub without: Without,
}

impl Levels {
    /// Returns those up to `last`, with all that KVM can use.
    pub fn up_to(last: u8) -> Self {
        Self {
            last,
            paging: Paging::Nested,
            without: Without::default(),
        }
    }

    /// Returns those that the options ask for, if the provider can serve them.
    pub fn asked_for(options: &Options, provider: Provider) -> Result<Self> {
        let levels = Self {
            last: options.levels,
            paging: options.paging()?,
            without: options.without()?,
        };
        let plain = levels.last == 2 && levels.paging == Paging::Nested && options.smp == 1;
        ensure!(
            options.l1 == Kind::Linux || plain && levels.without == Without::default(),
            "L1=debian and L1=xen are for LEVELS=2 and SMP=1, with all that KVM can use"
        );
        // Our module attaches to a KVM with nested paging only, and L1 would need it for L3.
        let served = (provider, levels.paging) != (Provider::Ours, Paging::Shadow);
        ensure!(
            served || levels.last <= 2,
            "LEVELS=3 with NPT=0 or EPT=0 is for PROVIDER=c: our module in L1 needs nested paging"
        );
        Ok(levels)
    }
}

/// What guests run that are Linux: the same as level 0, but without a kernel's checks of itself,
/// which cost more with each level.
#[derive(Clone, Debug)]
pub struct Guests {
    /// The kernel.
    pub kernel: Kernel,
    ours: Option<OurModules>,
    /// Level 0 runs something else.
    differ: bool,
}

impl Guests {
    /// Returns those below a level 0 with this kernel and these modules.
    fn below(
        cache: &Cache,
        options: &Options,
        kernel: &Kernel,
        ours: Option<&OurModules>,
    ) -> Result<Self> {
        if !kernel.debug {
            return Ok(Self {
                kernel: kernel.clone(),
                ours: ours.cloned(),
                differ: false,
            });
        }
        let options = Options {
            kernel_debug: YesNo::N,
            ..options.clone()
        };
        let kernel = kernel::ensure(cache, &options, kernel.variant)?;
        let ours = ours.map(|_| modules::ensure(cache, &kernel)).transpose()?;
        Ok(Self {
            kernel,
            ours,
            differ: true,
        })
    }

    /// Returns KVM's modules for a vendor.
    fn kvm(&self, vendor: Vendor) -> Result<Vec<Module>> {
        let modules = kvm(&self.kernel, vendor)?.into_iter();
        Ok(modules.map(|module| self.place(module)).collect())
    }

    /// Gives a module its place in the root.
    fn place(&self, module: Module) -> Module {
        if self.differ {
            module.of_guests()
        } else {
            module
        }
    }
}

/// Everything that scenarios need, ready to use.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Emulators and virtme-ng.
    pub programs: Programs,
    /// The kernel of level 0.
    pub kernel: Kernel,
    /// Our modules for it, if they are wanted.
    pub ours: Option<OurModules>,
    /// What guests run that are Linux.
    pub guests: Guests,
    /// What L1 is.
    pub l1: Hypervisor,
    /// Directory of the logs of machines.
    pub logs: PathBuf,
}

impl Bench {
    /// Prepares what a scenario needs; builds what the cache lacks.
    pub fn prepare(
        cache: &Cache,
        options: &Options,
        variant: Variant,
        provider: Provider,
    ) -> Result<Self> {
        let programs = Programs {
            tools: archive::toolroot(cache)?,
            virtme: host::virtme_ng(cache)?,
        };
        let kernel = kernel::ensure(cache, options, variant)?;
        let ours = match provider {
            Provider::C => None,
            Provider::Ours => Some(modules::ensure(cache, &kernel)?),
        };
        let guests = Guests::below(cache, options, &kernel, ours.as_ref())?;
        Ok(Self {
            programs,
            kernel,
            ours,
            guests,
            l1: Hypervisor::Linux,
            logs: cache.root().join("runs"),
        })
    }

    /// Returns the modules of level 0 in load order, with the parameters that the engine needs.
    pub fn modules(&self, target: &Target) -> Result<Vec<Module>> {
        let mut modules = kvm(&self.kernel, target.vendor)?;
        if let (Some(vendor), Engine::Bochs, Vendor::Intel) =
            (modules.last_mut(), target.engine, target.vendor)
        {
            // Bochs 3.0 fails each VM entry with APICv on its newer models.
            *vendor = vendor.clone().with("enable_apicv=0");
        }
        modules.extend(self.our_module(target.vendor));
        Ok(modules)
    }

    /// Returns the modules of level 0 for a chain of levels.
    pub fn modules_below(&self, target: &Target, levels: Levels) -> Result<Vec<Module>> {
        Ok(self
            .modules(target)?
            .into_iter()
            .map(|module| self.restricted(module, levels))
            .collect())
    }

    /// Returns our module for level 0, if it is wanted.
    pub fn our_module(&self, vendor: Vendor) -> Option<Module> {
        our_module(self.ours.as_ref(), vendor)
    }

    /// Returns our module for the guests whose guests are hypervisors, if it is wanted.
    pub fn our_guest_module(&self, vendor: Vendor, levels: Levels) -> Option<Module> {
        let module = our_module(self.guests.ours.as_ref(), vendor)?;
        Some(self.restricted(self.guests.place(module), levels))
    }

    /// Tells a module that knows of VMCS shadowing whether to use it. Without nested code of its
    /// own, kvm-intel does not.
    fn restricted(&self, module: Module, levels: Levels) -> Module {
        let name = module.path.file_name().and_then(|name| name.to_str());
        let knows = match name {
            Some("nested-vmx.ko") => true,
            Some("kvm-intel.ko") => self.kernel.variant != Variant::NoBuiltin,
            _ => false,
        };
        if knows && levels.without.shadow_vmcs {
            module.with("enable_shadow_vmcs=0")
        } else {
            module
        }
    }

    /// Returns KVM's modules for a guest that is a hypervisor.
    pub fn guest_kvm(&self, vendor: Vendor, levels: Levels) -> Result<Vec<Module>> {
        let mut modules = self.guests.kvm(vendor)?;
        if let Some(module) = modules.last_mut() {
            if levels.paging == Paging::Shadow {
                *module = module.clone().with(match vendor {
                    Vendor::Amd => "npt=0",
                    Vendor::Intel => "ept=0",
                });
            }
            if levels.without.unrestricted {
                *module = module.clone().with("unrestricted_guest=0");
            }
            *module = self.restricted(module.clone(), levels);
        }
        Ok(modules)
    }
}

/// Returns the modules of KVM in a kernel for a vendor.
fn kvm(kernel: &Kernel, vendor: Vendor) -> Result<Vec<Module>> {
    let names = match vendor {
        Vendor::Amd => ["irqbypass.ko", "kvm.ko", "kvm-amd.ko"],
        Vendor::Intel => ["irqbypass.ko", "kvm.ko", "kvm-intel.ko"],
    };
    names
        .iter()
        .map(|name| {
            let path = kernel.modules.iter().find(|path| path.ends_with(name));
            let path = path.with_context(|| format!("the kernel has no module {name}"))?;
            Ok(Module::new(path))
        })
        .collect()
}

/// Returns our module for a vendor, if it is wanted.
fn our_module(ours: Option<&OurModules>, vendor: Vendor) -> Option<Module> {
    let OurModules { svm, vmx, .. } = ours?;
    Some(Module::new(match vendor {
        Vendor::Amd => svm,
        Vendor::Intel => vmx,
    }))
}

/// Returns the machine that the options ask for.
pub fn target(options: &Options) -> Result<Target> {
    Ok(Target {
        vendor: options.vendor,
        engine: accel::choose(options.vendor, options.accel)?,
        smp: options.smp,
        memory: 2048,
    })
}

/// Returns the word for a vendor in names of files and in tables.
pub fn vendor_name(vendor: Vendor) -> &'static str {
    match vendor {
        Vendor::Amd => "amd",
        Vendor::Intel => "intel",
    }
}

/// Returns the first line that an emulator prints about its version.
fn version(bench: &Bench, engine: Engine) -> Result<String> {
    let (program, argument) = match engine {
        Engine::Bochs => ("bochs-bin", "--help"),
        Engine::Tcg | Engine::Icount | Engine::Kvm => ("qemu-system-x86_64", "--version"),
    };
    // Bochs ends with a status of its own after --help: the text is what counts.
    let mut command = bench.programs.tools.command(program);
    let (_, text) = command::verdict(command.arg(argument))?;
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| line.chars().any(|c| c.is_ascii_digit()));
    Ok(line.unwrap_or("version unknown").to_owned())
}
