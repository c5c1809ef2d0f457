//! A cluster of machines in virtual time, each with a disk that keeps what was saved and a state that is what was
//! applied; and an oracle that watches them.

use super::super::*;
use crate::sim::network::{Faults, Network};
use crate::types::{Id, NodeId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use zeroize::Zeroizing;

/// The state machine: the commands that were applied.
pub(super) type Applied = Vec<(u64, u64)>;

/// What survives a crash.
pub(super) struct Disk {
    hard: HardState,
    snapshot: Snapshot,
    entries: Vec<Entry>,
}

/// A member, running or not.
pub(super) struct Host {
    pub(super) member: Member,
    /// `None` while it is down.
    pub(super) raft: Option<Raft>,
    pub(super) disk: Disk,
    pub(super) applied: Applied,
    pub(super) index: u64,
    /// How its clock differs from the world's.
    pub(super) skew: i64,
    /// Crash at that many saves from now: before the save, or after it and before its messages.
    pub(super) crash_in: Option<(u64, bool)>,
    /// A planted fault: saves are acknowledged and not kept.
    pub(super) forgets: bool,
}

/// What must hold.
#[derive(Default)]
pub(super) struct Oracle {
    leaders: BTreeMap<u64, Member>,
    /// Every committed entry, by index.
    pub(super) committed: BTreeMap<u64, Entry>,
    pub(super) failures: Vec<String>,
    /// What the tests shall have seen.
    pub(super) seen: BTreeMap<&'static str, u64>,
}

/// Command ids that are on their way or answered.
#[derive(Default)]
pub(super) struct Clients {
    next: u64,
    /// Where a proposal stands.
    pub(super) proposed: BTreeMap<(Member, u64), (Position, u64)>,
    /// Committed and told so.
    pub(super) acknowledged: BTreeSet<u64>,
    /// The highest index told to anybody.
    newest: u64,
    /// Reads, with the newest acknowledged index when they were asked.
    reads: BTreeMap<(Member, u64), u64>,
}

pub(super) struct World {
    pub(super) now: Time,
    pub(super) rng: StdRng,
    pub(super) network: Network,
    pub(super) hosts: Vec<Host>,
    pub(super) oracle: Oracle,
    pub(super) clients: Clients,
    /// Bytes that make every snapshot longer.
    pub(super) ballast: usize,
}

pub(super) fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number as u8 + 1], 2377))
}

pub(super) fn ip(number: usize) -> IpAddr {
    address(number).ip()
}

fn peer(number: usize) -> Peer {
    Peer { node: NodeId(Id::from_random([number as u8 + 1; 17])), address: address(number) }
}

pub(super) fn payload(id: u64) -> Payload {
    Payload::new(Zeroizing::new(id.to_be_bytes().to_vec()))
}

fn command(entry: &Entry) -> Option<u64> {
    match &entry.body {
        Body::Command(payload) => Some(u64::from_be_bytes(payload.bytes().try_into().ok()?)),
        _ => None,
    }
}

