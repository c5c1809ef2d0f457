//! How time goes on: the next event, and everybody's turn at it.

use super::client::certificate;
use super::manager::Said;
use super::{
    AUDIT, BTreeMap, BootId, Datagram, Duration, IDLE_TURNS, IpAddr, Leader, Node, RngExt, SocketAddr, Swarm, Time,
    Wanted,
};
use crate::manager::peers;
use crate::raft::{Member, Message};
use crate::wire::control::ToAgent;
use crate::wire::frame;

impl Swarm {
    /// Runs for a while.
    pub(super) fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    /// Runs until a condition holds, looking every 50 ms; how long that took, or `None` if it did not in time.
    pub(super) fn run_until(
        &mut self,
        limit: Duration,
        mut condition: impl FnMut(&mut Swarm) -> bool,
    ) -> Option<Duration> {
        let (start, end) = (self.now, self.now + limit);
        loop {
            if condition(self) {
                return Some(self.now.since(start));
            }
            if self.now >= end {
                return None;
            }
            let look = (self.now + Duration::from_millis(50)).min(end);
            while self.step(look) {}
        }
    }

    /// Goes to the next event, at most to `end`; false when there.
    pub(super) fn step(&mut self, end: Time) -> bool {
        let of_node = |node: &Node| {
            let host = node.host.as_ref().and_then(|host| host.next_time).map(|at| node.global(at));
            let manager = node.manager.as_ref().map(|manager| node.global(manager.next_time()));
            host.into_iter().chain(manager).chain(node.role_at).chain(node.papers.next_time()).min()
        };
        let nodes = self.nodes.iter().filter_map(of_node);
        let work = self.work.first_key_value().map(|((at, _), _)| *at);
        let calls = self.calls.first_key_value().map(|((at, _), _)| *at);
        let traffic = self.traffic.map(|(_, at)| at);
        let others = [
            self.network.next_delivery(),
            self.next_link_time(),
            work,
            calls,
            traffic,
            self.clients.next_time(),
            Some(self.audit_at),
        ];
        let next = nodes.chain(others.into_iter().flatten()).min().unwrap_or(end);
        if next >= end {
            self.now = end;
            return false;
        }
        self.note_progress(next);
        self.deliver();
        self.turn_links();
        self.turn_managers();
        self.turn_calls();
        self.turn_work();
        self.turn_hosts();
        self.turn_roles();
        self.turn_renewals();
        self.turn_traffic();
        self.audit();
        true
    }

    /// A machine whose timer does not move on would keep a daemon's processor busy.
    fn note_progress(&mut self, next: Time) {
        self.idle_turns = if next > self.now { 0 } else { self.idle_turns + 1 };
        if self.idle_turns > IDLE_TURNS {
            let busy = |node: &Node| {
                let now = node.local(self.now);
                let host = node.host.as_ref().and_then(|host| host.next_time).is_some_and(|at| at <= now);
                host || node.manager.as_ref().is_some_and(|manager| manager.next_time() <= now)
            };
            let hosts: Vec<usize> = (0..self.nodes.len()).filter(|number| busy(&self.nodes[*number])).collect();
            self.oracle
                .fail(self.now, &format!("time stands still: timers of nodes {hosts:?} are due again and again"));
        }
        self.now = self.now.max(next);
    }

    fn turn_hosts(&mut self) {
        for number in 0..self.nodes.len() {
            let now = self.local(number);
            let due = self.nodes[number].host.as_ref().and_then(|host| host.next_time).is_some_and(|at| at <= now);
            if due {
                self.with_host(number, |host| host.core.handle_timeout(now));
            }
        }
    }

    fn turn_managers(&mut self) {
        for number in 0..self.nodes.len() {
            let now = self.local(number);
            if self.nodes[number].manager.as_ref().is_some_and(|manager| manager.next_time() <= now) {
                self.turn_manager(number);
            }
        }
    }

    /// Lets a manager do all that is to be done.
    pub(super) fn turn_manager(&mut self, number: usize) {
        let (now, wall) = (self.local(number), self.wall(number));
        let mut said = Said::default();
        let Some(manager) = &mut self.nodes[number].manager else { return };
        let turned = manager.turn(now, wall, &mut said);
        let doomed = manager.is_doomed();
        self.take_consensus(number, &mut said);
        match turned {
            Ok(()) => self.take_said(number, said),
            Err(_) if doomed => {
                self.kill(number);
                self.crashed.push(number);
            }
            Err(error) => self.oracle.fail(self.now, &format!("the manager of node {number} ends: {error}")),
        }
        self.note_leader();
    }

    /// What a manager applied and sent.
    fn take_consensus(&mut self, number: usize, said: &mut Said) {
        let fail = |swarm: &Swarm, text: String| swarm.oracle.fail(swarm.now, &format!("node {number}: {text}"));
        for (term, member) in std::mem::take(&mut said.leads) {
            if let Err(text) = self.ledger.lead(term, member) {
                fail(self, text);
            }
        }
        for entry in std::mem::take(&mut said.committed) {
            match self.ledger.commit(&entry, self.now) {
                Ok(true) => self.check_state(),
                Ok(false) => {}
                Err(text) => fail(self, text),
            }
        }
        let from = self.nodes[number].addresses.control;
        for (to, bytes) in std::mem::take(&mut said.messages) {
            self.network.send(from, to, bytes, self.now);
        }
        if said.installed {
            self.check_replicas();
        }
    }

