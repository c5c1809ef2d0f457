//! Keeps this node's certificate young: a new key and certificate at a random 50 to 80 % of the old one's life, and at
//! once when the swarm has a new root. The managers are told which root the certificate on the disk is of, at each start
//! too: they drop a former root when they have heard so of all nodes.

use super::engine::End;
use super::runtime::Environment;
use super::session::within;
use crate::sys::random;
use crate::tls::{self, Identity, NodeKey, Peer};
use arc_swap::ArcSwap;
use smol::channel::Receiver;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the time is compared: certificates go by the wall clock, which may jump.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Pause before the next try when the managers gave none.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// A new root makes all nodes ask at once; each waits a random time of up to this many milliseconds.
const NEW_ROOT_SPREAD_MS: u64 = 2000;

/// Runs as long as the membership: until `ended` is closed. `roots` gives the trusted roots whenever they change, the
/// one that issues last.
pub(super) async fn run(
    environment: Environment,
    identity: Arc<ArcSwap<Identity>>,
    managers: Arc<Mutex<Vec<SocketAddr>>>,
    roots: Receiver<Vec<Vec<u8>>>,
    ended: Receiver<End>,
) {
    let mut due = renewal_time(&identity.load().peer(), random::bytes());
    let mut stored = true;
    // The root that the managers know to be enough for this node.
    let mut known_root = Vec::new();
    while !ended.is_closed() {
        let mut pause = CHECK_INTERVAL;
        stored = stored || environment.store.save_identity(&identity.load()).is_ok();
        if environment.clock.unix().0 >= due {
            let known = managers.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match renew(&identity.load_full(), &known).await {
                // The swarm was left meanwhile: nothing of it may come back to the disk.
                Ok(_) if ended.is_closed() => return,
                Ok(renewed) => {
                    due = renewal_time(&renewed.peer(), random::bytes());
                    stored = put_in_place(&environment, &identity, renewed);
                    tracing::info!("this node has a new certificate");
                }
                Err(reason) => {
                    pause = RETRY_INTERVAL;
                    tracing::warn!(%reason, "no new certificate yet: trying again");
                }
            }
        }
        let present = identity.load_full();
        let root = present.root().to_vec();
        if stored && known_root != root && tell(&present, &managers).await {
            known_root.clone_from(&root);
        }
        if !stored || known_root != root {
            pause = RETRY_INTERVAL;
        }
        match within(pause, roots.recv()).await {
            None => {}
            Some(Err(_)) => return,
            Some(Ok(roots)) if ended.is_closed() || roots.is_empty() => {}
            Some(Ok(roots)) => {
                let present = identity.load_full();
                stored = put_in_place(&environment, &identity, present.trusting(&roots));
                if roots.last().is_some_and(|newest| newest.as_slice() != present.root().as_ref()) {
                    tracing::info!("the swarm has a new root certificate: this node asks for a certificate of it");
                    let spread =
                        u64::from(u16::from_be_bytes(random::bytes())) * NEW_ROOT_SPREAD_MS / u64::from(u16::MAX);
                    smol::Timer::after(Duration::from_millis(spread)).await;
                    due = 0;
                }
            }
        }
    }
}

/// Tells whether it is on disk; it is used in any case.
fn put_in_place(environment: &Environment, identity: &ArcSwap<Identity>, new: Identity) -> bool {
    let saved = environment.store.save_identity(&new);
    if let Err(error) = &saved {
        tracing::error!(%error, "the node's certificates cannot be stored yet: trying on");
    }
    identity.store(Arc::new(new));
    saved.is_ok()
}

/// Unix seconds at which to ask: `random` picks the point between 50 and 80 % of the certificate's life.
fn renewal_time(peer: &Peer, random: [u8; 2]) -> u64 {
    let life = peer.expires.0.saturating_sub(peer.not_before.0);
    let share = 5000 + u64::from(u16::from_be_bytes(random)) * 3000 / u64::from(u16::MAX);
    peer.not_before.0.saturating_add(life / 10_000 * share)
}

pub(super) async fn renew(identity: &Identity, managers: &[SocketAddr]) -> Result<Identity, String> {
    let key = NodeKey::generate().map_err(|error| error.to_string())?;
    let mut reason = "no manager is known".to_string();
    for &manager in managers {
        let request = key.request().map_err(|error| error.to_string())?;
        match tls::renew(manager, identity, request).await {
            Ok(chain) => {
                let renewed = Identity::new(&key, chain).map_err(|error| error.to_string())?;
                // Managers that have not heard of a new root yet are still believed.
                return Ok(renewed.trusting(&identity.trusted()));
            }
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}

/// Tells the managers that this identity is on the disk; whether one has listened.
async fn tell(identity: &Identity, managers: &Mutex<Vec<SocketAddr>>) -> bool {
    let known = managers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for manager in known {
        match tls::certified(manager, identity).await {
            Ok(()) => return true,
            Err(error) => tracing::debug!(%error, "a manager was not told of which root this node's certificate is"),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClusterId, NodeId, Role, UnixTime};

    #[test]
    fn renewal_falls_between_half_and_four_fifths_of_the_life() {
        let (node, cluster) = (NodeId::from_random([1; 17]), ClusterId::from_random([1; 17]));
        let peer =
            Peer { node, role: Role::Worker, cluster, not_before: UnixTime(1_000_000), expires: UnixTime(2_000_000) };
        assert_eq!(renewal_time(&peer, [0, 0]), 1_500_000);
        assert_eq!(renewal_time(&peer, [255, 255]), 1_800_000);
    }
}
