//! Datagrams that must not reach a container, each kind by itself through the real receive path: none is delivered, each
//! is counted under a reason of its kind, and honest packets between them arrive.
//!
//! The worst sender is a peer with every key that it is entitled to: it seals what it likes, by hand.

use crate::crypto;
use crate::dataplane::DataCommand;
use crate::dataplane::simulated::{Planes, device};
use crate::esp::{Direction, SaIdentity, SaKeys, spi};
use crate::overlay::DropReason;
use crate::types::{
    BootId, ClusterId, EndpointKey, Epoch, Fork, Generation, Key32, NetworkId, NodeId, PublicKey, Queues, TaskId, Time,
    Transform,
};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

/// Of each kind in an ordinary run.
const SOME: u64 = 2_000;
/// Of each kind in a long one (`scripts/check --long`).
const MILLION: u64 = 1_000_000;
/// An honest packet comes after so many others.
const HONEST_EVERY: u64 = 500;

const VICTIM: u8 = 1;
const PEER: u8 = 2;
const THIRD: u8 = 3;
const EPOCH: Epoch = Epoch(5);

fn network(number: u8) -> NetworkId {
    NetworkId::from_random([40 + number; 17])
}

/// The endpoint of a node on a network.
pub(super) fn address(network: u8, node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, network, node)
}

fn boot(node: u8) -> BootId {
    BootId([node; 8])
}

fn identity(number: u8, src: u8, dst: u8) -> SaIdentity {
    SaIdentity {
        transform: Transform::Gcm,
        cluster: ClusterId::from_random([9; 17]),
        fork: Fork(1),
        network: network(number),
        src: NodeId::from_random([src; 17]),
        dst: NodeId::from_random([dst; 17]),
        src_boot: boot(src),
        dst_boot: boot(dst),
        src_public: PublicKey([src; 32]),
        dst_public: PublicKey([dst; 32]),
        epoch: EPOCH,
        queue: 0,
    }
}

/// Some key for an SA, another one for each.
fn key(identity: &SaIdentity) -> ([u8; 32], [u8; 4]) {
    let hash = crypto::sha256(&[format!("{identity:?}").as_bytes()]);
    (hash, [hash[0], hash[9], hash[17], hash[31]])
}

/// Seals by hand (RFC 4106), whatever the plaintext.
pub(super) struct Sender {
    spi: [u8; 4],
    key: Key32,
    salt: [u8; 4],
    sequence: u64,
}

impl Sender {
    fn new(identity: &SaIdentity) -> Sender {
        let (key, salt) = key(identity);
        Sender { spi: spi(identity).0.to_be_bytes(), key: Key32::new(key), salt, sequence: 0 }
    }

    pub(super) fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        self.sequence += 1;
        let iv = self.sequence.to_be_bytes();
        let nonce: [u8; 12] = std::array::from_fn(|index| if index < 4 { self.salt[index] } else { iv[index - 4] });
        let sealed = crypto::seal(&self.key, &nonce, &[&self.spi[..], &iv].concat(), plain);
        [&self.spi[..], &iv[4..], &iv, &sealed].concat()
    }

    pub(super) fn packet(&mut self, inner: &[u8]) -> Vec<u8> {
        self.seal(&with_trailer(inner, 4))
    }
}

/// Padding, its length, the next header (RFC 4303, section 2.4).
pub(super) fn with_trailer(inner: &[u8], next_header: u8) -> Vec<u8> {
    let padding = (4 - (inner.len() + 2) % 4) % 4;
    [inner, &[1, 2, 3][..padding], &[padding as u8, next_header]].concat()
}

/// An IPv4 packet with some payload.
pub(super) fn inner(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let total = 20 + payload.len() as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 253, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend(payload);
    packet
}

/// Reproducible choices (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    fn octets(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.roll() as u8).collect()
    }

    fn address(&mut self) -> Ipv4Addr {
        Ipv4Addr::from(self.roll() as u32)
    }
}

