//! Two and more machines joined by hand: who sends with what, when.

use super::*;
use crate::types::NodeAddresses;
use crate::wire::control::NetworkKey;

const NETWORK: NetworkId = NetworkId(crate::types::Id::ZERO);

/// A node with what its managers would tell it.
struct Host {
    keys: NodeKeys,
    node: NodeId,
    boot: BootId,
    queues: Queues,
    publics: BTreeMap<Epoch, PublicKey>,
    installed: BTreeSet<SaIdentity>,
    sending: BTreeMap<(NodeId, u8), SaIdentity>,
    ready: BTreeSet<Epoch>,
    sends: BTreeSet<Epoch>,
    erased: BTreeSet<Epoch>,
    dummies: Vec<(SaIdentity, ControlMessage)>,
    draws: u8,
}

fn node(number: u8) -> NodeId {
    NodeId::from_random([number; 17])
}

impl Host {
    fn new(number: u8, boot: u8) -> Host {
        Host::with_queues(number, boot, 1)
    }

    fn with_queues(number: u8, boot: u8, queues: u8) -> Host {
        let (boot, queues) = (BootId([boot; 8]), Queues::try_from(queues).unwrap());
        let (cluster, fork) = (ClusterId::from_random([9; 17]), Fork(1));
        let config = KeysConfig { cluster, fork, node: node(number), boot, queues };
        Host {
            keys: NodeKeys::new(config),
            node: node(number),
            boot,
            queues,
            publics: BTreeMap::new(),
            installed: BTreeSet::new(),
            sending: BTreeMap::new(),
            ready: BTreeSet::new(),
            sends: BTreeSet::new(),
            erased: BTreeSet::new(),
            dummies: Vec::new(),
            draws: number.wrapping_mul(16).wrapping_add(boot.0[0]),
        }
    }

    fn ring(&mut self, epochs: &[(u32, EpochPhase)], participants: &[NodeId], now: Time) {
        let view = |&(epoch, phase): &(u32, EpochPhase)| EpochView {
            epoch: Epoch(epoch),
            phase,
            gossip_key: Key32::new([epoch as u8; 32]),
            networks: vec![NetworkKey { network: NETWORK, key: Key32::new([0x80 | epoch as u8; 32]) }],
            participants: participants.to_vec(),
        };
        let draws = &mut self.draws;
        let mut draw = || {
            *draws = draws.wrapping_add(1);
            Key32::new([*draws; 32])
        };
        self.keys.handle_ring(RingView { epochs: epochs.iter().map(view).collect() }, &mut draw, now);
        self.drain();
    }

    fn network(&mut self, members: &[(NodeId, bool)], now: Time) {
        let view = NetworkView {
            id: NETWORK,
            name: "net".into(),
            transform: Transform::Gcm,
            subnet: "10.0.1.0/24".parse().unwrap(),
            mtu_bytes: None,
            members: members.to_vec(),
        };
        self.keys.handle_networks(&[view], now);
        self.drain();
    }

    fn record(&self, boot_index: u64) -> NodeRecord {
        let address = "127.0.0.1:1".parse().unwrap();
        NodeRecord {
            node: self.node,
            boot: self.boot,
            boot_index,
            version: "0".into(),
            addresses: NodeAddresses { control: address, gossip: address, data: address, behind_nat: false },
            queues: self.queues,
            publics: self.publics.iter().map(|(&epoch, &public)| (epoch, public)).collect(),
        }
    }

    fn drain(&mut self) {
        while let Some(event) = self.keys.poll_event() {
            match event {
                KeyEvent::Install(keys) => {
                    self.installed.insert(*keys.identity());
                }
                KeyEvent::Suspend(identity) => {
                    self.installed.remove(&identity);
                }
                KeyEvent::Send(outbound) => {
                    assert!(self.installed.contains(&outbound), "sends with an SA that is not installed");
                    self.sending.insert((outbound.dst, outbound.queue), outbound);
                }
                KeyEvent::StopSending { peer, .. } => {
                    self.sending.retain(|(dst, _), _| *dst != peer);
                }
                KeyEvent::Control { outbound, message } => self.dummies.push((outbound, message)),
                KeyEvent::ReportPublic { epoch, public } => {
                    let before = self.publics.insert(epoch, public);
                    assert!(before.is_none_or(|before| before == public), "two publics for one epoch");
                }
                KeyEvent::ReportReady(epoch) => {
                    self.ready.insert(epoch);
                }
                KeyEvent::ReportSending(epoch) => {
                    self.sends.insert(epoch);
                }
                KeyEvent::Erase(epoch) => {
                    self.installed.retain(|identity| identity.epoch != epoch);
                    self.erased.insert(epoch);
                    self.publics.remove(&epoch);
                }
                KeyEvent::Held { .. } | KeyEvent::Active(_) => {}
            }
        }
    }

