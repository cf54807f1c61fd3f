//! The store itself: retries, counting, and [`Cells`] over any dialect.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::Pool;

use super::dialect::{Call, Conn, Dialect};
use super::fault::Fault;
use super::link::Links;
use super::name::TableName;
use super::rows::{Reading, Values};
use super::schema::Layout;
use super::statement::{Statement, Texts, Write};
use crate::identity::Key;
use crate::record::{self, Extend, Fence, Record, State, Terms};
use crate::store::cells::{Cells, Change, Ending, Found, Inserted};
use crate::store::{Ask, Batch, Keyed, Retention, StoreError};

/// How long a statement waits for somebody else's lock.
pub(crate) const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections of a store's own.
pub(crate) const CONNECTIONS: usize = 4;
/// How long a statement may take with all its retries.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a statement is repeated that the server gave up in favour of another.
const CONTENDED: u32 = 12;

/// A store over one dialect. Clones share connections.
pub(crate) struct Engine<D: Dialect> {
    pub(super) dialect: D,
    pub(super) links: Arc<Links<D>>,
    pub(super) table: TableName,
    pub(super) retention: Retention,
    pub(super) timeout: Duration,
    pub(super) patience: Duration,
    pub(super) texts: Arc<Texts>,
    /// Where the next purge goes on.
    pub(super) cursor: Arc<Mutex<Vec<u8>>>,
}

impl<D: Dialect> Clone for Engine<D> {
    fn clone(&self) -> Self {
        Self {
            dialect: self.dialect.clone(),
            links: Arc::clone(&self.links),
            table: self.table.clone(),
            retention: self.retention,
            timeout: self.timeout,
            patience: self.patience,
            texts: Arc::clone(&self.texts),
            cursor: Arc::clone(&self.cursor),
        }
    }
}

impl<D: Dialect> fmt::Debug for Engine<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the connections: their options hold passwords.
        f.debug_struct(D::NAME)
            .field("table", &format_args!("{}", self.table))
            .field("retention", &self.retention)
            .field("timeout", &self.timeout)
            .field("lock_timeout", &self.patience)
            .field("own_pool", &self.links.keeps_statements())
            .finish()
    }
}

/// One statement, to be run on any connection, again if need be.
pub(super) trait Run<D: Dialect>: Sync {
    type Answer: Send;

    fn run(
        &self,
        engine: &Engine<D>,
        conn: &mut Conn<D>,
    ) -> impl Future<Output = Result<Self::Answer, sqlx::Error>> + Send;
}

struct WriteOnce<'a> {
    statement: Statement,
    values: &'a Values,
    size: usize,
}

impl<D: Dialect> Run<D> for WriteOnce<'_> {
    type Answer = u64;

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<u64, sqlx::Error> {
        engine.dialect.execute(conn, engine.call(self.statement, self.values, self.size)).await
    }
}

struct ReadOnce<'a> {
    values: &'a Values,
    size: usize,
}

impl<D: Dialect> Run<D> for ReadOnce<'_> {
    type Answer = Option<Reading>;

    async fn run(&self, engine: &Engine<D>, conn: &mut Conn<D>) -> Result<Option<Reading>, sqlx::Error> {
        engine.dialect.fetch(conn, engine.call(Statement::Read, self.values, self.size)).await
    }
}

/// What a batch of writes came to.
struct Written {
    /// Rows changed.
    count: u64,
    /// Rows that somebody's open transaction kept locked.
    locked: Vec<Key>,
}

impl<D: Dialect> Engine<D> {
    fn over(dialect: D, links: Links<D>) -> Self {
        Self {
            dialect,
            links: Arc::new(links),
            table: TableName::of(Layout::Records),
            retention: Retention::default(),
            timeout: TIMEOUT,
            patience: LOCK_TIMEOUT,
            texts: Arc::default(),
            cursor: Arc::default(),
        }
    }

    /// Over connections of its own; opens the first.
    pub(crate) async fn connect(
        dialect: D,
        options: <Conn<D> as sqlx::Connection>::Options,
        size: usize,
        keep_idle: bool,
    ) -> Result<Self, StoreError> {
        let engine = Self::over(dialect, Links::own(options, size, keep_idle));
        engine.run("connect", &Nothing).await?;
        Ok(engine)
    }

    /// Over a user's pool.
    pub(crate) fn pooled(dialect: D, pool: Pool<D::Db>) -> Self {
        Self::over(dialect, Links::Pool(pool))
    }

    pub(crate) fn with_table(mut self, name: &str) -> Result<Self, StoreError> {
        self.table = TableName::parse(D::NAME, name)?;
        self.texts = Arc::default();
        self.cursor = Arc::default();
        Ok(self)
    }

