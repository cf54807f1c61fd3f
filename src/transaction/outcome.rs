//! What is run in a transaction, and what becomes of it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Database;

use super::windows::Held;
use crate::identity::{IdentityError, Key};
use crate::record::{Origin, Seen, Sighting};
use crate::store::StoreError;
use crate::store::sql::Fault;
use crate::wrapper::{ErrorClass, Failure, HandlerError};

/// A message, as the database knows it.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) origin: Origin,
    /// What Kafka says of its time, in milliseconds.
    pub(crate) stamp: Option<i64>,
    /// Its record, if it has one.
    pub(crate) record: Option<Sighting>,
    /// Its place in a window, if it has one.
    pub(crate) spot: Option<Spot>,
    /// What it must stay in order with; `None` if with nothing.
    pub(crate) row: Option<u64>,
    /// Which attempt this is, where nothing durable counts them.
    pub(crate) attempt: u32,
    /// It came behind one of its partition that was to come after it, and counts as finished only for that.
    pub(crate) stray: bool,
    /// Whose window speaks of it.
    pub(crate) held: Pinned,
}

/// Which window of its partition speaks of a message.
#[derive(Clone, Debug, Default)]
pub(crate) enum Pinned {
    /// The one that this process holds when it is asked.
    #[default]
    Free,
    /// The one that was held when the message's assignment began; `None` if that is over. A later one has not been told of what was
    /// delivered before it, and would take what is missing for finished.
    #[cfg_attr(not(feature = "kafka"), allow(dead_code))]
    To(Option<Arc<Held>>),
}

/// A message that was looked at.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// To be run.
    Item(Item),
    /// Without a usable identity: never to be run.
    Refused(IdentityError, Item),
}

/// A place in a window.
#[derive(Clone, Debug)]
pub(crate) enum Spot {
    /// Of its partition; the message's offset is in it.
    Position,
    /// Of a producer's source.
    Sequence { source: [u8; 16], number: u64, span: u32 },
}

impl Item {
    /// What the store knows it by.
    #[cfg_attr(not(feature = "kafka"), allow(dead_code))]
    pub(crate) fn key(&self) -> Option<Key> {
        self.record.as_ref().map(|record| record.key)
    }
}

/// What handles messages: the user's handler, and what it is given.
pub(crate) trait Work<DB: Database> {
    type Value;
    type Error: HandlerError;

    /// Whether it takes all messages at once.
    fn together(&self) -> bool;

    /// Whether its statements are this crate's own, none of which ends the transaction, and it answers with the error of each that is refused. So it can
    /// do without the batch's savepoint, by which that is found out.
    fn ends_nothing(&self) -> bool {
        false
    }

    /// Gets what it needs for so many messages, before each transaction, while no connection is held.
    fn ready(&self, _messages: usize) -> impl Future<Output = Result<(), StoreError>> {
        std::future::ready(Ok(()))
    }

    /// Whether the window may pass a message of which this came. Where it may not, the message is handled, and will be again.
    fn passes(&self, _: &Self::Value) -> bool {
        true
    }

    /// What the database is, where an error says nothing of the messages: everything is rolled back then, and none of them has failed.
    fn fault(&self, _: &Self::Error) -> Option<Fault> {
        None
    }

    /// Handles the messages at these places of the batch, and pushes a value for each. Not called at all for an attempt that was decided
    /// otherwise; called again where a transaction was rolled back.
    fn run(
        &self,
        places: &[usize],
        conn: &mut DB::Connection,
        into: &mut Vec<Self::Value>,
    ) -> impl Future<Output = Result<(), Self::Error>>;
}

/// What became of a message.
#[derive(Debug)]
pub(crate) enum Outcome<T, E> {
    /// Handled, and remembered with its effects.
    Handled(T),
    /// Not handled, since the database says this.
    Known(Known),
    /// Its attempt failed; its effects are gone, and the attempt is recorded.
    Failed(Failed<E>),
    /// An earlier one of its row failed, or waits.
    NotBegun,
    /// Its partition belongs to another process now: nothing of it was written here.
    Fenced,
    /// The database could not be asked, for too long, or refused.
    Unknown(StoreError),
}

/// Why a message is not handled.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// Handled before, at this place; `None` where only a window knows it.
    Redelivered(Option<Seen>),
    /// Handled before: another message with the same identity, or number.
    SameId(Option<Seen>),
    /// Somebody else is handling it.
    InFlight { remaining: Duration },
    /// Failed, and not due.
    NotDue { remaining: Duration },
    /// Given up.
    Dead { attempts: u32 },
    /// Another message took its identity.
    Conflict { first: Seen },
    /// Its number is so far below the highest of its source that nobody can tell.
    TooOld,
}

impl Known {
    /// The same, as the answer to a claim.
    #[cfg(feature = "kafka")]
    pub(crate) const fn answer(&self) -> crate::engine::Answer {
        use crate::engine::Answer;
        match self {
            Self::Redelivered(_) => Answer::Redelivered,
            Self::SameId(_) => Answer::SameId,
            Self::InFlight { remaining } => Answer::InFlight { remaining: *remaining },
            Self::NotDue { remaining } => Answer::NotDue { remaining: *remaining },
            Self::Dead { .. } => Answer::Dead,
            Self::Conflict { .. } | Self::TooOld => Answer::Conflict,
        }
    }
}

/// A failed attempt.
#[derive(Debug)]
pub(crate) struct Failed<E> {
    pub(crate) why: Why<E>,
    /// Which attempt it was, from 1, as the database counts them.
    pub(crate) attempt: u32,
    pub(crate) retry_in: Duration,
    /// Recorded as dead.
    pub(crate) dead: bool,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Why<E> {
    /// The handler's own failure.
    Handler(Failure<E>),
    /// The handler's transaction was not what it was when it was handed out.
    Misused(Misuse),
}

/// What a handler did to its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misuse {
    /// It ended the transaction by a statement of its own, or left one of its own open. What it wrote may have been committed without being
    /// remembered.
    Ended,
    /// It returned well although one of its statements had been refused, so that nothing it wrote can be committed.
    Swallowed,
    /// The database refused to commit what it wrote, as a deferred constraint does.
    Refused,
}

impl std::fmt::Display for Misuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ended => {
                "the handler ended its transaction, or left one of its own open: it must neither commit nor roll back, and what it wrote \
                 may stand without being remembered"
            }
            Self::Swallowed => {
                "the handler returned well although a statement of its transaction had been refused: return that error"
            }
            Self::Refused => "the database refused to commit what the handler wrote",
        })
    }
}

impl<E: HandlerError> Why<E> {
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            Self::Handler(failure) => failure.class(),
            Self::Misused(Misuse::Ended) => ErrorClass::Fatal,
            Self::Misused(_) => ErrorClass::Retryable,
        }
    }
}

#[cfg(feature = "kafka")]
impl<E: HandlerError> Failed<E> {
    /// The same, as a consumer notes it.
    pub(crate) fn fault(&self) -> Box<crate::wrapper::drive::Fault> {
        use crate::wrapper::drive::Fault;
        match &self.why {
            Why::Handler(failure) => Fault::of(failure),
            Why::Misused(misuse) => {
                let mut fault = Fault::new("transaction", misuse.to_string());
                fault.class = self.why.class();
                fault
            }
        }
    }
}
