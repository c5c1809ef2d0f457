//! `formic swarm join`.

use super::session::{Failure, Outcome, Session};
use crate::api::client::Target;
use crate::api::types::SwarmJoin;
use argh::{ArgsInfo, FromArgs};
use std::io::Read as _;
use std::path::PathBuf;

/// Bytes of a token's file at most: a token has about 100.
const MAX_TOKEN_BYTES: u64 = 4096;

/// The control port where none is given.
const CONTROL_PORT: u16 = 2377;

/// Joins a swarm: as worker or manager, as the token says.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "join")]
pub(super) struct Join {
    /// join token; - reads it from standard input, where `ps` does not show it
    #[argh(option, arg_name = "token")]
    token: Option<String>,
    /// file with the join token
    #[argh(option, arg_name = "file")]
    token_file: Option<PathBuf>,
    /// address that other hosts are told: IP or an interface
    #[argh(option, arg_name = "address", default = "String::new()")]
    advertise_addr: String,
    /// where to listen for the control protocol (default: 0.0.0.0:2377)
    #[argh(option, arg_name = "address", default = "String::from(\"0.0.0.0:2377\")")]
    listen_addr: String,
    /// address or interface of the data path, if another
    #[argh(option, arg_name = "address", default = "String::new()")]
    data_path_addr: String,
    /// whether tasks are placed on this host: active, pause or drain
    #[argh(option, arg_name = "word", default = "String::new()")]
    availability: String,
    /// a manager: IP or IP:PORT
    #[argh(positional)]
    remote: Vec<String>,
}

impl Join {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        if self.remote.is_empty() {
            return Err(Failure::new("give the address of a manager: formic swarm join --token TOKEN IP:PORT"));
        }
        let request = SwarmJoin {
            join_token: self.read_token()?,
            remote_addrs: self.remote.iter().map(|remote| with_port(remote)).collect(),
            listen_addr: self.listen_addr,
            advertise_addr: self.advertise_addr,
            data_path_addr: self.data_path_addr,
            availability: self.availability,
        };
        session.post_only(&Target::new(&["swarm", "join"]), &request)?;
        let role = if session.info()?.swarm.control_available { "manager" } else { "worker" };
        session.print(format!("This node joined a swarm as a {role}."))
    }

    fn read_token(&self) -> Result<String, Failure> {
        let text = match (&self.token, &self.token_file) {
            (Some(_), Some(_)) => return Err(Failure::new("give --token or --token-file, not both")),
            (None, None) => {
                return Err(Failure::new("a token is needed: --token TOKEN, --token - or --token-file FILE"));
            }
            (Some(token), None) if token == "-" => read_bounded(std::io::stdin())
                .map_err(|error| Failure::new(format!("cannot read the token from standard input: {error}")))?,
            (Some(token), None) => token.clone(),
            (None, Some(path)) => std::fs::File::open(path)
                .and_then(read_bounded)
                .map_err(|error| Failure::new(format!("cannot read the token from {}: {error}", path.display())))?,
        };
        let token = text.trim();
        if token.is_empty() { Err(Failure::new("the token is empty")) } else { Ok(token.to_owned()) }
    }
}

pub(super) fn read_bounded(source: impl std::io::Read) -> std::io::Result<String> {
    let mut text = String::new();
    source.take(MAX_TOKEN_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Adds the usual port to an address without one.
fn with_port(remote: &str) -> String {
    match remote.parse::<std::net::IpAddr>() {
        Ok(address) => std::net::SocketAddr::new(address, CONTROL_PORT).to_string(),
        Err(_) => remote.to_owned(),
    }
}
