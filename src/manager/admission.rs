//! Who becomes a node, gets a new certificate, or leaves.

use super::authority::{self, AuthorityError, Issued, Names};
use super::drops::ControlDrop;
use super::handle::{Inner, ManagerError};
use super::limits::{Allowance, Bucket};
use super::listener::Connection;
use super::news::set_state;
use super::{random, wall_clock};
use crate::cluster::{Command, NodeState, Reply, State};
use crate::crypto;
use crate::tls::Peer;
use crate::types::{ClusterId, Fork, NodeAddresses, NodeId, Role};
use crate::wire::control::{Answer, JoinRequest, Joined};
use crate::wire::record::VERSION_MAX;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Octets of a host name at most (Linux' HOST_NAME_MAX).
const MAX_HOSTNAME_BYTES: usize = 64;
/// Nodes at most: what the tables and pushes are made for.
const MAX_NODES: usize = 10_000;

const WRONG_TOKEN: &str = "A valid join token is necessary to join this cluster: \
    copy it from 'swarm join-token worker' on a manager";
const TOO_MANY_TRIES: &str = "too many wrong join tokens: try again in a minute with a valid one";

/// Wrong join tokens from one source.
const PER_SOURCE: Allowance = Allowance { burst: 5.0, refill: Duration::from_secs(10) };
/// From all sources.
const IN_ALL: Allowance = Allowance { burst: 100.0, refill: Duration::from_millis(100) };
/// Sources remembered.
const MAX_SOURCES: usize = 4096;

/// The limit of wrong join tokens: a token bucket for each source and one for all. Right tokens cost nothing.
pub(super) struct JoinLimit {
    all: Bucket,
    sources: BTreeMap<IpAddr, Bucket>,
}

impl JoinLimit {
    pub(super) fn new(now: Instant) -> JoinLimit {
        JoinLimit { all: Bucket::new(&IN_ALL, now), sources: BTreeMap::new() }
    }

    /// Whether `source` may try a token now.
    fn may_try(&mut self, source: IpAddr, now: Instant) -> bool {
        let own = self.sources.get_mut(&source_of(source)).map_or(1.0, |bucket| bucket.refill(&PER_SOURCE, now));
        own >= 1.0 && self.all.refill(&IN_ALL, now) >= 1.0
    }

    /// `source` tried a wrong one.
    fn wrong(&mut self, source: IpAddr, now: Instant) {
        self.all.spend();
        if self.sources.len() >= MAX_SOURCES {
            self.sources.retain(|_, bucket| bucket.refill(&PER_SOURCE, now) < PER_SOURCE.burst);
        }
        if self.sources.len() < MAX_SOURCES {
            let bucket = self.sources.entry(source_of(source)).or_insert_with(|| Bucket::new(&PER_SOURCE, now));
            bucket.spend();
        }
    }
}

/// One host has a /64 of IPv6 addresses: it counts as one source.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// What a token says of its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Admits(Role),
    Wrong,
    TooMany,
}

fn judge(inner: &Inner, source: IpAddr, secret: &[u8; 16]) -> Verdict {
    let now = Instant::now();
    // Held over comparison and count, so that attempts at the same time do not pass the limit together.
    let mut limit = inner.join_limit.lock().unwrap_or_else(PoisonError::into_inner);
    if !limit.may_try(source, now) {
        return Verdict::TooMany;
    }
    let (worker, manager) = inner.published.with(|state| {
        let is = |own: &[u8; 16]| crypto::equal_in_constant_time(own, secret);
        (is(&state.cluster.worker_secret), is(&state.cluster.manager_secret))
    });
    match (worker, manager) {
        (true, _) => Verdict::Admits(Role::Worker),
        (_, true) => Verdict::Admits(Role::Manager),
        _ => {
            limit.wrong(source, now);
            Verdict::Wrong
        }
    }
}

