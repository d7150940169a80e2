// SPDX-License-Identifier: GPL-2.0

//! What a level's root filesystem contains, and what it hands on to the next level.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::archive::Toolroot;
use crate::machine::accel::Engine;

use super::rootfs::Rootfs;

/// QEMU's program for the guests: the machine that it makes has no PCI and a minimal firmware, and
/// the program needs 16 MB, where the one for a PC needs 70 MB.
const QEMU: &str = "qemu-system-x86_64-microvm";

/// QEMU's word for that machine.
const MACHINE: &str = "microvm";

/// Its firmware, for a Linux kernel that is given on the command line.
const FIRMWARE: [&str; 2] = ["seabios/bios-microvm.bin", "qemu/linuxboot_dma.bin"];

/// The program that the last level runs.
const WORK: &str = "/bin/workload";

/// Memory of the last level in MiB: kernel, busybox and the 40 MB that the workload touches.
const LAST_MEMORY: u32 = 160;

/// Least memory of a hypervisor in MiB.
///
/// Linux switches transparent huge pages off below 512 MiB. Without them each page of a guest is
/// a fault of its own, at every level: with TCG the second level takes three times as long.
const LEAST_FOR_HUGE_PAGES: u32 = 704;

/// A kernel module and its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The file on the host.
    pub path: PathBuf,
    /// Where the file is in the root of a level.
    directory: &'static str,
    /// Words for insmod.
    pub parameters: String,
}

/// Where modules are in the root of a level.
const MODULES: &str = "/lab/mod";

impl Module {
    /// Describes a module without parameters.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            directory: MODULES,
            parameters: String::new(),
        }
    }

    /// Adds a parameter.
    #[must_use]
    pub fn with(mut self, parameter: &str) -> Self {
        if !self.parameters.is_empty() {
            self.parameters.push(' ');
        }
        self.parameters.push_str(parameter);
        self
    }

    /// Makes it another one than that of level 0 with the same name.
    #[must_use]
    pub fn of_guests(self) -> Self {
        Self {
            directory: "/lab/mod/guests",
            ..self
        }
    }

    /// Returns the path in the guest.
    fn guest(&self) -> Result<String> {
        let name = self.path.file_name().and_then(|name| name.to_str());
        let name = name.context("a module without a name")?;
        Ok(format!("{}/{name}", self.directory))
    }
}

/// Which levels a list of modules is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Level 0.
    Host,
    /// The guest hypervisors.
    Guest,
    /// Those guest hypervisors whose guest is a hypervisor, too; they have those of `Guest` first.
    Nested,
}

/// What the last level does.
#[derive(Clone, Debug)]
pub enum Work {
    /// The workload program at this path of the host.
    Workload(PathBuf),
    /// A script.
    Script(&'static str),
}

/// A chain of levels below level 0.
#[derive(Clone, Debug)]
pub struct Nest {
    /// Number of the level that runs the workload.
    pub last: u8,
    /// The kernel of all levels.
    pub kernel: PathBuf,
    /// What the last level does.
    pub work: Work,
    /// Modules of the levels between level 0 and the last one.
    pub modules: Vec<Module>,
    /// Further modules of those among them whose guest is a hypervisor, too.
    pub nested: Vec<Module>,
    /// Kernel command line of the levels.
    pub cmdline: String,
    /// Seed of the workload.
    pub seed: u64,
    /// Virtual CPUs of each level.
    pub smp: u32,
    /// What emulates level 0.
    pub engine: Engine,
    /// Further files of each level.
    pub files: Rootfs,
    /// What the levels between level 0 and the last one do, unless it is to boot the next one.
    pub middle: Option<&'static str>,
}

/// How much slower than elsewhere time passes in the levels above L2.
///
/// Under an emulator an exit of L3 takes several milliseconds, and each tick of its kernel makes
/// some: ticks would leave no time for anything else. Its kernel is told that the TSC is faster
/// than it is, and so all its timers are slower.
fn dilation(engine: Engine) -> u32 {
    match engine {
        Engine::Tcg | Engine::Icount | Engine::Bochs => 20,
        Engine::Kvm => 1,
    }
}

/// Returns QEMU's words for the processor of a guest.
///
/// The emulator that `Icount` is delivers an interrupt twice that KVM injects, if a timer of its own
/// ends before the guest's next exit: see errata.rst. Without this feature of KVM the handler of an
/// interrupt has an exit almost at once.
fn processor(engine: Engine) -> &'static str {
    match engine {
        Engine::Icount => "host,-kvm-pv-eoi",
        Engine::Tcg | Engine::Bochs | Engine::Kvm => "host",
    }
}

