//! Replicas on real stores in virtual time, without streams: disks that fail at any step, a lead that is handed over,
//! and a manager that was long away.

use super::store::{copy, occurs, state_of};
use super::*;
use crate::cluster::{Entry, Lock, NewTokens, NodeState, Reply};
use crate::manager::disk::failing;
use crate::manager::handle::ManagerError;
use crate::manager::lock::KeyFile;
use crate::manager::members;
use crate::manager::replica::{Replica, Shell, Verdict};
use crate::manager::store::{Loaded, Owner, STORE_FILE, Store, testing};
use crate::raft::{
    Consensus as _, Lead, MAX_APPEND_BYTES, MAX_APPEND_ENTRIES, MAX_PIECE_BYTES, Member, Membership, Message, Payload,
    Peer, Position, Raft, Save, Settings, Snapshot, Timing,
};
use crate::types::{EpochPhase, Key32, Role, Time, UnlockKey};

const SECOND: Duration = Duration::from_secs(1);

/// What a replica works on here.
struct Ends {
    store: Store,
    state: State,
    sent: Vec<(Member, Message)>,
    verdicts: BTreeMap<u64, Verdict>,
    lead: Option<Lead>,
}

impl Shell for Ends {
    type Proposer = u64;
    type Reader = u64;

    fn save(&mut self, save: &Save) -> Result<(), ManagerError> {
        if let Some(snapshot) = &save.snapshot {
            let state = State::from_bytes(snapshot.data.bytes()).unwrap();
            let behind = self.store.next_seal(&state.cluster.lock).is_some();
            assert!(!behind, "a fresh at-rest key is written under a former lock");
        }
        Ok(self.store.save(save)?)
    }

    fn follow_lock(&mut self, lock: &Lock) -> Result<(), ManagerError> {
        self.store.follow_lock(lock)?;
        Ok(())
    }

    fn send(&mut self, to: Member, message: Message) {
        self.sent.push((to, message));
    }

    fn set_members(&mut self, _members: &Membership) {}

    fn with<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state)
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state)
    }

    fn end_session(&mut self, _node: NodeId) {}

    fn verdict(&mut self, proposer: u64, verdict: Verdict) {
        assert!(self.verdicts.insert(proposer, verdict).is_none(), "told twice");
    }

    fn read_done(&mut self, _reader: u64, _index: Option<u64>) {}

    fn follow_lead(&mut self, lead: Lead, _here: bool) {
        self.lead = Some(lead);
    }

    fn notify(&mut self) {}
}

/// A swarm's first state with so many managers, as a snapshot.
fn first(managers: u8) -> Snapshot {
    let scratch = Scratch::new();
    let loaded = smol::block_on(async {
        let (_, params) = params(quick());
        let (manager, _) = Manager::create(scratch.path(), params).await.unwrap();
        manager.stop().await;
        Store::open(scratch.path(), None).unwrap().1
    });
    let mut state = state_of(&loaded);
    for number in 1..managers {
        let add = Command::AddNode {
            id: NodeId::from_random([number; 17]),
            role: Role::Manager,
            hostname: format!("manager{number}"),
            software: "0.1.0".to_owned(),
            addresses: addresses(),
            availability: Availability::Active,
            certificate_expires: UnixTime(u64::MAX),
            root: state.root_digest(),
        };
        state.apply(&Entry { at: state.at, command: add }).0.unwrap();
    }
    let seat =
        |node: &crate::cluster::Node| (Member(node.seat), Peer { node: node.id, address: node.addresses.control });
    let peers: BTreeMap<Member, Peer> = state.nodes.values().map(seat).collect();
    let membership = Membership { voters: peers.keys().copied().collect(), peers, ..Membership::default() };
    state.managers = members::seats(&membership);
    let position = Position { term: 1, index: state.index };
    Snapshot { position, membership, data: Payload::new(state.to_bytes().unwrap()) }
}

