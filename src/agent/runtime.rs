//! Starts and stops what a node in a swarm runs: the manager (if it is one), the data plane, the session, the engine.

use super::core::{Core, DEFAULT_UNDERLAY_MTU_BYTES};
use super::engine::{End, Engine, Inputs, Link, Request, TaskExit, View};
use super::membership::{Membership, MembershipStore};
use super::model::NodeError;
use super::push::Collector;
use super::renewal;
use super::session::{self, SessionConfig, SessionEvent};
use super::spawn::spawn;
use super::tasks::TaskTable;
use crate::dataplane::{Dataplane, DataplaneConfig, Offloads};
use crate::helper::HelperClient;
use crate::keys::KeysConfig;
use crate::manager::Manager;
use crate::sys;
use crate::sys::clock::Clock;
use crate::sys::uevent::Uevents;
use crate::tls::Identity;
use crate::types::{BootId, Queues, Role};
use crate::wire::control::ManagerView;
use arc_swap::{ArcSwap, ArcSwapOption};
use smol::channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Messages to the managers that wait for the session: 64 tasks' whole lives; when more wait, the session is cut
/// and everything told anew.
const OUTGOING_MESSAGES: usize = 4096;
/// Events that wait for the engine.
const WAITING_EVENTS: usize = 1024;
/// Heartbeat until the managers say otherwise.
const FIRST_HEARTBEAT_SECS: u32 = 5;
/// The least that IPv4 hosts must take (RFC 791).
const MIN_INNER_MTU_BYTES: u32 = 576;

/// What does not change while the daemon runs.
#[derive(Clone)]
pub(super) struct Environment {
    pub(super) clock: Clock,
    pub(super) helper: HelperClient,
    pub(super) hostname: String,
    pub(super) store: MembershipStore,
    /// Worker threads of the data plane, each with a queue of its own.
    pub(super) workers: Queues,
    pub(super) offloads: Offloads,
}

/// The managers, as they say.
pub(super) type Managers = Vec<ManagerView>;

/// A running membership.
pub(super) struct Runtime {
    /// As it was at the start; what has changed since is on disk.
    pub(super) membership: Membership,
    /// The manager that runs here, while this node is one.
    pub(super) manager: ArcSwapOption<Manager>,
    pub(super) identity: Arc<ArcSwap<Identity>>,
    /// Who the managers are, whenever the managers say so.
    pub(super) told: Receiver<Managers>,
    pub(super) view: Arc<ArcSwap<View>>,
    pub(super) requests: Sender<Request>,
    pub(super) exits: Sender<TaskExit>,
    /// Closed with the engine's end in it.
    pub(super) ended: Receiver<End>,
}

impl Runtime {
    /// Starts everything; on an error nothing is left running.
    pub(super) fn start(
        environment: &Environment,
        membership: Membership,
        manager: Option<Manager>,
    ) -> Result<Runtime, NodeError> {
        let clock = environment.clock;
        let identity = Arc::new(ArcSwap::from_pointee(environment.store.identity()?));
        let gossip_socket = bind_gossip(membership.addresses.gossip)?;
        let boot = BootId(sys::random::bytes());
        let (bind, workers) = (membership.addresses.data, environment.workers);
        let config = DataplaneConfig { bind, boot, clock, workers, offloads: environment.offloads };
        let dataplane = Dataplane::start(config).map_err(|error| NodeError::Failed(error.to_string()))?;
        let managers = Arc::new(Mutex::new(membership.managers.clone()));
        let (roots_told, roots) = bounded(1);
        let (link, session, told) = start_session(environment, &membership, &identity, &managers, boot, roots_told);
        let (requests, request_receiver) = bounded(WAITING_EVENTS);
        let (exits, exit_receiver) = bounded(WAITING_EVENTS);
        let (outcomes, outcome_receiver) = bounded(WAITING_EVENTS);
        let view = Arc::new(ArcSwap::from_pointee(View::default()));
        let engine = Engine {
            boot,
            hostname: environment.hostname.clone(),
            clock,
            inner_mtu: inner_mtu(membership.addresses.data)?,
            workers: environment.workers,
            core: Core::new(keys_config(environment, &membership, boot), clock.now(), sys::random::bytes()),
            gossip_socket,
            tasks: TaskTable::default(),
            standalone: BTreeMap::new(),
            dataplane,
            allowed_offloads: environment.offloads,
            offloads: environment.offloads,
            helper: environment.helper.clone(),
            outcomes,
            link,
            view: view.clone(),
            error: String::new(),
            settled: false,
            stopping: false,
            removed: false,
            uevents: open_uevents(),
            clock_check: (clock.now(), clock.wall_offset_ms()),
            underlay_checked_at: None,
        };
        let inputs = Inputs { session, requests: request_receiver, exits: exit_receiver, outcomes: outcome_receiver };
        let (end, ended) = bounded(1);
        let renewal = renewal::run(environment.clone(), identity.clone(), managers, roots, ended.clone());
        spawn("certificate renewal", renewal);
        spawn("engine", async move {
            let _ = end.send(engine.run(inputs).await).await;
        });
        let manager = ArcSwapOption::from_pointee(manager);
        Ok(Runtime { membership, manager, identity, told, view, requests, exits, ended })
    }

