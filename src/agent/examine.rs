//! Asks every peer and every manager for an answer, for `formic doctor`.
//!
//! A peer is asked again each second, so that a lost datagram is not taken for a blocked path. The whole ends when all
//! have answered, or when every peer's own regular probe must have come too: that tells the two directions apart.

use super::engine::Request;
use super::model::{Examination, ManagerReach, Status};
use super::node::Node;
use super::session::within;
use crate::types::NodeId;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long peers are listened to: a peer probes every pair each 5 s by itself.
const PATIENCE: Duration = Duration::from_millis(7500);
/// Between two questions to a peer.
const ASK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at the answers.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long a manager may take to accept a connection: a lost SYN is repeated after one second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

impl Node {
    /// Asks all peers, and connects to the control ports of the other managers.
    pub async fn examine(&self) -> Examination {
        let swarm = self.swarm();
        let others = swarm.managers.iter().copied().filter(|(node, _)| Some(*node) != swarm.node);
        // Each a task of its own: silent ones are waited for together.
        let reaching: Vec<_> = others.map(|(node, address)| smol::spawn(reach(node, address))).collect();
        let (asked_for, status) = self.ask_peers().await;
        let mut managers = Vec::with_capacity(reaching.len());
        for manager in reaching {
            managers.push(manager.await);
        }
        // Rounded up: an answer that was fresh enough to end the asking is fresh for the judge too.
        let asked_for_ms = u64::try_from(asked_for.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Examination { asked_for_ms, status, managers }
    }

    async fn ask_peers(&self) -> (Duration, Status) {
        let start = Instant::now();
        let mut asked = None::<Instant>;
        loop {
            if asked.is_none_or(|asked| asked.elapsed() >= ASK_INTERVAL)
                && let Some(runtime) = self.inner.runtime.load_full()
            {
                asked = Some(Instant::now());
                // A membership that ends meanwhile has no peers.
                let _ = runtime.requests.send(Request::Probe).await;
            }
            smol::Timer::after(LOOK_INTERVAL).await;
            let status = self.status().await;
            let elapsed = start.elapsed();
            if elapsed >= PATIENCE || all_answered(&status, elapsed) {
                return (elapsed, status);
            }
        }
    }
}

fn all_answered(status: &Status, within: Duration) -> bool {
    let fresh = |ms: Option<u64>| ms.is_some_and(|ms| Duration::from_millis(ms) < within);
    let answered =
        |peer: &super::PeerStatus| fresh(peer.gossip_answered_ms_ago) && (!peer.esp || fresh(peer.esp_answered_ms_ago));
    status.peers.iter().all(answered)
}

async fn reach(node: NodeId, address: SocketAddr) -> ManagerReach {
    let error = match within(CONNECT_TIMEOUT, smol::net::TcpStream::connect(address)).await {
        Some(Ok(_)) => None,
        Some(Err(error)) => Some(error.to_string()),
        None => Some("no answer".into()),
    };
    ManagerReach { node, address, error }
}
