//! `formic service update`, `scale` and `rollback`: each reads the specification, changes it and sends it back whole.

use super::convergence::Convergence;
use super::service_create::{preferences, with_value};
use super::service_flags::{RestartFlags, UpdateFlags};
use super::session::{Failure, Outcome, Session, pairs};
use super::{duration, quantity};
use crate::api::client::Target;
use crate::api::types as api;
use argh::{ArgsInfo, FromArgs};

/// Changes a service. Its tasks are replaced one after the other where what they are changes.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "update")]
pub(super) struct Update {
    /// go back to the specification before; nothing else is changed then
    #[argh(switch)]
    rollback: bool,
    /// replace all tasks even if nothing changes
    #[argh(switch)]
    force: bool,
    /// image
    #[argh(option, arg_name = "image")]
    image: Option<String>,
    /// arguments, separated by blanks; quotes keep some together
    #[argh(option, arg_name = "text")]
    args: Option<String>,
    /// program to run instead of the image's own
    #[argh(option, arg_name = "program")]
    entrypoint: Option<String>,
    /// number of tasks
    #[argh(option, arg_name = "count")]
    replicas: Option<u64>,
    /// tasks on one host at most; 0 is no limit
    #[argh(option, arg_name = "count")]
    replicas_max_per_node: Option<u64>,
    /// environment variable to add or change; a name alone takes the value from here
    #[argh(option, arg_name = "name=value")]
    env_add: Vec<String>,
    /// environment variable to remove
    #[argh(option, arg_name = "name")]
    env_rm: Vec<String>,
    /// label of the service to add or change
    #[argh(option, arg_name = "name=value")]
    label_add: Vec<String>,
    /// label of the service to remove
    #[argh(option, arg_name = "name")]
    label_rm: Vec<String>,
    /// condition that hosts must meet, to add
    #[argh(option, arg_name = "condition")]
    constraint_add: Vec<String>,
    /// condition to remove
    #[argh(option, arg_name = "condition")]
    constraint_rm: Vec<String>,
    /// placement preference to add: spread=node.labels.NAME
    #[argh(option, arg_name = "preference")]
    placement_pref_add: Vec<String>,
    /// placement preference to remove
    #[argh(option, arg_name = "preference")]
    placement_pref_rm: Vec<String>,
    /// overlay network to attach the tasks to
    #[argh(option, arg_name = "network")]
    network_add: Vec<String>,
    /// overlay network to take the tasks off
    #[argh(option, arg_name = "network")]
    network_rm: Vec<String>,
    /// processors that each task has for itself: 2 or 0.5
    #[argh(option, arg_name = "number", from_str_fn(quantity::nano_cpus))]
    reserve_cpu: Option<u64>,
    /// memory that each task has for itself: 64m, 2g
    #[argh(option, arg_name = "bytes", from_str_fn(quantity::bytes))]
    reserve_memory: Option<u64>,
    /// host name inside the containers
    #[argh(option, arg_name = "name")]
    hostname: Option<String>,
    /// working directory inside the containers
    #[argh(option, short = 'w', arg_name = "dir")]
    workdir: Option<String>,
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
    /// id or name
    #[argh(positional)]
    service: String,
}

impl Update {
    pub(super) fn run(mut self, session: &mut Session) -> Outcome {
        let service = session.service(&self.service)?;
        if self.rollback {
            return Change { detach: self.detach, quiet: self.quiet }.roll_back(session, &self.service, service);
        }
        let mut spec = service.spec;
        self.change_service(&mut spec)?;
        self.change_container(&mut spec.task_template.container_spec)?;
        self.change_placement(&mut spec.task_template.placement)?;
        self.change_networks(session, &mut spec.task_template.networks)?;
        self.policies(&mut spec);
        let change = Change { detach: self.detach, quiet: self.quiet };
        change.send(session, &service.id, service.version.index, &spec)?;
        session.print(&self.service)?;
        change.wait(session, service.id)
    }

    fn change_service(&mut self, spec: &mut api::ServiceSpec) -> Outcome {
        spec.labels.extend(pairs(&self.label_add));
        spec.labels.retain(|name, _| !self.label_rm.contains(name));
        if let Some(replicas) = self.replicas {
            set_replicas(&mut spec.mode, replicas)?;
        }
        let task = &mut spec.task_template;
        task.force_update = task.force_update.saturating_add(u64::from(self.force));
        let reserved = &mut task.resources.reservations;
        reserved.nano_cpus = self.reserve_cpu.unwrap_or(reserved.nano_cpus);
        reserved.memory_bytes = self.reserve_memory.unwrap_or(reserved.memory_bytes);
        Ok(())
    }

    fn change_container(&mut self, container: &mut api::ContainerSpec) -> Outcome {
        let name_of = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
        let added: Vec<String> = std::mem::take(&mut self.env_add).into_iter().map(with_value).collect();
        let replaced: Vec<String> = added.iter().map(|entry| name_of(entry)).collect();
        container.env.retain(|entry| {
            let name = name_of(entry);
            !self.env_rm.contains(&name) && !replaced.contains(&name)
        });
        container.env.extend(added);
        let set = |field: &mut String, value: Option<String>| {
            if let Some(value) = value {
                *field = value;
            }
        };
        set(&mut container.image, self.image.take());
        set(&mut container.hostname, self.hostname.take());
        set(&mut container.dir, self.workdir.take());
        if let Some(program) = self.entrypoint.take() {
            container.command = vec![program];
        }
        if let Some(text) = self.args.take() {
            container.args = words(&text)?;
        }
        Ok(())
    }

