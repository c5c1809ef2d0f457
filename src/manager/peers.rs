//! The streams of the consensus between managers. Each manager dials every other one and sends on that stream; what it
//! is sent comes by streams of the others' own. A stream may break at any time, and whatever does not go out at once is
//! dropped and counted: the consensus sends again what matters.

use super::credentials::Credentials;
use super::drops::{ControlDrop, Drops};
use super::handle::Inner;
use super::listener::{Connection, count_stream_error, is_outdated};
use super::tasks::TaskSet;
use crate::cluster::State;
use crate::raft::{MAX_MEMBERS, Member, Membership, Message, Peer};
use crate::tls::{self, Peer as Certificate};
use crate::types::{NodeId, Role};
use crate::wire::control::{Answer, MAX_FRAME_BYTES};
use smol::channel::{Receiver, Sender, bounded};
use smol::future::FutureExt as _;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Messages that wait for one manager: a heartbeat, an answer and a few bulks; more are old news by then.
const QUEUE_MESSAGES: usize = 32;
/// How long a message may take to leave: after that the stream is as good as broken.
const SEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed attempt to reach a manager: a fraction of an election time-out.
const RETRY: Duration = Duration::from_millis(250);
/// A stream that brings nothing for so long is forgotten; its sender opens another when it needs one.
const SILENCE: Duration = Duration::from_secs(120);

struct Outgoing {
    peer: Peer,
    queue: Sender<Message>,
    /// By its own word only: this manager's membership does not list it (yet).
    told: bool,
}

struct Shared {
    me: Member,
    credentials: Arc<Credentials>,
    drops: Arc<Drops>,
    tasks: TaskSet,
    outgoing: Mutex<BTreeMap<Member, Outgoing>>,
}

/// The ways to the other managers. Cheap to clone.
#[derive(Clone)]
pub(super) struct Peers(Arc<Shared>);

impl Peers {
    pub(super) fn new(me: Member, credentials: Arc<Credentials>, drops: Arc<Drops>, tasks: TaskSet) -> Peers {
        Peers(Arc::new(Shared { me, credentials, drops, tasks, outgoing: Mutex::default() }))
    }

    /// This manager's seat.
    pub(super) fn me(&self) -> Member {
        self.0.me
    }

    /// The others are these, from now on.
    pub(super) fn set_members(&self, membership: &Membership) {
        let mut outgoing = self.0.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = |member: &Member| membership.peers.get(member);
        outgoing.retain(|member, there| listed(member).map_or(there.told, |peer| *peer == there.peer));
        for (member, peer) in membership.peers.iter().filter(|(member, _)| **member != self.0.me) {
            let there = outgoing.entry(*member).or_insert_with(|| self.open(*member, *peer, false));
            there.told = false;
        }
    }

    /// A manager that speaks to this one has to be answered, also when this one's membership lags behind.
    fn hear_of(&self, member: Member, peer: Peer) {
        let mut outgoing = self.0.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        let moved = outgoing.get(&member).is_some_and(|there| there.told && there.peer != peer);
        if outgoing.contains_key(&member) && !moved || outgoing.len() >= MAX_MEMBERS * 2 {
            return;
        }
        outgoing.insert(member, self.open(member, peer, true));
    }

    fn open(&self, member: Member, peer: Peer, told: bool) -> Outgoing {
        let (queue, messages) = bounded(QUEUE_MESSAGES);
        self.0.tasks.spawn("managers' stream", send(self.0.clone(), member, peer, messages));
        Outgoing { peer, queue, told }
    }

    /// Sends a message, if its way is open and not crowded.
    pub(super) fn send(&self, to: Member, message: Message) {
        let outgoing = self.0.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        if outgoing.get(&to).is_none_or(|there| there.queue.try_send(message).is_err()) {
            self.0.drops.count(ControlDrop::PeerTooSlow);
        }
    }
}

/// Sends what comes by the queue until that is closed.
async fn send(shared: Arc<Shared>, to: Member, peer: Peer, messages: Receiver<Message>) {
    while let Ok(first) = messages.recv().await {
        let Err(reason) = one_stream(&shared, to, peer, &messages, first).await else { return };
        tracing::debug!(node = %peer.node, address = %peer.address, reason, "a manager is not reached");
        smol::Timer::after(RETRY).await;
        // Old news.
        while messages.try_recv().is_ok() {
            shared.drops.count(ControlDrop::PeerTooSlow);
        }
    }
}

