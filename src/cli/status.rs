//! `formic status`.

use super::session::{Outcome, Session};
use super::table;
use crate::api::client::Target;
use crate::api::types::{Status as NodeStatus, SwarmState};
use argh::{ArgsInfo, FromArgs};

/// Shows how this host is doing: its peers with the last authenticated packet each way, networks, security
/// associations, epochs, tasks, and dropped packets by reason.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "status")]
pub(super) struct Status {
    /// show JSON
    #[argh(switch)]
    json: bool,
}

impl Status {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        let status: NodeStatus = session.get(&Target::new(&["formic", "status"]))?;
        if self.json { session.print_json(&status) } else { session.print(describe(&status)) }
    }
}

/// The status for people.
pub(super) fn describe(status: &NodeStatus) -> String {
    let sections = [
        head(status),
        section("Peers", peers(status)),
        section("Networks", networks(status)),
        section("Security associations", associations(status)),
        section("Epochs", epochs(status)),
        section("Tasks", tasks(status)),
        section("Data path", data_path(status)),
        section("Dropped packets", drops(status)),
    ];
    sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n\n")
}

fn head(status: &NodeStatus) -> String {
    let swarm = &status.swarm;
    let state = match swarm.state {
        SwarmState::Inactive => "inactive",
        SwarmState::Pending => "pending",
        SwarmState::Active => "active",
        SwarmState::Locked => "locked",
        SwarmState::Error => "error",
    };
    let mut lines =
        vec![format!("Node:     {} (formic {})", status.hostname, status.version), format!("Swarm:    {state}")];
    if let Some(node) = swarm.node {
        let role = swarm.role.map(|role| format!("{role:?}").to_lowercase()).unwrap_or_default();
        let address = swarm.address.map(|address| format!(" at {address}")).unwrap_or_default();
        lines.push(format!("Id:       {node}, {role}{address}"));
        let index = status.boot_index.map_or("not yet known to the managers".into(), |index| format!("index {index}"));
        lines.push(format!("Boot:     {} ({index})", status.boot));
        lines.push(format!(
            "Managers: {}",
            status.manager_heard_ms_ago.map_or("no session".into(), |ms| format!("heard {} ago", age(ms)))
        ));
    }
    if !swarm.error.is_empty() {
        lines.push(format!("Error:    {}", swarm.error));
    }
    lines.join("\n")
}

fn section(title: &str, body: String) -> String {
    if body.is_empty() { String::new() } else { format!("{title}\n{body}") }
}

fn peers(status: &NodeStatus) -> String {
    let heard = |ms: Option<u64>| ms.map_or("never".into(), age);
    let rows: Vec<[String; 7]> = status
        .peers
        .iter()
        .map(|peer| {
            [
                table::short_id(&peer.node.to_string()),
                peer.address.to_string(),
                peer.gossip.clone(),
                heard(peer.gossip_heard_ms_ago),
                heard(peer.esp_heard_ms_ago),
                heard(peer.esp_sent_ms_ago),
                peer.verdict.clone(),
            ]
        })
        .collect();
    body(["NODE", "ADDRESS", "GOSSIP", "GOSSIP FROM", "ESP FROM", "ESP TO", "VERDICT"], &rows)
}

fn networks(status: &NodeStatus) -> String {
    let row = |(id, name, transform, subnet): &(_, String, String, String)| {
        [table::short_id(&id_text(id)), name.clone(), transform.clone(), subnet.clone()]
    };
    let rows: Vec<[String; 4]> = status.networks.iter().map(row).collect();
    body(["ID", "NAME", "TRANSFORM", "SUBNET"], &rows)
}

fn id_text(id: &impl std::fmt::Display) -> String {
    id.to_string()
}

fn associations(status: &NodeStatus) -> String {
    let rows: Vec<[String; 8]> = status
        .sas
        .iter()
        .map(|sa| {
            [
                sa.spi.clone(),
                sa.direction.clone(),
                table::short_id(&sa.peer.to_string()),
                table::short_id(&sa.network.to_string()),
                sa.epoch.to_string(),
                if sa.active { "yes" } else { "no" }.into(),
                sa.packets.to_string(),
                sa.bytes.to_string(),
            ]
        })
        .collect();
    body(["SPI", "DIRECTION", "PEER", "NETWORK", "EPOCH", "ACTIVE", "PACKETS", "BYTES"], &rows)
}

fn epochs(status: &NodeStatus) -> String {
    let rows: Vec<[String; 2]> =
        status.epochs.iter().map(|(epoch, phase)| [epoch.to_string(), phase.clone()]).collect();
    body(["EPOCH", "PHASE"], &rows)
}

fn tasks(status: &NodeStatus) -> String {
    let row = |(id, name, state): &(_, String, String)| [table::short_id(&id_text(id)), name.clone(), state.clone()];
    let rows: Vec<[String; 3]> = status.tasks.iter().map(row).collect();
    body(["ID", "NAME", "STATE"], &rows)
}

fn data_path(status: &NodeStatus) -> String {
    let rows: Vec<[String; 2]> = status.data_path.iter().map(|(name, how)| [name.clone(), how.clone()]).collect();
    body(["PART", "STATE"], &rows)
}

fn drops(status: &NodeStatus) -> String {
    let rows: Vec<[String; 2]> =
        status.drops.iter().map(|(reason, count)| [reason.clone(), count.to_string()]).collect();
    body(["REASON", "PACKETS"], &rows)
}

fn body<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() { String::new() } else { table::render(heads, rows) }
}

/// Milliseconds in one unit.
fn age(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => super::duration::short(ms / 1000),
    }
}
