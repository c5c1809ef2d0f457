//! The daemon: its options, and the start and stop of everything in it.

mod options;

pub use crate::types::Queues;
pub use options::{LogFormat, LogLevel, Offload, Options, OptionsError, PartialOptions};
mod run;
pub use run::run;
