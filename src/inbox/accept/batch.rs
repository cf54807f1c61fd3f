//! Around any loop: messages in.

use std::collections::BTreeSet;

use super::bring::{BringError, Brought, Refusal};
use crate::identity::IdentityError;
use crate::inbox::Inbox;
use crate::inbox::core::Core;
use crate::inbox::message::MessageId;
use crate::message::MessageView;
use crate::record::Seen;
use crate::retry::Retry;
use crate::store::StoreError;
use crate::store::sql::Fault;
use crate::transaction::intake::{Failed, Item, Known, Outcome, Prepared, Rules, Why, Work};
use crate::transaction::{Assigned, TransactionalDatabase};
use crate::wrapper::{At, Commit, Failure, commits, conflict};

/// What became of a message that was handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is in the table now, under this id.
    New(MessageId),
    /// It was accepted before, under this id: another copy of it, or the same one.
    Duplicate(MessageId),
    /// It was accepted before: the window of its partition says so.
    Redelivered,
    /// The identity stands under this id with something else, and [`OnConflict::Skip`](crate::OnConflict::Skip) passes it.
    Conflict(MessageId),
}

/// Why a message was not accepted. None of these may be committed to Kafka. Closed: match on it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AcceptError {
    /// The message has no usable identity. Not retryable.
    #[error("{at}: {error}")]
    Identity {
        /// The message.
        at: At,
        /// What is wrong with it.
        error: IdentityError,
    },
    /// Its payload is larger than those that are kept. Not retryable.
    #[error(
        "{at}: its payload has {bytes} bytes, and the inbox keeps {most}: raise `largest_payload`, or choose `Oversize::LeaveOut`"
    )]
    TooLarge {
        /// The message.
        at: At,
        /// Bytes of its payload.
        bytes: usize,
        /// Bytes of the largest that is kept.
        most: usize,
    },
    /// Key, headers and payload together are larger than what the database takes at once. Not retryable; with [`Oversize::LeaveOut`](super::Oversize::LeaveOut) the payload
    /// is left out instead, if the rest fits.
    #[error("{at}: its key, headers and payload have {bytes} bytes, and the database takes {most} at once: {cure}")]
    NoRoom {
        /// The message.
        at: At,
        /// Bytes of all its parts.
        bytes: usize,
        /// Bytes that the database takes.
        most: usize,
        /// What can be done about it.
        cure: &'static str,
    },
    /// The database takes this very message from nobody, by its own checks: see what it said. Others are accepted. Not retryable.
    #[error("{at}: {error}")]
    Unfit {
        /// The message.
        at: At,
        /// What the database said.
        error: StoreError,
    },
    /// The name of its topic has more than 255 bytes, or a zero in it. Not retryable.
    #[error("{at}: its topic's name has more than 255 bytes, or a zero in it")]
    Topic {
        /// The message.
        at: At,
    },
    /// The identity stands with something else. Not retryable.
    #[error("{}", conflict(.at, .first))]
    Conflict {
        /// The message.
        at: At,
        /// The message that took the identity first.
        first: Seen,
        /// Its id.
        id: MessageId,
    },
    /// Its offset was accepted, and it cannot be told to be the message that was: the topic was made anew, or moved. Not retryable; see
    /// [`TransactError::OtherMessage`](crate::TransactError::OtherMessage).
    #[error(
        "{at}: this offset was accepted, but maybe of another message: was the topic made anew? Name another handler in the scope, \
         which begins a new window, or say `trust_offsets`"
    )]
    OtherMessage {
        /// The message.
        at: At,
    },
    /// It was handed in behind messages of its partition that come after it. Not retryable: hand them in in order.
    #[error("{at}: handed in after later messages of its partition were accepted: hand them in in order")]
    OutOfOrder {
        /// The message.
        at: At,
    },
    /// Another process holds the partition now. Nothing of the message was written here. Retryable after
    /// [`assigned`](Inbox::assigned) was told that the partition is this process's again.
    #[error("{at}: another process holds the partition: its fence was raised")]
    Fenced {
        /// The message.
        at: At,
    },
    /// Somebody's open transaction held what it needs, for too long. Retryable at once.
    #[error("{at}: another transaction held what it needs for longer than the lock timeout")]
    Busy {
        /// The message.
        at: At,
    },
    /// The database could not be asked for longer than [`store_patience`](crate::InboxBuilder::store_patience), or it refused. Nothing was
    /// committed, or it is not known: hand the message in again, and it is found out. Never for what the message says. Retryable if
    /// [`StoreError::is_retryable`]; otherwise something has to be mended first: a right, a table.
    #[error(transparent)]
    Database(StoreError),
}

