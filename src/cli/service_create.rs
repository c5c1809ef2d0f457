//! `formic service create`.

use super::convergence::Convergence;
use super::service_flags::{RestartFlags, UpdateFlags};
use super::session::{Failure, Outcome, Session, pairs};
use super::{duration, quantity};
use crate::api::client::Target;
use crate::api::types as api;
use argh::{ArgsInfo, FromArgs};

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
    /// when a task that ended is replaced: none, on-failure or any (default: any)
    #[argh(option, arg_name = "word")]
    restart_condition: Option<String>,
    /// time between the end of a task and its replacement (default: 5s)
    #[argh(option, arg_name = "time", from_str_fn(duration::nanoseconds))]
    restart_delay: Option<u64>,
    /// replacements at most (default: no limit)
    #[argh(option, arg_name = "count")]
    restart_max_attempts: Option<u64>,
    /// time within which these are counted (default: since the service last changed)
    #[argh(option, arg_name = "time", from_str_fn(duration::nanoseconds))]
    restart_window: Option<u64>,
    /// tasks that an update replaces together; 0 is all (default: 1)
    #[argh(option, arg_name = "count")]
    update_parallelism: Option<u64>,
    /// time that a new task runs before an update replaces the next (default: 0s)
    #[argh(option, arg_name = "time", from_str_fn(duration::nanoseconds))]
    update_delay: Option<u64>,
    /// time for which a new task that ends counts as failed (default: 5s)
    #[argh(option, arg_name = "time", from_str_fn(duration::nanoseconds))]
    update_monitor: Option<u64>,
    /// what an update does when too many fail: pause, continue or rollback (default: pause)
    #[argh(option, arg_name = "word")]
    update_failure_action: Option<String>,
    /// part of the tasks, 0 to 1, that may fail in an update (default: 0)
    #[argh(option, arg_name = "number")]
    update_max_failure_ratio: Option<f64>,
    /// tasks that a rollback replaces together; 0 is all (default: 1)
    #[argh(option, arg_name = "count")]
    rollback_parallelism: Option<u64>,
    /// time that a task runs before a rollback replaces the next (default: 0s)
    #[argh(option, arg_name = "time", from_str_fn(duration::nanoseconds))]
    rollback_delay: Option<u64>,
    /// time for which a task of a rollback that ends counts as failed (default: 5s)
    #[argh(option, arg_name = "time", from_str_fn(duration::nanoseconds))]
    rollback_monitor: Option<u64>,
    /// what a rollback does when too many fail: pause or continue (default: pause)
    #[argh(option, arg_name = "word")]
    rollback_failure_action: Option<String>,
    /// part of the tasks, 0 to 1, that may fail in a rollback (default: 0)
    #[argh(option, arg_name = "number")]
    rollback_max_failure_ratio: Option<f64>,
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

    fn policies(&mut self, spec: &mut api::ServiceSpec) {
        RestartFlags {
            condition: self.restart_condition.take(),
            delay: self.restart_delay,
            max_attempts: self.restart_max_attempts,
            window: self.restart_window,
        }
        .apply(&mut spec.task_template.restart_policy);
        UpdateFlags {
            parallelism: self.update_parallelism,
            delay: self.update_delay,
            monitor: self.update_monitor,
            failure_action: self.update_failure_action.take(),
            max_failure_ratio: self.update_max_failure_ratio,
        }
        .apply(&mut spec.update_config);
        UpdateFlags {
            parallelism: self.rollback_parallelism,
            delay: self.rollback_delay,
            monitor: self.rollback_monitor,
            failure_action: self.rollback_failure_action.take(),
            max_failure_ratio: self.rollback_max_failure_ratio,
        }
        .apply(&mut spec.rollback_config);
    }

    fn spec(mut self) -> Result<api::ServiceSpec, Failure> {
        let mut policies = api::ServiceSpec::default();
        self.policies(&mut policies);
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
                ..policies.task_template
            },
            mode,
            ..policies
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
        Ok(api::Placement {
            constraints: self.constraint.clone(),
            preferences: preferences(&self.placement_pref)?,
            max_replicas: self.replicas_max_per_node,
        })
    }
}

/// Placement preferences as they are written.
pub(super) fn preferences(texts: &[String]) -> Result<Vec<api::PlacementPreference>, Failure> {
    let preference = |text: &String| {
        let label = text.strip_prefix("spread=").ok_or_else(|| {
            Failure::new(format!("invalid placement preference {text:?}: it must be spread=node.labels.NAME"))
        })?;
        Ok(api::PlacementPreference { spread: api::SpreadOver { spread_descriptor: label.to_owned() } })
    };
    texts.iter().map(preference).collect()
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
