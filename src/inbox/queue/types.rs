//! What is asked of the queue, and what it answers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::inbox::message::Message;
use crate::inbox::rules::Class;
use crate::level::Level;
use crate::record::Millis;

/// What a worker wants.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// Messages in one run.
    pub(crate) most: usize,
    /// Never two of one key at once, never out of order.
    pub(crate) by_key: bool,
    /// How long the run is this worker's, unless it prolongs it.
    pub(crate) lease: Duration,
    /// The worker, as operators are to read it; at most 512 bytes count.
    pub(crate) owner: Arc<str>,
    pub(crate) level: Level,
}

/// One message in a run's hands. Its attempt is counted, durably.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) id: i64,
    pub(crate) lane: i64,
    pub(crate) generation: u32,
    /// From 1.
    pub(crate) attempt: u32,
    /// Its place among what is ready: its priority.
    pub(crate) turn: i64,
    /// A run with it was lost: it is the only one in this run.
    pub(crate) alone: bool,
    pub(crate) message: Message,
}

/// Messages in one worker's hands.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The token too.
    pub(crate) number: i64,
    pub(crate) owner: Arc<str>,
    pub(crate) by_key: bool,
    /// By the database's clock.
    pub(crate) began: Millis,
    pub(crate) lease: Duration,
    /// Until when it was ours as it was taken, by this process's clock, on the safe side.
    pub(crate) until: Instant,
    /// It is not full, and there may be more all the same.
    pub(crate) more: bool,
    /// In the order in which they are to begin.
    pub(crate) taken: Vec<Taken>,
}

/// What came of taking.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub(crate) run: Option<Run>,
    /// Nothing is taken until an operator resumes it.
    pub(crate) paused: bool,
    /// Where there is no run: how long until the next waiting message is due, if one is known.
    pub(crate) due_in: Option<Duration>,
}

/// How one message of a run ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    /// Its place in [`Run::taken`].
    pub(crate) at: usize,
    pub(crate) how: How,
}

/// How a handler ended.
#[derive(Clone, Debug)]
pub(crate) enum How {
    Succeeded,
    /// To be tried again, after so long. [`Class::Unavailable`] gives the attempt back.
    Failed {
        class: Class,
        text: String,
        retry_in: Duration,
    },
    /// Given up.
    Dead {
        class: Class,
        text: String,
    },
    /// Never begun: free at once, and no attempt.
    Released,
}

/// What was written of an [`End`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// As asked.
    Written,
    /// Level L1: it succeeded, after its run was taken over. Recorded as such; it is not tried again in this generation.
    Late,
    /// The run holds it no longer, and nothing was written of it.
    Stale,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Runs whose lease was over.
    pub(crate) runs: u64,
    /// Their messages, each with an attempt burnt.
    pub(crate) lost: u64,
    /// How many of these are dead now.
    pub(crate) dead: u64,
    /// Messages that were waiting behind one that is gone, and are free now.
    pub(crate) woken: u64,
}
