//! How an [`Inbox`] is configured and started.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sqlx::Pool;

use super::Inbox;
use super::accept::{Counters, Ids, Intake, Oversize, Room};
use super::core::{Core, IDS, Settings};
use super::queue::Front;
use super::schema::{self, Sql};
use super::tables::{PREFIX, Tables};
use crate::identity::{Encoder, FingerprintBy, Identify, IdentityConfigError, OnMissing, Scope, position};
use crate::message::MessageView;
use crate::store::sql::{Dialect, Fault, LOCK_TIMEOUT};
use crate::store::{Retention, StoreError};
use crate::transaction::sealed::Sealed;
use crate::transaction::{Committed, TransactionalDatabase};
use crate::wrapper::{BuildError, OnConflict, Once, judge, scoped, setters};

/// Bytes of the largest payload that is kept, unless told otherwise.
const LARGEST: usize = 1 << 20;

/// Configures an [`Inbox`]; made by [`Inbox::builder`].
#[must_use = "nothing is built before `build`"]
pub struct InboxBuilder<DB: TransactionalDatabase> {
    pool: Pool<DB>,
    scope: Option<Result<Scope, IdentityConfigError>>,
    settings: Settings,
    store_patience: Duration,
    most: usize,
    trust_offsets: bool,
    prefix: String,
    create_schema: bool,
    accept_unsafe: bool,
}

impl<DB: TransactionalDatabase> fmt::Debug for InboxBuilder<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the pool: its options hold passwords.
        f.debug_struct("InboxBuilder")
            .field("database", &<DB as Sealed>::Dialect::NAME)
            .field("tables", &self.prefix)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<DB: TransactionalDatabase> Inbox<DB> {
    /// Starts to configure an inbox in the database of `pool`, which is yours: `sqlx::PgPool`, `MySqlPool` or `SqlitePool`. Its tables stand
    /// beside yours; see [`InboxBuilder::with_tables`].
    pub fn builder(pool: Pool<DB>) -> InboxBuilder<DB> {
        InboxBuilder {
            pool,
            scope: None,
            settings: Settings {
                identify: Box::new(position()),
                fingerprint: FingerprintBy::default(),
                on_missing: OnMissing::default(),
                on_conflict: OnConflict::default(),
                retention: Retention::default(),
                patience: LOCK_TIMEOUT,
                intake: Intake {
                    largest: LARGEST,
                    oversize: Oversize::default(),
                    leave_out: false,
                    priority: None,
                    not_before: None,
                },
            },
            store_patience: Duration::from_secs(10),
            most: 512,
            trust_offsets: false,
            prefix: PREFIX.into(),
            create_schema: true,
            accept_unsafe: false,
        }
    }
}

impl<DB: TransactionalDatabase> InboxBuilder<DB> {
    setters! {
        in settings;
        /// Each scope is an inbox of its own, in the same tables.
        scope;
        /// Sets what makes two messages the same. Default: [`position`]: each offset of a partition is a message of its own. Redelivery is stopped by a
        /// window of each partition whatever is set here.
        identify;
        on_missing;
        /// Does not create the tables, nor bring them up to date. Default: it does.
        without_schema_creation;
        /// Starts even if the check finds settings that break the promise. They are logged, and readable from [`Inbox::report`]. Default: refuse.
        accept_unsafe_settings;
    }

    /// Sets how large a payload may be that is kept, in bytes, and what happens to larger ones. Default: 1 MiB, [`Oversize::Reject`].
    ///
    /// The database has a limit of its own for key, headers and payload together, and the same happens to what is larger: on MySQL and MariaDB its
    /// `max_allowed_packet`, as [`build`](Self::build) finds it; on PostgreSQL and SQLite 10⁹ bytes. Batches are split so that no statement is too long.
    pub const fn largest_payload(mut self, bytes: usize, oversize: Oversize) -> Self {
        self.settings.intake.largest = bytes;
        self.settings.intake.oversize = oversize;
        self
    }

