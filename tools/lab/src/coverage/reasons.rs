// SPDX-License-Identifier: GPL-2.0

//! Why no test on the host reaches some functions.

/// The file, the function or nothing if it is in a macro, and the reason.
const REASONS: &[(&str, &str, &str)] = &[
    (
        "checked.rs",
        "clone",
        "it is copied, and a type that is must have this",
    ),
    (
        "vmx/field/table.rs",
        "",
        "expanded for each row of the table, the last of which does not get there",
    ),
];

/// Returns the reason for a function, if one is known.
pub fn of(file: &str, function: &str) -> Option<&'static str> {
    let found = REASONS
        .iter()
        .find(|(other, name, _)| *other == file && *name == function);
    found.map(|(_, _, reason)| *reason)
}