impl World {
    /// A cluster that begins with these voters.
    pub(super) fn new(seed: u64, voters: usize, faults: Faults) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let network = Network::new(rng.next_u64(), faults);
        let mut world = World {
            now: Time(1_000_000),
            rng,
            network,
            hosts: Vec::new(),
            oracle: Oracle::default(),
            clients: Clients::default(),
            ballast: 0,
        };
        let members: BTreeSet<Member> = (1..=voters as u64).map(Member).collect();
        let peers = members.iter().map(|member| (*member, peer(member.0 as usize - 1))).collect();
        let membership = Membership { voters: members, peers, ..Membership::default() };
        for _ in 0..voters {
            world.add_host(membership.clone());
        }
        world
    }

    /// A host with an empty disk; gives its number.
    pub(super) fn add_host(&mut self, membership: Membership) -> usize {
        let number = self.hosts.len();
        let position = if membership.voters.is_empty() { Position::default() } else { Position { term: 1, index: 1 } };
        let data = self.encode(&Vec::new());
        let snapshot = Snapshot { position, membership, data };
        let hard = HardState { term: position.term, vote: None };
        self.hosts.push(Host {
            member: Member(number as u64 + 1),
            raft: None,
            disk: Disk { hard, snapshot, entries: Vec::new() },
            applied: Vec::new(),
            index: 0,
            skew: 0,
            crash_in: None,
            forgets: false,
        });
        self.start(number);
        number
    }

    fn encode(&self, applied: &Applied) -> Payload {
        let bytes = postcard::to_stdvec(&(applied, vec![0u8; self.ballast])).expect("a list");
        Payload::new(Zeroizing::new(bytes))
    }

    fn local(&self, number: usize) -> Time {
        Time(self.now.0.saturating_add_signed(self.hosts[number].skew))
    }

    /// Starts a host from its disk.
    pub(super) fn start(&mut self, number: usize) {
        let seed = self.rng.next_u64();
        let now = self.local(number);
        let host = &mut self.hosts[number];
        let settings = Settings { member: host.member, timing: Timing::default(), seed };
        let (hard, entries) = (host.disk.hard, host.disk.entries.clone());
        host.raft = Some(Raft::restart(settings, hard, &host.disk.snapshot, entries, now));
        host.index = host.disk.snapshot.position.index;
        host.applied = decode(&host.disk.snapshot.data);
        self.settle(number);
    }

    pub(super) fn crash(&mut self, number: usize) {
        self.hosts[number].raft = None;
        self.hosts[number].crash_in = None;
        self.clients.proposed.retain(|(member, _), _| member.0 != number as u64 + 1);
        self.clients.reads.retain(|(member, _), _| member.0 != number as u64 + 1);
    }

    /// Does all that is ready on a host.
    pub(super) fn settle(&mut self, number: usize) {
        for _ in 0..10_000 {
            let Some(raft) = self.hosts[number].raft.as_mut() else { return };
            let Some(ready) = raft.poll_ready() else { return };
            if !self.carry_out(number, ready) {
                return self.crash(number);
            }
        }
        self.oracle.fail(number, "is never done".to_owned());
    }

    /// False when the host crashes over it.
    fn carry_out(&mut self, number: usize, ready: Ready) -> bool {
        if let Some(save) = ready.save
            && !self.save(number, save)
        {
            return false;
        }
        if let Some(snapshot) = ready.install {
            self.count("installed");
            self.hosts[number].applied = decode(&snapshot.data);
            self.hosts[number].index = snapshot.position.index;
            self.oracle.check_prefix(number, &self.hosts[number]);
        }
        for (to, message) in ready.messages {
            self.send(number, to, &message);
        }
        for entry in ready.committed {
            self.apply(number, entry);
        }
        for ReadDone { token, index } in ready.reads {
            let asked = self.clients.reads.remove(&(self.hosts[number].member, token));
            if let (Some(newest), Some(index)) = (asked, index) {
                self.count("reads");
                if index < newest {
                    self.oracle.fail(number, format!("a read at {index} misses what was told at {newest}"));
                }
            }
        }
        if let Some(lead) = ready.lead {
            self.oracle.check_lead(number, self.hosts[number].member, lead);
        }
        if ready.snapshot_wanted {
            let host = &self.hosts[number];
            let (index, state) = (host.index, self.encode(&host.applied));
            self.raft(number).provide_snapshot(index, state);
        }
        true
    }

    pub(super) fn raft(&mut self, number: usize) -> &mut Raft {
        self.hosts[number].raft.as_mut().expect("a running host")
    }

    /// False when the host crashes over it. A save is kept whole or not at all.
    fn save(&mut self, number: usize, save: Save) -> bool {
        let host = &mut self.hosts[number];
        let crash = match &mut host.crash_in {
            Some((0, after)) => Some(*after),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        if crash != Some(false) && !host.forgets {
            host.disk.store(save);
        }
        crash.is_none()
    }

    fn send(&mut self, number: usize, to: Member, message: &Message) {
        let from = self.hosts[number].member;
        let bytes = postcard::to_stdvec(&(from, to, message)).expect("a message");
        let bulk: usize = match message {
            Message::Append { entries, .. } => entries.len(),
            _ => 0,
        };
        assert!(bulk <= MAX_APPEND_ENTRIES && bytes.len() <= 300 << 10, "{} bytes", bytes.len());
        self.network.send(address(number), address(to.0 as usize - 1), bytes, self.now);
    }

    fn apply(&mut self, number: usize, entry: Entry) {
        let host = &mut self.hosts[number];
        if entry.position.index != host.index + 1 {
            return self.oracle.fail(number, format!("{:?} follows index {}", entry.position, host.index));
        }
        host.index += 1;
        if let Some(id) = command(&entry) {
            host.applied.push((entry.position.index, id));
        }
        let member = host.member;
        let proposed = self.clients.proposed.remove(&(member, entry.position.index));
        if let Some((position, id)) = proposed
            && position == entry.position
        {
            if command(&entry) != Some(id) {
                self.oracle.fail(number, format!("{position:?} is another command"));
            }
            self.clients.acknowledged.insert(id);
            self.clients.newest = self.clients.newest.max(position.index);
            *self.oracle.seen.entry("acknowledged").or_default() += 1;
        }
        self.oracle.check_committed(number, entry);
    }

    /// Somebody's command reaches the member; gives its id if it was taken.
    pub(super) fn propose(&mut self, number: usize) -> Option<u64> {
        self.propose_many(number, 1)
    }

    /// That many commands at once; gives the last one's id.
    pub(super) fn propose_many(&mut self, number: usize, count: usize) -> Option<u64> {
        let mut last = None;
        for _ in 0..count {
            let id = self.clients.next;
            self.clients.next += 1;
            let now = self.local(number);
            let at = self.hosts[number].raft.as_mut()?.propose(payload(id), now).ok()?;
            self.clients.proposed.insert((self.hosts[number].member, at.index), (at, id));
            last = Some(id);
        }
        self.settle(number);
        last
    }

    pub(super) fn read(&mut self, number: usize) {
        let (token, now) = (self.clients.next, self.local(number));
        self.clients.next += 1;
        let Some(raft) = self.hosts[number].raft.as_mut() else { return };
        raft.read(token, now);
        self.clients.reads.insert((self.hosts[number].member, token), self.clients.newest);
        self.settle(number);
    }

    pub(super) fn change(&mut self, number: usize, change: Change) -> Result<Position, ChangeError> {
        let now = self.local(number);
        let changed = self.raft(number).change(change, now);
        self.settle(number);
        changed
    }

    pub(super) fn learner(&mut self, leader: usize) -> Option<usize> {
        let number = self.add_host(Membership::default());
        let added = self.change(leader, Change::Learner(Member(number as u64 + 1), peer(number)));
        if added.is_err() {
            self.hosts.pop();
        }
        added.is_ok().then_some(number)
    }

    pub(super) fn hand_over(&mut self, number: usize) {
        let now = self.local(number);
        if self.raft(number).hand_over(now, |_| true) {
            self.count("handed over");
        }
        self.settle(number);
    }

    /// Cuts the log of a host down to a snapshot of what it has applied.
    pub(super) fn compact(&mut self, number: usize) {
        let host = &self.hosts[number];
        let (index, state) = (host.index, self.encode(&host.applied));
        let Some(raft) = self.hosts[number].raft.as_mut() else { return };
        let Some(save) = raft.compact(index, state) else { return };
        self.count("compacted");
        if !self.save(number, save) {
            return self.crash(number);
        }
        self.settle(number);
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.oracle.seen.entry(what).or_default() += 1;
    }

    /// Lets the next thing happen, if it is before `end`.
    fn turn(&mut self, end: Time) -> bool {
        let timer = |(number, host): (usize, &Host)| {
            let due = host.raft.as_ref()?.poll_timeout();
            Some((Time(due.0.saturating_add_signed(-host.skew)).max(self.now), number))
        };
        let timer = self.hosts.iter().enumerate().filter_map(timer).min();
        let delivery = self.network.next_delivery();
        let next = timer.map(|(at, _)| at).into_iter().chain(delivery).min().filter(|at| *at <= end);
        let Some(at) = next else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(at);
        if let Some(delivery) = self.network.deliver(self.now) {
            let (from, to, message): (Member, Member, Message) =
                postcard::from_bytes(&delivery.payload).expect("a message");
            self.deliver(from, to, message);
        } else if let Some((at, number)) = timer
            && at <= self.now
        {
            let now = self.local(number);
            self.raft(number).handle_timeout(now);
            self.settle(number);
        }
        true
    }

    fn deliver(&mut self, from: Member, to: Member, message: Message) {
        let number = to.0 as usize - 1;
        let now = self.local(number);
        let Some(raft) = self.hosts[number].raft.as_mut() else { return };
        if let Err(broken) = raft.step(from, message, now) {
            return self.oracle.fail(number, broken.to_string());
        }
        self.settle(number);
    }

    pub(super) fn run_until(&mut self, end: Time) {
        while self.turn(end) {}
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// The host that leads, by its own word, in the newest term.
    pub(super) fn leader(&self) -> Option<usize> {
        let lead = |(number, host): (usize, &Host)| {
            let lead = host.raft.as_ref()?.lead();
            lead.established.then_some((lead.term, number))
        };
        self.hosts.iter().enumerate().filter_map(lead).max().map(|(_, number)| number)
    }
}

impl Disk {
    fn store(&mut self, save: Save) {
        self.hard = save.hard;
        if let Some(snapshot) = save.snapshot {
            self.snapshot = snapshot;
            self.entries.clear();
        }
        self.entries.retain(|entry| entry.position.index <= save.after);
        self.entries.extend(save.entries);
    }
}

fn decode(state: &Payload) -> Applied {
    let (applied, _): (Applied, Vec<u8>) = postcard::from_bytes(state.bytes()).expect("a state");
    applied
}

impl Oracle {
    pub(super) fn fail(&mut self, number: usize, what: String) {
        self.failures.push(format!("member {}: {what}", number + 1));
    }

    fn check_lead(&mut self, number: usize, member: Member, lead: Lead) {
        if lead.leader == Some(member) {
            let first = *self.leaders.entry(lead.term).or_insert(member);
            if first != member {
                self.fail(number, format!("leads term {}, and so does {first:?}", lead.term));
            }
        }
    }

    fn check_committed(&mut self, number: usize, entry: Entry) {
        let first = self.committed.entry(entry.position.index).or_insert_with(|| entry.clone());
        if *first != entry {
            let text = format!("{entry:?} is committed, and so is {first:?}");
            self.fail(number, text);
        }
    }

    /// What a snapshot brought is what was committed up to there.
    fn check_prefix(&mut self, number: usize, host: &Host) {
        let committed =
            self.committed.range(..=host.index).filter_map(|(index, entry)| Some((*index, command(entry)?)));
        if !committed.eq(host.applied.iter().copied()) {
            self.fail(number, format!("its snapshot at {} is not what was committed", host.index));
        }
    }
}
