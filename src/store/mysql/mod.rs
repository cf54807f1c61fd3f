//! Records in a MySQL or MariaDB table.

mod bind;
mod check;
mod dialect;

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::ConnectOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlPool};

pub(crate) use self::dialect::{Mysql, OWNER};
use super::sql::{CONNECTIONS, Dialect, Engine, sql_store};
use super::{Ask, Batch, DedupStore, Description, Purged, Report, Retention, StoreError, cells};
use crate::identity::Key;
use crate::level::Level;
use crate::record::{ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms};

/// Keeps records in an InnoDB table of MariaDB (10.11 or later) or MySQL (8.0 or later): level L1.
///
/// # Round trips
///
/// Statements are written for batches of powers of two up to 512, so that few are kept prepared; a batch of another size is
/// padded, or cut where padding would be more than a quarter. For a batch of 512:
///
/// | operation | round trips |
/// |---|---|
/// | claim, all new | 1 |
/// | claim, some known | 2; 3 where a record is taken over |
/// | claim, all known and read first | 1 |
/// | settle, extend | 1 where every claim is still held, 2 or 3 otherwise |
/// | get | 1 |
/// | requeue | 2 |
///
/// A statement's first use on a connection costs one more.
///
/// # Locks and failures
///
/// Each statement is a transaction of its own. On the store's own connections it waits at most the
/// [lock timeout](Self::with_lock_timeout), in whole seconds, for somebody's open transaction; on a [pool of yours](Self::new)
/// `innodb_lock_wait_timeout` holds. Then a claim answers [`InFlight`](ClaimOutcome::InFlight) for the locked message alone, and
/// other operations do the rest of the batch and fail, retryable. Deadlocks are repeated a dozen times with jitter. A statement whose
/// connection turns out to be dead is repeated once on a fresh one.
///
/// Reads and writes go to the server of the URL: it must be the primary, never a replica.
///
/// # Rights
///
/// `SELECT`, `INSERT`, `UPDATE` on the table; `DELETE` for [`purge`](DedupStore::purge); `CREATE` where
/// [`ensure_schema`](DedupStore::ensure_schema) is to make the table.
///
/// # Cancel safety
///
/// As for every [`DedupStore`]. A connection whose statement was dropped is closed, never used again.
#[derive(Clone, Debug)]
pub struct MysqlStore {
    engine: Engine<Mysql>,
}

impl MysqlStore {
    /// Connects to `mysql://user:password@host:port/database`, with at most 4 connections of its own, in strict mode.
    ///
    /// # Errors
    ///
    /// Refused where the URL is not understood, or user, password or database are wrong; unavailable (retryable) where the server
    /// is not reached. No error shows the URL.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let url = url.strip_prefix("mariadb:").map_or_else(|| url.to_owned(), |rest| format!("mysql:{rest}"));
        let options = MySqlConnectOptions::from_str(&url).map_err(|_| {
            let cure = "write `mysql://user:password@host:port/database`, with any `?ssl-mode=…` in MySQL's own words.";
            StoreError::refused(Mysql::NAME, "read its URL", cure)
        })?;
        let options = options.disable_statement_logging();
        Ok(Self { engine: Engine::connect(Mysql, options, CONNECTIONS, false).await? })
    }

    /// Uses a pool of your own, with its settings. Each statement borrows one connection.
    ///
    /// sqlx tests a pool's connections on every release, in the background. Leave the connections in strict mode and in auto-commit.
    #[must_use]
    pub fn new(pool: MySqlPool) -> Self {
        Self { engine: Engine::pooled(Mysql, pool) }
    }
}

sql_store!(MysqlStore, Mysql);
