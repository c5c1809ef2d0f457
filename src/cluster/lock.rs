//! Autolock: whether the managers' files need the unlock key, and which. What a manager locks, and how, is its shell's
//! matter.
//!
//! A new key is kept as the next one until somebody has seen it; so long the managers go on with the former key, or
//! without one.

use super::apply::{Outcome, done};
use super::{Effect, Lock, Refusal, Reply, State};
use zeroize::Zeroizing;

impl State {
    /// The unlock key to be shown; `None` when autolock is off.
    pub fn unlock_key(&self) -> Option<&Zeroizing<[u8; 32]>> {
        self.cluster.next_unlock_key.as_ref().or(self.cluster.lock.key.as_ref())
    }

    pub(super) fn check_lock(&self, autolock: bool, new: Option<&[u8; 32]>) -> Result<(), Refusal> {
        match (autolock, new.is_some(), self.unlock_key().is_some()) {
            (true, false, false) => Err(Refusal::Invalid("autolock needs an unlock key".into())),
            (false, true, _) => Err(Refusal::Invalid("cannot rotate because autolock is not turned on".into())),
            _ => Ok(()),
        }
    }

    /// What [`State::check_lock`] has found possible.
    pub(super) fn change_lock(&mut self, autolock: bool, new: Option<&Zeroizing<[u8; 32]>>) -> Vec<Effect> {
        if let Some(key) = new {
            self.cluster.next_unlock_key = Some(key.clone());
        }
        if autolock {
            return Vec::new();
        }
        self.cluster.next_unlock_key = None;
        if self.cluster.lock.key.is_some() { self.lock_with(None) } else { Vec::new() }
    }

    /// The word on a key that is not the next one comes late.
    pub(super) fn unlock_key_seen(&mut self, key: &Zeroizing<[u8; 32]>) -> Outcome {
        match self.cluster.next_unlock_key.take_if(|next| next == key) {
            Some(next) => Ok((Reply::Done, self.lock_with(Some(next)))),
            None => done(),
        }
    }

    /// With a new at-rest key, too: what the former lock was on shall open nothing any more.
    fn lock_with(&mut self, key: Option<Zeroizing<[u8; 32]>>) -> Vec<Effect> {
        self.cluster.lock = Lock { key, since: self.index };
        vec![Effect::Compact]
    }
}
