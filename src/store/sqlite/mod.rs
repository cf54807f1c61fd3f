//! Records in a SQLite database.

mod check;
mod dialect;
mod pack;

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous};

pub(crate) use self::dialect::Sqlite;
use super::sql::{Dialect, Engine, sql_store};
use super::{Ask, Batch, DedupStore, Description, Purged, Report, Retention, StoreError, cells};
use crate::identity::Key;
use crate::level::Level;
use crate::record::{ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms};

/// Keeps records in a SQLite database: level L1, and L0 for a database in memory. The embedded default.
///
/// # Cost
///
/// There is no network; every statement is one command to the connection's thread, and one transaction of the file.
/// For a batch of up to 512: a claim of new messages is one statement, a claim of a mix two (one more where a record
/// is taken over); a claim of duplicates that are read first is one; settling and extending are one where every claim
/// is still held, and one read and one more write otherwise. Topics of a batch make no difference.
///
/// SQLite has one writer at a time, over all processes that share the file. A statement that finds the file locked waits for
/// the [lock timeout](Self::with_lock_timeout), then fails, retryable.
///
/// [`open`](Self::open) and [`connect`](Self::connect) give the connection a page cache of up to 32 MB, and let the write-ahead log beside
/// the file grow to 32 MB before it is copied back.
///
/// # Safety of the data
///
/// [`open`](Self::open) sets write-ahead logging with `synchronous = NORMAL`: what was settled survives a crash of the
/// process, but the last moments may be forgotten when the machine loses power. Give a [pool of your own](Self::new) with
/// `SqliteSynchronous::Full` where power may fail and an effect may not repeat.
///
/// A file must not be deleted or replaced while anybody has it open: SQLite goes on in the one that is gone, and what is written there
/// is lost.
///
/// Times are this machine's clock, as SQLite reads it: all processes that share the file share the clock.
///
/// # Cancel safety
///
/// As for every [`DedupStore`]. A statement whose future was dropped is finished by the connection's thread.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    engine: Engine<Sqlite>,
}

impl SqliteStore {
    /// Opens a file, and makes it where it is missing. `:memory:` is a database of this store's own that ends with it.
    ///
    /// # Errors
    ///
    /// Refused where the file cannot be opened; unavailable (retryable) where another process kept it locked.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        if path == Path::new(":memory:") {
            return Self::start(memory(), true).await;
        }
        Self::start(SqliteConnectOptions::new().filename(path).create_if_missing(true), false).await
    }

    /// Opens `sqlite:PATH`, or `sqlite::memory:`. Makes the file where it is missing, unless the URL says `?mode=rw`.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open); refused where the URL is not understood.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let path = url.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
        let Some(path) = path.filter(|path| !path.is_empty()) else {
            return Err(not_understood());
        };
        if path == ":memory:" || path.contains("mode=memory") {
            return Self::start(memory(), true).await;
        }
        let options = SqliteConnectOptions::from_str(url).map_err(|_| not_understood())?;
        Self::start(if path.contains("mode=") { options } else { options.create_if_missing(true) }, false).await
    }

    /// Uses a pool of your own, with its settings: take write-ahead logging and a busy timeout.
    ///
    /// sqlx tests a pool's connections on every release, in the background: about a tenth of the speed.
    #[must_use]
    pub fn new(pool: SqlitePool) -> Self {
        Self { engine: Engine::pooled(Sqlite, pool) }
    }

    async fn start(options: SqliteConnectOptions, memory: bool) -> Result<Self, StoreError> {
        let options = options.disable_statement_logging().busy_timeout(super::sql::LOCK_TIMEOUT);
        let options = if memory {
            options
        } else {
            // A batch touches a page for each key. With the default cache of 2 MB it would spill pages before it is done, and
            // with the default log of 4 MB every second batch would copy the log back into the file.
            options
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Normal)
                .pragma("cache_size", "-32768")
                .pragma("wal_autocheckpoint", "8192")
        };
        // One writer at a time is all that SQLite has, and a database in memory is its connection.
        Ok(Self { engine: Engine::connect(Sqlite, options, 1, memory).await? })
    }
}

fn memory() -> SqliteConnectOptions {
    SqliteConnectOptions::new().in_memory(true)
}

fn not_understood() -> StoreError {
    StoreError::refused(Sqlite::NAME, "read its URL", "write `sqlite:PATH` or `sqlite::memory:`.")
}

sql_store!(SqliteStore, Sqlite);
