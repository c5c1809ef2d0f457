//! The signed records of the present state: one for each node with a boot, each gone node, each endpoint, and one for
//! the key ring. They are attested in the active epoch, and anew when another becomes active.
//!
//! Everything in a record, the nonce of a sealed body included, follows from the state: a manager that starts again
//! makes the same octets, and a record keeps its age.
//!
//! The ring record is made anew with every other: its generation is the head, above which nothing was attested.
//!
//! So do the tombstones: a task that ended has one, and one that left the state as long as the epoch lives in which its
//! address was freed. A tombstone that the state does not know any more is kept until its own epoch is retired.

use crate::cluster::{State, Task};
use crate::crypto::{self, SigningKey};
use crate::esp::network_key;
use crate::types::{
    Attachment, ClusterId, EndpointKey, Epoch, EpochPhase, Fork, Generation, Key32, NodeId, TaskState, task_name,
};
use crate::wire::record::{
    EndpointBody, EndpointRecord, NodeRecord, PUBLICS_MAX, RecordBody, RecordError, RecordKey, RecordVersion,
    RingRecord, SignedRecord, VERSION_MAX,
};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// From this state on the endpoints of a task are announced.
const ANNOUNCED_FROM: TaskState = TaskState::Starting;

/// An endpoint as it is announced.
#[derive(Clone, PartialEq, Eq)]
struct Endpoint {
    key: EndpointKey,
    node: NodeId,
    generation: Generation,
    alive: bool,
    body: EndpointBody,
}

/// What a record shall say. The age of its content goes with it.
#[derive(Clone, PartialEq, Eq)]
enum Wanted {
    Node(NodeRecord),
    Gone(NodeId),
    Endpoint(Endpoint),
    Ring(RingRecord),
}

struct Kept {
    sequence: u64,
    version: RecordVersion,
    content: Wanted,
    encoded: Vec<u8>,
}

/// The signed records, in the order in which they were made.
#[derive(Default)]
pub(crate) struct RecordBook {
    index: u64,
    sequence: u64,
    records: BTreeMap<RecordKey, Kept>,
    order: BTreeMap<u64, RecordKey>,
}

/// What attesting needs of the state.
struct Attester<'a> {
    key: SigningKey,
    cluster: ClusterId,
    fork: Fork,
    epoch: Epoch,
    master: &'a Key32,
}

impl RecordBook {
    /// Brings the book up to the state.
    pub(crate) fn update(&mut self, state: &State) {
        if self.index == state.index {
            return;
        }
        self.index = state.index;
        let Some(active) = state.ring.phase(EpochPhase::Current) else { return };
        let attester = Attester {
            key: SigningKey::new(&state.cluster.attestation),
            cluster: state.cluster.id,
            fork: state.cluster.fork,
            epoch: active.epoch,
            master: &active.master,
        };
        let mut wanted = BTreeMap::new();
        collect_nodes(state, &mut wanted);
        collect_endpoints(state, &mut wanted);
        self.bury(state, &mut wanted);
        for (key, (generation, content)) in wanted {
            self.keep(&attester, key, generation, content);
        }
        let others = self.records.iter().filter(|(key, _)| **key != RecordKey::Ring);
        let newest = others.map(|(_, kept)| kept.version.generation).max();
        let head = newest.into_iter().chain([state.ring.generation]).max().unwrap_or(state.ring.generation);
        self.keep(&attester, RecordKey::Ring, head, Wanted::Ring(ring_record(state, active.epoch)));
    }

    /// The records made after `cursor`: the ring record, without whose head the others would be refused, then the
    /// others, oldest first. And the cursor after them.
    pub(crate) fn since(&self, cursor: u64) -> (Vec<Vec<u8>>, u64) {
        let mut keys: Vec<&RecordKey> = self.order.range(cursor.saturating_add(1)..).map(|(_, key)| key).collect();
        keys.sort_by_key(|key| **key != RecordKey::Ring);
        let records = keys.into_iter().filter_map(|key| self.records.get(key)).map(|kept| kept.encoded.clone());
        (records.collect(), self.sequence)
    }

