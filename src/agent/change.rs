//! Init, join and leave: how this node's membership begins and ends.

use super::address;
use super::held::{Held, Why};
use super::membership::Membership;
use super::model::{InitRequest, JoinTarget, NodeError};
use super::node::Node;
use super::runtime::Runtime;
use super::session::within;
use super::spawn::spawn;
use crate::manager::{InitParams, Manager, ManagerError, StoreError};
use crate::tls::{self, Identity, NodeKey};
use crate::types::{Availability, ClusterSpec, Fork, NodeAddresses, NodeId, Role};
use crate::wire::control::{JoinRequest, Joined};
use crate::wire::token::JoinToken;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// TCP port of the control protocol unless told otherwise.
const CONTROL_PORT: u16 = 2377;
/// How long `init` and `join` wait for the first push; it goes on in the background after that.
const SETTLE_TIME: Duration = Duration::from_secs(20);
/// How often they look.
const SETTLE_POLL: Duration = Duration::from_millis(5);
/// How long tasks may take to end at `leave`.
const LEAVE_PATIENCE: Duration = Duration::from_secs(15);
/// Said at the start of a locked manager whose node was killed between the two files.
const NOT_SEALED: &str = "this manager is locked, and its node's private key is not: whoever has this disk can speak for the node until the manager is unlocked, which seals the key";
/// How long the managers may take to hear that this node leaves.
const GOODBYE_TIME: Duration = Duration::from_secs(5);

/// This node's addresses, resolved.
struct Addresses {
    listen: SocketAddr,
    node: NodeAddresses,
}

impl Node {
    /// Takes up the membership that is on disk, if any. Errors name the file or address that is wrong.
    pub async fn resume(&self) -> Result<(), NodeError> {
        let _changing = self.inner.changing.lock().await;
        let Some(membership) = self.inner.environment.store.load()? else { return self.set_aside_manager_state() };
        let manager = match membership.role {
            Role::Worker => {
                // A demotion that was interrupted. What opens a sealed key is not removed.
                self.inner.environment.store.identity()?;
                self.remove_manager_state()?;
                None
            }
            Role::Manager => match self.open_manager(&membership, None).await {
                Err(NodeError::Disk(reason)) => {
                    self.hold(&membership, Why::Disk(reason));
                    spawn("the manager's disk", self.clone().outlast_disk());
                    return Ok(());
                }
                Err(NodeError::Locked) => {
                    self.hold(&membership, Why::Locked);
                    if self.inner.environment.store.identity().is_ok() {
                        tracing::warn!("{}", NOT_SEALED);
                    }
                    return Ok(());
                }
                opened => Some(opened?),
            },
        };
        self.start(membership, manager)
    }

    /// Makes a swarm with this node as its manager.
    pub async fn init(&self, request: InitRequest) -> Result<NodeId, NodeError> {
        let _changing = self.inner.changing.lock().await;
        if let Some(held) = self.inner.held.load_full().filter(|_| request.force_new_cluster) {
            return Err(held.refusal());
        }
        if request.force_new_cluster
            && let Some(runtime) = self.inner.runtime.load_full()
        {
            return self.force_new_cluster(&runtime).await;
        }
        self.require_no_swarm()?;
        let data_port = self.inner.settings.data_path_port.unwrap_or(request.spec.data_path_port);
        let advertise = match request.advertise_address.as_str() {
            "" => SocketAddr::new(address::only_address()?, CONTROL_PORT),
            text => address::parse(text, CONTROL_PORT)?,
        };
        let addresses = self.addresses(&request.listen_address, advertise, &request.data_path_address, data_port)?;
        addresses.probe_ports(true)?;
        let key = NodeKey::generate().map_err(failed)?;
        let params = InitParams {
            spec: ClusterSpec { data_path_port: data_port, ..request.spec },
            hostname: self.inner.settings.hostname.clone(),
            software: env!("CARGO_PKG_VERSION").into(),
            addresses: addresses.node,
            availability: request.availability,
            csr: key.request().map_err(failed)?,
        };
        let (manager, joined) = Manager::create(&self.manager_dir(), params).await.map_err(manager_error)?;
        let begun = self.begin_as_manager(&manager, &joined, &key, &addresses).await;
        if let Err(error) = begun {
            manager.stop().await;
            self.forget()?;
            return Err(error);
        }
        self.wait_until_settled().await;
        Ok(joined.node)
    }

