//! The replacement of a service's tasks after a change of what they are, place by place.
//!
//! All that decides is in the state: which specification a task was made from, since when it runs, how many of the new
//! ones ended while they were watched. A new leader goes on where the old one stopped.
//!
//! The old task of a place is told to stop; once it has ended (or its node is down), `schedule` makes the new one. A
//! place is busy from then until its new task has run for the delay of the policy; at most as many places are busy
//! as the policy says. A new task that ends within the monitored time counts as failed, and when more fail than
//! the policy bears, the rest stays as it is or all go back. Whatever else needs a new task meanwhile gets it
//! from the new specification. A node that is paused keeps its task of a global service as it is; the task is replaced
//! once the node takes tasks again, also when the replacement of the others is over by then, unless that was paused.

use super::apply::{Outcome, done};
use super::limits::not_found;
use super::schedule::{Place, takes};
use super::{Command, FormerSpec, Node, Refusal, Rollout, RolloutPhase, Service, State, Task};
use crate::types::{
    FailureAction, NodeId, RestartCondition, ServiceId, ServiceMode, ServiceSpec, TaskId, TaskState, UnixTime,
    UpdatePolicy,
};
use std::collections::{BTreeMap, BTreeSet};

/// Millionths of a whole.
const WHOLE_PPM: u64 = 1_000_000;

// Docker's texts.
const UPDATING: &str = "update in progress";
const UPDATED: &str = "update completed";
const ROLLING_BACK: &str = "manually requested rollback";
const ROLLED_BACK: &str = "rollback completed";

impl State {
    pub(super) fn update_service(&mut self, id: ServiceId, version: u64, spec: &ServiceSpec, at: UnixTime) -> Outcome {
        let service = self.service_at(id, version)?;
        if spec.name != service.spec.name {
            return Err(Refusal::Invalid("renaming services is not supported".into()));
        }
        if std::mem::discriminant(&spec.mode) != std::mem::discriminant(&service.spec.mode) {
            return Err(Refusal::Invalid("service mode change is not allowed".into()));
        }
        self.check_service(id, spec)?;
        let template = self.template_of(service, spec);
        let (new, former) = (FormerSpec { spec: spec.clone(), template }, service.former.clone());
        // A replacement goes on as long as the tasks stay what they are, and goes back to what was before it.
        let goes_on = template == service.template && service.rollout.as_ref().is_some_and(Rollout::is_in_progress);
        let present = self.change_spec(id, new, at);
        if goes_on {
            self.keep_former(id, former);
        } else {
            self.keep_former(id, present);
            self.start_rollout(id, RolloutPhase::Updating, UPDATING, at);
        }
        done()
    }

    pub(super) fn roll_back_service(&mut self, id: ServiceId, version: u64, at: UnixTime) -> Outcome {
        let service = self.service_at(id, version)?;
        let Some(former) = service.former.clone() else {
            let text = format!("service {} does not have a previous spec", service.spec.name);
            return Err(Refusal::Invalid(text));
        };
        self.check_service(id, &former.spec)?;
        let present = self.change_spec(id, *former, at);
        self.keep_former(id, present);
        self.start_rollout(id, RolloutPhase::RollingBack, ROLLING_BACK, at);
        done()
    }

    pub(super) fn finish_rollout(&mut self, id: ServiceId, template: u64, at: UnixTime) -> Outcome {
        let service = self.services.get_mut(&id).filter(|service| !service.removing && service.template == template);
        let service = service.ok_or_else(|| not_found("service", id))?;
        let Some(rollout) = service.rollout.as_mut().filter(|rollout| rollout.is_in_progress()) else {
            return Err(Refusal::Conflict(format!("service {id} is not being updated")));
        };
        let updating = rollout.phase == RolloutPhase::Updating;
        rollout.phase = if updating { RolloutPhase::Completed } else { RolloutPhase::RolledBack };
        rollout.message = if updating { UPDATED } else { ROLLED_BACK }.into();
        rollout.completed_at = Some(at);
        done()
    }

