//! Checks the licences of all dependencies and that each direct one has its reason in src/lib.rs. Run from the top of
//! the project; exit code 1 on violations.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use std::process::{Command, ExitCode};
use tools::licences;

fn main() -> Result<ExitCode> {
    let metadata: serde_json::Value = serde_json::from_str(&cargo_metadata()?)?;
    let documentation = std::fs::read_to_string("src/lib.rs").context("run from the top of the project")?;
    let mut bad = licences::violators(&metadata)?;
    let direct = licences::direct(&metadata, "formic")?;
    for name in licences::unexplained(&direct, &documentation) {
        bad.push(format!("{name}: no reason in the table below `# Dependencies` of src/lib.rs"));
    }
    bad.iter().for_each(|line| println!("{line}"));
    let packages = metadata["packages"].as_array().map_or(0, Vec::len);
    println!("licences: {packages} packages, {} direct, {} violations", direct.len(), bad.len());
    Ok(if bad.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Only what is built for this host: other platforms' packages are not downloaded.
fn cargo_metadata() -> Result<String> {
    let version = run("rustc", &["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    run("cargo", &["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", host])
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
