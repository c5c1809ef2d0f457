//! Keeps this node's certificate young: a new key and certificate at a random 50 to 80 % of the old one's life.

use super::engine::End;
use super::runtime::Environment;
use crate::sys::random;
use crate::tls::{self, Identity, NodeKey, Peer};
use arc_swap::ArcSwap;
use smol::channel::Receiver;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the time is compared: certificates go by the wall clock, which may jump.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Runs as long as the membership: until `ended` is closed.
pub(super) async fn run(
    environment: Environment,
    identity: Arc<ArcSwap<Identity>>,
    managers: Arc<Mutex<Vec<SocketAddr>>>,
    ended: Receiver<End>,
) {
    let mut due = renewal_time(&identity.load().peer(), random::bytes());
    while !ended.is_closed() {
        if environment.clock.unix().0 >= due {
            let known = managers.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match renew(&identity.load_full(), &known).await {
                // The swarm was left meanwhile: nothing of it may come back to the disk.
                Ok(_) if ended.is_closed() => return,
                Ok(renewed) => {
                    if let Err(error) = environment.store.save_identity(&renewed) {
                        tracing::error!(%error, "the new certificate cannot be stored");
                    }
                    due = renewal_time(&renewed.peer(), random::bytes());
                    identity.store(Arc::new(renewed));
                    tracing::info!("this node has a new certificate");
                }
                Err(reason) => tracing::warn!(%reason, "no new certificate yet: trying again"),
            }
        }
        smol::Timer::after(CHECK_INTERVAL).await;
    }
}

/// Unix seconds at which to ask: `random` picks the point between 50 and 80 % of the certificate's life.
fn renewal_time(peer: &Peer, random: [u8; 2]) -> u64 {
    let life = peer.expires.0.saturating_sub(peer.not_before.0);
    let share = 5000 + u64::from(u16::from_be_bytes(random)) * 3000 / u64::from(u16::MAX);
    peer.not_before.0.saturating_add(life / 10_000 * share)
}

async fn renew(identity: &Identity, managers: &[SocketAddr]) -> Result<Identity, String> {
    let key = NodeKey::generate().map_err(|error| error.to_string())?;
    let mut reason = "no manager is known".to_string();
    for &manager in managers {
        let request = key.request().map_err(|error| error.to_string())?;
        match tls::renew(manager, identity, request).await {
            Ok(chain) => return Identity::new(&key, chain).map_err(|error| error.to_string()),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
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
