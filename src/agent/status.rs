//! What `formic status` shows.

use super::engine::Engine;
use super::model::{PeerStatus, SaStatus, Status, SwarmInfo, SwarmState};
use crate::dataplane::{LinkStats, Stats};
use crate::esp::Direction;
use crate::gossip::MemberView;
use crate::sys::interface;
use crate::types::{EpochPhase, NodeId, Time, Transform};
use crate::wire::record::NodeRecord;
use std::collections::BTreeMap;
use std::time::Duration;

/// Every pair is probed every five seconds: without an answer for longer than two probes, one direction is cut.
const SILENCE: Duration = Duration::from_secs(11);

impl Engine {
    /// A snapshot.
    pub(super) async fn status(&self) -> Status {
        let stats = self.dataplane.stats().await.ok();
        let now = self.clock.now();
        let age = |time: Time| u64::try_from(now.since(time).as_millis()).unwrap_or(u64::MAX);
        let mut drops: BTreeMap<String, u64> = BTreeMap::new();
        if let Some(stats) = &stats {
            drops.extend(stats.drops.iter().map(|(reason, count)| (reason.name().to_string(), count)));
        }
        drops.extend(
            self.core.gossip.drops().iter().map(|(reason, count)| (format!("gossip.{}", reason.name()), count)),
        );
        drops.insert("keys.bad_public".into(), self.core.keys.bad_publics());
        drops.retain(|_, count| *count > 0);
        Status {
            boot: self.boot.to_string(),
            boot_index: self.link.boot_index,
            manager_heard_ms_ago: self.link.heard_at.filter(|_| self.link.up).map(age),
            clock_ahead_secs: self.link.clock_ahead_secs.filter(|_| self.link.up),
            underlay_mtu_bytes: self.underlay_mtu(),
            inner_mtu_bytes: Some(self.inner_mtu),
            peers: self.peers(stats.as_ref(), now),
            networks: self
                .core
                .networks
                .values()
                .map(|view| (view.id, view.name.clone(), transform(view.transform), view.subnet.to_string()))
                .collect(),
            sas: stats.iter().flat_map(|stats| &stats.sas).map(sa_status).collect(),
            epochs: self
                .core
                .keys
                .epochs()
                .into_iter()
                .map(|(epoch, phase)| (epoch.0, phase_name(phase).to_string()))
                .collect(),
            drops,
            data_path: stats.as_ref().map(data_path).unwrap_or_default(),
            tasks: self.tasks.iter().map(|(task, status)| (task.id, task.name(), status.state.to_string())).collect(),
            ..Status::inactive(
                SwarmInfo {
                    state: SwarmState::Active,
                    node: None,
                    address: None,
                    role: None,
                    error: String::new(),
                    managers: Vec::new(),
                },
                self.hostname.clone(),
            )
        }
    }

    /// Of the interface that has the data path's address.
    pub(super) fn underlay_mtu(&self) -> Option<u32> {
        interface::mtu_of_address(self.dataplane.address().ip()).ok().flatten()
    }

    fn peers(&self, stats: Option<&Stats>, now: Time) -> Vec<PeerStatus> {
        let members: BTreeMap<NodeId, MemberView> =
            self.core.gossip.members().map(|member| (member.node, member)).collect();
        let links =
            |node: NodeId| stats.into_iter().flat_map(|stats| &stats.links).filter(move |link| link.peer == node);
        self.core
            .nodes
            .values()
            .map(|record| {
                let node = record.node;
                let esp = (self.core.keys.outbound_to(node).is_some(), self.core.keys.answered(node));
                let carries_bytes = self.core.paths.known(node);
                PeerStatus { carries_bytes, ..peer_status(record, members.get(&node), links(node), esp, now) }
            })
            .collect()
    }
}

