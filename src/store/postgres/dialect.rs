//! PostgreSQL's text, binding and decoding.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::{Arguments, AssertSqlSafe, Error, Row};

use super::check;
use crate::store::Report;
use crate::store::sql::{
    Call, Column, Dialect, Fault, Field, Kind, Layout, Marker, Reading, Scalar, TableName, Values, reading,
};

/// PostgreSQL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Postgres;

fn arguments(values: &Values) -> Result<PgArguments, Error> {
    let mut arguments = PgArguments::default();
    for scalar in &values.scalars {
        match scalar {
            Scalar::Int(number) => arguments.add(*number),
            Scalar::Blob(blob) => arguments.add(blob.as_slice()),
        }
        .map_err(Error::Encode)?;
    }
    for column in &values.columns {
        match column {
            Column::Digests(column) => {
                let column: Vec<&[u8]> = column.iter().map(<[u8; 16]>::as_slice).collect();
                arguments.add(column)
            }
            Column::Ints(column) => arguments.add(column.as_slice()),
            Column::Blobs(column) => {
                let column: Vec<Option<&[u8]>> = column.iter().map(Option::as_deref).collect();
                arguments.add(column)
            }
        }
        .map_err(Error::Encode)?;
    }
    Ok(arguments)
}

/// State and attempts, which each database keeps in types of its own.
fn numbers(row: &PgRow) -> Result<(i64, i64), Error> {
    Ok((row.try_get::<i16, _>(3)?.into(), row.try_get::<i32, _>(4)?.into()))
}

impl Dialect for Postgres {
    type Db = sqlx::Postgres;
    const NAME: &'static str = "postgres";
    const QUOTE: char = '"';
    const GREATEST: &'static str = "greatest";
    const LARGEST: usize = 4096;
    const SURVIVES_CANCEL: bool = false;
    const LOCKS_ROWS: bool = true;

