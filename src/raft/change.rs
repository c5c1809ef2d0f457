//! Who takes part. One change at a time: a manager comes in as a learner, which gets the log and has no say; once it
//! has caught up it becomes a voter through a joint majority of the old and the new voters, and goes the same way.

use super::MAX_MEMBERS;
use super::machine::{Raft, Source, position};
use super::message::{Member, Peer, Position};
use crate::types::Time;
use noraft::NodeId;

/// A change of who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A new member gets the log. Or one of them is somewhere else now.
    Learner(Member, Peer),
    /// A learner gets a vote.
    Voter(Member),
    /// A member goes.
    Remove(Member),
}

/// Why a change was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Another member leads, or none.
    #[error("this manager is not the leader")]
    NotLeader,
    /// The last change is not committed yet, or the lead is too new to know.
    #[error("the managers are changing already")]
    Changing,
    /// The leader has to hand over first.
    #[error("the leader cannot remove itself")]
    Leader,
    /// It is no member, or not a learner.
    #[error("there is no such member")]
    Unknown,
    /// There is room for [`MAX_MEMBERS`].
    #[error("a swarm has at most {MAX_MEMBERS} managers")]
    Full,
}

impl Raft {
    /// Begins a change; it is done when it is committed and the membership is joint no more.
    pub fn change(&mut self, change: Change, now: Time) -> Result<Position, ChangeError> {
        self.tick(now);
        if self.leading.is_none() {
            return Err(ChangeError::NotLeader);
        }
        if self.membership().is_joint() || !self.is_membership_committed() || !self.is_term_committed() {
            return Err(ChangeError::Changing);
        }
        let (config, added) = self.changed(change)?;
        let at = self.node.propose_config(config);
        self.absorb(Source::Own(None, added));
        if at.is_invalid() { Err(ChangeError::Unknown) } else { Ok(position(at)) }
    }

    fn changed(&self, change: Change) -> Result<(noraft::ClusterConfig, Option<(Member, Peer)>), ChangeError> {
        let membership = self.membership();
        let mut config = membership.config();
        let id = |member: Member| NodeId::new(member.0);
        match change {
            Change::Learner(member, peer) => {
                if !membership.peers.contains_key(&member) {
                    if membership.peers.len() >= MAX_MEMBERS {
                        return Err(ChangeError::Full);
                    }
                    config.non_voters.insert(id(member));
                }
                Ok((config, Some((member, peer))))
            }
            Change::Voter(member) if membership.learners.contains(&member) => {
                Ok((config.to_joint_consensus(&[id(member)], &[]), None))
            }
            Change::Remove(member) if member == self.settings.member => Err(ChangeError::Leader),
            Change::Remove(member) if membership.learners.contains(&member) => {
                config.non_voters.remove(&id(member));
                Ok((config, None))
            }
            Change::Remove(member) if membership.voters.contains(&member) => {
                Ok((config.to_joint_consensus(&[], &[id(member)]), None))
            }
            Change::Voter(_) | Change::Remove(_) => Err(ChangeError::Unknown),
        }
    }
}
