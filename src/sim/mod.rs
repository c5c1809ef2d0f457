//! Simulation: whole swarms in one process, in virtual time, out of the production's own pure machines.
//!
//! For tests and tools only; the daemon does not use it. A run is determined by its seed: the network, the faults
//! and all "randomness" of the machines come from it, so a failure that prints its seed can be looked at again.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

pub mod gossip;
pub mod network;
pub mod swarm;

#[cfg(test)]
mod tests;
