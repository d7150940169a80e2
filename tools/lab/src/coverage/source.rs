// SPDX-License-Identifier: GPL-2.0

//! Which lines of a source file are tests, and which are for the compiler only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, Signature};
use walkdir::WalkDir;

/// Why lines of a constant function are not executed.
const CONSTANT: &str = "the compiler evaluates it";

/// Why the `else` of a `let` is not executed.
pub const WAY_OUT: &str =
    "in the place of a panic: nothing leads there unless something else is wrong";

/// Why the line that ends a block is not executed, although the line before it is.
pub const END: &str = "the end of a block that is left in another way";

/// Why another try is not made.
const RACE: &str =
    "another processor has changed the word meanwhile, which no schedule of a test does";

/// A range of lines.
type Range = RangeInclusive<usize>;

/// A source file.
#[derive(Debug, Default)]
pub struct Source {
    tests: Vec<Range>,
    /// With the reasons for which they are not executed.
    excused: Vec<(Range, &'static str)>,
    functions: Vec<(Range, String)>,
    lines: Vec<String>,
    /// Modules in files of their own that are tests.
    test_modules: BTreeSet<String>,
    is_test: bool,
}

impl Source {
    /// Reads the files below a directory, by their paths.
    pub fn all(root: &Path) -> Result<BTreeMap<String, Self>> {
        let mut sources = BTreeMap::new();
        for entry in WalkDir::new(root)
            .into_iter()
            .filter_entry(|entry| entry.file_name() != "target")
        {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(path)?;
                let source = Self::parse(&text).with_context(|| path.display().to_string())?;
                let name = path.strip_prefix(root)?.with_extension("");
                sources.insert(name.display().to_string(), source);
            }
        }
        mark_tests(&mut sources);
        let with_ending = |(name, source)| (format!("{name}.rs"), source);
        Ok(sources.into_iter().map(with_ending).collect())
    }

    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self> {
        let mut source = Self::default();
        source.visit_file(&syn::parse_file(text)?);
        for (number, line) in (1..).zip(text.lines()) {
            let reason = match line.trim() {
                "}" => Some(END),
                line if line.starts_with("Err(now) =>") => Some(RACE),
                _ => None,
            };
            source
                .excused
                .extend(reason.map(|reason| (number..=number, reason)));
            source.lines.push(line.to_owned());
        }
        Ok(source)
    }

    /// Returns whether a line is there for tests only.
    pub fn is_test(&self, line: usize) -> bool {
        self.is_test || self.tests.iter().any(|range| range.contains(&line))
    }

    /// Returns why a line is not executed, if its form tells.
    pub fn excuse(&self, line: usize) -> Option<&'static str> {
        let excuse = self.excused.iter().find(|(range, _)| range.contains(&line));
        excuse.map(|(_, reason)| *reason)
    }

    /// Returns the text of a line.
    pub fn line(&self, number: usize) -> &str {
        let line = number
            .checked_sub(1)
            .and_then(|index| self.lines.get(index));
        line.map_or("", String::as_str)
    }

    /// Returns the name of the innermost function around a line.
    pub fn function(&self, line: usize) -> &str {
        let around = self
            .functions
            .iter()
            .filter(|(range, _)| range.contains(&line));
        let innermost = around.min_by_key(|(range, _)| range.end() - range.start());
        innermost.map_or("", |(_, name)| name)
    }

    fn function_at(&mut self, range: Range, signature: &Signature) {
        if signature.constness.is_some() {
            self.excused.push((range.clone(), CONSTANT));
        }
        self.functions.push((range, signature.ident.to_string()));
    }
}