    /// What is kept but no longer wanted: an endpoint gets its tombstone, a tombstone stays until its epoch is
    /// retired, anything else is forgotten.
    fn bury(&mut self, state: &State, wanted: &mut BTreeMap<RecordKey, (Generation, Wanted)>) {
        let mut forgotten = Vec::new();
        for (key, kept) in &self.records {
            if wanted.contains_key(key) {
                continue;
            }
            match &kept.content {
                Wanted::Endpoint(endpoint) if endpoint.alive => {
                    let address = endpoint.body.address;
                    want_tombstone(wanted, endpoint.key, endpoint.node, endpoint.generation, address);
                }
                Wanted::Endpoint(_) if state.ring.epochs.iter().any(|held| held.epoch == kept.version.epoch) => {}
                Wanted::Ring(_) => {}
                _ => forgotten.push(*key),
            }
        }
        for key in forgotten {
            if let Some(kept) = self.records.remove(&key) {
                self.order.remove(&kept.sequence);
            }
        }
    }

    fn keep(&mut self, attester: &Attester<'_>, key: RecordKey, generation: Generation, content: Wanted) {
        let mut version = RecordVersion { fork: attester.fork, generation, epoch: attester.epoch };
        if let Some(kept) = self.records.get(&key) {
            let head_moved = key == RecordKey::Ring && kept.version.generation < generation;
            let same = kept.version.epoch == version.epoch && kept.version.fork == version.fork;
            if same && kept.content == content && !head_moved {
                return;
            }
            // Other content needs a higher age, whatever the state calls it (the oldest epoch left the ring).
            if kept.version.generation >= generation && kept.content != content {
                version.generation = Generation { fork: attester.fork, index: self.index };
            }
        }
        let signed = match attester.attest(version, &content) {
            Ok(signed) => signed,
            Err(error) => {
                tracing::warn!(?key, %error, "a record cannot be made: what it is about is not announced");
                return;
            }
        };
        self.sequence += 1;
        let encoded = signed.encoded().to_vec();
        let kept = Kept { sequence: self.sequence, version, content, encoded };
        if let Some(old) = self.records.insert(key, kept) {
            self.order.remove(&old.sequence);
        }
        self.order.insert(self.sequence, key);
    }
}

impl Attester<'_> {
    fn attest(&self, version: RecordVersion, content: &Wanted) -> Result<SignedRecord, RecordError> {
        let body = match content {
            Wanted::Node(record) => RecordBody::Node(record.clone()),
            Wanted::Gone(node) => RecordBody::Gone(*node),
            Wanted::Ring(record) => RecordBody::Ring(*record),
            Wanted::Endpoint(endpoint) => return self.attest_endpoint(version, endpoint),
        };
        SignedRecord::sign(&self.key, self.cluster, version, body)
    }

    /// Long aliases are left out rather than the endpoint.
    fn attest_endpoint(&self, version: RecordVersion, endpoint: &Endpoint) -> Result<SignedRecord, RecordError> {
        let full = self.seal(endpoint, &endpoint.body);
        let record = match full {
            Err(RecordError::TooLong) => {
                self.seal(endpoint, &EndpointBody { aliases: Vec::new(), ..endpoint.body.clone() })?
            }
            other => other?,
        };
        SignedRecord::sign(&self.key, self.cluster, version, RecordBody::Endpoint(record))
    }

    fn seal(&self, endpoint: &Endpoint, body: &EndpointBody) -> Result<EndpointRecord, RecordError> {
        let key = network_key(self.master, self.cluster, self.fork, self.epoch, endpoint.key.network);
        let plain = postcard::to_stdvec(body).map_err(|_| RecordError::Malformed)?;
        // A pseudo-random function of all that is sealed: equal nonces mean equal content, so none is used twice.
        let nonce = crypto::hkdf_sha256::<12>(
            b"formic endpoint nonce v1",
            &[key.expose()],
            &[
                endpoint.key.task.as_bytes(),
                endpoint.node.as_bytes(),
                &endpoint.generation.fork.0.to_be_bytes(),
                &endpoint.generation.index.to_be_bytes(),
                &[u8::from(endpoint.alive)],
                &plain,
            ],
        );
        let scope = (self.cluster, self.fork, self.epoch);
        let Endpoint { key: about, node, generation, alive, .. } = endpoint;
        EndpointRecord::seal(*about, *node, *generation, *alive, body, &key, scope, *nonce)
    }
}

