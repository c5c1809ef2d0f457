//! The launcher of tasks.

/// Runs as a task's launcher when this process was executed as one, and never returns then. The first thing in
/// `main`.
pub fn run_if_shim() {}