/// Marks the files of modules that are tests, and those below them.
fn mark_tests(sources: &mut BTreeMap<String, Source>) {
    let mut tests = BTreeSet::new();
    for (name, source) in sources.iter() {
        let path = Path::new(name);
        // The modules of `a/b.rs` are in `a/b/`; those of the crate's root are beside it.
        let directory = if path.parent() == Some(Path::new("")) && path == Path::new("nested") {
            path.with_file_name("")
        } else {
            path.to_owned()
        };
        for module in &source.test_modules {
            tests.insert(directory.join(module).display().to_string());
            // A path attribute names a file beside this one.
            tests.insert(path.with_file_name(module).display().to_string());
        }
    }
    for (name, source) in sources {
        let below = |test: &String| {
            name.strip_prefix(test.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        source.is_test = tests.iter().any(below);
    }
}

/// Returns whether attributes leave an item to tests.
fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return attribute.path().is_ident("test");
        };
        let tokens = list.tokens.to_string();
        let mut words = tokens.split(|c: char| !c.is_alphanumeric() && c != '_');
        list.path.is_ident("cfg") && words.any(|word| word == "test") && !tokens.contains("not")
    })
}

fn lines(item: &impl Spanned) -> Range {
    let span = item.span();
    span.start().line..=span.end().line
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Source {
    fn visit_item(&mut self, item: &'ast Item) {
        if for_tests(attributes(item)) {
            self.tests.push(lines(item));
            if let Item::Mod(module) = item {
                if module.content.is_none() {
                    self.test_modules.insert(file_of(module));
                }
            }
        }
        visit::visit_item(self, item);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        let way_out = local.init.as_ref().and_then(|init| init.diverge.as_ref());
        if let Some((_, way_out)) = way_out {
            self.excused.push((lines(way_out), WAY_OUT));
        }
        visit::visit_local(self, local);
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function_at(lines(function), &function.sig);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function_at(lines(function), &function.sig);
        if for_tests(&function.attrs) {
            self.tests.push(lines(function));
        }
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        self.function_at(lines(function), &function.sig);
        visit::visit_trait_item_fn(self, function);
    }
}

/// Returns the name of a module's file without its ending.
fn file_of(module: &syn::ItemMod) -> String {
    let path = module
        .attrs
        .iter()
        .find_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                syn::Expr::Lit(syn::ExprLit {
                    lit: syn::Lit::Str(text),
                    ..
                }) => Some(text.value()),
                _ => None,
            },
            _ => None,
        });
    match path {
        Some(path) => path.trim_end_matches(".rs").to_owned(),
        None => module.ident.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_told_from_what_they_test() {
        let text = "fn a() {\n}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nconst fn c() {\n}\n\
                    struct S;\nimpl S {\n    #[cfg(test)]\n    fn d() {}\n    fn e() {}\n}\n\
                    #[cfg(not(test))]\nfn f() {}\n";
        let source = Source::parse(text).unwrap();
        let tests: Vec<usize> = (1..=17).filter(|line| source.is_test(*line)).collect();
        assert_eq!(tests, [3, 4, 5, 6, 11, 12]);
        assert_eq!((source.excuse(7), source.excuse(1)), (Some(CONSTANT), None));
        assert_eq!((source.function(1), source.function(13)), ("a", "e"));
    }

    #[test]
    fn the_form_of_some_lines_tells_why_they_are_not_executed() {
        let text = "fn a() {\n    let Some(b) = c else {\n        return;\n    };\n    loop {\n\
                    match d {\n            Err(now) => {}\n        }\n    }\n}\n";
        let source = Source::parse(text).unwrap();
        let excuses: Vec<_> = (1..=8).map(|line| source.excuse(line)).collect();
        assert_eq!(excuses[2], Some(WAY_OUT));
        assert_eq!((excuses[6], excuses[7]), (Some(RACE), Some(END)));
        assert_eq!((excuses[0], excuses[4], excuses[5]), (None, None, None));
    }

    #[test]
    fn files_of_tests_are_found_by_their_modules() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "nested.rs",
            "mod a;\n#[cfg(any(test, CONFIG_KUNIT))]\nmod fake;",
        );
        write("fake.rs", "");
        write(
            "a.rs",
            "#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[path = \"b_tests.rs\"]\nmod c;",
        );
        write("a/tests.rs", "mod below;");
        write("a/tests/below.rs", "");
        write("b_tests.rs", "");
        write("a/testing.rs", "");
        let sources = Source::all(dir.path()).unwrap();
        let tests: Vec<&str> = sources
            .iter()
            .filter(|(_, source)| source.is_test)
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(
            tests,
            ["a/tests.rs", "a/tests/below.rs", "b_tests.rs", "fake.rs"]
        );
    }
}
