//! The `formic` program: a task's launcher, or the command line.

fn main() -> std::process::ExitCode {
    formic::helper::shim::run_if_shim();
    formic::cli::run(std::env::args_os().skip(1))
}
