//! `formic service`: lists, inspection, removal. Creating is in `service_create`, changing in `service_update`.

use super::service_create::Create;
use super::service_update::{Rollback, Scale, Update};
use super::session::{Failure, Outcome, Session, filters};
use super::{service_pretty, table};
use crate::api::client::Target;
use crate::api::time;
use crate::api::types::{Service as ServiceInfo, Task};
use argh::{ArgsInfo, FromArgs};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Manages services: containers in as many replicas as wanted, on the hosts of the swarm. Needs a manager.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "service")]
pub(super) struct Service {
    #[argh(subcommand)]
    verb: Verb,
}

#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
enum Verb {
    Create(Create),
    Update(Update),
    Scale(Scale),
    Rollback(Rollback),
    Ls(Ls),
    Ps(Ps),
    Inspect(Inspect),
    Rm(Rm),
}

impl Service {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        match self.verb {
            Verb::Create(verb) => verb.run(session),
            Verb::Update(verb) => verb.run(session),
            Verb::Scale(verb) => verb.run(session),
            Verb::Rollback(verb) => verb.run(session),
            Verb::Ls(verb) => verb.run(session),
            Verb::Ps(verb) => verb.run(session),
            Verb::Inspect(verb) => verb.run(session),
            Verb::Rm(verb) => verb.run(session),
        }
    }
}

/// Lists the services.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "ls")]
struct Ls {
    /// show ids only
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// narrow the list: id=, name= or label=
    #[argh(option, short = 'f', arg_name = "name=value")]
    filter: Vec<String>,
}

impl Ls {
    fn run(self, session: &mut Session) -> Outcome {
        let target = filters(Target::new(&["services"]).with("status", "true"), &self.filter)?;
        let mut services: Vec<ServiceInfo> = session.get(&target)?;
        services.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        if self.quiet {
            return services.iter().try_for_each(|service| session.print(&service.id));
        }
        let rows: Vec<[String; 5]> = services.iter().map(row).collect();
        session.print(table::render(["ID", "NAME", "MODE", "REPLICAS", "IMAGE"], &rows))
    }
}

fn row(service: &ServiceInfo) -> [String; 5] {
    let status = service.service_status.clone().unwrap_or_default();
    let mode = if service.spec.mode.global.is_some() { "global" } else { "replicated" };
    [
        table::short_id(&service.id),
        service.spec.name.clone(),
        mode.into(),
        format!("{}/{}", status.running_tasks, status.desired_tasks),
        service.spec.task_template.container_spec.image.clone(),
    ]
}

/// Lists the tasks of services: where they run, how far they are, and their addresses.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "ps")]
struct Ps {
    /// show ids only
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// show whole ids
    #[argh(switch)]
    no_trunc: bool,
    /// ids or names
    #[argh(positional)]
    services: Vec<String>,
}

impl Ps {
    fn run(self, session: &mut Session) -> Outcome {
        let mut wanted = Vec::new();
        for service in some(self.services)? {
            wanted.push(format!("service={}", session.service(&service)?.id));
        }
        if !self.quiet {
            return print_tasks(session, &wanted, self.no_trunc);
        }
        let tasks: Vec<Task> = session.get(&filters(Target::new(&["tasks"]), &wanted)?)?;
        tasks.iter().try_for_each(|task| session.print(&task.id))
    }
}

fn some(services: Vec<String>) -> Result<Vec<String>, Failure> {
    if services.is_empty() { Err(Failure::new("give the id or name of a service")) } else { Ok(services) }
}

/// Names of services or nodes by their ids.
type Names = BTreeMap<String, String>;

/// Prints the tasks that pass the filters as a table.
pub(super) fn print_tasks(session: &mut Session, wanted: &[String], whole_ids: bool) -> Outcome {
    let tasks: Vec<Task> = session.get(&filters(Target::new(&["tasks"]), wanted)?)?;
    let services: Vec<ServiceInfo> = session.get(&Target::new(&["services"]))?;
    let services: Names = services.into_iter().map(|service| (service.id, service.spec.name)).collect();
    let nodes: Names = session.nodes()?.into_iter().map(|node| (node.id, node.description.hostname)).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    session.print(task_table(tasks, &services, &nodes, now, whole_ids))
}

/// Place by place, the newest task of each first; older ones are indented under it.
pub(super) fn task_table(mut tasks: Vec<Task>, services: &Names, nodes: &Names, now: u64, whole_ids: bool) -> String {
    let place = |task: &Task| {
        let service = services.get(&task.service_id).unwrap_or(&task.service_id);
        // Tasks of a global service are told apart by their nodes.
        let node = if task.slot == 0 { task.node_id.clone() } else { String::new() };
        (service.clone(), task.slot, node)
    };
    tasks.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| b.version.index.cmp(&a.version.index)));
    // Of a place, the task that is to run comes first whatever happened to the others since.
    tasks.sort_by_key(|task| (place(task), task.desired_state != "running"));
    let mut previous = None;
    let rows: Vec<[String; 8]> = tasks
        .iter()
        .map(|task| {
            let older = previous.replace(place(task)) == Some(place(task));
            let mark = if older { " \\_ " } else { "" };
            let (service, slot, node) = place(task);
            let name = if slot == 0 { format!("{service}.{node}") } else { format!("{service}.{slot}") };
            [
                if whole_ids { task.id.clone() } else { table::short_id(&task.id) },
                format!("{mark}{name}"),
                task.spec.container_spec.image.clone(),
                nodes.get(&task.node_id).unwrap_or(&task.node_id).clone(),
                table::capital(&task.desired_state),
                current_state(task, now),
                task.status.err.clone(),
                task.networks_attachments
                    .iter()
                    .flat_map(|attachment| &attachment.addresses)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", "),
            ]
        })
        .collect();
    table::render(["ID", "NAME", "IMAGE", "NODE", "DESIRED STATE", "CURRENT STATE", "ERROR", "ADDRESS"], &rows)
}

fn current_state(task: &Task, now: u64) -> String {
    let state = table::capital(&task.status.state);
    match time::parse_rfc3339(&task.status.timestamp) {
        Some(at) => {
            let age = time::human_duration(now.saturating_sub(at.0));
            format!("{state} {} ago", age.to_lowercase())
        }
        None => state,
    }
}

/// Shows all about services, as JSON or, with --pretty, for people.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "inspect")]
struct Inspect {
    /// for people to read
    #[argh(switch)]
    pretty: bool,
    /// ids or names
    #[argh(positional)]
    services: Vec<String>,
}

impl Inspect {
    fn run(self, session: &mut Session) -> Outcome {
        if self.pretty {
            return session.for_each(&some(self.services)?, |session, name| {
                let service = session.service(name)?;
                service_pretty::text(session, &service).map(Some)
            });
        }
        session.inspect(&some(self.services)?, |service| Target::new(&["services", service]))
    }
}

/// Removes services: their tasks are stopped on all hosts.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "rm")]
struct Rm {
    /// ids or names
    #[argh(positional)]
    services: Vec<String>,
}

impl Rm {
    fn run(self, session: &mut Session) -> Outcome {
        session.for_each(&some(self.services)?, |session, service| {
            session.delete(&Target::new(&["services", service]))?;
            Ok(Some(service.to_owned()))
        })
    }
}
