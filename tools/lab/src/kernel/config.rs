// SPDX-License-Identifier: GPL-2.0

//! The kernel's configuration: two fragments, and the check that each option took effect.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::kernel::Variant;

/// The option of the series; the unpatched kernel does not know it.
const BUILTIN: &str = "CONFIG_KVM_NESTED_BUILTIN";

/// An option as a fragment asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    name: String,
    /// What stands behind the equals sign; `n` for an option that is not set.
    value: String,
}

impl Setting {
    /// Parses a line of a fragment or of a .config; comments and blank lines give none.
    fn parse(line: &str) -> Option<Self> {
        let unset = line
            .strip_prefix("# ")
            .and_then(|rest| rest.strip_suffix(" is not set"));
        let (name, value) = match unset {
            Some(name) => (name, "n"),
            None => line.split_once('=')?,
        };
        name.starts_with("CONFIG_").then(|| Self {
            name: name.to_owned(),
            value: value.trim().to_owned(),
        })
    }

    fn line(&self) -> String {
        match self.value.as_str() {
            "n" => format!("# {} is not set", self.name),
            value => format!("{}={value}", self.name),
        }
    }
}

/// The options that are asked for, without the one that tells the variants apart.
#[derive(Clone, Debug)]
pub struct Fragment {
    settings: Vec<Setting>,
}

impl Fragment {
    /// Reads the base of the emulated machines and what users are told to merge; with `debug`, also
    /// the checks that a kernel can make of itself.
    pub fn read(checkout: &Path, debug: bool) -> Result<Self> {
        let mut settings: Vec<Setting> = Vec::new();
        let checks = debug.then_some("tools/lab/config/debug.config");
        let files = ["tools/lab/config/base.config", ".config.example"];
        for file in files.into_iter().chain(checks) {
            let path = checkout.join(file);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            for setting in text.lines().filter_map(Setting::parse) {
                if settings.iter().any(|known| known.name == setting.name) {
                    bail!("{} is asked for twice, last in {file}", setting.name);
                }
                settings.push(setting);
            }
        }
        settings.retain(|setting| setting.name != BUILTIN);
        Ok(Self { settings })
    }

    /// Returns the fragment for a variant, as `KCONFIG_ALLCONFIG` takes it.
    pub fn text(&self, variant: Variant) -> String {
        self.wanted(variant)
            .iter()
            .map(|setting| setting.line() + "\n")
            .collect()
    }

    fn wanted(&self, variant: Variant) -> Vec<Setting> {
        let mut settings = self.settings.clone();
        let value = match variant {
            Variant::Stock => return settings,
            Variant::Builtin => "y",
            Variant::NoBuiltin => "n",
        };
        settings.push(Setting {
            name: BUILTIN.into(),
            value: value.into(),
        });
        settings
    }

    /// Checks that a .config has each option with the value asked for.
    ///
    /// An option whose dependencies are missing disappears without a word from Kconfig. One
    /// that is asked to be off may be absent, except the series' own: its absence means that
    /// the series does not define it.
    pub fn check(&self, variant: Variant, config: &str) -> Result<()> {
        let actual: Vec<Setting> = config.lines().filter_map(Setting::parse).collect();
        let mut wrong = Vec::new();
        for wanted in self.wanted(variant) {
            let found = actual.iter().find(|setting| setting.name == wanted.name);
            let value = found.map(|setting| setting.value.as_str());
            let may_be_absent = wanted.value == "n" && wanted.name != BUILTIN;
            if value == Some(&wanted.value) || (value.is_none() && may_be_absent) {
                continue;
            }
            wrong.push(format!(
                "{}: asked for {}, got {}",
                wanted.name,
                wanted.value,
                value.unwrap_or("nothing (no such option, or its dependencies are missing)")
            ));
        }
        if wrong.is_empty() {
            return Ok(());
        }
        bail!(
            "the configuration is not as asked for:\n    {}",
            wrong.join("\n    ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(text: &str) -> Fragment {
        Fragment {
            settings: text.lines().filter_map(Setting::parse).collect(),
        }
    }

    #[test]
    fn comments_are_not_options() {
        assert_eq!(Setting::parse("# Rust = safe"), None);
        let unset = Setting::parse("# CONFIG_A is not set").unwrap();
        assert_eq!(unset.value, "n");
        assert_eq!(unset.line(), "# CONFIG_A is not set");
    }

    #[test]
    fn an_option_that_vanished_is_named() {
        let wanted = fragment("CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\n");
        let config = "CONFIG_A=y\nCONFIG_BB=m\n";
        let error = wanted
            .check(Variant::Stock, config)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("CONFIG_B: asked for m, got nothing"),
            "{error}"
        );
        assert!(
            !error.contains("CONFIG_C") && !error.contains("CONFIG_A"),
            "{error}"
        );
    }

    #[test]
    fn the_option_of_the_series_must_exist_in_patched_kernels_only() {
        let wanted = fragment("CONFIG_A=y\n");
        assert!(wanted.check(Variant::Stock, "CONFIG_A=y\n").is_ok());
        assert!(wanted.check(Variant::NoBuiltin, "CONFIG_A=y\n").is_err());
        let unset = "CONFIG_A=y\n# CONFIG_KVM_NESTED_BUILTIN is not set\n";
        assert!(wanted.check(Variant::NoBuiltin, unset).is_ok());
        assert!(wanted.check(Variant::Builtin, unset).is_err());
    }

    #[test]
    fn the_fragments_of_this_tree_do_not_contradict_each_other() {
        let checkout = crate::options::checkout().unwrap();
        let fragment = Fragment::read(&checkout, true).unwrap();
        let text = fragment.text(Variant::Builtin);
        assert!(text.contains("CONFIG_RUST=y\n"));
        assert!(text.ends_with("CONFIG_KVM_NESTED_BUILTIN=y\n"));
        assert!(!fragment.text(Variant::Stock).contains("NESTED_BUILTIN"));
    }
}
