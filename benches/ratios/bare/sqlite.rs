//! SQLite: a statement of many rows, on the same journal mode as the store's.

use std::path::Path;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, SqliteConnection};

use super::{Bare, repeated};
use crate::data::Row;
use crate::figures::Failure;

pub struct Sqlite {
    connection: SqliteConnection,
    /// The statements, with the number of rows they are for.
    insert: (usize, String),
    update: (usize, String),
}

impl Sqlite {
    pub async fn open(path: &Path) -> Result<Self, Failure> {
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            // As the store sets its own connections, or the settings would count as a gain.
            .pragma("cache_size", "-32768")
            .pragma("wal_autocheckpoint", "8192")
            .disable_statement_logging()
            .connect()
            .await?;
        let create = "CREATE TABLE bare (k BLOB NOT NULL PRIMARY KEY, fingerprint BLOB NOT NULL, number INTEGER NOT NULL) \
                      WITHOUT ROWID";
        sqlx::raw_sql(create).execute(&mut connection).await?;
        Ok(Self { connection, insert: (0, String::new()), update: (0, String::new()) })
    }
}

#[async_trait]
impl Bare for Sqlite {
    async fn insert(&mut self, rows: &[Row]) -> Result<usize, Failure> {
        if self.insert.0 != rows.len() {
            let head = "INSERT OR IGNORE INTO bare (k, fingerprint, number) VALUES ";
            self.insert = (rows.len(), repeated(head, "(?,?,?)", rows.len(), ""));
        }
        let mut query = sqlx::query(AssertSqlSafe(self.insert.1.as_str()));
        for row in rows {
            query = query.bind(&row.key[..]).bind(&row.fingerprint[..]).bind(row.number);
        }
        Ok(query.execute(&mut self.connection).await?.rows_affected() as usize)
    }

    async fn update(&mut self, rows: &[Row]) -> Result<usize, Failure> {
        if self.update.0 != rows.len() {
            let head = "UPDATE bare SET number = ? WHERE k IN (";
            self.update = (rows.len(), repeated(head, "?", rows.len(), ")"));
        }
        let mut query = sqlx::query(AssertSqlSafe(self.update.1.as_str())).bind(-1_i64);
        for row in rows {
            query = query.bind(&row.key[..]);
        }
        Ok(query.execute(&mut self.connection).await?.rows_affected() as usize)
    }
}
