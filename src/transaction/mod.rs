//! Effects once: the handler's effects and what is remembered of the message commit together. Level L2.
//!
//! ```text
//!   message ─▶ window in memory ─▶ BEGIN ─▶ records as succeeded ─▶ SAVEPOINT, handler ─▶ window WHERE fence ─▶ COMMIT
//!              finished? no I/O             one statement; what      failed: back to it    nobody raised it?    effects and
//!                                           stood drops out          its attempt recorded                       memory, or neither
//! ```
//!
//! - [`trial`] is one batch in one transaction, tried once; [`runner`] tries until every message has an outcome: halves what contends, finds out what a
//!   lost commit came to, takes back what a handler committed before its time.
//! - [`windows`] are the windows of the partitions that this process holds; [`records`] the statements of the store, inside our transaction.
//! - [`handle`] is the way in for any loop; the consumer has its own, over [`core`].
//! - [`link`] sees to it that no connection goes back to its pool inside a transaction, [`spare`] that it does not go there between two batches; [`dialect`] is what each database does in its own way.

mod builder;
#[cfg_attr(not(feature = "kafka"), allow(dead_code))]
mod bury;
mod caution;
#[cfg(all(test, feature = "sqlite"))]
mod contract;
mod core;
mod dialect;
mod error;
mod guard;
mod handle;
mod holding;
mod link;
mod moving;
#[cfg(feature = "mysql")]
mod mysql;
mod outcome;
#[cfg(feature = "kafka")]
mod outside;
mod plan;
#[cfg(feature = "postgres")]
mod postgres;
mod records;
mod recover;
mod runner;
#[cfg(feature = "kafka")]
pub(crate) mod seam;
mod spare;
#[cfg(feature = "sqlite")]
mod sqlite;
mod trial;
mod windows;

/// What the inbox's way in is made of.
#[allow(unused_imports, reason = "for the inbox")]
pub(crate) mod intake {
    pub(crate) use super::outcome::{Failed, Item, Known, Outcome, Prepared, Why, Work};
    pub(crate) use super::trial::Rules;
}

use std::fmt;
use std::sync::Arc;

pub use builder::TransactionalBuilder;
pub use error::{TransactBatch, TransactError, Transacted};
pub use outcome::Misuse;

#[allow(unused_imports, reason = "for the inbox")]
pub(crate) use self::core::{Core, finish};
#[allow(unused_imports, reason = "for the inbox")]
pub(crate) use self::dialect::{Transact, hex};
pub(crate) use self::guard::{Called, bounded, called};
#[allow(unused_imports, reason = "for the inbox")]
pub(crate) use self::link::{Committed, Tx, sorted};
pub(crate) use self::outcome::Why;
use crate::identity::Key;
use crate::level::Level;
use crate::message::MessageView;
use crate::record::{Record, RequeueOutcome};
use crate::store::sql::Dialect;
use crate::store::{Batch, Purged, Report, StoreError, cells};
use crate::wrapper::Counts;

/// Handles every message once, in the database's own transactions, around any loop. Level **L2**. Cheap to clone; clones share everything.
///
/// Made by [`Once::transactional`](crate::Once::transactional).
///
/// # What it remembers
///
/// By its identity: a record for each message, a window for each partition, or both; see
/// [`TransactionalBuilder::identify`]. They commit with the effects or not at all.
///
/// # What a loop of your own must do
///
/// Where a window of positions is kept, a partition is taken by its first message here, or by [`assigned`](Self::assigned), which you should call
/// from your rebalance callback: it raises the partition's fence, so that whoever had it before cannot commit an effect any more, and says from
/// where to read. After it, *seek* there: messages below it are not handled again, and Kafka's committed offset may say something else.
///
/// Hand in the messages of a partition in the order in which they were delivered; they may be handled side by side. What lies between two
/// offsets that follow each other is taken for gone, as compaction leaves it: a message that comes late, when one after it has been
/// finished, is [`TransactError::OutOfOrder`].
///
/// A window knows messages by offset. A topic that is deleted and made again counts its offsets from 0 again: its messages would be taken for
/// those that were finished, and be lost. Where a message below the window is younger than all that were finished there, this is noticed:
/// [`TransactError::OtherMessage`]. A topic that was made again and has *grown beyond* the window is not noticed here: compare the topic's id, or keep
/// records too. The consumer of this crate looks at more.
///
/// # What a handler's transaction is
///
/// | database | begun with | waits for locks |
/// |---|---|---|
/// | PostgreSQL | the isolation that is the default of user and database | at most the [lock timeout](TransactionalBuilder::lock_timeout) |
/// | MySQL, MariaDB | `READ COMMITTED`, with `autocommit` off and `completion_type` 0 until it is over | the same, in whole seconds |
/// | SQLite | `BEGIN IMMEDIATE`: the batches of a process take turns | as the pool's `busy_timeout` says |
///
/// What is set for it is put back before the connection goes back to your pool.
///
/// Handlers share it, and so does what is remembered: what one sets until the end of the transaction, as PostgreSQL's `SET LOCAL` does, holds for the
/// handlers behind it too. One that takes another role for a while (`SET LOCAL ROLE`, as for row-level security) gives it back before it returns, or that
/// role needs the rights to write this crate's tables.
///
/// A connection that is needed again at once is not given back in between, as long as the pool has others: while batches follow each other, for
/// about a second at most, and for 20 to 40 ms when nothing needs it any more.
///
/// # Runtime
///
/// Needs a tokio runtime with time enabled. Commits and rollbacks run in tasks of their own.
pub struct Transactional<DB: TransactionalDatabase> {
    pub(crate) core: Arc<Core<DB>>,
}

