//! Commands on the key ring: what nodes say about epochs, and the steps of the key life. When a step is due is
//! `ring`'s matter; here each is only kept in order.

use super::apply::{Outcome, done};
use super::limits::not_found;
use super::{Effect, EpochState, NodeState, Refusal, Reply, RotationRequest, State, ring};
use crate::types::{BootId, Epoch, EpochPhase, Generation, Key32, NodeId, PublicKey, UnixTime};
use std::collections::BTreeSet;

/// Late nodes that a refusal names; the others are counted.
const NAMED_NODES: usize = 10;

impl State {
    /// A public for an epoch that is not in the ring (any more) is passed over: the node may not have heard yet.
    pub(super) fn set_public(&mut self, id: NodeId, boot: BootId, epoch: Epoch, public: PublicKey) -> Outcome {
        let known = self.ring.epochs.iter().any(|known| known.epoch == epoch);
        let index = self.index;
        let node = self.nodes.get_mut(&id).ok_or_else(|| not_found("node", id))?;
        node.check_boot(boot)?;
        match node.publics.get(&epoch) {
            Some(told) if *told != public => {
                Err(Refusal::Conflict(format!("node {id} told a second public for epoch {epoch} of boot {boot}")))
            }
            None if known => {
                node.publics.insert(epoch, public);
                node.record_index = index;
                done()
            }
            _ => done(),
        }
    }

    /// Only the word of a participant counts.
    pub(super) fn set_ready(&mut self, id: NodeId, boot: BootId, epoch: Epoch) -> Outcome {
        self.nodes.get(&id).ok_or_else(|| not_found("node", id))?.check_boot(boot)?;
        let known = self.ring.epochs.iter_mut().find(|known| known.epoch == epoch);
        if let Some(known) = known.filter(|known| known.participants.contains(&id)) {
            known.ready.insert(id);
        }
        done()
    }

    /// Only the current epoch is sent with.
    pub(super) fn set_sending(&mut self, id: NodeId, boot: BootId, epoch: Epoch) -> Outcome {
        self.nodes.get(&id).ok_or_else(|| not_found("node", id))?.check_boot(boot)?;
        if let Some(current) = self.ring.phase_mut(EpochPhase::Current).filter(|current| current.epoch == epoch) {
            current.sending.insert(id);
        }
        done()
    }

    pub(super) fn draw_next(&mut self, master: &Key32, at: UnixTime) -> Outcome {
        if let Some(next) = self.ring.phase(EpochPhase::Next) {
            return Err(Refusal::Conflict(format!("epoch {} is handed out already", next.epoch)));
        }
        let fresh = self.fresh_epoch(master, at, None)?;
        self.ring.epochs.push(fresh);
        done()
    }

    /// The next epoch becomes current, the current one previous, the previous one is erased.
    pub(super) fn activate(&mut self, epoch: Epoch, late: bool, at: UnixTime) -> Outcome {
        let Some(next) = self.ring.phase(EpochPhase::Next).filter(|next| next.epoch == epoch) else {
            return Err(Refusal::Conflict(format!("epoch {epoch} is not the next one")));
        };
        if !late && !ring::not_ready(self, next).is_empty() {
            return Err(Refusal::NotNow(format!("not all nodes are ready for epoch {epoch}")));
        }
        let erased = self.ring.erase(EpochPhase::Previous);
        for epoch in &mut self.ring.epochs {
            if epoch.phase == EpochPhase::Current {
                epoch.phase = EpochPhase::Previous;
            } else if epoch.phase == EpochPhase::Next {
                epoch.phase = EpochPhase::Current;
                epoch.activated_at = Some(at);
            }
        }
        let request = self.ring.request.take();
        self.ring.keep_previous_secs = request.map_or(ring::DEADLINE_SECS, |request| request.deadline_secs);
        self.bump_ring();
        self.drop_former_attestation();
        self.forget_gone(at);
        self.erased(erased)
    }

    pub(super) fn retire(&mut self, epoch: Epoch) -> Outcome {
        if self.ring.phase(EpochPhase::Previous).is_none_or(|previous| previous.epoch != epoch) {
            return Err(Refusal::Conflict(format!("epoch {epoch} is not the previous one")));
        }
        let erased = self.ring.erase(EpochPhase::Previous);
        // The signed ring record names the oldest epoch: other content needs a higher age, also after a restart.
        self.bump_ring();
        self.drop_former_attestation();
        self.erased(erased)
    }

    /// A wish that stands already is not put off by another one.
    pub(super) fn request_rotation(&mut self, force: bool, at: UnixTime) -> Outcome {
        if self.ring.request.is_some() {
            return done();
        }
        let late = ring::not_sending(self);
        if let (Some(current), false, false) = (self.ring.phase(EpochPhase::Current), force, late.is_empty()) {
            return Err(Refusal::NotNow(self.late_text(current.epoch, &late)));
        }
        self.ring.request = Some(RotationRequest { at, deadline_secs: ring::DEADLINE_SECS });
        done()
    }

