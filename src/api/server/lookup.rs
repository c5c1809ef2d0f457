//! Finding what a user names, as Docker does: the exact id, then the exact name, then the only id that starts so.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use super::error::ApiError;
use crate::cluster::{Network, Node, Service, State, Task};
use crate::types::NetworkName;

/// A kind of object that is found by id or name.
struct Kind {
    word: &'static str,
    /// Docker's engine says how an ambiguous network was matched; its swarm part does not.
    says_how: bool,
}

fn find<T>(kind: &Kind, wanted: &str, items: impl Iterator<Item = (T, String, String)>) -> Result<T, ApiError> {
    let not_found = || ApiError::not_found(format!("{} {wanted} not found", kind.word));
    if wanted.is_empty() {
        return Err(not_found());
    }
    let mut named = Vec::new();
    let mut prefixed = Vec::new();
    for (item, id, name) in items {
        if id == wanted {
            return Ok(item);
        }
        if name == wanted {
            named.push(item);
        } else if id.starts_with(wanted) {
            prefixed.push(item);
        }
    }
    let (mut found, how) = if named.is_empty() { (prefixed, "ID prefix") } else { (named, "name") };
    match found.len() {
        0 => Err(not_found()),
        1 => found.pop().ok_or_else(not_found),
        count => {
            let how = if kind.says_how { format!(" based on {how}") } else { String::new() };
            let text = format!("{} {wanted} is ambiguous ({count} matches found{how})", kind.word);
            Err(ApiError::bad_request(text))
        }
    }
}

/// A network of the state.
pub(super) fn network<'a>(state: &'a State, wanted: &str) -> Result<&'a Network, ApiError> {
    let kind = Kind { word: "network", says_how: true };
    find(
        &kind,
        wanted,
        state.networks.values().map(|network| (network, network.id.to_string(), network.spec.name.clone())),
    )
}

/// A network among those that a node has heard of.
pub(super) fn network_name(names: &[NetworkName], wanted: &str) -> Result<NetworkName, ApiError> {
    let kind = Kind { word: "network", says_how: true };
    let found = find(&kind, wanted, names.iter().map(|known| (known, known.id.to_string(), known.name.clone())));
    found.cloned()
}

/// A service of the state. One that is being removed is no longer found.
pub(super) fn service<'a>(state: &'a State, wanted: &str) -> Result<&'a Service, ApiError> {
    let kind = Kind { word: "service", says_how: false };
    let services = state.services.values().filter(|service| !service.removing);
    find(&kind, wanted, services.map(|service| (service, service.id.to_string(), service.spec.name.clone())))
}

/// A node of the state.
pub(super) fn node<'a>(state: &'a State, wanted: &str) -> Result<&'a Node, ApiError> {
    let kind = Kind { word: "node", says_how: false };
    find(&kind, wanted, state.nodes.values().map(|node| (node, node.id.to_string(), node.hostname.clone())))
}

/// A task of the state, by its id only.
pub(super) fn task<'a>(state: &'a State, wanted: &str) -> Result<&'a Task, ApiError> {
    let kind = Kind { word: "task", says_how: false };
    find(&kind, wanted, state.tasks.values().map(|task| (task, task.id.to_string(), String::new())))
}