    /// A task ended by itself: it may have been a new one that was watched.
    pub(super) fn note_ended(&mut self, id: TaskId, at: UnixTime) {
        let Some(task) = self.tasks.get(&id) else { return };
        let Some(service) = self.services.get_mut(&task.service).filter(|service| service.template == task.template)
        else {
            return;
        };
        let Some((rollout, policy)) = in_progress(&mut service.rollout, &service.spec) else { return };
        if task.running_since.is_some_and(|since| at.0.saturating_sub(since.0) > policy.monitor_secs) {
            return;
        }
        rollout.failures = rollout.failures.saturating_add(1);
        let bearable = rollout.total.saturating_mul(u64::from(policy.max_failure_ppm));
        if rollout.failures.saturating_mul(WHOLE_PPM) <= bearable {
            return;
        }
        match (policy.failure_action, rollout.phase) {
            (FailureAction::Continue, _) => {}
            (FailureAction::RollBack, RolloutPhase::Updating) => self.give_up(id, at),
            (_, RolloutPhase::Updating) => {
                rollout.phase = RolloutPhase::Paused;
                rollout.message = format!("update paused due to failure or early termination of task {id}");
            }
            _ => {
                rollout.phase = RolloutPhase::RollbackPaused;
                rollout.message = format!("rollback paused due to failure or early termination of task {id}");
            }
        }
    }

    /// Goes back to the former specification, or pauses if that is not possible any more.
    fn give_up(&mut self, failed: TaskId, at: UnixTime) {
        let Some(id) = self.tasks.get(&failed).map(|task| task.service) else { return };
        let former = self.services.get(&id).and_then(|service| service.former.clone());
        let Some(former) = former.filter(|former| self.check_service(id, &former.spec).is_ok()) else {
            if let Some(rollout) = self.services.get_mut(&id).and_then(|service| service.rollout.as_mut()) {
                rollout.phase = RolloutPhase::Paused;
                rollout.message =
                    format!("update paused due to failure of task {failed}: the previous spec cannot be gone back to");
            }
            return;
        };
        // What failed is not kept to go back to.
        drop(self.change_spec(id, *former, at));
        let text = format!("update rolled back due to failure or early termination of task {failed}");
        self.start_rollout(id, RolloutPhase::RollingBack, &text, at);
    }

    fn service_at(&self, id: ServiceId, version: u64) -> Result<&Service, Refusal> {
        let service = self.services.get(&id).filter(|service| !service.removing);
        let service = service.ok_or_else(|| not_found("service", id))?;
        if service.version == version { Ok(service) } else { Err(Refusal::OutOfSequence) }
    }

    /// That of the present or the former specification if they ask for the same tasks: these stay then.
    fn template_of(&self, service: &Service, spec: &ServiceSpec) -> u64 {
        if same_tasks(&service.spec, spec) {
            return service.template;
        }
        let former = service.former.as_ref().filter(|former| same_tasks(&former.spec, spec));
        former.map_or(self.index, |former| former.template)
    }

    /// Gives what it was. There is nothing to go back to then, unless it is kept.
    fn change_spec(&mut self, id: ServiceId, new: FormerSpec, at: UnixTime) -> Option<Box<FormerSpec>> {
        let service = self.services.get_mut(&id)?;
        let spec = std::mem::replace(&mut service.spec, new.spec);
        let template = std::mem::replace(&mut service.template, new.template);
        service.former = None;
        service.updated_at = at;
        service.version = self.index;
        Some(Box::new(FormerSpec { spec, template }))
    }

    fn keep_former(&mut self, id: ServiceId, former: Option<Box<FormerSpec>>) {
        if let Some(service) = self.services.get_mut(&id) {
            service.former = former;
        }
    }

    fn start_rollout(&mut self, id: ServiceId, phase: RolloutPhase, message: &str, at: UnixTime) {
        let Some(service) = self.services.get_mut(&id) else { return };
        let mut newest: BTreeMap<Place, &Task> = BTreeMap::new();
        let wanted = |task: &&Task| task.service == id && is_wanted(&self.nodes, task, service);
        for task in self.tasks.values().filter(wanted) {
            let shown = newest.entry(Place::of(task)).or_insert(task);
            *shown = if task.created_index > shown.created_index { task } else { shown };
        }
        let total = newest.values().filter(|task| task.template != service.template).count() as u64;
        let (message, completed_at, failures) = (message.to_owned(), None, 0);
        let rollout = Rollout { phase, started_at: at, completed_at, message, total, failures };
        // A rollback is shown even where there is no task to replace: somebody asked for it.
        service.rollout = (total > 0 || phase == RolloutPhase::RollingBack).then_some(rollout);
    }
}

/// Whether two specifications ask for the same tasks. Where these may be is another matter: it moves a task only
/// where it has to.
fn same_tasks(one: &ServiceSpec, other: &ServiceSpec) -> bool {
    let what = |spec: &ServiceSpec| (spec.reservations, spec.renewal.force);
    one.container == other.container && one.networks == other.networks && what(one) == what(other)
}