    /// The epoch of all queues: they change together.
    fn sends_with(&self, peer: NodeId) -> Option<u32> {
        let epochs: Vec<Option<u32>> = self
            .queues
            .numbers()
            .map(|queue| self.sending.get(&(peer, queue)).map(|identity| identity.epoch.0))
            .collect();
        assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
        epochs[0]
    }
}

/// Carries dummies both ways until there are none; those that `lose` names are lost.
fn carry(a: &mut Host, b: &mut Host, now: Time, lose: impl Fn(&SaIdentity) -> bool) {
    for _ in 0..16 {
        for (from, to) in [(true, ()), (false, ())].map(|(a_first, ())| (a_first, !a_first)) {
            let dummies = std::mem::take(if from { &mut a.dummies } else { &mut b.dummies });
            let receiver = if to { &mut *a } else { &mut *b };
            for (identity, message) in dummies.into_iter().filter(|(identity, _)| !lose(identity)) {
                if receiver.installed.contains(&identity) {
                    receiver.keys.handle_control(&identity, message, now);
                    receiver.drain();
                }
            }
        }
    }
}

const FIRST: [(u32, EpochPhase); 2] = [(1, EpochPhase::Current), (2, EpochPhase::Next)];
const SECOND: [(u32, EpochPhase); 3] = [(1, EpochPhase::Previous), (2, EpochPhase::Current), (3, EpochPhase::Next)];

/// Two nodes on one network, keyed and confirmed under epoch 1.
fn pair() -> (Host, Host, Time) {
    pair_of(Host::new(1, 1), Host::new(2, 1))
}

fn pair_of(mut a: Host, mut b: Host) -> (Host, Host, Time) {
    let now = Time(0);
    let both = [a.node, b.node];
    for host in [&mut a, &mut b] {
        host.network(&[(both[0], true), (both[1], true)], now);
        host.ring(&FIRST, &both, now);
        assert!(host.ready.is_empty(), "ready without the peer's record");
    }
    exchange_records(&mut a, &mut b, now);
    carry(&mut a, &mut b, now, |_| false);
    (a, b, now)
}

fn exchange_records(a: &mut Host, b: &mut Host, now: Time) {
    let (of_a, of_b) = (a.record(10), b.record(11));
    assert!(a.keys.handle_record(&of_b, now) && b.keys.handle_record(&of_a, now));
    a.drain();
    b.drain();
}

#[test]
fn both_ends_hold_the_same_sas_and_are_ready() {
    let (a, b, _) = pair();
    assert_eq!(a.installed, b.installed);
    assert_eq!(a.installed.len(), 4, "two epochs, two directions");
    for host in [&a, &b] {
        assert_eq!(host.ready, [Epoch(1), Epoch(2)].into());
        assert_eq!(host.sends, [Epoch(1)].into());
    }
    assert_eq!((a.sends_with(b.node), b.sends_with(a.node)), (Some(1), Some(1)));
}

#[test]
fn a_node_switches_only_once_the_peer_was_heard_under_the_new_epoch() {
    let (mut a, mut b, now) = pair();
    let both = [a.node, b.node];
    a.ring(&SECOND, &both, now);
    assert_eq!(a.sends_with(b.node), Some(1), "the peer has not been heard under 2");
    carry(&mut a, &mut b, now, |_| false);
    assert_eq!(a.sends_with(b.node), Some(2), "the peer answered the dummy although it has not activated yet");
    assert_eq!(b.sends_with(a.node), Some(1));
    b.ring(&SECOND, &both, now);
    carry(&mut a, &mut b, now, |_| false);
    assert_eq!(b.sends_with(a.node), Some(2));
    assert!(a.sends.contains(&Epoch(2)) && b.sends.contains(&Epoch(2)));
}

#[test]
fn a_lost_dummy_is_sent_again() {
    let (mut a, mut b, now) = pair();
    let both = [a.node, b.node];
    a.ring(&SECOND, &both, now);
    carry(&mut a, &mut b, now, |_| true);
    assert_eq!(a.sends_with(b.node), Some(1));
    let later = a.keys.poll_timeout().expect("a probe is due");
    assert_eq!(later.since(now), PROBE_INTERVALS.unconfirmed);
    a.keys.handle_timeout(later);
    a.drain();
    carry(&mut a, &mut b, later, |_| false);
    assert_eq!(a.sends_with(b.node), Some(2));
    a.keys.handle_timeout(later + PROBE_INTERVALS.unconfirmed);
    assert_eq!(a.keys.poll_timeout(), Some(later + PROBE_INTERVALS.unconfirmed + PROBE_INTERVALS.confirmed));
}

