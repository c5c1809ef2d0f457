//! Datagrams that nobody asked for, from the underlay, with any source address.

use crate::topology::OUTSIDER;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Reproducible randomness (SplitMix64): a failed test prints its seed.
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    /// Random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.roll().to_le_bytes()[0]).collect()
    }

    /// A changed copy: some bits flipped, cut, grown, or a part repeated.
    pub fn mutate(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        match self.below(4) {
            0 => bytes.truncate(self.below(original.len())),
            1 => bytes.extend(self.bytes_up_to(64)),
            2 => {
                let from = self.below(bytes.len());
                let part = bytes[from..].to_vec();
                bytes.extend(part);
            }
            _ => {
                for _ in 0..=self.below(8) {
                    let at = self.below(bytes.len());
                    let bit = self.below(8);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << bit;
                    }
                }
            }
        }
        if bytes == original {
            bytes.push(0);
        }
        bytes
    }

    fn bytes_up_to(&mut self, len: usize) -> Vec<u8> {
        let len = 1 + self.below(len);
        self.bytes(len)
    }
}

/// Sends UDP datagrams with forged source addresses.
pub struct Forger {
    socket: Socket,
}

impl Forger {
    /// Needs the topology's thread.
    pub fn new() -> Forger {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("a raw socket");
        socket.set_header_included_v4(true).expect("own IP headers");
        Forger { socket }
    }

    /// Sends one. Datagrams longer than the MTU are cut to it.
    pub fn send(&self, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), payload: &[u8]) {
        let payload = &payload[..payload.len().min(1472)];
        let packet = udp_packet(source, destination, payload);
        let to = SockAddr::from(SocketAddrV4::new(destination.0, 0));
        self.socket.send_to(&packet, &to).expect("send a forged datagram");
    }

    /// Sends one from the outsider's own address.
    pub fn send_as_outsider(&self, destination: (Ipv4Addr, u16), payload: &[u8]) {
        self.send((OUTSIDER, destination.1), destination, payload);
    }
}

impl Default for Forger {
    fn default() -> Forger {
        Forger::new()
    }
}

/// IPv4 and UDP headers around a payload. The kernel fills in the IP checksum; UDP's is left out (0), as IPv4 allows.
fn udp_packet(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(28 + payload.len()).expect("fits the MTU");
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source.0.octets());
    packet.extend(destination.0.octets());
    packet.extend(source.1.to_be_bytes());
    packet.extend(destination.1.to_be_bytes());
    packet.extend((total - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}
