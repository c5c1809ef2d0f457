//! The release binary: static, quick, quiet, and without rights where it reads the network.

use netns_tests::{formic, process};
use std::process::Command;

#[test]
fn it_needs_no_library_and_no_interpreter() {
    let mut command = Command::new("readelf");
    command.args(["--wide", "--program-headers", "--dynamic"]).arg(formic());
    let headers = process::run(command).ok();
    assert!(headers.contains("LOAD"), "not an ELF program: {headers}");
    assert!(!headers.contains("INTERP"), "{headers}");
    assert!(!headers.contains("(NEEDED)"), "{headers}");
}
