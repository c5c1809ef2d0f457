//! `formic node`.

use super::session::{Failure, Outcome, Session, filters, pairs};
use super::{quantity, service, table};
use crate::api::client::Target;
use crate::api::types::Node as NodeInfo;
use argh::{ArgsInfo, FromArgs};

/// Manages the nodes of the swarm. Needs a manager.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "node")]
pub(super) struct Node {
    #[argh(subcommand)]
    verb: Verb,
}

#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
enum Verb {
    Ls(Ls),
    Inspect(Inspect),
    Ps(Ps),
    Promote(Promote),
    Demote(Demote),
    Rm(Rm),
    Update(Update),
}

impl Node {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        match self.verb {
            Verb::Ls(verb) => verb.run(session),
            Verb::Inspect(verb) => verb.run(session),
            Verb::Ps(verb) => verb.run(session),
            Verb::Promote(verb) => set_roles(session, verb.nodes, "manager"),
            Verb::Demote(verb) => set_roles(session, verb.nodes, "worker"),
            Verb::Rm(verb) => verb.run(session),
            Verb::Update(verb) => verb.run(session),
        }
    }
}

/// Lists the nodes; * marks this one.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "ls")]
struct Ls {
    /// show ids only
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// narrow the list: id=, name=, role= or node.label=
    #[argh(option, short = 'f', arg_name = "name=value")]
    filter: Vec<String>,
}

impl Ls {
    fn run(self, session: &mut Session) -> Outcome {
        let mut nodes: Vec<NodeInfo> = session.get(&filters(Target::new(&["nodes"]), &self.filter)?)?;
        nodes.sort_by(|a, b| (&a.description.hostname, &a.id).cmp(&(&b.description.hostname, &b.id)));
        if self.quiet {
            return nodes.iter().try_for_each(|node| session.print(&node.id));
        }
        let own = session.info()?.swarm.node_id;
        let rows: Vec<[String; 6]> = nodes.iter().map(|node| row(node, &own)).collect();
        let heads = ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS", "ENGINE VERSION"];
        session.print(table::render(heads, &rows))
    }
}

fn row(node: &NodeInfo, own: &str) -> [String; 6] {
    let mark = if node.id == own { " *" } else { "" };
    let manager = node.manager_status.as_ref().map(|status| match status.leader {
        true => "Leader".to_owned(),
        false => table::capital(&status.reachability),
    });
    [
        format!("{}{mark}", node.id),
        node.description.hostname.clone(),
        table::capital(&node.status.state),
        table::capital(&node.spec.availability),
        manager.unwrap_or_default(),
        node.description.engine.engine_version.clone(),
    ]
}

/// Shows all about nodes, as JSON.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "inspect")]
struct Inspect {
    /// show it for people instead
    #[argh(switch)]
    pretty: bool,
    /// ids or host names; self is this node
    #[argh(positional)]
    nodes: Vec<String>,
}

impl Inspect {
    fn run(self, session: &mut Session) -> Outcome {
        let nodes = resolve_self(session, some(self.nodes)?)?;
        if !self.pretty {
            return session.inspect(&nodes, |node| Target::new(&["nodes", node]));
        }
        session.for_each(&nodes, |session, node| Ok(Some(describe(&session.get(&Target::new(&["nodes", node]))?))))
    }
}

/// A node in Docker's order.
fn describe(node: &NodeInfo) -> String {
    let description = &node.description;
    let mut lines = vec![format!("ID: {}", node.id)];
    if !node.spec.labels.is_empty() {
        lines.push("Labels:".into());
        lines.extend(node.spec.labels.iter().map(|(name, value)| format!(" - {name}={value}")));
    }
    lines.extend([
        format!("Hostname: {}", description.hostname),
        format!("Joined at: {}", node.created_at),
        "Status:".into(),
        format!(" State: {}", table::capital(&node.status.state)),
    ]);
    if !node.status.message.is_empty() {
        lines.push(format!(" Message: {}", node.status.message));
    }
    lines.push(format!(" Availability: {}", table::capital(&node.spec.availability)));
    lines.push(format!(" Address: {}", node.status.addr));
    if let Some(manager) = &node.manager_status {
        lines.extend([
            "Manager Status:".into(),
            format!(" Address: {}", manager.addr),
            format!(" Raft Status: {}", table::capital(&manager.reachability)),
            format!(" Leader: {}", if manager.leader { "Yes" } else { "No" }),
        ]);
    }
    lines.extend([
        "Platform:".into(),
        format!(" Operating System: {}", description.platform.os),
        format!(" Architecture: {}", description.platform.architecture),
        "Resources:".into(),
        format!(" CPUs: {}", quantity::cpus_text(description.resources.nano_cpus)),
        format!(" Memory: {}", quantity::bytes_text(description.resources.memory_bytes)),
        format!("Engine Version: {}", description.engine.engine_version),
    ]);
    lines.join("\n")
}

