# SPDX-License-Identifier: GPL-2.0
#
# What people type.  The work is done by tools/lab; kbuild reads ./Kbuild.

# Options, as in `make run VENDOR=intel`, reach tools/lab by the environment.  Those of this
# make must not reach the kernel's.
unexport MAKEFLAGS MFLAGS MAKELEVEL

# Of the debug information, nothing is used but line numbers in backtraces.
export CARGO_PROFILE_DEV_DEBUG = line-tables-only

lab = cargo run --quiet --locked --manifest-path tools/lab/Cargo.toml \
	--target-dir build/cargo --

crates = nested selftests tools/lab tools/nested-top tools/workload
kernel_sources = $(shell find rust -name '*.rs')

help:
	@echo 'Nested virtualization for KVM, as Rust modules.'
	@echo
	@echo '  make run         boot the levels: a guest of a guest works under our module; report'
	@echo '  make test        all tests; ends with "N passed, N failed, N skipped"'
	@echo '  make bench       what operations of L2 cost, in instructions: tables and a chart'
	@echo '  make bench-check measures, and fails if an operation takes over 2 % more than it did'
	@echo '  make fuzz        random programs of L1 and L2, with C and with ours: both must do the same'
	@echo '  make coverage    which lines of nested/ and rust/ the tests reach, on the host and in kernels'
	@echo '  make shell       a shell at level 0, with our module, QEMU and the selftests'
	@echo
	@echo '  make modules     nested-vmx.ko and nested-svm.ko'
	@echo '  make kernel      Linux 7.3 with patches/, bzImage and the KVM modules'
	@echo '  make clippy      clippy over the kernel side and the host side'
	@echo '  make fmt         format the Rust code'
	@echo '  make doc         Documentation/ and rustdoc as HTML, below build/'
	@echo '  make clean       remove build/ (the cache of kernels and downloads stays)'
	@echo
	@echo 'Options, each with its default first:'
	@echo '  VENDOR=amd|intel   SVM, emulated by QEMU, or VMX, emulated by Bochs'
	@echo '  LEVELS=2|1|3       the last level: an L2, no L2, or an L3 in that L2'
	@echo '  L1=linux|debian|xen   what L1 is: our kernel, Debian'"'"'s with its own KVM, Debian'"'"'s Xen'
	@echo '  SMP=1|2|...        virtual CPUs of each level'
	@echo '  NPT=1|0, EPT=1|0   0: shadow paging in KVM of the guests (amd: NPT, intel: EPT)'
	@echo '  SHADOW_VMCS=1|0    intel: 0: no VMCS shadowing at any level'
	@echo '  UNRESTRICTED=1|0   intel: 0: the guests emulate real mode for their guests'
	@echo '  PROVIDER=ours|c    our module, or the code that is built into KVM'
	@echo '  ACCEL=auto|kvm|... kvm needs hardware that lends its extension to guests'
	@echo '  ONLY=TEXT          of make test and coverage: the suites whose names contain it; of make bench: the machines'
	@echo '  ROWS="NAME ..."    of make bench: these rows only, for example "cpuid hypercall"'
	@echo '  TRANSITIONS=0|1    1: make bench counts VM entries and VMREADs, too, in another boot'
	@echo '  CASES=20000 SEED=1 FIRST=0   of make fuzz: how many cases, and which'
	@echo '  KSRC=DIR           a Linux 7.3.y tree of your own'
	@echo '  CONFIG_KVM_NESTED_BUILTIN=y|n   n: a KVM without nested code of its own'
	@echo '  KERNEL_DEBUG=n|y   y: a level 0 with KASAN, lockdep and the checks of RCU; slow'

run:
	@$(lab) run

bench:
	@$(lab) bench

bench-check:
	@$(lab) bench --check

test:
	@$(lab) test

fuzz:
	@$(lab) fuzz

coverage:
	@$(lab) coverage

shell:
	@$(lab) shell

setup:
	@$(lab) setup

kernel:
	@$(lab) kernel

modules:
	@$(lab) modules

checks:
	@$(lab) checks

clippy:
	@$(lab) clippy

fmt:
	for crate in $(crates); do cargo fmt --manifest-path $$crate/Cargo.toml || exit; done
	rustfmt --edition 2021 $(kernel_sources)

doc:
	@$(lab) doc

clean:
	rm -rf build

.PHONY: help run bench bench-check test fuzz coverage shell setup kernel modules checks clippy fmt doc clean
