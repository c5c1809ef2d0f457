//! The manager's futures: named, ended together, and none fails silently.

use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use smol::future::FutureExt as _;

#[derive(Default)]
struct Running {
    next: u64,
    tasks: HashMap<u64, smol::Task<()>>,
    stopped: bool,
}

/// A set of running futures. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct TaskSet(Arc<Mutex<Running>>);

impl TaskSet {
    /// Runs `work` until it ends or the set is stopped.
    pub(super) fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if running.stopped {
            return;
        }
        let id = running.next;
        running.next += 1;
        let set = Arc::downgrade(&self.0);
        let task = smol::spawn(async move {
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                tracing::error!(task = name, "panicked");
            }
            // Taken out under the lock, dropped outside of it.
            let own =
                set.upgrade().and_then(|set| set.lock().unwrap_or_else(PoisonError::into_inner).tasks.remove(&id));
            if let Some(own) = own {
                own.detach();
            }
        });
        running.tasks.insert(id, task);
    }

    /// Ends all of them and refuses new ones.
    pub(super) async fn stop(&self) {
        let tasks: Vec<_> = {
            let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            running.stopped = true;
            running.tasks.drain().map(|(_, task)| task).collect()
        };
        for task in tasks {
            task.cancel().await;
        }
    }
}
