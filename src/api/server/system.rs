//! `version` and `info`.

use super::backend::Backend;
use super::{error::ApiError, host, respond, swarm, time};
use crate::agent::{self, LocalTask, SwarmInfo};
use crate::api::types::{
    API_VERSION, Component, Info, MIN_API_VERSION, Peer, PlatformName, Plugins, SwarmStatus, Version,
};
use crate::cluster::State;
use crate::types::{Role, TaskState};
use std::collections::BTreeMap;

/// This build's version.
pub(super) const FORMIC_VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn version() -> Result<respond::Response, ApiError> {
    let architecture = host::go_architecture().to_owned();
    let details = [
        ("ApiVersion", API_VERSION.to_string()),
        ("MinAPIVersion", MIN_API_VERSION.to_string()),
        ("Arch", architecture.clone()),
        ("Os", "linux".to_owned()),
        ("KernelVersion", host::kernel()),
    ];
    let engine = Component {
        name: "Engine".into(),
        version: FORMIC_VERSION.into(),
        details: details.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>(),
    };
    Ok(respond::json(&Version {
        platform: PlatformName { name: "Formic".into() },
        components: vec![engine],
        version: FORMIC_VERSION.into(),
        api_version: API_VERSION.to_string(),
        min_api_version: MIN_API_VERSION.to_string(),
        os: "linux".into(),
        arch: architecture,
        kernel_version: host::kernel(),
        ..Version::default()
    }))
}

pub(super) async fn info(backend: &dyn Backend) -> Result<respond::Response, ApiError> {
    let images = backend.images().await.map_or(0, |images| images.len() as u64);
    let state = backend.state();
    let swarm = swarm_status(&backend.swarm(), state.as_deref());
    let error = (!swarm.error.is_empty()).then(|| swarm.error.clone());
    let lock = state.as_deref().and_then(swarm::lock_warning).map(str::to_owned);
    let warnings = error.into_iter().chain(lock).map(|text| format!("WARNING: {text}")).collect();
    Ok(respond::json(&Info { images, warnings, ..describe(&backend.tasks(), swarm) }))
}

fn describe(tasks: &[LocalTask], swarm: SwarmStatus) -> Info {
    let running = tasks.iter().filter(|task| task.status.state == TaskState::Running).count() as u64;
    Info {
        id: swarm.node_id.clone(),
        containers: tasks.len() as u64,
        containers_running: running,
        containers_stopped: (tasks.len() as u64).saturating_sub(running),
        driver: "formic".into(),
        plugins: Plugins { network: vec!["overlay".into()], ..Plugins::default() },
        memory_limit: true,
        ncpu: agent::processors(),
        mem_total: agent::memory_bytes(),
        name: host::hostname(),
        kernel_version: host::kernel(),
        operating_system: host::operating_system(),
        os_type: "linux".into(),
        architecture: std::env::consts::ARCH.into(),
        server_version: FORMIC_VERSION.into(),
        system_time: time::rfc3339(time::now()),
        swarm,
        ..Info::default()
    }
}

/// The `Swarm` part of `info`.
pub(super) fn swarm_status(info: &SwarmInfo, state: Option<&State>) -> SwarmStatus {
    let managers =
        info.managers.iter().map(|(node, address)| Peer { node_id: node.to_string(), addr: address.to_string() });
    let count = |role| state.map_or(0, |state| state.nodes.values().filter(|node| node.role == role).count() as u64);
    SwarmStatus {
        node_id: info.node.map(|node| node.to_string()).unwrap_or_default(),
        node_addr: info.address.map(|address| address.to_string()).unwrap_or_default(),
        local_node_state: respond::state_word(info.state).into(),
        control_available: state.is_some(),
        error: info.error.clone(),
        remote_managers: (!info.managers.is_empty()).then(|| managers.collect()),
        nodes: count(Role::Manager) + count(Role::Worker),
        managers: count(Role::Manager),
        cluster: state.map(swarm::cluster_info),
    }
}
