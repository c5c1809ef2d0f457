mod fuzz_tests;
mod mutations;

use super::testing::{Sent, Traffic, normalised};
use super::*;
use etherparse::checksum::Sum16BitWords;
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

fn udp_packet(payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 9], 64).udp(1000, 2000);
    builder.write(&mut packet, payload).unwrap();
    packet
}

fn parsed(flags: u8, gso_type: u8, start: u16, offset: u16) -> Result<VnetHeader, Unfinished> {
    let mut header = [0; VNET_HEADER_LEN];
    (header[0], header[1]) = (flags, gso_type);
    header[6..8].copy_from_slice(&start.to_ne_bytes());
    header[8..].copy_from_slice(&offset.to_ne_bytes());
    VnetHeader::parse(&header)
}

/// What the kernel leaves: the folded sum of addresses, protocol and length, not complemented.
fn leave_pseudo_sum(packet: &mut [u8]) {
    let length = (packet.len() - 20) as u16;
    let sum = Sum16BitWords::new()
        .add_slice(&packet[12..20])
        .add_2bytes([0, 17])
        .add_2bytes(length.to_be_bytes())
        .ones_complement();
    packet[26..28].copy_from_slice(&(!sum).to_ne_bytes());
}

#[test]
fn an_open_checksum_is_completed() {
    for payload in [&b"abc"[..], b"", &[0xff; 1000]] {
        let (expected, mut packet) = (udp_packet(payload), udp_packet(payload));
        leave_pseudo_sum(&mut packet);
        assert_ne!(packet, expected);
        assert_eq!(finish(&parsed(1, 0, 20, 6).unwrap(), &mut packet), Ok(()));
        assert_eq!(packet, expected);
    }
}

#[test]
fn finished_packets_stay_and_impossible_ones_are_refused() {
    let mut packet = udp_packet(b"abc");
    let expected = packet.clone();
    assert_eq!(finish(&VnetHeader::FINISHED, &mut packet), Ok(()));
    assert_eq!(finish(&parsed(2, 0, 9999, 9999).unwrap(), &mut packet), Ok(()));
    for bad in [parsed(1, 0, 9999, 0), parsed(1, 0, 20, 10), parsed(1, 0, 20, u16::MAX)] {
        assert_eq!(finish(&bad.unwrap(), &mut packet), Err(Unfinished), "{bad:?}");
    }
    assert_eq!(packet, expected);
}

/// The packets that a frame stands for.
fn cut(frame: &[u8]) -> Result<Vec<Vec<u8>>, Unfinished> {
    let (header, packet) = frame.split_first_chunk().ok_or(Unfinished)?;
    let header = VnetHeader::parse(header)?;
    if header.gso.is_none() {
        let mut packet = packet.to_vec();
        finish(&header, &mut packet)?;
        return Ok(vec![packet]);
    }
    let split = Split::plan(&header, packet)?;
    let packets = (0..split.count()).map(|index| {
        let mut out = vec![0; split.len(index)];
        split.write(index, packet, &mut out).ok_or(Unfinished)?;
        Ok(out)
    });
    let packets: Vec<Vec<u8>> = packets.collect::<Result<_, _>>()?;
    assert_eq!(split.total_len(), packets.iter().map(Vec::len).sum::<usize>());
    assert!(packets.iter().all(|packet| packet.len() <= split.longest()));
    assert_eq!(split.len(split.count()), 0);
    Ok(packets)
}

/// Joins what can be joined of packets of one device, as the data plane does; the frames that a device is given.
fn joined(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut run: Run<usize> = Run::empty();
    for (name, packet) in packets.iter().enumerate() {
        let shape = Candidate::parse(packet);
        if shape.is_some_and(|shape| run.join(packet, shape, name)) {
            continue;
        }
        frames.extend(delivered(&run, packets));
        run.clear();
        match shape {
            Some(shape) => run.begin(packet, shape, name).unwrap(),
            None => frames.push([&VnetHeader::FINISHED.emit(), &packet[..]].concat()),
        }
    }
    frames.extend(delivered(&run, packets));
    frames
}

