//! The replacement of the swarm's root certificate and of the key that signs records.
//!
//! 1. A new root takes over at once: it issues all certificates from then on, join tokens name it, and the former
//!    root's private key is erased. The former root stays trusted, and has signed the new one, so that nodes which know
//!    only the former one believe managers with new certificates.
//! 2. Every node renews its certificate, and says so when it has the new one on its disk: one whose answer was lost on
//!    the way would be shut out for good. One that is away holds the replacement up until it comes back, is removed, or
//!    its certificate has expired.
//! 3. When all have renewed, and no manager is silent, the former root is dropped; records are signed with the new key, which all nodes have been
//!    told by then. The former key is still believed for as long as an epoch lives in which it signed; a rotation of
//!    the key ring is wished so that this is not long.

use super::apply::{Outcome, done};
use super::{Effect, FormerAttestation, NewRoot, Node, Refusal, Reply, RootRotation, RotationRequest, State, ring};
use crate::crypto::{self, SigningKey};
use crate::types::{EpochPhase, NodeId, PublicKey, UnixTime};

impl State {
    /// The root certificates that are trusted, DER: at most two, the one that issues last.
    pub fn roots(&self) -> Vec<&[u8]> {
        let former = self.cluster.rotation.iter().map(|rotation| rotation.former.as_slice());
        former.chain([self.cluster.authority.certificate.as_slice()]).collect()
    }

    /// The same, each with its SHA-256, by which nodes and join tokens name it.
    pub fn roots_by_digest(&self) -> Vec<([u8; 32], &[u8])> {
        self.roots().into_iter().map(|root| (crypto::sha256(&[root]), root)).collect()
    }

    /// The keys whose signature under a record is believed: at most two, the one that signs first.
    pub fn attestation_keys(&self) -> Vec<PublicKey> {
        let next = self.cluster.rotation.iter().map(|rotation| SigningKey::new(&rotation.attestation).public());
        let former = self.cluster.former_attestation.iter().map(|former| former.public);
        [SigningKey::new(&self.cluster.attestation).public()].into_iter().chain(next).chain(former).collect()
    }

    /// The nodes whose certificates are still of the former root.
    pub fn behind_on_root(&self, now: UnixTime) -> Vec<&Node> {
        if self.cluster.rotation.is_none() {
            return Vec::new();
        }
        let root = self.root_digest();
        let behind = |node: &&Node| node.root != root && node.certificate_expires >= now;
        self.nodes.values().filter(behind).collect()
    }

    /// Whether the former root can be dropped.
    pub fn root_rotation_is_through(&self, now: UnixTime) -> bool {
        self.cluster.rotation.is_some() && self.behind_on_root(now).is_empty()
    }

    /// SHA-256 of the root that issues: what join tokens name.
    pub fn root_digest(&self) -> [u8; 32] {
        crypto::sha256(&[&self.cluster.authority.certificate])
    }

    /// Refuses a certificate of a root that is not trusted any more.
    pub(super) fn check_root(&self, root: &[u8; 32]) -> Result<(), Refusal> {
        if self.roots_by_digest().iter().any(|(digest, _)| digest == root) {
            return Ok(());
        }
        Err(Refusal::NotNow("the swarm has a new root certificate since: try again with the present join token".into()))
    }

    /// Refuses a new root while the last one is not through, and one that is none.
    pub(super) fn check_root_rotation(&self, new: &NewRoot, now: UnixTime) -> Result<(), Refusal> {
        if self.cluster.rotation.is_some() {
            let behind: Vec<NodeId> = self.behind_on_root(now).iter().map(|node| node.id).collect();
            let text = format!(
                "the root certificate is being replaced already: it goes on when all nodes have renewed their certificates or are removed; waiting for {}",
                self.names(&behind)
            );
            return Err(Refusal::NotNow(text));
        }
        if self.cluster.former_attestation.is_some() {
            let text = "the keys of the last replacement are still in use: try again when the next rotation of the key ring is through (see 'swarm keys')";
            return Err(Refusal::NotNow(text.into()));
        }
        if self.roots().contains(&new.authority.certificate.as_slice()) || new.cross.is_empty() {
            return Err(Refusal::Invalid("the new root certificate is not a new one".into()));
        }
        Ok(())
    }

    pub(super) fn start_root_rotation(&mut self, new: &NewRoot, at: UnixTime) -> Effect {
        let former = std::mem::replace(&mut self.cluster.authority, new.authority.duplicate()).certificate;
        let (cross, attestation) = (new.cross.clone(), new.attestation.duplicate());
        self.cluster.rotation = Some(RootRotation { former, cross, attestation, started_at: at });
        // The former root's private key.
        Effect::Compact
    }

    pub(super) fn finish_root_rotation(&mut self, at: UnixTime) -> Outcome {
        if !self.root_rotation_is_through(at) {
            return Err(Refusal::NotNow("not all nodes have a certificate of the new root".into()));
        }
        let Some(rotation) = self.cluster.rotation.take() else { return done() };
        let former = std::mem::replace(&mut self.cluster.attestation, rotation.attestation);
        self.cluster.former_attestation = self
            .ring
            .phase(EpochPhase::Current)
            .map(|current| FormerAttestation { public: SigningKey::new(&former).public(), epoch: current.epoch });
        if self.ring.request.is_none() {
            self.ring.request = Some(RotationRequest { at, deadline_secs: ring::DEADLINE_SECS });
        }
        self.cluster.version = self.index;
        self.cluster.updated_at = at;
        Ok((Reply::Done, vec![Effect::Compact]))
    }

    /// Nothing that the former key signed is valid any more once its epochs are gone.
    pub(super) fn drop_former_attestation(&mut self) {
        let Some(former) = &self.cluster.former_attestation else { return };
        if self.ring.epochs.iter().all(|held| held.epoch > former.epoch) {
            self.cluster.former_attestation = None;
        }
    }
}
