//! The effects: a table of this example's own, in which no message is unique, so that an effect that happens twice is seen twice. At level L2
//! it is in the database that hapax's own rows are in, otherwise in any.

use std::time::Duration;

use hapax::{ErrorClass, HandlerError};
use sqlx::mysql::{MySqlConnection, MySqlPool, MySqlPoolOptions};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions};

const PATIENCE: Duration = Duration::from_secs(10);
const CONNECTIONS: u32 = 8;

// Order and time are the database's: when the effect happened, whatever the process thinks.
const POSTGRES: &str = "CREATE TABLE IF NOT EXISTS effect (
    nth bigserial NOT NULL, id text NOT NULL, claim text NOT NULL, fence bigint NOT NULL, member text NOT NULL, pid bigint NOT NULL,
    attempt bigint NOT NULL, lane text NOT NULL, log_offset bigint NOT NULL,
    at bigint NOT NULL DEFAULT (extract(epoch from clock_timestamp()) * 1000000)::bigint)";
const MYSQL: &str = "CREATE TABLE IF NOT EXISTS effect (
    nth bigint NOT NULL AUTO_INCREMENT, id varchar(255) NOT NULL, claim varchar(255) NOT NULL, fence bigint NOT NULL,
    member varchar(255) NOT NULL, pid bigint NOT NULL, attempt bigint NOT NULL, lane varchar(255) NOT NULL, log_offset bigint NOT NULL,
    INDEX (nth), at bigint NOT NULL DEFAULT (CAST(unix_timestamp(sysdate(6)) * 1000000 AS signed)))";
const SQLITE: &str = "CREATE TABLE IF NOT EXISTS effect (
    nth integer PRIMARY KEY AUTOINCREMENT, id text NOT NULL, claim text NOT NULL, fence integer NOT NULL, member text NOT NULL,
    pid integer NOT NULL, attempt integer NOT NULL, lane text NOT NULL, log_offset integer NOT NULL,
    at integer NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS integer)))";

/// A row of the table.
#[derive(Debug)]
pub struct Effect {
    /// The message.
    pub id: String,
    /// The claim under which it was handled, and its fence; at level L2 there are none.
    pub claim: String,
    pub fence: i64,
    pub attempt: i64,
    /// The message's key and offset: what came first in its key.
    pub lane: String,
    pub offset: i64,
}

/// An open connection, with or without a transaction around it.
pub trait Table: Send {
    /// The effect: what must happen once for each message.
    fn insert(&mut self, effect: &Effect, member: &str) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

macro_rules! table {
    ($connection:ty, $insert:literal) => {
        impl Table for $connection {
            async fn insert(&mut self, effect: &Effect, member: &str) -> Result<(), sqlx::Error> {
                let insert = sqlx::query($insert).bind(&effect.id).bind(&effect.claim).bind(effect.fence).bind(member);
                let insert = insert.bind(i64::from(std::process::id())).bind(effect.attempt);
                insert.bind(&effect.lane).bind(effect.offset).execute(&mut *self).await?;
                Ok(())
            }
        }
    };
}

table!(
    PgConnection,
    "INSERT INTO effect (id, claim, fence, member, pid, attempt, lane, log_offset) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
);
table!(
    MySqlConnection,
    "INSERT INTO effect (id, claim, fence, member, pid, attempt, lane, log_offset) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
);
table!(
    SqliteConnection,
    "INSERT INTO effect (id, claim, fence, member, pid, attempt, lane, log_offset) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
);

#[derive(Clone)]
pub enum Effects {
    Postgres(PgPool),
    Mysql(MySqlPool),
    Sqlite(SqlitePool),
}

fn failed(flag: &str, error: &sqlx::Error) -> String {
    format!("--{flag}: {error}; start that database, or check the URL")
}

/// The same for whichever database it is.
macro_rules! on {
    ($effects:expr, $pool:ident => $what:expr) => {
        match $effects {
            Effects::Postgres($pool) => $what,
            Effects::Mysql($pool) => $what,
            Effects::Sqlite($pool) => $what,
        }
    };
}
pub(crate) use on;

impl Effects {
    /// Makes the table too.
    pub async fn open(url: &str) -> Result<Self, String> {
        let effects = Self::connect("effects", url).await?;
        let table = match &effects {
            Self::Postgres(_) => POSTGRES,
            Self::Mysql(_) => MYSQL,
            Self::Sqlite(_) => SQLITE,
        };
        let create = async || on!(&effects, pool => sqlx::query(table).execute(pool).await.map(|_| ()));
        // Two members that start together may both make it; one of them is told that it exists.
        if create().await.is_err() {
            create().await.map_err(|error| failed("effects", &error))?;
        }
        Ok(effects)
    }

    /// `flag` is what named the URL.
    pub async fn connect(flag: &str, url: &str) -> Result<Self, String> {
        let failed = |error: sqlx::Error| failed(flag, &error);
        Ok(match url.split_once(':').map_or(url, |(kind, _)| kind) {
            "postgres" | "postgresql" => {
                let pool = PgPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
                Self::Postgres(pool.acquire_timeout(PATIENCE).connect(url).await.map_err(failed)?)
            }
            "mysql" | "mariadb" => {
                let pool = MySqlPoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
                Self::Mysql(pool.acquire_timeout(PATIENCE).connect(url).await.map_err(failed)?)
            }
            "sqlite" => {
                let options: SqliteConnectOptions = url.parse().map_err(failed)?;
                let options =
                    options.create_if_missing(true).journal_mode(SqliteJournalMode::Wal).busy_timeout(PATIENCE);
                let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).test_before_acquire(false);
                Self::Sqlite(pool.connect_with(options).await.map_err(failed)?)
            }
            _ => return Err(format!("--{flag}: give postgres://…, mysql://… or sqlite:PATH")),
        })
    }

    /// An effect by itself, whatever else is going on.
    pub async fn insert(&self, effect: &Effect, member: &str) -> Result<(), WorkError> {
        on!(self, pool => match pool.acquire().await {
            Ok(mut connection) => connection.insert(effect, member).await,
            Err(error) => Err(error),
        })
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