    fn late_text(&self, epoch: Epoch, late: &[NodeId]) -> String {
        let names = self.names(late);
        format!(
            "not all nodes send with the current key (epoch {epoch}) yet: {names}. Try again, or use --force to rotate without waiting for them"
        )
    }

    /// Nodes for people: the first few by name and id.
    pub(super) fn names(&self, nodes: &[NodeId]) -> String {
        let name = |id: &NodeId| match self.nodes.get(id) {
            Some(node) => format!("{} ({id})", node.hostname),
            None => id.to_string(),
        };
        let mut names = nodes.iter().take(NAMED_NODES).map(name).collect::<Vec<_>>().join(", ");
        if nodes.len() > NAMED_NODES {
            names.push_str(&format!(" and {} more", nodes.len() - NAMED_NODES));
        }
        names
    }

    /// At most one in ten minutes counts: a node cannot make the swarm rotate all the time.
    pub(super) fn request_early_rotation(&mut self, id: NodeId, at: UnixTime) -> Outcome {
        self.nodes.get(&id).ok_or_else(|| not_found("node", id))?;
        // A last time in the future is a clock that was set back; it is not waited for.
        let too_soon = |last: UnixTime| last <= at && at.0 - last.0 < u64::from(ring::DEADLINE_SECS);
        if self.ring.request.is_none() && !self.ring.last_early_rotation.is_some_and(too_soon) {
            self.ring.request = Some(RotationRequest { at, deadline_secs: ring::DEADLINE_SECS });
            self.ring.last_early_rotation = Some(at);
        }
        done()
    }

    /// A next epoch with a number never used before. Its participants are the nodes with a session, but `without`.
    pub(super) fn fresh_epoch(
        &self,
        master: &Key32,
        at: UnixTime,
        without: Option<NodeId>,
    ) -> Result<EpochState, Refusal> {
        let newest = self.ring.epochs.iter().map(|epoch| epoch.epoch).max().unwrap_or(Epoch(0));
        if newest.next() == newest {
            return Err(Refusal::NotNow("the epoch numbers are used up".into()));
        }
        let ready = self.nodes.values().filter(|node| node.state == NodeState::Ready).map(|node| node.id);
        Ok(EpochState {
            epoch: newest.next(),
            phase: EpochPhase::Next,
            master: master.duplicate(),
            participants: ready.filter(|id| Some(*id) != without).collect(),
            ready: BTreeSet::new(),
            sending: BTreeSet::new(),
            handed_out_at: at,
            activated_at: None,
        })
    }

    /// After a removal, or when a former manager knows the masters: `fresh` takes the place of the next epoch, and is
    /// activated soon. Tells whether a master was erased.
    pub(super) fn shut_out(&mut self, removed: Option<NodeId>, fresh: EpochState, at: UnixTime) -> bool {
        let erased = self.ring.erase(EpochPhase::Next);
        if let Some(id) = removed {
            for epoch in &mut self.ring.epochs {
                epoch.participants.remove(&id);
            }
            self.forget_progress(id);
        }
        self.ring.epochs.push(fresh);
        self.ring.request = Some(RotationRequest { at, deadline_secs: ring::REMOVAL_DEADLINE_SECS });
        self.bump_ring();
        self.forget_epochs();
        erased
    }

    /// Nothing that the node said about epochs counts any more.
    pub(super) fn forget_progress(&mut self, id: NodeId) {
        for epoch in &mut self.ring.epochs {
            epoch.ready.remove(&id);
            epoch.sending.remove(&id);
        }
    }

    fn bump_ring(&mut self) {
        self.ring.generation = Generation { fork: self.cluster.fork, index: self.index };
    }

    fn erased(&mut self, erased: bool) -> Outcome {
        self.forget_epochs();
        Ok((Reply::Done, if erased { vec![Effect::Compact] } else { Vec::new() }))
    }

    /// Drops what belongs to epochs that are no longer in the ring: publics in the nodes' records, freed endpoints.
    fn forget_epochs(&mut self) {
        let index = self.index;
        let kept: BTreeSet<Epoch> = self.ring.epochs.iter().map(|epoch| epoch.epoch).collect();
        self.freed.retain(|_, freed| kept.contains(&freed.epoch));
        for node in self.nodes.values_mut() {
            let before = node.publics.len();
            node.publics.retain(|epoch, _| kept.contains(epoch));
            if node.publics.len() < before {
                node.record_index = index;
            }
        }
    }
}
