//! What a manager that does not lead asks of the leader: to commit a command, and from which log index its own state
//! is new enough for a read; and the leader's answers.

use super::drops::ControlDrop;
use super::handle::{Inner, LEADER_PATIENCE, LEADER_PAUSE, Leader, ManagerError};
use super::listener::Connection;
use super::peers::judge;
use super::replica::Verdict;
use crate::cluster::{Command, Refusal, Reply};
use crate::raft::MAX_COMMAND_BYTES;
use crate::tls::{self, ConnectError, StreamError};
use crate::wire::control::{Answer, STATE_PIECE_BYTES};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// How long the command may take to follow its opening.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a forwarded command.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    /// It is committed, and holds from this log index on.
    Done(Reply, u64),
    /// The state refuses it.
    Refused(Refusal),
    /// See [`ManagerError::LeadLost`].
    LeadLost,
    /// Anything else: nothing changed.
    Failed(String),
}

/// Has the leader commit a command; the state here shows it when this returns. With [`ManagerError::NoLeader`] the leader
/// has not taken it.
pub(super) async fn to_leader(inner: &Inner, leader: SocketAddr, command: &Command) -> Result<Reply, ManagerError> {
    let size = postcard::experimental::serialized_size(command).map_err(unencodable)?;
    let mut bytes = Zeroizing::new(vec![0; size]);
    postcard::to_slice(command, &mut bytes).map_err(unencodable)?;
    let identity = inner.credentials.identity()?;
    let outcome = tls::forward(leader, &identity, &bytes).await.map_err(|error| match error {
        ConnectError::NotLeader { .. } | ConnectError::Unreachable { .. } => ManagerError::NoLeader,
        // It may have been on its way.
        ConnectError::Untrusted { .. } => ManagerError::LeadLost,
        other => ManagerError::Unavailable(other.to_string()),
    })?;
    match postcard::from_bytes(&outcome) {
        Ok(Outcome::Done(reply, index)) => match inner.until_applied(index).await {
            Ok(()) => Ok(reply),
            // It is committed: nobody may take it for one that was not made.
            Err(ManagerError::NoLeader) => Err(ManagerError::LeadLost),
            Err(error) => Err(error),
        },
        Ok(Outcome::Refused(refusal)) => Err(refusal.into()),
        Ok(Outcome::LeadLost) | Err(_) => Err(ManagerError::LeadLost),
        Ok(Outcome::Failed(text)) => Err(ManagerError::Unavailable(text)),
    }
}

fn unencodable(error: postcard::Error) -> ManagerError {
    Refusal::Invalid(error.to_string()).into()
}

/// Returns once the applied state shows everything that was committed before, anywhere.
pub(super) async fn refresh(inner: &Inner) -> Result<(), ManagerError> {
    let patience = Instant::now() + LEADER_PATIENCE;
    loop {
        let index = match inner.leader().await? {
            Leader::Here => inner.writer.read().await,
            Leader::At(address) => {
                let index = tls::read_index(address, &*inner.credentials.identity()?).await;
                index.inspect_err(|error| tracing::debug!(%error, "the leader gives no read index")).ok()
            }
        };
        match index {
            Some(index) => return inner.until_applied(index).await,
            None if Instant::now() < patience => smol::Timer::after(LEADER_PAUSE).await,
            None => return Err(ManagerError::NoLeader),
        };
    }
}

/// Lets managers that the state knows pass, if this one leads; anybody else is answered here.
async fn admit(inner: &Inner, mut connection: Connection) -> Option<Connection> {
    let judged = inner.published.with(|state| {
        let peer = judge(state, connection.peer)?;
        match state.nodes.get(&peer.node) {
            Some(_) => Ok(()),
            None => Err((ControlDrop::UnknownNode, format!("the swarm does not know node {}", peer.node))),
        }
    });
    if let Err((why, reason)) = judged {
        connection.refuse(inner, why, reason).await;
        return None;
    }
    if !inner.leads() {
        // Read what follows, or closing would reset the connection under the answer.
        let leader = inner.leader_address();
        let sent = connection.writer.write(&Answer::NotLeader { leader }).await;
        tracing::debug!(sent = sent.is_ok(), "asked for the leader");
        let _ = connection.reader.read::<Zeroizing<Vec<u8>>>(Duration::from_secs(1)).await;
        return None;
    }
    Some(connection)
}

