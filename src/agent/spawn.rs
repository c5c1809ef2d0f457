//! The one way to start a background task: a dropped smol `Task` cancels, and a bare `detach` hides its end.

/// Runs the future on the executor to its end; its name is in the log when it panics or is slow to die.
pub(crate) fn spawn(name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
    smol::spawn(async move {
        future.await;
        tracing::trace!(name, "background task ended");
    })
    .detach();
}