    /// Keeps no payloads: a handler reads them at their messages' positions, for as long as their topics keep them. Their fingerprints are kept.
    /// Default: payloads are kept.
    pub const fn leave_out_payloads(mut self) -> Self {
        self.settings.intake.leave_out = true;
        self
    }

    /// Sets which messages are worked first: those for which `priority` is smaller. Default: 0 for all. In the order of keys, that is a word about
    /// keys: a message never overtakes an earlier one of its own key.
    pub fn priority(mut self, priority: impl Fn(&dyn MessageView) -> i16 + Send + Sync + 'static) -> Self {
        self.settings.intake.priority = Some(Box::new(priority));
        self
    }

    /// Sets when messages may be worked at the earliest: `due` says so in milliseconds since 1970-01-01 UTC, by the database's clock; `None` for at
    /// once. Default: at once. In the order of keys, later ones of its key wait behind it.
    pub fn not_before(mut self, due: impl Fn(&dyn MessageView) -> Option<i64> + Send + Sync + 'static) -> Self {
        self.settings.intake.not_before = Some(Box::new(due));
        self
    }

    /// Sets how many messages are accepted in one transaction at most. Default: 512. 0 counts as 1.
    pub const fn batch_size(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// Takes every message below a partition's window for the one that was accepted there: for a loop of your own whose topics are never deleted and
    /// made again under their names. Default: one that cannot be told to be the same is an error,
    /// [`AcceptError::OtherMessage`](super::AcceptError::OtherMessage).
    pub const fn trust_offsets(mut self) -> Self {
        self.trust_offsets = true;
        self
    }

    /// Sets how long what is over is kept. Default: [`Retention::default`].
    pub const fn with_retention(mut self, retention: Retention) -> Self {
        self.settings.retention = retention;
        self
    }

    /// Sets how long a statement waits for a lock that somebody holds. Default: 1 s. MySQL counts whole seconds; SQLite waits as long as the
    /// pool's own `busy_timeout` says.
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.settings.patience = timeout.max(Duration::from_millis(1));
        self
    }

    /// Sets for how long a database that cannot be reached is asked again before a call gives up. Default: 10 s.
    pub fn store_patience(mut self, longest: Duration) -> Self {
        self.store_patience = longest;
        self
    }

    /// Sets what the names of the tables begin with: `prefix`, or `schema.prefix`. Default: `hapax_inbox`. At most 40 characters.
    pub fn with_tables(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Checks the settings, makes the tables or brings them up to date, looks for unsafe settings in the database, and finds this scope's inbox.
    ///
    /// # Errors
    ///
    /// [`BuildError`]. Retryable only where the database could not be reached.
    ///
    /// # Cancel safety
    ///
    /// Safe: building again does what is left.
    pub async fn build(self) -> Result<Inbox<DB>, BuildError> {
        let scope = scoped(self.scope, &*self.settings.identify, &self.settings.fingerprint)?;
        let tables = Tables::parse::<<DB as Sealed>::Dialect>(&self.prefix)?;
        let base = Once::transactional(self.pool.clone())
            .in_scope(scope.clone())
            .identify(position())
            .on_conflict(self.settings.on_conflict)
            .batch_size(self.most)
            .lock_timeout(self.settings.patience)
            .store_patience(self.store_patience)
            .with_windows_table(tables.windows().to_string());
        let base = if self.trust_offsets { base.trust_offsets() } else { base };
        let base = if self.create_schema { base } else { base.without_schema_creation() };
        let base = if self.accept_unsafe { base.accept_unsafe_settings() } else { base };
        let base = base.build().await?.core;
        if self.create_schema {
            schema::ensure::<DB>(&base.engine, &self.pool, &tables).await?;
        } else if let Some((problem, cure)) =
            schema::judge(schema::version::<DB>(&base.engine, &self.pool, &tables).await?, &tables)
        {
            let text = format!("{problem} {cure}");
            return Err(StoreError::refused(<DB as Sealed>::Dialect::NAME, "find the inbox's tables", text).into());
        }
        let mut report = base.report.clone();
        report.extend(schema::examine::<DB>(&self.pool, &tables).await?);
        judge(&report, self.accept_unsafe)?;
        let room = Room::ask::<DB>(&self.pool).await?;
        let mut core = Core {
            pool: self.pool,
            room,
            base,
            report,
            tables,
            number: 0,
            scope,
            settings: self.settings,
            drawn: Ids::default(),
            taken_in: Counters::default(),
            front: Front::default(),
            repeats: AtomicBool::new(false),
        };
        core.number = core.find().await?;
        tracing::debug!(database = <DB as Sealed>::Dialect::NAME, inbox = core.number, "built");
        Ok(Inbox { core: Arc::new(core) })
    }
}

impl<DB: Sealed> Core<DB> {
    /// What the handlers' table knows this scope by.
    fn scope_key(&self) -> Result<[u8; 16], StoreError> {
        let mut into = Encoder::new();
        let named = into.text("inbox").and_then(|()| into.finish());
        let refused = |_| StoreError::refused(DB::Dialect::NAME, "name an inbox", "its scope has no key.");
        Ok(*self.scope.key_of(&named.map_err(refused)?).as_bytes())
    }

