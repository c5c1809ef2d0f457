//! A host: the production's core, task table and data plane, put together as the agent's engine does it. Its helper
//! is simulated: containers are ends of devices.

use super::Planted;
use crate::agent::core::Core;
use crate::agent::push::Collector;
use crate::agent::tasks::{Step, TaskTable};
use crate::dataplane::simulated::{Datagram, Planes, device};
use crate::dataplane::{DataCommand, DataEvent};
use crate::esp::SaIdentity;
use crate::gossip::Transmit;
use crate::keys::KeysConfig;
use crate::types::{EndpointKey, Epoch, EpochPhase, Key32, NetworkId, NodeId, TaskId, Time, UnixTime};
use crate::wire::control::{FromAgent, RingView, ToAgent};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

/// A step that the helper does, and its outcome after a while.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    Created(TaskId),
    Started(TaskId),
    Exited(TaskId),
    Removed(TaskId),
}

/// A container's end of a device.
pub(super) struct Container {
    pub(super) address: IpAddr,
    pub(super) device: OwnedFd,
}

/// What a host wants done after an input.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) gossip: Vec<Transmit>,
    pub(super) data: Vec<Datagram>,
    pub(super) messages: Vec<FromAgent>,
    pub(super) work: Vec<Work>,
    pub(super) session: bool,
}

/// One boot of a node.
pub(super) struct Host {
    pub(super) core: Core,
    pub(super) plane: Planes,
    pub(super) tasks: TaskTable,
    pub(super) containers: BTreeMap<EndpointKey, Container>,
    /// The X25519 secrets of this boot: for the thief of the tests.
    pub(super) secrets: Vec<Key32>,
    /// When the timers of the machines want to be called.
    pub(super) next_time: Option<Time>,
    /// The managers said that this node is no longer of the swarm.
    pub(super) removed: bool,
    collector: Collector,
    rng: StdRng,
    /// How far its wall clock is off.
    wall_off_secs: i64,
    planted: Planted,
}

impl Host {
    pub(super) fn new(
        config: KeysConfig,
        (now, wall_off_secs): (Time, i64),
        mut rng: StdRng,
        planted: Planted,
    ) -> Host {
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        Host {
            core: Core::new(config, now, seed),
            plane: Planes::new(config.boot, config.queues),
            tasks: TaskTable::default(),
            containers: BTreeMap::new(),
            secrets: Vec::new(),
            next_time: None,
            removed: false,
            collector: Collector::default(),
            rng,
            wall_off_secs,
            planted,
        }
    }

    /// The session is open.
    pub(super) fn session_up(&mut self, now: Time) {
        self.collector = Collector::default();
        self.core.handle_session(now);
        self.tasks.report_again();
    }

    /// A message of the managers.
    pub(super) fn message(&mut self, message: ToAgent, now: Time) {
        if let ToAgent::Removed = message {
            self.removed = true;
            self.tasks.want(&BTreeMap::new(), self.wall(now));
            return;
        }
        let Some(mut push) = self.collector.take(message).expect("a push within its bound") else { return };
        if self.planted == Planted::RingAsDifference {
            push.ring = push.ring.filter(|ring| self.is_one_step(ring));
        }
        let (rng, secrets) = (&mut self.rng, &mut self.secrets);
        let mut draw = || {
            let mut bytes = [0; 32];
            rng.fill_bytes(&mut bytes);
            secrets.push(Key32::new(bytes));
            Key32::new(bytes)
        };
        if let Some(tasks) = self.core.apply(push, &mut draw, now).filter(|_| !self.removed) {
            self.tasks.want(&tasks, self.wall(now));
        }
    }

    /// The helper has done something.
    pub(super) fn work_done(&mut self, work: Work, now: Time) {
        let unix = self.wall(now);
        match work {
            Work::Created(id) => {
                self.make_devices(id);
                self.tasks.created(id, Ok(()), unix);
            }
            Work::Started(id) => self.tasks.started(id, Ok(Some(1)), unix),
            Work::Exited(id) => self.tasks.exited(id, 143, "", unix),
            Work::Removed(id) => {
                self.containers.retain(|endpoint, _| endpoint.task != id);
                self.tasks.removed(id);
            }
        }
    }

