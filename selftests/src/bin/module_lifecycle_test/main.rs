// SPDX-License-Identifier: GPL-2.0

//! The life cycle of nested-svm and nested-vmx: what they attach to, what they refuse and why, and
//! that they leave nothing behind.

mod attach;
mod busy;
mod host;
mod leak;
mod race;
mod refusal;
mod unload;
mod without_builtin;

use std::path::PathBuf;
use std::process::ExitCode;

use argh::FromArgs;
use selftests::tap;

use host::{Host, Variant, Vendor};

/// Loads and removes the modules; none of them may be loaded.
#[derive(FromArgs)]
struct Arguments {
    /// that of the processor: amd or intel
    #[argh(positional)]
    vendor: Vendor,
    /// what KVM is: stock, without the provider patches; builtin and nobuiltin, with them, with and
    /// without nested code of its own
    #[argh(positional)]
    kernel: Variant,
    /// the directory of the modules
    #[argh(positional)]
    dir: PathBuf,
    /// for KVM's module of the vendor
    #[argh(positional)]
    parameters: Vec<String>,
}

fn main() -> ExitCode {
    let arguments: Arguments = argh::from_env();
    let host = Host {
        vendor: arguments.vendor,
        variant: arguments.kernel,
        dir: arguments.dir,
        parameters: arguments.parameters.join(" "),
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