fn replica(member: Member, (store, loaded): (Store, Loaded), now: Time) -> Replica<Ends> {
    let Loaded { hard, snapshot, entries, .. } = loaded;
    let settings = Settings { member, timing: Timing::default(), seed: member.0 };
    let raft = Raft::restart(settings, hard, &snapshot, entries, now);
    let state = State::from_bytes(snapshot.data.bytes()).unwrap();
    let ends = Ends { store, state, sent: Vec::new(), verdicts: BTreeMap::new(), lead: None };
    Replica::new(ends, raft, snapshot.position)
}

/// One that begins with a snapshot, in an empty directory.
fn begin(directory: &Path, member: Member, snapshot: &Snapshot) -> Replica<Ends> {
    let owner = Owner { node: snapshot.membership.peers[&member].node, member };
    drop(Store::create(directory, owner, snapshot, &Lock::default()).unwrap());
    replica(member, Store::open(directory, None).unwrap(), Time::default())
}

fn network(name: &str, label: &str) -> Command {
    let spec = NetworkSpec {
        name: name.to_owned(),
        labels: BTreeMap::from([("ballast".to_owned(), label.to_owned())]),
        options: BTreeMap::new(),
        encrypted: true,
        subnet: None,
        gateway: None,
        ..NetworkSpec::default()
    };
    Command::CreateNetwork { id: NetworkId::from_random(random()), spec }
}

/// A swarm's only manager on a disk that fails, the commands it is given, and what it must keep.
struct Alone {
    scratch: Scratch,
    directory: PathBuf,
    replica: Replica<Ends>,
    now: Time,
    /// Proposals that were taken, by number.
    done: u64,
}

/// What the only manager is told to do, in order: the retirement comes with a compaction.
const SCRIPT: u64 = 6;

impl Alone {
    fn new(snapshot: &Snapshot) -> Alone {
        let scratch = Scratch::in_memory();
        let directory = scratch.path().join("manager");
        let member = *snapshot.membership.voters.first().unwrap();
        let owner = Owner { node: snapshot.membership.peers[&member].node, member };
        // Not opened again: a fresh store is on a disk that can fail.
        let store = Store::create(&directory, owner, snapshot, &Lock::default()).unwrap();
        let snapshot = snapshot.clone();
        let hard = crate::raft::HardState { term: snapshot.position.term, vote: None };
        let loaded = Loaded { owner, hard, snapshot, entries: Vec::new() };
        let replica = replica(member, (store, loaded), Time::default());
        let mut alone = Alone { scratch, directory, replica, now: Time::default(), done: 0 };
        alone.turn().unwrap();
        alone
    }

    fn turn(&mut self) -> Result<(), ManagerError> {
        self.now = self.now + Duration::from_millis(10);
        self.replica.turn(self.now)
    }

    fn command(&self, number: u64) -> Command {
        let phase = |phase| self.replica.shell.state.ring.phase(phase).map(|held| held.epoch);
        match number {
            2 => Command::Activate { epoch: phase(EpochPhase::Next).unwrap(), late: false },
            3 => Command::Retire { epoch: phase(EpochPhase::Previous).unwrap() },
            4 => Command::DrawNext { master: Key32::new([7; 32]) },
            _ => network(&format!("net{number}"), ""),
        }
    }

    /// Gives commands until the disk fails, or all are done.
    fn work(&mut self) -> Result<(), ManagerError> {
        while self.done < SCRIPT {
            self.replica.propose(self.command(self.done), UnixTime(2_000_000_000 + self.done), self.done, self.now);
            self.turn()?;
            self.replica
                .shell
                .verdicts
                .remove(&self.done)
                .expect("a verdict")
                .unwrap_or_else(|error| panic!("{error}"));
            self.done += 1;
        }
        Ok(())
    }

    /// What a crash at this moment leaves is a store with all that was acknowledged.
    fn check_disk(&self, what: &str, retired: &[u8; 32]) {
        let crashed = self.scratch.path().join("crashed");
        copy(&self.directory, &crashed);
        let raw = std::fs::read(crashed.join(STORE_FILE)).unwrap();
        let (_, loaded) = Store::open(&crashed, None).unwrap_or_else(|error| panic!("{what}: {error}"));
        let state = state_of(&loaded);
        for number in (0..self.done).filter(|number| !(2..=4).contains(number)) {
            let name = format!("net{number}");
            assert!(state.networks.values().any(|network| network.spec.name == name), "{what}: {name} is lost");
        }
        if self.done > 3 {
            let plain = testing::plain_records(&crashed, &raw);
            assert!(!plain.iter().any(|(_, plain)| occurs(plain, retired)), "{what}: the retired master is there");
        }
        std::fs::remove_dir_all(&crashed).unwrap();
    }
}

