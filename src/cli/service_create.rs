//! `formic service create`, and waiting until the service runs.

use super::session::{Failure, Outcome, Session, filters, pairs};
use super::{quantity, table};
use crate::api::client::Target;
use crate::api::types as api;
use argh::{ArgsInfo, FromArgs};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Creates a service: as many containers of an image as wanted, on the hosts of the swarm.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "create")]
pub(super) struct Create {
    /// name of the service (default: one is invented)
    #[argh(option, arg_name = "name", default = "String::new()")]
    name: String,
    /// replicated (the default), or global: one task on each host that suits
    #[argh(option, arg_name = "word", default = "String::from(\"replicated\")")]
    mode: String,
    /// number of tasks (default: 1)
    #[argh(option, arg_name = "count")]
    replicas: Option<u64>,
    /// tasks on one host at most (default: no limit)
    #[argh(option, arg_name = "count", default = "0")]
    replicas_max_per_node: u64,
    /// condition that hosts must meet: node.id, node.hostname, node.role, node.platform.os, node.platform.arch or
    /// node.labels.NAME, then == or != and a value; may be repeated
    #[argh(option, arg_name = "condition")]
    constraint: Vec<String>,
    /// spread the tasks evenly over the values of a label: spread=node.labels.NAME; may be repeated
    #[argh(option, arg_name = "preference")]
    placement_pref: Vec<String>,
    /// processors that each task has for itself: 2 or 0.5
    #[argh(option, arg_name = "number", default = "0", from_str_fn(quantity::nano_cpus))]
    reserve_cpu: u64,
    /// memory that each task has for itself: 64m, 2g
    #[argh(option, arg_name = "bytes", default = "0", from_str_fn(quantity::bytes))]
    reserve_memory: u64,
    /// overlay network to attach the tasks to; may be repeated
    #[argh(option, arg_name = "network")]
    network: Vec<String>,
    /// environment variable; a name alone takes the value from here
    #[argh(option, short = 'e', arg_name = "name=value")]
    env: Vec<String>,
    /// label of the service
    #[argh(option, short = 'l', arg_name = "name=value")]
    label: Vec<String>,
    /// host name inside the containers (default: the task's id)
    #[argh(option, arg_name = "name", default = "String::new()")]
    hostname: String,
    /// working directory inside the containers
    #[argh(option, short = 'w', arg_name = "dir", default = "String::new()")]
    workdir: String,
    /// program to run instead of the image's own
    #[argh(option, arg_name = "program")]
    entrypoint: Option<String>,
    /// do not wait until the tasks run
    #[argh(switch, short = 'd')]
    detach: bool,
    /// show no progress
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// image; `host` is the host's own files
    #[argh(positional)]
    image: String,
    /// arguments, options of their own included
    #[argh(positional)]
    command: Vec<String>,
}

impl Create {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        let (detach, quiet) = (self.detach, self.quiet);
        let created: api::IdUpper = session.post(&Target::new(&["services", "create"]), &self.spec()?)?;
        session.print(&created.id)?;
        if detach {
            return Ok(());
        }
        Convergence::new(created.id, quiet).wait(session)
    }

    fn spec(self) -> Result<api::ServiceSpec, Failure> {
        let (mode, placement) = (self.service_mode()?, self.placement()?);
        let (nano_cpus, memory_bytes) = (self.reserve_cpu, self.reserve_memory);
        let networks =
            self.network.into_iter().map(|target| api::NetworkAttachmentConfig { target, aliases: Vec::new() });
        Ok(api::ServiceSpec {
            name: self.name,
            labels: pairs(&self.label),
            task_template: api::TaskSpec {
                container_spec: api::ContainerSpec {
                    image: self.image,
                    command: self.entrypoint.into_iter().collect(),
                    args: self.command,
                    env: self.env.into_iter().map(with_value).collect(),
                    dir: self.workdir,
                    hostname: self.hostname,
                },
                resources: api::ResourceRequirements { reservations: api::Resources { nano_cpus, memory_bytes } },
                placement,
                networks: networks.collect(),
                ..api::TaskSpec::default()
            },
            mode,
            ..api::ServiceSpec::default()
        })
    }

    fn service_mode(&self) -> Result<api::ServiceMode, Failure> {
        match (self.mode.as_str(), self.replicas) {
            ("replicated", replicas) => Ok(api::ServiceMode::replicated(replicas.unwrap_or(1))),
            ("global", None) if self.replicas_max_per_node == 0 => Ok(api::ServiceMode::global()),
            ("global", Some(_)) => Err(Failure::new("replicas can only be used with replicated mode")),
            ("global", None) => Err(Failure::new("replicas-max-per-node can only be used with replicated mode")),
            (other, _) => Err(Failure::new(format!("unknown mode {other:?}: it must be replicated or global"))),
        }
    }

    fn placement(&self) -> Result<api::Placement, Failure> {
        let preference = |text: &String| {
            let label = text.strip_prefix("spread=").ok_or_else(|| {
                Failure::new(format!("invalid placement preference {text:?}: it must be spread=node.labels.NAME"))
            })?;
            Ok(api::PlacementPreference { spread: api::SpreadOver { spread_descriptor: label.to_owned() } })
        };
        Ok(api::Placement {
            constraints: self.constraint.clone(),
            preferences: self.placement_pref.iter().map(preference).collect::<Result<_, Failure>>()?,
            max_replicas: self.replicas_max_per_node,
        })
    }
}

