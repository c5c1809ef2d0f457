//! The session with a manager: connects, opens, keeps it alive, and starts over when it breaks.
//!
//! It only carries messages: what they mean is the engine's business.

use super::membership::Membership;
use super::seek::{MAX_PAUSE, Seek, silence};
use crate::tls;
use crate::tls::Session;
use crate::types::{BootId, Queues};
use crate::wire::control::{FromAgent, SessionRequest, ToAgent};
use arc_swap::ArcSwap;
use smol::channel::{Receiver, Sender};
use smol::future::FutureExt as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the interval is looked at anew: the managers may have shortened it, at least to this.
const HEARTBEAT_CHECK: Duration = Duration::from_secs(1);

/// What the engine hears.
pub(super) enum SessionEvent {
    /// The session is open.
    Up {
        /// Log index of this boot.
        boot_index: u64,
    },
    /// It broke or could not be opened.
    Down {
        /// Why.
        reason: String,
    },
    /// The managers know a newer boot of this node: this one is over.
    FormerBoot,
    /// A message.
    Message(ToAgent),
}

/// What a session needs to know.
pub(super) struct SessionConfig {
    pub(super) membership: Membership,
    pub(super) identity: Arc<ArcSwap<tls::Identity>>,
    pub(super) boot: BootId,
    pub(super) hostname: String,
    pub(super) queues: Queues,
    pub(super) managers: Arc<std::sync::Mutex<Vec<SocketAddr>>>,
    /// Seconds between heartbeats, as the managers last said.
    pub(super) heartbeat_secs: Arc<std::sync::atomic::AtomicU32>,
    /// The engine wants the session cut.
    pub(super) reset: Receiver<()>,
}

/// Runs until the engine has gone.
pub(super) async fn run(config: SessionConfig, outgoing: Receiver<FromAgent>, events: Sender<SessionEvent>) {
    let mut seek = Seek::default();
    while !events.is_closed() {
        let managers = config.managers.lock().map(|managers| managers.clone()).unwrap_or_default();
        let Some(manager) = seek.next(&managers) else {
            smol::Timer::after(MAX_PAUSE).await;
            continue;
        };
        let (opened, reason) = one_session(&config, manager, &outgoing, &events).await;
        if events.send(SessionEvent::Down { reason }).await.is_err() {
            return;
        }
        // A session may be wanted now.
        let _ = within(seek.pause(opened), config.reset.recv()).await;
    }
}

/// One session from connect to break: whether it was open, and why it ended.
async fn one_session(
    config: &SessionConfig,
    manager: SocketAddr,
    outgoing: &Receiver<FromAgent>,
    events: &Sender<SessionEvent>,
) -> (bool, String) {
    let request = SessionRequest {
        boot: config.boot,
        hostname: config.hostname.clone(),
        software: env!("CARGO_PKG_VERSION").into(),
        addresses: config.membership.addresses,
        machine: super::machine::machine(),
        queues: config.queues,
    };
    let Session { boot_index, mut reader, mut writer, .. } =
        match tls::open_session(manager, &config.identity.load_full(), request).await {
            Ok(session) => session,
            Err(error) => {
                let news = match error {
                    tls::ConnectError::Removed => Some(SessionEvent::Message(ToAgent::Removed)),
                    tls::ConnectError::FormerBoot => Some(SessionEvent::FormerBoot),
                    _ => None,
                };
                if let Some(news) = news {
                    let _ = events.send(news).await;
                }
                return (false, error.to_string());
            }
        };
    // What waits here is told anew once the engine knows of the new session.
    while outgoing.try_recv().is_ok() {}
    // A wish to cut the session meant an earlier one.
    while config.reset.try_recv().is_ok() {}
    if events.send(SessionEvent::Up { boot_index }).await.is_err() {
        return (true, String::new());
    }
    let heartbeat =
        || Duration::from_secs(u64::from(config.heartbeat_secs.load(std::sync::atomic::Ordering::Relaxed).max(1)));
    let (probe, probes) = smol::channel::bounded(1);
    let receive = async {
        loop {
            match reader.read::<ToAgent>(silence(heartbeat())).await {
                Ok(ToAgent::Probe) => {
                    // Full: an answer is under way already.
                    let _ = probe.try_send(FromAgent::Heartbeat);
                }
                Ok(message) => {
                    if events.send(SessionEvent::Message(message)).await.is_err() {
                        return String::new();
                    }
                }
                Err(error) => return format!("manager {manager}: {error}"),
            }
        }
    };
    let send = async {
        let mut last = Instant::now();
        loop {
            let due = last + heartbeat();
            let wait = due.saturating_duration_since(Instant::now()).min(HEARTBEAT_CHECK);
            let message = match within(wait, probes.recv().or(outgoing.recv())).await {
                Some(Ok(message)) => message,
                Some(Err(_)) => return String::new(),
                None if Instant::now() < due => continue,
                None => {
                    last = Instant::now();
                    FromAgent::Heartbeat
                }
            };
            if let Err(error) = writer.write(&message).await {
                return format!("manager {manager}: {error}");
            }
        }
    };
    let reset = async {
        let _ = config.reset.recv().await;
        "cut to tell everything anew".to_string()
    };
    (true, receive.or(send).or(reset).await)
}

