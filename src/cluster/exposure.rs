//! What a manager knew that is one no more: everything. Once it takes part in the managers' consensus no longer, and so
//! hears of nothing new, the leader has replaced what can be:
//!
//! - the masters: the next epoch gives way to a fresh one, which becomes current as after a removal;
//! - the certificate authority, the key that signs records, and the join tokens: as `swarm ca --rotate` does. Only one
//!   such replacement runs at a time; this one waits for the one before it.
//!
//! Until all nodes have renewed their certificates the former authority is believed, as everywhere, and with it whoever
//! has its key: a certificate of it is not refused where the managers have committed a new one for the node, since the
//! answer with the new one may have been lost, and a manager that cannot speak holds the swarm up. Nodes that are away
//! hold that end up; who distrusts a former manager removes them, and it (`node demote`, then `node rm`).
//!
//! The unlock key stays: with it alone, and no other manager's disk, nothing is opened, and nobody but an operator can
//! bring a new one to safety.

use super::apply::{Outcome, done};
use super::{Effect, Manager, NewRoot, NewTokens, Reply, State};
use crate::types::{Key32, NodeId, UnixTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What somebody knows who should not, and is still in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// The masters of current and next.
    pub masters: bool,
    /// The authority's key, the attestation key, the join tokens.
    pub authority: bool,
}

impl State {
    /// Whether [`super::Command::ReplaceMasters`] is to be proposed.
    pub fn masters_are_exposed(&self) -> bool {
        self.cluster.exposure.masters
    }

    /// Whether [`super::Command::ReplaceAuthority`] is to be proposed, and would be taken.
    pub fn authority_is_exposed(&self) -> bool {
        let cluster = &self.cluster;
        cluster.exposure.authority && cluster.rotation.is_none() && cluster.former_attestation.is_none()
    }

    /// The managers are about to be others.
    pub(super) fn note_former_managers(&mut self, managers: &BTreeMap<NodeId, Manager>) {
        if self.managers.keys().any(|node| !managers.contains_key(node)) {
            self.cluster.exposure = Exposure { masters: true, authority: true };
        }
    }

    /// One manager goes on alone, with masters that are new: what the others know of the rest is replaced, as if they had
    /// been demoted.
    pub(super) fn note_abandoned_managers(&mut self, stays: NodeId) {
        let others = self.managers.keys().any(|node| *node != stays);
        let authority = self.cluster.exposure.authority || others;
        self.cluster.exposure = Exposure { masters: false, authority };
        self.managers.clear();
    }

    pub(super) fn replace_masters(&mut self, master: &Key32, at: UnixTime) -> Outcome {
        if !self.cluster.exposure.masters {
            return done();
        }
        let fresh = self.fresh_epoch(master, at, None)?;
        self.cluster.exposure.masters = false;
        let erased = self.shut_out(None, fresh, at);
        Ok((Reply::Done, if erased { vec![Effect::Compact] } else { Vec::new() }))
    }

    pub(super) fn replace_authority(&mut self, tokens: &NewTokens, root: &NewRoot, at: UnixTime) -> Outcome {
        if !self.cluster.exposure.authority {
            return done();
        }
        self.check_root_rotation(root, at)?;
        self.cluster.exposure.authority = false;
        self.change_tokens(tokens);
        self.cluster.version = self.index;
        self.cluster.updated_at = at;
        Ok((Reply::Done, vec![self.start_root_rotation(root, at)]))
    }
}
