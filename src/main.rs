//! The `formic` program: a task's launcher, or the command line.

/// What is freed is erased: keys, and copies of them that libraries make.
#[global_allocator]
static ALLOCATOR: formic::sys::erase::ErasingAllocator = formic::sys::erase::ErasingAllocator;

fn main() -> std::process::ExitCode {
    formic::helper::shim::run_if_shim();
    formic::cli::run(std::env::args_os().skip(1))
}
