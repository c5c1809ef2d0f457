//! Which commands the wanted services ask for: a pure function of the state and the leader's wall clock.
//!
//! A replicated service has a place for each of its replicas, a global one for each node that suits it. For every
//! place of every service:
//! 1. tasks of a place that is not wanted any more are told to go;
//! 2. ended tasks beyond the swarm's task history limit are forgotten, but not the last of a place without a live one;
//! 3. a task on a node that is down or drained, that no longer meets the constraints, or that no longer has what its
//!    tasks reserve (the newest go first) is told to stop; it stays shown, and keeps its addresses, until its node
//!    confirms;
//! 4. so is, when what the service's tasks are has changed, one after the other (`rollout`);
//! 5. a place without a live task gets a new one: at once, or, when the last one ended by itself, as the restart policy
//!    says; after a change not before the last one has ended;
//! 6. a task without a node is placed, if one suits it (`suit`): evenly over the values of the labels that the service
//!    spreads over, then on the node with the fewest tasks of its service, then the fewest tasks, then the lowest id;
//!    or the reason why it cannot be is shown.
//!
//! Nothing else moves a task: a node that comes back or is added takes what is placed from then on.
//!
//! Applied in order, the commands of a plan are not refused, and the plan after it is empty at the same time (unless
//! it was cut at [`PLAN_COMMANDS`]).

use super::rollout::{self, Places};
use super::suit::{self, Used};
use super::{Command, Node, NodeState, Rollout, Service, State, Task};
use crate::types::{
    NetworkId, NodeId, Resources, RestartCondition, RestartPolicy, ServiceId, ServiceMode, TaskId, TaskState, UnixTime,
};
use std::collections::{BTreeMap, BTreeSet};

/// Commands of one plan at most (the last place may add a few): bounds the time between two looks at the state.
pub const PLAN_COMMANDS: usize = 512;
/// Seconds between two attempts at least where a node rejected the task.
const REJECTED_DELAY_SECS: u64 = 5;
/// Doublings of the delay at most, one for each rejected task of the place in a row that is still kept: 80 s.
const REJECTED_DOUBLINGS: usize = 4;
/// Rejected tasks of a service after which a node comes last: perhaps another one has the image.
const REJECTIONS_UNTIL_AVOIDED: usize = 3;

/// What to propose now, in order. Empty once all of it is applied. `ids` draws the ids of new tasks.
pub fn plan(state: &State, now: UnixTime, ids: &mut dyn FnMut() -> TaskId) -> Vec<Command> {
    let mut places = Places::new();
    for task in state.tasks.values().filter(|task| task.standalone.is_none()) {
        places.entry((task.service, Place::of(task))).or_default().push(task);
    }
    let squeezed_out = squeezed_out(state);
    let stays = |task: &Task, service: &Service| can_stay(state, task, service) && !squeezed_out.contains(&task.id);
    let (replaced, finished) = rollout::step(state, &places, now, &stays);
    let mut planner = Planner::new(state, now, ids, (squeezed_out, replaced));
    // First of all: places that wait may get the room.
    let stops = planner.replaced.iter().map(|id| Command::ShutDownTask { id: *id, remove: false });
    planner.commands = finished.into_iter().chain(stops).take(PLAN_COMMANDS).collect();
    planner.clear_unwanted();
    for service in state.services.values().filter(|service| !service.removing) {
        for place in places_of(state, service, &places) {
            if planner.commands.len() >= PLAN_COMMANDS {
                return planner.commands;
            }
            let tasks = places.remove(&(service.id, place)).unwrap_or_default();
            if tasks.iter().all(|task| has_place(task, service)) {
                planner.plan_place(service, place, tasks);
            }
        }
    }
    planner.show_reasons();
    planner.commands
}

/// Where one task of a service is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// As one of the replicas, on any node.
    Slot(u64),
    /// On this node.
    Node(NodeId),
}

impl Place {
    /// The lowest.
    pub(super) const FIRST: Place = Place::Slot(0);

    pub(super) fn of(task: &Task) -> Place {
        task.bound_to.map_or(Place::Slot(task.slot), Place::Node)
    }
}

/// The places of a service, those that are not wanted any more but still have tasks included.
fn places_of(state: &State, service: &Service, held: &Places<'_>) -> BTreeSet<Place> {
    let held = held.range((service.id, Place::FIRST)..).take_while(|((id, _), _)| *id == service.id);
    let held = held.map(|((_, place), _)| *place);
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => held.chain((1..=replicas).map(Place::Slot)).collect(),
        ServiceMode::Global => {
            let wanted = state.nodes.values().filter(|node| takes(node, service)).map(|node| Place::Node(node.id));
            held.chain(wanted).collect()
        }
    }
}