/// Returns the memory of `level` in MiB.
///
/// A level holds its own files (about 80 MB), those it packs for the next one, and the memory of
/// the next one.
pub fn memory(level: u8, last: u8) -> u32 {
    if level >= last {
        return LAST_MEMORY;
    }
    let packed = if level + 1 == last { 40 } else { 120 };
    (memory(level + 1, last) + 160 + packed).max(LEAST_FOR_HUGE_PAGES)
}

/// Returns what each level has: busybox, our scripts.
pub fn base(tools: &Toolroot) -> Result<Rootfs> {
    let mut root = Rootfs::default();
    root.program("/bin/busybox", tools, "busybox")?
        .link("/bin/sh", "busybox")
        .script("/init", include_str!("guest/init.sh"))
        .text("/lab/lib.sh", include_str!("guest/lib.sh"))
        .text("/lab/level.sh", include_str!("guest/level.sh"));
    for dir in ["/proc", "/sys", "/dev", "/tmp", "/sbin", "/run", "/root"] {
        root.directory(dir);
    }
    Ok(root)
}

/// Returns QEMU with the firmware that it needs for a Linux guest.
pub fn qemu(tools: &Toolroot) -> Result<Rootfs> {
    let mut root = Rootfs::default();
    root.program(&format!("/usr/bin/{QEMU}"), tools, QEMU)?;
    for path in FIRMWARE {
        let host = tools.dir.join("usr/share").join(path);
        let name = path.rsplit('/').next().unwrap_or(path);
        root.file(&format!("/usr/share/qemu/{name}"), &host);
    }
    Ok(root)
}

/// Returns QEMU for a PC, with the firmware that it needs for Xen.
pub fn qemu_for_pc(tools: &Toolroot) -> Result<Rootfs> {
    let mut root = Rootfs::default();
    let program = "qemu-system-x86_64";
    root.program(&format!("/usr/bin/{program}"), tools, program)?;
    for path in [
        "seabios/bios-256k.bin",
        "qemu/multiboot_dma.bin",
        "qemu/kvmvapic.bin",
    ] {
        let host = tools.dir.join("usr/share").join(path);
        let name = path.rsplit('/').next().unwrap_or(path);
        root.file(&format!("/usr/share/qemu/{name}"), &host);
    }
    Ok(root)
}

/// Adds the modules to a root filesystem, with the list that `load_modules` reads.
pub fn add_modules(root: &mut Rootfs, place: Place, modules: &[Module]) -> Result<()> {
    let mut list = String::new();
    for module in modules {
        let guest = module.guest()?;
        // Writing to a String cannot fail.
        let _ = writeln!(list, "{guest} {}", module.parameters);
        root.file(&guest, &module.path);
    }
    let path = match place {
        Place::Host => "/lab/modules.host",
        Place::Guest => "/lab/modules.guest",
        Place::Nested => "/lab/modules.nested",
    };
    root.text(path, &list);
    Ok(())
}

