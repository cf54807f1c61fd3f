//! The effects: a table of this example's own, in a database that need not be the store's. It has no unique index, so that an
//! effect that happens twice is seen twice.

use std::time::Duration;

use hapax::{Claim, ErrorClass, HandlerError};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};

const PATIENCE: Duration = Duration::from_secs(10);
const CONNECTIONS: u32 = 8;

// The time is the database's: when the effect happened, whatever the process thinks.
const POSTGRES: &str = "CREATE TABLE IF NOT EXISTS effect (
    id text NOT NULL, key text NOT NULL, fence bigint NOT NULL, member text NOT NULL, pid bigint NOT NULL, attempt bigint NOT NULL,
    at bigint NOT NULL DEFAULT (extract(epoch from clock_timestamp()) * 1000000)::bigint)";
const SQLITE: &str = "CREATE TABLE IF NOT EXISTS effect (
    id text NOT NULL, key text NOT NULL, fence integer NOT NULL, member text NOT NULL, pid integer NOT NULL, attempt integer NOT NULL,
    at integer NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS integer)))";

#[derive(Clone)]
pub struct Effects {
    pool: Pool,
    member: String,
}

#[derive(Clone)]
enum Pool {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

impl Effects {
    pub async fn open(url: &str, member: &str) -> Result<Self, String> {
        let failed = |e: sqlx::Error| format!("--effects: {e}; start that database, or check the URL");
        let pool = match url.split_once(':').map_or(url, |(kind, _)| kind) {
            "postgres" | "postgresql" => {
                let pool = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
                let pool = pool.acquire_timeout(PATIENCE).connect(url).await.map_err(failed)?;
                let created = sqlx::query(POSTGRES).execute(&pool).await;
                // Two members that start together may both make it; one of them is told that it exists.
                if created.is_err() {
                    sqlx::query(POSTGRES).execute(&pool).await.map_err(failed)?;
                }
                Pool::Postgres(pool)
            }
            "sqlite" => {
                let options: SqliteConnectOptions = url.parse().map_err(failed)?;
                let options =
                    options.create_if_missing(true).journal_mode(SqliteJournalMode::Wal).busy_timeout(PATIENCE);
                let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
                let pool = pool.connect_with(options).await.map_err(failed)?;
                sqlx::query(SQLITE).execute(&pool).await.map_err(failed)?;
                Pool::Sqlite(pool)
            }
            _ => return Err("--effects: give postgres://… or sqlite:PATH".into()),
        };
        Ok(Self { pool, member: member.to_owned() })
    }

    /// The effect: what must happen once for each message.
    pub async fn add(&self, id: &str, claim: &Claim) -> Result<(), WorkError> {
        const INSERT: &str =
            "INSERT INTO effect (id, key, fence, member, pid, attempt) VALUES ($1, $2, $3, $4, $5, $6)";
        let (key, fence) = (claim.idempotency_key(), i64::try_from(claim.fence().get()).unwrap_or(i64::MAX));
        let (pid, attempt) = (i64::from(std::process::id()), i64::from(claim.attempt()));
        macro_rules! insert {
            ($pool:expr) => {
                sqlx::query(INSERT)
                    .bind(id)
                    .bind(key)
                    .bind(fence)
                    .bind(&self.member)
                    .bind(pid)
                    .bind(attempt)
                    .execute($pool)
                    .await
                    .map(|_| ())
            };
        }
        match &self.pool {
            Pool::Postgres(pool) => insert!(pool),
            Pool::Sqlite(pool) => insert!(pool),
        }
        .map_err(WorkError::Effects)
    }
}

/// Why a message could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error("the effect could not be noted: {0}")]
    Effects(sqlx::Error),
    #[error("this attempt fails on purpose")]
    Injected,
    #[error("this message never succeeds, on purpose")]
    Hopeless,
}

impl HandlerError for WorkError {
    fn class(&self) -> ErrorClass {
        match self {
            // The database is away, whatever the message: everything waits for it, and no attempt is burnt.
            Self::Effects(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut) => {
                ErrorClass::Unavailable
            }
            Self::Effects(_) | Self::Injected => ErrorClass::Retryable,
            Self::Hopeless => ErrorClass::Fatal,
        }
    }
}