    async fn begin_as_manager(
        &self,
        manager: &Manager,
        joined: &Joined,
        key: &NodeKey,
        addresses: &Addresses,
    ) -> Result<(), NodeError> {
        manager.listen(addresses.listen).await.map_err(manager_error)?;
        self.keep_sealed(manager)?;
        let membership = Membership::new(joined, addresses.node, addresses.listen, vec![addresses.node.control]);
        let identity = Identity::new(key, joined.chain.clone()).map_err(failed)?;
        self.inner.environment.store.save_identity(&identity)?;
        self.inner.environment.store.save(&membership)?;
        self.start(membership, Some(manager.clone()))
    }

    /// Joins a swarm.
    pub async fn join(&self, request: JoinTarget) -> Result<(), NodeError> {
        let changing = self.inner.changing.lock().await;
        self.require_no_swarm()?;
        let token: JoinToken = request.token.trim().parse().map_err(invalid)?;
        let remotes =
            request.remotes.iter().map(|text| address::parse(text, CONTROL_PORT)).collect::<Result<Vec<_>, _>>()?;
        let Some(&first) = remotes.first() else {
            return Err(NodeError::Invalid("the address of a manager is needed to join: IP:PORT".into()));
        };
        let advertise = match request.advertise_address.as_str() {
            "" => SocketAddr::new(address::address_towards(first)?, CONTROL_PORT),
            text => address::parse(text, CONTROL_PORT)?,
        };
        let data_port = self.inner.settings.data_path_port.unwrap_or(ClusterSpec::default().data_path_port);
        let mut addresses =
            self.addresses(&request.listen_address, advertise, &request.data_path_address, data_port)?;
        // A taken port is told before the managers admit a node that could not run.
        addresses.probe_ports(false)?;
        let (joined, identity) = self.ask_to_join(&token, &remotes, addresses.node, request.availability).await?;
        if self.inner.settings.data_path_port.is_none() {
            addresses.node.data.set_port(joined.data_path_port);
        }
        let membership = Membership::new(&joined, addresses.node, addresses.listen, remotes);
        // As a worker first, also who is to be a manager: what the managers say of it is followed, and what does not
        // work at once is tried again. To give up would leave a node behind in their state that nobody is.
        let membership = Membership { role: Role::Worker, ..membership };
        if let Err(error) = self.begin_joined(&membership, &identity) {
            self.say_goodbye(&membership).await;
            self.forget()?;
            return Err(error);
        }
        drop(changing);
        self.wait_until_settled().await;
        if joined.role == Role::Manager { self.wait_until_manager().await } else { Ok(()) }
    }

    fn begin_joined(&self, membership: &Membership, identity: &Identity) -> Result<(), NodeError> {
        self.inner.environment.store.save_identity(identity)?;
        self.inner.environment.store.save(membership)?;
        self.start(membership.clone(), None)
    }

    async fn wait_until_manager(&self) -> Result<(), NodeError> {
        let manager = async {
            while self.inner.runtime.load().is_some() && self.manager().is_none() {
                smol::Timer::after(SETTLE_POLL).await;
            }
        };
        let late = "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \"docker info\" command to see the current swarm status of your node.";
        within(SETTLE_TIME, manager).await.ok_or_else(|| NodeError::Unavailable(late.into()))
    }

    /// Asks one manager after the other; the first that answers decides.
    async fn ask_to_join(
        &self,
        token: &JoinToken,
        remotes: &[SocketAddr],
        addresses: NodeAddresses,
        availability: Availability,
    ) -> Result<(Joined, Identity), NodeError> {
        let key = NodeKey::generate().map_err(failed)?;
        let mut reasons = Vec::new();
        for &remote in remotes {
            let request = JoinRequest {
                secret: Zeroizing::default(),
                csr: key.request().map_err(failed)?,
                hostname: self.inner.settings.hostname.clone(),
                software: env!("CARGO_PKG_VERSION").into(),
                addresses,
                availability,
            };
            match tls::join(remote, token, request).await {
                Ok(joined) => {
                    let identity = Identity::new(&key, joined.chain.clone()).map_err(failed)?;
                    return Ok((joined, identity));
                }
                Err(error @ tls::ConnectError::Unreachable { .. }) => reasons.push(error.to_string()),
                Err(error) => return Err(NodeError::Invalid(error.to_string())),
            }
        }
        Err(NodeError::Unavailable(reasons.join("; ")))
    }

