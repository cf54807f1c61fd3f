//! SQLite: a statement of many rows, on a write-ahead log. Each side in a file of its own.

use std::path::PathBuf;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Pool, Sqlite, SqliteConnection};

use super::{Base, ORIGIN, Place, Row};
use crate::bare::repeated;
use crate::figures::Failure;

/// Where the file is.
pub struct File(tempfile::TempDir);

impl File {
    fn path(&self) -> PathBuf {
        self.0.path().join("effects.db")
    }
}

impl Base for Sqlite {
    const WORD: &'static str = "sqlite";
    type Clean = File;

    fn is_there() -> bool {
        true
    }

    async fn make(checkpoints: bool) -> Result<(Pool<Self>, File), Failure> {
        let file = File(tempfile::tempdir()?);
        let options = SqliteConnectOptions::new()
            .filename(file.path())
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .pragma("cache_size", "-32768")
            .pragma("wal_autocheckpoint", if checkpoints { "8192" } else { "0" })
            .disable_statement_logging();
        Ok((SqlitePoolOptions::new().max_connections(4).connect_with(options).await?, file))
    }

    async fn clean(file: File) -> Result<(), Failure> {
        Ok(file.0.close()?)
    }

    async fn tables(conn: &mut SqliteConnection) -> Result<(), Failure> {
        let sql = "CREATE TABLE effects (id INTEGER PRIMARY KEY, message BLOB NOT NULL, amount INTEGER NOT NULL, note BLOB NOT NULL);
                   CREATE TABLE processed (id BLOB NOT NULL PRIMARY KEY, at INTEGER NOT NULL DEFAULT (unixepoch())) WITHOUT ROWID";
        Ok(Self::run(conn, sql).await?)
    }

    async fn effects(conn: &mut SqliteConnection, rows: &[Row<'_>]) -> sqlx::Result<()> {
        let sql = repeated("INSERT INTO effects (message, amount, note) VALUES ", "(?,?,?)", rows.len(), "");
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for row in rows {
            query = query.bind(row.id).bind(row.amount).bind(row.note);
        }
        query.execute(conn).await.map(drop)
    }

    async fn effect(conn: &mut SqliteConnection, row: Row<'_>) -> sqlx::Result<()> {
        let sql = "INSERT INTO effects (message, amount, note) VALUES (?,?,?)";
        sqlx::query(sql).bind(row.id).bind(row.amount).bind(row.note).execute(conn).await.map(drop)
    }

    async fn process(conn: &mut SqliteConnection, rows: &[Row<'_>]) -> sqlx::Result<Vec<Vec<u8>>> {
        let sql = repeated("INSERT OR IGNORE INTO processed (id) VALUES ", "(?)", rows.len(), " RETURNING id");
        let mut query = sqlx::query_scalar(AssertSqlSafe(sql));
        for row in rows {
            query = query.bind(row.id);
        }
        query.fetch_all(conn).await
    }

    async fn process_one(conn: &mut SqliteConnection, row: Row<'_>) -> sqlx::Result<bool> {
        let sql = "INSERT OR IGNORE INTO processed (id) VALUES (?)";
        Ok(sqlx::query(sql).bind(row.id).execute(conn).await?.rows_affected() == 1)
    }

    async fn run(conn: &mut SqliteConnection, sql: &'static str) -> sqlx::Result<()> {
        sqlx::raw_sql(sql).execute(conn).await.map(drop)
    }

    async fn number(conn: &mut SqliteConnection, sql: &'static str) -> sqlx::Result<i64> {
        sqlx::query_scalar(sql).fetch_one(conn).await
    }

    /// The log's file: whole, where it was never cut.
    async fn logged(place: &Place<Self>) -> Result<i64, Failure> {
        let log = place.clean.path().with_extension("db-wal");
        Ok(std::fs::metadata(log).map_or(0, |file| file.len()).try_into()?)
    }

    async fn kept(place: &Place<Self>) -> Result<i64, Failure> {
        let sql = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";
        Ok(Self::number(&mut *place.pool.acquire().await?, sql).await?)
    }

    async fn remember(conn: &mut SqliteConnection, part: u8, rows: usize) -> Result<(), Failure> {
        let sql = format!(
            "INSERT INTO hapax_records (message_key, fingerprint, owner, fence, time, attempts, state, origin) \
             WITH RECURSIVE up (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < {rows}) \
             SELECT unhex('{part:02x}' || hex(randomblob(15))), randomblob(16), 1, 1, unixepoch() * 1000, 1, 2, ? FROM up ORDER BY 1"
        );
        Ok(sqlx::query(AssertSqlSafe(sql)).bind(ORIGIN).execute(conn).await.map(drop)?)
    }
}