    fn schema(layout: Layout) -> &'static str {
        match layout {
            Layout::Records => include_str!("../../../migrations/postgres/0001_records.sql"),
            Layout::Windows => include_str!("../../../migrations/postgres/0002_windows.sql"),
        }
    }

    fn now(&self, patience: Duration) -> String {
        // Evaluated once, before the first row is locked; the setting ends with the statement, on anybody's connection.
        format!(
            "(SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint \
             FROM set_config('lock_timeout', '{}', true) AS waits WHERE waits IS NOT NULL)",
            patience.as_millis().max(1)
        )
    }

    fn placeholder(number: usize, kind: Kind) -> String {
        match kind {
            Kind::Int => format!("${number}::bigint"),
            Kind::Digest | Kind::Blob => format!("${number}::bytea"),
        }
    }

    fn source(fields: &[Field], first: usize, _size: usize) -> String {
        let arrays: Vec<String> = fields
            .iter()
            .enumerate()
            .map(|(number, (_, kind))| match kind {
                Kind::Int => format!("${}::bigint[]", first + number),
                Kind::Digest | Kind::Blob => format!("${}::bytea[]", first + number),
            })
            .collect();
        let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        format!("(SELECT * FROM unnest({}) AS v ({}))", arrays.join(", "), names.join(", "))
    }

    fn among(first: usize, _size: usize) -> String {
        format!("= ANY (${first}::bytea[])")
    }

    fn read(table: &str, now: &str, size: usize) -> String {
        format!(
            "SELECT c.now, h.message_key, h.fingerprint, h.state, h.attempts, h.owner, h.fence, h.time, h.origin, h.result \
             FROM (SELECT {now} AS now) AS c LEFT JOIN {table} AS h ON h.message_key {}",
            Self::among(1, size)
        )
    }

    async fn greet(&self, conn: &mut PgConnection, _patience: Duration) -> Result<(), Error> {
        // A plan made while the table was small must not read all of it when it has grown: look keys up, whatever the
        // statistics say.
        let settings = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off";
        sqlx::raw_sql(settings).execute(conn).await.map(drop)
    }

    async fn execute(&self, conn: &mut PgConnection, call: Call<'_>) -> Result<u64, Error> {
        let query = sqlx::query_with(AssertSqlSafe(call.text), arguments(call.values)?).persistent(call.keep);
        Ok(query.execute(conn).await?.rows_affected())
    }

    async fn fetch(&self, conn: &mut PgConnection, call: Call<'_>) -> Result<Option<Reading>, Error> {
        let query = sqlx::query_with(AssertSqlSafe(call.text), arguments(call.values)?).persistent(call.keep);
        let rows = query.fetch_all(conn).await?;
        reading(&rows, numbers)
    }

    async fn keys(&self, conn: &mut PgConnection, call: Call<'_>) -> Result<Vec<Vec<u8>>, Error> {
        let query = sqlx::query_with(AssertSqlSafe(call.text), arguments(call.values)?).persistent(call.keep);
        query.fetch_all(conn).await?.iter().map(|row| row.try_get(0)).collect()
    }

    async fn marker(&self, conn: &mut PgConnection, table: &TableName) -> Result<Marker, Error> {
        let row = sqlx::query(
            "SELECT t.id IS NOT NULL, coalesce(obj_description(t.id, 'pg_class'), '') FROM (SELECT to_regclass($1)::oid AS id) AS t",
        )
        .bind(table.quoted(Self::QUOTE))
        .persistent(false)
        .fetch_one(conn)
        .await?;
        Ok(if row.try_get(0)? { Marker::Says(row.try_get(1)?) } else { Marker::Absent })
    }

    async fn create(&self, conn: &mut PgConnection, text: String) -> Result<(), Error> {
        // One message of several statements is one transaction. The lock keeps two that start at once from making the
        // table at the same moment, which IF NOT EXISTS does not.
        let text = format!("SELECT pg_advisory_xact_lock(7521932870918497);\n{text}");
        sqlx::raw_sql(AssertSqlSafe(text)).execute(conn).await.map(drop)
    }

    async fn settings(&self, conn: &mut PgConnection, _table: &TableName, report: &mut Report) -> Result<(), Error> {
        check::settings(conn, report).await
    }

    async fn inspect(
        &self,
        conn: &mut PgConnection,
        layout: Layout,
        table: &TableName,
        report: &mut Report,
    ) -> Result<(), Error> {
        check::inspect(conn, layout, &table.quoted(Self::QUOTE), report).await
    }

    fn fault(error: &dyn DatabaseError) -> Fault {
        let code = error.code().unwrap_or_default();
        // The primary message names objects, never values: those are in the detail.
        let said = error.message();
        match code.as_ref() {
            "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => Fault::Broken(
                "the server closed the connection: it is shutting down or starting, or it was idle for too long."
                    .into(),
            ),
            "25006" => Fault::Broken(
                "the server is read-only: a replica, or a primary that was one a moment ago. Connect to the primary."
                    .into(),
            ),
            // A statement of somebody else's under our name, or ours gone at once: not the session that we were given a moment ago.
            "42P05" => Fault::Refused(
                "prepared statements of others stand in its session: there is a pooler between that gives each transaction another one. \
                 Connect to the server itself, or by a pool of sessions."
                    .into(),
            ),
            "26000" | "0A000" => Fault::Broken(format!(
                "a prepared statement was lost ({said}). Where that stays so, there is a pooler between that gives each transaction another session."
            )),
            "40001" | "40P01" => Fault::Contended("others kept writing the same records.".into()),
            "55P03" => Fault::Locked("somebody's open transaction kept a record locked.".into()),
            "57014" => {
                Fault::Unavailable("the server cancelled the statement: its statement_timeout, or an operator.".into())
            }
            "53300" => Fault::Unavailable("the server has no connection to spare.".into()),
            "42P01" => Fault::Refused("the table is missing: run ensure_schema(), or the file in migrations/.".into()),
            "3F000" => Fault::Refused("the schema is missing: create it first.".into()),
            "42501" => Fault::Refused(format!(
                "the user lacks a right ({said}): grant SELECT, INSERT, UPDATE and DELETE on the table; to make it, CREATE on its schema, or run the file in migrations/ as somebody who may."
            )),
            "28P01" | "28000" => Fault::Refused("the server does not know that user and password.".into()),
            "3D000" => Fault::Refused("the database is missing: create it first.".into()),
            other if other.starts_with("08") => Fault::Broken("the connection broke.".into()),
            other if other.starts_with("53") || other.starts_with("58") => {
                Fault::Unavailable(format!("it is out of room ({said})."))
            }
            other if other.starts_with("XX") => Fault::Corrupt(format!("it said: {said} ({other}).")),
            other => Fault::Refused(format!(
                "it said: {said} ({other}). Run check() to see whether the table is as it should be."
            )),
        }
    }
}
