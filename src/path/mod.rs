//! How long a packet the way to each peer carries (pure): path MTU discovery by authenticated probes (RFC 8899), which
//! needs no ICMP and believes none.
//!
//! 1. [`PathMtus::add`]: a peer can be sent to. A round asks with the shortest and the longest packet at once; mostly the
//!    longest is answered, and that was all.
//! 2. Otherwise, once the shortest is answered, rounds of [`ROUND_PROBES`] lengths in between, until what is known to pass and what is known not to are
//!    closer than [`PRECISION_BYTES`]. A probe without an answer is repeated within its round, so that a lost datagram is
//!    not taken for a limit; an answer that comes late still counts.
//! 3. [`PathMtus::handle_used`]: long packets go to the peer. For some time the known length is asked for again once a
//!    second; when it is not answered, but the shortest is, the way has changed and is searched anew.
//! 4. A used way that carries less than the longest is asked for more every [`RAISE_INTERVAL`]. Idle ways are left alone.
//!
//! A peer that does not even answer the shortest packet is unreachable, which says nothing of lengths: what was known
//! stays, and one that has never answered is asked with these two lengths only, ever more seldom. Its address is its own
//! word: it may be that of somebody who is no node. All lengths are of inner packets: what a container may send. Not here: sockets, keys, and what is done with a
//! packet that is too long (`dataplane`).
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod search;
#[cfg(test)]
mod tests;

use crate::types::{NodeId, Time};
use search::{Search, Step};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How close the found length comes to the true one, in octets.
pub const PRECISION_BYTES: u16 = 16;
/// Lengths that are asked for at the same time.
pub const ROUND_PROBES: u16 = 8;

/// Between two questions whether a used way still carries what it did.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);
/// How long a way is asked about after it was last used: a sender whose packets are lost says less and less.
const USED_FOR: Duration = Duration::from_secs(10);
/// Between two questions whether a way carries more by now.
pub const RAISE_INTERVAL: Duration = Duration::from_secs(10);
/// After which a peer is asked again that has never answered; twice as long each time, up to the second.
const RETRY_INTERVALS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(40));

/// What lengths may be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The shortest that every way has to carry.
    pub floor_bytes: u16,
    /// The longest: what this host's own interface carries.
    pub ceiling_bytes: u16,
}

/// What the owner of the machine has to do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    /// Send the peer an authenticated packet with so many inner octets, to be answered.
    Probe {
        /// The peer.
        peer: NodeId,
        /// Octets.
        inner_bytes: u16,
    },
    /// The way to the peer carries inner packets of this length.
    Carries {
        /// The peer.
        peer: NodeId,
        /// Octets.
        inner_bytes: u16,
    },
}

/// The way to one peer.
struct Path {
    bounds: Bounds,
    /// What was last told.
    known: Option<u16>,
    search: Option<Search>,
    /// When the last search ended.
    searched_at: Time,
    /// When the last search ended that went up to the ceiling.
    raised_at: Time,
    /// After which it is asked again if it has never answered.
    retry_after: Duration,
    /// When it was last used for long packets.
    used_at: Option<Time>,
}

/// The ways to all peers.
#[derive(Default)]
pub struct PathMtus {
    paths: BTreeMap<NodeId, Path>,
    events: VecDeque<PathEvent>,
}

impl PathMtus {
    /// A peer can be sent to. Nothing changes when it is known with these bounds; others begin a new search.
    pub fn add(&mut self, peer: NodeId, bounds: Bounds, now: Time) {
        match self.paths.get_mut(&peer) {
            Some(path) if path.bounds == bounds => return,
            Some(path) => {
                path.bounds = bounds;
                path.begin_anew(now);
            }
            None => {
                self.paths.insert(peer, Path::new(bounds, now));
            }
        }
        self.work(peer, now);
    }

    /// A peer cannot be sent to any more.
    pub fn remove(&mut self, peer: NodeId) {
        self.paths.remove(&peer);
    }

    /// The way to a peer is another one: its address changed.
    pub fn restart(&mut self, peer: NodeId, now: Time) {
        if let Some(path) = self.paths.get_mut(&peer) {
            path.begin_anew(now);
            self.work(peer, now);
        }
    }

