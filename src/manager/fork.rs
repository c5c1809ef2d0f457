//! A new life of the state: when the majority of the managers is lost for good, one that is left goes on alone.
//!
//! All that it has on disk counts, committed or not: it may be less than was acknowledged (the lost ones may have had
//! more), never a half. Its seat is a new one and the other managers are workers from then on, so that nothing they
//! still say is listened to; the fork is higher, so that no node goes back to what they remember.

use super::handle::ManagerError;
use super::store::{Loaded, Owner, Store};
use super::{members, random, wall_clock};
use crate::cluster::{Entry, NewLife, State};
use crate::raft::{Body, HardState, Member, Membership, Payload, Peer, Position, Save, Snapshot};
use crate::types::{Fork, Key32, UnlockKey};
use std::path::Path;

/// Opens a stopped manager's store, with its unlock key if it is locked, and puts the new life into it.
pub(super) fn begin(directory: &Path, unlock: Option<&UnlockKey>) -> Result<(Store, Loaded), ManagerError> {
    let (mut store, loaded) = Store::open(directory, unlock)?;
    let Loaded { owner, hard, snapshot, entries } = loaded;
    let broken = |error: &dyn std::fmt::Display| ManagerError::Broken(error.to_string());
    let mut state = State::from_bytes(snapshot.data.bytes()).map_err(|error| broken(&error))?;
    for entry in entries {
        match entry.body {
            Body::Command(payload) => {
                let entry: Entry = postcard::from_bytes(payload.bytes()).map_err(|error| broken(&error))?;
                // Refused then, refused now.
                let _ = state.apply(&entry);
            }
            Body::Term | Body::Members(_) => state.pass(),
        }
    }
    let now = wall_clock();
    let life = NewLife {
        node: owner.node,
        fork: Fork(now.0.max(state.cluster.fork.0 + 1)),
        current: Key32::new(random()),
        next: Key32::new(random()),
    };
    let seat = state.begin_life(&life, now)?;
    let address = state.nodes.get(&owner.node).map(|node| node.addresses.control);
    let address = address.ok_or_else(|| broken(&"the state does not know this node"))?;
    let owner = Owner { node: owner.node, member: Member(seat) };
    let membership = Membership::alone(owner.member, Peer { node: owner.node, address });
    state.managers = members::seats(&membership);
    let data = Payload::new(state.to_bytes().map_err(|error| broken(&error))?);
    let hard = HardState { term: hard.term + 1, vote: None };
    let snapshot = Snapshot { position: Position { term: hard.term, index: state.index }, membership, data };
    store.set_owner(owner);
    store.follow_lock(&state.cluster.lock)?;
    let save = Save { snapshot: Some(snapshot.clone()), hard, after: state.index, entries: Vec::new() };
    store.save(&save)?;
    Ok((store, Loaded { owner, hard, snapshot, entries: Vec::new() }))
}
