//! Trains of datagrams, and kernels that refuse them: what was sealed is sent all the same, once.

use crate::dataplane::sending::SendBatch;
use crate::dataplane::tables::Peer;
use crate::overlay::{DropCounters, DropReason, PeerIndex};
use crate::sys::udp::{self, Message};
use socket2::SockAddr;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

/// Datagrams with their number in front.
fn push(batch: &mut SendBatch, lengths: &[usize]) {
    for (number, &length) in (1u8..).zip(lengths) {
        batch.space(length).unwrap()[..length].fill(number);
        batch.push(PeerIndex(0), length);
    }
}

fn receiver() -> (UdpSocket, [Peer; 1]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let address = SockAddr::from(socket.local_addr().unwrap());
    (socket, [Peer::at(address)])
}

fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; 70_000];
    let next = |_| {
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    };
    (0..count).map(next).collect()
}

#[test]
fn neighbours_leave_as_trains_and_arrive_as_they_were() {
    let (socket, mut peers) = receiver();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (mut batch, mut drops) = (SendBatch::new(true), DropCounters::default());
    // 64 in a train, then the rest; a shorter one ends a train, a longer one begins one; 60 KiB end one.
    let lengths = [vec![100; 70], vec![99, 100, 100, 50, 50], vec![9000; 8]].concat();
    push(&mut batch, &lengths);
    batch.flush(sender.as_fd(), &mut peers, &mut drops);
    let arrived = receive(&socket, lengths.len());
    assert!(arrived.iter().map(Vec::len).eq(lengths.iter().copied()));
    assert!((1u8..).zip(&arrived).all(|(number, datagram)| datagram.iter().all(|&octet| octet == number)));
    assert_eq!((batch.counters().calls, batch.counters().datagrams), (1, lengths.len() as u64));
    assert_eq!(drops.total(), 0);
}

#[test]
fn a_refused_train_is_sent_singly_as_sealed_and_remembered() {
    let (socket, mut peers) = receiver();
    // A socket that computes no checksums takes no trains: EINVAL.
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp::set_no_checksum(sender.as_fd()).unwrap();
    let (mut batch, mut drops) = (SendBatch::new(true), DropCounters::default());
    for round in 0..3 {
        push(&mut batch, &[500, 500, 300]);
        batch.flush(sender.as_fd(), &mut peers, &mut drops);
        assert_eq!(receive(&socket, 3), [vec![1; 500], vec![2; 500], vec![3; 300]], "round {round}");
        assert!(!peers[0].takes_trains());
        assert_eq!(batch.counters().refused_trains, 1, "once");
    }
    assert_eq!(drops.total(), 0);
}

#[test]
fn a_train_that_is_refused_between_others_is_sent_once_and_in_order() {
    for errno in [libc::EIO, libc::EINVAL] {
        let (_socket, mut peers) = receiver();
        let (mut batch, mut drops) = (SendBatch::new(true), DropCounters::default());
        // Two trains with a single datagram of another length before, between and after them.
        let lengths = [700, 500, 500, 500, 300, 900, 400, 400, 100];
        push(&mut batch, &lengths);
        let mut sent = Vec::new();
        let kernel = |messages: &mut dyn Iterator<Item = Message<'_>>| {
            let mut taken = 0;
            for message in messages.take(2) {
                if message.segment != 0 {
                    return if taken > 0 { Ok(taken) } else { Err(std::io::Error::from_raw_os_error(errno)) };
                }
                sent.push(message.octets.to_vec());
                taken += 1;
            }
            Ok(taken)
        };
        batch.flush_by(kernel, &mut peers, &mut drops);
        assert!((1u8..).zip(&lengths).map(|(number, &length)| vec![number; length]).eq(sent));
        assert!(!peers[0].takes_trains());
        assert_eq!((batch.counters().refused_trains, batch.counters().datagrams, drops.total()), (1, 9, 0));
    }
}

#[test]
fn a_train_that_is_too_long_for_the_mtu_says_nothing_about_trains() {
    let (_socket, mut peers) = receiver();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp::set_path_mtu_probe(sender.as_fd(), false).unwrap();
    let (mut batch, mut drops) = (SendBatch::new(true), DropCounters::default());
    // Longer than loopback's 65,536 with its headers.
    push(&mut batch, &[65_530]);
    push(&mut batch, &[10, 10]);
    batch.flush(sender.as_fd(), &mut peers, &mut drops);
    assert_eq!(drops.packets(DropReason::ExceedsUnderlayMtu), 1);
    assert_eq!(drops.total(), 1);
    assert!(peers[0].takes_trains());
}

#[test]
fn a_shorter_last_one_that_passes_says_nothing_about_trains() {
    let (_socket, mut peers) = receiver();
    let (mut batch, mut drops) = (SendBatch::new(true), DropCounters::default());
    push(&mut batch, &[500, 500, 300]);
    // The host's own MTU has just shrunk.
    let kernel = |messages: &mut dyn Iterator<Item = Message<'_>>| {
        let fits = |message: &Message<'_>| message.octets.len() <= 400;
        match messages.take_while(fits).count() {
            0 => Err(std::io::Error::from_raw_os_error(libc::EMSGSIZE)),
            taken => Ok(taken),
        }
    };
    batch.flush_by(kernel, &mut peers, &mut drops);
    assert_eq!((drops.packets(DropReason::ExceedsUnderlayMtu), drops.total()), (2, 2));
    assert_eq!((batch.counters().refused_trains, batch.counters().datagrams), (1, 1));
    assert!(peers[0].takes_trains());
}
