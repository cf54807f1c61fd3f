//! How a [`Transactional`] is configured and started.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Pool;

use super::core::{Core, Settings};
use super::sealed::Sealed;
use super::{Transactional, TransactionalDatabase};
use crate::identity::{FingerprintBy, Identify, IdentityConfigError, OnMissing, Scope, position};
use crate::retry::Retry;
use crate::store::sql::{Dialect, Engine, LOCK_TIMEOUT, Layout, TableName};
use crate::store::{Retention, StoreError};
use crate::wrapper::{BuildError, OnConflict, Once, judge, scoped, setters, some_time};

/// Messages in one transaction, unless told otherwise.
const MOST: usize = 512;

/// Configures a [`Transactional`]; made by [`Once::transactional`].
#[must_use = "nothing is built before `build`"]
pub struct TransactionalBuilder<DB: TransactionalDatabase> {
    pool: Pool<DB>,
    scope: Option<Result<Scope, IdentityConfigError>>,
    identify: Box<dyn Identify>,
    fingerprint: FingerprintBy,
    on_missing: OnMissing,
    on_conflict: OnConflict,
    on_too_old: OnConflict,
    retry: Retry,
    handler_timeout: Option<Duration>,
    patience: Duration,
    store_patience: Duration,
    most: usize,
    in_order: bool,
    trust_offsets: bool,
    records: Option<String>,
    windows: Option<String>,
    retention: Retention,
    create_schema: bool,
    accept_unsafe: bool,
}

impl<DB: TransactionalDatabase> fmt::Debug for TransactionalBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the pool: its options hold passwords.
        f.debug_struct("TransactionalBuilder")
            .field("database", &<DB as Sealed>::Dialect::NAME)
            .field("identify", &self.identify)
            .finish_non_exhaustive()
    }
}

impl Once {
    /// Starts to configure handling in the database's own transactions: the handler's effects and what is remembered of the message commit
    /// together. Level **L2**: no effect repeats in that database.
    ///
    /// `pool` is yours: `sqlx::PgPool`, `MySqlPool` or `SqlitePool`, of the database in which the effects are. Tables of this crate stand beside
    /// yours; see [`TransactionalBuilder::with_table`].
    pub fn transactional<DB: TransactionalDatabase>(pool: Pool<DB>) -> TransactionalBuilder<DB> {
        TransactionalBuilder {
            pool,
            scope: None,
            identify: Box::new(position()),
            fingerprint: FingerprintBy::default(),
            on_missing: OnMissing::default(),
            on_conflict: OnConflict::default(),
            on_too_old: OnConflict::default(),
            retry: Retry::default(),
            handler_timeout: None,
            patience: LOCK_TIMEOUT,
            store_patience: Duration::from_secs(10),
            most: MOST,
            in_order: false,
            trust_offsets: false,
            records: None,
            windows: None,
            retention: Retention::default(),
            create_schema: true,
            accept_unsafe: false,
        }
    }
}

impl<DB: TransactionalDatabase> TransactionalBuilder<DB> {
    setters! {
        scope;
        /// Sets what makes two messages the same, and by that what is remembered. Default: [`position`].
        ///
        /// | identity | what is kept | stops |
        /// |---|---|---|
        /// | `position()` | a window: one row for each partition | redelivery |
        /// | `header(…)`, `digest(…)`, … | a record for each message | redelivery and re-production |
        /// | `position().and_then(header(…))` | both | redelivery by the window, without asking the records; re-production by the records |
        identify;
        /// Handled without dedup, it has no record; where there is a window of its partition, that still keeps its redelivery from being handled.
        on_missing;
        /// Does not create the tables; they must be there. Default: what is missing is created.
        without_schema_creation;
        /// Starts even if the check finds settings that break the promise. They are logged, and readable from
        /// [`Transactional::report`]. Default: refuse.
        accept_unsafe_settings;
    }

    /// Sets what happens to a message whose number is so far below the highest of its producer's that nobody can tell whether it was handled.
    /// Default: [`OnConflict::Stop`].
    pub fn on_too_old(mut self, policy: OnConflict) -> Self {
        self.on_too_old = policy;
        self
    }

