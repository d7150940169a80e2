// SPDX-License-Identifier: GPL-2.0

//! sparse on the C files that the series changes and on our helpers.
//!
//! KVM's files have warnings of their own. Those that the original files give, too, do not
//! count: kbuild's call of sparse is repeated with each path of the tree replaced by one in a
//! copy with the original files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Context, Finding, quiet_command};
use crate::command::{self, quote};
use crate::modules;
use crate::options::default_jobs;

/// sparse 0.6.4 does not know this keyword of newer compilers, stumbles over most of the
/// kernel's headers, and crashes; what the keyword adds does not matter to its checks.
const KEYWORD: &str = "-D__typeof_unqual__=__typeof__";

/// Directories that a translation unit of KVM reads from the source tree.
const SHADOWED: [&str; 3] = ["arch/x86", "include", "virt"];

/// Compares the warnings of patched and of original files, then checks our helpers.
pub fn check(context: &Context<'_>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let touched: Vec<PathBuf> = context.series.touched()?.into_iter().collect();
    let has_c = touched
        .iter()
        .any(|path| path.extension().is_some_and(|e| e == "c"));
    findings.push(if has_c {
        Finding::silent(series(context, &touched))
    } else {
        Finding::Skipped("the series changes no C file".into())
    });
    findings.push(if context.tree.checkout().join("Kbuild").is_file() {
        Finding::silent(helpers(context))
    } else {
        Finding::Skipped("the tree has no Kbuild".into())
    });
    Ok(findings)
}

/// Returns the warnings in files of the series that the original files do not give.
fn series(context: &Context<'_>, touched: &[PathBuf]) -> Result<String> {
    let lock = context.cache.lock(&context.kernel.lock)?;
    let dir = context.scratch("sparse")?;
    let tree = &context.kernel.srctree;
    let shadow = dir.join("tree");
    shadow_tree(context, touched, &shadow)?;
    let script = checker(&dir, tree, &shadow, touched)?;

    let mut make = context.toolchain.make(tree);
    make.arg(format!("O={}", context.kernel.objtree.display()))
        .arg(format!("-j{}", default_jobs()))
        .args(["C=2", "arch/x86/kvm/"])
        .arg(format!("CHECK={}", script.display()));
    lock.share_with(&mut make)?;
    command::logged(&mut make, &context.cache.log("sparse")?, |_| ())?;

    let patched = warnings(&dir.join("patched"), tree)?;
    let original = warnings(&dir.join("original"), &shadow)?;
    if !dir.join("seen").is_file() {
        bail!("kbuild ran sparse on none of the files of the series");
    }
    if let Ok(crashes) = fs::read_to_string(dir.join("crashed")) {
        bail!("sparse crashed on\n{}", crashes.trim_end());
    }
    Ok(added(&patched, &original, touched).join("\n"))
}

/// Returns the warnings in files of the checkout.
fn helpers(context: &Context<'_>) -> Result<String> {
    let checkout = context.tree.checkout();
    let dir = modules::build_dir(checkout, &context.kernel);
    let guard = modules::lock(context.cache, checkout, &context.kernel)?;
    let mut make = modules::make(&context.toolchain, &context.kernel, checkout, &dir, &guard)?;
    make.args(["C=2", "modules"])
        .arg(format!("CHECK=sparse {KEYWORD}"))
        .arg(format!("-j{}", default_jobs()));
    let root = checkout.display().to_string();
    let mut found = Vec::new();
    command::logged(&mut make, &context.cache.log("sparse-helpers")?, |line| {
        if line.starts_with(&root) && (line.contains("warning:") || line.contains("error:")) {
            found.push(line.to_owned());
        }
    })?;
    Ok(found.join("\n"))
}

/// Makes a tree of links to the patched one, with the original files in place of the changed.
fn shadow_tree(context: &Context<'_>, touched: &[PathBuf], shadow: &Path) -> Result<()> {
    for dir in SHADOWED {
        let target = shadow.join(dir);
        fs::create_dir_all(target.parent().context("a directory of the tree")?)?;
        let mut copy = quiet_command("cp");
        copy.args(["-rs"])
            .arg(context.kernel.srctree.join(dir))
            .arg(&target);
        command::output(&mut copy)?;
    }
    for path in touched {
        let target = shadow.join(path);
        crate::cache::remove_all(&target)?;
        let original = context.source.pristine().join("files").join(path);
        if original.is_file() {
            fs::create_dir_all(target.parent().context("a file of the tree")?)?;
            fs::copy(&original, &target)?;
        }
    }
    Ok(())
}

