//! Where partitions go on by their windows, where whatever handles the messages keeps some: in its own transactions, beside its effects.
//!
//! A window's row wins over the group's offset, which is committed later, and which anybody can set. It says where to go on, and, in its note, which message
//! is below that: the same text that a commit carries as its metadata.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::warn;

use super::look::Place;
use crate::frontier::Epoch;
use crate::store::StoreError;

/// For how long a database that is away is asked for the windows of an assignment. Meanwhile nothing is polled: well below the shortest
/// `max.poll.interval.ms` that anybody sets.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long after that an answer may still come.
const MARGIN: Duration = Duration::from_secs(5);
/// Time between two tries.
const AGAIN: Duration = Duration::from_millis(200);

/// A window as its row has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The first offset that is not finished; `None` if nothing is known of the partition.
    pub next: Option<i64>,
    /// What was noted with it.
    pub note: Option<String>,
}

/// What is to be noted when a window moves so far.
pub(super) type Note = Arc<dyn Fn(i64) -> Option<String> + Send + Sync>;

/// The answer of a database.
pub(super) type Raising<'a> = Pin<Box<dyn Future<Output = Result<Vec<Standing>, StoreError>> + Send + 'a>>;

/// Whoever keeps windows.
pub trait Windows: Send + Sync {
    /// These partitions are ours: raises their fences, so that nobody else's transaction moves them any more, and says how they stand.
    fn assigned<'a>(&'a self, places: &'a [Place]) -> Raising<'a>;

    /// An assignment begins under the window that was raised last. Reading begins at `at`, if that is elsewhere than the row says;
    /// `note` says what to note whenever the row moves. What was delivered under an earlier assignment is not its business.
    fn begin(&self, place: &Place, epoch: Epoch, at: Option<i64>, note: Note);

    /// A partition is not ours any more.
    fn over(&self, place: &Place);

    /// Whether what it keeps outlives this process: then it wins over the group's offset even where that is further on.
    fn is_durable(&self) -> bool {
        true
    }

    /// Whom to tell of partitions whose fence was raised by another process.
    fn watch(&self, fenced: Fenced);
}

/// Hears of a partition whose fence was raised by another process.
pub(super) type Fenced = Arc<dyn Fn(&str, i32) + Send + Sync>;

/// Windows, and the runtime that their database is asked on.
#[derive(Clone)]
pub(super) struct Windowed {
    pub(super) windows: Arc<dyn Windows>,
    pub(super) runtime: Handle,
}

impl fmt::Debug for Windowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windowed").finish_non_exhaustive()
    }
}

impl Windowed {
    /// Raises the fences of partitions that are about to be ours, from a thread that may wait.
    ///
    /// Without their windows nothing of them may be handled: what had been would be handled again, or what had not be passed. So a
    /// database that is away for too long is an error.
    pub(super) fn raise(&self, places: &[Place]) -> Result<Vec<Standing>, StoreError> {
        let (tell, told) = mpsc::channel();
        let (windows, places) = (Arc::clone(&self.windows), places.to_vec());
        // In a task, so that a call that takes too long is never dropped in the middle.
        self.runtime.spawn(async move {
            let until = Instant::now() + PATIENCE;
            let mut said = false;
            loop {
                match windows.assigned(&places).await {
                    Err(error) if error.is_retryable() && Instant::now() < until => {
                        if !std::mem::replace(&mut said, true) {
                            warn!(%error, "the windows of the assigned partitions could not be read; tried again");
                        }
                        tokio::time::sleep(AGAIN).await;
                    }
                    answer => return tell.send(answer),
                }
            }
        });
        told.recv_timeout(PATIENCE + MARGIN).unwrap_or_else(|_| {
            Err(StoreError::unavailable("database", "read windows", "it did not answer, or the runtime was shut down"))
        })
    }
}
