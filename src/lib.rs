//! Formic: an encrypted overlay network for containers that needs no kernel module.

pub mod agent;
pub mod cluster;
pub mod crypto;
pub mod esp;
pub mod manager;
pub mod types;
pub mod wire;
