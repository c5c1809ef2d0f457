//! Which commands the wanted services ask for: a pure function of the state and the leader's wall clock.
//!
//! For every slot of every service:
//! 1. ended tasks beyond [`TASK_HISTORY`] are forgotten;
//! 2. a task on a node that is down or drained is told to stop; it stays shown, and keeps its addresses, until its
//!    node confirms;
//! 3. a slot without a live task gets a new one: at once, or after a delay when the last one ended by itself;
//! 4. a task without a node is placed on the node with the fewest tasks of its service, then the fewest tasks, then
//!    the lowest id; or the reason why it cannot be is shown.
//!
//! Applied in order, the commands of a plan are not refused, and the plan after it is empty at the same time (unless
//! it was cut at [`PLAN_COMMANDS`]).

use super::limits::TASK_HISTORY;
use super::{Command, NodeState, Service, State, Task};
use crate::types::{Availability, NetworkId, NodeId, ServiceId, TaskId, TaskState, UnixTime};
use std::collections::BTreeMap;

/// Commands of one plan at most (the last slot may add a few): bounds the time between two looks at the state.
pub const PLAN_COMMANDS: usize = 512;
/// Seconds between the end of a task and its replacement, as Docker's.
const RESTART_DELAY_SECS: u64 = 5;
/// Doublings of the delay at most, one for each rejected task of the slot in a row (the history holds no more): 80 s.
const REJECTED_DOUBLINGS: usize = TASK_HISTORY - 1;
/// Rejected tasks of a service after which a node comes last: perhaps another one has the image.
const REJECTIONS_UNTIL_AVOIDED: usize = 3;

/// What to propose now, in order. Empty once all of it is applied. `ids` draws the ids of new tasks.
pub fn plan(state: &State, now: UnixTime, ids: &mut dyn FnMut() -> TaskId) -> Vec<Command> {
    let mut slots: BTreeMap<(ServiceId, u64), Vec<&Task>> = BTreeMap::new();
    for task in state.tasks.values() {
        slots.entry((task.service, task.slot)).or_default().push(task);
    }
    let mut planner = Planner::new(state, now, ids);
    for service in state.services.values().filter(|service| !service.removing) {
        for slot in 1..=service.spec.replicas {
            if planner.commands.len() >= PLAN_COMMANDS {
                return planner.commands;
            }
            planner.plan_slot(service, slot, slots.remove(&(service.id, slot)).unwrap_or_default());
        }
    }
    planner.commands
}

/// What a service has on a node.
#[derive(Clone, Copy, Default)]
struct Share {
    live: usize,
    rejected: usize,
}

struct Planner<'a> {
    state: &'a State,
    now: UnixTime,
    ids: &'a mut dyn FnMut() -> TaskId,
    commands: Vec<Command>,
    /// Live tasks of each node that takes tasks.
    loads: BTreeMap<NodeId, usize>,
    shares: BTreeMap<(ServiceId, NodeId), Share>,
    /// Free addresses of each network.
    free: BTreeMap<NetworkId, u128>,
}

