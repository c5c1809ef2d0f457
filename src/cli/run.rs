//! `formic run`: what the specification refuses, refused.

use super::RUN_FAILED;
use super::session::{Failure, Outcome, Session};
use crate::api::client::Target;
use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};

/// Runs a container outside of services. Such a container has no keys, so that the daemon refuses it: use
/// `formic service create`.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "run")]
pub(super) struct Run {
    /// network to attach the container to
    #[argh(option, arg_name = "network")]
    network: Option<String>,
    /// name of the container
    #[argh(option, arg_name = "name")]
    name: Option<String>,
    /// environment variable
    #[argh(option, short = 'e', arg_name = "name=value")]
    env: Vec<String>,
    /// do not wait for its end
    #[argh(switch, short = 'd')]
    detach: bool,
    /// attach standard input
    #[argh(switch, short = 'i')]
    interactive: bool,
    /// give it a terminal
    #[argh(switch, short = 't')]
    tty: bool,
    /// remove it when it has ended
    #[argh(switch)]
    rm: bool,
    /// image
    #[argh(positional)]
    image: String,
    /// arguments, options of their own included
    #[argh(positional)]
    command: Vec<String>,
}

impl Run {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        let request = json!({
            "Image": self.image,
            "Cmd": self.command,
            "Env": self.env,
            "Tty": self.tty,
            "OpenStdin": self.interactive,
            "AttachStdout": !self.detach,
            "HostConfig": { "NetworkMode": self.network.unwrap_or_else(|| "default".into()), "AutoRemove": self.rm },
        });
        let target = Target::new(&["containers", "create"]);
        let target = self.name.iter().fold(target, |target, name| target.with("name", name));
        let answer: Result<Value, Failure> = session.post(&target, &request);
        let message = match answer {
            Err(failure) => failure.message,
            Ok(_) => "the daemon made a container that this client cannot run: use `formic service create`".into(),
        };
        Err(Failure { message, code: RUN_FAILED })
    }
}