#[test]
fn a_node_without_managers_follows_the_signed_activation() {
    let (mut a, mut b, now) = pair();
    for host in [&mut a, &mut b] {
        host.keys.handle_activation(Epoch(2), now);
        host.drain();
    }
    carry(&mut a, &mut b, now, |_| false);
    assert_eq!((a.sends_with(b.node), b.sends_with(a.node)), (Some(2), Some(2)));
    a.keys.handle_activation(Epoch(7), now);
    assert_eq!(a.keys.active(), Some(Epoch(2)), "an epoch that is not held cannot be active");
}

#[test]
fn an_erased_epoch_never_comes_back() {
    let (mut a, _, now) = pair();
    let both = [a.node, node(2)];
    a.ring(&[(3, EpochPhase::Current), (4, EpochPhase::Next)], &both, now);
    assert_eq!(a.erased, [Epoch(1), Epoch(2)].into());
    a.ring(&FIRST, &both, now);
    assert!(a.keys.epochs().is_empty(), "an epoch was made again in the same boot");
}

#[test]
fn a_restarted_peer_gets_new_sas_and_the_old_ones_are_suspended() {
    let (mut a, old_b, now) = pair();
    let mut b = Host::new(2, 2);
    let both = [a.node, b.node];
    b.network(&[(a.node, true), (b.node, true)], now);
    b.ring(&FIRST, &both, now);
    let (of_a, of_b) = (a.record(10), b.record(20));
    a.keys.handle_record(&of_b, now);
    b.keys.handle_record(&of_a, now);
    a.drain();
    b.drain();
    assert_eq!(a.installed, b.installed);
    a.keys.handle_record(&old_b.record(11), now);
    a.drain();
    assert_eq!(a.installed, b.installed, "an older boot was installed again");
}

#[test]
fn a_second_public_for_one_boot_and_epoch_is_refused() {
    let (mut a, mut b, now) = pair();
    b.publics.insert(Epoch(2), PublicKey([5; 32]));
    let before = a.installed.clone();
    assert!(!a.keys.handle_record(&b.record(11), now));
    a.drain();
    assert_eq!(a.installed, before);
}

#[test]
fn a_peer_that_left_is_not_sent_to_and_comes_back_as_the_same_sa() {
    let (mut a, b, now) = pair();
    let before = a.installed.clone();
    a.network(&[(a.node, true)], now);
    assert_eq!((a.sends_with(b.node), a.installed.len()), (None, 0));
    a.network(&[(a.node, true), (b.node, true)], now);
    assert_eq!(a.installed, before);
}

#[test]
fn a_bad_public_makes_no_sa_and_delays_no_rotation() {
    let (mut a, mut b, now) = (Host::new(1, 1), Host::new(2, 1), Time(0));
    let both = [a.node, b.node];
    a.network(&[(a.node, true), (b.node, true)], now);
    a.ring(&FIRST, &both, now);
    b.publics = [(Epoch(1), PublicKey([0; 32])), (Epoch(2), PublicKey([0; 32]))].into();
    a.keys.handle_record(&b.record(11), now);
    a.drain();
    assert!(a.installed.is_empty());
    assert_eq!(a.keys.bad_publics(), 2);
    assert_eq!(a.ready, [Epoch(1), Epoch(2)].into());
    assert_eq!(a.sends, [Epoch(1)].into());
}

#[test]
fn a_gone_node_is_dropped_at_once() {
    let (mut a, b, now) = pair();
    a.keys.handle_gone(&[b.node], now);
    a.drain();
    assert!(a.installed.is_empty() && a.sending.is_empty());
    a.keys.handle_record(&b.record(99), now);
    a.drain();
    assert!(a.installed.is_empty(), "a gone node came back");
}

#[test]
fn a_peer_that_missed_the_active_epoch_leaves_no_timer_that_never_ends() {
    let (mut a, _, now) = pair();
    let alone = [a.node];
    a.ring(&[(2, EpochPhase::Previous), (3, EpochPhase::Current), (4, EpochPhase::Next)], &alone, now);
    let later = now + PROBE_INTERVALS.confirmed * 2;
    a.keys.handle_timeout(later);
    assert!(a.keys.poll_timeout().is_none_or(|at| at > later), "due again at once: the node would spin");
}

