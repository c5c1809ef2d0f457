//! What makes this host a node of a swarm, on disk: `node/membership.json` (nothing secret) and `node/identity.pem`
//! (key and certificates, mode 0600). Written whole, then renamed: a kill at any moment leaves the old or the new.
//!
//! On a locked manager the key in the identity is sealed under one that the manager's key file has: whoever had it could
//! ask the other managers for the swarm's state.

use super::model::NodeError;
use crate::manager::NodeSeal;
use crate::tls::{Identity, IdentityError, write_private};
use crate::types::{ClusterId, Fork, Key32, NetworkId, NodeAddresses, NodeId, Role};
use crate::wire::control::Joined;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Version of `membership.json`. A higher one is of a newer Formic.
const FORMAT: u32 = 1;
/// Which namespaces are to be on networks.
const ATTACHMENTS: &str = "attachments.json";

/// This host's place in a swarm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Membership {
    /// See [`FORMAT`].
    pub(super) format: u32,
    pub(super) node: NodeId,
    pub(super) cluster: ClusterId,
    /// The life of the swarm's state that its keys belong to.
    pub(super) fork: Fork,
    pub(super) role: Role,
    pub(super) addresses: NodeAddresses,
    /// Where a manager listens.
    pub(super) listen: SocketAddr,
    /// Managers known when this was written.
    pub(super) managers: Vec<SocketAddr>,
}

impl Membership {
    pub(super) fn new(
        joined: &Joined,
        addresses: NodeAddresses,
        listen: SocketAddr,
        managers: Vec<SocketAddr>,
    ) -> Membership {
        let Joined { node, cluster, fork, role, .. } = *joined;
        Membership { format: FORMAT, node, cluster, fork, role, addresses, listen, managers }
    }

    /// The managers but for this node.
    pub(super) fn others(&self) -> Vec<SocketAddr> {
        self.managers.iter().copied().filter(|manager| *manager != self.addresses.control).collect()
    }
}

/// A namespace of this host that is to be on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredAttachment {
    pub(super) namespace: String,
    pub(super) network: NetworkId,
    /// The address that it had last.
    pub(super) address: Option<IpAddr>,
    pub(super) aliases: Vec<String>,
}

impl StoredAttachment {
    /// Whether it is about the same namespace and network.
    pub(super) fn is_same(&self, other: &StoredAttachment) -> bool {
        (&self.namespace, self.network) == (&other.namespace, other.network)
    }
}

/// The files.
#[derive(Clone)]
pub(super) struct MembershipStore {
    directory: PathBuf,
    /// What a manager's key is sealed under, while it is; held over each use of the identity's file.
    seal: Arc<Mutex<Option<Key32>>>,
}

impl MembershipStore {
    pub(super) fn new(state_dir: &Path) -> MembershipStore {
        MembershipStore { directory: state_dir.join("node"), seal: Arc::default() }
    }

    /// The stored membership; `None` when this host is in no swarm.
    pub(super) fn load(&self) -> Result<Option<Membership>, NodeError> {
        let path = self.directory.join("membership.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&path, &error.to_string())),
        };
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(&text).map_err(|error| unreadable(&path, &error.to_string()))?;
        if head.format > FORMAT {
            return Err(NodeError::Failed(format!(
                "{} was written by a newer Formic (format {}, this one knows {FORMAT}): install that version, or leave the swarm by removing the state directory",
                path.display(),
                head.format
            )));
        }
        serde_json::from_slice(&text).map(Some).map_err(|error| unreadable(&path, &error.to_string()))
    }

    /// The node's key and certificates.
    pub(super) fn identity(&self) -> Result<Identity, NodeError> {
        Identity::load(&self.identity_path(), self.seal().as_ref()).map_err(identity_error)
    }

    /// Stores the node's key and certificates.
    pub(super) fn save_identity(&self, identity: &Identity) -> Result<(), NodeError> {
        private_dir(&self.directory)
            .map_err(|error| NodeError::Failed(format!("cannot make {}: {error}", self.directory.display())))?;
        self.write_identity(identity, self.seal().as_ref())
    }

    /// A worker's key is never sealed: nobody could open it.
    fn write_identity(&self, identity: &Identity, seal: Option<&Key32>) -> Result<(), NodeError> {
        let seal = seal.filter(|_| identity.peer().role == Role::Manager);
        identity.save(&self.identity_path(), seal).map_err(identity_error)
    }

