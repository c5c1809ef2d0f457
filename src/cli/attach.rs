//! `formic attach`, `formic detach`: namespaces that somebody else made.

use super::session::{Failure, Outcome, Session};
use crate::api::client::Target;
use crate::api::types::{Attach as Request, Attached};
use argh::{ArgsInfo, FromArgs};

/// Where `ip netns` keeps what it makes.
const NAMED: [&str; 2] = ["/run/netns/", "/var/run/netns/"];

/// Puts a network namespace of this host on an attachable network and shows its address. It stays there, also when the
/// daemon starts again, until it is detached.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "attach")]
pub(super) struct Attach {
    /// namespace, as `ip netns` names it, or its path below /run/netns
    #[argh(option, arg_name = "name|path")]
    netns: String,
    /// address that it has to have (default: the next free one)
    #[argh(option, arg_name = "address")]
    ip: Option<String>,
    /// further name on the network
    #[argh(option, arg_name = "name")]
    alias: Vec<String>,
    /// network
    #[argh(positional)]
    network: String,
}

impl Attach {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        let request = Request {
            netns: name_of(&self.netns)?,
            network: self.network,
            address: self.ip.unwrap_or_default(),
            aliases: self.alias,
        };
        let attached: Attached = session.post(&Target::new(&["formic", "attachments"]), &request)?;
        session.print(attached.address)
    }
}

/// Takes a network namespace of this host off a network.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "detach")]
pub(super) struct Detach {
    /// namespace, as `ip netns` names it, or its path below /run/netns
    #[argh(option, arg_name = "name|path")]
    netns: String,
    /// network
    #[argh(positional)]
    network: String,
}

impl Detach {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        let target = Target::new(&["formic", "attachments"]).with("netns", &name_of(&self.netns)?);
        session.delete(&target.with("network", &self.network))
    }
}

fn name_of(netns: &str) -> Result<String, Failure> {
    let name = NAMED.iter().find_map(|directory| netns.strip_prefix(directory)).unwrap_or(netns);
    if name.is_empty() || name.contains('/') {
        let text = format!("{netns:?} is no namespace of `ip netns`: give its name, or its path below /run/netns");
        return Err(Failure::new(text));
    }
    Ok(name.to_owned())
}
