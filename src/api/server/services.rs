//! Services: create, list, inspect, update, remove.

use super::backend::Backend;
use super::error::ApiError;
use super::filters::Filters;
use super::request::Request;
use super::{lookup, manager_state, names, random, renewal, respond, schema, time};
use crate::api::types as api;
use crate::cluster::{Command, Service, State, schedule};
use crate::types::{
    Constraint, ContainerSpec, NetworkId, Placement, Resources, ServiceId, ServiceMode, ServiceSpec, TaskState,
};
use hyper::StatusCode;
use std::collections::BTreeSet;

/// What tasks can be spread over.
const SPREAD_OVER: &str = "node.labels.";

/// The least processor time and memory that can be reserved, as Docker's.
const MIN_NANO_CPUS: u64 = 1_000_000;
const MIN_MEMORY_BYTES: u64 = 4 << 20;

/// Characters of a host name at most (a DNS label).
const MAX_HOSTNAME: usize = 63;

pub(super) async fn create(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let wanted: api::ServiceSpec = request.json(&schema::SERVICE)?;
    let spec = spec_from(wanted, &state, random()?)?;
    let id = ServiceId::from_random(random()?);
    backend.propose(Command::CreateService { id, spec }).await?;
    Ok(respond::json_with(StatusCode::CREATED, &api::IdUpper { id: id.to_string() }))
}

/// A new specification, or back to the one before.
pub(super) async fn update(
    backend: &dyn Backend,
    request: &Request,
    wanted: &str,
) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let service = lookup::service(&state, wanted)?;
    let (id, version) = (service.id, request.version()?);
    let command = match request.query("rollback").unwrap_or_default() {
        "" | "none" => {
            let wanted: api::ServiceSpec = request.json(&schema::SERVICE)?;
            if wanted.name != service.spec.name {
                return Err(ApiError::bad_request("renaming services is not supported"));
            }
            Command::UpdateService { id, version, spec: spec_from(wanted, &state, [0; 2])? }
        }
        // The client sends the present specification along, which says nothing.
        "previous" => Command::RollBackService { id, version },
        other => return Err(ApiError::bad_request(format!("invalid rollback {other:?}: it must be previous or none"))),
    };
    backend.propose(command).await?;
    Ok(respond::json(&api::ServiceUpdated::default()))
}

/// What a request for a service means, with everything filled in. Pure.
pub(super) fn spec_from(mut wanted: api::ServiceSpec, state: &State, random: [u8; 2]) -> Result<ServiceSpec, ApiError> {
    let taken = |name: &str| state.services.values().any(|service| service.spec.name == name);
    if wanted.name.is_empty() {
        wanted.name = names::invent(random, taken);
    }
    let mode = fill_mode(&mut wanted.mode)?;
    let placement = placement_from(&wanted.task_template.placement)?;
    let reservations = reservations_from(&wanted.task_template.resources.reservations)?;
    if wanted.endpoint_spec.mode.is_empty() {
        wanted.endpoint_spec.mode = "vip".into();
    }
    let renewal = renewal::wanted(&wanted)?;
    let container = container_from(&mut wanted.task_template.container_spec)?;
    let networks = networks_from(&mut wanted, state)?;
    let api_spec = serde_json::to_string(&wanted).map_err(|error| ApiError::internal(error.to_string()))?;
    let (name, labels) = (wanted.name, wanted.labels);
    Ok(ServiceSpec { name, labels, container, networks, mode, placement, reservations, renewal, api_spec })
}

fn fill_mode(mode: &mut api::ServiceMode) -> Result<ServiceMode, ApiError> {
    // Empty objects mean something here, and pass the allow-list.
    if mode.replicated_job.is_some() || mode.global_job.is_some() {
        return Err(ApiError::bad_request("unsupported service mode: there are no jobs, use replicated or global"));
    }
    if mode.global.is_some() {
        return match mode.replicated {
            Some(_) => Err(ApiError::bad_request("must specify only one service mode")),
            None => Ok(ServiceMode::Global),
        };
    }
    let replicated = mode.replicated.get_or_insert_default();
    let replicas = *replicated.replicas.get_or_insert(1);
    Ok(ServiceMode::Replicated { replicas })
}