impl AcceptError {
    /// Whether the same message may be handed in again.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Fenced { .. } | Self::Busy { .. } => true,
            Self::Database(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// What became of a batch.
#[derive(Debug)]
#[must_use = "says what may be committed, and what was not accepted"]
#[non_exhaustive]
pub struct AcceptBatch {
    /// For each message, in order.
    pub outcomes: Vec<Result<Accepted, AcceptError>>,
    /// What may be committed to Kafka: for each partition, the offset behind its accepted prefix.
    pub commits: Vec<Commit>,
}

/// A batch, inside its transaction.
struct Bringing<'a, DB: TransactionalDatabase, M> {
    core: &'a Core<DB>,
    /// For each item.
    messages: Vec<&'a M>,
}

impl<DB: TransactionalDatabase, M: MessageView> Work<DB> for Bringing<'_, DB, M> {
    type Value = Brought;
    type Error = BringError;

    fn together(&self) -> bool {
        true
    }

    fn ends_nothing(&self) -> bool {
        true
    }

    async fn ready(&self, messages: usize) -> Result<(), StoreError> {
        self.core.ready(messages).await
    }

    fn passes(&self, value: &Brought) -> bool {
        value.passes()
    }

    fn fault(&self, error: &BringError) -> Option<Fault> {
        error.fault()
    }

    async fn run(
        &self,
        places: &[usize],
        conn: &mut DB::Connection,
        into: &mut Vec<Brought>,
    ) -> Result<(), BringError> {
        let messages: Vec<&M> = places.iter().filter_map(|at| self.messages.get(*at).copied()).collect();
        self.core.bring(&messages, conn, into).await
    }
}

impl<DB: TransactionalDatabase> Inbox<DB> {
    /// Accepts messages, in as few transactions as may be: each is in the table once, or was. Level L2 as to the table. Never fails as a whole: each
    /// message has its outcome.
    ///
    /// Partitions are taken by their first message here, or by [`assigned`](Self::assigned). Hand in the messages of a partition in the order in
    /// which they were delivered, one batch after the other: ids follow that order, and so do workers in the order of keys. A message from no partition
    /// (a negative partition or offset) has no window: its identity alone tells whether it was accepted.
    ///
    /// # Errors
    ///
    /// None as a whole; [`AcceptError`] for a message.
    ///
    /// # Cancel safety
    ///
    /// Safe. Dropped before the commit is sent, nothing was accepted; after it, a task of its own sees it to its end.
    pub async fn accept_batch<M: MessageView>(&self, messages: &[M]) -> AcceptBatch {
        let outcomes = self.core.accept(messages).await;
        let base = &self.core.base;
        let commits = commits(messages, outcomes.iter().map(Result::is_ok), |message| base.origin(message));
        AcceptBatch { outcomes, commits }
    }

    /// These partitions are this process's from now on: raises their fences, so that whoever held them before accepts nothing of them any more, and
    /// says where each stands. Call it whenever partitions are assigned, before their first message is handed in, and seek as it says. For loops of
    /// your own: the consumer does it by itself.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: fences may have been raised, and calling it again raises them once more.
    pub async fn assigned(&self, partitions: &[(&str, i32)]) -> Result<Vec<Assigned>, StoreError> {
        self.core.windows().assigned(partitions).await
    }

    /// These partitions are this process's no longer. What is being accepted finishes, unless the next owner has raised the fence by then.
    pub fn revoked(&self, partitions: &[(&str, i32)]) {
        self.core.windows().revoked(partitions);
    }

    /// What this process has taken in since the inbox was built.
    #[must_use]
    pub fn accept_counts(&self) -> super::AcceptCounts {
        self.core.taken_in.snapshot()
    }
}

