//! The house rules: who may use whom, pure modules declare themselves pure, `unsafe` in `sys` only, no endless files.

use crate::source;
use std::fmt;

/// Lines of a source file at most.
pub const MAX_FILE_LINES: usize = 800;

/// One module and the modules of this crate that it may use (beside itself).
pub struct Module {
    /// Its name below `src/`.
    pub name: &'static str,
    /// No sockets, files, clocks, randomness of its own.
    pub pure: bool,
    /// What it may use.
    pub uses: &'static [&'static str],
}

const fn pure(name: &'static str, uses: &'static [&'static str]) -> Module {
    Module { name, pure: true, uses }
}

const fn shell(name: &'static str, uses: &'static [&'static str]) -> Module {
    Module { name, pure: false, uses }
}

/// The arrows. `sim`, `fuzz` and `main` are not listed: they may use everything.
pub const MODULES: &[Module] = &[
    pure("types", &[]),
    pure("crypto", &["types"]),
    pure("wire", &["types", "crypto"]),
    pure("esp", &["types", "crypto", "wire"]),
    pure("offload", &["types", "wire"]),
    pure("overlay", &["types", "wire"]),
    pure("path", &["types"]),
    pure("gossip", &["types", "crypto", "wire"]),
    pure("cluster", &["types", "crypto", "wire"]),
    pure("keys", &["types", "crypto", "wire", "esp"]),
    pure("raft", &["types"]),
    shell("sys", &["types"]),
    shell("helper", &["types", "sys"]),
    shell("dataplane", &["types", "crypto", "wire", "esp", "offload", "overlay", "sys"]),
    shell("tls", &["types", "crypto", "wire", "sys"]),
    shell("manager", &["types", "crypto", "wire", "esp", "cluster", "raft", "sys", "tls"]),
    shell(
        "agent",
        &[
            "types",
            "crypto",
            "wire",
            "esp",
            "overlay",
            "path",
            "gossip",
            "keys",
            "cluster",
            "sys",
            "helper",
            "dataplane",
            "tls",
            "manager",
        ],
    ),
    shell("api", &["types", "cluster", "sys", "manager", "agent"]),
    shell("daemon", &["types", "sys", "helper", "dataplane", "tls", "manager", "agent", "api"]),
    shell("doctor", &["types", "sys", "dataplane", "api"]),
    shell("cli", &["api", "daemon", "doctor"]),
];

/// Modules that may use everything.
const FREE: &[&str] = &["sim", "fuzz", "main", "lib"];

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path below `src/`.
    pub file: String,
    /// 1-based line.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Checks one file; `path` is below `src/`, with `/`.
pub fn check_file(path: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |line: usize, what: String| found.push(Violation { file: path.to_owned(), line, what });
    let lines = text.lines().count();
    if lines > MAX_FILE_LINES {
        report(lines, format!("{lines} lines, at most {MAX_FILE_LINES}: make two rooms of it"));
    }
    let module = top_module(path);
    let stripped = source::strip(text);
    if module != "sys" {
        for at in source::words(&stripped, "unsafe") {
            report(source::line_of(&stripped, at), "`unsafe` outside of src/sys".to_owned());
        }
    }
    if is_test(path) || FREE.contains(&module) {
        return found;
    }
    let Some(rule) = MODULES.iter().find(|rule| rule.name == module) else {
        report(1, format!("module `{module}` has no arrows: add it to tools/src/arrows.rs"));
        return found;
    };
    if rule.pure && is_root(path, module) {
        for line in ["#![forbid(unsafe_code)]", "#![deny(clippy::disallowed_methods)]"] {
            if !stripped.lines().any(|l| l.trim() == line) {
                report(1, format!("pure module without `{line}`"));
            }
        }
    }
    let code = source::without_tests(&stripped);
    for (at, used) in crate_uses(path, &code) {
        let known = MODULES.iter().any(|m| m.name == used) || FREE.contains(&used.as_str());
        if used != module && known && !rule.uses.contains(&used.as_str()) {
            report(source::line_of(&code, at), format!("`{module}` may not use `{used}`"));
        }
    }
    found
}

/// `esp/window.rs` -> `esp`, `esp.rs` -> `esp`.
fn top_module(path: &str) -> &str {
    let first = path.split('/').next().unwrap_or(path);
    first.strip_suffix(".rs").unwrap_or(first)
}

fn is_root(path: &str, module: &str) -> bool {
    path == format!("{module}.rs") || path == format!("{module}/mod.rs")
}

/// `tests.rs`, `x_tests.rs`, anything in a directory `tests`: compiled for tests only.
pub fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs"))
}

/// Top-level modules named by `crate::x`, `crate::{x, y::z}` and by `super::` paths that climb to the crate.
fn crate_uses(path: &str, code: &str) -> Vec<(usize, String)> {
    let mut uses = Vec::new();
    for at in source::words(code, "crate") {
        if let Some(rest) = code[at + "crate".len()..].strip_prefix("::") {
            uses.extend(heads(rest).into_iter().map(|name| (at, name)));
        }
    }
    let depth = module_depth(path);
    for at in source::words(code, "super") {
        if code[..at].ends_with("::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut climbed = 0;
        while let Some(after) = rest.strip_prefix("super::") {
            climbed += 1;
            rest = after;
        }
        if climbed >= depth {
            uses.extend(heads(rest).into_iter().map(|name| (at, name)));
        }
    }
    uses
}

/// Modules between the crate and this file's module, itself included: `esp/mod.rs` 1, `esp/window.rs` 2.
fn module_depth(path: &str) -> usize {
    let parts = path.split('/').count();
    if path.ends_with("/mod.rs") { parts - 1 } else { parts }
}

/// First identifiers of a path or of each path of a brace group.
fn heads(rest: &str) -> Vec<String> {
    let word = |text: &str| text.trim_start().chars().take_while(|&c| source::is_word(c)).collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let mut found = vec![word(group)];
    let mut depth = 0usize;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => found.push(word(&group[at + 1..])),
            _ => {}
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(path: &str, text: &str) -> Vec<String> {
        check_file(path, text).into_iter().map(|v| format!("{}:{}", v.line, v.what)).collect()
    }

    #[test]
    fn an_arrow_against_the_direction_is_found_in_every_spelling() {
        for text in [
            "use crate::sys::tun;",
            "use crate::{types::Time, sys};",
            "use crate::{wire::{esp, ip}, sys::tun};",
            "fn f() { crate::sys::open() }",
            "use super::super::sys::tun;",
        ] {
            assert_eq!(whats("esp/window.rs", text), ["1:`esp` may not use `sys`"], "{text}");
        }
        assert_eq!(whats("cli/node.rs", "use crate::agent::Node;"), ["1:`cli` may not use `agent`"]);
        assert_eq!(whats("types/id.rs", "\nuse crate::wire::esp;"), ["2:`types` may not use `wire`"]);
    }

    #[test]
    fn allowed_arrows_prose_and_tests_pass() {
        for text in [
            "use crate::types::Time;\nuse crate::wire::esp;\nuse super::window::Window;",
            "// crate::sys is not ours\nconst A: &str = \"crate::sys\";",
            "#[cfg(test)]\nmod tests { use crate::sys::tun; }",
            "/// See [`crate::sys`].\nfn f() {}",
        ] {
            assert!(whats("esp/window.rs", text).is_empty(), "{text}: {:?}", whats("esp/window.rs", text));
        }
        assert!(whats("esp/tests.rs", "use crate::sim::World;").is_empty());
        assert!(whats("sim/mod.rs", "use crate::manager::Manager;").is_empty());
    }

    #[test]
    fn pure_modules_say_so() {
        let lines = "//! Doc.\n#![forbid(unsafe_code)]\n#![deny(clippy::disallowed_methods)]\n";
        assert!(whats("esp/mod.rs", lines).is_empty());
        assert_eq!(whats("esp/mod.rs", "//! #![forbid(unsafe_code)]\n#![deny(clippy::disallowed_methods)]").len(), 1);
        assert_eq!(whats("esp.rs", "").len(), 2);
        assert!(whats("agent/mod.rs", "").is_empty());
    }

    #[test]
    fn unsafe_only_in_sys() {
        assert!(whats("sys/mod.rs", "fn f() { unsafe { g() } }").is_empty());
        assert_eq!(whats("agent/node.rs", "\nfn f() { unsafe { g() } }"), ["2:`unsafe` outside of src/sys"]);
        assert_eq!(whats("agent/tests.rs", "unsafe fn f() {}"), ["1:`unsafe` outside of src/sys"]);
        assert!(whats("agent/node.rs", "#![forbid(unsafe_code)]").is_empty());
    }

    #[test]
    fn long_files_and_unknown_modules_are_named() {
        let long = "\n".repeat(MAX_FILE_LINES + 1);
        assert_eq!(whats("agent/node.rs", &long).len(), 1);
        assert_eq!(whats("cellar/mod.rs", "").len(), 1);
    }

    #[test]
    fn every_arrow_points_to_a_listed_module_and_none_goes_round() {
        for (index, module) in MODULES.iter().enumerate() {
            for used in module.uses {
                let target = MODULES.iter().position(|m| m.name == *used);
                assert!(target.is_some_and(|target| target < index), "{} -> {used}", module.name);
                assert!(!module.pure || MODULES[target.unwrap()].pure, "pure {} -> {used}", module.name);
            }
        }
    }
}
