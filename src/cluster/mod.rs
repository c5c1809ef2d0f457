//! The replicated state of the swarm: `Command -> apply -> Effects`. Pure and deterministic: ids, keys and the time
//! of an entry come with the command, so that every manager that applies the same log holds the same state.
//!
//! - `state`: what is known: nodes, networks, services, tasks, the key ring.
//! - `command`: what may change it, and why a change is refused.
//! - `apply`: the only way to change it; each noun's file holds its commands: `settings`, `nodes`, `keys`,
//!   `networks`, `services`, `tasks`, `standalone`.
//! - `roots`: the replacement of the root certificate, and of the key that signs records.
//! - `ipam`: subnets of the pool, addresses of a subnet.
//! - `schedule`: which commands the wanted services ask for (`plan`): create, place, replace, forget tasks.
//!   `suit`: which nodes suit a task.
//! - `rollout`: the replacement of a service's tasks after a change: the commands, and which task is next.
//! - `ring`: which commands the key life asks for (`plan`): draw, activate, retire.
//! - `limits`: the bounds of it all.
//! - `view`: what the dispatcher reads: a node's tasks, networks and peers.
//!
//! Invariants, held by every command and tested on random sequences of them:
//! - a refused command changes nothing but the index;
//! - an address has one owner, from its placement until its node confirms that the task is gone or is removed;
//! - a slot, or a node of a global service, has at most one live task; a task's state only moves forward;
//! - no placement takes more of a node than it has;
//! - at most three epochs, one a phase, their numbers rising from previous to next and never used again.
//!
//! Not here: storage, sockets, clocks, signatures, certificates (all in `manager`).
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod apply;
mod command;
mod exposure;
mod ipam;
mod keys;
pub mod limits;
mod lock;
mod networks;
mod nodes;
pub mod ring;
mod rollout;
mod roots;
pub mod schedule;
mod services;
mod settings;
mod standalone;
mod state;
mod suit;
mod tasks;
#[cfg(test)]
mod tests;
mod view;

pub use apply::StateError;
pub use command::{Command, Effect, Entry, NewRoot, NewTokens, Refusal, Reply};
pub use exposure::Exposure;
pub use settings::NewLife;
pub use state::{
    CertificateAuthority, Cluster, EpochState, FormerAttestation, FormerSpec, Freed, GoneNode, Lock, Manager, Network,
    Node, NodeState, Ring, Rollout, RolloutPhase, RootRotation, RotationRequest, Service, State, Task,
};
pub use view::Needs;
