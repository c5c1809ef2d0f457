//! A manager: the production's replica on a virtual disk and virtual streams, and what its loops do around it with the
//! same intervals. What it does while it leads is in `leading`.

use super::leading::{Frames, Leading};
use super::{Planted, client::OpRef, random};
use crate::cluster::{Lock, State};
use crate::manager::book::RecordBook;
use crate::manager::handle::ManagerError;
use crate::manager::replica::{Replica, Shell, Verdict};
use crate::raft::{Entry, HardState, Lead, Member, Membership, Message, Raft, Save, Settings, Snapshot, Timing};
use crate::types::{NodeId, Time, UnixTime};
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// What survives a crash.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) member: Member,
    hard: HardState,
    snapshot: Snapshot,
    entries: Vec<Entry>,
    /// What the files are locked with.
    pub(super) lock: Lock,
}

impl Disk {
    /// A manager's first disk.
    pub(super) fn new(member: Member, snapshot: Snapshot, state: &State) -> Disk {
        let hard = HardState { term: snapshot.position.term, vote: None };
        Disk { member, hard, snapshot, entries: Vec::new(), lock: state.cluster.lock.clone() }
    }

    fn keep(&mut self, save: &Save) {
        self.hard = save.hard;
        if let Some(snapshot) = &save.snapshot {
            self.snapshot = snapshot.clone();
            self.entries.clear();
        }
        self.entries.retain(|entry| entry.position.index <= save.after);
        self.entries.extend(save.entries.iter().cloned());
    }
}

/// When a manager's process dies over a write.
#[derive(Debug, Clone, Copy)]
pub(super) struct CrashPlan {
    /// After so many more writes.
    pub(super) saves: u64,
    /// The last one is durable, though nothing follows from it any more; or it is lost, with all of it.
    pub(super) kept: bool,
}

/// Who waits for a verdict.
pub(super) enum Proposer {
    /// The planner, in this term.
    Plan(u64),
    /// The session of a node: its opening, or what it said.
    Session(NodeId, u64),
    /// Somebody's command.
    Op(OpRef),
}

/// What the replica works on.
pub(super) struct Ends {
    pub(super) state: State,
    pub(super) disk: Disk,
    crash: Option<CrashPlan>,
    /// What is in the log and was not applied yet.
    journal: BTreeMap<u64, Entry>,
    outbox: Vec<(Member, Message)>,
    told: Vec<(Proposer, Verdict)>,
    read: Vec<(OpRef, Option<u64>)>,
    removed: Vec<NodeId>,
    leads: Vec<(Lead, bool)>,
    /// Voters that this manager, if it leads, has not heard for a while.
    pub(super) silent: BTreeSet<Member>,
    changed: bool,
    addresses: BTreeMap<Member, SocketAddr>,
    /// Those that spoke to it: they have to be answered, whatever its log says of the members.
    met: BTreeMap<Member, SocketAddr>,
}

impl Ends {
    /// Writes to the disk, unless the process dies over it.
    fn write(&mut self, change: impl FnOnce(&mut Disk)) -> Result<(), ManagerError> {
        let crash = match &mut self.crash {
            Some(CrashPlan { saves: 0, kept }) => Some(*kept),
            Some(plan) => {
                plan.saves -= 1;
                None
            }
            None => None,
        };
        if crash != Some(false) {
            change(&mut self.disk);
        }
        match crash {
            None => Ok(()),
            Some(_) => Err(ManagerError::Unavailable("the process died".into())),
        }
    }
}

impl Shell for Ends {
    type Proposer = Proposer;
    type Reader = OpRef;

    fn save(&mut self, save: &Save) -> Result<(), ManagerError> {
        let written = self.write(|disk| disk.keep(save));
        if save.snapshot.as_ref().is_some_and(|snapshot| snapshot.position.index > self.state.index) {
            // The leader's: what the log held may never have been committed.
            self.journal.clear();
        }
        self.journal.retain(|index, _| *index <= save.after);
        self.journal.extend(save.entries.iter().map(|entry| (entry.position.index, entry.clone())));
        written
    }

    fn follow_lock(&mut self, lock: &Lock) -> Result<(), ManagerError> {
        if lock.since <= self.disk.lock.since { Ok(()) } else { self.write(|disk| disk.lock = lock.clone()) }
    }

