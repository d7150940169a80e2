// SPDX-License-Identifier: GPL-2.0

//! A KVM without nested code of its own: there is no nested virtualization, and KVM says so.

use anyhow::{ensure, Result};
use selftests::expect;
use selftests::kmsg::Log;
use selftests::tap::Point;
use selftests::vm::{self, Vm};

use crate::host::Host;

/// The tests.
pub fn points(host: &Host) -> Vec<Point<Host>> {
    let names = host.names();
    let (ours, kvm) = (names.ours_file, names.kvm_file);
    vec![
        Point::new(
            format!("{kvm} says which module gives it nested virtualization"),
            says,
        ),
        Point::new("no nested virtualization is offered to guests", offers_none),
        Point::new("a VM runs, without nested virtualization", runs),
        Point::new(
            format!("{ours} gives nested virtualization, and takes it away"),
            attaches,
        ),
        Point::new(
            format!("a VM that is older than {ours} does not get it"),
            comes_late,
        ),
    ]
}

fn says(host: &Host) -> Result<()> {
    let mut log = Log::end()?;
    host.load_kvm("nested=1")?;
    let lines = log.lines_of(host.names().kvm)?;
    let said = format!(
        "No built-in nested virtualization, load {} to get it",
        host.names().ours_file
    );
    let count = lines.iter().filter(|line| **line == said).count();
    ensure!(
        count == 1,
        "log of KVM: expected {said:?} once, saw {lines:?}"
    );
    Ok(())
}

fn offers_none(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.offers_no_nesting(&host.offer()?)
}

fn runs(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let mut vm = Vm::new(&vm::open()?)?;
    vm.work()?;
    expect("the VM can nest", vm.can_nest()?, false)
}

fn attaches(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    host.attach()?;
    host.offers_nesting(&host.offer()?)?;
    let mut vm = Vm::new(&vm::open()?)?;
    vm.work()?;
    expect("the VM can nest", vm.can_nest()?, true)?;
    drop(vm);
    host.detach()?;
    host.offers_no_nesting(&host.offer()?)
}

fn comes_late(host: &Host) -> Result<()> {
    host.load_kvm("")?;
    let mut vm = Vm::new(&vm::open()?)?;
    host.attach()?;
    vm.work()?;
    expect("the VM can nest", vm.can_nest()?, false)?;
    drop(vm);
    host.detach()
}
