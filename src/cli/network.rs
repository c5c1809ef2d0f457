//! `formic network`.

use super::session::{Failure, Outcome, Session, filters, pairs};
use super::table;
use crate::api::client::Target;
use crate::api::types::{Ipam, IpamConfig, NetworkCreate, NetworkCreated, NetworkResource};
use argh::{ArgsInfo, FromArgs};
use std::collections::BTreeMap;

/// Manages the overlay networks of the swarm. Needs a manager.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "network")]
pub(super) struct Network {
    #[argh(subcommand)]
    verb: Verb,
}

#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
enum Verb {
    Create(Create),
    Ls(Ls),
    Inspect(Inspect),
    Rm(Rm),
}

impl Network {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        match self.verb {
            Verb::Create(verb) => verb.run(session),
            Verb::Ls(verb) => verb.run(session),
            Verb::Inspect(verb) => verb.run(session),
            Verb::Rm(verb) => verb.run(session),
        }
    }
}

/// Creates an overlay network and shows its id. Its traffic is always authenticated; `--opt encrypted` makes it
/// secret too.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "create")]
struct Create {
    /// driver of the network; there is overlay only
    #[argh(option, short = 'd', arg_name = "driver", default = "String::from(\"overlay\")")]
    driver: String,
    /// driver option: encrypted, com.docker.network.driver.mtu=BYTES
    #[argh(option, short = 'o', arg_name = "name[=value]")]
    opt: Vec<String>,
    /// IPv4 subnet (default: the next free one of the pool)
    #[argh(option, arg_name = "subnet")]
    subnet: Vec<String>,
    /// gateway address (default: the first of the subnet)
    #[argh(option, arg_name = "address")]
    gateway: Vec<String>,
    /// part of the subnet that addresses are given from
    #[argh(option, arg_name = "subnet")]
    ip_range: Vec<String>,
    /// address that is never given, with a word for what has it
    #[argh(option, arg_name = "name=address")]
    aux_address: Vec<String>,
    /// let nodes put containers and namespaces of their own on it
    #[argh(switch)]
    attachable: bool,
    /// reach nothing outside of it, as is so on every network
    #[argh(switch)]
    internal: bool,
    /// label of the network
    #[argh(option, arg_name = "name=value")]
    label: Vec<String>,
    /// name of the network
    #[argh(positional)]
    name: String,
}

impl Create {
    fn run(self, session: &mut Session) -> Outcome {
        if self.gateway.len() > self.subnet.len() && !self.subnet.is_empty() {
            return Err(Failure::new("a network has one gateway: give --gateway once"));
        }
        let auxiliary = !self.aux_address.is_empty();
        let count = self.subnet.len().max(self.gateway.len()).max(self.ip_range.len()).max(usize::from(auxiliary));
        let at = |values: &[String], index: usize| values.get(index).cloned().unwrap_or_default();
        let config = (0..count)
            .map(|index| IpamConfig {
                subnet: at(&self.subnet, index),
                gateway: at(&self.gateway, index),
                ip_range: at(&self.ip_range, index),
                auxiliary_addresses: if index == 0 { pairs(&self.aux_address) } else { BTreeMap::new() },
            })
            .collect();
        let request = NetworkCreate {
            name: self.name,
            driver: self.driver,
            ipam: Ipam { config, ..Ipam::default() },
            options: pairs(&self.opt),
            labels: pairs(&self.label),
            attachable: self.attachable,
            internal: self.internal,
            ..NetworkCreate::default()
        };
        let created: NetworkCreated = session.post(&Target::new(&["networks", "create"]), &request)?;
        if !created.warning.is_empty() {
            session.complain(&format!("WARNING: {}", created.warning));
        }
        session.print(created.id)
    }
}

/// Lists the networks.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "ls")]
struct Ls {
    /// show ids only
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// narrow the list: id=, name=, label= or dangling=
    #[argh(option, short = 'f', arg_name = "name=value")]
    filter: Vec<String>,
}

impl Ls {
    fn run(self, session: &mut Session) -> Outcome {
        let mut networks: Vec<NetworkResource> = session.get(&filters(Target::new(&["networks"]), &self.filter)?)?;
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        if self.quiet {
            return networks.iter().try_for_each(|network| session.print(&network.id));
        }
        let rows: Vec<[String; 6]> = networks.iter().map(row).collect();
        session.print(table::render(["NETWORK ID", "NAME", "DRIVER", "SCOPE", "SUBNET", "ENCRYPTED"], &rows))
    }
}

fn row(network: &NetworkResource) -> [String; 6] {
    let encrypted = network.options.get("encrypted").is_some_and(|value| value.is_empty() || value.parse() == Ok(true));
    [
        table::short_id(&network.id),
        network.name.clone(),
        network.driver.clone(),
        network.scope.clone(),
        network.ipam.config.iter().map(|config| config.subnet.as_str()).collect::<Vec<_>>().join(", "),
        if encrypted { "yes" } else { "no" }.into(),
    ]
}

/// Shows all about networks, as JSON.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "inspect")]
struct Inspect {
    /// ids or names
    #[argh(positional)]
    networks: Vec<String>,
}

impl Inspect {
    fn run(self, session: &mut Session) -> Outcome {
        session.inspect(&some(self.networks)?, |network| Target::new(&["networks", network]))
    }
}

fn some(networks: Vec<String>) -> Result<Vec<String>, Failure> {
    if networks.is_empty() { Err(Failure::new("give the id or name of a network")) } else { Ok(networks) }
}

/// Removes networks that no service uses.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "rm")]
struct Rm {
    /// ids or names
    #[argh(positional)]
    networks: Vec<String>,
}

impl Rm {
    fn run(self, session: &mut Session) -> Outcome {
        session.for_each(&some(self.networks)?, |session, network| {
            session.delete(&Target::new(&["networks", network]))?;
            Ok(Some(network.to_owned()))
        })
    }
}
