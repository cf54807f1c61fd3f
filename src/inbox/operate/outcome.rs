//! What an operator is answered.

use crate::record::Millis;

/// What requeueing a message came to. Closed: match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Requeued {
    /// It was failed or dead, and is received in this generation now, due at once. Also the answer to the same request asked again.
    Requeued {
        /// The new generation.
        generation: u32,
    },
    /// It is received already, and waits for its turn: nothing was changed.
    Waiting {
        /// Its generation.
        generation: u32,
    },
    /// Somebody is processing it: nothing was changed. Ask again when its run has ended.
    Processing {
        /// The end of the run's lease, in milliseconds since 1970 by the database's clock. A run that is over without having ended is taken
        /// back by any worker, soon after this.
        until: Millis,
    },
    /// It has succeeded: nothing was changed. What is to happen once more is [replayed](crate::Inbox::replay).
    Succeeded,
    /// It was erased, so that there is nothing to handle: nothing was changed.
    Erased,
    /// There is no such message in this inbox.
    Unknown,
}

/// What skipping a message came to. Closed: match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skipped {
    /// It was received or failed, and is dead now. Also the answer to the same request asked again.
    Skipped,
    /// It was dead already: nothing was changed.
    Dead,
    /// Somebody is processing it: nothing was changed.
    Processing {
        /// The end of the run's lease, in milliseconds since 1970 by the database's clock.
        until: Millis,
    },
    /// It has succeeded: nothing was changed.
    Succeeded,
    /// There is no such message in this inbox.
    Unknown,
}

/// What pausing or resuming came to. Closed: match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Switched {
    /// Done now. Also the answer to the same request asked again.
    Switched,
    /// It was so already: nothing was changed.
    Already,
}

/// What a replay came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Replayed {
    /// Messages that were succeeded or dead, and are received in a new generation now.
    pub replayed: u64,
    /// Messages left alone, since they are still to be handled, or being handled.
    pub open: u64,
    /// Messages left alone, since they were erased.
    pub erased: u64,
}

/// What an erasure came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Erased {
    /// Messages whose key, headers, payload, edits and error texts are gone now.
    pub erased: u64,
    /// How many of them were still to be handled, and are dead now.
    pub buried: u64,
    /// Messages that are being processed: **not** erased. Ask again after [`until`](Self::until).
    pub processing: u64,
    /// When the last of their leases ends, in milliseconds since 1970 by the database's clock.
    pub until: Option<Millis>,
}

/// What a purge by hand came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Removed {
    /// Messages that were succeeded or dead, and are forgotten now, with their identity and history.
    pub removed: u64,
    /// Messages left alone, since they are still to be handled, or being handled.
    pub open: u64,
}

/// How many messages are in each state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Census {
    /// Accepted, and never tried in this generation.
    pub received: u64,
    /// In a run's hands.
    pub processing: u64,
    /// Tried without success; to be tried again.
    pub failed: u64,
    /// Handled.
    pub succeeded: u64,
    /// Given up.
    pub dead: u64,
}

impl Census {
    /// Messages that are neither succeeded nor dead.
    #[must_use]
    pub const fn backlog(&self) -> u64 {
        self.received + self.processing + self.failed
    }

    /// All messages.
    #[must_use]
    pub const fn all(&self) -> u64 {
        self.backlog() + self.succeeded + self.dead
    }
}