/// Whether a global service is to have a task on the node; whether there is room for it is another question.
pub(super) fn takes(node: &Node, service: &Service) -> bool {
    node.takes_tasks() && suit::meets(node, &service.spec.placement.constraints)
}

/// How many tasks a service is to have now: its replicas, or one on each node that it suits.
pub fn wanted(state: &State, service: &Service) -> u64 {
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::Global => {
            let taking = state.nodes.values().filter(|node| takes(node, service)).map(|node| node.id);
            let live = state.tasks.values().filter(|task| task.service == service.id && task.is_live());
            taking.chain(live.filter_map(|task| task.bound_to)).collect::<BTreeSet<_>>().len() as u64
        }
    }
}

/// What a service has on a node.
#[derive(Clone, Copy, Default)]
struct Share {
    live: usize,
    rejected: usize,
}

/// A task that no node suits.
struct Waiting<'a> {
    service: &'a Service,
    place: Place,
    id: TaskId,
    /// As it is in the state; `None` when this plan makes it.
    task: Option<&'a Task>,
}

struct Planner<'a> {
    state: &'a State,
    now: UnixTime,
    ids: &'a mut dyn FnMut() -> TaskId,
    commands: Vec<Command>,
    /// Tasks that no node suits. Their reasons are told at the end: what is placed after them is part of these.
    waiting: Vec<Waiting<'a>>,
    /// Live tasks of each node, those that are to stop not counted.
    loads: BTreeMap<NodeId, usize>,
    /// What is reserved of each node.
    reserved: BTreeMap<NodeId, Resources>,
    /// Live tasks for which their node no longer has what they reserve.
    squeezed_out: BTreeSet<TaskId>,
    /// Live tasks whose place gets one of the service's new specification.
    replaced: BTreeSet<TaskId>,
    shares: BTreeMap<(ServiceId, NodeId), Share>,
    /// Free addresses of each network.
    free: BTreeMap<NetworkId, u128>,
}

