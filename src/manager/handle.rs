//! The handle that the API and the daemon hold on a running manager.

use crate::cluster::{Command, Refusal, Reply, State};
use std::sync::Arc;

/// Why a manager could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ManagerError {
    /// The state refuses it; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The manager is stopping or its store failed; whether the state changed is unknown.
    #[error("{0}")]
    Unavailable(String),
}

/// A running manager. Cheap to clone.
#[derive(Clone)]
pub struct Manager {
    // filled in by the manager
}

impl Manager {
    /// The state after the last commit.
    pub fn state(&self) -> Arc<State> {
        todo!()
    }

    /// Commits a command: it is durable before this returns.
    pub async fn propose(&self, command: Command) -> Result<Reply, ManagerError> {
        let _ = command;
        todo!()
    }

    /// The worker and the manager join token, `SWMTKN-1-...`.
    pub fn join_tokens(&self) -> (String, String) {
        todo!()
    }
}
