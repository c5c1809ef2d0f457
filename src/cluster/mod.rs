//! The replicated state of the swarm: `Command -> apply -> Effects`. Pure and deterministic: ids, keys and the time
//! of an entry come with the command, so that every manager that applies the same log holds the same state.
//!
//! - `state`: what is known: nodes, networks, services, tasks, the key ring.
//! - `command`: what may change it, and why a change is refused.
//! - `apply`: the only place that changes it.
//! - `ipam`: subnets of the pool, addresses of a subnet.
//! - `schedule`: which commands the wanted services ask for (`plan`): create, place, replace, forget tasks.
//! - `ring`: which commands the key life asks for (`plan`): draw, activate, retire.
//!
//! Not here: storage, sockets, clocks, signatures, certificates (all in `manager`).
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod apply;
mod command;
pub mod ring;
pub mod schedule;
mod state;
mod view;

pub use apply::StateError;
pub use command::{Command, Effect, Entry, Refusal, Reply};
pub use state::{
    CertificateAuthority, Cluster, EpochState, GoneNode, Network, Node, NodeState, Ring, RotationRequest, Service,
    State, Task,
};
pub use view::Needs;

/// Former boots of a node that are remembered: an older process would have to outlive that many restarts.
pub const FORMER_BOOTS: usize = 16;
