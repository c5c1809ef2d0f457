//! The sessions between nodes and the leader: reliable and in order while they last, but breakable at any moment. The
//! node's end behaves as the agent's session: it asks one manager after the other, follows to the leader, beats, misses
//! the manager's word, tries again.

use super::host::Wanted;
use super::leading::Hello;
use super::manager::Said;
use super::{Swarm, queues_of};
use crate::agent::seek::{MAX_PAUSE, Seek, silence};
use crate::tls::LEADER_STEPS;
use crate::types::{BootId, NodeId, Time};
use crate::wire::control::{FromAgent, ToAgent};
use crate::wire::frame;
use rand::RngExt;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// How long an attempt may take: a broken connection is found sooner than by the production's patience.
const ATTEMPT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening(u64),
    Open(u64),
}

/// A node's end of its session.
pub(super) struct Link {
    phase: Phase,
    seek: Seek,
    /// The node whose manager is asked, or has the session.
    target: usize,
    /// Managers asked in a row, each named by the one before.
    steps: usize,
    /// When to try, to give up an attempt, or to beat.
    at: Time,
    heard: Time,
    /// Nothing passes between the node and any manager.
    pub(super) cut: bool,
    /// Sessions up to this one have lost something: nothing of them comes through any more.
    dead: u64,
    /// Since when the session is open.
    pub(super) since: Option<Time>,
    /// What is under way, in order: session, arrival.
    to_manager: VecDeque<(u64, Time, Up)>,
    to_node: VecDeque<(u64, Time, Down)>,
}

enum Up {
    Open(BootId),
    Message(FromAgent),
}

enum Down {
    Opened,
    Refused,
    /// Another manager leads.
    NotLeader(Option<SocketAddr>),
    Closed,
    Frame(Vec<u8>),
}

impl Link {
    pub(super) fn new(now: Time) -> Link {
        Link {
            phase: Phase::Idle,
            seek: Seek::default(),
            target: 0,
            steps: 0,
            at: now,
            heard: now,
            cut: false,
            dead: 0,
            since: None,
            to_manager: VecDeque::new(),
            to_node: VecDeque::new(),
        }
    }

    /// The node begins anew, in another boot.
    pub(super) fn reset(&mut self, now: Time) {
        *self = Link { cut: self.cut, dead: self.dead, ..Link::new(now) };
    }

    /// What is under way is lost, and nothing comes after it in any session up to this number: each end finds out by
    /// itself.
    pub(super) fn break_silently(&mut self, sessions: u64) {
        self.dead = self.dead.max(sessions);
        self.to_manager.clear();
        self.to_node.clear();
    }

    /// The node's end is told that the session is over.
    fn down(&mut self, now: Time) {
        let opened = matches!(self.phase, Phase::Open(_));
        (self.phase, self.at, self.since) = (Phase::Idle, now + self.seek.pause(opened), None);
    }

    fn next_time(&self) -> Time {
        let up = self.to_manager.front().map(|(_, at, _)| *at);
        let down = self.to_node.front().map(|(_, at, _)| *at);
        up.into_iter().chain(down).chain([self.at]).min().unwrap_or(self.at)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    fn session(&self) -> Option<u64> {
        match self.phase {
            Phase::Idle => None,
            Phase::Opening(session) | Phase::Open(session) => Some(session),
        }
    }
}

impl Swarm {
    /// Since when a node has had a session that works, both ways, with the manager that leads.
    pub(super) fn in_touch_since(&self, number: usize) -> Option<Time> {
        let (node, leader) = (&self.nodes[number], self.leader?);
        let Phase::Open(session) = node.link.phase else { return None };
        let leading = self.nodes[leader.number].manager.as_ref()?.leading.as_ref()?;
        let works =
            node.link.target == leader.number && self.passes(number, session) && leading.has_session(node.id, session);
        node.link.since.filter(|_| works)
    }

    pub(super) fn next_link_time(&self) -> Option<Time> {
        let running = self.nodes.iter().filter(|node| node.host.is_some());
        running.map(|node| node.link.next_time()).min()
    }

    /// Cuts a node from the managers, or mends that.
    pub(super) fn cut_session(&mut self, number: usize, cut: bool) {
        let link = &mut self.nodes[number].link;
        link.cut = cut;
        link.break_silently(self.sessions);
    }

