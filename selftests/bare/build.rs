// SPDX-License-Identifier: GPL-2.0

//! Names the linker script.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-link-arg=-T{directory}/bare.ld");
    println!("cargo:rerun-if-changed=bare.ld");
}