fn peer_status<'a>(
    record: &NodeRecord,
    member: Option<&MemberView>,
    links: impl Iterator<Item = &'a LinkStats> + Clone,
    (esp, answered): (bool, Option<Time>),
    now: Time,
) -> PeerStatus {
    let age = |time: Time| u64::try_from(now.since(time).as_millis()).unwrap_or(u64::MAX);
    let heard = links.clone().filter_map(|link| link.last_received).max();
    let sent = links.filter_map(|link| link.last_sent).max();
    let gossip_heard = member.and_then(|member| member.last_heard);
    PeerStatus {
        node: record.node,
        address: record.addresses.data,
        gossip_address: record.addresses.gossip,
        gossip: member.map_or("unknown", |member| member.state.name()).to_string(),
        gossip_heard_ms_ago: gossip_heard.map(age),
        gossip_answered_ms_ago: member.and_then(|member| member.last_answered).map(age),
        esp,
        esp_answered_ms_ago: answered.map(age),
        esp_heard_ms_ago: heard.map(age),
        esp_sent_ms_ago: sent.map(age),
        carries_bytes: None,
        verdict: verdict(record, gossip_heard, heard, (sent, answered), now),
    }
}

/// Names the blocked path, if one is.
fn verdict(
    record: &NodeRecord,
    gossip_heard: Option<Time>,
    heard: Option<Time>,
    (sent, answered): (Option<Time>, Option<Time>),
    now: Time,
) -> String {
    let fresh = |time: Option<Time>| time.is_some_and(|time| now.since(time) <= SILENCE);
    let gossip = record.addresses.gossip;
    let data = record.addresses.data;
    match (fresh(gossip_heard), sent) {
        (false, None) => {
            format!("silent: no gossip from {} (is the host down, or UDP {} blocked?)", gossip.ip(), gossip.port())
        }
        (true, None) => "ok: no traffic yet".into(),
        (false, Some(_)) if fresh(heard) => {
            format!("one way: ESP comes, but no gossip (is UDP {} from {} blocked?)", gossip.port(), gossip.ip())
        }
        (true, Some(_)) if fresh(heard) && answered.is_some() && !fresh(answered) => {
            format!("one way: ESP comes, ours is not answered (is UDP {} to {} blocked?)", data.port(), data.ip())
        }
        (true, Some(_)) if fresh(heard) => "ok".into(),
        (true, Some(sent)) if now.since(sent) > SILENCE => "ok: idle".into(),
        (true, Some(_)) => {
            format!("one way: we send, nothing comes back (is UDP {} from {} blocked?)", data.port(), data.ip())
        }
        (false, Some(_)) => format!(
            "silent: neither gossip nor ESP from {} (is the host down, or UDP {} and {} blocked?)",
            data.ip(),
            gossip.port(),
            data.port()
        ),
    }
}

fn sa_status(sa: &crate::dataplane::SaStats) -> SaStatus {
    let summary = &sa.summary;
    let (direction, peer, active) = match summary.direction {
        Direction::Outbound => ("out", summary.identity.dst, sa.sending),
        Direction::Inbound => ("in", summary.identity.src, summary.enabled),
    };
    SaStatus {
        spi: summary.spi.to_string(),
        direction: direction.into(),
        peer,
        network: summary.identity.network,
        epoch: summary.identity.epoch.0,
        active,
        packets: summary.traffic.packets,
        bytes: summary.traffic.bytes,
    }
}

fn transform(transform: Transform) -> String {
    match transform {
        Transform::Gcm => "encrypted (AES-256-GCM)".into(),
        Transform::Gmac => "plain (AES-256-GMAC)".into(),
    }
}

fn phase_name(phase: EpochPhase) -> &'static str {
    match phase {
        EpochPhase::Previous => "previous",
        EpochPhase::Current => "current",
        EpochPhase::Next => "next",
    }
}

/// What the data path works with.
fn data_path(stats: &Stats) -> Vec<(String, String)> {
    let cipher = &stats.cipher;
    let note = if cipher.fell_back { ", because the faster library failed its self-test" } else { "" };
    let speed = format!("{}, {:.1} GB/s{note}", cipher.library.name(), cipher.bytes_per_sec / 1e9);
    let offloads = stats.offloads.iter().map(|status| (status.offload.name().to_owned(), status.describe()));
    std::iter::once(("cipher".to_owned(), speed)).chain(offloads).collect()
}
