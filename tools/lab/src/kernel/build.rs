// SPDX-License-Identifier: GPL-2.0

//! The builds of the kernel's variants.
//!
//! All variants share one source tree. The unpatched kernel is built first and, once its stamp
//! is there, never again; the others start as copies of a finished build, so that make rebuilds
//! only what the series changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use walkdir::WalkDir;

use crate::cache::{Cache, Key, Lock, remove_all, write_atomic};
use crate::command;
use crate::host::Toolchain;
use crate::kernel::config::Fragment;
use crate::kernel::patches::Series;
use crate::kernel::source::Source;
use crate::kernel::{Kernel, Variant};
use crate::options::checkout;
use crate::step::{self, Step};

/// The modules of KVM in load order.
const MODULES: [&str; 4] = [
    "virt/lib/irqbypass.ko",
    "arch/x86/kvm/kvm.ko",
    "arch/x86/kvm/kvm-intel.ko",
    "arch/x86/kvm/kvm-amd.ko",
];

const BZIMAGE: &str = "arch/x86/boot/bzImage";

/// Everything that determines the kernels.
pub struct Build<'a> {
    cache: &'a Cache,
    toolchain: &'a Toolchain,
    source: &'a Source,
    series: &'a Series,
    fragment: Fragment,
    jobs: usize,
    /// Holds an output directory and a stamp for each variant.
    dir: PathBuf,
    stock_key: Key,
    /// The kernel checks itself, which takes time.
    debug: bool,
}

impl<'a> Build<'a> {
    /// Determines the place of the builds; builds nothing yet.
    pub fn new(
        cache: &'a Cache,
        toolchain: &'a Toolchain,
        source: &'a Source,
        series: &'a Series,
        jobs: usize,
        debug: bool,
    ) -> Result<Self> {
        let fragment = Fragment::read(&checkout()?, debug)?;
        let stock_key = Key::builder("kernel")
            .add("source", source.key.as_str())
            .add("toolchain", toolchain.identity())
            .add("configuration", fragment.text(Variant::Stock))
            .finish();
        Ok(Self {
            dir: cache.work("kernel", &stock_key)?,
            cache,
            toolchain,
            source,
            series,
            fragment,
            jobs,
            stock_key,
            debug,
        })
    }

    /// Returns the kernel of a variant, built if need be.
    pub fn ensure(&self, variant: Variant) -> Result<Kernel> {
        let lock = self.cache.lock(&self.source.lock_name())?;
        if !self.is_built(Variant::Stock) {
            Series::default().apply(self.source)?;
            self.build(Variant::Stock, &lock)?;
        }
        if variant != Variant::Stock {
            // Also for a build that is up to date: modules are built against this tree.
            let applied = self.series.apply(self.source)?;
            for note in &applied.notes {
                step::note(note);
            }
            if !self.is_built(variant) {
                self.build(variant, &lock)?;
            }
        }
        self.kernel(variant)
    }

    fn objtree(&self, variant: Variant) -> PathBuf {
        self.dir.join(variant.name())
    }

    /// Returns the file whose content says what the output directory was completely built of.
    fn stamp(&self, variant: Variant) -> PathBuf {
        self.dir.join(format!("{variant}.stamp"))
    }

    fn key(&self, variant: Variant) -> Key {
        match variant {
            Variant::Stock => self.stock_key.clone(),
            Variant::Builtin | Variant::NoBuiltin => Key::builder("patched kernel")
                .add("stock", self.stock_key.as_str())
                .add("series", self.series.key().as_str())
                .add("variant", variant.name())
                .finish(),
        }
    }

    fn is_built(&self, variant: Variant) -> bool {
        let stamp = fs::read_to_string(self.stamp(variant));
        stamp.is_ok_and(|stamp| stamp == self.key(variant).as_str())
    }

    fn build(&self, variant: Variant, lock: &Lock) -> Result<()> {
        let objtree = self.objtree(variant);
        remove_all(&self.stamp(variant))?;
        if !objtree.is_dir() {
            match self.model_for(variant) {
                None => fs::create_dir(&objtree)?,
                Some(model) => step::run(&format!("copy the {model} kernel's objects"), |_| {
                    self.copy_objects(model, variant, lock)
                })?,
            }
        }
        step::run(&format!("configure the {variant} kernel"), |_| {
            self.configure(variant, lock)
        })?;
        step::run(&format!("build the {variant} kernel"), |step| {
            let mut make = self.make(variant, lock)?;
            make.arg(format!("-j{}", self.jobs))
                .args(["bzImage", "modules"]);
            let log = self.cache.log(&format!("kernel-{variant}"))?;
            let mut objects = Objects::default();
            command::logged(&mut make, &log, |line| objects.see(line, step))
        })?;
        self.publish(variant)?;
        write_atomic(&self.stamp(variant), self.key(variant).as_str().as_bytes())
    }

    /// Returns the variant whose objects a first build starts from.
    fn model_for(&self, variant: Variant) -> Option<Variant> {
        match variant {
            Variant::Stock => None,
            Variant::NoBuiltin if self.stamp(Variant::Builtin).is_file() => Some(Variant::Builtin),
            Variant::Builtin | Variant::NoBuiltin => Some(Variant::Stock),
        }
    }