    /// What is due on the sessions.
    pub(super) fn turn_links(&mut self) {
        for number in 0..self.nodes.len() {
            while let Some((session, up)) = pop_due(&mut self.nodes[number].link.to_manager, self.now) {
                self.arrive_at_manager(number, session, up);
            }
            while let Some((session, down)) = pop_due(&mut self.nodes[number].link.to_node, self.now) {
                self.arrive_at_node(number, session, down);
            }
            if self.nodes[number].host.is_some() && self.nodes[number].link.at <= self.now {
                self.link_timer(number);
            }
        }
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.state().cluster.spec.heartbeat_secs.into())
    }

    fn link_timer(&mut self, number: usize) {
        let (now, beat) = (self.now, self.heartbeat());
        let node = &mut self.nodes[number];
        let link = &mut node.link;
        match link.phase {
            Phase::Idle => match link.seek.next(&node.known) {
                Some(manager) => {
                    link.steps = 0;
                    self.attempt(number, manager);
                }
                None => link.at = now + MAX_PAUSE,
            },
            Phase::Opening(_) => link.down(now),
            Phase::Open(_) if now.since(link.heard) >= silence(beat) => link.down(now),
            Phase::Open(session) => {
                link.at = now + beat;
                self.send_up(number, session, Up::Message(FromAgent::Heartbeat));
            }
        }
    }

    /// Asks the manager there for a session.
    fn attempt(&mut self, number: usize, manager: SocketAddr) {
        self.sessions += 1;
        let (session, now) = (self.sessions, self.now);
        let target = self.number_at(manager).unwrap_or(number);
        let link = &mut self.nodes[number].link;
        link.steps += 1;
        (link.phase, link.target, link.at) = (Phase::Opening(session), target, now + ATTEMPT);
        let boot = self.nodes[number].boot;
        self.send_up(number, session, Up::Open(boot));
    }

    /// The node says something, if it has a session.
    pub(super) fn tell_manager(&mut self, number: usize, messages: Vec<FromAgent>) {
        if let Phase::Open(session) = self.nodes[number].link.phase {
            messages.into_iter().for_each(|message| self.send_up(number, session, Up::Message(message)));
        }
    }

    /// The node's core wants a session now.
    pub(super) fn want_session(&mut self, number: usize) {
        let link = &mut self.nodes[number].link;
        if link.phase == Phase::Idle {
            link.at = self.now;
        }
    }

    fn passes(&self, number: usize, session: u64) -> bool {
        let link = &self.nodes[number].link;
        let manager = self.nodes[link.target].manager.is_some();
        manager && !link.cut && session > link.dead && self.is_connected(number, link.target)
    }

    fn send_up(&mut self, number: usize, session: u64, up: Up) {
        if self.passes(number, session) {
            let at = self.arrival(self.nodes[number].link.to_manager.back().map(|(_, at, _)| *at));
            self.nodes[number].link.to_manager.push_back((session, at, up));
        } else {
            // What is lost on a stream breaks it.
            self.nodes[number].link.break_silently(session);
        }
    }

    fn send_down(&mut self, number: usize, session: u64, down: Down) {
        if self.nodes[number].link.session() != Some(session) {
            return;
        }
        if self.passes(number, session) {
            let at = self.arrival(self.nodes[number].link.to_node.back().map(|(_, at, _)| *at));
            self.nodes[number].link.to_node.push_back((session, at, down));
        } else {
            self.nodes[number].link.break_silently(session);
        }
    }

    fn arrival(&mut self, last: Option<Time>) -> Time {
        let delay = Duration::from_micros(self.rng.random_range(500..20_000));
        (self.now + delay).max(last.unwrap_or_default())
    }

    fn arrive_at_manager(&mut self, number: usize, session: u64, up: Up) {
        if self.nodes[number].link.session() != Some(session) {
            return;
        }
        if !self.passes(number, session) {
            return self.nodes[number].link.break_silently(session);
        }
        let (target, node) = (self.nodes[number].link.target, self.nodes[number].id);
        let (now, wall) = (self.local(target), self.wall(target));
        let addresses = self.nodes[number].addresses;
        let believed = self.nodes[target]
            .manager
            .as_ref()
            .is_some_and(|manager| self.nodes[number].papers.are_good_for(manager.state()));
        let Some(manager) = &mut self.nodes[target].manager else { return };
        match up {
            Up::Open(_) if !believed => self.send_down(number, session, Down::Refused),
            Up::Open(_) if manager.leading.is_none() => {
                let leader = manager.leader_address();
                self.send_down(number, session, Down::NotLeader(leader));
            }
            Up::Open(_) if manager.state().gone.contains_key(&node) => {
                let removed = frame::encode(&ToAgent::Removed).expect("a short frame").to_vec();
                self.send_down(number, session, Down::Opened);
                self.send_down(number, session, Down::Frame(removed));
                self.send_down(number, session, Down::Closed);
            }
            // As the production's: before the log hears of it.
            Up::Open(_) if !manager.state().nodes.contains_key(&node) => self.send_down(number, session, Down::Refused),
            Up::Open(boot) => {
                let (hostname, queues) = (format!("host{number}"), queues_of(boot));
                let hello = Hello { node, boot, session, hostname, addresses, queues };
                let mut said = Said::default();
                manager.open(hello, (now, wall), &mut said);
                said.closed.into_iter().for_each(|(node, session)| self.close_link(node, session));
                self.turn_manager(target);
            }
            Up::Message(message) => {
                self.oracle.note(self.now, format!("{number} {message:?}").as_bytes());
                manager.hear(node, session, message);
                self.turn_manager(target);
            }
        }
    }

