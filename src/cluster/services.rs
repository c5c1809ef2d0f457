//! Commands on services.

use super::apply::{Outcome, done};
use super::limits::{
    ALIASES, API_SPEC_BYTES, CONSTRAINT_BYTES, CONSTRAINTS, CONTAINER_BYTES, NETWORKS_PER_SERVICE, PREFERENCES,
    REPLICAS, RESTARTS_IN_WINDOW, SERVICES, TASKS, check_labels, check_network_name, check_room, check_service_name,
    not_found,
};
use super::{Refusal, Service, State};
use crate::types::{
    ContainerSpec, NetworkId, Placement, RestartPolicy, ServiceId, ServiceMode, ServiceSpec, TaskId, UnixTime,
};
use std::collections::BTreeSet;

impl State {
    pub(super) fn create_service(&mut self, id: ServiceId, spec: &ServiceSpec, at: UnixTime) -> Outcome {
        check_service_name(&spec.name)?;
        // A service on its way out has given up its name: `service rm` and `service create` in a row work.
        let same_name = |service: &Service| !service.removing && service.spec.name == spec.name;
        if self.services.values().any(same_name) {
            let text = format!("name conflicts with an existing object: service {} already exists", spec.name);
            return Err(Refusal::Conflict(text));
        }
        if self.services.contains_key(&id) {
            return Err(Refusal::Conflict(format!("service with id {id} already exists")));
        }
        // What is attached has its own id in the place of a service's.
        if self.tasks.contains_key(&TaskId(id.0)) {
            return Err(Refusal::Conflict(format!("{id} is the id of a task")));
        }
        check_room("services", self.services.len(), SERVICES)?;
        self.check_service(id, spec)?;
        let (spec, version) = (spec.clone(), self.index);
        let (created_at, updated_at, template) = (at, at, version);
        let (former, rollout, removing) = (None, None, false);
        let service = Service { id, spec, created_at, updated_at, version, template, former, rollout, removing };
        self.services.insert(id, service);
        done()
    }

    /// What must hold for every specification that a service gets, whether it is there already or not.
    pub(super) fn check_service(&self, id: ServiceId, spec: &ServiceSpec) -> Result<(), Refusal> {
        check_labels("labels", &spec.labels)?;
        check_container(&spec.container)?;
        if spec.api_spec.len() > API_SPEC_BYTES {
            return Err(Refusal::Invalid(format!("the service's specification is longer than {API_SPEC_BYTES} bytes")));
        }
        self.check_networks(&spec.networks)?;
        check_placement(spec)?;
        check_restarts(&spec.renewal.restart)?;
        self.check_tasks(id, spec.mode)
    }

    fn check_networks(&self, networks: &[(NetworkId, Vec<String>)]) -> Result<(), Refusal> {
        if networks.len() > NETWORKS_PER_SERVICE {
            let text = format!("a service can have at most {NETWORKS_PER_SERVICE} networks");
            return Err(Refusal::Invalid(text));
        }
        let mut seen = BTreeSet::new();
        for (id, aliases) in networks {
            let network = self.networks.get(id).ok_or_else(|| not_found("network", id))?;
            if !seen.insert(*id) {
                return Err(Refusal::Invalid(format!("network {} is given twice", network.spec.name)));
            }
            let bad = |alias: &String| check_network_name(alias).is_err();
            if aliases.len() > ALIASES || aliases.iter().any(bad) {
                let text = format!(
                    "aliases on network {}: at most {ALIASES} names of letters, digits, . _ -",
                    network.spec.name
                );
                return Err(Refusal::Invalid(text));
            }
        }
        Ok(())
    }