    /// The number of this scope's inbox, which is made where it is missing.
    async fn find(&self) -> Result<i32, StoreError> {
        const OPERATION: &str = "find its inbox";
        let key = self.scope_key()?;
        let handlers = &self.tables.handlers;
        let (big, first) = (DB::Dialect::BIG, DB::Dialect::placeholder(1, crate::store::sql::Kind::Digest));
        let find = format!("SELECT CAST(inbox AS {big}) FROM {handlers} WHERE scope_key = {first}");
        let (insert, unless) = DB::Dialect::UNLESS_THERE;
        let insert = format!(
            "{insert} INTO {handlers} (scope_key, consumer_group, handler, inbox, next_id, time, paused) \
             SELECT {first}, {}, {}, COALESCE(MAX(h.inbox), 0) + 1, (COALESCE(MAX(h.inbox), 0) + 1) * {IDS} + 1, {}, 0 FROM {handlers} AS h WHERE 1 = 1{unless}",
            DB::Dialect::text(2),
            DB::Dialect::text(3),
            self.clock(),
        );
        let (group, handler) = (self.scope.group().as_bytes(), self.scope.handler().as_bytes());
        let mut asking = self.base.asking(OPERATION);
        let found = loop {
            match self.found(&find, &insert, [&key, group, handler]).await {
                Ok(found) => break found,
                Err(fault) => asking.wait(fault).await?,
            }
        };
        i32::try_from(found).map_err(|_| StoreError::corrupt(DB::Dialect::NAME, OPERATION, "its number is too large."))
    }

    /// The number that stands; an error where it had to be made, and is to be read.
    async fn found(&self, find: &str, insert: &str, values: [&[u8]; 3]) -> Result<i64, Fault> {
        let fault = |error| Self::fault(&error);
        // No transaction is begun where it is there: on SQLite, that would wait for whoever writes.
        let mut conn = self.pool.acquire().await.map_err(fault)?;
        let found = DB::DIALECT.numbers(&mut conn, find.to_owned(), &values[..1]).await.map_err(fault)?;
        drop(conn);
        if let Some(number) = found.first() {
            return Ok(*number);
        }
        // Two that start at once may choose the same number: one of them is told so, and reads.
        let mut tx = self.begin().await?;
        DB::DIALECT.execute_with(tx.conn()?, insert.to_owned(), &values).await.map_err(fault)?;
        match self.commit(tx).await {
            Committed::Yes => Err(Fault::Contended("an inbox was made, and is to be read.".into())),
            Committed::No(fault) | Committed::Unknown(fault) => Err(fault),
        }
    }
}
