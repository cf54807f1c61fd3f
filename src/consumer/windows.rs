//! Where partitions go on by their windows, where whatever handles the messages keeps some: in its own transactions, beside its effects.
//!
//! A window's row wins over the group's offset, which is committed later, and which anybody can set. It says where to go on, and, in its note, which message
//! is below that: the same text that a commit carries as its metadata.

use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::look::Place;
use crate::frontier::Epoch;
use crate::store::StoreError;

/// For how long windows are waited for by the thread that polls.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Time between two tries, at first and at most.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(2);

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

/// Windows that a database was asked for, until it answers. Dropped, it is not asked again.
#[derive(Debug)]
pub(super) struct Asking {
    /// Whose windows. Those that are not wanted any more stay in it.
    pub(super) places: Vec<Place>,
    /// Those that still are.
    pub(super) wanted: HashSet<Place>,
    /// Kafka was told to fetch nothing of them meanwhile.
    pub(super) paused: bool,
    told: mpsc::Receiver<Result<Vec<Standing>, StoreError>>,
    _waits: Arc<()>,
}

impl Asking {
    fn of(places: Vec<Place>, told: mpsc::Receiver<Result<Vec<Standing>, StoreError>>, waits: Arc<()>) -> Self {
        let wanted = places.iter().cloned().collect();
        Self { places, wanted, paused: false, told, _waits: waits }
    }

    /// What was answered already, to be taken in later.
    pub(super) fn answered(places: Vec<Place>, standings: Vec<Standing>) -> Self {
        let (tell, told) = mpsc::channel();
        let _ = tell.send(Ok(standings));
        Self::of(places, told, Arc::default())
    }

    /// The answer, if it comes in time. An error is one that does not pass.
    pub(super) fn answer(&self, wait: Duration) -> Option<Result<Vec<Standing>, StoreError>> {
        match self.told.recv_timeout(wait) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(StoreError::unavailable("database", "read windows", "the runtime was shut down")))
            }
        }
    }
}

impl Windowed {
    /// Raises the fences of partitions that are about to be ours, for a thread that may wait a little, and not as long as a database may be away: `Err` is
    /// for those whose answer has not come yet.
    ///
    /// Without their windows nothing of them may be handled: what had been would be handled again, or what had not be passed.
    pub(super) fn raise(&self, places: &[Place]) -> Result<Result<Vec<Standing>, StoreError>, Asking> {
        let asking = self.ask(places.to_vec());
        asking.answer(AT_ONCE).ok_or(asking)
    }

    fn ask(&self, places: Vec<Place>) -> Asking {
        let (tell, told) = mpsc::channel();
        let waits = Arc::new(());
        let wanted = Arc::downgrade(&waits);
        let (windows, asked) = (Arc::clone(&self.windows), places.clone());
        // In a task, so that a call that takes too long is never dropped in the middle.
        self.runtime.spawn(async move {
            let mut pause = AGAIN;
            let mut away = None;
            loop {
                match windows.assigned(&asked).await {
                    Err(error) if error.is_retryable() => {
                        if away.is_none() {
                            away = Some(Instant::now());
                            warn!(%error, "the windows of the assigned partitions could not be read: nothing of them is handled until they are; tried again");
                        }
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(AGAIN_MOST);
                        if wanted.strong_count() == 0 {
                            return;
                        }
                    }
                    answer => {
                        if let (Some(away), Ok(_)) = (away, &answer) {
                            info!(after = ?away.elapsed(), "the windows of the assigned partitions are read");
                        }
                        let _ = tell.send(answer);
                        return;
                    }
                }
            }
        });
        Asking::of(places, told, waits)
    }
}
