//! What all clones of one inbox share.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::Pool;

use super::accept::{Counters, Ids, Intake, Room};
use super::queue::Front;
use super::tables::Tables;
use crate::identity::{FingerprintBy, Identify, OnMissing, Scope};
use crate::store::sql::{Dialect, Fault};
use crate::store::{Report, Retention, StoreError};
use crate::transaction::sealed::Sealed;
use crate::transaction::{self, Committed, Transact as _, Transactional, TransactionalDatabase, Tx};
use crate::wrapper::OnConflict;

/// How many ids an inbox has: those of inbox n begin at n times this.
pub(crate) const IDS: i64 = 1 << 40;

/// What is configured.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) identify: Box<dyn Identify>,
    pub(crate) fingerprint: FingerprintBy,
    pub(crate) on_missing: OnMissing,
    pub(crate) on_conflict: OnConflict,
    pub(crate) retention: Retention,
    /// How long a statement waits for a lock.
    pub(crate) patience: Duration,
    pub(crate) intake: Intake,
}

/// One inbox. Every room adds its own functions to this.
pub(crate) struct Core<DB: Sealed> {
    pub(crate) pool: Pool<DB>,
    /// The transactions: their connections, turns, windows and retries.
    pub(crate) base: Arc<transaction::Core<DB>>,
    pub(crate) report: Report,
    pub(crate) tables: Tables,
    /// Of this inbox: `inbox` in every table.
    pub(crate) number: i32,
    pub(crate) scope: Scope,
    pub(crate) settings: Settings,
    pub(crate) drawn: Ids,
    /// How much the database takes at once.
    pub(crate) room: Room,
    pub(crate) taken_in: Counters,
    /// Up to where all that is ready was taken.
    pub(crate) front: Front,
    /// Whether the last batch held messages that stood already.
    pub(crate) repeats: AtomicBool,
}

impl<DB: Sealed> fmt::Debug for Core<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("database", &DB::Dialect::NAME)
            .field("tables", &format_args!("{}", self.tables.prefix))
            .field("inbox", &self.number)
            .finish_non_exhaustive()
    }
}

#[allow(dead_code, reason = "for the rooms")]
impl<DB: Sealed> Core<DB> {
    /// The ids that messages of this inbox have. A scan of the messages names them, so that it reads those of this inbox alone.
    pub(crate) fn ids(&self) -> Range<i64> {
        let first = i64::from(self.number) * IDS;
        first..first + IDS
    }

    /// What is kept in order: a digest of scope, topic and key; of scope, topic and partition where there is no key.
    pub(crate) fn lane(&self, topic: &str, key: Option<&[u8]>, partition: i32) -> i64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.number.to_be_bytes());
        hasher.update(&u64::try_from(topic.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(topic.as_bytes());
        match key {
            Some(key) => hasher.update(b"k").update(key),
            None => hasher.update(b"p").update(&partition.to_be_bytes()),
        };
        let mut lane = [0; 8];
        hasher.finalize_xof().fill(&mut lane);
        i64::from_be_bytes(lane)
    }

    /// Begins a transaction. Dropped before [`commit`](Self::commit), it is rolled back and its connection closed.
    pub(crate) async fn begin(&self) -> Result<Tx<DB>, Fault> {
        self.base.begin(false).await
    }

    /// Commits, whatever happens to whoever waits for it. [`Committed::Unknown`]: look what became of it.
    pub(crate) async fn commit(&self, tx: Tx<DB>) -> Committed {
        transaction::finish(tx.commit()).await
    }

    /// Rolls back, and gives the connection back.
    pub(crate) async fn rollback(&self, tx: Tx<DB>) {
        transaction::finish(tx.rollback()).await;
    }

    /// What an error of a statement is.
    pub(crate) fn fault(error: &sqlx::Error) -> Fault {
        transaction::sorted::<DB::Dialect>(error)
    }

    /// Asks until there is an answer, the database refuses, or it could not be reached for too long. What is asked must be safe to repeat.
    pub(crate) async fn again<T>(
        &self,
        operation: &'static str,
        ask: impl AsyncFn() -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.base.again(operation, ask).await
    }

    /// The database's clock in milliseconds, as an expression.
    pub(crate) fn clock(&self) -> String {
        DB::DIALECT.clock()
    }
}

impl<DB: TransactionalDatabase> Core<DB> {
    /// The windows of the partitions that messages are accepted from.
    pub(crate) fn windows(&self) -> Transactional<DB> {
        Transactional { core: Arc::clone(&self.base) }
    }
}