fn collect_nodes(state: &State, wanted: &mut BTreeMap<RecordKey, (Generation, Wanted)>) {
    for (id, gone) in &state.gone {
        wanted.insert(RecordKey::Node(*id), (gone.generation, Wanted::Gone(*id)));
    }
    for node in state.nodes.values() {
        let Some(boot) = node.boot else { continue };
        let held = |epoch: &Epoch| state.ring.epochs.iter().any(|held| held.epoch == *epoch);
        let publics = node.publics.iter().filter(|(epoch, _)| held(epoch)).take(PUBLICS_MAX);
        let record = NodeRecord {
            node: node.id,
            boot,
            boot_index: node.boot_index,
            version: truncated(&node.software, VERSION_MAX),
            addresses: node.addresses,
            queues: node.queues,
            publics: publics.map(|(epoch, public)| (*epoch, *public)).collect(),
        };
        let generation = Generation { fork: state.cluster.fork, index: node.record_index };
        wanted.insert(RecordKey::Node(node.id), (generation, Wanted::Node(record)));
    }
}

fn collect_endpoints(state: &State, wanted: &mut BTreeMap<RecordKey, (Generation, Wanted)>) {
    for task in state.tasks.values().filter(|task| !task.gone) {
        let Some(node) = task.node else { continue };
        let over = task.desired > TaskState::Running || task.status.state.is_terminal();
        if !over && task.status.state < ANNOUNCED_FROM {
            continue;
        }
        for attachment in &task.attachments {
            if over {
                let key = EndpointKey { network: attachment.network, task: task.id };
                want_tombstone(wanted, key, node, attachment.generation, attachment.address.addr());
            } else {
                let endpoint = endpoint(state, task, attachment, node);
                wanted.insert(RecordKey::Endpoint(endpoint.key), (attachment.generation, Wanted::Endpoint(endpoint)));
            }
        }
    }
    for ((generation, key), freed) in &state.freed {
        want_tombstone(wanted, *key, freed.node, *generation, freed.address);
    }
}

/// What says that an endpoint is gone: its address, and nothing else of it.
fn want_tombstone(
    wanted: &mut BTreeMap<RecordKey, (Generation, Wanted)>,
    key: EndpointKey,
    node: NodeId,
    allocation: Generation,
    address: IpAddr,
) {
    let (name, aliases, service) = (String::new(), Vec::new(), String::new());
    let body = EndpointBody { address, name, aliases, service, task_slot: 0 };
    let dead = Endpoint { key, node, generation: allocation, alive: false, body };
    wanted.insert(RecordKey::Endpoint(key), (tombstone_generation(allocation), Wanted::Endpoint(dead)));
}

fn endpoint(state: &State, task: &Task, attachment: &Attachment, node: NodeId) -> Endpoint {
    let service = state.services.get(&task.service).map(|service| service.spec.name.clone()).unwrap_or_default();
    let name = || format!("{}.{}", task_name(&service, task.slot, Some(node)), task.id);
    let body = EndpointBody {
        address: attachment.address.addr(),
        name: task.standalone.clone().unwrap_or_else(name),
        aliases: attachment.aliases.clone(),
        service,
        task_slot: task.slot,
    };
    let key = EndpointKey { network: attachment.network, task: task.id };
    Endpoint { key, node, generation: attachment.generation, alive: true, body }
}

/// A task runs once and ends once: its end is the next thing that happens to the allocation.
fn tombstone_generation(allocation: Generation) -> Generation {
    Generation { fork: allocation.fork, index: allocation.index + 1 }
}

fn ring_record(state: &State, active: Epoch) -> RingRecord {
    let oldest = state.ring.epochs.iter().map(|held| held.epoch).min().unwrap_or(active);
    RingRecord { active, oldest }
}

/// At most `limit` octets of `text`, cut between characters.
fn truncated(text: &str, limit: usize) -> String {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default().to_owned()
}
