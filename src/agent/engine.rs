//! One swarm membership, alive: a single loop that owns the machines of this node (keys, gossip, tasks) and its data
//! plane. Inputs come one at a time; after each, what the machines want done is done (`effects`).
//!
//! It needs no manager to go on: without a session it keeps tasks, tables and keys, and follows signed records.

use super::core::Core;
use super::model::{LocalTask, Status};
use super::push::{Collector, Push};
use super::runtime::Managers;
use super::session::SessionEvent;
use super::standalone::Standalone;
use super::tasks::{StartError, TaskTable};
use crate::dataplane::{DataCommand, DataEvent, Dataplane, Offloads};
use crate::helper::HelperClient;
use crate::keys::NoTable;
use crate::sys::clock::Clock;
use crate::sys::tun::TunDevice;
use crate::sys::uevent::Uevents;
use crate::types::{BootId, EndpointKey, Fork, NetworkId, NetworkName, NodeId, Queues, TaskId, Time, UnixTime};
use crate::wire::control::{FromAgent, ToAgent};
use arc_swap::ArcSwap;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt as _;
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a task may take to end after it was asked to, as Docker's default.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);
/// Datagrams of gossip handled before other inputs get their turn.
const GOSSIP_BATCH: usize = 64;
/// How often the wall clock is compared with the time since the host's boot.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often the MTU of the interface under the overlay is read.
const UNDERLAY_CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Milliseconds between two checks that count as a step; slewing stays far below.
const CLOCK_STEP_MS: u64 = 2000;
/// Largest UDP payload.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// What the API reads without asking the loop.
#[derive(Default)]
pub(super) struct View {
    /// The session is open and a first push has come.
    pub(super) settled: bool,
    /// What is wrong; empty if nothing.
    pub(super) error: String,
    pub(super) names: Vec<NetworkName>,
    pub(super) managers: Vec<(NodeId, SocketAddr)>,
    pub(super) tasks: Vec<LocalTask>,
}

/// What the API asks of the loop.
pub(super) enum Request {
    /// What `formic status` shows.
    Status(Sender<Status>),
    /// Put something of this node on an attachable network.
    Attach(TaskId, Box<Standalone>),
    /// End that.
    Detach(TaskId),
    /// The keys of a network's SAs, for Wireshark.
    EspKeys {
        /// The network.
        network: NetworkId,
        /// Whether the underlay is IPv6.
        outer_ipv6: bool,
        /// Who wants them.
        reply: Sender<Result<Zeroizing<String>, NoTable>>,
    },
    /// Ask all peers for an answer now, by gossip and by ESP.
    Probe,
    /// Stop all tasks, then end.
    Stop,
}

/// The outcome of a step that the helper did.
pub(super) enum Outcome {
    /// With the queues of each of its devices.
    Created(TaskId, Result<Vec<Vec<TunDevice>>, StartError>),
    /// With the id of its first process, if there is one.
    Started(TaskId, Result<Option<u32>, StartError>),
    Removed(TaskId),
}

/// A task's command ended.
pub(super) struct TaskExit {
    pub(super) task: TaskId,
    pub(super) code: i32,
    pub(super) error: String,
}

/// Where the loop's inputs come from.
pub(super) struct Inputs {
    pub(super) session: Receiver<SessionEvent>,
    pub(super) requests: Receiver<Request>,
    pub(super) exits: Receiver<TaskExit>,
    pub(super) outcomes: Receiver<Outcome>,
}