    /// This host's own interface carries other lengths now: the bounds for each peer.
    pub fn set_bounds(&mut self, bounds: impl Fn(NodeId) -> Option<Bounds>, now: Time) {
        let peers: Vec<NodeId> = self.paths.keys().copied().collect();
        for peer in peers {
            if let Some(bounds) = bounds(peer) {
                self.add(peer, bounds, now);
            }
        }
    }

    /// The peer has answered a probe of this length.
    pub fn handle_answer(&mut self, peer: NodeId, inner_bytes: u16, now: Time) {
        let Some(path) = self.paths.get_mut(&peer) else { return };
        if let Some(search) = &mut path.search {
            search.handle_answer(inner_bytes);
            self.work(peer, now);
        }
    }

    /// The peer has answered something else: it is there, and asked soon if it has never answered a probe.
    pub fn handle_alive(&mut self, peer: NodeId) {
        if let Some(path) = self.paths.get_mut(&peer) {
            path.retry_after = RETRY_INTERVALS.0;
        }
    }

    /// Long packets go to the peer.
    pub fn handle_used(&mut self, peer: NodeId, now: Time) {
        if let Some(path) = self.paths.get_mut(&peer) {
            path.used_at = Some(now);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        let due = |path: &Path| path.wake_at().is_some_and(|at| at <= now);
        let peers: Vec<NodeId> = self.paths.iter().filter(|(_, path)| due(path)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            if let Some(path) = self.paths.get_mut(&peer)
                && path.search.is_none()
            {
                path.search = Some(path.next_search(now));
            }
            self.work(peer, now);
        }
    }

    /// When [`PathMtus::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.paths.values().filter_map(Path::wake_at).min()
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    /// What the way to a peer is known to carry.
    pub fn known(&self, peer: NodeId) -> Option<u16> {
        self.paths.get(&peer)?.known
    }

    /// Goes on with the search of a peer.
    fn work(&mut self, peer: NodeId, now: Time) {
        let Some(path) = self.paths.get_mut(&peer) else { return };
        let Some(search) = &mut path.search else { return };
        let step = search.step(now, &mut |inner_bytes| self.events.push_back(PathEvent::Probe { peer, inner_bytes }));
        let found = match step {
            Step::Waiting => return,
            Step::Found(length) => Some(length),
            Step::Silent => path.known,
        };
        if search.reaches(path.bounds.ceiling_bytes) {
            path.raised_at = now;
        }
        path.search = None;
        path.searched_at = now;
        if let Some(inner_bytes) = found.filter(|_| path.known != found) {
            path.known = found;
            self.events.push_back(PathEvent::Carries { peer, inner_bytes });
        }
    }
}

impl Path {
    fn new(bounds: Bounds, now: Time) -> Path {
        let search = Some(Search::of(bounds, now));
        let retry_after = RETRY_INTERVALS.0;
        Path { bounds, known: None, search, searched_at: now, raised_at: now, retry_after, used_at: None }
    }

    fn begin_anew(&mut self, now: Time) {
        self.search = Some(Search::of(self.bounds, now));
        self.retry_after = RETRY_INTERVALS.0;
    }

    fn wake_at(&self) -> Option<Time> {
        if let Some(search) = &self.search {
            return Some(search.wake_at());
        }
        let confirm_at = self.searched_at + CONFIRM_INTERVAL;
        match self.known {
            None => Some(self.searched_at + self.retry_after),
            Some(_) => self.used_at.filter(|used_at| confirm_at <= *used_at + USED_FOR).map(|_| confirm_at),
        }
    }

    fn next_search(&mut self, now: Time) -> Search {
        match self.known {
            None => {
                self.retry_after = (self.retry_after * 2).min(RETRY_INTERVALS.1);
                Search::of(self.bounds, now)
            }
            Some(known) if known < self.bounds.ceiling_bytes && now.since(self.raised_at) >= RAISE_INTERVAL => {
                Search::raising(self.bounds, known, now)
            }
            Some(known) => Search::confirming(self.bounds, known, now),
        }
    }
}