/// One stream, until it breaks.
async fn one_stream(
    shared: &Shared,
    to: Member,
    peer: Peer,
    messages: &Receiver<Message>,
    first: Message,
) -> Result<(), String> {
    let identity = shared.credentials.identity().map_err(|error| error.to_string())?;
    let own = shared.credentials.control_address().ok_or("this node is not in the state")?;
    let opened = tls::open_consensus(peer.address, &identity, peer.node, (shared.me.0, to.0), own).await;
    let mut writer = opened.map_err(|error| error.to_string())?;
    let mut message = first;
    loop {
        let late = async {
            smol::Timer::after(SEND_TIMEOUT).await;
            Err(tls::StreamError::Timeout)
        };
        writer.write(&message).or(late).await.map_err(|error| error.to_string())?;
        message = match messages.recv().await {
            Ok(next) => next,
            Err(_) => return Ok(()),
        };
    }
}

/// Whether it is the certificate of a manager of this swarm, of a node that was not removed.
fn judge_certificate(state: &State, peer: Option<Certificate>) -> Result<Certificate, (ControlDrop, String)> {
    let refuse = |why, reason: &str| Err((why, reason.to_owned()));
    let Some(peer) = peer else {
        return refuse(ControlDrop::NoCertificate, "this request needs the certificate of a manager");
    };
    if peer.cluster != state.cluster.id {
        return refuse(ControlDrop::ForeignCertificate, "the certificate belongs to another swarm");
    }
    if state.gone.contains_key(&peer.node) {
        return Err((ControlDrop::RemovedNode, format!("node {} was removed from the swarm", peer.node)));
    }
    if peer.role != Role::Manager { Err(no_manager(peer.node)) } else { Ok(peer) }
}

fn no_manager(node: NodeId) -> (ControlDrop, String) {
    (ControlDrop::NotManager, format!("node {node} is not a manager of the swarm"))
}

/// Whether a certificate names a node that is a manager now. One that this manager's state does not know yet is
/// believed: its certificate stands under the root, and the state may lag behind.
pub(crate) fn judge(state: &State, peer: Option<Certificate>) -> Result<Certificate, (ControlDrop, String)> {
    let peer = judge_certificate(state, peer)?;
    // A demoted one has its say until the others can decide without it.
    let demoted = state.nodes.get(&peer.node).is_some_and(|node| !state.is_manager(node));
    if demoted { Err(no_manager(peer.node)) } else { Ok(peer) }
}

/// Whether messages of the node in that seat are listened to now. A seat is the log index at which it was given: what
/// this state says of the node is older than a higher one, and the certificate alone counts. A manager that was away
/// could not catch up otherwise while a leader in a new seat leads.
pub(crate) fn judge_seat(
    state: &State,
    certificate: Option<Certificate>,
    from: Member,
) -> Result<NodeId, (ControlDrop, String)> {
    if from.0 > state.index {
        return judge_certificate(state, certificate).map(|peer| peer.node);
    }
    let node = judge(state, certificate)?.node;
    match state.nodes.get(&node) {
        Some(known) if known.seat != from.0 && state.managers.get(&node).is_none_or(|here| here.seat != from.0) => {
            Err((ControlDrop::WrongSeat, format!("node {node} is not in seat {}", from.0)))
        }
        _ => Ok(node),
    }
}

/// Hands the messages of another manager to the consensus.
pub(super) async fn serve(
    inner: Arc<Inner>,
    mut connection: Connection,
    (from, to): (Member, Member),
    address: SocketAddr,
) {
    let certificate = connection.peer;
    let node = match inner.published.with(|state| judge_seat(state, certificate, from)) {
        Ok(node) => node,
        Err((why, reason)) => return connection.refuse(&inner, why, reason).await,
    };
    if to != inner.peers.me() {
        let reason = format!("this manager is in seat {}, not {}", inner.peers.me().0, to.0);
        return connection.refuse(&inner, ControlDrop::WrongSeat, reason).await;
    }
    if connection.writer.write(&Answer::Listening).await.is_err() {
        return;
    }
    inner.peers.hear_of(from, Peer { node, address });
    let Connection { mut reader, permit, roots, .. } = connection;
    drop(permit);
    reader.set_limit(MAX_FRAME_BYTES);
    loop {
        let message = match reader.read::<Message>(SILENCE).await {
            Ok(message) => message,
            Err(error) => {
                if !matches!(error, tls::StreamError::Timeout) {
                    count_stream_error(&inner, &error);
                }
                return;
            }
        };
        if is_outdated(&inner, &roots) {
            return;
        }
        // It may have been demoted or removed meanwhile.
        if let Err((why, reason)) = inner.published.with(|state| judge_seat(state, certificate, from)) {
            inner.drops.count(why);
            tracing::warn!(%node, reason, "a manager is not listened to any more");
            return;
        }
        inner.writer.step(from, message).await;
    }
}
