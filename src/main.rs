//! The `formic` program: a task's launcher, or the command line.

fn main() {
    formic::helper::shim::run_if_shim();
}
