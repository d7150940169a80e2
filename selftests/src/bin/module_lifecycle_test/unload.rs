// SPDX-License-Identifier: GPL-2.0

//! rmmod: it waits for the VMs that use the module, and gives KVM back to the built-in code.

use std::fs;

use anyhow::{ensure, Context, Result};
use rustix::io::Errno;
use selftests::kmsg::Log;
use selftests::tap::Point;
use selftests::vm::{self, Vm};
use selftests::{expect, module};

use crate::host::{counted_vms, Host, DEBUGFS};

/// The tests.
pub fn points(host: &Host) -> Vec<Point<Host>> {
    let names = host.names();
    let (ours, kvm) = (names.ours_file, names.kvm_file);
    vec![
        Point::new(format!("{ours} cannot be removed while a VM uses it"), held),
        Point::new("each VM has a file of its exits while it exists", counted),
        Point::new(
            format!("caches can be shrunk with {ours} and after it"),
            shrunk,
        ),
        Point::new(
            format!("{ours} gives {kvm} back to the built-in code"),
            gives_back,
        ),
    ]
}

fn cannot_be_removed(host: &Host) -> Result<()> {
    let ours = host.names().ours;
    let removed = module::remove(ours)?;
    expect(
        format_args!("rmmod {ours} with a VM"),
        removed,
        Err(Errno::WOULDBLOCK),
    )
}

fn held(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.attach()?;
    let kvm = vm::open()?;
    let mut first = Vm::new(&kvm)?;
    let mut second = Vm::new(&kvm)?;
    cannot_be_removed(host)?;
    first.work()?;
    drop(first);
    cannot_be_removed(host)?;
    second.work()?;
    expect("the VM can nest", second.can_nest()?, true)?;
    let state = module::find(host.names().ours)?.map(|module| module.state);
    expect("the module's state", state.as_deref(), Some("Live"))?;
    drop(second);
    host.detach()
}

fn counted(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.attach()?;
    expect(
        "directories before there is a VM",
        counted_vms()?,
        Vec::new(),
    )?;
    let kvm = vm::open()?;
    let first = Vm::new(&kvm)?;
    let second = Vm::new(&kvm)?;
    let mut vms = counted_vms()?;
    vms.sort();
    let pid = std::process::id();
    let numbers: Vec<u64> = vms
        .iter()
        .filter_map(|name| name.strip_prefix(&format!("{pid}-"))?.parse().ok())
        .collect();
    ensure!(
        numbers.len() == 2 && vms.len() == 2 && numbers[0] != numbers[1],
        "{DEBUGFS}: expected two directories {pid}-NUMBER, saw {vms:?}"
    );
    for vm in &vms {
        let path = format!("{DEBUGFS}/{vm}/exits");
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    }
    drop(first);
    expect(
        "directories after one of two VMs is gone",
        counted_vms()?.len(),
        1,
    )?;
    drop(second);
    expect(
        "directories after the last VM is gone",
        counted_vms()?,
        Vec::new(),
    )
}

/// The kernel calls all shrinkers: one that is still there without its module would be its end.
fn shrunk(host: &Host) -> Result<()> {
    const FILE: &str = "/proc/sys/vm/drop_caches";
    let shrink = || fs::write(FILE, "2").context(FILE);

    host.load_kvm("")?;
    host.attach()?;
    shrink()?;
    let mut vm = Vm::new(&vm::open()?)?;
    vm.work()?;
    shrink()?;
    vm.work()?;
    drop(vm);
    shrink()?;
    host.detach()?;
    shrink()
}

fn gives_back(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let builtin = host.offer()?;
    host.attach()?;
    host.vm_runs()?;
    let mut log = Log::end()?;
    host.detach()?;
    let said = format!("detached from {}", host.names().kvm_file);
    expect("the log", log.lines_of(host.names().ours)?, vec![said])?;
    host.offer()?.same_as(&builtin)?;
    let mut vm = Vm::new(&vm::open()?)?;
    vm.work()?;
    expect("a VM of the built-in code can nest", vm.can_nest()?, true)
}
