//! The session of a node: takes its news as commands, hands it the desired state.

use super::admission::{check_hello, identify};
use super::drops::ControlDrop;
use super::handle::{Inner, ManagerError};
use super::limits::{Allowance, Bucket};
use super::listener::{Connection, Reader, Writer, count_stream_error, is_outdated};
use super::news::{self, Speaker, window};
use super::push;
use crate::cluster::{Command, Refusal, Reply};
use crate::tls::StreamError;
use crate::types::{BootId, NodeId};
use crate::wire::control::{Answer, FromAgent, SessionRequest, ToAgent};
use crate::wire::frame;
use smol::channel::{Receiver, Sender, bounded};
use smol::future::FutureExt as _;
use smol::lock::Mutex as AsyncMutex;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two pushes of a session: changes in between are pushed together.
const PUSH_GAP: Duration = Duration::from_millis(20);
/// Proposals of one session at once, and the time until one more is taken: a node cannot flood the log.
const PROPOSALS_BURST: u32 = 500;
const PROPOSAL_REFILL: Duration = Duration::from_millis(5);

/// New boots of one node: an honest daemon that is started again and again gets in after a while, a hostile node cannot
/// fill the log and its peers' tables.
const NEW_BOOTS: Allowance = Allowance { burst: 10.0, refill: Duration::from_secs(30) };
/// What one node may attach: all that it may have at once, as after a restart. One that attaches and detaches without end
/// cannot fill the log and its peers' tables.
const ATTACHES: Allowance = Allowance { burst: 1024.0, refill: Duration::from_secs(10) };
/// How long a session may take to show that it lives, when another one of its boot is to be opened.
const PROBE_TIME: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const PROBE_LOOK: Duration = Duration::from_millis(20);

/// Why a session ends from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// A newer connection of the node took its place, or the node left.
    Replaced,
    /// The node was removed from the swarm.
    Removed,
    /// This manager leads no more: the node is to look for the one that does.
    LeadLost,
}

struct Open {
    id: u64,
    boot: BootId,
    heard: Instant,
    /// Its boot is committed.
    committed: bool,
    end: Sender<End>,
    probe: Sender<()>,
}

/// What a session is told by others.
struct Signals {
    end: Receiver<End>,
    /// It is to show that it lives.
    probe: Receiver<()>,
}

#[derive(Default)]
struct Table {
    next: u64,
    open: BTreeMap<NodeId, Open>,
    /// When something was last heard of a node, also after its session.
    heard: BTreeMap<NodeId, Instant>,
    /// How many new boots each node may begin.
    boots: BTreeMap<NodeId, Bucket>,
    /// How often each node may still attach something.
    attaches: BTreeMap<NodeId, Bucket>,
}

/// What is known of a node's sessions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Heard {
    /// It has a session whose boot is committed.
    pub(super) open: bool,
    /// When it last said something.
    pub(super) last: Option<Instant>,
}

/// The open sessions: at most one of a node.
#[derive(Default)]
pub(super) struct Sessions(Mutex<Table>);

impl Sessions {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the node's place, unless a session of the same boot shows that it lives: then there are two of one
    /// (node, boot), and the second gets nothing. One whose connection broke unnoticed does not answer.
    async fn claim(self: &Arc<Self>, node: NodeId, boot: BootId) -> Option<(Claim, Signals)> {
        if self.lives(node, boot).await { None } else { Some(self.take(node, boot)) }
    }

    /// Whether a session of this boot answers now.
    async fn lives(&self, node: NodeId, boot: BootId) -> bool {
        let asked = Instant::now();
        // `None`: there is none (any more).
        let heard = || self.table().open.get(&node).filter(|open| open.boot == boot).map(|open| open.heard);
        if let Some(open) = self.table().open.get(&node).filter(|open| open.boot == boot) {
            // Full: it is being asked.
            let _ = open.probe.try_send(());
        }
        while let Some(heard) = heard() {
            if heard > asked || asked.elapsed() >= PROBE_TIME {
                return heard > asked;
            }
            smol::Timer::after(PROBE_LOOK).await;
        }
        false
    }