    fn make_devices(&mut self, id: TaskId) {
        let attachments = self.tasks.iter().find(|(task, _)| task.id == id).map(|(task, _)| task.attachments.clone());
        for attachment in attachments.unwrap_or_default() {
            let endpoint = EndpointKey { network: attachment.network, task: id };
            let address = attachment.address.addr();
            let (tun, device) = device();
            self.containers.insert(endpoint, Container { address, device });
            self.core.commands.push(DataCommand::AddEndpoint { endpoint, address, queues: vec![tun], vnet: false });
        }
    }

    /// To be called after every input: what the machines want, in the engine's order.
    pub(super) fn act(&mut self, now: Time, wanted: &mut Wanted) {
        loop {
            self.core.settle(now);
            while let Some(step) = self.tasks.poll_step() {
                self.take_step(step, wanted);
            }
            wanted.messages.append(&mut self.core.outgoing);
            wanted.session |= std::mem::take(&mut self.core.wants_session);
            wanted.gossip.extend(std::iter::from_fn(|| self.core.gossip.poll_transmit()));
            wanted.data.extend(self.plane.apply(&std::mem::take(&mut self.core.commands), now));
            let mut quiet = true;
            while let Some(event) = self.plane.poll_event() {
                quiet = false;
                self.handle_data(event, now);
            }
            if quiet {
                break;
            }
        }
        self.next_time = self.core.poll_timeout();
    }

    fn handle_data(&mut self, event: DataEvent, now: Time) {
        match event {
            DataEvent::EndpointLost { endpoint, .. } => self.tasks.end_early(endpoint.task),
            DataEvent::SaRefused { identity, reason } => panic!("{identity:?} was refused: {reason}"),
            event => self.core.handle_data(event, now),
        }
    }

    fn take_step(&mut self, step: Step, wanted: &mut Wanted) {
        match step {
            Step::Create(task) => wanted.work.push(Work::Created(task.id)),
            Step::Start(task) => wanted.work.push(Work::Started(task.id)),
            Step::Stop(id) => wanted.work.push(Work::Exited(id)),
            Step::Remove(id) => {
                let of_task = self.containers.keys().copied().filter(|endpoint| endpoint.task == id);
                self.core.commands.extend(of_task.map(|endpoint| DataCommand::RemoveEndpoint { endpoint }));
                wanted.work.push(Work::Removed(id));
            }
            Step::Report(id, status) => wanted.messages.push(FromAgent::Tasks { statuses: vec![(id, status)] }),
            Step::ReportGone(id) => wanted.messages.push(FromAgent::TaskGone { id }),
        }
    }

    fn wall(&self, now: Time) -> UnixTime {
        super::node::wall(now, self.wall_off_secs)
    }

    /// The planted fault: whether a ring follows the one that is held, or is the first.
    fn is_one_step(&self, ring: &RingView) -> bool {
        let held: Vec<Epoch> = self.core.keys.epochs().into_iter().map(|(epoch, _)| epoch).collect();
        let of = |phase| ring.epochs.iter().find(|view| view.phase == phase).map(|view| view.epoch);
        held.is_empty() || of(EpochPhase::Current).is_some_and(|current| held.contains(&current))
    }

    /// Whether anything of another node is still in use here.
    pub(super) fn uses(&self, node: NodeId) -> bool {
        let with = |identity: &SaIdentity| identity.src == node || identity.dst == node;
        self.core.nodes.contains_key(&node)
            || self.core.gossip.members().any(|member| member.node == node)
            || self.core.networks.keys().any(|network| self.core.keys.sending(*network, node).is_some())
            || self.plane.sas().any(|sa| sa.enabled && with(&sa.identity))
    }

    /// Whether this node holds a key of a network, or an SA that is in use.
    pub(super) fn holds(&self, network: NetworkId) -> bool {
        let epochs = self.core.keys.epochs();
        epochs.iter().any(|(epoch, _)| self.core.keys.network_key(*epoch, network).is_some())
    }
}
