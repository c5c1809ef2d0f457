//! What the filter of system calls lets the network process do, and what ends it.

#[path = "../../sys/confine_attempts.rs"]
mod attempts;

use attempts::FORBIDDEN;
use formic::sys::{confine, privileges};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode};

/// A network process that does what the daemon does, and then one thing that it must not. Without one it aborts.
pub(super) fn confined(attempt: &str) -> ExitCode {
    privileges::become_network_process().unwrap();
    confine::confine().unwrap();
    // What the daemon does goes on: threads, sockets, files, memory, and the end by a panic.
    let port = std::thread::spawn(|| std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    assert_ne!(port.join().unwrap(), 0);
    assert!(fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp:\t2"));
    assert!(vec![1u8; 1 << 20].iter().all(|&byte| byte == 1));
    assert!(nix::ifaddrs::getifaddrs().is_ok());
    // The store's library locks its file in its own way.
    let store = std::env::temp_dir().join(format!("formic-confined-{}", std::process::id()));
    let opened = redb::Database::create(&store).map(drop);
    fs::remove_file(&store).unwrap();
    opened.unwrap();
    println!("confined");
    match FORBIDDEN.iter().find(|(name, _, _)| *name == attempt) {
        Some((_, _, forbidden)) => forbidden(),
        None => std::process::abort(),
    }
    ExitCode::SUCCESS
}

pub(super) fn system_calls() {
    let run = |attempt: &str| {
        let output = Command::new(std::env::current_exe().unwrap()).args(["--confined", attempt]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "confined\n", "{attempt}: {said}");
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{attempt}: {said}");
        said
    };
    assert_eq!(run("nothing"), "", "an abort is none of the filter's business");
    for (attempt, call, _) in FORBIDDEN {
        let said = run(attempt);
        assert!(said.ends_with(&format!("may not make system call {call:05}\n")), "{attempt}: {said}");
    }
}
