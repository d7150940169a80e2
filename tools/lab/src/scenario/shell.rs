// SPDX-License-Identifier: GPL-2.0

//! `lab shell`: an interactive shell in level 0, with modules, QEMU and the selftests at hand.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::image::level;
use crate::image::rootfs::Rootfs;
use crate::kernel::Variant;
use crate::machine::accel::Engine;
use crate::machine::{self, Limits, Run, Target, bochs, vng};
use crate::options::{Options, Vendor};
use crate::process::{self, Scratch, Undo};
use crate::selftests::{self, Selftests};
use crate::step;

use super::tools::Tools;
use super::{Bench, Levels, Provider, nested, target};

/// Boots level 0 with a shell on this terminal.
pub fn shell(cache: &Cache, options: &Options, provider: Provider) -> Result<ExitCode> {
    let target = target(options)?;
    let levels = Levels::asked_for(options, provider)?;
    let bench = Bench::prepare(cache, options, Variant::asked_for(options), provider)?;
    let tools = Tools::build(cache)?;
    let selftests = selftests::ensure(cache, &bench.kernel)?;
    interactive(&bench, &target, levels, &tools, &selftests)
}

/// Boots the machine and waits until it ends.
pub fn interactive(
    bench: &Bench,
    target: &Target,
    levels: Levels,
    tools: &Tools,
    selftests: &Selftests,
) -> Result<ExitCode> {
    let tests = super::selftests::list(&selftests.dir)?;
    let nest = nested::nest(bench, target, levels, tools)?;
    let mut files = Rootfs::default();
    level::add_nest(&mut files, &bench.programs.tools, &nest)?;
    files.file(nested::NESTED_TOP, &tools.nested_top);
    for test in &tests {
        let host = selftests.dir.join(&test.program);
        files.file(&format!("/selftests/{}", test.program), &host);
    }
    files.text("/lab/motd", &greeting(bench, target));
    let run = Run {
        name: "shell".into(),
        kernel: bench.kernel.bzimage.clone(),
        // A shell is for experiments: a warning is shown, and the machine goes on.
        cmdline: vec!["panic_on_warn=0".into()],
        files,
        modules: bench.modules_below(target, levels)?,
        commands: include_str!("../image/guest/shell.sh").to_owned(),
        limits: Limits::default(),
        target: Target {
            memory: target.memory.max(level::memory(0, nest.last)),
            ..*target
        },
    };
    std::fs::create_dir_all(&bench.logs)?;
    let work = Scratch::new_in(&bench.logs)?;
    let (root, stage) = step::run("image", |_| {
        machine::stage(&run, &bench.programs, work.path())
    })?;
    let status = match run.target.engine {
        Engine::Tcg | Engine::Kvm => {
            let script = vng::entry(work.path(), &stage)?;
            let mut command = vng::interactive(&run, &bench.programs, work.path(), &script)?;
            process::spawn(&mut command)
                .context("starting vng")?
                .wait()?
        }
        Engine::Icount => bail!("a machine that counts instructions has no input"),
        Engine::Bochs => {
            bochs::image(&run, work.path(), &root, &stage)?;
            let terminal = terminal()?;
            let mut command = bochs::interactive(&run, &bench.programs, work.path(), &terminal)?;
            step::note("the shell comes in about 20 s; `exit` ends the machine");
            let raw = raw_terminal()?;
            let status = process::spawn(&mut command)
                .context("starting Bochs")?
                .wait()?;
            drop(raw);
            status
        }
    };
    println!("\nthe machine ended ({status})");
    Ok(ExitCode::SUCCESS)
}

/// Returns the path of the terminal that this process runs on.
fn terminal() -> Result<String> {
    let tty = Command::new("tty").stdin(Stdio::inherit()).output()?;
    let path = String::from_utf8_lossy(&tty.stdout).trim().to_owned();
    anyhow::ensure!(
        tty.status.success(),
        "`lab shell` needs a terminal on its standard input"
    );
    Ok(path)
}

/// Leaves echo and line editing to the guest until the result is dropped.
fn raw_terminal() -> Result<Undo> {
    let saved = stty(&["-g"])?;
    let undo = Undo::new(move || {
        // Nothing can be done about a terminal that has gone.
        let _ = stty(&[saved.as_str()]);
    });
    stty(&["raw", "-echo"])?;
    Ok(undo)
}

fn stty(arguments: &[&str]) -> Result<String> {
    let output = Command::new("stty")
        .args(arguments)
        .stdin(Stdio::inherit())
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "stty failed: standard input is no terminal"
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Returns what the shell says first.
fn greeting(bench: &Bench, target: &Target) -> String {
    let vendor = match target.vendor {
        Vendor::Amd => "kvm-amd",
        Vendor::Intel => "kvm-intel",
    };
    format!(
        "Linux {}, level 0 on {}.\n\
         Modules are in /lab/mod and inserted ({vendor}); /lab/modules.host lists them.\n\
         nest          boots level 1, which boots the next one\n\
         /selftests    KVM selftests\n\
         exit          ends the machine\n",
        bench.kernel.version, target.engine
    )
}