/// Answers a join request.
pub(super) async fn join(inner: &Arc<Inner>, connection: Connection, request: JoinRequest) {
    let role = match judge(inner, connection.from.ip(), &request.secret) {
        Verdict::Admits(role) => role,
        Verdict::Wrong => return connection.refuse(inner, ControlDrop::WrongToken, WRONG_TOKEN).await,
        Verdict::TooMany => return connection.refuse(inner, ControlDrop::JoinRateLimited, TOO_MANY_TRIES).await,
    };
    if let Err(reason) = check_request(&request) {
        return connection.refuse(inner, ControlDrop::BadJoin, reason).await;
    }
    match admit(inner, request, role).await {
        Ok(joined) => {
            tracing::info!(from = %connection.from, node = %joined.node, "a node joined");
            connection.answer(Answer::Joined(joined)).await;
        }
        Err(error) => connection.refuse(inner, ControlDrop::BadJoin, error.to_string()).await,
    }
}

fn check_request(request: &JoinRequest) -> Result<(), String> {
    check_hello(&request.hostname, &request.software, &request.addresses)
}

/// What a node says of itself must be usable by all others.
pub(super) fn check_hello(hostname: &str, software: &str, addresses: &NodeAddresses) -> Result<(), String> {
    let printable = |text: &str| text.chars().all(|c| c.is_ascii_graphic());
    if hostname.is_empty() || hostname.len() > MAX_HOSTNAME_BYTES || !printable(hostname) {
        return Err(format!("the host name must have 1 to {MAX_HOSTNAME_BYTES} printable characters"));
    }
    if software.len() > VERSION_MAX || !printable(software) {
        return Err("the node's version string is not acceptable".to_owned());
    }
    for address in [addresses.control, addresses.gossip, addresses.data] {
        let ip = address.ip();
        if ip.is_unspecified() || ip.is_multicast() || address.port() == 0 {
            return Err(format!("{address} is no address that others can reach: set --advertise-addr"));
        }
    }
    Ok(())
}

async fn admit(inner: &Inner, request: JoinRequest, role: Role) -> Result<Joined, ManagerError> {
    let (node, now) = (NodeId::from_random(random()), wall_clock());
    let (issued, cluster, fork, port, nodes) = inner.published.with(|state| {
        let Issuing { result, cluster, fork, data_path_port } = issue(state, &request.csr, node, role);
        (result, cluster, fork, data_path_port, state.nodes.len())
    });
    let issued = issued.map_err(|error| ManagerError::Certificate(error.to_string()))?;
    if nodes >= MAX_NODES {
        return Err(ManagerError::Unavailable(format!("the swarm has {MAX_NODES} nodes, which is the limit")));
    }
    tracing::debug!(%node, at = now.0, "admitting");
    let add = Command::AddNode {
        id: node,
        role,
        hostname: request.hostname,
        software: request.software,
        addresses: request.addresses,
        availability: request.availability,
        certificate_expires: issued.expires,
        root: issued.root,
    };
    inner.propose(add).await?;
    Ok(Joined { node, cluster, fork, role, data_path_port: port, chain: issued.chain })
}

struct Issuing {
    result: Result<Issued, AuthorityError>,
    cluster: ClusterId,
    fork: Fork,
    data_path_port: u16,
}

fn issue(state: &State, csr: &[u8], node: NodeId, role: Role) -> Issuing {
    let cluster = &state.cluster;
    let result = authority::issue_for(state, csr, Names { node, role, cluster: cluster.id });
    Issuing { result, cluster: cluster.id, fork: cluster.fork, data_path_port: cluster.spec.data_path_port }
}

/// The node that a certificate names, if it is one of ours and still in the swarm.
pub(super) fn identify(inner: &Inner, peer: Option<Peer>) -> Result<Peer, (ControlDrop, String)> {
    let Some(peer) = peer else {
        let reason = "this request needs the certificate of a node: join the swarm first";
        return Err((ControlDrop::NoCertificate, reason.to_owned()));
    };
    inner.published.with(|state| {
        if peer.cluster != state.cluster.id {
            return Err((ControlDrop::ForeignCertificate, "the certificate belongs to another swarm".to_owned()));
        }
        let gone = state.gone.contains_key(&peer.node);
        match state.nodes.get(&peer.node) {
            // A node whose role has changed still has the certificate of the former one: the renewal gives it the new.
            Some(node) if !gone => Ok(Peer { role: node.role, ..peer }),
            _ if gone => Err((ControlDrop::RemovedNode, format!("node {} was removed from the swarm", peer.node))),
            _ => Err((
                ControlDrop::UnknownNode,
                format!("the swarm does not know node {}: leave it with 'swarm leave --force'", peer.node),
            )),
        }
    })
}

