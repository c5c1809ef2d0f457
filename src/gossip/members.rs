//! SWIM's table: which of the known nodes answer. A hint for probing and for people; it decides nothing else.
//!
//! Who is a member is said by verified node records alone. News of a member travel as [`Update`]s ordered by
//! (incarnation, liveness); only the member itself raises its incarnation, to contradict news of its death.

use super::sequence::TokenBucket;
use crate::types::{BootId, Epoch, NodeId, PublicKey, Time};
use crate::wire::gossip::{Liveness, Update};
use crate::wire::record::NodeRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// Signatures a peer may make this node check per second; an Ed25519 check takes about 0.1 ms.
const SIGNATURES_PER_SEC: u32 = 500;
const SIGNATURES_BURST: u32 = 1000;
/// Messages per second with which a peer may make this node send something.
const REQUESTS_PER_SEC: u32 = 100;
const REQUESTS_BURST: u32 = 200;
/// Pause after the first hello to a peer that does not answer; doubles up to the longest.
const HELLO_PAUSE: Duration = Duration::from_millis(500);
const HELLO_PAUSE_MAX: Duration = Duration::from_secs(8);

/// How a member is, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// Known by its record only.
    Unknown,
    /// Answers.
    Up,
    /// Did not answer lately; may contradict.
    Suspect,
    /// Did not contradict in time.
    Down,
}

impl MemberState {
    /// As `formic status` shows it.
    pub fn name(self) -> &'static str {
        match self {
            MemberState::Unknown => "unknown",
            MemberState::Up => "alive",
            MemberState::Suspect => "suspect",
            MemberState::Down => "dead",
        }
    }
}

pub(super) struct Member {
    pub(super) boot: BootId,
    pub(super) address: SocketAddr,
    pub(super) publics: Vec<(Epoch, PublicKey)>,
    pub(super) state: MemberState,
    pub(super) incarnation: u32,
    pub(super) last_heard: Option<Time>,
    /// When it last acknowledged something that this node had sent it.
    pub(super) last_answered: Option<Time>,
    pub(super) signatures: TokenBucket,
    pub(super) requests: TokenBucket,
    hello_at: Time,
    hello_pause: Duration,
    suspected_at: Time,
    deadline: Option<Time>,
}

impl Member {
    fn new(record: &NodeRecord, now: Time) -> Member {
        Member {
            boot: record.boot,
            address: record.addresses.gossip,
            publics: record.publics.clone(),
            state: MemberState::Unknown,
            incarnation: 0,
            last_heard: None,
            last_answered: None,
            signatures: TokenBucket::new(SIGNATURES_PER_SEC, SIGNATURES_BURST, now),
            requests: TokenBucket::new(REQUESTS_PER_SEC, REQUESTS_BURST, now),
            hello_at: now,
            hello_pause: HELLO_PAUSE,
            suspected_at: now,
            deadline: None,
        }
    }

    pub(super) fn public(&self, epoch: Epoch) -> Option<PublicKey> {
        self.publics.iter().find(|(of, _)| *of == epoch).map(|(_, public)| *public)
    }

    /// Whether a hello may be sent now; if so, the next one waits longer.
    pub(super) fn hello_due(&mut self, now: Time) -> bool {
        let due = now >= self.hello_at;
        if due {
            self.hello_at = now + self.hello_pause;
            self.hello_pause = (self.hello_pause * 2).min(HELLO_PAUSE_MAX);
        }
        due
    }

    /// The next hello need not wait: there is something new to say, or the peer was heard.
    pub(super) fn reset_hello(&mut self) {
        self.hello_pause = HELLO_PAUSE;
    }
}

/// A change that people and the dispatcher want to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Up(NodeId, BootId),
    Suspect(NodeId, BootId),
    Down(NodeId, BootId),
}

#[derive(Default)]
pub(super) struct Members {
    table: BTreeMap<NodeId, Member>,
    news: BTreeMap<NodeId, (u32, Update)>,
    deadlines: BTreeSet<(Time, NodeId)>,
}

impl Members {
    pub(super) fn get(&self, node: NodeId) -> Option<&Member> {
        self.table.get(&node)
    }

