//! What travels as JSON: the subset of the Docker Engine API that Formic speaks, and its own additions.
//! Plain values for server and client alike; no checks (those are the server's).

mod docker;
mod formic;

pub use docker::*;
pub use formic::*;

/// The newest version of the Docker Engine API that is spoken.
pub const API_VERSION: ApiVersion = ApiVersion { major: 1, minor: 50 };

/// The oldest.
pub const MIN_API_VERSION: ApiVersion = ApiVersion { major: 1, minor: 40 };

/// A version of the Docker Engine API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Before the point.
    pub major: u32,
    /// After it.
    pub minor: u32,
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
