//! Collects the parts of a push until its commit, so that what a node acts on always belongs together.

use crate::types::{NetworkName, TaskAssignment, TaskId};
use crate::wire::control::{NetworkView, RingView, SwarmView, ToAgent};
use std::collections::BTreeMap;

/// Entries of one push at most, all lists together: bounds what a manager can make a node hold.
const MAX_ENTRIES: usize = 1 << 20;

/// A complete push: the desired state of this node.
#[derive(Default)]
pub(crate) struct Push {
    pub(crate) swarm: Option<SwarmView>,
    pub(crate) ring: Option<RingView>,
    pub(crate) names: Vec<NetworkName>,
    pub(crate) networks: Vec<NetworkView>,
    pub(crate) tasks: BTreeMap<TaskId, TaskAssignment>,
    pub(crate) records: Vec<Vec<u8>>,
}

/// A push in the making.
#[derive(Default)]
pub(crate) struct Collector {
    push: Push,
    entries: usize,
}

/// The manager sent more than a push may hold.
#[derive(Debug, thiserror::Error)]
#[error("a push of more than {MAX_ENTRIES} entries")]
pub(crate) struct TooLarge;

impl Collector {
    /// Takes a message in; a complete push comes out with its commit. Messages that are no parts are ignored.
    pub(crate) fn take(&mut self, message: ToAgent) -> Result<Option<Push>, TooLarge> {
        self.entries += match &message {
            ToAgent::Names(page) => page.len(),
            ToAgent::Networks(page) => page.len(),
            ToAgent::Tasks(page) => page.len(),
            ToAgent::Records(page) => page.len(),
            _ => 0,
        };
        if self.entries > MAX_ENTRIES {
            return Err(TooLarge);
        }
        match message {
            ToAgent::Swarm(view) => self.push.swarm = Some(view),
            ToAgent::Ring(view) => self.push.ring = Some(view),
            ToAgent::Names(page) => self.push.names.extend(page),
            ToAgent::Networks(page) => self.push.networks.extend(page),
            ToAgent::Tasks(page) => self.push.tasks.extend(page.into_iter().map(|task| (task.id, task))),
            ToAgent::Records(page) => self.push.records.extend(page),
            ToAgent::Commit { .. } => return Ok(Some(std::mem::take(self).push)),
            ToAgent::Alive { .. } | ToAgent::Removed | ToAgent::Probe | ToAgent::AttachRefused { .. } => {}
        }
        Ok(None)
    }
}