/// Answers a request for a new certificate.
pub(super) async fn renew(inner: &Inner, connection: Connection, csr: Vec<u8>) {
    let peer = match identify(inner, connection.peer) {
        Ok(peer) => peer,
        Err((why, reason)) => return connection.refuse(inner, why, reason).await,
    };
    let issued = match inner.published.with(|state| issue(state, &csr, peer.node, peer.role)).result {
        Ok(issued) => issued,
        Err(error) => return connection.refuse(inner, ControlDrop::Malformed, error.to_string()).await,
    };
    let command = Command::SetCertificateExpiry { node: peer.node, expires: issued.expires, root: issued.root };
    match inner.propose(command).await {
        Ok(_) => connection.answer(Answer::Renewed { chain: issued.chain }).await,
        Err(error) => connection.refuse(inner, ControlDrop::SessionRefused, error.to_string()).await,
    }
}

/// Answers a node that has its certificate on its disk. Not before may the former root be dropped: the answer with the
/// certificate may never have reached the node.
pub(super) async fn certified(inner: &Inner, connection: Connection, root: [u8; 32]) {
    let peer = match identify(inner, connection.peer) {
        Ok(peer) => peer,
        Err((why, reason)) => return connection.refuse(inner, why, reason).await,
    };
    let known = inner.published.with(|state| state.nodes.get(&peer.node).is_some_and(|node| node.root == root));
    // A word that changes nothing does not write the log.
    let noted = if known {
        Ok(Reply::Done)
    } else {
        inner.propose(Command::SetCertificateRoot { node: peer.node, root }).await
    };
    match noted {
        Ok(_) => connection.answer(Answer::Noted).await,
        Err(error) => connection.refuse(inner, ControlDrop::SessionRefused, error.to_string()).await,
    }
}

/// Answers a node that leaves: it is down from now on, and may be removed.
pub(super) async fn leave(inner: &Inner, connection: Connection) {
    let peer = match identify(inner, connection.peer) {
        Ok(peer) => peer,
        Err((why, reason)) => return connection.refuse(inner, why, reason).await,
    };
    inner.sessions.left(peer.node);
    match inner.propose(set_state(peer.node, NodeState::Down, "the node left the swarm")).await {
        Ok(_) => {
            confirm_tasks_gone(inner, peer.node).await;
            tracing::info!(node = %peer.node, "a node left");
            connection.answer(Answer::Left).await;
        }
        Err(error) => connection.refuse(inner, ControlDrop::SessionRefused, error.to_string()).await,
    }
}

/// A leaving node stopped its tasks before it said goodbye; not each end may have come by its session.
async fn confirm_tasks_gone(inner: &Inner, node: NodeId) {
    let boot = |state: &State| state.nodes.get(&node).and_then(|node| node.boot);
    let Some((boot, tasks)) = inner.published.with(|state| Some((boot(state)?, state.tasks_of(node)))) else { return };
    for task in tasks {
        if let Err(error) = inner.propose(Command::ConfirmTaskGone { node, boot, id: task.id }).await {
            tracing::warn!(%node, task = %task.id, %error, "a task of a leaving node");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tokens_use_up_the_source_then_all() {
        let start = Instant::now();
        let mut limit = JoinLimit::new(start);
        let source = |n: u8| IpAddr::from([10, 0, n, 1]);
        for _ in 0..5 {
            assert!(limit.may_try(source(0), start));
            limit.wrong(source(0), start);
        }
        assert!(!limit.may_try(source(0), start));
        assert!(limit.may_try(source(1), start), "another source is not held responsible");
        assert!(!limit.may_try(source(0), start + Duration::from_millis(9_900)));
        assert!(limit.may_try(source(0), start + Duration::from_millis(10_100)));
        let mut limit = JoinLimit::new(start);
        (0..100).for_each(|n| limit.wrong(source(n), start));
        assert!(!limit.may_try(source(200), start), "all sources together are limited");
        assert!(limit.may_try(source(200), start + Duration::from_secs(1)));
    }

    #[test]
    fn one_ipv6_host_is_one_source() {
        let start = Instant::now();
        let mut limit = JoinLimit::new(start);
        for host in 0..5u16 {
            limit.wrong(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]), start);
        }
        assert!(!limit.may_try(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 1, 9]), start));
        assert!(limit.may_try(IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 1, 9]), start));
    }
}