    fn send(&mut self, to: Member, message: Message) {
        self.outbox.push((to, message));
    }

    fn set_members(&mut self, members: &Membership) {
        self.addresses = members.peers.iter().map(|(member, peer)| (*member, peer.address)).collect();
    }

    fn with<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state)
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state)
    }

    fn end_session(&mut self, node: NodeId) {
        self.removed.push(node);
    }

    fn verdict(&mut self, proposer: Proposer, verdict: Verdict) {
        self.told.push((proposer, verdict));
    }

    fn read_done(&mut self, reader: OpRef, index: Option<u64>) {
        self.read.push((reader, index));
    }

    fn follow_lead(&mut self, lead: Lead, here: bool) {
        self.leads.push((lead, here));
    }

    fn notify(&mut self) {
        self.changed = true;
    }

    fn silent(&mut self, voters: BTreeSet<Member>) {
        self.silent = voters;
    }
}

/// What a manager wants done after an input.
#[derive(Default)]
pub(super) struct Said {
    /// For other managers.
    pub(super) messages: Vec<(SocketAddr, Vec<u8>)>,
    /// Applied now, in order.
    pub(super) committed: Vec<Entry>,
    /// The leader's state took the place of its own.
    pub(super) installed: bool,
    /// It leads this term now.
    pub(super) leads: Vec<(u64, Member)>,
    /// Ends of commands and reads.
    pub(super) verdicts: Vec<(OpRef, Verdict)>,
    pub(super) reads: Vec<(OpRef, Option<u64>)>,
    /// Sessions that are open now, or refused.
    pub(super) opened: Vec<(NodeId, u64, bool)>,
    /// Heartbeats that were heard.
    pub(super) alive: Vec<(NodeId, u64)>,
    /// Sessions whose connection it closes.
    pub(super) closed: Vec<(NodeId, u64)>,
    /// Sessions that end since the node was removed.
    pub(super) removed: Vec<(NodeId, u64)>,
    pub(super) frames: Vec<Frames>,
}

/// One manager.
pub(super) struct Manager {
    pub(super) replica: Replica<Ends>,
    /// While it leads, with the state of all leaders before it.
    pub(super) leading: Option<Leading>,
    /// Who leads, as far as it knows.
    pub(super) leader: Option<Member>,
    pub(super) book: RecordBook,
    pub(super) rng: StdRng,
    planted: Planted,
    /// Refusals of what nodes and the planner wanted.
    pub(super) refused: Vec<String>,
}

impl Manager {
    /// Starts from a disk.
    pub(super) fn start(disk: Disk, mut rng: StdRng, planted: Planted, now: Time) -> Manager {
        let state = State::from_bytes(disk.snapshot.data.bytes()).expect("a stored state");
        let seed = u64::from_be_bytes(random(&mut rng));
        let settings = Settings { member: disk.member, timing: Timing::default(), seed };
        let raft = Raft::restart(settings, disk.hard, &disk.snapshot, disk.entries.clone(), now);
        let journal = disk.entries.iter().map(|entry| (entry.position.index, entry.clone())).collect();
        let position = disk.snapshot.position;
        let ends = Ends {
            state,
            disk,
            crash: None,
            journal,
            outbox: Vec::new(),
            told: Vec::new(),
            read: Vec::new(),
            removed: Vec::new(),
            leads: Vec::new(),
            silent: BTreeSet::new(),
            changed: false,
            addresses: BTreeMap::new(),
            met: BTreeMap::new(),
        };
        Manager {
            replica: Replica::new(ends, raft, position),
            leading: None,
            leader: None,
            book: RecordBook::default(),
            rng,
            planted,
            refused: Vec::new(),
        }
    }

    /// A message of another manager, from this address.
    pub(super) fn step(&mut self, from: (Member, SocketAddr), message: Message, now: Time) -> Result<(), ManagerError> {
        self.replica.shell.met.insert(from.0, from.1);
        self.replica.step(from.0, message, now)
    }

    /// Whether it was to die over a write.
    pub(super) fn is_doomed(&self) -> bool {
        self.replica.shell.crash.is_some()
    }

    /// It will die over a write.
    pub(super) fn crash(&mut self, plan: CrashPlan) {
        self.replica.shell.crash = Some(plan);
    }

