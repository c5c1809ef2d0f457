//! `formic ps`, `info`, `version`.

use super::session::{Outcome, Session};
use super::{duration, table};
use crate::api::client::Target;
use crate::api::types::{API_VERSION, ClusterInfo, ContainerSummary, Info as DaemonInfo, Version as DaemonVersion};
use argh::{ArgsInfo, FromArgs};

/// Lists the tasks that run on this host.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "ps")]
pub(super) struct Ps {
    /// also those that do not run
    #[argh(switch, short = 'a')]
    all: bool,
    /// show ids only
    #[argh(switch, short = 'q')]
    quiet: bool,
}

impl Ps {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        let target = Target::new(&["containers", "json"]);
        let tasks: Vec<ContainerSummary> = session.get(&if self.all { target.with("all", "1") } else { target })?;
        if self.quiet {
            return tasks.iter().try_for_each(|task| session.print(&task.id));
        }
        let rows: Vec<[String; 5]> = tasks.iter().map(row).collect();
        session.print(table::render(["TASK ID", "IMAGE", "COMMAND", "STATUS", "NAME"], &rows))
    }
}

/// Characters of a command that are shown.
const SHORT_COMMAND: usize = 30;

fn row(task: &ContainerSummary) -> [String; 5] {
    let mut command: String = task.command.chars().take(SHORT_COMMAND).collect();
    if task.command.chars().count() > SHORT_COMMAND {
        command.push_str("...");
    }
    let name = task.labels.get("com.docker.swarm.task.name").cloned().unwrap_or_default();
    let name = name.strip_suffix(&format!(".{}", task.id)).map_or(name.clone(), str::to_owned);
    [table::short_id(&task.id), task.image.clone(), command, task.status.clone(), name]
}

/// Shows this host's daemon and its part in a swarm.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "info")]
pub(super) struct Info {
    /// show JSON
    #[argh(switch)]
    json: bool,
}

impl Info {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        let info = session.info()?;
        if self.json { session.print_json(&info) } else { session.print(describe(&info)) }
    }
}

fn describe(info: &DaemonInfo) -> String {
    let swarm = &info.swarm;
    let mut lines = vec![
        format!("Name: {}", info.name),
        format!("Version: {}", info.server_version),
        format!("Tasks: {} ({} running)", info.containers, info.containers_running),
        format!("Images: {}", info.images),
        format!("Swarm: {}", swarm.local_node_state),
    ];
    if !swarm.error.is_empty() {
        lines.push(format!(" Error: {}", swarm.error));
    }
    if !swarm.node_id.is_empty() {
        lines.push(format!(" NodeID: {}", swarm.node_id));
        lines.push(format!(" Node Address: {}", swarm.node_addr));
        lines.push(format!(" Is Manager: {}", swarm.control_available));
    }
    if swarm.control_available {
        lines.push(format!(" Managers: {}", swarm.managers));
        lines.push(format!(" Nodes: {}", swarm.nodes));
    }
    lines.extend(swarm.cluster.iter().flat_map(describe_settings));
    for manager in swarm.remote_managers.iter().flatten() {
        lines.push(format!(" Manager: {} ({})", manager.addr, manager.node_id));
    }
    lines.extend([
        format!("Kernel Version: {}", info.kernel_version),
        format!("Operating System: {}", info.operating_system),
        format!("Architecture: {}", info.architecture),
        format!("CPUs: {}", info.ncpu),
    ]);
    lines.join("\n")
}

/// The swarm's settings in Docker's words, and the interval of key rotations.
fn describe_settings(cluster: &ClusterInfo) -> [String; 5] {
    let seconds = |nanoseconds: u64| duration::short(nanoseconds / 1_000_000_000);
    let spec = &cluster.spec;
    let disabled = spec.formic.disabled_offloads.clone().unwrap_or_default();
    [
        format!(
            " Task History Retention Limit: {}",
            spec.orchestration.task_history_retention_limit.unwrap_or_default()
        ),
        format!(" Heartbeat Period: {}", seconds(spec.dispatcher.heartbeat_period)),
        format!(" Certificate Expiry Duration: {}", seconds(spec.ca_config.node_cert_expiry)),
        format!(" Key Rotation Interval: {}", duration::short(spec.formic.key_rotation_seconds)),
        format!(" Disabled Offloads: {}", if disabled.is_empty() { "none".into() } else { disabled.join(", ") }),
    ]
}

/// Shows the versions of this command and of the daemon.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "version")]
pub(super) struct Version {}

impl Version {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        session
            .print(format!("Client:\n Version:      {}\n API version:  {API_VERSION}", env!("CARGO_PKG_VERSION")))?;
        let daemon: DaemonVersion = session.get(&Target::new(&["version"]))?;
        session.print(format!(
            "\nServer:\n Version:      {}\n API version:  {} (minimum version {})\n Kernel:       {}",
            daemon.version, daemon.api_version, daemon.min_api_version, daemon.kernel_version
        ))
    }
}

/// What `--version` shows.
pub(super) fn version_line() -> String {
    format!("formic {}", env!("CARGO_PKG_VERSION"))
}
