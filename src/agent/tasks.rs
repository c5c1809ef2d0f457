//! The tasks of this node (pure): what is there, what shall be, and the next step of each. `plan`ning and the
//! outcome of steps come in, [`Step`]s come out; doing a step twice does no harm.
//!
//! ```text
//! Creating --> Starting --> Running --> Stopping --> Removing --> Gone
//!     |            |           |                        ^
//!     +------------+-----------+--- failed, exited -----+
//! ```

use crate::types::{TaskAssignment, TaskId, TaskState, TaskStatus, UnixTime};
use std::collections::{BTreeMap, VecDeque};

/// What is to be done for a task.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Make its namespace and devices; then [`TaskTable::created`].
    Create(Box<TaskAssignment>),
    /// Start its command; then [`TaskTable::started`].
    Start(Box<TaskAssignment>),
    /// Ask its command to end; then [`TaskTable::exited`].
    Stop(TaskId),
    /// Remove its devices and namespace; then [`TaskTable::removed`].
    Remove(TaskId),
    /// Tell the managers how it is.
    Report(TaskId, TaskStatus),
    /// Tell the managers that nothing is left of it.
    ReportGone(TaskId),
}

/// Why a task could not be created or started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartError {
    /// It never can be here (unknown image): `rejected`, not `failed`.
    pub(crate) rejected: bool,
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Creating,
    Starting,
    Running,
    Stopping,
    Removing,
    Gone,
}

struct Entry {
    assignment: TaskAssignment,
    phase: Phase,
    status: TaskStatus,
    stop: bool,
}

/// The table.
#[derive(Default)]
pub(crate) struct TaskTable {
    entries: BTreeMap<TaskId, Entry>,
    steps: VecDeque<Step>,
}

impl TaskTable {
    /// Takes over what shall be.
    pub(crate) fn want(&mut self, desired: &BTreeMap<TaskId, TaskAssignment>, now: UnixTime) {
        for (id, assignment) in desired {
            let run = assignment.desired <= TaskState::Running;
            match self.entries.get_mut(id) {
                None if run => self.accept(assignment.clone(), now),
                None => self.steps.push_back(Step::ReportGone(*id)),
                Some(entry) => {
                    entry.assignment.desired = assignment.desired;
                    if entry.phase == Phase::Gone && !run {
                        self.steps.push_back(Step::ReportGone(*id));
                    }
                    if !run {
                        self.stop(*id);
                    }
                }
            }
        }
        let dropped: Vec<TaskId> = self.entries.keys().copied().filter(|id| !desired.contains_key(id)).collect();
        for id in dropped {
            self.stop(id);
        }
        self.entries.retain(|id, entry| entry.phase != Phase::Gone || desired.contains_key(id));
    }

