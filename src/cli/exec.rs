//! `formic exec`.

use super::service_create::with_value;
use super::session::{Failure, Session};
use crate::api::types::ExecCreate;
use argh::{ArgsInfo, FromArgs};
use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// Runs a command in a running task of this host and ends with the command's exit code.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "exec")]
pub(super) struct Exec {
    /// forward standard input
    #[argh(switch, short = 'i')]
    interactive: bool,
    /// environment variable; a name alone takes the value from here
    #[argh(option, short = 'e', arg_name = "name=value")]
    env: Vec<String>,
    /// task: its id, the start of it, or SERVICE.SLOT
    #[argh(positional)]
    task: String,
    /// command and arguments, options of their own included
    #[argh(positional)]
    command: Vec<String>,
}

impl Exec {
    pub(super) fn run(self, session: &mut Session) -> Result<u8, Failure> {
        if self.command.is_empty() {
            return Err(Failure::new("give a command to run: formic exec TASK COMMAND"));
        }
        let request = ExecCreate {
            attach_stdin: self.interactive,
            attach_stdout: true,
            attach_stderr: true,
            env: self.env.into_iter().map(with_value).collect(),
            cmd: self.command,
        };
        let mut stream = smol::block_on(session.client.exec(&self.task, &request))?;
        if self.interactive {
            forward_input(stream.input()?);
        }
        stream.copy_output(&mut session.out, &mut session.err)?;
        session.out.flush()?;
        let code = smol::block_on(session.client.exec_result(&stream.id))?;
        // Codes are a byte; whatever is none of them is a failure and must not look like success.
        Ok(u8::try_from(code).unwrap_or(1))
    }
}

/// Copies standard input in a thread of its own, which ends with the process: nothing can interrupt a read of it.
fn forward_input(mut socket: UnixStream) {
    std::thread::spawn(move || {
        // When the command has ended nobody reads, which is no error.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut socket);
        let _ = socket.shutdown(Shutdown::Write);
    });
}
