//! The only place that changes the state.

use super::{Effect, Entry, Refusal, Reply, State};
use zeroize::Zeroizing;

/// Why bytes are not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored state is unreadable: {0}")]
pub struct StateError(pub String);

impl State {
    /// The state after the first entry, which must be [`super::Command::Init`].
    pub fn init(entry: &Entry) -> Result<State, Refusal> {
        let _ = entry;
        Err(Refusal::NotNow("not built yet".into()))
    }

    /// Applies the entry with log index `self.index + 1`. A refused one changes nothing but the index.
    pub fn apply(&mut self, entry: &Entry) -> (Result<Reply, Refusal>, Vec<Effect>) {
        let _ = entry;
        (Err(Refusal::NotNow("not built yet".into())), Vec::new())
    }

    /// A second copy, made on purpose: what readers hold while the next entry is applied.
    pub fn duplicate(&self) -> Result<State, StateError> {
        State::from_bytes(&self.to_bytes()?)
    }

    /// The bytes to be sealed and stored.
    pub fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, StateError> {
        postcard::to_stdvec(self).map(Zeroizing::new).map_err(|error| StateError(error.to_string()))
    }

    /// Reads what [`State::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<State, StateError> {
        postcard::from_bytes(bytes).map_err(|error| StateError(error.to_string()))
    }
}
