//! This node as one of the managers, or not: what the managers say of it is followed.

use super::change::{failed, manager_error};
use super::held::Why;
use super::membership::Membership;
use super::model::NodeError;
use super::node::Node;
use super::renewal;
use super::runtime::{Managers, Runtime};
use super::session::within;
use crate::manager::{Manager, ManagerError, NodeSeal, StoreError};
use crate::types::{NodeId, Role, UnlockKey};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Pause before a change of the role that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Node {
    /// Follows what the managers say about who they are, until this membership ends.
    pub(super) async fn follow_managers(self, runtime: Arc<Runtime>) {
        while let Ok(mut told) = runtime.told.recv().await {
            let mut said = String::new();
            while let Err(error) = self.follow(&runtime, &told).await {
                let error = error.to_string();
                if said != error {
                    tracing::warn!(error, "this node does not follow what the managers say of it yet: trying on");
                    said = error;
                }
                // A newer word takes the place of this one.
                match within(RETRY, runtime.told.recv()).await {
                    Some(Ok(newer)) => told = newer,
                    // The membership is over.
                    Some(Err(_)) => return,
                    None => {}
                }
            }
        }
    }

    async fn follow(&self, runtime: &Runtime, told: &Managers) -> Result<(), NodeError> {
        let _changing = self.inner.changing.lock().await;
        if !self.is_current(runtime) {
            return Ok(());
        }
        let mut membership = self.current_membership(runtime)?;
        let own = told.iter().find(|manager| manager.node == membership.node);
        membership.role = if own.is_some() { Role::Manager } else { Role::Worker };
        membership.managers = told.iter().map(|manager| manager.address).collect();
        // In another seat than it is told, it was demoted and promoted again without noticing: what it remembers as
        // the former member must not speak for the new one.
        let running = runtime.manager.load_full();
        let misplaced = running.is_some_and(|manager| own.is_some_and(|own| own.seat != manager.seat()));
        // A promotion that was taken back before it was through.
        let half_way = membership.role == Role::Worker && self.manager_dir().exists();
        if membership.role == runtime.role() && !misplaced && !half_way {
            return self.inner.environment.store.save(&membership);
        }
        self.renew_for(runtime, &membership).await?;
        // First on disk: after a crash the rest is done at the next start.
        self.inner.environment.store.save(&membership)?;
        match membership.role {
            Role::Manager => {
                if misplaced {
                    self.end_manager(runtime).await?;
                }
                self.begin_to_manage(runtime, &membership, None).await?;
            }
            Role::Worker => {
                self.end_manager(runtime).await?;
                tracing::info!("this node is a worker now");
            }
        }
        Ok(())
    }

    /// Makes a running node a manager. Where that needs the unlock key, the node goes on as a worker until it is given.
    async fn begin_to_manage(
        &self,
        runtime: &Runtime,
        membership: &Membership,
        key: Option<UnlockKey>,
    ) -> Result<(), NodeError> {
        let opened = self.open_manager(membership, key).await;
        match &opened {
            Err(NodeError::Locked) => self.hold(membership, Why::Locked),
            Err(NodeError::WrongKey(_)) => {}
            _ => self.inner.held.store(None),
        }
        runtime.manager.store(Some(Arc::new(opened?)));
        tracing::info!("this node is a manager now");
        Ok(())
    }

    async fn end_manager(&self, runtime: &Runtime) -> Result<(), NodeError> {
        self.keep_unlock_key(None);
        self.inner.held.store(None);
        if let Some(manager) = runtime.manager.swap(None) {
            manager.stop().await;
        }
        // The key file that goes has what opens the node's own key.
        self.inner.environment.store.drop_seal();
        self.inner.environment.store.save_identity(&runtime.identity.load())?;
        self.remove_manager_state()
    }

    /// Takes up the membership of a locked manager, or goes on with a promotion that stopped at the lock. Does not wait
    /// for a session: the swarm may have no leader before more of its managers are unlocked.
    pub async fn unlock(&self, key: UnlockKey) -> Result<(), NodeError> {
        let _changing = self.inner.changing.lock().await;
        let held = self.inner.held.load_full().filter(|held| held.is_locked()).ok_or(NodeError::NotLocked)?;
        let membership = &held.membership;
        if let Some(runtime) = self.inner.runtime.load_full() {
            return self.begin_to_manage(&runtime, membership, Some(key)).await;
        }
        let manager = self.open_manager(membership, Some(key)).await?;
        if let Err(error) = self.start(membership.clone(), Some(manager.clone())) {
            manager.stop().await;
            return Err(error);
        }
        self.inner.held.store(None);
        tracing::info!("unlocked");
        Ok(())
    }

    /// This manager says how the node's key is kept on disk.
    pub(super) fn keep_sealed(&self, manager: &Manager) -> Result<(), NodeError> {
        let store = self.inner.environment.store.clone();
        let follower = Box::new(move |seal: &NodeSeal| store.follow_seal(seal).map_err(|error| error.to_string()));
        manager.follow_seal(follower).map_err(failed)
    }

    /// The certificate of the new role.
    async fn renew_for(&self, runtime: &Runtime, membership: &Membership) -> Result<(), NodeError> {
        if runtime.identity.load().peer().role == membership.role {
            return Ok(());
        }
        let renewed = renewal::renew(&runtime.identity.load_full(), &membership.others()).await;
        let renewed = renewed.map_err(NodeError::Unavailable)?;
        if renewed.peer().role != membership.role {
            return Err(NodeError::Unavailable("the managers do not agree yet on this node's role".into()));
        }
        self.inner.environment.store.save_identity(&renewed)?;
        runtime.identity.store(Arc::new(renewed));
        Ok(())
    }

    /// What opens the files of a manager that was stopped before it ran: its next attempt needs it.
    pub(super) fn keep_unlock_key(&self, key: Option<UnlockKey>) {
        *self.inner.unlock_key.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }

    fn kept_unlock_key(&self) -> Option<UnlockKey> {
        let kept = self.inner.unlock_key.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().map(|key| UnlockKey(key.0.clone()))
    }

    /// Opens the manager's state, or gets it from the other managers, and opens the control port.
    pub(super) async fn open_manager(
        &self,
        membership: &Membership,
        unlock: Option<UnlockKey>,
    ) -> Result<Manager, NodeError> {
        let directory = self.manager_dir();
        let manager = if Manager::exists(&directory) {
            let key = unlock.or_else(|| self.kept_unlock_key());
            Manager::unlock(&directory, key).await.map_err(reopen_error)?
        } else {
            let identity = self.inner.environment.store.identity()?;
            Manager::join(&directory, &identity, &membership.others()).await.map_err(manager_error)?
        };
        let begun = async {
            self.keep_sealed(&manager)?;
            manager.listen(membership.listen).await.map_err(failed)
        };
        match begun.await {
            Ok(_) => {
                self.keep_unlock_key(None);
                Ok(manager)
            }
            Err(error) => {
                self.keep_unlock_key(manager.unlock_key());
                manager.stop().await;
                Err(error)
            }
        }
    }

    /// Goes on with this manager alone. The nodes learn of the new life of the state by their sessions.
    pub(super) async fn force_new_cluster(&self, runtime: &Runtime) -> Result<NodeId, NodeError> {
        let Some(former) = runtime.manager.load_full() else {
            let text =
                "this node is not a manager: --force-new-cluster goes on with the state of a manager that is left";
            return Err(NodeError::Invalid(text.into()));
        };
        let membership = self.current_membership(runtime)?;
        former.stop().await;
        let manager = Manager::force_new_cluster(&self.manager_dir(), former.unlock_key()).await;
        let manager = manager.map_err(manager_error)?;
        self.keep_sealed(&manager)?;
        manager.listen(membership.listen).await.map_err(manager_error)?;
        runtime.manager.store(Some(Arc::new(manager)));
        tracing::warn!("this manager goes on alone: the other managers are workers now, should they come back");
        Ok(membership.node)
    }

    /// The membership as it is now: that of the disk. Its role is the one that was told last, also while the change to it
    /// is under way: a manager's state must not be taken for a former manager's.
    pub(super) fn current_membership(&self, runtime: &Runtime) -> Result<Membership, NodeError> {
        let stored = self.inner.environment.store.load()?;
        Ok(stored.unwrap_or_else(|| Membership { role: runtime.role(), ..runtime.membership.clone() }))
    }
}

/// What a disk does to a state that is there is waited for.
fn reopen_error(error: ManagerError) -> NodeError {
    match error {
        ManagerError::Store(error @ StoreError::File { .. }) => {
            NodeError::Disk(ManagerError::Stalled(error).to_string())
        }
        other => manager_error(other),
    }
}
