//! Time: probing members, passing on news, comparing records, asking for the ring.

use super::members::MemberState;
use super::{Gossip, GossipEvent};
use crate::types::{BootId, Epoch, NodeId, Time};
use crate::wire::gossip::Message;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use std::time::Duration;

/// Members asked to probe another one.
const INDIRECT_PROBES: usize = 3;
/// Probes done for others that wait for an answer.
const RELAYS_MAX: usize = 256;
/// Members that get news in one round.
const NEWS_FANOUT: usize = 3;
/// Datagrams of news to one member in one round: 12 kB in 0.2 s to all three.
const NEWS_BURST: usize = 3;
/// Members greeted in one round: 80 a second.
const GREETS: usize = 16;
/// Members thought down that are probed in one round.
const REVIVALS: usize = 2;
/// How far ahead of the newest held epoch an unknown one is believed to be real.
pub(super) const EPOCHS_AHEAD_MAX: u32 = 3;
/// Between two questions for the ring.
const NEED_RING_PAUSE: Duration = Duration::from_secs(30);
/// A question for the ring waits a random time up to this, so that not all nodes ask at once.
const NEED_RING_DELAY_MS: u64 = 5000;
/// After a comparison that brought records the next one comes so soon.
const SYNC_AGAIN: Duration = Duration::from_millis(200);

/// The probe that runs.
pub(super) struct Probe {
    target: NodeId,
    boot: BootId,
    sequence: u32,
    sent_at: Time,
    indirect_at: Option<Time>,
}

/// A probe done for another member.
pub(super) struct Relay {
    asker: NodeId,
    asker_sequence: u32,
    sequence: u32,
    target: NodeId,
}

pub(super) struct Timers {
    probe_at: Time,
    revive_at: Time,
    news_at: Time,
    sync_at: Time,
}

impl Timers {
    pub(super) fn new(now: Time) -> Timers {
        Timers { probe_at: now, revive_at: now, news_at: now, sync_at: now }
    }
}

/// The question for a newer ring.
#[derive(Default)]
pub(super) struct NeedRing {
    asks: Option<(Time, Epoch)>,
    not_before: Time,
}

impl NeedRing {
    pub(super) fn ask(&mut self, epoch: Epoch, now: Time, rng: &mut StdRng) {
        if self.asks.is_none() && now >= self.not_before {
            self.asks = Some((now + Duration::from_millis(rng.random_range(0..NEED_RING_DELAY_MS)), epoch));
            self.not_before = now + NEED_RING_PAUSE;
        }
    }
}

impl Gossip {
    /// When to call [`Gossip::handle_timeout`] next. Ask again after every call.
    pub fn poll_timeout(&self) -> Option<Time> {
        let ring = self.need_ring.asks.map(|(at, _)| at);
        if !self.is_ready() {
            return ring;
        }
        let indirect = self.probe.as_ref().and_then(|probe| probe.indirect_at);
        let news = self.has_news().then_some(self.timers.news_at);
        let always = [self.timers.probe_at, self.timers.revive_at, self.timers.sync_at];
        always.into_iter().chain(ring).chain(indirect).chain(news).chain(self.members.next_deadline()).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if let Some((_, epoch)) = self.need_ring.asks.take_if(|(at, _)| *at <= now)
            && !self.keyring.holds(epoch)
        {
            self.event(GossipEvent::NeedRing { epoch });
        }
        if !self.is_ready() {
            return;
        }
        for change in self.members.expire(now) {
            self.report(Some(change));
        }
        if self.probe.as_ref().and_then(|probe| probe.indirect_at).is_some_and(|at| at <= now) {
            self.probe_indirectly(now);
        }
        if self.timers.probe_at <= now {
            self.probe_next(now);
        }
        if self.timers.revive_at <= now {
            self.revive(now);
        }
        if self.timers.news_at <= now && self.has_news() {
            self.pass_on_news(now);
        }
        if self.timers.sync_at <= now {
            self.timers.sync_at = now + self.jittered(self.config.timing.sync_interval);
            self.start_sync(now);
        }
    }

    fn is_ready(&self) -> bool {
        self.own.is_some() && !self.keyring.is_empty() && !self.members.is_empty()
    }

    fn has_news(&self) -> bool {
        !self.greet.is_empty() || self.members.has_news() || self.store.has_fresh()
    }

    /// How long a suspect may take to contradict.
    pub(super) fn patience(&self) -> Duration {
        let nodes = (self.members.iter().count() + 1) as f64;
        self.config.timing.suspicion.mul_f64(nodes.log10().max(1.0))
    }

    pub(super) fn sync_again(&mut self, now: Time) {
        self.timers.sync_at = self.timers.sync_at.min(now + SYNC_AGAIN);
    }

    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Up to a fifth more or less, so that nodes don't fall into step.
    fn jittered(&mut self, interval: Duration) -> Duration {
        interval.mul_f64(0.8 + 0.4 * f64::from(self.rng.next_u32()) / f64::from(u32::MAX))
    }

