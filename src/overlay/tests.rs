//! Policy by example, and the table against a plain owner map.

use super::*;
use crate::types::{Fork, Generation};
use crate::wire::ip::IpView;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn generation(index: u64) -> Generation {
    Generation { fork: Fork(1), index }
}

fn packet(source: &str, destination: &str) -> IpView {
    let (source, destination) = (address(source), address(destination));
    let header_len = if source.is_ipv4() { 20 } else { 40 };
    let (total_len, protocol) = (header_len + 8, 17);
    IpView { source, destination, header_len, total_len, protocol, traffic_class: 0, fragment: false }
}

const SELF: LocalIndex = LocalIndex(0);
const NEIGHBOUR: LocalIndex = LocalIndex(1);
const PEER: PeerIndex = PeerIndex(7);
const OTHER_PEER: PeerIndex = PeerIndex(8);

fn table() -> NetworkTable {
    let mut table = NetworkTable::new(Some("10.0.0.0/24".parse().unwrap()));
    table.add_local(address("10.0.0.2"), SELF).unwrap();
    table.add_local(address("10.0.0.3"), NEIGHBOUR).unwrap();
    table.add_local(address("fd00::2"), SELF).unwrap();
    assert_eq!(table.set_remote(address("10.0.0.9"), PEER, generation(1), true), RemoteUpdate::Applied);
    assert_eq!(table.set_remote(address("fd00::9"), PEER, generation(1), true), RemoteUpdate::Applied);
    table
}

#[test]
fn names_are_unique_and_every_reason_is_listed_once() {
    let names: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), DropReason::ALL.len());
    for (number, reason) in DropReason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, number);
        assert!(reason.name().chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        assert!(!reason.description().trim().is_empty());
    }
}

#[test]
fn counters_count_by_reason() {
    let mut counters = DropCounters::default();
    counters.count(DropReason::Multicast);
    let mut sum = counters.clone();
    sum.count_many(DropReason::Replayed, 3);
    sum.add(&counters);
    assert_eq!((sum.packets(DropReason::Multicast), sum.packets(DropReason::Replayed)), (2, 3));
    assert_eq!(sum.total(), 5);
}

#[test]
fn outbound_policy() {
    let own = address("10.0.0.2");
    let cases = [
        ("10.0.0.2", "10.0.0.3", Verdict::Local(NEIGHBOUR)),
        ("10.0.0.2", "10.0.0.9", Verdict::Peer(PEER)),
        ("10.0.0.2", "10.0.0.2", Verdict::Drop(DropReason::ToSelf)),
        ("10.0.0.2", "10.0.0.10", Verdict::Drop(DropReason::NoSuchEndpoint)),
        ("10.0.0.2", "8.8.8.8", Verdict::Drop(DropReason::NoSuchEndpoint)),
        ("10.0.0.3", "10.0.0.9", Verdict::Drop(DropReason::NotOwnSource)),
        ("10.0.0.9", "10.0.0.3", Verdict::Drop(DropReason::NotOwnSource)),
        ("10.0.0.2", "10.0.0.255", Verdict::Drop(DropReason::Broadcast)),
        ("0.0.0.0", "255.255.255.255", Verdict::Drop(DropReason::Broadcast)),
        ("10.0.0.2", "224.0.0.251", Verdict::Drop(DropReason::Multicast)),
        ("fe80::1", "ff02::2", Verdict::Drop(DropReason::Multicast)),
    ];
    for (source, destination, verdict) in cases {
        assert_eq!(table().classify(own, &packet(source, destination)), verdict, "{source} -> {destination}");
    }
    assert_eq!(table().classify(address("fd00::2"), &packet("fd00::2", "fd00::9")), Verdict::Peer(PEER));
}

#[test]
fn inbound_policy() {
    let cases = [
        (PEER, "10.0.0.9", "10.0.0.2", Ok(SELF)),
        (PEER, "fd00::9", "fd00::2", Ok(SELF)),
        (OTHER_PEER, "10.0.0.9", "10.0.0.2", Err(DropReason::ForeignSource)),
        (PEER, "10.0.0.3", "10.0.0.2", Err(DropReason::ForeignSource)),
        (PEER, "10.0.0.10", "10.0.0.2", Err(DropReason::ForeignSource)),
        (PEER, "10.0.0.9", "10.0.0.9", Err(DropReason::ForeignDestination)),
        (PEER, "10.0.0.9", "192.168.0.1", Err(DropReason::ForeignDestination)),
        (PEER, "10.0.0.9", "10.0.0.255", Err(DropReason::Broadcast)),
        (PEER, "10.0.0.9", "224.0.0.1", Err(DropReason::Multicast)),
    ];
    for (peer, source, destination, expected) in cases {
        assert_eq!(table().accept(peer, &packet(source, destination)), expected, "{source} -> {destination}");
    }
}