    /// Leaves the swarm: stops the tasks, forgets keys and state.
    pub async fn leave(&self, force: bool) -> Result<(), NodeError> {
        let _changing = self.inner.changing.lock().await;
        let runtime = self.inner.runtime.load_full();
        if let Some(held) = self.inner.held.load_full().filter(|_| runtime.is_none()) {
            return self.leave_held(&held, force);
        }
        let Some(runtime) = runtime else {
            return Err(NodeError::Unavailable("This node is not part of a swarm".into()));
        };
        if let Some(manager) = runtime.manager.load_full().filter(|_| !force) {
            return Err(NodeError::Unavailable(leave_text(&manager)));
        }
        // First the tasks, whose ends go by the session; a session still there after the goodbye would open again, and
        // the node be ready in the managers' eyes.
        runtime.stop(LEAVE_PATIENCE).await;
        let membership = self.current_membership(&runtime)?;
        self.say_goodbye(&membership).await;
        self.forget()
    }

    /// Nobody can be told: the others see this node down, as it is.
    fn leave_held(&self, held: &Held, force: bool) -> Result<(), NodeError> {
        if !force && !held.is_locked() {
            return Err(held.refusal());
        }
        if !force {
            let text = "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.";
            return Err(NodeError::Unavailable(text.into()));
        }
        self.forget()
    }

    /// Goes on with a new boot: new keys and counters, and, since the managers place anew what ran in the old one, no
    /// tasks.
    pub(super) async fn begin_new_boot(&self, old: &Runtime, reason: &str, fork: Option<Fork>) {
        let _changing = self.inner.changing.lock().await;
        if !self.is_current(old) {
            return;
        }
        tracing::warn!(%reason, "this node begins a new boot: its tasks end and are placed anew");
        for task in &old.view.load().tasks {
            if let Err(error) = self.inner.environment.helper.remove_task(task.assignment.id).await {
                tracing::warn!(task = %task.assignment.id, %error, "remove");
            }
        }
        let manager = old.manager.load_full().map(|manager| (*manager).clone());
        let begun = self.current_membership(old).and_then(|mut membership| {
            membership.fork = fork.unwrap_or(membership.fork);
            if let Err(error) = self.inner.environment.store.save(&membership) {
                // The managers tell the fork again, should this daemon begin with the former one.
                tracing::error!(%error, "this node's membership cannot be stored");
            }
            self.start(membership, manager)
        });
        if let Err(error) = begun {
            self.die(format!("{reason}; and a new boot failed: {error}")).await;
        }
    }

    /// Whether nobody has left, stopped or restarted this runtime meanwhile.
    pub(super) fn is_current(&self, runtime: &Runtime) -> bool {
        self.inner.runtime.load().as_ref().is_some_and(|current| std::ptr::eq(Arc::as_ptr(current), runtime))
    }

    /// Stops a runtime and forgets its swarm.
    pub(super) async fn forget_after(&self, runtime: &Runtime) {
        runtime.stop(LEAVE_PATIENCE).await;
        if let Err(error) = self.forget() {
            tracing::error!(%error, "the swarm is left, but something of it remains on disk");
        }
    }

    /// Tells the (other) managers; without them the node leaves all the same, and they see it go down.
    async fn say_goodbye(&self, membership: &Membership) {
        let Ok(identity) = self.inner.environment.store.identity() else { return };
        let others = membership.others();
        if others.is_empty() && membership.role == Role::Manager {
            return;
        }
        for manager in others {
            if let Some(Ok(())) = within(GOODBYE_TIME, tls::leave(manager, &identity)).await {
                return;
            }
        }
        tracing::warn!("no manager could be told that this node leaves: it will be shown as down there");
    }

    fn require_no_swarm(&self) -> Result<(), NodeError> {
        if self.inner.runtime.load().is_some() || self.inner.held.load().is_some() {
            let text = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";
            return Err(NodeError::Unavailable(text.into()));
        }
        Ok(())
    }

    pub(super) fn start(&self, membership: Membership, manager: Option<Manager>) -> Result<(), NodeError> {
        let runtime = Arc::new(Runtime::start(&self.inner.environment, membership, manager)?);
        self.inner.runtime.store(Some(runtime.clone()));
        self.restore_attachments(&runtime);
        spawn("managers watch", self.clone().follow_managers(runtime.clone()));
        spawn("runtime watch", self.clone().watch(runtime));
        Ok(())
    }

    pub(super) fn manager_dir(&self) -> PathBuf {
        self.inner.settings.state_dir.join("manager")
    }

