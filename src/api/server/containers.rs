//! Tasks of this node as Docker shows containers, and the refusal to make any other container.

use super::backend::Backend;
use super::error::ApiError;
use super::filters::Filters;
use super::request::Request;
use super::{lookup, names, networks, respond, time};
use crate::agent::LocalTask;
use crate::api::types as api;
use crate::types::{TaskState, UnixTime, task_name};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Filters of `ps`.
const FILTERS: [&str; 4] = ["id", "name", "status", "label"];

pub(super) fn list(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let filters = Filters::parse(request.query("filters"), &FILTERS)?;
    let all = request.flag("all") || !filters.values("status").is_empty();
    let limit = request.query("limit").and_then(|limit| limit.parse().ok()).filter(|&limit| limit > 0);
    let mut tasks = backend.tasks();
    tasks.sort_by_key(|task| std::cmp::Reverse((task.status.at, task.assignment.id)));
    let fits = |task: &LocalTask| {
        (all || task.status.state == TaskState::Running)
            && filters.any("id", |id| task.assignment.id.to_string().starts_with(id))
            && filters.any("name", |name| long_name(task).contains(name.trim_start_matches('/')))
            && filters.any("status", |status| status == state_word(task.status.state))
            && filters.labels("label", &labels(task))
    };
    let networks = networks::names_by_id(backend);
    let found = tasks.iter().filter(|task| fits(task)).take(limit.unwrap_or(usize::MAX));
    Ok(respond::json(&found.map(|task| summary(task, &networks, time::now())).collect::<Vec<_>>()))
}

pub(super) fn inspect(backend: &dyn Backend, wanted: &str) -> Result<respond::Response, ApiError> {
    let task = find(backend, wanted)?;
    let networks = networks::names_by_id(backend);
    Ok(respond::json(&details(&task, &networks)))
}

/// Containers that are no task have no keys: none is made. The network is looked at first and the image never, so
/// that every node says the same of the same command.
pub(super) fn create(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let value = request.value()?;
    let known = networks::known_names(backend);
    for wanted in wanted_networks(&value) {
        if let Ok(network) = lookup::network_name(&known, &wanted) {
            networks::require_attachable(&network)?;
            continue;
        }
        if !names::RESERVED_NETWORKS.contains(&wanted.as_str()) && !wanted.starts_with("container:") {
            // Not a 404: on that the client would pull the image.
            return Err(ApiError::bad_request(format!("network {wanted} not found")));
        }
    }
    Err(ApiError::bad_request(
        "Formic runs containers as tasks of services only: use `docker service create` instead of `docker create` or `docker run`, or `formic attach` for a namespace of your own",
    ))
}

fn wanted_networks(request: &Value) -> BTreeSet<String> {
    let mode = request.pointer("/HostConfig/NetworkMode").and_then(Value::as_str);
    let endpoints = request.pointer("/NetworkingConfig/EndpointsConfig").and_then(Value::as_object);
    let names = endpoints.into_iter().flat_map(|endpoints| endpoints.keys().cloned());
    names.chain(mode.map(str::to_owned)).filter(|name| !name.is_empty()).collect()
}

/// A task of this node, by its id, `web.1`, `web.1.ID`, or the only id that starts so. A running one is preferred to
/// the dead ones before it in its slot.
pub(super) fn find(backend: &dyn Backend, wanted: &str) -> Result<LocalTask, ApiError> {
    let tasks = backend.tasks();
    match find_in(&tasks, wanted) {
        Ok(task) => Ok(task.clone()),
        Err(error) => Err(elsewhere(backend, wanted).unwrap_or(error)),
    }
}

pub(super) fn find_in<'a>(tasks: &'a [LocalTask], wanted: &str) -> Result<&'a LocalTask, ApiError> {
    let wanted = wanted.strip_prefix('/').unwrap_or(wanted);
    let none = || ApiError::not_found(format!("No such container: {wanted}"));
    let running = |task: &&LocalTask| task.status.state == TaskState::Running;
    let named: Vec<&LocalTask> =
        tasks.iter().filter(|task| short_name(task) == wanted || long_name(task) == wanted).collect();
    let by_id = tasks.iter().find(|task| task.assignment.id.to_string() == wanted);
    if let Some(task) = by_id.or_else(|| named.iter().copied().find(running)).or_else(|| named.first().copied()) {
        return Ok(task);
    }
    let starts = |task: &&LocalTask| !wanted.is_empty() && task.assignment.id.to_string().starts_with(wanted);
    let mut prefixed = tasks.iter().filter(starts);
    match (prefixed.next(), prefixed.next()) {
        (Some(task), None) => Ok(task),
        (Some(_), Some(_)) => Err(ApiError::bad_request(format!("Multiple IDs found with provided prefix: {wanted}"))),
        _ => Err(none()),
    }
}

