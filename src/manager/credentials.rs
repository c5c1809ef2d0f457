//! The certificate with which this manager speaks on the control port, as server and towards other managers. It signs
//! it itself, anew after half of its life and when the trusted roots change.

use super::actor::Published;
use super::authority::{self, Names};
use super::handle::ManagerError;
use super::wall_clock;
use crate::tls::{Identity, NodeKey};
use crate::types::{NodeId, Role, UnixTime};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The TLS side of the control port.
#[derive(Clone)]
pub(super) struct ServerSide {
    pub(super) config: Arc<rustls::ServerConfig>,
    /// The roots that clients' certificates may stand under.
    pub(super) roots: Arc<[Vec<u8>]>,
}

#[derive(Clone)]
struct Current {
    renew_at: UnixTime,
    identity: Arc<Identity>,
    server: ServerSide,
}

/// This manager's certificate.
pub(super) struct Credentials {
    node: NodeId,
    published: Arc<Published>,
    current: Mutex<Option<Current>>,
}

impl Credentials {
    pub(super) fn new(node: NodeId, published: Arc<Published>) -> Credentials {
        Credentials { node, published, current: Mutex::new(None) }
    }

    /// Where others reach this manager.
    pub(super) fn control_address(&self) -> Option<SocketAddr> {
        self.published.with(|state| Some(state.nodes.get(&self.node)?.addresses.control))
    }

    /// For a stream to another manager.
    pub(super) fn identity(&self) -> Result<Arc<Identity>, ManagerError> {
        self.current().map(|current| current.identity)
    }

    /// The TLS side of the control port.
    pub(super) fn server_side(&self) -> Result<ServerSide, ManagerError> {
        self.current().map(|current| current.server)
    }

    /// Speaks with this one for good.
    #[cfg(test)]
    pub(super) fn present(&self, identity: Identity) {
        let roots = self.server_side().expect("a server side").roots;
        let config = crate::tls::server_config(&identity, &roots).expect("an identity");
        let server = ServerSide { config, roots };
        let current = Current { renew_at: UnixTime(u64::MAX), identity: Arc::new(identity), server };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
    }

    fn current(&self) -> Result<Current, ManagerError> {
        let now = wall_clock();
        let roots = self.published.with(|state| state.roots().into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>());
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_ref().filter(|it| now < it.renew_at && *it.server.roots == *roots) {
            return Ok(current.clone());
        }
        let unusable = |error: &dyn std::fmt::Display| ManagerError::Certificate(error.to_string());
        let key = NodeKey::generate().map_err(|error| unusable(&error))?;
        let request = key.request().map_err(|error| unusable(&error))?;
        let (issued, life) = self.published.with(|state| {
            let names = Names { node: self.node, role: Role::Manager, cluster: state.cluster.id };
            (authority::issue_for(state, &request, names), state.cluster.spec.certificate_secs)
        });
        let issued = issued.map_err(|error| unusable(&error))?;
        let identity = Identity::new(&key, issued.chain).map_err(|error| unusable(&error))?.trusting(&roots);
        let config = crate::tls::server_config(&identity, &roots).map_err(|error| unusable(&error))?;
        let renew_at = UnixTime(now.0.saturating_add(life / 2));
        let server = ServerSide { config, roots: roots.into() };
        let fresh = Current { renew_at, identity: Arc::new(identity), server };
        *current = Some(fresh.clone());
        Ok(fresh)
    }
}
