//! Licences of the dependencies, from `cargo metadata`, against an allow-list; and the crate documentation's table of
//! direct dependencies, so that none comes in without a reason.

use anyhow::{Context, Result};
use serde_json::Value;

/// Licences that a dependency may be used under: permissive, or weak copyleft by file (MPL-2.0).
pub const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages (name, version, licence) whose licence is not allowed. Members of the workspace are not looked at.
pub fn violators(metadata: &Value) -> Result<Vec<String>> {
    let members = list(metadata, "workspace_members")?;
    let mut bad = Vec::new();
    for package in list(metadata, "packages")? {
        if members.contains(&package["id"]) {
            continue;
        }
        let name = text(package, "name")?;
        let version = text(package, "version")?;
        let licence = package["license"].as_str().unwrap_or("");
        if !allowed(licence) {
            bad.push(format!("{name} {version}: licence `{licence}` is not on the list"));
        }
    }
    Ok(bad)
}

/// Direct dependencies of the package `name` (not for tests or builds only), by package name.
pub fn direct(metadata: &Value, name: &str) -> Result<Vec<String>> {
    let package = list(metadata, "packages")?
        .iter()
        .find(|package| package["name"] == name && package["source"].is_null())
        .with_context(|| format!("no package {name} in the metadata"))?;
    let kinds = list(package, "dependencies")?.iter().filter(|dependency| dependency["kind"].is_null());
    kinds.map(|dependency| Ok(text(dependency, "name")?.to_owned())).collect()
}

/// The dependencies that have no row `| name | why |` below the heading `# Dependencies` of the documentation.
pub fn unexplained(direct: &[String], documentation: &str) -> Vec<String> {
    let lines = documentation.lines().filter_map(|line| line.trim().strip_prefix("//!")).map(str::trim);
    let table: Vec<&str> = lines
        .skip_while(|line| !(line.starts_with('#') && line.ends_with("Dependencies")))
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .collect();
    direct.iter().filter(|name| !table.iter().any(|row| explains(row, name))).cloned().collect()
}

/// Whether a row names the crate in its first column (alone or in a list) and says something in a later one.
fn explains(row: &str, name: &str) -> bool {
    let mut cells = row.trim_matches('|').split('|').map(str::trim);
    let named = cells.next().is_some_and(|cell| cell.split([',', ' ', '`', '[', ']']).any(|word| word == name));
    named && cells.any(|cell| !cell.is_empty())
}

/// Whether an SPDX expression can be met by [`ALLOWED`]. `/` is the old spelling of `OR`.
pub fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { tokens: &tokens };
    let met = parser.any();
    met == Some(true) && parser.tokens.is_empty()
}

struct Parser<'a> {
    tokens: &'a [&'a str],
}

impl Parser<'_> {
    fn take(&mut self, token: &str) -> bool {
        match self.tokens.split_first() {
            Some((first, rest)) if *first == token => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }

    fn any(&mut self) -> Option<bool> {
        let mut met = self.all()?;
        while self.take("OR") {
            met |= self.all()?;
        }
        Some(met)
    }

    fn all(&mut self) -> Option<bool> {
        let mut met = self.one()?;
        while self.take("AND") {
            met &= self.one()?;
        }
        Some(met)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let met = self.any()?;
            return self.take(")").then_some(met);
        }
        let (name, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        if !self.take("WITH") {
            return Some(ALLOWED.contains(name));
        }
        let (exception, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(ALLOWED.contains(&format!("{name} WITH {exception}").as_str()))
    }
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("metadata without the list `{key}`"))
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("metadata without the text `{key}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expressions() {
        for good in
            ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(MIT OR GPL-2.0) AND ISC", "Apache-2.0 WITH LLVM-exception"]
        {
            assert!(allowed(good), "{good}");
        }
        for bad in
            ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT", "MIT)", "MIT ISC", "GPL-2.0 WITH LLVM-exception", "OR MIT"]
        {
            assert!(!allowed(bad), "{bad}");
        }
    }

    #[test]
    fn a_forbidden_licence_is_named_and_members_are_not_looked_at() {
        let metadata = json!({
            "workspace_members": ["own"],
            "packages": [
                {"id": "own", "name": "own", "version": "1.0.0", "license": "Proprietary"},
                {"id": "good", "name": "good", "version": "1.0.0", "license": "MIT"},
                {"id": "bad", "name": "bad", "version": "2.1.0", "license": "AGPL-3.0"},
                {"id": "none", "name": "none", "version": "0.1.0", "license": null},
            ],
        });
        let bad = violators(&metadata).unwrap();
        assert_eq!(bad.len(), 2);
        assert!(bad[0].starts_with("bad 2.1.0") && bad[1].starts_with("none 0.1.0"));
    }

    #[test]
    fn only_normal_dependencies_are_direct() {
        let metadata = json!({"packages": [{
            "name": "own", "source": null,
            "dependencies": [{"name": "a", "kind": null}, {"name": "b", "kind": "dev"}, {"name": "c", "kind": "build"}],
        }]});
        assert_eq!(direct(&metadata, "own").unwrap(), ["a"]);
    }

    #[test]
    fn a_dependency_without_a_reason_is_named() {
        let documentation = "//! # Dependencies\n//! | crate | why |\n//! |---|---|\n//! | `a`, `b` | good |\n//! | c | |\n\
                             //! # Glossary\n//! | d | not a dependency |\nuse d::x;";
        let names = ["a", "b", "c", "d"].map(str::to_owned);
        assert_eq!(unexplained(&names, documentation), ["c", "d"]);
    }
}
