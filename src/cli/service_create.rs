//! `formic service create`, and waiting until the service runs.

use super::session::{Failure, Outcome, Session, filters, pairs};
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
    /// number of tasks (default: 1)
    #[argh(option, arg_name = "count", default = "1")]
    replicas: u64,
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
        let created: api::IdUpper = session.post(&Target::new(&["services", "create"]), &self.spec())?;
        session.print(&created.id)?;
        if detach {
            return Ok(());
        }
        Convergence::new(created.id, quiet).wait(session)
    }

    fn spec(self) -> api::ServiceSpec {
        let networks =
            self.network.into_iter().map(|target| api::NetworkAttachmentConfig { target, aliases: Vec::new() });
        api::ServiceSpec {
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
                networks: networks.collect(),
                ..api::TaskSpec::default()
            },
            mode: api::ServiceMode {
                replicated: Some(api::ReplicatedService { replicas: Some(self.replicas) }),
                global: None,
            },
            ..api::ServiceSpec::default()
        }
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
    shown: BTreeMap<u64, String>,
    all_up_since: Option<Instant>,
}

impl Convergence {
    fn new(service: String, quiet: bool) -> Convergence {
        Convergence { service, quiet, shown: BTreeMap::new(), all_up_since: None }
    }

    fn wait(mut self, session: &mut Session) -> Outcome {
        loop {
            let service = session.service(&self.service)?;
            let replicas = service.spec.mode.replicated.and_then(|mode| mode.replicas).unwrap_or(0);
            let target = filters(Target::new(&["tasks"]), &[format!("service={}", self.service)])?;
            let tasks: Vec<api::Task> = session.get(&target)?;
            self.show(session, &tasks, replicas);
            if self.is_steady(running(&tasks) as u64 >= replicas) {
                self.tell(session, &format!("verify: Service {} converged", self.service));
                return Ok(());
            }
            if let Some(reason) = hopeless(&tasks) {
                let name = service.spec.name;
                return Err(Failure::new(format!(
                    "service {name} does not come up: {reason} (it stays; see 'formic service ps {name}')"
                )));
            }
            std::thread::sleep(POLL);
        }
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

    /// One line for each slot whose state changed.
    fn show(&mut self, session: &mut Session, tasks: &[api::Task], replicas: u64) {
        for slot in 1..=replicas {
            let of_slot = tasks.iter().filter(|task| task.slot == slot);
            let Some(task) = of_slot.max_by_key(|task| (task.desired_state == "running", task.version.index)) else {
                continue;
            };
            let mut line = format!("{slot}/{replicas}: {}", task.status.state);
            if !task.status.err.is_empty() {
                line.push_str(&format!(" ({})", task.status.err));
            }
            if self.shown.get(&slot) != Some(&line) {
                self.tell(session, &line);
                self.shown.insert(slot, line);
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
