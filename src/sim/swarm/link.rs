//! The sessions between nodes and the manager: reliable and in order while they last, but breakable at any moment.
//! The node's end behaves as the agent's session: it beats, misses the manager's word, tries again.

use super::host::Wanted;
use super::{Swarm, queues_of};
use crate::types::{BootId, Time};
use crate::wire::control::{FromAgent, ToAgent};
use crate::wire::frame;
use rand::RngExt;
use std::collections::VecDeque;
use std::time::Duration;

/// The first and the longest pause between two attempts, as the agent's.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How long an attempt may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Heartbeats without any word after which a session counts as broken.
const MISSED_HEARTBEATS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening(u64),
    Open(u64),
}

/// A node's end of its session.
pub(super) struct Link {
    phase: Phase,
    /// When to try, to give up an attempt, or to beat.
    at: Time,
    pause: Duration,
    heard: Time,
    /// Nothing passes between the node and the manager.
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
    Frame(Vec<u8>),
}

impl Link {
    pub(super) fn new(now: Time) -> Link {
        Link {
            phase: Phase::Idle,
            at: now,
            pause: FIRST_PAUSE,
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
        self.dead = sessions;
        self.to_manager.clear();
        self.to_node.clear();
    }

    /// The node's end is told that the session is over.
    fn down(&mut self, now: Time) {
        let opened = matches!(self.phase, Phase::Open(_));
        self.pause = if opened { FIRST_PAUSE } else { (self.pause * 2).min(MAX_PAUSE) };
        (self.phase, self.at, self.since) = (Phase::Idle, now + self.pause, None);
    }

    fn next_time(&self) -> Time {
        let up = self.to_manager.front().map(|(_, at, _)| *at);
        let down = self.to_node.front().map(|(_, at, _)| *at);
        up.into_iter().chain(down).chain([self.at]).min().unwrap_or(self.at)
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }
}

impl Swarm {
    /// Since when a node has had a session that works, both ways.
    pub(super) fn in_touch_since(&self, number: usize) -> Option<Time> {
        let node = &self.nodes[number];
        match node.link.phase {
            Phase::Open(session) if self.passes(number, session) && self.manager.has_session(node.id, session) => {
                node.link.since
            }
            _ => None,
        }
    }

    pub(super) fn next_link_time(&self) -> Option<Time> {
        let running = self.nodes.iter().filter(|node| node.host.is_some());
        running.map(|node| node.link.next_time()).min()
    }

    /// What is due on the sessions.
    pub(super) fn turn_links(&mut self) {
        for number in 0..self.nodes.len() {
            if self.nodes[number].host.is_none() {
                continue;
            }
            while let Some((session, up)) = pop_due(&mut self.nodes[number].link.to_manager, self.now) {
                self.arrive_at_manager(number, session, up);
            }
            while let Some((session, down)) = pop_due(&mut self.nodes[number].link.to_node, self.now) {
                self.arrive_at_node(number, session, down);
            }
            if self.nodes[number].link.at <= self.now {
                self.link_timer(number);
            }
        }
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.manager.state.cluster.spec.heartbeat_secs.into())
    }

    fn link_timer(&mut self, number: usize) {
        let (now, beat) = (self.now, self.heartbeat());
        let link = &mut self.nodes[number].link;
        match link.phase {
            Phase::Idle => {
                self.sessions += 1;
                let session = self.sessions;
                (link.phase, link.at) = (Phase::Opening(session), now + ATTEMPT);
                let boot = self.nodes[number].boot;
                self.send_up(number, session, Up::Open(boot));
            }
            Phase::Opening(_) => link.down(now),
            Phase::Open(_) if now.since(link.heard) >= beat * MISSED_HEARTBEATS => link.down(now),
            Phase::Open(session) => {
                link.at = now + beat;
                self.send_up(number, session, Up::Message(FromAgent::Heartbeat));
            }
        }
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
        self.manager.up && !link.cut && session > link.dead
    }

    fn send_up(&mut self, number: usize, session: u64, up: Up) {
        if self.passes(number, session) {
            let at = self.arrival(self.nodes[number].link.to_manager.back().map(|(_, at, _)| *at));
            self.nodes[number].link.to_manager.push_back((session, at, up));
        }
    }

    fn send_down(&mut self, number: usize, session: u64, down: Down) {
        if self.passes(number, session) {
            let at = self.arrival(self.nodes[number].link.to_node.back().map(|(_, at, _)| *at));
            self.nodes[number].link.to_node.push_back((session, at, down));
        }
    }

    fn arrival(&mut self, last: Option<Time>) -> Time {
        let delay = Duration::from_micros(self.rng.random_range(500..20_000));
        (self.now + delay).max(last.unwrap_or_default())
    }

    fn arrive_at_manager(&mut self, number: usize, session: u64, up: Up) {
        let (now, node) = (self.now, self.nodes[number].id);
        match up {
            Up::Open(boot) => {
                let told = (self.nodes[number].addresses, queues_of(boot));
                let opened = self.manager.open((node, boot, session), format!("host{number}"), told, now);
                self.oracle.note(now, &[b'o', number as u8, u8::from(opened.is_ok())]);
                self.send_down(number, session, if opened.is_ok() { Down::Opened } else { Down::Refused });
            }
            Up::Message(message) => {
                self.oracle.note(now, format!("{number} {message:?}").as_bytes());
                if self.manager.hear(node, session, message, now) && self.manager.has_session(node, session) {
                    let alive = frame::encode(&ToAgent::Alive).expect("a short frame");
                    self.send_down(number, session, Down::Frame(alive.to_vec()));
                }
            }
        }
        self.check_state();
    }

    /// The manager has frames for a node.
    pub(super) fn send_frames(&mut self, number: usize, session: u64, frames: Vec<Vec<u8>>) {
        frames.into_iter().for_each(|frame| self.send_down(number, session, Down::Frame(frame)));
    }

    fn arrive_at_node(&mut self, number: usize, session: u64, down: Down) {
        let now = self.now;
        let beat = self.heartbeat();
        let link = &mut self.nodes[number].link;
        match (down, link.phase) {
            (Down::Opened, Phase::Opening(own)) if own == session => {
                (link.phase, link.at, link.heard, link.since) = (Phase::Open(session), now + beat, now, Some(now));
                self.with_host(number, |host| host.session_up(now));
            }
            (Down::Refused, Phase::Opening(own)) if own == session => link.down(now),
            (Down::Frame(bytes), Phase::Open(own)) if own == session => {
                link.heard = now;
                self.oracle.note(now, &bytes);
                let content = bytes.get(frame::HEADER_LEN..).unwrap_or_default();
                let message: ToAgent = frame::decode(content).expect("the manager's frames are well-formed");
                self.with_host(number, |host| host.message(message, now));
            }
            _ => {}
        }
    }

    /// Gives a host an input, then does what it wants.
    pub(super) fn with_host(&mut self, number: usize, input: impl FnOnce(&mut super::host::Host)) {
        let mut wanted = Wanted::default();
        let Some(host) = &mut self.nodes[number].host else { return };
        input(host);
        host.act(self.now, &mut wanted);
        self.do_wanted(number, wanted);
    }
}

fn pop_due<T>(queue: &mut VecDeque<(u64, Time, T)>, now: Time) -> Option<(u64, T)> {
    queue.pop_front_if(|(_, at, _)| *at <= now).map(|(session, _, what)| (session, what))
}