#[test]
fn each_queue_has_its_own_sas_and_all_switch_together() {
    for (queues_of_a, queues_of_b) in [(2, 4), (4, 1), (16, 16)] {
        let (mut a, mut b, now) = pair_of(Host::with_queues(1, 1, queues_of_a), Host::with_queues(2, 1, queues_of_b));
        assert_eq!(a.installed, b.installed);
        let count = |src, epoch| a.installed.iter().filter(|sa| sa.src == src && sa.epoch == Epoch(epoch)).count();
        for epoch in [1, 2] {
            let counts = (count(a.node, epoch), count(b.node, epoch));
            assert_eq!(counts, (usize::from(queues_of_a), usize::from(queues_of_b)));
        }
        let keys: BTreeSet<SaIdentity> = a.sending.values().map(|sa| SaIdentity { queue: 0, ..*sa }).collect();
        assert_eq!((a.sending.len(), keys.len()), (usize::from(queues_of_a), 1), "they differ by nothing else");
        let both = [a.node, b.node];
        for host in [&mut a, &mut b] {
            host.ring(&SECOND, &both, now);
        }
        carry(&mut a, &mut b, now, |_| false);
        assert_eq!((a.sends_with(b.node), b.sends_with(a.node)), (Some(2), Some(2)));
        assert!(a.sends.contains(&Epoch(2)) && b.sends.contains(&Epoch(2)));
        a.network(&[(a.node, true)], now);
        assert_eq!((a.sends_with(b.node), a.installed.len()), (None, 0), "none of the SAs is left in use");
    }
}

#[test]
fn a_packet_of_any_queue_confirms_and_of_a_strange_one_does_not() {
    for (queue, confirms) in [(0, true), (3, true), (4, false), (15, false)] {
        let (mut a, b, now) = pair_of(Host::with_queues(1, 1, 2), Host::with_queues(2, 1, 4));
        let both = [a.node, b.node];
        a.ring(&SECOND, &both, now);
        let of_b = |sa: &&SaIdentity| sa.src == b.node && sa.epoch == Epoch(2) && sa.queue == 0;
        let first = *a.installed.iter().find(of_b).unwrap();
        a.keys.handle_authenticated(&SaIdentity { queue, ..first }, now);
        a.drain();
        assert_eq!(a.sends_with(b.node), Some(if confirms { 2 } else { 1 }), "queue {queue}");
    }
}

#[test]
fn another_number_of_queues_is_another_boot() {
    let (mut a, mut b, now) = pair_of(Host::with_queues(1, 1, 2), Host::with_queues(2, 1, 2));
    let before = a.installed.clone();
    b.queues = Queues::try_from(3).unwrap();
    assert!(!a.keys.handle_record(&b.record(11), now), "refused in one boot");
    a.drain();
    assert_eq!(a.installed, before);
    let mut b = Host::with_queues(2, 2, 3);
    let both = [a.node, b.node];
    b.network(&[(a.node, true), (b.node, true)], now);
    b.ring(&FIRST, &both, now);
    assert!(a.keys.handle_record(&b.record(20), now) && b.keys.handle_record(&a.record(10), now));
    a.drain();
    b.drain();
    assert_eq!(a.installed, b.installed);
    assert_eq!(a.installed.len(), 2 * (2 + 3), "none of the former boot");
}

fn rows(host: &Host) -> BTreeSet<String> {
    let table = host.keys.wireshark_table(NETWORK, false).unwrap();
    table.lines().map(str::to_owned).collect()
}

#[test]
fn both_ends_show_the_same_keys_of_the_epochs_that_have_begun() {
    let (mut a, mut b, now) = pair_of(Host::with_queues(1, 1, 2), Host::with_queues(2, 1, 1));
    let first = rows(&a);
    assert_eq!(first, rows(&b));
    assert_eq!(first.len(), 3, "two queues of one, one of the other; nothing of the next epoch");
    let spi = |sa: &SaIdentity| format!("\"{:#010x}\"", crate::esp::spi(sa).0);
    for sa in a.installed.iter().filter(|sa| sa.epoch == Epoch(1)) {
        assert!(first.iter().any(|row| row.contains(&spi(sa))), "{sa:?}");
    }
    let both = [a.node, b.node];
    for host in [&mut a, &mut b] {
        host.ring(&SECOND, &both, now);
    }
    let second = rows(&a);
    assert_eq!((second.len(), second.is_superset(&first)), (6, true));
}

#[test]
fn there_are_no_keys_to_show_without_a_secret_network_and_a_peer() {
    let now = Time(0);
    let table = |host: &Host| host.keys.wireshark_table(NETWORK, false).map(drop);
    let mut host = Host::new(1, 1);
    assert_eq!(table(&host), Err(NoTable::NotHere));
    host.network(&[(host.node, true)], now);
    assert_eq!(table(&host), Err(NoTable::NoPeer));
    let view = NetworkView {
        id: NETWORK,
        name: "net".into(),
        transform: Transform::Gmac,
        subnet: "10.0.1.0/24".parse().unwrap(),
        mtu_bytes: None,
        members: Vec::new(),
    };
    host.keys.handle_networks(&[view], now);
    assert_eq!(table(&host), Err(NoTable::NotSecret));
}