impl<'a> Planner<'a> {
    fn new(
        state: &'a State,
        now: UnixTime,
        ids: &'a mut dyn FnMut() -> TaskId,
        (squeezed_out, replaced): (BTreeSet<TaskId>, BTreeSet<TaskId>),
    ) -> Planner<'a> {
        let mut planner = Planner {
            state,
            now,
            ids,
            commands: Vec::new(),
            waiting: Vec::new(),
            loads: BTreeMap::new(),
            reserved: BTreeMap::new(),
            squeezed_out,
            replaced,
            shares: BTreeMap::new(),
            free: state.networks.values().map(|network| (network.id, network.free())).collect(),
        };
        for (task, node) in state.tasks.values().filter_map(|task| Some((task, task.node?))) {
            let stays = state.services.get(&task.service).is_some_and(|service| planner.stays(task, service));
            let live = usize::from(stays && task.is_live());
            let share = planner.shares.entry((task.service, node)).or_default();
            share.live += live;
            share.rejected += usize::from(task.status.state == TaskState::Rejected);
            *planner.loads.entry(node).or_default() += live;
            if task.holds_resources() {
                planner.reserve(node, task.reservations);
            }
        }
        planner
    }

    fn reserve(&mut self, node: NodeId, resources: Resources) {
        let reserved = self.reserved.entry(node).or_default();
        *reserved = reserved.plus(resources);
    }

    /// Takes away the tasks of places that are not wanted any more.
    fn clear_unwanted(&mut self) {
        let unwanted = self.state.tasks.values().filter(|task| {
            let service = self.state.services.get(&task.service).filter(|service| !service.removing);
            task.desired != TaskState::Remove && service.is_some_and(|service| !has_place(task, service))
        });
        let room = PLAN_COMMANDS.saturating_sub(self.commands.len());
        self.commands.extend(unwanted.take(room).map(|task| Command::ShutDownTask { id: task.id, remove: true }));
    }

    fn plan_place(&mut self, service: &'a Service, place: Place, mut tasks: Vec<&'a Task>) {
        tasks.sort_by_key(|task| std::cmp::Reverse(task.created_index));
        let live = tasks.iter().find(|task| task.is_live());
        let stays = live.filter(|task| self.stays(task, service));
        let wanted = match place {
            Place::Slot(_) => true,
            Place::Node(node) => self.state.nodes.get(&node).is_some_and(|node| takes(node, service)),
        };
        let due = match live {
            Some(task) => self.is_filled_at_once(service, task),
            None => self.restart_is_due(service, &tasks),
        };
        let creates = stays.is_none() && wanted && due;
        match (live, stays) {
            (_, Some(task)) if task.node.is_none() => self.place(service, place, task.id, Some(task)),
            (Some(task), None) if !self.replaced.contains(&task.id) => {
                self.commands.push(Command::ShutDownTask { id: task.id, remove: false })
            }
            _ => {}
        }
        if creates {
            self.create(service, place);
        }
        // Afterwards: how often the place was filled is known from its last task.
        self.forget_history(&tasks, stays.map(|task| task.id), creates);
    }

    fn stays(&self, task: &Task, service: &Service) -> bool {
        has_place(task, service)
            && can_stay(self.state, task, service)
            && !self.squeezed_out.contains(&task.id)
            && !self.replaced.contains(&task.id)
    }

    /// The last task of a place without a live one is kept whatever the limit: when it ended decides when it is
    /// replaced.
    fn forget_history(&mut self, newest_first: &[&Task], stays: Option<TaskId>, creates: bool) {
        let ended = newest_first.iter().filter(|task| Some(task.id) != stays);
        let filled = stays.is_some() || creates;
        let kept = (self.state.cluster.spec.task_history as usize).max(usize::from(!filled));
        let forgotten = ended.skip(kept).filter(|task| task.desired != TaskState::Remove);
        self.commands.extend(forgotten.map(|task| Command::ShutDownTask { id: task.id, remove: true }));
    }

    /// Whether the place of a live task that does not stay gets its next one now.
    fn is_filled_at_once(&self, service: &Service, task: &Task) -> bool {
        let current = task.template == service.template;
        let once = current && service.spec.renewal.restart.condition == RestartCondition::Never;
        let waits = self.replaced.contains(&task.id) && self.is_stopping(task);
        task.node.is_none() || !(once || waits)
    }

    /// Whether the place, which has no live task, gets one now.
    fn restart_is_due(&self, service: &Service, newest_first: &[&Task]) -> bool {
        let Some(newest) = newest_first.first() else { return true };
        let current = newest.template == service.template;
        if !current && self.is_stopping(newest) {
            return false;
        }
        if !current && service.rollout.as_ref().is_some_and(Rollout::is_in_progress) {
            return true;
        }
        let policy = &service.spec.renewal.restart;
        if current && !may_restart(newest, policy) {
            return false;
        }
        let rejected = |task: &&&Task| task.status.state == TaskState::Rejected;
        let delay_secs = match newest.status.state {
            TaskState::Complete | TaskState::Failed => policy.delay_secs,
            TaskState::Rejected => {
                let in_a_row = newest_first.iter().take_while(rejected).count();
                let doublings = in_a_row.saturating_sub(1).min(REJECTED_DOUBLINGS);
                policy.delay_secs.max(REJECTED_DELAY_SECS << doublings)
            }
            _ => 0,
        };
        // An end in the future is a clock that was set back; it is not waited for.
        let ended_at = newest.status.at;
        self.now < ended_at || self.now.0 - ended_at.0 >= delay_secs
    }

    /// Of a task that is told to stop: whether its node is there to say when it has.
    fn is_stopping(&self, task: &Task) -> bool {
        let node = task.node.and_then(|node| self.state.nodes.get(&node));
        !task.gone && !task.status.state.is_terminal() && node.is_some_and(|node| node.state != NodeState::Down)
    }

    fn create(&mut self, service: &'a Service, place: Place) {
        let id = (self.ids)();
        let (slot, bound_to) = match place {
            Place::Slot(slot) => (slot, None),
            Place::Node(node) => (0, Some(node)),
        };
        self.commands.push(Command::CreateTask { id, service: service.id, slot, bound_to });
        self.place(service, place, id, None);
    }

    fn place(&mut self, service: &'a Service, place: Place, id: TaskId, task: Option<&'a Task>) {
        // Within a plan nothing becomes free: what does not suit one replica suits no other.
        let slot = matches!(place, Place::Slot(_));
        let same = |waiting: &Waiting<'_>| waiting.service.id == service.id;
        let node =
            if slot && self.waiting.last().is_some_and(same) { None } else { self.choose_node(service, place).ok() };
        match node {
            Some(node) => {
                self.commands.push(Command::PlaceTask { id, node });
                *self.loads.entry(node).or_default() += 1;
                self.shares.entry((service.id, node)).or_default().live += 1;
                self.reserve(node, service.spec.reservations);
                for (network, _) in &service.spec.networks {
                    let free = self.free.entry(*network).or_default();
                    *free = free.saturating_sub(1);
                }
            }
            None => self.waiting.push(Waiting { service, place, id, task }),
        }
    }

    /// Tells why each waiting task waits, where it is not shown already.
    fn show_reasons(&mut self) {
        let mut previous: Option<(ServiceId, String)> = None;
        for Waiting { service, place, id, task } in std::mem::take(&mut self.waiting) {
            if self.commands.len() >= PLAN_COMMANDS {
                return;
            }
            let known = previous.take().filter(|(id, _)| *id == service.id && matches!(place, Place::Slot(_)));
            let reason = known.map(|(_, reason)| reason).or_else(|| self.choose_node(service, place).err());
            let Some(reason) = reason else { continue };
            let shown = |task: &Task| task.status.state == TaskState::Pending && task.status.error == reason;
            if !task.is_some_and(shown) {
                self.commands.push(Command::SetPending { id, reason: reason.clone() });
            }
            previous = Some((service.id, reason));
        }
    }

    fn choose_node(&self, service: &Service, place: Place) -> Result<NodeId, String> {
        for (id, _) in &service.spec.networks {
            let Some(network) = self.state.networks.get(id) else { return Err(format!("network {id} not found")) };
            if self.free.get(id).is_none_or(|free| *free == 0) {
                return Err(network.full_text());
            }
        }
        let asked = |node: &&Node| place == Place::Node(node.id) || matches!(place, Place::Slot(_));
        let nodes = || self.state.nodes.values().filter(asked);
        let groups = self.spread(service);
        let rank = |node: &&Node| {
            let share = self.share(service, node.id);
            let groups: Vec<usize> = paths(node, service).map(|path| groups.get(&path).copied().unwrap_or(0)).collect();
            let load = self.loads.get(&node.id).copied().unwrap_or(0);
            (share.rejected >= REJECTIONS_UNTIL_AVOIDED, groups, share.live, load, node.id)
        };
        let best = nodes().filter(|node| self.unfit(node, service).is_none()).min_by_key(rank);
        let explain = || suit::explain(nodes().filter_map(|node| self.unfit(node, service)));
        best.map(|node| node.id).ok_or_else(explain)
    }

    fn share(&self, service: &Service, node: NodeId) -> Share {
        self.shares.get(&(service.id, node)).copied().unwrap_or_default()
    }

    fn unfit(&self, node: &Node, service: &Service) -> Option<suit::Unfit> {
        let reserved = self.reserved.get(&node.id).copied().unwrap_or_default();
        let used = Used { reserved, live: self.share(service, node.id).live as u64 };
        suit::unfit(node, &service.spec, used)
    }

    /// The live tasks of a service in each group of nodes that have the same values of its spread labels.
    fn spread<'b>(&'b self, service: &'b Service) -> BTreeMap<Vec<&'b str>, usize> {
        let mut groups = BTreeMap::new();
        if service.spec.placement.spread.is_empty() {
            return groups;
        }
        for node in self.state.nodes.values() {
            for path in paths(node, service) {
                *groups.entry(path).or_default() += self.share(service, node.id).live;
            }
        }
        groups
    }
}

