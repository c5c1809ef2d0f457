//! `formic service inspect --pretty`: line by line as docker shows it.

use super::duration;
use super::quantity::{bytes_text, cpus_text};
use super::session::{Failure, Session};
use crate::api::client::Target;
use crate::api::time;
use crate::api::types as api;
use std::time::{SystemTime, UNIX_EPOCH};

const NANOSECONDS: u64 = 1_000_000_000;

/// The service in words.
pub(super) fn text(session: &Session, service: &api::Service) -> Result<String, Failure> {
    let networks: Vec<api::NetworkResource> = session.get(&Target::new(&["networks"]))?;
    let name = |target: &String| {
        let found = networks.iter().find(|network| network.id == *target);
        found.map_or_else(|| target.clone(), |network| network.name.clone())
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    Ok(lines(service, &name, now).join("\n"))
}

fn lines(service: &api::Service, network: &dyn Fn(&String) -> String, now: u64) -> Vec<String> {
    let spec = &service.spec;
    let mut lines = vec![format!("ID:\t\t{}", service.id), format!("Name:\t\t{}", spec.name)];
    if !spec.labels.is_empty() {
        lines.push("Labels:".into());
        lines.extend(spec.labels.iter().map(|(name, value)| format!(" {name}={value}")));
    }
    match &spec.mode.replicated {
        Some(replicated) => {
            lines.push("Service Mode:\tReplicated".into());
            lines.push(format!(" Replicas:\t{}", replicated.replicas.unwrap_or(1)));
        }
        None => lines.push("Service Mode:\tGlobal".into()),
    }
    if let Some(status) = &service.update_status {
        lines.extend(update_status(status, now));
    }
    lines.extend(placement(&spec.task_template.placement));
    for (title, config) in [("UpdateConfig", &spec.update_config), ("RollbackConfig", &spec.rollback_config)] {
        lines.extend(config.iter().flat_map(|config| update_config(title, config)));
    }
    lines.extend(spec.task_template.restart_policy.iter().flat_map(restart_policy));
    lines.extend(container(&spec.task_template.container_spec));
    let reserved = &spec.task_template.resources.reservations;
    if *reserved != api::Resources::default() {
        lines.push("Resources:".into());
        lines.push(" Reservations:".into());
        let cpus = (reserved.nano_cpus > 0).then(|| format!("  CPU:\t\t{}", cpus_text(reserved.nano_cpus)));
        let memory = (reserved.memory_bytes > 0).then(|| format!("  Memory:\t{}", bytes_text(reserved.memory_bytes)));
        lines.extend(cpus.into_iter().chain(memory));
    }
    let networks: Vec<String> = spec.task_template.networks.iter().map(|config| network(&config.target)).collect();
    if !networks.is_empty() {
        lines.push(format!("Networks: {}", networks.join(" ")));
    }
    lines.push(format!("Endpoint Mode:\t{}", spec.endpoint_spec.mode));
    lines
}

fn update_status(status: &api::UpdateStatus, now: u64) -> Vec<String> {
    let ago = |text: &str| {
        let at = time::parse_rfc3339(text);
        at.map_or_else(String::new, |at| format!("{} ago", time::human_duration(now.saturating_sub(at.0))))
    };
    let mut lines = vec![
        "UpdateStatus:".to_owned(),
        format!(" State:\t\t{}", status.state),
        format!(" Started:\t{}", ago(&status.started_at)),
    ];
    lines.extend(status.completed_at.iter().map(|at| format!(" Completed:\t{}", ago(at))));
    lines.push(format!(" Message:\t{}", status.message));
    lines
}

fn placement(placement: &api::Placement) -> Vec<String> {
    if *placement == api::Placement::default() {
        return Vec::new();
    }
    let mut lines = vec!["Placement:".to_owned()];
    if !placement.constraints.is_empty() {
        lines.push(format!(" Constraints:\t[{}]", placement.constraints.join(" ")));
    }
    let spread = |preference: &api::PlacementPreference| format!("spread={}", preference.spread.spread_descriptor);
    if !placement.preferences.is_empty() {
        let preferences: Vec<String> = placement.preferences.iter().map(spread).collect();
        lines.push(format!(" Preferences:\t[{}]", preferences.join(" ")));
    }
    if placement.max_replicas > 0 {
        lines.push(format!(" Max Replicas Per Node:\t{}", placement.max_replicas));
    }
    lines
}

fn seconds(nanoseconds: u64) -> String {
    duration::short(nanoseconds.div_ceil(NANOSECONDS))
}

fn update_config(title: &str, config: &api::UpdateConfig) -> Vec<String> {
    let word = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    let mut lines = vec![format!("{title}:"), format!(" Parallelism:\t{}", config.parallelism)];
    if config.delay > 0 {
        lines.push(format!(" Delay:\t\t{}", seconds(config.delay)));
    }
    lines.push(format!(" On failure:\t{}", word(&config.failure_action, "pause")));
    if config.monitor > 0 {
        lines.push(format!(" Monitoring Period: {}", seconds(config.monitor)));
    }
    lines.push(format!(" Max failure ratio: {}", config.max_failure_ratio));
    lines.push(format!(" Update order:      {}", word(&config.order, "stop-first")));
    lines
}

fn restart_policy(policy: &api::RestartPolicy) -> Vec<String> {
    let condition = if policy.condition.is_empty() { "any" } else { &policy.condition };
    let mut lines = vec!["RestartPolicy:".to_owned(), format!(" Condition:\t{condition}")];
    lines.extend(policy.delay.map(|delay| format!(" Delay:\t\t{}", seconds(delay))));
    lines.extend(policy.max_attempts.map(|attempts| format!(" Max attempts:\t{attempts}")));
    lines.extend(policy.window.map(|window| format!(" Window:\t{}", seconds(window))));
    lines
}

fn container(container: &api::ContainerSpec) -> Vec<String> {
    let mut lines = vec!["ContainerSpec:".to_owned(), format!(" Image:\t\t{}", container.image)];
    let shown = [
        (" Command:\t", container.command.join(" ")),
        (" Args:\t\t", container.args.join(" ")),
        (" Env:\t\t", container.env.join(" ")),
        (" Dir:\t\t", container.dir.clone()),
        (" Hostname:\t", container.hostname.clone()),
    ];
    lines.extend(shown.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("{name}{value}")));
    lines
}