fn in_progress<'a>(
    rollout: &'a mut Option<Rollout>,
    spec: &'a ServiceSpec,
) -> Option<(&'a mut Rollout, &'a UpdatePolicy)> {
    let rollout = rollout.as_mut().filter(|rollout| rollout.is_in_progress())?;
    let policy = policy_of(Some(rollout), spec);
    Some((rollout, policy))
}

fn policy_of<'a>(rollout: Option<&Rollout>, spec: &'a ServiceSpec) -> &'a UpdatePolicy {
    let back = |rollout: &Rollout| matches!(rollout.phase, RolloutPhase::RollingBack | RolloutPhase::RolledBack);
    if rollout.is_some_and(back) { &spec.renewal.rollback } else { &spec.renewal.update }
}

/// The tasks of each place of each service.
pub(super) type Places<'a> = BTreeMap<(ServiceId, Place), Vec<&'a Task>>;

/// What is to be done now for all services: the live tasks to be replaced, and what to tell. `stays`: whether a task
/// may stay on its node.
pub(super) fn step(
    state: &State,
    places: &Places<'_>,
    now: UnixTime,
    stays: &dyn Fn(&Task, &Service) -> bool,
) -> (BTreeSet<TaskId>, Vec<Command>) {
    let (mut replaced, mut commands) = (BTreeSet::new(), Vec::new());
    for service in state.services.values().filter(|service| !service.removing) {
        let of_service = places.range((service.id, Place::FIRST)..).take_while(|((id, _), _)| *id == service.id);
        let newest = of_service.filter_map(|(_, tasks)| tasks.iter().max_by_key(|task| task.created_index).copied());
        let newest: Vec<&Task> = newest.filter(|task| is_wanted(&state.nodes, task, service)).collect();
        let outdated = || newest.iter().copied().filter(|task| task.is_live() && task.template != service.template);
        // What no node has yet is never placed as it is.
        replaced.extend(outdated().filter(|task| task.node.is_none()).map(|task| task.id));
        let rollout = service.rollout.as_ref();
        if rollout.is_some_and(Rollout::is_paused) {
            continue;
        }
        let policy = policy_of(rollout, &service.spec);
        // The place of one that leaves its node stays empty then.
        let once = service.spec.renewal.restart.condition == RestartCondition::Never;
        let is_seen_to = |task: &&&Task| task.template != service.template || !once || stays(task, service);
        let seen_to = || newest.iter().filter(is_seen_to);
        let busy = |secs| seen_to().filter(|task| is_busy(task, service.template, secs, now)).count();
        let mut next: Vec<&Task> = outdated().filter(|task| task.node.is_some()).collect();
        next.sort_by_key(|task| (task.status.state == TaskState::Running, task.slot, task.bound_to));
        let room = match usize::try_from(policy.parallelism).unwrap_or(usize::MAX) {
            0 => usize::MAX,
            most => most.saturating_sub(busy(policy.delay_secs)),
        };
        let in_progress = rollout.is_some_and(Rollout::is_in_progress);
        if in_progress && outdated().next().is_none() && busy(policy.monitor_secs.max(policy.delay_secs)) == 0 {
            commands.push(Command::FinishRollout { id: service.id, template: service.template });
        }
        replaced.extend(next.into_iter().take(room).map(|task| task.id));
    }
    (replaced, commands)
}

/// Whether a replacement has to do with the place of which this is the newest task. A node that takes no task of a
/// global service gets no new one: nothing is replaced there, and nothing that is to come is waited for.
fn is_wanted(nodes: &BTreeMap<NodeId, Node>, task: &Task, service: &Service) -> bool {
    match service.spec.mode {
        ServiceMode::Replicated { replicas } => task.slot <= replicas,
        ServiceMode::Global => {
            let node = task.bound_to.and_then(|node| nodes.get(&node));
            let current = task.is_live() && task.template == service.template;
            current || node.is_some_and(|node| takes(node, service))
        }
    }
}

/// Whether the place of which this is the newest task is being seen to: the new one is to come, or is not settled.
fn is_busy(newest: &Task, template: u64, settled_after_secs: u64, now: UnixTime) -> bool {
    if newest.template != template {
        return !newest.is_live();
    }
    newest.is_live()
        && match newest.running_since {
            Some(since) => now.0.checked_sub(since.0).is_some_and(|ran| ran < settled_after_secs),
            None => true,
        }
}
