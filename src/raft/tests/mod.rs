//! Consensus on simulated clusters, and what its parts promise one by one.

mod chaos;
mod parts;
mod world;