fn delivered(run: &Run<usize>, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let parts = run.packets().iter().map(|&name| &packets[name][..]);
    match run.header() {
        None => parts.map(|packet| [&VnetHeader::FINISHED.emit(), packet].concat()).collect(),
        Some((header, headers)) => {
            let payload: Vec<u8> = parts.flat_map(|packet| packet[run.header_len()..].to_vec()).collect();
            vec![[&header.emit(), headers.as_slice(), &payload].concat()]
        }
    }
}

fn without_meaningless(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    packets.iter().cloned().map(normalised).collect()
}

fn traffic(ipv6: bool, random: &mut StdRng) -> Traffic {
    let [source, destination] = if ipv6 { ["fd00::2", "fd00::3"] } else { ["10.0.0.2", "10.0.0.3"] };
    Traffic::new(source.parse().unwrap(), destination.parse().unwrap(), random)
}

#[test]
fn super_packets_are_cut_into_what_a_kernel_without_offloads_sends() {
    for seed in 0..400 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut traffic = traffic(seed % 2 == 1, &mut random);
        for _ in 0..20 {
            let Sent { frame, packets } = traffic.next(&mut random);
            assert_eq!(cut(&frame), Ok(packets), "seed {seed}");
        }
    }
}

#[test]
fn joined_packets_are_the_same_packets_again() {
    let (mut packets_in, mut frames_out) = (0, 0);
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut traffic = traffic(seed % 2 == 1, &mut random);
        let packets: Vec<Vec<u8>> = (0..20).flat_map(|_| traffic.next(&mut random).packets).collect();
        let frames = joined(&packets);
        let again: Vec<Vec<u8>> = frames.iter().flat_map(|frame| cut(frame).unwrap()).collect();
        assert_eq!(without_meaningless(&again), without_meaningless(&packets), "seed {seed}");
        packets_in += packets.len();
        frames_out += frames.len();
    }
    assert!(frames_out * 5 < packets_in, "{packets_in} packets became {frames_out} frames: nothing is joined");
}

/// Two packets of one TCP flow, the second as it follows the first, and a change to it.
fn pair_of_segments(change: impl FnOnce(&mut etherparse::TcpHeader, &mut etherparse::Ipv4Header)) -> [Vec<u8>; 2] {
    let (from, to) = ([10, 0, 0, 2], [10, 0, 0, 3]);
    let mut tcp = etherparse::TcpHeader::new(1, 2, 100, 50);
    tcp.ack = true;
    let mut ip = etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::TCP, from, to).unwrap();
    ip.identification = 7;
    let build = |tcp: &mut etherparse::TcpHeader, ip: &mut etherparse::Ipv4Header, payload: &[u8]| {
        ip.set_payload_len(tcp.header_len() + payload.len()).unwrap();
        tcp.checksum = tcp.calc_checksum_ipv4(ip, payload).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        [ip.to_bytes().as_slice(), tcp.to_bytes().as_slice(), payload].concat()
    };
    let first = build(&mut tcp, &mut ip, &[1; 10]);
    tcp.sequence_number += 10;
    ip.identification += 1;
    change(&mut tcp, &mut ip);
    [first, build(&mut tcp, &mut ip, &[2; 10])]
}

#[test]
fn each_rule_of_joining() {
    assert_eq!(joined(&pair_of_segments(|_, _| {})).len(), 1);
    assert_eq!(joined(&pair_of_segments(|tcp, _| tcp.psh = true)).len(), 1, "PSH ends a run");
    type Change = fn(&mut etherparse::TcpHeader, &mut etherparse::Ipv4Header);
    let separate: [(&str, Change); 18] = [
        ("source port", |tcp, _| tcp.source_port += 1),
        ("destination port", |tcp, _| tcp.destination_port += 1),
        ("sequence", |tcp, _| tcp.sequence_number += 1),
        ("acknowledgement", |tcp, _| tcp.acknowledgment_number += 1),
        ("window", |tcp, _| tcp.window_size += 1),
        ("options", |tcp, _| tcp.set_options_raw(&[1; 4]).unwrap()),
        ("no ACK", |tcp, _| tcp.ack = false),
        ("FIN", |tcp, _| tcp.fin = true),
        ("SYN", |tcp, _| tcp.syn = true),
        ("RST", |tcp, _| tcp.rst = true),
        ("URG", |tcp, _| tcp.urg = true),
        ("CWR", |tcp, _| tcp.cwr = true),
        ("ECE", |tcp, _| tcp.ece = true),
        ("TTL", |_, ip| ip.time_to_live -= 1),
        ("ECN", |_, ip| ip.ecn = 3.try_into().unwrap()),
        ("DF", |_, ip| ip.dont_fragment = !ip.dont_fragment),
        ("identification", |_, ip| ip.identification += 1),
        ("source", |_, ip| ip.source[3] += 1),
    ];
    for (what, change) in separate {
        assert_eq!(joined(&pair_of_segments(change)).len(), 2, "{what}");
    }
    let [first, mut second] = pair_of_segments(|_, _| {});
    *second.last_mut().unwrap() ^= 1;
    assert_eq!(joined(&[first.clone(), second.clone()]).len(), 2, "a damaged packet stays one");
    assert_eq!(joined(&[second, first]).len(), 2);
}

