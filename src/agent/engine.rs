//! One swarm membership, alive: a single loop that owns the machines of this node (keys, gossip, tasks) and its data
//! plane. Inputs come one at a time; after each, what the machines want done is done (`effects`).
//!
//! It needs no manager to go on: without a session it keeps tasks, tables and keys, and follows signed records.

use super::membership::Membership;
use super::model::{LocalTask, Status};
use super::push::{Collector, Push};
use super::session::SessionEvent;
use super::tasks::{StartError, TaskTable};
use crate::dataplane::{DataCommand, DataEvent, Dataplane, SaRefusal};
use crate::gossip::{Gossip, GossipEvent};
use crate::helper::HelperClient;
use crate::keys::NodeKeys;
use crate::sys::clock::Clock;
use crate::sys::tun::TunDevice;
use crate::types::{BootId, EndpointKey, Fork, NetworkId, NodeId, TaskId, Time};
use crate::wire::control::{FromAgent, NetworkView, SwarmView, ToAgent};
use crate::wire::record::{
    EndpointRecord, NodeRecord, RecordBody, RecordKey, SignedRecord, TrustBundle, VerifiedRecord,
};
use arc_swap::ArcSwap;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// How long a task may take to end after it was asked to, as Docker's default.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(10);
/// Datagrams of gossip handled before other inputs get their turn.
const GOSSIP_BATCH: usize = 64;
/// How often the wall clock is compared with the time since the host's boot.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
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
    pub(super) names: Vec<(NetworkId, String)>,
    pub(super) managers: Vec<(NodeId, SocketAddr)>,
    pub(super) tasks: Vec<LocalTask>,
}

/// What the API asks of the loop.
pub(super) enum Request {
    /// What `formic status` shows.
    Status(Sender<Status>),
    /// Stop all tasks, then end.
    Stop,
}

/// The outcome of a step that the helper did.
pub(super) enum Outcome {
    Created(TaskId, Result<Vec<TunDevice>, StartError>),
    Started(TaskId, Result<u32, StartError>),
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
    pub(super) up: bool,
    pub(super) boot_index: Option<u64>,
    pub(super) heard_at: Option<Time>,
    pub(super) collector: Collector,
}

