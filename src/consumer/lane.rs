//! A lane: the task that handles the messages of one partition, one after the other, for one epoch.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::bell::Bell;
use super::committer::{CommitOutcome, Ticket};
use super::handling::{Ending, Failure, Handling};
use super::message::Message;
use crate::frontier::{Epoch, Slot};

/// A message with its place in the frontier.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) message: Message,
    pub(super) slot: Slot,
}

/// What the Kafka thread hears.
#[derive(Debug)]
pub(super) enum Report {
    /// A message is finished: it may be committed when all before it are.
    Finished { slot: Slot, ending: Ending },
    /// The message at this place cannot be finished, and nothing behind it was begun.
    Failed { slot: Slot, offset: i64, failure: Failure },
    /// The lane is gone: nothing of this epoch runs any more.
    Ended { epoch: Epoch },
    /// The broker answered a commit.
    Committed { ticket: Ticket, outcomes: Vec<CommitOutcome> },
}

/// A lane, as the Kafka thread holds it.
#[derive(Debug)]
pub(super) struct Lane {
    runs: mpsc::UnboundedSender<Vec<Delivered>>,
    stop: CancellationToken,
    task: AbortHandle,
    /// It has reported its end.
    pub(super) ended: bool,
}

impl Lane {
    /// Starts the task of one epoch.
    pub(super) fn start<H: Handling>(runtime: &Handle, handling: Arc<H>, bell: Arc<Bell>, epoch: Epoch) -> Self {
        // Unbounded, but the Kafka thread takes nothing in while too much is unfinished.
        let (runs, waiting) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let farewell = Farewell { bell, epoch };
        let task = runtime.spawn(work(waiting, stop.clone(), handling, farewell)).abort_handle();
        Self { runs, stop, task, ended: false }
    }

    /// Hands messages over. A lane that is gone has said so, or will.
    pub(super) fn send(&self, run: Vec<Delivered>) {
        let _ = self.runs.send(run);
    }

    /// Lets the message that runs finish and begins no other.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Drops the handler where it waits. Its claim stays until its lease runs out.
    pub(super) fn abort(&self) {
        self.task.abort();
    }
}

/// Reports the lane's end however it ends: at its stop, by a panic, aborted, or with the runtime.
struct Farewell {
    bell: Arc<Bell>,
    epoch: Epoch,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.bell.report(Report::Ended { epoch: self.epoch });
    }
}

async fn work<H: Handling>(
    mut runs: mpsc::UnboundedReceiver<Vec<Delivered>>,
    stop: CancellationToken,
    handling: Arc<H>,
    farewell: Farewell,
) {
    let bell = Arc::clone(&farewell.bell);
    loop {
        let run = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            run = runs.recv() => run,
        };
        let Some(run) = run else { return };
        let (messages, slots): (Vec<Message>, Vec<Slot>) =
            run.into_iter().map(|delivered| (delivered.message, delivered.slot)).unzip();
        let mut finished = |at: usize, ending: Ending| {
            if let Some(slot) = slots.get(at).copied() {
                bell.report(Report::Finished { slot, ending });
            }
        };
        if let Err((at, failure)) = handling.handle(&messages, &stop, &mut finished).await {
            if let (Some(message), Some(slot)) = (messages.get(at), slots.get(at).copied()) {
                bell.report(Report::Failed { slot, offset: message.offset(), failure });
            }
            return;
        }
    }
}