/// A node with an endpoint on two networks, and two peers with one on each.
pub(super) struct Victim {
    pub(super) planes: Planes,
    containers: Vec<OwnedFd>,
}

impl Victim {
    pub(super) fn new() -> Victim {
        let mut victim = Victim { planes: Planes::new(boot(VICTIM), Queues::ONE), containers: Vec::new() };
        for number in [1, 2] {
            let (ours, theirs) = device();
            victim.containers.push(theirs);
            let (network, task) = (network(number), TaskId::from_random([number; 17]));
            let subnet = Some(format!("10.0.{number}.0/24").parse().unwrap());
            let endpoint = EndpointKey { network, task };
            let local = std::net::IpAddr::V4(address(number, VICTIM));
            let mut commands = vec![
                DataCommand::SetNetwork { network, transform: Transform::Gcm, subnet },
                DataCommand::AddEndpoint { endpoint, address: local, queues: vec![ours], vnet: false },
            ];
            for node in [PEER, THIRD] {
                let identity = identity(number, node, VICTIM);
                let (bytes, salt) = key(&identity);
                let keys = SaKeys::external(&identity, Key32::new(bytes), salt);
                let generation = Generation { fork: Fork(1), index: 1 };
                let (peer, address) = (identity.src, std::net::IpAddr::V4(address(number, node)));
                commands.push(DataCommand::SetRemote { network, address, peer, generation, alive: true });
                commands.push(DataCommand::InstallSa { identity, keys, direction: Direction::Inbound });
            }
            victim.planes.apply(&commands, Time(1));
        }
        victim
    }

    pub(super) fn receive(&mut self, datagram: &[u8]) {
        self.planes.receive(datagram, Time(2));
        // Nobody looks at them here; they must not pile up.
        while self.planes.poll_event().is_some() {}
    }

    /// What the containers got since the last look.
    pub(super) fn delivered(&self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for container in &self.containers {
            let mut buffer = vec![0; 2000];
            while let Ok(length) = nix::unistd::read(container, &mut buffer) {
                packets.push(buffer[..length].to_vec());
            }
        }
        packets
    }
}

/// All that attackers have.
pub(super) struct Attack {
    dice: Dice,
    /// The peer on the first network.
    pub(super) peer: Sender,
    /// The third node on the second network.
    elsewhere: Sender,
    /// The peer to an earlier boot of the victim.
    old_boot: Sender,
    /// The peer with the key of an epoch that the victim has not been given.
    epoch: Sender,
    /// The peer to the third node.
    pair: Sender,
    /// The third node in the peer's name.
    pub(super) impostor: Sender,
    /// What the victim has taken in.
    recorded: Vec<Vec<u8>>,
}

impl Attack {
    pub(super) fn new(seed: u64) -> Attack {
        let to_victim = identity(1, PEER, VICTIM);
        let mut impostor = Sender::new(&identity(1, THIRD, VICTIM));
        impostor.spi = spi(&to_victim).0.to_be_bytes();
        // Else it would be taken for a replay before its tag is looked at.
        impostor.sequence = 1 << 32;
        Attack {
            dice: Dice(seed),
            peer: Sender::new(&to_victim),
            elsewhere: Sender::new(&identity(2, THIRD, VICTIM)),
            old_boot: Sender::new(&SaIdentity { dst_boot: BootId([77; 8]), ..to_victim }),
            epoch: Sender::new(&SaIdentity { epoch: EPOCH.next(), ..to_victim }),
            pair: Sender::new(&identity(1, PEER, THIRD)),
            impostor,
            recorded: Vec::new(),
        }
    }

    /// What the peer may send.
    fn honest_inner(&mut self) -> Vec<u8> {
        let len = self.dice.below(200);
        inner(address(1, PEER), address(1, VICTIM), &self.dice.octets(len))
    }