/// Writes the program that kbuild calls as sparse.
///
/// It looks at files of the series only, keeps the output of both runs and notes a crash. It
/// never fails: what the two runs differ in is the verdict.
fn checker(dir: &Path, tree: &Path, shadow: &Path, touched: &[PathBuf]) -> Result<PathBuf> {
    let sources: Vec<String> = touched
        .iter()
        .map(|path| quote(&tree.join(path).to_string_lossy()))
        .collect();
    for sub in ["patched", "original"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    let script = format!(
        r#"#!/bin/bash
# Arguments: those of sparse; the last is the source file.
check() {{
	local output=$1/$$
	shift
	sparse {KEYWORD} "$@" 2> "$output"
	[ $? -lt 128 ] || echo "${{@: -1}}" >> {crashed}
}}
file=$(realpath "${{@: -1}}")
for source in {sources}; do
	[ "$file" = "$source" ] || continue
	touch {seen}
	check {patched} "$@"
	original=("${{@//{tree}//{shadow}/}}")
	[ ! -e "${{original[-1]}}" ] || check {original} "${{original[@]}}"
done
exit 0
"#,
        sources = sources.join(" "),
        crashed = quote(&dir.join("crashed").to_string_lossy()),
        seen = quote(&dir.join("seen").to_string_lossy()),
        patched = quote(&dir.join("patched").to_string_lossy()),
        original = quote(&dir.join("original").to_string_lossy()),
        tree = pattern(tree),
        shadow = pattern(shadow),
    );
    let path = dir.join("sparse");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Returns a path as a pattern of bash's substitution.
fn pattern(path: &Path) -> String {
    let mut text = String::new();
    for c in path.to_string_lossy().chars() {
        if !c.is_ascii_alphanumeric() {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

/// A warning: the file in the tree and the text, without a position.
type Warnings = BTreeMap<(PathBuf, String), Vec<String>>;

/// Collects the warnings of a run; each has the lines that it was given at.
fn warnings(dir: &Path, tree: &Path) -> Result<Warnings> {
    let mut warnings = Warnings::new();
    for file in fs::read_dir(dir)? {
        let text = fs::read(file?.path())?;
        for line in String::from_utf8_lossy(&text).lines() {
            if let Some((file, message)) = parse(line, tree) {
                let lines = warnings.entry((file, message)).or_default();
                // A header is read by several units.
                if !lines.iter().any(|known| known == line) {
                    lines.push(line.to_owned());
                }
            }
        }
    }
    Ok(warnings)
}

/// Parses `path:line:column: message`.
fn parse(line: &str, tree: &Path) -> Option<(PathBuf, String)> {
    let mut parts = line.splitn(4, ':');
    let path = parts.next()?;
    parts.next()?.parse::<u32>().ok()?;
    parts.next()?.parse::<u32>().ok()?;
    let message = parts.next()?.trim();
    let path = Path::new(path);
    let path = normal(path);
    let path = path.strip_prefix(tree).unwrap_or(&path);
    // Continuation lines, which sparse indents by dots, belong to the warning before them.
    let is_warning = message.starts_with("warning:") || message.starts_with("error:");
    is_warning.then(|| (path.to_owned(), message.to_owned()))
}

/// Resolves `..` without following links: the shadow tree consists of links.
fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}

/// Returns the lines of warnings in touched files that occur more often than before.
fn added(patched: &Warnings, original: &Warnings, touched: &[PathBuf]) -> Vec<String> {
    let mut lines = Vec::new();
    for (warning, places) in patched {
        let before = original.get(warning).map_or(0, Vec::len);
        if touched.contains(&warning.0) && places.len() > before {
            lines.extend(places.iter().cloned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(lines: &[&str], tree: &str) -> Warnings {
        let mut warnings = Warnings::new();
        for line in lines {
            let key = parse(line, Path::new(tree)).unwrap();
            warnings.entry(key).or_default().push((*line).to_owned());
        }
        warnings
    }

    #[test]
    fn a_warning_that_only_moved_is_not_new() {
        let original = collect(&["/o/kvm/x86.c:10:3: warning: context"], "/o");
        let patched = collect(&["/p/kvm/x86.c:20:3: warning: context"], "/p");
        let touched = [PathBuf::from("kvm/x86.c")];
        assert!(added(&patched, &original, &touched).is_empty());
    }

    #[test]
    fn a_second_warning_of_the_same_text_is_new() {
        let original = collect(&["/o/a.c:10:3: warning: context"], "/o");
        let patched = collect(
            &[
                "/p/a.c:10:3: warning: context",
                "/p/a.c:30:3: warning: context",
            ],
            "/p",
        );
        assert_eq!(added(&patched, &original, &[PathBuf::from("a.c")]).len(), 2);
        assert!(added(&patched, &original, &[PathBuf::from("b.c")]).is_empty());
    }

    #[test]
    fn paths_with_parent_directories_are_the_files_they_name() {
        let line = "/t/arch/x86/kvm/../../../virt/kvm/kvm_main.c:5:1: warning: text";
        let (path, message) = parse(line, Path::new("/t")).unwrap();
        assert_eq!(path, Path::new("virt/kvm/kvm_main.c"));
        assert_eq!(message, "warning: text");
    }

    #[test]
    fn substitution_patterns_quote_what_bash_would_read() {
        assert_eq!(pattern(Path::new("/a b/*")), r"\/a\ b\/\*");
    }
}
