//! Checks of the project's own rules, called by `scripts/check`. Each is a function from text to violations, so that
//! its tests can show it failing; the programs in `bin/` only read files and print.
//!
//! - [`source`]: Rust text without comments, strings and test modules.
//! - [`arrows`]: which module may use which, where `unsafe` may stand, how long a file may be.
//! - [`licences`]: which licences a dependency may have, and that each direct dependency is explained.
//!
//! [`manual`] makes the manual page and the completions of shells from the command line's own definition, for
//! `scripts/install`. And the benchmark, called by `scripts/bench`: [`mod@bench`], and many simulated swarms: [`simulate`].
//! And what other implementations of ESP are tried against: [`esp_peer`].
#![forbid(unsafe_code)]

pub mod arrows;
pub mod bench;
pub mod esp_peer;
pub mod licences;
pub mod manual;
pub mod simulate;
pub mod source;
