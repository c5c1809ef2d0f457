//! Frames of a TUN device (vnet header and packet), and packets of peers that may be joined: what is cut has the lengths
//! that were promised, and what is joined can be cut into the same packets again.

use super::{cut, joined, without_meaningless};
use crate::fuzz::Outcome;
use crate::wire::ip::IpView;

fn run(bytes: &[u8]) -> Outcome {
    let (kind, rest) = bytes.split_first().map_or((0, bytes), |(kind, rest)| (kind % 2, rest));
    if kind == 0 {
        return match cut(rest) {
            Ok(packets) => format!("{} packets", packets.len().min(3)),
            Err(_) => "unfinished".to_owned(),
        };
    }
    // Packets one after the other, as their own headers tell their lengths.
    let mut packets = Vec::new();
    let mut left = rest;
    while let Some(length) = left.get(2..4).map(|field| usize::from(u16::from_be_bytes([field[0], field[1]]))) {
        let Some((packet, after)) = left.split_at_checked(length.max(1)) else { break };
        packets.push(packet.to_vec());
        left = after;
    }
    let read = packets.iter().filter(|packet| IpView::parse(packet).is_ok()).count();
    let frames = joined(&packets);
    let again: Vec<Vec<u8>> = frames.iter().flat_map(|frame| cut(frame).unwrap()).collect();
    assert_eq!(without_meaningless(&again), without_meaningless(&packets));
    format!("{} joined of {}, {} read", packets.len().min(8) - frames.len().min(8), packets.len().min(8), read.min(8))
}

fn seeds() -> Vec<Vec<u8>> {
    use rand::SeedableRng as _;
    let mut seeds = Vec::new();
    for seed in 0..24 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let mut traffic = super::traffic(seed % 2 == 1, &mut random);
        let sent = traffic.next(&mut random);
        seeds.push([&[0], &sent.frame[..sent.frame.len().min(3000)]].concat());
        seeds.push([&[1], &sent.packets.iter().take(3).flatten().copied().collect::<Vec<u8>>()[..]].concat());
    }
    seeds
}

crate::fuzz::target!("vnet", run, seeds);
