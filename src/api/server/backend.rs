//! What the API needs of the daemon behind it, as a trait so that the handlers can be tried without a daemon.

use crate::agent::{
    AttachedNamespace, Examination, ExecIo, ExecRequest, ImageInfo, InitRequest, JoinTarget, LocalTask, Node,
    NodeError, Status, SwarmInfo,
};
use crate::cluster::{Command, NewRoot, Reply, State};
use crate::manager::ManagerError;
use crate::types::{NetworkId, NetworkName, NodeId, TaskAssignment, UnlockKey};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use zeroize::Zeroizing;

/// A future that a [`Backend`] returns.
pub(super) type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The daemon as the API sees it.
pub(super) trait Backend: Send + Sync + 'static {
    /// This node's part in a swarm.
    fn swarm(&self) -> SwarmInfo;
    /// The replicated state, if this node is a manager.
    fn state(&self) -> Option<Arc<State>>;
    /// Returns once the state shows everything that was committed before, anywhere in the swarm. At once on a worker.
    fn refresh(&self) -> Answer<'_, Result<(), ManagerError>>;
    /// The node whose manager leads, if this node is a manager and knows it.
    fn leader(&self) -> Option<NodeId>;
    /// Commits a command. Only called when [`Backend::state`] gave one; a manager that went away since is an error.
    fn propose(&self, command: Command) -> Answer<'_, Result<Reply, ManagerError>>;
    /// A root certificate to take the place of the present one.
    fn new_root(&self) -> Result<NewRoot, ManagerError>;
    /// The worker and the manager join token, if this node is a manager.
    fn join_tokens(&self) -> Option<(String, String)>;
    /// Every network this node has heard of.
    fn network_names(&self) -> Vec<NetworkName>;
    /// `swarm init`.
    fn init(&self, request: InitRequest) -> Answer<'_, Result<NodeId, NodeError>>;
    /// `swarm join`.
    fn join(&self, target: JoinTarget) -> Answer<'_, Result<(), NodeError>>;
    /// `swarm leave`.
    fn leave(&self, force: bool) -> Answer<'_, Result<(), NodeError>>;
    /// `swarm unlock`.
    fn unlock(&self, key: UnlockKey) -> Answer<'_, Result<(), NodeError>>;
    /// `formic status`.
    fn status(&self) -> Answer<'_, Status>;
    /// The keys of ESP on a network, as Wireshark reads them.
    fn esp_keys(&self, network: NetworkId) -> Answer<'_, Result<Zeroizing<String>, NodeError>>;
    /// `formic doctor`: asks peers and managers for an answer; takes seconds when one is silent.
    fn examine(&self) -> Answer<'_, Examination>;
    /// The tasks of this node.
    fn tasks(&self) -> Vec<LocalTask>;
    /// Runs a command in a task.
    fn exec(&self, request: ExecRequest, io: ExecIo) -> Answer<'_, Result<i32, NodeError>>;
    /// Puts a namespace of this host on a network.
    fn attach(&self, wanted: AttachedNamespace) -> Answer<'_, Result<TaskAssignment, NodeError>>;
    /// Takes it off again.
    fn detach(&self, namespace: String, network: NetworkId) -> Answer<'_, Result<(), NodeError>>;
    /// Copies a root directory into the image store.
    fn import_image(&self, name: String, directory: PathBuf) -> Answer<'_, Result<ImageInfo, NodeError>>;
    /// The images of this node.
    fn images(&self) -> Answer<'_, Result<Vec<ImageInfo>, NodeError>>;
    /// Removes an image.
    fn remove_image(&self, name: String) -> Answer<'_, Result<(), NodeError>>;
    /// The destinations of this host's own IPv4 routes, without the default one.
    fn host_routes(&self) -> Vec<ipnet::Ipv4Net>;
}

fn no_longer_manager() -> ManagerError {
    ManagerError::Unavailable("this node is no longer a manager".into())
}

impl Backend for Node {
    fn swarm(&self) -> SwarmInfo {
        Node::swarm(self)
    }

    fn state(&self) -> Option<Arc<State>> {
        self.manager().map(|manager| manager.state())
    }

    fn refresh(&self) -> Answer<'_, Result<(), ManagerError>> {
        Box::pin(async move {
            match self.manager() {
                Some(manager) => manager.refresh().await,
                None => Ok(()),
            }
        })
    }

    fn leader(&self) -> Option<NodeId> {
        self.manager()?.leader()
    }

    fn propose(&self, command: Command) -> Answer<'_, Result<Reply, ManagerError>> {
        Box::pin(async move {
            match self.manager() {
                Some(manager) => manager.propose(command).await,
                None => Err(no_longer_manager()),
            }
        })
    }

    fn new_root(&self) -> Result<NewRoot, ManagerError> {
        match self.manager() {
            Some(manager) => manager.new_root(),
            None => Err(no_longer_manager()),
        }
    }

    fn join_tokens(&self) -> Option<(String, String)> {
        self.manager().map(|manager| manager.join_tokens())
    }

    fn network_names(&self) -> Vec<NetworkName> {
        Node::network_names(self)
    }

    fn init(&self, request: InitRequest) -> Answer<'_, Result<NodeId, NodeError>> {
        Box::pin(Node::init(self, request))
    }

    fn join(&self, target: JoinTarget) -> Answer<'_, Result<(), NodeError>> {
        Box::pin(Node::join(self, target))
    }

    fn leave(&self, force: bool) -> Answer<'_, Result<(), NodeError>> {
        Box::pin(Node::leave(self, force))
    }

    fn unlock(&self, key: UnlockKey) -> Answer<'_, Result<(), NodeError>> {
        Box::pin(Node::unlock(self, key))
    }

    fn status(&self) -> Answer<'_, Status> {
        Box::pin(Node::status(self))
    }

    fn esp_keys(&self, network: NetworkId) -> Answer<'_, Result<Zeroizing<String>, NodeError>> {
        Box::pin(Node::esp_keys(self, network))
    }

    fn examine(&self) -> Answer<'_, Examination> {
        Box::pin(Node::examine(self))
    }

    fn tasks(&self) -> Vec<LocalTask> {
        Node::tasks(self)
    }

    fn exec(&self, request: ExecRequest, io: ExecIo) -> Answer<'_, Result<i32, NodeError>> {
        Box::pin(Node::exec(self, request, io))
    }

    fn attach(&self, wanted: AttachedNamespace) -> Answer<'_, Result<TaskAssignment, NodeError>> {
        Box::pin(self.attach_namespace(wanted))
    }

    fn detach(&self, namespace: String, network: NetworkId) -> Answer<'_, Result<(), NodeError>> {
        Box::pin(async move { self.detach_namespace(&namespace, network).await })
    }

    fn import_image(&self, name: String, directory: PathBuf) -> Answer<'_, Result<ImageInfo, NodeError>> {
        Box::pin(Node::import_image(self, name, directory))
    }

    fn images(&self) -> Answer<'_, Result<Vec<ImageInfo>, NodeError>> {
        Box::pin(Node::images(self))
    }

    fn remove_image(&self, name: String) -> Answer<'_, Result<(), NodeError>> {
        Box::pin(Node::remove_image(self, name))
    }

    fn host_routes(&self) -> Vec<ipnet::Ipv4Net> {
        super::host::routes()
    }
}
