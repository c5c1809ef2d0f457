//! Real daemons in real network namespaces, driven as users drive them: by the command line, by the real docker
//! client, by the API's socket. What is asserted is what a user, or an attacker on the underlay, can see.
//!
//! - [`Topology`]: hosts on one bridge, made for one test and gone with it.
//! - [`routed`]: hosts around a router, with ways that carry less than their ends.
//! - [`Host`]: one of them: commands, its daemon, its API.
//! - [`Swarm`]: a topology whose daemons are in one swarm; networks, services, tasks.
//! - [`Guest`]: a machine of its own, with another kernel.
//! - [`managers`]: several managers: terms, the key ring, whether all show the same.
//! - [`capture`]: what passes on a wire. [`traffic`]: pings and streams. [`attack`]: datagrams that nobody asked for.
//! - [`memory`]: what a daemon's memory holds.
//! - [`wait_until`]: no test sleeps and hopes.
//!
//! The tests need root, or a user namespace that makes them look so (`scripts/test` takes care), and the release
//! binary: `FORMIC_BIN`, or the newest one below `target/`.
#![forbid(unsafe_code)]

pub mod api;
pub mod attack;
pub mod binary;
pub mod capture;
pub mod guest;
pub mod host;
pub mod managers;
pub mod memory;
pub mod process;
pub mod routed;
pub mod swarm;
pub mod topology;
pub mod traffic;
pub mod wait;

pub use binary::formic;
pub use capture::{Capture, Packet};
pub use guest::Guest;
pub use host::Host;
pub use managers::Ring;
pub use process::Finished;
pub use swarm::{Swarm, Task};
pub use topology::Topology;
pub use wait::wait_until;
