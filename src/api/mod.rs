//! The API of the daemon: a subset of the Docker Engine API over HTTP on a unix socket, and Formic's own additions
//! under `/formic/`.

pub mod server;