    /// The manager that runs here says how the key is to be kept.
    pub(super) fn follow_seal(&self, told: &NodeSeal) -> Result<(), NodeError> {
        let mut seal = self.seal();
        *seal = told.is_locked().then(|| told.key.duplicate());
        match Identity::load(&self.identity_path(), Some(&told.key)) {
            Ok(identity) => self.write_identity(&identity, seal.as_ref()),
            // None yet: it will be written as it is to be kept.
            Err(IdentityError::File { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(identity_error(error)),
        }
    }

    /// No manager runs here any more.
    pub(super) fn drop_seal(&self) {
        *self.seal() = None;
    }

    fn seal(&self) -> MutexGuard<'_, Option<Key32>> {
        self.seal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity_path(&self) -> PathBuf {
        self.directory.join("identity.pem")
    }

    /// The namespaces that are to be on networks, as this host's operator said.
    pub(super) fn attachments(&self) -> Result<Vec<StoredAttachment>, NodeError> {
        let path = self.directory.join(ATTACHMENTS);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| unreadable(&path, &error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(unreadable(&path, &error.to_string())),
        }
    }

    /// Stores them.
    pub(super) fn save_attachments(&self, attachments: &[StoredAttachment]) -> Result<(), NodeError> {
        let text = serde_json::to_vec_pretty(attachments).map_err(|error| NodeError::Failed(error.to_string()))?;
        self.write(ATTACHMENTS, &text)
    }

    pub(super) fn save(&self, membership: &Membership) -> Result<(), NodeError> {
        let text = serde_json::to_vec_pretty(membership).map_err(|error| NodeError::Failed(error.to_string()))?;
        self.write("membership.json", &text)
    }

    /// Leaves no trace of the swarm. The membership goes first: without it the rest means nothing.
    pub(super) fn erase(&self) -> Result<(), NodeError> {
        self.drop_seal();
        for name in ["membership.json", "identity.pem", ATTACHMENTS] {
            match std::fs::remove_file(self.directory.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(NodeError::Failed(format!(
                        "cannot remove {}: {error}",
                        self.directory.join(name).display()
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), NodeError> {
        let path = self.directory.join(name);
        private_dir(&self.directory)
            .and_then(|()| write_private(&path, content))
            .map_err(|error| NodeError::Failed(format!("cannot write {}: {error}", path.display())))
    }
}

fn identity_error(error: IdentityError) -> NodeError {
    NodeError::Failed(error.to_string())
}

fn private_dir(directory: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn unreadable(path: &Path, why: &str) -> NodeError {
    NodeError::Failed(format!(
        "cannot read {}: {why}; restore it, or remove the state directory and join again",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str) -> (MembershipStore, PathBuf) {
        let directory = std::env::temp_dir().join(format!("formic-membership-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        (MembershipStore::new(&directory), directory)
    }

    #[test]
    fn what_was_saved_is_loaded_and_erased() {
        let (store, directory) = store("round");
        assert!(store.load().unwrap().is_none());
        let address = "127.0.0.1:1".parse().unwrap();
        let addresses = NodeAddresses { control: address, gossip: address, data: address, behind_nat: false };
        let (node, cluster) = (NodeId::from_random([1; 17]), ClusterId::from_random([2; 17]));
        let joined = Joined { node, cluster, fork: Fork(1), role: Role::Worker, data_path_port: 4500, chain: vec![] };
        store.save(&Membership::new(&joined, addresses, address, vec![address])).unwrap();
        assert_eq!(store.load().unwrap().unwrap().node, node);
        store.erase().unwrap();
        assert!(store.load().unwrap().is_none());
        std::fs::remove_dir_all(directory).unwrap();
    }

    fn identity(role: Role) -> Identity {
        let key = crate::tls::NodeKey::generate().unwrap();
        let cluster = ClusterId::from_random([2; 17]);
        Identity::new(&key, crate::manager::issue_first(cluster, NodeId::from_random([1; 17]), role, &key)).unwrap()
    }

    #[test]
    fn a_locked_managers_key_is_sealed_and_a_workers_never() {
        let (store, directory) = store("seal");
        let file = || std::fs::read_to_string(directory.join("node/identity.pem")).unwrap();
        let told = |locked| NodeSeal::of(Key32::new([7; 32]), locked);
        store.follow_seal(&told(true)).unwrap();
        let (manager, worker) = (identity(Role::Manager), identity(Role::Worker));
        store.save_identity(&manager).unwrap();
        assert!(file().contains("BEGIN SEALED PRIVATE KEY") && !file().contains("BEGIN PRIVATE KEY"));
        assert_eq!(store.identity().unwrap().peer(), manager.peer());
        // Another start: the key is there when the manager has told.
        let again = MembershipStore::new(&directory);
        let text = again.identity().err().unwrap().to_string();
        assert!(text.contains("is sealed"), "{text}");
        again.follow_seal(&told(true)).unwrap();
        assert_eq!(again.identity().unwrap().peer(), manager.peer());
        // Off and on again, with the file that is there.
        again.follow_seal(&told(false)).unwrap();
        assert!(file().contains("BEGIN PRIVATE KEY"));
        again.follow_seal(&told(true)).unwrap();
        assert!(file().contains("BEGIN SEALED PRIVATE KEY"));
        // Demoted.
        again.save_identity(&worker).unwrap();
        assert!(file().contains("BEGIN PRIVATE KEY"));
        again.drop_seal();
        assert_eq!(again.identity().unwrap().peer(), worker.peer());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn unreadable_and_newer_files_are_named() {
        let (store, directory) = store("bad");
        std::fs::create_dir_all(directory.join("node")).unwrap();
        for (content, expected) in
            [("{\"format\": 99}", "newer Formic"), ("{\"form", "cannot read"), ("", "cannot read")]
        {
            std::fs::write(directory.join("node/membership.json"), content).unwrap();
            let error = store.load().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
