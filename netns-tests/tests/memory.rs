//! What a thief finds who copies the memory of a running daemon: the keys in use, as is to be expected, and none of the
//! retired ones. What he finds is found as he would: by trying what is in memory on what was captured.

use formic::crypto::X25519Secret;
use formic::esp::{gossip_key, network_key};
use formic::types::{ClusterId, Epoch, Fork, Key32, NetworkId, PublicKey};
use formic::wire::gossip::{self, Form, Header, Hello, Party};
use formic::wire::record::{RecordBody, SignedRecord};
use netns_tests::capture::{self, Capture};
use netns_tests::memory::{self, Key, KnownBlock, Memory};
use netns_tests::swarm::{FAST, SETTLE, text};
use netns_tests::traffic::in_network_of;
use netns_tests::wait::so;
use netns_tests::{Host, Packet, Ring, Swarm, Task, Topology, process, wait_until};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const MARKER: &[u8; 16] = b"FORMIC-IN-CLEAR!";

/// Octets of a sealed ping of 56 octets.
const SEALED_PING: usize = 120;

/// Of a ping's plaintext this block (octets 48 to 63) is all pattern, which repeats from octet 28 on.
const BLOCK: u8 = 3;

/// What was found, by name.
type Secrets = BTreeMap<String, Key>;

/// A swarm of two hosts with a task each on an encrypted network, and what they said from the beginning.
struct Observed {
    swarm: Swarm,
    tasks: Vec<Task>,
    network: NetworkId,
    packets: Vec<Packet>,
}

fn observe() -> Observed {
    let net = Topology::new(2);
    let capture = Capture::underlay(&net, "all.pcap");
    let swarm = Swarm::bring_up(net, FAST, &["--log-level", "trace"]);
    let network = swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    swarm.wait_all_ping(&tasks, 1);
    let pattern: String = MARKER.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut ping = in_network_of(&tasks[0], "ping");
    ping.args(["-n", "-q", "-c", "3", "-i", "0.05", "-s", "56", "-p", &pattern, &tasks[1].address().to_string()]);
    process::run(ping).ok();
    let packets = capture::read(Path::new(&capture.stop()));
    Observed { swarm, tasks, network: network.parse().expect("an id"), packets }
}

fn memory_of(host: &Host) -> Memory {
    Memory::of(host.daemon_pid())
}

/// The keys of a ping from the first task to the second.
fn esp_keys(observed: &Observed, candidates: &BTreeSet<Key>) -> Secrets {
    let mut plain = *MARKER;
    plain.rotate_left((usize::from(BLOCK) * 16 - 28) % 16);
    let ends = [0, 1].map(|task: usize| observed.swarm.host(observed.tasks[task].host).address());
    let mut pings = observed.packets.iter().filter(|packet| {
        let way = [packet.source.0, packet.destination.0] == ends;
        way && packet.esp().is_some() && packet.payload.len() == SEALED_PING
    });
    // The last ones carry the marker.
    let block = KnownBlock::new(pings.next_back().expect("a sealed ping"), BLOCK, &plain);
    candidates.iter().filter(|key| block.is_under(key)).map(|key| ("an SA's key".to_owned(), *key)).collect()
}

/// What one of the captured hellos says, and the gossip key that it is under.
struct Greeting {
    gossip_key: Key,
    fork: Fork,
    epoch: Epoch,
    party: Party,
}

fn greeting(datagram: &[u8], candidates: &BTreeSet<Key>) -> Option<Greeting> {
    let (header, sealed) = Header::parse(datagram).ok()?;
    let Form::Hello { .. } = header.form else { return None };
    candidates.iter().find_map(|&key| {
        let plain = gossip::open_hello(&gossip::hello_key(&Key32::new(key)), &header, sealed).ok()?;
        let record = SignedRecord::parse(Hello::parse(&plain).ok()?.node).ok()?;
        let RecordBody::Node(node) = record.body() else { return None };
        let public = node.public(header.epoch)?;
        let party = Party { node: node.node, boot: node.boot, public };
        Some(Greeting { gossip_key: key, fork: record.version().generation.fork, epoch: header.epoch, party })
    })
}

fn secret_of(public: PublicKey, candidates: &BTreeSet<Key>) -> Option<Key> {
    candidates.iter().copied().find(|&key| X25519Secret::new(&Key32::new(key)).public() == public)
}

