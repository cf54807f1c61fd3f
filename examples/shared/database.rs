//! The database that `--database` names: SQLite, PostgreSQL, MySQL or MariaDB.

use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};

const PATIENCE: Duration = Duration::from_secs(30);

/// The database, as `--database` names it.
#[derive(Clone)]
pub enum Database {
    Sqlite(SqlitePool),
    #[cfg(feature = "postgres")]
    Postgres(sqlx::PgPool),
    #[cfg(feature = "mysql")]
    Mysql(sqlx::MySqlPool),
}

/// The same for whichever database it is.
macro_rules! on {
    ($database:expr, $pool:ident => $what:expr) => {
        match $database {
            $crate::database::Database::Sqlite($pool) => $what,
            #[cfg(feature = "postgres")]
            $crate::database::Database::Postgres($pool) => $what,
            #[cfg(feature = "mysql")]
            $crate::database::Database::Mysql($pool) => $what,
        }
    };
}
pub(crate) use on;

impl Database {
    /// `example` is what to build where this build lacks the database.
    #[cfg_attr(all(feature = "postgres", feature = "mysql"), allow(unused_variables))]
    pub async fn open(url: &str, example: &str) -> Result<Self, String> {
        let failed =
            |e: sqlx::Error| format!("--database: {e}; start it, or check user, host, port and name in the URL");
        match url.split_once(':').map_or(url, |(kind, _)| kind) {
            "sqlite" => {
                let options: SqliteConnectOptions = url.parse().map_err(failed)?;
                let options =
                    options.create_if_missing(true).journal_mode(SqliteJournalMode::Wal).busy_timeout(PATIENCE);
                let pool = SqlitePoolOptions::new().acquire_timeout(PATIENCE).connect_with(options).await;
                Ok(Self::Sqlite(pool.map_err(failed)?))
            }
            #[cfg(feature = "postgres")]
            "postgres" | "postgresql" => {
                let pool = sqlx::postgres::PgPoolOptions::new().acquire_timeout(PATIENCE).connect(url).await;
                Ok(Self::Postgres(pool.map_err(failed)?))
            }
            #[cfg(feature = "mysql")]
            "mysql" | "mariadb" => {
                let pool = sqlx::mysql::MySqlPoolOptions::new().acquire_timeout(PATIENCE).connect(url).await;
                Ok(Self::Mysql(pool.map_err(failed)?))
            }
            #[cfg(not(all(feature = "postgres", feature = "mysql")))]
            kind @ ("postgres" | "postgresql" | "mysql" | "mariadb") => {
                let feature = if kind.starts_with("postgres") { "postgres" } else { "mysql" };
                Err(format!(
                    "--database: this build has no {kind}; build it in: cargo run --release --features {feature} --example {example} -- …"
                ))
            }
            // The rest of the URL may hold a password: it is not shown.
            kind => Err(format!(
                "--database: there is no database `{kind}:`; write sqlite:PATH, postgres://… or mysql://… (MySQL and MariaDB)"
            )),
        }
    }

    pub const fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => "PostgreSQL",
            #[cfg(feature = "mysql")]
            Self::Mysql(_) => "MySQL or MariaDB",
        }
    }
}