    fn check_tasks(&self, id: ServiceId, mode: ServiceMode) -> Result<(), Refusal> {
        let count = |mode| match mode {
            ServiceMode::Replicated { replicas } => replicas,
            ServiceMode::Global => self.nodes.len() as u64,
        };
        let tasks = count(mode);
        if tasks > REPLICAS {
            return Err(Refusal::Invalid(format!("{tasks} replicas are too many: at most {REPLICAS}")));
        }
        let wanted = |service: &Service| if service.removing { 0 } else { count(service.spec.mode) };
        let others = self.services.values().filter(|service| service.id != id);
        let held: u64 = others.map(wanted).sum();
        if held.saturating_add(tasks) > TASKS {
            let text = format!("the swarm has {held} tasks; {tasks} more would exceed its limit of {TASKS}");
            return Err(Refusal::NotNow(text));
        }
        Ok(())
    }

    /// Tells all tasks to go. Those that no node has go at once, and with the last one the service.
    pub(super) fn remove_service(&mut self, id: ServiceId, at: UnixTime) -> Outcome {
        let index = self.index;
        let service = self.services.get_mut(&id).filter(|service| !service.removing);
        let service = service.ok_or_else(|| not_found("service", id))?;
        service.removing = true;
        service.updated_at = at;
        service.version = index;
        let tasks: Vec<TaskId> = self.tasks.values().filter(|task| task.service == id).map(|task| task.id).collect();
        for task in tasks {
            self.tell_to_go(task, at);
        }
        self.end_service(id);
        done()
    }

    /// Forgets a service that was told to go once it has no task.
    pub(super) fn end_service(&mut self, id: ServiceId) {
        let removing = self.services.get(&id).is_some_and(|service| service.removing);
        if removing && !self.tasks.values().any(|task| task.service == id) {
            self.services.remove(&id);
        }
    }
}

fn check_restarts(policy: &RestartPolicy) -> Result<(), Refusal> {
    if policy.window_secs > 0 && policy.max_attempts > RESTARTS_IN_WINDOW {
        let text = format!("at most {RESTARTS_IN_WINDOW} restart attempts can be counted within a window");
        return Err(Refusal::Invalid(text));
    }
    Ok(())
}

fn check_placement(spec: &ServiceSpec) -> Result<(), Refusal> {
    let Placement { constraints, spread, max_per_node } = &spec.placement;
    if constraints.len() > CONSTRAINTS || spread.len() > PREFERENCES {
        let text = format!("at most {CONSTRAINTS} constraints and {PREFERENCES} placement preferences are allowed");
        return Err(Refusal::Invalid(text));
    }
    let long = |text: &str| text.len() > CONSTRAINT_BYTES;
    if constraints.iter().any(|constraint| long(&constraint.to_string())) || spread.iter().any(|label| long(label)) {
        return Err(Refusal::Invalid(format!("a constraint or preference is longer than {CONSTRAINT_BYTES} bytes")));
    }
    if spec.mode == ServiceMode::Global && *max_per_node > 0 {
        return Err(Refusal::Invalid("replicas-max-per-node can only be used with replicated mode".into()));
    }
    Ok(())
}

/// What a task runs: within bounds, and without NUL, which no argument of a program can hold.
fn check_container(container: &ContainerSpec) -> Result<(), Refusal> {
    let ContainerSpec { image, command, args, env, dir, hostname } = container;
    if image.is_empty() {
        return Err(Refusal::Invalid("image must be provided".into()));
    }
    let lists = command.iter().chain(args).chain(env);
    let texts = || lists.clone().chain([image, dir, hostname]);
    // Each string also costs its length field and a pointer of the program's vector.
    let bytes: usize = texts().map(|text| text.len().saturating_add(8)).sum();
    if bytes > CONTAINER_BYTES {
        let text =
            format!("image, command, arguments and environment take {bytes} bytes; {CONTAINER_BYTES} are allowed");
        return Err(Refusal::Invalid(text));
    }
    if texts().any(|text| text.contains('\0')) {
        return Err(Refusal::Invalid("image, command, arguments and environment must not contain NUL".into()));
    }
    Ok(())
}
