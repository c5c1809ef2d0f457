//! The swarm: init, join, leave, inspect, update, unlock.

use super::backend::Backend;
use super::error::{self, ApiError};
use super::request::Request;
use super::roots::Roots;
use super::{Context, manager_state, networks, nodes, respond, schema, time};
use crate::agent::{InitRequest, JoinTarget, NodeError, SwarmState};
use crate::api::types as api;
use crate::cluster::{Command, NewTokens, State, limits};
use crate::types::{Availability, ClusterSpec, NotAnUnlockKey, Offloads, UnlockKey};
use hyper::{Method, StatusCode};
use ipnet::IpNet;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Nanoseconds, in which Docker's API counts durations, of a second.
const NANOSECONDS: u64 = 1_000_000_000;

/// The heartbeats that make sense, in seconds.
const HEARTBEAT_SECS: std::ops::RangeInclusive<u64> = 1..=300;

/// The intervals of key rotation that make sense, in seconds: nodes need time to get ready, and 30 days is more than
/// a key should live.
const KEY_ROTATION_SECS: std::ops::RangeInclusive<u64> = 60..=2_592_000;

/// The lives of certificates that make sense, in seconds: an hour (Docker's least) to ten years.
const CERTIFICATE_SECS: std::ops::RangeInclusive<u64> = 3600..=315_360_000;

/// The prefix lengths that subnets may have.
const SUBNET_PREFIX: std::ops::RangeInclusive<u32> =
    limits::MIN_SUBNET_PREFIX as u32..=limits::MAX_SUBNET_PREFIX as u32;

pub(super) async fn init(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let wanted: api::SwarmInit = request.json(&schema::SWARM_INIT)?;
    if backend.swarm().state != SwarmState::Inactive && !wanted.force_new_cluster {
        return Err(ApiError::unavailable(error::ALREADY_IN_SWARM));
    }
    let node = backend.init(init_from(wanted)?).await?;
    Ok(respond::json(&node.to_string()))
}

/// What `swarm init` means. Pure.
pub(super) fn init_from(wanted: api::SwarmInit) -> Result<InitRequest, ApiError> {
    let mut spec = ClusterSpec::default();
    apply_settings(&mut spec, &wanted.spec)?;
    spec.autolock |= wanted.auto_lock_managers;
    spec.address_pool = read_pool(&wanted.default_addr_pool, spec.address_pool)?;
    spec.subnet_prefix = read_prefix(wanted.subnet_size, spec.subnet_prefix, spec.address_pool)?;
    if wanted.data_path_port != 0 {
        spec.data_path_port = u16::try_from(wanted.data_path_port).map_err(|_| {
            ApiError::bad_request(format!(
                "invalid data path port {}: it must be between 1 and 65535",
                wanted.data_path_port
            ))
        })?;
    }
    Ok(InitRequest {
        listen_address: wanted.listen_addr,
        advertise_address: wanted.advertise_addr,
        data_path_address: wanted.data_path_addr,
        spec,
        availability: read_availability(&wanted.availability)?,
        force_new_cluster: wanted.force_new_cluster,
    })
}

fn read_availability(word: &str) -> Result<Availability, ApiError> {
    if word.is_empty() { Ok(Availability::Active) } else { nodes::parse_availability(word) }
}

fn read_pool(pools: &[String], default: IpNet) -> Result<IpNet, ApiError> {
    match pools {
        [] => Ok(default),
        [pool] => Ok(IpNet::V4(networks::read_subnet(pool)?)),
        _ => Err(ApiError::bad_request("networks are cut from one pool: give --default-addr-pool once")),
    }
}

fn read_prefix(wanted: u32, default: u8, pool: IpNet) -> Result<u8, ApiError> {
    let prefix = if wanted == 0 { u32::from(default) } else { wanted };
    if !SUBNET_PREFIX.contains(&prefix) || prefix < u32::from(pool.prefix_len()) {
        let text = format!(
            "invalid subnet size /{prefix}: it must be between /{} and /{}",
            SUBNET_PREFIX.start().max(&u32::from(pool.prefix_len())),
            SUBNET_PREFIX.end()
        );
        return Err(ApiError::bad_request(text));
    }
    Ok(prefix as u8)
}