impl<DB: TransactionalDatabase> Clone for Transactional<DB> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<DB: TransactionalDatabase> fmt::Debug for Transactional<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactional")
            .field("database", &<DB as sealed::Sealed>::Dialect::NAME)
            .field("scope", &self.core.settings.scope)
            .finish_non_exhaustive()
    }
}

/// Where a partition stands, when it is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Assigned {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The first offset that is not finished: seek there. `None` if nothing of the partition was ever finished here: then Kafka's committed
    /// offset counts.
    pub seek: Option<i64>,
}

impl<DB: TransactionalDatabase> Transactional<DB> {
    /// These partitions are this process's from now on: raises their fences, so that whoever held them before commits nothing of them any
    /// more, and says where each stands. Call it whenever partitions are assigned, before their first message is handled, and seek as it says.
    ///
    /// Does nothing but to answer `None` where no window of positions is kept.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: fences may have been raised, and calling it again raises them once more.
    pub async fn assigned(&self, partitions: &[(&str, i32)]) -> Result<Vec<Assigned>, StoreError> {
        let places: Vec<(Arc<str>, i32)> =
            partitions.iter().map(|(topic, partition)| (Arc::from(*topic), *partition)).collect();
        let standings = match self.core.holds_partitions() {
            true => self.core.assigned(&places).await?.into_iter().map(|standing| standing.next).collect(),
            false => vec![None; places.len()],
        };
        let assigned = places.into_iter().zip(standings);
        Ok(assigned.map(|((topic, partition), seek)| Assigned { topic, partition, seek }).collect())
    }

    /// These partitions are this process's no longer: forgets their windows. What is being handled finishes, unless the next owner has
    /// raised the fence by then.
    pub fn revoked(&self, partitions: &[(&str, i32)]) {
        let places: Vec<(Arc<str>, i32)> =
            partitions.iter().map(|(topic, partition)| (Arc::from(*topic), *partition)).collect();
        self.core.revoked(&places);
    }

    /// Forgets records that are past retention, at most `limit` of them; goes on where the last call stopped. See
    /// [`DedupStore::purge`](crate::store::DedupStore::purge).
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: what is forgotten is forgotten.
    pub async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
        match self.core.keeps_records {
            true => self.core.engine.purge(limit).await,
            false => Ok(Purged::default()),
        }
    }

    /// The records of these keys, for operators and tests.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is changed.
    pub async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
        cells::get(&self.core.engine, keys).await
    }

    /// Brings dead messages back: due at once, with their attempts forgotten. A window that has passed one still stops its redelivery; what
    /// is produced again, as a redriven dead letter is, is handled.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; retryable where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: each is brought back or not.
    pub async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
        cells::requeue(&self.core.engine, keys).await
    }

    /// What the records know `message` by; `None` if it has no record.
    #[must_use]
    pub fn key(&self, message: &dyn MessageView) -> Option<Key> {
        let settings = &self.core.settings;
        let identity = self.core.keeps_records.then(|| settings.identify.identity(message).ok()).flatten()?;
        Some(settings.scope.key(&identity, message.topic()))
    }

    /// What was counted since it was built.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.core.counters.snapshot()
    }

    /// What the start-up check of the database found.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.core.report
    }

    /// The guarantee level: always L2.
    #[must_use]
    pub const fn level(&self) -> Level {
        Level::L2
    }
}

/// A database that a handler and this crate can share a transaction in: `sqlx::Postgres`, `sqlx::MySql`, `sqlx::Sqlite`. Sealed.
#[allow(private_bounds, reason = "sealed")]
pub trait TransactionalDatabase: sealed::Sealed {}

pub(crate) mod sealed {
    use super::dialect::Transact;
    use crate::inbox;

    #[allow(unreachable_pub, reason = "sealed")]
    pub(crate) trait Sealed: sqlx::Database + Sized {
        type Dialect: Transact<Db = Self> + inbox::Sql;
        const DIALECT: Self::Dialect;
    }
}

#[cfg(feature = "postgres")]
impl sealed::Sealed for sqlx::Postgres {
    type Dialect = crate::store::postgres::Postgres;
    const DIALECT: Self::Dialect = crate::store::postgres::Postgres;
}
#[cfg(feature = "postgres")]
impl TransactionalDatabase for sqlx::Postgres {}

#[cfg(feature = "mysql")]
impl sealed::Sealed for sqlx::MySql {
    type Dialect = crate::store::mysql::Mysql;
    const DIALECT: Self::Dialect = crate::store::mysql::Mysql;
}
#[cfg(feature = "mysql")]
impl TransactionalDatabase for sqlx::MySql {}

#[cfg(feature = "sqlite")]
impl sealed::Sealed for sqlx::Sqlite {
    type Dialect = crate::store::sqlite::Sqlite;
    const DIALECT: Self::Dialect = crate::store::sqlite::Sqlite;
}
#[cfg(feature = "sqlite")]
impl TransactionalDatabase for sqlx::Sqlite {}
