// SPDX-License-Identifier: GPL-2.0

//! Cases as text: a line for what L2 executes, and for each step of L1.

use std::fmt;
use std::str::FromStr;

use anyhow::{bail, ensure, Context, Error, Result};

use super::{code, vocabulary, Action, Case};
use crate::guest::Vendor;

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vendor = match self.vendor {
            Vendor::Svm => "svm",
            Vendor::Vmx => "vmx",
        };
        writeln!(f, "vendor {vendor}")?;
        for (who, actions) in [("code", &self.code), ("step", &self.steps)] {
            for action in actions {
                write!(f, "{who} {}", action.verb)?;
                let count = operands(self.vendor, who, action.verb).map_or(0, |(_, count)| count);
                for operand in action.operands.iter().take(count) {
                    write!(f, " {operand:#x}")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// Returns the verb with a name, and its number of operands.
fn operands(vendor: Vendor, who: &str, verb: &str) -> Option<(&'static str, usize)> {
    match who {
        "code" => code::find(verb),
        _ => vocabulary::find(vendor, verb),
    }
}

fn number(word: &str) -> Result<u64> {
    let number = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    number.with_context(|| format!("{word:?} is no number"))
}

impl FromStr for Case {
    type Err = Error;

    /// Reads what [`Display`](fmt::Display) has written; the rest of a line behind `#` is ignored.
    fn from_str(text: &str) -> Result<Self> {
        let mut vendor = None;
        let (mut code, mut steps) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let words = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = words.split_whitespace().collect();
            match words[..] {
                [] => {}
                ["vendor", "svm"] => vendor = Some(Vendor::Svm),
                ["vendor", "vmx"] => vendor = Some(Vendor::Vmx),
                [who @ ("code" | "step"), verb, ref rest @ ..] => {
                    let vendor = vendor.context("the vendor comes first")?;
                    let (verb, count) =
                        operands(vendor, who, verb).with_context(|| format!("no verb {verb:?}"))?;
                    ensure!(rest.len() == count, "{line:?}: {count} operands");
                    let values: Vec<u64> = rest
                        .iter()
                        .map(|word| number(word))
                        .collect::<Result<_>>()?;
                    let action = Action::new(verb, &values);
                    if who == "code" {
                        code.push(action);
                    } else {
                        steps.push(action);
                    }
                }
                _ => bail!("what is {line:?}?"),
            }
        }
        let vendor = vendor.context("no vendor")?;
        Ok(Self {
            vendor,
            code,
            steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::generate;

    #[test]
    fn a_case_is_what_its_text_says() {
        for vendor in [Vendor::Svm, Vendor::Vmx] {
            for number in 0..200 {
                let case = generate::case(vendor, 1, number, &|_| 0x55);
                assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
            }
        }
    }

    #[test]
    fn what_is_no_case_is_refused() {
        for text in [
            "",
            "code cpuid 0 0",
            "vendor arm",
            "vendor vmx\nstep vmrun 0x0",
            "vendor svm\nstep stgi 0x1",
            "vendor svm\ncode cpuid x 0",
        ] {
            assert!(text.parse::<Case>().is_err(), "{text:?}");
        }
    }
}
