//! SQLite's text, binding and decoding.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe, Error, Executor, Row};

use super::{check, pack};
use crate::store::Report;
use crate::store::sql::{Call, Dialect, Fault, Field, Kind, Layout, Marker, Reading, Scalar, TableName, Values};

/// SQLite.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sqlite;

fn arguments(call: &Call<'_>) -> Result<SqliteArguments, Error> {
    let values = call.values;
    let mut arguments = SqliteArguments::default();
    for scalar in &values.scalars {
        match scalar {
            Scalar::Int(number) => arguments.add(*number),
            Scalar::Blob(blob) => arguments.add(blob.clone()),
        }
        .map_err(Error::Encode)?;
    }
    if !values.columns.is_empty() {
        let (packed, heap) = pack::pack(values, call.size);
        arguments.add(packed).map_err(Error::Encode)?;
        arguments.add(i64::try_from(values.len).unwrap_or(i64::MAX)).map_err(Error::Encode)?;
        if let Some(heap) = heap {
            arguments.add(heap).map_err(Error::Encode)?;
        }
    }
    Ok(arguments)
}

impl Dialect for Sqlite {
    type Db = sqlx::Sqlite;
    const NAME: &'static str = "sqlite";
    const QUOTE: char = '"';
    const GREATEST: &'static str = "max";
    const LARGEST: usize = pack::ROWS;
    // The connection's thread ends the statement, and none opens a transaction.
    const SURVIVES_CANCEL: bool = true;
    const LOCKS_ROWS: bool = false;
    // One that might fail half-way (a null where none may be: there are none) would copy each page that it writes inside a transaction, to go back to.
    const IGNORING: [&'static str; 2] = ["INSERT OR IGNORE", ""];

    fn schema(layout: Layout) -> &'static str {
        match layout {
            Layout::Records => include_str!("../../../migrations/sqlite/0001_records.sql"),
            Layout::Windows => include_str!("../../../migrations/sqlite/0002_windows.sql"),
        }
    }

    fn now(&self, _patience: Duration) -> String {
        "(SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER))".into()
    }

    fn placeholder(number: usize, _kind: Kind) -> String {
        format!("?{number}")
    }

    fn source(fields: &[Field], first: usize, size: usize) -> String {
        pack::source(fields, first, size)
    }

    fn among(first: usize, size: usize) -> String {
        format!("IN {}", pack::source(&[("k", Kind::Digest)], first, size))
    }

    fn read(table: &str, now: &str, size: usize) -> String {
        // CROSS JOIN keeps the order: one look-up for each key.
        let source = pack::source(&[("k", Kind::Digest)], 1, size);
        format!("SELECT {now}, {} FROM {source} AS u CROSS JOIN {table} AS h ON h.message_key = u.k", pack::line())
    }

    fn shape(values: &Values, _size: usize) -> usize {
        pack::shape(values)
    }

    async fn greet(&self, conn: &mut SqliteConnection, patience: Duration) -> Result<(), Error> {
        let text = format!("PRAGMA busy_timeout = {}", patience.as_millis());
        conn.execute(AssertSqlSafe(text)).await.map(drop)
    }

    async fn execute(&self, conn: &mut SqliteConnection, call: Call<'_>) -> Result<u64, Error> {
        let arguments = arguments(&call)?;
        let query = sqlx::query_with(AssertSqlSafe(call.text), arguments);
        Ok(query.execute(conn).await?.rows_affected())
    }

    async fn fetch(&self, conn: &mut SqliteConnection, call: Call<'_>) -> Result<Option<Reading>, Error> {
        let arguments = arguments(&call)?;
        let row = sqlx::query_with(AssertSqlSafe(call.text), arguments).fetch_one(conn).await?;
        Ok(pack::parse(row.try_get(0)?, row.try_get(1)?))
    }

    async fn keys(&self, conn: &mut SqliteConnection, call: Call<'_>) -> Result<Vec<Vec<u8>>, Error> {
        let arguments = arguments(&call)?;
        let rows = sqlx::query_with(AssertSqlSafe(call.text), arguments).fetch_all(conn).await?;
        rows.iter().map(|row| row.try_get(0)).collect()
    }

    async fn marker(&self, conn: &mut SqliteConnection, table: &TableName) -> Result<Marker, Error> {
        let encoding: String = sqlx::query_scalar("PRAGMA encoding").fetch_one(&mut *conn).await?;
        if encoding != "UTF-8" {
            // Batches are bound as one blob, whose numbers are read as text of the database's encoding.
            return Ok(Marker::Unusable("the database's text is UTF-16.", "Use a database whose encoding is UTF-8."));
        }
        let schema = table.schema().unwrap_or("main");
        let text = format!("SELECT sql FROM \"{schema}\".sqlite_schema WHERE type = 'table' AND name = ?1");
        let row = sqlx::query(AssertSqlSafe(text)).bind(table.table().to_owned()).fetch_optional(conn).await?;
        row.map_or(Ok(Marker::Absent), |row| Ok(Marker::Says(row.try_get(0)?)))
    }

    async fn create(&self, conn: &mut SqliteConnection, text: String) -> Result<(), Error> {
        conn.execute(AssertSqlSafe(text)).await.map(drop)
    }

    async fn settings(&self, conn: &mut SqliteConnection, table: &TableName, report: &mut Report) -> Result<(), Error> {
        check::settings(conn, table, report).await
    }

    async fn inspect(
        &self,
        conn: &mut SqliteConnection,
        layout: Layout,
        table: &TableName,
        report: &mut Report,
    ) -> Result<(), Error> {
        check::inspect(conn, layout, table, report).await
    }

    fn fault(error: &dyn DatabaseError) -> Fault {
        let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or(0);
        let said = error.message();
        match code & 0xff {
            5 => Fault::Locked(
                "another process or connection kept the database locked. Raise the lock timeout, or end its transaction."
                    .into(),
            ),
            // Connections of one process that share a cache: they do not wait for each other by themselves.
            6 => Fault::Contended("another connection with the same cache kept the table locked.".into()),
            8 => Fault::Refused("the database is read-only.".into()),
            10 => Fault::Unavailable(format!("the disk failed ({said}).")),
            11 | 26 => Fault::Corrupt(format!("the file is not a sound SQLite database ({said}).")),
            7 => Fault::Unavailable("it is out of memory.".into()),
            9 => Fault::Unavailable("the statement was interrupted.".into()),
            13 => Fault::Unavailable("the disk is full.".into()),
            14 => Fault::Refused("the file cannot be opened: check that its folder exists and may be written.".into()),
            1 if said.starts_with("no such table") => {
                Fault::Refused("the table is missing: run ensure_schema(), or the file in migrations/.".into())
            }
            _ => Fault::Refused(format!("it said: {said} (code {code}).")),
        }
    }
}