#[test]
fn a_run_has_bounds() {
    let mut random = StdRng::seed_from_u64(1);
    let mut udp = Vec::new();
    let builder = || etherparse::PacketBuilder::ipv6([1; 16], [2; 16], 64).udp(1, 2);
    for length in [vec![100; 64], vec![100; 3], vec![99, 100, 101], vec![9000; 8]].concat() {
        let mut payload = vec![0; length];
        random.fill_bytes(&mut payload);
        let mut packet = Vec::new();
        builder().write(&mut packet, &payload).unwrap();
        udp.push(packet);
    }
    // 64 make a run; a shorter one ends it; a longer one begins one; 7 of 9000 octets are fewer than 64 KiB.
    let sizes: Vec<usize> = joined(&udp).iter().map(|frame| cut(frame).unwrap().len()).collect();
    assert_eq!(sizes, [64, 4, 1, 1, 7, 1]);
}

#[test]
fn runs_name_their_flow() {
    let [first, second] = pair_of_segments(|_, _| {});
    let shape = Candidate::parse(&first).unwrap();
    let mut run: Run<u8> = Run::empty();
    assert!(run.is_closed() && run.packets().is_empty() && run.header().is_none());
    run.begin(&first, shape, 1).unwrap();
    assert!(run.is_between(&[10, 0, 0, 2], &[10, 0, 0, 3]) && !run.is_between(&[10, 0, 0, 3], &[10, 0, 0, 2]));
    assert!(run.is_flow_of(&second, shape) && !run.is_udp());
    assert!(run.join(&second, shape, 2));
    assert_eq!(run.packets(), [1, 2]);
    run.clear();
    assert!(!run.join(&second, shape, 3) && run.packets().is_empty());
}

#[test]
fn impossible_super_packets_are_refused() {
    let mut random = StdRng::seed_from_u64(7);
    let mut traffic = traffic(false, &mut random);
    let sent = (0..100).map(|_| traffic.next(&mut random)).find(|sent| sent.packets.len() > 2).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = sent.frame.clone();
        change(&mut frame);
        assert_eq!(cut(&frame), Err(Unfinished));
    };
    let (udp, v6) = (5, 4);
    let other_kind = if sent.frame[1] == udp { 1 } else { udp };
    refused(&|frame| frame[1] = other_kind);
    refused(&|frame| frame[1] = v6);
    refused(&|frame| frame[1] = 3);
    refused(&|frame| frame[0] = 0);
    refused(&|frame| frame[4..6].fill(0));
    refused(&|frame| frame[6] += 1);
    refused(&|frame| frame[8] += 1);
    refused(&|frame| frame.push(0));
    refused(&|frame| frame.truncate(30));
    refused(&|frame| frame[16] |= 0x20);
    assert_eq!(VnetHeader::parse(&[1, 5 | 0x80, 0, 0, 1, 0, 0, 0, 0, 0]), Err(Unfinished));
    assert_eq!(VnetHeader::parse(&[1, 0x80, 0, 0, 1, 0, 0, 0, 0, 0]), Err(Unfinished));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn headers_survive(octets in any::<[u8; VNET_HEADER_LEN]>(), flags in 0..3u8, kind in 0..6u8) {
        let mut octets = octets;
        (octets[0], octets[1]) = (flags, kind);
        if let Ok(header) = VnetHeader::parse(&octets) {
            prop_assert_eq!(VnetHeader::parse(&header.emit()), Ok(header));
        }
    }
}