#[test]
fn a_small_subnet_has_no_broadcast_address() {
    let mut table = NetworkTable::new(Some("10.0.0.0/31".parse().unwrap()));
    table.set_remote(address("10.0.0.1"), PEER, generation(1), true);
    assert_eq!(table.classify(address("10.0.0.0"), &packet("10.0.0.0", "10.0.0.1")), Verdict::Peer(PEER));
}

#[test]
fn a_local_address_has_one_endpoint() {
    let mut table = table();
    assert_eq!(table.add_local(address("10.0.0.2"), NEIGHBOUR), Err(LocalTaken));
    table.remove_local(address("10.0.0.2"), NEIGHBOUR);
    assert_eq!(table.accept(PEER, &packet("10.0.0.9", "10.0.0.2")), Ok(SELF));
    table.remove_local(address("10.0.0.2"), SELF);
    assert!(!table.has_no_locals());
    assert_eq!(table.add_local(address("10.0.0.2"), NEIGHBOUR), Ok(()));
}

#[test]
fn older_news_never_win() {
    let (mut table, it) = (table(), address("10.0.0.9"));
    assert_eq!(table.set_remote(it, OTHER_PEER, generation(0), true), RemoteUpdate::Stale);
    assert_eq!(table.set_remote(it, OTHER_PEER, generation(0), false), RemoteUpdate::Stale);
    assert_eq!(table.owner(it), Some(PEER));
    assert_eq!(table.set_remote(it, OTHER_PEER, generation(2), true), RemoteUpdate::Applied);
    assert_eq!(table.set_remote(it, OTHER_PEER, generation(2), false), RemoteUpdate::Applied);
    assert_eq!(table.set_remote(it, OTHER_PEER, generation(2), true), RemoteUpdate::Stale, "ended is ended");
    assert_eq!(table.owner(it), None);
    let next_life = Generation { fork: Fork(2), index: 0 };
    assert_eq!(table.set_remote(it, PEER, next_life, true), RemoteUpdate::Applied, "the fork counts first");
    assert_eq!(table.owner(it), Some(PEER));
}

#[test]
fn a_withdrawn_peer_comes_back_with_the_same_generation_only() {
    let (mut table, it) = (table(), address("10.0.0.9"));
    table.withdraw_peer(PEER);
    assert_eq!(table.owner(it), None);
    assert_eq!(table.remotes().count(), 0);
    assert_eq!(table.set_remote(it, OTHER_PEER, generation(0), true), RemoteUpdate::Stale);
    assert_eq!(table.set_remote(it, PEER, generation(1), true), RemoteUpdate::Applied);
    assert_eq!(table.owner(it), Some(PEER));
}

#[test]
fn the_table_is_bounded() {
    let mut table = NetworkTable::new(None);
    let nth = |n: usize| IpAddr::from((n as u32).to_be_bytes());
    for n in 0..MAX_REMOTES_PER_NETWORK {
        assert_eq!(table.set_remote(nth(n), PEER, generation(1), true), RemoteUpdate::Applied);
    }
    assert_eq!(table.set_remote(nth(MAX_REMOTES_PER_NETWORK), PEER, generation(1), true), RemoteUpdate::Full);
    assert_eq!(table.set_remote(nth(0), OTHER_PEER, generation(2), true), RemoteUpdate::Applied);
}

/// One record: who owned which address since when, and whether that has ended.
type Record = (u8, u32, u64, bool);

fn check_reassignments(records: Vec<Record>, order: Vec<usize>) {
    let mut table = NetworkTable::new(None);
    let mut newest = BTreeMap::<u8, (u64, bool, u32)>::new();
    for &(host, peer, index, ended) in order.iter().filter_map(|n| records.get(*n)) {
        let owner = newest.entry(host).or_default();
        *owner = (*owner).max((index, ended, peer));
        table.set_remote(address(&format!("10.0.0.{host}")), PeerIndex(peer), generation(index), !ended);
    }
    let expected: BTreeMap<IpAddr, PeerIndex> = newest
        .into_iter()
        .filter(|(_, (_, ended, _))| !ended)
        .map(|(host, (_, _, peer))| (address(&format!("10.0.0.{host}")), PeerIndex(peer)))
        .collect();
    assert_eq!(table.remotes().collect::<BTreeMap<_, _>>(), expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// 10,000 reassignments of 64 addresses, their records doubled and in any order.
    #[test]
    fn reordered_and_repeated_records_end_in_the_owner_map(
        moves in prop::collection::vec((0u8..64, 0u32..20, any::<bool>()), 10_000),
        order in prop::collection::vec(0usize..20_000, 30_000),
    ) {
        let begun = moves.iter().enumerate().map(|(n, &(host, peer, _))| (host, peer, n as u64 + 1, false));
        let ended = moves.iter().enumerate().filter(|(_, (_, _, ended))| *ended);
        let ended = ended.map(|(n, &(host, peer, _))| (host, peer, n as u64 + 1, true));
        check_reassignments(begun.chain(ended).collect(), order);
    }
}
