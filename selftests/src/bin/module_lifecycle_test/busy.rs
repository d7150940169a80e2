// SPDX-License-Identifier: GPL-2.0

//! A VM that exists before the module: it keeps the built-in code, and the module has to wait.

use anyhow::Result;
use rustix::io::Errno;
use selftests::tap::Point;
use selftests::vm::{self, Vm};
use selftests::{expect, module};

use crate::host::{counted_vms, Host};

/// The tests.
pub fn points(host: &Host) -> Vec<Point<Host>> {
    let ours = host.names().ours_file;
    vec![
        Point::new(
            format!("{ours} is refused while a VM exists, and attaches after it"),
            busy,
        ),
        Point::new(
            format!("{ours} is refused while the first of two VMs still exists"),
            busy_with_two,
        ),
    ]
}

fn busy(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let mut vm = Vm::new(&vm::open()?)?;
    vm.work()?;
    expect("the VM can nest", vm.can_nest()?, true)?;
    host.refused(host.vendor, Errno::BUSY, "VM")?;
    vm.work()?;
    expect("the VM can nest", vm.can_nest()?, true)?;
    drop(vm);
    host.attach()?;
    host.vm_runs()
}

fn busy_with_two(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let kvm = vm::open()?;
    let mut first = Vm::new(&kvm)?;
    let mut second = Vm::new(&kvm)?;
    first.work()?;
    second.work()?;
    drop(second);
    host.refused(host.vendor, Errno::BUSY, "VM")?;
    first.work()?;
    drop(first);
    host.attach()?;
    expect("VMs that the module counts", counted_vms()?, Vec::new())?;
    let references = module::find(host.names().ours)?.map(|module| module.references);
    expect("references to the module", references, Some(0))
}
