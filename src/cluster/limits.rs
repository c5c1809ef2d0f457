//! The bounds of the replicated state, each with its unit and reason, and the checks of texts against them.

use super::Refusal;
use std::collections::BTreeMap;
use std::fmt::Display;

/// Former boots of a node that are remembered: an older process would have to outlive that many restarts.
pub const FORMER_BOOTS: usize = 16;
/// Managers of a swarm: each more makes a commit slower, and seven survive three.
pub const MANAGERS: usize = 7;
/// Nodes of a swarm: what the session and gossip tables are sized for.
pub const NODES: usize = 10_000;
/// Notes on removed nodes; beyond it the oldest is dropped (its node is not admitted any more, only not named).
pub const GONE_NODES: usize = 10_000;
/// Networks of a swarm: their names go to every node.
pub const NETWORKS: usize = 4096;
/// Services of a swarm, those on their way out included.
pub const SERVICES: usize = 10_000;
/// Networks of one service: interfaces of one task.
pub const NETWORKS_PER_SERVICE: usize = 16;
/// Containers and namespaces of one node on attachable networks: as many tasks as a node holds.
pub const STANDALONE_PER_NODE: usize = 1024;
/// Auxiliary addresses of one network: each is looked at for every address that is given.
pub const AUXILIARY: usize = 64;
/// Wanted tasks of one service.
pub const REPLICAS: u64 = 10_000;
/// Wanted tasks of all services: bounds the state's size and the time of a plan.
pub const TASKS: u64 = 100_000;
/// Ended tasks of one place that may be kept for people to look at: bounds the state's size.
pub const TASK_HISTORY: u32 = 100;
/// Restarts that one place may have within a window: their times are kept with its task.
pub const RESTARTS_IN_WINDOW: u64 = 64;
/// Constraints of one service: each is compared with every node at each placement.
pub const CONSTRAINTS: usize = 64;
/// Labels that one service spreads over.
pub const PREFERENCES: usize = 8;
/// Bytes of one of these.
pub const CONSTRAINT_BYTES: usize = 512;
/// Endpoints that are remembered as gone: the tasks of a large service and their replacements. Beyond it the oldest is
/// forgotten; its record is void at the next rotations, and its address goes to a newer owner.
pub const FREED_ENDPOINTS: usize = 4096;
/// Statuses in one report of a node: four pages of the control protocol.
pub const REPORT_STATUSES: usize = 1024;
/// Bytes of a network's or a service's name: one DNS label.
pub const NAME_BYTES: usize = 63;
/// Bytes of a text for people (a message, an error); longer ones are cut.
pub const TEXT_BYTES: usize = 1024;
/// Bytes of a hostname or a version: DNS's bound.
pub const HOSTNAME_BYTES: usize = 255;
/// Bytes of all keys and values of one set of labels or options.
pub const LABEL_BYTES: usize = 16 * 1024;
/// Bytes of what a task runs, all strings together: a task's assignment has to fit in a frame many times.
pub const CONTAINER_BYTES: usize = 32 * 1024;
/// Bytes of a service's specification as the API received it.
pub const API_SPEC_BYTES: usize = 256 * 1024;
/// Further names of a task on one network.
pub const ALIASES: usize = 32;
/// Bytes of the MTU inside a network: from the least that IPv4 hosts must take (RFC 791) to the longest packet.
pub const NETWORK_MTU_BYTES: std::ops::RangeInclusive<u32> = 576..=65_535;
/// The widest subnet: a quarter of a percent of IPv4, and the pool's own size.
pub const MIN_SUBNET_PREFIX: u8 = 8;
/// The narrowest subnet: a gateway and one task.
pub const MAX_SUBNET_PREFIX: u8 = 30;

/// `kind name not found`.
pub(super) fn not_found(kind: &'static str, name: impl Display) -> Refusal {
    Refusal::NotFound { kind: kind.into(), name: name.to_string() }
}

/// Refuses one more entry of a full table.
pub(super) fn check_room(what: &str, held: usize, bound: usize) -> Result<(), Refusal> {
    if held < bound { Ok(()) } else { Err(Refusal::NotNow(format!("the swarm has its limit of {bound} {what}"))) }
}

/// A text for people: without control characters, cut to [`TEXT_BYTES`].
pub(super) fn for_people(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut end = clean.len().min(TEXT_BYTES);
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    clean.get(..end).unwrap_or_default().to_owned()
}

/// A hostname or version as a node tells it.
pub(super) fn check_hostname(what: &str, text: &str) -> Result<(), Refusal> {
    if text.is_empty() || text.len() > HOSTNAME_BYTES || text.chars().any(|c| c.is_control()) {
        return Err(Refusal::Invalid(format!("{what} must be 1 to {HOSTNAME_BYTES} printable bytes")));
    }
    Ok(())
}

/// The size of labels or options.
pub(super) fn check_labels(what: &str, labels: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > LABEL_BYTES {
        return Err(Refusal::Invalid(format!("{what} take {bytes} bytes; {LABEL_BYTES} are allowed")));
    }
    Ok(())
}

/// Docker's rule for names of networks: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
pub(super) fn check_network_name(name: &str) -> Result<(), Refusal> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() {
        return Err(Refusal::Invalid("network name must be provided".into()));
    }
    if name.len() > NAME_BYTES {
        return Err(Refusal::Invalid(format!("network name must be {NAME_BYTES} characters or fewer")));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(inner) {
        let text = format!("invalid network name {name:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed");
        return Err(Refusal::Invalid(text));
    }
    Ok(())
}

/// Docker's rule for names of services: letters and digits, inside also `-` and `_`.
pub(super) fn check_service_name(name: &str) -> Result<(), Refusal> {
    let outer = |c: char| c.is_ascii_alphanumeric();
    let inner = |c: char| outer(c) || matches!(c, '_' | '-');
    if name.is_empty() {
        return Err(Refusal::Invalid("service name must be provided".into()));
    }
    if name.len() > NAME_BYTES {
        return Err(Refusal::Invalid(format!("service name must be {NAME_BYTES} characters or fewer")));
    }
    if !name.starts_with(outer) || !name.ends_with(outer) || !name.chars().all(inner) {
        let text = format!("invalid service name {name:?}: name must be valid as a DNS name component");
        return Err(Refusal::Invalid(text));
    }
    Ok(())
}