/// A name alone takes the value that it has here; the daemon refuses one that has none.
pub(super) fn with_value(variable: String) -> String {
    if variable.contains('=') {
        return variable;
    }
    match std::env::var(&variable) {
        Ok(value) => format!("{variable}={value}"),
        Err(_) => variable,
    }
}

/// How often the tasks are looked at.
const POLL: Duration = Duration::from_millis(200);

/// How long all tasks must run before they count as up: one that fails at once is not.
const STEADY: Duration = Duration::from_secs(1);

/// Tasks that may fail before any replica is up: more of them do not come up by waiting.
const MAX_FAILED: usize = 3;

/// Waiting for a service's tasks, with progress for people on standard error.
struct Convergence {
    service: String,
    quiet: bool,
    /// By slot, or by node of a global service.
    shown: BTreeMap<(u64, String), String>,
    all_up_since: Option<Instant>,
}

impl Convergence {
    fn new(service: String, quiet: bool) -> Convergence {
        Convergence { service, quiet, shown: BTreeMap::new(), all_up_since: None }
    }

    fn wait(mut self, session: &mut Session) -> Outcome {
        loop {
            let wanted = self.wanted(session)?;
            let target = filters(Target::new(&["tasks"]), &[format!("service={}", self.service)])?;
            let tasks: Vec<api::Task> = session.get(&target)?;
            self.show(session, &tasks, wanted);
            if self.is_steady(running(&tasks) as u64 >= wanted) {
                self.tell(session, &format!("verify: Service {} converged", self.service));
                return Ok(());
            }
            if let Some(reason) = hopeless(&tasks) {
                let name = session.service(&self.service)?.spec.name;
                return Err(Failure::new(format!(
                    "service {name} does not come up: {reason} (it stays; see 'formic service ps {name}')"
                )));
            }
            std::thread::sleep(POLL);
        }
    }

    /// How many tasks there are to be; the nodes of a global service may change meanwhile.
    fn wanted(&self, session: &Session) -> Result<u64, Failure> {
        let target = Target::new(&["services"]).with("status", "true");
        let found: Vec<api::Service> = session.get(&filters(target, &[format!("id={}", self.service)])?)?;
        let status = found.into_iter().next().and_then(|service| service.service_status);
        status.map(|status| status.desired_tasks).ok_or_else(|| Failure::new("the service was removed meanwhile"))
    }

    fn is_steady(&mut self, all_up: bool) -> bool {
        let since = if all_up {
            *self.all_up_since.get_or_insert_with(Instant::now)
        } else {
            self.all_up_since = None;
            return false;
        };
        since.elapsed() >= STEADY
    }

    /// One line for each place whose state changed.
    fn show(&mut self, session: &mut Session, tasks: &[api::Task], wanted: u64) {
        let place = |task: &api::Task| (task.slot, if task.slot == 0 { task.node_id.clone() } else { String::new() });
        let mut newest: BTreeMap<(u64, String), &api::Task> = BTreeMap::new();
        let rank = |task: &api::Task| (task.desired_state == "running", task.version.index);
        for task in tasks {
            let shown = newest.entry(place(task)).or_insert(task);
            if rank(task) > rank(shown) {
                *shown = task;
            }
        }
        for (place, task) in newest {
            let name = if place.0 == 0 { table::short_id(&place.1) } else { format!("{}/{wanted}", place.0) };
            let mut line = format!("{name}: {}", task.status.state);
            if !task.status.err.is_empty() {
                line.push_str(&format!(" ({})", task.status.err));
            }
            if self.shown.get(&place) != Some(&line) {
                self.tell(session, &line);
                self.shown.insert(place, line);
            }
        }
    }

    fn tell(&self, session: &mut Session, line: &str) {
        if !self.quiet {
            session.complain(line);
        }
    }
}

fn running(tasks: &[api::Task]) -> usize {
    tasks.iter().filter(|task| task.desired_state == "running" && task.status.state == "running").count()
}

/// The newest reason, if several tasks failed and none runs.
fn hopeless(tasks: &[api::Task]) -> Option<String> {
    let failed = tasks.iter().filter(|task| matches!(task.status.state.as_str(), "rejected" | "failed"));
    if running(tasks) > 0 || failed.clone().count() < MAX_FAILED {
        return None;
    }
    let newest = failed.max_by_key(|task| task.version.index)?;
    Some(if newest.status.err.is_empty() { newest.status.message.clone() } else { newest.status.err.clone() })
}
