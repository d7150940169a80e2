// SPDX-License-Identifier: GPL-2.0

//! The compiler's instrumentation, and the programs of LLVM that understand what it counts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command;

/// What makes the compiler count executions, of the outcomes of conditions as well.
///
/// That of conditions is not stable: it needs [`UNSTABLE`] in the environment.
pub const FLAGS: &str = "-Cinstrument-coverage -Zcoverage-options=branch";

/// The variable, and its value, by which a stable compiler does what is not stable.
pub const UNSTABLE: (&str, &str) = ("RUSTC_BOOTSTRAP", "1");

/// The programs that belong to the compiler.
pub struct Tools(PathBuf);

impl Tools {
    /// Finds them.
    pub fn find() -> Result<Self> {
        let sysroot = command::output(Command::new("rustc").args(["--print", "sysroot"]))?;
        let version = command::output(Command::new("rustc").arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("rustc says nothing of its host")?;
        let dir = Path::new(sysroot.trim()).join(format!("lib/rustlib/{host}/bin"));
        ensure!(
            dir.join("llvm-cov").is_file(),
            "make coverage needs llvm-cov of this compiler: rustup component add llvm-tools"
        );
        Ok(Self(dir))
    }

    /// Returns a command of one of them.
    pub fn command(&self, name: &str) -> Command {
        Command::new(self.0.join(name))
    }

    /// Returns what was executed, in the form of lcov, and keeps it in `work` by its name for other
    /// programs. `profiles` are the counts of programs or modules, which are `objects`.
    pub fn export(
        &self,
        work: &Path,
        name: &str,
        profiles: &[PathBuf],
        objects: &[PathBuf],
    ) -> Result<String> {
        let merged = work.join(format!("{name}.profdata"));
        let mut merge = self.command("llvm-profdata");
        merge.args(["merge", "-sparse", "-o"]).arg(&merged);
        command::output(merge.args(profiles))?;
        let mut export = self.command("llvm-cov");
        export.args(["export", "-format=lcov"]);
        export.arg(format!("-instr-profile={}", merged.display()));
        let (first, others) = objects.split_first().context("nothing was built")?;
        export.arg(first);
        for other in others {
            export.arg("-object").arg(other);
        }
        let text = command::output(&mut export)?;
        fs::write(work.join(format!("{name}.lcov")), &text)?;
        Ok(text)
    }
}