/// The result, or `None` after the time.
pub(super) async fn within<T>(time: Duration, future: impl Future<Output = T>) -> Option<T> {
    let timeout = async {
        smol::Timer::after(time).await;
        None
    };
    async { Some(future.await) }.or(timeout).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::{InitParams, Manager};
    use crate::tls::{Identity, NodeKey};
    use crate::types::{Availability, ClusterSpec, NodeAddresses};
    use std::sync::atomic::AtomicU32;

    /// How long a test waits for a state that must come.
    const DEADLINE: Duration = Duration::from_secs(30);

    async fn next(events: &Receiver<SessionEvent>) -> SessionEvent {
        within(DEADLINE, events.recv()).await.expect("in time").expect("the session runs")
    }

    /// A manager asks a session whether it lives when a second one of the same boot comes.
    #[test]
    fn a_living_session_answers_the_managers_probe() {
        smol::block_on(async {
            let directory = std::env::temp_dir().join(format!("formic-session-{}", std::process::id()));
            let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
            let addresses = NodeAddresses { control: at(2377), gossip: at(7946), data: at(4500), behind_nat: false };
            let key = NodeKey::generate().unwrap();
            let params = InitParams {
                // No heartbeat comes during the test.
                spec: ClusterSpec { heartbeat_secs: 60, ..ClusterSpec::default() },
                hostname: "first".into(),
                software: "0.1.0".into(),
                addresses,
                availability: Availability::Active,
                csr: key.request().unwrap(),
            };
            let (manager, joined) = Manager::create(&directory, params).await.unwrap();
            let control = manager.listen(at(0)).await.unwrap();
            let identity = Arc::new(ArcSwap::from_pointee(Identity::new(&key, joined.chain.clone()).unwrap()));
            let (_reset, reset) = smol::channel::bounded(1);
            let config = SessionConfig {
                membership: Membership::new(&joined, addresses, control, vec![control]),
                identity: identity.clone(),
                boot: BootId([7; 8]),
                hostname: "first".into(),
                queues: Queues::ONE,
                managers: Arc::new(std::sync::Mutex::new(vec![control])),
                heartbeat_secs: Arc::new(AtomicU32::new(60)),
                reset,
            };
            let (_outgoing, outgoing) = smol::channel::bounded(1);
            let (sender, events) = smol::channel::unbounded();
            let session = smol::spawn(run(config, outgoing, sender));
            assert!(matches!(next(&events).await, SessionEvent::Up { .. }));
            for _ in 0..2 {
                let request = SessionRequest {
                    boot: BootId([7; 8]),
                    hostname: "copy".into(),
                    software: "0.1.0".into(),
                    addresses,
                    machine: super::super::machine::machine(),
                    queues: Queues::ONE,
                };
                let refused = tls::open_session(control, &identity.load_full(), request).await.err().unwrap();
                assert!(refused.to_string().contains("was the host cloned"), "{refused}");
            }
            while let Ok(event) = events.try_recv() {
                assert!(matches!(event, SessionEvent::Message(_)), "the session broke");
            }
            session.cancel().await;
            manager.stop().await;
            std::fs::remove_dir_all(&directory).unwrap();
        });
    }
}
