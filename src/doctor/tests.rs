use super::machine::{kernel, port};
use super::*;
use crate::api::types::{Examination, ManagerReach, PeerStatus, Status};
use serde_json::json;
use std::io;

/// As the daemon's API shows it; the peer's ages are the test's.
fn found(ages: [Option<u64>; 4]) -> Examination {
    let id = "dt0zvqn0saezzinc8a5g4worx";
    let status = json!({
        "version": "0.1.0", "hostname": "ant-1", "boot": "01", "boot_index": 4, "manager_heard_ms_ago": 100,
        "swarm": {"state": "active", "node": id, "address": null, "role": null, "error": "", "managers": []},
        "clock_ahead_secs": 0, "underlay_mtu_bytes": 1500, "inner_mtu_bytes": 1438,
        "peers": [], "networks": [], "sas": [], "epochs": [], "drops": {}, "tasks": [],
        "data_path": [["cipher", "aws-lc, 7.3 GB/s"], ["tso", "on"]],
    });
    let mut status: Status = serde_json::from_value(status).unwrap();
    let [gossip_heard_ms_ago, gossip_answered_ms_ago, esp_heard_ms_ago, esp_answered_ms_ago] = ages;
    status.peers.push(PeerStatus {
        node: id.parse().unwrap(),
        address: "10.0.0.2:4500".parse().unwrap(),
        gossip_address: "10.0.0.2:7946".parse().unwrap(),
        gossip: "alive".into(),
        gossip_heard_ms_ago,
        gossip_answered_ms_ago,
        esp: true,
        esp_heard_ms_ago,
        esp_answered_ms_ago,
        esp_sent_ms_ago: Some(10),
        carries_bytes: Some(1438),
        verdict: "ok".into(),
    });
    Examination { asked_for_ms: 7500, status, managers: Vec::new() }
}

fn wrong(found: &Examination) -> Vec<(&'static str, String)> {
    let wrong = swarm(found).into_iter().filter(|finding| finding.verdict == Verdict::Wrong);
    wrong.map(|finding| (finding.part, finding.text)).collect()
}

#[test]
fn what_answers_is_well() {
    let well = found([Some(100); 4]);
    assert_eq!(wrong(&well), []);
    let report = Report::new(swarm(&well));
    assert!(report.well && report.describe().ends_with("\n\nNothing is wrong."), "{}", report.describe());
    assert!(report.describe().contains("ok     esp          10.0.0.2 answers: UDP 4500 is open both ways\n"));
}

#[test]
fn the_blocked_port_and_its_direction_are_named() {
    let (now, before) = (Some(100), Some(8000));
    for (ages, part, expected) in [
        ([now, now, now, before], "esp", "UDP 4500 to 10.0.0.2 is blocked"),
        ([now, now, now, None], "esp", "UDP 4500 to 10.0.0.2 is blocked"),
        ([now, now, before, before], "esp", "UDP 4500 from 10.0.0.2 to this host is blocked"),
        ([now, before, now, now], "gossip", "UDP 7946 to 10.0.0.2 is blocked"),
        ([before, before, now, now], "gossip", "UDP 7946 from 10.0.0.2 to this host is blocked"),
    ] {
        let wrong = wrong(&found(ages));
        assert!(wrong.len() == 1 && wrong[0].0 == part && wrong[0].1.starts_with(expected), "{ages:?}: {wrong:?}");
    }
    let silent = wrong(&found([before, before, None, None]));
    assert_eq!(silent.iter().map(|(part, _)| *part).collect::<Vec<_>>(), ["gossip", "esp"]);
    assert!(silent.iter().all(|(_, text)| text.contains("its host or daemon is down")), "{silent:?}");
}

#[test]
fn without_a_common_network_esp_is_not_called_well() {
    let mut found = found([Some(1), Some(1), None, None]);
    found.status.peers[0].esp = false;
    assert_eq!(wrong(&found), []);
    let esp = swarm(&found).into_iter().find(|finding| finding.part == "esp").unwrap();
    assert_eq!(esp.verdict, Verdict::Note);
}

#[test]
fn managers_sessions_clocks_and_mtus_are_judged() {
    let mut bad = found([Some(1); 4]);
    bad.managers.push(ManagerReach {
        node: "dt0zvqn0saezzinc8a5g4worx".parse().unwrap(),
        address: "10.0.0.1:2377".parse().unwrap(),
        error: Some("no answer".into()),
    });
    bad.status.manager_heard_ms_ago = None;
    bad.status.clock_ahead_secs = Some(-400);
    bad.status.underlay_mtu_bytes = Some(1200);
    let parts: Vec<_> = wrong(&bad).into_iter().map(|(part, _)| part).collect();
    assert_eq!(parts, ["swarm", "control", "clock", "mtu"]);
    let text = Report::new(swarm(&bad)).describe();
    assert!(text.contains("TCP 2377 of the manager at 10.0.0.1 cannot be reached: no answer"), "{text}");
    assert!(text.contains("400 s behind the manager's") && text.ends_with("\n\n4 things are wrong."), "{text}");
    bad.status.clock_ahead_secs = Some(5);
    assert!(!wrong(&bad).iter().any(|(part, _)| *part == "clock"), "a note");
}

#[test]
fn a_way_that_carries_less_is_a_note() {
    let mut found = found([Some(1); 4]);
    found.status.peers[0].carries_bytes = Some(1338);
    let note = swarm(&found).into_iter().find(|finding| finding.part == "mtu" && finding.verdict == Verdict::Note);
    assert!(note.unwrap().text.starts_with("the way to 10.0.0.2 carries packets of 1338 octets"));
    found.status.peers[0].carries_bytes = Some(1218);
    found.status.inner_mtu_bytes = Some(8938);
    assert_eq!(wrong(&found), [], "the devices were made when the interface carried more");
}

#[test]
fn a_way_that_swallows_long_packets_is_wrong() {
    let mut found = found([Some(1); 4]);
    found.status.peers[0].carries_bytes = None;
    let said = wrong(&found);
    assert!(said.len() == 1 && said[0].0 == "mtu", "{said:?}");
    assert!(said[0].1.starts_with("the way to 10.0.0.2 carries short packets only"), "{said:?}");
    // Of whoever does not answer, or is not asked, nothing is known.
    found.status.peers[0].esp_answered_ms_ago = Some(8000);
    assert!(!wrong(&found).iter().any(|(part, _)| *part == "mtu"));
    found.status.peers[0].esp_answered_ms_ago = Some(1);
    found.status.peers[0].esp = false;
    assert_eq!(wrong(&found), []);
}

#[test]
fn an_offload_that_is_off_is_a_note() {
    let mut found = found([Some(1); 4]);
    found.status.data_path.push(("uso".into(), "off: disabled".into()));
    let last = swarm(&found).pop().unwrap();
    assert_eq!(last, Finding::note("offloads", "uso: off: disabled"));
}

#[test]
fn kernels_and_ports_are_judged() {
    assert_eq!(kernel("6.1.0-18-amd64").verdict, Verdict::Ok);
    assert_eq!(kernel("5.10.0").verdict, Verdict::Ok);
    assert_eq!(kernel("5.9.16").verdict, Verdict::Wrong);
    assert_eq!(kernel("").verdict, Verdict::Note);
    assert_eq!(port("UDP", 4500, "--data-path-port", Ok(())).verdict, Verdict::Ok);
    let used = port("UDP", 4500, "--data-path-port", Err(io::ErrorKind::AddrInUse.into()));
    assert!(used.verdict == Verdict::Wrong && used.text.contains("--data-path-port"), "{used:?}");
}