    pub(super) fn honest(&mut self) -> (Vec<u8>, Vec<u8>) {
        let inner = self.honest_inner();
        (self.peer.packet(&inner), inner)
    }
}

/// Its name, how to make one, and the reasons under which it may be counted.
type Kind = (&'static str, fn(&mut Attack) -> Vec<u8>, &'static [DropReason]);

const KINDS: &[Kind] = &[
    ("random octets", random, &[DropReason::TooShort, DropReason::UnknownSpi, DropReason::SpiZero]),
    ("a flipped bit", flipped, &[DropReason::UnknownSpi, DropReason::IvMismatch, DropReason::BadTag]),
    (
        "a piece of a datagram",
        piece,
        &[DropReason::TooShort, DropReason::UnknownSpi, DropReason::SpiZero, DropReason::BadTag],
    ),
    ("a replay", replayed, &[DropReason::Replayed, DropReason::TooOld]),
    ("an old boot", |attack| sealed_by(attack, |attack| &mut attack.old_boot), &[DropReason::UnknownSpi]),
    ("another epoch", |attack| sealed_by(attack, |attack| &mut attack.epoch), &[DropReason::UnknownSpi]),
    ("another pair", |attack| sealed_by(attack, |attack| &mut attack.pair), &[DropReason::UnknownSpi]),
    ("another node's key", |attack| sealed_by(attack, |attack| &mut attack.impostor), &[DropReason::BadTag]),
    ("another network", other_network, &[DropReason::ForeignSource, DropReason::ForeignDestination]),
    ("another's address", spoofed, &[DropReason::ForeignSource]),
    ("not for here", astray, &[DropReason::ForeignDestination, DropReason::Multicast, DropReason::Broadcast]),
    ("bad padding", bad_padding, &[DropReason::BadPadding]),
    ("a bad next header", bad_next_header, &[DropReason::BadNextHeader]),
    ("a false length", false_length, &[DropReason::MalformedInner]),
];

fn random(attack: &mut Attack) -> Vec<u8> {
    let len = attack.dice.below(300);
    let octets = attack.dice.octets(len);
    // That one is a keep-alive: accepted and ignored.
    if octets == [0xff] { vec![0xfe] } else { octets }
}

fn flipped(attack: &mut Attack) -> Vec<u8> {
    let (mut datagram, _) = attack.honest();
    let (at, bit) = (attack.dice.below(datagram.len()), attack.dice.below(8));
    datagram[at] ^= 1 << bit;
    datagram
}

fn piece(attack: &mut Attack) -> Vec<u8> {
    let (datagram, _) = attack.honest();
    let cut = 1 + attack.dice.below(datagram.len() - 1);
    match attack.dice.below(2) {
        0 => datagram[..cut].to_vec(),
        // Without its SPI what follows is none.
        _ => datagram[cut.max(8)..].to_vec(),
    }
}

fn replayed(attack: &mut Attack) -> Vec<u8> {
    let which = attack.dice.below(attack.recorded.len());
    attack.recorded[which].clone()
}

fn sealed_by(attack: &mut Attack, sender: fn(&mut Attack) -> &mut Sender) -> Vec<u8> {
    let inner = attack.honest_inner();
    sender(attack).packet(&inner)
}

fn other_network(attack: &mut Attack) -> Vec<u8> {
    // Its own address on the network that it is for, or on the one that it comes by.
    let source = address(1 + attack.dice.below(2) as u8, THIRD);
    attack.elsewhere.packet(&inner(source, address(1, VICTIM), b"across"))
}

fn spoofed(attack: &mut Attack) -> Vec<u8> {
    let source = match attack.dice.below(4) {
        0 => address(1, THIRD),
        1 => address(1, VICTIM),
        2 => address(2, PEER),
        _ => attack.dice.address(),
    };
    attack.peer.packet(&inner(source, address(1, VICTIM), b"not mine"))
}

