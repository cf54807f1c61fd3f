//! Why a message was not finished.

use std::fmt;

use super::outcome::Misuse;
use crate::identity::IdentityError;
use crate::record::Seen;
use crate::store::StoreError;
use crate::wrapper::{At, BatchDone, Done, Failure, conflict};

/// Why a message was not finished. None of these may be committed to Kafka. Closed: match on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransactError<E: fmt::Debug + fmt::Display> {
    /// The handler failed, and [`Retry::none`](crate::Retry::none) leaves it to you to deliver the message again. Its effects are gone and its
    /// attempt is recorded. Retryable.
    #[error("{0}")]
    Handler(Failure<E>),
    /// The handler's transaction was not what it was when it was handed out. Retryable, but for [`Misuse::Ended`].
    #[error("{at}: {misuse}")]
    Misused {
        /// The message.
        at: At,
        /// What happened to the transaction.
        misuse: Misuse,
    },
    /// The database could not be asked, for longer than [`store_patience`](super::TransactionalBuilder::store_patience). Nothing was committed, or
    /// it is not known: hand the message in again, and it is found out. Retryable if [`StoreError::is_retryable`].
    #[error(transparent)]
    Database(StoreError),
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
    /// The number that its producer gave it is so far below the highest one that nobody can tell whether it was handled. Not retryable.
    #[error(
        "{at}: its number is too far below the highest of its source to tell whether it was handled: give the identity a longer span, or set `on_too_old`"
    )]
    TooOld {
        /// The message.
        at: At,
    },
    /// Its offset is one that was finished, and it cannot be told to be the message that was: it is younger than all that were, or has no time.
    /// The topic was made anew, or moved, and its messages would be skipped. Not retryable: find out, and then let
    /// another handler's name in the scope begin a new window, or say [`trust_offsets`](super::TransactionalBuilder::trust_offsets).
    #[error(
        "{at}: this offset was finished, but maybe by another message: was the topic made anew? Name another handler in the scope, \
         which begins a new window, or say `trust_offsets`"
    )]
    OtherMessage {
        /// The message.
        at: At,
    },
    /// It was handed in behind messages of its partition that come after it, when those were finished: the window has moved past it. Not
    /// retryable. Hand in the messages of a partition in the order in which they were delivered, side by side if you like.
    #[error(
        "{at}: handed in after later messages of its partition were finished, whose window has moved past it: hand them in in order"
    )]
    OutOfOrder {
        /// The message.
        at: At,
    },
    /// Another process holds the partition now. Nothing of the message was written here. Retryable after
    /// [`assigned`](super::Transactional::assigned) was told that the partition is this process's again.
    #[error("{at}: another process holds the partition: its fence was raised")]
    Fenced {
        /// The message.
        at: At,
    },
    /// Not begun, since an earlier message of its batch is not finished. Retryable.
    #[error("not begun, since an earlier message of the batch is not finished")]
    NotBegun,
}

impl<E: fmt::Debug + fmt::Display> TransactError<E> {
    /// Whether handling the same message again can help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Handler(_) | Self::NotBegun | Self::Fenced { .. } => true,
            Self::Misused { misuse, .. } => !matches!(misuse, Misuse::Ended),
            Self::Database(error) => error.is_retryable(),
            Self::Identity { .. }
            | Self::Conflict { .. }
            | Self::TooOld { .. }
            | Self::OtherMessage { .. }
            | Self::OutOfOrder { .. } => false,
        }
    }
}

/// What became of a message.
pub type Transacted<T, E> = Result<Done<T, E>, TransactError<E>>;

/// What became of each message of a batch.
pub type TransactBatch<T, E> = BatchDone<T, E, TransactError<E>>;