/// The session as the loop sees it.
pub(super) struct Link {
    pub(super) outgoing: Sender<FromAgent>,
    /// Cuts the session, so that the next one is told everything.
    pub(super) reset: Sender<()>,
    pub(super) managers: Arc<std::sync::Mutex<Vec<SocketAddr>>>,
    pub(super) heartbeat_secs: Arc<AtomicU32>,
    /// Who renews the certificate hears of the trusted roots when they change.
    pub(super) roots: Sender<Vec<Vec<u8>>>,
    pub(super) told_roots: Vec<Vec<u8>>,
    pub(super) up: bool,
    pub(super) boot_index: Option<u64>,
    pub(super) heard_at: Option<Time>,
    /// Seconds by which this host's clock was ahead of the manager's when last heard.
    pub(super) clock_ahead_secs: Option<i64>,
    pub(super) collector: Collector,
    /// Tells the keeper of the membership who the managers are, when that changes.
    pub(super) told: Sender<Managers>,
    pub(super) known: Managers,
}

/// The loop's state.
pub(super) struct Engine {
    pub(super) boot: BootId,
    pub(super) hostname: String,
    pub(super) clock: Clock,
    pub(super) inner_mtu: u32,
    /// Workers of the data plane: queues of a device.
    pub(super) workers: Queues,
    /// Keys, gossip, records, tables.
    pub(super) core: Core,
    pub(super) gossip_socket: smol::Async<UdpSocket>,
    pub(super) tasks: TaskTable,
    /// What of the tasks this node asked for itself.
    pub(super) standalone: BTreeMap<TaskId, Standalone>,
    pub(super) dataplane: Dataplane,
    /// What this node's operator allows of what kernel and devices can do.
    pub(super) allowed_offloads: Offloads,
    /// The same without what the swarm does not: what the data plane was told.
    pub(super) offloads: Offloads,
    pub(super) helper: HelperClient,
    pub(super) outcomes: Sender<Outcome>,
    pub(super) link: Link,
    pub(super) view: Arc<ArcSwap<View>>,
    pub(super) error: String,
    pub(super) settled: bool,
    pub(super) stopping: bool,
    pub(super) removed: bool,
    /// Tells when the virtual machine was restored from a snapshot; `None` where the kernel has no such messages.
    pub(super) uevents: Option<smol::Async<Uevents>>,
    /// When the wall clock was last compared, and its offset in milliseconds.
    pub(super) clock_check: (Time, i64),
    /// When the MTU of the interface under the overlay was last read.
    pub(super) underlay_checked_at: Option<Time>,
}

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As asked; nothing is left.
    Stopped,
    /// The managers removed this node.
    Removed,
    /// Only a new boot helps. Nothing may be sent with this one's keys any more; its tasks are still there.
    NewBoot {
        /// Why.
        reason: String,
        /// The new life of the managers' state, if that is why.
        fork: Option<Fork>,
    },
    /// Something that must not fail has failed: the daemon must not go on.
    Broken(String),
}

enum Input {
    Session(SessionEvent),
    Request(Request),
    Exit(TaskExit),
    Outcome(Outcome),
    Data(DataEvent),
    Gossip,
    Uevent,
    Timer,
    Lost(&'static str),
}

impl Engine {
    /// Runs until asked to stop.
    pub(super) async fn run(mut self, inputs: Inputs) -> End {
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        loop {
            if let Err(reason) = self.act().await {
                return End::Broken(reason);
            }
            if self.stopping && self.tasks.is_idle() {
                return if self.removed { End::Removed } else { End::Stopped };
            }
            if let Some(reason) = self.core.new_boot.take() {
                let fork = self.core.forked;
                self.abandon(&inputs.outcomes).await;
                return End::NewBoot { reason, fork };
            }
            match self.next_input(&inputs).await {
                Input::Session(SessionEvent::Message(ToAgent::Removed)) => {
                    tracing::warn!("the managers have removed this node from the swarm");
                    self.removed = true;
                    self.stop();
                }
                Input::Session(event) => self.handle_session(event),
                Input::Request(request) => self.handle_request(request).await,
                Input::Exit(exit) => self.tasks.exited(exit.task, exit.code, &exit.error, self.clock.unix()),
                Input::Outcome(outcome) => self.handle_outcome(outcome),
                Input::Data(event) => {
                    if let Err(reason) = self.handle_data(event) {
                        return End::Broken(reason);
                    }
                }
                Input::Gossip => self.receive_gossip(&mut buffer),
                Input::Uevent => self.read_uevents(),
                Input::Timer => {
                    let now = self.clock.now();
                    self.core.handle_timeout(now);
                    self.check_clock(now);
                    self.check_underlay(now);
                }
                Input::Lost(what) => return End::Broken(format!("lost {what}")),
            }
        }
    }

