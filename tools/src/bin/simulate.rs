//! Runs simulated swarms, one for each seed. `cargo run --release -p tools --bin simulate -- --seeds 2000`
#![forbid(unsafe_code)]

use std::process::ExitCode;
use tools::simulate;

fn main() -> anyhow::Result<ExitCode> {
    let options: simulate::Options = argh::from_env();
    if options.worker { simulate::work(&options) } else { simulate::run(&options) }
}
