//! Who should take part in the consensus (pure): the nodes whose role is manager, each in the seat it got with that
//! role. The leader brings the members there, one change at a time.

use crate::cluster::{Manager, State};
use crate::raft::{Change, Member, Membership, Peer, Raft};
use crate::types::{NodeId, Role, Time};
use std::collections::BTreeMap;
use std::time::Duration;

/// Entries that a learner may lack when it gets its vote: those of the moment.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// A member that has not answered for so long is not counted on: a learner gets no vote then.
const LATELY: Duration = Duration::from_secs(1);

/// What the leader does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Change(Change),
    /// The leader itself is to go: one of these, who stay and were heard lately, leads first.
    HandOver(Vec<Member>),
}

/// The members as the replicated state keeps them.
pub(crate) fn seats(membership: &Membership) -> BTreeMap<NodeId, Manager> {
    let seat = |(member, peer): (&Member, &Peer)| {
        let voter = membership.is_voter(*member);
        (peer.node, Manager { seat: member.0, voter, address: peer.address })
    };
    membership.peers.iter().map(seat).collect()
}

/// The seat of a node that the state knows as a manager.
pub(crate) fn seat_of(state: &State, node: NodeId) -> Option<Member> {
    state.nodes.get(&node).filter(|node| node.role == Role::Manager).map(|node| Member(node.seat))
}

/// The next step, if the members are not as they should be and `raft` leads.
pub(super) fn plan(state: &State, raft: &Raft, now: Time) -> Option<Step> {
    let membership = raft.membership();
    let wanted: BTreeMap<Member, Peer> = state
        .nodes
        .values()
        .filter(|node| node.role == Role::Manager)
        .map(|node| (Member(node.seat), Peer { node: node.id, address: node.addresses.control }))
        .collect();
    let heard = |member: Member| {
        member == raft.member() || raft.progress(member).is_some_and(|progress| now.since(progress.heard) < LATELY)
    };
    let news = wanted.iter().find(|(member, peer)| membership.peers.get(member) != Some(peer));
    if let Some((member, peer)) = news {
        return Some(Step::Change(Change::Learner(*member, *peer)));
    }
    let ready = |member: &&Member| {
        let near = |matched: u64| matched + CAUGHT_UP_ENTRIES >= raft.last().index;
        heard(**member) && raft.progress(**member).is_some_and(|progress| near(progress.matched))
    };
    if let Some(learner) = membership.learners.iter().filter(|learner| wanted.contains_key(learner)).find(ready) {
        return Some(Step::Change(Change::Voter(*learner)));
    }
    // Last: who comes may take the place of who goes.
    let mut leaving = membership.peers.keys().copied().filter(|member| !wanted.contains_key(member));
    let possible = |member: &Member| {
        let rest: Vec<Member> = membership.voters.iter().copied().filter(|voter| voter != member).collect();
        let alive = rest.iter().filter(|voter| heard(**voter)).count();
        // Without it the others could not decide anything: it stays until more of them are back.
        *member != raft.member() && (membership.learners.contains(member) || alive > rest.len() / 2)
    };
    // A silent one first: it only weighs on the others.
    let silent = leaving.clone().filter(|member| !heard(*member));
    match silent.chain(leaving.clone()).find(possible) {
        Some(member) => Some(Step::Change(Change::Remove(member))),
        // Not to another one that is to go: the two would pass the lead to each other.
        None if leaving.any(|member| member == raft.member()) => {
            let stays = |voter: &Member| wanted.contains_key(voter) && heard(*voter);
            let heirs: Vec<Member> = membership.voters.iter().copied().filter(stays).collect();
            (!heirs.is_empty()).then_some(Step::HandOver(heirs))
        }
        None => None,
    }
}