    pub(crate) fn with_retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    pub(crate) fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(crate) fn with_lock_timeout(mut self, patience: Duration) -> Self {
        self.patience = patience.max(Duration::from_millis(1));
        self.texts = Arc::default();
        self
    }

    pub(crate) const fn retention(&self) -> Retention {
        self.retention
    }

    pub(super) fn call<'a>(&self, statement: Statement, values: &'a Values, size: usize) -> Call<'a> {
        let text = self.texts.get(&self.dialect, &self.table, self.patience, statement, size);
        Call { statement, text, values, size, keep: self.links.keeps_statements() }
    }

    /// Runs one statement, with the store's error for what could not be cured.
    pub(super) async fn run<R: Run<D>>(&self, operation: &'static str, job: &R) -> Result<R::Answer, StoreError> {
        self.attempt(job).await.map_err(|fault| fault.error(D::NAME, operation))
    }

    async fn attempt<R: Run<D>>(&self, job: &R) -> Result<R::Answer, Fault> {
        match tokio::time::timeout(self.timeout, self.attempt_forever(job)).await {
            Ok(answer) => answer,
            Err(_) => Err(Fault::Unavailable(format!(
                "no answer within {:?}: what was asked may have been done.",
                self.timeout
            ))),
        }
    }

    /// Repeats what is safe to repeat: a statement on a dead connection, and one that lost to another.
    async fn attempt_forever<R: Run<D>>(&self, job: &R) -> Result<R::Answer, Fault> {
        let mut stale = self.links.stale();
        let mut contended = 0;
        let mut fresh = false;
        loop {
            let sort = |error: sqlx::Error| Fault::of(&error, D::fault);
            let mut link = self.links.take(&self.dialect, self.patience, fresh).await.map_err(sort)?;
            let answer = match link.conn() {
                Ok(conn) => job.run(self, conn).await,
                Err(error) => Err(error),
            };
            let fault = match answer {
                Ok(answer) => {
                    link.keep();
                    return Ok(answer);
                }
                Err(error) => sort(error),
            };
            if fault.spares_connection() {
                link.keep();
            } else {
                link.discard();
            }
            match fault {
                Fault::Broken(_) if stale > 0 => {
                    stale -= 1;
                    fresh = true;
                    tracing::debug!(store = D::NAME, error = %fault, "connection lost, trying a fresh one");
                }
                Fault::Contended(_) if contended < CONTENDED => {
                    contended += 1;
                    tokio::time::sleep(jitter(contended)).await;
                }
                fault => return Err(fault),
            }
        }
    }

    /// Writes any number of rows. Where rows are locked, the others go on without them.
    async fn write(&self, operation: &'static str, write: Write<'_>) -> Result<Written, StoreError> {
        let mut written = Written { count: 0, locked: Vec::new() };
        let mut parts = vec![write];
        while let Some(part) = parts.pop() {
            if part.len() == 0 {
                continue;
            }
            let (take, size) = D::step(part.len());
            let (now, later) = part.split(take);
            parts.push(later);
            let values = now.values();
            let size = D::shape(&values, size);
            match self.attempt(&WriteOnce { statement: now.statement(), values: &values, size }).await {
                Ok(count) => written.count += count,
                Err(Fault::Locked(_)) if D::LOCKS_ROWS && now.len() > 1 => {
                    // Halves, until whatever is locked stands alone.
                    let (left, right) = now.split(now.len() / 2);
                    parts.push(right);
                    parts.push(left);
                }
                Err(Fault::Locked(_)) if D::LOCKS_ROWS => written.locked.extend(now.key(0)),
                Err(fault) => return Err(fault.error(D::NAME, operation)),
            }
        }
        Ok(written)
    }

    fn locked(&self, operation: &'static str) -> StoreError {
        let text = format!(
            "somebody's open transaction kept a record locked for {:?}; the others of the batch were written. \
             Find and end that transaction.",
            self.patience
        );
        StoreError::unavailable(D::NAME, operation, text)
    }

    /// Reads any number of records, in the order of the keys.
    async fn look(&self, operation: &'static str, keys: &[Key]) -> Result<Vec<Found>, StoreError> {
        let mut found = Vec::with_capacity(keys.len());
        let mut rest = keys;
        while !rest.is_empty() {
            let (take, size) = D::step(rest.len());
            let (some, later) = rest.split_at(take);
            rest = later;
            let values = Values::rows(some.len()).keys(some);
            let Some(reading) = self.run(operation, &ReadOnce { values: &values, size }).await? else {
                return Err(StoreError::corrupt(
                    D::NAME,
                    operation,
                    "a row does not hold what this crate writes. Run check() to see what is wrong.",
                ));
            };
            let mut records: Vec<Option<Record>> = vec![None; some.len()];
            for (key, record) in reading.records {
                // Keys come in ascending order, as in every batch.
                if let Ok(place) = some.binary_search(&key) {
                    records[place] = Some(record);
                }
            }
            found.extend(records.into_iter().map(|record| Found { now: reading.now, record }));
        }
        Ok(found)
    }
}

