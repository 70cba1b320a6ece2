//! What comes back from the thread: awaited in a task, or waited for on a thread.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::StateDirError;

/// The outcome of a request, which is under way whether or not anybody waits for it.
#[derive(Debug)]
#[must_use = "only the answer says whether it is on disk"]
pub struct Answer<T>(pub(super) oneshot::Receiver<Result<T, StateDirError>>);

impl<T> Answer<T> {
    /// Waits for it on a thread that does not belong to the runtime.
    ///
    /// # Errors
    /// As the request.
    pub fn wait(self) -> Result<T, StateDirError> {
        self.0.blocking_recv().unwrap_or(Err(StateDirError::Closed))
    }
}

impl<T> Future for Answer<T> {
    type Output = Result<T, StateDirError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(StateDirError::Closed)))
    }
}
