//! A member that lacks what the log no longer holds gets the leader's applied state, piece by piece: one piece is on
//! its way at a time, and the next follows its answer.

use super::machine::Raft;
use super::message::{Member, Membership, Message, Payload, Position};
use super::{MAX_PIECE_BYTES, MAX_SNAPSHOT_BYTES, Snapshot};
use crate::types::Time;
use std::sync::Arc;
use zeroize::Zeroizing;

/// A snapshot on its way to a member.
pub(super) struct Transfer {
    /// `None` until the driver has handed one in.
    snapshot: Option<Arc<Snapshot>>,
    offset: u64,
    sent_at: Time,
}

/// A snapshot that is arriving.
pub(super) struct Assembly {
    position: Position,
    membership: Membership,
    total: u64,
    received: u64,
    pieces: Vec<Payload>,
}

impl Raft {
    /// Whether a member is being sent a snapshot: the log had better not be cut again just now.
    pub fn is_transferring(&self) -> bool {
        self.leading.as_ref().is_some_and(|leading| leading.followers.values().any(|other| other.transfer.is_some()))
    }

    pub(super) fn begin_transfer(&mut self, member: Member) {
        let now = self.now;
        let Some(leading) = &mut self.leading else { return };
        let Some(follower) = leading.followers.get_mut(&member) else { return };
        if follower.transfer.is_some() {
            return;
        }
        let snapshot = leading.snapshot.clone();
        leading.snapshot_wanted |= snapshot.is_none();
        follower.transfer = Some(Transfer { snapshot, offset: 0, sent_at: now });
        self.send_piece(member);
    }

    /// The state with entries up to `index` applied, as [`super::Ready::snapshot_wanted`] asked for.
    pub fn provide_snapshot(&mut self, index: u64, state: Payload) {
        let Some(snapshot) = self.snapshot_at(index, state).map(Arc::new) else { return };
        let Some(leading) = &mut self.leading else { return };
        leading.snapshot = Some(snapshot.clone());
        let mut waiting = Vec::new();
        for (member, follower) in &mut leading.followers {
            if let Some(transfer) = follower.transfer.as_mut().filter(|transfer| transfer.snapshot.is_none()) {
                transfer.snapshot = Some(snapshot.clone());
                waiting.push(*member);
            }
        }
        waiting.into_iter().for_each(|member| self.send_piece(member));
    }

    fn send_piece(&mut self, member: Member) {
        let (now, term) = (self.now, self.term());
        let follower = self.leading.as_mut().and_then(|leading| leading.followers.get_mut(&member));
        let Some(transfer) = follower.and_then(|follower| follower.transfer.as_mut()) else { return };
        let Some(snapshot) = &transfer.snapshot else { return };
        transfer.sent_at = now;
        let bytes = snapshot.data.bytes();
        let from = usize::try_from(transfer.offset).unwrap_or(usize::MAX).min(bytes.len());
        let piece = bytes.get(from..).unwrap_or_default();
        let piece = piece.get(..MAX_PIECE_BYTES).unwrap_or(piece);
        let message = Message::Piece {
            term,
            position: snapshot.position,
            membership: snapshot.membership.clone(),
            total: bytes.len() as u64,
            offset: transfer.offset,
            data: Payload::new(Zeroizing::new(piece.to_vec())),
        };
        self.outbox.push((member, message));
    }

    /// Sends pieces again that were not answered for two heartbeats; gives up on members that are silent altogether.
    pub(super) fn repeat_pieces(&mut self) {
        let (now, timing) = (self.now, self.settings.timing);
        let Some(leading) = &mut self.leading else { return };
        let mut due = Vec::new();
        for (member, follower) in &mut leading.followers {
            if now.since(follower.heard) > timing.election * 10 {
                follower.transfer = None;
            }
            let late = |transfer: &Transfer| now.since(transfer.sent_at) >= timing.heartbeat * 2;
            if follower.transfer.as_ref().is_some_and(late) {
                due.push(*member);
            }
        }
        if leading.followers.values().all(|follower| follower.transfer.is_none()) {
            leading.snapshot = None;
        }
        due.into_iter().for_each(|member| self.send_piece(member));
    }

    pub(super) fn piece_arrived(&mut self, from: Member, term: u64, position: Position, received: u64) {
        let (now, current) = (self.now, self.term());
        let follower = self.leading.as_mut().and_then(|leading| leading.followers.get_mut(&from));
        let Some(follower) = follower.filter(|_| term == current) else { return };
        follower.heard = now;
        let Some(transfer) = &mut follower.transfer else { return };
        let Some(snapshot) = transfer.snapshot.as_ref().filter(|snapshot| snapshot.position == position) else {
            return;
        };
        let total = snapshot.data.bytes().len() as u64;
        if received >= total {
            // The next heartbeat's answer says how its log goes on.
            follower.transfer = None;
        } else if received != transfer.offset {
            // A doubled answer asks for nothing new.
            transfer.offset = received;
            self.send_piece(from);
        }
    }

    /// The log begins after `index` now: an older snapshot leads nowhere.
    pub(super) fn drop_old_transfers(&mut self, index: u64) {
        let Some(leading) = &mut self.leading else { return };
        leading.snapshot = leading.snapshot.take().filter(|snapshot| snapshot.position.index >= index);
        for follower in leading.followers.values_mut() {
            let old = |transfer: &Transfer| {
                transfer.snapshot.as_ref().is_some_and(|snapshot| snapshot.position.index < index)
            };
            if follower.transfer.as_ref().is_some_and(old) {
                follower.transfer = None;
            }
        }
    }

    pub(super) fn take_piece(
        &mut self,
        from: Member,
        term: u64,
        (position, membership): (Position, Membership),
        (total, offset, data): (u64, u64, Payload),
    ) {
        // A newer term comes with the leader's heartbeat; until then this is nobody's word.
        let sound = membership.is_sound() && total <= MAX_SNAPSHOT_BYTES && data.bytes().len() <= MAX_PIECE_BYTES;
        if term != self.term() || self.election.leader != Some(from) || !sound || position.term > term {
            return;
        }
        self.hear_leader(from);
        let received = if position.index <= self.node.commit_index().get() {
            total
        } else {
            self.assemble((position, membership), (total, offset, data))
        };
        self.outbox.push((from, Message::PieceReply { term, position, received }));
    }

    /// Adds a piece; gives how much is there.
    fn assemble(
        &mut self,
        (position, membership): (Position, Membership),
        (total, offset, data): (u64, u64, Payload),
    ) -> u64 {
        let fits = |assembly: &Assembly| assembly.position == position && assembly.total == total;
        let mut assembly = self.assembly.take().filter(fits).unwrap_or(Assembly {
            position,
            membership,
            total,
            received: 0,
            pieces: Vec::new(),
        });
        let len = data.bytes().len() as u64;
        let progress = len > 0 || total == 0;
        if offset == assembly.received && progress && offset + len <= total {
            assembly.received += len;
            assembly.pieces.push(data);
        }
        let received = assembly.received;
        if received < total {
            self.assembly = Some(assembly);
            return received;
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(total).unwrap_or(0)));
        assembly.pieces.iter().for_each(|piece| bytes.extend_from_slice(piece.bytes()));
        let data = Payload::new(bytes);
        let snapshot = Snapshot { position: assembly.position, membership: assembly.membership, data };
        self.install(snapshot);
        received
    }
}