fn placement_from(wanted: &api::Placement) -> Result<Placement, ApiError> {
    let constraints: Result<Vec<Constraint>, _> = wanted.constraints.iter().map(|text| text.parse()).collect();
    let spread = wanted.preferences.iter().map(|preference| {
        let descriptor = &preference.spread.spread_descriptor;
        let label = descriptor.strip_prefix(SPREAD_OVER).filter(|label| !label.is_empty());
        label.map(str::to_owned).ok_or_else(|| {
            let text = format!("invalid placement preference {descriptor:?}: it must be spread={SPREAD_OVER}NAME");
            ApiError::bad_request(text)
        })
    });
    Ok(Placement {
        constraints: constraints.map_err(|error| ApiError::bad_request(error.to_string()))?,
        spread: spread.collect::<Result<_, _>>()?,
        max_per_node: wanted.max_replicas,
    })
}

fn reservations_from(wanted: &api::Resources) -> Result<Resources, ApiError> {
    if (1..MIN_NANO_CPUS).contains(&wanted.nano_cpus) {
        let processors = wanted.nano_cpus as f64 / 1e9;
        return Err(ApiError::bad_request(format!("invalid cpu value {processors}: Must be at least 0.001")));
    }
    if (1..MIN_MEMORY_BYTES).contains(&wanted.memory_bytes) {
        let text = format!("invalid memory value {}: Must be at least 4MiB", wanted.memory_bytes);
        return Err(ApiError::bad_request(text));
    }
    Ok(Resources { nano_cpus: wanted.nano_cpus, memory_bytes: wanted.memory_bytes })
}

/// Resources as the API writes them.
pub(super) fn resources(reservations: Resources) -> api::ResourceRequirements {
    let Resources { nano_cpus, memory_bytes } = reservations;
    api::ResourceRequirements { reservations: api::Resources { nano_cpus, memory_bytes } }
}

fn container_from(wanted: &mut api::ContainerSpec) -> Result<ContainerSpec, ApiError> {
    wanted.image = names::normalise_image(&wanted.image)?;
    let mut parts = wanted.command.iter().chain(&wanted.args).chain(&wanted.env).chain([&wanted.dir, &wanted.hostname]);
    if parts.any(|part| part.contains('\0')) {
        return Err(ApiError::bad_request("command, arguments and environment must not contain a NUL character"));
    }
    check_environment(&wanted.env)?;
    if !wanted.dir.is_empty() && !wanted.dir.starts_with('/') {
        return Err(ApiError::bad_request(format!("invalid working directory {:?}: it must be absolute", wanted.dir)));
    }
    let host_character = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if wanted.hostname.len() > MAX_HOSTNAME || !wanted.hostname.bytes().all(host_character) {
        return Err(ApiError::bad_request(format!("invalid hostname {:?}", wanted.hostname)));
    }
    Ok(ContainerSpec {
        image: wanted.image.clone(),
        command: wanted.command.clone(),
        args: wanted.args.clone(),
        env: wanted.env.clone(),
        dir: wanted.dir.clone(),
        hostname: wanted.hostname.clone(),
    })
}

/// Each entry must be `NAME=value`.
pub(super) fn check_environment(env: &[String]) -> Result<(), ApiError> {
    match env.iter().find(|entry| !matches!(entry.find('='), Some(1..))) {
        Some(entry) => {
            Err(ApiError::bad_request(format!("invalid environment variable {entry:?}: it must be NAME=value")))
        }
        None => Ok(()),
    }
}

/// The networks of the task template, or those of the service (Docker's deprecated place), by their ids.
fn networks_from(wanted: &mut api::ServiceSpec, state: &State) -> Result<Vec<(NetworkId, Vec<String>)>, ApiError> {
    let outer = std::mem::take(&mut wanted.networks);
    let configs = &mut wanted.task_template.networks;
    if configs.is_empty() {
        *configs = outer;
    }
    let mut seen = BTreeSet::new();
    let mut networks = Vec::with_capacity(configs.len());
    for config in configs {
        let network = lookup::network(state, &config.target)?;
        if !seen.insert(network.id) {
            return Err(ApiError::bad_request(format!("network {} is given twice", network.spec.name)));
        }
        config.target = network.id.to_string();
        networks.push((network.id, config.aliases.clone()));
    }
    Ok(networks)
}

/// Filters of `service ls`.
const FILTERS: [&str; 4] = ["id", "name", "label", "mode"];

