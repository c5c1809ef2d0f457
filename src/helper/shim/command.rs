//! From a forked child to the command: session, directory, environment, PATH, exec.

use super::{OpenFiles, Status, tell};
use crate::helper::verbs::CommandSpec;
use crate::sys::process;
use crate::sys::seqpacket::SeqPacket;
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{chdir, execve, gethostname, setsid};
use std::ffi::CString;
use std::io;

/// Docker's default.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Exit codes of a shell, and of Docker, for a command that cannot be run.
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Becomes the command; answers only when it cannot, with the exit code, and has told the helper why.
pub(super) fn execute(command: &CommandSpec, open_files: OpenFiles, control: &SeqPacket) -> io::Result<i32> {
    let (code, text) = match become_command(command, open_files) {
        Ok(errno) => {
            let code = if errno == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE };
            let program = command.argv.first().map_or("", String::as_str);
            let text = match errno {
                Errno::ENOENT => format!("exec: {program:?}: not found in the container"),
                errno => format!("exec: {program:?}: {}", errno.desc()),
            };
            (code, text)
        }
        Err(error) => (NOT_EXECUTABLE, error.to_string()),
    };
    tell(control, &Status::NotExecuted { text });
    Ok(code)
}

/// Errors before the exec, or answers why each exec was refused.
fn become_command(command: &CommandSpec, open_files: OpenFiles) -> io::Result<Errno> {
    setsid()?;
    if command.tty {
        process::take_terminal()?;
    }
    let dir = if command.dir.is_empty() { "/" } else { command.dir.as_str() };
    chdir(dir).map_err(|error| io::Error::other(format!("the working directory {dir}: {}", error.desc())))?;
    let (soft, hard) = open_files;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    let environment = complete_environment(command);
    let path = variable(&environment, "PATH").unwrap_or(DEFAULT_PATH).to_owned();
    let program = command.argv.first().map_or("", String::as_str);
    let candidates = process::c_strings(candidates(program, &path).iter().map(String::as_str))?;
    let arguments = process::c_strings(command.argv.iter().map(String::as_str))?;
    let environment = process::c_strings(environment.iter().map(String::as_str))?;
    process::reset_signals()?;
    Ok(try_each(&candidates, &arguments, &environment))
}

/// As a shell does: a candidate that is there but may not be executed counts more than one that is not there.
fn try_each(candidates: &[CString], arguments: &[CString], environment: &[CString]) -> Errno {
    let mut reason = Errno::ENOENT;
    for candidate in candidates {
        let Err(errno) = execve(candidate, arguments, environment);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => reason = errno,
            other => return other,
        }
    }
    reason
}

/// The files that `program` may mean.
pub(super) fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    // An empty element means the working directory, which nobody means.
    path.split(':').filter(|dir| !dir.is_empty()).map(|dir| format!("{dir}/{program}")).collect()
}

/// The command's environment with what every program expects in it. Texts without `=` are no variables.
fn complete_environment(command: &CommandSpec) -> Vec<String> {
    let mut environment: Vec<String> = command.env.0.iter().filter(|text| text.contains('=')).cloned().collect();
    let hostname = gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    for (name, value) in [("PATH", DEFAULT_PATH), ("HOME", "/root"), ("HOSTNAME", &hostname)] {
        if variable(&environment, name).is_none() {
            environment.push(format!("{name}={value}"));
        }
    }
    if command.tty && variable(&environment, "TERM").is_none() {
        environment.push("TERM=xterm".to_owned());
    }
    environment
}

/// The value of a variable; the last one counts, as in Docker.
pub(super) fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment.iter().rev().find_map(|text| text.split_once('=').filter(|(key, _)| *key == name)).map(|(_, v)| v)
}
