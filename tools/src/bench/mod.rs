//! The benchmark: Formic against what else carries packets between two hosts, on one machine, in one run.
//!
//! ```text
//! options -> for each underlay: lanes are set up side by side
//!              for each round, kind and lane: measure -> samples       (A B C, A B C, ...: what drifts, drifts for all)
//!         -> report: tables, goals, JSON; chart: SVG
//! ```
//! - [`lanes`]: the ways of a packet that are compared. [`measure`]: what is measured on one.
//! - [`probe`]: datagrams of our own, for round trips and packet rates. TCP is `iperf3`'s.
//! - [`idle`]: what a daemon costs that has nothing to do. [`micro`]: nanoseconds of single functions.
//!
//! Hosts and daemons are those of the tests (`netns_tests`); everything is in namespaces that end with this process.

pub mod chart;
pub mod goals;
pub mod idle;
pub mod lanes;
pub mod measure;
pub mod metric;
pub mod micro;
pub mod options;
pub mod probe;
pub mod procfs;
pub mod report;
pub mod stats;
