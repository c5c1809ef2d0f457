//! Which nodes suit the tasks of a service. Asked by `schedule` before it proposes a placement, and again by `tasks`
//! before one counts.

use super::{Node, NodeState, State, Task};
use crate::types::{Attribute, Availability, Constraint, NodeId, Resources, Role, ServiceId, ServiceSpec};

/// Why a node does not take a task, in the order in which it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unfit {
    /// No session.
    Down,
    /// Paused or drained.
    Closed,
    /// Too little is left of it.
    Resources,
    /// It is not what the service asks for.
    Constraints,
    /// It has as many tasks of the service as it may have.
    Full,
}

/// What of a node is used already.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// By all tasks that have not ended, those that were told to stop included.
    pub(super) reserved: Resources,
    /// Live tasks of the service in question.
    pub(super) live: u64,
}

/// Why the node does not take one more task of the service; `None` when it does.
pub(super) fn unfit(node: &Node, service: &ServiceSpec, used: Used) -> Option<Unfit> {
    let room = node.machine.resources.minus(used.reserved);
    let most = service.placement.max_per_node;
    if node.state != NodeState::Ready {
        Some(Unfit::Down)
    } else if node.availability != Availability::Active {
        Some(Unfit::Closed)
    } else if !service.reservations.fits(room) {
        Some(Unfit::Resources)
    } else if !meets(node, &service.placement.constraints) {
        Some(Unfit::Constraints)
    } else {
        (most > 0 && used.live >= most).then_some(Unfit::Full)
    }
}

/// Whether a task of the service may stay on the node: it is there, is not being drained, and is still what the
/// service asks for.
pub(super) fn can_stay(node: &Node, service: &ServiceSpec) -> bool {
    node.state != NodeState::Down
        && node.availability != Availability::Drain
        && meets(node, &service.placement.constraints)
}

/// Whether the node meets all constraints.
pub(super) fn meets(node: &Node, constraints: &[Constraint]) -> bool {
    constraints.iter().all(|constraint| {
        let same = |value: &str| value.eq_ignore_ascii_case(&constraint.value);
        let found = match &constraint.attribute {
            Attribute::Id => same(&node.id.to_string()),
            Attribute::Hostname => same(&node.hostname),
            Attribute::Role => same(match node.role {
                Role::Manager => "manager",
                Role::Worker => "worker",
            }),
            Attribute::Os => same(&node.machine.os),
            Attribute::Architecture => {
                common_name(&node.machine.architecture).eq_ignore_ascii_case(common_name(&constraint.value))
            }
            Attribute::Label(label) => same(node.labels.get(label).map_or("", String::as_str)),
        };
        found == constraint.equal
    })
}

/// Instruction sets have two names each: the kernel's, and the one in Docker's images.
fn common_name(architecture: &str) -> &str {
    match architecture {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    }
}

/// Docker's words for why no node suits: the most frequent reason first.
pub(super) fn explain(reasons: impl Iterator<Item = Unfit>) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_insert(0usize) += 1;
    }
    let mut counts: Vec<(Unfit, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let parts: Vec<String> = counts.into_iter().map(|(reason, count)| reason.words(count)).collect();
    format!("no suitable node ({})", if parts.is_empty() { "no nodes".to_owned() } else { parts.join("; ") })
}

impl Unfit {
    fn words(self, count: usize) -> String {
        let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
        match self {
            Unfit::Down => format!("{nodes} down"),
            Unfit::Closed => format!("{nodes} not available for new tasks"),
            Unfit::Resources => format!("insufficient resources on {nodes}"),
            Unfit::Constraints => format!("scheduling constraints not satisfied on {nodes}"),
            Unfit::Full => "max replicas per node limit exceed".to_owned(),
        }
    }
}

impl Task {
    /// Whether its reservation still counts: it has a node and has not ended.
    pub(super) fn holds_resources(&self) -> bool {
        self.node.is_some() && !self.status.state.is_terminal()
    }
}

impl State {
    /// What of the node is used, in the eyes of the service.
    pub(super) fn used(&self, node: NodeId, service: ServiceId) -> Used {
        let mut used = Used::default();
        for task in self.tasks.values().filter(|task| task.node == Some(node)) {
            if task.holds_resources() {
                used.reserved = used.reserved.plus(task.reservations);
            }
            used.live += u64::from(task.service == service && task.is_live());
        }
        used
    }
}
