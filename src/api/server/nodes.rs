//! Nodes: list, inspect, update, remove.

use super::backend::Backend;
use super::error::ApiError;
use super::filters::Filters;
use super::request::Request;
use super::roots::Roots;
use super::{lookup, manager_state, random, respond, schema, time};
use crate::api::types as api;
use crate::cluster::{Command, Node, NodeState, State};
use crate::manager::SILENT_MANAGER;
use crate::types::{Availability, Key32, NodeId, Role};
use hyper::StatusCode;

/// Filters of `node ls`.
const FILTERS: [&str; 6] = ["id", "name", "role", "membership", "label", "node.label"];

pub(super) fn list(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let filters = Filters::parse(request.query("filters"), &FILTERS)?;
    let leader = backend.leader();
    let fits = |node: &&Node| {
        filters.any("id", |id| node.id.to_string().starts_with(id))
            && filters.any("name", |name| node.hostname.starts_with(name))
            && filters.any("role", |role| role == role_word(node.role))
            && filters.any("membership", |membership| membership == "accepted")
            && filters.labels("node.label", &node.labels)
            && filters.values("label").is_empty()
    };
    let roots = Roots::of(&state);
    let described = state.nodes.values().filter(fits).map(|node| describe(&state, node, leader, &roots));
    Ok(respond::json(&described.collect::<Vec<_>>()))
}

pub(super) fn inspect(backend: &dyn Backend, wanted: &str) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    Ok(respond::json(&describe(&state, lookup::node(&state, wanted)?, backend.leader(), &Roots::of(&state))))
}

pub(super) async fn update(
    backend: &dyn Backend,
    request: &Request,
    wanted: &str,
) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let node = lookup::node(&state, wanted)?;
    let spec: api::NodeSpec = request.json(&schema::NODE)?;
    let version = request.version()?;
    let role = match spec.role.as_str() {
        "manager" => Role::Manager,
        "worker" => Role::Worker,
        other => return Err(ApiError::bad_request(format!("invalid role {other:?}: it must be manager or worker"))),
    };
    let availability = parse_availability(&spec.availability)?;
    let command = Command::UpdateNode { node: node.id, version, role, availability, labels: spec.labels };
    backend.propose(command).await?;
    Ok(respond::empty(StatusCode::OK))
}

pub(super) async fn remove(
    backend: &dyn Backend,
    request: &Request,
    wanted: &str,
) -> Result<respond::Response, ApiError> {
    let node = lookup::node(&*manager_state(backend)?, wanted)?.id;
    let command = Command::RemoveNode { node, force: request.flag("force"), master: Key32::new(random()?) };
    backend.propose(command).await?;
    Ok(respond::empty(StatusCode::OK))
}

/// A node as `node inspect` shows it.
fn describe(state: &State, node: &Node, leader: Option<NodeId>, roots: &Roots) -> api::Node {
    let votes = state.managers.get(&node.id).is_some_and(|manager| manager.voter);
    let manager_status = (node.role == Role::Manager).then(|| api::ManagerStatus {
        leader: leader == Some(node.id),
        // A manager that has not caught up yet is not counted on.
        reachability: match node.state {
            NodeState::Down => "unreachable",
            _ if node.message == SILENT_MANAGER => "unreachable",
            _ if votes => "reachable",
            _ => "unknown",
        }
        .into(),
        addr: node.addresses.control.to_string(),
    });
    api::Node {
        id: node.id.to_string(),
        version: api::ObjectVersion { index: node.version },
        created_at: time::rfc3339(node.created_at),
        updated_at: time::rfc3339(node.updated_at),
        spec: api::NodeSpec {
            name: String::new(),
            labels: node.labels.clone(),
            role: role_word(node.role).into(),
            availability: availability_word(node.availability).into(),
        },
        description: api::NodeDescription {
            hostname: node.hostname.clone(),
            platform: api::Platform { os: node.machine.os.clone(), architecture: node.machine.architecture.clone() },
            resources: api::Resources {
                nano_cpus: node.machine.resources.nano_cpus,
                memory_bytes: node.machine.resources.memory_bytes,
            },
            engine: api::EngineDescription { engine_version: node.software.clone() },
            tls_info: roots.of_node(node),
        },
        status: api::NodeStatus {
            state: state_word(node.state).into(),
            message: node.message.clone(),
            addr: node.addresses.data.ip().to_string(),
        },
        manager_status,
    }
}

fn role_word(role: Role) -> &'static str {
    match role {
        Role::Manager => "manager",
        Role::Worker => "worker",
    }
}

fn availability_word(availability: Availability) -> &'static str {
    match availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    }
}

/// `active`, `pause` or `drain`.
pub(super) fn parse_availability(word: &str) -> Result<Availability, ApiError> {
    match word {
        "active" => Ok(Availability::Active),
        "pause" => Ok(Availability::Pause),
        "drain" => Ok(Availability::Drain),
        _ => Err(ApiError::bad_request(format!("invalid availability {word:?}: it must be active, pause or drain"))),
    }
}

fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Unknown => "unknown",
        NodeState::Ready => "ready",
        NodeState::Down => "down",
    }
}
