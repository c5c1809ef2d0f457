//! Errors as Docker's clients expect them: a status code and one text.

use crate::agent::NodeError;
use crate::cluster::Refusal;
use crate::manager::ManagerError;
use hyper::StatusCode;

/// This node is in no swarm.
pub(super) const NOT_IN_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";

/// This node is a worker.
pub(super) const WORKER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.";

/// `swarm init` or `join` in a swarm.
pub(super) const ALREADY_IN_SWARM: &str =
    "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.";

/// `swarm leave` outside.
pub(super) const NOT_PART_OF_SWARM: &str = "This node is not part of a swarm";

/// A refusal or failure with its HTTP status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, message)
    }

    pub(super) fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub(super) fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(super) fn not_implemented(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_IMPLEMENTED, message)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let status = match &refusal {
            Refusal::NotFound { .. } => StatusCode::NOT_FOUND,
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Invalid(_) | Refusal::OutOfSequence | Refusal::NotNow(_) => StatusCode::BAD_REQUEST,
            Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
        };
        ApiError::new(status, refusal.to_string())
    }
}

impl From<ManagerError> for ApiError {
    fn from(error: ManagerError) -> ApiError {
        match error {
            ManagerError::Refused(refusal) => refusal.into(),
            ManagerError::Unavailable(_)
            | ManagerError::NoLeader
            | ManagerError::NotLeader
            | ManagerError::LeadLost
            | ManagerError::Stalled(_)
            | ManagerError::Interrupted(_) => ApiError::unavailable(error.to_string()),
            ManagerError::Broken(_)
            | ManagerError::Store(_)
            | ManagerError::Listen { .. }
            | ManagerError::Certificate(_) => ApiError::internal(error.to_string()),
        }
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> ApiError {
        let status = match &error {
            NodeError::Invalid(_) => StatusCode::BAD_REQUEST,
            NodeError::Forbidden(_) => StatusCode::FORBIDDEN,
            NodeError::NotFound(_) => StatusCode::NOT_FOUND,
            NodeError::Unavailable(_) | NodeError::Locked | NodeError::Disk(_) => StatusCode::SERVICE_UNAVAILABLE,
            NodeError::WrongKey(_) => StatusCode::UNAUTHORIZED,
            NodeError::NotLocked => StatusCode::CONFLICT,
            NodeError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error.to_string())
    }
}
