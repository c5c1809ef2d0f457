//! A manager's membership that this node has, and that is not taken up: its files need the unlock key, or its disk cannot
//! be used.

use super::membership::Membership;
use super::model::{LOCKED, NodeError, SwarmInfo, SwarmState};
use super::node::Node;
use std::sync::Arc;
use std::time::Duration;

/// Pause before a disk that could not be used is tried again.
const DISK_RETRY: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Held {
    pub(super) membership: Membership,
    pub(super) why: Why,
}

/// What keeps a membership from being taken up.
#[derive(PartialEq, Eq)]
pub(super) enum Why {
    /// The unlock key is missing.
    Locked,
    /// The manager's state cannot be read or written anew; tried on until it can.
    Disk(String),
}

impl Held {
    pub(super) fn is_locked(&self) -> bool {
        self.why == Why::Locked
    }

    /// Why nothing else can be done meanwhile.
    pub(super) fn refusal(&self) -> NodeError {
        match &self.why {
            Why::Locked => NodeError::Locked,
            Why::Disk(reason) => NodeError::Disk(reason.clone()),
        }
    }

    pub(super) fn info(&self) -> SwarmInfo {
        SwarmInfo {
            state: if self.is_locked() { SwarmState::Locked } else { SwarmState::Pending },
            error: if let Why::Disk(reason) = &self.why { reason.clone() } else { LOCKED.to_owned() },
            node: Some(self.membership.node),
            address: Some(self.membership.addresses.control.ip()),
            role: Some(self.membership.role),
            managers: Vec::new(),
        }
    }
}

impl Node {
    /// Takes the membership up as soon as the disk can be used; until it is left, or this daemon ends.
    pub(super) async fn outlast_disk(self) {
        loop {
            smol::Timer::after(DISK_RETRY).await;
            let _changing = self.inner.changing.lock().await;
            let Some(held) = self.inner.held.load_full().filter(|held| !held.is_locked()) else { return };
            let manager = match self.open_manager(&held.membership, None).await {
                Ok(manager) => manager,
                Err(NodeError::Disk(reason)) => {
                    self.hold(&held.membership, Why::Disk(reason));
                    continue;
                }
                Err(NodeError::Locked) => return self.hold(&held.membership, Why::Locked),
                Err(error) => return self.die(error.to_string()).await,
            };
            self.inner.held.store(None);
            tracing::info!("this manager can use its state again");
            match self.start(held.membership.clone(), Some(manager.clone())) {
                Ok(()) => return,
                Err(error) => {
                    manager.stop().await;
                    return self.die(error.to_string()).await;
                }
            }
        }
    }

    /// Says so, unless it is held for the same reason already.
    pub(super) fn hold(&self, membership: &Membership, why: Why) {
        if self.inner.held.load().as_ref().is_some_and(|held| held.why == why) {
            return;
        }
        match &why {
            Why::Locked => tracing::warn!("{LOCKED}"),
            Why::Disk(reason) => tracing::error!("{reason}"),
        }
        self.inner.held.store(Some(Arc::new(Held { membership: membership.clone(), why })));
    }
}
