//! Does what the machines of the engine want done.

use super::engine::{Engine, Outcome, STOP_GRACE};
use super::spawn::spawn;
use super::tasks::{StartError, Step};
use crate::dataplane::DataCommand;
use crate::helper::HelperClient;
use crate::helper::verbs::{
    CommandSpec, Environment, ErrorKind, Image, Interface, NamespaceName, TaskLaunch, VerbError,
};
use crate::sys::erase::erase_stack;
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
        if self.core.commands.iter().any(|command| matches!(command, DataCommand::EraseEpoch(_))) {
            erase_stack();
        }
        self.dataplane
            .send(std::mem::take(&mut self.core.commands))
            .await
            .map_err(|error| format!("the data plane failed: {error}"))
    }

    /// The MTU of each interface: what the underlay allows, or less where the network says so.
    fn mtus(&self, task: &TaskAssignment) -> Vec<u32> {
        let of_network = |network| self.core.networks.get(network).and_then(|view| view.mtu_bytes);
        let limited = |network| of_network(network).map_or(self.inner_mtu, |most| most.min(self.inner_mtu));
        task.attachments.iter().map(|attachment| limited(&attachment.network)).collect()
    }

    fn take_step(&mut self, step: Step) {
        let (helper, outcomes) = (self.helper.clone(), self.outcomes.clone());
        match step {
            Step::Create(task) => {
                let namespace = self.namespace_of(task.id).cloned();
                let mtus = self.mtus(&task);
                spawn("create task", create(helper, outcomes, *task, namespace, (mtus, self.workers)));
            }
            Step::Start(task) if self.namespace_of(task.id).is_some() => {
                let started = Outcome::Started(task.id, Ok(None));
                spawn("attached", async move { drop(outcomes.send(started).await) });
            }
            Step::Start(task) => spawn("start task", start(helper, outcomes, *task)),
            // Nothing runs in it that could end by itself.
            Step::Stop(id) if self.namespace_of(id).is_some() => self.tasks.exited(id, 0, "", self.clock.unix()),
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

async fn create(
    helper: HelperClient,
    outcomes: Sender<Outcome>,
    task: TaskAssignment,
    namespace: Option<NamespaceName>,
    (mtus, queues): (Vec<u32>, Queues),
) {
    if let (Some(namespace), Some(attachment), Some(&mtu)) = (namespace, task.attachments.first(), mtus.first()) {
        let made = helper.attach_namespace(namespace, (attachment.address, mtu), DRIVER, queues).await;
        let made = made.map(|queues| vec![queues]).map_err(start_error);
        let _ = outcomes.send(Outcome::Created(task.id, made)).await;
        return;
    }
    let interfaces = task.attachments.iter().zip(mtus).enumerate().map(|(index, (attachment, mtu))| {
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
        Ok(launch) => helper.start_task(launch, None).await.map(Some),
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