/// Sees whether a connection can be had.
struct Nothing;

impl<D: Dialect> Run<D> for Nothing {
    type Answer = ();

    async fn run(&self, _engine: &Engine<D>, _conn: &mut Conn<D>) -> Result<(), sqlx::Error> {
        Ok(())
    }
}

/// A pause that grows with each try, and is never the same for two.
pub(crate) fn jitter(tries: u32) -> Duration {
    let ceiling = 4_u64 << tries.min(6);
    let random = getrandom::u64().unwrap_or(0);
    Duration::from_millis(1 + random % ceiling)
}

impl<D: Dialect> Cells for Engine<D> {
    fn name(&self) -> &'static str {
        D::NAME
    }

    async fn insert(&self, terms: &Terms, asks: &Batch<Ask>) -> Result<Vec<Inserted>, StoreError> {
        let begun = Instant::now();
        let rows: Vec<&Ask> = asks.items().iter().collect();
        let written = self.write("claim", Write::Insert { terms, asks: &rows }).await?;
        if written.locked.is_empty() && written.count == asks.len() as u64 {
            return Ok(vec![Inserted::Claimed; asks.len()]);
        }
        // Some stood already: which of them are ours shows in the records.
        let keys: Vec<Key> = asks.keys().collect();
        let found = self.look("claim", &keys).await?;
        let spent = begun.elapsed();
        let answers = asks.items().iter().zip(found).map(|(ask, found)| match &found.record {
            Some(record) if is_first_claim(record, ask, terms, found.now, spent) => Inserted::Claimed,
            None if written.locked.contains(&ask.key()) => Inserted::Locked,
            _ => Inserted::Taken(Some(found)),
        });
        Ok(answers.collect())
    }

    async fn finish(&self, endings: &[Ending]) -> Result<Vec<bool>, StoreError> {
        let rows: Vec<&Ending> = endings.iter().collect();
        let written = self.write("settle", Write::Finish(&rows)).await?;
        if !written.locked.is_empty() {
            return Err(self.locked("settle"));
        }
        // A count that falls short does not say whose claim was gone.
        Ok(vec![written.count == endings.len() as u64; endings.len()])
    }

    async fn prolong(&self, claims: &Batch<Extend>) -> Result<Vec<bool>, StoreError> {
        let rows: Vec<&Extend> = claims.items().iter().collect();
        let written = self.write("extend", Write::Prolong(&rows)).await?;
        if !written.locked.is_empty() {
            return Err(self.locked("extend"));
        }
        if written.count == claims.len() as u64 {
            return Ok(vec![true; claims.len()]);
        }
        // A token that is current now was current then, for a fence never comes back: that row was written.
        let keys: Vec<Key> = claims.keys().collect();
        let found = self.look("extend", &keys).await?;
        let held = claims.items().iter().zip(found).map(|(claim, found)| {
            found
                .record
                .is_some_and(|record| matches!(record.state, State::Processing { .. }) && record.token() == claim.token)
        });
        Ok(held.collect())
    }

    async fn read(&self, keys: &Batch<Key>) -> Result<Vec<Found>, StoreError> {
        self.look("read", keys.items()).await
    }

    async fn swap(&self, changes: &[Change]) -> Result<Vec<bool>, StoreError> {
        let (update, create): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(|change| change.before.is_some());
        let updated = self.write("write", Write::Update(&update)).await?;
        let created = self.write("write", Write::Create(&create)).await?;
        if !(updated.locked.is_empty() && created.locked.is_empty()) {
            return Err(self.locked("write"));
        }
        if updated.count + created.count == changes.len() as u64 {
            return Ok(vec![true; changes.len()]);
        }
        // What was to be written stands, or it does not: whoever wrote the very same thing decided the same.
        let keys: Vec<Key> = changes.iter().map(|change| change.key).collect();
        let found = self.look("write", &keys).await?;
        let stands = changes.iter().zip(found).map(|(change, found)| found.record.as_ref() == Some(&change.after));
        Ok(stands.collect())
    }
}

/// Whether a record is this owner's first claim, with a lease at least as long as an insert within the last `spent` gave.
fn is_first_claim(record: &Record, ask: &Ask, terms: &Terms, now: record::Millis, spent: Duration) -> bool {
    let State::Processing { until } = record.state else { return false };
    record.owner == terms.owner
        && record.fence == Fence::FIRST
        && record.attempts == 1
        && record.fingerprint == ask.sighting.fingerprint
        && until >= record::after(now, terms.lease).saturating_sub(record::millis(spent) + 1)
}
