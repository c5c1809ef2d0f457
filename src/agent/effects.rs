//! Does what the machines of the engine want done.

use super::engine::{Engine, Outcome, STOP_GRACE};
use super::spawn::spawn;
use super::tasks::{StartError, Step};
use crate::dataplane::DataCommand;
use crate::helper::HelperClient;
use crate::helper::verbs::{CommandSpec, Environment, ErrorKind, Image, Interface, TaskLaunch, VerbError};
use crate::sys::tun::TunDriver;
use crate::types::{EndpointKey, Queues, TaskAssignment, TaskId};
use crate::wire::control::FromAgent;
use smol::channel::Sender;
use std::time::Duration;

/// The device driver of a task's interfaces.
const DRIVER: TunDriver = TunDriver::Vnet;
/// Pause before a task that could not be removed is tried again.
const REMOVE_RETRY: Duration = Duration::from_secs(1);

impl Engine {
    /// Until no machine wants anything: keys, gossip and tasks may each set the others going.
    pub(super) async fn act(&mut self) -> Result<(), String> {
        self.core.settle(self.clock.now());
        while let Some(step) = self.tasks.poll_step() {
            self.take_step(step);
        }
        for message in std::mem::take(&mut self.core.outgoing) {
            self.tell(message);
        }
        if std::mem::take(&mut self.core.wants_session) && !self.link.up {
            let _ = self.link.reset.try_send(());
        }
        while let Some(transmit) = self.core.gossip.poll_transmit() {
            // Gossip repeats what matters: a full socket buffer costs a datagram, no more.
            let _ = self.gossip_socket.get_ref().send_to(&transmit.payload, transmit.to);
        }
        self.publish();
        if self.core.commands.is_empty() {
            return Ok(());
        }
        self.dataplane
            .send(std::mem::take(&mut self.core.commands))
            .await
            .map_err(|error| format!("the data plane failed: {error}"))
    }

    fn take_step(&mut self, step: Step) {
        let (helper, outcomes) = (self.helper.clone(), self.outcomes.clone());
        match step {
            Step::Create(task) => spawn("create task", create(helper, outcomes, *task, (self.inner_mtu, self.workers))),
            Step::Start(task) => spawn("start task", start(helper, outcomes, *task)),
            Step::Stop(id) => spawn("stop task", async move {
                if let Err(error) = helper.stop_task(id, STOP_GRACE).await {
                    tracing::warn!(task = %id, %error, "stop");
                }
            }),
            Step::Remove(id) => {
                let endpoints: Vec<EndpointKey> = self
                    .tasks
                    .iter()
                    .filter(|(task, _)| task.id == id)
                    .flat_map(|(task, _)| task.endpoints().collect::<Vec<_>>())
                    .collect();
                self.core
                    .commands
                    .extend(endpoints.into_iter().map(|endpoint| DataCommand::RemoveEndpoint { endpoint }));
                spawn("remove task", remove(helper, outcomes, id));
            }
            Step::Report(id, status) => {
                tracing::debug!(task = %id, state = %status.state, error = %status.error, "task");
                self.tell(FromAgent::Tasks { statuses: vec![(id, status)] });
            }
            Step::ReportGone(id) => self.tell(FromAgent::TaskGone { id }),
        }
    }
}

async fn create(helper: HelperClient, outcomes: Sender<Outcome>, task: TaskAssignment, (mtu, queues): (u32, Queues)) {
    let interfaces = task.attachments.iter().enumerate().map(|(index, attachment)| {
        let name = format!("eth{index}").parse()?;
        Ok(Interface { name, address: attachment.address, mtu })
    });
    let made = match interfaces.collect::<Result<Vec<_>, VerbError>>() {
        Ok(interfaces) => helper.create_task_network(task.id, interfaces, DRIVER, queues).await,
        Err(error) => Err(error),
    };
    let _ = outcomes.send(Outcome::Created(task.id, made.map_err(start_error))).await;
}

async fn start(helper: HelperClient, outcomes: Sender<Outcome>, task: TaskAssignment) {
    let started = match launch(&task) {
        Ok(launch) => helper.start_task(launch, None).await,
        Err(error) => Err(error),
    };
    let _ = outcomes.send(Outcome::Started(task.id, started.map_err(start_error))).await;
}

/// What the helper is asked to start. Without any command, an image's own `/init` is it.
fn launch(task: &TaskAssignment) -> Result<TaskLaunch, VerbError> {
    let container = &task.container;
    let mut argv: Vec<String> = container.command.iter().chain(&container.args).cloned().collect();
    if argv.is_empty() {
        argv.push("/init".into());
    }
    let hostname = if container.hostname.is_empty() {
        task.id.to_string().chars().take(12).collect()
    } else {
        container.hostname.clone()
    };
    Ok(TaskLaunch {
        task: task.id,
        image: Image::from_normalised(&container.image)?,
        command: CommandSpec { argv, env: Environment(container.env.clone()), dir: container.dir.clone(), tty: false },
        hostname,
    })
}

async fn remove(helper: HelperClient, outcomes: Sender<Outcome>, id: TaskId) {
    while let Err(error) = helper.remove_task(id).await {
        match error.kind {
            ErrorKind::UnknownTask => break,
            // The daemon is about to end, and the tasks have gone with the helper.
            ErrorKind::Gone => return,
            _ => tracing::warn!(task = %id, %error, "remove: trying again"),
        }
        smol::Timer::after(REMOVE_RETRY).await;
    }
    let _ = outcomes.send(Outcome::Removed(id)).await;
}

fn start_error(error: VerbError) -> StartError {
    StartError { rejected: error.is_rejection(), reason: error.text }
}
