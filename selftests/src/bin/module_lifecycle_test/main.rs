// SPDX-License-Identifier: GPL-2.0

//! The life cycle of nested-svm and nested-vmx: what they attach to, what they refuse and why, and
//! that they leave nothing behind.
//!
//! `module_lifecycle_test VENDOR KERNEL DIR [PARAMETER...]`: VENDOR is that of the processor (`amd`
//! or `intel`), KERNEL says what KVM is (`stock`: without the provider patches; `builtin` and
//! `nobuiltin`: with them, with and without nested code of its own), DIR has the modules, none of
//! which is loaded, and the parameters are for the vendor module.

mod attach;
mod busy;
mod host;
mod leak;
mod race;
mod refusal;
mod unload;
mod without_builtin;

use std::process::ExitCode;

use anyhow::{bail, Result};
use selftests::tap;

use host::{Host, Variant, Vendor};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let host = match parse(&words) {
        Ok(host) => host,
        Err(error) => {
            eprintln!("{error}\nusage: module_lifecycle_test VENDOR KERNEL DIR [PARAMETER...]");
            return ExitCode::FAILURE;
        }
    };
    if !rustix::process::geteuid().is_root() {
        return tap::skip_all("only root can load modules");
    }
    if let Err(error) = host.restore() {
        println!("Bail out! the modules that are loaded cannot be removed: {error:#}");
        return ExitCode::FAILURE;
    }
    let points = match host.variant {
        Variant::Stock => refusal::by_a_stock_kernel(&host),
        Variant::NoBuiltin => without_builtin::points(&host),
        Variant::Builtin => [
            refusal::by_a_patched_kernel(&host),
            attach::points(&host),
            busy::points(&host),
            unload::points(&host),
            race::points(&host),
            leak::points(&host),
        ]
        .into_iter()
        .flatten()
        .collect(),
    };
    tap::run(&points, &host, Host::restore)
}

fn parse(words: &[String]) -> Result<Host> {
    let [vendor, variant, dir, parameters @ ..] = words else {
        bail!("too few arguments");
    };
    let vendor = match vendor.as_str() {
        "amd" => Vendor::Amd,
        "intel" => Vendor::Intel,
        other => bail!("{other} is no vendor"),
    };
    let variant = match variant.as_str() {
        "stock" => Variant::Stock,
        "builtin" => Variant::Builtin,
        "nobuiltin" => Variant::NoBuiltin,
        other => bail!("{other} is no kernel"),
    };
    Ok(Host {
        vendor,
        variant,
        dir: dir.into(),
        parameters: parameters.join(" "),
    })
}