/// Commits what another manager was told to.
pub(super) async fn serve_command(inner: Arc<Inner>, connection: Connection) {
    let Some(mut connection) = admit(&inner, connection).await else { return };
    let command = match connection.reader.read::<Zeroizing<Vec<u8>>>(COMMAND_TIMEOUT).await {
        Ok(bytes) if bytes.len() <= MAX_COMMAND_BYTES => postcard::from_bytes::<Command>(&bytes).ok(),
        Ok(_) | Err(StreamError::Frame(_)) => None,
        Err(_) => return,
    };
    let Some(command) = command else {
        return connection.refuse(&inner, ControlDrop::Malformed, "this is no command").await;
    };
    let Some(outcome) = outcome(inner.propose_here(command).await) else {
        return connection.answer(Answer::NotLeader { leader: inner.leader_address() }).await;
    };
    match postcard::to_stdvec(&outcome) {
        Ok(outcome) => connection.answer(Answer::Forwarded { outcome }).await,
        Err(error) => tracing::error!(%error, "an outcome cannot be encoded"),
    }
}

/// What the sender is told of it; `None`: it never got into the log here, and the next leader may take it.
fn outcome(verdict: Verdict) -> Option<Outcome> {
    Some(match verdict {
        Ok((reply, index)) => Outcome::Done(reply, index),
        Err(ManagerError::Refused(refusal)) => Outcome::Refused(refusal),
        Err(ManagerError::NotLeader | ManagerError::Stalled(_)) => return None,
        Err(ManagerError::LeadLost | ManagerError::Interrupted(_)) => Outcome::LeadLost,
        Err(other) => Outcome::Failed(other.to_string()),
    })
}

/// Tells another manager from which log index its state is new enough.
pub(super) async fn serve_read(inner: Arc<Inner>, connection: Connection) {
    let Some(connection) = admit(&inner, connection).await else { return };
    let answer = match inner.writer.read().await {
        Some(index) => Answer::Index { index },
        None => Answer::NotLeader { leader: inner.leader_address() },
    };
    connection.answer(answer).await;
}

/// Gives a new manager the state to begin with.
pub(super) async fn serve_state(inner: Arc<Inner>, connection: Connection) {
    let Some(mut connection) = admit(&inner, connection).await else { return };
    let Some(snapshot) = inner.writer.snapshot().await else { return };
    let size = postcard::experimental::serialized_size(&snapshot).unwrap_or(0);
    let mut bytes = Zeroizing::new(vec![0; size]);
    if let Err(error) = postcard::to_slice(&snapshot, &mut bytes) {
        return tracing::error!(%error, "the state cannot be encoded");
    }
    let mut sent = connection.writer.write(&Answer::State { total: bytes.len() as u64 }).await;
    for piece in bytes.chunks(STATE_PIECE_BYTES) {
        if sent.is_err() {
            break;
        }
        sent = connection.writer.write(&piece).await;
    }
    if let Err(error) = sent.and(connection.writer.close().await) {
        tracing::info!(from = %connection.from, %error, "a new manager did not take the state");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::StoreError;

    #[test]
    fn a_manager_that_cannot_write_sends_the_command_on() {
        let full = || StoreError::Node("no room".to_owned());
        assert!(outcome(Err(ManagerError::NotLeader)).is_none());
        assert!(outcome(Err(ManagerError::Stalled(full()))).is_none(), "it was refused before the log");
        let lost = outcome(Err(ManagerError::Interrupted(full())));
        assert!(matches!(lost, Some(Outcome::LeadLost)), "it may be in the log: nobody may take it twice");
    }
}
