//! Where records live.
//!
//! A store keeps one [`Record`] for each [`Key`] and moves it by the rules of [`record`](crate::record).
//! [`DedupStore`] is batch first: one message is a batch of one.
//!
//! | store | feature | level | remembers |
//! |---|---|---|---|
//! | `MemoryStore` | `memory` | L0 | until the process ends |
//! | `RedisStore` | `redis`, `redis-cluster`, `redis-sentinel` | L0 | as long as Redis does: a failover or an eviction may forget |
//! | `SqliteStore` | `sqlite` | L1 | in one file, for the processes of one machine |
//! | `PostgresStore` | `postgres` | L1 | durably |
//! | `MysqlStore` (MySQL, MariaDB) | `mysql` | L1 | durably |
//!
//! Layers over any of them, in any order: [`Batched`] joins the calls of many tasks; `Cached` (feature `cache`) answers known duplicates in process;
//! `Prechecked` (feature `bloom`) guesses what to read before it inserts. A store of your own implements [`DedupStore`] and runs the checks of
//! the feature `conformance` against itself.

mod batch;
mod batched;
#[cfg(feature = "cache")]
mod cached;
// What stores share is used in full only with all of them: `full` shows what nobody uses.
#[cfg(any(feature = "sql", feature = "redis"))]
#[cfg_attr(not(feature = "full"), allow(dead_code))]
pub(crate) mod cells;
mod check;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "mysql")]
pub(crate) mod mysql;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "bloom")]
mod prechecked;
#[cfg(feature = "redis")]
#[cfg_attr(not(feature = "full"), allow(dead_code, unused_imports))]
mod redis;
#[cfg(feature = "sql")]
#[cfg_attr(not(feature = "full"), allow(dead_code, unused_imports, unused_macros))]
pub(crate) mod sql;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

#[cfg(feature = "redis")]
pub use self::redis::{RedisBuilder, RedisStore};
pub use batch::{Ask, Batch, Gathered, Keyed};
pub use batched::{BatchLimits, Batched};
#[cfg(feature = "cache")]
pub use cached::{CacheLimits, CacheStats, Cached};
pub use check::{Finding, Report, Severity};
pub use error::{StoreError, StoreErrorKind};
#[cfg(feature = "memory")]
pub use memory::MemoryStore;
#[cfg(feature = "mysql")]
pub use mysql::MysqlStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "bloom")]
pub use prechecked::{BloomFilter, FilterStats, Precheck, PrecheckStats, Prechecked};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;

use crate::identity::Key;
use crate::level::Level;
use crate::record::{ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms};

/// Remembers which messages were handled.
///
/// Every method takes a batch and answers in its order, one outcome for each item. Batches hold distinct keys in
/// ascending order (see [`Batch`]), so that two batches never wait for each other in a circle.
///
/// # Rules for implementors
///
/// - Outcomes and moves are those of the functions in [`record`](crate::record), with the *store's* clock as `now`.
/// - Each record moves atomically, by compare-and-set on its [`Stamp`](crate::record::Stamp) or in one critical section.
///   There is no atomicity across the records of a batch.
/// - An error says nothing about what was done: the caller asks again with the same token, and gets the same answer.
/// - An unknown outcome is an error, never a guess.
///
/// The `conformance` feature holds the checks.
///
/// # Cancel safety
///
/// A dropped future leaves each record moved or not moved, as a lost reply would. Asking again is safe.
#[async_trait]
pub trait DedupStore: Send + Sync + Debug {
    /// Name and guarantee level, for logs and start-up reports.
    fn describe(&self) -> Description;

    /// How long the store remembers.
    fn retention(&self) -> Retention;

    /// Claims a batch of messages for [`Terms::owner`].
    ///
    /// # Errors
    ///
    /// [`StoreError`]; [`StoreError::is_retryable`] says whether asking again can help.
    async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError>;

    /// Ends a batch of claims.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim). Settling again with the same token is safe.
    async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError>;

    /// Prolongs a batch of claims.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim). After an error the lease may or may not have been prolonged.
    async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError>;

    /// Reads records, for operators and tests. Decides nothing: by the time it returns they may have moved.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim).
    async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError>;

    /// Brings dead records back.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim). Asking again after an error may answer [`RequeueOutcome::NotDead`].
    async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError>;

    /// Removes at most `limit` records that are past their [`Retention`]. Stores that expire by themselves remove nothing.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim).
    async fn purge(&self, limit: usize) -> Result<Purged, StoreError>;

    /// Creates what the store needs where it is missing: tables and indexes. Does nothing where it is there.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim).
    async fn ensure_schema(&self) -> Result<(), StoreError>;

    /// Looks for settings that break the store's promises.
    ///
    /// # Errors
    ///
    /// As for [`claim`](Self::claim), where the settings could not be read.
    async fn check(&self) -> Result<Report, StoreError>;
}

/// What a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// Its name: `memory`, `sqlite`, `postgres`, `mysql`, `redis`, or a third party's.
    pub store: &'static str,
    /// The level that claiming in it gives.
    pub level: Level,
}

impl Description {
    /// Describes a store.
    #[must_use]
    pub const fn new(store: &'static str, level: Level) -> Self {
        Self { store, level }
    }
}

