//! Formic's own endpoints: images, status, keys.

use super::backend::Backend;
use super::error::ApiError;
use super::request::Request;
use super::{manager_state, names, respond, schema, time};
use crate::api::types::{ImageImport, KeyEpoch, KeyRing};
use crate::cluster::{Command, EpochState, State};
use crate::types::{EpochPhase, NodeId, UnixTime};
use hyper::StatusCode;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The image that is this host's own files.
const HOST_IMAGE: &str = "host:latest";

pub(super) async fn status(backend: &dyn Backend) -> Result<respond::Response, ApiError> {
    Ok(respond::json(&backend.status().await))
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
    KeyRing {
        rotation_secs: u64::from(state.cluster.spec.key_rotation_secs),
        requested_secs_ago: state.ring.request.map(|request| passed(request.at, now)),
        epochs: state.ring.epochs.iter().map(|epoch| describe_epoch(state, epoch, now)).collect(),
    }
}

fn describe_epoch(state: &State, epoch: &EpochState, now: UnixTime) -> KeyEpoch {
    // Until it is current, nodes are waited for to hold it; from then on, to send with it.
    let done = if epoch.phase == EpochPhase::Next { &epoch.ready } else { &epoch.sending };
    let late: BTreeSet<NodeId> = match epoch.phase {
        EpochPhase::Previous => BTreeSet::new(),
        EpochPhase::Current | EpochPhase::Next => epoch.participants.difference(done).copied().collect(),
    };
    let name = |id: &NodeId| state.nodes.get(id).map_or_else(|| id.to_string(), |node| node.hostname.clone());
    KeyEpoch {
        epoch: epoch.epoch.0,
        phase: phase_word(epoch.phase).into(),
        handed_out_secs_ago: passed(epoch.handed_out_at, now),
        activated_secs_ago: epoch.activated_at.map(|at| passed(at, now)),
        participants: epoch.participants.len() as u64,
        ready: epoch.ready.len() as u64,
        sending: epoch.sending.len() as u64,
        late: late.iter().map(name).collect(),
    }
}

fn phase_word(phase: EpochPhase) -> &'static str {
    match phase {
        EpochPhase::Previous => "previous",
        EpochPhase::Current => "current",
        EpochPhase::Next => "next",
    }
}

fn passed(since: UnixTime, now: UnixTime) -> u64 {
    now.0.saturating_sub(since.0)
}