impl<'a> Planner<'a> {
    fn new(state: &'a State, now: UnixTime, ids: &'a mut dyn FnMut() -> TaskId) -> Planner<'a> {
        let takers = state.nodes.values().filter(|node| node.takes_tasks());
        let mut loads: BTreeMap<NodeId, usize> = takers.map(|node| (node.id, 0)).collect();
        let mut shares: BTreeMap<(ServiceId, NodeId), Share> = BTreeMap::new();
        for (task, node) in state.tasks.values().filter_map(|task| Some((task, task.node?))) {
            let share = shares.entry((task.service, node)).or_default();
            share.live += usize::from(task.is_live());
            share.rejected += usize::from(task.status.state == TaskState::Rejected);
            if let Some(load) = loads.get_mut(&node).filter(|_| task.is_live()) {
                *load += 1;
            }
        }
        let free = state.networks.values().map(|network| (network.id, network.free())).collect();
        Planner { state, now, ids, commands: Vec::new(), loads, shares, free }
    }

    fn plan_slot(&mut self, service: &Service, slot: u64, mut tasks: Vec<&Task>) {
        tasks.sort_by_key(|task| std::cmp::Reverse(task.created_index));
        let live = tasks.iter().find(|task| task.is_live());
        let stays = live.filter(|task| task.node.is_none_or(|node| self.state.can_stay(node)));
        self.forget_history(&tasks, stays.map(|task| task.id));
        match (live, stays) {
            (_, Some(task)) if task.node.is_none() => self.place(service, task.id, Some(task)),
            (_, Some(_)) => {}
            (Some(task), None) => {
                self.commands.push(Command::ShutDownTask { id: task.id, remove: false });
                self.create(service, slot);
            }
            (None, None) if self.restart_is_due(&tasks) => self.create(service, slot),
            (None, None) => {}
        }
    }

    fn forget_history(&mut self, newest_first: &[&Task], stays: Option<TaskId>) {
        let ended = newest_first.iter().filter(|task| Some(task.id) != stays);
        let forgotten = ended.skip(TASK_HISTORY).filter(|task| task.desired != TaskState::Remove);
        self.commands.extend(forgotten.map(|task| Command::ShutDownTask { id: task.id, remove: true }));
    }

    /// Whether the slot's last task ended long enough ago. One that was told to stop is replaced at once.
    fn restart_is_due(&self, newest_first: &[&Task]) -> bool {
        let Some(newest) = newest_first.first() else { return true };
        let rejected = |task: &&&Task| task.status.state == TaskState::Rejected;
        let delay_secs = match newest.status.state {
            TaskState::Complete | TaskState::Failed => RESTART_DELAY_SECS,
            TaskState::Rejected => {
                let in_a_row = newest_first.iter().take_while(rejected).count();
                RESTART_DELAY_SECS << in_a_row.saturating_sub(1).min(REJECTED_DOUBLINGS)
            }
            _ => 0,
        };
        // An end in the future is a clock that was set back; it is not waited for.
        let ended_at = newest.status.at;
        self.now < ended_at || self.now.0 - ended_at.0 >= delay_secs
    }

    fn create(&mut self, service: &Service, slot: u64) {
        let id = (self.ids)();
        self.commands.push(Command::CreateTask { id, service: service.id, slot });
        self.place(service, id, None);
    }

    fn place(&mut self, service: &Service, id: TaskId, task: Option<&Task>) {
        match self.choose_node(service) {
            Ok(node) => {
                self.commands.push(Command::PlaceTask { id, node });
                *self.loads.entry(node).or_default() += 1;
                self.shares.entry((service.id, node)).or_default().live += 1;
                for (network, _) in &service.spec.networks {
                    let free = self.free.entry(*network).or_default();
                    *free = free.saturating_sub(1);
                }
            }
            Err(reason) => {
                let shown = |task: &Task| task.status.state == TaskState::Pending && task.status.error == reason;
                if !task.is_some_and(shown) {
                    self.commands.push(Command::SetPending { id, reason });
                }
            }
        }
    }

    fn choose_node(&self, service: &Service) -> Result<NodeId, String> {
        for (id, _) in &service.spec.networks {
            let Some(network) = self.state.networks.get(id) else { return Err(format!("network {id} not found")) };
            if self.free.get(id).is_none_or(|free| *free == 0) {
                return Err(network.full_text());
            }
        }
        let rank = |(node, load): &(&NodeId, &usize)| {
            let share = self.shares.get(&(service.id, **node)).copied().unwrap_or_default();
            (share.rejected >= REJECTIONS_UNTIL_AVOIDED, share.live, **load, **node)
        };
        self.loads.iter().min_by_key(rank).map(|(node, _)| *node).ok_or_else(|| self.no_node())
    }

    /// Docker's words, with the reasons counted apart.
    fn no_node(&self) -> String {
        let nodes = || self.state.nodes.values();
        let down = nodes().filter(|node| node.state != NodeState::Ready).count();
        let closed = nodes().filter(|node| node.state == NodeState::Ready);
        let closed = closed.filter(|node| node.availability != Availability::Active).count();
        let text = |count: usize, what: &str| match count {
            0 => None,
            1 => Some(format!("1 node {what}")),
            _ => Some(format!("{count} nodes {what}")),
        };
        let reasons: Vec<String> =
            [text(down, "down"), text(closed, "not available for new tasks")].into_iter().flatten().collect();
        format!("no suitable node ({})", if reasons.is_empty() { "no nodes".to_owned() } else { reasons.join("; ") })
    }
}