    /// The leader has frames for a node.
    pub(super) fn send_frames(&mut self, node: NodeId, session: u64, frames: Vec<Vec<u8>>) {
        if let Some(number) = self.number_of(node) {
            frames.into_iter().for_each(|frame| self.send_down(number, session, Down::Frame(frame)));
        }
    }

    /// The leader opens a session, or not.
    pub(super) fn answer_opening(&mut self, node: NodeId, session: u64, ok: bool) {
        if let Some(number) = self.number_of(node) {
            self.send_down(number, session, if ok { Down::Opened } else { Down::Refused });
        }
    }

    /// The leader closes the connection of a session.
    pub(super) fn close_link(&mut self, node: NodeId, session: u64) {
        if let Some(number) = self.number_of(node) {
            self.send_down(number, session, Down::Closed);
        }
    }

    /// The process of a manager has ended; `seen`: the connections to it are reset.
    pub(super) fn break_links_to(&mut self, target: usize, seen: bool) {
        for number in 0..self.nodes.len() {
            let connected = self.is_connected(number, target);
            let link = &mut self.nodes[number].link;
            let Some(session) = link.session().filter(|_| link.target == target) else { continue };
            link.break_silently(session);
            if seen && connected && !link.cut {
                link.down(self.now);
            }
        }
    }

    /// The process of a node has ended, and its manager sees the connection end.
    pub(super) fn close_at_manager(&mut self, number: usize) {
        let (id, link) = (self.nodes[number].id, &self.nodes[number].link);
        let (target, session) = (link.target, link.session());
        let Some(session) = session.filter(|session| self.passes(number, *session)) else { return };
        let leading = self.nodes[target].manager.as_mut().and_then(|manager| manager.leading.as_mut());
        leading.into_iter().for_each(|leading| leading.close(id, session));
    }

    fn arrive_at_node(&mut self, number: usize, session: u64, down: Down) {
        let now = self.now;
        let (beat, local) = (self.heartbeat(), self.local(number));
        if self.nodes[number].host.is_none() || self.nodes[number].link.session() != Some(session) {
            return;
        }
        if !self.passes(number, session) {
            return self.nodes[number].link.break_silently(session);
        }
        let link = &mut self.nodes[number].link;
        match (down, link.phase) {
            (Down::Opened, Phase::Opening(_)) => {
                (link.phase, link.at, link.heard, link.since) = (Phase::Open(session), now + beat, now, Some(now));
                self.with_host(number, |host| host.session_up(local));
            }
            (Down::NotLeader(Some(leader)), Phase::Opening(_)) if link.steps < LEADER_STEPS => {
                self.attempt(number, leader);
            }
            (Down::Refused | Down::NotLeader(_) | Down::Closed, _) => link.down(now),
            (Down::Frame(bytes), Phase::Open(_)) => {
                link.heard = now;
                self.oracle.note(now, &bytes);
                let content = bytes.get(frame::HEADER_LEN..).unwrap_or_default();
                let message: ToAgent = frame::decode(content).expect("the manager's frames are well-formed");
                self.with_host(number, |host| host.message(message, local));
                self.nodes[number].role_at = Some(now);
            }
            _ => {}
        }
    }

    /// Gives a host an input, then does what it wants.
    pub(super) fn with_host(&mut self, number: usize, input: impl FnOnce(&mut super::host::Host)) {
        let mut wanted = Wanted::default();
        let now = self.local(number);
        let Some(host) = &mut self.nodes[number].host else { return };
        input(host);
        host.act(now, &mut wanted);
        self.do_wanted(number, wanted);
    }
}

fn pop_due<T>(queue: &mut VecDeque<(u64, Time, T)>, now: Time) -> Option<(u64, T)> {
    queue.front().filter(|(_, at, _)| *at <= now)?;
    queue.pop_front().map(|(session, _, what)| (session, what))
}
