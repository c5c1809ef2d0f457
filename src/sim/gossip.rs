//! A swarm of gossip machines on a simulated network, with managers that sign what they are told to.
//!
//! Oracles that hold in every run: no (key, nonce) is used twice, no datagram is longer than allowed.

use super::network::{Faults, Network};
use crate::crypto::{SigningKey, X25519Secret};
use crate::gossip::{EpochKeys, Gossip, GossipConfig, GossipEvent, MemberState, Timing};
use crate::types::{
    BootId, ClusterId, EndpointKey, Epoch, Fork, Generation, Key32, NetworkId, NodeAddresses, NodeId, PublicKey,
    Queues, TaskId, Time,
};
use crate::wire::gossip::{DATAGRAM_MAX, Form, Header};
use crate::wire::record::{
    EndpointRecord, NodeRecord, RecordBody, RecordKey, RecordVersion, RingRecord, SignedRecord, TrustBundle,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The managers as gossip sees them: keys of epochs, and signatures.
pub struct Managers {
    /// The swarm.
    pub cluster: ClusterId,
    /// The life of its state.
    pub fork: Fork,
    /// The epoch that records are attested in.
    pub epoch: Epoch,
    key: SigningKey,
    index: u64,
    ring: (u64, RecordBody),
}

/// How far ring records are ahead of the log, so that hosts are told a head once and not before every record.
const HEAD_AHEAD: u64 = 1 << 40;

impl Managers {
    /// Managers of a new swarm, whose epoch is 2.
    pub fn new() -> Managers {
        let key = SigningKey::new(&Key32::new([0x51; 32]));
        let ring = (HEAD_AHEAD, RecordBody::Ring(RingRecord { active: Epoch(2), oldest: Epoch(1) }));
        Managers { cluster: ClusterId::from_random([7; 17]), fork: Fork(1_000), epoch: Epoch(2), key, index: 0, ring }
    }

    /// The next index of their log.
    pub fn next_index(&mut self) -> u64 {
        self.index += 1;
        self.index
    }

    /// What nodes are told to trust.
    pub fn trust(&self) -> TrustBundle {
        TrustBundle { keys: vec![self.key.public()], fork: self.fork }
    }

    /// The gossip key of an epoch.
    pub fn gossip_key(&self, epoch: Epoch) -> Key32 {
        Key32::new(crate::crypto::sha256(&[b"simulated gossip key", &epoch.0.to_be_bytes()]))
    }

    /// Signs a body as the newest of its key; a ring record far ahead.
    pub fn sign(&mut self, body: RecordBody) -> SignedRecord {
        let index = self.next_index();
        let RecordBody::Ring(_) = body else { return self.sign_at(index, self.epoch, body) };
        self.ring = (HEAD_AHEAD + index, body);
        self.ring_record()
    }

    /// The ring record of the present epoch.
    pub fn ring_record(&self) -> SignedRecord {
        let (index, body) = &self.ring;
        self.sign_at(*index, self.epoch, body.clone())
    }

    /// Signs a body with a chosen log index and epoch.
    #[allow(clippy::expect_used)]
    pub fn sign_at(&self, index: u64, epoch: Epoch, body: RecordBody) -> SignedRecord {
        let version = RecordVersion { fork: self.fork, generation: Generation { fork: self.fork, index }, epoch };
        SignedRecord::sign(&self.key, self.cluster, version, body).expect("records of the simulation are well-formed")
    }

    /// Signs an endpoint of a node. `sealed` is opaque to gossip.
    pub fn sign_endpoint(&mut self, key: EndpointKey, node: NodeId, alive: bool, sealed: Vec<u8>) -> SignedRecord {
        let index = self.next_index();
        let generation = Generation { fork: self.fork, index };
        let body = RecordBody::Endpoint(EndpointRecord { key, node, generation, alive, sealed });
        self.sign_at(index, self.epoch, body)
    }
}

impl Default for Managers {
    fn default() -> Managers {
        Managers::new()
    }
}

/// One host.
pub struct Host {
    /// Its node.
    pub node: NodeId,
    /// Its gossip address.
    pub address: SocketAddr,
    /// Its present boot.
    pub boot: BootId,
    /// Log index of that boot.
    pub boot_index: u64,
    /// The machine; `None` while it is dead.
    pub gossip: Option<Gossip>,
    /// What the machine reported, and when.
    pub events: Vec<(Time, GossipEvent)>,
    secrets: BTreeMap<Epoch, Arc<X25519Secret>>,
}

/// A swarm.
pub struct GossipSwarm {
    /// Virtual time.
    pub now: Time,
    /// The network.
    pub network: Network,
    /// The managers.
    pub managers: Managers,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The intervals of machines started from now on.
    pub timing: Timing,
    rng: StdRng,
    nonces: BTreeSet<Vec<u8>>,
    /// Datagrams sent so far.
    pub sent: u64,
}

/// The epochs that hosts hold from their start.
const EPOCHS: [Epoch; 3] = [Epoch(1), Epoch(2), Epoch(3)];

impl GossipSwarm {
    /// `hosts` running hosts. Each knows its own record and that of the first; the rest is up to gossip.
    pub fn new(seed: u64, hosts: usize, faults: Faults) -> GossipSwarm {
        let mut swarm = GossipSwarm {
            now: Time(0),
            network: Network::new(seed, faults),
            managers: Managers::new(),
            hosts: Vec::new(),
            timing: Timing::default(),
            rng: StdRng::seed_from_u64(seed ^ 0x9e37_79b9_7f4a_7c15),
            nonces: BTreeSet::new(),
            sent: 0,
        };
        for number in 0..hosts {
            swarm.add_host(number);
            swarm.boot(number);
        }
        swarm
    }

    fn add_host(&mut self, number: usize) {
        let node = NodeId::from_random(self.random());
        let [high, low] = (number as u16).to_be_bytes();
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 168, high, low)), 7946);
        self.hosts.push(Host {
            node,
            address,
            boot: BootId([0; 8]),
            boot_index: 0,
            gossip: None,
            events: Vec::new(),
            secrets: BTreeMap::new(),
        });
    }

    fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// Starts a host with a new boot: it opens its session, is told keys, its record and the first live host's.
    pub fn boot(&mut self, number: usize) {
        let (boot, seed, boot_index) = (BootId(self.random()), self.random(), self.managers.next_index());
        let secrets: BTreeMap<Epoch, Arc<X25519Secret>> = EPOCHS.map(|epoch| (epoch, self.new_secret())).into();
        let host = &mut self.hosts[number];
        (host.boot, host.boot_index, host.secrets) = (boot, boot_index, secrets);
        let config = GossipConfig {
            cluster: self.managers.cluster,
            fork: self.managers.fork,
            node: host.node,
            boot,
            timing: self.timing,
        };
        host.gossip = Some(Gossip::new(config, self.now, seed));
        let record = self.node_record(number);
        let own = self.managers.sign(record);
        let keys = EPOCHS.map(|epoch| self.epoch_keys(number, epoch));
        let introducer = (0..self.hosts.len()).find(|other| *other != number && self.hosts[*other].gossip.is_some());
        let introduction: Vec<SignedRecord> = introducer.and_then(|other| self.own_record(other)).into_iter().collect();
        let (trust, active, now) = (self.managers.trust(), self.managers.epoch, self.now);
        let ring = self.managers.ring_record();
        if let Some(gossip) = &mut self.hosts[number].gossip {
            gossip.set_trust(trust);
            assert!(keys.into_iter().all(|keys| gossip.set_epoch(keys).is_ok()), "epochs of a new boot are taken");
            gossip.set_active(active);
            assert_eq!(gossip.set_own_record(own, now), Ok(()));
            gossip.insert_records([ring].into_iter().chain(introduction), now);
        }
        self.drain(number);
    }

    fn new_secret(&mut self) -> Arc<X25519Secret> {
        Arc::new(X25519Secret::new(&Key32::new(self.random())))
    }

    /// What the managers say of a host, with its publics of the epochs it has secrets for.
    pub fn node_record(&self, number: usize) -> RecordBody {
        let host = &self.hosts[number];
        let publics: Vec<(Epoch, PublicKey)> =
            host.secrets.iter().map(|(epoch, secret)| (*epoch, secret.public())).collect();
        let newest = publics.len().saturating_sub(3);
        RecordBody::Node(NodeRecord {
            node: host.node,
            boot: host.boot,
            boot_index: host.boot_index,
            version: "sim".into(),
            addresses: NodeAddresses {
                control: host.address,
                gossip: host.address,
                data: host.address,
                behind_nat: false,
            },
            queues: Queues::ONE,
            publics: publics.into_iter().skip(newest).collect(),
        })
    }

    /// The record of a host as the host itself has it.
    pub fn own_record(&self, number: usize) -> Option<SignedRecord> {
        let host = &self.hosts[number];
        let record = host.gossip.as_ref()?.record(&RecordKey::Node(host.node))?;
        Some(record.signed().clone())
    }

    /// The keys of an epoch for a host; its secret of the epoch is drawn at the first call.
    pub fn epoch_keys(&mut self, number: usize, epoch: Epoch) -> EpochKeys {
        let fresh = self.new_secret();
        let secret = Arc::clone(self.hosts[number].secrets.entry(epoch).or_insert(fresh));
        EpochKeys { epoch, gossip_key: self.managers.gossip_key(epoch), secret }
    }

    /// Stops a host without a word.
    pub fn kill(&mut self, number: usize) {
        self.hosts[number].gossip = None;
    }

    /// A running host's machine.
    #[allow(clippy::expect_used)]
    pub fn gossip(&mut self, number: usize) -> &mut Gossip {
        self.hosts[number].gossip.as_mut().expect("the host runs")
    }

    /// Hands a record to one host, as its manager session would.
    pub fn insert(&mut self, number: usize, record: SignedRecord) {
        let now = self.now;
        self.gossip(number).insert_records([record], now);
        self.drain(number);
    }

    /// Signs `count` endpoints of a host and hands them to it. Returns their keys.
    pub fn publish_endpoints(&mut self, number: usize, count: usize) -> Vec<RecordKey> {
        let mut keys = Vec::new();
        for _ in 0..count {
            let key =
                EndpointKey { network: NetworkId::from_random([1; 17]), task: TaskId::from_random(self.random()) };
            let node = self.hosts[number].node;
            let record = self.managers.sign_endpoint(key, node, true, vec![0xee; 150]);
            keys.push(record.key());
            self.insert(number, record);
        }
        keys
    }

    /// The managers rotate: `next` becomes active, the one after it is handed out, the one before it erased, and all
    /// records of running hosts are attested anew. Hosts not in `online` hear nothing of it by their managers.
    pub fn rotate(&mut self, online: &[usize]) {
        let active = self.managers.epoch.next();
        self.managers.epoch = active;
        let retired = Epoch(active.0.saturating_sub(2));
        for number in online {
            let keys = self.epoch_keys(*number, active.next());
            self.hosts[*number].secrets.retain(|epoch, _| *epoch > retired);
            assert_eq!(self.gossip(*number).set_epoch(keys), Ok(()));
        }
        let ring = self.managers.sign(RecordBody::Ring(RingRecord { active, oldest: retired.next() }));
        let mut records = vec![ring];
        for number in online {
            let record = self.node_record(*number);
            records.push(self.managers.sign(record));
        }
        let now = self.now;
        for number in online {
            let gossip = self.gossip(*number);
            gossip.insert_records(records.clone(), now);
            gossip.set_active(active);
            gossip.erase_epoch(retired);
            self.drain(*number);
        }
    }

    /// Runs for a while.
    pub fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    /// Runs until a condition holds; returns how long that took, or `None` if it did not within `limit`.
    pub fn run_until(&mut self, limit: Duration, condition: impl Fn(&GossipSwarm) -> bool) -> Option<Duration> {
        let (start, end) = (self.now, self.now + limit);
        loop {
            if condition(self) {
                return Some(self.now.since(start));
            }
            let next_look = (self.now + Duration::from_millis(50)).min(end);
            while self.step(next_look) {}
            if self.now >= end {
                return condition(self).then(|| self.now.since(start));
            }
        }
    }

    /// Goes to the next event, at most to `end`; false when there.
    fn step(&mut self, end: Time) -> bool {
        let timers = self.hosts.iter().filter_map(|host| host.gossip.as_ref()?.poll_timeout());
        let next = timers.chain(self.network.next_delivery()).min().unwrap_or(end);
        if next >= end {
            self.now = end;
            return false;
        }
        self.now = self.now.max(next);
        while let Some(delivery) = self.network.deliver(self.now) {
            let target = self.hosts.iter().position(|host| host.address == delivery.to);
            let Some(number) = target else { continue };
            let now = self.now;
            if let Some(gossip) = &mut self.hosts[number].gossip {
                gossip.handle_datagram(delivery.from, &delivery.payload, now);
                self.drain(number);
            }
        }
        for number in 0..self.hosts.len() {
            let now = self.now;
            let due =
                self.hosts[number].gossip.as_mut().filter(|gossip| gossip.poll_timeout().is_some_and(|at| at <= now));
            if let Some(gossip) = due {
                gossip.handle_timeout(now);
                self.drain(number);
            }
        }
        true
    }

    /// Takes what a machine wants to send and to tell.
    pub fn drain(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        let Some(gossip) = &mut host.gossip else { return };
        while let Some(event) = gossip.poll_event() {
            host.events.push((self.now, event));
        }
        let boots: BTreeMap<SocketAddr, BootId> =
            gossip.members().map(|member| (member.address, member.boot)).collect();
        while let Some(transmit) = gossip.poll_transmit() {
            assert!(transmit.payload.len() <= DATAGRAM_MAX, "a datagram of {} octets", transmit.payload.len());
            let identity = nonce_identity(&transmit.payload, transmit.to, boots.get(&transmit.to));
            assert!(self.nonces.insert(identity), "a (key, nonce) twice");
            self.sent += 1;
            self.network.send(host.address, transmit.to, transmit.payload, self.now);
        }
    }

    /// Numbers of the running hosts.
    pub fn running(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|number| self.hosts[*number].gossip.is_some()).collect()
    }

    /// Whether all running hosts hold the same records.
    pub fn agrees(&self) -> bool {
        let versions = |gossip: &Gossip| -> Vec<(RecordKey, RecordVersion)> {
            gossip.records().map(|record| (record.key(), record.version())).collect()
        };
        let mut all = self.hosts.iter().filter_map(|host| host.gossip.as_ref()).map(versions);
        let first = all.next();
        all.all(|other| Some(other) == first)
    }

    /// Whether every running host other than `about` sees that host's present boot so.
    pub fn all_see(&self, about: usize, state: MemberState) -> bool {
        let subject = &self.hosts[about];
        self.hosts.iter().enumerate().filter(|(number, _)| *number != about).all(|(_, host)| {
            host.gossip.as_ref().is_none_or(|gossip| {
                gossip
                    .members()
                    .any(|member| (member.node, member.boot, member.state) == (subject.node, subject.boot, state))
            })
        })
    }

    /// Whether all running hosts see each other up.
    pub fn all_up(&self) -> bool {
        self.running().into_iter().all(|number| self.all_see(number, MemberState::Up))
    }
}

/// What must differ between any two datagrams: the identity of the key, and the nonce.
fn nonce_identity(datagram: &[u8], to: SocketAddr, boot: Option<&BootId>) -> Vec<u8> {
    let Ok((header, _)) = Header::parse(datagram) else { return datagram.to_vec() };
    match header.form {
        Form::Hello { .. } => header.emit(),
        Form::Pair { .. } => {
            let mut identity = header.emit();
            identity.extend_from_slice(to.to_string().as_bytes());
            identity.extend(boot.iter().flat_map(|boot| boot.0));
            identity
        }
    }
}