/// The loop's state.
pub(super) struct Engine {
    pub(super) membership: Membership,
    pub(super) boot: BootId,
    pub(super) hostname: String,
    pub(super) clock: Clock,
    pub(super) inner_mtu: u32,
    pub(super) keys: NodeKeys,
    pub(super) gossip: Gossip,
    pub(super) gossip_socket: smol::Async<UdpSocket>,
    pub(super) tasks: TaskTable,
    pub(super) dataplane: Dataplane,
    pub(super) helper: HelperClient,
    pub(super) outcomes: Sender<Outcome>,
    pub(super) link: Link,
    pub(super) swarm: Option<SwarmView>,
    pub(super) gone: BTreeSet<NodeId>,
    pub(super) networks: BTreeMap<NetworkId, NetworkView>,
    pub(super) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(super) commands: Vec<DataCommand>,
    pub(super) view: Arc<ArcSwap<View>>,
    pub(super) names: Vec<(NetworkId, String)>,
    pub(super) error: String,
    pub(super) settled: bool,
    pub(super) stopping: bool,
    pub(super) removed: bool,
    /// When the wall clock was last compared, and its offset in milliseconds.
    pub(super) clock_check: (Time, i64),
    /// Only a new boot helps: why.
    pub(super) new_boot: Option<String>,
    /// A later life of the managers' state than this node's.
    pub(super) forked: Option<Fork>,
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
            if let Some(reason) = self.new_boot.take() {
                return End::NewBoot { reason, fork: self.forked };
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
                Input::Timer => {
                    let now = self.clock.now();
                    self.keys.handle_timeout(now);
                    self.gossip.handle_timeout(now);
                    self.check_clock(now);
                }
                Input::Lost(what) => return End::Broken(format!("lost {what}")),
            }
        }
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
            let machines = self.keys.poll_timeout().into_iter().chain(self.gossip.poll_timeout());
            let at = machines.chain([self.clock_check.0 + CLOCK_CHECK_INTERVAL]).min().unwrap_or_default();
            smol::Timer::after(at - self.clock.now()).await;
            Input::Timer
        };
        control.or(local).or(timer).or(packets).await
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
                self.keys.report_again(now);
                self.tasks.report_again();
            }
            SessionEvent::Down { reason } => {
                if self.link.up || self.error != reason {
                    tracing::warn!(%reason, "no session with the managers");
                }
                self.link.up = false;
                self.error = reason;
            }
            SessionEvent::Message(message) => {
                self.link.heard_at = Some(now);
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
            self.new_boot = Some(text.replace("{}", &(current - offset).to_string()));
        }
    }

    async fn handle_request(&mut self, request: Request) {
        match request {
            Request::Status(reply) => {
                let status = self.status().await;
                let _ = reply.try_send(status);
            }
            Request::Stop => self.stop(),
        }
    }

    /// Ends all tasks; the loop ends when nothing is left of them.
    fn stop(&mut self) {
        self.stopping = true;
        self.tasks.want(&BTreeMap::new(), self.clock.unix());
    }

    /// Acts on a complete push: keys first, so that an endpoint never appears before it can be sealed for.
    fn apply(&mut self, push: Push, now: Time) {
        let Push { swarm, ring, names, networks, tasks, records } = push;
        let Some(swarm) = swarm.filter(|swarm| self.is_of_our_fork(swarm)) else { return };
        self.apply_swarm(swarm, now);
        self.names = names;
        let new: BTreeMap<NetworkId, NetworkView> = networks.iter().map(|view| (view.id, view.clone())).collect();
        let networks_changed = new != self.networks;
        self.apply_networks(new);
        self.keys.handle_networks(&networks, now);
        if let Some(ring) = ring {
            self.keys.handle_ring(ring, &mut crate::sys::random::key32, now);
        }
        self.hand_over_key_events();
        let records = records.iter().filter_map(|encoded| match SignedRecord::parse(encoded) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::error!(%error, "a manager sent a malformed record");
                None
            }
        });
        let records: Vec<SignedRecord> = records.collect();
        if let Some(own) = records.iter().rev().find(|record| record.key() == RecordKey::Node(self.membership.node))
            && let Err(error) = self.gossip.set_own_record(own.clone(), now)
        {
            tracing::warn!(%error, "this node's own record was not taken");
        }
        self.gossip.insert_records(records, now);
        if networks_changed {
            self.rescan_endpoints();
        }
        if !self.stopping {
            self.tasks.want(&tasks, self.clock.unix());
        }
        self.settled = true;
    }

    /// A lower fork is refused; a higher one ends this life.
    fn is_of_our_fork(&mut self, swarm: &SwarmView) -> bool {
        if swarm.fork > self.membership.fork {
            self.forked = Some(swarm.fork);
            self.new_boot = Some(format!("the swarm's state began a new life ({})", swarm.fork.0));
        } else if swarm.fork < self.membership.fork {
            tracing::error!(
                theirs = swarm.fork.0,
                ours = self.membership.fork.0,
                "a manager speaks for an older life of the swarm's state: refused"
            );
        }
        swarm.fork == self.membership.fork
    }

    fn apply_swarm(&mut self, swarm: SwarmView, now: Time) {
        if let Ok(mut managers) = self.link.managers.lock() {
            *managers = swarm.managers.iter().map(|(_, address)| *address).collect();
        }
        self.link.heartbeat_secs.store(swarm.heartbeat_secs, std::sync::atomic::Ordering::Relaxed);
        self.gossip.set_trust(TrustBundle { keys: swarm.attestation.clone(), fork: swarm.fork });
        self.remove_nodes(&swarm.gone, now);
        self.swarm = Some(swarm);
    }

    /// Drops all that belongs to removed nodes, at once.
    fn remove_nodes(&mut self, gone: &[NodeId], now: Time) {
        let news: Vec<NodeId> = gone.iter().copied().filter(|node| self.gone.insert(*node)).collect();
        if news.is_empty() {
            return;
        }
        for &node in &news {
            tracing::info!(%node, "node is gone: its records, keys and SAs are dropped");
            self.gossip.remove_node(node);
            self.nodes.remove(&node);
            self.commands.extend(self.networks.keys().map(|&network| DataCommand::RemovePeer { network, peer: node }));
        }
        let all: Vec<NodeId> = self.gone.iter().copied().collect();
        self.keys.handle_gone(&all, now);
    }

    fn apply_networks(&mut self, new: BTreeMap<NetworkId, NetworkView>) {
        for id in self.networks.keys().filter(|id| !new.contains_key(id)) {
            self.commands.push(DataCommand::RemoveNetwork { network: *id });
        }
        for view in new.values().filter(|view| !self.networks.contains_key(&view.id)) {
            self.commands.push(DataCommand::SetNetwork {
                network: view.id,
                transform: view.transform,
                subnet: Some(view.subnet),
            });
        }
        self.networks = new;
    }

    fn handle_outcome(&mut self, outcome: Outcome) {
        let unix = self.clock.unix();
        match outcome {
            Outcome::Created(id, Ok(devices)) => {
                let attachments =
                    self.tasks.iter().find(|(task, _)| task.id == id).map(|(task, _)| task.attachments.clone());
                for (attachment, tun) in attachments.unwrap_or_default().into_iter().zip(devices) {
                    let endpoint = EndpointKey { network: attachment.network, task: id };
                    let vnet = tun.header_len() > 0;
                    self.commands.push(DataCommand::AddEndpoint {
                        endpoint,
                        address: attachment.address.addr(),
                        vnet,
                        tun: tun.into(),
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
        let now = self.clock.now();
        match event {
            DataEvent::Authenticated { identity } => self.keys.handle_authenticated(&identity, now),
            DataEvent::Control { identity, message } => self.keys.handle_control(&identity, message, now),
            DataEvent::SoftLimit { .. } => self.tell(FromAgent::RotateEarly),
            DataEvent::EndpointLost { endpoint, error } => {
                tracing::warn!(task = %endpoint.task, %error, "a device of the task is lost");
                self.tasks.device_lost(endpoint.task);
            }
            DataEvent::SaRefused { identity, reason } => {
                tracing::error!(peer = %identity.dst, %reason, "an SA was refused");
                if let SaRefusal::Install(error) = reason
                    && error.needs_new_boot()
                {
                    self.new_boot = Some(error.to_string());
                }
            }
            DataEvent::WorkerFailed { error } => return Err(format!("the data plane failed: {error}")),
        }
        Ok(())
    }

    fn receive_gossip(&mut self, buffer: &mut [u8]) {
        let now = self.clock.now();
        for _ in 0..GOSSIP_BATCH {
            match self.gossip_socket.get_ref().recv_from(buffer) {
                Ok((length, from)) => self.gossip.handle_datagram(from, &mut buffer[..length], now),
                Err(_) => break,
            }
        }
    }

    pub(super) fn handle_gossip(&mut self, event: GossipEvent) {
        let now = self.clock.now();
        match event {
            GossipEvent::RecordAccepted(record) => self.handle_record(&record, now),
            GossipEvent::NodeDown { node, .. } => tracing::info!(%node, "gossip: node does not answer"),
            GossipEvent::NodeUp { node, .. } => tracing::info!(%node, "gossip: node answers"),
            GossipEvent::ClonedIdentity => {
                self.new_boot = Some(
                    "another host uses this node's identity (a running node must not be cloned): a new boot is needed"
                        .into(),
                );
            }
            GossipEvent::NewBootNeeded => {
                self.new_boot = Some("gossip ran out of room for its counters: a new boot is needed".into())
            }
            GossipEvent::NeedRing { epoch } => {
                tracing::warn!(%epoch, "peers use an epoch that this node lacks");
                if !self.link.up {
                    let _ = self.link.reset.try_send(());
                }
            }
            GossipEvent::RecordExpired(RecordKey::Endpoint(_) | RecordKey::Ring | RecordKey::Node(_))
            | GossipEvent::NodeSuspect { .. } => {}
        }
    }

    fn handle_record(&mut self, record: &VerifiedRecord, now: Time) {
        match record.body() {
            RecordBody::Node(node) => self.handle_node_record(node.clone(), now),
            RecordBody::Gone(node) => self.remove_nodes(&[*node], now),
            RecordBody::Endpoint(endpoint) => self.handle_endpoint(record, &endpoint.clone()),
            RecordBody::Ring(ring) => self.keys.handle_activation(ring.active, now),
        }
    }

    fn handle_node_record(&mut self, node: NodeRecord, now: Time) {
        if node.node == self.membership.node || self.gone.contains(&node.node) {
            return;
        }
        if !self.keys.handle_record(&node, now) {
            tracing::error!(node = %node.node, "a second, different public for one boot and epoch: refused");
            return;
        }
        self.commands.push(DataCommand::SetPeerAddress { peer: node.node, address: node.addresses.data });
        self.nodes.insert(node.node, node);
    }

    /// Enters an endpoint into the data plane's tables, if it is on a network of this node.
    fn handle_endpoint(&mut self, record: &VerifiedRecord, endpoint: &EndpointRecord) {
        let network = endpoint.key.network;
        if endpoint.node == self.membership.node || !self.networks.contains_key(&network) {
            return;
        }
        let Some(key) = self.keys.network_key(record.version().epoch, network) else { return };
        match record.open_endpoint(key, self.membership.cluster) {
            Ok(body) => self.commands.push(DataCommand::SetRemote {
                network,
                address: body.address,
                peer: endpoint.node,
                generation: endpoint.generation,
                alive: endpoint.alive,
            }),
            Err(error) => tracing::error!(%error, "an endpoint record does not open with its network's key"),
        }
    }

    /// Enters the endpoints that were known before their network was.
    fn rescan_endpoints(&mut self) {
        let records: Vec<VerifiedRecord> =
            self.gossip.records().filter(|record| record.endpoint().is_some()).cloned().collect();
        for record in &records {
            if let Some(endpoint) = record.endpoint() {
                self.handle_endpoint(record, &endpoint.clone());
            }
        }
    }

    /// Tells the managers; without a session it is told at the next one.
    pub(super) fn tell(&self, message: FromAgent) {
        if self.link.up && self.link.outgoing.try_send(message).is_err() {
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
            names: self.names.clone(),
            managers: self.swarm.as_ref().map(|swarm| swarm.managers.clone()).unwrap_or_default(),
            tasks: tasks.collect(),
        }));
    }
}