    fn probe_next(&mut self, now: Time) {
        self.timers.probe_at = now + self.jittered(self.config.timing.probe_interval);
        self.judge_probe(now);
        let Some((target, boot)) = self.next_target() else { return };
        let sequence = self.next_sequence();
        let indirect_at = Some(now + self.config.timing.ack_timeout);
        self.probe = Some(Probe { target, boot, sequence, sent_at: now, indirect_at });
        self.send(target, Message::Ping { sequence }, now);
    }

    /// Accuses the member that was probed, unless it was heard since.
    fn judge_probe(&mut self, now: Time) {
        let Some(probe) = self.probe.take() else { return };
        let member = self.members.get(probe.target).filter(|member| member.boot == probe.boot);
        let silent = member.is_some_and(|member| member.last_heard.is_none_or(|heard| heard < probe.sent_at));
        if silent {
            let change = self.members.accuse(probe.target, self.patience(), now);
            self.report(change);
        }
    }

    /// Goes through all members that are not down in random order, so that each is probed once in so many rounds.
    fn next_target(&mut self) -> Option<(NodeId, BootId)> {
        for refilled in [false, true] {
            if refilled {
                self.probe_order = self.members.iter().map(|(node, _)| node).collect();
                self.probe_order.shuffle(&mut self.rng);
            }
            while let Some(node) = self.probe_order.pop() {
                let alive = self.members.get(node).filter(|member| member.state != MemberState::Down);
                if let Some(member) = alive {
                    return Some((node, member.boot));
                }
            }
        }
        None
    }

    /// The direct way got no answer: once more, and through others.
    fn probe_indirectly(&mut self, now: Time) {
        let Some(probe) = &mut self.probe else { return };
        probe.indirect_at = None;
        let (target, sequence, sent_at) = (probe.target, probe.sequence, probe.sent_at);
        if self.members.get(target).and_then(|member| member.last_heard).is_some_and(|heard| heard >= sent_at) {
            return;
        }
        self.send(target, Message::Ping { sequence }, now);
        for helper in self.choose(INDIRECT_PROBES, |node, state| node != target && state == MemberState::Up) {
            self.send(helper, Message::PingRequest { sequence, target }, now);
        }
    }

    pub(super) fn handle_ack(&mut self, from: NodeId, sequence: u32, now: Time) {
        if let Some(member) = self.members.get_mut(from) {
            member.last_answered = Some(now);
        }
        if self.probe.as_ref().is_some_and(|probe| probe.sequence == sequence) {
            self.probe = None;
            return;
        }
        let answered = self.relays.iter().position(|relay| relay.sequence == sequence && relay.target == from);
        if let Some(relay) = answered.and_then(|position| self.relays.remove(position)) {
            self.send(relay.asker, Message::Ack { sequence: relay.asker_sequence }, now);
        }
    }

    pub(super) fn handle_ping_request(&mut self, asker: NodeId, asker_sequence: u32, target: NodeId, now: Time) {
        if target == self.config.node || self.members.get(target).is_none() {
            return;
        }
        if self.relays.len() >= RELAYS_MAX {
            self.relays.pop_front();
        }
        let sequence = self.next_sequence();
        self.relays.push_back(Relay { asker, asker_sequence, sequence, target });
        self.send(target, Message::Ping { sequence }, now);
    }

    /// Members thought down are asked too: nobody else would notice that a partition has healed.
    fn revive(&mut self, now: Time) {
        self.timers.revive_at = now + self.jittered(self.config.timing.revival_interval);
        for node in self.choose(REVIVALS, |_, state| state == MemberState::Down) {
            let sequence = self.next_sequence();
            self.send(node, Message::Ping { sequence }, now);
        }
    }

    fn pass_on_news(&mut self, now: Time) {
        self.timers.news_at = now + self.config.timing.news_interval;
        for _ in 0..GREETS {
            let Some(node) = self.greet.pop_first() else { break };
            let sequence = self.next_sequence();
            self.send(node, Message::Ping { sequence }, now);
        }
        for node in self.choose(NEWS_FANOUT, |_, state| matches!(state, MemberState::Up | MemberState::Unknown)) {
            for _ in 0..NEWS_BURST {
                if !self.members.has_news() && !self.store.has_fresh() {
                    return;
                }
                self.send(node, Message::News, now);
            }
        }
    }

    /// Random members that fulfil the condition.
    pub(super) fn choose(&mut self, count: usize, wanted: impl Fn(NodeId, MemberState) -> bool) -> Vec<NodeId> {
        let candidates: Vec<NodeId> =
            self.members.iter().filter(|(node, member)| wanted(*node, member.state)).map(|(node, _)| node).collect();
        candidates.sample(&mut self.rng, count).copied().collect()
    }
}