/// Whether the service still has the place of this task, whatever becomes of the node.
fn has_place(task: &Task, service: &Service) -> bool {
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => task.slot <= replicas,
        ServiceMode::Global => true,
    }
}

/// Whether the task's node, if it has one, is one that it may stay on.
fn can_stay(state: &State, task: &Task, service: &Service) -> bool {
    let Some(node) = task.node.or(task.bound_to) else { return true };
    state.nodes.get(&node).is_some_and(|node| suit::can_stay(node, &service.spec))
}

/// Whether the policy lets the place of an ended task be filled again with the same.
fn may_restart(ended: &Task, policy: &RestartPolicy) -> bool {
    let state = ended.status.state;
    let condition = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => state != TaskState::Complete,
        RestartCondition::Never => ended.node.is_none(),
    };
    condition && (!ended.ended_by_itself() || ended.restarts.allow_another(policy, ended.status.at))
}

/// The node's values of the first spread label, of the first two, and so on.
fn paths<'b>(node: &'b Node, service: &'b Service) -> impl Iterator<Item = Vec<&'b str>> {
    let labels = &service.spec.placement.spread;
    let value = |label: &String| node.labels.get(label).map_or("", String::as_str);
    (1..=labels.len()).map(move |depth| labels.iter().take(depth).map(value).collect())
}

/// The live tasks that their nodes, since these have become smaller, have no room for: the newest ones.
fn squeezed_out(state: &State) -> BTreeSet<TaskId> {
    let reserving = |task: &&Task| task.is_live() && task.reservations != Resources::default();
    let mut tasks: Vec<&Task> = state.tasks.values().filter(reserving).collect();
    tasks.sort_by_key(|task| task.created_index);
    let mut reserved: BTreeMap<NodeId, Resources> = BTreeMap::new();
    let mut squeezed_out = BTreeSet::new();
    for task in tasks {
        let Some(node) = task.node.and_then(|node| state.nodes.get(&node)) else { continue };
        let reserved = reserved.entry(node.id).or_default();
        let together = reserved.plus(task.reservations);
        if together.fits(node.machine.resources) {
            *reserved = together;
        } else {
            squeezed_out.insert(task.id);
        }
    }
    squeezed_out
}