    /// It will not die over a write after all.
    pub(super) fn spare(&mut self) {
        self.replica.shell.crash = None;
    }

    pub(super) fn state(&self) -> &State {
        &self.replica.shell.state
    }

    /// Its own seat.
    pub(super) fn member(&self) -> Member {
        self.replica.raft.member()
    }

    /// Where the leader's control port is, if another one leads.
    pub(super) fn leader_address(&self) -> Option<SocketAddr> {
        let leader = self.leader.filter(|leader| *leader != self.member())?;
        self.state().managers.values().find(|manager| manager.seat == leader.0).map(|manager| manager.address)
    }

    /// When [`Manager::turn`] wants to be called.
    pub(super) fn next_time(&self) -> Time {
        let leading = self.leading.as_ref().map(Leading::next_time);
        leading.into_iter().chain([self.replica.poll_timeout()]).min().unwrap_or_default()
    }

    /// Does all that is to be done. An error: the process has died, or must end; of what is said then, only what was
    /// applied and sent before counts.
    pub(super) fn turn(&mut self, now: Time, wall: UnixTime, said: &mut Said) -> Result<(), ManagerError> {
        loop {
            self.carry_out(now, said)?;
            let ends = &mut self.replica.shell;
            let told = std::mem::take(&mut ends.told);
            let leads = std::mem::take(&mut ends.leads);
            let removed = std::mem::take(&mut ends.removed);
            said.reads.append(&mut ends.read);
            let changed = std::mem::take(&mut ends.changed);
            let quiet = told.is_empty() && leads.is_empty() && removed.is_empty();
            for (proposer, verdict) in told {
                self.hear_verdict(proposer, verdict, now, said);
            }
            for (lead, here) in leads {
                self.follow_lead(lead, here, (now, wall), said);
            }
            if let Some(leading) = &mut self.leading {
                removed.into_iter().for_each(|node| leading.end_removed(node, said));
                leading.note_change(changed, now);
            }
            if !self.lead_on((now, wall), said) && quiet {
                break;
            }
        }
        self.push_all(now, said);
        Ok(())
    }

    /// The replica's turn, and what it applied and sends.
    fn carry_out(&mut self, now: Time, said: &mut Said) -> Result<(), ManagerError> {
        let before = self.state().index;
        let turned = self.replica.turn(now);
        let own = self.replica.raft.member();
        let ends = &mut self.replica.shell;
        for index in before + 1..=ends.state.index {
            match ends.journal.remove(&index) {
                Some(entry) => said.committed.push(entry),
                None => said.installed = true,
            }
        }
        for (to, message) in std::mem::take(&mut ends.outbox) {
            let bytes = postcard::to_stdvec(&(own, to, message)).expect("a message can be encoded");
            let address = ends.addresses.get(&to).or_else(|| ends.met.get(&to));
            said.messages.extend(address.map(|address| (*address, bytes)));
        }
        turned
    }

    fn hear_verdict(&mut self, proposer: Proposer, verdict: Verdict, now: Time, said: &mut Said) {
        match proposer {
            Proposer::Op(op) => said.verdicts.push((op, verdict)),
            Proposer::Plan(term) => {
                if let Err(error) = verdict {
                    self.refused.push(error.to_string());
                }
                if let Some(leading) = self.leading.as_mut().filter(|leading| leading.term == term) {
                    leading.planned_one();
                }
            }
            Proposer::Session(node, session) => {
                if let Some(leading) = &mut self.leading {
                    self.refused.extend(leading.session_verdict((node, session), verdict, now, said));
                }
            }
        }
    }

    fn follow_lead(&mut self, lead: Lead, here: bool, (now, wall): (Time, UnixTime), said: &mut Said) {
        self.leader = lead.leader;
        if here {
            said.leads.push((lead.term, self.member()));
        }
        if here && lead.established {
            if self.leading.as_ref().is_none_or(|leading| leading.term != lead.term) {
                let leading = Leading::new(lead.term, self.state(), (now, wall), self.planted);
                self.end_lead(said);
                self.leading = Some(leading);
            }
        } else if !here {
            self.end_lead(said);
        }
    }

    fn end_lead(&mut self, said: &mut Said) {
        if let Some(leading) = self.leading.take() {
            said.closed.extend(leading.sessions());
        }
    }
}