pub(super) fn list(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let filters = Filters::parse(request.query("filters"), &FILTERS)?;
    let with_status = request.flag("status");
    let services = state.services.values().filter(|service| !service.removing && fits(service, &filters));
    let described = services.map(|service| api::Service {
        service_status: with_status.then(|| status(&state, service)),
        ..describe(service)
    });
    Ok(respond::json(&described.collect::<Vec<_>>()))
}

fn fits(service: &Service, filters: &Filters) -> bool {
    filters.any("id", |id| service.id.to_string().starts_with(id))
        && filters.any("name", |name| service.spec.name.starts_with(name))
        && filters.any("mode", |mode| mode == mode_word(service.spec.mode))
        && filters.labels("label", &service.spec.labels)
}

fn mode_word(mode: ServiceMode) -> &'static str {
    match mode {
        ServiceMode::Replicated { .. } => "replicated",
        ServiceMode::Global => "global",
    }
}

/// Docker's `ServiceStatus`.
pub(super) fn status(state: &State, service: &Service) -> api::ServiceStatus {
    let tasks = state.tasks.values().filter(|task| task.service == service.id);
    let running = tasks.filter(|task| task.desired == TaskState::Running && task.status.state == TaskState::Running);
    api::ServiceStatus {
        running_tasks: running.count() as u64,
        desired_tasks: schedule::wanted(state, service),
        completed_tasks: 0,
    }
}

pub(super) fn inspect(backend: &dyn Backend, wanted: &str) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    Ok(respond::json(&describe(lookup::service(&state, wanted)?)))
}

pub(super) async fn remove(backend: &dyn Backend, wanted: &str) -> Result<respond::Response, ApiError> {
    let id = lookup::service(&*manager_state(backend)?, wanted)?.id;
    backend.propose(Command::RemoveService { id }).await?;
    Ok(respond::empty(StatusCode::OK))
}

/// A service as `service inspect` shows it.
pub(super) fn describe(service: &Service) -> api::Service {
    let spec = as_received(&service.spec);
    api::Service {
        id: service.id.to_string(),
        version: api::ObjectVersion { index: service.version },
        created_at: time::rfc3339(service.created_at),
        updated_at: time::rfc3339(service.updated_at),
        endpoint: api::Endpoint { spec: spec.endpoint_spec.clone() },
        spec,
        previous_spec: service.former.as_ref().map(|former| as_received(&former.spec)),
        update_status: service.rollout.as_ref().map(renewal::describe),
        service_status: None,
    }
}

fn as_received(spec: &ServiceSpec) -> api::ServiceSpec {
    serde_json::from_str(&spec.api_spec).unwrap_or_else(|_| rebuild(spec))
}

/// The specification of a service whose text as received is not there.
fn rebuild(spec: &ServiceSpec) -> api::ServiceSpec {
    let networks = spec
        .networks
        .iter()
        .map(|(id, aliases)| api::NetworkAttachmentConfig { target: id.to_string(), aliases: aliases.clone() });
    api::ServiceSpec {
        name: spec.name.clone(),
        labels: spec.labels.clone(),
        task_template: api::TaskSpec {
            container_spec: container_spec(&spec.container),
            resources: resources(spec.reservations),
            placement: placement(&spec.placement),
            networks: networks.collect(),
            ..api::TaskSpec::default()
        },
        mode: match spec.mode {
            ServiceMode::Replicated { replicas } => api::ServiceMode::replicated(replicas),
            ServiceMode::Global => api::ServiceMode::global(),
        },
        endpoint_spec: api::EndpointSpec { mode: "vip".into() },
        ..api::ServiceSpec::default()
    }
}

fn placement(placement: &Placement) -> api::Placement {
    let over = |label: &String| api::PlacementPreference {
        spread: api::SpreadOver { spread_descriptor: format!("{SPREAD_OVER}{label}") },
    };
    api::Placement {
        constraints: placement.constraints.iter().map(Constraint::to_string).collect(),
        preferences: placement.spread.iter().map(over).collect(),
        max_replicas: placement.max_per_node,
    }
}

/// What a container runs, as the API writes it.
pub(super) fn container_spec(container: &ContainerSpec) -> api::ContainerSpec {
    api::ContainerSpec {
        image: container.image.clone(),
        command: container.command.clone(),
        args: container.args.clone(),
        env: container.env.clone(),
        dir: container.dir.clone(),
        hostname: container.hostname.clone(),
    }
}
