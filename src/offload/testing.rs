//! Random traffic of a container, twice: as the frame that its kernel hands over, and as the packets that a kernel
//! without offloads would have sent. The packets are built by `etherparse`, not by the code under test.

use super::{Gso, GsoKind, OpenChecksum, VnetHeader};
use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};
use std::net::IpAddr;
use std::num::NonZeroU16;

/// What a container's kernel hands over.
pub(crate) struct Sent {
    /// Virtio header and packet.
    pub(crate) frame: Vec<u8>,
    /// What it stands for.
    pub(crate) packets: Vec<Vec<u8>>,
}

/// Streams of one container to another: a few flows that go on, and single packets of all kinds between them.
pub(crate) struct Traffic {
    source: IpAddr,
    destination: IpAddr,
    flows: Vec<Flow>,
    identification: u16,
}

#[derive(Clone)]
struct Flow {
    ports: (u16, u16),
    udp: bool,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    options: Vec<u8>,
    mss: usize,
    dscp_ecn: u8,
    ttl: u8,
    dont_fragment: bool,
    /// IPv6 extension headers.
    extension: bool,
}

/// The network header of one packet around its transport segment.
struct Network<'a> {
    flow: &'a Flow,
    identification: u16,
}

impl Traffic {
    pub(crate) fn new(source: IpAddr, destination: IpAddr, random: &mut StdRng) -> Traffic {
        let flows = (0..random.random_range(1..6)).map(|number| Flow {
            ports: (1000 + number, random.random_range(1..3)),
            udp: random.random_bool(0.4),
            sequence: if random.random_bool(0.3) { u32::MAX - 5000 } else { random.random() },
            acknowledged: random.random(),
            window: random.random(),
            options: random_options(random),
            mss: [1, 9, 536, 1000, 1386, 1400][random.random_range(0..6)],
            dscp_ecn: [0, 0, 2, 0x28][random.random_range(0..4)],
            ttl: 64,
            dont_fragment: random.random_bool(0.7),
            extension: source.is_ipv6() && random.random_bool(0.2),
        });
        Traffic { source, destination, flows: flows.collect(), identification: random.random() }
    }

    /// The next frame.
    pub(crate) fn next(&mut self, random: &mut StdRng) -> Sent {
        let index = random.random_range(0..self.flows.len());
        let Some(flow) = self.flows.get_mut(index) else { unreachable!("it is in range") };
        match random.random_range(0..20) {
            0 => flow.acknowledged = flow.acknowledged.wrapping_add(1),
            1 => flow.window ^= 1,
            2 => flow.dscp_ecn ^= 3,
            3 => flow.ttl = flow.ttl.wrapping_sub(1).max(1),
            4 => flow.options = random_options(random),
            5 => flow.sequence = random.random(),
            _ => {}
        }
        let flow = flow.clone();
        match random.random_range(0..12) {
            0 => self.odd_packet(&flow, random),
            _ if flow.udp => self.datagrams(&flow, random),
            _ => self.segments(index, &flow, random),
        }
    }

