//! Waiting until a service's tasks run as wanted, with its progress.

use super::session::{Failure, Outcome, Session, filters};
use super::table;
use crate::api::client::Target;
use crate::api::types as api;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often the tasks are looked at.
const POLL: Duration = Duration::from_millis(200);

/// How long all tasks must run before they count as up: one that fails at once is not.
const STEADY: Duration = Duration::from_secs(1);

/// Tasks that may fail before any replica is up: more of them do not come up by waiting.
const MAX_FAILED: usize = 3;

/// Waiting for a service's tasks, with progress for people on standard error.
pub(super) struct Convergence {
    service: String,
    quiet: bool,
    /// By slot, or by node of a global service.
    shown: BTreeMap<(u64, String), String>,
    progress: String,
    /// An update was seen on its way: a rollback then is one that nobody asked for.
    was_updating: bool,
    all_up_since: Option<Instant>,
}

impl Convergence {
    /// Of a service that was just created or changed.
    pub(super) fn new(service: String, quiet: bool) -> Convergence {
        Convergence {
            service,
            quiet,
            shown: BTreeMap::new(),
            progress: String::new(),
            was_updating: false,
            all_up_since: None,
        }
    }

    /// Until all tasks run as they are wanted.
    pub(super) fn wait(mut self, session: &mut Session) -> Outcome {
        loop {
            let service = self.service(session)?;
            let wanted = service.service_status.as_ref().map_or(0, |status| status.desired_tasks);
            let update = service.update_status.unwrap_or_default();
            let name = &service.spec.name;
            let only = [format!("service={}", self.service), "_up-to-date=true".to_owned()];
            let tasks: Vec<api::Task> = session.get(&filters(Target::new(&["tasks"]), &only)?)?;
            self.show(session, &tasks, wanted, &update);
            match update.state.as_str() {
                "paused" | "rollback_paused" => return Err(failed(name, &update.message)),
                // What is running is not what was asked for.
                "rollback_completed" if self.was_updating => return Err(failed(name, &update.message)),
                "updating" => self.was_updating = true,
                _ => {}
            }
            let in_progress = matches!(update.state.as_str(), "updating" | "rollback_started");
            if self.is_steady(!in_progress && running(&tasks) as u64 == wanted) {
                self.tell(session, &format!("verify: Service {} converged", self.service));
                return Ok(());
            }
            if let Some(reason) = hopeless(&tasks).filter(|_| !in_progress) {
                return Err(failed(name, &reason));
            }
            std::thread::sleep(POLL);
        }
    }

    /// With how many tasks there are to be: the nodes of a global service may change meanwhile.
    fn service(&self, session: &Session) -> Result<api::Service, Failure> {
        let target = Target::new(&["services"]).with("status", "true");
        let found: Vec<api::Service> = session.get(&filters(target, &[format!("id={}", self.service)])?)?;
        found.into_iter().next().ok_or_else(|| Failure::new("the service was removed meanwhile"))
    }

    fn is_steady(&mut self, all_up: bool) -> bool {
        let since = if all_up {
            *self.all_up_since.get_or_insert_with(Instant::now)
        } else {
            self.all_up_since = None;
            return false;
        };
        since.elapsed() >= STEADY
    }

    /// One line for each place whose state changed.
    fn show(&mut self, session: &mut Session, tasks: &[api::Task], wanted: u64, update: &api::UpdateStatus) {
        let rolling_back = if update.state == "rollback_started" { "rolling back: " } else { "" };
        let progress = format!("{rolling_back}{} out of {wanted} tasks", running(tasks));
        if self.progress != progress {
            self.tell(session, &format!("overall progress: {progress}"));
            self.progress = progress;
        }
        let place = |task: &api::Task| (task.slot, if task.slot == 0 { task.node_id.clone() } else { String::new() });
        let mut newest: BTreeMap<(u64, String), &api::Task> = BTreeMap::new();
        let rank = |task: &api::Task| (task.desired_state == "running", task.version.index);
        for task in tasks {
            let shown = newest.entry(place(task)).or_insert(task);
            if rank(task) > rank(shown) {
                *shown = task;
            }
        }
        for (place, task) in newest {
            let name = if place.0 == 0 { table::short_id(&place.1) } else { format!("{}/{wanted}", place.0) };
            let mut line = format!("{name}: {}", task.status.state);
            if !task.status.err.is_empty() {
                line.push_str(&format!(" ({})", task.status.err));
            }
            if self.shown.get(&place) != Some(&line) {
                self.tell(session, &line);
                self.shown.insert(place, line);
            }
        }
    }

    fn tell(&self, session: &mut Session, line: &str) {
        if !self.quiet {
            session.complain(line);
        }
    }
}

fn failed(name: &str, reason: &str) -> Failure {
    Failure::new(format!("service {name} does not come up: {reason} (it stays; see 'formic service ps {name}')"))
}

fn running(tasks: &[api::Task]) -> usize {
    tasks.iter().filter(|task| task.desired_state == "running" && task.status.state == "running").count()
}

/// The newest reason, if several tasks failed and none runs.
fn hopeless(tasks: &[api::Task]) -> Option<String> {
    let failed = tasks.iter().filter(|task| matches!(task.status.state.as_str(), "rejected" | "failed"));
    if running(tasks) > 0 || failed.clone().count() < MAX_FAILED {
        return None;
    }
    let newest = failed.max_by_key(|task| task.version.index)?;
    Some(if newest.status.err.is_empty() { newest.status.message.clone() } else { newest.status.err.clone() })
}
