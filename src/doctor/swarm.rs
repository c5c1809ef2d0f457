//! Judges what the daemon found when it asked its peers and managers for an answer. Pure.

use super::Finding;
use crate::api::types::{Examination, PeerStatus, Status, SwarmState};

/// Seconds of difference between two clocks that are worth a word.
const CLOCK_NOTE_SECS: u64 = 5;
/// Seconds that are half of what certificates allow: beyond it nodes are about to be refused.
const CLOCK_WRONG_SECS: u64 = 300;

/// What IPv6 demands of every link (RFC 8200, section 5).
const LEAST_UNDERLAY_BYTES: u32 = 1280;

/// What is to say about the daemon's part in a swarm.
pub fn swarm(found: &Examination) -> Vec<Finding> {
    let status = &found.status;
    let daemon = Finding::ok("daemon", format!("formic {} answers on {}", status.version, status.hostname));
    let swarm = match status.swarm.state {
        SwarmState::Inactive => Finding::note("swarm", "this host is in no swarm"),
        SwarmState::Locked => Finding::wrong("swarm", "the manager is locked: `formic swarm unlock` opens it"),
        _ => session(status),
    };
    let mut findings = vec![daemon, swarm];
    if status.swarm.node.is_some() && status.swarm.state != SwarmState::Locked {
        findings.extend(managers(found));
        findings.extend([clock(status.clock_ahead_secs), mtu(status)]);
        findings.extend(status.peers.iter().filter_map(|peer| path_mtu(peer, found)));
        findings.extend(status.peers.iter().flat_map(|peer| peer_findings(peer, found.asked_for_ms)));
        if status.peers.is_empty() {
            findings.push(Finding::note("peers", "there is no other node to ask"));
        }
    }
    findings.extend(status.data_path.iter().map(data_path));
    findings
}

fn session(status: &Status) -> Finding {
    let error = &status.swarm.error;
    match status.manager_heard_ms_ago {
        Some(_) if error.is_empty() => Finding::ok("swarm", "this node has a session with a manager"),
        Some(_) => Finding::wrong("swarm", error.clone()),
        None if error.is_empty() => Finding::wrong("swarm", "there is no session with a manager"),
        None => Finding::wrong("swarm", format!("there is no session with a manager: {error}")),
    }
}

fn managers(found: &Examination) -> impl Iterator<Item = Finding> {
    found.managers.iter().map(|manager| {
        let (ip, port) = (manager.address.ip(), manager.address.port());
        match &manager.error {
            None => Finding::ok("control", format!("TCP {port} of the manager at {ip} is open")),
            Some(error) => {
                let text = format!(
                    "TCP {port} of the manager at {ip} cannot be reached: {error} (is it down, or the port blocked?)"
                );
                Finding::wrong("control", text)
            }
        }
    })
}

fn clock(ahead_secs: Option<i64>) -> Finding {
    let Some(ahead) = ahead_secs else { return Finding::note("clock", "no manager has told its time yet") };
    let direction = if ahead < 0 { "behind" } else { "ahead of" };
    let text = format!("this host's clock is {} s {direction} the manager's", ahead.unsigned_abs());
    match ahead.unsigned_abs() {
        0..CLOCK_NOTE_SECS => Finding::ok("clock", text),
        CLOCK_NOTE_SECS..CLOCK_WRONG_SECS => Finding::note("clock", text),
        _ => Finding::wrong("clock", format!("{text}: beyond 600 s certificates are refused; set it")),
    }
}

fn mtu(status: &Status) -> Finding {
    match (status.underlay_mtu_bytes, status.inner_mtu_bytes) {
        (Some(underlay), _) if underlay < LEAST_UNDERLAY_BYTES => {
            let text =
                format!("the host's interface carries {underlay} octets, at least {LEAST_UNDERLAY_BYTES} are needed");
            Finding::wrong("mtu", text)
        }
        (Some(underlay), Some(inner)) => Finding::ok(
            "mtu",
            format!("the host's interface carries {underlay} octets, the containers' devices {inner}"),
        ),
        _ => Finding::note("mtu", "the host's interface does not tell its MTU"),
    }
}

/// What the way to a peer was found to carry. One that answers, but no packet of a useful length, swallows what the
/// containers send.
fn path_mtu(peer: &PeerStatus, found: &Examination) -> Option<Finding> {
    let wanted = found.status.inner_mtu_bytes?;
    let ip = peer.address.ip();
    let answered = peer.esp && peer.esp_answered_ms_ago.is_some_and(|ms| ms < found.asked_for_ms);
    Some(match peer.carries_bytes.map(u32::from) {
        None if answered => {
            let text = format!(
                "the way to {ip} carries short packets only: the longer ones of containers are lost. It must carry \
                 {LEAST_UNDERLAY_BYTES} octets (if {ip} was met a moment ago, ask again)"
            );
            Finding::wrong("mtu", text)
        }
        None => return None,
        Some(carries) if carries >= wanted => {
            Finding::ok("mtu", format!("the way to {ip} carries all that the containers' devices do"))
        }
        Some(carries) => {
            let text = format!(
                "the way to {ip} carries packets of {carries} octets, fewer than the containers' devices: they are told"
            );
            Finding::note("mtu", text)
        }
    })
}

/// Gossip and ESP by turns. Whoever answered was reached and reaches; whoever was heard but does not answer was not
/// reached; whoever is silent does not reach this host, or is not there.
fn peer_findings(peer: &PeerStatus, asked_for_ms: u64) -> Vec<Finding> {
    let fresh = |ms: Option<u64>| ms.is_some_and(|ms| ms < asked_for_ms);
    let (gossip, data) = (peer.gossip_address, peer.address);
    let silent = !fresh(peer.gossip_heard_ms_ago) && !fresh(peer.esp_heard_ms_ago);
    let one = |part, port: u16, ip: std::net::IpAddr, answered, heard| {
        let text = match (fresh(answered), fresh(heard)) {
            (true, _) => return Finding::ok(part, format!("{ip} answers: UDP {port} is open both ways")),
            (false, true) => format!("UDP {port} to {ip} is blocked: {ip} is heard, but does not hear this host"),
            (false, false) if silent => {
                format!(
                    "nothing comes from {ip}: its host or daemon is down, or UDP {port} from {ip} to this host is blocked"
                )
            }
            (false, false) => format!("UDP {port} from {ip} to this host is blocked: nothing of it comes"),
        };
        Finding::wrong(part, text)
    };
    let by_gossip = one("gossip", gossip.port(), gossip.ip(), peer.gossip_answered_ms_ago, peer.gossip_heard_ms_ago);
    let by_esp = if peer.esp {
        one("esp", data.port(), data.ip(), peer.esp_answered_ms_ago, peer.esp_heard_ms_ago)
    } else {
        let text = format!("{}: not asked, no network has a task on both hosts", data.ip());
        Finding::note("esp", text)
    };
    vec![by_gossip, by_esp]
}

/// The daemon's own words about its cipher and its offloads.
fn data_path((name, how): &(String, String)) -> Finding {
    match name.as_str() {
        "cipher" if how.contains("failed") => Finding::note("cipher", how.clone()),
        "cipher" => Finding::ok("cipher", how.clone()),
        offload => Finding::of_offload(offload, how),
    }
}
