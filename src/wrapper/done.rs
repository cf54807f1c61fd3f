//! What handling a message came to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::class::Failure;
use crate::identity::IdentityError;
use crate::record::{Origin, Seen};
use crate::store::StoreError;

/// What handling a message came to. Closed: match on it, or ask [`may_commit`](Self::may_commit).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "says whether the message's offset may be committed"]
pub enum Done<T, E> {
    /// Handled now, and remembered.
    Handled(T),
    /// Handled before.
    Duplicate {
        /// What the handler returned then, if it was kept.
        value: Option<T>,
        /// Which message was handled then, and when.
        first: Seen,
    },
    /// The identity was used by a message that said something else; skipped, as [`OnConflict::Skip`](crate::OnConflict::Skip) says.
    Conflict {
        /// The message that took the identity first.
        first: Seen,
    },
    /// Given up after its attempts, or as fatal; remembered as dead.
    Dead {
        /// Attempts made.
        attempts: u32,
        /// The last failure, if it happened now; `None` for a message that was dead before.
        error: Option<Failure<E>>,
    },
    /// Somebody else is still handling it, longer than this call may wait. **Not to be committed.**
    InFlight {
        /// For how long their lease still runs; zero if that is not known.
        remaining: Duration,
    },
    /// Failed before and not due yet, where [`Retry::none`](crate::Retry::none) forbids waiting. **Not to be committed.**
    NotDue {
        /// How long until it is due.
        remaining: Duration,
    },
}

impl<T, E> Done<T, E> {
    /// Whether the message is finished, so that its offset may be committed.
    ///
    /// If not, nothing after it in its partition may be committed either: seek back to it, or end the loop and let it
    /// be delivered again.
    #[must_use]
    pub const fn may_commit(&self) -> bool {
        match self {
            Self::Handled(_) | Self::Duplicate { .. } | Self::Conflict { .. } | Self::Dead { .. } => true,
            Self::InFlight { .. } | Self::NotDue { .. } => false,
        }
    }

    /// The handler's result, of now or kept from then.
    pub fn into_value(self) -> Option<T> {
        match self {
            Self::Handled(value) => Some(value),
            Self::Duplicate { value, .. } => value,
            _ => None,
        }
    }
}

/// Why a message was not finished. None of these may be committed. Closed: match on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandleError<E: fmt::Debug + fmt::Display> {
    /// The handler failed, and [`Retry::none`](crate::Retry::none) leaves it to you to deliver the message again. Retryable.
    #[error("{0}")]
    Handler(Failure<E>),
    /// The handler failed after it had lost its lease: another owner handles the message, or did. Retryable: ask again.
    #[error("the lease was lost while the handler ran, which then failed: {0}")]
    LeaseLost(Failure<E>),
    /// The store could not be asked, for longer than [`store_patience`](crate::OnceBuilder::store_patience). Retryable if
    /// [`StoreError::is_retryable`].
    ///
    /// If it failed at [`Stage::Settle`] the handler has run. The wrapper remembers how it ended, and tells the store
    /// before it handles this message again: so hand it the message again, and commit when it says so.
    #[error("{stage}: {error}")]
    Store {
        /// What was being done.
        stage: Stage,
        /// The store's error.
        error: StoreError,
    },
    /// The message has no usable identity. Not retryable.
    #[error("{at}: {error}")]
    Identity {
        /// The message.
        at: At,
        /// What is wrong with it.
        error: IdentityError,
    },
    /// The identity was used by a message that said something else. Not retryable.
    #[error("{}", conflict(.at, .first))]
    Conflict {
        /// The message.
        at: At,
        /// The message that took the identity first.
        first: Seen,
    },
    /// Not begun, since an earlier message of its batch failed. Retryable.
    #[error("not begun, since an earlier message of the batch failed")]
    NotBegun,
}

impl<E: fmt::Debug + fmt::Display> HandleError<E> {
    /// Whether handling the same message again can help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Handler(_) | Self::LeaseLost(_) | Self::NotBegun => true,
            Self::Store { error, .. } => error.is_retryable(),
            Self::Identity { .. } | Self::Conflict { .. } => false,
        }
    }
}

/// What an error says of a message that is in conflict with an earlier one.
pub(crate) fn conflict(at: &At, first: &Seen) -> String {
    format!("{at} {}", in_conflict(first))
}

/// The same of a message that was named before.
pub(crate) fn in_conflict(first: &Seen) -> String {
    let earlier = At(first.origin.clone());
    format!(
        "has the identity of {earlier}, and says something else: mend the producer, choose another identity, or \
         choose `OnConflict::Skip` or `OnConflict::Handle`"
    )
}

/// What was being done when the store failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Before the handler: it has not run.
    Claim,
    /// After the handler (before it, under at most once).
    Settle,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Claim => "the message could not be claimed and was not handled",
            Self::Settle => "the message could not be settled; how it ended is kept and told to the store later",
        })
    }
}