    /// Ends the data plane, so that nothing is sent any more, and waits for the namespaces that are being made.
    async fn abandon(self, outcomes: &Receiver<Outcome>) {
        let Engine { dataplane, mut tasks, clock, .. } = self;
        drop(dataplane);
        end_creations(&mut tasks, outcomes, clock.unix()).await;
    }

    /// The next input; control comes before packets, so that a flood of gossip delays no key.
    async fn next_input(&self, inputs: &Inputs) -> Input {
        let events = self.dataplane.events();
        let control = async {
            let session = async { inputs.session.recv().await.map_or(Input::Lost("the session"), Input::Session) };
            let request = async { inputs.requests.recv().await.map_or(Input::Lost("the API"), Input::Request) };
            session.or(request).await
        };
        let local = async {
            let exit = async { inputs.exits.recv().await.map_or(Input::Lost("the helper process"), Input::Exit) };
            let outcome = async { inputs.outcomes.recv().await.map_or(Input::Lost("the task steps"), Input::Outcome) };
            exit.or(outcome).await
        };
        let packets = async {
            let data = async { events.recv().await.map_or(Input::Lost("the data plane"), Input::Data) };
            let gossip = async {
                let _ = self.gossip_socket.readable().await;
                Input::Gossip
            };
            data.or(gossip).await
        };
        let timer = async {
            let machines = self.core.poll_timeout().into_iter();
            let at = machines.chain([self.clock_check.0 + CLOCK_CHECK_INTERVAL]).min().unwrap_or_default();
            smol::Timer::after(at - self.clock.now()).await;
            Input::Timer
        };
        let uevents = async {
            let Some(uevents) = &self.uevents else { return smol::future::pending().await };
            let _ = uevents.readable().await;
            Input::Uevent
        };
        control.or(uevents).or(local).or(timer).or(packets).await
    }

    fn handle_session(&mut self, event: SessionEvent) {
        let now = self.clock.now();
        match event {
            SessionEvent::Up { boot_index } => {
                tracing::info!(boot_index, "session with the managers is open");
                self.link.up = true;
                self.link.boot_index = Some(boot_index);
                self.link.heard_at = Some(now);
                self.link.collector = Collector::default();
                self.error.clear();
                self.core.handle_session(now);
                self.tasks.report_again();
                self.attach_again();
            }
            SessionEvent::Down { reason } => {
                if self.link.up || self.error != reason {
                    tracing::warn!(%reason, "no session with the managers");
                }
                self.link.up = false;
                self.error = reason;
            }
            SessionEvent::FormerBoot => {
                self.core.new_boot = Some("the managers know a newer boot of this node".into());
            }
            SessionEvent::Message(ToAgent::AttachRefused { id, reason }) => self.attach_refused(id, reason),
            SessionEvent::Message(message) => {
                self.link.heard_at = Some(now);
                if let ToAgent::Alive { at } = message {
                    self.link.clock_ahead_secs = Some(self.clock.unix().0.cast_signed().saturating_sub_unsigned(at.0));
                }
                match self.link.collector.take(message) {
                    Ok(Some(push)) => self.apply(push, now),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::error!(%error, "push refused");
                        self.link.collector = Collector::default();
                    }
                }
            }
        }
    }

    /// The interface under the overlay may be given another MTU at any time.
    fn check_underlay(&mut self, now: Time) {
        if self.underlay_checked_at.is_none_or(|at| now.since(at) >= UNDERLAY_CHECK_INTERVAL) {
            self.underlay_checked_at = Some(now);
            if let Some(mtu_bytes) = self.underlay_mtu() {
                self.core.set_underlay_mtu(mtu_bytes, now);
            }
        }
    }