/// Says where a task runs that a manager knows and this node does not have.
fn elsewhere(backend: &dyn Backend, wanted: &str) -> Option<ApiError> {
    let state = backend.state()?;
    let task = state.tasks.values().find(|task| {
        let service = state.services.get(&task.service).map(|service| service.spec.name.as_str()).unwrap_or_default();
        let running = task.status.state == TaskState::Running;
        running && (task.id.to_string() == wanted || task_name(service, task.slot, task.node) == wanted)
    })?;
    let node = state.nodes.get(&task.node?)?;
    Some(ApiError::not_found(format!("No such container: {wanted} (it runs on node {})", node.hostname)))
}

/// `web.1`.
pub(super) fn short_name(task: &LocalTask) -> String {
    task.assignment.name()
}

/// `web.1.ID`, or the name of what belongs to no service.
pub(super) fn long_name(task: &LocalTask) -> String {
    if task.assignment.standalone {
        return short_name(task);
    }
    format!("{}.{}", short_name(task), task.assignment.id)
}

fn state_word(state: TaskState) -> &'static str {
    match state {
        TaskState::Running => "running",
        state if state.is_terminal() => "exited",
        _ => "created",
    }
}

fn labels(task: &LocalTask) -> BTreeMap<String, String> {
    let assignment = &task.assignment;
    if assignment.standalone {
        return BTreeMap::new();
    }
    let pairs = [
        ("com.docker.swarm.node.id", assignment.node.to_string()),
        ("com.docker.swarm.service.id", assignment.service.to_string()),
        ("com.docker.swarm.service.name", assignment.service_name.clone()),
        ("com.docker.swarm.task.id", assignment.id.to_string()),
        ("com.docker.swarm.task.name", long_name(task)),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn command_line(task: &LocalTask) -> Vec<String> {
    task.assignment.container.command.iter().chain(&task.assignment.container.args).cloned().collect()
}

fn container_networks(task: &LocalTask, names: &BTreeMap<String, String>) -> api::ContainerNetworks {
    let attachments = task.assignment.attachments.iter().map(|attachment| {
        let id = attachment.network.to_string();
        let network = api::ContainerNetwork {
            network_id: id.clone(),
            endpoint_id: task.assignment.id.to_string(),
            ip_address: attachment.address.addr().to_string(),
            ip_prefix_len: attachment.address.prefix_len(),
            aliases: attachment.aliases.clone(),
        };
        (names.get(&id).cloned().unwrap_or(id), network)
    });
    api::ContainerNetworks { networks: attachments.collect() }
}

/// One line of `ps`.
pub(super) fn summary(task: &LocalTask, networks: &BTreeMap<String, String>, now: UnixTime) -> api::ContainerSummary {
    let age = time::human_duration(now.0.saturating_sub(task.status.at.0));
    let status = match state_word(task.status.state) {
        "running" => format!("Up {age}"),
        "exited" => format!("Exited ({}) {age} ago", task.status.exit_code.unwrap_or(0)),
        _ => "Created".into(),
    };
    api::ContainerSummary {
        id: task.assignment.id.to_string(),
        names: vec![format!("/{}", long_name(task))],
        image: task.assignment.container.image.clone(),
        // The client shows an image whose name is its id by what follows the colon: `latest`.
        image_id: String::new(),
        command: command_line(task).join(" "),
        created: task.status.at.0,
        labels: labels(task),
        state: state_word(task.status.state).into(),
        status,
        network_settings: container_networks(task, networks),
        ..api::ContainerSummary::default()
    }
}

fn details(task: &LocalTask, networks: &BTreeMap<String, String>) -> api::ContainerDetails {
    let container = &task.assignment.container;
    let mut command = command_line(task).into_iter();
    let state = task.status.state;
    let at = time::rfc3339(task.status.at);
    api::ContainerDetails {
        id: task.assignment.id.to_string(),
        created: at.clone(),
        path: command.next().unwrap_or_default(),
        args: command.collect(),
        state: api::ContainerState {
            status: state_word(state).into(),
            running: state == TaskState::Running,
            pid: task.status.pid.unwrap_or(0),
            exit_code: task.status.exit_code.unwrap_or(0),
            error: task.status.error.clone(),
            started_at: at.clone(),
            finished_at: if state.is_terminal() { at } else { "0001-01-01T00:00:00Z".into() },
            ..api::ContainerState::default()
        },
        image: container.image.clone(),
        name: format!("/{}", long_name(task)),
        config: api::ContainerConfig {
            hostname: container.hostname.clone(),
            tty: false,
            env: container.env.clone(),
            cmd: container.args.clone(),
            image: container.image.clone(),
            working_dir: container.dir.clone(),
            labels: labels(task),
        },
        network_settings: container_networks(task, networks),
        ..api::ContainerDetails::default()
    }
}