    /// Asks the engine to stop and waits until nothing of it is left, or the time is over.
    pub(super) async fn stop(&self, patience: Duration) {
        let _ = self.requests.send(Request::Stop).await;
        if session::within(patience, self.ended.recv()).await.is_none() {
            tracing::warn!("tasks did not end in {patience:?}: the helper kills them");
        }
        if let Some(manager) = self.manager.load_full() {
            manager.stop().await;
        }
    }

    /// What this node may do now.
    pub(super) fn role(&self) -> Role {
        if self.manager.load().is_some() { Role::Manager } else { Role::Worker }
    }
}

fn keys_config(environment: &Environment, membership: &Membership, boot: BootId) -> KeysConfig {
    let Membership { cluster, fork, node, .. } = *membership;
    KeysConfig { cluster, fork, node, boot, queues: environment.workers }
}

/// Starts the session; gives the engine's two ends of it, and the end where it is told who the managers are.
fn start_session(
    environment: &Environment,
    membership: &Membership,
    identity: &Arc<ArcSwap<Identity>>,
    managers: &Arc<Mutex<Vec<SocketAddr>>>,
    boot: BootId,
    roots: Sender<Vec<Vec<u8>>>,
) -> (Link, Receiver<SessionEvent>, Receiver<Managers>) {
    let heartbeat_secs = Arc::new(AtomicU32::new(FIRST_HEARTBEAT_SECS));
    let (outgoing, outgoing_receiver) = bounded(OUTGOING_MESSAGES);
    let (reset, reset_receiver) = bounded(1);
    let (events, event_receiver) = bounded(WAITING_EVENTS);
    let config = SessionConfig {
        membership: membership.clone(),
        identity: identity.clone(),
        boot,
        hostname: environment.hostname.clone(),
        queues: environment.workers,
        managers: managers.clone(),
        heartbeat_secs: heartbeat_secs.clone(),
        reset: reset_receiver,
    };
    spawn("session", session::run(config, outgoing_receiver, events));
    let (told, told_receiver) = bounded(1);
    let link = Link {
        outgoing,
        reset,
        managers: managers.clone(),
        heartbeat_secs,
        roots,
        told_roots: Vec::new(),
        up: false,
        boot_index: None,
        heard_at: None,
        clock_ahead_secs: None,
        collector: Collector::default(),
        told,
        known: Vec::new(),
    };
    (link, event_receiver, told_receiver)
}

/// Not every kernel has them, and only virtual machines need them.
fn open_uevents() -> Option<smol::Async<Uevents>> {
    let opened = Uevents::open().and_then(smol::Async::new);
    opened.map_err(|error| tracing::debug!(%error, "no messages of the kernel about devices")).ok()
}

fn bind_gossip(address: SocketAddr) -> Result<smol::Async<UdpSocket>, NodeError> {
    UdpSocket::bind(address).and_then(smol::Async::new).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another process uses it: is a second daemon running? Choose another with --gossip-port"
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "this host does not have the address: specify one with --advertise-addr"
            }
            _ => "check the address",
        };
        NodeError::Failed(format!("cannot bind the gossip address {address}/udp: {error}; {hint}"))
    })
}

/// The MTU of the devices inside tasks: the underlay's less what ESP in UDP adds.
fn inner_mtu(data: SocketAddr) -> Result<u32, NodeError> {
    let underlay = sys::interface::mtu_of_address(data.ip()).ok().flatten().unwrap_or(DEFAULT_UNDERLAY_MTU_BYTES);
    let inner = crate::wire::esp::inner_mtu_bytes(underlay as usize, data.is_ipv6());
    match u32::try_from(inner) {
        Ok(inner) if inner >= MIN_INNER_MTU_BYTES => Ok(inner),
        _ => Err(NodeError::Invalid(format!(
            "the MTU of the interface with {} is {underlay}: too small for an overlay, at least {} is needed",
            data.ip(),
            MIN_INNER_MTU_BYTES + 100
        ))),
    }
}