    fn copy_objects(&self, from: Variant, to: Variant, lock: &Lock) -> Result<()> {
        let partial = self.dir.join(format!(".{to}.partial"));
        remove_all(&partial)?;
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"])
            .arg(self.objtree(from))
            .arg(&partial);
        lock.share_with(&mut copy)?;
        command::output(&mut copy)?;
        relocate_commands(&partial, &self.objtree(from), &self.objtree(to))?;
        fs::rename(&partial, self.objtree(to))?;
        Ok(())
    }

    fn make(&self, variant: Variant, lock: &Lock) -> Result<Command> {
        let mut make = self.toolchain.make(&self.source.tree());
        make.arg(format!("O={}", self.objtree(variant).display()));
        lock.share_with(&mut make)?;
        Ok(make)
    }

    fn configure(&self, variant: Variant, lock: &Lock) -> Result<()> {
        let objtree = self.objtree(variant);
        let fragment = objtree.join("lab.config");
        write_atomic(&fragment, self.fragment.text(variant).as_bytes())?;
        let mut make = self.make(variant, lock)?;
        make.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &fragment);
        command::logged(&mut make, &self.cache.log("configure")?, |_| ())?;
        let config = fs::read_to_string(objtree.join(".config"))?;
        self.fragment.check(variant, &config)
    }

    /// Returns the directory of the files that machines boot.
    ///
    /// They are apart from the output directory: another run may rebuild that while a machine
    /// that was given these files still runs.
    fn published(&self, variant: Variant) -> PathBuf {
        self.dir.join("boot").join(self.key(variant).as_str())
    }

    fn publish(&self, variant: Variant) -> Result<()> {
        let (objtree, target) = (self.objtree(variant), self.published(variant));
        let partial = target.with_extension("partial");
        remove_all(&partial)?;
        fs::create_dir_all(&partial)?;
        for file in MODULES.iter().chain([&BZIMAGE]) {
            fs::copy(objtree.join(file), partial.join(file_name(file)))
                .with_context(|| format!("the build of {file}"))?;
        }
        let release = objtree.join("include/config/kernel.release");
        fs::copy(&release, partial.join("release")).context("the kernel's release")?;
        remove_all(&target)?;
        Ok(fs::rename(&partial, &target)?)
    }

    fn kernel(&self, variant: Variant) -> Result<Kernel> {
        let dir = self.published(variant);
        let release = fs::read_to_string(dir.join("release"))?;
        Ok(Kernel {
            bzimage: dir.join(file_name(BZIMAGE)),
            modules: MODULES.iter().map(|m| dir.join(file_name(m))).collect(),
            objtree: self.objtree(variant),
            srctree: self.source.tree(),
            version: release.trim().to_owned(),
            builtin: variant != Variant::NoBuiltin,
            debug: self.debug,
            variant,
            key: self.key(variant),
            lock: self.source.lock_name(),
        })
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Counts the objects that kbuild announces: `  CC      kernel/fork.o`.
#[derive(Default)]
pub struct Objects {
    count: u32,
}

impl Objects {
    /// Looks at a line of make's output and shows the count.
    pub fn see(&mut self, line: &str, step: &Step) {
        if let Some(target) = object_of(line) {
            self.count += 1;
            step.progress(&format!("{} objects, {target}", self.count));
        }
    }
}

/// Returns the target of one of kbuild's short command lines.
fn object_of(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("  ")?.split_whitespace();
    let verb = words.next()?;
    let is_verb = verb
        .chars()
        .all(|c| c.is_ascii_uppercase() || "-_[]0123456789".contains(c));
    is_verb.then_some(())?;
    words.last()
}

/// Rewrites the output directory in kbuild's records of commands.
///
/// kbuild compares the command that it would run with the one that it recorded; those of Rust
/// objects name the output directory, and the whole of `rust/` would be rebuilt in a copy.
fn relocate_commands(dir: &Path, from: &Path, to: &Path) -> Result<()> {
    let from = from.to_str().context("a path in UTF-8")?;
    let to = to.to_str().context("a path in UTF-8")?;
    for entry in WalkDir::new(dir) {
        let entry = entry?;
        let name = entry.file_name().as_encoded_bytes();
        if !entry.file_type().is_file() || !name.ends_with(b".cmd") {
            continue;
        }
        let Ok(text) = fs::read_to_string(entry.path()) else {
            continue;
        };
        if text.contains(from) {
            fs::write(entry.path(), text.replace(from, to))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kbuilds_lines_name_their_objects() {
        assert_eq!(object_of("  CC      kernel/fork.o"), Some("kernel/fork.o"));
        assert_eq!(object_of("  RUSTC L rust/core.o"), Some("rust/core.o"));
        assert_eq!(
            object_of("  CC [M]  arch/x86/kvm/x86.o"),
            Some("arch/x86/kvm/x86.o")
        );
        assert_eq!(object_of("make[1]: Entering directory"), None);
        assert_eq!(object_of("  warning: something"), None);
    }

    #[test]
    fn recorded_commands_follow_a_copied_output_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(".core.o.cmd");
        fs::write(&file, "cmd := OBJTREE=/c/stock rustc -L /c/stock/rust\n").unwrap();
        relocate_commands(dir.path(), Path::new("/c/stock"), Path::new("/c/builtin")).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text, "cmd := OBJTREE=/c/builtin rustc -L /c/builtin/rust\n");
    }
}