/// How long a store remembers, by what a record is in.
///
/// Redis forgets by itself. SQL stores, SQLite and memory do when [`purge`](DedupStore::purge) is called, and grow until then: call it now and then, in one
/// process or in all of them.
///
/// ```
/// # use hapax::Once;
/// # use hapax::store::MemoryStore;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let once = Once::builder(MemoryStore::new()).scope("g", "h").build().await?;
/// while once.store().purge(1_000).await?.more {}
/// # Ok(())
/// # }
/// ```
///
/// `succeeded` must be longer than anything can be redelivered: longer than the topic's retention, and the group's offset retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Succeeded records. Default: 14 days.
    pub succeeded: Duration,
    /// Dead records. Default: 90 days.
    pub dead: Duration,
    /// Records processing or failed, counted from the end of their lease or their due time. Default: 90 days.
    pub unsettled: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Retention {
    fn default() -> Self {
        Self { succeeded: DAY.saturating_mul(14), dead: DAY.saturating_mul(90), unsettled: DAY.saturating_mul(90) }
    }
}

impl Retention {
    /// Sets how long succeeded records are kept. Default: 14 days.
    #[must_use]
    pub const fn succeeded(mut self, keep: Duration) -> Self {
        self.succeeded = keep;
        self
    }

    /// Sets how long dead records are kept. Default: 90 days.
    #[must_use]
    pub const fn dead(mut self, keep: Duration) -> Self {
        self.dead = keep;
        self
    }

    /// Sets how long records that are processing or failed are kept. Default: 90 days.
    #[must_use]
    pub const fn unsettled(mut self, keep: Duration) -> Self {
        self.unsettled = keep;
        self
    }

    /// How long a record in `state` is kept after [`State::time`](crate::record::State::time).
    #[must_use]
    pub const fn of(&self, state: crate::record::State) -> Duration {
        use crate::record::State;
        match state {
            State::Succeeded { .. } => self.succeeded,
            State::Dead { .. } => self.dead,
            State::Processing { .. } | State::Failed { .. } => self.unsettled,
        }
    }
}

/// What a purge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Purged {
    /// Records removed.
    pub removed: usize,
    /// Whether more may be left to remove.
    pub more: bool,
}

impl Purged {
    /// Says what a purge did.
    #[must_use]
    pub const fn new(removed: usize, more: bool) -> Self {
        Self { removed, more }
    }
}

/// Implements [`DedupStore`] by another store: claiming and settling as given, if they are, everything else passed on.
macro_rules! forward {
    ([$($generics:tt)*] $wrapper:ty, |$this:ident| $store:expr) => {
        forward! {
            [$($generics)*] $wrapper, |$this| $store,
            async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
                let $this = self;
                $store.claim(terms, asks).await
            }
            async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
                let $this = self;
                $store.settle(settles).await
            }
        }
    };
    ([$($generics:tt)*] $wrapper:ty, |$this:ident| $store:expr, $($own:tt)*) => {
        #[async_trait::async_trait]
        impl<$($generics)*> $crate::store::DedupStore for $wrapper {
            fn describe(&self) -> $crate::store::Description {
                let $this = self;
                $store.describe()
            }
            fn retention(&self) -> $crate::store::Retention {
                let $this = self;
                $store.retention()
            }
            $($own)*
            async fn extend(
                &self,
                claims: &$crate::store::Batch<$crate::record::Extend>,
            ) -> Result<Vec<$crate::record::ExtendOutcome>, $crate::store::StoreError> {
                let $this = self;
                $store.extend(claims).await
            }
            async fn get(
                &self,
                keys: &$crate::store::Batch<$crate::identity::Key>,
            ) -> Result<Vec<Option<$crate::record::Record>>, $crate::store::StoreError> {
                let $this = self;
                $store.get(keys).await
            }
            async fn requeue(
                &self,
                keys: &$crate::store::Batch<$crate::identity::Key>,
            ) -> Result<Vec<$crate::record::RequeueOutcome>, $crate::store::StoreError> {
                let $this = self;
                $store.requeue(keys).await
            }
            async fn purge(&self, limit: usize) -> Result<$crate::store::Purged, $crate::store::StoreError> {
                let $this = self;
                $store.purge(limit).await
            }
            async fn ensure_schema(&self) -> Result<(), $crate::store::StoreError> {
                let $this = self;
                $store.ensure_schema().await
            }
            async fn check(&self) -> Result<$crate::store::Report, $crate::store::StoreError> {
                let $this = self;
                $store.check().await
            }
        }
    };
}
#[cfg(any(feature = "cache", feature = "bloom"))]
use forward;

forward!([S: DedupStore + ?Sized] Arc<S>, |this| (**this));
forward!([S: DedupStore + ?Sized] Box<S>, |this| (**this));

/// Whether a server gave a statement up in favour of another, or somebody kept a lock for too long.
#[cfg(any(feature = "postgres", feature = "mysql", feature = "sqlite"))]
pub(crate) fn is_contention(error: &sqlx::Error) -> bool {
    let Some(said) = error.as_database_error() else { return false };
    let mut faults: Vec<sql::Fault> = Vec::new();
    #[cfg(feature = "postgres")]
    if said.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
        faults.push(<postgres::Postgres as sql::Dialect>::fault(said));
    }
    #[cfg(feature = "mysql")]
    if said.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>().is_some() {
        faults.push(<mysql::Mysql as sql::Dialect>::fault(said));
    }
    #[cfg(feature = "sqlite")]
    if said.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
        faults.push(<sqlite::Sqlite as sql::Dialect>::fault(said));
    }
    faults.iter().any(|fault| matches!(fault, sql::Fault::Contended(_) | sql::Fault::Locked(_)))
}
