//! What one node may know of the state, as the frames of one push.

use super::book::RecordBook;
use crate::cluster::{Network, NodeState, State};
use crate::crypto;
use crate::esp::{gossip_key, network_key};
use crate::types::{NetworkId, NodeId, Transform};
use crate::wire::control::{EpochView, NetworkKey, NetworkView, PAGE_ENTRIES, RingView, SwarmView, ToAgent};
use crate::wire::frame::{self, FrameError};
use serde::Serialize;
use zeroize::Zeroizing;

/// Octets of a page at most: long entries make short pages, far below the limit of a frame.
const PAGE_BYTES: usize = 256 << 10;

/// One push.
pub(crate) struct Push {
    /// The encoded frames.
    pub(crate) frames: Vec<Zeroizing<Vec<u8>>>,
    /// Digest of the desired state in it: equal digests say the same.
    pub(crate) digest: [u8; 32],
    /// Whether it carries records.
    pub(crate) records: bool,
    /// The book's cursor after its records.
    pub(crate) cursor: u64,
}

/// The push for `node`, with the records that came after `cursor`.
pub(crate) fn compose(state: &State, node: NodeId, book: &RecordBook, cursor: u64) -> Result<Push, FrameError> {
    let networks = state.networks_of(node);
    let networks: Vec<NetworkId> = networks.into_iter().collect();
    let mut frames = vec![
        frame::encode(&ToAgent::Swarm(swarm_view(state)))?,
        frame::encode(&ToAgent::Ring(ring_view(state, &networks)))?,
    ];
    let names = state.networks.values().map(Network::told).collect();
    pages(names, ToAgent::Names, &mut frames)?;
    pages(networks.iter().filter_map(|id| network_view(state, *id)).collect(), ToAgent::Networks, &mut frames)?;
    pages(state.tasks_of(node), ToAgent::Tasks, &mut frames)?;
    let parts: Vec<&[u8]> = frames.iter().map(|frame| frame.as_slice()).collect();
    let digest = crypto::sha256(&parts);
    let (records, cursor) = book.since(cursor);
    let any = !records.is_empty();
    pages(records, ToAgent::Records, &mut frames)?;
    frames.push(frame::encode(&ToAgent::Commit { index: state.index })?);
    Ok(Push { frames, digest, records: any, cursor })
}

fn swarm_view(state: &State) -> SwarmView {
    SwarmView {
        cluster: state.cluster.id,
        fork: state.cluster.fork,
        heartbeat_secs: state.cluster.spec.heartbeat_secs,
        disabled_offloads: state.cluster.spec.disabled_offloads,
        managers: state.manager_views(),
        attestation: state.attestation_keys(),
        roots: state.roots().into_iter().map(<[u8]>::to_vec).collect(),
        gone: state.gone.keys().copied().collect(),
    }
}

/// The ring with the keys of `networks` only.
fn ring_view(state: &State, networks: &[NetworkId]) -> RingView {
    let (cluster, fork) = (state.cluster.id, state.cluster.fork);
    let epochs = state.ring.epochs.iter().map(|held| EpochView {
        epoch: held.epoch,
        phase: held.phase,
        gossip_key: gossip_key(&held.master, cluster, fork, held.epoch),
        networks: networks
            .iter()
            .map(|id| NetworkKey { network: *id, key: network_key(&held.master, cluster, fork, held.epoch, *id) })
            .collect(),
        participants: held.participants.iter().copied().collect(),
    });
    RingView { epochs: epochs.collect() }
}

fn network_view(state: &State, id: NetworkId) -> Option<NetworkView> {
    let network = state.networks.get(&id)?;
    let live = |node: &NodeId| state.nodes.get(node).is_some_and(|node| node.state == NodeState::Ready);
    Some(NetworkView {
        id,
        name: network.spec.name.clone(),
        transform: if network.spec.encrypted { Transform::Gcm } else { Transform::Gmac },
        subnet: network.subnet,
        mtu_bytes: network.spec.mtu_bytes,
        members: state.members(id).into_iter().map(|node| (node, live(&node))).collect(),
    })
}

/// A list as pages, at least one: an empty list is said, not left out.
fn pages<T: Serialize>(
    entries: Vec<T>,
    wrap: impl Fn(Vec<T>) -> ToAgent,
    frames: &mut Vec<Zeroizing<Vec<u8>>>,
) -> Result<(), FrameError> {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for entry in entries {
        let len = postcard::experimental::serialized_size(&entry).map_err(|_| FrameError::Malformed)?;
        if page.len() == PAGE_ENTRIES || (!page.is_empty() && bytes + len > PAGE_BYTES) {
            frames.push(frame::encode(&wrap(std::mem::take(&mut page)))?);
            bytes = 0;
        }
        page.push(entry);
        bytes += len;
    }
    frames.push(frame::encode(&wrap(page))?);
    Ok(())
}