    /// A wall clock that stepped may mean that this host was restored from a snapshot, and its counters with it.
    fn check_clock(&mut self, now: Time) {
        let (last, offset) = self.clock_check;
        if now.since(last) < CLOCK_CHECK_INTERVAL {
            return;
        }
        let current = self.clock.wall_offset_ms();
        self.clock_check = (now, current);
        if offset.abs_diff(current) > CLOCK_STEP_MS {
            let text = "the wall clock stepped by {} ms: if this host was restored from a snapshot, its keys must not be used again";
            self.core.new_boot = Some(text.replace("{}", &(current - offset).to_string()));
        }
    }

    /// Counters that were restored with the machine's memory must not be used again.
    fn read_uevents(&mut self) {
        let Some(uevents) = &self.uevents else { return };
        match uevents.get_ref().take_generation_change() {
            Ok(true) => self.core.new_boot = Some("this virtual machine was restored from a snapshot or copied".into()),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "the kernel's messages cannot be read: a restored virtual machine is not noticed");
                self.uevents = None;
            }
        }
    }

    async fn handle_request(&mut self, request: Request) {
        match request {
            Request::Status(reply) => {
                let status = self.status().await;
                let _ = reply.try_send(status);
            }
            Request::Attach(id, wanted) => self.attach(id, *wanted),
            Request::Detach(id) => self.detach(id),
            Request::EspKeys { network, outer_ipv6, reply } => {
                let _ = reply.try_send(self.core.keys.wireshark_table(network, outer_ipv6));
            }
            Request::Probe => self.core.probe_all(self.clock.now()),
            Request::Stop => self.stop(),
        }
    }

    /// Ends all tasks; the loop ends when nothing is left of them.
    fn stop(&mut self) {
        self.stopping = true;
        self.tasks.want(&BTreeMap::new(), self.clock.unix());
    }

    /// Acts on a complete push.
    fn apply(&mut self, push: Push, now: Time) {
        let Some(mut tasks) = self.core.apply(push, &mut crate::sys::random::key32, now) else { return };
        self.disown(&mut tasks);
        if let Some(swarm) = &self.core.swarm {
            if let Ok(mut managers) = self.link.managers.lock() {
                *managers = swarm.managers.iter().map(|manager| manager.address).collect();
            }
            if self.link.known != swarm.managers {
                self.link.known.clone_from(&swarm.managers);
                // Only the newest word counts; nobody listens any more when this membership ends.
                let _ = self.link.told.force_send(swarm.managers.clone());
            }
            let offloads = self.allowed_offloads.minus(swarm.disabled_offloads);
            if std::mem::replace(&mut self.offloads, offloads) != offloads {
                tracing::info!(in_use = %offloads, "the swarm's offloads have changed");
                self.core.commands.push(DataCommand::SetOffloads(offloads));
            }
            self.link.heartbeat_secs.store(swarm.heartbeat_secs, std::sync::atomic::Ordering::Relaxed);
            if self.link.told_roots != swarm.roots {
                self.link.told_roots = swarm.roots.clone();
                // The newest is what counts. It fails only when nobody renews any more, at the end.
                let _ = self.link.roots.force_send(swarm.roots.clone());
            }
        }
        if !self.stopping {
            self.tasks.want(&tasks, self.clock.unix());
        }
        self.settled = true;
    }

    fn handle_outcome(&mut self, outcome: Outcome) {
        self.tell_standalone(&outcome);
        let unix = self.clock.unix();
        match outcome {
            Outcome::Created(id, Ok(devices)) => {
                let attachments =
                    self.tasks.iter().find(|(task, _)| task.id == id).map(|(task, _)| task.attachments.clone());
                for (attachment, queues) in attachments.unwrap_or_default().into_iter().zip(devices) {
                    let endpoint = EndpointKey { network: attachment.network, task: id };
                    let vnet = queues.iter().any(|queue| queue.header_len() > 0);
                    self.core.commands.push(DataCommand::AddEndpoint {
                        endpoint,
                        address: attachment.address.addr(),
                        vnet,
                        queues: queues.into_iter().map(OwnedFd::from).collect(),
                    });
                }
                self.tasks.created(id, Ok(()), unix);
            }
            Outcome::Created(id, Err(error)) => self.tasks.created(id, Err(error), unix),
            Outcome::Started(id, outcome) => self.tasks.started(id, outcome, unix),
            Outcome::Removed(id) => self.tasks.removed(id),
        }
    }

    fn handle_data(&mut self, event: DataEvent) -> Result<(), String> {
        match event {
            DataEvent::EndpointLost { endpoint, error } => {
                tracing::warn!(task = %endpoint.task, %error, "a device of the task is lost");
                self.tasks.end_early(endpoint.task);
            }
            DataEvent::WorkerFailed { error } => return Err(format!("the data plane failed: {error}")),
            event => self.core.handle_data(event, self.clock.now()),
        }
        Ok(())
    }

    fn receive_gossip(&mut self, buffer: &mut [u8]) {
        let now = self.clock.now();
        for _ in 0..GOSSIP_BATCH {
            match self.gossip_socket.get_ref().recv_from(buffer) {
                Ok((length, from)) => self.core.gossip.handle_datagram(from, &buffer[..length], now),
                Err(_) => break,
            }
        }
    }

    /// Tells the managers; without a session it is told at the next one.
    pub(super) fn tell(&self, message: FromAgent) {
        // A daemon that stops says nothing of its tasks' ends: they are placed anew once it is down, or by its next boot.
        if self.link.up && !self.stopping && self.link.outgoing.try_send(message).is_err() {
            tracing::warn!("the session's queue is full: the session is cut, the next one is told everything");
            let _ = self.link.reset.try_send(());
        }
    }

    pub(super) fn publish(&self) {
        let tasks = self
            .tasks
            .iter()
            .map(|(assignment, status)| LocalTask { assignment: assignment.clone(), status: status.clone() });
        self.view.store(Arc::new(View {
            settled: self.settled && self.link.up,
            error: if self.link.up { String::new() } else { self.error.clone() },
            names: self.core.names.clone(),
            managers: self.link.known.iter().map(|manager| (manager.node, manager.address)).collect(),
            tasks: tasks.collect(),
        }));
    }
}