    /// Takes the node's place from whatever session has it.
    fn take(self: &Arc<Self>, node: NodeId, boot: BootId) -> (Claim, Signals) {
        let mut table = self.table();
        if let Some(other) = table.open.get(&node) {
            // Full only when it has been told already.
            let _ = other.end.try_send(End::Replaced);
        }
        let id = table.next;
        table.next += 1;
        let ((end, ended), (probe, probed)) = (bounded(1), bounded(1));
        table.open.insert(node, Open { id, boot, heard: Instant::now(), committed: false, end, probe });
        (Claim { sessions: self.clone(), node, id }, Signals { end: ended, probe: probed })
    }

    /// Whether the node may begin one more boot now.
    fn may_begin_boot(&self, node: NodeId) -> bool {
        let now = Instant::now();
        self.table().boots.entry(node).or_insert_with(|| Bucket::new(&NEW_BOOTS, now)).take(&NEW_BOOTS, now)
    }

    /// Whether the node may attach one more now; over all its sessions.
    pub(super) fn may_attach(&self, node: NodeId) -> bool {
        let now = Instant::now();
        self.table().attaches.entry(node).or_insert_with(|| Bucket::new(&ATTACHES, now)).take(&ATTACHES, now)
    }

    /// What is known of a node.
    pub(super) fn heard(&self, node: NodeId) -> Heard {
        let table = self.table();
        Heard { open: table.open.get(&node).is_some_and(|open| open.committed), last: table.heard.get(&node).copied() }
    }

    /// Ends the session of a removed node.
    pub(super) fn remove(&self, node: NodeId) {
        let mut table = self.table();
        if let Some(open) = table.open.get(&node) {
            let _ = open.end.try_send(End::Removed);
        }
        table.heard.remove(&node);
        table.boots.remove(&node);
        table.attaches.remove(&node);
    }

    /// Ends all sessions: another manager leads.
    pub(super) fn end_all(&self) {
        let mut table = self.table();
        for open in std::mem::take(&mut table.open).into_values() {
            let _ = open.end.try_send(End::LeadLost);
        }
        table.heard.clear();
    }

    /// Ends the session of a node that leaves.
    pub(super) fn left(&self, node: NodeId) {
        let mut table = self.table();
        if let Some(open) = table.open.remove(&node) {
            let _ = open.end.try_send(End::Replaced);
        }
    }
}

/// A session's place in the table; it is free again when this is dropped.
struct Claim {
    sessions: Arc<Sessions>,
    node: NodeId,
    id: u64,
}

impl Claim {
    fn hear(&self, committed: bool) {
        let now = Instant::now();
        let mut table = self.sessions.table();
        let Some(open) = table.open.get_mut(&self.node).filter(|open| open.id == self.id) else { return };
        open.heard = now;
        open.committed |= committed;
        table.heard.insert(self.node, now);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = self.sessions.table();
        if table.open.get(&self.node).is_some_and(|open| open.id == self.id) {
            table.open.remove(&self.node);
        }
    }
}

/// Answers a session request and, if it may, serves the session until it ends.
pub(super) async fn serve(inner: Arc<Inner>, connection: Connection, request: SessionRequest) {
    let node = match identify(&inner, connection.peer) {
        Ok(peer) => peer.node,
        Err((why, reason)) => return connection.refuse(&inner, why, reason).await,
    };
    if let Err(reason) = check_hello(&request.hostname, &request.software, &request.addresses) {
        return connection.refuse(&inner, ControlDrop::SessionRefused, reason).await;
    }
    let boot = request.boot;
    if is_new_boot(&inner, node, boot) && !inner.sessions.may_begin_boot(node) {
        let pause = NEW_BOOTS.refill.as_secs();
        let reason = format!(
            "node {node} began too many boots, one in {pause} s is admitted: find out why its daemon starts again and again"
        );
        return connection.refuse(&inner, ControlDrop::BootRateLimited, reason).await;
    }
    let Some((claim, signals)) = inner.sessions.claim(node, boot).await else {
        tracing::error!(
            %node, %boot, from = %connection.from,
            "ALARM: a second session of one node and boot: was the host cloned while it ran?"
        );
        let reason = format!("node {node} has a live session of this boot: was the host cloned while it ran?");
        return connection.refuse(&inner, ControlDrop::SecondSession, reason).await;
    };
    let open = Command::OpenSession {
        node,
        boot,
        hostname: request.hostname,
        software: request.software,
        addresses: request.addresses,
        machine: request.machine,
        queues: request.queues,
    };
    let boot_index = match inner.propose(open).await {
        Ok(Reply::BootIndex(index)) => index,
        Ok(Reply::Done) => 0,
        Err(ManagerError::Refused(refusal @ Refusal::Forbidden(_))) => {
            drop(claim);
            return connection.refuse(&inner, ControlDrop::FormerBoot, refusal.to_string()).await;
        }
        Err(error) => {
            drop(claim);
            return connection.refuse(&inner, ControlDrop::SessionRefused, error.to_string()).await;
        }
    };
    claim.hear(true);
    let (roots, speaker) = (connection.roots.clone(), Mutex::new(Speaker::new(node, boot)));
    let session = Session { inner, node, boot, roots, claim, speaker };
    session.run(connection, boot_index, signals).await;
}

