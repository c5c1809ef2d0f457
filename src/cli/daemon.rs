//! `formic daemon`.

use super::session::{Failure, Outcome};
use crate::daemon::{self, LogFormat, LogLevel, Offload, PartialOptions, Queues};
use argh::{ArgsInfo, FromArgs};
use std::path::PathBuf;

/// Runs this host's daemon in the foreground until SIGTERM. Options may also be in a TOML file under the same names
/// without the dashes in front; the command line wins.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "daemon")]
pub(super) struct Daemon {
    /// directory of the daemon's state (default: /var/lib/formic)
    #[argh(option, arg_name = "dir")]
    state_dir: Option<PathBuf>,
    /// unix socket to serve the API on (default: /run/formic.sock)
    #[argh(option, arg_name = "path")]
    socket: Option<PathBuf>,
    /// group that may use the socket: a number, or a name of /etc/group
    #[argh(option, arg_name = "group")]
    socket_group: Option<String>,
    /// configuration file (TOML)
    #[argh(option, arg_name = "file")]
    config: Option<PathBuf>,
    /// least severe event to log: error, warn, info, debug or trace (default: info)
    #[argh(option, arg_name = "level")]
    log_level: Option<LogLevel>,
    /// form of the log: text or json (default: text)
    #[argh(option, arg_name = "format")]
    log_format: Option<LogFormat>,
    /// refuse to run the image host, which is this host's own files
    #[argh(switch)]
    no_host_image: bool,
    /// UDP port of gossip (default: 7946)
    #[argh(option, arg_name = "port")]
    gossip_port: Option<u16>,
    /// UDP port of ESP on this host (default: the swarm's)
    #[argh(option, arg_name = "port")]
    data_path_port: Option<u16>,
    /// offloads of the task devices and the data path: auto or off (default: auto)
    #[argh(option, arg_name = "mode")]
    offload: Option<Offload>,
    /// offloads not to use, with commas between them: tso, uso, udp-gso, udp-gro, join-tcp, join-udp
    #[argh(option, arg_name = "list")]
    disable_offload: Option<String>,
    /// worker threads that carry packets, 1 to 16 (default: one for each core, at most 4)
    #[argh(option, arg_name = "number")]
    data_workers: Option<Queues>,
    /// let root of this host see the keys that protect packets, by `formic debug esp-keys`
    #[argh(switch)]
    allow_key_export: bool,
}

impl Daemon {
    /// `socket` is the global option, for those who write it before the verb.
    pub(super) fn run(self, socket: Option<PathBuf>) -> Outcome {
        let config = self.config.clone();
        let file = config.map(|path| PartialOptions::from_file(&path)).transpose().map_err(Failure::new)?;
        let line = self.into_options(socket);
        let options = line.or(file.unwrap_or_default()).resolve().map_err(Failure::new)?;
        daemon::run(options).map_err(|error| Failure::new(one_line(&format!("{error:#}"))))
    }

    fn into_options(self, socket: Option<PathBuf>) -> PartialOptions {
        PartialOptions {
            state_dir: self.state_dir,
            socket: self.socket.or(socket),
            socket_group: self.socket_group,
            log_level: self.log_level,
            log_format: self.log_format,
            no_host_image: self.no_host_image.then_some(true),
            gossip_port: self.gossip_port,
            data_path_port: self.data_path_port,
            offload: self.offload,
            disable_offload: self.disable_offload,
            data_workers: self.data_workers,
            allow_key_export: self.allow_key_export.then_some(true),
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