/// Waits until no namespace is being made: one that came after all tasks were removed would stay.
async fn end_creations(tasks: &mut TaskTable, outcomes: &Receiver<Outcome>, now: UnixTime) {
    while tasks.is_creating() {
        match outcomes.recv().await {
            Ok(Outcome::Created(id, made)) => tasks.created(id, made.map(drop), now),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TaskState;

    #[test]
    fn a_new_boot_waits_for_the_namespace_that_is_being_made() {
        let task = crate::agent::tasks::tests::assignment(TaskState::Running);
        let mut tasks = TaskTable::default();
        tasks.want(&BTreeMap::from([(task.id, task.clone())]), UnixTime(1));
        let (sender, outcomes) = smol::channel::bounded(2);
        let mut ending = Box::pin(end_creations(&mut tasks, &outcomes, UnixTime(1)));
        sender.try_send(Outcome::Started(task.id, Ok(Some(1)))).ok().unwrap();
        assert!(smol::block_on(smol::future::poll_once(&mut ending)).is_none(), "it did not wait");
        sender.try_send(Outcome::Created(task.id, Ok(Vec::new()))).ok().unwrap();
        assert!(smol::block_on(smol::future::poll_once(&mut ending)).is_some());
        drop(ending);
        assert_eq!(tasks.iter().count(), 1, "it is still to be removed");
    }
}
