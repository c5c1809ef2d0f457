//! A network in virtual time: datagrams are lost, delayed (so reordered), duplicated, cut off by partitions.

use crate::types::Time;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What goes wrong on the way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// The share of datagrams that are lost, 0 to 1.
    pub loss: f64,
    /// The share of datagrams that arrive twice, 0 to 1.
    pub duplication: f64,
    /// The shortest time under way.
    pub delay_min: Duration,
    /// The longest time under way; each datagram has its own, so they overtake each other.
    pub delay_max: Duration,
}

impl Faults {
    /// A quiet local network.
    pub const NONE: Faults = Faults {
        loss: 0.0,
        duplication: 0.0,
        delay_min: Duration::from_micros(100),
        delay_max: Duration::from_micros(100),
    };

    /// A network that loses this share, duplicates a twentieth, and delays by 1 to 60 ms.
    pub fn lossy(loss: f64) -> Faults {
        Faults { loss, duplication: 0.05, delay_min: Duration::from_millis(1), delay_max: Duration::from_millis(60) }
    }
}

/// A datagram that arrives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Whose it is.
    pub from: SocketAddr,
    /// Whom it reaches.
    pub to: SocketAddr,
    /// Its content.
    pub payload: Vec<u8>,
}

/// The network. Hosts are told apart by their IP addresses.
pub struct Network {
    rng: StdRng,
    faults: Faults,
    queue: BinaryHeap<Reverse<(Time, u64)>>,
    in_flight: BTreeMap<u64, Delivery>,
    sent: u64,
    groups: BTreeMap<IpAddr, usize>,
    blocked: BTreeSet<(IpAddr, IpAddr)>,
}

impl Network {
    /// An empty network.
    pub fn new(seed: u64, faults: Faults) -> Network {
        Network {
            rng: StdRng::seed_from_u64(seed),
            faults,
            queue: BinaryHeap::new(),
            in_flight: BTreeMap::new(),
            sent: 0,
            groups: BTreeMap::new(),
            blocked: BTreeSet::new(),
        }
    }

    /// Changes what goes wrong, for datagrams sent from now on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    /// Cuts the network: hosts reach those of their own group only. Hosts of no group are one group more.
    pub fn partition(&mut self, groups: &[Vec<IpAddr>]) {
        self.groups.clear();
        for (number, group) in groups.iter().enumerate() {
            self.groups.extend(group.iter().map(|host| (*host, number)));
        }
    }

    /// Ends the partition.
    pub fn heal(&mut self) {
        self.groups.clear();
    }

    /// Blocks one direction between two hosts.
    pub fn block(&mut self, from: IpAddr, to: IpAddr) {
        self.blocked.insert((from, to));
    }

    /// Ends all blocks.
    pub fn unblock_all(&mut self) {
        self.blocked.clear();
    }

    /// Ends a block.
    pub fn unblock(&mut self, from: IpAddr, to: IpAddr) {
        self.blocked.remove(&(from, to));
    }

    /// Sends a datagram.
    pub fn send(&mut self, from: SocketAddr, to: SocketAddr, payload: Vec<u8>, now: Time) {
        let copies = if self.rng.random_bool(self.faults.duplication) { 2 } else { 1 };
        for _ in 0..copies {
            if self.rng.random_bool(self.faults.loss) {
                continue;
            }
            let delay = self.rng.random_range(self.faults.delay_min..=self.faults.delay_max);
            self.sent += 1;
            self.queue.push(Reverse((now + delay, self.sent)));
            self.in_flight.insert(self.sent, Delivery { from, to, payload: payload.clone() });
        }
    }

    /// When the next datagram arrives.
    pub fn next_delivery(&self) -> Option<Time> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    /// The next datagram that has arrived by now. Those on the way when a cut happens are lost in it.
    pub fn deliver(&mut self, now: Time) -> Option<Delivery> {
        while self.next_delivery().is_some_and(|at| at <= now) {
            let Reverse((_, number)) = self.queue.pop()?;
            let delivery = self.in_flight.remove(&number)?;
            if self.is_open(delivery.from.ip(), delivery.to.ip()) {
                return Some(delivery);
            }
        }
        None
    }

    /// Whether what is sent now from one host to another is not cut off.
    pub fn is_open(&self, from: IpAddr, to: IpAddr) -> bool {
        self.groups.get(&from) == self.groups.get(&to) && !self.blocked.contains(&(from, to))
    }
}