/// Where a message stood, for error messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct At(pub Origin);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { topic, partition, offset } = &self.0;
        if topic.is_empty() {
            f.write_str("the call")
        } else {
            write!(f, "the message at topic `{topic}`, partition {partition}, offset {offset}")
        }
    }
}

/// Why [`Once::call`](crate::Once::call) has no answer. Closed: match on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError<E: fmt::Debug + fmt::Display> {
    /// The call was not finished. See [`HandleError`].
    #[error(transparent)]
    Unfinished(#[from] HandleError<E>),
    /// Answered before, and the answer was not kept: turn on [`keep_results`](crate::OnceBuilder::keep_results). Not retryable.
    #[error("the call was answered before and its answer was not kept: build with `.keep_results(max_bytes)`")]
    NotKept {
        /// When it was answered.
        first: Seen,
    },
    /// The identity belongs to a call that said something else. Not retryable.
    #[error("the identity belongs to another call, which said something else")]
    Conflict {
        /// When that one was answered, or begun.
        first: Seen,
    },
    /// Given up after its attempts, or as fatal. Not retryable.
    #[error("the call was given up after {attempts} attempts{}", .error.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Dead {
        /// Attempts made.
        attempts: u32,
        /// The last failure, if it happened now.
        error: Option<Failure<E>>,
    },
    /// The same call is being handled elsewhere. Retryable.
    #[error("the same call is still being handled")]
    InFlight {
        /// For how long that lease still runs; zero if that is not known.
        remaining: Duration,
    },
    /// It failed before and is not due yet. Retryable.
    #[error("the call failed before and is due again in {remaining:?}")]
    NotDue {
        /// How long until it is due.
        remaining: Duration,
    },
}

impl<E: fmt::Debug + fmt::Display> CallError<E> {
    pub(super) fn answer<T>(done: Done<T, E>) -> Result<T, Self> {
        match done {
            Done::Handled(value) | Done::Duplicate { value: Some(value), .. } => Ok(value),
            Done::Duplicate { value: None, first } => Err(Self::NotKept { first }),
            Done::Conflict { first } => Err(Self::Conflict { first }),
            Done::Dead { attempts, error } => Err(Self::Dead { attempts, error }),
            Done::InFlight { remaining } => Err(Self::InFlight { remaining }),
            Done::NotDue { remaining } => Err(Self::NotDue { remaining }),
        }
    }

    /// Whether making the same call again may help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Unfinished(error) => error.is_retryable(),
            Self::InFlight { .. } | Self::NotDue { .. } => true,
            Self::NotKept { .. } | Self::Conflict { .. } | Self::Dead { .. } => false,
        }
    }
}

/// An offset to commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The offset to commit: one above the last message of the finished prefix.
    pub offset: i64,
}

/// What became of each message of a batch. `Why` says why one is not finished: [`HandleError`], or
/// `TransactError` from `Once::transactional`.
#[derive(Clone, Debug)]
#[must_use = "says what may be committed, and what is not finished"]
pub struct BatchDone<T, E: fmt::Debug + fmt::Display, Why = HandleError<E>> {
    outcomes: Vec<Result<Done<T, E>, Why>>,
    commits: Vec<Commit>,
}

impl<T, E: fmt::Debug + fmt::Display, Why> BatchDone<T, E, Why> {
    pub(crate) const fn new(outcomes: Vec<Result<Done<T, E>, Why>>, commits: Vec<Commit>) -> Self {
        Self { outcomes, commits }
    }

    /// What became of each message, in the order given.
    pub fn outcomes(&self) -> &[Result<Done<T, E>, Why>] {
        &self.outcomes
    }

    /// What became of each message, in the order given.
    pub fn into_outcomes(self) -> Vec<Result<Done<T, E>, Why>> {
        self.outcomes
    }

    /// For each topic and partition, the offset behind its finished prefix, in the order delivered. Offsets may have gaps.
    ///
    /// A partition whose first message is not finished is not named. Messages after an unfinished one are remembered
    /// all the same: delivered again, they come out as duplicates.
    #[must_use]
    pub fn commits(&self) -> &[Commit] {
        &self.commits
    }

    /// Whether every message may be committed.
    #[must_use]
    pub fn all_finished(&self) -> bool {
        self.outcomes.iter().all(finished)
    }

    /// The first message that is not finished, by its place in the batch.
    #[must_use]
    pub fn first_unfinished(&self) -> Option<usize> {
        self.outcomes.iter().position(|outcome| !finished(outcome))
    }
}

pub(crate) fn finished<T, E, Why>(outcome: &Result<Done<T, E>, Why>) -> bool {
    outcome.as_ref().is_ok_and(Done::may_commit)
}

/// What a shutdown left unsettled.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Unsettled {
    /// Messages that were handled and that the store does not know of: they will be handled again unless the store heard a
    /// call whose reply was lost.
    pub handled: Vec<Origin>,
    /// Claims that were not given back: they are free again when their leases run out.
    pub claims: usize,
}

impl Unsettled {
    /// Whether nothing was left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handled.is_empty() && self.claims == 0
    }
}