    fn segments(&mut self, index: usize, flow: &Flow, random: &mut StdRng) -> Sent {
        let length = random_length(flow.mss, random);
        let payload = random_payload(length, random);
        let mut header = TcpHeader::new(flow.ports.0, flow.ports.1, flow.sequence, flow.window);
        header.acknowledgment_number = flow.acknowledged;
        header.ack = random.random_bool(0.98);
        header.psh = random.random_bool(0.3);
        header.fin = random.random_bool(0.05);
        header.syn = random.random_bool(0.02);
        header.rst = random.random_bool(0.02);
        header.ece = random.random_bool(0.05);
        header.cwr = random.random_bool(0.05);
        header.urg = random.random_bool(0.03);
        header.urgent_pointer = if header.urg { random.random_range(0..3000) } else { 0 };
        header.set_options_raw(&flow.options).unwrap();
        if let Some(flow) = self.flows.get_mut(index) {
            flow.sequence = flow.sequence.wrapping_add(length as u32);
        }
        let starts: Vec<usize> = (0..length.max(1)).step_by(flow.mss).collect();
        let last = starts.len() - 1;
        let segments = starts.iter().enumerate().map(|(number, &start)| {
            let mut own = header.clone();
            own.sequence_number = header.sequence_number.wrapping_add(start as u32);
            own.psh &= number == last;
            own.fin &= number == last;
            own.cwr &= number == 0;
            if own.urg && number > 0 {
                own.urgent_pointer = usize::from(header.urgent_pointer).saturating_sub(start) as u16;
                own.urg = own.urgent_pointer > 0;
            }
            self.tcp_bytes(&own, &payload[start..length.min(start + flow.mss)])
        });
        let segments: Vec<Vec<u8>> = segments.collect();
        let whole = self.tcp_bytes(&header, &payload);
        let kind = if self.source.is_ipv6() { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        self.sent(flow, segments, whole, (kind, 16, header.cwr), random)
    }

    fn datagrams(&mut self, flow: &Flow, random: &mut StdRng) -> Sent {
        let length = random_length(flow.mss, random).min(flow.mss * 100);
        let payload = random_payload(length, random);
        let starts = (0..length.max(1)).step_by(flow.mss);
        let mut segments: Vec<Vec<u8>> = starts
            .map(|start| self.udp_bytes(flow, payload.get(start..length.min(start + flow.mss)).unwrap_or_default()))
            .collect();
        if let ([only], true) = (&mut segments[..], random.random_bool(0.1))
            && self.source.is_ipv4()
        {
            // No checksum.
            only[6..8].fill(0);
            let whole = only.clone();
            let packet = self.network(flow, &whole, 0);
            return Sent { frame: framed(&VnetHeader::FINISHED, &packet), packets: vec![packet] };
        }
        let whole = self.udp_bytes(flow, &payload);
        self.sent(flow, segments, whole, (GsoKind::Udp, 6, false), random)
    }

    /// What is never joined: fragments, ICMP, other protocols, damaged checksums, an IPv4 header with options.
    fn odd_packet(&mut self, flow: &Flow, random: &mut StdRng) -> Sent {
        let length = random.random_range(0..1400);
        let payload = random_payload(length, random);
        let mut segment = self.udp_bytes(flow, &payload);
        let number = match random.random_range(0..3) {
            0 => {
                let at = random.random_range(0..segment.len());
                segment[at] ^= 1 << random.random_range(0..8);
                IpNumber::UDP
            }
            1 => IpNumber::ICMP,
            _ => IpNumber(random.random_range(100..200)),
        };
        let mut plain = flow.clone();
        plain.extension = false;
        let mut packet = Network { flow: &plain, identification: self.identification }.around(self, number, &segment);
        if self.source.is_ipv4() && random.random_bool(0.3) {
            // A first fragment.
            packet[6] = 0x20;
            packet[10..12].fill(0);
            let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&packet[..20]).ones_complement();
            packet[10..12].copy_from_slice(&sum.to_ne_bytes());
        }
        Sent { frame: framed(&VnetHeader::FINISHED, &packet), packets: vec![packet] }
    }

    /// One frame, sometimes with nothing left to do if it is one packet only.
    fn sent(
        &mut self,
        flow: &Flow,
        segments: Vec<Vec<u8>>,
        mut whole: Vec<u8>,
        (kind, offset, ecn): (GsoKind, u16, bool),
        random: &mut StdRng,
    ) -> Sent {
        let packets: Vec<Vec<u8>> =
            (0..).zip(&segments).map(|(number, segment)| self.network(flow, segment, number)).collect();
        if packets.len() == 1 && random.random_bool(0.3) {
            self.identification = self.identification.wrapping_add(1);
            return Sent { frame: framed(&VnetHeader::FINISHED, &packets[0]), packets };
        }
        let pseudo = self.pseudo_sum(flow, whole.len());
        whole[usize::from(offset)..usize::from(offset) + 2].copy_from_slice(&pseudo);
        let super_packet = self.network(flow, &whole, 0);
        let start = (super_packet.len() - whole.len()) as u16;
        let gso = Gso { kind, size: NonZeroU16::new(flow.mss as u16).unwrap(), ecn };
        let header = VnetHeader {
            checksum: Some(OpenChecksum { start, offset }),
            gso: (packets.len() > 1).then_some(gso),
            header_len: 0,
        };
        self.identification = self.identification.wrapping_add(packets.len() as u16);
        Sent { frame: framed(&header, &super_packet), packets }
    }

    fn network(&self, flow: &Flow, segment: &[u8], number: u16) -> Vec<u8> {
        let protocol = if flow.udp { IpNumber::UDP } else { IpNumber::TCP };
        Network { flow, identification: self.identification.wrapping_add(number) }.around(self, protocol, segment)
    }

    fn tcp_bytes(&self, header: &TcpHeader, payload: &[u8]) -> Vec<u8> {
        let mut header = header.clone();
        header.checksum = match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload),
            (IpAddr::V6(from), IpAddr::V6(to)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload),
            _ => panic!("addresses of two families"),
        }
        .unwrap();
        // The library leaves a checksum of 0; Formic writes the same number as 0xffff.
        header.checksum = if header.checksum == 0 { 0xffff } else { header.checksum };
        [header.to_bytes().as_slice(), payload].concat()
    }

    fn udp_bytes(&self, flow: &Flow, payload: &[u8]) -> Vec<u8> {
        let (from, to) = flow.ports;
        let mut header = UdpHeader::without_ipv4_checksum(from, to, payload.len()).unwrap();
        header.checksum = match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => header.calc_checksum_ipv4_raw(from.octets(), to.octets(), payload),
            (IpAddr::V6(from), IpAddr::V6(to)) => header.calc_checksum_ipv6_raw(from.octets(), to.octets(), payload),
            _ => panic!("addresses of two families"),
        }
        .unwrap();
        [header.to_bytes().as_slice(), payload].concat()
    }

    /// What a kernel leaves in an open checksum.
    fn pseudo_sum(&self, flow: &Flow, length: usize) -> [u8; 2] {
        let mut sum = etherparse::checksum::Sum16BitWords::new();
        let sum = match (self.source, self.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => sum.add_4bytes(from.octets()).add_4bytes(to.octets()),
            (IpAddr::V6(from), IpAddr::V6(to)) => sum.add_16bytes(from.octets()).add_16bytes(to.octets()),
            _ => panic!("addresses of two families"),
        };
        let protocol = if flow.udp { 17 } else { 6 };
        let sum = sum.add_2bytes([0, protocol]).add_2bytes((length as u16).to_be_bytes());
        (!sum.ones_complement()).to_ne_bytes()
    }
}

