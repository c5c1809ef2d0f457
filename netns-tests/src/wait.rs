//! Waiting for a state, never for a time.

use std::time::{Duration, Instant};

/// Between two looks: short against every deadline in the tests, long against the cost of a look.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until the closure has a value. Panics with `what` and the last reason when the deadline passes first.
#[track_caller]
pub fn wait_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return value,
            Err(reason) if start.elapsed() >= deadline => panic!("{what}: not within {deadline:?}: {reason}"),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// `Ok` if so, else the reason: for closures of [`wait_until`].
pub fn so(condition: bool, reason: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(reason()) }
}