/// Whether the log has to grow for this boot.
fn is_new_boot(inner: &Inner, node: NodeId, boot: BootId) -> bool {
    inner.published.with(|state| {
        state.nodes.get(&node).is_some_and(|node| node.boot != Some(boot) && !node.former_boots.contains(&boot))
    })
}

struct Session {
    inner: Arc<Inner>,
    node: NodeId,
    boot: BootId,
    /// The roots that were trusted when the node's certificate was verified.
    roots: Arc<[Vec<u8>]>,
    claim: Claim,
    speaker: Mutex<Speaker>,
}

impl Session {
    async fn run(&self, connection: Connection, boot_index: u64, signals: Signals) {
        let Connection { from, mut reader, mut writer, permit, .. } = connection;
        let opened = writer.write(&Answer::Opened { boot_index }).await;
        drop(permit);
        tracing::info!(node = %self.node, boot = %self.boot, %from, boot_index, "session open");
        let writer = AsyncMutex::new(writer);
        let why = match opened {
            Err(error) => error.to_string(),
            Ok(()) => {
                let heard = async { self.listen(&mut reader, &writer).await.to_string() };
                let told = async { self.tell(&writer).await.to_string() };
                let ended = async { self.end(&writer, &signals.end).await };
                let probed = async { self.show_life(&writer, &signals.probe).await.to_string() };
                heard.or(told).or(ended).or(probed).await
            }
        };
        tracing::info!(node = %self.node, boot = %self.boot, why, "session over");
    }

    /// Waits until the session must end.
    async fn end(&self, writer: &AsyncMutex<Writer>, ended: &Receiver<End>) -> String {
        match ended.recv().await {
            Ok(End::Removed) => {
                let mut writer = writer.lock().await;
                let told = writer.write(&ToAgent::Removed).await;
                let closed = writer.close().await;
                format!("the node was removed (told: {}, closed: {})", told.is_ok(), closed.is_ok())
            }
            Ok(End::LeadLost) => "another manager leads the swarm now".to_owned(),
            Ok(End::Replaced) => "a newer session took its place, or the node left".to_owned(),
            Err(_) => "the manager is stopping".to_owned(),
        }
    }

    /// Asks the agent for a word whenever somebody else claims to be it.
    async fn show_life(&self, writer: &AsyncMutex<Writer>, probe: &Receiver<()>) -> StreamError {
        while probe.recv().await.is_ok() {
            if let Err(error) = writer.lock().await.write(&ToAgent::Probe).await {
                return error;
            }
        }
        // Another session has the place: `end` says so.
        smol::future::pending().await
    }