impl<DB: TransactionalDatabase> Core<DB> {
    async fn accept<M: MessageView>(&self, messages: &[M]) -> Vec<Result<Accepted, AcceptError>> {
        let base = &self.base;
        let placed = |message: &M| message.partition() >= 0 && message.offset() >= 0;
        let places: BTreeSet<_> = messages
            .iter()
            .filter(|message| placed(message))
            .map(|message| {
                let origin = base.origin(message);
                (origin.topic, origin.partition)
            })
            .collect();
        let prepared = match base.hold(&places).await {
            Ok(()) => self.ready(messages.len()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = prepared {
            return messages.iter().map(|_| Err(AcceptError::Database(error.clone()))).collect();
        }
        let mut outcomes: Vec<Option<Result<Accepted, AcceptError>>> = Vec::with_capacity(messages.len());
        let mut items: Vec<Item> = Vec::with_capacity(messages.len());
        let mut bringing = Bringing { core: self, messages: Vec::with_capacity(messages.len()) };
        for message in messages {
            let item = match base.prepare(message) {
                Prepared::Item(item) | Prepared::Refused(_, item) => item,
            };
            if placed(message) && item.stray {
                outcomes.push(Some(Err(AcceptError::OutOfOrder { at: At(item.origin) })));
                continue;
            }
            outcomes.push(None);
            // What waits holds back what comes after it in its lane.
            let row = self.lane(message.topic(), message.key(), message.partition()).cast_unsigned();
            items.push(match placed(message) {
                true => Item { row: Some(row), ..item },
                false => Item { spot: None, ..item },
            });
            bringing.messages.push(message);
        }
        let ran = base.run(&items, &bringing, Rules { bury: false, retry: Retry::none() }).await;
        let mut ended = items.iter().zip(ran).map(|(item, outcome)| self.accepted(item, outcome));
        let missing = || Err(AcceptError::Database(StoreError::corrupt("inbox", "accept a batch", "no outcome.")));
        outcomes.into_iter().map(|known| known.or_else(|| ended.next()).unwrap_or_else(missing)).collect()
    }

    fn accepted(&self, item: &Item, outcome: Outcome<Brought, BringError>) -> Result<Accepted, AcceptError> {
        let at = || At(item.origin.clone());
        let database = |problem: String| {
            let error =
                StoreError::refused(<DB::Dialect as crate::store::sql::Dialect>::NAME, "accept a message", problem);
            Err(AcceptError::Database(error))
        };
        match outcome {
            Outcome::Handled(brought) => {
                self.taken_in.note(&brought);
                match brought {
                    Brought::New(id) => Ok(Accepted::New(id)),
                    Brought::Duplicate(id) => Ok(Accepted::Duplicate(id)),
                    Brought::Conflict { id, skipped: true, .. } => Ok(Accepted::Conflict(id)),
                    Brought::Conflict { first, id, skipped: false } => {
                        Err(AcceptError::Conflict { at: at(), first, id })
                    }
                    Brought::Refused(Refusal::Identity(error)) => Err(AcceptError::Identity { at: at(), error }),
                    Brought::Refused(Refusal::TooLarge { bytes, most }) => {
                        Err(AcceptError::TooLarge { at: at(), bytes, most })
                    }
                    Brought::Refused(Refusal::NoRoom { bytes, most, cure }) => {
                        Err(AcceptError::NoRoom { at: at(), bytes, most, cure })
                    }
                    Brought::Refused(Refusal::Topic) => Err(AcceptError::Topic { at: at() }),
                }
            }
            Outcome::Known(Known::Redelivered(_) | Known::SameId(_)) => {
                if self.base.is_other(item) {
                    return Err(AcceptError::OtherMessage { at: at() });
                }
                self.taken_in.redelivered();
                Ok(Accepted::Redelivered)
            }
            // What the database refused for a while is asked again.
            Outcome::Known(_) | Outcome::NotBegun => Err(AcceptError::Busy { at: at() }),
            Outcome::Failed(Failed { why: Why::Handler(Failure::Error(error)), .. }) => {
                let error = error.error(<DB::Dialect as crate::store::sql::Dialect>::NAME);
                Err(AcceptError::Unfit { at: at(), error })
            }
            Outcome::Failed(Failed { why: Why::Handler(failure), .. }) => database(failure.to_string()),
            Outcome::Failed(Failed { why: Why::Misused(misuse), .. }) => database(misuse.to_string()),
            Outcome::Fenced => Err(AcceptError::Fenced { at: at() }),
            Outcome::Unknown(error) => Err(AcceptError::Database(error)),
        }
    }
}
