// SPDX-License-Identifier: GPL-2.0

//! Why no test reaches some functions, or some lines of them.

use super::source::WAY_OUT;

/// A file, a function in it, and a part of the lines that are meant, or nothing for all of them.
type Place = (&'static str, &'static str, &'static str);

/// What nothing has to do with the processor.
const GENERAL: &[(&str, &[Place])] = &[
    (
        "it is copied, and a type that is must have this",
        &[("nested/checked.rs", "clone", "")],
    ),
    (
        "expanded for each row of the table, the last of which does not get there",
        &[("nested/vmx/field/table.rs", "", "")],
    ),
    (
        WAY_OUT,
        &[
            ("nested/mmu/shadow/host.rs", "zap_all", "None => 0"),
            ("nested/mmu/shadow/map.rs", "place_for", "WrongRoot"),
            ("nested/mmu/shadow/pool.rs", "displaced", "None =>"),
            ("nested/mmu/shadow/prefetch.rs", "usable_neighbours", ""),
            ("nested/mmu/shadow/reverse.rs", "grow_buckets", ""),
            ("nested/mmu/shadow/root.rs", "for_each_root", "None => 0"),
            ("nested/mmu/shadow/root.rs", "trim_roots", "return"),
            ("nested/mmu/shadow/sync.rs", "verdict", "None =>"),
            ("nested/mmu/shadow/table.rs", "become_table", "Kind::None"),
            ("nested/mmu/shadow/view.rs", "last", "None"),
            ("nested/mmu/shadow/view.rs", "mmio", "return None"),
            ("nested/mmu/shadow/view.rs", "page_made_of", "Kind::None"),
            ("nested/mmu/shadow/view.rs", "permissions_of_part", "None"),
            ("nested/mmu/walk.rs", "descend", "NotPresent"),
            ("nested/vmx/vpid.rs", "select", "Stale"),
            ("rust/kvm/memory.rs", "at", "None"),
            (
                "rust/kvm/mmu/entries.rs",
                "compare_exchange",
                "Inaccessible",
            ),
            ("rust/kvm/mmu/root.rs", "load", "Impossible"),
            ("rust/kvm/page_cache.rs", "lock", "None"),
            ("rust/svm/state.rs", "free", ""),
            ("rust/vmx/exit.rs", "check_failure", ""),
            ("rust/vmx/state.rs", "leave_vmx_operation", ""),
        ],
    ),
    (
        "a number of 32 bits must overflow",
        &[("nested/mmu/shadow/pool.rs", "free_table", "0 => 1")],
    ),
    (
        "for more tables than a test makes",
        &[
            ("nested/mmu/shadow/array.rs", "page_of", ""),
            ("nested/mmu/shadow/array.rs", "grow", ""),
        ],
    ),
    (
        "an allocation of level 0 fails",
        &[
            ("rust/kvm/mmu/pages.rs", "new", ""),
            ("rust/kvm/mmu/root.rs", "load", "ENOMEM"),
            ("rust/kvm/mmu/root.rs", "load_root", "error.to_errno()"),
            ("rust/kvm/mmu/fault.rs", "handle_fault", "error.to_errno()"),
            ("rust/kvm/page_cache.rs", "new", ""),
            ("rust/kvm/stats.rs", "new", ""),
            ("rust/svm/state.rs", "allocate", ""),
            ("rust/svm/state.rs", "zeroed", ""),
            ("rust/vmx/state.rs", "allocate_shadow_vmcs", "ENOMEM"),
            ("rust/vmx/state.rs", "enter_vmx_operation", ""),
            ("rust/vmx/state.rs", "new", ""),
        ],
    ),
    (
        "the module leaves, and what it has counted leaves with it",
        &[
            ("rust/kvm/mmu/shrinker.rs", "drop", ""),
            ("rust/kvm/stats.rs", "drop", ""),
            ("rust/svm/nested_svm.rs", "drop", ""),
            ("rust/vmx/nested_vmx.rs", "drop", ""),
            ("rust/vmx/shadow.rs", "drop", ""),
        ],
    ),
    (
        "the module is refused, and there is none then whose counters could be read",
        &[
            ("rust/svm/nested_svm.rs", "check_host", ""),
            ("rust/svm/nested_svm.rs", "explain", ""),
            ("rust/vmx/nested_vmx.rs", "check_host", ""),
            ("rust/vmx/nested_vmx.rs", "explain", ""),
        ],
    ),
    (
        "memory of level 0 is swapped out, and KVM waits for it",
        &[
            ("rust/svm/mmu.rs", "nested_cr3_of", ""),
            ("rust/vmx/mmu.rs", "eptp_of", ""),
        ],
    ),
    (
        "a message for developers, which is off",
        &[("rust/vmx/capability.rs", "explain", "")],
    ),
];

/// What the emulated processors have or lack.
const PROCESSORS: &[(&str, &[Place])] = &[
    (
        "APICv is off on Bochs, which fails with it; QEMU has no AVIC",
        &[
            (
                "nested/vmx/merge/apic.rs",
                "posted_interrupt_descriptor",
                "",
            ),
            ("rust/svm/entry.rs", "enter", "apicv"),
            ("rust/svm/entry.rs", "resume", "apicv"),
            ("rust/svm/exit.rs", "leave", "apicv"),
            ("rust/svm/exit.rs", "reflect", "apicv"),
            ("rust/vmx/events.rs", "complete_posted_interrupts", ""),
            ("rust/vmx/events.rs", "has_events", "l2_blocks_interrupts"),
            ("rust/vmx/events.rs", "has_events", "has_virtual_interrupt"),
            ("rust/vmx/events.rs", "has_virtual_interrupt", ""),
            ("rust/vmx/events.rs", "raise_requested_interrupt", ""),
            ("rust/vmx/pages.rs", "map_descriptor", ""),
        ],
    ),
    (
        "the emulated processor has no flush by ASID",
        &[
            ("rust/svm/address_space.rs", "flush_by_asid", ""),
            ("rust/svm/address_space.rs", "flush_l1", "Present"),
            ("rust/svm/address_space.rs", "load", "Present"),
        ],
    ),
    (
        "the emulated processor has no TSC ratio",
        &[
            ("rust/svm/entry.rs", "load_tsc", "update_tsc_ratio"),
            ("rust/svm/entry.rs", "update_tsc_ratio", ""),
            ("rust/svm/exit.rs", "restore_tsc", "multiplier"),
        ],
    ),
    (
        "the emulated processor has no virtual NMI",
        &[
            ("rust/svm/entry.rs", "load_control", "V_NMI"),
            ("rust/svm/entry.rs", "load_control", "nmi_pending"),
            ("rust/svm/entry.rs", "load_control", "request_event"),
            ("rust/svm/exit.rs", "hand_over_nmis", ""),
        ],
    ),
    (
        "the emulated processor has no enhanced return-address predictor",
        &[("rust/svm/exit.rs", "reflect", "erap")],
    ),
    (
        "the emulated processor has no MPX",
        &[
            ("rust/vmx/entry.rs", "save_l1_state", "bndcfgs"),
            ("rust/vmx/exit.rs", "save_rare_state", ""),
            ("rust/vmx/host_state.rs", "load_rare", "BNDCFGS"),
            ("rust/vmx/vmcs02.rs", "load_kept_state", "BNDCFGS"),
            ("rust/vmx/vmcs02.rs", "load_rarely", "BNDCFGS"),
        ],
    ),
    (
        "the emulated processor has no performance counters",
        &[
            ("rust/vmx/host_state.rs", "load_rare", "erf_global_ctrl"),
            ("rust/vmx/host_state.rs", "load_rare", "PERF_GLOBAL_CTRL"),
            ("rust/vmx/msrs.rs", "load_perf_global_ctrl", ""),
            ("rust/vmx/vmcs02.rs", "load_state", "perf_global_ctrl"),
            ("rust/vmx/vmcs02.rs", "load_state", ".map_err"),
        ],
    ),
    (
        "the emulated processor has no SGX",
        &[
            ("rust/vmx/exit.rs", "save_to_vmcs12", "in_enclave_mode"),
            ("rust/vmx/route.rs", "l0_wants", "Encls"),
            ("rust/vmx/vmcs02.rs", "write_constants", "ENCLS"),
            ("rust/vmx/vmcs02.rs", "write_controls", "encls"),
            ("rust/vmx/vmcs02.rs", "write_controls", "vmcs12"),
            ("rust/vmx/vmcs02.rs", "write_controls", "VmxVcpu"),
        ],
    ),
    (
        "the emulated processor has no notification of long delays",
        &[("rust/vmx/vmcs02.rs", "write_constants", "NOTIFY_WINDOW")],
    ),
    (
        "KVM has no check of virtualization exceptions in this configuration",
        &[("rust/vmx/vmcs02.rs", "write_constants", "")],
    ),
    (
        "the emulated processor lacks nothing that would lead here",
        &[
            ("rust/vmx/host_state.rs", "efer_of_vmcs01", ""),
            ("rust/vmx/instruction.rs", "vmptrld", "Unsupported"),
            ("rust/vmx/mmu.rs", "use_eptp", ""),
            ("rust/vmx/shadow.rs", "new", "Ok(None)"),
            ("rust/vmx/shadow.rs", "new", "return None"),
            ("rust/vmx/state.rs", "allocate_shadow_vmcs", "null_mut"),
            ("rust/vmx/vmcs02.rs", "pause_loop01", ""),
            ("rust/vmx/vmcs02.rs", "write_controls", "Umip"),
            ("rust/vmx/vmcs02.rs", "write_controls", "EferSwitch"),
        ],
    ),
    (
        "the page tables of the emulated processors have four levels",
        &[("rust/kvm/mmu.rs", "config", "Table256T")],
    ),
];

/// Returns the reason for a line in a function, if one is known.
pub fn of(file: &str, function: &str, text: &str) -> Option<&'static str> {
    let all = GENERAL.iter().chain(PROCESSORS);
    let mut found = all.filter(|(_, places)| {
        places.iter().any(|(of_file, of_function, part)| {
            *of_file == file && *of_function == function && text.contains(part)
        })
    });
    found.next().map(|(reason, _)| *reason)
}

#[cfg(test)]
mod tests {
    use super::super::source::Source;
    use super::*;
    use crate::options::checkout;

    #[test]
    fn a_part_of_a_function_has_a_reason_of_its_own() {
        let of = |text| of("rust/vmx/vmcs02.rs", "write_constants", text);
        assert!(
            of("vmcs.write32(NOTIFY_WINDOW, x)")
                .unwrap()
                .contains("delays")
        );
        assert!(of("vmcs.write64(").unwrap().contains("exceptions"));
        assert_eq!(super::of("rust/svm/exit.rs", "reflect", "else"), None);
    }

    #[test]
    fn all_that_is_named_is_there() {
        let root = checkout().unwrap();
        let all = GENERAL.iter().chain(PROCESSORS);
        let places = all.flat_map(|(_, places)| *places);
        let gone = places.filter(|(file, function, part)| {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            let source = Source::parse(&text).unwrap();
            let is_there = |line| source.function(line) == *function;
            let mut lines = (1..).zip(text.lines());
            !lines.any(|(number, line)| line.contains(part) && is_there(number))
        });
        assert_eq!(gone.collect::<Vec<_>>(), Vec::<&Place>::new());
    }
}
