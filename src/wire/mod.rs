//! Bytes <-> values. Pure: no socket, clock or key life; what is parsed here is checked once and typed afterwards.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

pub mod control;
pub mod esp;
pub mod frame;
pub mod gossip;
pub mod ip;
pub mod record;
pub mod token;
