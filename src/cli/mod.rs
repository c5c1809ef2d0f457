//! The command line: one file per noun, one structure per verb; the doc comments are the help.
//!
//! 1. `argv`: brings the arguments into the shape that the parser knows, by the options that the verbs declare.
//! 2. The parser (argh) fills the verb's structure.
//! 3. The verb talks to the daemon through [`crate::api::client`] only, prints, and ends with an exit code.
//!
//! Errors are one line on standard error that says what to do. Exit codes: 0, 1 for what failed, 125 for what `run`
//! cannot do, and the command's own for `exec`.

mod argv;
mod attach;
mod convergence;
mod daemon;
mod debug;
mod doctor;
mod duration;
mod exec;
mod image;
mod network;
mod node;
mod quantity;
mod run;
mod service;
mod service_create;
mod service_flags;
mod service_pretty;
mod service_update;
mod session;
mod status;
mod swarm;
mod swarm_ca;
mod swarm_join;
mod swarm_unlock;
mod system;
mod table;

#[cfg(test)]
mod tests;

use argh::{ArgsInfo, FromArgs};
use session::{Failure, Session};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Environment variable that names the daemon's socket.
const SOCKET_VARIABLE: &str = "FORMIC_SOCKET";

/// Exit code of what `run` cannot do, as Docker's.
const RUN_FAILED: u8 = 125;

/// Encrypted overlay networks for containers. The hosts of a swarm run `formic daemon`; the other commands talk to
/// the one on this host.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(name = "formic")]
struct Formic {
    /// unix socket of the daemon (default: $FORMIC_SOCKET, or /run/formic.sock)
    #[argh(option, arg_name = "path")]
    socket: Option<PathBuf>,
    #[argh(subcommand)]
    verb: Verb,
}

#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
#[expect(clippy::large_enum_variant, reason = "one is made for each process")]
enum Verb {
    Daemon(daemon::Daemon),
    Swarm(swarm::Swarm),
    Node(node::Node),
    Network(network::Network),
    Service(service::Service),
    Image(image::Image),
    Exec(exec::Exec),
    Run(run::Run),
    Attach(attach::Attach),
    Detach(attach::Detach),
    Ps(system::Ps),
    Status(status::Status),
    Debug(debug::Debug),
    Doctor(doctor::Doctor),
    Info(system::Info),
    Version(system::Version),
}

/// All verbs with their options and help, for the manual and the completions that are made from them.
pub fn definition() -> argh::CommandInfoWithArgs {
    Formic::get_args_info()
}

/// Runs a command line (without the program's name) to its exit code.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut session = Session::on_terminal();
    ExitCode::from(execute(arguments, &mut session))
}

fn execute(arguments: impl Iterator<Item = OsString>, session: &mut Session) -> u8 {
    match parse(arguments) {
        Ok(formic) => finish(dispatch(formic, session), session),
        Err(Stop::Show(text)) => finish(session.print(text.trim_end()).map(|()| 0), session),
        Err(Stop::Usage { text, code }) => {
            session.complain(&text);
            code
        }
    }
}

fn finish(result: Result<u8, Failure>, session: &mut Session) -> u8 {
    match result {
        Ok(code) => code,
        Err(failure) => {
            session.complain(&format!("formic: {}", failure.message));
            failure.code
        }
    }
}

/// Why there is nothing to run.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// Something was asked to be shown.
    Show(String),
    /// The arguments make no sense.
    Usage { text: String, code: u8 },
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Formic, Stop> {
    let arguments: Result<Vec<String>, OsString> = arguments.map(OsString::into_string).collect();
    let arguments = arguments.map_err(|argument| usage(&[], &format!("{argument:?} is not UTF-8")))?;
    let info = <Formic as ArgsInfo>::get_args_info();
    let normal = match argv::normalise(&info, &arguments) {
        Ok(argv::Normal::Command(normal)) => normal,
        Ok(argv::Normal::Version) => return Err(Stop::Show(system::version_line())),
        Err(error) => return Err(usage(&error.verbs, &error.text)),
    };
    let words: Vec<&str> = normal.arguments.iter().map(String::as_str).collect();
    Formic::from_args(&["formic"], &words).map_err(|exit| match exit.status {
        Ok(()) => Stop::Show(exit.output),
        Err(()) => usage(&normal.verbs, &one_line(&exit.output)),
    })
}

fn usage(verbs: &[String], text: &str) -> Stop {
    let code = if verbs == ["run"] { RUN_FAILED } else { 1 };
    let command = [&["formic".to_owned()], verbs].concat().join(" ");
    Stop::Usage { text: format!("formic: {text} (see '{command} --help')"), code }
}

/// The parser's complaint on one line, without its own hint at the help.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("Run "));
    lines.collect::<Vec<_>>().join(" ")
}

fn dispatch(formic: Formic, session: &mut Session) -> Result<u8, Failure> {
    let socket =
        formic.socket.or_else(|| std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from));
    if let Some(socket) = &socket {
        session.connect_to(socket);
    }
    match formic.verb {
        Verb::Daemon(verb) => verb.run(socket).map(|()| 0),
        Verb::Exec(verb) => verb.run(session),
        Verb::Doctor(verb) => verb.run(session),
        Verb::Run(verb) => verb.run(session).map(|()| 0),
        Verb::Attach(verb) => verb.run(session).map(|()| 0),
        Verb::Detach(verb) => verb.run(session).map(|()| 0),
        Verb::Swarm(noun) => noun.run(session).map(|()| 0),
        Verb::Node(noun) => noun.run(session).map(|()| 0),
        Verb::Network(noun) => noun.run(session).map(|()| 0),
        Verb::Service(noun) => noun.run(session).map(|()| 0),
        Verb::Image(noun) => noun.run(session).map(|()| 0),
        Verb::Ps(verb) => verb.run(session).map(|()| 0),
        Verb::Debug(noun) => noun.run(session).map(|()| 0),
        Verb::Status(verb) => verb.run(session).map(|()| 0),
        Verb::Info(verb) => verb.run(session).map(|()| 0),
        Verb::Version(verb) => verb.run(session).map(|()| 0),
    }
}

/// Flushed at the end, so that nothing is lost when the process exits.
impl Drop for Session {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = self.out.flush();
    }
}