    fn change_placement(&mut self, placement: &mut api::Placement) -> Outcome {
        let tight = |text: &String| text.split_whitespace().collect::<String>();
        let removed: Vec<String> = self.constraint_rm.iter().map(tight).collect();
        placement.constraints.retain(|constraint| !removed.contains(&tight(constraint)));
        for constraint in std::mem::take(&mut self.constraint_add) {
            if !placement.constraints.contains(&constraint) {
                placement.constraints.push(constraint);
            }
        }
        let removed = preferences(&self.placement_pref_rm)?;
        placement.preferences.retain(|preference| !removed.contains(preference));
        placement.preferences.extend(preferences(&self.placement_pref_add)?);
        placement.max_replicas = self.replicas_max_per_node.unwrap_or(placement.max_replicas);
        Ok(())
    }

    fn change_networks(&mut self, session: &Session, networks: &mut Vec<api::NetworkAttachmentConfig>) -> Outcome {
        let id = |name: &String| -> Result<String, Failure> {
            let found: api::NetworkResource = session.get(&Target::new(&["networks", name]))?;
            Ok(found.id)
        };
        for name in &self.network_rm {
            let id = id(name)?;
            networks.retain(|network| network.target != id);
        }
        for name in &self.network_add {
            let target = id(name)?;
            if networks.iter().any(|network| network.target == target) {
                return Err(Failure::new(format!("service is already attached to network {name}")));
            }
            networks.push(api::NetworkAttachmentConfig { target, aliases: Vec::new() });
        }
        Ok(())
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
}

fn set_replicas(mode: &mut api::ServiceMode, replicas: u64) -> Outcome {
    if mode.replicated.is_none() {
        return Err(Failure::new("replicas can only be used with replicated mode"));
    }
    *mode = api::ServiceMode::replicated(replicas);
    Ok(())
}

/// The words of a text: blanks separate them, single and double quotes keep blanks, a backslash keeps what follows it.
fn words(text: &str) -> Result<Vec<String>, Failure> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None::<char>);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            ('\\', None | Some('"')) => {
                let kept = characters.next().ok_or_else(|| Failure::new("the arguments end with a backslash"))?;
                word.get_or_insert_default().push(kept);
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(Failure::new("a quote in the arguments is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// How a change is followed.
#[derive(Clone, Copy)]
struct Change {
    detach: bool,
    quiet: bool,
}

impl Change {
    fn send(self, session: &Session, id: &str, version: u64, spec: &api::ServiceSpec) -> Outcome {
        let target = Target::new(&["services", id, "update"]).with("version", &version.to_string());
        session.post::<api::ServiceUpdated>(&target, spec).map(drop)
    }

    fn roll_back(self, session: &mut Session, name: &str, service: api::Service) -> Outcome {
        let target = Target::new(&["services", &service.id, "update"]);
        let target = target.with("version", &service.version.index.to_string()).with("rollback", "previous");
        session.post::<api::ServiceUpdated>(&target, &service.spec)?;
        session.print(name)?;
        self.wait(session, service.id)
    }

    fn wait(self, session: &mut Session, id: String) -> Outcome {
        if self.detach { Ok(()) } else { Convergence::new(id, self.quiet).wait(session) }
    }
}

/// Sets the number of tasks of services.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "scale")]
pub(super) struct Scale {
    /// do not wait until the tasks run
    #[argh(switch, short = 'd')]
    detach: bool,
    /// services with their numbers: web=3
    #[argh(positional, arg_name = "service=count")]
    services: Vec<String>,
}

impl Scale {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        if self.services.is_empty() {
            return Err(Failure::new("give services with their numbers of tasks: web=3"));
        }
        let change = Change { detach: self.detach, quiet: false };
        session.for_each(&self.services, |session, wanted| {
            let parsed = wanted.split_once('=').and_then(|(name, count)| Some((name, count.parse().ok()?)));
            let (name, replicas) = parsed
                .ok_or_else(|| Failure::new(format!("invalid scale specifier {wanted:?}: it must be SERVICE=COUNT")))?;
            let service = session.service(name)?;
            let mut spec = service.spec;
            set_replicas(&mut spec.mode, replicas)
                .map_err(|_| Failure::new(format!("{name}: scale can only be used with replicated mode")))?;
            change.send(session, &service.id, service.version.index, &spec)?;
            session.print(format!("{name} scaled to {replicas}"))?;
            change.wait(session, service.id)?;
            Ok(None)
        })
    }
}

/// Takes a service back to what it was before its last change.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "rollback")]
pub(super) struct Rollback {
    /// do not wait until the tasks run
    #[argh(switch, short = 'd')]
    detach: bool,
    /// show no progress
    #[argh(switch, short = 'q')]
    quiet: bool,
    /// id or name
    #[argh(positional)]
    service: String,
}

impl Rollback {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        let service = session.service(&self.service)?;
        Change { detach: self.detach, quiet: self.quiet }.roll_back(session, &self.service, service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_taken_apart() {
        for (text, expected) in [
            ("", &[][..]),
            ("  sleep  9 ", &["sleep", "9"]),
            ("sh -c 'echo \"a b\"' \"c d\"e", &["sh", "-c", "echo \"a b\"", "c de"]),
            ("a\\ b '' \"x\\\"y\"", &["a b", "", "x\"y"]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text}");
        }
        for text in ["'a", "a \"b", "a\\"] {
            assert!(words(text).is_err(), "{text}");
        }
    }
}