    pub(super) fn get_mut(&mut self, node: NodeId) -> Option<&mut Member> {
        self.table.get_mut(&node)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.table.iter().map(|(node, member)| (*node, member))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How often news are passed on: 3 log2 of the swarm's size reaches everybody with a margin for loss.
    pub(super) fn transmissions(&self) -> u32 {
        let nodes = self.table.len() as u32 + 1;
        3 * (u32::BITS - nodes.leading_zeros())
    }

    /// Takes over what a verified record says. A new boot starts anew; the old one is reported down if it was up.
    pub(super) fn upsert(&mut self, record: &NodeRecord, now: Time) -> Option<Change> {
        if let Some(member) = self.table.get_mut(&record.node).filter(|member| member.boot == record.boot) {
            member.address = record.addresses.gossip;
            member.publics.clone_from(&record.publics);
            member.reset_hello();
            return None;
        }
        let change = self.remove(record.node);
        self.table.insert(record.node, Member::new(record, now));
        change
    }

    /// Forgets a member.
    pub(super) fn remove(&mut self, node: NodeId) -> Option<Change> {
        self.news.remove(&node);
        let member = self.table.remove(&node)?;
        if let Some(deadline) = member.deadline {
            self.deadlines.remove(&(deadline, node));
        }
        let was_seen = matches!(member.state, MemberState::Up | MemberState::Suspect);
        was_seen.then_some(Change::Down(node, member.boot))
    }

    /// An authenticated datagram came from the member itself.
    pub(super) fn heard(&mut self, node: NodeId, incarnation: u32, now: Time) -> Option<Change> {
        let member = self.table.get_mut(&node)?;
        member.last_heard = Some(now);
        member.reset_hello();
        let boot = member.boot;
        self.apply(&Update { node, boot, incarnation, liveness: Liveness::Alive }, Duration::ZERO, now)
    }

    /// A probe of the member failed.
    pub(super) fn accuse(&mut self, node: NodeId, patience: Duration, now: Time) -> Option<Change> {
        let member = self.table.get(&node)?;
        let update = Update { node, boot: member.boot, incarnation: member.incarnation, liveness: Liveness::Suspect };
        self.apply(&update, patience, now)
    }

    /// Applies news of another member; keeps them to be passed on if they are new here.
    pub(super) fn apply(&mut self, update: &Update, patience: Duration, now: Time) -> Option<Change> {
        let member = self.table.get_mut(&update.node).filter(|member| member.boot == update.boot)?;
        let known = match member.state {
            MemberState::Unknown => None,
            MemberState::Up => Some((member.incarnation, Liveness::Alive)),
            MemberState::Suspect => Some((member.incarnation, Liveness::Suspect)),
            MemberState::Down => Some((member.incarnation, Liveness::Down)),
        };
        if known.is_some_and(|known| known >= (update.incarnation, update.liveness)) {
            return None;
        }
        member.incarnation = update.incarnation;
        self.news.insert(update.node, (0, *update));
        self.enter(update.node, update.liveness, patience, now)
    }

    fn enter(&mut self, node: NodeId, liveness: Liveness, patience: Duration, now: Time) -> Option<Change> {
        let member = self.table.get_mut(&node)?;
        if let Some(deadline) = member.deadline.take() {
            self.deadlines.remove(&(deadline, node));
        }
        let before = member.state;
        let (state, change) = match liveness {
            Liveness::Alive => (MemberState::Up, Change::Up(node, member.boot)),
            Liveness::Suspect => (MemberState::Suspect, Change::Suspect(node, member.boot)),
            Liveness::Down => (MemberState::Down, Change::Down(node, member.boot)),
        };
        member.state = state;
        if state == MemberState::Suspect {
            let deadline = now + patience;
            (member.suspected_at, member.deadline) = (now, Some(deadline));
            self.deadlines.insert((deadline, node));
        }
        (before != state).then_some(change)
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Declares those suspects down whose time is over, unless they were heard meanwhile.
    pub(super) fn expire(&mut self, now: Time) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some((_, node)) = self.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now) {
            self.deadlines.pop_first();
            let Some(member) = self.table.get_mut(&node) else { continue };
            member.deadline = None;
            if member.last_heard.is_some_and(|heard| heard > member.suspected_at) {
                member.state = MemberState::Up;
                changes.push(Change::Up(node, member.boot));
                continue;
            }
            let (boot, incarnation) = (member.boot, member.incarnation);
            let update = Update { node, boot, incarnation, liveness: Liveness::Down };
            changes.extend(self.apply(&update, Duration::ZERO, now));
        }
        changes
    }

    /// Queues news of this node itself.
    pub(super) fn announce(&mut self, update: Update) {
        self.news.insert(update.node, (0, update));
    }

    pub(super) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// News for a datagram to `to`, at most `max`: first what `to` should contradict, then the least passed on.
    pub(super) fn take_news(&mut self, to: NodeId, max: usize) -> Vec<Update> {
        let mut taken: Vec<Update> = self.about(to).into_iter().take(max).collect();
        let limit = self.transmissions();
        let mut order: Vec<(u32, NodeId)> = self.news.iter().map(|(node, (sends, _))| (*sends, *node)).collect();
        order.sort_unstable();
        for (_, node) in order.into_iter().filter(|(_, node)| *node != to).take(max - taken.len()) {
            let Some((sends, update)) = self.news.get_mut(&node) else { continue };
            taken.push(*update);
            *sends += 1;
            if *sends >= limit {
                self.news.remove(&node);
            }
        }
        taken
    }

    fn about(&self, node: NodeId) -> Option<Update> {
        let member = self.table.get(&node)?;
        let liveness = match member.state {
            MemberState::Suspect => Liveness::Suspect,
            MemberState::Down => Liveness::Down,
            MemberState::Unknown | MemberState::Up => return None,
        };
        Some(Update { node, boot: member.boot, incarnation: member.incarnation, liveness })
    }
}