    /// Takes what the agent says, until it says nothing for a window.
    async fn listen(&self, reader: &mut Reader, writer: &AsyncMutex<Writer>) -> StreamError {
        let mut pace = Pace::new();
        loop {
            let window = self.inner.published.with(window);
            let message = match reader.read::<FromAgent>(window).await {
                Ok(message) => message,
                Err(error) => {
                    count_stream_error(&self.inner, &error);
                    return error;
                }
            };
            self.claim.hear(false);
            if let FromAgent::Heartbeat = message {
                if let Err(error) = writer.lock().await.write(&ToAgent::Alive { at: super::wall_clock() }).await {
                    return error;
                }
                continue;
            }
            let attaching = if let FromAgent::Attach { id, .. } = &message { Some(*id) } else { None };
            let Some(command) = self.command(message).transpose() else { continue };
            pace.step().await;
            let outcome = match command {
                Ok(command) => self.inner.propose(command).await,
                Err(refusal) => Err(ManagerError::Refused(refusal)),
            };
            match outcome {
                Ok(_) => {}
                Err(ManagerError::Refused(refusal)) if let Some(id) = attaching => {
                    let reason = refusal.to_string();
                    if let Err(error) = writer.lock().await.write(&ToAgent::AttachRefused { id, reason }).await {
                        return error;
                    }
                }
                Err(ManagerError::Refused(refusal)) => {
                    tracing::warn!(node = %self.node, boot = %self.boot, %refusal, "a node's report was refused");
                }
                Err(error) => return StreamError::Io(std::io::Error::other(error.to_string())),
            }
        }
    }

    /// What the message asks for; a refusal when it is known already that it will not be given.
    fn command(&self, message: FromAgent) -> Result<Option<Command>, Refusal> {
        let mut count = |drop| self.inner.drops.count(drop);
        let command = self.inner.published.with(|state| {
            let mut speaker = self.speaker.lock().unwrap_or_else(PoisonError::into_inner);
            let command = news::command(state, &mut speaker, message, super::wall_clock(), &mut count);
            if let Some(Command::Attach { node, boot, id, request }) = &command {
                state.may_attach(*node, *boot, *id, request)?;
            }
            Ok(command)
        })?;
        if matches!(command, Some(Command::Attach { .. })) && !self.inner.sessions.may_attach(self.node) {
            self.inner.drops.count(ControlDrop::AttachRateLimited);
            let pause = ATTACHES.refill.as_secs();
            return Err(Refusal::NotNow(format!("this node attached too often: one in {pause} s is admitted now")));
        }
        Ok(command)
    }

    /// Hands out the desired state now and after each change.
    async fn tell(&self, writer: &AsyncMutex<Writer>) -> StreamError {
        let changed = self.inner.published.watch();
        let (mut said, mut cursor) = (None, 0);
        loop {
            if is_outdated(&self.inner, &self.roots) {
                let why = "the former root certificate is no longer trusted: the node has to connect again";
                return StreamError::Io(std::io::Error::other(why));
            }
            match self.compose(cursor) {
                // Removed: it gets nothing of the keys that shall shut it out, and `end` tells it so.
                Ok(None) => smol::future::pending().await,
                Ok(Some(push)) => {
                    if said != Some(push.digest) || push.records {
                        if let Err(error) = writer.lock().await.write_frames(&push.frames).await {
                            return error;
                        }
                        said = Some(push.digest);
                        cursor = push.cursor;
                    }
                }
                Err(error) => {
                    tracing::error!(node = %self.node, %error, "the desired state does not fit the protocol");
                }
            }
            smol::Timer::after(PUSH_GAP).await;
            if changed.recv().await.is_err() {
                return StreamError::Closed;
            }
        }
    }

    fn compose(&self, cursor: u64) -> Result<Option<push::Push>, frame::FrameError> {
        self.inner.published.with(|state| {
            if !state.nodes.contains_key(&self.node) {
                return Ok(None);
            }
            let mut book = self.inner.book.lock().unwrap_or_else(PoisonError::into_inner);
            book.update(state);
            push::compose(state, self.node, &book, cursor).map(Some)
        })
    }
}

/// Slows a session down that proposes too much.
struct Pace {
    /// When the next proposal would be due if all came evenly.
    due: Instant,
}

impl Pace {
    fn new() -> Pace {
        Pace { due: Instant::now() }
    }

    async fn step(&mut self) {
        let now = Instant::now();
        let slack = PROPOSAL_REFILL * PROPOSALS_BURST;
        self.due = self.due.max(now.checked_sub(slack).unwrap_or(now)) + PROPOSAL_REFILL;
        if self.due > now {
            smol::Timer::after(self.due - now).await;
        }
    }
}
