//! Records in a PostgreSQL table.

mod check;
mod dialect;

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPool};

pub(crate) use self::dialect::Postgres;
use super::sql::{CONNECTIONS, Dialect, Engine, sql_store};
use super::{Ask, Batch, DedupStore, Description, Purged, Report, Retention, StoreError, cells};
use crate::identity::Key;
use crate::level::Level;
use crate::record::{ClaimOutcome, Extend, ExtendOutcome, Record, RequeueOutcome, Settle, SettleOutcome, Terms};

/// Keeps records in a PostgreSQL table (version 12 or later): level L1.
///
/// # Round trips
///
/// On connections of the store's own ([`connect`](Self::connect)), for a batch of up to 4,096:
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
/// A statement's first use on a connection costs one more. So does *every* statement on a [pool of yours](Self::new): its plan is made
/// anew each time, since the store may not touch the planner's settings there.
///
/// # Locks and failures
///
/// Each statement is a transaction of its own. It waits at most the [lock timeout](Self::with_lock_timeout) for somebody's open
/// transaction; then a claim answers [`InFlight`](ClaimOutcome::InFlight) for the locked message alone, and other operations
/// do the rest of the batch and fail, retryable. Deadlocks and serialization failures are repeated a dozen times with jitter. A statement whose
/// connection turns out to be dead is repeated once on a fresh one.
///
/// Reads and writes go to the server of the URL: it must be the primary, never a replica.
///
/// A pooler between that gives each *transaction* another session (PgBouncer's `pool_mode = transaction`) does not do: statements are prepared, and
/// settings made, for a session. The first claim says so. Connect to the server itself, or by a pool of sessions.
///
/// # Rights
///
/// `SELECT`, `INSERT`, `UPDATE` on the table; `DELETE` for [`purge`](DedupStore::purge);
/// `CREATE` on the schema where [`ensure_schema`](DedupStore::ensure_schema) is to make the table.
///
/// # Cancel safety
///
/// As for every [`DedupStore`]. A connection whose statement was dropped is closed, never used again.
#[derive(Clone, Debug)]
pub struct PostgresStore {
    engine: Engine<Postgres>,
}

impl PostgresStore {
    /// Connects to `postgres://user:password@host:port/database`, with at most 4 connections of its own.
    ///
    /// # Errors
    ///
    /// Refused where the URL is not understood, or user, password or database are wrong; unavailable (retryable) where the server
    /// is not reached. No error shows the URL.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url).map_err(|_| {
            let cure =
                "write `postgres://user:password@host:port/database`, with any `?sslmode=…` in PostgreSQL's own words.";
            StoreError::refused(Postgres::NAME, "read its URL", cure)
        })?;
        let options = options.disable_statement_logging();
        Ok(Self { engine: Engine::connect(Postgres, options, CONNECTIONS, false).await? })
    }

    /// Uses a pool of your own, with its settings. Each statement borrows one connection.
    ///
    /// Costs a round trip more a statement, and sqlx tests a pool's connections on every release.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { engine: Engine::pooled(Postgres, pool) }
    }
}

sql_store!(PostgresStore, Postgres);