    /// Sets how often and when a failed message is tried again. Default: [`Retry::default`]. Attempts are counted in the database, where they
    /// ended; one that ended with the process is counted where there is a window of positions, and only there.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Sets how long a handler may take: then it is dropped, its connection closed, and the attempt has failed. Default: as long as it likes.
    ///
    /// PostgreSQL is told too (`statement_timeout`, for the transaction), so that a statement that nobody waits for any more does not keep its
    /// locks. MySQL, MariaDB and SQLite end it when they notice that the connection is closed.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.handler_timeout = Some(timeout);
        self
    }

    /// Sets how long a statement of the transaction, the handler's too, waits for a lock that somebody holds. Default: 1 s. MySQL counts whole
    /// seconds; SQLite waits as long as the pool's own `busy_timeout` says.
    ///
    /// A message that somebody else is handling in an open transaction is in flight after this long; the others of its batch go on.
    ///
    /// A process that stands still between the write of a partition's row and its commit keeps that row locked until the database ends its session, and
    /// the partition's next owner cannot take it before. The database's own limit bounds that, where it is set for these sessions:
    /// `idle_in_transaction_session_timeout` in PostgreSQL, `idle_transaction_timeout` in MariaDB, `wait_timeout` in MySQL; it has to be longer
    /// than a handler leaves its transaction alone.
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.patience = timeout.max(Duration::from_millis(1));
        self
    }

    /// Sets for how long a database that cannot be reached is asked again before a call gives up. Default: 10 s.
    pub fn store_patience(mut self, longest: Duration) -> Self {
        self.store_patience = longest;
        self
    }

    /// Sets how many messages one transaction handles at most. Default: 512. 0 counts as 1.
    pub fn batch_size(mut self, most: usize) -> Self {
        self.most = most.max(1);
        self
    }

    /// Makes [`Transactional::handle_batch`] keep the order: a message that is not finished ends the batch, and those after it are not
    /// begun. Default: the others go on.
    pub fn stop_batches_at_failure(mut self) -> Self {
        self.in_order = true;
        self
    }

    /// Takes every message below a partition's window for the one that was finished there: for a loop of your own whose topics are never
    /// deleted and made again under their names, and never change their cluster. Default: one that cannot be told to be the same is
    /// an error, [`TransactError::OtherMessage`](super::TransactError::OtherMessage).
    pub const fn trust_offsets(mut self) -> Self {
        self.trust_offsets = true;
        self
    }

    /// Sets the name of the table of records. Default: `hapax_records`. `table`, or `schema.table`. It may be shared with the store of the same
    /// database, at level L1.
    pub fn with_table(mut self, name: impl Into<String>) -> Self {
        self.records = Some(name.into());
        self
    }

    /// Sets the name of the table of windows. Default: `hapax_windows`.
    pub fn with_windows_table(mut self, name: impl Into<String>) -> Self {
        self.windows = Some(name.into());
        self
    }

    /// Sets how long [`Transactional::purge`] keeps records. Default: [`Retention::default`]. Windows are never purged: they do not grow.
    pub const fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Checks the settings, makes the tables, and looks for unsafe settings in the database.
    ///
    /// # Errors
    ///
    /// [`BuildError`]. Retryable only where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: building again does what is left.
    pub async fn build(self) -> Result<Transactional<DB>, BuildError> {
        let scope = scoped(self.scope, &*self.identify, &self.fingerprint)?;
        some_time(self.handler_timeout)?;
        let table = |name: Option<String>, layout| -> Result<TableName, StoreError> {
            name.map_or_else(
                || Ok(TableName::of(layout)),
                |name| TableName::parse(<DB as Sealed>::Dialect::NAME, &name),
            )
        };
        let settings = Settings {
            scope,
            identify: self.identify,
            fingerprint: self.fingerprint,
            on_missing: self.on_missing,
            on_conflict: self.on_conflict,
            on_too_old: self.on_too_old,
            retry: self.retry,
            handler_timeout: self.handler_timeout,
            patience: self.patience,
            store_patience: self.store_patience,
            most: self.most,
            in_order: self.in_order,
            trust_offsets: self.trust_offsets,
            records: table(self.records.clone(), Layout::Records)?,
            windows: table(self.windows, Layout::Windows)?,
        };
        let seed = getrandom::u64().map_err(|error| BuildError::Random(error.to_string()))?;
        let engine = Engine::pooled(<DB as Sealed>::DIALECT, self.pool.clone())
            .with_lock_timeout(self.patience)
            .with_retention(self.retention);
        let engine = match &self.records {
            Some(name) => engine.with_table(name)?,
            None => engine,
        };
        let mut core = Core::new(self.pool, engine, settings, seed);
        let mut tables = Vec::new();
        if core.keeps_records {
            tables.push((Layout::Records, &core.settings.records));
        }
        if core.window_by.is_some() {
            tables.push((Layout::Windows, &core.settings.windows));
        }
        if self.create_schema {
            for (layout, table) in &tables {
                core.engine.ensure(*layout, table).await?;
            }
        }
        let report = core.engine.examine(&tables).await?;
        judge(&report, self.accept_unsafe)?;
        core.report = report;
        tracing::debug!(
            database = <DB as Sealed>::Dialect::NAME,
            records = core.keeps_records,
            windows = core.window_by.is_some(),
            "built"
        );
        Ok(Transactional { core: Arc::new(core) })
    }
}