/// At least one name, or what is missing.
fn some(nodes: Vec<String>) -> Result<Vec<String>, Failure> {
    if nodes.is_empty() { Err(Failure::new("give the id or host name of a node")) } else { Ok(nodes) }
}

fn resolve_self(session: &Session, nodes: Vec<String>) -> Result<Vec<String>, Failure> {
    let resolve = |node: String| match node.as_str() {
        "self" => Ok(session.info()?.swarm.node_id),
        _ => Ok(node),
    };
    nodes.into_iter().map(resolve).collect()
}

/// Lists the tasks of nodes.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "ps")]
struct Ps {
    /// ids or host names (default: this node)
    #[argh(positional)]
    nodes: Vec<String>,
}

impl Ps {
    fn run(self, session: &mut Session) -> Outcome {
        let nodes = if self.nodes.is_empty() { vec!["self".to_owned()] } else { self.nodes };
        let mut ids = Vec::new();
        for node in resolve_self(session, nodes)? {
            let node: NodeInfo = session.get(&Target::new(&["nodes", &node]))?;
            ids.push(format!("node={}", node.id));
        }
        service::print_tasks(session, &ids, false)
    }
}

/// Makes nodes managers of the swarm.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "promote")]
struct Promote {
    /// ids or host names
    #[argh(positional)]
    nodes: Vec<String>,
}

/// Makes managers workers again.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "demote")]
struct Demote {
    /// ids or host names
    #[argh(positional)]
    nodes: Vec<String>,
}

fn set_roles(session: &mut Session, nodes: Vec<String>, role: &'static str) -> Outcome {
    session.for_each(&some(nodes)?, |session, wanted| {
        let node: NodeInfo = session.get(&Target::new(&["nodes", wanted]))?;
        if node.spec.role == role {
            return Ok(Some(format!("Node {wanted} is already a {role}.")));
        }
        let mut spec = node.spec;
        spec.role = role.into();
        let version = node.version.index.to_string();
        session.post_only(&Target::new(&["nodes", &node.id, "update"]).with("version", &version), &spec)?;
        Ok(Some(match role {
            "manager" => format!("Node {wanted} promoted to a manager in the swarm."),
            _ => format!("Manager {wanted} demoted in the swarm."),
        }))
    })
}

/// Removes nodes from the swarm: they get no key any more.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "rm")]
struct Rm {
    /// remove a node even if it is not down
    #[argh(switch, short = 'f')]
    force: bool,
    /// ids or host names
    #[argh(positional)]
    nodes: Vec<String>,
}

impl Rm {
    fn run(self, session: &mut Session) -> Outcome {
        let force = self.force;
        session.for_each(&some(self.nodes)?, |session, node| {
            let target = Target::new(&["nodes", node]);
            session.delete(&if force { target.with("force", "1") } else { target })?;
            Ok(Some(node.to_owned()))
        })
    }
}

/// Changes a node's availability, role or labels.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "update")]
struct Update {
    /// whether tasks are placed: active, pause or drain
    #[argh(option, arg_name = "word")]
    availability: Option<String>,
    /// manager or worker
    #[argh(option, arg_name = "word")]
    role: Option<String>,
    /// label to add or change
    #[argh(option, arg_name = "name=value")]
    label_add: Vec<String>,
    /// label to remove
    #[argh(option, arg_name = "name")]
    label_rm: Vec<String>,
    /// id or host name
    #[argh(positional)]
    node: String,
}

impl Update {
    fn run(self, session: &mut Session) -> Outcome {
        let node: NodeInfo = session.get(&Target::new(&["nodes", &self.node]))?;
        let mut spec = node.spec;
        if let Some(availability) = self.availability {
            spec.availability = availability;
        }
        if let Some(role) = self.role {
            spec.role = role;
        }
        for name in &self.label_rm {
            if spec.labels.remove(name).is_none() {
                return Err(Failure::new(format!("key {name} doesn't exist in node's labels")));
            }
        }
        spec.labels.extend(pairs(&self.label_add));
        let version = node.version.index.to_string();
        session.post_only(&Target::new(&["nodes", &node.id, "update"]).with("version", &version), &spec)?;
        session.print(self.node)
    }
}
