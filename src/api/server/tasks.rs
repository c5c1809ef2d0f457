//! Tasks: list and inspect.

use super::backend::Backend;
use super::error::ApiError;
use super::filters::Filters;
use super::request::Request;
use super::{lookup, manager_state, networks, respond, services, time};
use crate::api::types as api;
use crate::cluster::{State, Task};
use crate::types::{self, Attachment, NodeId, ServiceId, TaskState, TaskStatus};

/// Filters of task lists.
const FILTERS: [&str; 7] = ["id", "name", "service", "node", "desired-state", "label", "_up-to-date"];

pub(super) fn list(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let filters = Filters::parse(request.query("filters"), &FILTERS)?;
    let tasks = filtered(&state, &filters)?;
    Ok(respond::json(&tasks.into_iter().map(|task| describe(&state, task)).collect::<Vec<_>>()))
}

pub(super) fn inspect(backend: &dyn Backend, wanted: &str) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    Ok(respond::json(&describe(&state, lookup::task(&state, wanted)?)))
}

pub(super) fn filtered<'a>(state: &'a State, filters: &Filters) -> Result<Vec<&'a Task>, ApiError> {
    let services: Vec<ServiceId> =
        filters.values("service").iter().filter_map(|wanted| service_id(state, wanted)).collect();
    let nodes: Vec<NodeId> =
        filters.values("node").iter().filter_map(|wanted| Some(lookup::node(state, wanted).ok()?.id)).collect();
    for wanted in filters.values("desired-state") {
        if !matches!(wanted.as_str(), "running" | "shutdown" | "accepted" | "ready" | "remove") {
            return Err(ApiError::bad_request(format!("invalid filter 'desired-state={wanted}'")));
        }
    }
    let up_to_date =
        |task: &Task| state.services.get(&task.service).is_some_and(|service| service.template == task.template);
    let fits = |task: &&Task| {
        filters.any("id", |id| task.id.to_string().starts_with(id))
            && filters.any("name", |name| task_name(state, task).starts_with(name))
            && task.standalone.is_none()
            && filters.any("service", |_| services.contains(&task.service))
            && filters.any("node", |_| task.node.or(task.bound_to).is_some_and(|node| nodes.contains(&node)))
            && filters.any("desired-state", |desired| task.desired.to_string() == desired)
            && filters.any("_up-to-date", |wanted| up_to_date(task) == (wanted == "true"))
            && filters.values("label").is_empty()
    };
    Ok(state.tasks.values().filter(fits).collect())
}

/// Also a service that is being removed: its tasks are still there to be seen.
fn service_id(state: &State, wanted: &str) -> Option<ServiceId> {
    let found = lookup::service(state, wanted).ok().map(|service| service.id);
    found.or_else(|| wanted.parse().ok().filter(|id| state.services.contains_key(id)))
}

fn task_name(state: &State, task: &Task) -> String {
    let service = state.services.get(&task.service).map(|service| service.spec.name.clone());
    types::task_name(&service.unwrap_or_else(|| task.service.to_string()), task.slot, task.bound_to)
}

/// A task as `task inspect` shows it.
pub(super) fn describe(state: &State, task: &Task) -> api::Task {
    let targets = task.attachments.iter().map(|attachment| api::NetworkAttachmentConfig {
        target: attachment.network.to_string(),
        aliases: attachment.aliases.clone(),
    });
    api::Task {
        id: task.id.to_string(),
        version: api::ObjectVersion { index: task.version },
        created_at: time::rfc3339(task.created_at),
        updated_at: time::rfc3339(task.updated_at),
        spec: api::TaskSpec {
            container_spec: services::container_spec(&task.container),
            resources: services::resources(task.reservations),
            networks: targets.collect(),
            ..api::TaskSpec::default()
        },
        service_id: task.service.to_string(),
        slot: task.slot,
        node_id: task.node.or(task.bound_to).map(|node| node.to_string()).unwrap_or_default(),
        status: status(task),
        desired_state: task.desired.to_string(),
        networks_attachments: task
            .attachments
            .iter()
            .map(|attachment| describe_attachment(state, attachment))
            .collect(),
        ..api::Task::default()
    }
}

fn status(task: &Task) -> api::TaskStatus {
    let TaskStatus { state, message, error, exit_code, pid, at } = &task.status;
    let begun = *state >= TaskState::Running && (pid.is_some() || exit_code.is_some());
    api::TaskStatus {
        timestamp: time::rfc3339(*at),
        state: state.to_string(),
        message: message.clone(),
        err: error.clone(),
        container_status: begun.then(|| api::ContainerStatus {
            container_id: task.id.to_string(),
            pid: pid.unwrap_or(0),
            exit_code: exit_code.unwrap_or(0),
        }),
        ..api::TaskStatus::default()
    }
}

fn describe_attachment(state: &State, attachment: &Attachment) -> api::NetworkAttachment {
    let overlay = |options| api::Driver { name: networks::OVERLAY.into(), options };
    let mut described = api::TaskNetwork { id: attachment.network.to_string(), ..api::TaskNetwork::default() };
    if let Some(network) = state.networks.get(&attachment.network) {
        described.version = api::ObjectVersion { index: network.version };
        described.created_at = time::rfc3339(network.created_at);
        described.updated_at = time::rfc3339(network.created_at);
        described.spec = api::TaskNetworkSpec {
            name: network.spec.name.clone(),
            labels: network.spec.labels.clone(),
            driver_configuration: overlay(network.spec.options.clone()),
            scope: "swarm".into(),
        };
        described.driver_state = overlay(network.spec.options.clone());
        described.ipam_options = api::TaskIpam {
            driver: api::Driver { name: "default".into(), ..api::Driver::default() },
            configs: vec![networks::ipam_config(network)],
        };
    }
    api::NetworkAttachment { network: described, addresses: vec![attachment.address.to_string()] }
}