/// Changes what a `SwarmSpec` says; 0 leaves a setting as it is.
fn apply_settings(spec: &mut ClusterSpec, wanted: &api::SwarmSpec) -> Result<(), ApiError> {
    if wanted.dispatcher.heartbeat_period != 0 {
        let period = wanted.dispatcher.heartbeat_period;
        if !period.is_multiple_of(NANOSECONDS) || !HEARTBEAT_SECS.contains(&(period / NANOSECONDS)) {
            return Err(out_of_range("heartbeat period", &HEARTBEAT_SECS));
        }
        spec.heartbeat_secs = (period / NANOSECONDS) as u32;
    }
    if wanted.ca_config.node_cert_expiry != 0 {
        let life = wanted.ca_config.node_cert_expiry / NANOSECONDS;
        if !CERTIFICATE_SECS.contains(&life) {
            return Err(out_of_range("certificate expiry", &CERTIFICATE_SECS));
        }
        spec.certificate_secs = life;
    }
    if wanted.ca_config.force_rotate != 0 {
        spec.force_rotate = wanted.ca_config.force_rotate;
    }
    spec.autolock = wanted.encryption_config.auto_lock_managers.unwrap_or(spec.autolock);
    if let Some(limit) = wanted.orchestration.task_history_retention_limit {
        spec.task_history =
            u32::try_from(limit).ok().filter(|limit| *limit <= limits::TASK_HISTORY).ok_or_else(|| {
                let text = format!("invalid task history limit {limit}: it must be 0 to {}", limits::TASK_HISTORY);
                ApiError::bad_request(text)
            })?;
    }
    if wanted.formic.key_rotation_seconds != 0 {
        if !KEY_ROTATION_SECS.contains(&wanted.formic.key_rotation_seconds) {
            return Err(out_of_range("key rotation interval", &KEY_ROTATION_SECS));
        }
        spec.key_rotation_secs = wanted.formic.key_rotation_seconds as u32;
    }
    if let Some(names) = &wanted.formic.disabled_offloads {
        spec.disabled_offloads =
            Offloads::parse_list(&names.join(",")).map_err(|error| ApiError::bad_request(error.to_string()))?;
    }
    Ok(())
}

fn out_of_range(what: &str, range: &std::ops::RangeInclusive<u64>) -> ApiError {
    ApiError::bad_request(format!("invalid {what}: it must be {} to {} whole seconds", range.start(), range.end()))
}

pub(super) async fn join(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    if backend.swarm().state != SwarmState::Inactive {
        return Err(ApiError::unavailable(error::ALREADY_IN_SWARM));
    }
    let wanted: api::SwarmJoin = request.json(&schema::SWARM_JOIN)?;
    if wanted.remote_addrs.iter().all(String::is_empty) {
        return Err(ApiError::bad_request("at least 1 remote address is required to join"));
    }
    if wanted.join_token.is_empty() {
        return Err(ApiError::bad_request(
            "a join token is required to join: `swarm join-token worker` on a manager shows it",
        ));
    }
    let target = JoinTarget {
        listen_address: wanted.listen_addr,
        advertise_address: wanted.advertise_addr,
        data_path_address: wanted.data_path_addr,
        remotes: wanted.remote_addrs,
        token: wanted.join_token,
        availability: read_availability(&wanted.availability)?,
    };
    backend.join(target).await?;
    Ok(respond::empty(StatusCode::OK))
}

pub(super) async fn leave(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    if backend.swarm().state == SwarmState::Inactive {
        return Err(ApiError::unavailable(error::NOT_PART_OF_SWARM));
    }
    backend.leave(request.flag("force")).await?;
    Ok(respond::empty(StatusCode::OK))
}

pub(super) fn inspect(backend: &dyn Backend) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let (worker, manager) = backend.join_tokens().unwrap_or_default();
    Ok(respond::json(&api::Swarm { cluster: cluster_info(&state), join_tokens: api::JoinTokens { worker, manager } }))
}

/// The swarm as `info` and `swarm inspect` show it.
pub(super) fn cluster_info(state: &State) -> api::ClusterInfo {
    let cluster = &state.cluster;
    api::ClusterInfo {
        id: cluster.id.to_string(),
        version: api::ObjectVersion { index: cluster.version },
        created_at: time::rfc3339(cluster.created_at),
        updated_at: time::rfc3339(cluster.updated_at),
        spec: swarm_spec(&cluster.spec),
        data_path_port: cluster.spec.data_path_port,
        default_addr_pool: vec![cluster.spec.address_pool.to_string()],
        subnet_size: cluster.spec.subnet_prefix,
        tls_info: Roots::of(state).wanted(),
        root_rotation_in_progress: cluster.rotation.is_some(),
    }
}

fn swarm_spec(spec: &ClusterSpec) -> api::SwarmSpec {
    api::SwarmSpec {
        name: "default".into(),
        orchestration: api::Orchestration { task_history_retention_limit: Some(i64::from(spec.task_history)) },
        dispatcher: api::Dispatcher { heartbeat_period: u64::from(spec.heartbeat_secs) * NANOSECONDS },
        ca_config: api::CaConfig {
            node_cert_expiry: spec.certificate_secs.saturating_mul(NANOSECONDS),
            force_rotate: spec.force_rotate,
        },
        encryption_config: api::EncryptionConfig { auto_lock_managers: Some(spec.autolock) },
        formic: api::FormicSwarmSpec {
            key_rotation_seconds: u64::from(spec.key_rotation_secs),
            disabled_offloads: Some(spec.disabled_offloads.iter().map(|offload| offload.name().to_owned()).collect()),
        },
        ..api::SwarmSpec::default()
    }
}