impl Network<'_> {
    fn around(&self, traffic: &Traffic, protocol: IpNumber, segment: &[u8]) -> Vec<u8> {
        let flow = self.flow;
        let mut packet = Vec::new();
        match (traffic.source, traffic.destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let length = segment.len() as u16;
                let mut header = Ipv4Header::new(length, flow.ttl, protocol, from.octets(), to.octets()).unwrap();
                header.dscp = (flow.dscp_ecn >> 2).try_into().unwrap();
                header.ecn = (flow.dscp_ecn & 3).try_into().unwrap();
                header.dont_fragment = flow.dont_fragment;
                header.identification = self.identification;
                header.header_checksum = header.calc_header_checksum();
                packet.extend(header.to_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                // Destination options: next header, no more octets, PadN of 4.
                let extension = [protocol.0, 0, 1, 4, 0, 0, 0, 0];
                let extension = if flow.extension { &extension[..] } else { &[] };
                let header = Ipv6Header {
                    traffic_class: flow.dscp_ecn,
                    flow_label: Ipv6FlowLabel::try_new(7).unwrap(),
                    payload_length: (extension.len() + segment.len()) as u16,
                    next_header: if flow.extension { IpNumber(60) } else { protocol },
                    hop_limit: flow.ttl,
                    source: from.octets(),
                    destination: to.octets(),
                };
                packet.extend(header.to_bytes());
                packet.extend(extension);
            }
            _ => panic!("addresses of two families"),
        }
        packet.extend(segment);
        packet
    }
}

/// The packet without what says nothing: IPv4's identification beside DF (RFC 6864).
pub(crate) fn normalised(mut packet: Vec<u8>) -> Vec<u8> {
    if let [first, _, _, _, id @ ..] = &mut packet[..]
        && *first >> 4 == 4
        && id.len() >= 16
        && id[2] & 0x40 != 0
    {
        id[..2].fill(0);
        super::split::put_ipv4_checksum(&mut packet);
    }
    packet
}

/// Makes the checksums of a damaged packet right, as far as there is a place for them.
pub(crate) fn repair_checksums(packet: &mut [u8]) -> Option<()> {
    let (transport, protocol) = match packet.first()? >> 4 {
        4 => {
            super::split::put_ipv4_checksum(packet);
            (20, *packet.get(9)?)
        }
        6 => (40, *packet.get(6)?),
        _ => return None,
    };
    let addresses = if transport == 20 { 12..20 } else { 8..40 };
    let at = transport + if protocol == 17 { 6 } else { 16 };
    packet.get_mut(at..at + 2)?.fill(0);
    let segment = packet.get(transport..)?;
    let sum = etherparse::checksum::Sum16BitWords::new()
        .add_slice(packet.get(addresses)?)
        .add_2bytes([0, protocol])
        .add_2bytes((segment.len() as u16).to_be_bytes())
        .add_slice(segment);
    let sum = sum.to_ones_complement_with_no_zero().to_ne_bytes();
    packet.get_mut(at..at + 2)?.copy_from_slice(&sum);
    Some(())
}

fn framed(header: &VnetHeader, packet: &[u8]) -> Vec<u8> {
    [&header.emit()[..], packet].concat()
}

/// None, timestamps, or as many as fit.
fn random_options(random: &mut StdRng) -> Vec<u8> {
    let length = [0, 12, 12, 40][random.random_range(0..4)];
    let mut options = vec![1; length];
    if length == 12 {
        options[2..4].copy_from_slice(&[8, 10]);
        random.fill_bytes(&mut options[4..12]);
    }
    options
}

/// Often whole segments, sometimes a tail, sometimes nothing.
fn random_length(mss: usize, random: &mut StdRng) -> usize {
    let whole = mss * random.random_range(0..50);
    let tail = if random.random_bool(0.5) { random.random_range(0..mss.max(2)) } else { 0 };
    (whole + tail).min(60_000)
}

fn random_payload(length: usize, random: &mut StdRng) -> Vec<u8> {
    let mut payload = vec![0; length];
    random.fill_bytes(&mut payload);
    payload
}