    /// What a manager says to others.
    fn take_said(&mut self, number: usize, said: Said) {
        said.verdicts.into_iter().for_each(|(op, verdict)| self.told(number, op, verdict));
        said.reads.into_iter().for_each(|(op, index)| self.told_read(number, op, index));
        for (node, session, ok) in said.opened {
            self.oracle.note(self.now, &[b'o', number as u8, u8::from(ok)]);
            self.answer_opening(node, session, ok);
        }
        let encode = |message: ToAgent| frame::encode(&message).expect("a short frame").to_vec();
        for (node, session) in said.alive {
            self.send_frames(node, session, vec![encode(ToAgent::Alive { at: crate::types::UnixTime(0) })]);
        }
        for (node, session) in said.removed {
            self.send_frames(node, session, vec![encode(ToAgent::Removed)]);
        }
        for frames in said.frames {
            self.send_frames(frames.node, frames.session, frames.frames);
        }
        said.closed.into_iter().for_each(|(node, session)| self.close_link(node, session));
        self.note_applied(number);
    }

    /// Who leads, as seen from above: of those who believe to, the one of the newest term.
    pub(super) fn note_leader(&mut self) {
        let lead = |(number, node): (usize, &Node)| {
            let leading = node.manager.as_ref()?.leading.as_ref()?;
            Some((leading.term, number))
        };
        let newest = self.nodes.iter().enumerate().filter_map(lead).max();
        let same = |leader: &Leader| newest == Some((leader.term, leader.number));
        let fresh = newest.map(|(term, number)| Leader { number, term, since: self.now });
        if fresh.is_some() && self.leader.filter(same).is_none() {
            self.ledger.rotations.note_leader(&self.ledger.truth, self.now);
        }
        self.leader = self.leader.filter(same).or(fresh);
    }

    /// Looks at what is overdue.
    fn audit(&mut self) {
        if self.audit_at > self.now {
            return;
        }
        self.audit_at = self.now + AUDIT;
        let steady = self.leader.map(|leader| leader.since.max(self.nodes[leader.number].steady_since));
        if let Err(text) = self.ledger.rotations.check_due(&self.ledger.truth, steady, self.now) {
            self.oracle.fail(self.now, &format!("{text}; {:?}", self.leader));
        }
    }

    /// A message of the consensus has arrived.
    pub(super) fn take_consensus_message(&mut self, number: usize, from: IpAddr, payload: &[u8]) {
        let (seat, to, message): (Member, Member, Message) = postcard::from_bytes(payload).expect("a message");
        let Some(sender) = self.nodes.iter().position(|node| node.addresses.control.ip() == from) else { return };
        let (certificate, address) = (certificate(self, sender), self.nodes[sender].addresses.control);
        let now = self.local(number);
        let strangers = !self.managers_believe(sender, number);
        let Some(manager) = self.nodes[number].manager.as_mut().filter(|manager| manager.member() == to) else {
            return;
        };
        if strangers || peers::judge_seat(manager.state(), Some(certificate), seat).is_err() {
            return;
        }
        if let Err(error) = manager.step((seat, address), message, now) {
            self.oracle.fail(self.now, &format!("the manager of node {number} ends: {error}"));
        }
        self.turn_manager(number);
    }

    fn turn_work(&mut self) {
        while let Some(entry) = self.work.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (number, boot, work) = entry.remove();
            if self.nodes[number].boot == boot {
                self.oracle.note(self.now, format!("{number} {work:?}").as_bytes());
                let now = self.local(number);
                self.with_host(number, |host| host.work_done(work, now));
            }
        }
    }

    /// Does what a host wants done.
    pub(super) fn do_wanted(&mut self, number: usize, wanted: Wanted) {
        let (node, now) = (&self.nodes[number], self.now);
        let Some(host) = &node.host else { return };
        if let Some(reason) = &host.core.new_boot {
            self.oracle.fail(now, &format!("node {number} needs a new boot: {reason}"));
        }
        let boots: BTreeMap<SocketAddr, BootId> = if wanted.gossip.is_empty() {
            BTreeMap::new()
        } else {
            host.core.gossip.members().map(|member| (member.address, member.boot)).collect()
        };
        let (from, boot) = (node.addresses.gossip, node.boot);
        let mute: Vec<SocketAddr> =
            self.nodes.iter().filter(|node| node.mute).map(|node| node.addresses.gossip).collect();
        for transmit in wanted.gossip {
            self.oracle.gossiped(&transmit.payload, transmit.to, boots.get(&transmit.to).copied(), now);
            if !mute.contains(&from) && !mute.contains(&transmit.to) {
                self.network.send(from, transmit.to, transmit.payload, now);
            }
        }
        for datagram in wanted.data {
            self.send_datagram(number, datagram);
        }
        for work in wanted.work {
            self.drawn += 1;
            let delay = Duration::from_millis(self.rng.random_range(2..80));
            self.work.insert((now + delay, self.drawn), (number, boot, work));
        }
        self.tell_manager(number, wanted.messages);
        if wanted.session {
            self.want_session(number);
        }
    }

    pub(super) fn send_datagram(&mut self, number: usize, datagram: Datagram) {
        let from = self.nodes[number].addresses.data;
        self.oracle.sealed(from, datagram.identity, &datagram.payload, self.now);
        if self.thieves && self.rng.random_ratio(1, 200) {
            self.try_theft(&datagram);
        }
        self.network.send(from, datagram.to, datagram.payload, self.now);
    }

    /// Whether datagrams and streams of this port go on between two hosts.
    pub(super) fn is_connected(&self, from: usize, to: usize) -> bool {
        let (a, b) = (self.nodes[from].addresses.control.ip(), self.nodes[to].addresses.control.ip());
        from == to || (self.network.is_open(a, b) && self.network.is_open(b, a))
    }
}
