//! Formic: an encrypted overlay network for containers that needs no kernel module.

pub mod agent;
pub mod api;
pub mod cli;
pub mod cluster;
pub mod crypto;
pub mod daemon;
pub mod dataplane;
pub mod esp;
pub mod gossip;
pub mod helper;
pub mod keys;
pub mod manager;
pub mod offload;
pub mod overlay;
pub mod sim;
pub mod sys;
pub mod tls;
pub mod types;
pub mod wire;
