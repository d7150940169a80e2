// SPDX-License-Identifier: GPL-2.0

//! Smaller cases.

use super::{Action, Case};

/// Returns cases that are a little smaller than `case`, the much smaller ones first.
pub fn candidates(case: &Case) -> Vec<Case> {
    let mut smaller = Vec::new();
    for (actions, replace) in [
        (&case.code, with_code as fn(&Case, Vec<Action>) -> Case),
        (&case.steps, with_steps),
    ] {
        let mut length = actions.len();
        while length > 0 {
            for start in (0..actions.len()).step_by(length) {
                let mut rest = actions.clone();
                rest.drain(start..(start + length).min(actions.len()));
                smaller.push(replace(case, rest));
            }
            length /= 2;
        }
    }
    smaller
}

fn with_code(case: &Case, code: Vec<Action>) -> Case {
    Case {
        code,
        ..case.clone()
    }
}

fn with_steps(case: &Case, steps: Vec<Action>) -> Case {
    Case {
        steps,
        ..case.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Vendor;

    #[test]
    fn each_action_is_left_out_once_alone() {
        let action = |number| Action::new("nop", &[number]);
        let case = Case {
            vendor: Vendor::Svm,
            code: vec![action(1)],
            steps: (2..5).map(action).collect(),
        };
        let smaller = candidates(&case);
        assert!(smaller
            .iter()
            .all(|other| other.code.len() + other.steps.len() < 4));
        for left_out in 0..3 {
            let mut steps = case.steps.clone();
            steps.remove(left_out);
            assert!(smaller.contains(&with_steps(&case, steps)));
        }
    }
}
