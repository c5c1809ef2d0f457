//! The API of the daemon: a subset of the Docker Engine API over HTTP on a unix socket, and Formic's own additions
//! under `/formic/`.
//!
//! - `types`: what travels, as serde structures with Docker's field names.
//! - `server`: the socket, the way from a request to its handler, the handlers.
//! - `client`: what the command line uses.
//!
//! Invariant: a request is understood completely or refused. A field that Formic does not implement and that is not
//! at its default is refused by name, because ignoring it would do something else than what was asked for.

pub mod client;
pub mod server;
pub(crate) mod time;
pub mod types;
mod upgrade;