/// All keys of the first epoch that the two daemons hold, from what is in their memory and what was captured.
fn thief(observed: &Observed) -> Secrets {
    let candidates: [BTreeSet<Key>; 2] = [0, 1].map(|host: usize| memory_of(observed.swarm.host(host)).candidates());
    let mut secrets = esp_keys(observed, &candidates[0]);
    assert_eq!(secrets, esp_keys(observed, &candidates[1]), "one key at both ends");
    let hellos = observed.packets.iter().filter(|packet| packet.is_udp(7946));
    let mut greetings: BTreeMap<_, Greeting> = BTreeMap::new();
    for packet in hellos {
        let known = Header::parse(&packet.payload).is_ok_and(|(header, _)| greetings.contains_key(&header.node));
        if !known && let Some(found) = greeting(&packet.payload, &candidates[0]) {
            greetings.insert(found.party.node, found);
        }
    }
    let first = greetings.values().next().expect("a hello that opens");
    secrets.insert("the gossip key".to_owned(), first.gossip_key);
    secrets.insert("the key of hellos".to_owned(), *gossip::hello_key(&Key32::new(first.gossip_key)).expose());

    let cluster: ClusterId = text(&observed.swarm.manager().get("/swarm")["ID"]).parse().expect("an id");
    let (fork, epoch) = (first.fork, first.epoch);
    let is_master = |key: &&Key| *gossip_key(&Key32::new(**key), cluster, fork, epoch).expose() == first.gossip_key;
    let master = *candidates[0].iter().find(is_master).expect("the master, at the manager");
    let of_network = network_key(&Key32::new(master), cluster, fork, epoch, observed.network);
    secrets.insert("the master".to_owned(), master);
    secrets.insert("the network key".to_owned(), *of_network.expose());
    for greeting in greetings.values() {
        let found = candidates.iter().find_map(|candidates| secret_of(greeting.party.public, candidates));
        let found = found.unwrap_or_else(|| panic!("the X25519 secret of {}", greeting.party.node));
        secrets.insert(format!("the X25519 secret of {}", greeting.party.node), found);
        for other in greetings.values().filter(|other| other.party != greeting.party) {
            let shared = X25519Secret::new(&Key32::new(found)).agree(&other.party.public).expect("a shared secret");
            let context = (cluster, fork, epoch);
            let gossip_key = Key32::new(first.gossip_key);
            let pair = gossip::pair_key(&gossip_key, &shared, context, &greeting.party, &other.party);
            secrets.insert("a shared X25519 secret".to_owned(), *shared.expose());
            secrets
                .insert(format!("the gossip key of {} to {}", greeting.party.node, other.party.node), *pair.expose());
        }
    }
    secrets
}

/// No key is in a log at any level, in what `ps` and `formic status` show, or in a file, in any form that a slip gives.
fn nothing_shows(host: &Host, secrets: &Secrets) {
    let mut shown =
        vec![("log".to_owned(), host.log().into_bytes()), ("status".to_owned(), host.status().to_string().into())];
    assert!(host.log().contains("TRACE"), "the log is not detailed enough to show a leak");
    for pid in process::children(host.daemon_pid()).into_iter().chain([host.daemon_pid()]) {
        let files = ["cmdline", "environ"].map(|file| format!("/proc/{pid}/{file}"));
        shown.extend(files.map(|file| (file.clone(), std::fs::read(file).unwrap_or_default())));
    }
    let mut listing = host.command("find");
    listing.args(["-P".as_ref(), host.state_dir().as_os_str(), "-type".as_ref(), "f".as_ref()]);
    let files = process::run(listing).ok();
    assert!(files.lines().count() > 1, "files of a node: {files}");
    shown.extend(files.lines().map(|file| (file.to_owned(), std::fs::read(file).unwrap_or_default())));
    for (name, key) in secrets {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = key.map(|byte| byte.to_string()).join(", ");
        for form in [&key[..], hex.as_bytes(), hex.to_uppercase().as_bytes(), list.as_bytes()] {
            let found = shown.iter().find(|(_, bytes)| memory::holds(bytes, form));
            assert!(found.is_none(), "{name} is in {} of {}", found.map_or("", |(place, _)| place), host.name());
        }
    }
}

fn rotate(swarm: &Swarm) {
    let ring = || Ring::of(swarm.manager())?.settled();
    let before = wait_until("a settled ring", SETTLE, ring);
    swarm.manager().formic(&["swarm", "rotate-keys"]).ok();
    wait_until("the next epoch", SETTLE, || so(ring()? > before, || format!("still {before}")));
}

#[test]
fn retired_keys_are_in_no_daemons_memory() {
    let observed = observe();
    let swarm = &observed.swarm;
    let secrets = thief(&observed);
    println!("found: {:#?}", secrets.keys());
    let kinds =
        ["an SA's key", "the gossip key", "the key of hellos", "the master", "the network key", "the X25519 secret"];
    let found = |kind: &&str| secrets.keys().any(|name| name.starts_with(kind));
    assert!(kinds.iter().all(found), "keys in use are in memory, but not all were found: {:#?}", secrets.keys());
    let places = |host: &Host| -> Vec<String> {
        let memory = memory_of(host);
        let of_secret = |(name, key): (&String, &Key)| {
            memory.places_of(key).into_iter().map(|place| format!("{name}: {place}")).collect::<Vec<_>>()
        };
        secrets.iter().flat_map(of_secret).collect()
    };
    assert!(swarm.net.hosts.iter().all(|host| !places(host).is_empty()), "keys in use are in memory");
    swarm.net.hosts.iter().for_each(|host| nothing_shows(host, &secrets));
    // The epoch becomes the previous one, and is erased at the next activation.
    rotate(swarm);
    rotate(swarm);
    for host in &swarm.net.hosts {
        wait_until(&format!("the retired keys are gone from {}", host.name()), SETTLE, || {
            let places = places(host);
            so(places.is_empty(), || format!("{places:#?}"))
        });
    }
    swarm.wait_all_ping(&observed.tasks, 1);
}