fn astray(attack: &mut Attack) -> Vec<u8> {
    let destination = match attack.dice.below(5) {
        0 => address(1, THIRD),
        1 => address(2, VICTIM),
        2 => Ipv4Addr::BROADCAST,
        3 => Ipv4Addr::new(224, 0, 0, 251),
        _ => attack.dice.address(),
    };
    attack.peer.packet(&inner(address(1, PEER), destination, b"not yours"))
}

fn bad_padding(attack: &mut Attack) -> Vec<u8> {
    let inner = attack.honest_inner();
    let mut plain = with_trailer(&inner, 4);
    let end = plain.len();
    let padding = usize::from(plain[end - 2]);
    if padding > 0 && attack.dice.below(2) == 0 {
        let wrong = end - 3 - attack.dice.below(padding);
        plain[wrong] ^= 1 << attack.dice.below(8);
    } else {
        // Longer than the packet.
        plain.truncate(attack.dice.below(end.min(200)) & !3);
        let length = plain.len();
        plain.extend([1, 2, (length + 3 + attack.dice.below(40)) as u8, 4]);
    }
    attack.peer.seal(&plain)
}

fn bad_next_header(attack: &mut Attack) -> Vec<u8> {
    let next_header = loop {
        let octet = attack.dice.roll() as u8;
        // IPv4, and "nothing", which carries control messages.
        if octet != 4 && octet != 59 {
            break if attack.dice.below(2) == 0 { 41 } else { octet };
        }
    };
    let inner = attack.honest_inner();
    attack.peer.seal(&with_trailer(&inner, next_header))
}

fn false_length(attack: &mut Attack) -> Vec<u8> {
    let mut packet = attack.honest_inner();
    match attack.dice.below(3) {
        0 => {
            let length = packet.len() as u16;
            let wrong = loop {
                let octets = attack.dice.roll() as u16;
                if octets != length {
                    break octets;
                }
            };
            packet[2..4].copy_from_slice(&wrong.to_be_bytes());
        }
        1 => packet.truncate(attack.dice.below(packet.len())),
        // A header that is shorter than a header, or longer than the packet.
        _ if packet.len() < 60 && attack.dice.below(2) == 0 => packet[0] = 0x4f,
        _ => packet[0] = 0x40 | attack.dice.below(5) as u8,
    }
    attack.peer.packet(&packet)
}

fn attack_with(count: u64) {
    let mut victim = Victim::new();
    let mut attack = Attack::new(0x000f_071c);
    for _ in 0..64 {
        let (datagram, inner) = attack.honest();
        victim.receive(&datagram);
        assert_eq!(victim.delivered(), [inner]);
        attack.recorded.push(datagram);
    }
    for (name, make, reasons) in KINDS {
        let before = victim.planes.drops();
        for number in 0..count {
            let datagram = make(&mut attack);
            victim.receive(&datagram);
            if number % HONEST_EVERY == 0 {
                assert_eq!(victim.delivered(), Vec::<Vec<u8>>::new(), "{name}: delivered up to number {number}");
                let (datagram, inner) = attack.honest();
                victim.receive(&datagram);
                assert_eq!(victim.delivered(), [inner], "{name}: an honest packet after number {number}");
            }
        }
        assert_eq!(victim.delivered(), Vec::<Vec<u8>>::new(), "{name}");
        let after = victim.planes.drops();
        let counted: u64 = reasons.iter().map(|&reason| after.packets(reason) - before.packets(reason)).sum();
        assert_eq!(
            counted,
            count,
            "{name}: {:?}",
            after.iter().filter(|(_, packets)| *packets > 0).collect::<Vec<_>>()
        );
        assert_eq!(after.total() - before.total(), count, "{name}");
    }
}

#[test]
fn nothing_forged_reaches_a_container_and_each_kind_has_its_counter() {
    attack_with(SOME);
}

/// Takes a minute with optimisation: `scripts/check --long`.
#[test]
#[ignore = "long: scripts/check --long"]
fn a_million_of_each_kind() {
    attack_with(MILLION);
}
