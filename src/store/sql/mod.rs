//! What the SQL stores share: one engine, and what a dialect must bring.
//!
//! Every operation is a single statement in auto-commit, safe to repeat when its outcome is not known. No transaction
//! is opened, so a dropped future can leave none open.

mod dialect;
mod engine;
mod fault;
mod link;
mod name;
mod purge;
mod rows;
mod schema;
mod statement;

pub(crate) use dialect::{Call, Conn, Dialect, Marker};
pub(crate) use engine::{CONNECTIONS, Engine, LOCK_TIMEOUT, jitter};
pub(crate) use fault::Fault;
pub(crate) use name::TableName;
#[cfg(feature = "sqlite")]
pub(crate) use rows::Raw;
#[cfg(feature = "mysql")]
pub(crate) use rows::owner_bits;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use rows::reading;
pub(crate) use rows::{Column, Kind, Reading, Scalar, Values};
pub(crate) use schema::Layout;
#[cfg(feature = "mysql")]
pub(crate) use statement::{CREATE_EXPRS, INSERT_EXPRS, REMEMBER_EXPRS};
#[cfg(feature = "mysql")]
pub(crate) use statement::{Expr, Join};
pub(crate) use statement::{Field, Statement, Texts, Write};

/// A store over the shared engine: settings and [`DedupStore`](crate::store::DedupStore).
macro_rules! sql_store {
    ($store:ident, $dialect:ty) => {
        impl $store {
            /// Uses another table: `table`, or `schema.table`. Default: `hapax_records`.
            ///
            /// # Errors
            ///
            /// Refused unless each part matches `^[A-Za-z_][A-Za-z0-9_]{0,62}$`. Not retryable.
            pub fn with_table(self, name: &str) -> Result<Self, StoreError> {
                Ok(Self { engine: self.engine.with_table(name)? })
            }

            /// Sets how long [`purge`](DedupStore::purge) keeps records. Default: [`Retention::default`].
            #[must_use]
            pub fn with_retention(self, retention: Retention) -> Self {
                Self { engine: self.engine.with_retention(retention) }
            }

            /// Sets how long one statement may take, with connecting and all its retries. Default: 30 s.
            ///
            /// One that takes longer is an error, retryable; what it asked for may have been done.
            #[must_use]
            pub fn with_timeout(self, timeout: Duration) -> Self {
                Self { engine: self.engine.with_timeout(timeout) }
            }

            /// Sets how long one statement waits for a lock that somebody else holds. Default: 1 s.
            ///
            /// What the store itself locks is free again when its statement ends: longer waits mean an open transaction
            /// of somebody else.
            #[must_use]
            pub fn with_lock_timeout(self, timeout: Duration) -> Self {
                Self { engine: self.engine.with_lock_timeout(timeout) }
            }
        }

        #[async_trait]
        impl DedupStore for $store {
            fn describe(&self) -> Description {
                Description::new(<$dialect as Dialect>::NAME, Level::L1)
            }

            fn retention(&self) -> Retention {
                self.engine.retention()
            }

            async fn claim(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<ClaimOutcome>, StoreError> {
                cells::claim(&self.engine, terms, asks).await
            }

            async fn settle(&self, settles: &Batch<Settle>) -> Result<Vec<SettleOutcome>, StoreError> {
                cells::settle(&self.engine, settles).await
            }

            async fn extend(&self, claims: &Batch<Extend>) -> Result<Vec<ExtendOutcome>, StoreError> {
                cells::extend(&self.engine, claims).await
            }

            async fn get(&self, keys: &Batch<Key>) -> Result<Vec<Option<Record>>, StoreError> {
                cells::get(&self.engine, keys).await
            }

            async fn requeue(&self, keys: &Batch<Key>) -> Result<Vec<RequeueOutcome>, StoreError> {
                cells::requeue(&self.engine, keys).await
            }

            async fn purge(&self, limit: usize) -> Result<Purged, StoreError> {
                self.engine.purge(limit).await
            }

            async fn ensure_schema(&self) -> Result<(), StoreError> {
                self.engine.ensure_schema().await
            }

            async fn check(&self) -> Result<Report, StoreError> {
                self.engine.check().await
            }
        }
    };
}

pub(crate) use sql_store;
