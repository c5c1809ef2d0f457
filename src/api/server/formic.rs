//! Formic's own endpoints: images, status, keys.

use super::backend::Backend;
use super::error::ApiError;
use super::request::Request;
use super::{lookup, manager_state, names, networks, respond, schema, time};
use crate::agent::AttachedNamespace;
use crate::api::types::{Attach, Attached, ImageImport, KeyEpoch, KeyRing, LateNode};
use crate::cluster::ring::{self, EpochLife};
use crate::cluster::{Command, State};
use crate::types::{EpochPhase, NodeId, UnixTime};
use hyper::StatusCode;
use std::path::PathBuf;

/// The image that is this host's own files.
const HOST_IMAGE: &str = "host:latest";

pub(super) async fn status(backend: &dyn Backend) -> Result<respond::Response, ApiError> {
    Ok(respond::json(&backend.status().await))
}

pub(super) async fn examine(backend: &dyn Backend) -> Result<respond::Response, ApiError> {
    Ok(respond::json(&backend.examine().await))
}

pub(super) async fn import(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let wanted: ImageImport = request.json(&schema::IMAGE_IMPORT)?;
    let name = image_name(&wanted.name)?;
    let directory = PathBuf::from(&wanted.directory);
    if !directory.is_absolute() {
        return Err(ApiError::bad_request(format!("invalid directory {:?}: it must be absolute", wanted.directory)));
    }
    let image = backend.import_image(name, directory).await?;
    Ok(respond::json_with(StatusCode::CREATED, &image))
}

fn image_name(name: &str) -> Result<String, ApiError> {
    let name = names::normalise_image(name)?;
    if name == HOST_IMAGE {
        return Err(ApiError::forbidden("the image host is this host's own files: it is neither imported nor removed"));
    }
    Ok(name)
}

pub(super) async fn images(backend: &dyn Backend) -> Result<respond::Response, ApiError> {
    Ok(respond::json(&backend.images().await?))
}

pub(super) async fn remove_image(backend: &dyn Backend, name: &str) -> Result<respond::Response, ApiError> {
    backend.remove_image(image_name(name)?).await?;
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

/// Puts a namespace on a network.
pub(super) async fn attach(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let Attach { netns, network, address, aliases } = request.json(&schema::ATTACH)?;
    let network = lookup::network_name(&networks::known_names(backend), &network)?;
    networks::require_attachable(&network)?;
    let address = match address.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| ApiError::bad_request(format!("invalid address {text:?}")))?),
    };
    let wanted = AttachedNamespace { namespace: netns, network: network.id, address, aliases };
    let task = backend.attach(wanted).await?;
    let address = task.attachments.first().map(|attachment| attachment.address.to_string());
    let attached = Attached { id: task.id.to_string(), address: address.unwrap_or_default() };
    Ok(respond::json_with(StatusCode::CREATED, &attached))
}

/// Takes it off again.
pub(super) async fn detach(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let text = |name| request.query(name).unwrap_or_default().to_owned();
    let network = lookup::network_name(&networks::known_names(backend), &text("network"))?;
    networks::require_attachable(&network)?;
    backend.detach(text("netns"), network.id).await?;
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

pub(super) fn keys(backend: &dyn Backend) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    Ok(respond::json(&describe(&state, time::now())))
}

pub(super) async fn rotate_keys(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    manager_state(backend)?;
    backend.propose(Command::RequestRotation { force: request.flag("force") }).await?;
    Ok(respond::empty(StatusCode::ACCEPTED))
}

/// The life of the ring, for people.
pub(super) fn describe(state: &State, now: UnixTime) -> KeyRing {
    let life = ring::key_life(state, now);
    let late = life.late.into_iter().map(|(node, reason)| LateNode {
        node: node.to_string(),
        hostname: state.nodes.get(&node).map(|node| node.hostname.clone()).unwrap_or_default(),
        reason,
    });
    KeyRing {
        rotation_secs: u64::from(life.interval_secs),
        requested_secs_ago: life.request.map(|request| now.0.saturating_sub(request.at.0)),
        epochs: life.epochs.iter().map(describe_epoch).collect(),
        late: late.collect(),
    }
}

fn describe_epoch(epoch: &EpochLife) -> KeyEpoch {
    let counted = |nodes: &[NodeId]| nodes.iter().filter(|node| epoch.participants.contains(node)).count() as u64;
    KeyEpoch {
        epoch: epoch.epoch.0,
        phase: phase_word(epoch.phase).into(),
        handed_out_secs_ago: epoch.age_secs,
        activated_secs_ago: epoch.active_secs,
        participants: epoch.participants.len() as u64,
        ready: counted(&epoch.ready),
        sending: counted(&epoch.sending),
    }
}

fn phase_word(phase: EpochPhase) -> &'static str {
    match phase {
        EpochPhase::Previous => "previous",
        EpochPhase::Current => "current",
        EpochPhase::Next => "next",
    }
}