    /// Namespace and devices are there, or not.
    pub(crate) fn created(&mut self, id: TaskId, outcome: Result<(), StartError>, now: UnixTime) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.phase == Phase::Creating) else { return };
        match outcome {
            Ok(()) if entry.stop => self.end(id, TaskState::Shutdown, "stopped before it started", "", None, now),
            Ok(()) => {
                entry.phase = Phase::Starting;
                self.steps.push_back(Step::Start(Box::new(entry.assignment.clone())));
                self.tell(id, TaskState::Starting, "starting", now);
            }
            Err(error) => self.fail(id, &error, now),
        }
    }

    /// The command runs, or not; without a process where there is none.
    pub(crate) fn started(&mut self, id: TaskId, outcome: Result<Option<u32>, StartError>, now: UnixTime) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.phase == Phase::Starting) else { return };
        match outcome {
            Ok(pid) => {
                entry.phase = Phase::Running;
                entry.status.pid = pid;
                let stop = entry.stop;
                self.tell(id, TaskState::Running, "started", now);
                if stop {
                    self.stop(id);
                }
            }
            Err(error) => self.fail(id, &error, now),
        }
    }

    /// The command has ended.
    pub(crate) fn exited(&mut self, id: TaskId, code: i32, error: &str, now: UnixTime) {
        let Some(entry) = self.entries.get(&id) else { return };
        match (entry.phase, code) {
            (Phase::Removing | Phase::Gone, _) => {}
            (Phase::Stopping, _) => self.end(id, TaskState::Shutdown, "stopped", "", Some(code), now),
            (_, 0) => self.end(id, TaskState::Complete, "finished", "", Some(0), now),
            _ if error.is_empty() => {
                self.end(id, TaskState::Failed, "started", &format!("task: non-zero exit ({code})"), Some(code), now)
            }
            _ => self.end(id, TaskState::Failed, "started", error, Some(code), now),
        }
    }

    /// It is to end whatever the managers want: a device of it died under it, or it is this node's own.
    pub(crate) fn end_early(&mut self, id: TaskId) {
        self.stop(id);
    }

    /// Whether it is here, and not gone.
    pub(crate) fn knows(&self, id: TaskId) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.phase != Phase::Gone)
    }

    /// Nothing is left of it.
    pub(crate) fn removed(&mut self, id: TaskId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = Phase::Gone;
            self.steps.push_back(Step::ReportGone(id));
        }
    }

    /// A new session: tells the managers again.
    pub(crate) fn report_again(&mut self) {
        for (&id, entry) in &self.entries {
            self.steps.push_back(Step::Report(id, entry.status.clone()));
            if entry.phase == Phase::Gone {
                self.steps.push_back(Step::ReportGone(id));
            }
        }
    }

    /// Whether nothing runs and nothing is being removed.
    pub(crate) fn is_idle(&self) -> bool {
        self.entries.values().all(|entry| entry.phase == Phase::Gone)
    }

    /// Whether the outcome of a creation is still to come.
    pub(crate) fn is_creating(&self) -> bool {
        self.entries.values().any(|entry| entry.phase == Phase::Creating)
    }

    /// The next step.
    pub(crate) fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// All tasks that are not gone.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&TaskAssignment, &TaskStatus)> {
        self.entries.values().filter(|entry| entry.phase != Phase::Gone).map(|entry| (&entry.assignment, &entry.status))
    }

    fn accept(&mut self, assignment: TaskAssignment, now: UnixTime) {
        let id = assignment.id;
        let status = TaskStatus {
            state: TaskState::Accepted,
            message: "accepted".into(),
            error: String::new(),
            exit_code: None,
            pid: None,
            at: now,
        };
        self.steps.push_back(Step::Create(Box::new(assignment.clone())));
        self.entries.insert(id, Entry { assignment, phase: Phase::Creating, status, stop: false });
        self.tell(id, TaskState::Preparing, "preparing", now);
    }

    fn stop(&mut self, id: TaskId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.stop = true;
        if entry.phase == Phase::Running {
            entry.phase = Phase::Stopping;
            self.steps.push_back(Step::Stop(id));
        }
    }

    fn fail(&mut self, id: TaskId, error: &StartError, now: UnixTime) {
        let state = if error.rejected { TaskState::Rejected } else { TaskState::Failed };
        self.end(id, state, "preparing", &error.reason, None, now);
    }

    fn end(&mut self, id: TaskId, state: TaskState, message: &str, error: &str, exit_code: Option<i32>, now: UnixTime) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.phase = Phase::Removing;
        entry.status.pid = None;
        entry.status.exit_code = exit_code;
        entry.status.error = error.into();
        self.tell(id, state, message, now);
        self.steps.push_back(Step::Remove(id));
    }

    fn tell(&mut self, id: TaskId, state: TaskState, message: &str, now: UnixTime) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.status.state = state;
        entry.status.message = message.into();
        entry.status.at = now;
        self.steps.push_back(Step::Report(id, entry.status.clone()));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::types::{ContainerSpec, NodeId, ServiceId};

    pub(crate) fn assignment(desired: TaskState) -> TaskAssignment {
        let container = ContainerSpec {
            image: "host:latest".into(),
            command: vec![],
            args: vec![],
            env: vec![],
            dir: String::new(),
            hostname: String::new(),
        };
        TaskAssignment {
            id: TaskId::from_random([1; 17]),
            service: ServiceId::from_random([2; 17]),
            service_name: "web".into(),
            slot: 1,
            node: NodeId::from_random([3; 17]),
            container,
            attachments: vec![],
            desired,
            standalone: false,
        }
    }

    fn steps(table: &mut TaskTable) -> Vec<&'static str> {
        std::iter::from_fn(|| table.poll_step())
            .filter_map(|step| match step {
                Step::Create(_) => Some("create"),
                Step::Start(_) => Some("start"),
                Step::Stop(_) => Some("stop"),
                Step::Remove(_) => Some("remove"),
                Step::ReportGone(_) => Some("gone"),
                Step::Report(..) => None,
            })
            .collect()
    }

    fn want(table: &mut TaskTable, desired: Option<TaskState>) -> Vec<&'static str> {
        let wanted = desired.map(assignment).map(|task| (task.id, task)).into_iter().collect();
        table.want(&wanted, UnixTime(1));
        steps(table)
    }

    #[test]
    fn a_task_lives_and_leaves_nothing() {
        let (mut table, now) = (TaskTable::default(), UnixTime(1));
        let id = assignment(TaskState::Running).id;
        assert_eq!(want(&mut table, Some(TaskState::Running)), ["create"]);
        assert_eq!(want(&mut table, Some(TaskState::Running)), [""; 0]);
        table.created(id, Ok(()), now);
        assert_eq!(steps(&mut table), ["start"]);
        table.started(id, Ok(Some(7)), now);
        assert_eq!(steps(&mut table), [""; 0]);
        assert_eq!(want(&mut table, Some(TaskState::Remove)), ["stop"]);
        table.exited(id, 143, "", now);
        assert_eq!(table.iter().next().unwrap().1.state, TaskState::Shutdown);
        assert_eq!(steps(&mut table), ["remove"]);
        table.removed(id);
        assert_eq!(steps(&mut table), ["gone"]);
        assert!(table.is_idle());
        assert_eq!(want(&mut table, None), [""; 0]);
    }

    #[test]
    fn a_stop_during_creation_is_not_forgotten() {
        let (mut table, now) = (TaskTable::default(), UnixTime(1));
        let id = assignment(TaskState::Running).id;
        want(&mut table, Some(TaskState::Running));
        assert_eq!(want(&mut table, None), [""; 0]);
        table.created(id, Ok(()), now);
        assert_eq!(steps(&mut table), ["remove"]);
    }

    #[test]
    fn what_cannot_start_is_rejected_and_removed() {
        let (mut table, now) = (TaskTable::default(), UnixTime(1));
        let id = assignment(TaskState::Running).id;
        want(&mut table, Some(TaskState::Running));
        table.created(id, Ok(()), now);
        table.started(id, Err(StartError { rejected: true, reason: "no such image".into() }), now);
        let (_, status) = table.iter().next().unwrap();
        assert_eq!((status.state, status.error.as_str()), (TaskState::Rejected, "no such image"));
        assert_eq!(steps(&mut table), ["start", "remove"]);
    }

    #[test]
    fn an_unknown_task_that_shall_go_is_gone() {
        assert_eq!(want(&mut TaskTable::default(), Some(TaskState::Remove)), ["gone"]);
    }
}