    /// Managers' state without a membership is what an interrupted `init` or `leave` left. It stands in the way of the
    /// next `init`; it is kept aside once, should somebody have lost the membership otherwise.
    fn set_aside_manager_state(&self) -> Result<(), NodeError> {
        let (state, aside) = (self.manager_dir(), self.inner.settings.state_dir.join("manager.leftover"));
        if !state.exists() {
            return Ok(());
        }
        let moved = match std::fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => std::fs::rename(&state, &aside),
        };
        moved.map_err(|error| NodeError::Failed(format!("cannot move {} aside: {error}", state.display())))?;
        tracing::warn!(to = %aside.display(), "managers' state without a membership was moved aside");
        Ok(())
    }

    /// Leaves nothing of the swarm on disk.
    fn forget(&self) -> Result<(), NodeError> {
        self.inner.runtime.store(None);
        self.inner.environment.store.erase()?;
        self.inner.held.store(None);
        self.keep_unlock_key(None);
        self.remove_manager_state()
    }

    pub(super) fn remove_manager_state(&self) -> Result<(), NodeError> {
        match std::fs::remove_dir_all(self.manager_dir()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(NodeError::Failed(format!("cannot remove {}: {error}", self.manager_dir().display())))
            }
            _ => Ok(()),
        }
    }

    async fn wait_until_settled(&self) {
        let settled = async {
            while !self.inner.runtime.load_full().is_none_or(|runtime| runtime.view.load().settled) {
                smol::Timer::after(SETTLE_POLL).await;
            }
        };
        if within(SETTLE_TIME, settled).await.is_none() {
            tracing::warn!("no session with a manager yet: trying on");
        }
    }

    fn addresses(
        &self,
        listen: &str,
        advertise: SocketAddr,
        data_path: &str,
        data_port: u16,
    ) -> Result<Addresses, NodeError> {
        let data_ip = if data_path.is_empty() { advertise.ip() } else { address::parse(data_path, data_port)?.ip() };
        for ip in [advertise.ip(), data_ip] {
            if !address::is_local(ip) {
                return Err(NodeError::Invalid(format!(
                    "this host does not have the address {ip}: give one of its own addresses or interfaces"
                )));
            }
        }
        let any = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), CONTROL_PORT);
        let listen = if listen.is_empty() { any } else { address::parse(listen, CONTROL_PORT)? };
        // Clients name 0.0.0.0 when nobody asked them for anything: every address of this host, of both families.
        let listen = if advertise.is_ipv6() && listen.ip() == any.ip() {
            SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), listen.port())
        } else {
            listen
        };
        let node = NodeAddresses {
            control: SocketAddr::new(
                advertise.ip(),
                if advertise.port() == CONTROL_PORT { listen.port() } else { advertise.port() },
            ),
            gossip: SocketAddr::new(advertise.ip(), self.inner.settings.gossip_port),
            data: SocketAddr::new(data_ip, data_port),
            behind_nat: false,
        };
        Ok(Addresses { listen, node })
    }
}

impl Addresses {
    /// Whether the ports are free: plain binds, released at once.
    fn probe_ports(&self, manager: bool) -> Result<(), NodeError> {
        let taken = |what: &str, address: SocketAddr, error: std::io::Error| {
            NodeError::Failed(format!(
                "cannot use {address}/{what}: {error}; is another daemon running? Stop it, or choose other ports"
            ))
        };
        for address in [self.node.gossip, self.node.data] {
            UdpSocket::bind(address).map_err(|error| taken("udp", address, error))?;
        }
        if manager {
            TcpListener::bind(self.listen).map_err(|error| taken("tcp", self.listen, error))?;
        }
        Ok(())
    }
}

/// Why a manager does not simply leave.
fn leave_text(manager: &Manager) -> String {
    let managers = manager.with_state(|state| state.managers.len());
    let text = "You are attempting to leave the swarm on a node that is participating as a manager. ";
    match managers {
        0 | 1 => format!(
            "{text}Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
        ),
        _ => format!(
            "{text}The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Demote this node first, or use `--force` to suppress this message. "
        ),
    }
}

fn invalid(error: impl std::fmt::Display) -> NodeError {
    NodeError::Invalid(error.to_string())
}

pub(super) fn failed(error: impl std::fmt::Display) -> NodeError {
    NodeError::Failed(error.to_string())
}

pub(super) fn manager_error(error: ManagerError) -> NodeError {
    match error {
        ManagerError::Refused(refusal) => invalid(refusal),
        ManagerError::Store(StoreError::Locked) => NodeError::Locked,
        ManagerError::Store(error @ StoreError::WrongUnlockKey) => NodeError::WrongKey(error.to_string()),
        other => failed(other),
    }
}
