//! Which commands the wanted services ask for.

use super::{Command, State};
use crate::types::{TaskId, UnixTime};

/// What to propose now, in order. Empty once all of it is applied. `ids` draws the ids of new tasks.
pub fn plan(state: &State, now: UnixTime, ids: &mut dyn FnMut() -> TaskId) -> Vec<Command> {
    let _ = (state, now, ids);
    Vec::new()
}