/// Adds what level 0 needs to boot the chain of levels.
pub fn add_nest(root: &mut Rootfs, tools: &Toolroot, nest: &Nest) -> Result<()> {
    if nest.last == 0 {
        bail!("level 0 is no guest");
    }
    let mut last = base(tools)?;
    match &nest.work {
        Work::Workload(program) => last.file(WORK, program),
        Work::Script(text) => last.script(WORK, &format!("#!/bin/sh\n{text}")),
    };
    last.text("/lab/env", &environment(nest))
        .extend(&nest.files);
    let mut next = last.clone();
    next.text("/lab/middle", nest.middle.unwrap_or("nest\n"));
    next.extend(&qemu(tools)?)
        .file("/lab/bzImage", &nest.kernel);
    add_modules(&mut next, Place::Guest, &nest.modules)?;
    add_modules(&mut next, Place::Nested, &nest.nested)?;
    let lists = [("/lab/last.list", &last), ("/lab/next.list", &next)];
    let mut names = Rootfs::default();
    for (path, _) in &lists {
        // Each list must name both lists, so that the level after the next one has them, too.
        names.text(path, "");
    }
    let texts: Vec<(&str, String)> = lists
        .iter()
        .map(|(path, files)| {
            let mut files = (*files).clone();
            if *path == "/lab/next.list" {
                files.extend(&names);
            }
            let lines: Vec<String> = files
                .paths()
                .iter()
                .map(|path| {
                    path.display()
                        .to_string()
                        .trim_start_matches('/')
                        .to_owned()
                })
                .collect();
            (*path, lines.join("\n") + "\n")
        })
        .collect();
    for (path, text) in texts {
        next.text(path, &text);
    }
    root.extend(&next);
    Ok(())
}

/// Returns the variables that the scripts read.
fn environment(nest: &Nest) -> String {
    let mut text = format!(
        "LAST={}\nSEED={}\nSMP={}\nDILATION={}\nQEMU={QEMU}\nMACHINE={MACHINE}\n\
         PROCESSOR={}\nCMDLINE='{}'\n",
        nest.last,
        nest.seed,
        nest.smp,
        dilation(nest.engine),
        processor(nest.engine),
        nest.cmdline
    );
    for level in 1..=nest.last {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "MEMORY_{level}={}", memory(level, nest.last));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nest(last: u8) -> Nest {
        Nest {
            last,
            kernel: "/k/bzImage".into(),
            work: Work::Workload("/w/workload".into()),
            modules: vec![Module::new(Path::new("/m/kvm.ko"))],
            nested: Vec::new(),
            cmdline: "console=ttyS0".into(),
            seed: 7,
            smp: 1,
            engine: Engine::Tcg,
            files: Rootfs::default(),
            middle: None,
        }
    }

    #[test]
    fn each_level_has_room_for_the_next_one() {
        for last in 1..6 {
            for level in 0..last {
                assert!(memory(level, last) > memory(level + 1, last) + 150);
            }
        }
    }

    #[test]
    fn the_environment_names_the_memory_of_every_guest() {
        let text = environment(&nest(3));
        assert!(text.contains("LAST=3\n") && text.contains("CMDLINE='console=ttyS0'\n"));
        for level in 1..=3 {
            assert!(text.contains(&format!("MEMORY_{level}=")));
        }
    }

    #[test]
    fn only_guests_of_the_machine_that_counts_have_no_quick_end_of_interrupts() {
        let text = |engine| environment(&Nest { engine, ..nest(2) });
        assert!(text(Engine::Icount).contains("\nPROCESSOR=host,-kvm-pv-eoi\n"));
        for engine in [Engine::Tcg, Engine::Bochs, Engine::Kvm] {
            assert!(text(engine).contains("\nPROCESSOR=host\n"));
        }
    }

    #[test]
    fn parameters_are_separated_by_spaces() {
        let module = Module::new(Path::new("/m/kvm-intel.ko"))
            .with("nested=1")
            .with("enable_apicv=0");
        assert_eq!(module.parameters, "nested=1 enable_apicv=0");
        let mut root = Rootfs::default();
        add_modules(&mut root, Place::Host, &[module]).unwrap();
        assert!(
            root.paths()
                .contains(&PathBuf::from("/lab/mod/kvm-intel.ko"))
        );
    }
}
