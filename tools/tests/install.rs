//! `scripts/install` in a scratch root: what it puts there, what takes it away, and whether those who read the files
//! understand them. The binary is a stand-in; the `binary` suite of the namespaces tests is about the real one.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const INSTALLED: [&str; 8] = [
    "bin/formic",
    "lib/systemd/system/formic.service",
    "share/bash-completion/completions/formic",
    "share/doc/formic/README.md",
    "share/doc/formic/copyright",
    "share/fish/vendor_completions.d/formic.fish",
    "share/man/man1/formic.1",
    "share/zsh/site-functions/_formic",
];

struct Scratch(PathBuf);

impl Scratch {
    /// With a stand-in binary and the generated files.
    fn new(name: &str) -> Scratch {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("install-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(directory.join("share")).unwrap();
        for (name, text) in tools::manual::files(&formic::cli::definition(), "0.1.0") {
            std::fs::write(directory.join("share").join(name), text).unwrap();
        }
        std::fs::write(directory.join("binary"), "#!/bin/sh\nexit 0\n").unwrap();
        Scratch(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn script(&self, arguments: &[&str]) -> Output {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let (binary, share) = (self.path("binary"), self.path("share"));
        let mut command = Command::new(top.join("scripts/install"));
        command.args(["--binary", &binary, "--share", &share]).args(arguments);
        command.output().unwrap()
    }

    #[track_caller]
    fn install(&self, arguments: &[&str]) {
        let output = self.script(arguments);
        assert!(output.status.success(), "{output:?}");
    }

    fn found(&self, below: &str) -> BTreeSet<String> {
        let top = self.0.join(below);
        let mut found = BTreeSet::new();
        let mut waiting = vec![top.clone()];
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    waiting.push(path)
                } else {
                    found.insert(path.strip_prefix(&top).unwrap().to_str().unwrap().to_owned());
                }
            }
        }
        found
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn has(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success()
}

#[track_caller]
fn understood(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_is_installed_is_taken_away_again() {
    let scratch = Scratch::new("round");
    let root = scratch.path("root");
    for prefix in ["/usr", "/usr/local", "/opt/formic"] {
        scratch.install(&["--destdir", &root, "--prefix", prefix]);
        let below = format!("root{prefix}");
        assert_eq!(scratch.found(&below), INSTALLED.map(str::to_owned).into(), "{prefix}");
        let mode = std::fs::metadata(format!("{root}{prefix}/bin/formic")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        let unit = std::fs::read_to_string(format!("{root}{prefix}/lib/systemd/system/formic.service")).unwrap();
        assert!(unit.contains(&format!("ExecStart={prefix}/bin/formic daemon\n")), "{unit}");
        scratch.install(&["--uninstall", "--destdir", &root, "--prefix", prefix]);
        assert_eq!(scratch.found("root"), BTreeSet::new(), "nothing is left");
        let there = |directory: &str| Path::new(&format!("{root}{prefix}/{directory}")).is_dir();
        assert!(!there("share/doc/formic"), "no directory of its own either");
        let others = ["bin", "lib/systemd/system", "share/doc", "share/man/man1", "share/zsh/site-functions"];
        assert!(others.into_iter().all(there), "those that others use stay, though they are empty");
    }
    // What is not its own stays.
    scratch.install(&["--destdir", &root, "--prefix", "/usr"]);
    std::fs::write(format!("{root}/usr/bin/other"), "").unwrap();
    scratch.install(&["--uninstall", "--destdir", &root, "--prefix", "/usr"]);
    assert_eq!(scratch.found("root"), BTreeSet::from(["usr/bin/other".to_owned()]));
}

#[test]
fn wrong_options_are_named() {
    let scratch = Scratch::new("wrong");
    for (arguments, text) in [
        (&["--prefix", "usr"][..], "the prefix must be an absolute path: usr"),
        (&["--what"], "unknown option --what"),
        (&["--destdir"], "--destdir needs a value"),
    ] {
        let output = scratch.script(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && stderr.contains(text), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_debian_package_holds_the_same() {
    if !has("dpkg-deb") {
        println!("dpkg-deb is not here: packages are made on Debian");
        return;
    }
    let scratch = Scratch::new("deb");
    let package = scratch.path("formic.deb");
    scratch.install(&["--deb", &package]);
    let control = understood("dpkg-deb", &["--field", &package, "Package", "Version"]);
    assert_eq!(control, "Package: formic\nVersion: 0.1.0\n");
    understood("dpkg-deb", &["--extract", &package, &scratch.path("unpacked")]);
    assert_eq!(scratch.found("unpacked/usr"), INSTALLED.map(str::to_owned).into());
}

#[test]
fn the_files_are_understood() {
    let scratch = Scratch::new("read");
    let root = scratch.path("root");
    scratch.install(&["--destdir", &root, "--prefix", "/usr"]);
    let bash = format!("{root}/usr/share/bash-completion/completions/formic");
    let complete = |words: &str, index: usize| {
        let script =
            format!("source {bash}; COMP_WORDS=({words}); COMP_CWORD={index}; _formic; echo ${{COMPREPLY[*]}}");
        understood("bash", &["-c", &script])
    };
    assert_eq!(complete("formic sw", 1), "swarm\n");
    assert_eq!(complete("formic network cr", 2), "create\n");
    assert_eq!(complete("formic --socket /x network create --at", 5), "--attachable\n");
    assert_eq!(complete("formic swarm init --adv", 3), "--advertise-addr\n");
    // The other readers are not on every machine.
    if has("zsh") {
        understood("zsh", &["-n", &format!("{root}/usr/share/zsh/site-functions/_formic")]);
    }
    if has("fish") {
        understood("fish", &["-n", &format!("{root}/usr/share/fish/vendor_completions.d/formic.fish")]);
    }
    if has("groff") {
        understood("groff", &["-man", "-ww", "-z", "-Tutf8", &format!("{root}/usr/share/man/man1/formic.1")]);
    }
    if has("systemd-analyze") {
        let unit = format!("{root}/usr/lib/systemd/system/formic.service");
        // It looks for the program too.
        let text =
            std::fs::read_to_string(&unit).unwrap().replace("/usr/bin/formic", &format!("{root}/usr/bin/formic"));
        std::fs::write(&unit, text).unwrap();
        understood("systemd-analyze", &["verify", "--man=no", "--recursive-errors=no", &unit]);
    }
}
