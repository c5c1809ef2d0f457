//! Formic: an encrypted overlay network for containers that needs no kernel module.

pub mod crypto;
pub mod types;