/// The disk fails at its `step`th step, and twice more from the `again`th after it was mended. Whether it did.
fn survives(snapshot: &Snapshot, step: u64, again: Option<u64>) -> (bool, bool) {
    let what = format!("step {step}, then {again:?}");
    let mut alone = Alone::new(snapshot);
    let retired = *alone.replica.shell.state.ring.phase(EpochPhase::Current).unwrap().master.expose();
    failing::fail_after(&alone.directory, step);
    let Err(error) = alone.work() else { return (false, false) };
    assert!(matches!(&error, ManagerError::Store(_)), "{what}: {error}");
    alone.check_disk(&what, &retired);
    alone.replica.pause(&error, alone.now);
    let told = alone.replica.shell.verdicts.remove(&alone.done);
    assert!(matches!(told, None | Some(Err(ManagerError::Store(_)))), "{what}: {told:?}");
    assert!(alone.replica.shell.verdicts.is_empty(), "{what}: nobody else is told anything");
    let mut failed_again = false;
    if let Some(again) = again {
        failing::fail_after(&alone.directory, again);
        failed_again = alone.replica.resume().is_err();
        alone.check_disk(&what, &retired);
    }
    if failed_again {
        // A third time, once the keys are written and nothing else: the file in place must still open.
        failing::fail_after(&alone.directory, 1);
        assert!(alone.replica.resume().is_err(), "{what}");
        alone.check_disk(&what, &retired);
    }
    failing::mend(&alone.directory);
    if again.is_none() || failed_again {
        alone.replica.resume().unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    // It leads again. The command that was under way is committed after all, or was never written: either is right,
    // and its proposer was told so.
    alone.turn().unwrap();
    assert!(alone.replica.raft.lead().established, "{what}");
    let state = &alone.replica.shell.state;
    let taken = match alone.done {
        2 => state.ring.phase(EpochPhase::Previous).is_some(),
        3 => state.ring.phase(EpochPhase::Previous).is_none(),
        4 => state.ring.phase(EpochPhase::Next).is_some(),
        number => state.networks.values().any(|network| network.spec.name == format!("net{number}")),
    };
    alone.done += u64::from(taken);
    alone.work().unwrap_or_else(|error| panic!("{what}: {error}"));
    alone.check_disk(&what, &retired);
    let state = alone.replica.shell.state.to_bytes().unwrap();
    let Alone { directory, replica, scratch: _scratch, .. } = alone;
    drop(replica);
    assert_eq!(KeyFile::read(&directory, None).unwrap().1.len(), 1, "{what}: a key");
    assert!(
        *state_of(&Store::open(&directory, None).unwrap().1).to_bytes().unwrap() == *state,
        "{what}: after a restart"
    );
    (true, failed_again)
}

#[test]
fn a_disk_that_fails_at_any_step_costs_nothing_that_was_acknowledged() {
    let snapshot = first(1);
    let mut step = 0;
    while survives(&snapshot, step, None).0 {
        step += 1;
    }
    println!("failed at each of {step} steps");
    assert!(step > 50, "only {step} steps");
}

/// The power fails: of what was not synced each sector is on the disk or not.
#[test]
fn a_power_cut_at_any_step_costs_nothing_that_was_acknowledged() {
    let snapshot = first(1);
    let (mut step, mut cuts) = (0, 0);
    loop {
        let before = cuts;
        for seed in 0..4 {
            let mut alone = Alone::new(&snapshot);
            let retired = *alone.replica.shell.state.ring.phase(EpochPhase::Current).unwrap().master.expose();
            failing::cut_after(&alone.directory, step, seed);
            if alone.work().is_err() {
                cuts += 1;
                alone.check_disk(&format!("step {step}, seed {seed}"), &retired);
            }
            failing::mend(&alone.directory);
        }
        if cuts == before {
            break;
        }
        step += 1;
    }
    println!("{cuts} power cuts at {step} steps");
    assert!(cuts > 200, "only {cuts} power cuts");
}

#[test]
fn a_disk_that_fails_again_while_the_store_is_replaced_costs_nothing() {
    let snapshot = first(1);
    let mut again = 0;
    while survives(&snapshot, 3, Some(again)).1 {
        again += 1;
    }
    println!("failed again at each of {again} steps");
    assert!(again > 10, "only {again} steps");
}

/// Several managers; messages arrive at the next turn, in order.
struct Swarm3 {
    scratch: Scratch,
    now: Time,
    replicas: BTreeMap<Member, Replica<Ends>>,
    largest: usize,
    pieces: usize,
}

impl Swarm3 {
    fn new() -> Swarm3 {
        let snapshot = first(3);
        let scratch = Scratch::in_memory();
        let members = snapshot.membership.voters.iter().copied();
        let begun =
            members.map(|member| (member, begin(&scratch.path().join(member.0.to_string()), member, &snapshot)));
        let replicas = begun.collect();
        Swarm3 { scratch, now: Time::default(), replicas, largest: 0, pieces: 0 }
    }

    /// A millisecond passes.
    fn turn(&mut self) {
        self.now = self.now + Duration::from_millis(1);
        let mut under_way = Vec::new();
        for (from, replica) in &mut self.replicas {
            under_way
                .extend(std::mem::take(&mut replica.shell.sent).into_iter().map(|(to, message)| (*from, to, message)));
        }
        for (from, to, message) in under_way {
            self.measure(&message);
            if let Some(replica) = self.replicas.get_mut(&to) {
                replica.step(from, message, self.now).unwrap();
            }
        }
        for replica in self.replicas.values_mut() {
            replica.turn(self.now).unwrap();
        }
    }

    fn measure(&mut self, message: &Message) {
        self.largest = self.largest.max(postcard::to_stdvec(message).unwrap().len());
        match message {
            Message::Append { entries, .. } => assert!(entries.len() <= MAX_APPEND_ENTRIES),
            Message::Piece { .. } => self.pieces += 1,
            _ => {}
        }
    }

    fn until(&mut self, what: &str, patience: Duration, found: impl Fn(&Swarm3) -> bool) -> Duration {
        let start = self.now;
        while !found(self) {
            assert!(self.now.since(start) < patience, "not in time: {what}");
            self.turn();
        }
        self.now.since(start)
    }

    fn leader(&self) -> Option<Member> {
        self.replicas.iter().find(|(_, replica)| replica.raft.lead().established).map(|(member, _)| *member)
    }

    fn directory(&self, member: Member) -> PathBuf {
        self.scratch.path().join(member.0.to_string())
    }
}

#[test]
fn a_leader_that_leaves_is_followed_at_once() {
    let mut swarm = Swarm3::new();
    swarm.until("a leader", 10 * SECOND, |swarm| swarm.leader().is_some());
    for round in 0..3 {
        let leader = swarm.leader().unwrap();
        let term = swarm.replicas[&leader].raft.lead().term;
        let now = swarm.now;
        let leaving = swarm.replicas.get_mut(&leader).unwrap();
        leaving.propose(network(&format!("before{round}"), ""), UnixTime(0), 1, now);
        leaving.leave();
        leaving.propose(network(&format!("after{round}"), ""), UnixTime(0), 2, now);
        assert!(matches!(leaving.shell.verdicts.remove(&2), Some(Err(ManagerError::NotLeader))), "nothing new here");
        let taken = |swarm: &Swarm3| swarm.leader().is_some_and(|next| next != leader);
        let gap = swarm.until("another leader", SECOND / 10, taken);
        println!("followed after {gap:?} of messages that take 1 ms");
        let next = swarm.leader().unwrap();
        assert_eq!(swarm.replicas[&next].raft.lead().term, term + 1, "one election");
        let name = format!("before{round}");
        let has = |swarm: &Swarm3| swarm.replicas[&next].shell.state.networks.values().any(|it| it.spec.name == name);
        assert!(has(&swarm), "what was proposed before is committed");
        // It is started again.
        swarm.replicas.remove(&leader);
        let again = replica(leader, Store::open(&swarm.directory(leader), None).unwrap(), swarm.now);
        swarm.replicas.insert(leader, again);
        let all_know = |swarm: &Swarm3| swarm.replicas[&leader].raft.lead().leader == Some(next);
        swarm.until("it follows", 5 * SECOND, all_know);
    }
}

#[test]
fn two_that_are_to_go_do_not_pass_the_lead_to_each_other() {
    let mut swarm = Swarm3::new();
    swarm.until("a leader", 10 * SECOND, |swarm| swarm.leader().is_some());
    let leader = swarm.leader().unwrap();
    let silent = *swarm.replicas.keys().find(|member| **member != leader).unwrap();
    swarm.replicas.remove(&silent);
    swarm.until("it counts as silent", 3 * SECOND, {
        let until = swarm.now + 2 * SECOND;
        move |swarm| swarm.now >= until
    });
    for (number, member) in swarm.replicas.keys().copied().collect::<Vec<_>>().into_iter().enumerate() {
        let now = swarm.now;
        let replica = swarm.replicas.get_mut(&leader).unwrap();
        let node = replica.shell.state.nodes.values().find(|node| node.seat == member.0).unwrap();
        let demote = Command::UpdateNode {
            node: node.id,
            version: node.version,
            role: Role::Worker,
            availability: node.availability,
            labels: node.labels.clone(),
        };
        replica.propose(demote, UnixTime(0), number as u64, now);
    }
    let managers = |state: &State| state.nodes.values().filter(|node| node.role == Role::Manager).count();
    let demoted = |swarm: &Swarm3| swarm.replicas.values().all(|it| managers(&it.shell.state) == 1);
    swarm.until("both are demoted", SECOND, demoted);
    let term = swarm.replicas[&leader].raft.lead().term;
    let until = swarm.now + 5 * SECOND;
    swarm.until("5 s", 6 * SECOND, |swarm| swarm.now >= until);
    assert_eq!(swarm.leader(), Some(leader), "nobody else could do better");
    assert_eq!(swarm.replicas[&leader].raft.lead().term, term);
    let late = replica(silent, Store::open(&swarm.directory(silent), None).unwrap(), swarm.now);
    swarm.replicas.insert(silent, late);
    let alone = |swarm: &Swarm3| swarm.replicas[&silent].raft.membership().voters.iter().eq([&silent]);
    swarm.until("the one that stays is the only one", 10 * SECOND, alone);
}

#[test]
fn one_that_was_away_while_the_swarm_was_locked_locks_before_it_takes_the_state_over() {
    let mut swarm = Swarm3::new();
    swarm.until("a leader", 10 * SECOND, |swarm| swarm.leader().is_some());
    let leader = swarm.leader().unwrap();
    let away = *swarm.replicas.keys().find(|member| **member != leader).unwrap();
    swarm.replicas.remove(&away);
    let key = Zeroizing::new([7; 32]);
    let cluster = &swarm.replicas[&leader].shell.state.cluster;
    let lock = Command::UpdateCluster {
        version: cluster.version,
        spec: ClusterSpec { autolock: true, ..cluster.spec.clone() },
        tokens: NewTokens { unlock: Some(key.clone()), ..NewTokens::default() },
        root: None,
    };
    let now = swarm.now;
    let leading = swarm.replicas.get_mut(&leader).unwrap();
    leading.propose(lock, UnixTime(0), 0, now);
    leading.propose(Command::UnlockKeySeen { key: key.clone() }, UnixTime(0), 1, now);
    let locked = |member| move |swarm: &Swarm3| swarm.replicas[&member].shell.state.cluster.lock.key.is_some();
    swarm.until("the swarm is locked", SECOND, locked(leader));
    // Its files are open, and the leader's log is cut: it is given the state as it is.
    let late = replica(away, Store::open(&swarm.directory(away), None).unwrap(), swarm.now);
    swarm.replicas.insert(away, late);
    swarm.until("it has the state", 10 * SECOND, locked(away));
    assert!(swarm.pieces > 0, "by a snapshot");
    for member in [leader, away] {
        let opened = |key: Option<&UnlockKey>| KeyFile::read(&swarm.directory(member), key).is_ok();
        assert!(!opened(None) && opened(Some(&UnlockKey(key.clone()))), "{member:?}");
    }
}

/// Entries that a manager misses.
const MISSED: u64 = 100_000;
/// Commands that are made durable together.
const BATCH: u64 = 250;

#[test]
fn one_that_misses_a_hundred_thousand_entries_catches_up_in_bounded_pieces() {
    let mut swarm = Swarm3::new();
    swarm.until("a leader", 10 * SECOND, |swarm| swarm.leader().is_some());
    let leader = swarm.leader().unwrap();
    let away = *swarm.replicas.keys().find(|member| **member != leader).unwrap();
    swarm.replicas.remove(&away);
    let start = Instant::now();
    let mut largest_store = 0;
    for round in 0..MISSED / BATCH {
        miss(&mut swarm, leader, round);
        largest_store = largest_store.max(std::fs::metadata(swarm.directory(leader).join(STORE_FILE)).unwrap().len());
    }
    // A state of several pieces; made last, since it is written anew with each cut of the log.
    let ballast = "x".repeat(16_000);
    for number in 0..60 {
        let now = swarm.now;
        let replica = swarm.replicas.get_mut(&leader).unwrap();
        replica.shell.verdicts.remove(&number);
        replica.propose(network(&format!("net{number}"), &ballast), UnixTime(0), number, now);
        swarm.turn();
    }
    let applied = |swarm: &Swarm3| swarm.replicas[&leader].shell.state.networks.len() == 60;
    swarm.until("durable", SECOND, applied);
    println!("{MISSED} entries while one is away: {:?}; the largest store: {largest_store} bytes", start.elapsed());
    let state = swarm.replicas[&leader].shell.state.to_bytes().unwrap().len();
    swarm.pieces = 0;
    let start = Instant::now();
    let late = replica(away, Store::open(&swarm.directory(away), None).unwrap(), swarm.now);
    swarm.replicas.insert(away, late);
    let behind = swarm.replicas[&leader].shell.state.index - swarm.replicas[&away].shell.state.index;
    assert!(behind >= MISSED);
    let even = |swarm: &Swarm3| swarm.replicas[&away].shell.state.index == swarm.replicas[&leader].shell.state.index;
    let took = swarm.until("caught up", 30 * SECOND, even);
    let bytes = |member| swarm.replicas[&member].shell.state.to_bytes().unwrap();
    assert!(*bytes(away) == *bytes(leader));
    println!(
        "a state of {state} bytes in {} pieces: {took:?} of messages that take 1 ms, {:?} of work; the largest message: {} bytes",
        swarm.pieces,
        start.elapsed(),
        swarm.largest
    );
    assert!(swarm.pieces >= state.div_ceil(MAX_PIECE_BYTES), "{} pieces", swarm.pieces);
    assert!(swarm.largest < MAX_PIECE_BYTES.max(MAX_APPEND_BYTES) + 4096, "{} bytes in a message", swarm.largest);
    // The log is cut every 2000 entries, whatever the number of those that were ever written.
    assert!(largest_store < 16 << 20, "a store of {largest_store} bytes");
}

/// One batch more is committed.
fn miss(swarm: &mut Swarm3, leader: Member, round: u64) {
    let now = swarm.now;
    let replica = swarm.replicas.get_mut(&leader).unwrap();
    replica.shell.verdicts.clear();
    let node = *replica.shell.state.nodes.keys().next().unwrap();
    for number in 0..BATCH {
        let message = format!("seen {}", round * BATCH + number);
        let command = Command::SetNodeState { node, state: NodeState::Unknown, message };
        replica.propose(command, UnixTime(0), number, now);
    }
    swarm.until("durable", SECOND, |swarm| swarm.replicas[&leader].shell.verdicts.len() as u64 == BATCH);
    let verdicts = swarm.replicas[&leader].shell.verdicts.values();
    assert!(verdicts.clone().all(|verdict| matches!(verdict, Ok((Reply::Done, _)))));
}