pub(super) async fn update(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let fresh = |parameter: &str| request.flag(parameter).then(|| Zeroizing::new(crate::sys::random::bytes()));
    let mut tokens =
        NewTokens { worker: fresh("rotateWorkerToken"), manager: fresh("rotateManagerToken"), unlock: None };
    let version = request.version()?;
    let wanted = request.value()?;
    let current = serde_json::to_value(swarm_spec(&state.cluster.spec)).unwrap_or_default();
    refuse_other_changes(&wanted, &current, &mut Vec::new())?;
    let mut spec = state.cluster.spec.clone();
    apply_settings(&mut spec, &super::request::from_value(wanted)?)?;
    if request.flag("rotateManagerUnlockKey") || (spec.autolock && state.unlock_key().is_none()) {
        tokens.unlock = Some(Zeroizing::new(crate::sys::random::bytes()));
    }
    let mut root = None;
    if spec.force_rotate != state.cluster.spec.force_rotate {
        root = Some(backend.new_root()?);
        // The old tokens name the old root.
        let fresh = || Some(Zeroizing::new(crate::sys::random::bytes()));
        tokens = NewTokens { worker: fresh(), manager: fresh(), ..tokens };
    }
    backend.propose(Command::UpdateCluster { version, spec, tokens, root }).await?;
    Ok(respond::empty(StatusCode::OK))
}

/// What an operator is to know of the lock.
pub(super) fn lock_warning(state: &State) -> Option<&'static str> {
    let cluster = &state.cluster;
    cluster.next_unlock_key.as_ref()?;
    Some(if cluster.lock.key.is_some() {
        "the unlock key was replaced, and the former one is in force until the new one has been shown: see 'swarm unlock-key'"
    } else {
        "autolock is on, and the managers are not locked until the unlock key has been shown: see 'swarm unlock-key'"
    })
}

/// Pause before the managers are told again that an unlock key was shown.
const UNLOCK_KEY_RETRY: Duration = Duration::from_secs(1);

/// Shows the unlock key. The managers lock their files with it when it has been shown.
pub(super) fn unlock_key(context: &Arc<Context>, request: &Request) -> Result<respond::Response, ApiError> {
    let state = manager_state(&*context.backend)?;
    let Some(key) = state.unlock_key() else {
        return Ok(respond::json(&api::UnlockKey::default()));
    };
    // A HEAD shows nothing.
    if state.cluster.next_unlock_key.is_some() && request.method == Method::GET {
        let (own, key) = (context.clone(), key.clone());
        // It begins when this answer has been written. Whatever becomes of the leader meanwhile, the files do not stay open.
        let job = async move {
            let is_next = |state: &State| state.cluster.next_unlock_key.as_ref() == Some(&key);
            while manager_state(&*own.backend).is_ok_and(|state| is_next(&state)) {
                match own.backend.propose(Command::UnlockKeySeen { key: key.clone() }).await {
                    Ok(_) => return,
                    Err(error) => tracing::warn!(%error, "the managers are not locked yet: trying again"),
                }
                smol::Timer::after(UNLOCK_KEY_RETRY).await;
            }
            if manager_state(&*own.backend).is_ok_and(|state| state.unlock_key() != Some(&key)) {
                tracing::warn!("an unlock key was replaced right after it was shown: the new one is to be asked for");
            }
        };
        let waiting = context.jobs.try_send(Box::pin(job));
        waiting.map_err(|_| ApiError::unavailable("the daemon is too busy: try again"))?;
    }
    Ok(respond::json(&api::UnlockKey { unlock_key: UnlockKey(key.clone()).to_string() }))
}

pub(super) async fn unlock(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    if !matches!(backend.swarm().state, SwarmState::Locked) {
        manager_state(backend)?;
        return Err(NodeError::NotLocked.into());
    }
    let wanted: api::UnlockKey = request.json(&schema::SWARM_UNLOCK)?;
    let key =
        wanted.unlock_key.trim().parse().map_err(|error: NotAnUnlockKey| ApiError::bad_request(error.to_string()))?;
    backend.unlock(key).await?;
    Ok(respond::empty(StatusCode::OK))
}

/// The settings that may be changed.
const CHANGEABLE: [[&str; 2]; 7] = [
    ["Dispatcher", "HeartbeatPeriod"],
    ["CAConfig", "NodeCertExpiry"],
    ["CAConfig", "ForceRotate"],
    ["Orchestration", "TaskHistoryRetentionLimit"],
    ["EncryptionConfig", "AutoLockManagers"],
    ["Formic", "KeyRotationSeconds"],
    ["Formic", "DisabledOffloads"],
];

/// Refuses what differs from the settings as they are, but for those of [`CHANGEABLE`]: the client sends them all.
fn refuse_other_changes<'a>(wanted: &'a Value, current: &Value, path: &mut Vec<&'a str>) -> Result<(), ApiError> {
    if super::allow::is_default(wanted) || wanted == current || CHANGEABLE.iter().any(|changeable| path == changeable) {
        return Ok(());
    }
    let Value::Object(members) = wanted else {
        return Err(ApiError::bad_request(format!(
            "unsupported change of {}: it cannot be changed yet",
            path.join(".")
        )));
    };
    members.iter().try_for_each(|(name, member)| {
        path.push(name);
        let result = refuse_other_changes(member, current.get(name).unwrap_or(&Value::Null), path);
        path.pop();
        result
    })
}
